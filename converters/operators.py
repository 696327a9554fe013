"""One torch module for one ONNX operator, with every setting fixed when the file is read.

What onnx2torch does well it does: convolutions, pooling, activations, batch norms, arithmetic. What
it lacks, or does so that ``torch.export`` refuses it, is one of ``converters.modules``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from converters.by_onnx2torch import Built, by_onnx2torch, unsupported, with_constants
from converters.graph import Graph, Node
from converters.modules.arithmetic import Add, Affine, AtMost, MatMul, Multiply, Reduce, Standardize
from converters.modules.cells import NearestCells
from converters.modules.shapes import (
    Concatenate,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Slice,
    Split,
    Squeeze,
    Tile,
    Unsqueeze,
)
from converters.modules.windows import ConvTransposeCut, GlobalPool, Resize, SameAvgPool, SamePad
from converters.weights import parameter


def build(graph: Graph, node: Node) -> Built:
    """The module for an operator, and the tensors it must be given.

    Raises:
        InputError: for an operator, or a setting of one, that is not supported.
    """
    # A builder may change its node: but the calls of a layer are compared once the first is built.
    node = replace(node, inputs=list(node.inputs), attributes=dict(node.attributes))
    own = _BUILDERS.get(node.op)
    if own is not None:
        built = own(graph, node)
        if built is not None:
            return with_constants(graph, node, *built)
    return by_onnx2torch(graph, node)


def _one(module: nn.Module, node: Node) -> Built:
    return module, [node.inputs[0]]


def _linear(graph: Graph, node: Node) -> Built:
    kernel = graph.constants[node.inputs[1]]
    bias = graph.static(node, 2)
    module = nn.utils.skip_init(nn.Linear, kernel.shape[1], kernel.shape[0], bias=bias is not None)
    module.weight = parameter(node, kernel)
    if bias is not None:
        module.bias = parameter(node, bias)
    return _one(module, node)


def _reshape(graph: Graph, node: Node) -> Built | None:
    if "shape" not in node.attributes:
        raise unsupported(node, "(its target shape depends on the size of the picture)")
    shape: list[int | None] = list(node.attributes["shape"])
    if node.attributes.get("keeps_batch"):
        shape[0] = None
    shape = [None if n == 0 else n for n in shape]
    return _one(Reshape(shape), node)


def _flatten(graph: Graph, node: Node) -> Built | None:
    axis = node.attributes.get("axis", 1)
    if axis == 0:
        return _one(Reshape([1, -1]), node)
    return _one(nn.Flatten(), node) if axis == 1 else None


def _transpose(graph: Graph, node: Node) -> Built:
    shape = graph.shapes.get(node.inputs[0])
    perm = node.attributes.get("perm")
    if perm is None:
        perm = list(range(len(shape or ())))[::-1]
    return _one(Permute(perm), node)


def _squeeze(graph: Graph, node: Node) -> Built:
    axes = node.attributes.get("axes")
    if axes is None:
        raise unsupported(node, "(it does not say which axes)")
    return _one(Squeeze(axes) if node.op == "Squeeze" else Unsqueeze(axes), node)


def _slice(graph: Graph, node: Node) -> Built:
    a = node.attributes
    if not {"starts", "ends"} <= a.keys():
        raise unsupported(node, "(its limits depend on the size of the picture)")
    count = len(a["starts"])
    axes, steps = a.get("axes", list(range(count))), a.get("steps", [1] * count)
    return _one(Slice(list(zip(axes, a["starts"], a["ends"], steps, strict=True))), node)


def _pad(graph: Graph, node: Node) -> Built:
    pads = node.attributes.get("pads")
    mode = node.attributes.get("mode", "constant")
    if pads is None or "axes" in node.attributes or mode not in ("constant", "reflect", "edge"):
        raise unsupported(node, "(with these settings)")
    if any(name and name not in graph.constants for name in node.inputs[1:]):
        raise unsupported(node, "(what it fills the border with depends on the picture)")
    value = node.attributes.get("value", 0.0)
    value = float(np.asarray(value).reshape(-1)[0]) if np.size(value) else 0.0
    widths = _torch_widths(pads)
    while mode != "constant" and widths[-2:] == [0, 0]:
        widths = widths[:-2]
    return _one(Pad(widths, "replicate" if mode == "edge" else mode, value), node)


def _global_pool(op: str, graph: Graph, node: Node) -> Built:
    shape = graph.shapes.get(node.inputs[0])
    return _one(GlobalPool(op, None if shape is None else len(shape)), node)


def _repeat(graph: Graph, node: Node) -> Built:
    return _one(Repeat(node.attributes["axis"], node.attributes["times"]), node)


def _torch_widths(pads: Sequence[int]) -> list[int]:
    """ONNX: all beginnings, then all ends; torch: pairs, last axis first."""
    half = len(pads) // 2
    return [n for axis in reversed(range(half)) for n in (pads[axis], pads[half + axis])]


def _tile(graph: Graph, node: Node) -> Built:
    repeats = graph.static(node, 1)
    if repeats is None:
        raise unsupported(node, "(how often it repeats depends on the size of the picture)")
    return _one(Tile([int(n) for n in repeats]), node)


def _split(graph: Graph, node: Node) -> Built:
    axis, count = node.attributes.get("axis", 0), len(node.outputs)
    sizes = node.attributes.get("split")
    if sizes is None:
        shape = graph.shapes.get(node.inputs[0], ())
        whole = shape[axis] if -len(shape) <= axis < len(shape) else None
        if whole is None or whole % count:
            raise unsupported(node, "(it does not say how large the pieces are)")
        sizes = [whole // count] * count
    return _one(Split(sizes, axis), node)


def _concat(graph: Graph, node: Node) -> Built | None:
    if any(name in graph.constants for name in node.inputs):
        return None
    return Concatenate(node.attributes["axis"]), node.inputs


def _arithmetic(kind: type[nn.Module]) -> Callable[[Graph, Node], Built | None]:
    def build_one(graph: Graph, node: Node) -> Built | None:
        if any(name in graph.constants for name in node.inputs):
            return None
        return kind(), node.inputs

    return build_one


def _reduce(graph: Graph, node: Node) -> Built | None:
    axes = node.attributes.get("axes")
    known = axes is not None or len(node.inputs) == 1
    if not axes and known and node.attributes.get("noop_with_empty_axes"):
        return _one(nn.Identity(), node)
    if axes is None:
        return None
    return _one(Reduce(node.op, axes, keepdim=bool(node.attributes.get("keepdims", 1))), node)


def _reduce_otherwise(graph: Graph, node: Node) -> None:
    """Left to onnx2torch, with the axes counted from the first: it takes them away one by one."""
    axes, shape = node.attributes.get("axes"), graph.shapes.get(node.inputs[0])
    if not axes and node.attributes.get("noop_with_empty_axes"):
        raise unsupported(node, "(along no axis)")
    if axes and shape is not None:
        node.attributes["axes"] = sorted(axis % len(shape) for axis in axes)


def _sums_on_the_way(graph: Graph, node: Node) -> None:
    """Left to onnx2torch, with the standard's default: its own is to begin at the end."""
    node.attributes.setdefault("reverse", 0)


