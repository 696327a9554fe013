"""Activation maximisation: gradient ascent on a picture."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn import objectives as goals
from torchviz_cnn.axes import channels_first, widths_of
from torchviz_cnn.beside_tensorflow import leave_triton_out
from torchviz_cnn.errors import InputError, is_real
from torchviz_cnn.files import write_atomically
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import Output, run
from torchviz_cnn.inputs import batch_axis_required, checked_size, misfits_explained, place_and_kind
from torchviz_cnn.methods import canvas
from torchviz_cnn.methods.canvas import Moves, Parametrization
from torchviz_cnn.methods.examine import batch_of
from torchviz_cnn.methods.relu import ReLURule
from torchviz_cnn.naming import known, module_of, resolve
from torchviz_cnn.objectives import Cell, Objective, objective_of
from torchviz_cnn.observe import capture, running_to
from torchviz_cnn.preprocess import Colors, colors_of
from torchviz_cnn.targets import ClassNames, ScoreKind, class_names
from torchviz_cnn.words import counted, were_given

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from torchviz_cnn.models import Model

Evaluate = Callable[[Tensor, Sequence[Objective]], Tensor]


@dataclass(frozen=True, eq=False)
class Maximization:
    """Pictures that were optimised, and how it went.

    N is the number of objectives, K the number of colours (3 or 1).

    Attributes:
        colors: the pictures, ``(N, K, H, W)`` from 0 to 1, RGB or gray.
        inputs: the same as the network takes them, ``(N, C, H, W)`` or ``(N, H, W)``.
        history: ``(N, steps)``, the objective at each step, of the picture as it was then moved.
        value: ``(N,)``, the objective of the finished pictures, not moved.
        labels: what was maximised, in words, one a picture.
        layers: the layers looked at.
        parameters: the options it was made with.
        notes: what a user should know, each a sentence.
    """

    colors: Tensor
    inputs: Tensor
    history: Tensor
    value: Tensor
    labels: tuple[str, ...]
    layers: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.colors)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.labels)}; {tuple(self.colors.shape)})"

    @property
    def image(self) -> Image.Image:
        """The first picture, at its own size."""
        return self.images[0]

    @property
    def images(self) -> list[Image.Image]:
        """Every picture, 8-bit RGB at its own size.

        Raises:
            InputError: for a network whose inputs are not pictures of 1 or 3 colours.
        """
        from torchviz_cnn.pictures import to_image

        if self.colors.shape[1] not in (1, 3):
            raise InputError(
                f"inputs of {self.colors.shape[1]} channels are no pictures; "
                "their numbers are in .inputs"
            )
        bytes_of = (self.colors.double() * 255).round().clamp(0, 255).byte().cpu()
        return [to_image(each.movedim(0, -1).numpy()) for each in bytes_of]

    def sheet(self, columns: int | None = None, *, cell: int = 192) -> Image.Image:
        """The pictures on one sheet, with what was maximised and how far it came.

        Args:
            columns: pictures in a row.
            cell: side of each in pixels.
        """
        from torchviz_cnn import render

        words = [
            f"{label}\n{value:.4g}"
            for label, value in zip(self.labels, self.value.tolist(), strict=True)
        ]
        return render.contact_sheet(self.images, words, columns=columns, cell=cell)

    def figure(self) -> Figure:
        """The objective over the steps, one curve a picture."""
        from torchviz_cnn import render

        return render.curves_figure(
            self.history.double().cpu().numpy(), self.labels, x="step", y="objective"
        )

    def save(self, path: str | Path) -> Path:
        """Write the picture (several on a sheet) as PNG or JPEG, or the numbers as NPZ.

        An NPZ holds ``colors``, ``inputs``, ``history``, ``value`` and ``manifest`` (JSON).

        Raises:
            InputError: for another suffix.
            OSError: when it cannot be written.
        """
        path = Path(path)
        kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
        if path.suffix.lower() == ".npz":
            return write_atomically(path, self._write_npz)
        if kind is None:
            raise InputError(f"cannot save {path.name!r}: the name must end in .png, .jpg or .npz")
        image = self.image if len(self) == 1 else self.sheet()
        return write_atomically(path, lambda file: image.save(file, format=kind))

    def _write_npz(self, file: BinaryIO) -> None:
        arrays = {
            name: getattr(self, name).double().cpu().numpy()
            for name in ("colors", "inputs", "history", "value")
        }
        np.savez_compressed(file, manifest=np.array(json.dumps(self.manifest())), **arrays)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.sheet().save(buffer, format="PNG")
        return buffer.getvalue()

    def manifest(self) -> dict[str, Any]:
        """How this was made, as plain data."""
        return {
            "method": "maximize",
            "labels": list(self.labels),
            "layers": list(self.layers),
            "value": self.value.double().tolist(),
            "parameters": self.parameters,
            "notes": list(self.notes),
        }


@contextmanager
def _evaluator(module: nn.Module, wanted: Sequence[Objective]) -> Iterator[Evaluate]:
    """How much of its objective each picture of a batch has, running no more than is needed."""
    names = list(dict.fromkeys(str(name) for each in wanted for name in each.layers))
    widths = widths_of(module)

    def values(
        seen: Mapping[str, Tensor], inputs: Tensor, output: Output | None, part: Sequence[Objective]
    ) -> Tensor:
        maps = {
            name: channels_first(seen[name], tuple(inputs.shape[-2:]), widths) for name in names
        }
        found = []
        for row, objective in enumerate(part):
            own = {name: each[row : row + 1] for name, each in maps.items()}
            found.append(
                objective.value(own, None if output is None else output.rows(row, row + 1))
            )
        return torch.cat(found)

    if any(each.needs_output for each in wanted):
        with capture(module, names, gradients=True) as seen:
            yield lambda inputs, part: values(
                seen, inputs, run(module, inputs, variants_of=inputs), part
            )
        return
    with running_to(module, resolve(module, names), gradients=True) as look:
        yield lambda inputs, part: values(look(inputs), inputs, None, part)


# What suits each parametrisation: pixels need more against the chequered noise they end in.
_DEFAULTS = {
    "fourier": {"learning_rate": 0.05, "l2": 6.0, "total_variation": 3.0},
    "pixels": {"learning_rate": 0.02, "l2": 3.0, "total_variation": 10.0},
}


@dataclass(frozen=True)
class _Recipe:
    """How pictures are optimised."""

    steps: int
    parametrization: Parametrization
    decay: float
    learning_rate: float
    moves: Moves
    l2: float
    lp: float
    power: float
    total_variation: float
    origin: Tensor

    def check(self) -> None:
        """Say before any work what is out of range.

        Raises:
            InputError: for the first thing that is.
        """
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError.about("steps", f"must be a whole number from 1, not {self.steps!r}")
        if not (is_real(self.learning_rate) and self.learning_rate > 0):
            raise InputError.about("learning_rate", f"must be above 0, not {self.learning_rate!r}")
        if not (is_real(self.decay) and 0 <= self.decay <= 4):
            raise InputError.about("decay", f"must lie between 0 and 4, not {self.decay!r}")
        if not (is_real(self.power) and self.power > 1):
            raise InputError.about("power", f"must be above 1, not {self.power!r}")
        for name in ("l2", "lp", "total_variation"):
            value = getattr(self, name)
            if not (is_real(value) and value >= 0):
                raise InputError.about(name, f"must be a weight from 0, not {value!r}")

    @property
    def start(self) -> Tensor:
        """The colours pictures start around: a sigmoid's slope vanishes at black and white."""
        return self.origin.clamp(0.15, 0.85)

    def penalty(self, colors: Tensor) -> Tensor:
        """``(N,)``: what is taken off the objective, as a share of it."""
        total = torch.zeros(len(colors), dtype=colors.dtype, device=colors.device)
        origin = self.origin.to(colors)
        if self.l2:
            total = total + self.l2 * canvas.p_norm(colors, origin, 2)
        if self.lp:
            total = total + self.lp * canvas.p_norm(colors, origin, self.power)
        if self.total_variation:
            total = total + self.total_variation * canvas.total_variation(colors)
        return total

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        plain = {key: value for key, value in vars(self).items() if key not in ("moves", "origin")}
        return {**plain, **vars(self.moves), "origin": self.origin.tolist()}


