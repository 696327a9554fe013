"""Which of two ways to compute the same is faster on this processor, found out by trying."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from torchviz_cnn.dispatch import is_watched
from torchviz_cnn.methods.sidebyside import side_by_side

_LEAST_GAIN = 0.75  # of the time


def are_allowed() -> bool:
    """Whether trials may be made: they are for nobody to see, and do not always end the same."""
    return not (torch.are_deterministic_algorithms_enabled() or is_watched())


def is_clearly_faster(
    other: Callable[[], object], usual: Callable[[], object], rounds: int
) -> bool:
    """Whether another way takes clearly less time than the usual one, on one core.

    It is the core's time at work that counts: while others keep the machine busy, a clock on the
    wall says little.
    """

    def tried() -> bool:
        took: tuple[list[float], list[float]] = [], []
        for _ in range(rounds):  # in turn, so that a machine that slows down does so for both
            for way, times in zip((usual, other), took, strict=True):
                start = time.thread_time()
                way()
                times.append(time.thread_time() - start)
        least, found = map(min, took)
        return found <= _LEAST_GAIN * least

    (answer,) = side_by_side([tried], torch.get_num_threads())
    return answer
