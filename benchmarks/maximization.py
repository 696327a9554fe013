"""What a step of activation maximisation costs beside a plain forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import torch

import torchviz_cnn as tvc
from benchmarks.clock import Run, peak_bytes
from benchmarks.effort import Effort
from benchmarks.record import OURS, About, Row
from benchmarks.subjects import Subject

SUITE = "maximize"
METHODS = ("class, fourier", "class, pixels", "first layer")
FULL = 256  # steps of an ascent
SIDE = 128  # of the pictures, in pixels


def measure(effort: Effort) -> Iterator[Row | str]:
    """Rows for each network: a step's time as a ratio to a forward pass of the same picture."""
    steps = 2 if effort.quick else 8
    for name in effort.networks(("squeezenet1_0", "resnet18"), ("squeezenet1_0",)):
        asked = effort.subject(name, side=SIDE, frozen=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from _beside_forward(effort, asked, steps)


def _beside_forward(effort: Effort, asked: Subject, steps: int) -> Iterator[Row]:
    forward = partial(_forwards, asked, steps)
    calls = {m: run for m, run in _calls(asked, steps).items() if effort.wants(m)}
    timed = effort.ratios(forward, calls, rounds=min(effort.rounds, 5), warm_up=1)
    base = peak_bytes(forward, effort.device)
    for method, run in calls.items():
        about = About(SUITE, method, asked.name, f"{asked.size}, {steps} steps")
        whole = timed[method].seconds / steps * FULL
        yield about.time(OURS, "forward", timed[method], f"{whole:.1f} s for {FULL} steps")
        yield about.once("memory", OURS, "forward", peak_bytes(run, effort.device), base)


def _calls(asked: Subject, steps: int) -> dict[str, Run]:
    size = tuple(asked.inputs.shape[1:])
    first = next(n for n, m in asked.module.named_modules() if isinstance(m, torch.nn.Conv2d))
    ascend = partial(tvc.maximize, asked.module, input_size=size, steps=steps)
    return {
        "class, fourier": partial(ascend, target=5),
        "class, pixels": partial(ascend, target=5, parametrization="pixels"),
        "first layer": partial(ascend, layer=first, channel=0),
    }


def _forwards(asked: Subject, steps: int) -> None:
    """As many forward passes as there are steps."""
    for _ in range(steps):
        asked.forward()
