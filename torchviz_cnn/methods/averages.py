"""Attribution by a mean of gradients: over noisy copies of the picture, and along a path to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.attribution import PathAttribution, PixelAttribution
from torchviz_cnn.errors import InputError, is_real, is_whole
from torchviz_cnn.layout import run
from torchviz_cnn.methods.examine import Examination, batch_of, examine, parts
from torchviz_cnn.methods.registry import attribution_method
from torchviz_cnn.methods.variants import (
    Fill,
    filling_of,
    gradients_of_variants,
    scores_of_variants,
)
from torchviz_cnn.targets import ClassNames, Explained, ScoreKind, Target, joined

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


def _count(value: object, what: str) -> int:
    if not (is_whole(value) and value >= 1):  # type: ignore[operator]
        raise InputError.about(what, f"must be a whole number of at least 1, not {value!r}")
    return int(value)  # type: ignore[call-overload]


def _steps(count: int, images: Tensor, batch_size: int | None) -> Iterator[tuple[int, int]]:
    """So many variants of each image, from and to, as go through the network at once."""
    size = max(1, batch_of(images, batch_size, 4) // len(images))
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _summing(like: Tensor) -> torch.dtype:
    """The precision that gradients are added up in."""
    return torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype


def _answer(part: Examination, images: Tensor) -> Explained:
    return part.question.put(run(part.module, images, sure=True)).detached()


@attribution_method
def smooth_grad(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    score: ScoreKind = "logit",
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PixelAttribution:
    r"""How strongly the score answers to each pixel of pictures like this one: the mean over noise.

    .. math::
        M = \frac{1}{n} \sum_{i=1}^{n} \frac{\partial S_c}{\partial I}(I + \epsilon_i), \qquad
        \epsilon_i \sim \mathcal{N}(0, \sigma^2)

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`; by default the
            top class of the picture without noise.
        samples: n, noisy copies of each picture.
        noise: σ as a share of the picture's range, ``max − min``; 0.1 to 0.2 in the paper.
        seed: of the noise. All pictures get the same, whatever the batch or device, and no other
            random numbers are touched.
        batch_size: noisy pictures in one forward and backward pass; bounds the memory. By default
            as many as have the pixels of 4 pictures of 224×224, on a GPU of 64. A callable target
            sees all pictures at once.

    Returns:
        ``values``: the mean signed gradient of every channel, ``(N, C, H, W)``; ``score`` is the
        untouched picture's. The heat map shows the largest magnitude over the channels.

    Raises:
        InputError: as :func:`~torchviz_cnn.saliency`; for no samples or negative noise.

    Source: Smilkov, Thorat, Kim, Viégas, Wattenberg 2017, "SmoothGrad: removing noise by adding
    noise", section 3.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.smooth_grad(net, torch.randn(1, 3, 64, 48), samples=3).values.shape
        torch.Size([1, 3, 64, 48])
    """
    count = _count(samples, "samples")
    if not (is_real(noise) and noise >= 0):
        raise InputError.about(
            "noise", f"must be a share of the picture's range, 0 or more, not {noise!r}"
        )
    if not (is_whole(seed) and -(2**63) <= seed < 2**64):
        raise InputError(f"seed must be a whole number of at most 64 bits, not {seed!r}")
    with examine(model, inputs, target, score, classes) as examination:
        explained, values = [], []
        for part in parts(examination, batch_size, 4):
            whole = _answer(part, part.inputs)
            total = _noisy(part, whole, count, float(noise), int(seed), batch_size)
            values.append((total / count).to(part.inputs.dtype))
            explained.append(whole)
        return PixelAttribution(
            values=torch.cat(values),
            quantity="mean gradient of the score",
            **examination.about(
                joined(explained),
                "smooth_grad",
                {"samples": count, "noise": float(noise), "seed": int(seed)},
            ),
        )


def _noisy(
    part: Examination, whole: Explained, count: int, noise: float, seed: int, batch: int | None
) -> Tensor:
    """The sum of the gradients at noisy copies, ``(N[, K], C, H, W)``."""
    images = part.inputs
    flat = images.flatten(1)
    sigma = noise * (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (images.ndim - 1))
    # On the CPU and in single precision, one copy after the other: a device, a precision or a
    # number of copies at once that differs must not mean other noise.
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    for start, stop in _steps(count, images, batch):
        draws = [
            torch.randn(images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
            for _ in range(start, stop)
        ]
        variants = images + sigma * torch.stack(draws)[:, None].to(images)
        found = gradients_of_variants(part, whole, variants).to(_summing(images)).sum(0)
        total = found if total is None else total + found
    assert total is not None  # there is at least one sample
    return total


@attribution_method
def integrated_gradients(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    baseline: Fill = 0.0,
    steps: int = 50,
    score: ScoreKind = "logit",
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PathAttribution:
    r"""What each pixel contributed to the score on the way from an empty picture to this one.

    .. math::
        M = (I - I') \int_0^1 \frac{\partial S_c}{\partial I}\big(I' + t (I - I')\big) \, dt

    The integral is approximated by Gauss-Legendre quadrature. Exactly, the values sum to
    :math:`S_c(I) - S_c(I')` (completeness); ``gap`` in the result tells how far the approximation
    is off, and more ``steps`` make it smaller.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        baseline: I': a value (0 is the data set's mean after the usual normalisation), one a
            channel, ``"mean"`` (of each picture's channels), ``"blur"`` (the picture itself,
            blurred), or an array: one picture, or one for each, of the shape of ``inputs``.
        steps: points of the path at which the gradient is taken.
        batch_size: as for :func:`smooth_grad`.

    Returns:
        ``values``: ``(N, C, H, W)``; ``baseline_score``, and ``gap``: their sum less the rise of
        the score, ``(N,)``. The heat map shows their sum over channels, with its sign.

    Raises:
        InputError: as :func:`~torchviz_cnn.saliency`; for no steps, a baseline that does not fit.

    Source: Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks", section 3.

    Example:
        >>> import torch, torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> result = tvc.integrated_gradients(net, torch.randn(2, 3, 2, 2), target=4, steps=1)
        >>> bool((result.gap.abs() < 1e-6).all())
        True
    """
    count = _count(steps, "steps")
    with examine(model, inputs, target, score, classes) as examination:
        empty = _baseline(examination, baseline)
        explained, below, values = [], [], []
        done = 0
        for part in parts(examination, batch_size, 4):
            own = empty[done : done + len(part.inputs)]
            done += len(part.inputs)
            whole = _answer(part, part.inputs)
            # A network that writes into its input must not write into the user's baseline.
            output = run(part.module, own.clone(), sure=True, variants_of=part.inputs)
            below.append(scores_of_variants(part.question, whole, output, 0).detach())
            values.append(_along_the_path(part, whole, own, count, batch_size))
            explained.append(whole)
        return PathAttribution(
            values=torch.cat(values),
            channels="sum",
            quantity="integrated gradient",
            baseline_score=torch.cat(below).to(examination.inputs.device),
            **examination.about(
                joined(explained),
                "integrated_gradients",
                {
                    "baseline": baseline if isinstance(baseline, str | int | float) else "array",
                    "steps": count,
                },
            ),
        )


def _baseline(examination: Examination, baseline: Fill) -> Tensor:
    """The empty picture of each image, of the shape of the inputs."""
    has_channels = examination.inputs.ndim == 4
    images = examination.inputs if has_channels else examination.inputs[:, None]
    empty = filling_of(baseline, images, has_channels=has_channels, what="baseline")
    empty = empty.expand(images.shape)
    return empty if has_channels else empty[:, 0]


def _along_the_path(
    part: Examination, whole: Explained, empty: Tensor, count: int, batch: int | None
) -> Tensor:
    """The values of integrated gradients, ``(N[, K], C, H, W)``."""
    images = part.inputs
    points, weights = np.polynomial.legendre.leggauss(count)  # of the interval −1…1
    total: Tensor | None = None
    for start, stop in _steps(count, images, batch):
        shape = (-1, *[1] * images.ndim)
        at = torch.from_numpy((points[start:stop] + 1) / 2).to(images).reshape(shape)
        found = gradients_of_variants(part, whole, empty + at * (images - empty))
        share = torch.from_numpy(weights[start:stop] / 2).to(found.device, _summing(images))
        found = torch.einsum("m,m...->...", share, found.to(_summing(images)))
        total = found if total is None else total + found
    assert total is not None  # there is at least one step
    way = images - empty
    return (total * (way[:, None] if whole.score.ndim == 2 else way)).to(images.dtype)
