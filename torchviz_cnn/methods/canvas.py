"""The picture that is optimised: what its numbers stand for, and how it is moved about.

Colours are between 0 and 1, ``(N, K, H, W)`` with K = 3 for RGB and 1 for gray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.errors import InputError, is_real

Parametrization = Literal["fourier", "pixels"]

# A square root of the covariance of colours over ImageNet's pixels, as the feature-visualisation
# literature uses it (Olah, Mordvintsev, Schubert 2017, "Feature Visualization", "Preconditioning
# and Parameterization"). Columns: light and dark, blue and yellow, green and magenta.
COLOR_ROOT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


def color_mixing(channels: int) -> Tensor:
    """``(K, K)``: from numbers that vary independently to colours that vary as photographs do.

    The covariance's root over its longest column, so that no channel grows; the identity for
    anything but RGB.
    """
    if channels != 3:
        return torch.eye(channels, dtype=torch.float64, device="cpu")
    root = torch.tensor(COLOR_ROOT, dtype=torch.float64, device="cpu")
    return root / root.norm(dim=0).max()


def spectrum_weights(height: int, width: int, decay: float) -> Tensor:
    """``(H, W // 2 + 1)``: what each frequency is multiplied by, its inverse to a power.

    Frequencies are in periods a pixel; the constant counts as one period in the longer side. With
    weights √(H W) / f every octave of a picture has the same energy, as in photographs.
    """
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device="cpu")[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64, device="cpu")[None, :]
    frequency = torch.sqrt(rows**2 + columns**2).clamp(min=1 / max(height, width))
    return math.sqrt(height * width) / frequency**decay


_SPREAD = 0.01  # standard deviation of the noise pictures start from


class Canvas:
    """N pictures as numbers that can be optimised, each started from its own seed.

    Args:
        size: ``(K, H, W)``.
        seeds: one a picture; a picture does not depend on the others of its batch.
        parametrization: ``"fourier"``: a spectrum with decorrelated colours, and a sigmoid to keep
            it within 0…1. ``"pixels"``: the colours themselves, clipped after each step.
        decay: power of the inverse frequency, for ``"fourier"``.
        middle: the colours the pictures start around, ``(K,)``.
        device, dtype: of the numbers.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        seeds: Sequence[int],
        parametrization: Parametrization,
        *,
        decay: float,
        middle: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        channels, height, width = size
        self.parametrization = parametrization
        self.size = size
        self.seeds = list(seeds)
        fourier = parametrization == "fourier"
        shape = (channels, height, width // 2 + 1, 2) if fourier else size
        # On the CPU and in double precision: the start is the same on every device.
        start = torch.stack([_noise(shape, seed) * _SPREAD for seed in seeds])
        middle = middle.to(torch.float64)
        if fourier:
            self.mixing = color_mixing(channels).to(device, dtype)
            self.weights = (spectrum_weights(height, width, decay) / 4).to(device, dtype)
            self.offset = torch.logit(middle, eps=1e-3)[:, None, None].to(device, dtype)
        else:
            start = (start + middle[:, None, None]).clamp(0, 1)
        self.numbers = start.to(device, dtype).requires_grad_()

    def colors(self) -> Tensor:
        """The pictures, ``(N, K, H, W)``; differentiable in :attr:`numbers`."""
        if self.parametrization == "pixels":
            return self.numbers
        spectrum = torch.view_as_complex(self.numbers) * self.weights
        independent = torch.fft.irfft2(spectrum, s=self.size[1:])
        mixed = torch.einsum("ck,nkhw->nchw", self.mixing, independent)
        return torch.sigmoid(mixed + self.offset)

    def clip(self) -> None:
        """Bring pixels back between 0 and 1 after a step."""
        if self.parametrization == "pixels":
            with torch.no_grad():
                self.numbers.clamp_(0, 1)


def _noise(shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Moves:
    """How a picture is moved at random before each look at it (Olah et al. 2017, "Transformation
    robustness").

    Attributes:
        jitter: by up to so many whole pixels either way,
        scale: magnified by a factor between these,
        rotate: turned by up to so many degrees either way.
    """

    jitter: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0

    def __post_init__(self) -> None:
        if not is_real(self.jitter) or self.jitter < 0 or self.jitter != int(self.jitter):
            raise InputError.about(
                "jitter", f"is a whole number of pixels from 0, not {self.jitter!r}"
            )
        low, high = self.scale
        if not (is_real(low) and is_real(high) and 0 < low <= high):
            raise InputError.about(
                "scale", f"is two factors above 0, the lower first, not {self.scale!r}"
            )
        if not (is_real(self.rotate) and 0 <= self.rotate <= 180):
            raise InputError.about(
                "rotate", f"is an angle of 0 to 180 degrees, not {self.rotate!r}"
            )

    @property
    def none(self) -> bool:
        """Whether nothing is moved."""
        return not self.jitter and self.scale == (1.0, 1.0) and not self.rotate

    def draw(self, generator: torch.Generator) -> Move:
        """One of them."""
        down, right = torch.randint(
            -self.jitter, self.jitter + 1, (2,), generator=generator, device="cpu"
        ).tolist()
        share, turn = torch.rand(2, generator=generator, dtype=torch.float64, device="cpu").tolist()
        low, high = self.scale
        return Move(down, right, low + (high - low) * share, self.rotate * (2 * turn - 1))


@dataclass(frozen=True)
class Move:
    """A picture magnified about its middle, turned counter-clockwise, and shifted.

    Attributes:
        down, right: in pixels.
        factor: above 1 it grows.
        degrees: of the turn.
    """

    down: float = 0.0
    right: float = 0.0
    factor: float = 1.0
    degrees: float = 0.0

    def matrix(self, height: int, width: int) -> list[list[float]]:
        """Where a pixel of the moved picture comes from, in coordinates of −1 to 1 (x, y, 1)."""
        cos, sin = (f(math.radians(self.degrees)) / self.factor for f in (math.cos, math.sin))
        # Undo the shift, then turn back and shrink; y points down.
        return [
            [cos, -sin * height / width, -2 * (cos * self.right - sin * self.down) / width],
            [sin * width / height, cos, -2 * (sin * self.right + cos * self.down) / height],
        ]


def moved(pictures: Tensor, moves: Sequence[Move]) -> Tensor:
    """Pictures ``(N, K, H, W)`` moved, each by its own; beyond the border they are mirrored."""
    height, width = pictures.shape[-2:]
    matrices = torch.tensor(
        [move.matrix(height, width) for move in moves], dtype=pictures.dtype, device=pictures.device
    )
    grid = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def total_variation(pictures: Tensor, power: float = 2.0) -> Tensor:
    """``(N,)``: mean over channels and pixels of ``(dx² + dy²)^(power / 2)`` of ``(N, K, H, W)``.

    Source: Mahendran, Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them",
    section 3, equation for the finite-difference approximation; the mean instead of the sum, so
    that its weight does not depend on the picture's size.
    """
    across = pictures[..., :-1, 1:] - pictures[..., :-1, :-1]
    down = pictures[..., 1:, :-1] - pictures[..., :-1, :-1]
    squares = across**2 + down**2
    if power != 2:
        squares = (squares + 1e-12) ** (power / 2)  # a root has no slope at 0
    return squares.sum((1, 2, 3)) / pictures[0].numel()


def p_norm(pictures: Tensor, origin: Tensor, power: float) -> Tensor:
    """``(N,)``: mean of ``|x − origin|^power`` over channels and pixels of ``(N, K, H, W)``.

    Source: power 2: Simonyan, Vedaldi, Zisserman 2013, "Deep Inside Convolutional Networks",
    equation 1; higher powers: Mahendran, Vedaldi 2015, section 3.
    """
    return (pictures - origin[:, None, None]).abs().pow(power).mean((1, 2, 3))
