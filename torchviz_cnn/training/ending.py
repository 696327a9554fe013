"""What a network puts out at its end, and whether classes can be told apart by it."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn import head
from torchviz_cnn.endings import Kind
from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.inputs import blank, misfits_explained

# What hands numbers on without making a positive one negative …
_PASSES = re.compile(
    r"(Mean|Sum|View|UnsafeView|ReshapeAlias|Squeeze|Unsqueeze|Permute|Transpose|T|Clone|Alias|"
    r"Select|Slice|Index|Unbind|Expand|ToCopy|AvgPool2D|AdaptiveAvgPool2D|MaxPool2DWithIndices|"
    r"AdaptiveMaxPool2D|Amax|Amin|Max|Min|NativeDropout)Backward"
)
# … what leaves nothing below 0, and what does where its limit says so.
_RECTIFIES = re.compile(r"(Relu|Softplus)Backward")
_LIMITS = re.compile(r"(Hardtanh|Threshold|Clamp|ClampMin|Maximum)Backward")
# The limits' names in a graph: ReLU6 is a hardtanh; of a maximum either side may be one.
_LOWER = ("min_val", "threshold", "min", "self", "other")


def ending_of(module: nn.Module, input_size: tuple[int, ...], classes: int) -> Kind | None:
    """The final softmax or sigmoid of a network, once it is known to fit a number of classes.

    Raises:
        InputError: when it does not: two classes take one output or two, more take one each; one
            alone must not come out of a ReLU.
    """
    if classes < 2:
        raise InputError("two classes or more are needed to tell apart, and one is named")
    output = _tried(module, input_size)
    outputs = 1 if head.is_single(output.logits) else output.logits.shape[1]
    fitting = (1, 2) if classes == 2 else (classes,)
    if output.logits.ndim > 2 or outputs not in fitting:
        raise InputError(
            f"the network puts out {'×'.join(map(str, output.logits.shape[1:])) or 1} numbers a "
            f"picture; {classes} classes call for {' or '.join(map(str, fitting))}"
        )
    if outputs > 1 and output.kind == "sigmoid":
        raise InputError(
            f"the network ends in a sigmoid of {outputs} outputs, as if a picture could be of "
            "several classes; end it in a softmax, or in one output for two classes"
        )
    if outputs == 1 and _is_rectified(output.logits):
        raise InputError(
            "the network's one score comes out of a ReLU: it is never below 0, so the network could "
            "never say the first class; leave that ReLU out, or give the network two outputs"
        )
    return output.kind


def never_negative(module: nn.Module, input_size: tuple[int, ...]) -> bool:
    """Whether a network's scores come out of a ReLU, as SqueezeNet's do.

    One such score cannot tell two classes apart: a sigmoid of it is never below a half.

    Example:
        >>> layers = [nn.Conv2d(3, 1, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        >>> never_negative(nn.Sequential(*layers), (3, 8, 8))
        True
        >>> never_negative(nn.Sequential(*layers, nn.Linear(1, 1)), (3, 8, 8))
        False
    """
    return _is_rectified(_tried(module, input_size).logits)


def _tried(module: nn.Module, input_size: tuple[int, ...]) -> head.Output:
    """What comes of two empty pictures, with its graph."""
    pair = blank(module, input_size).repeat(2, *(1 for _ in input_size))
    with misfits_explained(module, pair), undisturbed(module, pair), torch.enable_grad():
        return head.run(module, pair.requires_grad_(), sure=True)


def _is_rectified(scores: Tensor) -> bool:
    """Whether the last thing done to scores, but for averaging and reshaping, is a ReLU."""
    step = scores.grad_fn
    while step is not None and _PASSES.match(step.name()):
        step = step.next_functions[0][0]
    if step is None:
        return False
    return bool(_RECTIFIES.match(step.name())) or (
        bool(_LIMITS.match(step.name())) and any(_is_lower_limit(step, name) for name in _LOWER)
    )


def _is_lower_limit(step: Any, name: str) -> bool:
    """Whether a step of a graph keeps a number, or numbers, of at least 0 to cut off below."""
    limit = getattr(step, f"_saved_{name}", None)
    if not isinstance(limit, Tensor):
        return limit is not None and float(limit) >= 0
    cut_off = name == "self" and not step.name().startswith("Maximum")
    return not cut_off and not limit.requires_grad and bool((limit >= 0).all())
