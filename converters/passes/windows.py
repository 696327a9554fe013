"""Pooling as Keras' JAX back end writes it: over two more axes than the maps have.

There ``reduce_window`` slides over every axis. Its exporter puts two axes of length 1 before maps
``(N, H, W, C)``, pools windows of ``(1, h, w, 1)``, and takes the two axes away again; an average
is a convolution with ones, divided by how many numbers were summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.graph import Graph, Node

_TO_CHANNELS_FIRST = [0, 3, 1, 2]
_TO_CHANNELS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True)
class _Window:
    """A window that slides over height and width of ``source``, ``(N, H, W, C)``.

    Attributes:
        node: the operator that slides it.
        source: what it slides over.
        last: the operator that puts out ``(N, h, w, C)``.
        settings: of a pooling over two axes.
    """

    node: Node
    source: str
    last: Node
    settings: dict[str, Any]


def pooling_over_more_axes(graph: Graph) -> None:
    """Poolings over more axes become poolings of maps, between transposes."""
    makers, consumers = graph.makers(), graph.consumers()
    found = {
        window.last.output: window
        for node in graph.nodes
        if (window := _window(graph, node, makers, consumers)) is not None
    }
    for window in found.values():
        if window.source in graph.constants:
            continue
        if window.node.op == "MaxPool":
            _replace(graph, window, window.last, "MaxPool", {})
            continue
        users = consumers.get(window.last.output, [])
        if len(users) != 1 or users[0].op != "Div" or users[0].inputs[0] != window.last.output:
            continue
        counted = _counts_padding(graph, window, found.get(users[0].inputs[1]), users[0], makers)
        if counted is not None:
            _replace(graph, window, users[0], "AveragePool", {"count_include_pad": counted})
    graph.prune()


def _window(
    graph: Graph, node: Node, makers: dict[str, Node], consumers: dict[str, list[Node]]
) -> _Window | None:
    """What a node slides over, if it is of this kind."""
    kernel = _kernel(graph, node)
    if kernel is None or len(kernel) < 4:
        return None
    rank = len(kernel)
    strides = node.attributes.get("strides", [1] * rank)
    dilations = node.attributes.get("dilations", [1] * rank)
    pads = node.attributes.get("pads", [0] * 2 * rank)
    if (len(strides), len(dilations), len(pads)) != (rank, rank, 2 * rank):
        return None
    around = [axis for axis in range(rank) if axis not in (rank - 3, rank - 2)]
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if node.attributes.get("ceil_mode", 0) or any(
        kernel[axis] != 1 or strides[axis] != 1 or pads[axis] or pads[rank + axis]
        for axis in around
    ):
        return None
    source: str | None = node.inputs[0]
    if source not in graph.constants:  # the divisor's are folded already
        source = _through_unsqueezes(node.inputs[0], rank - 2, makers)
    users = consumers.get(node.output, [])
    if source is None or len(users) != 1 or node.output in graph.outputs:
        return None
    axes = users[0].attributes.get("axes")
    if users[0].op != "Squeeze" or sorted(axes or []) != list(range(rank - 2)):
        return None
    inner = slice(rank - 3, rank - 1)
    settings = {
        "kernel_shape": list(kernel[inner]),
        "strides": list(strides[inner]),
        "dilations": list(dilations[inner]),
        "pads": [*pads[inner], *pads[rank:][inner]],
    }
    return _Window(node, source, users[0], settings)


def _kernel(graph: Graph, node: Node) -> Sequence[int] | None:
    if node.op == "MaxPool" and len(node.outputs) == 1:
        kernel: Sequence[int] = node.attributes.get("kernel_shape", [])
        return kernel
    if node.op == "Conv" and len(node.inputs) == 2 and node.attributes.get("group", 1) == 1:
        weight = graph.static(node, 1)
        if weight is not None and weight.shape[:2] == (1, 1) and bool((weight == 1).all()):
            return weight.shape[2:]
    return None


def _through_unsqueezes(name: str, count: int, makers: dict[str, Node]) -> str | None:
    """What ``count`` leading axes of length 1 were put before."""
    put: list[int] = []
    while len(put) < count:
        maker = makers.get(name)
        axes = maker.attributes.get("axes") if maker and maker.op == "Unsqueeze" else None
        if maker is None or not axes:
            return None
        put, name = [*sorted(axes), *put], maker.inputs[0]
    # One put behind axes of length 1 might as well stand before them.
    leading = all(0 <= axis <= before for before, axis in enumerate(put))
    return name if leading and len(put) == count else None


def _counts_padding(
    graph: Graph, window: _Window, divisor: _Window | None, division: Node, makers: dict[str, Node]
) -> int | None:
    """Whether a sum is divided by all cells of its window (1), or by those on the map (0)."""
    number = graph.static(division, 1)
    if number is not None:
        cells = np.prod(window.settings["kernel_shape"])
        return 1 if number.size == 1 and float(number.reshape(())) == cells else None
    if divisor is None or divisor.node.op != "Conv" or divisor.settings != window.settings:
        return None
    return (
        0
        if _is_ones(graph, divisor.source, makers) and _same_size(graph, window, divisor)
        else None
    )


def _is_ones(graph: Graph, name: str, makers: dict[str, Node]) -> bool:
    if name in graph.constants:
        return bool((graph.constants[name] == 1).all())
    maker = makers.get(name)
    if maker is None or maker.op != "ConstantOfShape":
        return False
    return bool((np.asarray(maker.attributes.get("value", 0)) == 1).all())


def _same_size(graph: Graph, one: _Window, other: _Window) -> bool:
    shapes = [graph.shape(each.source) for each in (one, other)]
    return None not in shapes and shapes[0][-3:-1] == shapes[1][-3:-1]  # type: ignore[index]


def _replace(graph: Graph, window: _Window, last: Node, op: str, settings: dict[str, Any]) -> None:
    """Let ``last`` be the transpose after a pooling of maps."""
    node = window.node
    about = {"owner": last.owner or node.owner, "near": node.near}
    turned, pooled = graph.fresh("maps"), graph.fresh("pooled")
    first = Node(
        "Transpose", [window.source], [turned], {"perm": _TO_CHANNELS_FIRST}, node.name, **about
    )
    pool = Node(op, [turned], [pooled], {**window.settings, **settings}, node.name, **about)
    at = graph.nodes.index(last)
    graph.nodes[at : at + 1] = [
        first,
        pool,
        Node("Transpose", [pooled], last.outputs, {"perm": _TO_CHANNELS_LAST}, last.name, **about),
    ]
    for name, tensor in ((turned, window.source), (pooled, last.output)):
        shape = graph.shape(tensor)
        if shape is not None:
            graph.shapes[name] = tuple(shape[axis] for axis in _TO_CHANNELS_FIRST)
