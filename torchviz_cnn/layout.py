"""In which order a picture's numbers lie in memory when a network is shown it.

On a CPU many networks are up to twice as fast channels last, where the numbers of a pixel are
neighbours. The weights are somebody else's and stay as they are; the picture is copied anyway,
because some networks write into it, and so can be copied in that order at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from torchviz_cnn import head
from torchviz_cnn.guard import every_module, rehearsing
from torchviz_cnn.head import Output, tensor_in

# Every convolution lays its weights out anew at each call, which can take longer than is won. Of one
# picture of 224×224 on two cores, with so many weights a pixel as stand behind the colon, networks
# took of the time that they take channels first: mobilenet_v2 0.76: 0, cat_dog 0.56: 11,
# densenet121 0.78: 43, googlenet 0.51: 66; but resnet50 0.97: 221, resnet18 0.99: 219.
_WEIGHTS_A_PIXEL = 100
# Networks with more of them are run channels last up to the convolutions that have more than so many
# weights for a pixel of their map: resnet50 0.90, resnet18 0.87, vgg16 0.78 (0.80 without that).
_WEIGHTS_A_PIXEL_OF_A_MAP = 500
_MOST_WEIGHTS_A_PIXEL = 1000  # resnet18 of a picture of 128×128 0.97: 670, of 96×96 1.02: 1192
_WEIGHTS: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()

# Whether a network answers the same channels last, as was seen in a rehearsal; and whether it does
# where its convolutions with many weights are given their maps channels first.
_INDIFFERENT: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
_ROUNDING = 1e-3  # of the largest score; two orders of float32 sums differ by much less


def run(
    module: nn.Module,
    inputs: Tensor,
    *,
    sure: bool = False,
    variants_of: Tensor | None = None,
    lower: bool = False,
) -> Output:
    """:func:`torchviz_cnn.head.run`, in the faster layout where the network can be run so.

    A network that looks at how its numbers lie in memory (``x.view(n, -1)``, ``as_strided``,
    dropout that is never switched off) gets them as they were given: the first time that a network
    could be run channels last, it is rehearsed in both layouts on one picture, and the answers are
    compared.

    Args:
        module: an unwrapped network, inside :func:`~torchviz_cnn.guard.undisturbed`.
        inputs, sure, variants_of: as there.
        lower: whether it runs under autocast that this library has turned on.

    Returns:
        What the network puts out, contiguous where the inputs are.

    Raises:
        NoScores: as there; and whatever the network raises for inputs as they were given.
    """
    if not _pays(module, inputs, lower):
        return head.run(module, inputs, sure=sure, variants_of=variants_of)
    heavy = not lower and _weights(module) > _WEIGHTS_A_PIXEL * _pixels(inputs)
    indifferent = _INDIFFERENT.setdefault(module, {})
    if not _is_indifferent(module, inputs, heavy):
        output = head.run(module, inputs, sure=sure, variants_of=variants_of)
        # Also of one that only its hooks keep running, and that no rehearsal can tell anything of.
        indifferent[heavy] = False
        return output
    gradients, randomness = torch.is_grad_enabled(), torch.get_rng_state()
    try:
        with _turning_back(module) if heavy else nullcontext():
            output = head.run(
                module, inputs, sure=sure, variants_of=variants_of, layout=torch.channels_last
            )
    except Exception:
        torch.set_grad_enabled(gradients)
        torch.set_rng_state(randomness)
        output = head.run(module, inputs, sure=sure, variants_of=variants_of)
        indifferent[heavy] = False
        return output
    return output.contiguous()


def _pays(module: nn.Module, inputs: Tensor, lower: bool) -> bool:
    """Whether the network is likely to be faster channels last."""
    if inputs.ndim != 4 or inputs.dtype is not torch.float32 or not inputs.is_contiguous():
        return False
    if inputs.is_cuda or lower:
        return lower
    if inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return _weights(module) <= _MOST_WEIGHTS_A_PIXEL * _pixels(inputs)


def _pixels(inputs: Tensor) -> int:
    return len(inputs) * math.prod(inputs.shape[-2:])


def _weights(module: nn.Module) -> float:
    """How many weights are laid out anew; infinite without a convolution, where nothing is won.

    Remembered, though parts may be exchanged: it decides about nothing but speed.
    """
    if module not in _WEIGHTS:
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        count = sum(m.weight.numel() for m in convolutions if _is_turned(m))
        _WEIGHTS[module] = count if convolutions else math.inf
    return _WEIGHTS[module]


def _is_turned(convolution: nn.Conv2d) -> bool:
    """Whether its weights lie otherwise channels last."""
    return convolution.groups == 1 and max(convolution.kernel_size) > 1


@contextmanager
def _turning_back(module: nn.Module) -> Iterator[None]:
    """Give convolutions with many weights for their maps what they read channels first."""
    hooks = [
        each.register_forward_pre_hook(_turned_back)
        for each in every_module(module)
        if isinstance(each, nn.Conv2d) and _is_turned(each)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _turned_back(convolution: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    assert isinstance(convolution, nn.Conv2d)
    maps = args[0] if args else None
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        return None
    pixels = _pixels(maps) / math.prod(convolution.stride)
    if convolution.weight.numel() <= _WEIGHTS_A_PIXEL_OF_A_MAP * pixels:
        return None
    return maps.contiguous(), *args[1:]


def _is_indifferent(module: nn.Module, inputs: Tensor, heavy: bool) -> bool:
    known = _INDIFFERENT[module]
    if heavy not in known:
        try:
            wanted = _rehearsed(module, inputs, torch.contiguous_format)
        except Exception:  # not for its layout: the run that is meant will say it
            return False
        try:
            found = _rehearsed(module, inputs, torch.channels_last, heavy)
        except Exception:
            known[heavy] = False
        else:
            known[heavy] = _same(found, wanted)
    return known[heavy]


def _rehearsed(
    module: nn.Module, inputs: Tensor, layout: torch.memory_format, heavy: bool = False
) -> Tensor:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(rehearsing(module, inputs))
        if heavy:
            stack.enter_context(_turning_back(module))
        return tensor_in(module(inputs[:1].detach().clone(memory_format=layout))).clone()


def _same(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or not found.is_floating_point():
        return False
    room = _ROUNDING if found.dtype is torch.float32 else 2**5 * _ROUNDING
    off, most = (found - wanted).abs().amax(), wanted.abs().amax()
    return bool(off <= room * most)
