"""Networks with habits that real ones have: explained as any other, or refused in one sentence."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchviz_cnn as tvc
from tests.networks import pictures, plain, randomised
from torchviz_cnn.errors import NotApplicable
from torchviz_cnn.fields import receptive_field

every_method = pytest.mark.parametrize("method", tvc.METHODS)
CAMS = [name for name in tvc.METHODS if "cam" in name]
every_cam = pytest.mark.parametrize("method", CAMS)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


# ---- maps of more than the pictures that were given -------------------------------------------------


class Corners(nn.Module):
    """Looks at two corners of each picture, and answers with the mean of what it finds there."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()
        self.whole = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.whole(x)
        corners = torch.cat([x[..., :8, :8], x[..., -8:, -8:]])
        return self.net(corners).unflatten(0, (2, -1)).mean(0)


@every_cam
def test_a_layer_that_sees_parts_of_the_pictures_has_no_map_a_picture(method: str) -> None:
    net, x = randomised(Corners()), pictures(3)
    words = "'net.conv2' puts out the maps of 6 pictures where 3 pictures were given"
    with pytest.raises(tvc.InputError, match=words):
        tvc.METHODS[method](net, x, 1, layer="net.conv2")
    words = "'net.relu2' puts out the maps of 2 pictures where 1 picture was given"
    with pytest.raises(NotApplicable, match=words):  # one picture is enough to see it
        tvc.METHODS[method](net, x, 1)
    assert len(tvc.METHODS[method](net, x, 1, layer="whole")) == 3


def test_a_glob_and_all_methods_leave_out_what_has_no_map_a_picture() -> None:
    net, x = randomised(Corners()), pictures(1)
    found = tvc.explain(net, x, 1, methods="grad_cam", layer="*")
    assert {each.layer for each in found.values()} == {"whole"}
    with pytest.warns(UserWarning, match="grad_cam, .* are left out: the layer 'net.relu2'"):
        found = tvc.explain(net, x, 1, methods="all")
    assert {"saliency", "occlusion"} <= set(found)
    assert not set(found) & set(CAMS)


# ---- maps of other numbers --------------------------------------------------------------------------


class Codes(nn.Module):
    """Which of its channels is the largest at each place, as a map of whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True)


class Coded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.codes = plain(), Codes()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.codes(x).double().mean((2, 3))


@every_cam
def test_maps_of_whole_numbers_cannot_be_weighed(method: str) -> None:
    with pytest.raises(tvc.InputError, match=r"'codes' puts out torch\.int64 numbers"):
        tvc.METHODS[method](randomised(Coded()), pictures(), 1, layer="codes")


# ---- parts that fail, and are caught ----------------------------------------------------------------


class Fast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        raise RuntimeError("no kernel for this device")


class Cautious(nn.Module):
    """Tries a faster way first, which fails, inside a block that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.fast, self.block.slow = Fast(), nn.Conv2d(3, 4, 3)
        self.block.forward = self.try_both
        self.net = plain(4)

    def try_both(self, x: Tensor) -> Tensor:
        try:
            return self.block.fast(x)
        except RuntimeError:
            return self.block.slow(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.block(x))


def test_a_part_that_fails_and_is_caught_is_not_taken_for_the_next() -> None:
    net = randomised(Cautious())
    table = tvc.layers(net, input_size=(3, 14, 10))
    rows = {row.name: row for row in table}
    assert rows["block.slow"].output_shape == (4, 12, 8)
    slow, inner = 12 * 8 * 4 * 27, 14 * 10 * 9
    assert (rows["block.slow"].macs, rows["block.fast.inner"].macs) == (slow, inner)
    plain_macs = sum(rows[f"net.{name}"].macs for name in ("conv1", "conv2", "fc"))
    assert table.macs == slow + inner + plain_macs
    assert tvc.default_layer(net, pictures()) == "net.relu2"


# ---- another default device -------------------------------------------------------------------------


@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_a_picture_is_optimised_where_the_network_is(parametrization: str) -> None:
    """What is made on the default device here has no numbers."""
    net = randomised(plain())
    options = {"layer": "conv2", "channel": [1, 2], "steps": 3, "input_size": (3, 14, 10)}
    wanted = tvc.maximize(net, parametrization=parametrization, **options)
    with torch.device("meta"):
        found = tvc.maximize(net, parametrization=parametrization, **options)
    close(found.inputs, wanted.inputs)
    close(found.history, wanted.history)


