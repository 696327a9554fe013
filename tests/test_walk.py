"""The walk: every number beside a derivation of its own; pictures by their properties."""

import io
import re
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.utils.prune import random_unstructured
from torchvision.ops import Permute

import torchviz_cnn as tvc
from tests.networks import (
    ChannelsLast,
    Functional,
    Repeated,
    Residual,
    TrippedError,
    Tripwire,
    pictures,
    plain,
    randomised,
    with_part,
)
from tests.test_promises import SETTINGS, nothing_changes
from torchviz_cnn import InputError, plates
from torchviz_cnn import render as render_room
from torchviz_cnn.axes import channels_last, widths_of
from torchviz_cnn.kernels import convolutions
from torchviz_cnn.passage import kind_of
from torchviz_cnn.preprocess import Preprocess
from torchviz_cnn.render import bars, paper
from torchviz_cnn.render import kernels as kernel_room
from torchviz_cnn.render.colormaps import colorize
from torchviz_cnn.steps import Sparsity, Step, Walk
from torchviz_cnn.walking import walk_through


def test_a_functional_network_is_walked_function_by_function():
    """No ReLU and no pooling of this network is a module; each is shown, with what reached it."""
    net, x = randomised(Functional()), pictures(1)
    seen = tvc.walk(net, x)
    assert seen.names == [
        "conv1",
        "relu after conv1",
        "max_pool2d after conv1",
        "conv2",
        "relu after conv2",
        "mean over places after conv2",
        "fc",
    ]
    a = F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)
    b = F.max_pool2d(a.clamp(min=0), 2)
    c = F.conv2d(b, net.conv2.weight, net.conv2.bias, padding=1)
    wanted = {
        "conv1": (None, a),
        "relu after conv1": (a, a.clamp(min=0)),
        "max_pool2d after conv1": (a.clamp(min=0), b),
        "conv2": (None, c),  # not what the in-place ReLU after it made of it
        "relu after conv2": (c, c.clamp(min=0)),
        "mean over places after conv2": (c.clamp(min=0), c.clamp(min=0).mean((2, 3))),
        "fc": (None, net(x)),
    }
    for name, (before, output) in wanted.items():
        torch.testing.assert_close(seen[name].output, output[0], rtol=0, atol=1e-12)
        if before is None:
            assert seen[name].before is None
        else:
            torch.testing.assert_close(seen[name].before, before[0], rtol=0, atol=1e-12)


