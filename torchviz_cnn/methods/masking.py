"""Attribution by showing the network only what its own feature maps look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn.attribution import CellAttribution
from torchviz_cnn.layout import run
from torchviz_cnn.methods.examine import Examination, batch_of, examine, parts
from torchviz_cnn.methods.passes import Chosen, HeldMaps, LayerChoice, choose
from torchviz_cnn.methods.registry import attribution_method
from torchviz_cnn.methods.variants import answers, check_precision, in_words, scores_of_variants
from torchviz_cnn.resample import upsample
from torchviz_cnn.targets import ClassNames, Explained, ScoreKind, Target, joined
from torchviz_cnn.tracing import place_of_layer, traced

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


@attribution_method
def score_cam(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    classes: ClassNames | None = None,
    dtype: torch.dtype | None = None,
) -> CellAttribution:
    r"""Where the network sees the class, without gradients: maps by the score of what they show.

    .. math::
        H^k = s(\mathrm{Up}(A^k)), \quad s(A) = \frac{A - \min A}{\max A - \min A}, \quad
        \alpha_k = \frac{e^{S_c(I \circ H^k)}}{\sum_l e^{S_c(I \circ H^l)}}, \quad
        M = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big)

    The score of an empty picture, which the paper subtracts, cancels in :math:`\alpha`. A map that
    is the same everywhere shows nothing. One forward pass a channel: 512 for VGG16, 2048 for
    ResNet50.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`. Between
            probabilities (``score="probability"``) the :math:`\alpha` differ less than between
            logits.
        layer, relu: as for :func:`~torchviz_cnn.grad_cam`.
        batch_size: masked pictures in one forward pass; bounds the memory. By default as many as
            have the pixels of 8 pictures of 224×224, on a GPU of 64; a callable target sees all
            pictures at once.
        progress: show a progress bar in a terminal, when it takes over two seconds.
        dtype: ``torch.bfloat16`` (two to three digits) or ``torch.float16`` (three, of numbers up to
            65504) runs what ``torch.autocast`` finds suitable in it, on a GPU much faster.

    Returns:
        ``values``: as for :func:`~torchviz_cnn.grad_cam`.

    Raises:
        InputError: for bad inputs or targets, a layer that is not there or puts out no feature
            maps, a network without a convolution.

    Source: Wang et al. 2020, "Score-CAM: Score-Weighted Visual Explanations for Convolutional
    Neural Networks", section 3.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.score_cam(net, torch.randn(1, 3, 32, 48), layer="layer1").values.shape
        torch.Size([1, 8, 12])
    """
    check_precision(dtype, inputs)
    with examine(model, inputs, target, score, classes) as examination:
        chosen = choose(examination.module, layer, examination.inputs)
        explained, values = [], []
        for part in parts(examination, batch_size, 8):
            with traced(examination.module, part.inputs) as trace:
                maps, whole = _maps(part, chosen)
            bar = tqdm(
                total=maps.shape[0] * maps.shape[1],
                desc="score_cam",
                unit="map",
                delay=2,
                leave=False,
                disable=None if progress else True,
            )
            scores = []
            for start, variants in _masked(part, maps, batch_size):
                output = answers(part, variants, dtype)
                scores.append(scores_of_variants(part.question, whole, output, start))
                bar.update(len(variants))
            bar.close()
            shape = (maps.shape[1], *whole.score.shape)  # (C, N) or (C, N, K)
            weights = torch.cat(scores).reshape(shape).softmax(0).to(maps)
            axes = "cnk,nchw->nkhw" if whole.score.ndim == 2 else "cn,nchw->nhw"
            values.append(torch.einsum(axes, weights, maps))
            explained.append(whole)
        value = torch.cat(values)
        return CellAttribution(
            values=(value.relu() if relu else value).to(examination.inputs),
            layer=chosen.name,
            place=place_of_layer(examination.module, chosen.name, trace),
            **examination.about(joined(explained), "score_cam", {"relu": relu, **in_words(dtype)}),
        )


def _maps(part: Examination, layer: Chosen) -> tuple[Tensor, Explained]:
    """The layer's maps ``(N, C, h, w)``, and what the untouched pictures answer."""
    held = HeldMaps([layer], cut=False)
    with held.on(part.module):
        output = run(part.module, part.inputs, sure=True)
    return held.taken()[layer.name].detach(), part.question.put(output).detached()


def _masked(part: Examination, maps: Tensor, batch: int | None) -> Iterator[tuple[int, Tensor]]:
    """All pictures as their first map shows them, then all by the second, and so on.

    Yields:
        The number of the first, and some of them.
    """
    images = part.inputs
    count, size = len(images), batch_of(images, batch, 8)
    if part.question.callable:  # which expects all pictures, in their order
        size = count * max(1, size // count)
    for start in range(0, count * maps.shape[1], size):
        numbers = torch.arange(
            start, min(start + size, count * maps.shape[1]), device=images.device
        )
        image = numbers % count
        masks = _scaled(upsample(maps[image, numbers // count], part.size)).to(images)
        yield start, images[image] * (masks[:, None] if images.ndim == 4 else masks)


def _scaled(maps: Tensor) -> Tensor:
    """Each map ``(M, H, W)`` from 0 to 1; one that is the same everywhere becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)
