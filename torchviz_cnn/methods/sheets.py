"""Crops of kept maps, and changed windows pasted into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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

    def room(self, items: int, rows: int, columns: int) -> Tensor:
        """Maps ``(items, …, rows, columns)`` that nothing has been written to, channels last."""
        places = self.rows.new_empty(items, rows, columns, *self.channels)
        return places.movedim((1, 2), (-2, -1))

    def cut(
        self, wanted: tuple[Extent, Extent], before: Pair = (0, 0), into: Tensor | None = None
    ) -> Tensor:
        """Crops ``(positions · n, …, rows, columns)``, of every position all pictures.

        Args:
            wanted: which rows and columns.
            before: where the first row and column are that these are counted from.
            into: where they are put, some of the :meth:`room` for more of them.
        """
        height, width = self.size
        row, number = self.rows.stride()
        (down, rows), (across, columns) = ((len(each.starts), each.size) for each in wanted)
        if into is None:
            into = self.room(down * across * self.pictures, rows, columns)
        places = (down, across, self.pictures, rows, columns, self.rows.shape[1])
        crops = into.movedim((-2, -1), (1, 2)).view(places)
        # Crops that lie evenly spaced are a view of the map (of no negative step), copied in one go.
        for to_rows, top, step_down in _even(wanted[0].starts):
            for to_columns, left, step_across in _even(wanted[1].starts):
                some = crops[to_rows, to_columns]
                first = (top + before[0]) * width + left + before[1]
                strides = (step_down * width, step_across, height * width, width, 1)
                there = self.rows.as_strided(
                    some.shape,
                    (*(stride * row for stride in strides), number),
                    self.rows.storage_offset() + first * row,
                )
                some.copy_(there)
        return into

    def pasted(
        self,
        wanted: tuple[Extent, Extent],
        part: Tensor,
        area: Area,
        before: Pair = (0, 0),
        into: Tensor | None = None,
    ) -> Tensor:
        """Crops with the changed windows pasted into them.

        Only what may have changed is pasted: around it the part was computed once more, and may
        differ from the map in its last bits.

        Args:
            wanted: which crops, counted from the map's first row and column without padding.
            part: the map anew, in the windows of every position.
            area: where those windows lie.
            before: how many rows and columns of padding are in front of it.
            into: as for :meth:`cut`.
        """
        crops = self.cut(wanted, before, into)
        places = (*(len(each.starts) for each in wanted), self.pictures)
        found, taken = crops.unflatten(0, places), part.unflatten(0, places)
        rows, columns = (_pasting(each, strip) for each, strip in zip(wanted, area, strict=True))
        for down, to_rows, from_rows in rows:
            for across, to_columns, from_columns in columns:
                there = found[down, across][..., to_rows, to_columns]
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


# Where positions are found, where their rows are wanted, and where these are found.
Pasting = tuple[tuple[slice, slice, slice], ...]


@lru_cache(4096)  # a row of tiles asks alike for each of its columns
def _pasting(wanted: Extent, strip: Strip) -> Pasting:
    """Which rows of the changed windows of an axis go where, positions together that are alike."""
    alike: dict[tuple[int, int, int, int], list[int]] = {}
    for position, (start, have, (low, high)) in enumerate(
        zip(wanted.starts, strip.starts, strip.changed, strict=True)
    ):
        low, high = max(low, start), min(high, start + wanted.size)
        high = max(low, high)
        rows = (low - start, high - start, low - have, high - have)
        alike.setdefault(rows, []).append(position)
    return tuple(
        (slice(first, positions[which.stop - 1] + 1, step or 1), slice(a, b), slice(c, d))
        for (a, b, c, d), positions in alike.items()
        for which, first, step in _even(positions)
    )


def _even(numbers: Sequence[int]) -> list[tuple[slice, int, int]]:
    """Numbers as runs that rise evenly, or stay: which of them, the first, and the step.

    They do not always rise: what nothing of a window changes is computed from the first row on.
    """
    runs: list[tuple[slice, int, int]] = []
    first = 0
    while first < len(numbers):
        stop = first + 1
        step = max(0, numbers[stop] - numbers[first]) if stop < len(numbers) else 0
        while stop < len(numbers) and numbers[stop] - numbers[stop - 1] == step:
            stop += 1
        runs.append((slice(first, stop), numbers[first], step))
        first = stop
    return runs
