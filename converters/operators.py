"""One torch module for one ONNX operator.

What onnx2torch does well it does: convolutions, pooling, activations, batch norms, arithmetic. Its
modules for shapes read their settings from tensors at every call, which ``torch.export`` refuses;
those, and operators it lacks, are here, with every setting fixed when the file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx2torch.node_converters import get_converter
from onnx2torch.onnx_graph import OnnxGraph
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from converters.graph import Array, Graph, Node
from torchviz_cnn.errors import InputError

# ---------------------------------------------------------------------------- shapes


class Reshape(nn.Module):
    """To a fixed shape; a leading ``None`` keeps the batch axis as it is."""

    def __init__(self, shape: Sequence[int | None]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return input.reshape([input.shape[i] if n is None else n for i, n in enumerate(self.shape)])

    def extra_repr(self) -> str:
        return ", ".join("N" if n is None else str(n) for n in self.shape)


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.permute(self.order)

    def extra_repr(self) -> str:
        return str(self.order)


class Squeeze(nn.Module):
    """Without axes of length one."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.squeeze(self.axes)


class Unsqueeze(nn.Module):
    """With new axes of length one, counted in the result."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        rank = input.ndim + len(self.axes)
        for axis in sorted(axis % rank for axis in self.axes):
            input = input.unsqueeze(axis)  # noqa: A001
        return input


class Slice(nn.Module):
    """A part along some axes, steps positive or negative."""

    def __init__(self, cuts: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.cuts = tuple(cuts)  # (axis, start, end, step)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        for axis, start, end, step in self.cuts:
            if step > 0:
                index = [slice(None)] * input.ndim
                index[axis] = slice(start, end, step)
                input = input[tuple(index)]  # noqa: A001
            else:
                chosen = range(input.shape[axis])[start : _from_end(end) : step]
                where = torch.arange(len(chosen), device=input.device) * step
                input = input.index_select(axis, where + (chosen[0] if chosen else 0))  # noqa: A001
        return input


def _from_end(end: int) -> int | None:
    """ONNX writes "past the beginning" as a very negative number."""
    return None if end < -(2**31) + 1 else end


class Split(nn.Module):
    """In pieces along an axis."""

    def __init__(self, sizes: Sequence[int], axis: int) -> None:
        super().__init__()
        self.sizes, self.axis = list(sizes), axis

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, ...]:  # noqa: A002
        pieces = input.split(self.sizes, self.axis)
        return pieces[0] if len(pieces) == 1 else tuple(pieces)


class Tile(nn.Module):
    """Repeated along its axes."""

    def __init__(self, repeats: Sequence[int]) -> None:
        super().__init__()
        self.repeats = tuple(repeats)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.repeat(self.repeats)


class Repeat(nn.Module):
    """Every cell several times along an axis."""

    def __init__(self, axis: int, times: int) -> None:
        super().__init__()
        self.axis, self.times = axis, times

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.repeat_interleave(self.times, self.axis)

    def extra_repr(self) -> str:
        return f"{self.times}, axis={self.axis}"


class Pad(nn.Module):
    """A border; negative widths cut. ``widths`` come as torch has them, last axis first."""

    def __init__(self, widths: Sequence[int], mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.widths, self.mode, self.value = tuple(widths), mode, value

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.mode == "constant":
            return F.pad(input, self.widths, value=self.value)
        return F.pad(input, self.widths, mode=self.mode)

    def extra_repr(self) -> str:
        return f"{self.widths}, mode={self.mode!r}, value={self.value}"


# ---------------------------------------------------------------------------- padding "same"


class SamePad(nn.Module):
    """The border with which a window of this stride puts out ceil(size / stride) cells.

    Sizes need not be known beforehand: it is for networks that take pictures of any size.

    Args:
        kernel: height and width of the window.
        stride: its step.
        dilation: distance between its cells.
        upper: where the border is odd, the larger half goes to the end (TensorFlow's way).
        value: what the border is made of.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        *,
        upper: bool,
        value: float = 0.0,
    ) -> None:
        super().__init__()
        self.windows = tuple(zip(kernel, stride, dilation, strict=True))
        self.upper, self.value = upper, value

    def widths(self, size: Sequence[int]) -> list[int]:
        found: list[int] = []
        for length, (kernel, stride, dilation) in reversed(
            list(zip(size, self.windows, strict=True))
        ):
            cells = -(-length // stride)
            border = max((cells - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
            less = border // 2
            found += [less, border - less] if self.upper else [border - less, less]
        return found

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.pad(input, self.widths(input.shape[2:]), value=self.value)


class SameAvgPool(nn.Module):
    """An average over a padded window in which the border does not count."""

    def __init__(self, pad: SamePad | Pad, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.pad, self.kernel_size, self.stride = pad, tuple(kernel), tuple(stride)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        size = self.kernel_size
        total = _avg(len(size))(self.pad(input), size, self.stride)
        share = _avg(len(size))(self.pad(torch.ones_like(input[:1, :1])), size, self.stride)
        return total / share


class ConvTransposeCut(nn.Module):
    """A transposed convolution of which a border, not the same on all sides, is cut away."""

    def __init__(self, conv: nn.Module, cut: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv
        self.cut = tuple(-n for n in cut)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.pad(self.conv(input), self.cut)


def _avg(rank: int) -> Callable[..., Tensor]:
    return {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[rank]


# ---------------------------------------------------------------------------- arithmetic


class Affine(nn.Module):
    """``x * weight + bias`` channel by channel: a batch norm outside training.

    The mean and variance it was trained with are folded into the two.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.shape = (1, -1, *(1,) * (rank - 2))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.addcmul(self.bias.view(self.shape), input, self.weight.view(self.shape))

    def extra_repr(self) -> str:
        return str(self.weight.numel())


class Standardize(nn.Module):
    """A batch norm whose mean and variance are computed, as tf_keras does in layer norms."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> Tensor:
        shape = (1, -1, *(1,) * (input.ndim - 2))
        scale = weight / (variance + self.eps).sqrt()
        return (input - mean.view(shape)) * scale.view(shape) + bias.view(shape)


class Add(nn.Module):
    """The sum of what it is given."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for each in inputs[1:]:
            total = total + each
        return total


class Multiply(nn.Module):
    """The product of what it is given."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second


class Concatenate(nn.Module):
    """What it is given, joined along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


class Reduce(nn.Module):
    """Mean, maximum, minimum or sum over fixed axes."""

    def __init__(self, op: str, axes: Sequence[int], *, keepdim: bool) -> None:
        super().__init__()
        self.op, self.axes, self.keepdim = op, tuple(axes), keepdim

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return _REDUCTIONS[self.op](input, dim=self.axes, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        return f"{self.op}, axes={self.axes}"


class AtMost(nn.Module):
    """No number larger than this."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.clamp(max=self.largest)

    def extra_repr(self) -> str:
        return str(self.largest)


class GlobalPool(nn.Module):
    """Mean or maximum of each channel's whole map, of however many axes."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return _REDUCTIONS[self.op](input, dim=tuple(range(2, input.ndim)), keepdim=True)

    def extra_repr(self) -> str:
        return self.op


class MatMul(nn.Module):
    """A matrix product of two activations."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first @ second


class WithConstants(nn.Module):
    """An operation some of whose operands are fixed.

    Those that a Keras layer learns are parameters, the rest buffers; names ``operand_0``, ….
    """

    def __init__(
        self, operation: nn.Module, constants: dict[int, Tensor], learnt: Sequence[int]
    ) -> None:
        super().__init__()
        self.operation = operation
        self.places = tuple(constants)
        for place, value in constants.items():
            name = f"operand_{place}"
            if place in learnt:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        operands = list(inputs)
        for place in self.places:
            operands.insert(place, getattr(self, f"operand_{place}"))
        return self.operation(*operands)


class Resize(nn.Module):
    """Enlarging by whole factors (nearest) or to a size (bilinear), as Keras does."""

    def __init__(
        self, mode: str, *, scale: Sequence[float] | None, size: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.mode = mode
        self.scale = None if scale is None else tuple(scale)
        self.size = None if size is None else tuple(size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        align = None if self.mode == "nearest" else False
        return F.interpolate(
            input,
            size=self.size,
            scale_factor=self.scale,
            mode=self.mode,
            align_corners=align,
        )


# ---------------------------------------------------------------------------- building

Built = tuple[nn.Module, list[str]]


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
            return _with_constants(graph, node, *built)
    return _by_onnx2torch(graph, node)


def _unsupported(node: Node, why: str = "") -> InputError:
    layer = f" of the layer {'.'.join(node.owner.path)!r}" if node.owner else ""
    return InputError(
        f"the operator {node.op}{layer} is not supported{f' {why}' if why else ''}; "
        "export the network without that layer, or with Keras' torch back end (KERAS_BACKEND=torch)"
    )


def tensor(constant: Array) -> Tensor:
    """A copy of its own: files are read-only memory, and parameters are written to.

    A matrix that is but turned is turned by torch, which is many times faster at it than NumPy.
    """
    if not _fits_torch(constant):
        raise InputError(
            f"this file stores numbers as {constant.dtype}, which are not supported; export the "
            "network with float32 weights"
        )
    if constant.ndim == 2 and constant.flags.f_contiguous and not constant.flags.c_contiguous:
        rows = constant.T if constant.flags.writeable else np.array(constant.T)
        return torch.from_numpy(rows).t().contiguous()
    return torch.from_numpy(np.array(constant, copy=True, order="C"))


def _fits_torch(constant: Array) -> bool:
    return constant.dtype.kind in "biuf" and constant.dtype.isbuiltin == 1


def parameter(node: Node, constant: Array) -> nn.Parameter:
    """A weight, copied.

    Raises:
        InputError: for numbers that torch cannot train.
    """
    _check_trainable(node, constant)
    return nn.Parameter(tensor(constant))


def _check_trainable(node: Node, constant: Array) -> None:
    if constant.dtype.kind != "f" or not _fits_torch(constant):
        layer = f" of the layer {'.'.join(node.owner.path)!r}" if node.owner else ""
        raise InputError(
            f"the weights of the operator {node.op}{layer} are stored as {constant.dtype}, and a "
            "network of such numbers is not supported; export it with float32 weights"
        )


_WITH_WEIGHTS = frozenset(
    ["BatchNormalization", "Conv", "ConvTranspose", "InstanceNormalization", "LayerNormalization"]
)


def _by_onnx2torch(graph: Graph, node: Node) -> Built:
    for name in node.inputs:
        if node.op in _WITH_WEIGHTS and name in graph.constants:
            _check_trainable(node, graph.constants[name])
    try:
        converter = get_converter(node.op, _known_version(graph, node))
        module, mapping = converter(*_as_onnx(graph, node))
    except (NotImplementedError, KeyError, ValueError) as error:
        raise _unsupported(node, f"({error})" if str(error) else "") from error
    return _with_constants(graph, node, module, [name for name in mapping.inputs if name])


def _known_version(graph: Graph, node: Node) -> int:
    """The version of the standard to read an operator by: the latest that onnx2torch knows it in.

    What an average pool of version 19 has more than one before it is a dilation.
    """
    plain = set(node.attributes.get("dilations", [1])) == {1}
    return min(graph.opset, 18) if node.op == "AveragePool" and plain else graph.opset


def _with_constants(graph: Graph, node: Node, module: nn.Module, inputs: list[str]) -> Built:
    """The module with those operands that are fixed in the file inside it."""
    constants = {
        i: tensor(graph.constants[n]) for i, n in enumerate(inputs) if n in graph.constants
    }
    if constants:
        learnt = [
            i
            for i, value in constants.items()
            if value.is_floating_point() and _is_learnt(graph, node, i, inputs[i])
        ]
        module = WithConstants(module, constants, learnt)
    return module, [name for name in inputs if name not in graph.constants]


def _is_learnt(graph: Graph, node: Node, place: int, name: str) -> bool:
    """Whether an operand is a weight of a Keras layer; a batch norm's statistics are none."""
    is_weight = name in graph.learnt or name.split("//")[0].endswith("ReadVariableOp:0")
    return is_weight and not (node.op == "BatchNormalization" and place > 2)


def _as_onnx(graph: Graph, node: Node) -> tuple[Any, OnnxGraph]:
    """The node alone, in the form onnx2torch reads."""
    proto = helper.make_node(node.op, node.inputs, node.outputs, name="node")
    for name, value in node.attributes.items():
        plain = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        proto.attribute.append(helper.make_attribute(name, plain))
    infos, constants, known = [], [], []
    for name in node.inputs:
        if name in graph.constants:
            constants.append(numpy_helper.from_array(graph.constants[name], name))
            own = list(graph.constants[name].shape)
            known.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, own))
        elif name:
            shape = graph.shapes.get(name)
            dims = (
                None
                if shape is None
                else [n if n is not None else f"d{i}" for i, n in enumerate(shape)]
            )
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.outputs
    ]
    alone = OnnxGraph(
        helper.make_graph([proto], "one", infos, outputs, constants, value_info=known)
    )
    return next(iter(alone.nodes.values())), alone


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
        raise _unsupported(node, "(its target shape depends on the size of the picture)")
    shape: list[int | None] = list(node.attributes["shape"])
    if node.attributes.get("keeps_batch"):
        shape[0] = None
    shape = [None if n == 0 else n for n in shape]
    return _one(Reshape(shape), node)


def _flatten(graph: Graph, node: Node) -> Built | None:
    return _one(nn.Flatten(), node) if node.attributes.get("axis", 1) == 1 else None


def _transpose(graph: Graph, node: Node) -> Built:
    shape = graph.shapes.get(node.inputs[0])
    perm = node.attributes.get("perm")
    if perm is None:
        perm = list(range(len(shape or ())))[::-1]
    return _one(Permute(perm), node)


def _squeeze(graph: Graph, node: Node) -> Built:
    axes = node.attributes.get("axes")
    if axes is None:
        raise _unsupported(node, "(it does not say which axes)")
    return _one(Squeeze(axes) if node.op == "Squeeze" else Unsqueeze(axes), node)


def _slice(graph: Graph, node: Node) -> Built:
    a = node.attributes
    if not {"starts", "ends"} <= a.keys():
        raise _unsupported(node, "(its limits depend on the size of the picture)")
    count = len(a["starts"])
    axes, steps = a.get("axes", list(range(count))), a.get("steps", [1] * count)
    return _one(Slice(list(zip(axes, a["starts"], a["ends"], steps, strict=True))), node)


def _pad(graph: Graph, node: Node) -> Built:
    pads = node.attributes.get("pads")
    mode = node.attributes.get("mode", "constant")
    if pads is None or "axes" in node.attributes or mode not in ("constant", "reflect", "edge"):
        raise _unsupported(node, "(with these settings)")
    value = node.attributes.get("value", 0.0)
    value = float(np.asarray(value).reshape(-1)[0]) if np.size(value) else 0.0
    widths = _torch_widths(pads)
    while mode != "constant" and widths[-2:] == [0, 0]:
        widths = widths[:-2]
    return _one(Pad(widths, "replicate" if mode == "edge" else mode, value), node)


def _repeat(graph: Graph, node: Node) -> Built:
    return _one(Repeat(node.attributes["axis"], node.attributes["times"]), node)


def _torch_widths(pads: Sequence[int]) -> list[int]:
    """ONNX: all beginnings, then all ends; torch: pairs, last axis first."""
    half = len(pads) // 2
    return [n for axis in reversed(range(half)) for n in (pads[axis], pads[half + axis])]


def _tile(graph: Graph, node: Node) -> Built:
    repeats = graph.static(node, 1)
    if repeats is None:
        raise _unsupported(node, "(how often it repeats depends on the size of the picture)")
    return _one(Tile([int(n) for n in repeats]), node)


def _split(graph: Graph, node: Node) -> Built:
    axis, count = node.attributes.get("axis", 0), len(node.outputs)
    sizes = node.attributes.get("split")
    if sizes is None:
        shape = graph.shapes.get(node.inputs[0], ())
        whole = shape[axis] if -len(shape) <= axis < len(shape) else None
        if whole is None or whole % count:
            raise _unsupported(node, "(it does not say how large the pieces are)")
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
    if axes is None or node.attributes.get("noop_with_empty_axes"):
        return None
    return _one(Reduce(node.op, axes, keepdim=bool(node.attributes.get("keepdims", 1))), node)


def _affine(graph: Graph, node: Node) -> Built:
    weight, bias = (parameter(node, graph.constants[name]) for name in node.inputs[1:])
    return _one(Affine(weight, bias, node.attributes["rank"]), node)


def _batch_norm(graph: Graph, node: Node) -> Built | None:
    if all(name in graph.constants for name in node.inputs[1:]):
        return None
    module = Standardize(node.attributes.get("epsilon", 1e-5))
    return _with_constants(graph, node, module, node.inputs)


def _prelu(graph: Graph, node: Node) -> Built | None:
    slope = graph.static(node, 1)
    shape = graph.shapes.get(node.inputs[0])
    if slope is None or shape is None:
        return None
    full = (1,) * (len(shape) - slope.ndim) + slope.shape
    if slope.size > 1 and full[1:2] != (slope.size,):
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
        raise _unsupported(node, "(its limit depends on the picture)")
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
    if auto == "NOTSET" and pads[:half] == pads[half:]:
        return None
    counted = node.attributes.get("count_include_pad", 0)
    if node.attributes.get("ceil_mode") or set(dilation) != {1} or counted:
        raise _unsupported(node, "(with these settings)")
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
        raise _unsupported(node, "(its output size depends on the size of the picture)")
    rank = graph.constants[node.inputs[1]].ndim - 2
    _, strides, dilations, pads = _window(node, rank)
    extra = a.get("output_padding", [0] * rank)
    if any(n >= max(pair) for n, *pair in zip(extra, strides, dilations, strict=True)):
        raise _unsupported(node, "(what it puts out is larger than its steps reach)")
    if pads[:rank] == pads[rank:] and min(pads) >= 0:
        return _by_onnx2torch(graph, node)
    del a["pads"]
    module, inputs = _by_onnx2torch(graph, node)
    return ConvTransposeCut(module, _torch_widths(pads)), inputs


def _resize(graph: Graph, node: Node) -> Built:
    a = node.attributes
    scales, sizes = graph.static(node, 2), graph.static(node, 3)
    if graph.opset < 11:
        scales, sizes = graph.static(node, 1), None
    mode = a.get("mode", "nearest")
    transform = a.get("coordinate_transformation_mode", "half_pixel")
    source = graph.shapes.get(node.inputs[0])
    scale = None if scales is None or not scales.size else [float(n) for n in scales]
    size = None if sizes is None or not sizes.size else [int(n) for n in sizes]
    given = scale or size
    if given is None or len(given) != 4 or (scale and scale[:2] != [1.0, 1.0]):
        raise _unsupported(node, "(it resizes by what is not fixed in the file)")
    if size and (source is None or size[1] != source[1]):
        raise _unsupported(node, "(it resizes channels)")
    whole = scale is not None and all(n == int(n) for n in scale)
    if mode == "nearest" and (whole or _whole_factors(source, size)):
        # torch takes the cell that k // factor lies in. So do these with whole factors, no others.
        rounding = a.get("nearest_mode", "round_prefer_floor")
        if (transform, rounding.removesuffix("_prefer_floor").removesuffix("_prefer_ceil")) not in (
            ("asymmetric", "floor"),
            ("tf_half_pixel_for_nn", "floor"),
            ("half_pixel", "round"),
        ):
            raise _unsupported(node, f"(nearest, {transform}, {rounding})")
        torch_mode = "nearest"
    elif mode == "linear" and transform in ("half_pixel", "pytorch_half_pixel"):
        torch_mode = "bilinear"
    else:
        raise _unsupported(node, f"({mode}, {transform})")
    return _one(Resize(torch_mode, scale=scale and scale[2:], size=size and size[2:]), node)


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
    "Affine": _affine,
    "BatchNormalization": _batch_norm,
    "PRelu": _prelu,
    "Silu": lambda graph, node: _one(nn.SiLU(), node),
    "Mish": lambda graph, node: _one(nn.Mish(), node),
    "Clip": _clip,
    "Gelu": _gelu,
    "GlobalAveragePool": lambda graph, node: _one(GlobalPool("ReduceMean"), node),
    "GlobalMaxPool": lambda graph, node: _one(GlobalPool("ReduceMax"), node),
    "SamePad": _same_pad,
    "Conv": _windowed,
    "MaxPool": _windowed,
    "AveragePool": _windowed,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
}
