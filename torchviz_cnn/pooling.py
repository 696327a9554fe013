"""Max pooling where no gradient will be asked for.

Torch's notes of every window which of its cells was the largest, for a backward pass to find it: a
64-bit number for each number it puts out, and comparisons one after the other. Without, the largest is
the maximum of the map and of itself moved by a cell, which is computed many numbers at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.dispatch import is_watched
from torchviz_cnn.guard import every_module

# Maps of fewer numbers are pooled faster by torch. Channels first its pooling takes up to 20 times as
# long as channels last (64 maps of 112×112, windows of 3×3: 2.3 ms and 0.16 ms; here 0.20 and 0.12).
_FEW = {torch.contiguous_format: 2**15, torch.channels_last: 2**18}
_FORWARD = nn.MaxPool2d.forward


def max_pool2d(
    maps: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """:func:`torch.nn.functional.max_pool2d`; on a CPU without indices where nobody needs them.

    The numbers are the same. Only zeros may have another sign, where a window holds both.

    Args:
        maps: ``(N, C, h, w)`` or ``(C, h, w)``.
        kernel_size, stride, padding, dilation, ceil_mode: as there, numbers or pairs.

    Raises:
        RuntimeError: as there.

    Example:
        >>> maps = torch.tensor([[[1.0, 2.0, 0.0], [3.0, 0.0, 4.0]]])
        >>> with torch.no_grad():
        ...     max_pool2d(maps, 2, stride=1)
        tensor([[[3., 4.]]])
    """
    stride = (
        kernel_size if stride is None or (isinstance(stride, Sequence) and not stride) else stride
    )
    numbers = [_two(each) for each in (kernel_size, stride, padding, dilation)]
    passes = None
    if None not in numbers and _is_suited(maps):
        height, width = maps.shape[-2:]
        rows, columns = zip(*numbers, strict=True)
        passes = _passes(_Axis(height, *rows), _Axis(width, *columns), ceil_mode)
    if passes is None:
        return F.max_pool2d(maps, kernel_size, stride, padding, dilation, ceil_mode)
    for each in passes:
        maps = _largest(maps, each)
    return maps


def _is_suited(maps: Tensor) -> bool:
    """Whether it is faster without indices, and nobody needs them."""
    return (
        type(maps) is Tensor
        and maps.layout is torch.strided
        and not is_functorch_wrapped_tensor(maps)
        and forward_ad._current_level < 0
        and maps.device.type == "cpu"
        and maps.dtype in (torch.float32, torch.float64)
        and not (maps.requires_grad and torch.is_grad_enabled())
        and (layout := _layout(maps)) is not None
        and maps.numel() >= _FEW[layout]
    )


@contextmanager
def without_indices(module: nn.Module) -> Iterator[None]:
    """Let a network's max poolings find no indices inside the block where nobody needs them.

    What watches the pass, by operators, sees it as it was written.
    """
    pools = [] if is_watched() else [each for each in every_module(module) if _is_plain(each)]
    try:
        for pool in pools:
            find_no_indices(pool)
        yield
    finally:
        for pool in pools:
            if finds_no_indices(pool):
                del pool.__dict__["forward"]


def find_no_indices(pool: nn.Module) -> None:
    """Let a max pooling compute :func:`max_pool2d`; another module is left as it is."""
    if _is_plain(pool):
        assert isinstance(pool, nn.MaxPool2d)
        pool.__dict__["forward"] = partial(_pooled, pool)


def _pooled(pool: nn.MaxPool2d, input: Tensor) -> Tensor:  # noqa: A002 - nn.MaxPool2d's name
    if pool.return_indices:
        found: Tensor = _FORWARD(pool, input)
        return found
    window = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return max_pool2d(input, *window, pool.ceil_mode)


def finds_no_indices(pool: nn.Module) -> bool:
    """Whether :func:`find_no_indices` has been at work on it."""
    forward = pool.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _pooled


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a max pooling that does what its class says, and nothing more."""
    return (
        isinstance(module, nn.MaxPool2d)
        and type(module).forward is _FORWARD
        and "forward" not in module.__dict__
    )


def _two(value: Any) -> tuple[int, int] | None:
    """One number for both axes, or two; ``None`` for what is neither."""
    if not isinstance(value, Sequence):
        return value, value
    return (value[0], value[-1]) if len(value) in (1, 2) else None


