"""In which order a picture's numbers lie in memory when a network is shown it.

On a CPU many networks are up to twice as fast channels last, where the numbers of a pixel are
neighbours. The weights are somebody else's and stay as they are; the picture is copied anyway,
because some networks write into it, and so can be copied in that order at no cost.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from torchviz_cnn import head
from torchviz_cnn.guard import rehearsing
from torchviz_cnn.head import Output, tensor_in

# Every convolution lays its weights out anew at each call, which can take longer than is won. Of one
# picture of 224×224 on two cores, with so many weights a pixel as stand behind the colon, networks
# took of the time that they take channels first: mobilenet_v2 0.76: 0, cat_dog 0.56: 11,
# densenet121 0.78: 43, googlenet 0.59: 66; resnet18 1.3: 219, but 0.83: 27 in a batch of 8.
# Where the first maps are large, as VGG16's are (0.83: 293), there is more to win.
_WEIGHTS_A_PIXEL = 100
_FIRST_MAPS = 16  # numbers of the first maps a pixel, of ResNet
_WEIGHTS: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()

# Whether a network answers the same channels last, as was seen in a rehearsal.
_INDIFFERENT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
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
    if not _indifferent(module, inputs):
        output = head.run(module, inputs, sure=sure, variants_of=variants_of)
        # Also of one that only its hooks keep running, and that no rehearsal can tell anything of.
        _INDIFFERENT[module] = False
        return output
    gradients, randomness = torch.is_grad_enabled(), torch.get_rng_state()
    try:
        output = head.run(
            module, inputs, sure=sure, variants_of=variants_of, layout=torch.channels_last
        )
    except Exception:
        torch.set_grad_enabled(gradients)
        torch.set_rng_state(randomness)
        output = head.run(module, inputs, sure=sure, variants_of=variants_of)
        _INDIFFERENT[module] = False
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
    return _weights(module) <= _WEIGHTS_A_PIXEL * len(inputs) * math.prod(inputs.shape[-2:])


def _weights(module: nn.Module) -> float:
    """How many weights are laid out anew, less where the first maps are large; infinite without a
    convolution, where nothing is won.

    Remembered, though parts may be exchanged: it decides about nothing but speed.
    """
    if module not in _WEIGHTS:
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        _WEIGHTS[module] = math.inf
        if convolutions:
            turned = [m for m in convolutions if m.groups == 1 and max(m.kernel_size) > 1]
            first = convolutions[0].out_channels / math.prod(convolutions[0].stride)
            count = sum(m.weight.numel() for m in turned)
            _WEIGHTS[module] = count / max(1, first / _FIRST_MAPS)
    return _WEIGHTS[module]


def _indifferent(module: nn.Module, inputs: Tensor) -> bool:
    if module not in _INDIFFERENT:
        try:
            wanted = _rehearsed(module, inputs, torch.contiguous_format)
        except Exception:  # not for its layout: the run that is meant will say it
            return False
        try:
            found = _rehearsed(module, inputs, torch.channels_last)
        except Exception:
            _INDIFFERENT[module] = False
        else:
            _INDIFFERENT[module] = _same(found, wanted)
    return _INDIFFERENT[module]


def _rehearsed(module: nn.Module, inputs: Tensor, layout: torch.memory_format) -> Tensor:
    with torch.no_grad(), rehearsing(module, inputs):
        return tensor_in(module(inputs[:1].detach().clone(memory_format=layout))).clone()


def _same(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or not found.is_floating_point():
        return False
    room = _ROUNDING if found.dtype is torch.float32 else 2**5 * _ROUNDING
    off, most = (found - wanted).abs().amax(), wanted.abs().amax()
    return bool(off <= room * most)
