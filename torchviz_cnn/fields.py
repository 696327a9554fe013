"""Which part of a picture a unit of a network can see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from torchviz_cnn.errors import InputError, NotApplicable, is_whole
from torchviz_cnn.inputs import blank, checked_size
from torchviz_cnn.naming import (
    Layer,
    known,
    module_of,
    resolve,
    resolve_one,
    size_of_one,
    split_call,
)
from torchviz_cnn.places import Place
from torchviz_cnn.summary import layers as layer_table
from torchviz_cnn.tracing import Trace, remembered

if TYPE_CHECKING:
    from PIL import Image

    from torchviz_cnn.models import Model
    from torchviz_cnn.pictures import Picture

Box = tuple[int, int, int, int]
Cell = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of a layer see of a picture, in pixels of the network's input.

    Attributes:
        layer: the layer's name.
        size: height and width of every unit's field; infinite where each may see everything.
        stride: how far the fields of neighbouring units lie apart, down and across.
        centre: the middle of the first unit's field, ``(y, x)``; pixel i reaches from i to i + 1.
        cells: rows and columns of the layer's maps; ``(1, 1)`` for a dense layer.
        input_size: ``(H, W)`` of the picture.
    """

    layer: str
    size: tuple[float, float]
    stride: tuple[float, float]
    centre: tuple[float, float]
    cells: Cell
    input_size: tuple[int, int]
    _view: Callable[[Image.Image], Image.Image] | None = field(
        default=None, repr=False, compare=False
    )

    def box(self, cell: Cell | Literal["middle"] = "middle", *, clip: bool = True) -> Box:
        """The pixels one unit sees, ``(top, left, bottom, right)``; bottom and right not included.

        Args:
            cell: ``(row, column)`` of the unit.
            clip: leave out what lies beyond the picture, where there is only padding; of a unit
                that sees nothing else the nearest pixel is left.

        Raises:
            InputError: for a cell that is not there.
        """
        row, column = self.cell(cell)
        edges: list[tuple[int, int]] = []
        for index, size, stride, centre, length in zip(
            (row, column), self.size, self.stride, self.centre, self.input_size, strict=True
        ):
            if math.isinf(size):
                edges.append((0, length))
                continue
            middle = centre + stride * index
            low, high = math.floor(middle - size / 2 + 1e-6), math.ceil(middle + size / 2 - 1e-6)
            if clip:
                low = min(max(0, low), length - 1)
                high = max(min(length, high), low + 1)
            edges.append((low, high))
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]

    def cell(self, cell: Cell | Literal["middle"]) -> Cell:
        """``(row, column)`` of a unit, checked.

        Raises:
            InputError: for a cell that is not there.
        """
        if cell == "middle":
            return self.cells[0] // 2, self.cells[1] // 2
        if not _is_cell(cell):
            raise InputError(f"a cell is (row, column), or 'middle', not {cell!r}")
        if not all(0 <= n < count for n, count in zip(cell, self.cells, strict=True)):
            raise InputError(
                f"there is no cell {tuple(cell)}: the maps of {self.layer!r} are "
                f"{self.cells[0]}×{self.cells[1]}, from (0, 0)"
            )
        return int(cell[0]), int(cell[1])

    def to_dict(self) -> dict[str, object]:
        """As data; an infinite field is ``None``, which JSON has a word for."""
        return {
            "layer": self.layer,
            "size": [None if math.isinf(side) else side for side in self.size],
            "stride": list(self.stride),
            "centre": list(self.centre),
            "cells": list(self.cells),
            "input_size": list(self.input_size),
        }

    def on(self, size: tuple[int, int], cell: Cell | Literal["middle"] = "middle") -> Box:
        """:meth:`box` on the same picture at another size, ``(H, W)``."""
        top, left, bottom, right = self.box(cell)
        down, across = (n / m for n, m in zip(size, self.input_size, strict=True))
        return (
            math.floor(top * down + 1e-6),
            math.floor(left * across + 1e-6),
            math.ceil(bottom * down - 1e-6),
            math.ceil(right * across - 1e-6),
        )

    def seen(self, picture: Picture) -> Image.Image:
        """The part of a picture that the network sees, at the picture's own resolution."""
        from torchviz_cnn.pictures import to_image

        image = to_image(picture)
        return self._view(image) if self._view is not None else image

    def crop(self, picture: Picture, cell: Cell | Literal["middle"] = "middle") -> Image.Image:
        """What one unit sees of a picture.

        Args:
            picture: the original, any size, cut as the network sees it where a Model is known.
            cell: ``(row, column)`` of the unit.
        """
        view = self.seen(picture)
        top, left, bottom, right = self.on((view.height, view.width), cell)
        return view.crop((left, top, right, bottom))

    def draw(
        self, picture: Picture, cells: Sequence[Cell] | Cell | Literal["middle"] = "middle"
    ) -> Image.Image:
        """The fields of one or several units, drawn on a picture; the rest is darkened.

        Args:
            picture: as for :meth:`crop`.
            cells: ``(row, column)``, or several of them.
        """
        from torchviz_cnn import render

        one = isinstance(cells, str) or _is_cell(cells)
        wanted = [cells] if one else list(cells)
        view = render.viewable(self.seen(picture))
        places = [self.on((view.height, view.width), each) for each in wanted]  # type: ignore[arg-type]
        return render.boxes(view, places, dim=True)


