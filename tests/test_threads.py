"""Several threads that explain the same network at the same time, as a web service's do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import torchviz_cnn as tvc
from tests.networks import Residual, pictures, plain, randomised
from torchviz_cnn.guard import undisturbed

MOMENT = 0.3  # seconds; what is not done by then waits for something


class Crossing(nn.Module):
    """Hands its input on; its first run tells that it is under way, and lets others go first."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = threading.Event()
        self.others_done = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if not self.under_way.is_set():
            self.under_way.set()
            self.others_done.wait(MOMENT)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Identity()


@pytest.mark.parametrize("method", tvc.METHODS)
def test_a_second_thread_disturbs_no_explanation(method: str) -> None:
    """The second begins while the first is half through the network, behind the layer."""
    net = randomised(plain())
    crossing = Crossing()
    net.gap = nn.Sequential(crossing, net.gap)
    first, second = pictures(1, seed=1), pictures(1, seed=2)

    def explained(inputs: Tensor) -> Tensor:
        options = {"layer": "relu2"} if "cam" in method else {}
        values: Tensor = tvc.METHODS[method](net, inputs, 1, **options).values
        return values

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(explained, first)
        assert crossing.under_way.wait(20)
        other = pool.submit(explained, second)
        other.add_done_callback(lambda _: crossing.others_done.set())
        found = one.result(60), other.result(60)
    for values, inputs in zip(found, (first, second), strict=True):
        torch.testing.assert_close(values, explained(inputs), rtol=1e-9, atol=1e-12)


def test_a_network_that_two_threads_hold_comes_back_as_it_was() -> None:
    net = randomised(Residual(dropout=0.5)).train()
    buffers = {name: id(buffer) for name, buffer in net.named_buffers()}
    inside, leave = threading.Event(), threading.Event()

    def hold(then: Callable[[], object]) -> None:
        with undisturbed(net):
            then()

    def stay() -> None:
        inside.set()
        leave.wait(20)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold, stay)
        assert inside.wait(20)
        entered, released = threading.Event(), threading.Event()

        def outlast() -> None:
            entered.set()
            released.wait(20)

        second = pool.submit(hold, outlast)
        entered.wait(MOMENT)
        leave.set()
        first.result(20)
        released.set()
        second.result(20)
    assert all(part.training for part in net.modules())
    assert {name: id(buffer) for name, buffer in net.named_buffers()} == buffers
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_process_that_was_forked_meanwhile_waits_for_nobody(inside: bool) -> None:
    """As a data loader's workers are: the thread whose turn it was is not among them."""
    net = randomised(plain())
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with undisturbed(net):
            held.set()
            leave.wait(20)

    with ExitStack() as stack:
        if inside:  # by the very thread whose turn it is, and which is the new process's
            stack.enter_context(undisturbed(net))
        else:
            pool = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(leave.set)
            pool.submit(hold)
            assert held.wait(20)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with undisturbed(net):
                    pass
                if inside:
                    stack.close()
                code = 0
            finally:
                os._exit(code)
        done, end = (0, 0), time.monotonic() + 10
        while done[0] == 0 and time.monotonic() < end:
            time.sleep(0.01)
            done = os.waitpid(child, os.WNOHANG)
        if done[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert done == (child, 0)


class Read(nn.Module):
    """Hands its input on; when ``torch.fx`` reads it, others go first."""

    def __init__(self) -> None:
        super().__init__()
        self.being_read, self.others_done = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            self.being_read.set()
            self.others_done.wait(20)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return self


def test_networks_run_in_other_threads_while_one_is_read_for_occlusion() -> None:
    part = Read()
    net, other, x = randomised(nn.Sequential(part, plain())), randomised(plain()), pictures()
    wanted = other(x)
    with ThreadPoolExecutor(1) as pool:
        occluded = pool.submit(tvc.occlusion, net, x, 1, window=4, engine="incremental")
        assert part.being_read.wait(20)
        try:
            found = other(x)
        finally:
            part.others_done.set()
        values = occluded.result(60).values
    assert torch.equal(found, wanted)
    dense = tvc.occlusion(net[1], x, 1, window=4, engine="dense").values
    torch.testing.assert_close(values, dense, rtol=1e-9, atol=1e-12)
