"""What a picture can be optimised for: channels, units, classes, and sums and differences of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError, is_real, is_whole
from torchviz_cnn.head import Output
from torchviz_cnn.naming import resolve_one
from torchviz_cnn.targets import OneTarget, Question, ScoreKind, class_label

Cell = tuple[int, int] | Literal["middle"] | None


def channel_of(maps: Tensor, channel: int, layer: str) -> Tensor:
    """One channel of a layer's output: ``(N, h, w)``, or ``(N,)`` of a dense layer's units.

    Raises:
        InputError: for an output that has no channels, or a channel that is not there.
    """
    if maps.ndim not in (2, 4):
        raise InputError(
            f"the layer {layer!r} puts out {tuple(maps.shape)}; a channel is one of (N, C, h, w), "
            "a unit one of (N, units)"
        )
    if not 0 <= channel < maps.shape[1]:
        raise InputError(
            f"there is no channel {channel}: the layer {layer!r} has {maps.shape[1]}, from 0"
        )
    return maps[:, channel]


@dataclass(frozen=True)
class _Channel:
    """The mean of a channel of a layer's output, one cell of it, or a unit of a dense layer."""

    layer: str | nn.Module
    channel: int
    cell: Cell = None

    def bound(self, module: nn.Module, classes: Sequence[str] | None) -> _Channel:
        layer = resolve_one(module, self.layer)
        return replace(self, layer=layer.key(layer.call or 0))

    @property
    def label(self) -> str:
        name = self.layer if isinstance(self.layer, str) else type(self.layer).__name__
        if self.cell is None:
            return f"{name} {self.channel}"
        where = self.cell if isinstance(self.cell, str) else f"({self.cell[0]}, {self.cell[1]})"
        return f"{name} {self.channel} at {where}"

    def value(self, seen: Mapping[str, Tensor], _output: Output | None) -> Tensor:
        assert isinstance(self.layer, str)
        maps = seen[self.layer]
        chosen = channel_of(maps, self.channel, self.layer)
        if self.cell is None:
            return chosen if chosen.ndim == 1 else chosen.mean((1, 2))
        if maps.ndim == 2:
            raise InputError(f"{self.layer!r} puts out single numbers, which have no cell")
        rows, columns = chosen.shape[1:]
        row, column = (rows // 2, columns // 2) if self.cell == "middle" else self.cell
        if not (0 <= row < rows and 0 <= column < columns):
            raise InputError(
                f"there is no cell ({row}, {column}): the maps of {self.layer!r} are "
                f"{rows}×{columns}, from (0, 0)"
            )
        return chosen[:, row, column]


@dataclass(frozen=True)
class _Class:
    """A class's score."""

    target: OneTarget
    score: ScoreKind = "logit"
    classes: Sequence[str] | None = None

    layer = None

    def bound(self, _module: nn.Module, classes: Sequence[str] | None) -> _Class:
        known = replace(self, classes=classes if self.classes is None else self.classes)
        known._question(1)  # refuses names and numbers that cannot be
        return known

    def _question(self, images: int) -> Question:
        return Question(self.target, images, score=self.score, classes=self.classes)

    @property
    def label(self) -> str:
        index = self._question(1).indexes
        assert index is not None
        return f"class {class_label(int(index[0]), self.classes)}"

    def value(self, _seen: Mapping[str, Tensor], output: Output | None) -> Tensor:
        assert output is not None
        return self._question(len(output.logits)).put(output).score


@dataclass(frozen=True)
class _Callable:
    """Any function of the network's output before a final softmax or sigmoid."""

    function: Callable[[Tensor], Tensor]

    layer = None

    def bound(self, _module: nn.Module, _classes: Sequence[str] | None) -> _Callable:
        return self

    @property
    def label(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return "callable" if name == "<lambda>" else name

    def value(self, _seen: Mapping[str, Tensor], output: Output | None) -> Tensor:
        assert output is not None
        return Question(self.function, len(output.logits)).put(output).score


_Term = _Channel | _Class | _Callable


@dataclass(frozen=True)
class Objective:
    """A weighted sum of things to be made large; ``+``, ``-``, ``*`` and ``/`` combine them.

    Example:
        >>> both = channel("conv_1", 3) - 0.5 * channel("conv_1", 8)
        >>> both.label
        'conv_1 3 − 0.5 · conv_1 8'
    """

    terms: tuple[tuple[float, _Term], ...]

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Objective(self.terms + other.terms)

    def __sub__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return self + -1 * other

    def __neg__(self) -> Objective:
        return -1 * self

    def __mul__(self, factor: float) -> Objective:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if not is_real(factor):
            raise InputError(f"an objective's weight is a finite number, not {factor!r}")
        return Objective(tuple((factor * weight, term) for weight, term in self.terms))

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> Objective:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if factor == 0:
            raise InputError("an objective cannot be divided by 0")
        return self * (1 / factor)

    @property
    def label(self) -> str:
        """What it is, in words."""
        parts = []
        for weight, term in self.terms:
            sign = "−" if weight < 0 else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight):g} · "
            parts.append(f"{sign} {size}{term.label}")
        joined = " ".join(parts)
        return joined.removeprefix("+ ")

    @property
    def layers(self) -> tuple[str | nn.Module, ...]:
        """The layers it looks at."""
        return tuple(term.layer for _, term in self.terms if term.layer is not None)

    @property
    def needs_output(self) -> bool:
        """Whether the whole network has to run."""
        return any(term.layer is None for _, term in self.terms)

    def bound(self, module: nn.Module, classes: Sequence[str] | None = None) -> Objective:
        """The same for one network: layers found, class names turned into indexes.

        Raises:
            InputError: for a layer or class that is not there.
        """
        return Objective(tuple((w, term.bound(module, classes)) for w, term in self.terms))

    def value(self, seen: Mapping[str, Tensor], output: Output | None) -> Tensor:
        """How much of it there is, ``(N,)``, in what the layers and the network put out.

        Raises:
            InputError: for a channel, cell or class that is not there.
        """
        values = [weight * term.value(seen, output) for weight, term in self.terms]
        return torch.stack(values).sum(0) if len(values) > 1 else values[0]


