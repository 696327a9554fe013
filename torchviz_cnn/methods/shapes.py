"""What reads nothing of a tensor but how large it is."""

from __future__ import annotations

from torch import fx

_SHAPES = {"size", "dim", "ndimension", "numel"}
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda"}


def asks_shape(node: fx.Node) -> bool:
    """Whether a node reads nothing of a tensor but its shape and kind."""
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and node.args[1] in _ATTRIBUTES
