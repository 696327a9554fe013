"""A file as onnxruntime runs it, with all of its optimisations off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
from onnx import helper

from converters.graph import Array
from torchviz_cnn.errors import InputError


def runtime() -> Any:
    """Onnxruntime, where it is installed."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "comparing needs onnxruntime, which runs the file itself: "
            'python -m pip install "torchviz-cnn[compare]"'
        ) from None
    return onnxruntime


def start_session(model: onnx.ModelProto) -> Any:
    """Onnxruntime ready to run a model, nothing fused and nothing reordered.

    Raises:
        InputError: where it is not installed, or cannot run the model.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it cannot do is raised; what it deems odd is no news
    with refusals_told():
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


@contextmanager
def refusals_told() -> Iterator[None]:
    """What onnxruntime refuses, as a sentence."""
    state = runtime().capi.onnxruntime_pybind11_state
    refusals = tuple(
        getattr(state, name)
        for name in (
            *("Fail", "InvalidArgument", "InvalidGraph"),
            *("InvalidProtobuf", "NotImplemented", "RuntimeException"),
        )
    )
    try:
        yield
    except refusals as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"onnxruntime cannot run the file: {reason}") from None


def run_reference(
    model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Tensors of the file as onnxruntime computes them."""
    there = {value.name for value in model.graph.output}
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in there:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = start_session(model)
    with refusals_told():
        return dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
