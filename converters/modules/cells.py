"""Maps resized by taking cells as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class NearestCells(nn.Module):
    """Of each new cell the old one that its middle lies in, whatever the factor.

    ``(N, C, H, W)`` in, ``(N, C, *sides)`` out.
    """

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.interpolate(input, size=self.sides, mode="nearest-exact")

    def extra_repr(self) -> str:
        return f"{self.sides}"
