"""The operator that holds a layer's kernel, told by its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.calls import with_weights
from converters.expected import (
    EXACT,
    FOLDED,
    Expected,
    activation_of,
    affine_of,
    close,
    guesses,
    kernels_of,
)
from converters.graph import Array, Node
from converters.keras_models import KerasLayer, KerasModel
from converters.names import Owner
from converters.ways import Ways


class Kernels:
    """The kernels of a file beside those of a Keras model.

    Attributes:
        by_shape: operators with kernels, by kind and the kernel's shape.
        demand: the kernels of the Keras model, each with how often it is called.
        related: whether any of these has been found in the file.
    """

    def __init__(self, ways: Ways, keras: KerasModel) -> None:
        self.ways, self.keras = ways, keras
        self.related = False
        self.by_shape: dict[tuple[str, tuple[int, ...]], list[Node]] = {}
        for node in ways.graph.nodes:
            kernel = ways.graph.static(node, 1)
            if node.op in ("Conv", "ConvTranspose", "Linear") and kernel is not None:
                self.by_shape.setdefault((node.op, kernel.shape), []).append(node)
        self.demand = self._count_kernels(keras.model)

    def find(
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
            for node in self.by_shape.get((op, expected.shape), [])
            if node.owner is None
        ]
        if not nodes:
            return None, None
        numbers = expected.numbers().astype(np.float64)
        equal = self.equal(nodes, numbers, EXACT)
        if equal:
            return self._one_of(equal, start, expected, numbers), None
        merged = self._merged(numbers, layer, owner, after)
        if merged is None:
            return None, None
        kernel, norm = merged
        found = self._one_of(self.equal(nodes, kernel, FOLDED), start, None, kernel)
        return found, norm if found is not None else None

    def equal(self, nodes: Sequence[Node], numbers: Array, tolerance: float) -> list[Node]:
        """Those of some operators whose kernel has these numbers."""
        constants = self.ways.graph.constants
        equal = [node for node in nodes if close(constants[node.inputs[1]], numbers, tolerance)]
        self.related = self.related or bool(equal)
        return equal

    def _one_of(
        self, nodes: Sequence[Node], start: str | None, expected: Expected | None, numbers: Array
    ) -> Node | None:
        """The one that stands in the right place; of several elsewhere, none."""
        if start is not None:
            here = [node for node in nodes if self.ways.reaches(node.inputs[0], start)]
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
            for layer, path, calls in with_weights(model, self.keras, ())
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