class Between(nn.Module):
    """Does something between two layers."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.fc(self.function(self.conv(x)))


POOLED = {
    "from the end": lambda x: x.mean((-2, -1)),
    "either way": lambda x: x.mean((-1, 2)),
}


@pytest.mark.parametrize("name", POOLED)
def test_a_mean_over_places_is_a_pooling_however_its_axes_are_counted(name):
    net, x = randomised(Between(POOLED[name])), pictures(1)
    seen = tvc.walk(net, x)
    assert seen.names == ["conv", "mean over places after conv", "fc"]
    wanted = net.conv(x).detach()[0]
    torch.testing.assert_close(seen["mean over places after conv"].before, wanted)
    torch.testing.assert_close(seen["mean over places after conv"].output, wanted.mean((1, 2)))


NO_STEPS = {
    "a mean over all of some tokens": lambda x: (
        x.mean((2, 3)) + x.flatten(2).transpose(1, 2).mean((-2, -1))
    ),
    "a clamp with a bound for each channel": lambda x: x.clamp(
        min=torch.zeros(4, 1, 1).double()
    ).mean((2, 3)),
    "a clamp on both sides": lambda x: F.hardtanh(x).mean((2, 3)),
}


@pytest.mark.parametrize("name", NO_STEPS)
def test_what_is_no_activation_and_pools_no_places_is_no_step(name):
    seen = tvc.walk(randomised(Between(NO_STEPS[name])), pictures(1))
    assert seen.names == ["conv", "mean over places after conv", "fc"]


def test_what_a_function_put_out_is_kept_as_it_was():
    net, x = randomised(Between(lambda x: F.relu(x).add_(1).mean((2, 3)))), pictures(1)
    wanted = net.conv(x).detach()[0].clamp(min=0)
    assert torch.equal(tvc.walk(net, x)["relu after conv"].output, wanted)


def test_a_rectified_weight_within_a_layer_is_not_counted_but_is_no_picture_left_out():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x):
            return (x * F.relu(self.weight)).mean((2, 3))

    seen = tvc.walk(randomised(Between(Scaled())), pictures(1))
    assert seen.names == ["conv", "function", "fc"]
    assert seen.left_out() == [
        "relu after conv is not counted: it is computed of weights, not of the picture"
    ]


def test_an_activation_that_gives_fewer_numbers_than_it_was_given_silences_none():
    step = tvc.walk(nn.Sequential(nn.GLU(1)), torch.randn(1, 4, 6, 5))["0"]
    assert step.kind == "activation"
    assert (step.before.shape, step.output.shape) == ((4, 6, 5), (2, 6, 5))
    assert step.silenced is None
    assert step.silenced_by_channel is None


def test_the_share_an_activation_silences_is_counted_by_unit_and_by_channel():
    net, x = randomised(plain()), pictures(1)
    step = tvc.walk(net, x)["relu1"]
    before = F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)[0].detach().numpy()
    assert step.silenced == pytest.approx((before < 0).mean(), abs=1e-15)
    assert 0.1 < step.silenced < 0.9
    by_channel = (before < 0).reshape(6, -1).mean(1)
    np.testing.assert_allclose(step.silenced_by_channel.numpy(), by_channel, atol=1e-15)


def test_what_was_0_before_is_not_silenced():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    seen = tvc.walk(net, torch.randn(1, 1, 6, 5))
    assert seen["0"].silenced > 0
    assert seen["1"].silenced == 0
    assert seen["1"].zeros == seen["0"].zeros


@pytest.mark.parametrize(
    ("left", "whole", "tenth"),
    [
        (0, "100 %", "100.0 %"),
        (2, ">99 %", "99.8 %"),
        (1022, "<1 %", "0.2 %"),
        (1024, "0 %", "0.0 %"),
    ],
)
def test_all_and_none_are_said_only_where_it_is_so(left, whole, tenth):
    """Of 1024 units that reach a ReLU, so many go on."""
    before = -torch.ones(1, 4, 16, 16)
    before.view(-1)[:left] = 1.0
    seen = tvc.walk(nn.Sequential(nn.ReLU()), before)
    told = plates.words(seen[0])
    assert f"; {whole} of the units are silenced" in told
    assert f" {whole} of the values are exactly 0." in told
    assert str(seen).splitlines()[-1].count(tenth) == 2  # zeros and silenced
    if 0 < left < 1024:
        assert plates._headline(seen[0]).endswith(f": {whole} of its units silenced")


def test_kinds_of_steps_and_what_reached_them():
    net = randomised(
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 4, 3),
                bn=nn.BatchNorm2d(4),
                act=nn.Hardswish(),
                pool=nn.AvgPool2d(2),
                drop=nn.Dropout2d(0.5),
                flat=nn.Flatten(),
                fc=nn.Linear(4 * 6 * 4, 5),
                chance=nn.Softmax(1),
            )
        )
    )
    x = pictures(1)
    seen = tvc.walk(net, x)
    kinds = "convolution normalisation activation pooling dropout flatten dense activation"
    assert [step.kind for step in seen] == kinds.split()
    assert [each in seen for each in ("drop", seen[0], "dropped", 0)] == [True, True, False, False]
    with pytest.raises(InputError, match="the walk has no step 'dropped'; its steps are conv, bn"):
        seen["dropped"]
    values = x
    for name, part in net.named_children():
        if seen[name].before is not None:
            torch.testing.assert_close(seen[name].before, values[0])
        values = part(values)
        torch.testing.assert_close(seen[name].output, values[0])
    assert seen["drop"].identity
    assert "the identity in eval mode" in seen["drop"].words()
    assert "96; no number changes" in seen["flat"].words()
    assert "pooled from 12×8" in seen["pool"].words()
    top = net[:-1](x)[0].topk(3).indices.tolist()
    assert f"the strongest are {top[0]}, {top[1]}, {top[2]}" in seen["fc"].words()
    conv = net.conv(x).detach()
    mean, spread = conv.mean(), conv.std(correction=0)
    assert f"{float(mean):.2g} ± {float(spread):.2g} before" in seen["bn"].words()


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.ConvTranspose2d(1, 1, 2), "convolution"),
        (nn.GroupNorm(1, 2), "normalisation"),
        (nn.MultiheadAttention(4, 2), "other"),
        (nn.GELU(), "activation"),
        (nn.AdaptiveMaxPool2d(1), "pooling"),
        (nn.Identity(), "dropout"),
        (torchvision.ops.StochasticDepth(0.5, "row"), "dropout"),
        (torchvision.ops.Conv2dNormActivation(1, 1), "other"),
    ],
)
def test_kinds_by_class(module, kind):
    assert kind_of(module) == kind


def test_every_run_of_a_module_is_a_step():
    net, x = randomised(Repeated()), pictures(1)
    seen = tvc.walk(net, x)
    assert seen.names == [
        "stem", "conv", "relu", "conv@1", "relu@1", "conv@2", "relu@2",
        "mean over places after relu@2", "fc",
    ]  # fmt: skip
    values = net.stem(x)
    for call in ("", "@1", "@2"):
        values = net.conv(values)
        torch.testing.assert_close(seen[f"conv{call}"].output, values[0])
        torch.testing.assert_close(seen[f"relu{call}"].before, values[0])
        values = values.relu()


def test_a_stage_of_a_deep_network_is_followed_by_the_activation_it_ends_with():
    net = torchvision.models.resnet18().double().eval()
    x = pictures(1, height=64, width=48)
    seen = tvc.walk(net, x)
    assert seen.names[:7] == [
        "conv1", "bn1", "relu", "maxpool", "layer1", "layer1.1.relu@1", "layer2",
    ]  # fmt: skip
    with torch.no_grad():
        stem = net.maxpool(net.bn1(net.conv1(x)).relu())
        block = net.layer1[1]
        inner = net.layer1[0](stem)
        total = inner + block.bn2(block.conv2(block.bn1(block.conv1(inner)).relu()))
    last = seen["layer1.1.relu@1"]
    torch.testing.assert_close(last.before, total[0])  # after the skip, before the ReLU
    torch.testing.assert_close(last.output, seen["layer1"].output)
    assert len(seen.sparsity) == 17  # every ReLU of the network, in the stages too


def test_a_stage_that_puts_out_a_dictionary_is_walked_through_by_its_parts():
    """As the backbones of segmentation and detection networks do: there is no drawing it whole."""

    class Backbone(nn.ModuleDict):
        def forward(self, x):
            found = {}
            for name, stage in self.items():
                x = found[name] = stage(x)
            return found

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            stages = [(3, 4), (4, 5), (5, 6)]
            self.backbone = Backbone({f"stage{k}": self.stage(*s) for k, s in enumerate(stages)})
            self.head = self.stage(6, 2)  # so many convolutions that the backbone is no trunk

        def stage(self, given, made):
            first = nn.Conv2d(given, made, 3, padding=1)
            rest = (nn.Conv2d(made, made, 3, padding=1) for _ in range(10))
            return nn.Sequential(first, *rest)

        def forward(self, x):
            return self.head(self.backbone(x)["stage2"])

    net, x = randomised(Segmenter()), pictures(1, height=8, width=9)
    seen = tvc.walk(net, x)
    assert seen.names == [*(f"backbone.stage{k}" for k in range(3)), "head"]
    with torch.no_grad():
        wanted = net.backbone.stage1(net.backbone.stage0(x))[0]
    torch.testing.assert_close(seen["backbone.stage1"].output, wanted)


def test_an_activation_inside_a_layer_is_not_taken_for_its_end():
    class Block(nn.Sequential):
        is_layer = True

    net = randomised(
        nn.Sequential(
            Block(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
            Block(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        )
    )
    assert tvc.walk(net, pictures(1)).names == ["0", "1", "1.1"]


def test_asked_for_by_name_only_those_layers_are_walked_and_the_rest_does_not_run():
    net = randomised(with_part(Tripwire(at=1), after="pool1"))
    seen = tvc.walk(net, pictures(1), ["conv1", "relu1"])
    assert seen.names == ["conv1", "relu1"]
    with pytest.raises(InputError, match="conv3"):
        tvc.walk(net, pictures(1), "conv3")
    model = tvc.models.load("mnist_convnet")
    assert tvc.walk(model, torch.rand(1, 1, 28, 28), ["conv_1"]).names == ["conv_1"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize("target", [None, 1])
def test_the_network_comes_back_as_it_was_and_the_walk_is_that_of_a_network_at_rest(
    setting, target
):
    def fresh():
        return randomised(Residual(dropout=0.5), seed=7)

    found, inputs = setting(fresh()), pictures()
    with found.around(), nothing_changes(found.net, inputs):
        seen = tvc.walk(found.model, inputs, target=target)
    wanted = tvc.walk(fresh(), inputs, target=target)
    assert seen.names == wanted.names
    for step, other in zip(seen, wanted, strict=True):
        for one, two in (
            (step.output, other.output),
            (step.before, other.before),
            (step.weights, other.weights),
        ):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)
                assert not one.requires_grad


@pytest.mark.parametrize("at", [1, 2])
def test_after_an_exception_nothing_has_changed(at):
    net, inputs = randomised(with_part(Tripwire(at))), pictures(1)
    with nothing_changes(net, inputs), pytest.raises(TrippedError):
        tvc.walk(net, inputs)


def test_a_batch_is_walked_like_its_pictures_one_by_one():
    net, inputs = randomised(Residual()), pictures(3)
    for index in range(-1, 3):
        of_batch = tvc.walk(net, inputs, index=index)
        alone = tvc.walk(net, inputs[[index]])
        assert torch.equal(of_batch.input, inputs[index])
        for step, other in zip(of_batch, alone, strict=True):
            torch.testing.assert_close(step.output, other.output)
    with pytest.raises(InputError, match="no picture 3"):
        tvc.walk(net, inputs, index=3)


def test_a_channels_weight_for_a_class_is_the_mean_gradient_of_its_score():
    net, x = randomised(plain()), pictures(1)
    seen = tvc.walk(net, x, target=2)
    maps = net[:3](x).detach().requires_grad_()
    net[3:](maps)[0, 2].backward()
    wanted = maps.grad[0].mean((1, 2))
    torch.testing.assert_close(seen["pool1"].weights, wanted)
    assert seen.target == "2"
    order = seen["pool1"].weights.argsort(descending=True).tolist()
    assert tvc.render.strongest(seen["pool1"].maps, 3, seen["pool1"].weights) == order[:3]
    # On global average pooling and one linear layer it is the class's weight over the places.
    torch.testing.assert_close(seen["relu2"].weights, net.fc.weight[2] / (7 * 5))


class Aside(nn.Module):
    """Functions between its layers, and a layer that has no part in the score."""

    def __init__(self):
        super().__init__()
        self.conv, self.aside = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 3)
        self.cut = False

    def forward(self, x):
        x = F.relu(self.conv(x))
        self.aside(x)
        x = x.mean((2, 3))
        return self.fc(x.detach() if self.cut else x)


def test_only_layers_with_a_part_in_the_score_have_weights_for_a_class():
    """Neither a function, which cannot be captured, nor what leads nowhere."""
    net, x = randomised(Aside()), pictures(1)
    seen = tvc.walk(net, x, target=2)
    assert seen.names[:3] == ["conv", "relu after conv", "aside"]
    maps = net.conv(x).detach().requires_grad_()
    net.fc(maps.relu().mean((2, 3)))[0, 2].backward()
    torch.testing.assert_close(seen["conv"].weights, maps.grad[0].mean((1, 2)))
    assert seen["relu after conv"].weights is None
    assert seen["aside"].weights is None
    net.cut = True
    assert all(step.weights is None for step in tvc.walk(net, x, target=2))


def test_a_network_that_writes_into_its_input_is_walked_on_a_copy():
    net, x = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3).double()), pictures(1)
    kept = x.clone()
    seen = tvc.walk(net, x)
    assert torch.equal(x, kept)
    assert torch.equal(seen.input, kept[0])
    assert torch.equal(seen["0"].before, kept[0])


def test_a_layer_that_fails_and_is_caught_leaves_the_others_their_names():
    class Risky(nn.Module):
        def forward(self, x):
            raise ValueError("not today")

    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.risky, self.conv = Risky(), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            try:
                return self.risky(x)
            except ValueError:
                return x

    net, x = randomised(nn.Sequential(OrderedDict(block=Careful(), relu=nn.ReLU()))), pictures(1)
    seen = tvc.walk(net, x, ["block", "relu"])
    assert seen.names == ["block", "relu"]
    torch.testing.assert_close(seen["block"].output, net.block.conv(x)[0].detach())


def test_a_pooling_over_several_pieces_of_a_picture_is_not_shown_beside_one_of_them():
    class PoolPieces(nn.Module):
        def forward(self, x):
            return x.amax(0, keepdim=True)

    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = PoolPieces()

        def forward(self, x):
            return self.pool(torch.cat(x.chunk(2, 2)))

    x = pictures(1, height=8)
    step = tvc.walk(Pieces(), x, "pool")["pool"]
    assert step.before is None
    assert torch.equal(step.output, torch.maximum(x[0, :, :4], x[0, :, 4:]))


def test_channels_last_maps_are_turned_and_said_to_be():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 6, 2, stride=2)
            self.norm = nn.LayerNorm(6)
            self.mlp = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            x = self.patch(x).permute(0, 2, 3, 1)
            x = x + self.mlp(self.norm(x))
            return self.head(x.mean((1, 2)))

    net, x = randomised(Last()), pictures(1, height=28, width=20)
    seen = tvc.walk(net, x, target=1)
    assert not seen["patch"].channels_last
    hidden = seen["mlp.1"]
    assert hidden.channels_last
    inside = net.mlp[0](net.norm(net.patch(x).permute(0, 2, 3, 1)))[0]
    torch.testing.assert_close(hidden.maps_before, inside.permute(2, 0, 1))
    torch.testing.assert_close(hidden.silenced_by_channel, (inside < 0).double().mean((0, 1)))
    assert hidden.weights.shape == (9,)
    assert "channels last" in hidden.words()
    first = hidden.picture(columns=3, scale="layer")
    again = tvc.render.before_and_after(
        inside.permute(2, 0, 1), inside.clamp(min=0).permute(2, 0, 1), 3, "viridis", "layer",
        notes=[f"{100 * v:.0f} %" for v in (inside < 0).double().mean((0, 1)).tolist()],
    )  # fmt: skip
    top, bottom = first.height - again.height, again.height - 80
    assert np.array_equal(np.asarray(first)[top : top + bottom], np.asarray(again)[:bottom])


def test_as_many_channels_as_rows_and_columns_is_no_reason_to_turn_them():
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1728, 2))
    )
    seen = tvc.walk(net, pictures(1, height=14, width=14))
    assert seen["0"].output.shape == (12, 12, 12)
    assert not any(step.channels_last for step in seen)


def test_what_has_neither_maps_nor_units_is_told():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 4, 7, stride=7)
            self.mix = nn.Linear(4, 4)

        def forward(self, x):
            return self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1)

    seen = tvc.walk(randomised(Tokens()), pictures(1, height=21))
    assert seen.left_out() == [
        "mix is not drawn: it puts out 3×4, which is neither maps nor a row of units"
    ]
    assert [name for name, *_ in seen.pictures()] == ["000_patch"]


def test_what_makes_several_of_one_picture_is_told():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            halves = torch.cat(x.chunk(2, 2))
            return self.fc(self.conv(halves).mean((2, 3)).sum(0, keepdim=True))

    seen = tvc.walk(randomised(Split()), pictures(1))
    assert seen.left_out() == [
        "conv is not drawn: of one picture it makes 2×4×5×8, no batch of one",
        "mean over places after conv is not drawn: of one picture it makes 2×4, no batch of one",
    ]


class Folding(nn.Module):
    """A gate that is one number, a rectified weight, and a batch that is folded to two rows."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.7))
        self.weight = nn.Parameter(torch.tensor([-1.0, 2.0, -3.0, 0.5]))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.conv(x) * torch.sigmoid(self.gate) * torch.sigmoid(2 * self.gate))
        x = x * F.relu(self.weight)[:, None, None] * F.relu(-self.weight.double())[:, None, None]
        halves = F.relu(torch.cat(x.chunk(2, 2)) - 0.1)
        return self.fc(halves.sum((0, 2, 3))[None])


