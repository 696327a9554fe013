"""Variants of the pictures: what they are filled with, and what the network says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.beside_tensorflow import leave_triton_out
from torchviz_cnn.errors import InputError
from torchviz_cnn.head import Output
from torchviz_cnn.layout import run
from torchviz_cnn.methods.examine import Examination, gradients
from torchviz_cnn.targets import Explained, Question

Fill = float | Sequence[float] | str | Tensor | np.ndarray


def filling_of(fill: Fill, images: Tensor, *, has_channels: bool, what: str = "fill") -> Tensor:
    """What a hidden pixel becomes, broadcastable to ``images`` ``(N, C, H, W)``.

    Args:
        fill: a value, one a channel, ``"mean"`` of each picture's channels, ``"blur"``, or an array.
        images: ``(N, C, H, W)``.
        has_channels: whether the user gave the channel axis.
        what: what the user calls it.

    Raises:
        InputError: for anything else.
    """
    if isinstance(fill, str):
        if fill == "mean":
            return images.mean((2, 3), keepdim=True)
        if fill == "blur":
            sigma = max(1.0, min(images.shape[2:]) / 14)
            reach = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
            if reach < 1:
                raise InputError("a picture one pixel wide cannot be blurred; fill with a value")
            leave_triton_out()
            from torchvision.transforms.v2.functional import gaussian_blur

            return gaussian_blur(images, [2 * reach + 1] * 2, [sigma, sigma])
        raise InputError(f"{what} must be a value, 'mean', 'blur' or an array, not {fill!r}")
    try:
        values = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{what} must be a value, 'mean', 'blur' or an array, not {type(fill).__name__}"
        ) from None
    if not bool(values.isfinite().all()):
        raise InputError.about(what, "must be made of finite numbers")
    like_inputs = values.ndim == 3 and not has_channels  # a picture for each
    if values.ndim == 1:  # one value a channel
        values = values[:, None, None]
    given = tuple(values.shape)
    if like_inputs:
        values = values[:, None]
    try:
        return values.expand(images.shape)
    except RuntimeError:
        shape = images.shape if has_channels else images[:, 0].shape
        raise InputError.about(
            what,
            f"of shape {given} does not fit pictures of shape {tuple(shape)}; give one value, one a "
            "channel, or a picture",
        ) from None


def scores_of_variants(question: Question, whole: Explained, output: Output, start: int) -> Tensor:
    """The explained scores of variants of the pictures.

    Args:
        question: what is asked of the pictures.
        whole: what the untouched pictures answered.
        output: for the variants: of all pictures in their order, then of all again.
        start: the number of the first of them.
    """
    images = question.images
    if question.callable:
        groups = range(0, len(output.logits), images)
        return torch.cat([question.put(output.rows(at, at + images)).score for at in groups])
    count = len(output.logits)
    assert whole.target is not None
    numbers = torch.arange(start, start + count, device=output.logits.device)
    return question.again(whole.target[numbers % images], count).put(output).score


def check_precision(dtype: torch.dtype | None, inputs: Tensor) -> None:
    """Refuse a precision that the network cannot be run in by autocast.

    Raises:
        InputError: unless it is ``None``, bfloat16 or float16, for single-precision inputs.
    """
    if dtype is None:
        return
    if dtype not in (torch.bfloat16, torch.float16):
        raise InputError(f"dtype must be torch.bfloat16, torch.float16 or None, not {dtype!r}")
    if getattr(inputs, "dtype", torch.float32) is not torch.float32:
        raise InputError(
            f"dtype={dtype} is for networks and inputs in torch.float32, not {inputs.dtype}"
        )


def in_words(dtype: torch.dtype | None) -> dict[str, str]:
    """A lower precision, for the manifest."""
    return {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}


def answers(examination: Examination, variants: Tensor, dtype: torch.dtype | None = None) -> Output:
    """What the network says of variants of the pictures, without a graph.

    Args:
        examination: network, pictures, question.
        variants: of the shape of pictures.
        dtype: run what ``torch.autocast`` finds suitable in this precision; answers are in that of
            the pictures.
    """
    inputs = examination.inputs
    lower = nullcontext() if dtype is None else torch.autocast(inputs.device.type, dtype)
    # Inference mode saves nothing that can be measured, and its tensors do not count their
    # versions, by which a final activation that is written over is told.
    with torch.no_grad(), lower:
        output = run(
            *(examination.module, variants), sure=True, variants_of=inputs, lower=dtype is not None
        )
    if dtype is None:
        return output
    return Output(output.raw.to(inputs.dtype), output.logits.to(inputs.dtype), output.kind)


def gradients_of_variants(examination: Examination, whole: Explained, variants: Tensor) -> Tensor:
    """The scores' gradients at variants of the pictures, from one forward pass of all of them.

    Args:
        examination: network, pictures, question.
        whole: what the untouched pictures answered.
        variants: ``(M, N, C, H, W)`` or ``(M, N, H, W)``: M of each picture.

    Returns:
        ``(M, N[, K], C, H, W)``.

    Raises:
        InputError: when the score does not depend on the picture differentiably.
    """
    leaf = variants.flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        output = run(examination.module, leaf, variants_of=examination.inputs)
        score = scores_of_variants(examination.question, whole, output, 0)
    found = gradients(Explained(score, None), leaf, of="the picture")
    return found.unflatten(0, variants.shape[:2])
