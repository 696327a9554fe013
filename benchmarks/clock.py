"""Time and memory, measured so that they can be trusted on a shared machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from torchviz_cnn.methods.sidebyside import JOB

Run = Callable[[], object]
LEAST_ROUNDS = 3
_DISTURBED = 1.25  # by how many times something takes longer where other work disturbed it


@dataclass(frozen=True)
class Ratio:
    """How many times a baseline something took: median and quartiles over rounds.

    Attributes:
        low, median, high: of the ratios.
        seconds: median time of the thing itself.
        baseline_seconds: median time of the baseline.
        rounds: how many ratios there were.
        left_out: disturbed rounds, which are not among them.
    """

    low: float
    median: float
    high: float
    seconds: float
    baseline_seconds: float = 0.0
    rounds: int = 1
    left_out: int = 0

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


def seconds(run: Run, device: torch.device) -> float:
    """How long ``run`` takes until the device has done all of it.

    On a GPU the clock is the device's own: two events around the work, read after it is done.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        start_event, stop_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        run()
        stop_event.record()
    torch.cuda.synchronize(device)
    milliseconds: float = start_event.elapsed_time(stop_event)
    return milliseconds / 1000


@contextmanager
def settled() -> Iterator[None]:
    """Without garbage, so that no side pays for another's, and with what is alive left alone.

    Frozen, it need not be looked through again: a collection in the block takes microseconds.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def ratios(
    baseline: Run,
    others: dict[str, Run],
    *,
    device: torch.device,
    rounds: int,
    warm_up: int = 2,
    budget: float | None = None,
) -> dict[str, Ratio]:
    """Each of ``others`` against ``baseline``: all of them in turn, round after round.

    A ratio is taken within a round, where the machine is as fast for both sides: the baseline runs
    before and after each of the others, and its two times are averaged. Rounds in which one of the
    sides was disturbed, whichever it was, are left out, unless hardly any are left.

    Args:
        baseline, others: what is run.
        device: which is waited for.
        rounds: how many ratios are taken.
        warm_up: how often each runs untimed before.
        budget: seconds after which no further round begins, once there were three.
    """
    for run in [baseline, *others.values()]:
        for _ in range(warm_up):
            run()
    found: dict[str, list[_Turn]] = {name: [] for name in others}
    end = None if budget is None else time.monotonic() + budget
    with settled():
        for done in range(rounds):
            if end is not None and done >= LEAST_ROUNDS and time.monotonic() > end:
                break
            before = _clean(baseline, device)
            for name, run in others.items():
                own = _clean(run, device)
                after = _clean(baseline, device)
                found[name].append(_Turn(own, before, after))
                before = after
    return {name: _summary(turns) for name, turns in found.items()}


@dataclass(frozen=True)
class _Turn:
    """Seconds of something, and of the baseline before and after it."""

    own: float
    before: float
    after: float

    @property
    def base(self) -> float:
        return (self.before + self.after) / 2

    @property
    def ratio(self) -> float:
        return self.own / self.base


def _undisturbed(turns: list[_Turn]) -> list[_Turn]:
    """The rounds in which nothing held up either side, unless hardly any are left.

    The baseline is seen to be held up by its other time, the side beside it by a ratio unlike that
    of the other rounds. Were the baseline alone looked at, bad rounds of the other side would count.
    """
    steady = [turn for turn in turns if _alike(turn.before, turn.after)]
    usual = statistics.median(turn.ratio for turn in steady or turns)
    still = [turn for turn in steady if _alike(turn.ratio, usual)]
    return still if len(still) >= LEAST_ROUNDS else turns


def _alike(one: float, other: float) -> bool:
    return max(one, other) <= _DISTURBED * min(one, other)


def _clean(run: Run, device: torch.device) -> float:
    gc.collect()
    return seconds(run, device)


def _summary(every: list[_Turn]) -> Ratio:
    turns = _undisturbed(every)
    values = [turn.ratio for turn in turns]
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    own = statistics.median(turn.own for turn in turns)
    base = statistics.median(turn.base for turn in turns)
    return Ratio(low, middle, high, own, base, len(turns), len(every) - len(turns))


def peak_bytes(run: Run, device: torch.device, *, warm_up: int = 1) -> int:
    """The most memory in use at one time above what was in use at the start.

    Jobs that go on side by side are done in turn under a profiler, so each of the others is taken
    to need at the same time what the neediest of them needs.
    """
    for _ in range(warm_up):
        run()
    gc.collect()
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
    return _peak(recorded.profiler.kineto_results.events())


def _peak(events: Sequence[Any]) -> int:
    jobs = [e for e in events if e.name().startswith(JOB)]
    ends = [(e.start_ns() + e.duration_ns(), "end", 0) for e in jobs]
    starts = [(e.start_ns(), "start", 0) for e in jobs]
    sizes = [(e.start_ns(), "size", e.nbytes()) for e in events if e.name() == "[memory]"]
    now = most = rise = 0
    before: int | None = None
    for _, what, size in sorted(ends + starts + sizes, key=lambda each: each[0]):
        now += size
        most = max(most, now)
        if what == "size" and before is not None:
            rise = max(rise, now - before)
        elif what != "size":
            before = now if what == "start" else None
    others = int(jobs[0].name().removeprefix(JOB)) - 1 if jobs else 0
    return most + others * rise
