"""Beside other libraries: the same network object, input, target and layer.

Maps are compared before anything is timed. A peer that computes another map is reported with the
reason and not timed.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import libraries, occluded
from benchmarks.clock import Run, peak_bytes, seconds
from benchmarks.effort import Effort, as_far_as_it_fits, no_room
from benchmarks.libraries import PEERS, Peer, Question, captum_occlusion
from benchmarks.occluded import Task
from benchmarks.record import OURS, About, Row
from benchmarks.subjects import NETWORKS, Subject
from torchviz_cnn import render

SUITE = "peers"
# How far two maps may lie apart, of the largest value: both are float32, and add up in another
# order. Another method's map lies much farther.
SAME = 1e-3
# Rounding decides here and there whether a ReLU is open, or which cell a pooling takes, and a gradient
# then is another one in that place. Such maps are the same where the map in double precision says
# so: both lie this near to it, in root mean square.
NEAR = 0.03
TURNED = "same but for ReLUs and poolings that rounding turns; both lie as near to double precision"
TOGETHER = (1, 2, 4, 8, 16, 32, 64)
TOGETHER_ON_A_GPU = (128, 256)
METHODS = (*PEERS, "occlusion", "feature_maps")


def measure(effort: Effort) -> Iterator[Row | str]:
    """A row for each peer, network, batch and measure; a sentence for what is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = {peer.package: peer for group in PEERS.values() for peer in group}
        yield from (words for peer in every.values() if (words := peer.missing()))
        names = effort.networks(NETWORKS, ("resnet18", "mobilenet_v2"))
        for name in names:
            for batch in effort.sizes():
                asked = effort.subject(name, batch=batch)
                for method in PEERS:
                    if effort.wants(method):
                        rows = _method(effort, method, asked)
                        words = f"{method}, {name}, {asked.setting},"
                        yield from as_far_as_it_fits(rows, words)
        if effort.wants("occlusion"):
            occluded_names = effort.models or (("resnet18",) if effort.quick else names)
            for task in occluded.tasks(effort, occluded_names):
                words = f"occlusion, {task.subject.name}, {task.setting},"
                yield from as_far_as_it_fits(_occlusion(effort, task), words)
        if effort.wants("feature_maps"):
            yield from _grid(effort)


# ---- gradients and activations ---------------------------------------------------------------


def _method(effort: Effort, method: str, asked: Subject) -> Iterator[Row | str]:
    about = About(SUITE, method, asked.name, asked.setting)
    alike: dict[Question, list[tuple[Peer, Run]]] = {}
    runs: dict[Question, Run] = {}
    for peer in PEERS[method]:
        if peer.missing():
            continue
        theirs, ours = peer.ask(asked), runs.setdefault(peer.ours, peer.ours(asked))
        compared = None
        with suppress(torch.OutOfMemoryError):  # one side's want of memory is not the others'
            compared = compare(peer, asked, theirs, ours)
        if compared is None:
            yield no_room(f"{method}, {asked.name}, {asked.setting}, beside {peer.name}")
            continue
        yield about.once("map", peer.name, OURS, compared.difference, 1.0, compared.verdict)
        if compared.same:
            alike.setdefault(peer.ours, []).append((peer, theirs))
    for question, group in alike.items():
        ours = runs[question]
        timed = effort.ratios(ours, {peer.name: theirs for peer, theirs in group})
        yield from (about.time(name, OURS, ratio) for name, ratio in timed.items())
        # All are warm. What one of them left behind, its gradients, it must make room for anew.
        own = peak_bytes(ours, effort.device, warm_up=0)
        for peer, theirs in group:
            asked.module.zero_grad(set_to_none=True)
            needed = peak_bytes(theirs, effort.device, warm_up=0)
            yield about.once("memory", peer.name, OURS, needed, own)
    asked.module.zero_grad(set_to_none=True)  # some leave gradients behind


@dataclass(frozen=True)
class Compared:
    """Two maps side by side.

    Attributes:
        difference: the largest, over the largest value.
        verdict: in words.
        same: whether they are the same but for rounding.
    """

    difference: float
    verdict: str
    same: bool


def compare(peer: Peer, asked: Subject, theirs: Run, ours: Run) -> Compared:
    """A peer's map beside this library's."""
    one, other = peer.map_of(theirs()), peer.map_of_ours(ours())
    found = compared(one, other)
    if found.same:
        return found
    if why := peer.why_different(asked):
        return Compared(found.difference, f"different: {why}", False)
    if one.shape == other.shape and _near(peer, asked, one, other):
        return Compared(found.difference, TURNED, True)
    return found


def _near(peer: Peer, asked: Subject, theirs: Tensor, ours: Tensor) -> bool:
    """Whether two maps are those of double precision, but for few numbers."""
    precise = replace(
        asked, module=copy.deepcopy(asked.module).double(), inputs=asked.inputs.double()
    )
    exact = peer.map_of_ours(peer.ours(precise)()).detach().cpu()
    off = [float((m.detach().double().cpu() - exact).norm()) for m in (theirs, ours)]
    return max(off) <= NEAR * float(exact.norm())


