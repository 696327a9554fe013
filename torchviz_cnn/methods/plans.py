"""Which parts of which maps are computed anew, and for which positions together.

Everything is planned from the geometry alone, before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, fx

from torchviz_cnn.methods.graphs import Network
from torchviz_cnn.methods.grouping import Costs, Load, cheapest, even_groups, sides, tiles_along
from torchviz_cnn.methods.local import InPlace, Pair, Sliding
from torchviz_cnn.methods.shapes import asks_shape

# From here on cropping and pasting costs more than the rest of the map (measured on VGG16).
MOSTLY_CHANGED = 0.8
# What an operation costs before it computes anything, in multiply-adds: itself, and a weight that
# has to be read and laid out.
_OVERHEAD = 2e6
_OVERHEAD_OF_A_WEIGHT = 64.0
_GETTING_READY = 1e7  # reading and planning, for each operation, once
# The memory of the batches at work, in pictures that go through the whole network. With 8, ResNet50 goes
# in batches of 10, and reads its weights anew for each; in batches of 15 or 25 it takes 0.84 of the time.
_PICTURES = 15
_LEAST_TILE = 9  # positions: smaller batches lose more than a core of their own gains


@dataclass(frozen=True)
class Strip:
    """On one axis, where a map is computed anew for some neighbouring positions.

    Attributes:
        starts: the first row for each position.
        size: how many rows, for all of them.
        changed: the rows that the hidden window changes, for each position; they lie inside.
    """

    starts: tuple[int, ...]
    size: int
    changed: tuple[Pair, ...]


Spans = tuple[list[Pair], list[Pair]]  # what each row of positions changes, and each column
Area = tuple[Strip, Strip]


@dataclass(frozen=True)
class Request:
    """What is hidden of the pictures.

    Attributes:
        window, stride, positions: height and width; rows and columns of positions.
        limit: how many variants may be computed at once.
    """

    window: Pair
    stride: Pair
    positions: Pair
    limit: int

    def spans(self, size: Sequence[int]) -> Spans:
        """The picture's rows and columns under each row and column of positions."""
        rows, columns = (
            [
                (i * self.stride[axis], min(i * self.stride[axis] + self.window[axis], size[axis]))
                for i in range(self.positions[axis])
            ]
            for axis in (0, 1)
        )
        return rows, columns


@lru_cache(4096)  # most layers change the same rows as others
def _strips(
    spans: tuple[Pair, ...], tiles: tuple[tuple[int, ...], ...], rows: int
) -> tuple[Strip, ...]:
    return tuple(_strip(spans, tile, rows) for tile in tiles)


def _strip(spans: Sequence[Pair], tile: Sequence[int], rows: int) -> Strip:
    changed = tuple(spans[i] for i in tile)
    size = max(1, *(high - low for low, high in changed))
    starts = tuple(min(low, rows - size) for low, _ in changed)
    return Strip(starts, size, changed)


def _union(first: Pair, second: Pair) -> Pair:
    """The smallest interval that holds both; an empty one holds nothing."""
    if first[1] <= first[0]:
        return second
    if second[1] <= second[0]:
        return first
    return min(first[0], second[0]), max(first[1], second[1])


