"""What may be given to a network, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError
from torchviz_cnn.naming import known

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


def check_inputs(model: nn.Module | Model, module: nn.Module, inputs: object) -> Tensor:
    """The images out of any graph and out of inference mode; the numbers are still the caller's.

    Raises:
        InputError: unless they are a floating-point tensor ``(N, C, H, W)`` or ``(N, H, W)`` with
            at least one image, on the network's device and of its dtype and channel count.
    """
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"inputs must be a tensor (N, C, H, W), not {type(inputs).__name__}; "
            "model.preprocess(picture) makes one"
        )
    shape = "(" + ", ".join(map(str, inputs.shape)) + ")"
    if inputs.ndim not in (3, 4) or 0 in inputs.shape:
        raise InputError(f"inputs must be (N, C, H, W), at least one image, not {shape}")
    if not inputs.is_floating_point():
        raise InputError(
            f"inputs must be floating point, not {inputs.dtype}; scale and normalise the pictures "
            "as the network was trained, model.preprocess(picture) does"
        )
    size = known(model, "input_size")
    if size is not None and (inputs.ndim != len(size) + 1 or inputs.shape[1:-2] != size[:-2]):
        expected = ", ".join(["N", *map(str, size)])
        raise InputError(f"this network takes ({expected}), not {shape}")
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        if parameter.device != inputs.device:
            raise InputError(
                f"the network is on {parameter.device} and the inputs are on {inputs.device}; "
                f"move them with inputs.to({str(parameter.device)!r})"
            )
        if parameter.dtype != inputs.dtype and not torch.is_autocast_enabled(inputs.device.type):
            raise InputError(
                f"the network is {parameter.dtype} and the inputs are {inputs.dtype}; "
                f"convert them with inputs.to({parameter.dtype})"
            )
    if not inputs.is_inference():
        return inputs.detach()
    with torch.inference_mode(False), torch.no_grad():
        return inputs.clone()


@contextmanager
def batch_axis_required(module: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Refuse a ``(C, H, W)`` picture given as if it were N pictures without a channel axis.

    A convolution takes both, so the network would run and explain something else. What tells them
    apart is what reaches the first convolution: three axes mean the batch axis was forgotten.
    """
    handles = []

    def refuse(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            raise InputError(
                f"inputs of shape {tuple(inputs.shape)} reached a convolution without a batch "
                "axis; give (N, C, H, W): inputs[None] for one picture, inputs[:, None] for N "
                "gray ones"
            )

    if inputs.ndim == 3:
        handles = [
            m.register_forward_pre_hook(refuse)
            for m in module.modules()
            if isinstance(m, nn.Conv2d)
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
