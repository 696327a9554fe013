"""Rewriting a graph until its operators are the layers people know.

The exporters write a dense layer as a matrix product and a sum, flattening as seven operators of
shape arithmetic, a batch norm as a product and a sum, and turn pictures around at the entrance.
Every pass leaves what the network computes as it was; only :func:`channels_first` changes what it
is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from converters.gelu import merge_gelu
from converters.graph import Array, Graph, Node, Shape, known_length
from converters.lengths import known_lengths
from converters.windows import pooling_over_more_axes
from torchviz_cnn.errors import InputError

TO_CHANNELS_FIRST = [0, 3, 1, 2]
TO_CHANNELS_LAST = [0, 2, 3, 1]

UNARY = frozenset(
    [
        "Abs",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Silu",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ]
)
BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu"])
_REDUCTIONS = frozenset(
    ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"]
)
# What may be computed when the file is read: nothing here makes much out of little.
_FOLDABLE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: a / b if a.dtype.kind == "f" else np.trunc(a / b).astype(a.dtype),
    "Mod": np.mod,
    "Equal": np.equal,
    "Where": np.where,
    "Max": np.maximum,
    "Min": np.minimum,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Identity": lambda a: a,
}
_MOST_ELEMENTS = 1 << 26
# Each round of folding may settle the size of the maps up to the next border.
_MOST_BORDERS = 100


def simplify(graph: Graph) -> None:
    """Constants, shapes and dense layers; nothing here depends on the layout."""
    normalise_attributes(graph)
    drop_no_ops(graph)
    fold_constants(graph)
    normalise_attributes(graph)  # more of the settings are constants now
    for _ in range(_MOST_BORDERS):
        if not known_lengths(graph, UNARY | BINARY):
            break
        fold_constants(graph)
        normalise_attributes(graph)
    shape_arithmetic(graph)
    graph.prune()
    repeats(graph)
    pooling_over_more_axes(graph)
    transposing_reshapes(graph)
    cancel_transposes(graph)
    expanded_numbers(graph)
    dense_on_maps(graph)
    linear_layers(graph)
    graph.prune()


def merge(graph: Graph) -> None:
    """Several operators that are one: once the layout is settled, for they look at axes."""
    resolve_same_padding(graph)
    separate_borders(graph)
    convolution_biases(graph)
    batch_norms(graph)
    silu(graph)
    merge_gelu(graph)
    graph.prune()


# ---------------------------------------------------------------------------- small change


_AS_INPUTS = {  # operator -> attributes that later versions of it take as inputs, in order
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Pad": ("pads",),
    "Split": ("split",),
    **dict.fromkeys(_REDUCTIONS, ("axes",)),
}


def normalise_attributes(graph: Graph) -> None:
    """Settings that are attributes or constant inputs, depending on the version: attributes."""
    for node in graph.nodes:
        names = _AS_INPUTS.get(node.op, ())
        if node.op == "Reshape":
            names = ("shape",)
        order = {"Pad": ("pads", "value", "axes"), "Slice": ("starts", "ends", "axes", "steps")}
        for position, name in enumerate(order.get(node.op, names), start=1):
            value = graph.static(node, position)
            if value is not None and name not in node.attributes and name != "shape":
                node.attributes[name] = value.tolist()
        if node.op in _AS_INPUTS and all(
            not name or name in graph.constants for name in node.inputs[1:]
        ):
            node.inputs = node.inputs[:1]


def drop_no_ops(graph: Graph) -> None:
    """Identity, dropout outside training, and casts between floating-point types."""
    for node in list(graph.nodes):
        source = node.inputs[0] if node.inputs else ""
        idle = node.op in ("Identity", "Dropout") or (
            node.op == "Cast"
            and node.attributes.get("to") in (1, 10, 11, 16)
            and _is_float(graph, source)
        )
        if idle and source not in graph.constants and node.output not in graph.outputs:
            graph.nodes.remove(node)
            graph.rename_uses(node.output, source)


def _is_float(graph: Graph, name: str) -> bool:
    """Whether a tensor is surely floating point: it came from a weighted layer or the input."""
    makers = graph.makers()
    while name in makers:
        node = makers[name]
        if node.op in ("Shape", "Cast", "Size", "ArgMax", "NonZero", "Equal", "Less", "Greater"):
            return False
        if node.op in ("Conv", "MatMul", "Gemm", "Relu", "Sigmoid", "MaxPool", "AveragePool"):
            return True
        if not node.inputs:
            return False
        name = node.inputs[0]
    return name in graph.inputs


def fold_constants(graph: Graph) -> None:
    """Compute what depends on constants alone."""
    for node in list(graph.nodes):
        if not node.inputs or not all(name in graph.constants for name in node.inputs if name):
            continue
        values = [graph.constants[name] for name in node.inputs if name]
        try:
            folded = _folded(node, values)
        except (ValueError, IndexError) as error:  # NumPy's, for shapes that do not fit
            shapes = " and ".join(str(value.shape) for value in values)
            raise InputError(
                f"the operator {node.op} {node.name!r} does not fit its constants of shape "
                f"{shapes}: {error}"
            ) from error
        if folded is not None:
            graph.constants[node.output] = folded
            graph.nodes.remove(node)


def _folded(node: Node, values: list[Array]) -> Array | None:
    if node.op in ("Max", "Min") and len(values) != 2:
        return None
    if node.op == "Div" and values[1].dtype.kind != "f" and not values[1].all():
        return None
    if node.op == "Mod" and (not values[1].all() or node.attributes.get("fmod")):
        return None
    if node.op in _FOLDABLE:
        size = known_length(np.broadcast_shapes(*(v.shape for v in values)))
        if size is None or size > _MOST_ELEMENTS:
            return None
        return np.asarray(_FOLDABLE[node.op](*values))
    if node.op == "Transpose":
        return values[0].transpose(node.attributes.get("perm"))
    if node.op == "Reshape" and (len(values) == 2 or "shape" in node.attributes):
        wanted = values[1].tolist() if len(values) == 2 else node.attributes["shape"]
        shape = [values[0].shape[i] if n == 0 else n for i, n in enumerate(wanted)]
        return values[0].reshape(shape)
    if node.op == "Unsqueeze" and "axes" in node.attributes:
        return np.expand_dims(values[0], tuple(node.attributes["axes"]))
    if node.op == "Squeeze" and "axes" in node.attributes:
        return np.squeeze(values[0], tuple(node.attributes["axes"]))
    if node.op == "ConstantOfShape":
        size = known_length(values[0].tolist())
        if size is None or size > _MOST_ELEMENTS or (values[0] < 0).any():
            return None
        filling = np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)
        return np.full(values[0].tolist(), filling[0], filling.dtype)
    if node.op == "Slice" and {"starts", "ends"} <= node.attributes.keys():
        return _sliced(values[0], node.attributes)
    if node.op == "Cast":
        return values[0].astype(helper.tensor_dtype_to_np_dtype(node.attributes["to"]))
    if node.op == "Concat":
        return np.concatenate(values, node.attributes["axis"])
    return None


def _sliced(value: Array, attributes: dict[str, Any]) -> Array | None:
    starts, ends = attributes["starts"], attributes["ends"]
    axes = attributes.get("axes", list(range(len(starts))))
    steps = attributes.get("steps", [1] * len(starts))
    if not set(axes) <= set(range(-value.ndim, value.ndim)) or 0 in steps:
        return None
    cuts = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=False):
        cuts[axis] = slice(start, None if end < -(2**31) + 1 else end, step)
    return value[tuple(cuts)]


# ---------------------------------------------------------------------------- shape arithmetic

Dim = int | str  # a known length, or the name of one that is not known


def shape_arithmetic(graph: Graph) -> None:
    """Follow Shape, Gather, Slice, Concat, … and make each Reshape's target a constant.

    The batch axis keeps its freedom: a target that starts with the batch's length becomes ``-1``.
    """
    known: dict[str, list[Dim]] = {}
    for name, value in graph.constants.items():
        if value.dtype.kind in "iu" and value.size <= 64 and value.ndim <= 1:
            known[name] = value.reshape(-1).tolist()
    for node in graph.nodes:
        result = _dims(node, known, graph)
        if result is not None:
            known[node.output] = result
        if node.op == "Reshape" and len(node.inputs) == 2 and node.inputs[1] in known:
            _fix_reshape(graph, node, known[node.inputs[1]])


def _dims(node: Node, known: dict[str, list[Dim]], graph: Graph) -> list[Dim] | None:
    if node.op == "Shape":
        shape = graph.shape(node.inputs[0])
        if shape is None:
            return None
        names: list[Dim] = [
            f"{node.inputs[0]}#{i}" if n is None else n for i, n in enumerate(shape)
        ]
        if shape and shape[0] is None:
            names[0] = "batch"
        return names[node.attributes.get("start", 0) : node.attributes.get("end")]
    values = [known.get(name) for name in node.inputs if name]
    if not values or any(value is None for value in values):
        return None
    first, *rest = [value for value in values if value is not None]
    if node.op in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return first
    if node.op == "Gather":
        inside = range(-len(first), len(first))
        index = [i for i in rest[0] if isinstance(i, int) and i in inside] if rest else []
        return [first[i] for i in index] if rest and len(index) == len(rest[0]) else None
    if node.op == "Slice" and {"starts", "ends"} <= node.attributes.keys():
        start, end = node.attributes["starts"][0], node.attributes["ends"][0]
        step = node.attributes.get("steps", [1])[0]
        return first[start:end:step]
    if node.op == "Concat":
        return [dim for value in (first, *rest) for dim in value]
    if node.op in ("Mul", "ReduceProd"):
        factors = [first, *rest] if node.op == "Mul" else [[dim] for dim in first]
        return _product(factors)
    return None


def _product(factors: Sequence[list[Dim]]) -> list[Dim] | None:
    """The product of single lengths; with one that is not known it is not known either."""
    if any(len(factor) != 1 for factor in factors):
        return None
    unknown = [factor[0] for factor in factors if isinstance(factor[0], str)]
    number = 1
    for factor in factors:
        number *= factor[0] if isinstance(factor[0], int) else 1
    if not unknown:
        return [number]
    return ["*".join([*sorted(unknown), str(number)]) if number != 1 or unknown[1:] else unknown[0]]


def _fix_reshape(graph: Graph, node: Node, target: list[Dim]) -> None:
    source = graph.shape(node.inputs[0])
    if sum(isinstance(dim, str) for dim in target) > 1:
        return
    if target and target[0] == "batch":
        target = [-1, *target[1:]] if -1 not in target[1:] else [0, *target[1:]]
    if any(isinstance(dim, str) for dim in target):
        if -1 in target:
            return
        target = [-1 if isinstance(dim, str) else dim for dim in target]
    lengths = [int(dim) for dim in target]
    if source is not None and not node.attributes.get("allowzero"):
        lengths = [
            n if n or i >= len(source) or source[i] is None else int(source[i] or 0)
            for i, n in enumerate(lengths)
        ]
    node.inputs = node.inputs[:1]
    node.attributes = {"shape": lengths}
    inner = known_length(source[1:]) if source else None
    free = lengths[:1] in ([-1], [0]) and inner is not None
    if free and len(lengths) == 2 and lengths[1] in (inner, -1):
        node.op, node.attributes = "Flatten", {"axis": 1}
        graph.shapes[node.output] = (source[0] if source else None, inner)
        return
    # The rest of the shape fixes the length of the batch axis: keep it free by its own name.
    if (
        inner is not None
        and lengths
        and lengths[0] in (-1, 0)
        and known_length(lengths[1:]) == inner
    ):
        node.attributes["keeps_batch"] = True
        graph.shapes[node.output] = (source[0] if source else None, *lengths[1:])


def repeats(graph: Graph) -> None:
    """A new axis, widened and merged with the one before it, repeats each cell: ``Repeat``.

    So does Keras' torch back end enlarge maps.
    """
    consumers = graph.consumers()
    for node in list(graph.nodes):
        axes = node.attributes.get("axes", ())
        source = graph.shapes.get(node.inputs[0]) if node.inputs else None
        if node.op != "Unsqueeze" or len(axes) != 1 or source is None:
            continue
        axis = axes[0] % (len(source) + 1) - 1
        wide = consumers.get(node.output, [])
        merged = consumers.get(wide[0].output, []) if len(wide) == 1 else []
        if len(merged) != 1 or (wide[0].op, merged[0].op) != ("Expand", "Reshape") or axis < 1:
            continue
        if node.output in graph.outputs or wide[0].output in graph.outputs:
            continue
        factor = _factor(graph.static(wide[0], 1), source, axis + 1)
        side = None if factor is None or source[axis] is None else factor * int(source[axis] or 0)
        target = merged[0].attributes.get("shape", [])[1:]
        if side is None or target != [*source[1:axis], side, *source[axis + 1 :]]:
            continue
        last = merged[0]
        last.op, last.inputs = "Repeat", [node.inputs[0]]
        last.attributes = {"axis": axis, "times": factor}
        graph.shapes[last.output] = (source[0], *target)
        graph.nodes = [each for each in graph.nodes if each not in (node, wide[0])]


def _factor(wanted: Array | None, source: Shape, axis: int) -> int | None:
    """How often the new axis is repeated, if it is the only one."""
    sides = [*source[:axis], 1, *source[axis:]]
    if wanted is None or wanted.ndim != 1 or len(wanted) != len(sides):
        return None
    others = [i for i in range(len(sides)) if i != axis]
    if any(wanted[i] != 1 and wanted[i] != sides[i] for i in others):
        return None
    return int(wanted[axis]) if wanted[axis] > 0 else None


# ---------------------------------------------------------------------------- weighted layers


def expanded_numbers(graph: Graph) -> None:
    """One number repeated for every channel of a batch norm may as well stay one number."""
    makers = graph.makers()
    for node in graph.nodes:
        for position, name in enumerate(
            node.inputs[1:3] if node.op == "BatchNormalization" else []
        ):
            before = makers.get(name)
            number = graph.static(before, 0) if before is not None else None
            if before is None or before.op != "Expand" or number is None or number.size != 1:
                continue
            flat = f"{before.inputs[0]}//number"
            graph.constants[flat] = number.reshape(1)
            node.inputs[position + 1] = flat


def dense_on_maps(graph: Graph) -> None:
    """A product flattened to a matrix and back works on the last axis as it is."""
    consumers, makers = graph.consumers(), graph.makers()
    for node in list(graph.nodes):
        kernel = graph.static(node, 1) if node.op == "MatMul" else None
        before = makers.get(node.inputs[0]) if kernel is not None and kernel.ndim == 2 else None
        users = consumers.get(node.output, [])
        if kernel is None or before is None or before.op != "Reshape" or len(users) != 1:
            continue
        source, target = graph.shapes.get(before.inputs[0]), users[0].attributes.get("shape")
        if users[0].op != "Reshape" or source is None or target is None:
            continue
        flat = before.attributes.get("shape")
        inner = list(source[1:-1])
        if flat == [-1, kernel.shape[0]] and target[1:] == [*inner, kernel.shape[1]]:
            node.inputs[0], node.outputs = before.inputs[0], users[0].outputs
            graph.nodes.remove(users[0])


def linear_layers(graph: Graph) -> None:
    """A product with a constant matrix, and the sum after it, are one dense layer.

    The result is an operator ``Linear`` whose kernel is laid out as torch has it, (out, in).
    """
    consumers = graph.consumers()
    for node in list(graph.nodes):
        kernel = graph.static(node, 1)
        if kernel is None or kernel.ndim != 2 or node.inputs[0] in graph.constants:
            continue
        if node.op == "MatMul":
            matrix = _transposed(graph, node.inputs[1])
            _make_linear(graph, node, matrix, _bias_after(graph, node, consumers))
        elif node.op == "Gemm" and _is_dense(node) and _gemm_bias(graph, node) is not False:
            turned = node.attributes.get("transB", 0)
            matrix = node.inputs[1] if turned else _transposed(graph, node.inputs[1])
            bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
            _make_linear(graph, node, matrix, bias)


def _is_dense(node: Node) -> bool:
    a = node.attributes
    return a.get("alpha", 1.0) == 1.0 and a.get("beta", 1.0) == 1.0 and not a.get("transA", 0)


def _gemm_bias(graph: Graph, node: Node) -> bool | None:
    """``False`` where what a Gemm adds is no bias of a linear layer."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return None
    bias = graph.static(node, 2)
    return bias is not None and bias.ndim == 1 and bias.size > 1


