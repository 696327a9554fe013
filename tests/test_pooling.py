"""Max pooling without indices: the same numbers, and only where nobody needs the indices."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import torchviz_cnn as tvc
from torchviz_cnn import pooling
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import run
from torchviz_cnn.pooling import max_pool2d, without_indices

LAYOUTS = [torch.contiguous_format, torch.channels_last]
WITH_INDICES = "aten::max_pool2d_with_indices"


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "_FEW", dict.fromkeys(LAYOUTS, 0))


def operators(run: object) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()  # type: ignore[operator]
    return {event.key for event in seen.key_averages()}


def by_hand(
    maps: Tensor, kernel: list[int], stride: list[int], pad: list[int], dilation: list[int]
) -> list[list[list[list[float]]]]:
    """The definition, a cell at a time."""
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(maps.shape[2:], kernel, stride, pad, dilation, strict=True)
    ]

    def cell(plane: list[list[float]], row: int, column: int) -> float:
        found = -math.inf
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                y = row * stride[0] - pad[0] + i * dilation[0]
                x = column * stride[1] - pad[1] + j * dilation[1]
                if 0 <= y < len(plane) and 0 <= x < len(plane[0]):
                    found = max(found, plane[y][x])
        return found

    return [
        [[[cell(p, r, c) for c in range(sizes[1])] for r in range(sizes[0])] for p in planes]
        for planes in maps.tolist()
    ]


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation"),
    [
        ([2, 2], [2, 2], [0, 0], [1, 1]),
        ([3, 3], [2, 2], [1, 1], [1, 1]),
        ([3, 3], [1, 1], [1, 1], [1, 1]),
        ([2, 4], [3, 1], [1, 2], [1, 1]),
        ([2, 3], [1, 2], [1, 1], [3, 2]),
        ([1, 1], [2, 3], [0, 0], [1, 1]),
    ],
)
def test_it_is_the_largest_of_each_window(kernel, stride, pad, dilation, layout):
    maps = torch.randn(2, 3, 8, 9, dtype=torch.float64).contiguous(memory_format=layout)
    found = max_pool2d(maps, kernel, stride, pad, dilation)
    assert found.tolist() == by_hand(maps, kernel, stride, pad, dilation)
    assert found.is_contiguous(memory_format=layout)


two = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.mark.usefixtures("of_any_size")
@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=two,
    stride=two,
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=two,
    ceil=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    nan=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_torchs_pooling_to_the_last_bit_and_refuses_the_same(
    size, kernel, stride, pad, dilation, ceil, layout, nan, seed
):
    torch.manual_seed(seed)
    maps = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    if nan:
        maps[torch.rand_like(maps) < 0.1] = torch.nan
    given_them = (maps, kernel, stride, pad, dilation, ceil)
    try:
        wanted = F.max_pool2d(*given_them)
    except RuntimeError as refused:
        with pytest.raises(RuntimeError) as caught:
            max_pool2d(*given_them)
        assert str(caught.value) == str(refused)  # noqa: PT017 - of torch's own words
        return
    found = max_pool2d(*given_them)
    assert torch.equal(found.nan_to_num(9e9), wanted.nan_to_num(9e9))
    for each in LAYOUTS:
        assert found.is_contiguous(memory_format=each) >= wanted.is_contiguous(memory_format=each)


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("shape", [(9, 9), (1, 2, 3, 9, 9)])
def test_what_has_too_few_axes_or_too_many_is_refused_in_torchs_words(shape):
    with pytest.raises(RuntimeError) as wanted:
        F.max_pool2d(torch.zeros(shape), 3)
    with pytest.raises(RuntimeError) as found:
        max_pool2d(torch.zeros(shape), 3)
    assert str(found.value) == str(wanted.value)


@pytest.mark.usefixtures("of_any_size")
def test_a_map_without_a_batch_and_one_in_half_precision():
    maps = torch.randn(3, 7, 7)
    assert torch.equal(max_pool2d(maps, 3), F.max_pool2d(maps, 3))
    half = maps.bfloat16()[None]
    assert torch.equal(max_pool2d(half, 2), F.max_pool2d(half, 2))


@pytest.mark.usefixtures("of_any_size")
def test_a_turned_map_comes_out_as_torchs():
    """The network may go on with ``view``, which looks at how numbers lie in memory."""
    maps = torch.randn(2, 3, 6, 8).transpose(2, 3)
    found = max_pool2d(maps, 2)
    assert found.stride() == F.max_pool2d(maps, 2).stride()


@pytest.mark.usefixtures("of_any_size")
def test_gradients_reach_what_they_reach_through_torchs():
    maps = torch.randn(1, 2, 6, 6, requires_grad=True)
    (found,) = torch.autograd.grad(max_pool2d(maps, 2).square().sum(), maps)
    (wanted,) = torch.autograd.grad(F.max_pool2d(maps, 2).square().sum(), maps)
    assert torch.equal(found, wanted)
    assert found.any()


# ---- in networks ---------------------------------------------------------------------------------


class Net(nn.Module):
    """Pools between two convolutions."""

    def __init__(self, pool: nn.MaxPool2d | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.pool = pool or nn.MaxPool2d(2)
        self.last = nn.Conv2d(8, 8, 3)
        self.dense = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps: Any = self.pool(self.conv(x).relu())
        if self.pool.return_indices:
            largest, where = maps
            maps = largest + where % 2
        out: Tensor = self.dense(self.last(maps).relu().mean((2, 3)))
        return out


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


METHODS = {
    "grad_cam": lambda net, x: tvc.grad_cam(net, x, layer="last").values,
    "occlusion": lambda net, x: tvc.occlusion(net, x, window=32, stride=16, engine="dense").values,
    "incremental": lambda net, x: (
        tvc.occlusion(net, x, window=8, stride=8, engine="incremental").values
    ),
    "score_cam": lambda net, x: tvc.score_cam(net, x, layer="last").values,
    "activations": lambda net, x: tvc.activations(net, x, ["last"])["last"],
}


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_computed_without_a_graph_needs_no_indices(method, net, pictures, monkeypatch):
    ask = METHODS[method]
    found = ask(net, pictures)  # looks the network over
    assert WITH_INDICES not in operators(lambda: ask(net, pictures))
    monkeypatch.setattr(pooling, "_FEW", dict.fromkeys(LAYOUTS, math.inf))
    assert WITH_INDICES in operators(lambda: ask(net, pictures))
    torch.testing.assert_close(found, ask(net, pictures))


@pytest.mark.usefixtures("of_any_size")
def test_a_gradient_at_the_picture_goes_through_torchs_pooling(net, pictures):
    assert WITH_INDICES in operators(lambda: tvc.saliency(net, pictures))
    leaf = pictures.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(net(leaf).amax(1).sum(), leaf)
    torch.testing.assert_close(tvc.saliency(net, pictures).values, wanted)


class Odd(Net):
    """Calls its pooling in a way of its own."""

    def __init__(self, call: Callable[[nn.MaxPool2d, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        maps = self.call(self.pool, self.conv(x).relu())  # type: ignore[arg-type]
        out: Tensor = self.dense(self.last(maps).relu().mean((2, 3)))
        return out


def _wider(pool: nn.MaxPool2d, maps: Tensor) -> Tensor:
    pool.kernel_size = pool.stride = maps.shape[-1] // 8
    return pool(maps)


def _with_a_tangent(pool: nn.MaxPool2d, maps: Tensor) -> Tensor:
    with forward_ad.dual_level():
        pooled = pool(forward_ad.make_dual(maps, torch.ones_like(maps)))
        return forward_ad.unpack_dual(pooled).primal


def _under_meta(pool: nn.MaxPool2d, maps: Tensor) -> Tensor:
    with torch.device("meta"):
        return pool(maps)


ODD_CALLS = {
    "by keyword": lambda pool, maps: pool(input=maps),
    "with sizes of the moment": _wider,
    "mapped over an axis": lambda pool, maps: torch.vmap(pool, 1, 1)(maps),
    "mapped over turned maps": lambda pool, maps: torch.vmap(pool)(maps[None].mT)[0].mT,
    "with a tangent": _with_a_tangent,
    "on maps turned over": lambda pool, maps: pool(maps.mT).mT,
    "under another default device": _under_meta,
}


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("way", ODD_CALLS)
def test_however_a_network_calls_its_pooling_it_gets_what_it_asks_for(way, pictures):
    torch.manual_seed(0)
    net = Odd(ODD_CALLS[way]).eval()
    with torch.no_grad():
        wanted = net(pictures)
    net.pool.kernel_size = net.pool.stride = 2
    with undisturbed(net, pictures):
        assert torch.equal(run(net, pictures, sure=True).raw, wanted)


def test_a_copy_made_during_a_pass_pools_with_its_own_sizes(net, pictures):
    """A teacher that copies its student when it is first run, say."""
    twins: list[Net] = []
    handle = net.last.register_forward_hook(lambda *_: twins.append(copy.deepcopy(net)))
    with undisturbed(net, pictures):
        run(net, pictures, sure=True)
    handle.remove()
    twin = twins[0]
    twin.pool.kernel_size = twin.pool.stride = 3
    assert twin.pool(torch.zeros(1, 1, 9, 9)).shape == (1, 1, 3, 3)
    assert net.pool(torch.zeros(1, 1, 9, 9)).shape == (1, 1, 4, 4)


def test_the_network_comes_back_as_it_was_whatever_happens(net, pictures):
    tvc.grad_cam(net, pictures)
    assert "forward" not in vars(net.pool)

    def fail(*_: object) -> None:
        assert "forward" in vars(net.pool)
        raise RuntimeError("on purpose")

    handle = net.last.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        tvc.occlusion(net, pictures, engine="dense")
    assert "forward" not in vars(net.pool)
    handle.remove()


class Doubled(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.MaxPool2d's name
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "pool",
    [Doubled(2), nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(3, 2, 1, 1, False, True)],
)
def test_other_poolings_do_what_they_do(pool, pictures):
    torch.manual_seed(0)
    net = Net(pool).eval()
    with torch.no_grad():
        wanted = net(pictures)
    with undisturbed(net, pictures):
        torch.testing.assert_close(run(net, pictures, sure=True).raw, wanted)


def test_a_forward_that_somebody_has_exchanged_is_left(net, pictures):
    net.pool.forward = lambda maps: F.avg_pool2d(maps, 2)
    with torch.no_grad():
        wanted = net(pictures)
    with undisturbed(net, pictures):
        assert torch.equal(run(net, pictures, sure=True).raw, wanted)
    assert "forward" in vars(net.pool)


def test_a_forward_that_is_exchanged_during_the_pass_stays_exchanged(net, pictures):
    def exchange(*_: object) -> None:
        net.pool.forward = average

    def average(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2)

    handle = net.conv.register_forward_hook(exchange)
    with undisturbed(net, pictures):
        run(net, pictures, sure=True)
    handle.remove()
    assert net.pool.forward is average


def test_hooks_on_the_pooling_are_called(net, pictures):
    tvc.grad_cam(net, pictures, layer="last")  # the first time the network is looked over
    seen: list[Tensor] = []
    handle = net.pool.register_forward_hook(lambda _m, _i, out: seen.append(out))
    tvc.grad_cam(net, pictures, layer="last")
    handle.remove()
    with torch.no_grad():
        wanted = net.pool(net.conv(pictures).relu())
    torch.testing.assert_close(seen[0], wanted)


def test_what_watches_sees_the_network_as_it_was_written(net, pictures):
    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.add(func._overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Names() as names, without_indices(net):
        net(pictures)
    assert "max_pool2d_with_indices" in names.seen
    assert "maximum" not in names.seen
