"""Of which squares Winograd's filtering makes a map, and what each of them is multiplied by.

Squares of 4×4 numbers see 6×6, and are multiplied at 36 points, six for an axis. Where 4 does not
divide a map, its last squares give fewer rows, see fewer, and need only the first of the points: of
7×7 numbers 121 products are made for each channel, where four whole squares would take 144.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

T = TypeVar("T")

SIDE = 4  # of the squares of outputs
KERNEL = 3
SEEN = SIDE + KERNEL - 1  # of what they see
# Which points decides how much rounding grows. Of 512 channels the numbers are off by 2.3e-6 of their
# deviation, with ±2 or ±½ by 3.5e-6; summed up by 0.2e-6. Infinity comes before all of them, as every
# square needs it.
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)


@dataclass(frozen=True)
class Run:
    """Squares in a row that are alike.

    Attributes:
        start: the first row they give.
        count: how many they are.
        side: how many rows each gives.
    """

    start: int
    count: int
    side: int

    @property
    def points(self) -> int:
        """How many rows each sees, and at how many points it is multiplied."""
        return self.side + KERNEL - 1


@dataclass(frozen=True)
class Kind:
    """The squares of a map that are alike.

    Attributes:
        down, across: those of an axis.
        first: how many squares of a map come before them.
        points: where they are multiplied, of the tiling's.
    """

    down: Run
    across: Run
    first: int
    points: slice

    @property
    def squares(self) -> slice:
        """Which of a map's squares they are."""
        return slice(self.first, self.first + self.down.count * self.across.count)


@dataclass(frozen=True)
class Point:
    """A point of both axes, and which of a map's squares are multiplied there."""

    down: int
    across: int
    squares: slice


class Tiling:
    """The squares of a map of a height and width.

    Kinds of squares and points are walked row by row and back, as a plough goes: so those that go
    together are neighbours.

    Attributes:
        kinds: of squares, in the order in which these are counted.
        points: where they are multiplied, in the order of the products.
        squares: how many.
        products: how many numbers, for each channel of the input and of the output.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        down, across = (_runs(length) for length in size)
        order = [
            (i, j)
            for rows, columns in _ploughed(_steps(down), _steps(across))
            for i, j in product(rows, columns)
        ]
        self.kinds: list[Kind] = []
        self.squares = 0
        for one, other in _ploughed(down, across):
            points = _stretch([i < one.points and j < other.points for i, j in order])
            self.kinds.append(Kind(one, other, self.squares, points))
            self.squares = self.kinds[-1].squares.stop
        self.points = [
            Point(i, j, slice(found[0].squares.start, found[-1].squares.stop))
            for i, j in order
            if (found := [k for k in self.kinds if i < k.down.points and j < k.across.points])
        ]
        self.products = sum(p.squares.stop - p.squares.start for p in self.points)
        self._order = order

    def matrices(self, kind: Kind, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What transforms the numbers that squares see, and the products to what they give.

        Returns:
            ``(points, numbers seen)`` and ``(numbers given, points)``.
        """
        return _matrices(tuple(self._order[kind.points]), kind.down.side, kind.across.side, dtype)


@cache
def tiling(size: tuple[int, int]) -> Tiling:
    """The squares of a map of this height and width."""
    return Tiling(size)


@cache
def of_weights(dtype: torch.dtype) -> Tensor:
    """What transforms 3×3 weights, ``(36, 9)``: at each point of an axis with all of the other."""
    each = _axis(SIDE)[1]
    return torch.kron(each, each).to(dtype)


def _runs(length: int) -> list[Run]:
    whole, rest = divmod(length, SIDE)
    runs = Run(0, whole, SIDE), Run(whole * SIDE, 1, rest)
    return [run for run in runs if run.count and run.side]


def _steps(runs: Sequence[Run]) -> list[range]:
    """The points of an axis that all of its squares need, and those that not all of them do."""
    counts = sorted({run.points for run in runs})
    return [range(*edge) for edge in zip([0, *counts], counts, strict=False)]


def _ploughed(down: Sequence[T], across: Sequence[T]) -> list[tuple[T, T]]:
    """Pairs, the first row of them backwards."""
    return [(down[0], c) for c in reversed(across)] + [(d, c) for d in down[1:] for c in across]


def _stretch(which: Sequence[bool]) -> slice:
    """From the first to the last that is meant."""
    found = [k for k, each in enumerate(which) if each]
    return slice(found[0], found[-1] + 1)


@cache
def _matrices(
    points: tuple[tuple[int, int], ...], down: int, across: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    (seen_down, _, sums_down), (seen_across, _, sums_across) = _axis(down), _axis(across)
    rows = torch.tensor([i * len(seen_across) + j for i, j in points], device="cpu")
    seen = torch.kron(seen_down, seen_across)[rows]
    sums = torch.kron(sums_down, sums_across)[:, rows]
    return seen.to(dtype), sums.to(dtype)


def _axis(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """For an axis of squares, in double precision: what transforms numbers seen, weights, products.

    The weights are multiplied by powers of the points only, so that they are the same for squares that
    need fewer of these.
    """
    points = torch.tensor(_POINTS[: side + 1], dtype=torch.float64, device="cpu")
    count = len(points) + 1
    seen, weights, sums = (
        points.new_zeros(shape) for shape in ((count, count), (count, KERNEL), (side, count))
    )
    seen[0] = _polynomial(points)
    weights[0, -1] = sums[-1, 0] = 1
    for i, point in enumerate(points):
        others = torch.cat([points[:i], points[i + 1 :]])
        seen[i + 1, :-1] = _polynomial(others)
        weights[i + 1] = point ** torch.arange(KERNEL, device="cpu")
        sums[:, i + 1] = point ** torch.arange(side, device="cpu") / (point - others).prod()
    return seen, weights, sums


def _polynomial(roots: Tensor) -> Tensor:
    """The coefficients of the polynomial with these roots and the leading one 1, rising."""
    found = roots.new_ones(1)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found
