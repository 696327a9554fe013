"""What the maps of many classes cost beside a plain forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torchvision

import torchviz_cnn as tvc
from benchmarks.clock import ratios
from benchmarks.cost import plain


def measure(
    models: Sequence[str],
    counts: Sequence[int],
    *,
    method: str,
    batch: int,
    device: torch.device,
    rounds: int,
) -> list[dict[str, Any]]:
    """A row a model: maps of so many classes an image by one call, as ratios to a forward pass.

    Args:
        models: torchvision's names.
        counts: numbers of classes.
        method: of the Grad-CAM family.
        batch: pictures.
        device: where it is measured.
        rounds: how often each runs.
    """
    rows = []
    for name in models:
        torch.manual_seed(0)
        module = torchvision.models.get_model(name).eval().to(device)
        inputs = torch.randn(batch, 3, 224, 224, device=device)
        calls: dict[str, Callable[[], object]] = {
            str(count): partial(tvc.METHODS[method], module, inputs, [list(range(count))] * batch)
            for count in counts
        }
        timed = ratios(partial(plain, module, inputs), calls, device=device, rounds=rounds)
        rows.append({"model": name, "batch": batch, "method": method, "time": timed})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    counts = list(rows[0]["time"])
    head = ["model", "batch", "method", *(f"{count} classes" for count in counts)]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        cells = [row["model"], str(row["batch"]), row["method"]]
        lines.append(" | ".join([*cells, *(str(row["time"][count]) for count in counts)]))
    return "\n".join(f"| {line} |" for line in lines)