def _transposed(graph: Graph, name: str) -> str:
    """The same matrix laid out the other way; one name for one matrix, so that sharing is seen.

    Nothing is moved yet: of a hundred million weights that takes seconds, once is enough.
    """
    new = f"{name}//T"
    graph.constants.setdefault(new, graph.constants[name].T)
    return new


def _make_linear(graph: Graph, node: Node, matrix: str, bias: str | None) -> None:
    node.op, node.attributes = "Linear", {}
    node.inputs = [node.inputs[0], matrix, *([bias] if bias is not None else [])]


def _bias_after(graph: Graph, node: Node, consumers: dict[str, list[Node]]) -> str | None:
    """The name of the constant that is added next, which is then taken into the node."""
    return _absorb_add(
        graph, node, consumers, lambda c, n: c.ndim >= 1 and c.shape == (*(1,) * (c.ndim - 1), n)
    )


def _absorb_add(
    graph: Graph,
    node: Node,
    consumers: dict[str, list[Node]],
    fits: Callable[[Array, int], bool],
) -> str | None:
    users = consumers.get(node.output, [])
    if len(users) != 1 or users[0].op != "Add" or node.output in graph.outputs:
        return None
    add = users[0]
    if add.owner is not None and node.owner is not None and add.owner != node.owner:
        return None
    name = next((n for n in add.inputs if n in graph.constants), None)
    kernel = graph.constants[node.inputs[1]]
    width = kernel.shape[-1] if node.op == "MatMul" else _output_channels(node, kernel)
    if name is None or not fits(graph.constants[name], width):
        return None
    flat = name if graph.constants[name].ndim == 1 else f"{name}//flat"
    graph.constants.setdefault(flat, graph.constants[name].reshape(-1))
    node.outputs = add.outputs
    graph.nodes.remove(add)
    return flat


