"""Sizes as TensorFlow has them, in tf2onnx's graph of a Keras model.

The exporter cuts or widens what a transposed convolution of ONNX puts out until it has TensorFlow's
size. Where that size is wider than the windows reach it writes borders below 0, which ONNX does not
allow, and half of them on the wrong side; where pictures may have any size, it works the borders out
while the network runs. How much is to be cut does not depend on the size: Keras knows it. And what
is resized to a size it multiplies by a factor that may be a trace too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ANY_SIDE = 16


def reach_sizes(graph: Any) -> None:
    """Factors of resizes that come to the size asked for, wherever a product is rounded down.

    TensorFlow resizes to a size; the exporter writes it over the length, in single precision, which
    may be a trace too small: 90 times that of 75 is then 74 rows. Of nearest cells only where the
    product in single precision, as onnxruntime has it, is too small as well: a factor that is a trace
    too large takes another cell where a middle lies between two.
    """
    for node in graph.get_nodes():
        factors = graph.get_node_by_output(node.input[2]) if node.type == "Resize" else None
        if factors is None or not factors.is_const():
            continue
        values = factors.get_tensor_value(as_list=False).copy()
        if not values.size:
            continue  # the size itself is given
        for axis, length in enumerate(graph.get_shape(node.input[0]) or ()):
            size = round(length * float(values[axis]))
            if length > 0 and values[axis] == np.float32(size / length):
                wide = np.float32 if node.get_attr_str("mode") == "nearest" else np.float64
                while math.floor(wide(length) * wide(values[axis])) < size:
                    values[axis] = np.nextafter(values[axis], np.float32(np.inf))
        factors.set_tensor_value(values)


def settle_borders(graph: Any, layers: Mapping[str, Any]) -> None:
    """Give every transposed convolution borders of fixed width, at least 0.

    Args:
        graph: tf2onnx's, before it is optimised; changed in place.
        layers: the Keras layer that each operator belongs to, by the operator's name.
    """
    for node in list(graph.get_nodes()):
        if node.type != "ConvTranspose":
            continue
        pads = node.get_attr_value("pads")
        if pads is None and node.get_attr_value("output_shape") is None:
            _settle_open(graph, node, layers.get(node.name))
        elif pads is not None and min(pads) < 0:
            half = len(pads) // 2
            _set(node, [pads[axis] + pads[half + axis] for axis in range(half)])


def _set(node: Any, cut: Sequence[int]) -> None:
    """Cut so much along each axis, more at its end; what is below 0 is a gap there.

    TensorFlow's convolution of which this one is the gradient has no border then, and the gap is
    what its last window does not reach.
    """
    less = [max(n, 0) // 2 for n in cut]
    more = [max(n, 0) - max(n, 0) // 2 for n in cut]
    node.set_attr("pads", [*less, *more])
    node.set_attr("output_padding", [max(-n, 0) for n in cut])


def _settle_open(graph: Any, node: Any, layer: Any) -> None:
    """Of one for pictures of any size: behind it, what works out its borders is left out."""
    if not hasattr(layer, "output_padding"):
        return  # none of Keras' own
    whole = _reader(graph, node, "Transpose") or node
    cut = _reader(graph, whole, "Slice")
    last = cut if cut is None else _reader(graph, cut, "Pad") or cut
    if last is None or last.output[0] in graph.outputs:
        return
    cuts = _cuts(layer)
    rank = len(node.get_attr_value("kernel_shape"))
    _set(node, [0] * (rank - len(cuts)) + cuts)  # a row of cells is maps of one row
    graph.replace_all_inputs(last.output[0], whole.output[0])


def _reader(graph: Any, node: Any, kind: str) -> Any:
    found = [each for each in graph.find_output_consumers(node.output[0]) if each.type == kind]
    return found[0] if len(found) == 1 else None


def _cuts(layer: Any) -> list[int]:
    """By how much the windows reach beyond what the layer puts out, along each axis."""
    size, rank = layer.kernel_size, len(layer.kernel_size)
    sides = [_ANY_SIDE] * rank
    first = layer.data_format == "channels_first"
    shape = tuple(layer.compute_output_shape((1, 1, *sides) if first else (1, *sides, 1)))
    made = shape[2:] if first else shape[1:-1]
    axes = zip(size, layer.strides, layer.dilation_rate, made, strict=True)
    return [(_ANY_SIDE - 1) * step + (k - 1) * gap + 1 - n for k, step, gap, n in axes]
