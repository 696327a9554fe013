"""Jobs side by side: nothing but the time they take may tell."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import torchviz_cnn as tvc
from torchviz_cnn.methods.sidebyside import cores_for, side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Three threads for the test, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 40 * 40, 3)).double().eval()


def occluded(images: torch.Tensor, engine: str = "incremental") -> torch.Tensor:
    return tvc.occlusion(net(), images, 1, window=4, stride=2, engine=engine).values


def test_order_and_threads(threads):
    barrier = threading.Barrier(3, timeout=20)

    def job(number: int) -> tuple[int, int, bool, bool]:
        barrier.wait()  # which nobody passes unless three are at it
        return (
            number,
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.ones(1).is_inference(),
        )

    with torch.inference_mode():
        found = list(side_by_side([lambda n=n: job(n) for n in range(6)], 3))
    assert found == [(n, 1, False, False) for n in range(6)]
    assert torch.get_num_threads() == threads
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [threads]


def test_an_error_comes_out_and_the_rest_is_left(threads):
    done: list[int] = []

    def job(number: int) -> int:
        if number == 1:
            raise ValueError("of its own")
        time.sleep(0.02)  # so that all of them would take far longer than hearing of the error
        done.append(number)
        return number

    with pytest.raises(ValueError, match="of its own"):
        list(side_by_side([lambda n=n: job(n) for n in range(200)], 2))
    assert len(done) < 199
    assert torch.get_num_threads() == threads


def test_who_stops_listening_stops_the_jobs(threads):
    jobs = side_by_side([lambda n=n: n for n in range(50)], 2)
    assert next(jobs) == 0
    jobs.close()
    assert torch.get_num_threads() == threads


def test_occlusion_is_the_same_on_any_number_of_threads(threads):
    images = torch.randn(2, 2, 40, 40, dtype=torch.float64)
    several = occluded(images)
    torch.set_num_threads(1)
    alone, dense = occluded(images), occluded(images, "dense")
    assert dense.abs().max() > 1e-3
    torch.testing.assert_close(several, dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone, dense, rtol=0, atol=1e-12)
    torch.set_num_threads(threads)


def test_a_mode_sees_everything(threads):
    assert cores_for(CPU) == threads
    images = torch.randn(1, 2, 40, 40, dtype=torch.float64)
    counts = []
    for number in (threads, 1):
        torch.set_num_threads(number)
        with FlopCounterMode(display=False) as counter:
            assert cores_for(CPU) == 1
            occluded(images)
        counts.append(counter.get_total_flops())
    torch.set_num_threads(threads)
    assert counts[0] == counts[1] > 19 * 19 * 6 * 40 * 40 * 3


def test_one_pool_of_threads_is_not_shared_out(threads, monkeypatch):
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: False)
    assert cores_for(CPU) == 1


def test_under_a_profiler_all_is_done_here():
    with profile(activities=[ProfilerActivity.CPU]):
        found = list(side_by_side([threading.get_ident] * 3, 2))
    assert found == [threading.get_ident()] * 3
