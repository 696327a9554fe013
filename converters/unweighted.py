"""Operators of a layer without kernels, told by where they stand and what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converters.expected import (
    ACTIVATIONS,
    AS_ACTIVATION,
    JOINING,
    SILU,
    SINGLE,
    activation_of,
    affine_of,
    fits,
    same_affine,
)
from converters.graph import Array, Node
from converters.keras_models import KerasLayer, Weight
from converters.names import Owner
from converters.passes.layers import product_of_silu
from converters.ways import Ways

_WITH_CONSTANT = frozenset(["Add", "Sub", "Mul", "Div"])
_HEAVY = frozenset(
    [
        *("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "Linear"),
        *("MatMul", "MaxPool", "Resize", "Concat"),
    ]
)


class Unweighted:
    """Places calls of layers, each behind the tensors that it is given."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways

    def plain(
        self, layer: KerasLayer, owner: Owner, given: str, weights: Sequence[Weight]
    ) -> str | None:
        """Behind a layer of one input: what it puts out, ``None`` where that cannot be told."""
        maker = self.ways.makers.get(given)
        if maker is not None and maker.alias is not None and maker.alias.path == owner.path:
            return given  # merged into the convolution before
        if (pair := affine_of(layer, weights)) is not None:
            return self._affine(pair, owner, given)
        if layer.type == "Normalization":
            return None  # its first operator alone is not it
        if layer.type in ("Activation", *AS_ACTIVATION):
            return self.activation(activation_of(layer), owner, given)
        chains = SINGLE.get(layer.type)
        if chains is None:
            return self._region(owner, given)
        end = self._chain(chains, owner, given, layer)
        if end is not None and layer.type.startswith("Global") and not layer.config.get("keepdims"):
            return self._squeezed(owner, end)
        return end

    def activation(self, name: str | None, owner: Owner, given: str) -> str | None:
        """Behind an activation of Keras' by this name, likewise."""
        if name == "linear":
            return given
        if name in SILU:
            return self._silu(owner, given)
        chains = ACTIVATIONS.get(name or "", ())
        if any(len(self.ways.ahead(given, chain[:1])) > 1 for chain in chains):
            return None  # two layers read this tensor, and which is which cannot be told
        return self._chain(chains, owner, given) or self._region(owner, given)

    def _silu(self, owner: Owner, given: str) -> str | None:
        """Behind a sigmoid and the product with its own input, which no other layer is for."""
        found = [
            (way, node, product)
            for way, node in self.ways.ahead(given, ("Sigmoid",))
            if (product := product_of_silu(self.ways.graph, node, self.ways.users)) is not None
            and product.owner is None
        ]
        if len(found) != 1:
            return None if found else self._region(owner, given)
        way, node, product = found[0]
        self.ways.claim([*way, node, product], owner)
        return product.output

    def gate_of(self, product: Node) -> Node | None:
        """The sigmoid that a product multiplies by its own input, if nobody has it."""
        for name in product.inputs:
            gate = self.ways.makers.get(self.ways.origin(name))
            if gate is None or gate.owner is not None:
                continue
            if product_of_silu(self.ways.graph, gate, self.ways.users) is product:
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
                    for way, node in self.ways.ahead(at, (op,))
                    if layer is None or fits(node, layer)
                ]
                if len(found) != 1:
                    break
                way, node = found[0]
                claimed += [*way, node]
                at = node.output
            else:
                self.ways.claim(claimed, owner)
                return at
        return None

    def _squeezed(self, owner: Owner, at: str) -> str:
        """Behind what takes the pooled axes away, where pooling itself kept them."""
        users = self.ways.users.get(at, [])
        if len(users) == 1 and users[0].owner is None:
            shape = self.ways.graph.shapes.get(users[0].output)
            if users[0].op in ("Squeeze", "Reshape", "Flatten") and shape and len(shape) == 2:
                self.ways.claim(users, owner)
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
                for way, node in self.ways.ahead(at, (*_WITH_CONSTANT, "BatchNormalization"))
                if (step := self._step(node)) is not None
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
                self.ways.claim(claimed, owner)
                end = at
        return end

    def _step(self, node: Node) -> tuple[Array, Array] | None:
        """What an operator with constants does to each channel."""
        constants = [self.ways.graph.constants.get(name) for name in node.inputs]
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

    def joined(self, layer: KerasLayer, owner: Owner, given: Sequence[str | None]) -> str | None:
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
        for node in self.ways.users.get(tensors[0], []):
            given = [self.ways.back(name, tensors) for name in node.inputs]
            same = given == list(tensors) if ordered else sorted(map(str, given)) == sorted(tensors)
            if node.op in (op, "Sum" if op == "Add" else op) and node.owner is None and same:
                found.append(node)
        found = found or list(self._behind_helpers(tensors, op))
        if len(found) != 1:
            return None
        between = [n for name in found[0].inputs for n in self.ways.between(name, None, tensors)]
        self.ways.claim([*between, found[0]], owner)
        return found[0].output

    def _behind_helpers(self, tensors: Sequence[str], op: str) -> Iterator[Node]:
        """Joins whose operands were reshaped on the way."""
        ordered = op in ("Concat", "Sub")
        for node in self.ways.graph.nodes:
            if node.op != op or node.owner is not None:
                continue
            given = [self.ways.back(name, tensors) for name in node.inputs]
            if given == list(tensors) if ordered else sorted(map(str, given)) == sorted(tensors):
                yield node

    def _region(self, owner: Owner, given: str) -> str | None:
        """All of what computes one tensor from another, where it has one way in and one way out.

        For what exporters spell out in small operators. The smallest such part; it must hold
        everything that reads the tensor given.
        """
        made, claimed = {given}, list[Node]()
        for node in self.ways.graph.nodes:
            sources = [
                self.ways.origin(n) for n in node.inputs if n and n not in self.ways.graph.constants
            ]
            if node.output in self.ways.turned or not sources or not made.issuperset(sources):
                continue
            if node.owner is not None or node.op in _HEAVY or len(node.outputs) != 1:
                return None
            claimed.append(node)
            made.add(node.output)
            inner = made - {node.output}
            read_outside = any(
                user not in claimed for name in inner for user in self.ways.users.get(name, [])
            )
            if not read_outside and not inner.intersection(
                map(self.ways.origin, self.ways.graph.outputs)
            ):
                self.ways.claim(claimed, owner)
                return node.output
        return None