@pytest.mark.parametrize("layers", [None, ["conv", "fc@*"]])
def test_activations_that_are_not_over_the_picture_are_told_and_not_counted(layers):
    net, x = randomised(Folding()), pictures(1)
    with torch.no_grad():
        net.gate.fill_(0.7)
    seen = tvc.walk(net, x, layers)
    drawn = ["conv", "relu after conv", "fc"]
    assert seen.names == (drawn if layers is None else ["conv", "fc"])
    assert [each.name for each in seen.sparsity] == ["relu after conv"]
    share = (net.conv(x) <= 0).double().mean()
    assert seen.sparsity[0].zeros == pytest.approx(float(share), abs=1e-15)
    told = [
        "sigmoid after conv is not drawn: it is computed of weights, not of the picture",
        "sigmoid after conv is not drawn: of one picture it makes a single number, no batch of one",
        "relu after conv is not drawn: it is computed of weights, not of the picture",
        "relu after conv is not drawn: of one picture it makes 4, no batch of one",
        "relu after conv is not drawn: of one picture it makes 2×4×7×10, no batch of one",
    ]
    if layers is not None:
        told = [line.replace("drawn", "counted") for line in told if line.startswith("relu")]
    assert seen.left_out() == told


# ---- sparsity over depth --------------------------------------------------------------------------


def made_of(zeros):
    rows = tuple(Sparsity(f"relu{i}", share, None) for i, share in enumerate(zeros))
    return Walk("net", torch.zeros(3, 4, 4), (), rows)


@pytest.mark.parametrize(
    "zeros", [[0.1, 0.2, 0.5], [0.5, 0.4, 0.1, 0.2], [0.3, 0.3, 0.1, 0.9, 0.3, 0.9]]
)
def test_the_trend_is_spearmans_rank_correlation(zeros):
    wanted = spearmanr(range(len(zeros)), zeros).statistic
    assert made_of(zeros).sparsity_trend() == pytest.approx(wanted, abs=1e-12)


def test_no_trend_where_there_is_nothing_to_rank():
    assert made_of([0.1, 0.2]).sparsity_trend() is None
    assert made_of([0.5, 0.5, 0.5]).sparsity_trend() is None


def test_sparsity_and_dead_channels_are_those_of_every_relu():
    net, x = randomised(plain()), pictures(1)
    with torch.no_grad():
        net.conv1.bias[2] = -100  # a dead channel
    seen = tvc.walk(net, x)
    first, second = net[:2](x)[0].detach().numpy(), net[:5](x)[0].detach().numpy()
    for found, name, maps in zip(seen.sparsity, ("relu1", "relu2"), (first, second), strict=True):
        assert found.name == name
        assert found.zeros == pytest.approx((maps == 0).mean(), abs=1e-15)
        dead = [not channel.any() for channel in maps]
        assert found.dead == pytest.approx(np.mean(dead), abs=1e-15)
    assert seen.sparsity[0].dead >= 1 / 6
    axis = tvc.render.shares_figure(["a", "b"], {"x": [s.zeros for s in seen.sparsity]}).axes[0]
    shown = axis.lines[0].get_ydata()
    np.testing.assert_allclose(shown, [100 * (first == 0).mean(), 100 * (second == 0).mean()])