def compared(theirs: Tensor, ours: Tensor) -> Compared:
    """Two maps as numbers; one that is empty is like no other."""
    theirs, ours = theirs.detach().double().cpu(), ours.detach().double().cpu()
    if theirs.shape != ours.shape:
        shapes = f"{tuple(theirs.shape)} and {tuple(ours.shape)}"
        return Compared(float("inf"), f"different: of shapes {shapes}", False)
    largest = float(ours.abs().max())
    if not largest:
        return Compared(float("inf"), "different: there is nothing in our map", False)
    difference = float((theirs - ours).abs().max()) / largest
    same = difference <= SAME
    return Compared(difference, "same" if same else "different: it is not known why", same)


# ---- occlusion -------------------------------------------------------------------------------


def _occlusion(effort: Effort, task: Task) -> Iterator[Row | str]:
    about = About(SUITE, "occlusion", task.subject.name, task.setting)
    sample = task.sample()
    if libraries.PEERS["saliency"][1].missing() is None and task.side <= 224:
        yield _zennit(about, sample)
    if libraries.PEERS["saliency"][0].missing():
        return
    whole = task.side <= 224 and not effort.quick
    shown = task if whole else sample
    best, tried = _best_together(task, sample, effort)
    theirs = captum_occlusion(shown.subject, shown.window, shown.stride, best)()
    found = compared(theirs[:, 0], shown.ours("incremental").maps())
    verdict = found.verdict + ("" if whole else f", on {sample.positions} windows")
    yield about.once("map", "captum", OURS, found.difference, 1.0, verdict)
    if not found.same:
        return
    ours: Run = lambda: task.ours("incremental").maps()  # noqa: E731 - one of several runs
    theirs_run = captum_occlusion(task.subject, sample.window, sample.stride, best)
    timed = effort.ratios(ours, {"captum": theirs_run}, rounds=min(effort.rounds, 5), warm_up=1)[
        "captum"
    ]
    note = (
        f"perturbations_per_eval={best}, the best of {', '.join(map(str, tried))}; "
        + occluded.taken_from(sample, task)
    ).removesuffix("; ")
    yield about.time("captum", OURS, occluded.scaled(timed, sample, task), note)
    own = peak_bytes(ours, effort.device, warm_up=0)
    yield about.once(
        "memory", "captum", OURS, peak_bytes(theirs_run, effort.device, warm_up=0), own, note
    )


def _best_together(task: Task, sample: Task, effort: Effort) -> tuple[int, tuple[int, ...]]:
    """How many windows captum hides at once when it is fastest."""
    tried: tuple[int, ...] = (8, 64) if effort.quick else TOGETHER
    if effort.device.type == "cuda" and not effort.quick:
        tried += TOGETHER_ON_A_GPU
    took = dict.fromkeys(tried, math.inf)
    for _ in range(1 if effort.quick else 2):  # in turn, as a machine is slower for a while
        for together in tried:
            run = captum_occlusion(task.subject, sample.window, sample.stride, together)
            with suppress(torch.OutOfMemoryError):
                took[together] = min(took[together], seconds(run, effort.device))
    return min(took, key=took.__getitem__), tried


def _zennit(about: About, sample: Task) -> Row:
    ask = libraries.zennit_occlusion(sample.window, sample.stride)
    found = compared(ask(sample.subject)()[:, 0], sample.ours("incremental").maps())  # type: ignore[index]
    verdict = found.verdict if found.same else f"different: {libraries.ZENNIT_OCCLUDES}"
    return about.once("map", "zennit", OURS, found.difference, 1.0, verdict)


# ---- a grid of feature maps ------------------------------------------------------------------


def _grid(effort: Effort) -> Iterator[Row]:
    """512 maps of 28×28, drawn and written as PNG, beside as many matplotlib axes."""
    count = 64 if effort.quick else 512
    maps = torch.randn(count, 28, 28, generator=torch.Generator().manual_seed(0))
    about = About(SUITE, "feature_maps", f"{count} maps", "28×28, as PNG")
    ours, theirs = _drawn(maps), _drawn_by_matplotlib(maps)
    timed = effort.ratios(
        ours, {"matplotlib": theirs}, rounds=1 if effort.quick else min(effort.rounds, 3), warm_up=1
    )
    yield about.time("matplotlib", OURS, timed["matplotlib"], "one axes a map")


def _drawn(maps: Tensor) -> Run:
    def run() -> None:
        render.feature_maps(maps, columns=32).save(io.BytesIO(), format="png")

    return run


def _drawn_by_matplotlib(maps: Tensor) -> Run:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def run() -> None:
        rows = len(maps) // 32
        figure = Figure(figsize=(24, 0.75 * rows))
        FigureCanvasAgg(figure)
        for axes, values in zip(figure.subplots(rows, 32).flat, maps.numpy(), strict=True):
            axes.imshow(values, cmap="gray")
            axes.axis("off")
        figure.savefig(io.BytesIO(), format="png")

    return run
