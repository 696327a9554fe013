"""Winograd's filtering gives the convolution, and takes its place in incremental occlusion."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchviz_cnn as tvc
from tests.calls import shapes_given
from tests.clock import busy
from tests.networks import pictures, randomised
from tests.test_incremental import Again, Body, Skip, compared, differ
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.methods import incremental, products, squares, winograd
from torchviz_cnn.methods.incremental import Engine
from torchviz_cnn.methods.plans import Request
from torchviz_cnn.methods.winograd import WinogradConvolution, Workbench, is_suited

IS_FASTER_HERE = winograd.is_faster_here  # before a test puts another in its place


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of channels will do, any number of squares and any processor."""
    monkeypatch.setattr(winograd, "_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_LEAST_SQUARES", 1)
    monkeypatch.setattr(winograd, "_MOST_PRODUCTS", 9.0)
    monkeypatch.setattr(incremental, "_LEAST_USES", 0)
    monkeypatch.setattr(winograd, "is_faster_here", lambda dtype: True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(channels, affine=affine).double().eval()
    for seed, tensor in enumerate([*found.parameters(), *found.buffers()]):
        if tensor.ndim:
            tensor.data.copy_(drawn(channels, seed=seed).abs() + 0.5)
    return found


@pytest.mark.parametrize("size", [(3, 3), (4, 9), (7, 7), (10, 5), (14, 31)])
@pytest.mark.parametrize("padding", [0, 1, (2, 0), 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(size, padding, layout, monkeypatch):
    """Maps that squares of 4×4 do not fill, in more pieces than one, also from memory laid out else."""
    monkeypatch.setattr(winograd, "_AT_A_TIME", 9)
    conv = nn.Conv2d(5, 7, 3, padding=padding).double()
    maps = drawn(11, 5, *size).contiguous(memory_format=layout)
    filtered = WinogradConvolution(conv)
    filtered.prepare()
    shapes = shapes_given(monkeypatch, winograd, "_filtered")
    with torch.no_grad():
        assert differ(filtered(maps), conv(maps)) < 1e-13
        assert differ(filtered(maps[3]), conv(maps[3])) < 1e-13
        cropped = nn.functional.conv2d(maps, conv.weight, conv.bias)
        assert differ(filtered.of_crops(maps), cropped) < 1e-13
    assert len(shapes) == 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("ready", ["prepare", "fold", None])
def test_a_batch_norm_is_part_of_it(bias, affine, ready):
    conv, after = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double(), norm(7, affine)
    with torch.no_grad():
        both = WinogradConvolution(conv, after)
        if ready is not None:
            getattr(both, ready)()
        maps = drawn(3, 5, 9, 6)
        assert differ(both(maps), after(conv(maps))) < 1e-13
        assert (both.scale is None) is (ready == "fold")


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 1e308, -1e9])
def test_a_number_out_of_all_proportion_goes_no_further_than_its_windows(number):
    conv, after = nn.Conv2d(5, 7, 3, padding=1).double(), norm(7, affine=True)
    maps = drawn(3, 5, 9, 11)
    maps[1, 2, 4, 5] = number
    with torch.no_grad():
        filtered = WinogradConvolution(conv, after)
        filtered.prepare()
        wanted = after(conv(maps))
        for found in (filtered(maps), filtered.of_crops(nn.functional.pad(maps, [1] * 4))):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert 3 * 7 * 99 - 7 * 9 <= wanted.isfinite().sum() <= 3 * 7 * 99


class Logarithm(nn.Module):
    """Of a hidden pixel it is infinite, of which a rectified convolution makes zero."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.net = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dark(x.log()).relu()
        return self.fc(self.net(x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("factor", "filtered"),
    [(1e-30, True), (0.0, True), (1e2, True), (1e5, False), (torch.inf, False), (torch.nan, False)],
)
def test_maps_are_filtered_unless_a_place_is_far_larger_than_most(factor, filtered, monkeypatch):
    shapes = shapes_given(monkeypatch, winograd, "_filtered")
    conv = WinogradConvolution(nn.Conv2d(64, 4, 3).double())
    conv.prepare()
    maps = drawn(3, 64, 9, 11)
    maps[1, :, 4, 5] *= factor
    with torch.no_grad():
        conv(maps)
    assert bool(shapes) is filtered


def test_empty_maps_are_filtered(monkeypatch):
    shapes = shapes_given(monkeypatch, winograd, "_filtered")
    conv = WinogradConvolution(nn.Conv2d(64, 4, 3).double())
    conv.prepare()
    with torch.no_grad():
        found = conv(torch.zeros(3, 64, 9, 11).double())
    assert shapes
    assert torch.equal(found, conv.shift[:, None, None].expand_as(found))


def test_windows_whose_numbers_are_infinite_are_as_in_the_whole_network(monkeypatch):
    shapes = shapes_given(monkeypatch, winograd, "_filtered")
    net = randomised(Logarithm())
    net.dark.weight.data.abs_()
    compared(net, 5 * pictures(2, 3, 31, 26).abs() + 0.1, [3, 1], fill=0.0)
    assert any(shape[1] == 3 for shape in shapes)


def test_in_single_precision_five_digits_are_right():
    """Points farther apart, as 0, ±1, ±4, would lose another."""
    conv = randomised(nn.Conv2d(512, 64, 3, padding=1))
    maps = drawn(4, 512, 12, 12).relu()
    with torch.no_grad():
        wanted = conv(maps)
        filtered = WinogradConvolution(conv.float())
        filtered.prepare()
        assert differ(filtered(maps.float()).double(), wanted) < 1e-5


@pytest.mark.parametrize("packed", [True, False])
def test_either_library_multiplies(packed, monkeypatch):
    """A batch in pieces, and in one."""
    if packed and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(winograd, "are_packed_faster", lambda: packed)
    monkeypatch.setattr(winograd, "_AT_A_TIME_PACKED" if packed else "_AT_A_TIME", 20)
    conv, after = randomised(nn.Conv2d(12, 70, 3, padding=1, bias=False)), norm(70, True)
    maps = drawn(5, 12, 7, 9)
    with torch.no_grad():
        wanted = after(conv(maps)), conv(maps[:1])
        batch_norm = WinogradConvolution(conv.float(), after.float())
        alone = WinogradConvolution(conv)
        bench = Workbench()
        for each in (batch_norm, alone):
            each.prepare(bench)
        assert differ(batch_norm(maps.float()).double(), wanted[0]) < 1e-5
        assert differ(alone(maps[:1].float()).double(), wanted[1]) < 1e-5
    rows = []
    times = products.Matrix.times

    def counted(matrix: products.Matrix, given: Tensor) -> Tensor:
        rows.append(len(given))
        return times(matrix, given)

    monkeypatch.setattr(products.Matrix, "times", counted)
    alone(maps.float())
    needed = (6 + 5) * (
        6 + 6 + 3
    )  # points of rows cut into 4 and 3, and of columns into 4, 4 and 1
    assert sum(rows) == (5 * needed if packed else 0)


def test_a_workbench_is_used_over_and_over_by_each_thread_its_own():
    bench, like = Workbench(), torch.zeros(())
    with ThreadPoolExecutor(1) as pool:
        there = [pool.submit(bench.room, "a", (2, 3), like).result() for _ in range(2)]
    here = [bench.room("a", shape, like) for shape in ((2, 3), (3, 1), (4, 4), (5,))]
    other, double = bench.room("b", (2, 3), like), bench.room("b", (2,), like.double())
    assert [tuple(each.shape) for each in here] == [(2, 3), (3, 1), (4, 4), (5,)]
    assert there[0].data_ptr() == there[1].data_ptr()
    assert here[0].data_ptr() == here[1].data_ptr()
    assert here[2].data_ptr() == here[3].data_ptr()
    places = [each.data_ptr() for each in (there[0], here[0], here[2], other, double)]
    assert len(set(places)) == len(places)
    assert double.dtype is torch.float64


SUITED = {"padding": 1}
UNSUITED: list[dict[str, Any]] = [
    {"kernel_size": 5},
    {"kernel_size": (3, 1)},
    {"stride": 2},
    {"stride": (1, 2)},
    {"dilation": 2},
    {"groups": 2},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": "same"},
]


def convolution(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **({"kernel_size": 3} | options))


def test_only_plain_windows_of_3_by_3_are_suited(monkeypatch):
    assert is_suited(convolution(**SUITED))
    assert not any(is_suited(convolution(**options)) for options in UNSUITED)
    assert not is_suited(convolution(device="meta"))
    assert not is_suited(convolution(dtype=torch.bfloat16))
    changed = convolution()
    changed.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_suited(changed)

    class Mine(nn.Conv2d):
        pass

    assert not is_suited(Mine(4, 4, 3))
    monkeypatch.setattr(winograd, "_CHANNELS", 5)
    assert not is_suited(convolution())
    assert not is_suited(nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize(("slow", "found"), [("conv2d", True), ("times", False)])
def test_filtering_has_to_be_faster_on_this_processor(slow, found, monkeypatch):
    monkeypatch.setattr(winograd, "are_packed_faster", lambda: False)
    where = {"conv2d": winograd.F, "times": winograd.Filters}[slow]
    function = getattr(where, slow)

    def slowly(*args: Any, **options: Any) -> Tensor:
        busy(0.2)  # more than either takes
        return function(*args, **options)

    monkeypatch.setattr(where, slow, slowly)
    trial = IS_FASTER_HERE.__wrapped__
    assert trial(torch.float32) is found


def test_nothing_is_tried_where_all_has_to_be_deterministic(monkeypatch):
    layer = convolution(**SUITED)
    monkeypatch.setattr(winograd, "is_faster_here", lambda dtype: dtype is torch.float64)
    assert not is_suited(layer)
    assert is_suited(layer.double())
    monkeypatch.setattr(winograd, "is_faster_here", lambda dtype: pytest.fail("it was tried"))
    with monkeypatch.context() as inside:
        inside.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not is_suited(layer)


def test_a_trial_is_for_nobody_to_see(monkeypatch):
    layer = convolution(**SUITED)
    monkeypatch.setattr(winograd, "is_faster_here", lambda dtype: pytest.fail("it was tried"))
    with FlopCounterMode(display=False):
        assert not is_suited(layer)
    with torch.device("meta"):
        assert not is_suited(layer)


def test_matrices_are_made_where_they_are_used():
    threads = torch.get_num_threads()
    for made in (squares.of_weights, squares._matrices):
        made.cache_clear()
    with torch.device("meta"):
        cut = squares.Tiling((7, 9))
        found = [each for kind in cut.kinds for each in cut.matrices(kind, torch.float32)]
        assert {each.device.type for each in [squares.of_weights(torch.float32), *found]} == {"cpu"}
        assert isinstance(IS_FASTER_HERE.__wrapped__(torch.float32), bool)
    assert torch.get_num_threads() == threads


def norms() -> nn.Module:
    """Two batch norms in a row; the first of them goes with a convolution."""
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))


@pytest.mark.parametrize("between", [lambda: Skip(True), lambda: Skip(False), norms, Again])
@pytest.mark.parametrize("batch_size", [3, 25])
def test_incremental_occlusion_is_dense_occlusion(between, batch_size, monkeypatch):
    shapes = shapes_given(monkeypatch, winograd, "_filtered")
    net = randomised(Body(between()))
    compared(net, pictures(2, 3, 31, 26), [3, 1], batch_size=batch_size)
    assert {shape[1] for shape in shapes} == {3, 4}  # channels: those of the stem, and the others


def test_a_network_is_spoken_of_by_its_own_layers():
    net = randomised(Body(nn.ReLU(), size=(13, 16)))
    with pytest.raises(tvc.InputError, match=r"nearly all that its first layers see \(Conv2d\)"):
        tvc.occlusion(net, pictures(1, 3, 13, 16), 1, engine="incremental", window=12, stride=9)


class Squeezed(nn.Module):
    """Takes away the pictures' axis where there is but one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().squeeze(0)
        return self.fc(self.conv(x).relu().mean((-2, -1)))


@pytest.mark.parametrize("batch_size", [1, 2, 25])
def test_one_picture_may_be_without_its_axis(batch_size):
    compared(randomised(Squeezed()), pictures(1, 3, 13, 16), batch_size=batch_size)


def test_whole_maps_are_filtered_too(monkeypatch):
    shapes = shapes_given(monkeypatch, winograd, "_filtered")
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)),
        *(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, padding=1)),
        *(nn.Flatten(), nn.Linear(6 * 9 * 8, 4)),
    )
    compared(randomised(net), pictures(2, 3, 29, 26), window=(13, 11))
    assert any(tuple(shape[-2:]) == (9, 8) for shape in shapes)