class _Step(NamedTuple):
    """Where one cell of each window lies on an axis.

    Attributes:
        cells: a slice of the input, the cell of each window that has it.
        windows: a slice of the output, the windows that have it.
    """

    cells: slice
    windows: slice


class _Axis(NamedTuple):
    """Windows that slide along one axis."""

    length: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def windows(self, ceil_mode: bool) -> int:
        """How many there are; with ``ceil_mode`` also one that hangs over the end."""
        if self.stride < 1:
            return 0
        free = self.length + 2 * self.padding - self.extent
        count = free // self.stride + 1
        hangs_over = ceil_mode and free % self.stride
        begins_inside = count * self.stride < self.length + self.padding
        return count + 1 if hangs_over and begins_inside else count

    def is_usual(self, windows: int) -> bool:
        """Whether there is anything to compute that torch does not refuse."""
        return (
            windows > 0
            and self.kernel > 0
            and self.dilation > 0
            and 0 <= 2 * self.padding <= self.kernel
        )

    def steps(self, windows: int) -> list[_Step]:
        """The cells of each window, the first, the second and so on; those outside are left out."""
        found = []
        for number in range(self.kernel):
            offset = number * self.dilation - self.padding
            first = max(0, -(offset // self.stride))
            last = min(windows - 1, (self.length - 1 - offset) // self.stride)
            if first <= last:
                start, stop = offset + first * self.stride, offset + last * self.stride + 1
                found.append(_Step(slice(start, stop, self.stride), slice(first, last + 1)))
        return found


def _layout(maps: Tensor) -> torch.memory_format | None:
    """The layout that torch's own pooling would keep, if it is an ordinary one."""
    if maps.ndim not in (3, 4):
        return None
    if maps.is_contiguous():
        return torch.contiguous_format
    last = maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else None


class _Pass(NamedTuple):
    """What makes a map of another: the maximum of what lies under steps along both axes.

    Attributes:
        size: of the map that is made.
        everywhere: slices of the input that are as large as that.
        somewhere: slices of the input, and of the map that is made.
    """

    size: tuple[int, int]
    everywhere: list[tuple[slice, slice]]
    somewhere: list[tuple[tuple[slice, slice], tuple[slice, slice]]]


@lru_cache(maxsize=1024)
def _passes(rows: _Axis, columns: _Axis, ceil_mode: bool) -> list[_Pass] | None:
    """How maps are pooled; ``None`` for what torch refuses."""
    down, across = rows.windows(ceil_mode), columns.windows(ceil_mode)
    if not (rows.is_usual(down) and columns.is_usual(across)):
        return None
    if rows.stride >= rows.kernel and columns.stride >= columns.kernel:  # nothing is read twice
        return [_pass((down, across), rows.steps(down), columns.steps(across))]
    width = columns.length
    return [
        _pass((down, width), rows.steps(down), [_Step(slice(0, width), slice(0, width))]),
        _pass((down, across), [_Step(slice(0, down), slice(0, down))], columns.steps(across)),
    ]


def _pass(size: tuple[int, int], down: list[_Step], across: list[_Step]) -> _Pass:
    found = _Pass(size, [], [])
    for row in down:
        for column in across:
            cells, windows = (row.cells, column.cells), (row.windows, column.windows)
            if windows == (slice(0, size[0]), slice(0, size[1])):
                found.everywhere.append(cells)
            else:
                found.somewhere.append((cells, windows))
    return found


def _largest(maps: Tensor, how: _Pass) -> Tensor:
    """Of every window the largest of its cells."""
    layout = _layout(maps) or torch.contiguous_format
    size = (*maps.shape[:-2], *how.size)
    found = torch.empty(size, dtype=maps.dtype, device=maps.device, memory_format=layout)
    if how.everywhere:
        first, *others = [maps[..., rows, columns] for rows, columns in how.everywhere]
        torch.maximum(first, others[0] if others else first, out=found)
        for each in others[1:]:
            torch.maximum(found, each, out=found)
    else:
        found.fill_(-torch.inf)
    for (rows, columns), (down, across) in how.somewhere:
        part = found[..., down, across]
        torch.maximum(part, maps[..., rows, columns], out=part)
    return found
