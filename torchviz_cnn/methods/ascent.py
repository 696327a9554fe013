"""Gradient ascent on pictures: what is climbed, with which penalties, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.axes import channels_first, widths_of
from torchviz_cnn.beside_tensorflow import leave_triton_out
from torchviz_cnn.errors import InputError, is_real, is_whole
from torchviz_cnn.head import Output, run
from torchviz_cnn.methods import canvas
from torchviz_cnn.methods.canvas import Moves, Parametrization
from torchviz_cnn.methods.relu import ReLURule, clamps_as_relus
from torchviz_cnn.naming import resolve
from torchviz_cnn.objectives import Objective
from torchviz_cnn.observe import capture, running_to

Evaluate = Callable[[Tensor, Sequence[Objective]], Tensor]


@contextmanager
def evaluator(module: nn.Module, wanted: Sequence[Objective]) -> Iterator[Evaluate]:
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


def usual_options(parametrization: str) -> dict[str, float]:
    """The learning rate and the penalties' weights where none are given.

    Raises:
        InputError: for a parametrisation that is not there.
    """
    if parametrization not in _DEFAULTS:
        raise InputError.about(
            "parametrization", f"must be {' or '.join(_DEFAULTS)}, not {parametrization!r}"
        )
    return _DEFAULTS[parametrization]


@dataclass(frozen=True)
class Recipe:
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
        if not (is_whole(self.steps) and self.steps >= 1):
            raise InputError.about(
                "steps", f"must be a whole number of at least 1, not {self.steps!r}"
            )
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


def uphill(value: Tensor, numbers: Tensor, again: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The direction in which each picture's value grows, and for which it had to be redirected.

    Where every way from the picture to the value leads through a closed ReLU there is no gradient;
    then the score before it is followed until it opens (Olah et al. 2017 do so for their first steps).

    Args:
        value: of each picture, ``(N,)``.
        numbers: what it depends on.
        again: computes it once more.
    """
    slope = _slope(value, numbers, more=True)
    silent = (slope == 0).flatten(1).all(1)
    if bool(silent.any()):
        with torch.enable_grad(), clamps_as_relus():
            value = again()
        with ReLURule("redirected"):
            other = _slope(value, numbers, more=True)
        slope = torch.where(_rows(silent, slope), other, slope)
    return slope, silent


def ascend(
    board: canvas.Canvas,
    part: Sequence[Objective],
    evaluate: Callable[[Tensor], Tensor],
    recipe: Recipe,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """The objective at each step, ``(N, steps)``, and how often each was redirected, ``(N,)``."""
    # Another stream than the start's, lest the first moves repeat its numbers.
    draws = [torch.Generator().manual_seed(seed ^ 0x5DEECE66D) for seed in board.seeds]
    leave_triton_out()
    optimizer = torch.optim.Adam([board.numbers], lr=recipe.learning_rate, maximize=True)
    history = []
    redirected = torch.zeros(len(part), dtype=torch.long, device="cpu")
    for step in range(recipe.steps):
        value, slope, silent = _look_uphill(board, part, evaluate, recipe, draws, step)
        redirected += silent.cpu()
        history.append(value)
        # All steps of one size: Adam remembers sizes for a thousand steps, and a redirected slope,
        # or the first one past a ReLU, may be many times as large or small as those to come.
        size = slope.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
        board.numbers.grad = slope / _rows(size, slope)
        with torch.device("cpu"):  # torch 2.6 counts its steps on the default device
            optimizer.step()
        board.clip()
        bar.update()
    return torch.stack(history, 1), redirected


def _look_uphill(
    board: canvas.Canvas,
    part: Sequence[Objective],
    evaluate: Callable[[Tensor], Tensor],
    recipe: Recipe,
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
    slope, silent = uphill(value, board.numbers, partial(evaluate, shown))
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
