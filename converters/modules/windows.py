"""What slides over maps, or takes them whole, with borders that torch's own modules lack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from converters.modules.arithmetic import REDUCTIONS
from converters.modules.shapes import Pad


class SamePad(nn.Module):
    """The border with which a window of this stride puts out ceil(size / stride) cells.

    Sizes need not be known beforehand: it is for networks that take pictures of any size.

    Args:
        kernel: height and width of the window.
        stride: its step.
        dilation: distance between its cells.
        upper: where the border is odd, the larger half goes to the end (TensorFlow's way).
        value: what the border is made of.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        *,
        upper: bool,
        value: float = 0.0,
    ) -> None:
        super().__init__()
        self.windows = tuple(zip(kernel, stride, dilation, strict=True))
        self.upper, self.value = upper, value

    def widths(self, size: Sequence[int]) -> list[int]:
        found: list[int] = []
        for length, (kernel, stride, dilation) in reversed(
            list(zip(size, self.windows, strict=True))
        ):
            cells = -(-length // stride)
            border = max((cells - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
            less = border // 2
            found += [less, border - less] if self.upper else [border - less, less]
        return found

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.pad(input, self.widths(input.shape[2:]), value=self.value)


class SameAvgPool(nn.Module):
    """An average over a padded window in which the border does not count."""

    def __init__(self, pad: SamePad | Pad, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.pad, self.kernel_size, self.stride = pad, tuple(kernel), tuple(stride)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        size = self.kernel_size
        total = _avg(len(size))(self.pad(input), size, self.stride)
        share = _avg(len(size))(self.pad(torch.ones_like(input[:1, :1])), size, self.stride)
        return total / share


class ConvTransposeCut(nn.Module):
    """A transposed convolution of which a border, not the same on all sides, is cut away."""

    def __init__(self, conv: nn.Module, cut: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv
        self.cut = tuple(-n for n in cut)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.pad(self.conv(input), self.cut)


def _avg(rank: int) -> Callable[..., Tensor]:
    return {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[rank]


class GlobalPool(nn.Module):
    """Mean or maximum of each channel's whole map.

    Args:
        op: ONNX's name of it.
        rank: how many axes there are, where it is known: ``torch.fx`` cannot ask.
    """

    def __init__(self, op: str, rank: int | None = None) -> None:
        super().__init__()
        self.op, self.rank = op, rank

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        axes = tuple(range(2, self.rank or input.ndim))
        return REDUCTIONS[self.op](input, dim=axes, keepdim=True)

    def extra_repr(self) -> str:
        return self.op


def _reaching(length: int, factor: float) -> float:
    """The factor, made so much larger that torch finds as many rows by it as onnxruntime does.

    That multiplies in single precision, where 90 times 75/90 is 75 again; in double it is less.
    """
    wanted = int(np.float32(length) * np.float32(factor))
    if math.floor(length * factor) < wanted:
        factor = wanted / length
    while math.floor(length * factor) < wanted:
        factor = math.nextafter(factor, math.inf)
    return factor


class Resize(nn.Module):
    """Enlarging by whole factors (nearest) or to a size (bilinear), as Keras does."""

    def __init__(
        self, mode: str, *, scale: Sequence[float] | None, size: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.mode = mode
        self.scale = None if scale is None else tuple(scale)
        self.size = None if size is None else tuple(size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        align = None if self.mode == "nearest" else False
        scale = self.scale and tuple(map(_reaching, input.shape[2:], self.scale))
        return F.interpolate(
            input,
            size=self.size,
            scale_factor=scale,
            mode=self.mode,
            align_corners=align,
        )
