"""What computing only what a hidden window changes saves, in time and in multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torchvision

import torchviz_cnn as tvc
from benchmarks.clock import ratios
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.methods.incremental import Engine, Request


def measure(
    models: Sequence[str],
    *,
    size: int,
    window: int,
    stride: int,
    device: torch.device,
    rounds: int,
) -> list[dict[str, Any]]:
    """A row a model: dense time by incremental time, in the same run, and the largest difference.

    Args:
        models: torchvision's names.
        size: side of the picture.
        window, stride: of occlusion, in pixels.
        device: where it is measured.
        rounds: how often each engine runs.
    """
    rows = []
    for name in models:
        torch.manual_seed(0)
        module = torchvision.models.get_model(name).eval().to(device)
        inputs = torch.randn(1, 3, size, size, device=device)

        def occluded(
            engine: Literal["dense", "incremental"],
            module: torch.nn.Module = module,
            inputs: torch.Tensor = inputs,
        ) -> tvc.WindowAttribution:
            return tvc.occlusion(module, inputs, 5, window=window, stride=stride, engine=engine)

        dense, found = occluded("dense"), occluded("incremental")
        assert dense.scores is not None
        assert found.scores is not None
        timed = ratios(
            partial(occluded, "incremental"),
            {"dense": partial(occluded, "dense")},
            device=device,
            rounds=rounds,
            warm_up=0,
        )["dense"]
        positions = (found.values.shape[1], found.values.shape[2])
        with undisturbed(module, inputs):
            request = Request((window, window), (stride, stride), positions, 8)
            macs = Engine(module, inputs, request).ratio
        rows.append(
            {
                "model": name,
                "positions": f"{positions[0]}×{positions[1]}",
                "time": timed,
                "macs": macs,
                "difference": float(
                    (found.scores - dense.scores).abs().max() / dense.scores.abs().max()
                ),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = ["model", "positions", "dense, time", "dense, s", "dense, multiply-adds", "difference"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        cells = [row["model"], row["positions"], str(row["time"]), f"{row['time'].seconds:.1f}"]
        cells += [f"{row['macs']:.2f}", f"{row['difference']:.1e}"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)
