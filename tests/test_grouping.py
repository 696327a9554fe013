"""Neighbouring positions, and batches of them, are grouped so that least is computed and none waits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchviz_cnn.methods.grouping import cheapest, even_groups, sides, tiles_along


def partitions(count: int, side: int) -> Iterator[list[int]]:
    """Every way to cut a row of so many into pieces of at most ``side``."""
    if not count:
        yield []
    for first in range(1, min(count, side) + 1):
        for rest in partitions(count - first, side):
            yield [first, *rest]


@given(
    needs=st.lists(st.lists(st.integers(1, 9), min_size=7, max_size=7), min_size=1, max_size=3),
    prices=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    side=st.integers(1, 7),
    each=st.integers(0, 40),
)
def test_positions_are_grouped_so_that_least_is_computed(
    needs: list[list[int]], prices: list[int], side: int, each: int
) -> None:
    """Against trying every way to group seven positions."""

    def price(sizes: list[int]) -> int:
        total, start = 0, 0
        for size in sizes:
            stop = start + size
            rows = sum(p * max(n[start:stop]) for p, n in zip(prices, needs, strict=False))
            total, start = total + each + size * rows, stop
        return total

    costs = [(float(p), n) for p, n in zip(prices, needs, strict=False)]
    groups = cheapest(costs, 7, side, each)
    assert [position for group in groups for position in group] == list(range(7))
    assert max(map(len, groups)) <= side
    assert price([len(group) for group in groups]) == min(map(price, partitions(7, side)))


@given(
    loads=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=9),
    most=st.integers(9, 30),
    workers=st.integers(1, 3),
)
def test_the_largest_group_is_as_little_work_as_so_many_groups_allow(
    loads: list[tuple[int, int]], most: int, workers: int
) -> None:
    """Against trying every way to cut the row of tiles."""
    tiles = {(0, i): (size, float(work)) for i, (size, work) in enumerate(loads)}

    def cut(pieces: list[int]) -> list[list[tuple[int, int]]]:
        edges = [sum(pieces[:k]) for k in range(len(pieces) + 1)]
        return [loads[a:b] for a, b in pairwise(edges)]

    ways = [cut(pieces) for pieces in partitions(len(loads), len(loads))]
    ways = [way for way in ways if all(sum(s for s, _ in group) <= most for group in way)]
    fewest = min(map(len, ways))
    count = next(n for n in range(fewest, fewest + workers) if n % workers == 0)
    least = min(max(sum(w for _, w in g) for g in way) for way in ways if len(way) <= count)
    groups = even_groups(tiles, most, workers)
    assert [tile for group in groups for tile in group] == list(tiles)
    assert len(groups) <= count
    assert max(sum(tiles[tile][0] for tile in group) for group in groups) <= most
    # Work comes in whole numbers here, far less finely than the room in groups is halved.
    assert max(sum(tiles[tile][1] for tile in group) for group in groups) == least


@pytest.mark.parametrize(("count", "side"), [(1, 1), (7, 7), (7, 3), (27, 5), (12, 6)])
def test_a_row_is_cut_evenly(count, side):
    tiles = tiles_along(count, side)
    assert [position for tile in tiles for position in tile] == list(range(count))
    sizes = {len(tile) for tile in tiles}
    assert max(sizes) <= side
    assert max(sizes) - min(sizes) <= 1
    assert len(tiles) == -(-count // side)


def test_batches_are_tried_from_large_to_small_and_none_is_larger_than_allowed():
    for positions, limit in (((27, 27), 50), ((3, 40), 9), ((1, 1), 5), ((9, 2), 1)):
        found = sides(positions, limit)
        sizes = [down * across for down, across in found]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) <= limit
        assert sizes[-1] == 1
        assert all(d <= positions[0] and a <= positions[1] for d, a in found)
