"""From cells and windows to pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

if TYPE_CHECKING:
    from torchviz_cnn.places import Place


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of ``(…, h, w)`` to ``(…, H, W)``; cells keep their places."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    dtype = flat.dtype if flat.dtype in (torch.float32, torch.float64) else torch.float32
    flat = flat.to(dtype)
    # What is interpolated is how far cells are above the lowest: a constant map then stays constant
    # to the last bit, and none falls below its lowest cell, where rounding would make it signed.
    base = torch.where(flat.isfinite(), flat, torch.inf).amin((-2, -1), keepdim=True)
    base = base.nan_to_num(posinf=0.0)  # no finite cell at all
    grown = base + F.interpolate(flat - base, size=size, mode="bilinear", align_corners=False)
    return grown.to(maps.dtype).reshape(*maps.shape[:-2], *size)


def at_places(maps: Tensor, place: Place, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of ``(…, h, w)`` between the cells' places.

    A cell reaches half a step beyond its place; pixels that no cell reaches are 0.
    """
    rows, columns = (
        _between(count, centre, step, length).to(maps.device, torch.float64)
        for count, centre, step, length in zip(
            maps.shape[-2:], place.centre, place.step, size, strict=True
        )
    )
    return torch.einsum("yh,...hw,xw->...yx", rows, maps.double(), columns).to(maps.dtype)


def _between(count: int, centre: float, step: float, length: int) -> Tensor:
    """``(length, count)``: how much each cell has to do with each pixel along one axis."""
    pixels = torch.arange(length, dtype=torch.float64, device="cpu") + 0.5
    position = (pixels - centre) / step
    reached = (position >= -0.5) & (position <= count - 0.5)
    position = position.clamp(0, count - 1)
    distance = (
        position[:, None] - torch.arange(count, dtype=torch.float64, device="cpu")[None, :]
    ).abs()
    return (1 - distance).clamp(min=0) * reached[:, None]


def spread(
    grid: Tensor, window: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """At each pixel the mean over the windows that cover it.

    Args:
        grid: a number for each window, ``(…, rows, columns)``.
        window, stride: of the windows, in pixels.
        size: of the picture, ``(H, W)``.

    Returns:
        ``(…, H, W)``.
    """
    # One matrix an axis, 1 where a window covers a pixel: a sum over windows is two products.
    rows, columns = (
        _coverage(count, extent, step, length).to(grid.device, torch.float64)
        for count, extent, step, length in zip(grid.shape[-2:], window, stride, size, strict=True)
    )
    total = torch.einsum("hr,...rc,wc->...hw", rows, grid.double(), columns)
    hits = rows.sum(1)[:, None] * columns.sum(1)[None, :]
    return (total / hits).to(grid.dtype)


def _coverage(count: int, window: int, step: int, length: int) -> Tensor:
    """``(length, count)``: 1 where the window at ``i * step`` covers the pixel."""
    pixels = torch.arange(length, device="cpu")[:, None]
    starts = torch.arange(count, device="cpu")[None, :] * step
    return (pixels >= starts) & (pixels < starts + window)
