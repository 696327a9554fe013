"""Time and memory, measured so that they can be trusted on a shared machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Ratio:
    """How many times a baseline something took: median and quartiles over rounds."""

    low: float
    median: float
    high: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def ratios(
    baseline: Callable[[], object],
    others: dict[str, Callable[[], object]],
    *,
    device: torch.device,
    rounds: int,
    warm_up: int = 2,
) -> dict[str, Ratio]:
    """Each of ``others`` against ``baseline``: all of them in turn, round after round.

    A ratio is taken within a round, where the machine is as fast for both sides: the baseline runs
    before and after each of the others, and its two times are averaged.
    """
    for run in [baseline, *others.values()]:
        for _ in range(warm_up):
            run()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for _ in range(rounds):
        before = _seconds(baseline, device)
        for name, run in others.items():
            own = _seconds(run, device)
            after = _seconds(baseline, device)
            found[name].append((own / ((before + after) / 2), own))
            before = after
    results = {}
    for name, pairs in found.items():
        values = [ratio for ratio, _ in pairs]
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        results[name] = Ratio(low, middle, high, statistics.median(own for _, own in pairs))
    return results


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory in use at one time above what was in use at the start."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    now = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
