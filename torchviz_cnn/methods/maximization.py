"""Activation maximisation: pictures that excite a class, a channel or a unit most."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn import objectives as goals
from torchviz_cnn.errors import InputError, is_real, is_whole
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.inputs import batch_axis_required, checked_size, misfits_explained, place_and_kind
from torchviz_cnn.methods import canvas
from torchviz_cnn.methods.ascent import Evaluate, Recipe, ascend, evaluator, usual_options
from torchviz_cnn.methods.canvas import Moves, Parametrization
from torchviz_cnn.methods.examine import batch_of
from torchviz_cnn.methods.maximized import Maximization
from torchviz_cnn.naming import known, module_of
from torchviz_cnn.objectives import Cell, Objective, objective_of
from torchviz_cnn.preprocess import Colors, colors_of
from torchviz_cnn.targets import ClassNames, ScoreKind, class_names
from torchviz_cnn.words import counted, were_given

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


def maximize(
    model: nn.Module | Model,
    objective: Objective | Callable[[Tensor], Tensor] | Sequence[Objective] | None = None,
    *,
    layer: str | nn.Module | None = None,
    channel: int | Sequence[int] | None = None,
    cell: Cell = None,
    target: int | str | Sequence[int | str] | None = None,
    score: ScoreKind = "logit",
    steps: int = 256,
    parametrization: Parametrization = "fourier",
    decay: float = 1.5,
    learning_rate: float | None = None,
    jitter: int | None = None,
    scale: tuple[float, float] = (0.8, 1.2),
    rotate: float = 10.0,
    l2: float | None = None,
    lp: float = 0.0,
    power: float = 6.0,
    total_variation: float | None = None,
    seed: int | Sequence[int] = 0,
    input_size: Sequence[int] | None = None,
    preprocess: Any = None,
    classes: ClassNames | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Maximization:
    """The picture that excites a class, a channel or a unit most, found by gradient ascent.

    Adam climbs ``∇ a(T x) − |a| ∇ (λ₂ mean |x − o|² + λₚ mean |x − o|^p + λ_TV TV(x))``: the
    objective a is seen through random moves T of the picture, and the penalties are on its colours
    x, which are between 0 and 1; o is the colour that becomes an input of 0, or gray. Penalties
    count in proportion to the objective's present size: while that is positive it is ``log a`` less
    the penalties that is maximised, and the same weights suit a channel of size 0.1 and a class
    score of 500.

    Only as much of the network runs as the objective needs. Where the objective starts behind a
    closed ReLU, and so without a gradient, what goes into that ReLU is followed until it opens, and
    the result says so.

    Args:
        model: any network; comes back as it was.
        objective: from :mod:`torchviz_cnn.objectives`, or a function of the network's output before
            its softmax to one number an image; several of them make as many pictures. Or say it by
            ``layer`` and ``channel``, or by ``target``:
        layer, channel: the mean of this channel over its cells; the unit of a dense layer. Several
            channels make as many pictures.
        cell: with ``channel``, a single unit: ``(row, column)``, or ``"middle"``.
        target: a class by index or name; several make as many pictures.
        score: with ``target``, ``"logit"`` for the score before the final softmax or sigmoid.
        steps: of the ascent.
        parametrization: ``"fourier"``, a spectrum with decorrelated colours, whose steps reach every
            scale of the picture alike; or ``"pixels"``, the colours themselves.
        decay: with ``"fourier"``, how much smaller high frequencies' steps are: a power of the
            frequency. 1 is a photograph's spectrum; above it pictures become smoother.
        learning_rate: Adam's; 0.05 for a spectrum and 0.02 for pixels by default.
        jitter: the picture is shifted by up to so many pixels before each look; by default a
            tenth of its shorter side,
        scale: magnified by a factor between these,
        rotate: and turned by up to so many degrees. A picture is mirrored at its border.
        l2, lp, total_variation: weights λ of the penalties, which are means over pixels and colours;
            by default 6, 0 and 3, of pixels 3, 0 and 10.
        power: p of ``lp``.
        seed: of the noise a picture starts from and of its moves; one for all, or one a picture.
        input_size: ``(C, H, W)`` or ``(H, W)`` of the picture, where it is not the Model's own. A
            bare network needs it.
        preprocess: how colours become inputs: one of Keras' modes by name, or a function. By
            default the Model's own; for a bare network ``"torch"`` where it takes three channels,
            ``"rescale"`` (0 to 1) otherwise.
        classes: class names by index, where the model does not know them.
        batch_size: pictures optimised at once; by default as many as suit their size. It changes
            nothing but time and memory.
        progress: show a progress bar in a terminal.

    Returns:
        A :class:`Maximization`: ``.image``, ``.history`` and more.

    Raises:
        InputError: for an objective, layer, channel or class that is not there, an option out of
            range, an objective without any gradient at the start, or NaN on the way.

    Source: Erhan, Bengio, Courville, Vincent 2009, "Visualizing Higher-Layer Features of a Deep
    Network"; pixels with L2: Simonyan, Vedaldi, Zisserman 2013, section 2; the other penalties:
    Mahendran, Vedaldi 2015, and Yosinski et al. 2015; spectrum, colours and moves: Olah,
    Mordvintsev, Schubert 2017, "Feature Visualization".

    Example:
        >>> import torchviz_cnn as tvc
        >>> model = tvc.models.load("mnist_convnet")
        >>> result = tvc.maximize(model, layer="conv_1", channel=[3, 5], steps=8, seed=0)
        >>> result.image.size, result.history.shape, result.labels
        ((28, 28), torch.Size([2, 8]), ('conv_1 3', 'conv_1 5'))
    """
    module = module_of(model)
    names = known(model, "classes") if classes is None else class_names(classes)
    wanted = [
        each.bound(module, names)
        for each in _objectives(objective, layer, channel, cell, target, score)
    ]
    seeds = _seeds(seed, len(wanted))
    size = _size(model, input_size)
    usual = usual_options(parametrization)
    with torch.inference_mode(False):  # nothing made there could be part of a graph
        colors = _colors(model, size, preprocess)
        recipe = Recipe(
            steps=int(steps) if is_whole(steps) else steps,
            parametrization=parametrization,
            decay=decay,
            learning_rate=usual["learning_rate"] if learning_rate is None else learning_rate,
            moves=Moves(min(size[-2:]) // 10 if jitter is None else jitter, _pair(scale), rotate),
            l2=usual["l2"] if l2 is None else l2,
            lp=lp,
            power=power,
            total_variation=usual["total_variation"]
            if total_variation is None
            else total_variation,
            origin=_origin(colors),
        )
        recipe.check()
        found = _optimised(module, wanted, seeds, size, colors, recipe, batch_size, progress)
    notes = _redirections(wanted, found.redirected.tolist())
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Maximization(
        colors=found.colors,
        inputs=found.inputs,
        history=found.history,
        value=found.value,
        labels=tuple(each.label for each in wanted),
        layers=tuple(dict.fromkeys(str(name) for each in wanted for name in each.layers)),
        parameters={**recipe.to_dict(), "seed": seeds, "input_size": list(size)},
        notes=notes,
    )


def _redirections(wanted: Sequence[Objective], times: Sequence[int]) -> tuple[str, ...]:
    """One sentence about the pictures that started without a gradient; none without any."""
    told = [
        f"{objective.label} (for {counted(count, 'step')})"
        for objective, count in zip(wanted, times, strict=True)
        if count
    ]
    if not told:
        return ()
    return (
        f"{', '.join(told)}: where everything lay behind a closed ReLU, without a gradient, what "
        "goes into that ReLU was made larger until it opened",
    )


@dataclass(frozen=True)
class _Found:
    """What came of some pictures; each ``(N, …)``."""

    colors: Tensor
    inputs: Tensor
    history: Tensor
    value: Tensor
    redirected: Tensor


def _optimised(
    module: nn.Module,
    wanted: list[Objective],
    seeds: list[int],
    size: tuple[int, ...],
    colors: Colors,
    recipe: Recipe,
    batch_size: int | None,
    progress: bool,
) -> _Found:
    """Every picture, a batch at a time."""
    place = place_and_kind(module)
    empty = torch.zeros(1, *size, **place)
    number = batch_of(empty, batch_size, cpu=8, cuda=64)
    # Half precision is too coarse for small steps, and has no Fourier transform on the CPU.
    coarse = place["dtype"] in (torch.float16, torch.bfloat16)
    exact = {**place, "dtype": torch.float32 if coarse else place["dtype"]}
    parts = []
    with (
        misfits_explained(module, empty),
        undisturbed(module, empty),
        batch_axis_required(module, empty),
        evaluator(module, wanted) as evaluate,
        tqdm(
            total=recipe.steps * -(-len(wanted) // number),
            desc="maximising",
            unit="step",
            delay=2,
            leave=False,
            disable=None if progress else True,
        ) as bar,
    ):
        for first in range(0, len(wanted), number):
            part = wanted[first : first + number]
            board = canvas.Canvas(
                (colors.count, size[-2], size[-1]),
                seeds[first : first + number],
                recipe.parametrization,
                decay=recipe.decay,
                middle=recipe.start,
                **exact,
            )
            look = partial(_look, evaluate, colors, part, place["dtype"])
            history, redirected = ascend(board, part, look, recipe, bar)
            finished = board.colors().detach().clone()
            inputs = colors.inputs(finished).to(place["dtype"])
            value = evaluate(inputs.clone(), part).detach()
            parts.append(_Found(finished, inputs, history, value, redirected))
    joined = zip(*(vars(part).values() for part in parts), strict=True)
    return _Found(*(torch.cat(each) for each in joined))


def _look(
    evaluate: Evaluate,
    colors: Colors,
    part: Sequence[Objective],
    dtype: torch.dtype,
    pictures: Tensor,
) -> Tensor:
    return evaluate(colors.inputs(pictures).to(dtype), part)


def _objectives(
    objective: object,
    layer: str | nn.Module | None,
    channel: object,
    cell: Cell,
    target: object,
    score: ScoreKind,
) -> list[Objective]:
    """What is asked for, one a picture.

    Raises:
        InputError: unless it is asked for in exactly one way.
    """
    ways = (
        (objective is not None) + (layer is not None or channel is not None) + (target is not None)
    )
    if ways != 1:
        fault = f"{'nothing' if not ways else 'too much'} was asked for"
        raise InputError(
            f"{fault}: give layer= and channel=, or target=, or an objective",
            typed=f"{fault}: give --layer and --channel, or --class",
        )
    if objective is not None:
        found = [objective_of(each) for each in _several(objective)]
    elif target is not None:
        found = [goals.target(each, score=score) for each in _several(target)]
    elif layer is None or channel is None:
        raise InputError("a channel needs its layer, and a layer one of its channels: give both")
    else:
        found = [goals.channel(layer, each, cell) for each in _several(channel)]
    if cell is not None and channel is None:
        fault = "a cell is one of a channel"
        raise InputError(
            f"{fault}: give layer= and channel= too",
            typed=f"{fault}: give --layer and --channel too",
        )
    if not found:
        raise InputError("the list of what to maximise is empty")
    return found


def _pair(scale: Any) -> tuple[float, float]:
    if isinstance(scale, list | tuple) and len(scale) == 2 and all(map(is_real, scale)):
        return float(scale[0]), float(scale[1])
    raise InputError.about("scale", f"is two factors, the lower first, not {scale!r}")


def _several(given: Any) -> list[Any]:
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    return list(given) if isinstance(given, list | tuple | range) else [given]


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    given = _several(seed)
    if not all(is_whole(each) and 0 <= each < 2**63 for each in given):
        raise InputError(f"a seed is a whole number from 0, not {seed!r}")
    seeds = [int(each) for each in given] * (count if is_whole(seed) else 1)
    if len(seeds) != count:
        raise InputError(
            f"{were_given(len(seeds), 'seed')} for {counted(count, 'picture')}; give one for all, "
            "or one each"
        )
    return seeds


def _size(model: nn.Module | Model, input_size: Sequence[int] | None) -> tuple[int, ...]:
    own = known(model, "input_size")
    if input_size is None and own is None:
        raise InputError(
            "how large the picture shall be is not known; give input_size=(channels, height, width)"
        )
    size = checked_size(own if input_size is None else input_size)
    if own is not None and size[:-2] != tuple(own[:-2]):
        raise InputError(
            f"this network takes {'×'.join(map(str, own))}; another input size may change height "
            f"and width, not be {'×'.join(map(str, size))}"
        )
    if min(size[-2:]) < 2:
        raise InputError(f"a picture needs at least 2×2 pixels, not {size[-2]}×{size[-1]}")
    return size


def _colors(model: nn.Module | Model, size: tuple[int, ...], preprocess: Any) -> Colors:
    if preprocess is None:
        preprocess = known(model, "preprocess")
    channels = 1 if len(size) == 2 else size[0]
    if preprocess is None and channels not in (1, 3):  # no picture, but still an input
        return Colors(
            torch.eye(channels, dtype=torch.float64, device="cpu"),
            torch.zeros(channels, dtype=torch.float64, device="cpu"),
        )
    if preprocess is None:
        preprocess = "torch" if channels == 3 else "rescale"
    return colors_of(preprocess, size)


def _origin(colors: Colors) -> Tensor:
    """The colours penalties pull to: what becomes an input of 0; gray where that is an extreme.

    For gray networks an extreme is meant: paper.
    """
    zero = colors.of_zero()
    inner = bool(((zero > 0.1) & (zero < 0.9)).all())
    return zero if inner or colors.count == 1 else torch.full_like(zero, 0.5)
