"""How much is measured, and how often."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.clock import Ratio, Run, ratios
from benchmarks.record import Row
from benchmarks.subjects import Subject, subject, usual_side


@dataclass(frozen=True)
class Effort:
    """What a suite is asked for.

    Attributes:
        device: where everything runs.
        quick: little of everything, to see that it works; the figures are not for keeping.
        models: networks by name; the suite's own choice where there are none.
        methods: likewise.
        batches: pictures in one call; likewise.
        rounds: ratios taken of each pair.
        budget: seconds for the rounds of one comparison; at least three are taken.
    """

    device: torch.device
    quick: bool = False
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    rounds: int = 15
    budget: float = 25.0

    @property
    def has_goals(self) -> bool:
        """Whether the figures ought to be anything: goals are set for a CPU's, and for keeping."""
        return self.device.type == "cpu" and not self.quick

    def networks(self, full: Sequence[str], quick: Sequence[str]) -> tuple[str, ...]:
        return self.models or tuple(quick if self.quick else full)

    def wants(self, method: str) -> bool:
        """Whether a method is measured."""
        return not self.methods or method in self.methods

    def subject(
        self, name: str, *, batch: int = 1, side: int | None = None, frozen: bool = False
    ) -> Subject:
        """A question about a network, on small pictures in a quick run."""
        side = side or usual_side(name, quick=self.quick)
        return subject(name, batch=batch, side=side, device=self.device, frozen=frozen)

    def sizes(self) -> tuple[int, ...]:
        """Batch sizes; larger ones keep a GPU busy."""
        if self.batches:
            return self.batches
        if self.quick:
            return (1,)
        return (1, 32, 128) if self.device.type == "cuda" else (1, 8)

    def ratios(
        self, baseline: Run, others: dict[str, Run], *, rounds: int | None = None, warm_up: int = 2
    ) -> dict[str, Ratio]:
        return ratios(
            baseline,
            others,
            device=self.device,
            rounds=rounds or self.rounds,
            warm_up=min(warm_up, 1) if self.quick else warm_up,
            budget=self.budget,
        )


def as_far_as_it_fits(rows: Iterator[Row | str], what: str) -> Iterator[Row | str]:
    """The rows, up to one that a GPU has no room for: that is told, and others may follow.

    Args:
        rows: of a suite, or a part of one.
        what: they are about.
    """
    try:
        yield from rows
        return
    except torch.OutOfMemoryError:
        pass  # what the traceback holds is free only when it is gone
    yield no_room(what)


def no_room(what: str) -> str:
    """A sentence about what did not fit into a GPU's memory, which is emptied."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"{what} is left out, or in part: there is not enough memory on the GPU"
