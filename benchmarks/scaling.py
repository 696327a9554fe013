"""How time and memory grow with the batch, the picture, the windows and the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torchviz_cnn as tvc
from benchmarks import occluded
from benchmarks.clock import Run, peak_bytes
from benchmarks.effort import Effort, as_far_as_it_fits
from benchmarks.occluded import Task
from benchmarks.record import OURS, About, Row
from benchmarks.subjects import Subject

SUITE = "scaling"
METHODS = ("grad_cam", "saliency", "occlusion")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (112, 224, 448, 896)
TARGETS = (1, 2, 4, 8, 16)
STRIDES = (32, 16, 8, 4)
_CALLS: dict[str, Callable[..., object]] = {"grad_cam": tvc.grad_cam, "saliency": tvc.saliency}


def measure(effort: Effort) -> Iterator[Row | str]:
    """Rows along four axes: ``batch``, ``side``, ``targets`` and ``positions``."""
    for name in effort.networks(("resnet18",), ("resnet18",)):
        more = (128, 256) if effort.device.type == "cuda" else ()
        for batch in effort.batches or _thin((*BATCHES, *more), quick=effort.quick):
            asked = effort.subject(name, batch=batch, frozen=True)
            rows = _beside_forward(effort, asked, "batch", batch)
            yield from as_far_as_it_fits(rows, f"{name}, {asked.setting},")
        for side in sides(name, quick=effort.quick):
            asked = effort.subject(name, side=side, frozen=True)
            rows = _beside_forward(effort, asked, "side", side)
            yield from as_far_as_it_fits(rows, f"{name}, {asked.setting},")
        yield from _targets(effort, effort.subject(name, frozen=True))
        if effort.wants("occlusion"):
            yield from _positions(effort, effort.subject(name, frozen=True))


def sides(name: str, *, quick: bool) -> tuple[int, ...]:
    """Of the pictures, in pixels; none for a network that takes one size only."""
    return () if name.startswith("cat_dog") else _thin(SIDES, quick=quick)


def _thin(values: tuple[int, ...], *, quick: bool) -> tuple[int, ...]:
    return values[:3:2] if quick else values


def _beside_forward(effort: Effort, asked: Subject, axis: str, at: int) -> Iterator[Row]:
    calls: dict[str, Run] = {
        method: partial(call, asked.module, asked.inputs, asked.target, score=asked.score)
        for method, call in _CALLS.items()
        if effort.wants(method)
    }
    if not calls:
        return
    timed = effort.ratios(asked.forward, calls)
    base = peak_bytes(asked.forward, effort.device)
    for method, run in calls.items():
        about = About(SUITE, method, asked.name, axis, float(at))
        yield about.time(OURS, "forward", timed[method])
        yield about.once("memory", OURS, "forward", peak_bytes(run, effort.device), base)


def _targets(effort: Effort, asked: Subject) -> Iterator[Row]:
    """K classes of one picture in one call, beside a call for one."""
    classes = asked.forward().shape[1]
    for method, call in _CALLS.items():
        one = partial(call, asked.module, asked.inputs, asked.target, score=asked.score)
        for count in _thin(TARGETS, quick=effort.quick) if effort.wants(method) else ():
            if count > classes:
                continue
            wanted = [[(asked.target + i) % classes for i in range(count)]]
            several = partial(call, asked.module, asked.inputs, wanted, score=asked.score)
            about = About(SUITE, method, asked.name, "targets", float(count))
            side, against = f"{OURS}, all in one call", f"{OURS}, one"
            timed = effort.ratios(one, {side: several})
            yield about.time(side, against, timed[side])
            memory = [peak_bytes(run, effort.device) for run in (several, one)]
            yield about.once("memory", side, against, memory[0], memory[1])


def _positions(effort: Effort, asked: Subject) -> Iterator[Row]:
    """More and more windows of 32 pixels, beside a forward pass for each of them."""
    side = asked.inputs.shape[-1]
    for stride in STRIDES[:2] if effort.quick else STRIDES:
        task = Task(asked, side, 32, stride)
        incremental = partial(task.ours, "incremental")
        about = About(SUITE, "occlusion", asked.name, "positions", float(task.positions))
        sample = task.sample()
        timed = effort.ratios(
            incremental,
            {"dense": partial(sample.ours, "dense")},
            rounds=min(effort.rounds, 3),
            warm_up=1,
        )["dense"]
        note = occluded.taken_from(sample, task)
        yield about.time("dense", OURS, occluded.scaled(timed, sample, task), note)
        memory = [
            peak_bytes(run, effort.device, warm_up=0)
            for run in (partial(sample.ours, "dense"), incremental)
        ]
        yield about.once("memory", "dense", OURS, memory[0], memory[1], note)
