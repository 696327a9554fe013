"""Exact incremental occlusion: compute only what a hidden window changes.

A window of the picture changes a window of every early map and leaves the rest as it was. So the
maps of the untouched picture are kept once, and for each hidden variant an operation is run on a
crop of them only, into which the changed window has been pasted. Where most of a map has changed,
or an operation looks at the whole of it, everything that follows is run on whole maps. The numbers
are those of running the whole network, up to rounding.

A batch is made of neighbouring positions, whose windows are trimmed to the largest of them; those
at the border, cut off and smaller, keep to themselves where that pays. Everything is planned from
the geometry alone, before anything is computed.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import every_module
from torchviz_cnn.head import Output, run, tensor_in
from torchviz_cnn.methods.local import InPlace, Local, Pair, Reader, Sliding, makes_new, writes
from torchviz_cnn.methods.sidebyside import cores_for, side_by_side

logger = logging.getLogger("torchviz_cnn")

# From here on cropping and pasting costs more than the rest of the map (measured on VGG16).
MOSTLY_CHANGED = 0.8
# What has to be saved for "auto" to leave the dense engine: multiply-adds in all, by how many times
# they fall, and how many positions pay for the forward passes that come first.
_WORTH_MACS = 2e7
_WORTH_RATIO = 1.5
_WORTH_POSITIONS = 12
_SIDE = 6  # positions along the side of a batch: more of them have less in common
# What an operation costs before it computes anything, in multiply-adds: itself, and a weight that
# has to be read and laid out.
_OVERHEAD = 2e6
_OVERHEAD_OF_A_WEIGHT = 64.0
_PICTURES = 8  # the memory of the batches at work, in pictures that go through the whole network
_LEAST_TILE = 9  # positions: smaller batches lose more than a core of their own gains


class Unsuited(InputError):  # noqa: N818 - it is a finding about a network, not a fault
    """A network that cannot be computed in part; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"occlusion cannot compute this network in part: {reason}")


def engine_for(
    module: nn.Module, images: Tensor, request: Request, *, together: int, always: bool
) -> Engine | None:
    """An engine for these pictures; ``None`` where running the whole network is better.

    Args:
        module, images, request, together: as for :class:`Engine`.
        always: raise where it is impossible, and do not ask whether it pays.

    Raises:
        Unsuited: only with ``always``.
    """
    few = math.prod(request.positions) < _WORTH_POSITIONS or together > request.limit
    if not always and (few or images.is_cuda):  # whether it pays there has not been measured
        return None
    try:
        engine = Engine(module, images, request, together)
        if not always and not engine.pays:
            return None
        engine.prepare()
    except Unsuited as unsuited:
        if always:
            raise
        logger.info("%s; every window runs the whole of it", unsuited)
        return None
    return engine


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
Costs = tuple[float, list[int]]  # of a map: one row, and the rows that each position needs


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


# ---- reading the network ---------------------------------------------------------------------


def traced(module: nn.Module) -> fx.GraphModule:
    """The network as a graph. It is read off a copy that shares its weights and nothing else.

    Raises:
        Unsuited: where it cannot be traced, or would notice being run in parts.
    """
    for each in every_module(module):
        if _hooked(each):
            raise Unsuited(f"a hook is attached to a {type(each).__name__} of it")
    tensors = [*module.parameters(), *module.buffers()]
    try:
        twin = copy.deepcopy(module, {id(t): t for t in tensors})
        graph = fx.symbolic_trace(twin, concrete_args=_defaults(module))
    except Exception as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unsuited(f"torch.fx cannot trace it ({words})") from error
    _check_writes(graph)
    graph.graph.eliminate_dead_code()  # bookkeeping, perhaps, of a whole batch
    graph.recompile()
    return graph


