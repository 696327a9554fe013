"""Whose operators are whose, in a file without names: told by weights, and by place.

The Keras model the file was exported from says which layers there are, how they are connected and
what their weights are. Both graphs are walked side by side from the inputs: a layer with weights is
found by them, whatever has none by standing where the description has it. What cannot be told
beyond doubt keeps a name made from its operator; nothing is guessed from an order alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from converters.expected import (
    ACTIVATIONS,
    AS_ACTIVATION,
    EXACT,
    FOLDED,
    JOINING,
    KERNEL_KINDS,
    SILU,
    SINGLE,
    Expected,
    activation_of,
    affine_of,
    bias_of,
    close,
    does_nothing,
    fits,
    guesses,
    kernels_of,
    same_affine,
)
from converters.graph import Array, Graph, Node
from converters.keras_models import KerasLayer, KerasModel, KerasTensor, Weight
from converters.kinds import IDLE
from converters.names import Owner
from converters.passes.layers import product_of_silu

Names = tuple[str, ...]

_HELPERS = frozenset(["Pad", "SamePad", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"])
_WITH_CONSTANT = frozenset(["Add", "Sub", "Mul", "Div"])


@dataclass(frozen=True)
class Matched:
    """What :func:`match_layers` could tell.

    Attributes:
        layers: dotted names of the layers found in the file.
        related: whether any of the model's kernels is in the file, or it has none.
        missing: of those that should be there and could not be told from others.
    """

    layers: frozenset[str]
    related: bool
    missing: tuple[str, ...]


def match_layers(graph: Graph, keras: KerasModel) -> Matched:
    """Give the operators of a graph without names to the layers of a Keras model.

    Args:
        graph: simplified, and not yet turned channels first.
        keras: the model the file was exported from.

    Returns:
        What was found; the operators' ``owner`` (and ``alias``, where a batch norm was merged into
        a convolution) are set.
    """
    matcher = _Matcher(graph, keras)
    matcher.run()
    related = matcher.related or not matcher.demand
    return Matched(frozenset(matcher.found), related, tuple(matcher.missing))


def idle_layers(model: KerasLayer) -> dict[str, str | None]:
    """Layers of a model that do nothing outside training, where a description tells their place.

    Only those through which everybody reads what stands before them.

    Returns:
        Each one's name -> the layer whose output it hands on, ``None`` for the input.
    """
    found: dict[str, str | None] = {}
    for layer in model.layers:
        idle = layer.type in IDLE or does_nothing(layer)
        if idle and len(layer.calls) == 1 and len(layer.calls[0]) == 1:
            (source,) = layer.calls[0]
            if _is_only_reader(layer, model):
                found[layer.name] = None if source in model.inputs else source.layer
    return found


# ---------------------------------------------------------------------------- the walk


@dataclass
class _Matcher:
    """Walks the description, and for each tensor in it knows the one in the file."""

    graph: Graph
    keras: KerasModel
    found: dict[str, Owner] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    related: bool = False
    settled: set[Owner] = field(default_factory=set)  # calls placed by what they put out
    learnt: str = ""  # what the layer just placed was given, where only its weights told

    def __post_init__(self) -> None:
        self.makers = self.graph.makers()
        self.turned = {
            node.output: node.inputs[0]
            for node in self.graph.nodes
            if node.op == "Transpose" and node.inputs[0] not in self.graph.constants
        }
        self.users: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            if node.output in self.turned:
                continue
            for name in dict.fromkeys(map(self.origin, node.inputs)):
                self.users.setdefault(name, []).append(node)
        self.kernels: dict[tuple[str, tuple[int, ...]], list[Node]] = {}
        for node in self.graph.nodes:
            kernel = self.graph.static(node, 1)
            if node.op in ("Conv", "ConvTranspose", "Linear") and kernel is not None:
                self.kernels.setdefault((node.op, kernel.shape), []).append(node)

    def run(self) -> None:
        model = self.keras.model
        self.demand = self._count_kernels(model)
        if not self.keras.described:
            for layer, path, _ in _with_weights(model, self.keras, ()):
                self._by_weights_alone(layer, path)
            return
        inputs = [self.origin(name) for name in self.graph.inputs]
        given = inputs if len(inputs) == len(model.inputs) else [None] * len(model.inputs)
        self._model(model, (), (), given)

    def origin(self, name: str) -> str:
        """A tensor before the transposes that led to it."""
        while name in self.turned:
            name = self.turned[name]
        return name

    # ------------------------------------------------------------ models and layers

    def _model(
        self, model: KerasLayer, path: Names, scope: Names, given: Sequence[str | None]
    ) -> list[str | None]:
        """Place the layers of a model; the tensors it ends with.

        Where a layer cannot be placed, those behind it are not either, until one with weights is
        found by them: from there it goes on, and back to what stands before, as far as that can be
        told.
        """
        known: dict[KerasTensor, str | None] = dict(zip(model.inputs, given, strict=False))
        waiting = list(_in_order(model))
        before = -1
        while waiting and len(waiting) != before:
            before = len(waiting)
            waiting = [
                each for each in waiting if not self._placed(model, path, scope, known, *each)
            ]
            for each in reversed(waiting):
                self._backwards(path, scope, known, *each)
        for layer, _, _ in waiting:
            if layer.type not in IDLE and not layer.layers:
                self._give_up((*path, layer.name))
        return [known.get(tensor) for tensor in model.outputs]

    def _give_up(self, path: Names) -> None:
        """Of a layer one of whose calls is not known, the others would be counted wrongly."""
        name = ".".join(path)
        self.found.pop(name, None)
        if name not in self.missing:
            self.missing.append(name)
        for node in self.graph.nodes:
            if node.owner is not None and node.owner.path == path:
                node.owner = node.alias = None

    def _placed(
        self,
        model: KerasLayer,
        path: Names,
        scope: Names,
        known: dict[KerasTensor, str | None],
        layer: KerasLayer,
        call: int,
        sources: Sequence[KerasTensor],
    ) -> bool:
        """Place one call of a layer, if that can be done already."""
        made = KerasTensor(layer.name, call)
        given = [known.get(source) for source in sources]
        owner = _owner(path, scope, layer, call)
        if owner in self.settled:
            return True
        if layer.type in IDLE or does_nothing(layer):
            known[made] = given[0] if given else None
            return known[made] is not None
        if layer.layers:
            for index, end in enumerate(self._model(layer, owner.path, owner.scope, given)):
                known[KerasTensor(layer.name, call, index)] = end
            return True
        if made in known and known[made] is None:
            del known[made]
        self.learnt = ""
        end = self._layer(layer, owner, given, _reader(layer, call, model))
        if end is None:
            return False
        known[made] = end
        self.found[".".join(owner.path)] = owner
        if self.learnt:
            known[sources[0]] = self.learnt
        return True

    def _backwards(
        self,
        path: Names,
        scope: Names,
        known: dict[KerasTensor, str | None],
        layer: KerasLayer,
        call: int,
        sources: Sequence[KerasTensor],
    ) -> None:
        """Place a layer of one operator by what it puts out, where that has been learnt."""
        end = known.get(KerasTensor(layer.name, call))
        node = self.makers.get(end or "")
        if node is None or node.owner is not None or not sources or layer.layers:
            return
        chains = SINGLE.get(layer.type, ())
        if layer.type in ("Activation", *AS_ACTIVATION):
            chains = ACTIVATIONS.get(activation_of(layer) or "", ())
        given = [self.origin(name) for name in node.inputs if name not in self.graph.constants]
        told = [known.get(source) for source in sources]
        gate = self._gate_of(node) if activation_of(layer) in SILU else None
        if (node.op,) in chains and len(given) == 1:
            rest = given
        elif gate is not None:
            rest = [self.origin(gate.inputs[0])]
        elif JOINING.get(layer.type) == node.op != "Concat" and len(given) == len(sources) == 2:
            rest = [name for name in given if name not in told]
            if len(rest) != 1 or told.count(None) != 1:
                return
        else:
            return
        owner = _owner(path, scope, layer, call)
        self._claim([node, *([gate] if gate is not None else [])], owner)
        self.found[".".join(owner.path)] = owner
        self.settled.add(owner)
        known[sources[told.index(None) if None in told else 0]] = rest[0]

    def _layer(
        self,
        layer: KerasLayer,
        owner: Owner,
        given: Sequence[str | None],
        after: KerasLayer | None,
    ) -> str | None:
        """Place one call of a layer: what it puts out, ``None`` where that cannot be told."""
        weights = self.keras.weights.get(owner.path, ())
        kernels = kernels_of(layer, weights)
        if kernels:
            return self._weighted(layer, owner, given[0] if given else None, kernels, after)
        if layer.type.startswith(KERNEL_KINDS):
            return None
        if len(given) > 1:
            return self._joined(layer, owner, given)
        if given and given[0] is not None:
            return self._plain(layer, owner, given[0], weights)
        return None

    # ------------------------------------------------------------ layers with kernels

    def _weighted(
        self,
        layer: KerasLayer,
        owner: Owner,
        given: str | None,
        kernels: Sequence[Expected],
        after: KerasLayer | None,
    ) -> str | None:
        start, node = given, None
        for expected in kernels:
            node, norm = self._find(expected, start, layer, owner, after)
            if node is None:
                return None
            if start is None:
                self.learnt = self._before(node)
            self._claim([*self._between(node.inputs[0], start or self.learnt), node], owner)
            start = node.output
            if norm is not None:
                node.alias = norm
        assert node is not None
        if node.alias is not None:  # the norm has taken the rest, and hands its own output on
            return node.output
        start = self._bias(layer, owner, node)
        return self._activation(activation_of(layer), owner, start)

    def _before(self, node: Node) -> str:
        """What a layer found by its weights was given: what stands before the borders it adds."""
        name = self.origin(node.inputs[0])
        maker = self.makers.get(name)
        while maker is not None and maker.owner is None and maker.op in ("Pad", "SamePad", "Cast"):
            name = self.origin(maker.inputs[0])
            maker = self.makers.get(name)
        return name

    def _find(
        self,
        expected: Expected,
        start: str | None,
        layer: KerasLayer,
        owner: Owner,
        after: KerasLayer | None,
    ) -> tuple[Node | None, Owner | None]:
        """The operator with this kernel, and the batch norm that was merged into it."""
        nodes = [
            node
            for op in expected.ops
            for node in self.kernels.get((op, expected.shape), [])
            if node.owner is None
        ]
        if not nodes:
            return None, None
        numbers = expected.numbers().astype(np.float64)
        equal = self._equal(nodes, numbers, EXACT)
        if equal:
            return self._one_of(equal, start, expected, numbers), None
        merged = self._merged(numbers, layer, owner, after)
        if merged is None:
            return None, None
        kernel, norm = merged
        found = self._one_of(self._equal(nodes, kernel, FOLDED), start, None, kernel)
        return found, norm if found is not None else None

    def _equal(self, nodes: Sequence[Node], numbers: Array, tolerance: float) -> list[Node]:
        constants = self.graph.constants
        equal = [node for node in nodes if close(constants[node.inputs[1]], numbers, tolerance)]
        self.related = self.related or bool(equal)
        return equal

    def _one_of(
        self, nodes: Sequence[Node], start: str | None, expected: Expected | None, numbers: Array
    ) -> Node | None:
        """The one that stands in the right place; of several elsewhere, none."""
        if start is not None:
            here = [node for node in nodes if self._reaches(node.inputs[0], start)]
            if here:
                return here[0] if len(here) == 1 else None
        if len(nodes) != 1 or (expected is not None and self._wanted(expected, numbers) > 1):
            return None
        return nodes[0]

    def _wanted(self, expected: Expected, numbers: Array) -> int:
        """How many calls of layers there are with this very kernel."""
        return sum(
            calls
            for other, calls in self.demand
            if other.ops == expected.ops
            and other.shape == expected.shape
            and close(other.numbers(), numbers, EXACT)
        )

    def _count_kernels(self, model: KerasLayer) -> list[tuple[Expected, int]]:
        return [
            (expected, calls)
            for layer, path, calls in _with_weights(model, self.keras, ())
            for expected in (
                kernels_of(layer, self.keras.weights[path])
                if self.keras.described
                else guesses(self.keras.weights[path])
            )
        ]

    def _merged(
        self,
        kernel: Array,
        layer: KerasLayer,
        owner: Owner,
        after: KerasLayer | None,
    ) -> tuple[Array, Owner] | None:
        """The kernel with the batch norm behind it in it, if there is one."""
        if after is None or activation_of(layer) != "linear":
            return None
        path = (*owner.path[:-1], after.name)
        pair = affine_of(after, self.keras.weights.get(path, ()))
        if pair is None or after.type != "BatchNormalization" or len(pair[0]) != len(kernel):
            return None
        call = owner.scope[-1].removeprefix(owner.path[-1])  # the norm's is the convolution's
        norm = Owner(path, (*owner.scope[:-1], after.name + call))
        return kernel * pair[0].reshape(-1, *[1] * (kernel.ndim - 1)), norm

    def _bias(self, layer: KerasLayer, owner: Owner, node: Node) -> str:
        """Behind the sum with the layer's bias, where that is an operator of its own."""
        bias = bias_of(layer, self.keras.weights.get(owner.path, ()))
        if bias is None or len(node.inputs) > 2:
            return node.output
        for position, user in self._ahead(node.output, ("Add",), through=("Slice",)):
            constant = self._constant_of(user)
            if constant is not None and close(constant.reshape(-1), bias.reshape(-1), EXACT):
                self._claim([*position, user], owner)
                return user.output
        return node.output

    def _constant_of(self, node: Node) -> Array | None:
        constants = [self.graph.constants[n] for n in node.inputs if n in self.graph.constants]
        return constants[0] if len(constants) == 1 else None

    # ------------------------------------------------------------ layers without

    def _plain(
        self, layer: KerasLayer, owner: Owner, given: str, weights: Sequence[Weight]
    ) -> str | None:
        maker = self.makers.get(given)
        if maker is not None and maker.alias is not None and maker.alias.path == owner.path:
            return given  # merged into the convolution before
        if (pair := affine_of(layer, weights)) is not None:
            return self._affine(pair, owner, given)
        if layer.type in ("Activation", *AS_ACTIVATION):
            return self._activation(activation_of(layer), owner, given)
        chains = SINGLE.get(layer.type)
        if chains is None:
            return self._region(owner, given)
        end = self._chain(chains, owner, given, layer)
        if end is not None and layer.type.startswith("Global") and not layer.config.get("keepdims"):
            return self._squeezed(owner, end)
        return end

    def _activation(self, name: str | None, owner: Owner, given: str) -> str | None:
        if name == "linear":
            return given
        if name in SILU:
            return self._silu(owner, given)
        chains = ACTIVATIONS.get(name or "", ())
        if any(len(self._ahead(given, chain[:1])) > 1 for chain in chains):
            return None  # two layers read this tensor, and which is which cannot be told
        return self._chain(chains, owner, given) or self._region(owner, given)

    def _silu(self, owner: Owner, given: str) -> str | None:
        """Behind a sigmoid and the product with its own input, which no other layer is for."""
        found = [
            (way, node, product)
            for way, node in self._ahead(given, ("Sigmoid",))
            if (product := product_of_silu(self.graph, node, self.users)) is not None
            and product.owner is None
        ]
        if len(found) != 1:
            return None if found else self._region(owner, given)
        way, node, product = found[0]
        self._claim([*way, node, product], owner)
        return product.output

    def _gate_of(self, product: Node) -> Node | None:
        """The sigmoid that a product multiplies by its own input, if nobody has it."""
        for name in product.inputs:
            gate = self.makers.get(self.origin(name))
            if gate is None or gate.owner is not None:
                continue
            if product_of_silu(self.graph, gate, self.users) is product:
                return gate
        return None

    def _chain(
        self,
        chains: Sequence[tuple[str, ...]],
        owner: Owner,
        given: str,
        layer: KerasLayer | None = None,
    ) -> str | None:
        """The one chain of operators from here on that computes the layer."""
        for chain in chains:
            if chain == ("Transpose",):
                return None  # a transpose of the exporter's own looks no different
            claimed: list[Node] = []
            at = given
            for op in chain:
                found = [
                    (way, node)
                    for way, node in self._ahead(at, (op,))
                    if layer is None or fits(node, layer)
                ]
                if len(found) != 1:
                    break
                way, node = found[0]
                claimed += [*way, node]
                at = node.output
            else:
                self._claim(claimed, owner)
                return at
        return None

    def _squeezed(self, owner: Owner, at: str) -> str:
        """Behind what takes the pooled axes away, where pooling itself kept them."""
        users = self.users.get(at, [])
        if len(users) == 1 and users[0].owner is None:
            shape = self.graph.shapes.get(users[0].output)
            if users[0].op in ("Squeeze", "Reshape", "Flatten") and shape and len(shape) == 2:
                self._claim(users, owner)
                return users[0].output
        return at

    def _affine(self, pair: tuple[Array, Array], owner: Owner, given: str) -> str | None:
        """Behind the products and sums that come to this factor and summand."""
        wanted = [np.asarray(each, np.float64).reshape(-1) for each in pair]
        scale, shift = np.ones(1), np.zeros(1)
        claimed: list[Node] = []
        at, end = given, None
        for _ in range(4):
            following = [
                (way, node, step)
                for way, node in self._ahead(at, (*_WITH_CONSTANT, "BatchNormalization"))
                if (step := self._step(node, at)) is not None
            ]
            right = [
                found
                for found in following
                if same_affine((scale * found[2][0], shift * found[2][0] + found[2][1]), wanted)
            ]
            following = right or following
            if len(following) != 1 or (end is not None and not right):
                break
            way, node, (factor, summand) = following[0]
            scale, shift = scale * factor, shift * factor + summand
            claimed += [*way, node]
            at = node.output
            if right:  # and on: a sum with 0 may follow
                self._claim(claimed, owner)
                end = at
        return end

    def _step(self, node: Node, at: str) -> tuple[Array, Array] | None:
        """What an operator with constants does to each channel."""
        constants = [self.graph.constants.get(name) for name in node.inputs]
        if node.op == "BatchNormalization":
            values = [c.astype(np.float64) for c in constants[1:5] if c is not None]
            if len(values) != 4:
                return None
            factor = values[0] / np.sqrt(values[3] + node.attributes.get("epsilon", 1e-5))
            return factor, values[1] - values[2] * factor
        if len(constants) != 2 or (constants[0] is None) == (constants[1] is None):
            return None
        first = constants[0] is not None
        constant = (constants[0] if first else constants[1]).astype(np.float64)  # type: ignore[union-attr]
        if constant.size != max(constant.shape, default=1):
            return None
        numbers, one, zero = constant.reshape(-1), np.ones(1), np.zeros(1)
        if node.op == "Add":
            return one, numbers
        if node.op == "Sub":
            return (-one, numbers) if first else (one, -numbers)
        if node.op == "Mul":
            return numbers, zero
        return None if first or not numbers.all() else (1 / numbers, zero)

    def _joined(self, layer: KerasLayer, owner: Owner, given: Sequence[str | None]) -> str | None:
        """The operator that takes exactly these tensors; of more than two, one after another."""
        op = JOINING.get(layer.type)
        tensors = [name for name in given if name is not None]
        if op is None or len(tensors) != len(given):
            return None
        if op == "Concat" or len(tensors) == 2:
            return self._join(op, owner, tensors)
        whole = self._join(op, owner, tensors)
        if whole is not None:
            return whole
        at: str | None = tensors[0]
        for other in tensors[1:]:
            at = self._join(op, owner, [at, other]) if at is not None else None
        return at

    def _join(self, op: str, owner: Owner, tensors: Sequence[str]) -> str | None:
        ordered = op in ("Concat", "Sub")
        found = []
        for node in self.users.get(tensors[0], []):
            given = [self._back(name, tensors) for name in node.inputs]
            same = given == list(tensors) if ordered else sorted(map(str, given)) == sorted(tensors)
            if node.op in (op, "Sum" if op == "Add" else op) and node.owner is None and same:
                found.append(node)
        found = found or list(self._behind_helpers(tensors, op))
        if len(found) != 1:
            return None
        between = [n for name in found[0].inputs for n in self._between(name, None, tensors)]
        self._claim([*between, found[0]], owner)
        return found[0].output

    def _behind_helpers(self, tensors: Sequence[str], op: str) -> Iterator[Node]:
        """Joins whose operands were reshaped on the way."""
        ordered = op in ("Concat", "Sub")
        for node in self.graph.nodes:
            if node.op != op or node.owner is not None:
                continue
            given = [self._back(name, tensors) for name in node.inputs]
            if given == list(tensors) if ordered else sorted(map(str, given)) == sorted(tensors):
                yield node

    def _region(self, owner: Owner, given: str) -> str | None:
        """All of what computes one tensor from another, where it has one way in and one way out.

        For what exporters spell out in small operators. The smallest such part; it must hold
        everything that reads the tensor given.
        """
        made, claimed = {given}, list[Node]()
        for node in self.graph.nodes:
            sources = [self.origin(n) for n in node.inputs if n and n not in self.graph.constants]
            if node.output in self.turned or not sources or not made.issuperset(sources):
                continue
            if node.owner is not None or node.op in _HEAVY or len(node.outputs) != 1:
                return None
            claimed.append(node)
            made.add(node.output)
            inner = made - {node.output}
            read_outside = any(
                user not in claimed for name in inner for user in self.users.get(name, [])
            )
            if not read_outside and not inner.intersection(map(self.origin, self.graph.outputs)):
                self._claim(claimed, owner)
                return node.output
        return None

    # ------------------------------------------------------------ ways through the graph

    def _claim(self, nodes: Sequence[Node], owner: Owner) -> None:
        for node in nodes:
            if node.owner is None and node.output not in self.turned:
                node.owner = owner

    def _ahead(
        self, start: str, ops: Sequence[str], through: Sequence[str] = ()
    ) -> list[tuple[list[Node], Node]]:
        """Operators of these kinds that read a tensor, and what stands between."""
        found: list[tuple[list[Node], Node]] = []
        waiting: list[tuple[str, list[Node]]] = [(start, [])]
        while waiting:
            at, way = waiting.pop()
            for node in self.users.get(at, []):
                if node.owner is not None or len(way) > 4:
                    continue
                if node.op in ops:
                    found.append((way, node))
                elif node.op in _HELPERS or node.op in through:
                    waiting.append((node.output, [*way, node]))
        return found

    def _back(self, name: str, ends: Sequence[str]) -> str | None:
        """Which of some tensors one comes from, with nothing but helpers between."""
        name = self.origin(name)
        while name not in ends:
            maker = self.makers.get(name)
            if maker is None or maker.owner is not None or maker.op not in _HELPERS:
                return None
            name = self.origin(maker.inputs[0])
        return name

    def _reaches(self, name: str, start: str) -> bool:
        return self._back(name, [start]) is not None

    def _between(
        self, name: str, start: str | None, ends: Sequence[str] | None = None
    ) -> list[Node]:
        """The helpers between a tensor and where a layer begins, if that can be told."""
        wanted = [start] if ends is None else list(ends)
        if self._back(name, [each for each in wanted if each is not None]) is None:
            return []
        way = []
        name = self.origin(name)
        while name not in wanted:
            maker = self.makers[name]
            way.append(maker)
            name = self.origin(maker.inputs[0])
        return way

    # ------------------------------------------------------------ weights alone

    def _by_weights_alone(self, layer: KerasLayer, path: Names) -> None:
        """Of a file of weights nothing else is known: kernels that stand in one place only."""
        nodes = []
        for expected in guesses(self.keras.weights[path]):
            there = [n for op in expected.ops for n in self.kernels.get((op, expected.shape), [])]
            nodes += self._equal(there, expected.numbers(), EXACT) if there else []
        name = ".".join(path)
        if len(nodes) == 1 and nodes[0].owner is None:
            self._claim(nodes, Owner(path, path))
            self._bias(KerasLayer(path[-1], "Conv2D", {}), Owner(path, path), nodes[0])
            self.found[name] = Owner(path, path)
        elif len(self.keras.weights[path][0].shape) > 1:
            self.missing.append(name)