class Plan:
    """For one size of picture: which nodes are computed in part, and which part.

    Attributes:
        spans: what each position changes of every map that is computed in part.
        tiles: the groups of rows and of columns of positions.
        cuts: the maps that are needed whole, though computed in part.
        kept: the maps of the untouched picture that are needed.
        pasted: those of them that windows are pasted into as they are, without padding.
        behind: how many positions go together through what is computed whole.
        workers: how many tiles are at work at a time.
        groups: the tiles that go together through what is computed whole.
    """

    def __init__(self, network: Network, request: Request, together: int, cores: int) -> None:
        self.network = network
        self.request = request
        limit = max(1, request.limit // together)
        room = _PICTURES * self.numbers_of_a_picture()
        for down, across in sides(request.positions, limit):
            self.tiles = (
                tiles_along(request.positions[0], down),
                tiles_along(request.positions[1], across),
            )
            self._lay()
            fits = min(limit, int(room / max(self._numbers())))  # positions, of all tiles at work
            self.workers = max(1, min(cores, fits // min(_LEAST_TILE, down * across)))
            if down * across * self.workers <= fits:
                break
        for axis, side in enumerate((down, across)):
            self._regroup(axis, side)
        self._find_needs()
        self.behind = self._together_behind(limit, room)
        self.workers = min(self.workers, math.prod(map(len, self.tiles)))
        self.groups = self._grouped()

    def _regroup(self, axis: int, side: int) -> None:
        """Group the positions of an axis so that least is computed, the other axis as it is."""
        other = 1 - axis
        costs: list[Costs] = []
        for node, spans in self.spans.items():
            if self.network.macs[node]:
                cell = self.network.macs[node] / math.prod(self._size(node))
                across = sum(strip.size * len(strip.starts) for strip in self.areas[node][other])
                costs.append((cell * across, [max(1, high - low) for low, high in spans[axis]]))
        each = self._overhead() * len(self.tiles[other])
        groups = cheapest(costs, self.request.positions[axis], side, each)
        self.tiles = (groups, self.tiles[1]) if axis == 0 else (self.tiles[0], groups)
        self._lay()

    def _overhead(self) -> float:
        """What a tile costs besides, in multiply-adds."""
        network = self.network
        weights = 0
        for node in self.spans:
            local = network.local.get(node)
            weights += local.costs if isinstance(local, Sliding) else 0
        return _OVERHEAD * len(network.follows) + _OVERHEAD_OF_A_WEIGHT * weights

    def _lay(self) -> None:
        network = self.network
        self.spans: dict[fx.Node, Spans] = {}
        self.areas: dict[fx.Node, tuple[tuple[Strip, ...], tuple[Strip, ...]]] = {}
        self._add(network.picture, self.request.spans(self._size(network.picture)))
        # What follows the last layer is a final activation, if anything: it has to be seen at work.
        costly = [i for i, node in enumerate(network.nodes) if network.macs[node]]
        for node in network.nodes[: max(costly, default=0) + 1]:
            found = self._changed(node)
            if found is not None:
                self._add(node, found)

    def _changed(self, node: fx.Node) -> Spans | None:
        local = self.network.local.get(node)
        if isinstance(local, Sliding) and local.source in self.spans:
            rows, columns = self.spans[local.source]
            down, across = local.reaches
            return [down.changed(*r) for r in rows], [across.changed(*c) for c in columns]
        if isinstance(local, InPlace) and all(source in self.spans for source in local.sources):
            found = self.spans[local.sources[0]]
            for source in local.sources[1:]:
                found = tuple(  # type: ignore[assignment]
                    [_union(a, b) for a, b in zip(one, other, strict=True)]
                    for one, other in zip(found, self.spans[source], strict=True)
                )
            return found
        return None

    def _add(self, node: fx.Node, spans: Spans) -> None:
        """Compute a node in part, unless that is most of it."""
        size = self._size(node)
        strips = [
            _strips(tuple(spans[axis]), tuple(self.tiles[axis]), size[axis]) for axis in (0, 1)
        ]
        share = math.prod(
            sum(s.size * len(s.starts) for s in strips[axis])
            / (self.request.positions[axis] * size[axis])
            for axis in (0, 1)
        )
        if share < MOSTLY_CHANGED or node is self.network.picture:
            self.spans[node] = spans
            self.areas[node] = (strips[0], strips[1])

    def _size(self, node: fx.Node) -> Pair:
        rows, columns = self.network.values[node].shape[-2:]
        return rows, columns

    def positions(self, tile: Pair) -> tuple[Sequence[int], Sequence[int]]:
        """The rows and the columns of positions of a tile."""
        return self.tiles[0][tile[0]], self.tiles[1][tile[1]]

    def area(self, node: fx.Node, tile: Pair) -> Area:
        """Where a node is computed, for a tile of positions."""
        rows, columns = self.areas[node]
        return rows[tile[0]], columns[tile[1]]

    def _find_needs(self) -> None:
        self.cuts = self._read_whole()
        self.kept: set[fx.Node] = set()
        self.pasted: set[fx.Node] = {self.network.picture}
        for node in self.network.nodes:
            if node in self.spans:
                local = self.network.local.get(node)
                if isinstance(local, Sliding) and not local.keeps_place:
                    self.kept.add(local.source)
                if isinstance(local, InPlace):
                    self.pasted.update(s for s in local.sources if self._differ(s, node))
        self.pasted |= self.cuts
        self.kept |= self.pasted

    def _differ(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether a map is computed elsewhere, for any tile, than what is made of it."""
        return any(
            (one.starts, one.size) != (other.starts, other.size)
            for ones, others in zip(self.areas[source], self.areas[node], strict=True)
            for one, other in zip(ones, others, strict=True)
        )

    def _together_behind(self, limit: int, room: float) -> int:
        """How many positions go together through what is computed whole."""
        tile = math.prod(max(map(len, groups)) for groups in self.tiles)
        fits = min(limit, int(room / max(1, self._numbers()[1])))
        return max(tile, fits // self.workers)

    def _grouped(self) -> list[list[Pair]]:
        """Groups of about as much work, as many for each worker."""
        macs = self.network.macs
        behind = sum(m for node, m in macs.items() if node not in self.spans)
        cells = {n: macs[n] / math.prod(self._size(n)) for n in self.spans if macs[n]}
        loads: dict[Pair, Load] = {}
        for tile in product(range(len(self.tiles[0])), range(len(self.tiles[1]))):
            size = math.prod(map(len, self.positions(tile)))
            part = sum(
                cell * math.prod(strip.size * len(strip.starts) for strip in self.area(node, tile))
                for node, cell in cells.items()
            )
            loads[tile] = size, size * behind + part
        return even_groups(loads, self.behind, self.workers)

    def _numbers(self) -> tuple[float, float]:
        """The most numbers that an item has in hand, in what is computed in part and behind it."""
        network, wholes = self.network, self._read_whole()
        order = [n for n in network.nodes if n in self.spans]
        tail = [n for n in network.nodes if n in network.follows and n not in self.spans]
        live: dict[fx.Node, float] = {}
        kept = 0.0  # of whole maps that what comes behind will read
        most = [0.0, 0.0]
        for node in order + tail:
            behind = node not in self.spans
            if tail and node is tail[0]:
                live.clear()  # behind, only whole maps are held
            live[node] = self._held(node)
            if network.writes_over(node):
                live.pop(node.all_input_nodes[0], None)
            crop, read = self._crop(node), 0.0
            if crop and isinstance(
                network.local[node], Sliding
            ):  # let go of, once it is in the crop
                read = sum(
                    live.get(s, 0) for s in self.network.last_uses.get(node, ()) if s is not node
                )
            now = sum(live.values()) - min(read, live[node]) + crop
            most[behind] = max(most[behind], kept + now)
            if node in wholes:
                kept += network.values[node][0].numel()
                most[behind] = max(most[behind], kept + sum(live.values()))
            for done in self.network.last_uses.get(node, ()):
                if done in wholes and behind:
                    kept -= network.values[done][0].numel()
                live.pop(done, None)
        return most[0], most[1]

    def _read_whole(self) -> set[fx.Node]:
        """The maps that are needed whole, though computed in part."""
        return {
            source
            for node in self.network.nodes
            if node not in self.spans and not asks_shape(node)
            for source in node.all_input_nodes
            if source in self.spans
        }

    def _crop(self, node: fx.Node) -> float:
        """The numbers of the crops that a node reads, and of what it makes of them on the way."""
        local = self.network.local.get(node)
        if node not in self.areas or local is None:
            return 0
        if isinstance(local, InPlace):
            others = len(local.sources) > 1
            pasted = [s for s in local.sources if others and self._differ(s, node)]
            return sum(self._held(node, of=source) for source in pasted)
        if local.keeps_place:
            return 0
        value = self.network.values[local.source]
        rows, columns = (max(s.size for s in strips) for strips in self.areas[node])
        down, across = local.reaches
        cells = down.seen(rows) * across.seen(columns)
        overlap = down.stride < down.kernel or across.stride < across.kernel
        if local.padding == -torch.inf and overlap:
            cells += rows * across.seen(columns)  # the largest of each column, see pooling
        return value[0].numel() / value.shape[-2:].numel() * cells

    def shape(self, node: fx.Node) -> tuple[int, Pair]:
        """For how many positions a node is computed at a time, at most, and how much of it."""
        if node not in self.areas:
            return self.behind, self._size(node)
        rows, columns = ([(len(s.starts), s.size) for s in strips] for strips in self.areas[node])
        (down, height), (across, width) = max(rows), max(columns)
        return down * across, (height, width)

    def _held(self, node: fx.Node, of: fx.Node | None = None) -> float:
        """The numbers an item has in hand of a node; or of another's channels, where it is computed."""
        value = self.network.values[of or node]
        if not isinstance(value, Tensor) or node not in self.network.follows:
            return 0
        if node not in self.areas:
            return value[0].numel()
        size = math.prod(max(s.size for s in strips) for strips in self.areas[node])
        return value[0].numel() / value.shape[-2:].numel() * size

    def numbers_of_a_picture(self) -> int:
        """About as many as a picture has in hand at a time that goes through the whole network."""
        network = self.network
        values = [v for n, v in network.values.items() if n in network.follows]
        return 2 * max(v[0].numel() for v in values if isinstance(v, Tensor))

    def share(self, node: fx.Node) -> float:
        """How much of a map is computed, for a position on average."""
        share = 1.0
        for axis, strips in enumerate(self.areas.get(node, ())):
            share *= sum(s.size * len(s.starts) for s in strips)
            share /= self.request.positions[axis] * self._size(node)[axis]
        return share

    def macs(self) -> tuple[float, int]:
        """Multiply-adds a position, computed in part and by running the whole network."""
        each = self.network.macs
        return sum(self.share(node) * macs for node, macs in each.items()), sum(each.values())

    def besides(self) -> float:
        """What all tiles and getting ready cost besides, in multiply-adds a position."""
        tiles = math.prod(map(len, self.tiles)) * self._overhead()
        ready = _GETTING_READY * len(self.network.follows)
        return (tiles + ready) / math.prod(self.request.positions)

    def changes_nothing(self, row: int, column: int) -> bool:
        """Whether what a position hides is never read."""
        cuts = [self.spans[node] for node in self.cuts]
        return all(
            rows[row][1] <= rows[row][0] or columns[column][1] <= columns[column][0]
            for rows, columns in cuts
        )
