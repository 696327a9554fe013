"""Whose operators are whose, in a file without names: told by weights, and by place.

The Keras model the file was exported from says which layers there are, how they are connected and
what their weights are. Both graphs are walked side by side from the inputs: a layer with weights is
found by them, whatever has none by standing where the description has it. What cannot be told
beyond doubt keeps a name made from its operator; nothing is guessed from an order alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from converters.calls import Names, in_order, owner_of, reader_of, with_weights
from converters.expected import (
    ACTIVATIONS,
    AS_ACTIVATION,
    EXACT,
    JOINING,
    KERNEL_KINDS,
    SILU,
    SINGLE,
    Expected,
    activation_of,
    bias_of,
    close,
    does_nothing,
    guesses,
    kernels_of,
)
from converters.graph import Graph, Node
from converters.keras_models import KerasLayer, KerasModel, KerasTensor
from converters.kernels import Kernels
from converters.kinds import IDLE
from converters.names import Owner
from converters.unweighted import Unweighted
from converters.ways import Ways


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
    related = matcher.kernels.related or not matcher.kernels.demand
    return Matched(frozenset(matcher.found), related, tuple(matcher.missing))


@dataclass
class _Matcher:
    """Walks the description, and for each tensor in it knows the one in the file."""

    graph: Graph
    keras: KerasModel
    found: dict[str, Owner] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    settled: set[Owner] = field(default_factory=set)  # calls placed by what they put out
    learnt: str = ""  # what the layer just placed was given, where only its weights told

    def __post_init__(self) -> None:
        self.ways = Ways(self.graph)
        self.kernels = Kernels(self.ways, self.keras)
        self.unweighted = Unweighted(self.ways)

    def run(self) -> None:
        model = self.keras.model
        if not self.keras.described:
            for layer, path, _ in with_weights(model, self.keras, ()):
                self._by_weights_alone(layer, path)
            return
        inputs = [self.ways.origin(name) for name in self.ways.graph.inputs]
        given = inputs if len(inputs) == len(model.inputs) else [None] * len(model.inputs)
        self._model(model, (), (), given)

    def _model(
        self, model: KerasLayer, path: Names, scope: Names, given: Sequence[str | None]
    ) -> list[str | None]:
        """Place the layers of a model; the tensors it ends with.

        Where a layer cannot be placed, those behind it are not either, until one with weights is
        found by them: from there it goes on, and back to what stands before, as far as that can be
        told.
        """
        known: dict[KerasTensor, str | None] = dict(zip(model.inputs, given, strict=False))
        waiting = list(in_order(model))
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
        for node in self.ways.graph.nodes:
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
        owner = owner_of(path, scope, layer, call)
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
        end = self._layer(layer, owner, given, reader_of(layer, call, model))
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
        node = self.ways.makers.get(end or "")
        if node is None or node.owner is not None or not sources or layer.layers:
            return
        chains = SINGLE.get(layer.type, ())
        if layer.type in ("Activation", *AS_ACTIVATION):
            chains = ACTIVATIONS.get(activation_of(layer) or "", ())
        given = [
            self.ways.origin(name) for name in node.inputs if name not in self.ways.graph.constants
        ]
        told = [known.get(source) for source in sources]
        gate = self.unweighted.gate_of(node) if activation_of(layer) in SILU else None
        if (node.op,) in chains and len(given) == 1:
            rest = given
        elif gate is not None:
            rest = [self.ways.origin(gate.inputs[0])]
        elif JOINING.get(layer.type) == node.op != "Concat" and len(given) == len(sources) == 2:
            rest = [name for name in given if name not in told]
            if len(rest) != 1 or told.count(None) != 1:
                return
        else:
            return
        owner = owner_of(path, scope, layer, call)
        self.ways.claim([node, *([gate] if gate is not None else [])], owner)
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
            return self.unweighted.joined(layer, owner, given)
        if given and given[0] is not None:
            return self.unweighted.plain(layer, owner, given[0], weights)
        return None

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
            node, norm = self.kernels.find(expected, start, layer, owner, after)
            if node is None:
                return None
            if start is None:
                self.learnt = self._before(node)
            self.ways.claim([*self.ways.between(node.inputs[0], start or self.learnt), node], owner)
            start = node.output
            if norm is not None:
                node.alias = norm
        assert node is not None
        if node.alias is not None:  # the norm has taken the rest, and hands its own output on
            return node.output
        start = self._bias(layer, owner, node)
        return self.unweighted.activation(activation_of(layer), owner, start)

    def _before(self, node: Node) -> str:
        """What a layer found by its weights was given: what stands before the borders it adds."""
        name = self.ways.origin(node.inputs[0])
        maker = self.ways.makers.get(name)
        while maker is not None and maker.owner is None and maker.op in ("Pad", "SamePad", "Cast"):
            name = self.ways.origin(maker.inputs[0])
            maker = self.ways.makers.get(name)
        return name

    def _bias(self, layer: KerasLayer, owner: Owner, node: Node) -> str:
        """Behind the sum with the layer's bias, where that is an operator of its own."""
        bias = bias_of(layer, self.keras.weights.get(owner.path, ()))
        if bias is None or len(node.inputs) > 2:
            return node.output
        for position, user in self.ways.ahead(node.output, ("Add",), through=("Slice",)):
            constant = self.ways.constant_of(user)
            if constant is not None and close(constant.reshape(-1), bias.reshape(-1), EXACT):
                self.ways.claim([*position, user], owner)
                return user.output
        return node.output

    def _by_weights_alone(self, layer: KerasLayer, path: Names) -> None:
        """Of a file of weights nothing else is known: kernels that stand in one place only."""
        nodes = []
        for expected in guesses(self.keras.weights[path]):
            there = [
                n
                for op in expected.ops
                for n in self.kernels.by_shape.get((op, expected.shape), [])
            ]
            nodes += self.kernels.equal(there, expected.numbers(), EXACT) if there else []
        name = ".".join(path)
        if len(nodes) == 1 and nodes[0].owner is None:
            self.ways.claim(nodes, Owner(path, path))
            self._bias(KerasLayer(path[-1], "Conv2D", {}), Owner(path, path), nodes[0])
            self.found[name] = Owner(path, path)
        elif len(self.keras.weights[path][0].shape) > 1:
            self.missing.append(name)