def _output_channels(node: Node, kernel: Array) -> int:
    if node.op == "ConvTranspose":
        return kernel.shape[1] * int(node.attributes.get("group", 1))
    return kernel.shape[0]


def convolution_biases(graph: Graph) -> None:
    """A constant added to every channel right after a convolution is its bias."""
    consumers = graph.consumers()

    def per_channel(constant: Array, channels: int) -> bool:
        return (
            constant.ndim in (3, 4)
            and constant.shape[-3:] == (channels, 1, 1)
            and constant.size == channels
        )

    for node in list(graph.nodes):
        if node.op not in ("Conv", "ConvTranspose") or len(node.inputs) != 2:
            continue
        if graph.static(node, 1) is None:
            continue
        bias = _absorb_add(graph, node, consumers, per_channel)
        if bias is not None:
            node.inputs.append(bias)


def batch_norms(graph: Graph) -> None:
    """A factor and a summand for every channel are one operator, ``Affine``."""
    consumers = graph.consumers()
    for node in list(graph.nodes):
        if node.op != "Mul" or node not in graph.nodes:
            continue
        scale = _per_channel(graph, node)
        users = consumers.get(node.output, [])
        if scale is None or len(users) != 1 or node.output in graph.outputs:
            continue
        add = users[0]
        if add.op != "Add" or add.owner != node.owner:
            continue
        offset = _per_channel(graph, add)
        if offset is None or graph.constants[offset].size != graph.constants[scale].size:
            continue
        source = next(name for name in node.inputs if name not in graph.constants)
        rank = len(graph.shapes.get(source, ()))
        flat = [f"{name}//flat" for name in (scale, offset)]
        for name, new in zip((scale, offset), flat, strict=True):
            graph.constants[new] = graph.constants[name].reshape(-1)
        before = _mean_before(graph, node, source, consumers)
        if before is not None:
            source, mean = before
            shift = graph.constants[mean].reshape(-1).astype(np.float64)
            shift = graph.constants[flat[1]] - shift * graph.constants[flat[0]]
            flat[1] = f"{flat[1]}//{mean}"
            graph.constants[flat[1]] = shift.astype(graph.constants[flat[0]].dtype)
        add.op, add.inputs, add.attributes = "Affine", [source, *flat], {"rank": rank}
        graph.nodes.remove(node)


