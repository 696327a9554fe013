"""Convolutions of 1×1 windows as products take their place in incremental occlusion."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchviz_cnn as tvc
from tests.networks import pictures, randomised
from tests.test_incremental import compared, differ
from torchviz_cnn.methods import convolutions
from torchviz_cnn.methods.convolutions import ProductConvolution, is_product
from torchviz_cnn.methods.products import Matrix

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of weights will do, and any processor."""
    monkeypatch.setattr(convolutions, "_WEIGHTS", 1)
    monkeypatch.setattr(convolutions, "are_packed_faster", lambda: True)


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("prepared", [True, False])
def test_it_is_the_convolution(stride, bias, layout, prepared):
    conv = randomised(nn.Conv2d(5, 7, 1, stride=stride, bias=bias))
    maps = pictures(3, 5, 9, 8)
    down, across = conv.stride
    there = maps[:, :, ::down, ::across]
    wanted = torch.einsum("nchw,kc->nkhw", there, conv.weight.detach()[:, :, 0, 0])
    if conv.bias is not None:
        wanted = wanted + conv.bias.detach()[:, None, None]
    found = ProductConvolution(conv.float())
    if prepared:
        found.prepare()
        found.prepare()  # nothing more
    given = maps.float().contiguous(memory_format=layout)
    with torch.no_grad():
        assert differ(found(given).double(), wanted) < 1e-6
        assert torch.equal(found.of_crops(given), found(given))
        assert differ(found(given[0]).double(), wanted[0]) < 1e-6
    assert (found.weight is None) is prepared


def convolution(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(*(4, 4), **({"kernel_size": 1} | options))


def test_only_plain_windows_of_1_by_1_in_single_precision_are_suited(monkeypatch):
    class Mine(nn.Conv2d):
        pass

    changed = convolution()
    changed.forward = lambda x: x  # type: ignore[method-assign]
    unsuited: list[dict[str, Any]] = [
        *({"kernel_size": 3}, {"kernel_size": (1, 3)}, {"groups": 2}, {"padding": 1}),
        *({"padding": "same"}, {"padding_mode": "reflect"}, {"device": "meta"}),
        *({"dtype": torch.float64}, {"dtype": torch.bfloat16}),
    ]
    assert is_product(convolution())
    assert is_product(convolution(stride=2))
    assert not any(is_product(convolution(**options)) for options in unsuited)
    assert not any(map(is_product, (changed, Mine(4, 4, 1), nn.Linear(4, 4))))
    monkeypatch.setattr(convolutions, "_WEIGHTS", 17)
    assert not is_product(convolution())
    assert is_product(nn.Conv2d(4, 5, 1))


def test_nothing_is_tried_that_is_seen_or_has_to_be_deterministic(monkeypatch):
    layer = convolution()
    monkeypatch.setattr(convolutions, "are_packed_faster", lambda: False)
    assert not is_product(layer)
    monkeypatch.setattr(convolutions, "are_packed_faster", lambda: pytest.fail("it was tried"))
    with FlopCounterMode(display=False):
        assert not is_product(layer)
    with monkeypatch.context() as inside:
        inside.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not is_product(layer)


class Bottlenecks(nn.Module):
    """Windows of 1×1 in part, every second row, behind, with a batch norm folded in, and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(6, 6, 1)
        self.short = nn.Conv2d(6, 9, 1, stride=2)
        self.behind = nn.Conv2d(9, 8, 1)
        self.end = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.wide(self.narrow(x))
        x = self.twice(self.twice(x).relu())
        return self.end(self.behind(self.short(x) * x.mean((1, 2, 3), keepdim=True)).amax((2, 3)))


@pytest.mark.parametrize("batch_size", [1, 3, 25])
def test_incremental_occlusion_is_dense_occlusion(batch_size, monkeypatch):
    matrices = []
    real = Matrix.times

    def seen(matrix: Matrix, *args: Any) -> Tensor:
        matrices.append(weakref.ref(matrix))
        return real(matrix, *args)

    monkeypatch.setattr(Matrix, "times", seen)
    net = randomised(Bottlenecks())
    x = pictures(2, 3, 31, 26)
    compared(net, x, [3, 1], batch_size=batch_size)  # in double precision it is not used
    assert not matrices
    options: dict[str, Any] = {"window": 5, "stride": 3, "batch_size": batch_size}
    wanted = tvc.occlusion(net, x, [3, 1], **options, engine="dense").values
    kinds = [type(m) for m in net.modules()]
    net.float()
    weights = [p.clone() for p in net.parameters()]
    found = tvc.occlusion(net, x.float(), [3, 1], **options, engine="incremental").values
    assert differ(found.double(), wanted) < 1e-5
    assert [type(m) for m in net.modules()] == kinds
    assert all(map(torch.equal, net.parameters(), weights))
    gc.collect()
    assert matrices
    assert all(each() is None for each in matrices)
