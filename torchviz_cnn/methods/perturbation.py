"""Attribution by changing the picture and watching the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn.attribution import WindowAttribution
from torchviz_cnn.endings import Kind
from torchviz_cnn.errors import InputError, is_whole
from torchviz_cnn.head import Output, joined
from torchviz_cnn.methods.examine import Examination, batch_of, examine
from torchviz_cnn.methods.incremental import Engine, engine_for
from torchviz_cnn.methods.plans import Request
from torchviz_cnn.methods.registry import attribution_method
from torchviz_cnn.methods.sidebyside import cores_for
from torchviz_cnn.methods.variants import (
    Fill,
    answers,
    check_precision,
    filling_of,
    in_words,
    scores_of_variants,
)
from torchviz_cnn.targets import ClassNames, Explained, ScoreKind, Target
from torchviz_cnn.targets import joined as answers_joined

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

Engines = Literal["auto", "incremental", "dense"]

# Variants in part, a core: so many share the reading of weights. With 25, VGG16 takes 1.04 times as long
# and ResNet18 1.08 times; with more nothing is gained, and ResNet50 takes longer again.
_IN_PART = 32


def _pair(value: Any, what: str) -> tuple[int, int]:
    given = value.tolist() if isinstance(value, np.ndarray | Tensor) else value
    pair = given if isinstance(given, Sequence) else (given, given)
    if len(pair) != 2 or not all(is_whole(v) and v >= 1 for v in pair):
        raise InputError(
            f"{what} must be a positive number of pixels or two of them (height, width), "
            f"not {value!r}"
        )
    return int(pair[0]), int(pair[1])


def _windows(
    size: tuple[int, int],
    window: int | Sequence[int] | None,
    stride: int | Sequence[int] | None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Window, stride and the grid of positions they make."""
    w = (max(1, size[0] // 7), max(1, size[1] // 7)) if window is None else _pair(window, "window")
    s = (max(1, w[0] // 2), max(1, w[1] // 2)) if stride is None else _pair(stride, "stride")
    if w[0] > size[0] or w[1] > size[1]:
        raise InputError(f"the window {w[0]}×{w[1]} is larger than the picture {size[0]}×{size[1]}")
    if s[0] > w[0] or s[1] > w[1]:
        raise InputError(
            f"the stride {s[0]}×{s[1]} is larger than the window {w[0]}×{w[1]}, so that pixels "
            "between the windows would never be hidden"
        )
    rows, columns = (math.ceil((size[i] - w[i]) / s[i]) + 1 for i in (0, 1))
    return w, s, (rows, columns)


class _Grid:
    """All pictures untouched, then all with the first window hidden, and so on, by number."""

    def __init__(
        self,
        images: Tensor,
        filling: Tensor,
        window: tuple[int, int],
        stride: tuple[int, int],
        positions: tuple[int, int],
    ) -> None:
        self.images = images
        self.filling = filling
        self.window = window
        self.stride = stride
        self.columns = positions[1]
        self.count = positions[0] * positions[1]
        self.ys, self.xs = (torch.arange(n, device=images.device) for n in images.shape[2:])

    def pictures(self, start: int, size: int) -> Tensor:
        """``size`` pictures from number ``start`` on; the last one again where there are no more."""
        numbers = torch.arange(start, start + size, device=self.images.device)
        numbers = numbers.clamp(max=len(self.images) * (1 + self.count) - 1)
        image, position = numbers % len(self.images), numbers // len(self.images) - 1
        untouched = position < 0
        top = (position // self.columns * self.stride[0])[:, None]
        left = (position % self.columns * self.stride[1])[:, None]
        hidden_rows = (self.ys >= top) & (self.ys < top + self.window[0]) & ~untouched[:, None]
        hidden_columns = (self.xs >= left) & (self.xs < left + self.window[1])
        hidden = (hidden_rows[:, :, None] & hidden_columns[:, None, :])[:, None]
        return torch.where(hidden, self.filling[image], self.images[image])


def most_in_part(images: Tensor, batch_size: int | None) -> int:
    """How many hidden variants may be computed in part at once, on all cores together.

    They take less room than whole ones; the engine looks at that for itself.
    """
    if batch_size is not None:
        return batch_size
    return max(_IN_PART, batch_of(images, None, 8)) * cores_for(images.device)


@attribution_method
def occlusion(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    fill: Fill = 0.0,
    score: ScoreKind = "logit",
    batch_size: int | None = None,
    all_scores: bool = True,
    progress: bool = False,
    classes: ClassNames | None = None,
    engine: Engines = "auto",
    dtype: torch.dtype | None = None,
) -> WindowAttribution:
    """How much of the score is lost when a window of the picture is hidden.

    The window slides over the picture in steps of ``stride``; the last ones are clipped at the
    border: ``ceil((H − window) / stride) + 1`` rows. Needs no gradient, only the network's answer.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        window: its height and width in pixels, or one number for both; a seventh of the picture's
            side by default.
        stride: its steps, likewise; half the window by default.
        fill: what hides: a value (0 is the data set's mean after the usual normalisation), one a
            channel, ``"mean"`` (of each picture's channels), ``"blur"`` (the picture itself,
            blurred), or an array: one picture, or one for each, of the shape of ``inputs``.
        batch_size: hidden variants in one forward pass; bounds the memory. By default as many as
            have the pixels of 8 pictures of 224×224, on a GPU of 64; at most 256.
        all_scores: keep the scores of all classes for every window,
            ``N · rows · columns · classes`` numbers; of classifiers only.
        progress: show a progress bar in a terminal, when it takes over two seconds.
        engine: ``"dense"`` runs the whole network for every window. ``"incremental"`` computes of
            every early map only what the window changes, and from where that is most of it the
            rest as usual: the same numbers up to rounding, several times faster on large pictures.
            It needs a network that ``torch.fx`` can trace, without hooks (sizes of maps may be asked
            for, and modules that cannot be traced are run as they are, if they keep nothing);
            memory for one picture's maps, for a copy of the convolutions' weights and, on a CPU, up
            to 256 MiB (less where ``batch_size`` is small) for those of large ones, transformed;
            and runs the network's own ``forward`` a few times more to trace a copy of it.
            ``"auto"`` takes it where it is possible and clearly pays (on a CPU; the
            logger ``torchviz_cnn`` tells at level INFO why it was impossible, or saves little).
        dtype: ``torch.bfloat16`` (two to three digits) or ``torch.float16`` (three, of numbers up to
            65504) runs what ``torch.autocast`` finds suitable in it, on a GPU much faster; by the dense engine.

    Returns:
        ``values``: score of the untouched picture minus score with the window hidden,
        ``(N, rows, columns)``; positive where the network needs what is there. The heat map has at
        each pixel the mean over the windows that hid it. ``scores``, ``hidden_probability()`` and
        ``probability_map()`` tell of the hidden variants themselves.

    Raises:
        InputError: for bad inputs or targets, a window larger than the picture, a stride larger
            than the window, a fill that does not fit, an engine that cannot do it.

    Source: Zeiler, Fergus 2013, "Visualizing and Understanding Convolutional Networks",
    section 4.2.

    Example:
        >>> import torch, torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
        >>> result = tvc.occlusion(net, torch.randn(1, 1, 6, 6), target=1, window=2, stride=2)
        >>> result.values.shape, result.heatmap().shape
        (torch.Size([1, 3, 3]), torch.Size([1, 6, 6]))
    """
    if engine not in get_args(Engines):
        raise InputError(f"engine must be {' or '.join(get_args(Engines))}, not {engine!r}")
    check_precision(dtype, inputs)
    if dtype is not None and engine == "incremental":
        raise InputError("the incremental engine has no dtype; use engine='dense' with it")
    with examine(model, inputs, target, score, classes) as examination:
        has_channels = examination.inputs.ndim == 4
        images = examination.inputs if has_channels else examination.inputs[:, None]
        size = examination.size
        (wh, ww), (sh, sw), (rows, columns) = _windows(size, window, stride)
        filling = filling_of(fill, images, has_channels=has_channels)
        filling = filling.expand(images.shape)
        limit = most_in_part(images, batch_size)
        batch_size = batch_of(images, batch_size, 8)

        hiding = _Hiding(images, filling, (wh, ww), (sh, sw), (rows, columns))
        asked = _Asked(examination, has_channels, all_scores, batch_size, progress, dtype)
        parts = None
        if engine != "dense" and dtype is None:
            parts = engine_for(
                examination.module,
                examination.inputs,
                Request((wh, ww), (sh, sw), (rows, columns), limit),
                together=len(images) if examination.question.callable else 1,
                always=engine == "incremental",
            )
        found = _dense(hiding, asked) if parts is None else _incremental(hiding, asked, parts)
        whole = found.whole
        return WindowAttribution(
            values=(whole.score[..., None, None] - found.hidden).to(images),
            window=(wh, ww),
            stride=(sh, sw),
            scores=found.scores,
            kind=found.kind,
            **examination.about(
                whole,
                "occlusion",
                {
                    "window": [wh, ww],
                    "stride": [sh, sw],
                    "fill": fill if isinstance(fill, str | int | float) else "array",
                    **in_words(dtype),
                },
            ),
        )


@dataclass(frozen=True)
class _Hiding:
    """What is hidden of the pictures ``(N, C, H, W)``, by what."""

    images: Tensor
    filling: Tensor
    window: tuple[int, int]
    stride: tuple[int, int]
    positions: tuple[int, int]


@dataclass(frozen=True)
class _Asked:
    """What is wanted to know of the hidden variants, and how it is computed."""

    examination: Examination
    has_channels: bool
    all_scores: bool
    batch_size: int
    progress: bool
    dtype: torch.dtype | None

    def bar(self, total: int) -> tqdm[Any]:
        return tqdm(
            total=total,
            desc="occlusion",
            unit="window",
            delay=2,
            leave=False,
            disable=None if self.progress else True,
        )

    def kept(self, output: Output) -> Tensor | None:
        """The scores of all classes, where they are wanted."""
        if not self.all_scores or output.logits.ndim > 2:
            return None
        return output.logits.reshape(len(output.logits), -1).to(self.examination.inputs.device)


@dataclass(frozen=True)
class _Found:
    """What the network says.

    Attributes:
        whole: of the untouched pictures.
        hidden: the scores of the variants, ``(N, rows, columns)`` or ``(N, K, rows, columns)``.
        scores: those of all classes, ``(N, rows, columns, classes)``, where they are kept.
        kind: the network's final softmax or sigmoid.
    """

    whole: Explained
    hidden: Tensor
    scores: Tensor | None
    kind: Kind | None


def _dense(hiding: _Hiding, asked: _Asked) -> _Found:
    """Every variant through the whole network."""
    images, (rows, columns) = hiding.images, hiding.positions
    question = asked.examination.question
    grid = _Grid(images, hiding.filling, hiding.window, hiding.stride, hiding.positions)
    # The untouched pictures come first, then the variants, all in chunks of one size: the
    # same picture in a batch of another size may differ in its last bits, and hiding nothing
    # must cost exactly nothing.
    count = len(images) * (1 + rows * columns)
    chunk = math.ceil(count / math.ceil(count / asked.batch_size))
    if question.callable:  # which expects all images, in their order
        chunk = math.ceil(chunk / len(images)) * len(images)
    bar = asked.bar(count)
    references: list[Output] = []
    whole: Explained | None = None
    hidden_scores, every_score = [], []
    for start in range(0, count, chunk):
        pictures = grid.pictures(start, chunk)
        variants = pictures if asked.has_channels else pictures[:, 0]
        output = answers(asked.examination, variants, asked.dtype)
        untouched = min(max(len(images) - start, 0), chunk)
        stop = min(count - start, chunk)
        if untouched:
            references.append(output.rows(0, untouched))
        if stop > untouched:
            if whole is None:
                whole = question.put(joined(references))
            output = output.rows(untouched, stop)
            hidden_scores.append(scores_of_variants(question, whole, output, start + untouched))
            kept = asked.kept(output)
            if kept is not None:
                every_score.append(kept)
        bar.update(stop)
    bar.close()
    assert whole is not None  # there is at least one window

    several = whole.score.shape[1:]
    scores = torch.cat(hidden_scores).reshape(rows, columns, len(images), *several)
    keep = None
    if every_score:
        keep = torch.cat(every_score).reshape(rows, columns, len(images), -1).movedim(2, 0)
    return _Found(whole, scores.movedim((0, 1), (-2, -1)), keep, references[0].kind)


def _incremental(hiding: _Hiding, asked: _Asked, engine: Engine) -> _Found:
    """Of every variant only what its window changes; one picture after the other."""
    inputs, question = asked.examination.inputs, asked.examination.question
    filling = hiding.filling if asked.has_channels else hiding.filling[:, 0]
    together = len(inputs) if question.callable else 1
    bar = asked.bar(len(inputs) * math.prod(hiding.positions))
    found = []
    for start in range(0, len(inputs), together):
        stop = start + together
        part = question.part(start, stop) if together < len(inputs) else question
        reference = engine.show(inputs[start:stop], filling[start:stop])
        whole = part.put(reference)
        hidden = whole.score.new_empty((*hiding.positions, *whole.score.shape))
        known = asked.kept(reference)
        keep = None if known is None else known.new_empty((*hiding.positions, *known.shape))
        for positions, output in engine.tiles():
            at = tuple(torch.tensor(axis, device="cpu") for axis in zip(*positions, strict=True))
            rows = scores_of_variants(part, whole, output, 0)
            hidden[at] = rows.reshape(len(positions), *whole.score.shape)
            if keep is not None:
                every = output.logits.reshape(len(positions), *keep.shape[2:])
                keep[at] = every.to(keep.device)
            bar.update(len(output.raw))
        keep = None if keep is None else keep.movedim(2, 0)
        found.append(_Found(whole, hidden.movedim((0, 1), (-2, -1)), keep, reference.kind))
    bar.close()
    return _joined(found)


def _joined(found: Sequence[_Found]) -> _Found:
    """What was found of some pictures after the other."""
    keep = [each.scores for each in found if each.scores is not None]
    return _Found(
        answers_joined([each.whole for each in found]),
        torch.cat([each.hidden for each in found]),
        torch.cat(keep) if keep else None,
        found[0].kind,
    )
