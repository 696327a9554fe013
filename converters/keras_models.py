"""What a Keras model says of its layers: names, classes, order, connections, weights. No Keras.

A ``.keras`` or ``.h5`` file holds a description in JSON and the weights in HDF5; both are read here
as data, so that nothing in them runs. A model in memory says the same of itself.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.keras_files import (
    DAMAGED_ARCHIVE,
    DAMAGED_CONTAINER,
    check_container,
    check_sizes,
    h5py_module,
    parse_description,
)
from torchviz_cnn.errors import InputError

Array = NDArray[Any]
Names = tuple[str, ...]

_MOST_LAYERS = 5_000
_DEEPEST = 12
_MODELS = frozenset(["Functional", "Model", "Sequential"])


@dataclass(frozen=True)
class KerasTensor:
    """What one call of a layer puts out."""

    layer: str
    call: int = 0
    index: int = 0


@dataclass(frozen=True)
class KerasLayer:
    """One layer as its model describes it.

    Attributes:
        name: without the models it is nested in.
        type: its class.
        config: its settings.
        calls: for each of its calls the tensors it is given.
        layers: of a nested model its layers, else none.
        inputs, outputs: of a nested model the tensors it begins and ends with.
    """

    name: str
    type: str
    config: Mapping[str, Any]
    calls: tuple[tuple[KerasTensor, ...], ...] = ()
    layers: tuple[KerasLayer, ...] = ()
    inputs: tuple[KerasTensor, ...] = ()
    outputs: tuple[KerasTensor, ...] = ()


@dataclass(frozen=True)
class Weight:
    """A weight that is read when its shape is of interest, and not before."""

    shape: tuple[int, ...]
    read: Callable[[], Array]


Weights = Mapping[Names, Sequence[Weight]]


@dataclass(frozen=True)
class KerasModel:
    """A model's description and weights.

    Attributes:
        source: what it was read from, in words.
        model: its layers, as those of one layer around all; where the file has weights alone, they
            have no class and no calls.
        weights: by the layer's name, after those of the models it is nested in; in Keras' order.
        described: whether there is more than names and weights.
    """

    source: str
    model: KerasLayer
    weights: Weights
    described: bool = True

    @property
    def names(self) -> list[str]:
        """The layers of the model itself, in order; an unnamed input is none."""
        return [layer.name for layer in self.model.layers if layer.name]

    @property
    def kinds(self) -> dict[str, str]:
        """Keras' class of every layer, by its dotted name; of weights alone, none."""
        return dict(_kinds(self.model, ())) if self.described else {}


def _kinds(model: KerasLayer, path: Names) -> Iterator[tuple[str, str]]:
    for layer in model.layers:
        own = (*path, layer.name)
        yield ".".join(own), layer.type
        yield from _kinds(layer, own)


def read_keras(path_or_model: Any) -> KerasModel:
    """A Keras file, or a model in memory, as data.

    Args:
        path_or_model: a ``.keras`` file, an ``.h5`` file of a model or of its weights alone, or a
            Keras model.

    Raises:
        InputError: in one sentence, what is wrong with the file; or that h5py is not installed.
    """
    if not isinstance(path_or_model, (str, Path)):
        return _in_memory(path_or_model)
    path = Path(path_or_model)
    if not path.is_file():
        raise InputError(f"cannot read {str(path)!r}: there is no such file")
    try:
        return _from_archive(path) if path.suffix.lower() == ".keras" else _from_h5(path)
    except (InputError, KeyError, *DAMAGED_ARCHIVE) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from None


def _in_memory(model: Any) -> KerasModel:
    if not all(hasattr(model, name) for name in ("to_json", "layers", "get_weights")):
        raise InputError(
            f"keras= takes a Keras model or the path of one, not {type(model).__name__}"
        )
    weights: dict[Names, list[Weight]] = {}

    def add(layers: Sequence[Any], path: Names) -> None:
        for layer in layers:
            own = (*path, layer.name)
            if inner := getattr(layer, "layers", None):
                add(inner, own)
            else:
                weights[own] = [_stored(array) for array in layer.get_weights()]

    add(model.layers, ())
    described = _described(parse_description(model.to_json()))
    return KerasModel(f"the model {model.name!r}", described, weights)


def _stored(array: Array) -> Weight:
    return Weight(array.shape, lambda: array)


# ---------------------------------------------------------------------------- files


def _from_archive(path: Path) -> KerasModel:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        missing = {"config.json", "model.weights.h5"} - members.keys()
        if missing:
            raise InputError(f"it lacks {sorted(missing)[0]}, which every .keras file has")
        check_sizes(members.values())
        model = _described(parse_description(archive.read("config.json")))
        content = archive.read("model.weights.h5")
    check_container(io.BytesIO(content))
    weights = _by_class(lambda: io.BytesIO(content), model)
    return KerasModel(path.name, model, weights)


