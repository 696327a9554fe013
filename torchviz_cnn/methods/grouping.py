"""Which positions of a hidden window are computed together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torchviz_cnn.methods.local import Pair

_SIDE = 6  # positions along the side of a batch: more of them have less in common
_HALVINGS = 12  # of the room in groups, until they are of about one size

Costs = tuple[float, list[int]]  # of a map: one row, and the rows that each position needs
Load = tuple[int, float]  # of a tile: how many positions it has, and how much work it is


def tiles_along(count: int, side: int) -> list[tuple[int, ...]]:
    """Neighbouring positions in groups of about one size, none larger than ``side``."""
    groups = math.ceil(count / side)
    edges = [count * g // groups for g in range(groups + 1)]
    return [tuple(range(*edge)) for edge in pairwise(edges)]


def sides(positions: Pair, limit: int) -> list[Pair]:
    """How many rows and columns of positions may go together, the largest batches first."""
    found: dict[Pair, None] = {}
    for most in range(min(limit, _SIDE**2), 0, -1):
        down = min(positions[0], _SIDE, math.isqrt(most))
        found[down, min(positions[1], _SIDE, most // down)] = None
    return list(found)


def cheapest(costs: Sequence[Costs], count: int, side: int, each: float) -> list[tuple[int, ...]]:
    """Neighbouring positions in the groups that cost least.

    A group computes as many rows for each of its positions as the one that needs most; so it pays
    to keep those at the border, whose windows are cut off, to themselves, where that saves more
    than another group costs.

    Args:
        costs: a row's, and the rows that each position needs, of every map.
        count: of positions.
        side: how many may be in a group.
        each: what a group costs besides.
    """
    least, cut = [0.0] + [math.inf] * count, [0] * (count + 1)
    for start in range(count):
        most = [0] * len(costs)
        for stop in range(start + 1, min(start + side, count) + 1):
            most = [max(m, needs[stop - 1]) for m, (_, needs) in zip(most, costs, strict=True)]
            rows = sum(cost * m for m, (cost, _) in zip(most, costs, strict=True))
            total = least[start] + each + (stop - start) * rows
            if total < least[stop]:
                least[stop], cut[stop] = total, start
    groups: list[tuple[int, ...]] = []
    while count:
        groups.insert(0, tuple(range(cut[count], count)))
        count = cut[count]
    return groups


def even_groups(loads: dict[Pair, Load], most: int, workers: int) -> list[list[Pair]]:
    """Tiles in groups of about as much work, as many for each worker: none waits long for the last.

    Args:
        loads: of the tiles, in the order in which they go.
        most: positions in a group; a tile has no more.
        workers: how many groups are at work at a time.

    Returns:
        the groups of which the largest is least work, to within a four-thousandth of all of it, of as
        few as there can be, and no more than make the number one that ``workers`` divides.
    """
    least, enough = 0.0, sum(work for _, work in loads.values())
    groups = _filled(loads, (most, enough))
    count = math.ceil(len(groups) / workers) * workers
    for _ in range(_HALVINGS):
        room = (least + enough) / 2
        found = _filled(loads, (most, room))
        if len(found) <= count:
            groups, enough = found, room
        else:
            least = room
    return groups


def _filled(loads: dict[Pair, Load], room: Load) -> list[list[Pair]]:
    """Tiles in groups, one after the other filled with as many positions, and as much work, as may be."""
    groups: list[list[Pair]] = []
    size, work = room
    for tile, load in loads.items():
        size, work = size + load[0], work + load[1]
        if not groups or size > room[0] or work > room[1]:
            groups.append([])
            size, work = load
        groups[-1].append(tile)
    return groups
