"""Independent jobs side by side on the CPU's cores, each on a core of its own.

A small operation hardly gains from several cores: sharing it out costs nearly what it saves. Many
jobs of small operations are done faster one a core than one after the other on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

from torchviz_cnn.dispatch import is_watched

T = TypeVar("T")

# A job's name for a profiler; how many go on at a time follows.
JOB = "torchviz_cnn: one of several jobs, at a time:"


def cores_for(device: torch.device) -> int:
    """How many jobs may go on at a time.

    One, where this thread is watched: others would escape that. And where threads share one pool, so
    that none can be kept to a core of its own.
    """
    if device.type != "cpu" or is_watched() or not torch.backends.openmp.is_available():
        return 1
    return torch.get_num_threads()


def side_by_side(jobs: Sequence[Callable[[], T]], workers: int) -> Iterator[T]:
    """What the jobs give, in their order, computed without a graph.

    Args:
        jobs: independent of each other.
        workers: how many go on at a time; with one they are done here, and so they are under a
            profiler, which sees one thread only.

    Raises:
        whatever a job raises; those not begun are left.
    """

    def alone(job: Callable[[], T]) -> T:
        with torch.inference_mode(False), torch.no_grad(), record_function(f"{JOB} {workers}"):
            return job()

    if workers == 1 or _profiler_enabled():
        for job in jobs:
            yield alone(job)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, "torchviz_cnn", torch.set_num_threads, (max(1, threads // workers),)
    )
    try:
        waiting = [pool.submit(alone, job) for job in jobs]
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads of tomorrow begin with