def _from_h5(path: Path) -> KerasModel:
    h5py = h5py_module()
    with path.open("rb") as file:
        description = check_container(file)
    with h5py.File(path, "r") as container:
        top = _group(container.get("model_weights", container))
        legacy = "layer_names" in top.attrs
        listed = _texts(top.attrs["layer_names"]) if legacy else []
    if description is not None:
        model = _described(parse_description(description))
    else:
        model = _undescribed(listed)
    if legacy:
        return KerasModel(path.name, model, _by_name(path, model), description is not None)
    weights = _by_class(lambda: path, None if description is None else model)
    if description is None:
        model = _undescribed(list(dict.fromkeys(names[0] for names in weights)))
    return KerasModel(path.name, model, weights, description is not None)


def _undescribed(names: Sequence[str]) -> KerasLayer:
    layers = tuple(KerasLayer(name, "", {}) for name in names)
    return KerasLayer("", "", {}, layers=layers)


def _texts(value: Any) -> list[str]:
    """The names in an attribute."""
    given = list(value) if isinstance(value, (np.ndarray, list, tuple)) else [value]
    names = [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in given]
    if not all(isinstance(name, str) and name for name in names):
        raise InputError("its list of layers or weights is no list of names")
    return names


def _group(item: Any) -> Any:
    """A folder of the container, which a damaged one may have something else in the place of."""
    if not isinstance(item, h5py_module().Group):
        what = "nothing" if item is None else "numbers"
        raise InputError(f"it has {what} where the weights of layers should be")
    return item


def _dataset(open_file: Callable[[], Any], item: Any, layer: str) -> Weight:
    """A weight's numbers, read when they are asked for."""
    numbers = isinstance(item, h5py_module().Dataset) and item.shape is not None
    if not numbers or item.dtype.kind not in "biuf":
        raise InputError(f"the layer {layer!r} has something other than numbers for a weight")
    place = item.name

    def read() -> Array:
        try:
            with h5py_module().File(open_file(), "r") as container:
                return np.asarray(container[place][()])
        except DAMAGED_CONTAINER as error:
            raise InputError(f"a weight of the Keras layer {layer!r} is damaged: {error}") from None

    return Weight(tuple(item.shape), read)


def _by_name(path: Path, model: KerasLayer) -> dict[Names, list[Weight]]:
    """Of an ``.h5`` file as Keras 2 has it: a group for each layer, called after it.

    Those of a nested model lie together in its group, under ``base/conv2d/kernel``, or without the
    model's own name.
    """
    h5py = h5py_module()
    plain = {layer.name for layer in model.layers if layer.type and not layer.layers}
    found: dict[Names, list[Weight]] = {}
    with h5py.File(path, "r") as container:
        top = _group(container.get("model_weights", container))
        for layer in _texts(top.attrs["layer_names"]):
            group = _group(top.get(layer))
            for name in _texts(group.attrs.get("weight_names", ())):
                item = group.get(name)
                parts = name.split("/")[:-1]
                if layer in parts:
                    parts = parts[parts.index(layer) + 1 :]
                inner = () if layer in plain else tuple(parts)
                found.setdefault((layer, *inner), []).append(_dataset(lambda: path, item, layer))
    return found


def _by_class(open_file: Callable[[], Any], model: KerasLayer | None) -> dict[Names, list[Weight]]:
    """Of a file as Keras 3 has it: groups called after the layers' classes, in order.

    Later versions of Keras write the layer's own name beside it; earlier ones do not, and there the
    description tells: the second ``Conv2D`` is ``conv2d_1``.
    """
    h5py = h5py_module()
    found: dict[Names, list[Weight]] = {}
    with h5py.File(open_file(), "r") as container:
        waiting: list[tuple[Any, Names, KerasLayer | None]] = [(container, (), model)]
        while waiting:
            group, path, described = waiting.pop()
            inner = group.get("layers", group.get("_layer_checkpoint_dependencies"))
            names = {} if described is None else _groups(described)
            for key in [] if inner is None else _group(inner):
                item = _group(inner[key])
                own = item.get("vars")
                written = None if own is None else _group(own).attrs.get("name")
                layer = names.get(key)
                name = layer.name if layer is not None else written
                if not isinstance(name, str):
                    raise InputError(
                        "it holds weights without their layers' names; give the file of the whole "
                        "model (.keras)"
                    )
                if own is not None and len(own):
                    if not all(re.fullmatch("[0-9]{1,9}", number) for number in own):
                        raise InputError(f"the weights of the layer {name!r} are not numbered")
                    numbers = sorted(own, key=int)
                    found[(*path, name)] = [_dataset(open_file, own[n], name) for n in numbers]
                waiting.append((item, (*path, name), layer))
    return found


def _groups(model: KerasLayer) -> dict[str, KerasLayer]:
    """What Keras 3 calls the groups of a model's layers in its files."""
    taken: Counter[str] = Counter()
    found = {}
    for layer in model.layers:
        stem = _snake(layer.type)
        found[f"{stem}_{taken[stem]}" if taken[stem] else stem] = layer
        taken[stem] += 1
    return found


