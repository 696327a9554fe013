"""Pictures flipped, turned, shifted and zoomed while a network trains, as Keras' generator does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.errors import InputError, is_real


@dataclass(frozen=True)
class Augmentation:
    """How far pictures may be changed; drawn evenly, as ``ImageDataGenerator`` draws.

    Attributes:
        flip: mirror every second picture, left for right.
        rotate: turn by up to so many degrees either way.
        shift: move by up to this share of each side.
        zoom: take each side times 1 − zoom (closer) to 1 + zoom (further away).
    """

    flip: bool = False
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("rotate", 180.0), ("shift", 1.0), ("zoom", 0.95)):
            value = getattr(self, name)
            if not (is_real(value) and 0 <= value <= most):
                raise InputError.about(name, f"must lie between 0 and {most:g}, not {value!r}")

    def __bool__(self) -> bool:
        return self != Augmentation()

    def warp(self, key: tuple[int, ...], size: tuple[int, int]) -> Tensor:
        """Where each pixel of one picture is taken from: a function of the key alone.

        Args:
            key: seed, pass and index.
            size: ``(H, W)``.

        Returns:
            ``(2, 3)``, float64: ``matrix @ (x, y, 1)`` in pixels from the picture's middle.
        """
        draw = np.random.default_rng(key)
        angle = math.radians(draw.uniform(-self.rotate, self.rotate))
        down, right = draw.uniform(-self.shift, self.shift, 2) * size
        tall, wide = draw.uniform(1 - self.zoom, 1 + self.zoom, 2)
        mirror = -1.0 if self.flip and draw.random() < 0.5 else 1.0
        # Mirrored last, so first on the way back; then zoomed, shifted, turned.
        turn = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
            dtype=torch.float64,
        )
        zoomed = torch.tensor([[mirror * wide, 0.0, right], [0.0, tall, down]], dtype=torch.float64)
        return turn @ zoomed


def warped(images: Tensor, warps: Tensor) -> Tensor:
    """Pictures changed, each in its own way; what comes from outside is the nearest border pixel.

    Args:
        images: ``(N, C, H, W)``, floating point.
        warps: ``(N, 2, 3)`` from :meth:`Augmentation.warp`.

    Example:
        >>> picture = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> mirrored = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> warped(picture, mirrored).squeeze().tolist()
        [[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]]
    """
    height, width = images.shape[-2:]
    # affine_grid measures in half sides: x from −1 to 1 is −W/2 to W/2 pixels.
    half = torch.tensor([width / 2, height / 2], dtype=warps.dtype, device=warps.device)
    theta = warps.clone()
    theta[:, :, :2] *= half / half[:, None]
    theta[:, :, 2] /= half
    # In the pictures' own precision, and on the CPU's bits wherever it runs.
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.dtype)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