def _mean_before(
    graph: Graph, node: Node, source: str, consumers: dict[str, list[Node]]
) -> tuple[str, str] | None:
    """What a mean is taken from right before the factor, and the mean: Keras' torch back end."""
    makers = [each for each in graph.nodes if source in each.outputs]
    before = makers[0] if makers else None
    if before is None or before.op != "Sub" or before.owner != node.owner:
        return None
    mean = _per_channel(graph, before)
    if len(consumers.get(source, [])) != 1 or source in graph.outputs or mean is None:
        return None
    if before.inputs[1] != mean or graph.constants[mean].size < 2:
        return None
    graph.nodes.remove(before)
    return before.inputs[0], mean


def _per_channel(graph: Graph, node: Node) -> str | None:
    """The constant of a Mul or Add that holds one number for each channel (axis 1)."""
    names = [name for name in node.inputs if name in graph.constants]
    source = next((name for name in node.inputs if name not in graph.constants), None)
    shape = graph.shapes.get(source or "")
    if len(names) != 1 or shape is None or len(shape) < 2:
        return None
    constant = graph.constants[names[0]]
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(full) != len(shape) or constant.size < 2 or full[1] != constant.size:
        return None
    return names[0]


def silu(graph: Graph) -> None:
    """``x * sigmoid(x)`` is one activation, ``Silu`` (Keras: swish)."""
    consumers = graph.consumers()
    for node in list(graph.nodes):
        users = consumers.get(node.output, [])
        if node.op != "Sigmoid" or len(users) != 1 or node.output in graph.outputs:
            continue
        product = users[0]
        if product.op == "Mul" and set(product.inputs) == {node.output, node.inputs[0]}:
            product.op, product.inputs = "Silu", [node.inputs[0]]
            graph.nodes.remove(node)