_HEAVY = frozenset(
    [
        *("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "Linear"),
        *("MatMul", "MaxPool", "Resize", "Concat"),
    ]
)


def _with_weights(
    model: KerasLayer, keras: KerasModel, path: Names
) -> Iterator[tuple[KerasLayer, Names, int]]:
    """Every layer with weights, its name, and how often it is called."""
    inside = {layer.name: layer for layer in model.layers}
    own = {names for names in keras.weights if names[: len(path)] == path}
    for name in dict.fromkeys(names[len(path)] for names in own if len(names) > len(path)):
        layer = inside.get(name, KerasLayer(name, "", {}))
        if (*path, name) in keras.weights:
            yield layer, (*path, name), max(1, len(layer.calls))
        yield from _with_weights(layer, keras, (*path, name))


def _owner(path: Names, scope: Names, layer: KerasLayer, call: int) -> Owner:
    place = layer.name if call == 0 else f"{layer.name}@{call}"
    return Owner((*path, layer.name), (*scope, place))


def _in_order(
    model: KerasLayer,
) -> Iterator[tuple[KerasLayer, int, tuple[KerasTensor, ...]]]:
    """Every call of a model's layers, in an order in which they can run."""
    done = set(model.inputs)
    waiting = [
        (layer, call, sources)
        for layer in model.layers
        if layer.type != "InputLayer"
        for call, sources in enumerate(layer.calls)
    ]
    ready = True
    while waiting and ready:
        ready = False
        rest = []
        for layer, call, sources in waiting:
            if all(KerasTensor(source.layer, source.call) in done for source in sources):
                yield layer, call, sources
                done.add(KerasTensor(layer.name, call))
                ready = True
            else:
                rest.append((layer, call, sources))
        waiting = rest


def _reader(layer: KerasLayer, call: int, model: KerasLayer) -> KerasLayer | None:
    """The one layer that reads what a call puts out."""
    made = KerasTensor(layer.name, call)
    readers = [other for other in model.layers for given in other.calls if made in given]
    return readers[0] if len(readers) == 1 and made not in model.outputs else None


def _is_only_reader(layer: KerasLayer, model: KerasLayer) -> bool:
    """Whether whoever reads what stands before a layer of one call reads it through the layer."""
    given = layer.calls[0]
    others = [each for each in model.layers if each is not layer]
    return (
        len(layer.calls) == 1
        and not set(given).intersection(model.outputs)
        and not any(set(given).intersection(call) for each in others for call in each.calls)
    )