def test_dead_channels_are_counted_along_their_own_axis():
    net = randomised(ChannelsLast())
    with torch.no_grad():
        net.mix.bias[[1, 4, 7]] = -100.0
    relu = nn.Sequential(OrderedDict(patch=net.patch, turn=Permute([0, 2, 3, 1]), mix=net.mix, relu=nn.ReLU()))  # fmt: skip
    (found,) = tvc.walk(relu, pictures(1)).sparsity
    maps = relu(pictures(1))[0]
    assert maps.shape == (7, 5, 12)
    assert found.dead == float((maps == 0).all(0).all(0).double().mean()) >= 3 / 12


def test_a_walk_that_ends_early_says_nothing_of_depth():
    net, x = randomised(plain()), pictures(1)
    seen = tvc.walk(net, x, ["conv1", "relu1"])
    assert not seen.to_the_end
    assert seen.sparsity == ()
    assert seen.sparsity_picture() is None
    assert "ended before the network did" in plates.sparsity_words(seen)
    whole = tvc.walk(net, x)
    assert whole.to_the_end
    assert [each.name for each in whole.sparsity] == ["relu1", "relu2"]


@pytest.mark.parametrize("smooth", [nn.GELU(), nn.Tanh(), nn.Hardtanh(), nn.LeakyReLU()])
def test_activations_without_exact_zeros_have_no_sparsity(smooth):
    seen = tvc.walk(nn.Sequential(nn.Conv2d(3, 4, 3), smooth), torch.randn(1, 3, 8, 8))
    assert seen.sparsity == ()
    assert seen.sparsity_picture() is None
    assert "no activation" in plates.sparsity_words(seen)


@pytest.mark.parametrize(
    "clamp", [lambda x: x.clamp(min=0), lambda x: x.clamp_(0), lambda x: F.relu6(x), torch.relu_]
)
def test_every_spelling_of_relu_is_a_step(clamp):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return clamp(self.conv(x))

    net, x = randomised(Net()), pictures(1)
    seen = tvc.walk(net, x)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1].before, net.conv(x)[0])
    torch.testing.assert_close(seen[1].output, net(x)[0])
    assert len(seen.sparsity) == 1


# ---- pictures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digit():
    model = tvc.models.load("mnist_convnet")
    x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    view = Image.fromarray((255 * x[0, 0].numpy()).astype(np.uint8))
    return tvc.walk(model, x, picture=view, target=3)


def test_a_walk_is_written_with_a_page_of_every_picture(digit, tmp_path):
    page = digit.save(tmp_path / "out", top=4)
    html = page.read_text()
    shown = {part.split('"')[0] for part in html.split('src="')[1:]}
    assert shown | {"index.html"} == {path.name for path in page.parent.iterdir()}
    assert {"input.png", "sparsity.png", "004_pool_1.png"} <= shown
    assert "random weights" in html
    assert "&quot;" not in html.split("<pre>")[1].split("</pre>")[0]
    assert "pool_1 (MaxPooling2D)" in html
    # A line of the table leads to the picture of its layer.
    place = re.search(r'<a href="#([^"]+)">pool_1 \(MaxPooling2D\)</a>  +64×12×12 ', html)[1]
    assert re.search(rf'<figure id="{place}"><a href="004_pool_1.png">', html)
    assert len(re.findall(r"<figure id=", html)) == len(
        set(re.findall(r'<figure id="[^"]+"', html))
    )
    # Whoever cannot see the picture is told which layer it is of.
    told = re.search(r'src="004_pool_1.png" alt="([^"]+)"', html)
    assert told[1].startswith("pool_1, MaxPooling2D: 64 channels of 12×12, pooled from 24×24.")


@pytest.mark.parametrize("by", ["mean", "max", "variance", "weight"])
def test_the_top_channels_are_those_numpy_ranks_first(digit, by):
    step = digit["conv_1"]
    maps = step.output.double().numpy().reshape(64, -1)
    rank = {
        "mean": maps.mean(1),
        "max": maps.max(1),
        "variance": maps.var(1),
        "weight": step.weights.numpy(),
    }[by]
    wanted = np.argsort(-rank, kind="stable")[:5].tolist()
    image = {n: i for n, i, _ in digit.pictures(top=5, by=by)}["002_conv_1"]
    title = {"weight": "the 5 channels with the largest weight for class 3"}.get(
        by, f"the 5 channels with the highest {by}"
    )
    same = tvc.render.feature_maps(
        step.output, None, "viridis", channels=wanted,
        title=f"conv_1 (Conv2D) 64×24×24, {title}",
    )  # fmt: skip
    assert np.array_equal(np.asarray(image), np.asarray(same))


def test_single_channels_are_drawn_large_and_over_the_picture(digit):
    names = [name for name, *_ in digit.pictures(channels=[5, 1])]
    assert names[:2] == ["000_input_layer_channel_5", "000_input_layer_channel_1"]
    assert len(names) == 2 * 6  # every step with maps
    (_, alone, _), *_ = digit.pictures(channels=[5])
    (_, over, _), *_ = digit.pictures(channels=[5], over=True)
    for shown, picture in ((alone, None), (over, digit.picture)):
        wanted = tvc.render.feature_map(
            digit["input_layer"].output[5], "viridis", picture=picture,
            title="input_layer (Conv2D), channel 5",
        )  # fmt: skip
        assert np.array_equal(np.asarray(shown), np.asarray(wanted))
    assert not np.array_equal(np.asarray(alone)[40:300, 40:300], np.asarray(over)[40:300, 40:300])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "size"}, "ranked by mean, max, variance, weight"),
        ({"top": 0}, "at least 1"),
        ({"columns": -1}, "columns must be"),
        ({"columns": 2.5}, "columns must be"),
        ({"scale": "bad"}, "scale must be 'channel', 'layer' or"),
        ({"scale": (2.0, 1.0)}, "scale must be"),
        ({"scale": ("a", "b")}, "scale must be"),
        ({"colormap": "virdis"}, "viridis"),
        ({"channels": [32]}, "input_layer has no channel 32"),
        ({"over": True}, "say which channels"),
        ({"by": "variance"}, "say how many, top=16"),
        ({"channels": [1], "columns": 4}, "columns is for grids of channels"),
    ],
)
def test_bad_options_are_told_before_anything_is_drawn(digit, options, words):
    with pytest.raises(InputError, match=words):
        digit.pictures(**options)


def test_what_needs_a_picture_or_a_class_says_so():
    seen = tvc.walk(randomised(plain()), pictures(1))
    with pytest.raises(InputError, match="give walk\\(\\) the picture"):
        seen.pictures(channels=[0], over=True)
    with pytest.raises(InputError, match="give walk\\(\\) a target"):
        seen.pictures(by="weight", top=2)
    with pytest.raises(InputError, match="one class"):
        tvc.walk(randomised(plain()), pictures(1), target=[1, 2])


def test_the_class_scores_are_bars_with_the_names_of_the_classes(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        plates.render, "units", lambda values, *_, **options: drawn.append((values, options))
    )
    values = torch.linspace(0, 1, 30)
    names = [f"class {i}" for i in range(30)]
    step = Step("fc", "Linear", "dense", values, answer="score")
    plates.drawn(step, plates.Drawing(), names)
    assert torch.equal(drawn[0][0], values)
    assert drawn[0][1]["names"] == [f"{i} class {i}" for i in range(30)]
    assert drawn[0][1]["top"] == 20


