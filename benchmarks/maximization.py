"""What a step of activation maximisation costs beside a plain forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torchvision

import torchviz_cnn as tvc
from benchmarks.clock import ratios
from benchmarks.cost import plain
from torchviz_cnn.naming import module_of

FULL = 256  # steps of an ascent


def _first_convolution(module: torch.nn.Module) -> str:
    return next(name for name, part in module.named_modules() if isinstance(part, torch.nn.Conv2d))


def measure(
    models: Sequence[str], *, size: int, steps: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """A row a model: a step's time by that of a ``no_grad`` forward pass, both in the same run.

    Args:
        models: torchvision's names.
        size: side of the picture.
        steps: of an ascent that is timed, beside as many forward passes.
        device: where it is measured.
        rounds: how often each runs.
    """
    rows = []
    for name in models:
        torch.manual_seed(0)
        module = torchvision.models.get_model(name).eval().to(device)
        inputs = torch.randn(1, 3, size, size, device=device)

        def forward(module: torch.nn.Module = module, inputs: torch.Tensor = inputs) -> None:
            for _ in range(steps):
                plain(module, inputs)

        ascend = partial(tvc.maximize, module, input_size=(3, size, size), steps=steps)
        first = _first_convolution(module_of(module))
        ways: dict[str, Callable[[], object]] = {
            "class, fourier": partial(ascend, target=5),
            "class, pixels": partial(ascend, target=5, parametrization="pixels"),
            "first layer": partial(ascend, layer=first, channel=0),
        }
        timed = ratios(forward, ways, device=device, rounds=rounds, warm_up=1)
        rows.append({"model": name, "time": timed, "steps": steps})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    ways = list(rows[0]["time"])
    head = ["model", *(f"{way}, step" for way in ways), f"class, {FULL} steps, s"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        whole = row["time"][ways[0]].seconds * FULL / row["steps"]
        cells = [row["model"], *(str(row["time"][way]) for way in ways), f"{whole:.1f}"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)
