"""ONNX files made by hand, and an independent evaluator of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

DATA = Path(__file__).parent / "data"
FLOAT = TensorProto.FLOAT


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """``node("Conv", "x w", "y", "net_1/conv_1/convolution")``; tensor names hold no spaces.

    Two spaces stand around an input that is left out.
    """
    return helper.make_node(
        op, inputs.split(" ") if inputs else [], outputs.split(), name, **attributes
    )


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    *,
    producer: str = "tf2onnx",
    opset: int = 15,
    dtype: int = FLOAT,
) -> Path:
    """A file of these nodes. Weights are arrays; floating-point ones are stored as float32."""
    constants = []
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    for name, value in weights.items():
        array = np.asarray(value)
        array = array.astype(kind) if array.dtype.kind == "f" else array.astype(np.int64)
        constants.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        list(nodes),
        producer,
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        constants,
    )
    model = helper.make_model(
        graph, producer_name=producer, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    onnx.save(model, path)
    return path


def evaluate(path: Path, feeds: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """Tensors of the file, by name, as onnx's own reference implementation computes them."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names)
    return list(ReferenceEvaluator(model).run(list(names), dict(feeds)))