CREATURES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("layers", [None, ["hidden", "fc"], ["fc"], ["hidden"]])
@pytest.mark.parametrize(
    ("head", "answers"),
    [
        ([], {"fc": "score"}),
        ([nn.Softmax(1)], {"fc": "score", "0": "probability"}),
        ([nn.LogSoftmax(1)], {"fc": "score", "0": "score"}),
        ([nn.Sigmoid()], {"fc": "score", "0": "probability"}),
        ([nn.Dropout(), nn.ReLU()], {"1": "score"}),
    ],
)
def test_only_the_networks_own_scores_have_the_names_of_classes(layers, head, answers):
    """A hidden layer of as many units says nothing of classes."""
    net = randomised(
        nn.Sequential(
            OrderedDict(
                flat=nn.Flatten(),
                hidden=nn.Linear(3 * 14 * 10, 4),
                relu=nn.ReLU(),
                fc=nn.Linear(4, 4),
                **{str(i): part for i, part in enumerate(head)},
            )
        )
    )
    net.fc.bias.data[0] = -20.0  # or the last ReLU would change nothing
    model = tvc.Model(net, Preprocess((14, 10)), (3, 14, 10), classes=CREATURES)
    seen = tvc.walk(model, pictures(1), layers)
    wanted = answers if layers is None else {k: v for k, v in answers.items() if k in layers}
    assert {step.name: step.answer for step in seen if step.answer} == wanted


@pytest.mark.parametrize("layers", [None, ["fc"]])
def test_the_one_score_of_a_network_of_two_classes_is_its_answer(layers):
    """Asked for alone too: only what the network puts out tells that it was the last."""
    parts = OrderedDict(flat=nn.Flatten(), fc=nn.Linear(3 * 14 * 10, 1), sigmoid=nn.Sigmoid())
    model = tvc.Model(
        randomised(nn.Sequential(parts)), Preprocess((14, 10)), (3, 14, 10), classes=("cat", "dog")
    )
    assert tvc.walk(model, pictures(1), layers)["fc"].answer == "score"


def test_a_softmax_on_the_way_is_not_taken_for_the_end():
    net = randomised(Between(lambda x: x.mean((2, 3)).softmax(1)))
    seen = tvc.walk(net, pictures(1))
    assert {step.name: step.answer for step in seen if step.answer} == {"fc": "score"}


@pytest.mark.parametrize("first", [True, False])
def test_an_answer_is_known_in_the_higher_precision_it_is_put_out_in(first):
    class Double(Between):
        def forward(self, x):
            scores = super().forward(x)
            return scores.double().softmax(1) if first else scores.softmax(1).double()

    net = randomised(Double(lambda x: x.mean((2, 3)))).float()
    seen = tvc.walk(net, pictures(1).float())
    assert {step.name: step.answer for step in seen if step.answer} == {
        "fc": "score",
        "softmax after fc": "probability",
    }


def test_the_words_beside_the_bars_are_the_classes_of_the_answer(monkeypatch):
    written = []
    body = np.zeros((9, 9, 3), np.uint8)
    monkeypatch.setattr(bars, "_bars", lambda _array, names: written.append(list(names)) or body)
    values = torch.tensor([0.3, -0.2, 0.8, 0.1])

    def beside(classes, *step, **more):
        written.clear()
        plates.drawn(Step("fc", *step, **more), plates.Drawing(), classes)
        return written

    dense, sigmoid = ("Linear", "dense"), ("Sigmoid", "activation")
    assert beside(CREATURES, *dense, values) == [["0", "1", "2", "3"]]
    named = ["0 ant", "1 bee", "2 cat", "3 dog"]
    assert beside(CREATURES, *dense, values, answer="score") == [named]
    one = torch.tensor([0.8])
    assert beside(("cat", "dog"), *dense, one, answer="probability") == [["P(dog)"]]
    assert beside(("cat", "dog"), *dense, one, answer="score") == [["score of dog"]]
    assert beside(("cat", "dog"), *dense, one) == [["0"]]
    assert beside(("cat", "dog"), *sigmoid, one, one.logit(), answer="probability") == [["dog"]] * 2


def test_chances_of_many_classes_are_bars_of_the_largest(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        plates.render,
        "units_before_and_after",
        lambda before, after, *_, **options: drawn.append((before, after, options)),
    )
    scores = torch.linspace(-3, 5, 100).flip(0).roll(7)
    step = Step("prob", "Softmax", "activation", scores.softmax(0), scores)
    plates.drawn(step, plates.Drawing())
    before, after, options = drawn[0]
    order = scores.argsort(descending=True)[:20]
    assert torch.equal(before, scores[order])
    assert torch.equal(after, scores.softmax(0)[order])
    assert options["names"] == [str(int(i)) for i in order]


def test_bars_of_the_largest_units_stand_in_their_order():
    values = torch.tensor([0.1, 0.9, 0.5, 0.7])
    few = np.asarray(tvc.render.units(values, top=2))
    blue = (few == (49, 104, 142)).all(2).sum(1)
    lengths = [int(n) for n, before in zip(blue[1:], blue, strict=False) if n and not before]
    assert len(lengths) == 2
    assert lengths[0] / lengths[1] == pytest.approx(0.9 / 0.7, rel=0.02)


def test_a_wide_picture_is_walked_and_drawn():
    net = randomised(plain()).float()
    seen = tvc.walk(net, torch.randn(1, 3, 12, 200))
    for name, image, text in seen.pictures():
        assert image.width < 4000, name
        assert text.endswith(".")
    pool = {n: i for n, i, _ in seen.pictures()}["002_pool1"]
    assert pool.width > 300


def test_a_network_that_puts_out_nan_is_walked_and_drawn():
    """It is what one looks at most closely."""
    net = randomised(plain())
    with torch.no_grad():
        net.conv2.weight[3, 0, 0, 0] = torch.nan
        net.fc.bias[1] = torch.inf
    seen = tvc.walk(net, pictures(1))
    images = {name[4:]: np.asarray(image).astype(int) for name, image, _ in seen.pictures()}
    broken = {name for name, array in images.items() if (array == (255, 0, 255)).all(2).any()}
    assert broken == {"conv2", "relu2", "gap", "flatten", "fc"}
    assert len(str(seen).splitlines()) == 2 + len(seen)


def test_nan_goes_on_through_dropout_and_a_closing_activation_like_any_number():
    """NaN is not equal to itself; that what went on is what came is another question."""

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).relu()

    net = nn.Sequential(Closed(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 3))
    with torch.no_grad():
        net[0].conv.weight[2] = torch.nan
    seen = walk_through(net.double(), pictures(1)[:, :, :8, :8], ["0", "1", "3"], whole=True)
    assert seen["1"].identity
    assert "goes on unchanged" in seen["1"].words()
    assert seen.names[:3] == ["0", "relu after 0.conv", "1"]
    changed = replace(seen["1"], before=seen["1"].before.nan_to_num(1.0))
    assert not changed.identity


@pytest.mark.parametrize("index", [0.0, "a", None, True, 1, -2])
def test_what_is_no_number_of_a_picture_is_said(index):
    with pytest.raises(tvc.InputError, match=r"there is no picture .*: 1 were given"):
        tvc.walk(randomised(plain()), pictures(1), index=index)


@pytest.mark.parametrize("by", ["mean", "max", "variance", "weight"])
def test_channels_with_nan_come_last_by_whichever_measure_they_are_ranked(by):
    """Of these nothing can be said, neither that they are strong nor weak."""
    maps = torch.arange(4.0)[:, None, None].repeat(1, 3, 3) * torch.rand(3, 3)
    maps[2, 1, 1] = maps[1] = torch.nan
    asked = torch.tensor([0.0, torch.nan, torch.nan, 3.0]) if by == "weight" else by
    assert tvc.render.strongest(maps, by=asked) == [3, 0, 1, 2]


def test_a_table_of_the_walk_has_every_step(digit):
    lines = str(digit).splitlines()
    assert len(lines) == 2 + len(digit)
    row = next(line for line in lines if line.startswith("conv_1.act (ReLU)"))
    share = float((digit["conv_1"].output == 0).double().mean())
    assert f"{100 * share:.1f} %" in row


