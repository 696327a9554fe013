"""What is known without running: constants, attributes, operators that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from converters.graph import Array, Graph, Node, known_length
from converters.passes.vocabulary import REDUCTIONS
from torchviz_cnn.errors import InputError

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


_AS_INPUTS = {  # operator -> attributes that later versions of it take as inputs, in order
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Pad": ("pads",),
    "Split": ("split",),
    **dict.fromkeys(REDUCTIONS, ("axes",)),
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
