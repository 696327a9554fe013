"""Crops of kept maps, and changed windows pasted into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.methods.local import Pair, Sliding
from torchviz_cnn.methods.plans import Area, Strip


@dataclass(frozen=True)
class Extent:
    """Rows of a map, as many for each position: the first ones, and how many."""

    starts: tuple[int, ...]
    size: int


def extents(area: Area) -> tuple[Extent, Extent]:
    """Where an area lies, whatever has changed in it."""
    down, across = area
    return Extent(down.starts, down.size), Extent(across.starts, across.size)


def _pastes(wanted: Extent, strip: Strip) -> list[tuple[slice, slice]]:
    """For each position the changed rows: where they are wanted, and where they are found."""
    found = []
    for start, have, (low, high) in zip(wanted.starts, strip.starts, strip.changed, strict=True):
        low, high = max(low, start), min(high, start + wanted.size)
        high = max(low, high)
        found.append((slice(low - start, high - start), slice(low - have, high - have)))
    return found


@dataclass(frozen=True)
class Sheet:
    """A map of the untouched pictures, laid out so that crops are cut in one go.

    Attributes:
        rows: ``(n · H · W, numbers of one place)``.
        pictures: how many.
        size: height and width.
        channels: the axes between the pictures' and those two.
    """

    rows: Tensor
    pictures: int
    size: Pair
    channels: tuple[int, ...]

    @classmethod
    def of(cls, maps: Tensor) -> Sheet:
        """Of maps ``(n, …, H, W)``."""
        n, *channels, height, width = maps.shape
        rows = maps.movedim((-2, -1), (1, 2)).reshape(n * height * width, math.prod(channels))
        return cls(rows, n, (height, width), tuple(channels))

    def cut(self, wanted: tuple[Extent, Extent], before: Pair = (0, 0)) -> Tensor:
        """Crops ``(positions · n, …, rows, columns)``, of every position all pictures.

        Args:
            wanted: which rows and columns.
            before: where the first row and column are that these are counted from.
        """
        places = [
            torch.tensor(each.starts)[:, None] + torch.arange(first, first + each.size)
            for each, first in zip(wanted, before, strict=True)
        ]
        height, width = self.size
        first = torch.arange(self.pictures)[:, None, None] * (height * width)
        down = places[0][:, None, None, :, None] * width
        index = (first + down + places[1][None, :, None, None, :]).flatten().to(self.rows.device)
        crops = self.rows.index_select(0, index)
        items = index.numel() // (wanted[0].size * wanted[1].size)
        shape = (items, wanted[0].size, wanted[1].size, *self.channels)
        return crops.reshape(shape).movedim((1, 2), (-2, -1))

    def pasted(
        self, wanted: tuple[Extent, Extent], part: Tensor, area: Area, before: Pair = (0, 0)
    ) -> Tensor:
        """Crops with the changed windows pasted into them.

        Only what may have changed is pasted: around it the part was computed once more, and may
        differ from the map in its last bits.

        Args:
            wanted: which crops, counted from the map's first row and column without padding.
            part: the map anew, in the windows of every position.
            area: where those windows lie.
            before: how many rows and columns of padding are in front of it.
        """
        crops = self.cut(wanted, before)
        places = (*(len(each.starts) for each in wanted), self.pictures)
        into, taken = crops.unflatten(0, places), part.unflatten(0, places)
        rows, columns = (
            _alike(_pastes(each, strip)) for each, strip in zip(wanted, area, strict=True)
        )
        for down, (to_rows, from_rows) in rows:
            for across, (to_columns, from_columns) in columns:
                there = into[down, across][..., to_rows, to_columns]
                there.copy_(taken[down, across][..., from_rows, from_columns])
        return crops


def padded(whole: Tensor, local: Sliding) -> Sheet:
    """A map with what the operation that slides over it takes for its outside."""
    (top, down), (left, right) = (
        (reach.before, reach.after(rows))
        for reach, rows in zip(local.reaches, whole.shape[-2:], strict=True)
    )
    around = [left, right, top, down]
    return Sheet.of(F.pad(whole, around, value=local.padding) if any(around) else whole)


def _alike(pastes: Sequence[tuple[slice, slice]]) -> list[tuple[slice, tuple[slice, slice]]]:
    """The positions of an axis that are pasted alike, as evenly spaced runs of them."""
    where: dict[tuple[int, int, int, int], list[int]] = {}
    for position, (to, taken) in enumerate(pastes):
        where.setdefault((to.start, to.stop, taken.start, taken.stop), []).append(position)
    found = []
    for (low, high, start, stop), positions in where.items():
        slices = (slice(low, high), slice(start, stop))
        found += [(some, slices) for some in _even_runs(positions)]
    return found


def _even_runs(numbers: Sequence[int]) -> list[slice]:
    """Rising numbers as slices."""
    runs, rest = [], list(numbers)
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 else 1
        length = next((i for i in range(1, len(rest)) if rest[i] - rest[i - 1] != step), len(rest))
        runs.append(slice(rest[0], rest[length - 1] + 1, step))
        rest = rest[length:]
    return runs