def test_before_and_after_have_one_scale_and_stand_side_by_side():
    before = np.array([[[-1.0, 0.0], [0.5, 1.0]]])
    picture = tvc.render.before_and_after(before, np.maximum(before, 0), colormap="gray")
    array = np.asarray(picture).astype(int)
    # Cells of 20 pixels below the number; the pair has a gap of 2.
    y, x = 10 + 15, 10

    def at(half, row, column):
        return int(array[y + 20 * row + 5, x + half * 42 + 20 * column + 5, 0])

    gray = colorize((before[0] + 1) / 2, "gray")[..., 0].astype(int)
    assert [[at(0, r, c) for c in (0, 1)] for r in (0, 1)] == gray.tolist()
    zero = int(colorize(np.array(0.5), "gray")[0])
    assert [[at(1, r, c) for c in (0, 1)] for r in (0, 1)] == [[zero, zero], gray[1].tolist()]


@pytest.mark.parametrize("scale", ["channel", "layer"])
def test_the_scale_of_a_pair_reaches_over_what_comes_out_as_well(scale):
    before = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    array = np.asarray(tvc.render.before_and_after(before, 2 * before - 1, scale=scale)).astype(int)
    middle = [array[25 + 5, 10 + x, 0] for x in (5, 25, 47, 67)]
    wanted = colorize(np.array([1 / 2, 1.0, 0.0, 1.0]), "gray")[:, 0].tolist()
    assert middle == wanted  # 0, 1 beside −1, 1


def test_a_pooled_map_is_as_much_smaller_as_it_is():
    before = np.linspace(0.2, 0.8, 4 * 48 * 60).reshape(4, 48, 60)
    after = before.reshape(4, 24, 2, 30, 2).max((2, 4))
    array = np.asarray(tvc.render.before_and_after(before, after, 1, scale=(0.0, 1.0)))
    cell = array[25 : 25 + 48, 10 : 10 + 60 + 2 + 30].astype(int)
    paper = (cell == 255).all(2)
    assert not paper[:, :60].any()
    assert paper[:, 60:62].all()
    assert not paper[:24, 62:].any()
    assert paper[24:, 62:].all()


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.before_and_after(np.zeros((2, 4, 4)), np.zeros((3, 4, 4))),
        lambda r: r.before_and_after(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), notes=["a"]),
        lambda r: r.before_and_after(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), columns=0),
        lambda r: r.feature_map(np.zeros((1, 4, 4))),
        lambda r: r.strongest(np.zeros((2, 4, 4)), by="size"),
        lambda r: r.strongest(np.zeros((2, 4, 4)), by=[1.0]),
        lambda r: r.units_before_and_after(np.zeros(3), np.zeros(4)),
        lambda r: r.units_before_and_after(np.zeros(3), np.zeros(3), labels=["a"]),
        lambda r: r.shares_figure([], {"x": []}),
        lambda r: r.filters(np.zeros((2, 3, 4))),
        lambda r: r.filters(np.zeros((2, 4, 3, 3)), rgb=True),
        lambda r: r.filters(np.zeros((2, 4, 3, 3)), scale="channel"),
        lambda r: r.filters(np.zeros((2, 4, 3, 3)), chosen=[2]),
        lambda r: r.filters(np.zeros((2, 4, 3, 3)), inputs=[4]),
        lambda r: r.filters(np.zeros((2, 3, 3, 3)), inputs=[0, 1]),
        lambda r: r.filters(np.zeros((2, 1, 3, 3)), colormap="virdis"),
    ],
)
def test_bad_drawings_are_sentences(call):
    with pytest.raises(InputError):
        call(tvc.render)


def test_a_dead_channel_is_crossed_out_twice_and_counted():
    maps = np.zeros((3, 8, 8), np.float32)
    maps[1] = 3.0
    maps[2, :4] = 1.0
    array = np.asarray(tvc.render.feature_maps(maps, columns=3, numbers=False)).astype(int)

    def marks(channel):
        cell = array[10:50, 10 + 44 * channel : 50 + 44 * channel]
        red = (cell[..., 0] == 200) & (cell[..., 1] == 60)
        return bool(red[2, 2]), bool(red[2, 37])

    assert marks(0) == (True, True)
    assert marks(1) == (True, False)
    assert marks(2) == (False, False)


def test_both_maps_of_a_pair_are_crossed_out_and_counted_each_for_itself(monkeypatch):
    from torchviz_cnn.render import grids

    feet = []
    monkeypatch.setattr(
        grids, "framed", lambda *given: feet.append(given[2]) or paper.framed(*given)
    )
    before = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    before[0] = 0.0
    before[1] = -1.0
    after = np.maximum(before, 0)[:, ::2, ::2]
    after[2] = 0.5
    array = np.asarray(tvc.render.before_and_after(before, after, columns=4)).astype(int)
    red = (array[..., 0] == 200) & (array[..., 1] == 60)

    def marks(channel, half):
        # 40 pixels, 2 between, 20 pixels, 12 before the next pair; 15 above for its number.
        left, side = (10 + 74 * channel, 40) if half == 0 else (10 + 74 * channel + 42, 20)
        cell = red[25 : 25 + side, left : left + side]
        return bool(cell[2, 2]), bool(cell[2, side - 3])

    once, twice, bare = (True, False), (True, True), (False, False)
    assert [marks(channel, 0) for channel in range(4)] == [twice, once, bare, bare]
    assert [marks(channel, 1) for channel in range(4)] == [twice, twice, once, bare]
    assert "before: 1 of 4 channels are 0 everywhere (crossed out twice)" in feet[0]
    assert "before: 1 of 4 the same everywhere, not 0 (crossed out)" in feet[0]
    assert "after: 2 of 4 channels are 0 everywhere (crossed out twice)" in feet[0]
    assert "after: 1 of 4 the same everywhere, not 0 (crossed out)" in feet[0]


def test_one_channel_large_keeps_its_colours_and_lies_over_the_picture():
    values = np.array([[0.0, 2.0], [6.0, 8.0]])
    array = np.asarray(tvc.render.feature_map(values, "viridis"))
    side = 448 // 2
    for row in (0, 1):
        for column in (0, 1):
            wanted = colorize(np.array(values[row, column] / 8), "viridis")
            found = array[10 + side * row + 5, 10 + side * column + 5]
            assert np.array_equal(found, wanted)
    white = Image.new("RGB", (40, 40), "white")
    over = np.asarray(tvc.render.feature_map(values, "gray", picture=white, alpha=0.5))
    assert over[12, 12, 0] == pytest.approx(0.5 * 255, abs=2)  # half of white, half of 0
    assert over[10 + 430, 10 + 430, 0] == 255


# ---- filters --------------------------------------------------------------------------------------


