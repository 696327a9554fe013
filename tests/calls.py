"""What functions are called with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def shapes_given(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[torch.Size]:
    """The shapes of a function's first argument, a line a call; it does what it did."""
    shapes: list[torch.Size] = []
    real = getattr(where, name)

    def counted(first: Tensor, *args: Any, **options: Any) -> Tensor:
        shapes.append(first.shape)
        found: Tensor = real(first, *args, **options)
        return found

    monkeypatch.setattr(where, name, counted)
    return shapes
