"""Is the imported network the one that Keras has? Layer by layer, against Keras itself.

onnxruntime can only tell what is in the file; what the exporter got wrong, only Keras can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.file_tensors import FIRST, output_tensors, tensor_axes
from converters.importer import LayerRecord, load_onnx
from converters.keras_files import check_keras_file
from converters.keras_itself import keras_of, load_keras
from converters.sides import bounds_for, inputs_left, network_inputs, run_network
from converters.trust import Limits, read_model
from converters.trust.limits import USUAL
from converters.verdicts import Bounds, Comparison, LayerComparison, beside
from converters.wiring import ImportedNetwork
from torchviz_cnn.errors import InputError

Array = NDArray[Any]


def compare_with_keras(
    path: str | Path,
    model_or_path: Any,
    *,
    inputs: Tensor | None = None,
    network: ImportedNetwork | None = None,
    external_data: bool = False,
    limits: Limits = USUAL,
    seed: int = 0,
) -> Comparison:
    """Run Keras and the imported network on the same pictures, and compare every layer.

    Args:
        path: the ONNX file.
        model_or_path: the Keras model it was exported from, or its ``.keras`` or ``.h5`` file.
        inputs: as the network takes them, ``(N, C, H, W)`` or ``(N, H, W)``; two pictures of uniform
            noise from 0 to 1 by default.
        network: the imported network, where it is not to be imported anew.
        external_data, limits: as for :func:`~converters.load_onnx`.
        seed: of the noise.

    Returns:
        A row for each of the Keras model's own layers that put out one tensor, in Keras' order; a
        model used as a layer is one of them.

    Raises:
        NotInstalled: where Keras is missing or too old.
        InputError: where its file cannot be trusted, or the two networks do not belong together.

    Example:
        >>> result = compare_with_keras("cat_dog.onnx", "cat_dog.keras")  # doctest: +SKIP
        >>> result.passed, result.reference  # doctest: +SKIP
        (True, 'keras 3.15.1')
    """
    keras = keras_of(model_or_path, "comparing with Keras")
    model = model_or_path
    if isinstance(model_or_path, (str, os.PathLike)):
        check_keras_file(Path(model_or_path))
        keras, model = load_keras(keras, Path(model_or_path))
    if network is None:
        network = _with_keras_names(path, model_or_path, external_data=external_data, limits=limits)
    inputs_there = getattr(model, "inputs", None)
    if not inputs_there:
        raise InputError(
            f"the Keras model {model.name!r} does not say how its layers hang together (a subclass of "
            "Model, or not yet built): only a Sequential or functional model that knows its inputs "
            "can be compared layer by layer; compare the file with onnxruntime, without Keras, instead"
        )
    if len(network.source.inputs) != 1 or len(inputs_there) != 1:
        raise InputError("a network of one input can be compared with Keras, not one of several")
    (given,) = network_inputs(network, inputs, seed)
    wanted, whole = _keras_outputs(keras, model, given, turned=bool(network.source.turned))
    known = {record.name: record for record in network.source.layers}
    if not known.keys() & wanted.keys():
        raise InputError(
            f"no layer of {Path(path).name} ({', '.join([*known][:3])}, …) is called like one of "
            f"the Keras model's ({', '.join([*wanted][:3])}, …); is this the model it was exported "
            "from?"
        )
    bounds = bounds_for(network)
    seen, results = run_network(network, [given])
    if len(results) != len(whole):
        raise InputError(
            f"{Path(path).name} puts out {len(results)} tensors and the Keras model {len(whole)}; "
            "is this the model it was exported from?"
        )
    first: set[str] = set()
    if any(array.ndim in (3, 5) for array in wanted.values()):
        file = read_model(path, external_data=external_data, limits=limits)
        first = _channels_first_here(file, network)
    rows = []
    for name, theirs in wanted.items():
        record = known.get(name)
        if record is None or record.status != "in the file":
            status = "not in the file" if record is None else record.status
            kind = type(model.get_layer(name)).__name__
            rows.append(LayerComparison(name, kind, None, status))
            continue
        if name in first:
            theirs = np.moveaxis(theirs, -1, 1)
        rows.append(_compare_layer(network, record, seen[name].numpy(), theirs, bounds))
    return Comparison(
        file=Path(path).name,
        reference=f"{keras.__name__} {keras.__version__}",
        images=len(given),
        layers=tuple(rows),
        outputs=tuple(_compare_outputs(network, results, whole, bounds)),
        notes=tuple(network.source.notes),
        bounds=bounds,
    )


def _compare_layer(
    network: ImportedNetwork, record: LayerRecord, ours: Array, theirs: Array, bounds: Bounds
) -> LayerComparison:
    if record.permutation is not None:
        ours = ours[:, list(record.permutation)]
    sigmoid = record.module is not None and _ends_in_sigmoid(network, record.module)
    theirs = _as_many_axes(theirs, ours)
    return beside(record.name, record.type, ours, theirs, bounds, sigmoid=sigmoid)


def _compare_outputs(
    network: ImportedNetwork, results: Sequence[Tensor], whole: Sequence[Array], bounds: Bounds
) -> list[LayerComparison]:
    ends = ["output"] if len(results) == 1 else [f"output {n}" for n in network.source.outputs]
    last = {number: step.part for step in network.steps for number in step.outputs}
    rows = []
    for name, result, theirs, number in zip(ends, results, whole, network.results, strict=True):
        ours = result.numpy()
        sigmoid = number in last and _ends_in_sigmoid(network, last[number])
        theirs = _as_many_axes(theirs, ours)
        rows.append(beside(name, "output", ours, theirs, bounds, sigmoid=sigmoid))
    return rows


def _ends_in_sigmoid(network: ImportedNetwork, name: str) -> bool:
    """Whether the last part of a layer, or of a model used as one, is a sigmoid."""
    return isinstance([*network.get_submodule(name).modules()][-1], nn.Sigmoid)


def _with_keras_names(path: str | Path, model_or_path: Any, **reading: Any) -> ImportedNetwork:
    """The network; where the file has no names, with those of the model."""
    network = load_onnx(path, **reading)
    if network.source.names_in_file:
        return network
    return load_onnx(path, keras=model_or_path, **reading)


def _keras_outputs(
    keras: Any, model: Any, given: Tensor, *, turned: bool
) -> tuple[dict[str, Array], list[Array]]:
    """What Keras says each of its layers puts out, channels first, and the model's outputs."""
    made = _own_outputs(model)
    probe = keras.Model(model.inputs, [*made.values(), *model.outputs])
    pictures = given.numpy()
    if turned and pictures.ndim == 4:
        pictures = np.ascontiguousarray(np.moveaxis(pictures, 1, -1))
    if pictures.ndim == len(model.inputs[0].shape) - 1:  # gray, and the network has no axis for it
        pictures = pictures[..., None]
    arrays = [np.asarray(each) for each in probe.predict_on_batch(pictures)]
    usual = _usual_format(model)
    formats = [getattr(model.get_layer(name), "data_format", usual) for name in made]
    formats += [usual] * len(model.outputs)
    arrays = [
        _channels_first(array) if form != "channels_first" else array
        for array, form in zip(arrays, formats, strict=True)
    ]
    return dict(zip(made, arrays, strict=False)), arrays[len(made) :]


