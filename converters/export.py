"""Keras models to ONNX files that keep every layer, its name and what Keras says about it.

Runs where Keras lives. What Keras' own exporter loses is kept here: layers' names are written down
rather than left to be guessed, padding and equal layers are not merged, batch norms only where that
is wanted, and the weights never pass through the exporter, so that memory is no question.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from converters.finish import (
    check_operators,
    drop_unused,
    make_names_regular,
    merge_batch_norms,
    merge_biases,
    put_in_weights,
)
from converters.keras_files import KERAS_SUFFIXES, check_keras_file
from converters.keras_itself import backend_of, keras_of, load_keras, need_exporter
from converters.keras_trace import Call, original, refusals_told, trace
from converters.metadata import (
    GONE,
    IDENTITY,
    IN_FILE,
    INPUT,
    ONE_BRANCH,
    ExportedLayer,
    LayerTable,
    check_distinct,
    write_table,
)
from converters.trust.standard import spell_out
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import CannotWrite, write_atomically
from torchviz_cnn.version import __version__

_MOST_BYTES = 2**31 - 1
_CANNOT_WRITE = 3  # how the process that exports ends when it could not write
Size = tuple[int | None, ...]


@dataclass(frozen=True)
class Export:
    """What :func:`export_keras` wrote.

    Attributes:
        path: the file.
        exporter: Keras' version.
        layers: one row for each layer, as in the file's metadata.
    """

    path: Path
    exporter: str
    layers: tuple[ExportedLayer, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Layers that do nothing outside training: augmentation, dropout, noise."""
        idle = (IDENTITY, ONE_BRANCH)
        return tuple(layer.name for layer in self.layers if layer.status in idle)

    @property
    def fused(self) -> tuple[str, ...]:
        """Layers whose own output is not in the file, because a batch norm was merged into them."""
        return tuple(layer.name for layer in self.layers if layer.status.startswith("fused into"))


def export_keras(
    model_or_path: Any,
    onnx_path: str | Path,
    *,
    every_layer: bool = False,
    input_shape: Sequence[int | None] | None = None,
) -> Export:
    """Write a Keras model as an ONNX file that :func:`~converters.load_onnx` need not guess about.

    The network is written as it computes outside training. Layers for training alone (random flips,
    dropout) leave no operator; their names are kept in the file's layer table. The weights are read
    one after another and written as they are, so that it takes about four times their size in
    memory.

    Args:
        model_or_path: a model of Keras 3 on any back end, or of ``tf_keras``; or a ``.keras`` or
            ``.h5`` file of one. Files are not trusted: one that would run code is refused.
        onnx_path: the file to write, whole or not at all.
        every_layer: keep every layer's own output in the file. Otherwise batch norms are merged
            into the convolution before them, which runs faster but hides that convolution's output.
        input_shape: of one picture, ``(height, width, channels)``, where the model does not say or
            leaves it open.

    Returns:
        What was written, layer by layer.

    Raises:
        InputError: where Keras or its TensorFlow is not installed or too old, the file cannot be
            read or trusted, or the model has a layer that ONNX cannot express.
        CannotWrite: an ``OSError``, when the disk is full or the folder cannot be written.

    Example:
        >>> export = export_keras("cat_dog.keras", "cat_dog.onnx")  # doctest: +SKIP
        >>> len(export.layers), export.left_out  # doctest: +SKIP
        (9, ('random_flip', 'dropout'))
    """
    target = Path(onnx_path)
    if target.is_dir():
        raise InputError(f"{str(target)!r} is a folder; name the ONNX file to write")
    if target.suffix.lower() in KERAS_SUFFIXES:  # it may be the very model to export
        raise InputError(
            f"{str(target)!r} is called like a Keras file; name the ONNX file to write, "
            f"{target.with_suffix('.onnx').name!r} for one"
        )
    from_file = isinstance(model_or_path, (str, os.PathLike))
    keras = keras_of(model_or_path, "exporting")
    if from_file:
        check_keras_file(Path(model_or_path))
    if backend_of(keras) != "tensorflow":
        return _by_tensorflow(model_or_path, target, every_layer, input_shape)
    need_exporter()
    model = model_or_path
    if from_file:
        keras, model = load_keras(keras, Path(model_or_path))
    proto, table = _convert(keras, model, every_layer, input_shape)
    size = proto.ByteSize()
    if size > _MOST_BYTES:
        raise InputError(
            f"the network takes {size / 2**30:.1f} GiB, and an ONNX file holds no more than 2"
        )
    write_atomically(target, lambda file: file.write(proto.SerializeToString()))
    return Export(target, table.exporter, table.layers)


