"""Are two networks' explanations the same? An imported network's beside those of its ONNX file.

Equal layers make equal explanations only if the gradients are equal too, and a file has none. So
they are measured: the file is run in onnxruntime on inputs, and from feature maps on, that are a
little larger and a little smaller, and half the difference is the slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchviz_cnn.errors import InputError, NotApplicable, check_counts
from torchviz_cnn.methods import grad_cam, saliency
from torchviz_cnn.naming import module_of
from torchviz_cnn.observe import activations
from torchviz_cnn.tracing import default_layer

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

Array = NDArray[Any]

# Slopes measured in float32 are good to a few hundredths: rounding makes them worse for small steps,
# the corners of ReLUs and max pooling for large ones. What is wrong (axes exchanged, a rule of
# differentiation mistaken) is off by as much as there is.
AGREES = 0.1
STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of the spread of what is changed
SURE = 0.02  # three steps whose slopes are as near as that need no fourth
CLEAR = 3.0  # so many times the doubt about the slopes is more than doubt
TRIES = 3  # pictures; one may lie at a corner of the score, where it has no slope to agree with

Verdict = Literal["agrees", "differs", "not measured", "not compared"]


@dataclass(frozen=True)
class ExplanationParity:
    """One explanation of the imported network beside what the file says.

    Attributes:
        method: ``"saliency"`` or ``"grad_cam"``.
        layer: the layer looked at, for Grad-CAM.
        target: the class.
        compared: how many numbers: slopes along random directions, or cells.
        relative: length of the difference, over that of the file's, both as vectors.
        cosine: of the angle between the two as vectors.
        doubt: how far the file's own numbers may be off, over their length: float32 rounds.
        reason: why nothing was compared, where that is so.
    """

    method: str
    layer: str | None
    target: int
    compared: int
    relative: float | None
    cosine: float | None
    doubt: float | None = None
    reason: str | None = None

    @property
    def verdict(self) -> Verdict:
        """``"not measured"`` where the two are off by no more than the slopes may be themselves."""
        if self.relative is None or self.doubt is None:
            return "not compared"
        if self.relative <= AGREES:
            return "agrees"
        return "differs" if self.relative > CLEAR * self.doubt else "not measured"

    @property
    def passed(self) -> bool:
        """Whether the two do not disagree, as far as slopes can be measured."""
        return self.verdict != "differs"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON, which knows no infinity."""
        data = {**asdict(self), "verdict": self.verdict}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in data.items()
        }

    def __str__(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        begin = f"{self.method}{where} of class {self.target}"
        if self.relative is None:
            return f"{begin} is not compared: {self.reason}"
        off = f"off by {self.relative:.1e} of their length, cosine {self.cosine:.5f}"
        if self.verdict == "not measured":
            return (
                f"{begin} cannot be measured in the file: float32 leaves its slopes in doubt by "
                f"{self.doubt:.1e} of their length, and it is {off}"
            )
        verdict = "agrees with" if self.verdict == "agrees" else "differs from"
        return f"{begin} {verdict} the slopes of the file: {self.compared} numbers, {off}"


def compare_explanations(
    path: str | Path,
    model: Model | torch.nn.Module,
    inputs: Tensor,
    target: int | None = None,
    *,
    layer: str | None = None,
    directions: int = 64,
    seed: int = 0,
    external_data: bool = False,
) -> list[ExplanationParity]:
    """Saliency and Grad-CAM of an imported network beside slopes measured in its file.

    Both are of the picture with a hundredth of noise: on flat paper max pooling has ties, at which
    a score has no slope. By chance a picture may lie at such a corner still: what does not agree is
    looked at with other noise, and differs only where it does so every time.

    Args:
        path: the ONNX file.
        model: what was imported from it.
        inputs: one picture, as the network takes it.
        target: the class; the top class by default.
        layer: for Grad-CAM; the default layer otherwise.
        directions: along how many random directions the gradient is measured. Of Grad-CAM every
            channel's weight is.
        seed: of the noise and the directions.
        external_data: allow weights in files of their own beside this one.

    Returns:
        One row for saliency and one for Grad-CAM; the latter says why nothing was compared where no
        layer was named and the default layer has no maps, or its output is not in the file.

    Raises:
        NotApplicable: for a network with several inputs or outputs, without scores of classes, or
            in half precision.
        InputError: for more than one picture or layer, or where onnxruntime is missing.

    Source: the definition of the derivative; Selvaraju et al. 2017, equations 1 and 2.
    """
    from converters.slopes import FileScores

    check_counts(directions=directions)
    if len(inputs) != 1:
        raise InputError(f"explanations are compared on one picture, not on {len(inputs)}")
    module = module_of(model)
    file = FileScores(path, module, external_data=external_data)  # type: ignore[arg-type]
    rows = _compared_on(file, model, _roughened(inputs, seed), target, layer, directions, seed)
    for number in range(1, TRIES):
        if all(row.verdict in ("agrees", "not compared") for row in rows):
            break
        rough, again = _roughened(inputs, seed + number), seed + number
        found = _compared_on(file, model, rough, rows[0].target, layer, directions, again)
        rows = [min(pair, key=_disagreement) for pair in zip(rows, found, strict=True)]
    return rows


def _disagreement(row: ExplanationParity) -> tuple[bool, float]:
    return row.verdict == "differs", row.relative or 0.0


def _compared_on(
    file: Any,
    model: Model | torch.nn.Module,
    inputs: Tensor,
    target: int | None,
    layer: str | None,
    directions: int,
    seed: int,
) -> list[ExplanationParity]:
    result = saliency(model, inputs, target)
    assert result.target is not None
    chosen = int(result.target[0])
    rows = [_saliency_parity(file, inputs, result.values[0], chosen, directions, seed)]
    at = layer
    try:
        at = at or default_layer(model, inputs)
        rows.append(_grad_cam_parity(file, model, inputs, chosen, at))
    except NotApplicable as error:
        if layer is not None:
            raise
        rows.append(ExplanationParity("grad_cam", at, chosen, 0, None, None, reason=str(error)))
    return rows


def _roughened(inputs: Tensor, seed: int) -> Tensor:
    """The picture with a little noise: where max pooling meets equal numbers there is no slope."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(inputs.shape, generator=generator) * (0.01 * float(inputs.std()) or 0.01)
    return inputs.detach() + noise.to(inputs)


def _class_score(scores: Array, target: int) -> Array:
    """``(N,)``: of one output, class 1 is it and class 0 its negative."""
    if scores.shape[1] == 1:
        return scores[:, 0] if target == 1 else -scores[:, 0]
    return scores[:, target]


def _slopes(
    scores: Callable[[Array], Array],
    at: Array,
    directions: Array,
    compared: Callable[[Array], Array] = lambda slopes: slopes,
) -> tuple[Array, float]:
    """Central differences of a score at a point along some directions, and the doubt about them.

    Steps grow: rounding spoils small ones, bends and corners of the score large ones. What two
    neighbours agree on is spoilt by neither: taken is the mean of the two that are nearest, and how
    far they are apart is the doubt. Rounding may spoil two alike, so a third is asked. How much a
    score is rounded cannot be told beforehand: sums over large maps lose far more than last bits.

    Args:
        compared: what is made of the slopes, linear in them: what is added up may cancel, and the
            doubt must be that of the result.

    Returns:
        What was made of the slopes, and how far that may be off: the length of a vector.
    """
    spread = float(at.std()) or 1.0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=len(directions))
    best, doubt, sure = np.zeros(0), np.inf, 0
    before: Array | None = None
    for step in (share * spread for share in STEPS):
        parts = np.array_split(directions, max(1, len(directions) // 16))
        above = np.concatenate([scores(at + step * part) for part in parts])
        below = np.concatenate([scores(at - step * part) for part in parts])
        now = compared((above - below) / (2 * step))
        if before is None:
            best = now  # and stays, where the file puts out NaN
        else:
            last_bit = np.finfo(np.float32).eps * np.abs([above, below]).max()
            least = np.linalg.norm(compared(signs * last_bit / (2 * step)))
            gap = max(float(np.linalg.norm(now - before)), float(least))
            if gap < doubt:
                best, doubt = (now + before) / 2, gap
            sure = sure + 1 if gap <= SURE * np.linalg.norm(now) else 0
            if sure == 2:
                break
        before = now
    return best, doubt


def _saliency_parity(
    file: Any, inputs: Tensor, gradient: Tensor, target: int, count: int, seed: int
) -> ExplanationParity:
    """The gradient along random directions of all pixels, each a little up or a little down.

    A single pixel may change the score by less than float32 can tell; all of them together do not,
    and two gradients that agree along many random directions are the same.
    """
    picture = inputs.detach().cpu().double().numpy()
    ours = gradient.detach().cpu().double().numpy()
    random = np.random.default_rng(seed)
    directions = random.choice([-1.0, 1.0], size=(count, *ours.shape))

    def scores(variants: Array) -> Array:
        return _class_score(file.scores(torch.from_numpy(variants).float()), target)

    slopes, doubt = _slopes(scores, picture, directions)
    along = directions.reshape(count, -1) @ ours.ravel()
    return _row("saliency", None, target, along, slopes, doubt)


def _grad_cam_parity(
    file: Any, model: Model | torch.nn.Module, inputs: Tensor, target: int, layer: str
) -> ExplanationParity:
    """Of the cells of one layer's map.

    Raises:
        NotApplicable: when the layer has no maps, or they are not in the file.
    """
    seen = activations(model, inputs, layer)
    if len(seen) != 1:
        raise InputError.about("layer", f"must name one layer, and {layer!r} names {len(seen)}")
    ((layer, found),) = seen.items()
    if found.ndim != 4:
        raise NotApplicable(
            f"the layer {layer!r} puts out {tuple(found.shape)}, no maps of rows and columns"
        )
    rest = file.beyond(layer)
    result = grad_cam(model, inputs, target, layer=layer, relu=False)
    maps = found.detach().cpu().double().numpy()
    channels, cells = maps.shape[1], maps.shape[2] * maps.shape[3]
    directions = np.zeros((channels, *maps.shape[1:]))
    directions[np.arange(channels), np.arange(channels)] = 1.0  # all cells of a channel at once

    def scores(variants: Array) -> Array:
        return _class_score(rest.scores(variants, inputs.detach().cpu().float()), target)

    def weighed(slopes: Array) -> Array:
        """The slope along a whole channel is the sum of its cells' gradients; their mean is its
        weight.
        """
        return np.einsum("c,chw->hw", slopes / cells, maps[0]).ravel()

    theirs, doubt = _slopes(scores, maps, directions, weighed)
    ours = result.values[0].detach().cpu().double().numpy().ravel()
    return _row("grad_cam", layer, target, ours, theirs, doubt)


def _row(
    method: str, layer: str | None, target: int, ours: Array, theirs: Array, doubt: float
) -> ExplanationParity:
    gap, length = float(np.linalg.norm(ours - theirs)), float(np.linalg.norm(theirs))
    of = length or float(np.linalg.norm(ours)) or 1.0
    cosine = float(ours @ theirs) / (length * float(np.linalg.norm(ours)) or 1.0)
    return ExplanationParity(method, layer, target, ours.size, gap / of, cosine, doubt / of)