def test_filters_are_the_weights_and_their_norms():
    net = randomised(plain())
    found = tvc.filters(net, "conv2")
    assert torch.equal(found.weight, net.conv2.weight)
    assert found.weight.data_ptr() != net.conv2.weight.data_ptr()
    wanted = np.sqrt((net.conv2.weight.detach().numpy() ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(found.norms.numpy(), wanted)
    assert f"norms from {wanted.min():.3g} to {wanted.max():.3g}" in str(found)
    with torch.no_grad():
        net.conv2.weight[:] = 0
        net.conv2.weight[1:, 0, 0, 0] = 4231.7
    assert str(tvc.filters(net, "conv2")).endswith("norms from 0 to 4230")


def test_a_table_without_shapes_says_how_to_get_them():
    net = randomised(plain())
    assert "input_size=" in str(tvc.layers(net)).splitlines()[-1]
    assert "input_size=" not in str(tvc.layers(net, input_size=(3, 11, 13)))


def test_what_an_interpreter_or_a_notebook_shows_is_to_be_read():
    """Tables, not the numbers in them by the thousand; filters as a picture."""
    net, x = randomised(plain()), pictures(2)
    table, steps = tvc.layers(net, input_size=tuple(x.shape[1:])), tvc.walk(net, x)
    style, kernels = tvc.style_distance(net, x[:1], x[1:], "conv*"), tvc.filters(net, "conv1")
    for shown in (table, steps, style, kernels):
        assert repr(shown) == str(shown)
    assert repr(table).splitlines()[-1].startswith("Multiply-adds")
    assert (
        repr(steps["conv2"])
        == f"Step(conv2, Conv2d, {'×'.join(map(str, steps['conv2'].output.shape))})"
    )
    picture = Image.open(io.BytesIO(kernels._repr_png_()))
    assert np.array_equal(np.asarray(picture), np.asarray(kernels.picture()))


@pytest.mark.parametrize(("groups", "given", "made"), [(1, 4, 6), (2, 4, 6), (4, 4, 4)])
def test_filters_of_a_transposed_convolution_are_those_it_adds_with(groups, given, made):
    """A single 1 in one input channel paints that channel's kernel into every output of its group."""
    net = randomised(nn.Sequential(nn.ConvTranspose2d(given, made, 3, groups=groups)))
    weight = tvc.filters(net, "0").weight
    for channel in range(given):
        x = torch.zeros(1, given, 1, 1, dtype=torch.float64)
        x[0, channel] = 1
        painted = net(x)[0] - net[0].bias[:, None, None]
        group, inside = divmod(channel, given // groups)
        for out in range(made):
            mine = out // (made // groups) == group
            wanted = weight[out, inside] if mine else torch.zeros(3, 3, dtype=torch.float64)
            torch.testing.assert_close(painted[out], wanted)


def test_looking_at_filters_changes_nothing_of_a_network_in_training():
    """In training mode, to read a weight of spectral norm's is to take a step of its iteration."""
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = tvc.filters(net, "0")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert net[0].training
    assert torch.equal(found.weight, net.eval()[0].weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm", "prune"])
def test_filters_are_those_of_the_weights_that_were_loaded_last(way):
    """Torch's older ways compute the weight in a hook, when the network runs next."""

    def made():
        convolution = nn.Conv2d(2, 3, 3, bias=False)
        if way == "prune":
            return nn.Sequential(random_unstructured(convolution, "weight", 0.5))
        return nn.Sequential(getattr(nn.utils, way)(convolution))

    net, x = made(), torch.randn(1, 2, 3, 3)
    net.load_state_dict(made().state_dict())
    before = net[0].weight
    found = tvc.filters(net, "0").weight
    assert net[0].weight is before
    wanted = net.eval()(x).flatten()
    assert not torch.allclose(before.flatten(1) @ x.flatten(), wanted)
    torch.testing.assert_close(found.flatten(1) @ x.flatten(), wanted)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("b.jpeg", "JPEG")]
)
def test_filters_are_saved_as_what_their_name_says(tmp_path, name, kind):
    kernels = tvc.filters(randomised(plain()), "conv1")
    path = kernels.save(tmp_path / name)
    with Image.open(path) as image:
        assert image.format == kind
        assert image.size == kernels.picture().size
    with pytest.raises(InputError, match=r"'a\.gif': the name must end in \.png or \.jpg"):
        kernels.save(tmp_path / "a.gif")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_which_layers_have_filters():
    model = tvc.models.load("cat_dog_small")
    assert tvc.filters(model, "conv2d_1").layer == "conv2d_1"
    assert tvc.filters(model, "conv2d_1").weight.shape == (8, 3, 3, 3)
    with pytest.raises(InputError, match=r"'dense_1' is no convolution .*'conv2d_1.conv'"):
        tvc.filters(model, "dense_1")
    net = torchvision.models.resnet18()
    with pytest.raises(InputError, match=r"'layer1' holds 4 convolutions; .*'layer1.0.conv1'"):
        tvc.filters(net, "layer1")
    with pytest.raises(InputError, match="did you mean"):
        tvc.filters(net, "conv11")


def test_colour_kernels_have_gray_for_0_and_the_channels_as_asked():
    weight = np.zeros((2, 3, 2, 2))
    weight[0, 0] = 1.0  # a red filter
    weight[1, 2, 0] = -0.5
    array = np.asarray(tvc.render.filters(weight)).astype(int)
    y, x, side = 25, 10, 36
    assert array[y + 3, x + 3].tolist() == [255, 128, 128]
    blue_first = np.asarray(tvc.render.filters(weight, inputs=(2, 1, 0))).astype(int)
    assert blue_first[y + 3, x + 3].tolist() == [128, 128, 255]
    second = np.nonzero((array[y + 3] != 255).any(1) & (np.arange(array.shape[1]) > x + side))[0][0]
    assert array[y + 3, second + 3].tolist() == [128, 128, 0]  # its own scale
    assert array[y + side - 3, second + 3].tolist() == [128, 128, 128]
    together = np.asarray(tvc.render.filters(weight, scale="layer")).astype(int)
    assert together[y + 3, second + 3, 2] == pytest.approx(64, abs=1)


def test_a_table_of_kernels_has_a_row_for_each_filter_and_a_column_for_each_input():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 5, 3, 3))
    array = np.asarray(tvc.render.filters(weight, scale="layer", colormap="seismic"))
    limit = np.abs(weight).max()
    colors = colorize(weight / limit, "seismic", -1.0, 1.0)
    ground = (array == 226).all(2)
    top = np.nonzero(ground.sum(1) > 90)[0][0]  # a whole line between kernels, no edge of a letter
    left = np.nonzero(ground[top])[0][0]
    for row in range(3):
        for column in range(5):
            y, x = top + 2 + 20 * row, left + 2 + 20 * column
            cell = array[y : y + 18, x : x + 18][3::6, 3::6]
            assert np.array_equal(cell, colors[row, column])


@pytest.mark.parametrize(
    "shape", [(512, 512, 3, 3), (2048, 512, 1, 1), (64, 1, 3, 3), (4, 130, 1, 5)]
)
def test_pictures_of_large_layers_fit_a_screen_and_say_what_they_leave_out(monkeypatch, shape):
    feet = []
    monkeypatch.setattr(
        kernel_room, "framed", lambda *given: feet.append(given[2]) or paper.framed(*given)
    )
    picture = tvc.Filters("conv", torch.randn(shape), None).picture(scale="layer")
    assert max(picture.size) < 2600
    assert ("64 of" in feet[0]) == (shape[0] > 64 or shape[1] > 64)
    assert (f"64 of {shape[0]} filters" in feet[0]) == (shape[0] > 64)
    assert (f"64 of {shape[1]} input channels" in feet[0]) == (shape[1] > 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chosen": [999]}, "there is no filter 999: there are 20"),
        ({"chosen": [-1]}, "there is no filter -1"),
        ({"chosen": []}, "no filter to draw"),
        ({"inputs": [130]}, "there is no input channel 130"),
        ({"top": 0}, "top must be .* at least 1, not 0"),
        ({"top": -1}, "top must be .* at least 1, not -1"),
        ({"columns": 0}, "columns must be .* at least 1, not 0"),
    ],
)
@pytest.mark.parametrize("channels", [3, 130])
def test_filters_that_are_not_there_are_told(channels, options, words):
    kernels = tvc.Filters("conv", torch.randn(20, channels, 3, 3), None)
    with pytest.raises(InputError, match=words):
        kernels.picture(**options)


