"""The size walk: shapes and small values, node by node, so that growth is stopped where it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, checker
from onnx.helper import make_opsetid, make_tensor_type_proto
from onnx.numpy_helper import from_array, to_array
from onnx.shape_inference import InferenceError, infer_node_outputs

from converters.trust.limits import Limits, check_extent, shape_of
from converters.trust.standard import opset, schema_of, unknown_operators
from converters.trust.values import CASTS, FOLDED, attribute_of, constant_of
from converters.trust.words import by, title_of, words_of
from torchviz_cnn.errors import InputError

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int | None, ...]

KNOWN_VALUES = 64  # a shape has no more numbers than a tensor has axes

# What these make depends on numbers that they are given, not on the size of what they are given.
SIZED_BY_NUMBERS = {
    "AffineGrid",
    "BlackmanWindow",
    "CenterCropPad",
    "Col2Im",
    "ConstantOfShape",
    "DFT",
    "Expand",
    "HammingWindow",
    "HannWindow",
    "MaxUnpool",
    "MelWeightMatrix",
    "OneHot",
    "Pad",
    "Range",
    "Resize",
    "STFT",
    "Tile",
    "Upsample",
}
# Of these, the inputs whose values are no sizes: pictures, fill values, regions of interest.
NOT_SIZES = {"Pad": (0, 2), "OneHot": (0, 2), "Resize": (0, 1), "Tile": (0,), "Expand": (0,)}


def check_sizes(model: ModelProto, limits: Limits) -> None:
    """Refuse a network that makes too large a tensor, or whose shapes cannot fit.

    Where a picture may have any size, shapes are worked out twice: once with the size left open,
    where a misfit is one for every picture, and once for a single picture of an ordinary size,
    where everything has a number that can be compared with the limit.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    entries = [entry for entry in model.graph.input if entry.name not in weights]
    shapes = [shape_of(_picture(entry.type, ordinary=False)) for entry in entries]
    is_open = any(shape is None or None in shape for shape in shapes)
    # Nothing can be said of what an unknown operator puts out; the importer refuses it anyway.
    complete = not unknown_operators(model)
    if is_open:
        Walk(model, limits, ordinary=False, refuse_misfits=True, refuse_open=False).run(entries)
    Walk(model, limits, ordinary=True, refuse_misfits=not is_open, refuse_open=complete).run(
        entries
    )