# ---------------------------------------------------------------------------- borders


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


def separate_borders(graph: Graph) -> None:
    """A border that torch's convolution or pooling cannot make is an operator of its own."""
    for node in list(graph.nodes):
        if node.op not in ("Conv", "MaxPool") or "kernel_shape" not in node.attributes:
            continue
        rank = len(node.attributes["kernel_shape"])
        pads = node.attributes.get("pads", [0] * 2 * rank)
        auto = node.attributes.pop("auto_pad", None)
        if auto is None and pads[:rank] == pads[rank:]:
            continue
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


# ---------------------------------------------------------------------------- layout


def transposing_reshapes(graph: Graph) -> None:
    """With one channel, the exporter turns pictures around by a Reshape: make it a Transpose."""
    for node in graph.nodes:
        if node.op != "Reshape" or node.owner or not node.attributes.get("keeps_batch"):
            continue
        source = graph.shapes.get(node.inputs[0])
        target = node.attributes["shape"]
        if source is None or len(source) != 4 or len(target) != 4:
            continue
        for perm in (TO_CHANNELS_FIRST, TO_CHANNELS_LAST):
            channel = 3 if perm is TO_CHANNELS_FIRST else 1
            turned = [source[axis] for axis in perm[1:]] == target[1:] != list(source[1:])
            if source[channel] == 1 and turned:
                node.op, node.attributes = "Transpose", {"perm": perm}
                break