def _hooked(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(h, "__module__", None) != "torchviz_cnn.inputs" for h in hooks)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The arguments that nobody gives, at their defaults."""
    _, *rest = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in rest if p.default is not p.empty}


def _check_writes(graph: fx.GraphModule) -> None:
    """Refuse a network that writes into a tensor and then reads what shares its memory.

    Raises:
        Unsuited: for such a network, or one that writes into its own tensors.
    """
    modules = dict(graph.named_modules())
    shared: dict[fx.Node, set[fx.Node]] = {}
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        family = {node}
        into = node.args[0] if node.args else None
        if writes(node, modules) and isinstance(into, fx.Node):
            seen = {u for member in shared[into] for u in member.users}
            later = any(order[u] > order[node] for u in seen)
            if later or any(m.op == "get_attr" for m in shared[into]):
                raise Unsuited(f"it writes in place ({node.name}) into what it reads again")
            family |= shared[into]
        elif not makes_new(node, modules):
            for source in node.all_input_nodes:
                family |= shared[source]
        for member in family:
            shared[member] = family | shared.get(member, set())


def _following(graph: fx.GraphModule) -> tuple[fx.Node, set[fx.Node]]:
    """The picture's node, and every node whose value depends on it."""
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    if not inputs or any(str(node.target).startswith("*") for node in inputs):
        raise Unsuited("it takes other arguments than one tensor of pictures")
    follows = {inputs[0]}
    for node in nodes:
        if any(source in follows for source in node.all_input_nodes):
            follows.add(node)
    return inputs[0], follows


def _fold_norms(graph: fx.GraphModule) -> None:
    """Fold batch norms into the convolutions before them; both are the graph's own copies."""
    modules = dict(graph.named_modules())
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    for node in list(graph.graph.nodes):
        conv = node.args[0] if node.args else None
        if (
            isinstance(conv, fx.Node)
            and node.op == conv.op == "call_module"
            and len(conv.users) == calls[str(node.target)] == calls[str(conv.target)] == 1
            and _foldable(modules[str(conv.target)], modules[str(node.target)])
        ):
            _fold(modules[str(conv.target)], modules[str(node.target)])
            node.replace_all_uses_with(conv)
            graph.graph.erase_node(node)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and norm.running_mean is not None
        and not norm.training
        and conv.weight.dtype == norm.running_mean.dtype
        and not {"forward", "_conv_forward"} & {*conv.__dict__, *norm.__dict__}
    )


def _fold(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
        *(norm.weight, norm.bias),
    )


def _lay_out_weights(graph: fx.GraphModule) -> None:
    """Channels last: else they are laid out anew at every call."""
    for module in graph.modules():
        if type(module) is nn.Conv2d:
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)


_SHAPES = {"size", "dim", "ndimension", "numel"}
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda"}


def _asks_shape(node: fx.Node) -> bool:
    """Whether a node reads nothing of a tensor but its shape and kind."""
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and node.args[1] in _ATTRIBUTES


# ---- running a node --------------------------------------------------------------------------


class Network:
    """A traced network whose nodes can be run one by one, on pictures or on parts of maps."""

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self.channels_last = (
            images.device.type == "cpu" and images.dtype is torch.float32 and images.ndim == 4
        )
        self.graph = traced(module)
        _fold_norms(self.graph)
        if self.channels_last:
            _lay_out_weights(self.graph)
        self.nodes: list[fx.Node] = list(self.graph.graph.nodes)
        self.modules = dict(self.graph.named_modules())
        self.picture, self.follows = _following(self.graph)
        self.answer = next(node for node in self.nodes if node.op == "output")
        self.values = self._first_run(images)
        reader = Reader(self.graph, self.values, self.follows)
        self.local: dict[fx.Node, Local] = {}
        for node in self.nodes:
            found = reader.read(node) if node in self.follows else None
            if found is not None:
                self.local[node] = found
        self.fixed = {n: v for n, v in self.values.items() if n not in self.follows}
        self.macs = {node: self._macs(node) for node in self.nodes}

    def _first_run(self, images: Tensor) -> dict[fx.Node, Any]:
        """What every node gives; of maps that nothing needs any more, a tensor of that shape."""
        values: dict[fx.Node, Any] = {}
        last_use = _last_uses(self.nodes)
        for node in self.nodes:
            value = self.compute(node, values, images, keeping=True)
            if node in self.follows and isinstance(value, Tensor) and value.ndim == 0:
                raise Unsuited(f"{node.name} is one number for a whole batch")
            values[node] = value
            for done in last_use.get(node, ()):
                if done in self.follows and isinstance(values[done], Tensor):
                    values[done] = values[done].new_empty(()).expand(values[done].shape)
        return values

    def laid_out(self, images: Tensor) -> Tensor:
        """Channels last, where convolutions are faster that way."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def compute(
        self, node: fx.Node, values: dict[fx.Node, Any], images: Tensor, *, keeping: bool
    ) -> Any:
        """What a node gives for the values of the nodes before it.

        Args:
            node: the node.
            values: of the nodes it reads.
            images: the pictures.
            keeping: whether its arguments are still needed, so that none may be written into.
        """
        if node.op == "placeholder":
            if node is self.picture:
                return self.laid_out(images)
            return node.args[0] if node.args else None
        if node.op == "get_attr":
            value: Any = self.graph
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        given: Any = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        args, kwargs = given
        if writes(node, self.modules) and (keeping or self._shared(node)):
            args = (args[0].clone(), *args[1:])
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "output":
            return args[0]
        function: Any = node.target
        return function(*args, **kwargs)

    def _shared(self, node: fx.Node) -> bool:
        """Whether the tensor a node writes into might be somebody else's, too."""
        into = node.args[0]
        assert isinstance(into, fx.Node)
        own = into in self.follows and makes_new(into, self.modules)
        return not own or len(into.users) > 1

    def _macs(self, node: fx.Node) -> int:
        """Multiply-adds a picture."""
        value, local = self.values[node], self.local.get(node)
        if isinstance(local, Sliding) and local.costs:
            return local.costs * value.shape[-2:].numel()
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            return module.weight.numel() * value[0].numel() // module.out_features
        if isinstance(module, nn.Conv2d) and isinstance(value, Tensor):
            return module.weight.numel() * value.shape[-2:].numel()
        return 0