@pytest.mark.parametrize(
    ("method", "options", "align"),
    [
        ("grad_cam", {"layer": "relu1"}, "receptive_field"),
        ("occlusion", {"window": 4, "engine": "incremental"}, "stretch"),
    ],
)
def test_maps_lie_on_the_picture_whatever_the_default_device_is(
    method: str, options: dict[str, Any], align: Any
) -> None:
    net, x, targets = randomised(plain()), pictures(), [[0, 1], [2, 3]]
    wanted = tvc.METHODS[method](net, x, targets, **options).heatmap(align)
    with torch.device("meta"):
        found = tvc.METHODS[method](net, x, targets, **options).heatmap(align)
    close(found, wanted)


# ---- numbers that are none --------------------------------------------------------------------------


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.factor = plain(), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.factor


@every_method
def test_infinite_scores_make_no_map(method: str) -> None:
    net, x = randomised(Times(1e7)).half(), pictures().half()
    assert net(x)[:, 1].isinf().all()
    words = "the network puts out infinite scores for these inputs.*float16 ends at 65504"
    with pytest.raises(tvc.InputError, match=words):
        tvc.METHODS[method](net, x, 1)


@every_method
def test_a_callable_that_gives_no_number_makes_no_map(method: str) -> None:
    net, x = randomised(plain()), pictures()
    with pytest.raises(tvc.InputError, match="the callable target gives NaN or an infinite score"):
        tvc.METHODS[method](net, x, lambda out: (-out[:, 0].abs()).log())


@every_method
def test_a_score_may_be_explained_beside_one_that_a_network_rules_out(method: str) -> None:
    net, x = randomised(nn.Sequential(plain(), RulesOut())), pictures()
    assert net(x)[:, 0].isinf().all()
    found, wanted = (tvc.METHODS[method](each, x, 1) for each in (net, net[0]))
    close(found.values, wanted.values)


class RulesOut(nn.Module):
    """Gives the first class no chance."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(x.shape[1]) == 0, -torch.inf)


# ---- buffers that were made in inference mode -------------------------------------------------------


@every_method
def test_buffers_made_in_inference_mode_take_part(method: str) -> None:
    def made() -> nn.Module:
        return randomised(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), plain()), seed=3)

    net, x = made(), pictures()
    wanted = tvc.METHODS[method](net, x, 1)
    with torch.inference_mode():
        for name, buffer in list(net[1].named_buffers()):
            net[1].register_buffer(name, buffer.clone())
    kept = net[1].running_mean
    assert kept.is_inference()
    close(tvc.METHODS[method](net, x, 1).values, wanted.values)
    assert net[1].running_mean is kept


# ---- parts that are computed anew on the way back ---------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = plain(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.net[:5], x, use_reentrant=self.reentrant)
        return self.net[5:](x)


@every_method
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_parts_are_differentiated_or_said_to_be_shut(method: str) -> None:
    net, shut = (randomised(Checkpointed(each)) for each in (False, True))
    x, options = pictures(), {"layer": net.net.conv2} if method in CAMS else {}
    wanted = tvc.METHODS[method](net.net, x, 1, **options).values
    options = {"layer": "net.conv2"} if method in CAMS else {}
    close(tvc.METHODS[method](net, x, 1, **options).values, wanted)
    if method in ("occlusion", "score_cam"):
        close(tvc.METHODS[method](shut, x, 1, **options).values, wanted)
        return
    words = "use_reentrant=False|does not depend on the layer 'net.conv2'"
    with pytest.raises(tvc.InputError, match=words):
        tvc.METHODS[method](shut, x, 1, **options)


# ---- where torch looks for NaN ----------------------------------------------------------------------


@every_method
def test_many_targets_under_anomaly_detection(method: str) -> None:
    """Behind a head through which many classes would otherwise go back together."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 4))
    net = randomised(nn.Sequential(plain()[:5], nn.AdaptiveAvgPool2d(2), head))
    x, targets = pictures(), [[0, 1, 2], [3, 2, 1]]
    wanted = tvc.METHODS[method](net, x, targets).values
    with torch.autograd.set_detect_anomaly(True):
        found = tvc.METHODS[method](net, x, targets).values
    close(found, wanted)


# ---- batch norms without running statistics ---------------------------------------------------------


def by_the_batch() -> nn.Module:
    net = randomised(plain(), seed=5)
    norm = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
    return nn.Sequential(net[:1], norm, net[1:]).eval()


