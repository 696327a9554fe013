"""What is known without running: constants, attributes, operators that do nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from converters.graph import Array, Graph, Node
from converters.passes.vocabulary import REDUCTIONS
from torchviz_cnn.errors import InputError

# What may be computed when the file is read.
_FOLDABLE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: a / b if a.dtype.kind == "f" else np.trunc(a / b).astype(a.dtype),
    "Mod": np.mod,
    "And": np.logical_and,
    "Equal": np.equal,
    "Less": np.less,
    "Where": np.where,
    "Max": np.maximum,
    "Min": np.minimum,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Identity": lambda a: a,
}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


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
        if node.op == "Upsample":  # what Resize was called before version 10
            node.op = "Resize"
        names = _AS_INPUTS.get(node.op, ())
        order = {"Pad": ("pads", "value", "axes")}
        for position, name in enumerate(order.get(node.op, names), start=1):
            value = graph.static(node, position)
            if value is not None and name not in node.attributes:
                node.attributes[name] = _setting(node, name, value)
        if node.op in _AS_INPUTS and all(
            not name or name in graph.constants for name in node.inputs[1:]
        ):
            node.inputs = node.inputs[:1]
        _check_settings(graph, node)


def _setting(node: Node, name: str, value: Array) -> Any:
    """A list of whole numbers; what a border is filled with may be any number, and is one.

    A single number stands for a list of one, as in onnxruntime: torch exports axes so.
    """
    kinds = "iufb" if name == "value" else "iu"
    if value.dtype.kind not in kinds or value.ndim > 1:
        raise _contradiction(node, f"its {name} are {value.dtype} of shape {value.shape}")
    return value.reshape(-1).tolist()


def _check_settings(graph: Graph, node: Node) -> None:
    a = node.attributes
    if node.op == "Slice":
        given = [a[name] for name in ("starts", "ends", "axes", "steps") if name in a]
        if len({len(each) for each in given}) > 1 or 0 in a.get("steps", ()):
            raise _contradiction(node, f"it cuts by {given}")
    if node.op == "Pad" and "pads" in a and "axes" not in a:
        shape = graph.shape(node.inputs[0])
        axes = len(a["pads"]) / 2 if shape is None else len(shape)
        if axes == 0 or len(a["pads"]) != 2 * axes or axes % 1:
            raise _contradiction(node, f"its border is {a['pads']} around the shape {shape}")


def _contradiction(node: Node, what: str) -> InputError:
    where = f" of the layer {'.'.join(node.owner.path)!r}" if node.owner else ""
    return InputError(
        f"the operator {node.op}{where} contradicts itself: {what}; the file is damaged, export it "
        "again"
    )


def drop_no_ops(graph: Graph) -> None:
    """Identity, dropout outside training, and casts between floating-point types."""
    kept: list[Node] = []
    instead: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [instead.get(name, name) for name in node.inputs]
        source = node.inputs[0] if node.inputs else ""
        idle = node.op in ("Identity", "Dropout") or (
            node.op == "Cast"
            and node.attributes.get("to") in _FLOATS
            and graph.types.get(source) in _FLOATS
        )
        if idle and source not in graph.constants and node.output not in graph.outputs:
            instead[node.output] = source
        else:
            kept.append(node)
    graph.nodes = kept


def one_precision(graph: Graph) -> None:
    """Where a file reckons in half and in single precision, the network does in single precision.

    Keras' ``mixed_float16`` has convolutions in half and batch norms in single precision; without
    the casts between (:func:`drop_no_ops`), their weights would not fit together.
    """
    reckoned = {name for node in graph.nodes if node.op != "Resize" for name in node.inputs}
    kinds = {name: graph.constants[name].dtype for name in reckoned & graph.constants.keys()}
    half = [name for name, kind in kinds.items() if kind == np.float16]
    # A single number takes the precision of what it is reckoned with.
    single = [n for n, kind in kinds.items() if kind == np.float32 and graph.constants[n].ndim]
    if not half or not single:
        return
    for name in half:
        graph.constants[name] = graph.constants[name].astype(np.float32)
    for node in graph.nodes:
        if node.op == "Cast" and node.attributes.get("to") == TensorProto.FLOAT16:
            node.attributes["to"] = TensorProto.FLOAT
    graph.notes.append(
        "the file reckons in half and in single precision, the network in single precision alone"
    )


def fold_constants(graph: Graph) -> None:
    """Compute what depends on constants alone, as long as it does not take too much memory."""
    kept: list[Node] = []
    for node in graph.nodes:
        folded = None
        if node.inputs and all(name in graph.constants for name in node.inputs if name):
            folded = _fold(graph, node)
        if folded is None:
            kept.append(node)
        else:
            graph.constants[node.output] = folded
    graph.nodes = kept


def _fold(graph: Graph, node: Node) -> Array | None:
    values = [graph.constants[name] for name in node.inputs if name]
    try:
        needed = _bytes_needed(node, values)
        if needed > graph.foldable:
            return None
        with np.errstate(all="ignore"):
            folded = _folded(node, values)
    except (ValueError, IndexError, TypeError) as error:  # NumPy's, for what does not fit
        shapes = " and ".join(f"{value.dtype} {value.shape}" for value in values)
        raise InputError(
            f"the operator {node.op} {node.name!r} does not fit its constants, {shapes}: {error}"
        ) from error
    if folded is not None:
        graph.foldable -= needed
    return folded


def _bytes_needed(node: Node, values: list[Array]) -> int:
    """What the value of a node takes beyond what it is computed from."""
    first = values[0]
    if node.op == "ConstantOfShape":
        return math.prod(max(int(n), 0) for n in first.reshape(-1)) * 8
    if node.op == "Cast":
        return first.size * 8
    if node.op == "Concat":
        return sum(value.nbytes for value in values)
    if node.op == "Reshape":
        return 0 if first.flags.c_contiguous else first.nbytes
    if node.op in _FOLDABLE and node.op != "Identity":
        elements = math.prod(np.broadcast_shapes(*(value.shape for value in values)))
        return elements * max(8, *(value.itemsize for value in values))
    return 0


def _folded(node: Node, values: list[Array]) -> Array | None:
    if node.op in ("Max", "Min") and len(values) != 2:
        return None
    if node.op == "Div" and values[1].dtype.kind != "f" and not values[1].all():
        return None
    if node.op == "Mod" and (not values[1].all() or node.attributes.get("fmod")):
        return None
    if node.op in _FOLDABLE:
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
        if (values[0] < 0).any():
            return None
        filling = np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)
        return np.full(values[0].tolist(), filling[0], filling.dtype)
    if node.op == "Slice" and {"starts", "ends"} <= node.attributes.keys():
        return _sliced(values[0], node.attributes)
    if node.op == "Cast":
        kind = helper.tensor_dtype_to_np_dtype(node.attributes["to"])
        return None if kind.kind == "O" else values[0].astype(kind)  # text
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
        cuts[axis] = slice(start, end, step)
    return value[tuple(cuts)]
