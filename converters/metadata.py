"""The layer table that ``export_keras`` writes into its files, so that nothing need be guessed.

It stands as JSON in the file's ``metadata_props`` under one key. A file that has it also spells all
of its names in one regular way: ``network_1/block_1/conv2d_1/Relu`` belongs to the first call of the
layer ``conv2d`` in the first call of the model ``block``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from torchviz_cnn.errors import InputError

KEY = "torchviz_cnn.layers"
VERSION = 1

IN_FILE = "in the file"
IDENTITY = "does nothing"
ONE_BRANCH = "does nothing in one branch"
INPUT = "input"
GONE = "not in the file"

_LONGEST = 8 * 2**20
_MOST_LAYERS = 20_000


@dataclass(frozen=True)
class ExportedLayer:
    """One Keras layer, as Keras describes it.

    Attributes:
        name: its name, after those of the models it is nested in: ``vggish.conv2d``.
        type: its class.
        activation: the name of its activation function, where it has one.
        output_shape: as Keras has it, channels last, batch axis first; ``None`` for any length.
        status: ``"in the file"``, ``"fused into X"``, ``"does nothing"`` (outside training),
            ``"does nothing in one branch"`` where others read what stands before it directly,
            ``"input"`` or ``"not in the file"``.
        after: for a layer that does nothing, the layer beside it whose output it hands on; ``None``
            where that is the input.
        depth: how many models it is nested in.
    """

    name: str
    type: str
    activation: str | None = None
    output_shape: tuple[int | None, ...] | None = None
    status: str = IN_FILE
    after: str | None = None
    depth: int = 0


@dataclass(frozen=True)
class LayerTable:
    """The layers of a file in the order in which they run.

    Attributes:
        exporter: what wrote the file, such as ``keras 3.15.1``.
        layers: one row each; those of a nested model follow it.
    """

    exporter: str
    layers: tuple[ExportedLayer, ...]

    @property
    def names(self) -> list[str]:
        """The layers of the network itself, without those of nested models."""
        return [layer.name for layer in self.layers if layer.depth == 0]

    @property
    def kinds(self) -> dict[str, str]:
        """Keras' class of every layer."""
        return {layer.name: layer.type for layer in self.layers}

    @property
    def idle(self) -> dict[str, str | None]:
        """Layers that do nothing outside training -> the layer whose output they hand on."""
        return {layer.name: layer.after for layer in self.layers if layer.status == IDENTITY}


def check_distinct(paths: Iterable[tuple[str, ...]]) -> None:
    """Refuse layers that could not be told apart by their names.

    Args:
        paths: each layer's name, after those of the models it is nested in.

    Example:
        >>> check_distinct([("a", "b"), ("a.c",)])
        >>> check_distinct([("a", "b"), ("a.b",)])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        torchviz_cnn.errors.InputError: two layers would be called 'a.b', the layer 'b' of 'a' ...
    """
    known: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(paths):
        other = known.setdefault(".".join(path), path)
        if other != path:
            raise InputError(
                f"two layers would be called {'.'.join(path)!r}, {_within(other)} and "
                f"{_within(path)}: give one of them another name in Keras, and export again"
            )


def _within(path: tuple[str, ...]) -> str:
    *around, name = path
    return f"the layer {name!r}" + (f" of {'.'.join(around)!r}" if around else "")


def write_table(model: onnx.ModelProto, table: LayerTable) -> None:
    """Put the table into a model, in the place of one that is there."""
    content = {"version": VERSION, "exporter": table.exporter}
    rows = [asdict(layer) for layer in table.layers]
    text = json.dumps({**content, "layers": rows}, ensure_ascii=False)
    others = [entry for entry in model.metadata_props if entry.key != KEY]
    kept = [(entry.key, entry.value) for entry in others]
    del model.metadata_props[:]
    for key, value in [*kept, (KEY, text)]:
        model.metadata_props.add(key=key, value=value)


def has_table(model: onnx.ModelProto) -> bool:
    """Whether :func:`converters.export_keras` wrote the file."""
    return any(entry.key == KEY for entry in model.metadata_props)


def read_table(model: onnx.ModelProto) -> LayerTable | None:
    """The layer table in a model; ``None`` where there is none.

    Raises:
        InputError: for a table that is damaged, or of a later version of this library.

    Example:
        >>> model = onnx.ModelProto()
        >>> write_table(model, LayerTable("keras 3.15.1", (ExportedLayer("conv2d", "Conv2D"),)))
        >>> read_table(model).kinds
        {'conv2d': 'Conv2D'}
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if not texts:
        return None
    content = _json(texts)
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"the layer table in the file is of version {version}, and only {VERSION} is known "
            "here; install a newer torchviz-cnn"
        )
    rows = content.get("layers")
    if version != VERSION or not isinstance(rows, list) or len(rows) > _MOST_LAYERS:
        raise _damaged()
    layers = tuple(_layer(row) for row in rows)
    if len({layer.name for layer in layers}) != len(layers):
        raise _damaged()
    return LayerTable(str(content.get("exporter", "")), layers)


def _damaged() -> InputError:
    return InputError(
        f"the layer table in the file (metadata {KEY!r}) is damaged; export the network again"
    )


def _json(texts: Sequence[str]) -> dict[str, Any]:
    if len(texts) > 1 or len(texts[0]) > _LONGEST:
        raise _damaged()
    try:
        content = json.loads(texts[0])
    except (ValueError, RecursionError):
        raise _damaged() from None
    if not isinstance(content, dict):
        raise _damaged()
    return content


def _layer(row: object) -> ExportedLayer:
    if not isinstance(row, dict):
        raise _damaged()
    name, kind = row.get("name"), row.get("type")
    activation, status, after = row.get("activation"), row.get("status", IN_FILE), row.get("after")
    if not all(isinstance(text, str) and text for text in (name, kind, status)):
        raise _damaged()
    if not all(text is None or isinstance(text, str) for text in (activation, after)):
        raise _damaged()
    depth = row.get("depth", 0)
    if type(depth) is not int or depth < 0:
        raise _damaged()
    shape = _shape(row.get("output_shape"))
    return ExportedLayer(str(name), str(kind), activation, shape, str(status), after, depth)


def _shape(value: object) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        side is None or (type(side) is int and side >= 0) for side in value
    ):
        raise _damaged()
    return tuple(value)