@every_method
def test_pictures_that_change_each_others_scores_are_warned_of_once(method: str) -> None:
    net, x = by_the_batch(), pictures(2)
    with pytest.warns(UserWarning, match="a batch size of 1 explains each by itself"):
        tvc.METHODS[method](net, x, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tvc.METHODS[method](net, x, 1)
        tvc.METHODS[method](randomised(plain()), x, 1)


@every_method
def test_with_a_batch_size_of_one_each_is_explained_by_itself(method: str) -> None:
    net, x = by_the_batch(), pictures(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tvc.METHODS[method](net, x, 1, batch_size=1)
        alone = [tvc.METHODS[method](net, one, 1, batch_size=1) for one in x.split(1)]
    close(found.values, torch.cat([each.values for each in alone]))
    close(found.score, torch.cat([net(one)[:, 1] for one in x.split(1)]).detach())


@pytest.mark.parametrize("engine", ["dense", "incremental"])
def test_with_a_batch_size_of_one_each_window_is_hidden_by_itself(engine: str) -> None:
    net, x = by_the_batch(), pictures(1)
    options = {"window": (7, 5), "stride": (7, 5), "fill": 0.3, "engine": engine}
    found = tvc.occlusion(net, x, 1, batch_size=1, **options).values
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        hidden = x.clone()
        hidden[..., 7 * row : 7 * row + 7, 5 * column : 5 * column + 5] = 0.3
        close(found[0, row, column], (net(x) - net(hidden))[0, 1].detach())


# ---- numbers as NumPy and torch have them -----------------------------------------------------------


def test_whole_numbers_may_be_numpys() -> None:
    net = randomised(plain())
    options = {"layer": "conv2", "input_size": (3, 14, 10)}
    order = np.argsort([2.0, 0.0, 1.0])
    wanted = tvc.maximize(net, channel=[1, 2, 0], cell=(3, 2), steps=2, seed=4, **options)
    found = tvc.maximize(
        *(net,), channel=list(order), cell=tuple(np.array([3, 2])), steps=np.int64(2),
        seed=np.int32(4), **options,
    )  # fmt: skip
    assert found.labels == wanted.labels == tuple(f"conv2 {k} at (3, 2)" for k in (1, 2, 0))
    assert torch.equal(found.inputs, wanted.inputs)
    assert json.loads(json.dumps(found.manifest())) == json.loads(json.dumps(wanted.manifest()))
    noisy = tvc.smooth_grad(net, pictures(), 1, noise=np.float32(0.25), seed=np.int64(3), samples=2)
    assert noisy.parameters == {"score": "logit", "samples": 2, "noise": 0.25, "seed": 3}


@pytest.mark.parametrize(
    "window", [3, np.int64(3), np.array(3), torch.tensor(3), np.array([3, 3]), torch.tensor([3, 3])]
)
def test_a_window_may_be_numpys_or_torchs(window: Any) -> None:
    assert tvc.occlusion(randomised(plain()), pictures(), 1, window=window).window == (3, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"seed": 2**64},
            "seed must be a whole number of at most 64 bits, not 18446744073709551616",
        ),
        ({"seed": True}, "seed must be a whole number"),
        ({"noise": float("nan")}, "noise must be a share of the picture's range"),
    ],
)
def test_noise_that_cannot_be_made_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(tvc.InputError, match=words):
        tvc.smooth_grad(randomised(plain()), pictures(), 1, **options)


@pytest.mark.parametrize("window", [True, (2, False), "3", torch.tensor(2.5), [1, 2, 3]])
def test_a_window_that_is_none_is_refused(window: Any) -> None:
    with pytest.raises(tvc.InputError, match="window must be a positive number of pixels"):
        tvc.occlusion(randomised(plain()), pictures(), 1, window=window)


# ---- parts in inference mode ------------------------------------------------------------------------


class Sealed(nn.Module):
    """Its features are computed in inference mode, as of a network that is only used."""

    def __init__(self, mode: Any) -> None:
        super().__init__()
        self.features, self.mode = plain()[:5], mode
        self.last, self.fc = nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            x = self.features(x)
        return self.fc(self.last(x).mean((2, 3)))