def test_few_squares_and_those_that_save_little_are_summed_up(monkeypatch):
    conv = WinogradConvolution(convolution())
    monkeypatch.setattr(winograd, "_LEAST_SQUARES", 8)
    monkeypatch.setattr(winograd, "_MOST_PRODUCTS", 4.5)
    assert conv.suits(2, (8, 8))
    assert not conv.suits(1, (8, 8))
    assert conv.suits(2, (5, 5))
    assert conv.suits(8, (1, 4))  # 18 products, of 36
    assert not conv.suits(99, (1, 3))  # 15, of 27


@pytest.mark.parametrize(
    ("room", "found"),
    [(35, [0, 0, 0]), (36 * 12, [1, 0, 0]), (36 * 64, [0, 0, 1]), (36 * 108, [1, 1, 1])],
)
def test_weights_are_transformed_within_bounds_those_used_most_first(room, found, monkeypatch):
    """Of the last one most places are computed, of the second fewest; they have 12, 32, 64 windows."""
    monkeypatch.setattr(incremental, "_FILTERS", room)
    net = randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )
    )
    x = pictures(1, 3, 31, 26)
    with undisturbed(net, x), torch.no_grad():
        engine = Engine(net, x, Request((5, 4), (3, 2), (10, 12), 25))
        engine.prepare()
    layers = [m for m in engine.network.graph.modules() if isinstance(m, WinogradConvolution)]
    assert [int(layer.filters is not None) for layer in layers] == found
    compared(net, x)