def _is_cell(cell: Any) -> bool:
    """Whether it is two whole numbers."""
    if isinstance(cell, str) or not hasattr(cell, "__len__") or len(cell) != 2:
        return False
    return all(map(is_whole, cell))


def receptive_field(
    model: nn.Module | Model,
    layer: str | nn.Module,
    input_size: Sequence[int] | None = None,
) -> ReceptiveField:
    """Which pixels the units of a layer see: from kernels, strides, paddings and dilations.

    With k the kernel, d the dilation, s the stride of a layer, and j the distance of its inputs'
    cells on the picture, a field grows by d (k − 1) j and the distance by the factor s (Dumoulin,
    Visin 2016, "A guide to convolution arithmetic", section 2; Araujo, Norris, Sim 2019, "Computing
    Receptive Fields of Convolutional Neural Networks", equations 1 and 2). Where branches meet, the
    field covers those of all of them. It is where a unit may look; how much it looks at the edges of
    it is another question.

    Args:
        model: any network; it is run once on an empty picture.
        layer: a name, alias or module; of several runs the last, unless it says which.
        input_size: ``(C, H, W)``, or ``(H, W)``; a Model knows its own.

    Raises:
        InputError: for a layer that is not there or does not run, an input size that is not known,
            or where something before the layer reorders or resizes the map.

    Example:
        >>> import torchvision, torchviz_cnn as tvc
        >>> field = tvc.receptive_field(torchvision.models.vgg16(), "features.28", (3, 224, 224))
        >>> field.size, field.stride
        ((196, 196), (16, 16))
    """
    module = module_of(model)
    found = resolve_one(module, layer)
    size, trace = _watched(model, input_size)
    return _field(model, _key(module, layer, found), size, trace)


def _key(module: nn.Module, asked: str | nn.Module, found: Layer) -> str:
    """A layer's name, with the run that was asked for where one was."""
    says_which = isinstance(asked, str) and split_call(module, asked)[0] != asked
    return f"{found.name}@{found.call}" if says_which else found.name


def _watched(
    model: nn.Module | Model, input_size: Sequence[int] | None
) -> tuple[tuple[int, ...], Trace]:
    """The size of pictures, and what ran on an empty one."""
    module = module_of(model)
    size = input_size if input_size is not None else size_of_one(model)
    if size is None:
        raise InputError(
            "how large the pictures are is not known; give input_size=(channels, height, width)"
        )
    size = checked_size(size)
    return size, remembered(module, blank(module, size))