# ---- planning --------------------------------------------------------------------------------


def _tiles(count: int, side: int) -> list[tuple[int, ...]]:
    """Neighbouring positions in groups of about one size, none larger than ``side``."""
    groups = math.ceil(count / side)
    edges = [count * g // groups for g in range(groups + 1)]
    return [tuple(range(*edge)) for edge in pairwise(edges)]


def _cheapest(costs: Sequence[Costs], count: int, side: int, each: float) -> list[tuple[int, ...]]:
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
    """

    def __init__(self, network: Network, request: Request, together: int, cores: int) -> None:
        self.network = network
        self.request = request
        limit = max(1, request.limit // together)
        most, room = limit, _PICTURES * self._whole_numbers()
        while True:
            down = min(request.positions[0], _SIDE, max(1, math.isqrt(most)))
            across = min(request.positions[1], _SIDE, max(1, most // down))
            self.tiles = (_tiles(request.positions[0], down), _tiles(request.positions[1], across))
            self._lay()
            fits = int(room / self._numbers())  # positions, of all tiles at work at a time
            self.workers = max(1, min(cores, fits // min(_LEAST_TILE, most)))
            if most == 1 or down * across * self.workers <= fits:
                break
            most = max(1, min(most - 1, fits // self.workers))
        for axis, side in enumerate((down, across)):
            self._regroup(axis, side)
        self._find_needs()
        self.behind = self._together_behind(limit, room)
        groups = math.prod(map(len, self.tiles))
        self.workers = min(self.workers, groups)

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
        groups = _cheapest(costs, self.request.positions[axis], side, each)
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
        self.areas: dict[fx.Node, tuple[list[Strip], list[Strip]]] = {}
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
            [_strip(spans[axis], tile, size[axis]) for tile in self.tiles[axis]] for axis in (0, 1)
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

    def area(self, node: fx.Node, tile: Pair) -> Area:
        """Where a node is computed, for a tile of positions."""
        rows, columns = self.areas[node]
        return rows[tile[0]], columns[tile[1]]

    def _find_needs(self) -> None:
        self.cuts: set[fx.Node] = set()
        self.kept: set[fx.Node] = set()
        self.pasted: set[fx.Node] = {self.network.picture}
        for node in self.network.nodes:
            if node in self.spans:
                local = self.network.local.get(node)
                if isinstance(local, Sliding) and not local.keeps_place:
                    self.kept.add(local.source)
                if isinstance(local, InPlace):
                    self.pasted.update(s for s in local.sources if self._differ(s, node))
            elif not _asks_shape(node):
                self.cuts.update(s for s in node.all_input_nodes if s in self.spans)
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
        rest = [node for node in self.network.nodes if node not in self.spans]
        fits = room / self.workers / max(1, self._numbers(rest))
        return max(tile, min(limit, int(fits)))

    def _numbers(self, nodes: Sequence[fx.Node] | None = None) -> float:
        """The most numbers that an item has in hand at one node."""
        most = 0.0
        for node in self.network.nodes if nodes is None else nodes:
            value = self.network.values[node]
            if isinstance(value, Tensor) and node in self.network.follows:
                read = sum(self._held(s) for s in node.all_input_nodes)
                most = max(most, read + self._held(node))
        return most

    def _held(self, node: fx.Node) -> float:
        value = self.network.values[node]
        if not isinstance(value, Tensor) or node not in self.network.follows:
            return 0
        if node not in self.areas:
            return value[0].numel()
        size = math.prod(max(s.size for s in strips) for strips in self.areas[node])
        return value[0].numel() / value.shape[-2:].numel() * size

    def _whole_numbers(self) -> int:
        network = self.network
        values = [v for n, v in network.values.items() if n in network.follows]
        return 2 * max(v[0].numel() for v in values if isinstance(v, Tensor))

    def macs(self) -> tuple[float, int]:
        """Multiply-adds a position, computed in part and by running the whole network."""
        part = 0.0
        for node, macs in self.network.macs.items():
            share = 1.0
            if node in self.areas:
                for axis, strips in enumerate(self.areas[node]):
                    share *= sum(s.size * len(s.starts) for s in strips)
                    share /= self.request.positions[axis] * self._size(node)[axis]
            part += share * macs
        return part, sum(self.network.macs.values())

    def changes_nothing(self, row: int, column: int) -> bool:
        """Whether what a position hides is never read."""
        cuts = [self.spans[node] for node in self.cuts]
        return all(
            rows[row][1] <= rows[row][0] or columns[column][1] <= columns[column][0]
            for rows, columns in cuts
        )


# ---- running ---------------------------------------------------------------------------------


class Engine:
    """Answers for hidden variants of some pictures, by what the window changes.

    Args:
        module: an unwrapped network, inside :func:`~torchviz_cnn.guard.undisturbed`.
        images: as it takes them; all that are shown later are of this shape but for their number.
        request: what is hidden.
        together: how many pictures are shown at a time.

    Raises:
        Unsuited: with the reason why the network cannot be computed in part.
    """

    def __init__(
        self, module: nn.Module, images: Tensor, request: Request, together: int = 1
    ) -> None:
        if torch.is_autocast_enabled(images.device.type):
            raise Unsuited("it runs under autocast")
        self.module = module
        self.first = images[:1]
        try:
            self.network = Network(module, self.first)
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            run(module, self.first, sure=True)  # if it fails as well, it says so better
            raise Unsuited(f"as torch.fx traces it, it fails ({error})") from error
        self.plan = Plan(self.network, request, together, cores_for(images.device))
        self.macs = self.plan.macs()
        if not any(self.network.macs[node] for node in self.plan.spans):
            raise Unsuited(self._obstacle())

    def prepare(self) -> None:
        """Check the graph against the network, and let go of what the plan does not need.

        Raises:
            Unsuited: where they differ.
        """
        self._check_same()
        network, plan = self.network, self.plan
        self.last_use = _last_uses(network.nodes)
        self.blanks = {node: network.values[node] for node in plan.spans}
        network.values = {}

    @property
    def ratio(self) -> float:
        """By how many times there are fewer multiply-adds than in running the whole network."""
        return self.macs[1] / max(self.macs[0], 1.0)

    @property
    def pays(self) -> bool:
        """Whether it is clearly faster than running the whole network."""
        positions = math.prod(self.plan.request.positions)
        enough = self.macs[1] >= _WORTH_MACS
        return enough and positions >= _WORTH_POSITIONS and self.ratio >= _WORTH_RATIO

    def _obstacle(self) -> str:
        """Why no convolution can be computed in part."""
        for node in self.network.nodes:
            sources = [s for s in node.all_input_nodes if s in self.plan.spans]
            if sources and node not in self.plan.spans and not _asks_shape(node):
                target = (
                    self.network.modules.get(str(node.target)) if node.op == "call_module" else None
                )
                what = type(target).__name__ if target is not None else node.name
                if node in self.network.local:
                    return f"a window changes nearly all that its first layers see ({what})"
                return f"{what} may look at all of the picture"
        return "it has no convolution"

    def _check_same(self) -> None:
        """A graph that was traced along another branch than pictures take is of no use."""
        wanted = run(self.module, self.first, sure=True).raw
        found = tensor_in(self.network.values[self.network.answer])
        room = math.sqrt(torch.finfo(wanted.dtype).eps) * float(wanted.abs().max())
        same = found.numel() == wanted.numel()
        if not same or not float((found.reshape(wanted.shape) - wanted).abs().max()) <= room:
            raise Unsuited("as torch.fx traces it, it computes something else")

    # ---- the untouched pictures -----------------------------------------------------------

    def show(self, images: Tensor, filling: Tensor) -> Output:
        """Keep the maps of these pictures, and answer for them.

        Args:
            images: ``(n, …, H, W)``.
            filling: what hides, of the same shape.
        """
        self.images, self.filling = images, filling
        self._lay_sheets(self._maps())
        # As many at once as variants are, mostly: kernels round otherwise for other numbers.
        count = self.plan.behind * len(images)
        self.reference = self._answer(self._untouched(count), count)
        return self.reference.rows(0, len(images))

    def _maps(self) -> dict[fx.Node, Tensor]:
        """The maps of the pictures that are needed."""
        values = dict(self.network.fixed)
        maps: dict[fx.Node, Tensor] = {}
        tail = self.network.follows - set(self.plan.spans)
        for node in self.network.nodes:
            if node in self.plan.spans:
                values[node] = self.network.compute(node, values, self.images, keeping=True)
                if node in self.plan.kept:
                    maps[node] = values[node]
            if node not in tail:
                for done in self.last_use.get(node, ()):
                    values.pop(done, None)
        return maps

    def _lay_sheets(self, maps: dict[fx.Node, Tensor]) -> None:
        """Lay out the maps that windows are pasted into; the maps themselves are let go."""
        plan = self.plan
        self.hiding = Sheet.of(self.filling)
        self.sheets = {node: Sheet.of(maps[node]) for node in plan.pasted}
        self.padded: dict[fx.Node, Sheet] = {}
        sliding = {
            node: local
            for node in plan.spans
            if isinstance(local := self.network.local.get(node), Sliding) and not local.keeps_place
        }
        readers = Counter(local.source for local in sliding.values())
        for node, local in sliding.items():
            self.padded[node] = _padded(maps[local.source], local)
            readers[local.source] -= 1
            if not readers[local.source]:
                del maps[local.source]

    # ---- the hidden variants --------------------------------------------------------------

    def tiles(self) -> Iterator[tuple[list[Pair], Output]]:
        """Positions, and the answers for them: for each position one row a picture."""
        same = self._same_already()
        jobs = [partial(self._answered, group, same) for group in self._groups()]
        yield from side_by_side(jobs, self.plan.workers)

    def _groups(self) -> list[list[Pair]]:
        """The tiles that go together through what is computed whole."""
        groups: list[list[Pair]] = []
        room = 0
        for i, rows in enumerate(self.plan.tiles[0]):
            for j, columns in enumerate(self.plan.tiles[1]):
                size = len(rows) * len(columns)
                if size > room:
                    groups.append([])
                    room = self.plan.behind
                groups[-1].append((i, j))
                room -= size
        return groups

    def _answered(self, tiles: list[Pair], same: Tensor) -> tuple[list[Pair], Output]:
        positions = [
            (row, column)
            for i, j in tiles
            for row in self.plan.tiles[0][i]
            for column in self.plan.tiles[1][j]
        ]
        wholes = _joined([self._wholes(tile) for tile in tiles])
        count = len(positions) * len(self.images)
        output = self._answer({**self._blank(count), **wholes}, count)
        untouched = torch.stack([same[:, row, column] for row, column in positions])
        return positions, self._restored(output, untouched.flatten())

    def _same_already(self) -> Tensor:
        """Where a window hides nothing: there already is what fills it, or nothing reads it."""
        rows, columns = self.plan.spans[self.network.picture]
        differs = self.images != self.filling
        differs = differs.any(1) if differs.ndim == 4 else differs
        sums = F.pad(differs.long(), (1, 0, 1, 0)).cumsum(1).cumsum(2)
        edges = [
            torch.tensor([span[end] for span in spans], device=sums.device)
            for spans in (rows, columns)
            for end in (0, 1)
        ]
        top, bottom, left, right = edges
        below, above = sums[:, bottom], sums[:, top]
        count = below[:, :, right] - below[:, :, left] - above[:, :, right] + above[:, :, left]
        unread = [
            [self.plan.changes_nothing(row, column) for column in range(len(columns))]
            for row in range(len(rows))
        ]
        return (count == 0) | torch.tensor(unread, device=count.device)

    def _restored(self, output: Output, untouched: Tensor) -> Output:
        """The untouched picture's own answer where nothing was hidden, to the last bit."""
        if not bool(untouched.any()):
            return output
        n = len(self.images)
        numbers = torch.arange(len(untouched), device=untouched.device) % n

        def restored(found: Tensor, known: Tensor) -> Tensor:
            mask = untouched.to(found.device).reshape(-1, *[1] * (found.ndim - 1))
            return torch.where(mask, known[:n][numbers.to(found.device)], found)

        return Output(
            restored(output.raw, self.reference.raw),
            restored(output.logits, self.reference.logits),
            output.kind,
        )

    def _answer(self, wholes: dict[fx.Node, Tensor], count: int) -> Output:
        rows = self.images[:1].expand(count, *self.images.shape[1:])
        return run(
            self.module,
            rows,
            sure=True,
            variants_of=self.images,
            through=lambda _: self._rest(wholes),
        )

    def _blank(self, count: int) -> dict[fx.Node, Tensor]:
        """Maps with nothing behind them, where only the shape is asked for."""
        blanks = {n: b for n, b in self.blanks.items() if n not in self.plan.cuts}
        return {node: b[:1].expand(count, *b.shape[1:]) for node, b in blanks.items()}

    def _untouched(self, count: int) -> dict[fx.Node, Tensor]:
        """The whole maps that the rest of the network needs, of the pictures as they are."""
        places = count // len(self.images)
        wholes = self._blank(count)
        for node in self.plan.cuts:
            sheet = self.sheets[node]
            height, width = sheet.size
            wholes[node] = self._laid(
                sheet.cut((Extent((0,) * places, height), Extent((0,), width)))
            )
        return wholes

    def _wholes(self, tile: Pair) -> dict[fx.Node, Tensor]:
        """The whole maps that the rest of the network needs, for the variants of one tile."""
        parts: dict[fx.Node, Tensor] = {}
        wholes: dict[fx.Node, Tensor] = {}
        for node in self.plan.spans:
            parts[node] = self._part(node, parts, tile)
            if node in self.plan.cuts:
                wholes[node] = self._whole(node, parts[node], tile)
            for done in self.last_use.get(node, ()):
                parts.pop(done, None)
        return wholes

    def _rest(self, wholes: dict[fx.Node, Tensor]) -> Any:
        """What the network gives, from the maps on that are computed whole."""
        values: dict[fx.Node, Any] = {**self.network.fixed, **wholes}
        wholes.clear()
        for node in self.network.nodes:
            if node in self.network.follows and node not in self.plan.spans:
                values[node] = self.network.compute(node, values, self.images, keeping=False)
                for done in self.last_use.get(node, ()):
                    values.pop(done, None)
        return values[self.network.answer]

    def _part(self, node: fx.Node, parts: dict[fx.Node, Tensor], tile: Pair) -> Tensor:
        """What a node gives for the windows of a tile of positions."""
        area = self.plan.area(node, tile)
        local = self.network.local.get(node)
        if local is None:
            return self._hidden(area)
        if isinstance(local, Sliding):
            return self._slid(node, local, parts[local.source], area, tile)
        read = dict(self.network.fixed)
        for source in local.sources:
            there = self.plan.area(source, tile)
            read[source] = parts[source]
            if len(local.sources) > 1 and _extent(there) != _extent(area):
                sheet = self.sheets[source]
                read[source] = self._composed(sheet, (0, 0), _extent(area), parts[source], there)
        return self.network.compute(node, read, self.images, keeping=False)

    def _hidden(self, area: Area) -> Tensor:
        """The hidden windows of the pictures, with what lies around them."""
        extent = _extent(area)
        filling = self.hiding.cut(extent)
        return self._composed(self.sheets[self.network.picture], (0, 0), extent, filling, area)

    def _slid(self, node: fx.Node, local: Sliding, part: Tensor, area: Area, tile: Pair) -> Tensor:
        if local.keeps_place:
            return local.apply(part)
        before = (local.reaches[0].before, local.reaches[1].before)
        seen = tuple(
            Extent(
                tuple(o * reach.stride - reach.before for o in strip.starts),
                reach.seen(strip.size),
            )
            for reach, strip in zip(local.reaches, area, strict=True)
        )
        there = self.plan.area(local.source, tile)
        crop = self._composed(self.padded[node], before, (seen[0], seen[1]), part, there)
        result = local.apply(crop)
        if local.divisors is not None:
            result = result / self._divisors(local.divisors, area)
        return result

    def _divisors(self, divisors: tuple[Tensor, Tensor], area: Area) -> Tensor:
        """What the numbers of every item are divided by."""
        down, across = (
            torch.stack([by[start : start + strip.size] for start in strip.starts])
            for by, strip in zip(divisors, area, strict=True)
        )
        each = down[:, None, :, None] * across[None, :, None, :]
        items = each.flatten(0, 1).repeat_interleave(len(self.images), 0)
        return items[:, None]

    def _whole(self, node: fx.Node, part: Tensor, tile: Pair) -> Tensor:
        """The whole map of every variant."""
        area, sheet = self.plan.area(node, tile), self.sheets[node]
        down, across = (
            Extent((0,) * len(strip.starts), rows)
            for strip, rows in zip(area, sheet.size, strict=True)
        )
        return self._laid(self._composed(sheet, (0, 0), (down, across), part, area))

    def _laid(self, whole: Tensor) -> Tensor:
        """In the layout that the rest of the network would see."""
        last = self.network.channels_last and whole.ndim == 4
        layout = torch.channels_last if last else torch.contiguous_format
        return whole.contiguous(memory_format=layout)

    def _composed(
        self, sheet: Sheet, before: Pair, wanted: tuple[Extent, Extent], part: Tensor, area: Area
    ) -> Tensor:
        """Crops of the untouched pictures' map with the changed windows pasted into them.

        Only what may have changed is pasted: around it the part was computed once more, and may
        differ from the map in its last bits.

        Args:
            sheet: the map.
            before: how many rows and columns of padding are in front of it.
            wanted: which crops, counted from the map's first row and column without padding.
            part: the map anew, in the windows of every position.
            area: where those windows lie.
        """
        crops = sheet.cut(wanted, before)
        places = (*(len(each.starts) for each in wanted), sheet.pictures)
        into, taken = crops.unflatten(0, places), part.unflatten(0, places)
        rows, columns = (
            _alike(_pastes(each, strip)) for each, strip in zip(wanted, area, strict=True)
        )
        for down, (to_rows, from_rows) in rows:
            for across, (to_columns, from_columns) in columns:
                there = into[down, across][..., to_rows, to_columns]
                there.copy_(taken[down, across][..., from_rows, from_columns])
        return crops


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


def _joined(wholes: list[dict[fx.Node, Tensor]]) -> dict[fx.Node, Tensor]:
    """The maps of several tiles as one; they are let go on the way."""
    first, *others = wholes
    if not others:
        return first
    return {node: torch.cat([each.pop(node) for each in wholes]) for node in list(first)}


def _padded(whole: Tensor, local: Sliding) -> Sheet:
    """A map with what the operation that slides over it takes for its outside."""
    (top, down), (left, right) = (
        (reach.before, reach.after(rows))
        for reach, rows in zip(local.reaches, whole.shape[-2:], strict=True)
    )
    around = [left, right, top, down]
    return Sheet.of(F.pad(whole, around, value=local.padding) if any(around) else whole)


@dataclass(frozen=True)
class Extent:
    """Rows of a map, as many for each position: the first ones, and how many."""

    starts: tuple[int, ...]
    size: int


def _extent(area: Area) -> tuple[Extent, Extent]:
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


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """After which node which others are needed no more."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(nodes):
        for source in {*node.all_input_nodes, node} - seen:
            seen.add(source)
            last.setdefault(node, []).append(source)
    return {node: [s for s in done if node.op != "output"] for node, done in last.items()}
