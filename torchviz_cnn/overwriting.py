"""Layers of several parts, whose ReLU writes over what comes before it where nobody can tell.

A ReLU that puts its maps elsewhere needs memory for both, and fresh memory costs a process time. A module
cannot know who else holds what it is given, and so has to be told ``inplace=True`` by whoever wrote the
network; a layer that owns both parts can see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.modules import module as _of_all_modules

# What puts out a tensor that is its own: neither what it was given nor a view of that. Other classes say
# so by ``puts_out_its_own``.
_MAKERS: set[type[nn.Module]] = {
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear),
}
_OVER: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.ReLU6: lambda maps: F.hardtanh_(maps, 0.0, 6.0),
}


class Layer(nn.Sequential):
    """A named layer: a weighted operation, say, and the activation after it.

    Its parts follow one another. What the activation is given can be looked at, by a hook, as if it
    were not written over: then it is not.
    """

    is_layer = True
    layer_type = "Layer"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Sequential's name
        if is_scripting():  # TorchScript understands nothing else
            for part in self:
                input = part(input)  # noqa: A001
            return input
        return _in_turn(self, input)


def _in_turn(parts: Iterable[nn.Module], given: Tensor) -> Tensor:
    before: nn.Module | None = None
    for part in parts:
        given = part(given) if before is None else after(before, part, given)
        before = part
    return given


def after(maker: nn.Module, part: nn.Module, made: Tensor) -> Tensor:
    """``part(made)``; written over ``made`` where it is a ReLU and nobody can tell the difference.

    Args:
        maker: the module that put it out.
        part: the only one that is given it.
        made: a tensor that the caller will not use again.
    """
    over = _OVER.get(type(part))
    if (
        over is None
        or torch.compiler.is_compiling()  # a compiler sees for itself what can be written over
        or torch.is_grad_enabled()
        or type(made) is not Tensor
        or _is_shown(part)
        or not _keeps_to_itself(maker)
    ):
        found: Tensor = part(made)
        return found
    return over(made)


def _is_shown(activation: nn.Module) -> bool:
    """Whether anything but what its class does is to happen when it is called."""
    return bool(
        activation._forward_pre_hooks
        or activation._forward_hooks
        or "forward" in activation.__dict__
        or _of_all_modules._global_forward_pre_hooks
        or _of_all_modules._global_forward_hooks
    )


def _keeps_to_itself(maker: nn.Module) -> bool:
    """Whether nobody but the caller can hold what a module has put out."""
    if maker._forward_hooks or {"forward", "_conv_forward"} & maker.__dict__.keys():
        return False
    if getattr(type(maker), "forward", None) is Layer.forward:  # a traced one has none
        *_, last = (None, *maker.children())
        return last is not None and _keeps_to_itself(last)
    return type(maker) in _MAKERS or _says_so(maker)


def _says_so(maker: nn.Module) -> bool:
    """Whether it says so itself, or a class as far up as the ``forward`` that it has.

    What stands further up was said of another ``forward``.
    """
    for each in (maker, *type(maker).__mro__):
        if "puts_out_its_own" in each.__dict__:
            return bool(each.__dict__["puts_out_its_own"])
        if "forward" in each.__dict__:
            break
    return False
