"""Calls of a Keras model's layers, as its description has them: in which order, and who reads what."""

from __future__ import annotations

from collections.abc import Iterator

from converters.expected import does_nothing
from converters.keras_models import KerasLayer, KerasModel, KerasTensor
from converters.kinds import IDLE
from converters.names import Owner

Names = tuple[str, ...]


def owner_of(path: Names, scope: Names, layer: KerasLayer, call: int) -> Owner:
    """Whose the operators of a call are, in a model that is called by this path and scope."""
    place = layer.name if call == 0 else f"{layer.name}@{call}"
    return Owner((*path, layer.name), (*scope, place))


def in_order(
    model: KerasLayer,
) -> Iterator[tuple[KerasLayer, int, tuple[KerasTensor, ...]]]:
    """Every call of a model's layers, in an order in which they can run."""
    done = set(model.inputs)
    waiting = [
        (layer, call, sources)
        for layer in model.layers
        if layer.type != "InputLayer"
        for call, sources in enumerate(layer.calls)
    ]
    ready = True
    while waiting and ready:
        ready = False
        rest = []
        for layer, call, sources in waiting:
            if all(KerasTensor(source.layer, source.call) in done for source in sources):
                yield layer, call, sources
                done.add(KerasTensor(layer.name, call))
                ready = True
            else:
                rest.append((layer, call, sources))
        waiting = rest


def with_weights(
    model: KerasLayer, keras: KerasModel, path: Names
) -> Iterator[tuple[KerasLayer, Names, int]]:
    """Every layer with weights, its name, and how often it is called."""
    inside = {layer.name: layer for layer in model.layers}
    own = [names for names in keras.weights if names[: len(path)] == path]
    for name in dict.fromkeys(names[len(path)] for names in own if len(names) > len(path)):
        layer = inside.get(name, KerasLayer(name, "", {}))
        if (*path, name) in keras.weights:
            yield layer, (*path, name), max(1, len(layer.calls))
        yield from with_weights(layer, keras, (*path, name))


def reader_of(layer: KerasLayer, call: int, model: KerasLayer) -> KerasLayer | None:
    """The one layer that reads what a call puts out."""
    made = KerasTensor(layer.name, call)
    readers = [other for other in model.layers for given in other.calls if made in given]
    return readers[0] if len(readers) == 1 and made not in model.outputs else None


def idle_layers(model: KerasLayer) -> dict[str, str | None]:
    """Layers of a model that do nothing outside training, where a description tells their place.

    Only those through which everybody reads what stands before them.

    Returns:
        Each one's name -> the layer whose output it hands on, ``None`` for the input.
    """
    found: dict[str, str | None] = {}
    for layer in model.layers:
        idle = layer.type in IDLE or does_nothing(layer)
        if idle and len(layer.calls) == 1 and len(layer.calls[0]) == 1:
            (source,) = layer.calls[0]
            if _is_only_reader(layer, model):
                found[layer.name] = None if source in model.inputs else source.layer
    return found


def _is_only_reader(layer: KerasLayer, model: KerasLayer) -> bool:
    """Whether whoever reads what stands before a layer of one call reads it through the layer."""
    given = layer.calls[0]
    others = [each for each in model.layers if each is not layer]
    return (
        len(layer.calls) == 1
        and not set(given).intersection(model.outputs)
        and not any(set(given).intersection(call) for each in others for call in each.calls)
    )