@dataclass
class Walk:
    """One pass over the nodes in running order: the shape of every tensor, the values of small ones.

    onnx infers shapes of whole models too, but with values carried along it can be made to build
    gigantic ones, and without them it does not see what ``Shape``, ``Mul`` and ``Expand`` do
    together.
    """

    model: ModelProto
    limits: Limits
    ordinary: bool
    refuse_misfits: bool
    refuse_open: bool
    types: dict[str, TypeProto] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = opset(self.model)

    def run(self, inputs: Sequence[onnx.ValueInfoProto]) -> None:
        for entry in inputs:
            self.types[entry.name] = _picture(entry.type, self.ordinary)
        for tensor in self.model.graph.initializer:
            self._store(tensor.name, tensor)
        for index, node in enumerate(self.model.graph.node):
            self._visit(node, title_of(node, index))

    def _store(self, name: str, tensor: TensorProto) -> None:
        self.types[name] = make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if tensor.data_type in CASTS and math.prod(tensor.dims) <= KNOWN_VALUES:
            self.values[name] = to_array(tensor)

    def _visit(self, node: NodeProto, title: str) -> None:
        if node.op_type == "Constant":
            tensor = constant_of(node)
            if tensor is not None:
                self._store(node.output[0], tensor)
            return
        self._check_numbers(node, title)
        self.types.update(self._infer(node, title))
        if node.op_type in SIZED_BY_NUMBERS and self.refuse_open:
            self._check_settled(node, title)
        self._remember(node)

    def _remember(self, node: NodeProto) -> None:
        """Keep the value of a node's output, where it is small and follows from known ones."""
        name = node.output[0] if node.output else ""
        shape = self._shape(name)
        if shape is None or None in shape or math.prod(dim or 0 for dim in shape) > KNOWN_VALUES:
            return
        kind = CASTS.get(self.types[name].tensor_type.elem_type)
        value = None if kind is None else self._fold(node)
        if value is not None and value.shape == shape:
            self.values[name] = value.astype(kind)

    def _shape(self, name: str) -> Shape | None:
        return shape_of(self.types[name]) if name in self.types else None

    def _check_numbers(self, node: NodeProto, title: str) -> None:
        """Sizes beyond the limit are refused before they are multiplied, and could overflow."""
        if node.op_type not in SIZED_BY_NUMBERS:
            return
        if node.op_type == "Range":
            self._check_range(node, title)
        for place, name in enumerate(node.input):
            if place in NOT_SIZES.get(node.op_type, ()) or name not in self.values:
                continue
            for number in self.values[name].ravel().tolist():
                if not abs(number) <= self.limits.elements:  # NaN is refused too
                    raise InputError(
                        f"{title} is given the size {number}; the limit is "
                        f"{self.limits.elements:,} elements (Limits.elements)"
                    )

    def _check_range(self, node: NodeProto, title: str) -> None:
        if not all(name in self.values and self.values[name].size == 1 for name in node.input):
            return
        start, stop, step = (self.values[name].item() for name in node.input)
        if step == 0:
            raise InputError(f"{title} counts in steps of 0; export it again")
        if not abs((stop - start) / step) <= self.limits.elements:
            raise InputError(
                f"{title} counts from {start} to {stop} in steps of {step}; the limit is "
                f"{self.limits.elements:,} elements (Limits.elements)"
            )

    def _infer(self, node: NodeProto, title: str) -> dict[str, TypeProto]:
        """What onnx says about the shapes of a node's outputs; nothing where it cannot know."""
        schema = schema_of(node.op_type, self.version)
        inputs = [name for name in node.input if name]
        if schema is None or any(name not in self.types for name in inputs):
            return {}
        try:
            found = infer_node_outputs(
                schema,
                node,
                {name: self.types[name] for name in inputs},
                {name: from_array(self.values[name]) for name in inputs if name in self.values},
                opset_imports=[make_opsetid("", self.version)],
                ir_version=self.model.ir_version,
            )
        except (InferenceError, checker.ValidationError) as problem:
            if self.refuse_misfits:
                raise InputError(
                    f"{title} does not fit its inputs: {words_of(problem)}"
                ) from problem
            return {}
        for shape in map(shape_of, found.values()):
            if shape is None:
                continue
            if any(dim is not None and dim < 0 for dim in shape):
                if self.refuse_misfits:
                    raise InputError(
                        f"{title} would make a tensor of the shape {by(shape)}; its window is "
                        "larger than its input, or its sizes are damaged"
                    )
                return {}
            check_extent(
                [1 if dim is None else dim for dim in shape],
                f"{title} makes a tensor that",
                self.limits,
            )
        return found

    def _check_settled(self, node: NodeProto, title: str) -> None:
        shape = self._shape(node.output[0])
        if shape is None or None in shape:
            raise InputError(
                f"{title} makes a tensor whose size is settled only when the network runs, so "
                "that nothing bounds it; export with fixed sizes, or a Keras model with torchviz-cnn "
                "export-keras (converters.export_keras)"
            )

    def _fold(self, node: NodeProto) -> Array | None:
        """The value of a small tensor, where it follows from shapes and constants."""
        if node.op_type in ("Shape", "Size"):
            shape = self._shape(node.input[0])
            if shape is None or None in shape:
                return None
            if node.op_type == "Size":
                return np.array(math.prod(dim or 0 for dim in shape), np.int64)
            first, last = attribute_of(node, "start", 0), attribute_of(node, "end", len(shape))
            return np.array(shape[first:last], np.int64)
        compute = FOLDED.get(node.op_type)
        if compute is None or any(name and name not in self.values for name in node.input):
            return None
        operands = [self.values[name] if name else None for name in node.input]
        try:
            with np.errstate(all="ignore"):
                return np.asarray(compute(node, operands))
        # What NumPy says where numbers make no sense; the value is then as good as unknown.
        except (ValueError, TypeError, LookupError, OverflowError):
            return None


def _picture(kind: TypeProto, ordinary: bool) -> TypeProto:
    """An input's type; if ordinary, with a batch of one and sides that every common network takes."""
    shape = shape_of(kind)
    if shape is None:
        return kind
    dims = list(shape)
    if ordinary:
        # A volume of 224 × 224 × 224 is no ordinary one.
        side = 224 if dims[1:].count(None) <= 2 else 64
        dims = [(side if place else 1) if dim is None else dim for place, dim in enumerate(dims)]
    return make_tensor_type_proto(kind.tensor_type.elem_type, dims)
