"""A file as onnxruntime runs it, with all of its optimisations off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
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


class Session:
    """A model in onnxruntime, nothing fused and nothing reordered, fed as its inputs are declared.

    Args:
        model: what is run.
        batch: how many pictures it takes at once; ``None`` for any number.

    Raises:
        InputError: where onnxruntime is not installed, or cannot run the model.
    """

    def __init__(self, model: onnx.ModelProto, batch: int | None) -> None:
        onnxruntime = runtime()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what it cannot do is raised; what it deems odd is no news
        with refusals_told():
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        self.batch = batch
        self.inputs = [value.name for value in self._session.get_inputs()]
        self._types = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in model.graph.input
        }

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Tensors by name, for any number of pictures.

        A file of a fixed batch is run as often as it takes; its last run is filled up with the last
        picture.

        Raises:
            InputError: where onnxruntime refuses what it is given.
        """
        feeds = {name: self._declared(name, array) for name, array in feeds.items()}
        counts = {len(array) if array.ndim else 0 for array in feeds.values()}
        count, batch = max(counts, default=0), self.batch
        if batch is None or len(counts) != 1 or count in (0, batch):
            return self._once(names, feeds)
        runs = []
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch).clip(max=count - 1)
            found = self._once(names, {name: array[rows] for name, array in feeds.items()})
            runs.append([_first_of(array, count - start, batch) for array in found])
        return [_one_after_another(parts) for parts in zip(*runs, strict=True)]

    def _once(self, names: Sequence[str], feeds: dict[str, Array]) -> list[Array]:
        with refusals_told():
            found: list[Array] = self._session.run(list(names), feeds)
        return found

    def _declared(self, name: str, array: Array) -> Array:
        """In the declared precision, whole numbers as such; all else is onnxruntime's to judge."""
        wanted = self._types.get(name, array.dtype)
        whole = wanted.kind in "iu" and np.array_equal(array, array.astype(wanted))
        fits = array.dtype.kind == "f" and (wanted.kind == "f" or whole)
        return array.astype(wanted, copy=False) if fits else array


def _first_of(array: Array, pictures: int, batch: int) -> Array:
    """The rows of the first pictures of a batch; all of what has no rows for each."""
    if array.ndim == 0 or len(array) % batch:
        return array
    return array[: pictures * (len(array) // batch)]


def _one_after_another(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts) if parts[0].ndim else parts[0]


def batch_of(model: onnx.ModelProto) -> int | None:
    """How many pictures a file takes at once; ``None`` where it leaves that open.

    Inputs that fix different numbers have no batch in common: the file is then run as it is given.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in weights]
    fixed = {dims[0].dim_value for dims in shapes if len(dims) > 1 and dims[0].dim_value > 0}
    return fixed.pop() if len(fixed) == 1 else None


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
    session = Session(model, batch_of(model))
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))