def _affine(graph: Graph, node: Node) -> Built:
    weight, bias = (parameter(node, graph.constants[name]) for name in node.inputs[1:])
    return _one(Affine(weight, bias, node.attributes["rank"]), node)


def _batch_norm(graph: Graph, node: Node) -> Built | None:
    if all(name in graph.constants for name in node.inputs[1:]):
        return None
    module = Standardize(node.attributes.get("epsilon", 1e-5))
    return with_constants(graph, node, module, node.inputs)


def _prelu(graph: Graph, node: Node) -> Built | None:
    slope = graph.static(node, 1)
    shape = graph.shapes.get(node.inputs[0])
    if slope is None or shape is None:
        return None
    full = (1,) * (len(shape) - slope.ndim) + slope.shape
    if slope.size > 1 and full[1:2] != (slope.size,):
        # onnx2torch takes a first axis of the channels' length for theirs, though it be the last.
        node.inputs[1] = f"{node.inputs[1]}//full"
        graph.constants[node.inputs[1]] = slope.reshape(full)
        return None
    module = nn.PReLU(slope.size)
    module.weight = parameter(node, slope.reshape(-1))
    return _one(module, node)


def _clip(graph: Graph, node: Node) -> Built | None:
    """Left to onnx2torch, but for limits that are left out."""
    while not node.inputs[-1]:
        node.inputs.pop()
    if len(node.inputs) < 3 or node.inputs[1]:
        return None
    largest = graph.static(node, 2)
    if largest is None or largest.size != 1:
        raise unsupported(node, "(its limit depends on the picture)")
    return _one(AtMost(float(largest.reshape(()))), node)


