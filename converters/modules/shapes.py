"""Axes moved, cut, joined and repeated: no number is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses


class Reshape(nn.Module):
    """To a fixed shape; a leading ``None`` keeps the batch axis as it is."""

    def __init__(self, shape: Sequence[int | None]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return input.reshape([input.shape[i] if n is None else n for i, n in enumerate(self.shape)])

    def extra_repr(self) -> str:
        return ", ".join("N" if n is None else str(n) for n in self.shape)


class Permute(nn.Module):
    """Axes in another order.

    Attributes:
        moves_axes: tells the library that there is no map of its own here to look at.
    """

    moves_axes = True

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.permute(self.order)

    def extra_repr(self) -> str:
        return str(self.order)


class Squeeze(nn.Module):
    """Without axes of length one."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.squeeze(self.axes)


class Unsqueeze(nn.Module):
    """With new axes of length one, counted in the result."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        axes = self.axes
        if min(axes, default=0) < 0:
            axes = tuple(axis % (input.ndim + len(axes)) for axis in axes)
        for axis in sorted(axes):
            input = input.unsqueeze(axis)  # noqa: A001
        return input


class Slice(nn.Module):
    """A part along some axes, steps positive or negative."""

    def __init__(self, cuts: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.cuts = tuple(cuts)  # (axis, start, end, step)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        for axis, start, end, step in self.cuts:
            if step > 0:
                cut = slice(start, end, step)
                # Without asking how many axes there are: torch.fx could not say.
                every = (slice(None),) * (axis if axis >= 0 else -axis - 1)
                index: tuple[Any, ...] = (*every, cut) if axis >= 0 else (..., cut, *every)
                input = input[index]  # noqa: A001
            else:
                chosen = range(input.shape[axis])[start:end:step]
                where = torch.arange(len(chosen), device=input.device) * step
                input = input.index_select(axis, where + (chosen[0] if chosen else 0))  # noqa: A001
        return input


class Split(nn.Module):
    """In pieces along an axis."""

    def __init__(self, sizes: Sequence[int], axis: int) -> None:
        super().__init__()
        self.sizes, self.axis = list(sizes), axis

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, ...]:  # noqa: A002
        pieces = input.split(self.sizes, self.axis)
        return pieces[0] if len(pieces) == 1 else tuple(pieces)


class Tile(nn.Module):
    """Repeated along its axes."""

    def __init__(self, repeats: Sequence[int]) -> None:
        super().__init__()
        self.repeats = tuple(repeats)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.repeat(self.repeats)


class Repeat(nn.Module):
    """Every cell several times along an axis."""

    def __init__(self, axis: int, times: int) -> None:
        super().__init__()
        self.axis, self.times = axis, times

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.repeat_interleave(self.times, self.axis)

    def extra_repr(self) -> str:
        return f"{self.times}, axis={self.axis}"


class Pad(nn.Module):
    """A border; negative widths cut. ``widths`` come as torch has them, last axis first."""

    def __init__(self, widths: Sequence[int], mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.widths, self.mode, self.value = tuple(widths), mode, value

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.mode == "constant":
            return F.pad(input, self.widths, value=self.value)
        return F.pad(input, self.widths, mode=self.mode)

    def extra_repr(self) -> str:
        return f"{self.widths}, mode={self.mode!r}, value={self.value}"


class Concatenate(nn.Module):
    """What it is given, joined along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"