# ---------------------------------------------------------------------------- what goes in


def _sizes(model: Any, input_shape: Sequence[int | None] | None) -> list[tuple[Size, str, str]]:
    """Shape, type and name of each input."""
    known = list(getattr(model, "inputs", None) or []) if model.built else []
    if not known and input_shape is None:
        raise InputError(
            f"the model {model.name!r} has never been called, so that the size of its pictures is "
            "not known: give input_shape=(height, width, channels)"
        )
    if input_shape is None:
        shapes = [(None, *tuple(each.shape)[1:]) for each in known]
    elif len(known) > 1:
        raise InputError(f"the model has {len(known)} inputs: input_shape is for those with one")
    else:
        shapes = [(None, *input_shape)]
    names = [each.name.split(":")[0].replace("/", "_") for each in known] or ["input"]
    kinds = [_kind(each) for each in known] or ["float32"]
    return list(zip(shapes, kinds, names, strict=True))


def _kind(tensor: Any) -> str:
    return getattr(tensor.dtype, "name", tensor.dtype)


def _call_once(model: Any, sizes: Sequence[tuple[Size, str, str]]) -> None:
    """Let the model make its variables: while TensorFlow records, it could not."""
    import numpy as np
    import tensorflow as tf

    given = [np.zeros([side or 1 for side in shape], kind) for shape, kind, _ in sizes]
    with refusals_told(tf, model):
        model(given[0] if len(given) == 1 else given, training=False)


# ---------------------------------------------------------------------------- conversion


def _convert(
    keras: Any, model: Any, every_layer: bool, input_shape: Sequence[int | None] | None
) -> tuple[onnx.ModelProto, LayerTable]:
    sizes = _sizes(model, input_shape)
    if not model.built or not getattr(model, "inputs", None):
        _call_once(model, sizes)
    traced = trace(keras, model, sizes)
    check_distinct(call.path for call in traced.calls)
    spell_out(traced.model)
    check_operators(traced)
    put_in_weights(traced)
    drop_unused(traced.model)
    calls = make_names_regular(traced)
    merge_biases(traced.model, calls)
    fused = {} if every_layer else merge_batch_norms(traced.model, calls)
    exporter = f"{keras.__name__} {keras.__version__}"
    layers = tuple(_rows(model, traced.calls, set(_present(traced.model, calls)), fused))
    table = LayerTable(exporter, layers)
    traced.model.producer_name = "torchviz_cnn"
    traced.model.producer_version = f"{__version__} from {exporter}"
    write_table(traced.model, table)
    return traced.model, table


def _present(model: onnx.ModelProto, calls: Mapping[str, Call]) -> Iterator[tuple[str, ...]]:
    """The layers that have an operator in the file, and the models around them."""
    for node in model.graph.node:
        path = calls[node.name].path if node.name in calls else ()
        for depth in range(1, len(path) + 1):
            yield path[:depth]


def _rows(
    model: Any,
    calls: Sequence[Call],
    present: set[tuple[str, ...]],
    fused: Mapping[Call, Call],
) -> Iterator[ExportedLayer]:
    """The table: inputs first, then layers as they ran, what never ran last."""
    ran = {call.path for call in calls}
    layers = {(layer.name,): layer for layer in model.layers}
    rest = [layer for path, layer in layers.items() if path not in ran]
    for layer in rest:
        if type(layer).__name__ == "InputLayer":
            yield _row((layer.name,), layer, INPUT)
    merged = {conv.path: norm.path for conv, norm in fused.items()}
    merged |= {norm: norm for norm in merged.values()}
    for call in _outermost_first(calls):
        status = IN_FILE if call.path in present or call.path in merged else GONE
        if call.path in merged and merged[call.path] != call.path:
            status = f"fused into {'.'.join(merged[call.path])}"
        if status == GONE and call.does_nothing:
            status = IDENTITY if _all_go_through(call, calls) else ONE_BRANCH
            yield _row(call.path, call.layer, status, call, _before(call, calls))
        else:
            yield _row(call.path, call.layer, status, call)
    for layer in rest:
        if type(layer).__name__ != "InputLayer":
            yield _row((layer.name,), layer, GONE)


