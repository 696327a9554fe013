"""Networks that end in global average pooling and a linear layer: every class's gradient at once.

There the score of class c is ``b_c + Σ_k w_ck · mean(A^k)``, so its gradient at every cell of map k
is ``w_ck / hw``, whatever the picture: nothing needs to be differentiated. Whether a network ends
so is read from the graph that autograd recorded of this very forward pass, from the scores back to
the maps. That graph is what a backward pass would follow, so nothing can be overlooked for its
name or spelling; whatever is not known to be harmless counts as another network.
"""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

Edge = tuple[Any, int]

# Operators that hand every number on, in the same order.
_RESHAPES = {
    "AliasBackward",
    "CloneBackward",
    "ReshapeAliasBackward",
    "SqueezeBackward",
    "UnsafeViewBackward",
    "UnsqueezeBackward",
    "ViewBackward",
}


def slopes(scores: Tensor, maps: Tensor) -> Tensor | None:
    """What each class's score gains with any cell of each map, ``(classes, C)``.

    Args:
        scores: the network's output, ``(N, classes)`` or ``(N,)``, with its graph.
        maps: ``(N, C, h, w)`` of that graph.

    Returns:
        ``w_ck / hw``; ``None`` unless the scores are proved to be a linear layer's, of the maps'
        means.
    """
    if scores.grad_fn is None or scores.ndim not in (1, 2):
        return None
    try:
        edge = _through_reshapes((scores.grad_fn, scores.output_nr))
        weight, edge = _linear(_without_constant(edge))
        if weight is None or scores.numel() != len(maps) * weight.shape[1]:
            return None
        if weight.shape[0] != maps.shape[1]:
            return None
        edge = _mean(_through_reshapes(edge), maps)
        if not _is(_through_reshapes(edge), maps):
            return None
    except _AnotherError:
        return None
    return weight.mT / math.prod(maps.shape[2:])


class _AnotherError(Exception):
    """The network ends in another way."""


def _name(edge: Edge) -> str:
    return re.sub(r"\d+$", "", edge[0].name())


def _only(edge: Edge, index: int) -> Edge:
    """The edge at ``index``, if nothing of the graph lies behind the others."""
    edges = edge[0].next_functions
    if any((node is None) == (number == index) for number, (node, _) in enumerate(edges)):
        raise _AnotherError
    return edges[index]


def _shape(edge: Edge) -> tuple[int, ...]:
    return tuple(edge[0]._input_metadata[edge[1]].shape)


def _through_reshapes(edge: Edge) -> Edge:
    while _name(edge) in _RESHAPES or _is_trivial_stride(edge):
        edge = _only(edge, 0)
    return edge


def _is_trivial_stride(edge: Edge) -> bool:
    """Pooling of channels-last maps restrides what it puts out: one cell, in the same order."""
    node = edge[0]
    if _name(edge) != "AsStridedBackward":
        return False
    size, stride = tuple(node._saved_size), tuple(node._saved_stride)
    if len(size) != 4 or size[2:] != (1, 1) or node._saved_storage_offset not in (None, 0):
        return False
    return (size[0] == 1 or stride[0] == size[1]) and (size[1] == 1 or stride[1] == 1)


def _without_constant(edge: Edge) -> Edge:
    """Past an addition of something that does not depend on the maps, such as a bias."""
    if _name(edge) != "AddBackward":
        return edge
    first = edge[0].next_functions[0][0] is not None
    inner = _only(edge, 0 if first else 1)
    if _shape(inner) != _shape(edge) or not (first or edge[0]._saved_alpha == 1):
        raise _AnotherError
    return inner


def _linear(edge: Edge) -> tuple[Tensor | None, Edge]:
    """The matrix ``(C, classes)`` that the means are multiplied by, and what comes before."""
    node, name = edge[0], _name(edge)
    if name == "AddmmBackward" and node._saved_alpha == 1:
        before = _only(edge, 1)
    elif name == "MmBackward":
        before = _only(edge, 0)
    else:
        raise _AnotherError
    try:
        return node._saved_mat2, before
    except RuntimeError as error:  # written into since: the backward pass will say so better
        raise _AnotherError from error


def _mean(edge: Edge, maps: Tensor) -> Edge:
    """Past the mean over all cells of each map."""
    node, name = edge[0], _name(edge)
    if name == "MeanBackward" and hasattr(node, "_saved_dim"):
        sizes = tuple(node._saved_self_sym_sizes)
        axes = sorted(axis % len(sizes) for axis in map(_signed, node._saved_dim))
        whole = sizes[:2] == maps.shape[:2] and math.prod(sizes) == maps.numel()
        if whole and axes == list(range(2, len(sizes))):
            return _only(edge, 0)
    elif name == "AvgPool2DBackward":
        kernel = tuple(node._saved_kernel_size) * (3 - len(node._saved_kernel_size))
        inner = _only(edge, 0)
        fits = kernel == maps.shape[2:] and _shape(inner) == maps.shape
        plain = not any(node._saved_padding) and node._saved_divisor_override is None
        if fits and plain and _shape(edge) == (*maps.shape[:2], 1, 1):
            return inner
    raise _AnotherError


def _signed(axis: int) -> int:
    """An axis as it was written: autograd keeps negative ones as unsigned numbers."""
    return axis - 2**64 if axis >= 2**63 else axis


def _is(edge: Edge, maps: Tensor) -> bool:
    """Whether this is where the maps come from."""
    node, number = edge
    if maps.is_leaf:
        return getattr(node, "variable", None) is maps
    return node is maps.grad_fn and number == maps.output_nr
