"""Gram matrices and distances against Gatys et al. 2016, written out."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils._python_dispatch import TorchDispatchMode

import torchviz_cnn as tvc
from tests.networks import ChannelsLast, Gray, Residual, pictures, plain, randomised
from tests.test_promises import SETTINGS, nothing_changes, residual


def slow_gram(maps):
    """Equation 3, product by product."""
    channels = maps.shape[0]
    flat = maps.reshape(channels, -1)
    return np.array([[sum(flat[i] * flat[j]) for j in range(channels)] for i in range(channels)])


def maps_of(net, x, layer):
    with torch.no_grad(), tvc.capture(net, layer) as seen:
        net(x.clone())
    return seen[layer].numpy()


def test_gram_matrices_are_inner_products_of_channels():
    maps = pictures(2, channels=4)
    found = tvc.gram_matrix(maps)
    for index in range(2):
        np.testing.assert_allclose(found[index], slow_gram(maps[index].numpy()), rtol=1e-12)
    with pytest.raises(tvc.InputError, match=r"\(N, C, h, w\)"):
        tvc.gram_matrix(maps[0])


def test_distances_are_those_of_the_paper():
    net, (a, b) = randomised(plain()), (pictures(2, seed=1), pictures(2, seed=2))
    found = tvc.style_distance(net, a, b, ["conv1", "relu2"])
    assert found.layers == ("conv1", "relu2")
    for column, layer in enumerate(found.layers):
        for index in range(2):
            f, p = (maps_of(net, x, layer)[index] for x in (a, b))
            channels, cells = f.shape[0], f[0].size
            g, q = slow_gram(f), slow_gram(p)
            loss = ((g - q) ** 2).sum() / (4 * channels**2 * cells**2)  # equation 4
            assert float(found.distance[index, column]) == pytest.approx(loss, rel=1e-10)
            share = np.linalg.norm(g - q) / np.linalg.norm([g, q])
            assert float(found.relative[index, column]) == pytest.approx(share, rel=1e-10)


def test_style_does_not_depend_on_where_things_are():
    """Behind a 1×1 convolution, pixels may be put in any order."""
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 3)).double()
    x = pictures(1)
    order = torch.randperm(140)
    shuffled = x.flatten(2)[..., order].view_as(x)
    found = tvc.style_distance(net, x, shuffled, ["1", "2"])
    assert float(found.relative[0, 0]) < 1e-12
    assert float(found.relative[0, 1]) > 1e-3


def test_a_picture_and_itself_and_a_larger_one_tiled_of_it_have_one_style():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()).double()
    x = pictures(1)
    assert float(tvc.style_distance(net, x, x, "1").distance) == 0
    tiled = x.repeat(1, 1, 2, 3)
    assert float(tvc.style_distance(net, x, tiled, "1").relative) < 1e-12


def test_channels_that_come_last_are_still_the_channels():
    net, (a, b) = randomised(ChannelsLast()), (pictures(1, seed=1), pictures(1, seed=2))
    found = tvc.style_distance(net, a, b, ["patch", "mix"])
    assert found.shapes == ((16, 7, 5), (12, 7, 5))
    for side, x in enumerate((a, b)):
        maps = np.moveaxis(maps_of(net, x, "mix")[0], -1, 0)
        np.testing.assert_allclose(found.grams[1][side][0], slow_gram(maps) / 35, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg16", ["features.1", "features.6", "features.11", "features.18", "features.25"]),
        (
            "resnet18",
            [
                "relu",
                "layer1.0.relu",
                "layer2.0.relu",
                "layer3.0.relu",
                "layer4.0.relu",
            ],
        ),
        ("alexnet", ["features.1", "features.4", "features.7"]),
    ],
)
def test_by_default_the_first_convolution_of_each_size(name, layers):
    """In VGG the layers of the paper: relu1_1 to relu5_1."""
    module = torchvision.models.get_model(name, weights=None)
    assert tvc.style_layers(module, torch.zeros(1, 3, 96, 96)) == layers


@pytest.mark.parametrize(
    "follower",
    [nn.Tanh(), nn.Sigmoid(), nn.Mish(), nn.SELU(), nn.Hardtanh(), nn.Softplus(), nn.GroupNorm(2, 4)],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_whatever_activation_or_norm_follows_a_convolution_belongs_to_it(follower):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), follower, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU()
    )
    assert tvc.style_layers(net, torch.zeros(1, 3, 12, 12)) == ["1", "4"]


def test_by_default_one_activation_for_all_convolutions_is_told_apart_by_its_runs():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.relu = nn.ReLU()

        def forward(self, x):
            x = self.relu(self.first(x))
            x = self.relu(self.second(F.max_pool2d(x, 2)))
            return x.mean((2, 3))

    net, (a, b) = randomised(Shared()), (pictures(1, seed=1), pictures(1, seed=2))
    found = tvc.style_distance(net, a, b)
    assert found.layers == ("relu", "relu@1")
    for side, x in enumerate((a, b)):
        maps = F.max_pool2d(net.first(x).clamp(min=0), 2)
        maps = net.second(maps).clamp(min=0).detach()
        wanted = slow_gram(maps[0].numpy()) / maps[0, 0].numel()
        np.testing.assert_allclose(found.grams[1][side][0], wanted, rtol=1e-12)


def test_gates_of_one_number_a_channel_have_no_style():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), gate)
    assert tvc.style_layers(net, torch.zeros(1, 3, 12, 12)) == ["1"]


def test_two_pictures_of_which_a_layer_sees_nothing_have_one_style():
    dark = torch.zeros(1, 3, 6, 5, dtype=torch.float64)
    found = tvc.style_distance(nn.Sequential(nn.ReLU()), dark, -pictures(1).abs(), "0")
    assert float(found.distance) == float(found.relative) == 0


def test_of_pictures_of_two_sizes_the_shapes_are_the_first_ones():
    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    small, large = torch.rand(1, 3, 8, 9), torch.rand(1, 3, 12, 10)
    assert tvc.style_distance(net, small, large, "0").shapes == ((5, 6, 7),)
    assert tvc.style_distance(net, large, small, "0").shapes == ((5, 10, 8),)


def test_1_means_that_no_two_channels_are_active_together_in_both():
    """Red alone beside blue alone, however strong; nothing has more in common than that."""
    net = nn.Identity()
    red, blue = torch.zeros(2, 1, 3, 6, 5, dtype=torch.float64)
    red[:, 0], blue[:, 2] = 0.3, 40.0
    share = {
        name: float(tvc.style_distance(nn.Sequential(net), red, other, "0").relative)
        for name, other in {"blue": blue, "both": red + blue / 40, "red": red}.items()
    }
    assert share["blue"] == pytest.approx(1, abs=1e-12)
    assert share["red"] == 0
    # G = diag(0.09, 0), A = ((0.09, 0.3), (0.3, 1))
    apart, of_all = 2 * 0.3**2 + 1, 2 * 0.09**2 + 2 * 0.3**2 + 1
    assert share["both"] == pytest.approx(math.sqrt(apart / of_all), rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_counts_on_where_its_numbers_end(kind):
    """2000 cells of 20 make 800 000, and the largest number of float16 is 65 504."""
    net = nn.Sequential(nn.Identity())
    a, b = (20 + pictures(1, height=50, width=40, seed=seed).to(kind) for seed in (1, 2))
    b[:, 1] = 0
    found = tvc.style_distance(net, a, b, "0")
    wanted = tvc.style_distance(net, a.double(), b.double(), "0")
    assert found.relative.dtype == torch.float32
    for name in ("distance", "relative"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(wanted, name), rtol=1e-4, atol=0)  # fmt: skip
    wide = tvc.gram_matrix(a)
    torch.testing.assert_close(wide.double(), tvc.gram_matrix(a.double()), rtol=1e-5, atol=0)


def test_layers_are_given_in_any_of_the_usual_ways():
    net, (a, b) = randomised(plain()), (pictures(1, seed=1), pictures(1, seed=2))
    wanted = tvc.style_distance(net, a, b, ["conv1", "relu2"])
    for layers in (iter(["conv1", "relu2"]), (net.conv1, net.relu2), ["conv1", net.relu2]):
        found = tvc.style_distance(net, a, b, layers)
        assert found.layers == wanted.layers
        assert torch.equal(found.distance, wanted.distance)
    one = tvc.style_distance(net, a, b, net.relu2)
    assert one.layers == ("relu2",)
    assert torch.equal(one.distance, wanted.distance[:, 1:])
    assert tvc.style_distance(net, a, b, ["conv*", "f*"]).layers == ("conv1", "conv2")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_the_network_comes_back_as_it_was_whatever_was_around(setting):
    found, (a, b) = setting(residual()), (pictures(2, seed=1), pictures(2, seed=2))
    with found.around(), nothing_changes(found.net, a, b):
        result = tvc.style_distance(found.model, a, b)
    wanted = tvc.style_distance(residual(), a, b)
    assert result.layers == wanted.layers
    torch.testing.assert_close(result.distance, wanted.distance, rtol=1e-9, atol=1e-12)
    assert not result.distance.requires_grad


def test_a_batch_equals_its_pairs_one_by_one():
    net, (a, b) = randomised(Residual()), (pictures(3, seed=1), pictures(3, seed=2))
    together = tvc.style_distance(net, a, b)
    for index in range(3):
        one = tvc.style_distance(net, a[index : index + 1], b[index : index + 1])
        torch.testing.assert_close(one.distance[0], together.distance[index])


def test_a_network_without_a_channel_axis():
    net, (a, b) = randomised(Gray()), (pictures(1, 1, seed=1), pictures(1, 1, seed=2))
    found = tvc.style_distance(net, a[:, 0], b[:, 0])
    wanted = tvc.style_distance(net.net, a, b)
    torch.testing.assert_close(found.distance, wanted.distance)


def test_the_table_and_the_figure_say_all_of_it():
    net = randomised(plain())
    found = tvc.style_distance(net, pictures(1, seed=1), pictures(1, seed=2))
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "relu1", "relu2", "mean"]
    assert f"{float(found.relative[0, 1]):.3f}" in lines[2]
    assert found.to_dict()["layers"][0]["shape"] == [6, 14, 10]


def test_the_figure_shows_the_distances_and_both_matrices():
    """Bars as high as the shares; above each other the roots of both matrices and of what is between."""
    net = randomised(plain())
    found = tvc.style_distance(net, pictures(2, seed=1), pictures(2, seed=2))
    figure = found.figure(names=("left", "right"), index=1)
    curve, *panels = figure.axes
    assert [bar.get_height() for bar in curve.patches] == found.relative[1].tolist()
    assert [text.get_text() for text in curve.texts] == [f"{v:.2f}" for v in found.relative[1]]
    assert [label.get_text() for label in curve.get_xticklabels()] == ["relu1", "relu2"]
    panels = np.array(panels).reshape(3, 2)
    for column, (g, a) in enumerate(found.grams):
        g, a = g[1].numpy(), a[1].numpy()
        for row, matrix in enumerate((g, a, g - a)):
            (image,) = panels[row, column].images
            shown = np.asarray(image.get_array())
            np.testing.assert_allclose(shown * np.abs(shown), matrix, rtol=1e-9)
        low, high = panels[0, column].images[0].get_clim()
        assert panels[1, column].images[0].get_clim() == (low, high)  # one scale for both
    assert [axis.get_ylabel() for axis in panels[:, 0]] == ["left", "right", "difference"]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["conv9"], "or 'conv1'"),
        (["fc"], "has no Gram matrix"),
        (["conv*", "fc"], "has no Gram matrix"),
        ([], "no layers were named; leave layers out"),
        ("f*", "no layer that 'f\\*' matches puts out maps"),
    ],
)
def test_bad_layers_are_said(layers, words):
    net = randomised(plain())
    with pytest.raises(tvc.InputError, match=words):
        tvc.style_distance(net, pictures(1), pictures(1), layers)


def test_bad_pictures_are_said():
    net = randomised(plain())
    with pytest.raises(tvc.InputError, match="2 pictures are to be compared with 1"):
        tvc.style_distance(net, pictures(2), pictures(1))
    with pytest.raises(tvc.InputError, match="NaN"):
        tvc.style_distance(net, pictures(1) * torch.nan, pictures(1))
    net.conv2.bias.data[0] = torch.inf
    with pytest.raises(tvc.InputError, match="'conv2' puts out NaN or infinite"):
        tvc.style_distance(net, pictures(1), pictures(1), ["conv1", "conv2"])
    largest = torch.full_like(pictures(1), 1e200)  # whose squares are infinite
    for pair in ((pictures(1), largest), (largest, pictures(1))):
        with pytest.raises(tvc.InputError, match="'0' puts out NaN or infinite"):
            tvc.style_distance(nn.Sequential(nn.ReLU()), *pair, "0")


def test_numbers_are_waited_for_once_however_many_layers():
    """On a GPU every number that Python asks for holds up what could be queued behind it."""

    class Asked(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func._overloadpacket is torch.ops.aten._local_scalar_dense
            return func(*args, **(kwargs or {}))

    net = randomised(plain())
    counts = []
    for layers in (["conv1"], ["conv1", "relu1", "conv2", "relu2"]):
        with Asked() as asked:
            tvc.style_distance(net, pictures(2), pictures(2), layers)
        counts.append(asked.count)
    assert counts[0] == counts[1]


def test_of_several_layers_with_numbers_that_are_none_the_first_is_named():
    net = randomised(plain())
    net.conv2.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(tvc.InputError, match="'conv2' puts out NaN"):
        tvc.style_distance(net, pictures(2), pictures(2), ["conv1", "conv2", "relu2"])