def _slope(value: Tensor, numbers: Tensor, *, more: bool) -> Tensor:
    """The gradient of each picture's value at its numbers; zeros where there is none."""
    if not value.requires_grad:
        return torch.zeros_like(numbers)
    found = torch.autograd.grad(
        value, numbers, torch.ones_like(value), retain_graph=more, allow_unused=True
    )[0]
    return torch.zeros_like(numbers) if found is None else found


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.ndim - 1))


def _uphill(value: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The direction in which each picture's value grows, and for which it had to be redirected.

    Where every way from the picture to the value leads through a closed ReLU there is no gradient;
    then the score before it is followed until it opens (Olah et al. 2017 do so for their first steps).
    """
    slope = _slope(value, numbers, more=True)
    silent = (slope == 0).flatten(1).all(1)
    if bool(silent.any()):
        with ReLURule("redirected"):
            other = _slope(value, numbers, more=True)
        slope = torch.where(_rows(silent, slope), other, slope)
    return slope, silent


def _ascend(
    board: canvas.Canvas,
    part: Sequence[Objective],
    evaluate: Callable[[Tensor], Tensor],
    recipe: _Recipe,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """The objective at each step, ``(N, steps)``, and how often each was redirected, ``(N,)``."""
    # Another stream than the start's, lest the first moves repeat its numbers.
    draws = [torch.Generator().manual_seed(seed ^ 0x5DEECE66D) for seed in board.seeds]
    leave_triton_out()
    optimizer = torch.optim.Adam([board.numbers], lr=recipe.learning_rate, maximize=True)
    history = []
    redirected = torch.zeros(len(part), dtype=torch.long)
    for step in range(recipe.steps):
        value, slope, silent = _look_uphill(board, part, evaluate, recipe, draws, step)
        redirected += silent.cpu()
        history.append(value)
        # All steps of one size: Adam remembers sizes for a thousand steps, and a redirected slope,
        # or the first one past a ReLU, may be many times as large or small as those to come.
        size = slope.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
        board.numbers.grad = slope / _rows(size, slope)
        optimizer.step()
        board.clip()
        bar.update()
    return torch.stack(history, 1), redirected


def _look_uphill(
    board: canvas.Canvas,
    part: Sequence[Objective],
    evaluate: Callable[[Tensor], Tensor],
    recipe: _Recipe,
    draws: Sequence[torch.Generator],
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value of each picture, its slope less the penalties', and for which it was redirected.

    Nothing of the graph leaves it: two steps' graphs at once would take twice the memory.
    """
    with torch.enable_grad():
        colors = board.colors()
        shown = colors
        if not recipe.moves.none:
            shown = canvas.moved(colors, [recipe.moves.draw(draw) for draw in draws])
        value = evaluate(shown)
        penalty = recipe.penalty(colors)
    slope, silent = _uphill(value, board.numbers)
    value = value.detach()
    _check_progress(value, slope, part, step)
    if penalty.requires_grad:
        against = _slope(penalty, board.numbers, more=False)
        slope = slope - _rows(value.abs(), slope) * against
    return value, slope, silent


def _check_progress(value: Tensor, slope: Tensor, part: Sequence[Objective], step: int) -> None:
    """Stop at numbers that lead nowhere.

    Raises:
        InputError: for NaN at any step, and for no gradient at the first.
    """
    broken = ~(value.isfinite() & slope.flatten(1).isfinite().all(1))
    if bool(broken.any()):
        label = part[int(torch.nonzero(broken)[0])].label
        raise InputError(
            f"{label}: the network puts out NaN or infinite numbers, or their gradient is, at step "
            f"{step + 1}; try a smaller learning rate, or look at its weights"
        )
    still = (slope == 0).flatten(1).all(1)
    if step == 0 and bool(still.any()):
        label = part[int(torch.nonzero(still)[0])].label
        raise InputError(
            f"{label} has no gradient at the picture it starts from: nothing of the picture reaches "
            "it, or the network detaches it, or an activation on the way is saturated everywhere; "
            "try another seed, or maximise the layer before that activation"
        )


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
    usual = _usual(parametrization)
    with torch.inference_mode(False):  # nothing made there could be part of a graph
        colors = _colors(model, size, preprocess)
        recipe = _Recipe(
            steps=steps,
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
    recipe: _Recipe,
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
        _evaluator(module, wanted) as evaluate,
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
            history, redirected = _ascend(board, part, look, recipe, bar)
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


def _usual(parametrization: str) -> dict[str, float]:
    if parametrization not in _DEFAULTS:
        raise InputError.about(
            "parametrization", f"must be {' or '.join(_DEFAULTS)}, not {parametrization!r}"
        )
    return _DEFAULTS[parametrization]


def _several(given: Any) -> list[Any]:
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    return list(given) if isinstance(given, list | tuple | range) else [given]


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    given = _several(seed)
    if not all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**63 for each in given
    ):
        raise InputError(f"a seed is a whole number from 0, not {seed!r}")
    seeds = given * count if isinstance(seed, int) else given
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
            torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
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
