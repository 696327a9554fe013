"""Beside what there is to do at all: a plain forward pass, a bare gradient, counted multiply-adds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import torchviz_cnn as tvc
from benchmarks import occluded
from benchmarks.clock import Run, peak_bytes
from benchmarks.effort import Effort, as_far_as_it_fits
from benchmarks.libraries import single_layers
from benchmarks.occluded import Task
from benchmarks.record import OURS, About, Row
from benchmarks.subjects import NETWORKS, OCCLUDED, Subject

SUITE = "limit"
GRADIENT = "forward + input gradient"
# What cannot do without the gradient at the picture.
_PIXELS = ("saliency", "guided_backprop", "guided_grad_cam")
METHODS = ("grad_cam", *_PIXELS, "activations", "occlusion")


def measure(effort: Effort) -> Iterator[Row | str]:
    """A row for each method, network, batch, measure and limit."""
    names = effort.networks(NETWORKS, ("resnet18",))
    for name in names:
        for batch in effort.sizes():
            asked = effort.subject(name, batch=batch, frozen=True)
            rows = _gradients(effort, asked)
            yield from as_far_as_it_fits(rows, f"{asked.name}, {asked.setting},")
    if effort.wants("occlusion"):
        occluded_names = effort.models or (("resnet18",) if effort.quick else OCCLUDED)
        for task in occluded.tasks(effort, occluded_names):
            rows = _occlusion(effort, task)
            yield from as_far_as_it_fits(rows, f"occlusion, {task.subject.name}, {task.setting},")


def _calls(asked: Subject, effort: Effort) -> dict[str, Run]:
    question = (asked.module, asked.inputs, asked.target)
    names = single_layers(asked.module, asked.inputs[:1])
    calls: dict[str, Run] = {
        "grad_cam": partial(tvc.grad_cam, *question, score=asked.score, layer=asked.layer),
        "saliency": partial(tvc.saliency, *question, score=asked.score),
        "guided_backprop": partial(tvc.guided_backprop, *question, score=asked.score),
        "guided_grad_cam": partial(
            tvc.guided_grad_cam, *question, score=asked.score, layer=asked.layer
        ),
        "activations": partial(tvc.activations, asked.module, asked.inputs, names),
    }
    return {method: run for method, run in calls.items() if effort.wants(method)}


def _gradients(effort: Effort, asked: Subject) -> Iterator[Row]:
    calls = _calls(asked, effort)
    if not calls:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timed = effort.ratios(asked.forward, calls)
        base = peak_bytes(asked.forward, effort.device)
        for method, run in calls.items():
            about = About(SUITE, method, asked.name, asked.setting)
            yield about.time(OURS, "forward", timed[method])
            yield about.once("memory", OURS, "forward", peak_bytes(run, effort.device), base)
        pixels = {method: run for method, run in calls.items() if method in _PIXELS}
        if pixels:
            timed = effort.ratios(asked.forward_and_gradient, pixels)
        for method in pixels:
            about = About(SUITE, method, asked.name, asked.setting)
            yield about.time(OURS, GRADIENT, timed[method])


def _occlusion(effort: Effort, task: Task) -> Iterator[Row]:
    about = About(SUITE, "occlusion", task.subject.name, task.setting)
    counted = occluded.count(task)
    yield about.once("multiply-adds", "dense", OURS, counted.whole, counted.planned)
    yield about.once("multiply-adds", OURS, "exact ceiling", counted.planned, counted.least)
    sample = task.sample()
    ready = occluded.folded(task.subject.module, task.subject.inputs)
    timed = effort.ratios(
        partial(task.ours, "incremental"),
        {
            "dense": partial(sample.ours, "dense"),
            "dense, folded": occluded.dense(sample, ready),
        },
        rounds=min(effort.rounds, 5),
        warm_up=1,
    )
    note = occluded.taken_from(sample, task)
    for side, ratio in timed.items():
        yield about.time(side, OURS, occluded.scaled(ratio, sample, task), note)