@pytest.mark.parametrize(("batch_size", "found"), [(1, [1, 1, 0]), (3, [1, 1, 1])])
def test_a_small_batch_size_bounds_the_transformed_weights_too(batch_size, found):
    """A picture has 2 · 4 · 29 · 24 numbers in hand; the weights become 36 · 12, 64 and 256."""
    net = randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 16, 3), nn.Conv2d(16, 16, 3)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
        )
    )
    x = pictures(1, 3, 31, 26)
    with undisturbed(net, x), torch.no_grad():
        engine = Engine(net, x, Request((5, 4), (3, 2), (10, 12), batch_size))
        engine.prepare()
    layers = [m for m in engine.network.graph.modules() if isinstance(m, WinogradConvolution)]
    assert [int(layer.filters is not None) for layer in layers] == found
    compared(net, x, batch_size=batch_size)


@pytest.mark.parametrize(("factor", "found"), [(0.99, True), (1.01, False)])
def test_weights_are_transformed_where_they_are_used_often(factor, found, monkeypatch):
    """For 36 of them 9 weights are multiplied at each place of the map that is computed."""
    net = randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )
    )
    x = pictures(1, 3, 31, 26)
    with undisturbed(net, x), torch.no_grad():
        engine = Engine(net, x, Request((5, 4), (3, 2), (10, 12), 25))
        node = next(n for n in engine.network.nodes if str(n.target) == "2")
        places = sum(
            len(down.starts) * down.size * len(across.starts) * across.size
            for down, across in product(*engine.plan.areas[node])
        )
        monkeypatch.setattr(incremental, "_LEAST_USES", factor * places * 9 / 36)
        engine.prepare()
    layer = engine.network.modules["2"]
    assert isinstance(layer, WinogradConvolution)
    assert (layer.filters is not None) is found
    assert (layer.scale is None) is not found  # else its batch norm is folded


def test_the_network_keeps_its_layers_and_nothing_keeps_the_filters(monkeypatch):
    filters = []
    prepare = WinogradConvolution.prepare

    def watched(layer: WinogradConvolution, bench: Workbench) -> None:
        prepare(layer, bench)
        assert layer.filters is not None
        filters.append(weakref.ref(layer.filters))

    monkeypatch.setattr(WinogradConvolution, "prepare", watched)
    net = randomised(Body(Skip(True)))
    kinds, weights = [type(m) for m in net.modules()], [p.clone() for p in net.parameters()]
    tvc.occlusion(net, pictures(1, 3, 31, 26), 1, window=5, stride=3, engine="incremental")
    assert [type(m) for m in net.modules()] == kinds
    assert all(map(torch.equal, net.parameters(), weights))
    gc.collect()
    assert len(filters) == 3
    assert all(each() is None for each in filters)
