"""Are two networks' explanations the same? An imported network's beside those of its ONNX file.

Equal layers make equal explanations only if the gradients are equal too, and a file has none. So
they are measured: the file is run in onnxruntime on inputs, and from feature maps on, that are a
little larger and a little smaller, and half the difference is the slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchviz_cnn.errors import InputError
from torchviz_cnn.methods import grad_cam, saliency
from torchviz_cnn.naming import module_of

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

Array = NDArray[Any]

# Slopes measured in float32 are good to a few hundredths: rounding makes them worse for small steps,
# the corners of ReLUs and max pooling for large ones. What is wrong (axes exchanged, a rule of
# differentiation mistaken) is off by as much as there is.
AGREES = 0.1
STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of the spread of what is changed
ROUNDINGS = 100  # by so many the score must change at least


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
    """

    method: str
    layer: str | None
    target: int
    compared: int
    relative: float
    cosine: float

    @property
    def passed(self) -> bool:
        """Whether the two agree as far as slopes can be measured."""
        return self.relative <= AGREES

    def __str__(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        verdict = "agrees with" if self.passed else "differs from"
        return (
            f"{self.method}{where} of class {self.target} {verdict} the slopes of the file: "
            f"{self.compared} numbers, off by {self.relative:.1e} of their length, "
            f"cosine {self.cosine:.5f}"
        )


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
    a score has no slope.

    Args:
        path: the ONNX file.
        model: what was imported from it.
        inputs: one picture, as the network takes it.
        target: the class; the top class by default.
        layer: for Grad-CAM; the default layer otherwise.
        directions: along how many random directions the gradient is measured. Of Grad-CAM every
            channel's weight is.
        seed: of the directions.
        external_data: allow weights in files of their own beside this one.

    Returns:
        One row for saliency and one for Grad-CAM.

    Raises:
        InputError: for more than one picture, a network with several inputs, or where onnxruntime
            is missing.

    Source: the definition of the derivative; Selvaraju et al. 2017, equations 1 and 2.
    """
    from converters.slopes import FileScores

    if len(inputs) != 1:
        raise InputError(f"explanations are compared on one picture, not on {len(inputs)}")
    inputs = _roughened(inputs, seed)
    module = module_of(model)
    file = FileScores(path, module, external_data=external_data)  # type: ignore[arg-type]
    result = saliency(model, inputs, target)
    assert result.target is not None
    chosen = int(result.target[0])
    return [
        _saliency_parity(file, inputs, result.values[0], chosen, directions, seed),
        _grad_cam_parity(file, model, inputs, chosen, layer),
    ]


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


def _slopes(scores: Callable[[Array], Array], at: Array, directions: Array) -> Array:
    """Central differences of a score at a point, along each of some directions.

    By the smallest step that changes the score by more than float32's rounding.
    """
    spread = float(at.std()) or 1.0
    rounding = _rounding(scores, at)
    slopes = np.zeros(len(directions))
    for step in (share * spread for share in STEPS):
        change = np.concatenate(
            [
                scores(at + step * part) - scores(at - step * part)
                for part in np.array_split(directions, max(1, len(directions) // 16))
            ]
        )
        slopes = change / (2 * step)
        if np.sqrt((change**2).mean()) >= ROUNDINGS * rounding:
            break
    return slopes


def _rounding(scores: Callable[[Array], Array], at: Array) -> float:
    """How far float32 lets a score stray: over inputs that differ in their last bits."""
    bits = float(np.finfo(np.float32).eps)
    jitter = np.random.default_rng(0).normal(size=(16, *at.shape[1:])) * bits
    found = scores(at * (1 + jitter))
    return max(float(found.std()), float(np.abs(found).max()) * bits)


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

    slopes = _slopes(scores, picture, directions)
    along = directions.reshape(count, -1) @ ours.ravel()
    return _row("saliency", None, target, along, slopes)


def _grad_cam_parity(
    file: Any, model: Model | torch.nn.Module, inputs: Tensor, target: int, layer: str | None
) -> ExplanationParity:
    from torchviz_cnn.observe import activations

    result = grad_cam(model, inputs, target, layer=layer, relu=False)
    assert result.layer is not None
    maps = activations(model, inputs, result.layer)[result.layer].cpu().double().numpy()
    rest = file.beyond(result.layer)
    channels, cells = maps.shape[1], maps.shape[2] * maps.shape[3]
    directions = np.zeros((channels, *maps.shape[1:]))
    directions[np.arange(channels), np.arange(channels)] = 1.0  # all cells of a channel at once

    def scores(variants: Array) -> Array:
        return _class_score(rest.scores(variants, inputs.detach().cpu().float()), target)

    # The slope along a whole channel is the sum of its cells' gradients; their mean is its weight.
    weights = _slopes(scores, maps, directions) / cells
    theirs = np.einsum("c,chw->hw", weights, maps[0]).ravel()
    ours = result.values[0].detach().cpu().double().numpy().ravel()
    return _row("grad_cam", result.layer, target, ours, theirs)


def _row(
    method: str, layer: str | None, target: int, ours: Array, theirs: Array
) -> ExplanationParity:
    gap, length = float(np.linalg.norm(ours - theirs)), float(np.linalg.norm(theirs))
    return ExplanationParity(
        method,
        layer,
        target,
        ours.size,
        gap / length if length else float(gap > 0),
        float(ours @ theirs) / (length * float(np.linalg.norm(ours)) or 1.0),
    )