def _gelu(graph: Graph, node: Node) -> Built:
    return _one(nn.GELU(approximate=node.attributes.get("approximate", "none")), node)


def _window(node: Node, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    a = node.attributes
    ones = [1] * rank
    return (
        a.get("kernel_shape", ones),
        a.get("strides", ones),
        a.get("dilations", ones),
        a.get("pads", [0] * 2 * rank),
    )


def _windowed(graph: Graph, node: Node) -> Built | None:
    """Left to onnx2torch, but for an average over an uneven border."""
    auto = node.attributes.get("auto_pad", "NOTSET")
    kernel, stride, dilation, pads = _window(node, len(node.attributes["kernel_shape"]))
    half = len(pads) // 2
    if node.op == "AveragePool" and set(dilation) != {1}:
        raise unsupported(node, "(with gaps in its window)")
    if auto == "NOTSET" and pads[:half] == pads[half:]:
        return None
    counted = node.attributes.get("count_include_pad", 0)
    if node.attributes.get("ceil_mode") or set(dilation) != {1} or counted:
        raise unsupported(node, "(with these settings)")
    pad: SamePad | Pad = Pad(_torch_widths(pads))
    if auto != "NOTSET":
        pad = SamePad(kernel, stride, dilation, upper=auto == "SAME_UPPER")
    return _one(SameAvgPool(pad, kernel, stride), node)


def _same_pad(graph: Graph, node: Node) -> Built:
    a = node.attributes
    window = a["kernel_shape"], a["strides"], a["dilations"]
    return _one(SamePad(*window, upper=a["upper"], value=a["value"]), node)


def _conv_transpose(graph: Graph, node: Node) -> Built:
    a = node.attributes
    if "output_shape" in a:
        raise unsupported(node, "(its output size depends on the size of the picture)")
    rank = graph.constants[node.inputs[1]].ndim - 2
    _, strides, dilations, pads = _window(node, rank)
    extra = a.get("output_padding", [0] * rank)
    if any(n >= max(pair) for n, *pair in zip(extra, strides, dilations, strict=True)):
        raise unsupported(node, "(what it puts out is larger than its steps reach)")
    if pads[:rank] == pads[rank:] and min(pads) >= 0:
        return by_onnx2torch(graph, node)
    del a["pads"]
    module, inputs = by_onnx2torch(graph, node)
    return ConvTransposeCut(module, _torch_widths(pads)), inputs


def _resize(graph: Graph, node: Node) -> Built:
    a = node.attributes
    scales, sizes = graph.static(node, 2), graph.static(node, 3)
    transform = a.get("coordinate_transformation_mode", "half_pixel")
    rounding = a.get("nearest_mode", "round_prefer_floor")
    if graph.opset < 11:  # there is no choice yet, and the scales may be an attribute
        scales, sizes = graph.static(node, 1), None
        scales = np.asarray(a["scales"]) if "scales" in a else scales
        transform, rounding = "asymmetric", "floor"
    mode = a.get("mode", "nearest")
    source = graph.shapes.get(node.inputs[0])
    scale = None if scales is None or not scales.size else [float(n) for n in scales]
    size = None if sizes is None or not sizes.size else [int(n) for n in sizes]
    given = scale or size
    if given is None or len(given) != 4 or (scale and scale[:2] != [1.0, 1.0]):
        raise unsupported(node, "(it resizes by what is not fixed in the file)")
    if size and (source is None or size[1] != source[1]):
        raise unsupported(node, "(it resizes channels)")
    if a.get("antialias") or a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise unsupported(node, "(smoothed before, or with the picture's own proportions)")
    if a.get("axes", [0, 1, 2, 3]) != [0, 1, 2, 3]:
        raise unsupported(node, "(with axes in another order)")
    whole = scale is not None and all(n == int(n) for n in scale)
    if mode == "nearest" and (whole or _whole_factors(source, size)):
        # torch takes the cell that k // factor lies in. So do these with whole factors, no others.
        if (transform, rounding.removesuffix("_prefer_floor").removesuffix("_prefer_ceil")) not in (
            ("asymmetric", "floor"),
            ("tf_half_pixel_for_nn", "floor"),
            ("half_pixel", "round"),
        ):
            raise unsupported(node, f"(nearest, {transform}, {rounding})")
        torch_mode = "nearest"
    elif mode == "linear" and (
        transform == "half_pixel"
        or (transform == "pytorch_half_pixel" and not _to_one_cell(source, scale, size))
    ):
        torch_mode = "bilinear"
    else:
        raise unsupported(node, f"({mode}, {transform})")
    return _one(Resize(torch_mode, scale=scale and scale[2:], size=size and size[2:]), node)


def _to_one_cell(
    source: Sequence[int | None] | None, scale: Sequence[float] | None, size: Sequence[int] | None
) -> bool:
    """Whether rows or columns become one, which the standard then takes from the first; torch from
    the middle.
    """
    if size is not None:
        return 1 in size[2:]
    sides = (source or (None,) * 4)[2:]
    return any(n is None or int(n * f) == 1 for n, f in zip(sides, (scale or ())[2:], strict=True))


def _whole_factors(source: Sequence[int | None] | None, size: Sequence[int] | None) -> bool:
    if source is None or size is None:
        return False
    return all(n and m % n == 0 for n, m in zip(source[2:], size[2:], strict=True))


_BUILDERS: dict[str, Callable[[Graph, Node], Built | None]] = {
    "Alias": lambda graph, node: _one(nn.Identity(), node),
    "Linear": _linear,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Repeat": _repeat,
    "Split": _split,
    "Concat": _concat,
    "Add": _arithmetic(Add),
    "Sum": _arithmetic(Add),
    "Mul": _arithmetic(Multiply),
    "MatMul": _arithmetic(MatMul),
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceProd",
            "ReduceSumSquare",
        ),
        _reduce_otherwise,
    ),
    "CumSum": _sums_on_the_way,
    "Affine": _affine,
    "BatchNormalization": _batch_norm,
    "PRelu": _prelu,
    "Silu": lambda graph, node: _one(nn.SiLU(), node),
    "Mish": lambda graph, node: _one(nn.Mish(), node),
    "Clip": _clip,
    "Gelu": _gelu,
    "GlobalAveragePool": partial(_global_pool, "ReduceMean"),
    "GlobalMaxPool": partial(_global_pool, "ReduceMax"),
    "NearestCells": lambda graph, node: _one(NearestCells(node.attributes["sides"]), node),
    "SamePad": _same_pad,
    "Conv": _windowed,
    "MaxPool": _windowed,
    "AveragePool": _windowed,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
}
