"""What only moves channels about, as one pick of them.

A split, or a shuffle by way of another shape, looks at whole maps to whoever reads it operator by
operator. Run on maps whose cells are numbered it shows what it does: where every cell comes out in
its place, of another channel, that channel is picked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchviz_cnn.methods.shapes import asks_shape

_MODULES = (nn.ChannelShuffle, nn.Flatten, nn.Unflatten)
_METHODS = {
    *("view", "reshape", "transpose", "permute", "contiguous", "flatten", "unflatten", "chunk"),
    *("split", "split_with_sizes", "tensor_split", "narrow", "select", "unbind", "squeeze"),
    *("unsqueeze", "movedim", "swapaxes"),
}
_FUNCTIONS = {
    *(torch.reshape, torch.transpose, torch.permute, torch.flatten, torch.unflatten, torch.chunk),
    *(torch.split, torch.tensor_split, torch.narrow, torch.select, torch.unbind, torch.squeeze),
    *(torch.unsqueeze, torch.movedim, torch.swapaxes, torch.channel_shuffle, operator.getitem),
}
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, int}


def picked(maps: Tensor, picks: tuple[int, ...]) -> Tensor:
    """Channels of maps ``(n, C, h, w)``, in the order given, laid out as they were."""
    first = picks[0]
    if picks == tuple(range(first, first + len(picks))):
        return maps[:, first : first + len(picks)]
    index = _index(picks, maps.device)
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.movedim(1, -1).index_select(-1, index).movedim(-1, 1)
    return maps.index_select(1, index)


@lru_cache(256)
def _index(picks: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the block that it was made in
        return torch.tensor(picks, device=device)


def pick_channels(graph: fx.GraphModule, values: dict[fx.Node, Any], follows: set[fx.Node]) -> bool:
    """Put picks in the place of what moves channels.

    Args:
        graph: is changed.
        values: what every node gave for one picture; picks are added.
        follows: the nodes whose value depends on the picture.

    Returns:
        Whether there was any.
    """
    modules = dict(graph.named_modules())
    origins: dict[fx.Node, fx.Node] = {}
    any_found = False
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in follows or not _moves(node, modules):
            continue
        origins[node] = origin = origins.get(source, source)
        value, maps = values[node], values[origin]
        if not _are_maps(value) or not _are_maps(maps) or value.shape[2:] != maps.shape[2:]:
            continue
        picks = _picks(node, origin, values, follows, modules)
        if picks is None:
            continue
        with graph.graph.inserting_before(node):
            made = graph.graph.call_function(picked, (origin, picks))
        values[made] = value
        follows.add(made)
        node.replace_all_uses_with(made)
        any_found = True
    if any_found:
        graph.graph.eliminate_dead_code()
    return any_found


def _moves(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether all that it may do is move numbers."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) in _MODULES and "forward" not in vars(module)
    return node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)


def _are_maps(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


class _UnknownError(Exception):
    """It depends on more than sizes."""


def _picks(
    node: fx.Node,
    origin: fx.Node,
    values: Mapping[fx.Node, Any],
    follows: Set[fx.Node],
    modules: Mapping[str, nn.Module],
) -> tuple[int, ...] | None:
    """Which channels a node has of those of the maps that it is made of, if that is all it does."""
    pictures = 2  # so that what takes their number for a size is found out
    shape = (pictures, *values[origin].shape[1:])
    numbers = torch.arange(pictures * shape[1] * shape[2] * shape[3]).view(shape)
    known: dict[fx.Node, Any] = {origin: numbers}

    def run(each: fx.Node) -> Any:
        if each not in known:
            known[each] = _moved(each, run, like, modules)
        return known[each]

    def like(each: fx.Node) -> Tensor:
        """A tensor as large as what a node gives for so many pictures."""
        try:
            return run(each)
        except _UnknownError:
            value = values[each]
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise
            if each not in follows:
                return value
            if len(value) != 1:  # its first axis is not that of the pictures
                raise
            return value.new_empty(()).expand(pictures, *value.shape[1:])

    try:
        found = run(node)
    except (_UnknownError, RuntimeError, TypeError, ValueError, IndexError):
        return None
    if not _are_maps(found):
        return None
    picks = found[0, :, 0, 0] // (shape[2] * shape[3])
    if not len(picks) or int(picks.max()) >= shape[1]:
        return None
    if not torch.equal(found, numbers[:, picks]):
        return None
    return tuple(picks.tolist())


def _moved(
    node: fx.Node,
    run: Callable[[fx.Node], Any],
    like: Callable[[fx.Node], Tensor],
    modules: Mapping[str, nn.Module],
) -> Any:
    if asks_shape(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        args: tuple[Any, ...] = (like(source), *node.args[1:])
    elif _moves(node, modules) or node.target in _ARITHMETIC:
        args = fx.node.map_arg(node.args, run)
    else:
        raise _UnknownError
    kwargs = fx.node.map_arg(node.kwargs, run)
    if node.op == "call_module":
        return modules[str(node.target)](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)