@pytest.mark.parametrize(
    "shape", [(512, 512, 3, 3), (2048, 512, 1, 1), (64, 1, 3, 3), (4, 130, 1, 5)]
)
def test_large_layers_show_their_strongest_filters_and_input_channels(monkeypatch, shape):
    """Which of them, and in which order, as NumPy finds them."""
    drawn = []
    monkeypatch.setattr(
        render_room, "filters", lambda weight, **options: drawn.append((weight, options))
    )
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draw) * torch.rand(shape[:2], generator=draw)[..., None, None]  # fmt: skip
    kernels = tvc.Filters("conv", weight, None)
    squares = weight.double().numpy() ** 2
    strongest = np.argsort(-squares.sum((1, 2, 3)), kind="stable").tolist()
    for top, most in ((None, 64 if shape[1] > 1 else 10**9), (2, 2)):
        kernels.picture(top=top)
        given, options = drawn.pop()
        assert given is weight
        chosen = options["chosen"]
        shown = min(most, shape[0])
        assert (chosen or list(range(shape[0]))) == (
            strongest[:shown] if shown < shape[0] else list(range(shape[0]))
        )
        rows = squares if chosen is None else squares[chosen]
        best = np.argsort(-rows.sum((0, 2, 3)), kind="stable")[:64]
        assert options["inputs"] == (sorted(best.tolist()) if shape[1] > 64 else None)


@pytest.mark.parametrize(
    ("shape", "options", "shown"),
    [
        ((5000, 1, 1, 1), {}, 5000),  # a picture each, however many
        ((1500, 3, 1, 1), {}, 1500),
        ((1500, 3, 1, 1), {"rgb": False}, 4096 // 3),  # a row of three each
        ((600, 512, 1, 1), {"inputs": range(8)}, 4096 // 8),
        ((600, 512, 1, 1), {}, 4096 // 64),
    ],
)
def test_as_many_filters_are_shown_as_make_4096_kernels(monkeypatch, shape, options, shown):
    drawn = []
    monkeypatch.setattr(
        render_room, "filters", lambda weight, **options: drawn.append(options["chosen"])
    )
    tvc.Filters("conv", torch.randn(shape), None).picture(**options)
    assert len(drawn[0] or range(shape[0])) == shown


def test_filters_along_one_axis_are_one_row_high():
    net = nn.Sequential(nn.Conv1d(2, 3, 5))
    found = tvc.filters(net, "0")
    assert found.weight.shape == (3, 2, 1, 5)
    assert torch.equal(found.weight[:, :, 0], net[0].weight)


def test_looking_at_filters_runs_no_hook_of_the_users():
    net, ran = nn.Sequential(nn.Conv2d(1, 2, 3)), []
    net[0].register_forward_pre_hook(lambda *given: ran.append(given))
    tvc.filters(net, "0")
    assert not ran


def test_a_convolution_and_what_holds_it_alone_are_one_layer_with_filters():
    blocks = [OrderedDict(conv=nn.Conv2d(3, 3, 1), relu=nn.ReLU()) for _ in range(2)]
    net = nn.Sequential(OrderedDict(zip("ab", map(nn.Sequential, blocks), strict=True)))
    assert convolutions(net, "*") == ["a", "b"]
    assert convolutions(net, "*.conv") == ["a.conv", "b.conv"]


def test_filters_from_the_command_line(tmp_path, monkeypatch, capsys):
    from torchviz_cnn import cli

    monkeypatch.chdir(tmp_path)
    words = [
        "torchviz-cnn",
        "filters",
        "cat_dog_small",
        "-l",
        "conv2d_1",
        "-l",
        "conv2d_2",
        "-o",
        "o",
    ]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code in (0, None)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "filters_conv2d_1.png",
        "filters_conv2d_2.png",
    ]
    assert "conv2d_2: 16 filters over 8 input channels, 3×3; norms from" in capsys.readouterr().out
    for bad, said in (
        (["-l", "dense_1"], "is no convolution"),
        (["-l", "conv2d_1", "--scale", "x"], "--scale must be"),
        (["-l", "conv2d_1", "--colormap", "virdis"], "viridis"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["torchviz-cnn", "filters", "cat_dog_small", *bad, "-o", "p"]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("count", [2, 17, 120])
def test_nothing_overlaps_in_the_plot_over_depth(count):
    names = [f"features.denseblock{i}.layer{i}.relu after a long name" for i in range(count)]
    rng = np.random.default_rng(0)
    shares = {
        "values that are exactly 0": rng.random(count),
        "channels that are 0": rng.random(count),
    }
    figure = tvc.render.shares_figure(names, shares, title="whether it increases " * 6)
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    axis = figure.axes[0]
    plot, legend = axis.get_tightbbox(), figure.legends[0].get_window_extent()
    title = figure._suptitle.get_window_extent()
    assert legend.y1 <= plot.y0 + 1
    assert title.y0 >= plot.y1 - 1
    assert (plot.x0 >= 0, plot.x1 <= width, legend.y0 >= 0, title.y1 <= height) == (True,) * 4
    assert axis.get_window_extent().height > 60  # room is left for the lines themselves
    labels = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(labels))


def test_notes_wider_than_their_maps_do_not_run_into_each_other():
    maps = np.zeros((6, 40, 2), np.float32)
    maps[:, ::2] = 1
    array = np.asarray(
        tvc.render.before_and_after(maps, maps, 3, notes=["100 % of it"] * 6)
    ).astype(int)
    strip = (array[10:24, 10:-10, 0] < 160).any(0)
    gaps, length = [], 0
    for dark in strip[: np.nonzero(strip)[0][-1] + 1]:
        length = 0 if dark else length + 1
        gaps.append(length)
    assert sum(gap == 12 for gap in gaps) == 2  # three labels, apart by the gap between pairs


@pytest.mark.parametrize(
    ("shape", "size", "widths", "last"),
    [
        ((56, 56, 96), (224, 224), {96}, True),
        ((28, 14, 96), (224, 112), {96}, True),
        ((30, 32, 96), (224, 224), {96}, True),  # padded: as wide as high to a tenth,
        ((4, 5, 96), (28, 28), {96}, True),  # or to a cell
        ((30, 34, 96), (224, 224), {96}, False),
        ((4, 6, 96), (28, 28), {96}, False),
        ((96, 56, 56), (224, 224), {96}, False),
        ((12, 12, 12), (14, 14), {12}, False),  # it may be either: the usual order
        ((12, 12, 7), (14, 14), {9}, False),  # no layer works along that axis
        ((12, 14, 7), (14, 28), {7}, False),
        ((96, 56), (224, 224), {56}, False),
    ],
)
def test_which_outputs_have_their_channels_last(shape, size, widths, last):
    assert channels_last(shape, size, widths) is last


def test_layers_that_work_along_the_last_axis_say_how_wide_it_is():
    layers = [nn.LayerNorm((7, 6)), nn.Linear(4, 5), nn.GroupNorm(1, 8), nn.Conv2d(9, 10, 1)]
    assert widths_of(nn.Sequential(*layers)) == {4, 5, 6}


def test_nan_is_no_strong_unit_and_a_row_of_it_is_in_the_same_order():
    """Units behind a flatten, some NaN: named are those with the highest numbers."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(torch.tensor([2.0, torch.nan, 9.0, 4.0, torch.nan]))
    seen = tvc.walk(net, torch.tensor([[[[1.0, torch.nan], [0.0, 2.0]]]]).nan_to_num(3.0))
    assert "the strongest are 2, 3, 0" in seen["1"].words()
    flat = seen["0"]
    with_nan = torch.where(flat.output == 3.0, torch.nan, flat.output)
    holed = replace(flat, before=with_nan.reshape(flat.before.shape), output=with_nan)
    assert "no number changes" in holed.words()
    mixed = replace(holed, output=with_nan.flip(-1))
    assert "in another order" in mixed.words()


def test_units_that_are_whole_numbers_are_ranked_like_any():
    class Ranks(nn.Module):
        def forward(self, x):
            return x.argsort(1)

    net = nn.Sequential(nn.Flatten(), Ranks())
    seen = tvc.walk(net, torch.tensor([[[[0.5, 0.1], [0.9, 0.3]]]]))
    assert seen["1"].output.tolist() == [1, 3, 0, 2]
    assert "the strongest are 1, 3, 0" in seen["1"].words()