def _snake(name: str) -> str:
    """As Keras writes a class' name in small letters.

    >>> _snake("Conv2D"), _snake("BatchNormalization"), _snake("ReLU")
    ('conv2d', 'batch_normalization', 're_lu')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


# ---------------------------------------------------------------------------- descriptions


def _described(description: Mapping[str, Any]) -> KerasLayer:
    model = _layer(description, 0)
    if not model.layers:
        raise InputError("its description of the network has no layers")
    return model


def _damaged() -> InputError:
    return InputError("its description of the network is damaged")


def _layer(entry: Any, depth: int) -> KerasLayer:
    if not isinstance(entry, dict) or depth > _DEEPEST:
        raise _damaged()
    kind, config = entry.get("class_name"), entry.get("config")
    if isinstance(config, list):  # a Sequential of the first versions
        config = {"name": "sequential", "layers": config}
    if not isinstance(kind, str) or not isinstance(config, dict):
        raise _damaged()
    name = entry.get("name") or config.get("name")
    if not isinstance(name, str) or not name:
        raise _damaged()
    calls = _calls(entry.get("inbound_nodes"))
    if kind not in _MODELS and not ("layers" in config and "input_layers" in config):
        return KerasLayer(name, kind, config, calls)
    entries = config.get("layers")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_LAYERS:
        raise _damaged()
    layers = tuple(_layer(each, depth + 1) for each in entries)
    if kind == "Sequential" or "input_layers" not in config:
        return KerasLayer(name, "Sequential", config, calls, *_in_a_row(layers))
    begin, end = (_tensors(config.get(key)) for key in ("input_layers", "output_layers"))
    return KerasLayer(name, kind, config, calls, *_counted_from_zero(layers, begin, end))


def _counted_from_zero(
    layers: Sequence[KerasLayer], begin: tuple[KerasTensor, ...], end: tuple[KerasTensor, ...]
) -> tuple[tuple[KerasLayer, ...], tuple[KerasTensor, ...], tuple[KerasTensor, ...]]:
    """Keras 2 counts the making of a model inside as its call 0, which is none of those listed.

    Every call that is listed is read by someone, so that one number too many tells.
    """
    read = {(t.layer, t.call) for layer in layers for call in layer.calls for t in call}
    read |= {(t.layer, t.call) for t in end}
    late = {each.name for each in layers if each.layers and (each.name, len(each.calls)) in read}

    def moved(tensors: Sequence[KerasTensor]) -> tuple[KerasTensor, ...]:
        return tuple(replace(t, call=max(t.call - 1, 0)) if t.layer in late else t for t in tensors)

    counted = (replace(each, calls=tuple(map(moved, each.calls))) for each in layers)
    return tuple(counted), begin, moved(end)


def _in_a_row(
    layers: Sequence[KerasLayer],
) -> tuple[tuple[KerasLayer, ...], tuple[KerasTensor, ...], tuple[KerasTensor, ...]]:
    """The layers of a Sequential, each reading the one before."""
    if layers[0].type != "InputLayer":
        layers = [KerasLayer("", "InputLayer", {}), *layers]
    first, *rest = layers
    chained = [first]
    for layer in rest:
        given = (KerasTensor(chained[-1].name),)
        chained.append(
            KerasLayer(
                layer.name, layer.type, layer.config, (given,), layer.layers, layer.inputs,
                layer.outputs,
            )
        )  # fmt: skip
    return tuple(chained), (KerasTensor(first.name),), (KerasTensor(chained[-1].name),)


def _calls(nodes: Any) -> tuple[tuple[KerasTensor, ...], ...]:
    """What each call of a layer is given: Keras 3 and Keras 2 write it differently."""
    if nodes is None:
        return ()
    if not isinstance(nodes, list):
        raise _damaged()
    return tuple(_tensors(node) for node in nodes)


def _tensors(value: Any) -> tuple[KerasTensor, ...]:
    """Every tensor named in a part of a description, in order."""
    found: list[KerasTensor] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            history = (each.get("config") or {}) if "class_name" in each else None
            if each.get("class_name") == "__keras_tensor__" and isinstance(history, dict):
                waiting.append(history.get("keras_history"))
            else:
                waiting += reversed(list(each.values()))
        elif isinstance(each, list):
            if _names_a_tensor(each):
                found.append(KerasTensor(*each[:3]))
                waiting += [rest for rest in each[3:] if isinstance(rest, dict)]
            else:
                waiting += reversed(each)
    return tuple(found)


def _names_a_tensor(value: list[Any]) -> bool:
    return (
        len(value) in (3, 4)
        and isinstance(value[0], str)
        and type(value[1]) is int
        and type(value[2]) is int
        and value[1] >= 0
        and value[2] >= 0
    )
