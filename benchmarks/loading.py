"""Does reading pictures keep up? The training loop's images a second beside the same in memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from torchviz_cnn.training import Settings, fit
from torchviz_cnn.training.folders import KEPT, find, load
from torchviz_cnn.training.start import start

_AHEAD = 4  # batches that two workers read ahead


def _write(folder: Path, count: int) -> None:
    """JPEGs of 150×150 with as much detail as photographs have: smooth, with some noise."""
    draw = np.random.default_rng(0)
    for number in range(count):
        part = "validation" if number < 4 else "train"
        path = folder / part / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (19, 19, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((150, 150), Image.Resampling.BICUBIC)).astype(int)
        noisy = smooth + draw.integers(-12, 13, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def measure(
    model: str, *, device: torch.device, rounds: int, steps: int, workers: int, batch_size: int
) -> list[dict[str, Any]]:
    """Images a second within an epoch: from files, from what the start kept; bare steps in memory.

    Each is timed in turn, round after round, and ratios are taken within a round.
    """
    found: dict[str, list[float]] = {"files": [], "kept": [], "memory": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        steps = max(steps, _AHEAD + 2)
        _write(folder / "pictures", batch_size * steps + 4)
        begin = start(model, 2)
        settings = Settings(
            epochs=3, batch_size=batch_size, steps=steps, validation_steps=1, workers=workers
        )
        sets = {
            name: load(find(folder / "pictures"), begin.preprocess, memory=memory)[:2]
            for name, memory in (("files", 0), ("kept", KEPT))
        }
        for round_number in range(rounds):
            for name, (train, validation) in sets.items():
                begun = start(model, 2)
                clock = _Steps(begun.module, device)
                place = folder / f"{name}{round_number}"
                fit(begun, ("cats", "dogs"), train, validation, place, settings, device=device)
                found[name].append(batch_size / clock.seconds(steps))
            found["memory"].append(_bare(model, sets["kept"][0].kept, settings, device))
    rows = []
    for name, words in (("files", f"files, {workers} workers"), ("kept", "kept by the start")):
        pairs = zip(found[name], found["memory"], strict=True)
        rows.append(
            {
                "pictures": words,
                "rate": statistics.median(found[name]),
                "memory": statistics.median(found["memory"]),
                "ratio": statistics.median(own / bare for own, bare in pairs),
            }
        )
    return rows


def _bare(
    model: str, pixels: torch.Tensor | None, settings: Settings, device: torch.device
) -> float:
    """The same steps on numbers that are on the device already: no loop around them at all."""
    from torchviz_cnn.training.recipe import loss_of, rmsprop

    assert pixels is not None
    begin = start(model, 2)
    module = begin.module.to(device).train()
    optimizer = rmsprop(module.parameters(), settings.learning_rate)
    images = begin.preprocess.numbers(pixels).to(device)
    labels = (torch.arange(len(images)) % 2).to(device)
    clock = _Steps(module, device)
    for _ in range(settings.epochs):
        for batch in torch.arange(len(images)).split(settings.batch_size):
            chance = module(images[batch]).reshape(-1)
            loss = loss_of(torch.logit(chance, 1e-7), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return settings.batch_size / clock.seconds(settings.steps or 1)


class _Steps:
    """When each training step begins, by the network's own clock-in."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.stamps: list[float] = []
        self.device = device
        module.register_forward_pre_hook(self._stamp)

    def _stamp(self, module: nn.Module, _: object) -> None:
        if module.training:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.stamps.append(time.perf_counter())

    def seconds(self, steps: int) -> float:
        """Of a step, within the epochs after the first, which starts everything up.

        The first steps of an epoch are left out as well: their pictures were read beforehand.
        """
        epochs = [self.stamps[i : i + steps] for i in range(steps, len(self.stamps), steps)]
        return statistics.median(
            (each[-1] - each[_AHEAD]) / (steps - _AHEAD - 1) for each in epochs
        )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["pictures | images/s | in memory, images/s | ratio", "--- | --- | --- | ---"]
    lines += [
        f"{row['pictures']} | {row['rate']:.0f} | {row['memory']:.0f} | {row['ratio']:.2f}"
        for row in rows
    ]
    return "\n".join(f"| {line} |" for line in lines)
