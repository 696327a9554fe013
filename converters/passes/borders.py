"""What stands around a map: borders of a size that depends on the picture, and of other numbers than 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.graph import Graph, Node


def resolve_same_padding(graph: Graph) -> None:
    """``auto_pad`` as widths, where the size of the maps is known or does not matter."""
    for node in graph.nodes:
        auto = node.attributes.get("auto_pad", "NOTSET")
        if node.op not in ("Conv", "MaxPool", "AveragePool"):
            continue
        kernel = graph.static(node, 1)
        if kernel is not None and node.op == "Conv":
            node.attributes.setdefault("kernel_shape", list(kernel.shape[2:]))
        if auto == "VALID":
            node.attributes.pop("pads", None)
        if auto not in ("SAME_UPPER", "SAME_LOWER") or "kernel_shape" not in node.attributes:
            node.attributes.pop("auto_pad", None)
            continue
        rank = len(node.attributes["kernel_shape"])
        shape = graph.shapes.get(node.inputs[0]) or (None,) * (rank + 2)
        ones = [1] * rank
        windows = zip(
            shape[2:],
            node.attributes["kernel_shape"],
            node.attributes.get("strides", ones),
            node.attributes.get("dilations", ones),
            strict=True,
        )
        totals = [same_border(*window) for window in windows]
        if any(total is None for total in totals):
            continue
        borders = [total or 0 for total in totals]
        less, more = [n // 2 for n in borders], [n - n // 2 for n in borders]
        node.attributes["pads"] = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        del node.attributes["auto_pad"]


def same_border(size: int | None, kernel: int, stride: int, dilation: int) -> int | None:
    """How wide a border makes a window of this stride put out ceil(size / stride) cells.

    >>> same_border(24, 3, 2, 1), same_border(None, 3, 1, 1), same_border(None, 3, 2, 1)
    (1, 2, None)
    """
    reach = (kernel - 1) * dilation + 1
    if stride == 1:
        return reach - 1
    return None if size is None else max((-(-size // stride) - 1) * stride + reach - size, 0)


def resolve_transposed(graph: Graph) -> None:
    """What a transposed convolution cuts from its output, where ``auto_pad`` or a size says it.

    Where a window is smaller than its stride, nothing is to be cut, and a gap is left at the end:
    ``output_padding``. Source: the standard's ConvTranspose, ``total_padding``.
    """
    for node in graph.nodes:
        kernel = graph.static(node, 1)
        if node.op != "ConvTranspose" or kernel is None:
            continue
        a = node.attributes
        auto, size = a.pop("auto_pad", "NOTSET"), list(kernel.shape[2:])
        ones = [1] * len(size)
        extra = a.get("output_padding", [0] * len(size))
        steps = list(a.get("strides", ones))
        windows = zip(size, a.get("dilations", ones), extra, strict=True)
        reach = [(k - 1) * d + 1 + n for k, d, n in windows]
        a["kernel_shape"] = size
        if "output_shape" in a:
            sides = (graph.shapes.get(node.inputs[0]) or (None, None, None))[2:]
            if None in sides:
                continue
            wanted = a.pop("output_shape")[-len(size) :]
            sums = zip(sides, steps, reach, wanted, strict=True)
            totals = [((n or 0) - 1) * step + r - after for n, step, r, after in sums]
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            totals = [r - step for r, step in zip(reach, steps, strict=True)]
        else:
            continue
        cut = [max(total, 0) for total in totals]
        less, more = [n // 2 for n in cut], [n - n // 2 for n in cut]
        a["pads"] = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        a["output_padding"] = [n + max(-m, 0) for n, m in zip(extra, totals, strict=True)]


def separate_borders(graph: Graph) -> None:
    """A border that torch's convolution or pooling cannot make is an operator of its own."""
    for node in list(graph.nodes):
        if node.op not in ("Conv", "MaxPool") or "kernel_shape" not in node.attributes:
            continue
        rank = len(node.attributes["kernel_shape"])
        auto = node.attributes.pop("auto_pad", None)
        pads = node.attributes.get("pads", [0] * 2 * rank)
        if auto is None and pads[:rank] == pads[rank:]:
            continue
        if auto is None and node.attributes.get("ceil_mode"):
            sides = graph.shapes.get(node.inputs[0], (None,) * (rank + 2))[2:]
            if None in sides:
                continue
            pads = _rounded_up(node, [n or 0 for n in sides], pads)
        node.attributes.pop("ceil_mode", None)
        value = -np.inf if node.op == "MaxPool" else 0.0
        if auto is None:
            begin, end = [0, 0, *pads[:rank]], [0, 0, *pads[rank:]]
            border = Node("Pad", [node.inputs[0]], [], {"pads": begin + end, "value": value})
        else:
            settings = {"upper": auto == "SAME_UPPER", "value": value}
            for name in ("kernel_shape", "strides", "dilations"):
                settings[name] = node.attributes.get(name, [1] * rank)
            border = Node("SamePad", [node.inputs[0]], [], settings)
        border.owner, border.outputs = node.owner, [graph.fresh(node.inputs[0])]
        shape = graph.shapes.get(node.inputs[0], (None,) * (rank + 2))
        graph.shapes[border.output] = (*shape[:2], *(None,) * rank)
        node.inputs[0] = border.output
        node.attributes.pop("pads", None)
        graph.nodes.insert(graph.nodes.index(node), border)


def _rounded_up(node: Node, sides: Sequence[int], pads: Sequence[int]) -> list[int]:
    """The border with which the windows that ``ceil_mode`` adds are there without it.

    The last window begins on the map, or on the border before it.
    """
    rank, ends = len(sides), list[int]()
    ones = [1] * rank
    for i, (kernel, stride, dilation) in enumerate(
        zip(
            node.attributes["kernel_shape"],
            node.attributes.get("strides", ones),
            node.attributes.get("dilations", ones),
            strict=True,
        )
    ):
        reach, begun = (kernel - 1) * dilation + 1, sides[i] + pads[i]
        last = -(-(begun + pads[rank + i] - reach) // stride) * stride
        last -= stride if last >= begun else 0
        ends.append(last + reach - begun)
    return [*pads[:rank], *ends]
