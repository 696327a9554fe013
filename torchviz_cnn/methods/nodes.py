"""What the nodes of a ``torch.fx`` graph see of the maps they read: which are local.

Whatever is not certain is not local: that costs time, never exactness.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.methods.channels import picked
from torchviz_cnn.methods.convolutions import OwnConvolution
from torchviz_cnn.methods.local import InPlace, Local, Pair, Reach, Sliding
from torchviz_cnn.methods.operations import (
    CONCATENATIONS,
    DROPOUTS,
    ELEMENTWISE,
    POINTWISE,
    POINTWISE_MODULES,
)
from torchviz_cnn.pooling import finds_no_indices, max_pool2d

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = (
    *("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "divisor_override",
)
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training")
_PAD = ("input", "pad", "mode", "value")


def pair(value: Any) -> Pair:
    """One number for both axes, or two."""
    return (value[0], value[-1]) if isinstance(value, Sequence) else (value, value)


class Reader:
    """Reads nodes of one graph.

    Args:
        graph: the traced network.
        values: what every node gave for one picture; of tensors, a tensor of that shape.
        follows: the nodes whose value depends on the picture.
    """

    def __init__(
        self, graph: fx.GraphModule, values: dict[fx.Node, Any], follows: set[fx.Node]
    ) -> None:
        self.modules = dict(graph.named_modules())
        self.values = values
        self.follows = follows

    def read(self, node: fx.Node) -> Local | None:
        """What a node does, where that is local."""
        if not isinstance(self.values[node], Tensor) or self.values[node].ndim < 3:
            return None
        if node.op == "call_module":
            return self._module(node)
        return self._function(node) if node.op in ("call_function", "call_method") else None

    def _module(self, node: fx.Node) -> Local | None:
        module = self.modules[str(node.target)]
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(source, fx.Node):
            return None
        if isinstance(module, OwnConvolution):
            return self._sliding(
                *(node, source, module.kernel_size, module.stride, module.padding),
                *(module.dilation, module.of_crops, module.costs),
            )
        if not _is_torchs(module):
            return None
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                return None
            return self._convolution(
                *(node, source, module.weight, module.bias, module.stride, module.padding),
                *(module.dilation, module.groups),
            )
        if isinstance(module, nn.MaxPool2d):
            if module.return_indices:
                return None
            return self._max_pool(
                node, source, module.kernel_size, module.stride, module.padding, module.dilation
            )
        if isinstance(module, nn.AvgPool2d):
            return self._avg_pool(
                *(node, source, module.kernel_size, module.stride, module.padding),
                *(module.count_include_pad, module.divisor_override),
            )
        if isinstance(module, nn.ConstantPad2d):
            return self._pad(node, source, tuple(module.padding), float(module.value))
        if isinstance(module, nn.BatchNorm2d):
            known = module.running_mean is not None and not module.training
            return self._kept(node, (source,)) if known else None
        if isinstance(module, POINTWISE_MODULES):
            by_channel = isinstance(module, nn.LocalResponseNorm) or (
                isinstance(module, nn.PReLU) and module.num_parameters > 1
            )
            known = self._has_channels(node) or not by_channel
            return self._kept(node, (source,)) if known else None
        if isinstance(module, DROPOUTS) and not module.training:
            return self._kept(node, (source,))
        return None

    def _function(self, node: fx.Node) -> Local | None:
        target: Any = node.target
        if target in ELEMENTWISE:
            return self._elementwise(node)
        if target in CONCATENATIONS:
            return self._concatenation(node)
        if target is picked:
            return self._kept(node, (node.args[0],))  # type: ignore[arg-type]
        if target in (operator.getitem, "unsqueeze", torch.unsqueeze):
            return self._reshaped(node) or self._every_few(node)
        if target in (F.conv2d, torch.conv2d):
            return self._given_convolution(node)
        if target is F.max_pool2d or target is torch.max_pool2d:
            given = self._given(node, _MAX_POOL)
            if given is None or given.get("return_indices"):
                return None
            return self._max_pool(
                *(node, given["input"], given["kernel_size"], given.get("stride")),
                *(given.get("padding", 0), given.get("dilation", 1)),
            )
        if target is F.avg_pool2d:
            given = self._given(node, _AVG_POOL)
            if given is None:
                return None
            return self._avg_pool(
                *(node, given["input"], given["kernel_size"], given.get("stride")),
                *(given.get("padding", 0), given.get("count_include_pad", True)),
                given.get("divisor_override"),
            )
        if target is F.pad:
            given = self._given(node, _PAD)
            if given is None or given.get("mode", "constant") != "constant":
                return None
            return self._pad(node, given["input"], given["pad"], given.get("value") or 0.0)
        if target is F.batch_norm:
            return self._given_batch_norm(node)
        if target is F.dropout or target is F.dropout2d:
            return self._given_dropout(node, ("input", "p", "training", "inplace"))
        if _is_stochastic_depth(target):
            return self._given_dropout(node, ("input", "p", "mode", "training"))
        if target in POINTWISE:
            source = node.args[0] if node.args else None
            known = isinstance(source, fx.Node) and self._is_alike_everywhere(node.all_input_nodes)
            return self._kept(node, (source,)) if known else None  # type: ignore[arg-type]
        return None

    # ---- what slides ------------------------------------------------------------------------

    def _reaches(
        self, node: fx.Node, kernel: Any, stride: Any, before: Any, dilation: Any
    ) -> tuple[Reach, Reach]:
        rows, columns = self.values[node].shape[-2:]
        k, s, p, d = pair(kernel), pair(stride), pair(before), pair(dilation)
        return (
            Reach(k[0], s[0], p[0], d[0], rows),
            Reach(k[1], s[1], p[1], d[1], columns),
        )

    def _convolution(
        self,
        node: fx.Node,
        source: fx.Node,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Sliding | None:
        apply = partial(
            F.conv2d, weight=weight, bias=bias, stride=stride, dilation=dilation, groups=groups
        )
        kernel: Pair = (weight.shape[-2], weight.shape[-1])
        return self._sliding(node, source, kernel, stride, padding, dilation, apply, weight.numel())

    def _sliding(
        self,
        node: fx.Node,
        source: fx.Node,
        kernel: Sequence[int],
        stride: Any,
        padding: Any,
        dilation: Any,
        apply: Callable[[Tensor], Tensor],
        costs: int,
    ) -> Sliding | None:
        if not self._is_map(source) or self.values[source].ndim != 4:
            return None
        if padding == "same":
            before: Any = tuple(
                d * (k - 1) // 2 for d, k in zip(pair(dilation), kernel, strict=True)
            )
        else:
            before = 0 if padding == "valid" else padding
        reaches = self._reaches(node, tuple(kernel), stride, before, dilation)
        alone = all(r.extent == 1 and r.stride == 1 and r.before == 0 for r in reaches)
        same_size = self.values[source].shape[-2:] == self.values[node].shape[-2:]
        return Sliding(source, reaches, 0.0, apply, alone and same_size, costs=costs)

    def _max_pool(
        self, node: fx.Node, source: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
    ) -> Sliding | None:
        if not self._is_map(source):
            return None
        stride = kernel if stride is None or stride == [] else stride
        return Sliding(
            source,
            self._reaches(node, kernel, stride, padding, dilation),
            -torch.inf,
            partial(max_pool2d, kernel_size=kernel, stride=stride, dilation=dilation),
        )

    def _avg_pool(
        self,
        node: fx.Node,
        source: Any,
        kernel: Any,
        stride: Any,
        padding: Any,
        with_padding: bool,
        divisor: int | None,
    ) -> Sliding | None:
        if not self._is_map(source):
            return None
        stride = kernel if stride is None or stride == [] else stride
        reaches = self._reaches(node, kernel, stride, padding, 1)
        counts = [
            _counted(reach, rows, with_padding)
            for reach, rows in zip(reaches, self.values[source].shape[-2:], strict=True)
        ]
        like = self.values[node]
        divisors = [torch.tensor(c, dtype=like.dtype, device=like.device) for c in counts]
        apply = partial(
            F.avg_pool2d, kernel_size=kernel, stride=stride, divisor_override=divisor or 1
        )
        by = None if divisor is not None else (divisors[0], divisors[1])
        return Sliding(source, reaches, 0.0, apply, divisors=by)

    def _pad(self, node: fx.Node, source: Any, pad: Any, value: float) -> Local | None:
        """A border; a negative one cuts off. Or channels of nothing but one number."""
        if not self._is_map(source):
            return None
        if any(pad[4:]):
            of_pictures = pad[2 * (self.values[source].ndim - 1) :]
            return None if any(pad[:4]) or any(of_pictures) else self._kept(node, (source,))
        before = (pad[2] if len(pad) > 2 else 0, pad[0])
        return Sliding(source, self._reaches(node, 1, 1, before, 1), value, _unchanged)

    def _given_convolution(self, node: fx.Node) -> Sliding | None:
        given = self._given(node, _CONVOLUTION, tensors=("weight", "bias"))
        if given is None or not isinstance(given.get("weight"), Tensor):
            return None
        return self._convolution(
            *(node, given["input"], given["weight"], given.get("bias"), given.get("stride", 1)),
            *(given.get("padding", 0), given.get("dilation", 1), given.get("groups", 1)),
        )

    def _every_few(self, node: fx.Node) -> Sliding | None:
        """Rows and columns at even distances, from one to another: ``x[:, :, ::2, 1:]``."""
        source, picks = node.args[0], node.args[1] if len(node.args) == 2 else None
        if not isinstance(source, fx.Node) or not self._is_map(source):
            return None
        if not isinstance(picks, tuple) or node.all_input_nodes[1:] or picks.count(Ellipsis) > 1:
            return None
        size = self.values[source].shape
        left = picks.index(Ellipsis) if Ellipsis in picks else len(picks)
        right = picks[left + 1 :]
        every = [*picks[:left], *[slice(None)] * (len(size) - left - len(right)), *right]
        if not all(isinstance(pick, slice) for pick in every):
            return None
        rows = [range(n)[pick] for n, pick in zip(size, every, strict=True)]
        if every[0] != slice(None) or not all(rows):
            return None
        steps, before = [r.step for r in rows[-2:]], [-r.start for r in rows[-2:]]
        crop = (*every[:-2], *(slice(None, None, step) for step in steps))
        reaches = self._reaches(node, 1, steps, before, 1)
        return Sliding(source, reaches, 0.0, partial(_picked, picks=crop))

    # ---- what keeps its place ---------------------------------------------------------------

    def _kept(self, node: fx.Node, sources: tuple[fx.Node, ...]) -> InPlace | None:
        size = self.values[node].shape[-2:]
        fits = all(self._is_map(s) and self.values[s].shape[-2:] == size for s in sources)
        if len({self.values[s].ndim for s in sources if fits}) != 1:
            return None
        others = set(node.all_input_nodes) - set(sources)
        return InPlace(sources) if fits and not others & self.follows else None

    def _is_alike_everywhere(self, nodes: Sequence[fx.Node]) -> bool:
        """Whether none of the tensors that do not depend on the picture differs between places."""
        fixed = [self.values[node] for node in nodes if node not in self.follows]
        return all(each.shape[-2:].numel() == 1 for each in fixed if isinstance(each, Tensor))

    def _given_batch_norm(self, node: fx.Node) -> InPlace | None:
        names = ("running_mean", "running_var", "weight", "bias")
        given = self._given(node, _BATCH_NORM, tensors=names)
        known = given is not None and isinstance(given.get("running_mean"), Tensor)
        known = known and self._has_channels(node)
        if given is None or not known or given.get("training") is True:
            return None
        return self._kept(node, (given["input"],))

    def _has_channels(self, node: fx.Node) -> bool:
        """Whether the axis behind the pictures' is not that of the rows."""
        return bool(self.values[node].ndim > 3)

    def _given_dropout(self, node: fx.Node, names: tuple[str, ...]) -> InPlace | None:
        given = self._given(node, names)
        still = given is not None and given.get("training") is False
        return self._kept(node, (given["input"],)) if given is not None and still else None

    def _elementwise(self, node: fx.Node) -> InPlace | None:
        changed = tuple(a for a in node.args if isinstance(a, fx.Node) and a in self.follows)
        if not changed or not self._is_alike_everywhere(node.all_input_nodes):
            return None
        return self._kept(node, tuple(dict.fromkeys(changed)))

    def _concatenation(self, node: fx.Node) -> InPlace | None:
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, list | tuple) or not isinstance(axis, int):
            return None
        ndim = self.values[node].ndim
        nodes = tuple(p for p in parts if isinstance(p, fx.Node) and p in self.follows)
        if len(nodes) != len(parts) or not 1 <= axis % ndim <= ndim - 3:
            return None
        return self._kept(node, tuple(dict.fromkeys(nodes)))

    def _reshaped(self, node: fx.Node) -> InPlace | None:
        """Channels picked, or an axis put in before the two of the map."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or not self._is_map(source):
            return None
        ndim = self.values[source].ndim
        if node.target is operator.getitem:
            index = node.args[1]
            picks = index if isinstance(index, tuple) else ()
            plain = (
                picks[:1] == (slice(None),)
                and all(i is None or isinstance(i, int | slice) for i in picks)
                and len(picks) - picks.count(None) <= ndim - 2
                and not node.all_input_nodes[1:]
            )
            return self._kept(node, (source,)) if plain else None
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if not isinstance(axis, int) or not 1 <= axis % (ndim + 1) <= ndim - 2:
            return None
        return self._kept(node, (source,))

    # ---- arguments --------------------------------------------------------------------------

    def _is_map(self, source: Any) -> bool:
        return (
            isinstance(source, fx.Node)
            and source in self.follows
            and isinstance(self.values[source], Tensor)
            and self.values[source].ndim >= 3
        )

    def _given(
        self, node: fx.Node, names: tuple[str, ...], tensors: tuple[str, ...] = ()
    ) -> dict[str, Any] | None:
        """The arguments by name; ``None`` where one other than the input is not fixed."""
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        for name, value in given.items():
            if name == "input":
                continue
            if isinstance(value, fx.Node):
                fixed = value not in self.follows and name in tensors
                if not fixed:
                    return None
                given[name] = self.values[value]
            elif isinstance(value, list | tuple) and any(isinstance(v, fx.Node) for v in value):
                return None
        return given


def _is_stochastic_depth(target: Any) -> bool:
    """Whether it is torchvision's function, which need not have been imported."""
    operators = sys.modules.get("torchvision.ops")
    return operators is not None and target is operators.stochastic_depth


def _is_torchs(module: nn.Module) -> bool:
    """Whether a module does what its class says: nothing overridden, no hook to be shown crops."""
    kind: Any = type(module)
    family: Any = next(
        (c for c in kind.__mro__ if c.__module__.startswith("torch.nn.modules")), None
    )
    own = {"forward", "_conv_forward"} & set(module.__dict__)
    same = not own or finds_no_indices(module)
    if family is None or kind.forward is not family.forward:
        return False
    # What a convolution's ``forward`` calls may be overridden by itself.
    inner = [getattr(each, "_conv_forward", None) for each in (kind, family)]
    return inner[0] is inner[1] and same


def _unchanged(crop: Tensor) -> Tensor:
    return crop


def _picked(crop: Tensor, picks: tuple[slice, ...]) -> Tensor:
    return crop[picks]


def _counted(reach: Reach, rows: int, with_padding: bool) -> list[int]:
    """By how many rows each output row of an average pooling divides."""
    counts = []
    for o in range(reach.rows):
        start = o * reach.stride - reach.before
        stop = min(start + reach.kernel, rows + reach.before)
        if not with_padding:
            start, stop = max(start, 0), min(stop, rows)
        counts.append(stop - start)
    return counts