def _field(
    model: nn.Module | Model, name: str, size: tuple[int, ...], trace: Trace
) -> ReceptiveField:
    module = module_of(model)
    runs = trace.of(module, name)
    if not runs:
        raise InputError(f"the layer {name!r} does not run in eval mode")
    shape = runs[-1].shape or ()
    place = runs[-1].place
    # Others than (N, C, h, w) are without a channel axis, or have one of depth.
    maps = len(shape) == 4 or (len(shape) > 2 and place is not None)
    cells = (shape[-2], shape[-1]) if maps else (1, 1)
    if cells == (1, 1) and place is None:
        place = Place(extent=(math.inf, math.inf))
    if place is None:
        raise NotApplicable(
            f"what the units of {name!r} see is not known: something before it resizes or reorders "
            "the map"
        )
    height, width = place.extent
    return ReceptiveField(
        name,
        (_whole(height), _whole(width)),
        (_whole(place.step[0]), _whole(place.step[1])),
        place.centre,
        cells,
        (size[-2], size[-1]),
        getattr(known(model, "preprocess"), "view", None),
    )


def _whole(number: float) -> float:
    """As an integer where it is one."""
    near = number if math.isinf(number) else round(number)
    return near if math.isclose(number, near) else number


def receptive_fields(
    model: nn.Module | Model,
    layers: str | Sequence[str] | None = None,
    input_size: Sequence[int] | None = None,
) -> dict[str, ReceptiveField | None]:
    """The receptive fields of several layers, by name in the network's order.

    Args:
        model, input_size: as for :func:`receptive_field`.
        layers: names or globs; by default every layer that runs. Of several runs the last, unless
            they say which: ``relu@0``, or ``relu@*`` for every one.

    Returns:
        A field for each; ``None`` for layers that see a map which was resized or reordered.

    Raises:
        InputError: as :func:`receptive_field` otherwise.

    Example:
        >>> import torchvision, torchviz_cnn as tvc
        >>> fields = receptive_fields(torchvision.models.alexnet(), "features.*", (3, 224, 224))
        >>> {name: field.size[0] for name, field in fields.items()}["features.12"]
        195
    """
    size, trace = _watched(model, input_size)
    if layers is None:
        names = [row.name for row in layer_table(model, size) if row.calls]
    else:
        names = _names(module_of(model), layers, trace)
    fields: dict[str, ReceptiveField | None] = {}
    for name in names:
        try:
            fields[name] = _field(model, name, size, trace)
        except NotApplicable:
            fields[name] = None
    return fields


def _names(module: nn.Module, layers: str | Sequence[str], trace: Trace) -> list[str]:
    """The names of layers asked for; of every run, one each."""
    names: list[str] = []
    for asked in [layers] if isinstance(layers, str) else layers:
        for found in resolve(module, asked):
            if found.call is None and (runs := len(trace.of(module, found.name))) > 1:
                names += [f"{found.name}@{run}" for run in range(runs)]
            elif found.call is None:
                names.append(found.name)
            else:
                names.append(_key(module, asked, found))
    return names


def fields_table(fields: Mapping[str, ReceptiveField | None]) -> str:
    """A line a layer: rows × columns of its maps, its units' field, and how far apart they are."""
    rows = [("layer", "units", "field", "every", "first unit's middle")]
    for name, seen in fields.items():
        if seen is None:
            rows.append((name, "", "not known", "", ""))
        elif all(math.isinf(side) for side in seen.size):
            rows.append((name, _by(seen.cells), "everything", "", ""))
        else:
            rows.append(
                (name, _by(seen.cells), _by(seen.size), _by(seen.stride), _by(seen.centre, ", "))
            )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _by(pair: tuple[float, float], between: str = "×") -> str:
    return between.join("∞" if math.isinf(side) else f"{side:g}" for side in pair)
