"""The squares of Winograd's filtering: they make up the map, and none is multiplied in vain."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from torchviz_cnn.methods.squares import Tiling, of_weights, tiling

SIZES = [(7, 7), (14, 14), (8, 12), (1, 1), (3, 5), (4, 2), (9, 6), (13, 3)]
POINTS = {1: 3, 2: 4, 3: 5, 4: 6}  # that so many rows of outputs need, with windows of 3


@pytest.mark.parametrize("size", SIZES)
def test_every_number_of_the_map_is_given_once(size):
    found = torch.zeros(size, dtype=torch.long)
    for kind in Tiling(size).kinds:
        down, across = (
            [run.start + n * run.side + k for n in range(run.count) for k in range(run.side)]
            for run in (kind.down, kind.across)
        )
        for row, column in product(down, across):
            found[row, column] += 1
    assert bool((found == 1).all())


@pytest.mark.parametrize("size", SIZES)
def test_squares_are_multiplied_at_the_points_they_need(size):
    """An axis of 14 rows is cut into 4, 4, 4 and 2, which need 6, 6, 6 and 4 points."""
    needed = [
        sum(POINTS[min(4, length - start)] for start in range(0, length, 4)) for length in size
    ]
    squares = Tiling(size)
    assert squares.products == needed[0] * needed[1]
    assert squares.squares == -(-size[0] // 4) * -(-size[1] // 4)
    counted = sum(p.squares.stop - p.squares.start for p in squares.points)
    of_kinds = sum(
        (k.squares.stop - k.squares.start) * (k.points.stop - k.points.start) for k in squares.kinds
    )
    assert counted == of_kinds == squares.products


def summed(numbers: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a map ``(H, W)``, number for number."""
    rows, columns = numbers.shape[0] - 2, numbers.shape[1] - 2
    found = numbers.new_zeros(rows, columns)
    for row, column in product(range(rows), range(columns)):
        found[row, column] = (numbers[row : row + 3, column : column + 3] * weight).sum()
    return found


@pytest.mark.parametrize("size", SIZES)
def test_each_kind_of_square_is_the_convolution(size):
    draw = torch.Generator().manual_seed(0)
    squares = Tiling(size)
    weight = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    weights = (of_weights(torch.float64) @ weight.flatten()).view(6, 6)
    for kind in squares.kinds:
        numbers = torch.randn(
            (kind.down.points, kind.across.points), generator=draw, dtype=torch.float64
        )
        to_points, to_sums = squares.matrices(kind, torch.float64)
        points = squares.points[kind.points]
        times = torch.stack([weights[point.down, point.across] for point in points])
        found = to_sums @ (to_points @ numbers.flatten() * times)
        wanted = summed(numbers, weight).flatten()
        assert float((found - wanted).abs().max()) < 1e-13
        assert all(p.squares.start <= kind.first < p.squares.stop for p in points)


def test_the_squares_of_a_size_are_found_once():
    assert tiling((7, 5)) is tiling((7, 5))
    assert tiling((7, 5)) is not tiling((5, 7))
