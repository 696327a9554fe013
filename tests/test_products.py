"""Products by the library that multiplies faster: linear layers, and weights laid out beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchviz_cnn as tvc
from tests.calls import shapes_given
from tests.clock import busy
from tests.networks import pictures, randomised
from torchviz_cnn.methods import products

IS_FASTER_HERE = products.onednn_is_faster_here  # before a test puts another in its place
ARE_PACKED_FASTER = products.are_packed_faster.__wrapped__

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of weights will do, and any processor."""
    monkeypatch.setattr(products, "_WEIGHTS", 1)
    monkeypatch.setattr(products, "onednn_is_faster_here", lambda: True)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


ROWS: dict[str, Callable[[], Tensor]] = {
    "side by side": lambda: drawn(12, 70),
    "cut out": lambda: drawn(12, 90)[:, 10:80],
    "on end": lambda: drawn(70, 12).t(),
    "the same": lambda: drawn(1, 70).expand(12, 70),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product(rows, bias, monkeypatch):
    layer, given = randomised(nn.Linear(70, 33, bias=bias)), ROWS[rows]()
    weight, shift = layer.weight.detach(), 0 if layer.bias is None else layer.bias.detach()
    wanted = (given[:, None, :] * weight).sum(2) + shift
    layer.float()
    products.multiply_fast(layer)
    shapes = shapes_given(monkeypatch, products, "_by_onednn")
    with torch.no_grad():
        for found in (layer(given.float()), layer(input=given.float())):
            assert found.is_contiguous()
            assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < 1e-6
    assert shapes == [(12, 70)] * 2


@pytest.mark.parametrize("shape", [(8, 70), (70,), (3, 9, 70)])
def test_few_rows_and_other_shapes_are_multiplied_as_ever(shape, monkeypatch):
    layer, given = nn.Linear(70, 33), torch.rand(shape)
    wanted = layer(given)
    products.multiply_fast(layer)
    monkeypatch.setattr(products, "_by_onednn", lambda *args: pytest.fail("by oneDNN"))
    assert torch.equal(layer(given), wanted)


def test_only_plain_layers_in_single_precision_on_a_cpu_are_suited(monkeypatch):
    class Mine(nn.Linear):
        pass

    changed = nn.Linear(4, 4)
    changed.forward = lambda x: x  # type: ignore[method-assign]
    unsuited = [
        *(Mine(4, 4), changed, nn.Identity(), nn.Linear(4, 4, dtype=torch.float64)),
        *(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, device="meta")),
    ]
    assert products._is_suited(nn.Linear(4, 4))
    assert not any(map(products._is_suited, unsuited))
    monkeypatch.setattr(products, "_WEIGHTS", 17)
    assert not products._is_suited(nn.Linear(4, 4))
    assert products._is_suited(nn.Linear(4, 5))


def test_nothing_is_tried_that_is_seen_or_has_to_be_deterministic(monkeypatch):
    layer = nn.Linear(4, 4)
    monkeypatch.setattr(products, "onednn_is_faster_here", lambda: pytest.fail("it was tried"))
    with FlopCounterMode(display=False):
        assert not products._is_suited(layer)
    with torch.device("meta"):
        assert not products._is_suited(layer)
    with monkeypatch.context() as inside:
        inside.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not products._is_suited(layer)
    with monkeypatch.context() as inside:
        inside.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not products._is_suited(layer)


@pytest.mark.parametrize(("slow", "found"), [("usual", True), ("onednn", False)])
def test_it_has_to_be_faster_on_this_processor(slow, found, monkeypatch):
    real = products.F.linear

    def slowly(rows: Tensor, *args: Any) -> Tensor:
        if rows.is_mkldnn == (slow == "onednn"):
            busy(0.1)  # more than either takes
        return real(rows, *args)

    monkeypatch.setattr(products.F, "linear", slowly)
    with torch.device("meta"):
        assert IS_FASTER_HERE.__wrapped__() is found


def test_incremental_occlusion_multiplies_so_and_leaves_the_network_alone(monkeypatch):
    shapes = shapes_given(monkeypatch, products, "_by_onednn")
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(4 * 14 * 12, 20), nn.ReLU(), nn.Linear(20, 6)),
    )
    randomised(net)
    x = pictures(2, 3, 31, 26)
    wanted = tvc.occlusion(net, x, [3, 1], window=5, stride=3, engine="dense").values
    assert not shapes
    net.float()
    found = tvc.occlusion(net, x.float(), [3, 1], window=5, stride=3, engine="incremental").values
    assert {shape[1] for shape in shapes} == {4 * 14 * 12, 20}
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert not any("forward" in module.__dict__ for module in net.modules())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", ROWS.values(), ids=ROWS)
def test_a_matrix_laid_out_beforehand_gives_the_products(bias, given):
    weight, shift = drawn(33, 70), drawn(33)
    wanted = (given()[:, None, :] * weight).sum(2) + (shift if bias else 0)
    matrix = products.Matrix(weight.float())
    for rows in (given(), given()[:3], given()[:0]):
        found = matrix.times(rows.float(), shift.float() if bias else None)
        assert found.shape == (len(rows), 33)
        assert float((found.double() - wanted[: len(rows)]).abs().sum()) < 1e-4 * wanted.numel()


@pytest.mark.parametrize(("slow", "found"), [("linear", True), ("times", False)])
def test_laying_out_has_to_be_faster_on_this_processor(slow, found, monkeypatch):
    where = {"linear": products.F, "times": products.Matrix}[slow]
    real = getattr(where, slow)

    def slowly(*args: Any) -> Tensor:
        busy(0.1)  # more than either takes
        return real(*args)

    monkeypatch.setattr(where, slow, slowly)
    with torch.device("meta"):
        assert ARE_PACKED_FASTER() is found


@pytest.mark.parametrize("fails", ["missing", "other numbers"])
def test_nothing_is_laid_out_where_torch_no_longer_does_it(fails, monkeypatch):
    """Operations that are not public: another version may have others."""
    monkeypatch.setattr(products, "is_clearly_faster", lambda *args, **kwargs: True)
    assert ARE_PACKED_FASTER()

    def changed(matrix: products.Matrix, rows: Tensor) -> Tensor:
        if fails == "missing":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")
        return rows @ torch.ones(256, 1024)

    monkeypatch.setattr(products.Matrix, "times", changed)
    assert not ARE_PACKED_FASTER()