def _outermost_first(calls: Iterable[Call]) -> list[Call]:
    """Each layer's first call, in running order, a model before the layers inside it."""
    first: dict[tuple[str, ...], Call] = {}
    for call in calls:
        first.setdefault(call.path, call)
    first.pop((), None)
    place = {path: index for index, path in enumerate(first)}
    begins = {
        path: min(place[other] for other in first if other[: len(path)] == path) for path in first
    }
    order = sorted(first, key=lambda path: [begins[path[: d + 1]] for d in range(len(path))])
    return [first[path] for path in order]


def _all_go_through(call: Call, calls: Sequence[Call]) -> bool:
    """Whether whoever reads what stands before this layer reads it through the layer."""
    tensor = original(call.inputs[0])
    beside = [other for other in calls if other.path and other.path[:-1] == call.path[:-1]]
    copies = {id(call.outputs[0])}
    before = {id(call)}
    for other in beside:
        if not other.does_nothing or original(other.inputs[0]) is not tensor or other is call:
            continue
        if id(other.inputs[0]) in copies:
            copies.add(id(other.outputs[0]))
        else:
            before.add(id(other))
    return all(
        id(given) in copies
        for other in beside
        if id(other) not in before
        for given in other.inputs
        if original(given) is tensor
    )


def _before(call: Call, calls: Sequence[Call]) -> str | None:
    """The layer beside this one whose output it hands on."""
    tensor = original(call.inputs[0])
    earlier = calls[: calls.index(call)]
    for other in reversed(earlier):
        beside = other.path and other.path[:-1] == call.path[:-1]
        if beside and any(original(made) is tensor for made in other.outputs):
            return ".".join(other.path)
    return None


def _row(
    path: tuple[str, ...],
    layer: Any,
    status: str,
    call: Call | None = None,
    after: str | None = None,
) -> ExportedLayer:
    activation = getattr(layer, "activation", None)
    return ExportedLayer(
        ".".join(path),
        type(layer).__name__,
        getattr(activation, "__name__", None),
        _output_shape(layer, call),
        status,
        after,
        len(path) - 1,
    )


def _output_shape(layer: Any, call: Call | None) -> Size | None:
    if call is not None:
        shapes = [made.shape for made in call.outputs]
        return tuple(shapes[0]) if shapes and shapes[0].rank is not None else None
    shape = getattr(layer, "batch_shape", None)
    return None if shape is None else tuple(shape)


# ---------------------------------------------------------------------------- other back ends


def _by_tensorflow(
    model_or_path: Any,
    target: Path,
    every_layer: bool,
    input_shape: Sequence[int | None] | None,
) -> Export:
    """Have another process do it: Keras' back end is chosen once for a whole process."""
    if isinstance(model_or_path, (str, os.PathLike)):
        return _in_other_process(Path(model_or_path), target, every_layer, input_shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model_or_path.save(path)
        check_keras_file(path)
        return _in_other_process(path, target, every_layer, input_shape)


def _in_other_process(
    path: Path, target: Path, every_layer: bool, input_shape: Sequence[int | None] | None
) -> Export:
    wish = {"every_layer": every_layer, "input_shape": input_shape and list(input_shape)}
    command = [sys.executable, "-m", "converters.export", str(path), str(target), json.dumps(wish)]
    places = os.pathsep.join([place for place in sys.path if place] or [str(Path.cwd())])
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": places}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:] or [""]
    if done.returncode == 2 and last[0]:
        raise InputError(last[0])
    if done.returncode == _CANNOT_WRITE:
        raise CannotWrite(*json.loads(last[0]))
    if done.returncode:
        raise RuntimeError(f"exporting by TensorFlow failed:\n{done.stderr[-2000:]}")
    content = json.loads(last[0])
    rows = [row | {"output_shape": _tuple(row["output_shape"])} for row in content["layers"]]
    return Export(target, content["exporter"], tuple(ExportedLayer(**row) for row in rows))


def _tuple(shape: list[int | None] | None) -> Size | None:
    return None if shape is None else tuple(shape)


def _main(arguments: Sequence[str]) -> int:
    """What the other process does: the table, or the sentence, is the last line it prints."""
    source, target, wish = arguments
    try:
        export = export_keras(source, target, **json.loads(wish))
    except InputError as error:
        print(str(error).replace("\n", " "))
        return 2
    except CannotWrite as error:
        print(json.dumps([error.errno, error.strerror, error.filename]))
        return _CANNOT_WRITE
    print(json.dumps({"exporter": export.exporter, "layers": [asdict(x) for x in export.layers]}))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