def _is_free_transpose(node: Node) -> bool:
    """A transpose of the exporter's own, not a layer of the network (Keras' Permute)."""
    return node.op == "Transpose" and node.owner is None and "perm" in node.attributes


def cancel_transposes(graph: Graph) -> None:
    """Two transposes in a row are one, or none."""
    changed = True
    while changed:
        changed = False
        makers = graph.makers()
        for node in list(graph.nodes):
            before = makers.get(node.inputs[0]) if _is_free_transpose(node) else None
            if before is None or not _is_free_transpose(before):
                continue
            perm = [before.attributes["perm"][axis] for axis in node.attributes["perm"]]
            node.inputs, node.attributes = [before.inputs[0]], {"perm": perm}
            if perm == sorted(perm) and node.output not in graph.outputs:
                graph.nodes.remove(node)
                graph.rename_uses(node.output, node.inputs[0])
            changed = True
            break
    graph.prune()


def is_channels_last(graph: Graph, name: str, *, keras: bool) -> bool:
    """Whether an input holds pictures as Keras has them, channels last.

    The exporter turns them around before the first convolution; a convolution or pooling that takes
    the input as it is shows that they are channels first already.
    """
    shape = graph.inputs[name]
    if len(shape) != 4:
        return False
    consumers = graph.consumers()
    waiting, seen = [name], {name}
    while waiting:
        for node in consumers.get(waiting.pop(), []):
            if node.op == "Transpose" and node.attributes.get("perm") == TO_CHANNELS_FIRST:
                return True
            if node.op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization"):
                return False
            if node.op in UNARY | BINARY | {"Pad", "Concat"} and node.output not in seen:
                seen.add(node.output)
                waiting.append(node.output)
    return keras


def channels_first(graph: Graph, *, keras: bool) -> None:
    """Let the network take (N, C, H, W), and keep feature maps so as far as it goes.

    A transpose back to what the file expects is put behind each input and pushed through the
    network until it meets its inverse. Where it meets the flattening before a dense layer, the
    layer's kernel is permuted instead, and where the features lie is noted in ``graph.permuted``.
    """
    for name, shape in list(graph.inputs.items()):
        if not is_channels_last(graph, name, keras=keras):
            continue
        turned = graph.fresh(name)
        graph.rename_uses(name, turned)
        graph.nodes.insert(0, Node("Transpose", [name], [turned], {"perm": TO_CHANNELS_LAST}))
        graph.shapes[turned] = shape
        graph.inputs[name] = graph.shapes[name] = _permute(shape, TO_CHANNELS_FIRST)
    push_transposes(graph)
    if keras:
        turn_remaining_maps(graph)
        push_transposes(graph)
    absorb_into_dense(graph)
    graph.sort()
    _drop_transposes_before_outputs(graph)


def _permute(shape: Shape, perm: Sequence[int]) -> Shape:
    if sorted(perm) != list(range(len(shape))):
        raise InputError(
            f"this file contradicts itself: a tensor of shape {shape} is turned {perm}"
        )
    return tuple(shape[axis] for axis in perm)


def _inverse(perm: Sequence[int]) -> list[int]:
    return [perm.index(axis) for axis in range(len(perm))]


def push_transposes(graph: Graph) -> None:
    """Move transposes towards the output, through everything that allows it."""
    changed = True
    while changed:
        changed = False
        cancel_transposes(graph)
        consumers, makers = graph.consumers(), graph.makers()
        for node in list(graph.nodes):
            if not _is_free_transpose(node) or node.inputs[0] in graph.constants:
                continue
            for user in dict.fromkeys(consumers.get(node.output, [])):
                if _push(graph, node, user, makers):
                    changed = True
                    break
            if changed:
                break
    graph.sort()
    graph.prune()