def channel(layer: str | nn.Module, channel: int, cell: Cell = None) -> Objective:
    """The mean of one channel over its cells, or one unit of it; a unit of a dense layer.

    Args:
        layer: a name, alias or module.
        channel: the channel's index, or the unit's for a layer that puts out ``(N, units)``.
        cell: ``(row, column)`` of a single unit, ``"middle"`` for the one in the middle.
    """
    if not is_whole(channel):
        raise InputError(f"a channel is given by its index, not by {channel!r}")
    given = isinstance(cell, tuple) and len(cell) == 2 and all(map(is_whole, cell))
    if cell is not None and cell != "middle" and not given:
        raise InputError(f"a cell is (row, column), or 'middle', not {cell!r}")
    if isinstance(cell, tuple):
        cell = int(cell[0]), int(cell[1])
    return Objective(((1.0, _Channel(layer, int(channel), cell)),))


def target(
    target: OneTarget, *, score: ScoreKind = "logit", classes: Sequence[str] | None = None
) -> Objective:
    """A class's score before the final softmax or sigmoid, or its probability.

    Args:
        target: an index, or a name where class names are known.
        score: ``"logit"`` or ``"probability"``.
        classes: class names by index, where the model does not know them.

    Raises:
        InputError: for what is neither.
    """
    if isinstance(target, bool) or not isinstance(target, int | np.integer | str):
        raise InputError(
            f"a class is an index or a name, not {target!r}; a function of the network's output is "
            "an objective by itself"
        )
    return Objective(((1.0, _Class(target, score, classes)),))


def score(function: Callable[[Tensor], Tensor]) -> Objective:
    """Any function of what the network puts out before its final softmax or sigmoid.

    Args:
        function: from ``(N, classes)`` to one number an image, ``(N,)``.
    """
    if not callable(function):
        raise InputError(f"an objective is a function of the output, not {function!r}")
    return Objective(((1.0, _Callable(function)),))


def objective_of(given: object) -> Objective:
    """An objective as it is, or made of a function of the output.

    Raises:
        InputError: for anything else.
    """
    if isinstance(given, Objective):
        return given
    if callable(given):
        return score(given)
    raise InputError(
        "an objective comes from torchviz_cnn.objectives (channel, target, score) or is a function "
        f"of the network's output, not {type(given).__name__}"
    )
