"""Occlusion on all sides: what one position costs, and how little there is to compute at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

import torchviz_cnn as tvc
from benchmarks.clock import Ratio, Run
from benchmarks.effort import Effort
from benchmarks.subjects import Subject
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.methods.graphs import Network
from torchviz_cnn.methods.incremental import Engine
from torchviz_cnn.methods.local import InPlace, Sliding
from torchviz_cnn.methods.perturbation import most_in_part
from torchviz_cnn.methods.plans import Request

Spans = tuple[list[tuple[int, int]], list[tuple[int, int]]]
_GRID = 8  # windows a side of the sample: at least 64 positions
LARGE = ("vgg16", "resnet50")


@dataclass(frozen=True)
class Task:
    """A picture, and the windows that hide parts of it.

    Attributes:
        subject: network, picture and class.
        side: of the picture, in pixels.
        window, stride: in pixels.
    """

    subject: Subject
    side: int
    window: int
    stride: int

    @property
    def across(self) -> int:
        """Positions in a row; the last window is clipped at the border."""
        return math.ceil((self.side - self.window) / self.stride) + 1

    @property
    def positions(self) -> int:
        return self.across**2

    @property
    def setting(self) -> str:
        return f"{self.subject.size}, window {self.window}, stride {self.stride}"

    def sample(self) -> Task:
        """A coarse grid of at least 64 windows that lie side by side.

        The task itself where that has no more of them, and on a GPU.

        A side that runs the whole network for every window takes as long for each of them, wherever
        and however large it is. On a GPU a few windows take hardly less time than many.
        """
        if self.subject.inputs.device.type != "cpu":
            return self
        window = self.side // _GRID
        sample = replace(self, window=window, stride=window)
        return sample if sample.positions < self.positions else self

    def ours(
        self, engine: Literal["dense", "incremental"], module: nn.Module | None = None
    ) -> tvc.WindowAttribution:
        return tvc.occlusion(
            *(module or self.subject.module, self.subject.inputs, self.subject.target),
            window=self.window,
            stride=self.stride,
            score=self.subject.score,
            engine=engine,
        )


def tasks(effort: Effort, names: tuple[str, ...]) -> Iterator[Task]:
    """The usual picture of every network, then a larger one of those that take it."""
    for name in names:
        usual = effort.subject(name)
        yield Task(usual, usual.inputs.shape[-1], 16, 16 if effort.quick else 8)
        if name in LARGE and not effort.quick:
            yield Task(effort.subject(name, side=448), 448, 16, 16)


def scaled(ratio: Ratio, sample: Task, task: Task) -> Ratio:
    """From the time of a sample to that of all positions.

    The untouched picture is a position of the sample too, which is to the good of the other side.
    """
    factor = (task.positions + 1) / (sample.positions + 1)
    return replace(
        ratio,
        low=ratio.low * factor,
        median=ratio.median * factor,
        high=ratio.high * factor,
        seconds=ratio.seconds * factor,
    )


def taken_from(sample: Task, task: Task) -> str:
    """A note on times that are a sample's, brought to all positions; none where they are of all."""
    if sample is task:
        return ""
    return f"from {sample.positions} of {task.positions} windows"


def folded(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The network at its fastest for whole pictures: batch norms folded, channels last."""
    with undisturbed(module, inputs):
        graph = Network(module, inputs).graph
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.to(memory_format=torch.channels_last)


def dense(task: Task, module: nn.Module) -> Run:
    """The dense engine on a network that was made ready for it."""
    laid = replace(
        task.subject, inputs=task.subject.inputs.contiguous(memory_format=torch.channels_last)
    )
    return lambda: replace(task, subject=laid).ours("dense", module)


# ---- counting --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """Multiply-adds a position.

    Attributes:
        whole: of running the whole network.
        planned: of the incremental engine, as it will compute.
        least: of computing exactly what the window changes, at every layer and position.
    """

    whole: float
    planned: float
    least: float


def count(task: Task) -> Count:
    """Multiply-adds of a task, by geometry."""
    across = (task.across, task.across)
    limit = most_in_part(task.subject.inputs, None)
    request = Request((task.window, task.window), (task.stride, task.stride), across, limit)
    with undisturbed(task.subject.module, task.subject.inputs):
        engine = Engine(task.subject.module, task.subject.inputs, request)
        planned, whole = engine.macs
        return Count(whole, planned, _least(engine.network, request))


def _least(network: Network, request: Request) -> float:
    """Every window of every position, clipped at the border, by itself."""
    picture = network.values[network.picture].shape[-2:]
    changed: dict[fx.Node, Spans] = {network.picture: request.spans(picture)}
    total = 0.0
    for node in network.nodes:
        found = _changed(network, node, changed)
        if found is not None:
            changed[node] = found
        share = 1.0
        if node in changed and network.macs[node]:
            rows, columns = network.values[node].shape[-2:]
            for spans, length in zip(changed[node], (rows, columns), strict=True):
                share *= sum(high - low for low, high in spans) / (len(spans) * length)
        total += share * network.macs[node]
    return total


def _changed(network: Network, node: fx.Node, changed: dict[fx.Node, Spans]) -> Spans | None:
    local = network.local.get(node)
    if isinstance(local, Sliding) and local.source in changed:
        rows, columns = changed[local.source]
        down, across = local.reaches
        return [down.changed(*r) for r in rows], [across.changed(*c) for c in columns]
    if isinstance(local, InPlace) and all(source in changed for source in local.sources):
        every = [changed[source] for source in local.sources]
        rows, columns = (
            [_hull(spans) for spans in zip(*axis, strict=True)] for axis in zip(*every, strict=True)
        )
        return rows, columns
    return None


def _hull(spans: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The smallest interval that holds them all."""
    filled = [span for span in spans if span[1] > span[0]]
    return (min(s[0] for s in filled), max(s[1] for s in filled)) if filled else (0, 0)