def _push(graph: Graph, node: Node, user: Node, makers: dict[str, Node]) -> bool:
    """Let ``user`` work before the transpose rather than behind it, where it can."""
    perm: list[int] = node.attributes["perm"]
    if user.op in UNARY:
        inputs = [node.inputs[0], *user.inputs[1:]]
    elif user.op in BINARY:
        turned = [_before(graph, name, perm, makers) for name in user.inputs]
        if any(name is None for name in turned):
            return False
        inputs = [name for name in turned if name is not None]
    elif user.op in ("Concat", "Softmax", "LogSoftmax"):
        turned = [_before(graph, name, perm, makers) for name in user.inputs]
        if any(name is None for name in turned) or (user.op != "Concat" and graph.opset < 13):
            return False
        inputs = [name for name in turned if name is not None]
        axis = user.attributes.get("axis", -1)
        user.attributes = {**user.attributes, "axis": perm[axis % len(perm)]}
    elif user.op == "Pad" and "pads" in user.attributes and "axes" not in user.attributes:
        pads, rank = user.attributes["pads"], len(perm)
        begin, end = pads[:rank], pads[rank:]
        where = _inverse(perm)
        user.attributes = {
            **user.attributes,
            "pads": [begin[i] for i in where] + [end[i] for i in where],
        }
        inputs = [node.inputs[0]]
    elif user.op == "Linear" and perm == TO_CHANNELS_LAST:
        # A dense layer on maps is a convolution with a window of one cell.
        kernel = f"{user.inputs[1]}//1x1"
        graph.constants[kernel] = graph.constants[user.inputs[1]][:, :, None, None]
        user.op = "Conv"
        inputs = [node.inputs[0], kernel, *user.inputs[2:]]
    elif user.op == "Repeat":
        user.attributes = {**user.attributes, "axis": perm[user.attributes["axis"]]}
        inputs = [node.inputs[0]]
    elif user.op in _REDUCTIONS and user.attributes.get("axes"):
        return _push_reduction(graph, node, user)
    else:
        return False
    user.inputs = inputs
    _transpose_after(graph, user, perm)
    return True


def _before(graph: Graph, name: str, perm: list[int], makers: dict[str, Node]) -> str | None:
    """What stands in for an operand once the operator works before the transpose."""
    if name in graph.constants:
        constant = graph.constants[name]
        if constant.size == 1 and constant.ndim == 0:
            return name
        if constant.ndim > len(perm):
            return None
        full = constant.reshape((1,) * (len(perm) - constant.ndim) + constant.shape)
        new = f"{name}//{''.join(map(str, perm))}"
        graph.constants[new] = np.ascontiguousarray(full.transpose(_inverse(perm)))
        return new
    maker = makers.get(name)
    if maker is not None and _is_free_transpose(maker) and maker.attributes["perm"] == perm:
        return maker.inputs[0]
    return None


def _push_reduction(graph: Graph, node: Node, user: Node) -> bool:
    perm: list[int] = node.attributes["perm"]
    rank = len(perm)
    axes = [perm[axis % rank] for axis in user.attributes["axes"]]
    kept = [axis for axis in perm if axis not in axes]
    keeps = user.attributes.get("keepdims", 1)
    if not keeps and kept != sorted(kept):
        return False
    user.attributes = {**user.attributes, "axes": sorted(axes)}
    user.inputs = [node.inputs[0]]
    if keeps:
        _transpose_after(graph, user, perm)
    return True


def _transpose_after(graph: Graph, node: Node, perm: list[int]) -> None:
    """Turn around what a node now puts out the other way, for whoever reads it."""
    old, inner = node.output, graph.fresh(node.output.split("//")[0])
    node.outputs = [inner]
    shape = graph.shapes.get(old)
    if shape is not None:
        graph.shapes[inner] = _permute(shape, _inverse(perm))
    graph.nodes.insert(
        graph.nodes.index(node) + 1, Node("Transpose", [inner], [old], {"perm": perm})
    )


_ALWAYS_FIRST = frozenset(
    "Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool Resize".split()  # noqa: SIM905
)


