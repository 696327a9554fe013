"""Small tensors worked out from shapes and constants, as exporters have networks do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto
from onnx.numpy_helper import from_array, to_array

Array: TypeAlias = npt.NDArray[Any]

CASTS: dict[int, type] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
}


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, in whichever of its spellings."""
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None or attribute.name == "value":
        return attribute.t if attribute is not None else None
    values: dict[str, tuple[Any, type]] = {
        "value_int": (attribute.i, np.int64),
        "value_ints": (list(attribute.ints), np.int64),
        "value_float": (attribute.f, np.float32),
        "value_floats": (list(attribute.floats), np.float32),
    }
    if attribute.name not in values:
        return None
    value, kind = values[attribute.name]
    return from_array(np.array(value, kind))


def attribute_of(node: NodeProto, name: str, default: Any = None) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _axes(node: NodeProto, operands: list[Any]) -> tuple[int, ...] | None:
    """The axes that a node names: an attribute in older opsets, the second input in newer ones."""
    given = attribute_of(node, "axes")
    if given is None and len(operands) > 1 and operands[1] is not None:
        given = operands[1].ravel().tolist()
    return None if given is None else tuple(given)


def _slice(node: NodeProto, operands: list[Any]) -> Array:
    data, *rest = operands
    given = {} if rest else {name: attribute_of(node, name) for name in ("starts", "ends", "axes")}
    for name, part in zip(("starts", "ends", "axes", "steps"), rest, strict=False):
        given[name] = None if part is None else part.ravel().tolist()
    starts, ends = given["starts"], given["ends"]
    axes = given.get("axes") or range(len(starts))
    steps = given.get("steps") or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return np.asarray(data[tuple(cut)])


def _divide(node: NodeProto, operands: list[Any]) -> Array:
    first, second = operands
    quotient = first / second
    if np.issubdtype(first.dtype, np.integer):
        return np.trunc(quotient).astype(first.dtype)
    return np.asarray(quotient)


def _squeeze(node: NodeProto, operands: list[Any]) -> Array:
    return np.squeeze(operands[0], _axes(node, operands))


def _reshape(node: NodeProto, operands: list[Any]) -> Array:
    data, target = operands
    kept = not attribute_of(node, "allowzero", 0)
    dims = [data.shape[i] if n == 0 and kept else n for i, n in enumerate(target.tolist())]
    return np.asarray(data.reshape(dims))


def _fill(node: NodeProto, operands: list[Any]) -> Array:
    value = attribute_of(node, "value")
    filling = np.zeros(1, np.float32) if value is None else to_array(value)
    return np.full(operands[0].tolist(), filling.ravel()[0], filling.dtype)


def _reduce(function: Callable[..., Any]) -> Callable[[NodeProto, list[Any]], Array]:
    def compute(node: NodeProto, operands: list[Any]) -> Array:
        keep = bool(attribute_of(node, "keepdims", 1))
        return np.asarray(function(operands[0], axis=_axes(node, operands), keepdims=keep))

    return compute


def _plain(function: Callable[..., Any]) -> Callable[[NodeProto, list[Any]], Array]:
    return lambda node, operands: np.asarray(function(*operands))


# What exporters write to work out a shape while the network runs; floats occur in scales.
FOLDED: dict[str, Callable[[NodeProto, list[Any]], Array]] = {
    "Identity": lambda node, x: x[0],
    "Cast": lambda node, x: x[0].astype(CASTS[attribute_of(node, "to")]),
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _divide,
    "Mod": _plain(np.mod),
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
    "Round": _plain(np.round),
    "Equal": _plain(np.equal),
    "Less": _plain(np.less),
    "Greater": _plain(np.greater),
    "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Where": _plain(np.where),
    "Min": lambda node, x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Max": lambda node, x: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Concat": lambda node, x: np.concatenate(x, axis=attribute_of(node, "axis", 0)),
    "Gather": lambda node, x: np.take(x[0], x[1], axis=attribute_of(node, "axis", 0)),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": lambda node, x: np.expand_dims(x[0], _axes(node, x) or ()),
    "Reshape": _reshape,
    "Transpose": lambda node, x: np.transpose(x[0], attribute_of(node, "perm")),
    "Expand": lambda node, x: x[0] * np.ones(x[1].tolist(), x[0].dtype),
    "Tile": lambda node, x: np.tile(x[0], x[1].tolist()),
    "Range": lambda node, x: np.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype),
    "ConstantOfShape": _fill,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}
