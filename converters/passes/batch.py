"""Which tensors hold one row for each picture: their first axis is that of the network's inputs.

A first axis of open length need not be the batch: a Reshape may have put the rows of a map there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from converters.graph import Graph, Node
from converters.passes.vocabulary import BINARY, REDUCTIONS, UNARY

# These treat what they are given first picture by picture, whatever their settings.
_PICTURE_BY_PICTURE = UNARY | {
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "DepthToSpace",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GroupNormalization",
    "Hardmax",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LayerNormalization",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MaxPool",
    "MeanVarianceNormalization",
    "Not",
    "Repeat",
    "Resize",
    "Softmax",
    "SpaceToDepth",
    "Trilu",
    "Upsample",
}
_BROADCASTING = BINARY | {
    "And",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
    "Or",
    "Where",
    "Xor",
}
# Operators that work along one axis -> the one where they do not say which.
_AXIS = {"ArgMax": 0, "ArgMin": 0, "Gather": 0, "Split": 0, "TopK": -1}


class Batch:
    """Follows the batch axis through a graph, node by node in running order.

    ``name in batch`` says whether the first axis of a tensor is the batch.

    Attributes:
        sizes: how many numbers a tensor holds for each picture, where that is known: also of one
            whose first axis is something else, because the batch was merged into it.
        length: of how many pictures the file says its inputs are; ``None`` for any number.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes: dict[str, int] = {}
        self._tensors: set[str] = set()
        fixed = {shape[0] for shape in graph.inputs.values() if len(shape) > 1} - {None}
        self.length = fixed.pop() if len(fixed) == 1 else None
        for name, shape in graph.inputs.items():
            if shape[:1] == (None,) or (len(shape) > 1 and shape[0] == self.length):
                self._add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def follow(self, node: Node) -> None:
        """Settle what a node puts out; the nodes before it are settled."""
        if self._keeps_rows(node):
            for name in filter(None, node.outputs):
                self._add(name)
        elif node.op in UNARY | {"Flatten", "Reshape"} and node.inputs[0] in self.sizes:
            self.sizes[node.output] = self.sizes[node.inputs[0]]

    def _add(self, name: str) -> None:
        self._tensors.add(name)
        shape = self.graph.shape(name)
        if shape is not None and None not in shape[1:]:
            self.sizes[name] = math.prod(n or 0 for n in shape[1:])

    def _keeps_rows(self, node: Node) -> bool:
        if node.op in _BROADCASTING:
            return self._broadcasts(node.inputs)
        if node.op == "Concat":
            return any(self._spares(name, [node.attributes["axis"]]) for name in node.inputs)
        first = node.inputs[0] if node.inputs else ""
        if node.op == "Reshape":
            return self._unmerges(node, first)
        if first not in self:
            return False
        a = node.attributes
        if node.op in _PICTURE_BY_PICTURE:
            return True
        if node.op in _AXIS:
            return self._spares(first, [a.get("axis", _AXIS[node.op])])
        if node.op == "Slice" or node.op in REDUCTIONS | {"Squeeze"}:
            return "axes" in a and self._spares(first, a["axes"])
        if node.op == "Unsqueeze":
            return "axes" in a and self._spares(first, a["axes"], more=len(a["axes"]))
        if node.op == "Transpose":
            return list(a.get("perm", []))[:1] == [0]
        if node.op == "Flatten":
            return bool(a.get("axis", 1) == 1)
        if node.op == "Pad":
            pads = a.get("pads", [1])
            return "axes" not in a and pads[0] == pads[len(pads) // 2] == 0
        if node.op == "Gemm":
            return not a.get("transA", 0)
        if node.op == "MatMul":
            return self._multiplies(first, node.inputs[1])
        if node.op in ("Expand", "Tile"):
            return self._once(node, first)
        return False

    def _rank(self, name: str) -> int | None:
        shape = self.graph.shape(name)
        return None if shape is None else len(shape)

    def _spares(self, name: str, axes: Sequence[int], more: int = 0) -> bool:
        """Whether the batch is the first axis of a tensor, and none of these."""
        rank = self._rank(name)
        return name in self and all(
            axis > 0 or (rank is not None and axis != 0 and axis + rank + more > 0) for axis in axes
        )

    def _broadcasts(self, names: Sequence[str]) -> bool:
        """Whether one operand has the batch first, and no other changes the length of that axis."""
        ranks = [self._rank(name) for name in names]
        longest = max((rank for rank in ranks if rank is not None), default=0)
        if None in ranks:
            return all(name in self for name in names)
        found = False
        for name, rank in zip(names, ranks, strict=True):
            if rank == longest and name in self:
                found = True
            elif rank == longest and (self.graph.shape(name) or (1,))[0] != 1:
                return False
        return found

    def _multiplies(self, first: str, second: str) -> bool:
        ranks = self._rank(first), self._rank(second)
        if ranks[0] is None or ranks[1] is None or ranks[0] < 2:
            return False
        return ranks[1] == 2 or (ranks[0] == ranks[1] and second in self)

    def _once(self, node: Node, first: str) -> bool:
        """Whether the first axis is repeated no more than it was."""
        times, rank = self.graph.static(node, 1), self._rank(first)
        if times is None or times.ndim != 1 or rank is None:
            return False
        return len(times) < rank or (len(times) == rank and times[0] == 1)

    def _unmerges(self, node: Node, first: str) -> bool:
        """Whether a Reshape keeps the batch as the first axis, or brings it back there."""
        target = list(node.attributes.get("shape", []))
        if target[:1] == [0]:
            return first in self
        inside = math.prod(target[1:])
        return target[:1] == [-1] and inside > 0 and self.sizes.get(first) == inside