def turn_remaining_maps(graph: Graph) -> None:
    """Let layers that the exporter left channels last put their maps out channels first.

    Keras' maps are channels last, so a layer's output is unless it comes from what was turned. It
    is turned inside the layer, and back for whoever reads it, where that may cancel again.
    """
    last = _channels_last_maps(graph)
    consumers = graph.consumers()
    for node in list(graph.nodes):
        name = node.output
        users = consumers.get(name, [])
        inside = name not in graph.outputs and all(user.owner == node.owner for user in users)
        if name not in last or node.owner is None or inside:
            continue
        inner, first = graph.fresh(name), graph.fresh(name)
        node.outputs[0] = inner
        shape = graph.shapes[inner] = graph.shapes[name]
        graph.shapes[first] = _permute(shape, TO_CHANNELS_FIRST)
        turn = Node("Transpose", [inner], [first], {"perm": TO_CHANNELS_FIRST}, owner=node.owner)
        back = Node("Transpose", [first], [name], {"perm": TO_CHANNELS_LAST})
        for user in users:
            if user.owner == node.owner:
                user.inputs = [inner if given == name else given for given in user.inputs]
        position = graph.nodes.index(node) + 1
        graph.nodes[position:position] = [turn, back]


def _channels_last_maps(graph: Graph) -> set[str]:
    """Tensors of four axes that nothing has turned channels first."""
    first = {name for name, shape in graph.inputs.items() if len(shape) == 4}
    last: set[str] = set()
    for node in graph.nodes:
        if len(graph.shapes.get(node.output, ())) != 4:
            continue
        turned = _is_free_transpose(node) and node.attributes["perm"] == TO_CHANNELS_FIRST
        keeps = node.op not in ("Reshape", "Transpose") and first.intersection(node.inputs)
        if turned or keeps or node.op in _ALWAYS_FIRST:
            first.add(node.output)
        elif not _is_free_transpose(node):
            last.add(node.output)
    return last


def absorb_into_dense(graph: Graph) -> None:
    """Flatten channels-first maps as they lie and permute the rows of the dense kernels after.

    Left as it is where anything but dense layers and element-wise operators would see the features
    in another order: the network's own output, above all.
    """
    makers = graph.makers()
    for node in list(graph.nodes):
        before = makers.get(node.inputs[0]) if node.op == "Flatten" else None
        if before is None or not _is_free_transpose(before) or node.attributes.get("axis", 1) != 1:
            continue
        source = graph.shapes.get(before.inputs[0])
        perm = before.attributes["perm"]
        if source is None or perm[0] != 0 or known_length(source[1:]) is None:
            continue
        chain = _features_end_in_dense(graph, node.output)
        if chain is None:
            continue
        lengths = [int(n or 0) for n in source[1:]]
        order = np.arange(int(np.prod(lengths))).reshape(lengths)
        order = order.transpose([axis - 1 for axis in perm[1:]]).reshape(-1)
        node.inputs = [before.inputs[0]]
        _permute_features(graph, node.output, chain, order)
    graph.prune()


def _features_end_in_dense(graph: Graph, name: str) -> list[Node] | None:
    """Everything that reads a vector of features, as long as all of it can be permuted."""
    if name in graph.outputs:
        return None
    found: list[Node] = []
    for user in graph.consumers().get(name, []):
        if user.op == "Linear" and name == user.inputs[0]:
            found.append(user)
        elif user.op in UNARY or user.op == "Affine" or _with_constant(graph, user):
            rest = _features_end_in_dense(graph, user.output)
            if rest is None:
                return None
            found += [user, *rest]
        else:
            return None
    return found or None


def _with_constant(graph: Graph, node: Node) -> bool:
    others = [name for name in node.inputs if name not in graph.constants]
    return node.op in BINARY and len(others) == 1


def _permute_features(graph: Graph, start: str, chain: list[Node], order: Array) -> None:
    """``order[k]`` is where Keras' k-th feature lies from now on."""
    inverse = np.argsort(order)
    graph.permuted[start] = tuple(order.tolist())
    for node in chain:
        for position, name in enumerate(node.inputs):
            constant = graph.constants.get(name)
            if (
                constant is None
                or constant.shape[-1:] != (len(order),)
                or (node.op == "Linear" and position != 1)
            ):
                continue
            new = f"{name}//rows{_fingerprint(order)}"
            if new not in graph.constants:
                # Along the axis that comes first once turned, whole rows are moved.
                graph.constants[new] = np.take(constant.T, inverse, axis=0).T
            node.inputs[position] = new
        if node.op != "Linear":
            graph.permuted[node.output] = tuple(order.tolist())


def _fingerprint(order: Array) -> int:
    return hash(order.tobytes())


def _drop_transposes_before_outputs(graph: Graph) -> None:
    """A network that puts out maps puts them out channels first, like all others inside."""
    makers = graph.makers()
    for position, name in enumerate(graph.outputs):
        node = makers.get(name)
        if node is None or not _is_free_transpose(node):
            continue
        if node.attributes["perm"] == TO_CHANNELS_LAST:
            graph.outputs[position] = node.inputs[0]
            graph.notes.append(
                "the network puts out maps: they come as (N, C, H, W), not (N, H, W, C) as in Keras"
            )
    graph.prune()