def _own_outputs(model: Any) -> dict[str, Any]:
    """What each layer puts out at its first call in this model, where that is one tensor.

    ``layer.output`` is of its first call anywhere: of a model used as a layer its own, before it
    was, and of a layer that two models share perhaps the other's.
    """
    graph = getattr(model, "_functional", None) or model  # a Sequential of Keras 3 has it inside
    by_depth = graph._nodes_by_depth
    running = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    place = {id(node): number for number, node in enumerate(running)}
    found = {}
    for layer in model.layers:
        calls = [node for node in layer._inbound_nodes if id(node) in place]
        node = min(calls, key=lambda each: place[id(each)], default=None)
        if node is None or type(layer).__name__ == "InputLayer":
            continue
        made = node.output_tensors if hasattr(node, "output_tensors") else node.outputs  # Keras 2
        made = made if isinstance(made, (list, tuple)) else [made]
        if len(made) == 1:
            found[layer.name] = made[0]
    return found


def _usual_format(model: Any) -> str:
    """Where maps have their channels whose layer does not say: first if all that say it do."""
    formats = {layer.data_format for layer in _spatial_layers(model)}
    return "channels_first" if formats == {"channels_first"} else "channels_last"


def _spatial_layers(model: Any) -> Iterator[Any]:
    """Layers that filter or pool maps, those of models inside too."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _spatial_layers(layer)
        elif hasattr(layer, "data_format") and type(layer).__name__.endswith("2D"):
            yield layer


def _channels_first(array: Array) -> Array:
    return np.moveaxis(array, -1, 1) if array.ndim == 4 else array


def _channels_first_here(model: onnx.ModelProto, network: ImportedNetwork) -> set[str]:
    """Layers of rows or volumes whose channels the network has first, as the file has or turned."""
    left = inputs_left(network)
    axes, named = tensor_axes(model, left), output_tensors(model, left)
    found = set()
    for record in network.source.layers:
        own = [place.axes for place in named.get(record.name, ())]
        first = own[0] if own else axes.get(record.tensor or "")
        if len(record.output_shape or ()) in (2, 4) and (record.turned or first == FIRST):
            found.add(record.name)
    return found


def _as_many_axes(theirs: Array, ours: Array) -> Array:
    """Keras' array; maps of one channel without that axis where the network has none."""
    return theirs[:, 0] if theirs.ndim == ours.ndim + 1 and theirs.shape[1] == 1 else theirs
