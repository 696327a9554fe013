"""Other rules for the backward pass of a ReLU, whatever the forward pass called it.

Module, in-place, re-used, ``F.relu``, ``x.relu_()``: autograd differentiates each of them by one
operator, ``threshold_backward``. Rewriting that operator while the backward pass runs overrides
them all, changes nothing in the network and costs nothing in the forward pass.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.overrides import TorchFunctionMode

from torchviz_cnn.dispatch import OperatorMode
from torchviz_cnn.endings import known_as
from torchviz_cnn.errors import NotApplicable, levels_to_the_caller

Rule = Literal["guided", "deconvnet", "redirected"]

_ATEN = torch.ops.aten

# Activation functions that are not ReLUs. Sigmoids are left out: inside a CNN they are gates.
_OTHER_ACTIVATIONS = {
    _ATEN.elu_backward,
    _ATEN.gelu_backward,
    _ATEN.glu_backward,
    _ATEN.hardswish_backward,
    _ATEN.leaky_relu_backward,
    _ATEN.mish_backward,
    _ATEN._prelu_kernel_backward,
    _ATEN.silu_backward,
    _ATEN.softplus_backward,
    _ATEN.tanh_backward,
}


class ReLURule(OperatorMode):
    """Differentiate ReLU and ReLU6 by another rule inside the block.

    ``"guided"``: where the unit was active and the gradient is positive. ``"deconvnet"``: where the
    gradient is positive. ``"redirected"``: where the unit was active, and where it was not but a
    positive gradient asks it to become so. Enter it around the backward pass only.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.overridden = 0
        self.others = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        packet = func._overloadpacket
        # threshold_backward(gradient, activation, threshold); hardtanh_backward(…, min, max)
        if packet in (_ATEN.threshold_backward, _ATEN.hardtanh_backward):
            gradient, *rest = args
            if rest[1] == 0:
                self.overridden += 1
                if self.rule == "redirected":
                    return torch.where(gradient > 0, gradient, func(gradient, *rest, **kwargs))
                if self.rule == "deconvnet":
                    return gradient.clamp(min=0)
                return func(gradient, *rest, **kwargs).clamp_(min=0)  # a new tensor, still at hand
            self.others += 1
        elif packet in _OTHER_ACTIVATIONS:
            self.others += 1
        return func(*args, **kwargs)

    def report(self, *, warns: bool = True) -> None:
        """Say what was not overridden.

        Args:
            warns: whether to warn where there are few ReLUs.

        Raises:
            NotApplicable: when the backward pass met no ReLU at all.
        """
        if not self.overridden:
            raise NotApplicable(
                f"{self.rule} rules are about ReLUs, and between the picture and the score this "
                "network has none; use saliency instead"
            )
        share = self.overridden / (self.overridden + self.others)
        if warns and share < 0.5:
            warnings.warn(
                f"only {share:.0%} of the activation functions passed are ReLUs and follow the "
                f"{self.rule} rule; the others keep their ordinary gradient",
                stacklevel=levels_to_the_caller(),
            )


_CLAMPS = {
    torch.clamp: False,
    torch.clip: False,
    torch.clamp_min: False,
    Tensor.clamp: False,
    Tensor.clip: False,
    Tensor.clamp_min: False,
    torch.clamp_: True,
    torch.clip_: True,
    torch.clamp_min_: True,
    Tensor.clamp_: True,
    Tensor.clip_: True,
    Tensor.clamp_min_: True,
    _ATEN.clamp: False,  # in graphs that torch.export made
    _ATEN.clamp_min: False,
    _ATEN.clamp_: True,
    _ATEN.clamp_min_: True,
}


class clamps_as_relus(TorchFunctionMode):  # noqa: N801 - reads as the context it is
    """Run ``clamp(min=0)`` as a ReLU and ``clamp(0, b)`` as a hard tanh: equal in value.

    Their derivative is not ``threshold_backward``, so a rule would not see them.

    Attributes:
        rewritten: how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rewritten = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        in_place = _CLAMPS.get(known_as(func))
        if in_place is not None:
            low, high = _bounds(*args, **kwargs)
            values = args[0] if args else kwargs.get("input", kwargs.get("self"))
            if isinstance(low, int | float) and low == 0 and values.is_floating_point():
                if high is None:
                    self.rewritten += 1
                    return F.relu(values, inplace=in_place)
                if isinstance(high, int | float) and high > 0:
                    self.rewritten += 1
                    return F.hardtanh(values, 0.0, float(high), inplace=in_place)
        return func(*args, **kwargs)


def _bounds(_values: Any = None, min: Any = None, max: Any = None, **_: Any) -> tuple[Any, Any]:  # noqa: A002
    return min, max