def test_what_runs_in_inference_mode_is_counted_and_placed() -> None:
    sealed, usual = (randomised(Sealed(mode)) for mode in (torch.inference_mode, nullcontext))
    found, wanted = (tvc.layers(net, input_size=(3, 14, 10)) for net in (sealed, usual))
    assert [row.macs for row in found] == [row.macs for row in wanted]
    assert found.macs == wanted.macs == 140 * 6 * 27 + 35 * 8 * 54 + 32
    assert tvc.default_layer(sealed, pictures()) == "last"
    fields = [receptive_field(net, "features.conv2", (3, 14, 10)) for net in (sealed, usual)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("method", [name for name in CAMS if not name.startswith("guided")])
def test_a_class_activation_map_behind_features_in_inference_mode(method: str) -> None:
    sealed, usual = (randomised(Sealed(mode)) for mode in (torch.inference_mode, nullcontext))
    found, wanted = (tvc.METHODS[method](net, pictures(), 1) for net in (sealed, usual))
    close(found.values, wanted.values)


# ---- parts that are spread over several devices ------------------------------------------------------


@every_method
def test_a_part_that_is_spread_over_devices_runs_in_one_place(method: str) -> None:
    net, x = randomised(plain()), pictures()
    spread = nn.Sequential(nn.DataParallel(net[:5]), net[5:])
    spread[0].device_ids = devices = [0, 1]  # as where there are two GPUs; here it could not run
    found = tvc.METHODS[method](spread, x, 1)
    close(found.values, tvc.METHODS[method](net, x, 1).values)
    assert spread[0].device_ids is devices
    if method in CAMS:
        assert found.layer == "0.module.relu2"


# ---- networks of sounds -----------------------------------------------------------------------------


def test_a_network_of_sounds_has_no_class_activation_map() -> None:
    net = nn.Sequential(
        *(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    x = torch.randn(2, 3, 40)
    with pytest.raises(NotApplicable, match=r"'1', puts out \(1, 4, 38\), no feature maps"):
        tvc.grad_cam(net.eval(), x, 1)
    with pytest.warns(UserWarning, match="grad_cam, .* are left out: the last convolution"):
        assert {"saliency", "guided_backprop"} <= set(tvc.explain(net, x, 1, methods="all"))


# ---- quantised networks ----------------------------------------------------------------------------

quantising = pytest.mark.filterwarnings("ignore:.*quantiz.*deprecated:UserWarning")


class Quantised(nn.Module):
    """A convolution, a ReLU and a linear layer on whole numbers, as quantised networks have them."""

    class Convolution(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            one, none = [1, 1], [0, 0]
            self.packed = torch.ops.quantized.conv2d_prepack(
                torch.quantize_per_tensor(weight, 0.5, 0, torch.qint8), None, one, none, one, 1
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.quantized.conv2d_relu(x, self.packed, 0.125, 0)

    class Dense(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            weight = torch.quantize_per_tensor(weight, 0.5, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(weight, None)

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.quantized.linear(x, self.packed, 0.5, 128)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight = torch.randint(-3, 4, (4, 3, 3, 3)) / 2.0
        self.dense_weight = torch.randint(-3, 4, (5, 4)) / 2.0
        self.convolution = self.Convolution(self.weight)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dense = self.Dense(self.dense_weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.quantize_per_tensor(x, 0.25, 0, torch.quint8)
        return self.dense(self.flatten(self.pool(self.convolution(x)))).dequantize()


def whole_numbers() -> Tensor:
    """A picture of 3×6×7 that quantising leaves as it is."""
    torch.manual_seed(4)
    return torch.randint(0, 5, (1, 3, 6, 7)) / 4.0


@quantising
def test_a_walk_through_a_quantised_network_shows_the_numbers_that_are_meant():
    net, x = Quantised(), whole_numbers()
    seen = tvc.walk(net, x)
    maps = nn.functional.conv2d(x, net.weight)[0].relu()  # multiples of 1/8 below 32: exact
    torch.testing.assert_close(seen["convolution"].output, maps, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen["pool"].before, maps, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen["dense"].output, net(x)[0])
    assert seen["dense"].answer == "score"
    assert f"0 … {maps.max():.3g}" in str(seen)


@quantising
def test_the_multiply_adds_of_quantised_layers_are_counted():
    table = tvc.layers(Quantised(), (3, 6, 7))
    convolution = 4 * 5 * 4 * 3 * 3 * 3  # cells, made and given channels, kernel
    assert table["convolution"].macs == convolution
    assert table["dense"].macs == 4 * 5
    assert table.macs == convolution + 4 * 5


@quantising
def test_a_quantised_network_is_refused_by_what_differentiates_for_being_one():
    net, x = Quantised(), whole_numbers()
    assert tvc.default_layer(net, x) == "convolution"  # there is a map; it cannot be weighed
    with pytest.raises(tvc.InputError, match=r"'convolution' puts out torch\.quint8 numbers"):
        tvc.grad_cam(net, x)
    with pytest.raises(tvc.InputError, match="computes it in whole numbers, as quantised"):
        tvc.saliency(net, x)
