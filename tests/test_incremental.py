"""Incremental occlusion gives the numbers of running the whole network for every window.

The oracle is the dense engine, which knows nothing of geometry. Everything is in double precision,
and the windows reach corners, edges and the interior, and stand over the border.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import accumulate, product
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrizations import weight_norm
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

import torchviz_cnn as tvc
from tests.calls import shapes_given
from tests.networks import (
    CLASSES,
    HEADS,
    Functional,
    Gray,
    Headed,
    Normalising,
    Repeated,
    Residual,
    Through,
    pictures,
    plain,
    randomised,
)
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.methods import grouping, incremental
from torchviz_cnn.methods.grouping import even_groups
from torchviz_cnn.methods.incremental import Engine
from torchviz_cnn.methods.local import Reach
from torchviz_cnn.methods.plans import Request

WINDOWS = {"window": (5, 4), "stride": (3, 2), "fill": 0.3}


def differ(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, of the largest number."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def compared(net: nn.Module, x: Tensor, target: Any = 1, **options: Any) -> tuple[Any, Any]:
    """Both engines' answers, after seeing that they agree and that something was to be seen."""
    options = WINDOWS | options
    dense = tvc.occlusion(net, x, target, engine="dense", **options)
    found = tvc.occlusion(net, x, target, engine="incremental", **options)
    assert dense.values.abs().max() > 0
    assert differ(found.values + found.score.max(), dense.values + found.score.max()) < 1e-12
    assert differ(found.score, dense.score) < 1e-12
    if dense.scores is not None:
        assert differ(found.scores, dense.scores) < 1e-12
    assert found.kind == dense.kind
    assert (found.window, found.stride) == (dense.window, dense.stride)
    return found, dense


def parts(net: nn.Module, x: Tensor, window: Any = (5, 4), stride: Any = (3, 2)) -> set[str]:
    """The names of the nodes that are computed in part."""
    rows, columns = (-(-(x.shape[2 + i] - window[i]) // stride[i]) + 1 for i in (0, 1))
    with undisturbed(net, x):
        engine = Engine(net, x, Request(window, stride, (rows, columns), 25))
    return {node.name for node in engine.plan.spans}


class Body(nn.Module):
    """Two convolutions, something in between, and a head that sees where things are."""

    def __init__(self, between: nn.Module, channels: int = 4, size: tuple[int, int] = (31, 26)):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.between = between
        self.conv = nn.Conv2d(channels, 5, 3)
        with torch.no_grad():
            shape = self.conv(between(self.stem(torch.zeros(1, 3, *size)))).shape
        self.fc = nn.Linear(shape[1:].numel(), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.between(self.stem(x))).flatten(1))


class Skip(nn.Module):
    """A residual branch that reaches further than the way around it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 5, padding=2, groups=2)
        self.relu = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.bn(self.conv1(x))))
        if self.in_place:
            out += x
        else:
            out = out + x
        return self.relu(out)


class Concat(nn.Module):
    """Three branches of different reach."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), F.relu(self.three(x), inplace=True), self.pool(x)], 1)


class Scaled(nn.Module):
    """Fixed tensors, differences and products of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.conv(x))
        return (x * self.scale - 2 * y) * y + 1


class Sliced(nn.Module):
    """Channels taken out and put together, as some networks change their input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 2].unsqueeze(1) * 2 + 1, x[:, 1:3], x[:, 0, None]], dim=-3)


class Padded(nn.Module):
    """Padding of its own, more behind than in front."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 2, 3), value=0.7), 2)


def shuffled(x: Tensor) -> Tensor:
    """As ShuffleNet has it."""
    n, channels, rows, columns = x.shape
    x = x.view(n, 2, channels // 2, rows, columns)
    return torch.transpose(x, 1, 2).contiguous().view(n, channels, rows, columns)


def halved(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return torch.cat([first.relu(), second * 2, first], 1)


def in_pieces(x: Tensor) -> Tensor:
    pieces = torch.split(x, [1, 3], dim=-3)
    return torch.cat([pieces[1], pieces[0].squeeze(1).unsqueeze(1)], 1)


def widths_for_heights(x: Tensor) -> Tensor:
    """A shuffle, too, but of places."""
    return x.transpose(2, 3).reshape(x.shape)


def by_other_maps(x: Tensor) -> Tensor:
    wide = F.pad(x, (0, 0, 0, 0, 4, 0))
    return x.reshape(x.shape[0], wide.shape[1] // 4, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


class ByWeights(nn.Module):
    """As many groups as it has weights, not as many as there are pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, rows, columns = x.shape
        groups = self.weight.shape[0]
        x = x.view(n, groups, channels // groups, rows, columns)
        return x.transpose(1, 2).reshape(n, channels, rows, columns)


def rectifying_shuffle() -> nn.Module:
    module = nn.ChannelShuffle(2)
    module.forward = torch.relu  # which leaves the numbers of cells as they are
    return module


def by_turned_maps(x: Tensor) -> Tensor:
    groups = x.permute(1, 0, 2, 3).shape[0] // 2
    return x.view(x.size(0), groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


class Shifted(nn.Module):
    """A batch norm's numbers, as imported networks apply them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(shape)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


class Placed(nn.Module):
    """An activation that is another at each place."""

    def __init__(self, activation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.place = nn.Parameter(torch.ones(31, 26))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x, self.place)


class Standardised(nn.Conv2d):
    """Its weights are made even before they are used."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return super()._conv_forward(input, weight / weight.std((1, 2, 3), keepdim=True), bias)


class Activated(nn.BatchNorm2d):
    """A batch norm with its activation inside, in place, as many networks have it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        of_weights = self.running_mean, self.running_var, self.weight, self.bias
        return self.activation(F.batch_norm(input, *of_weights, False, 0.1, self.eps))


class Again(nn.Module):
    """What a batch norm normalises goes by the convolution's weights and bias once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)


class Asking(nn.Module):
    """Looks at the numbers of its maps, so that it cannot be traced."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.conv.bias) if x.amax() > 1e9 else self.conv(x)


class Borrowed(nn.Module):
    """A convolution, and a batch norm behind it; then another part runs that convolution too.

    Args:
        under_its_name: whether the convolution is called by its name in the other part.
    """

    def __init__(self, under_its_name: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(4, 4, 3, padding=1)
        if under_its_name:
            self.asking = Asking(conv)
        self.conv = conv
        self.bn = nn.BatchNorm2d(4)
        self.asking = Asking(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.asking(self.bn(self.conv(x)).relu())


BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "stride": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1),
    "stride 3, kernel 2": lambda: nn.Conv2d(4, 4, 2, stride=3),
    "1×1, stride 2": lambda: nn.Conv2d(4, 4, 1, stride=2),
    "other on each axis": lambda: nn.Conv2d(4, 4, (2, 5), (1, 2), (1, 3), (3, 1)),
    "dilation": lambda: nn.Conv2d(4, 4, 3, padding=3, dilation=3),
    "groups": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "same, even": lambda: nn.Conv2d(4, 4, 4, padding="same", dilation=(1, 3)),
    "valid": lambda: nn.Conv2d(4, 4, 3, padding="valid"),
    "max pool": lambda: nn.MaxPool2d(3, 2, padding=1),
    "max pool, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "max pool, ceil, padded": lambda: nn.MaxPool2d((4, 2), 3, (2, 1), ceil_mode=True),
    "max pool, dilated": lambda: nn.MaxPool2d(2, 2, 1, dilation=3),
    "average pool": lambda: nn.AvgPool2d(3, 2),
    "average pool, padded": lambda: nn.AvgPool2d(3, 2, 1),
    "average pool, padding not counted": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "average pool, ceil": lambda: nn.AvgPool2d(4, 3, 2, ceil_mode=True),
    "average pool, ceil, not counted": lambda: nn.AvgPool2d(4, 3, 2, True, False),
    "average pool, divisor": lambda: nn.AvgPool2d(3, 2, 1, divisor_override=5),
    "residual": lambda: Skip(in_place=False),
    "residual, in place": lambda: Skip(in_place=True),
    "concatenation": lambda: Concat(),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    "batch norms in a row": lambda: nn.Sequential(*map(nn.BatchNorm2d, [4, 4])),
    "batch norm behind weights that are used again": Again,
    "batch norm, activated": lambda: nn.Sequential(Activated(4), Activated(4)),
    "scaled": Scaled,
    "sliced": Sliced,
    "padded": Padded,
    "every second row, every third column": lambda: Through(lambda x: x[:, :, ::2, ::3]),
    "every second, from the second on": lambda: Through(lambda x: x[..., 1::2, 1::2]),
    "one axis after the other": lambda: Through(lambda x: x[:, :, 3:-2][:, 1:, :, 2::2]),
    "shuffled": lambda: Through(shuffled),
    "shuffled twice": lambda: Through(lambda x: shuffled(shuffled(x).relu())),
    "shuffled by a module": lambda: nn.ChannelShuffle(2),
    "halved": lambda: Through(halved),
    "in pieces": lambda: Through(in_pieces),
    "by the size of other maps": lambda: Through(by_other_maps),
    "by the size of weights": ByWeights,
    "by the size of turned maps": lambda: Through(by_turned_maps),
    "cropped": lambda: Through(lambda x: x[:, :, 9:-7, 8:20]),
    "cropped by padding": lambda: nn.ZeroPad2d((-3, 2, -4, -1)),
    "padded on all axes": lambda: Through(lambda x: F.pad(x, (1, 2, 0, 3, 0, 0, 0, 0))),
    "padded on one axis": lambda: Through(lambda x: F.pad(x, (3, 1))),
    "fixed scale and shift": lambda: Shifted((4, 1, 1)),
    "which is larger": lambda: Through(lambda x: torch.where(x > 0.1, x, x.exp() * (x.le(1)))),
    "more channels": lambda: Through(lambda x: F.pad(x, (0, 0, 0, 0, 2, 1), value=0.5)),
    "response norm": lambda: nn.LocalResponseNorm(3, alpha=0.5),
    "depth that is stochastic in training": lambda: StochasticDepth(0.5, "row"),
    "activations": lambda: nn.Sequential(
        *(nn.ReLU6(inplace=True), nn.LeakyReLU(0.2), nn.SiLU(inplace=True), nn.Hardswish()),
        *(nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.PReLU(4), nn.Dropout(0.5), nn.Identity()),
    ),
}
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "batch norm behind what another part runs too": lambda: Borrowed(under_its_name=False),
    "batch norm behind a part of another part": lambda: Borrowed(under_its_name=True),
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "more channels, moved aside": lambda: Through(lambda x: F.pad(x, (1, -1, 0, 0, 2, 1))),
    "the first picture": lambda: Through(lambda x: x + 0 * x[:1, :]),
    "a shuffle that was given another forward": rectifying_shuffle,
    "widths for heights": lambda: Through(widths_for_heights),
    "a shift for each place": lambda: Shifted((1, 31, 26)),
    "backwards": lambda: Through(lambda x: x.flip(-1)),
    "layer norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "pooled and told from where": lambda: Through(
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0]
    ),
    "upsampling": lambda: nn.Upsample(scale_factor=2),
    "softmax": lambda: nn.Softmax2d(),
    "a floor for each place": lambda: Placed(lambda x, place: x.clamp(min=place)),
    "a ceiling for each place": lambda: Placed(lambda x, place: torch.clamp(x, max=place)),
    "a power for each place": lambda: Placed(lambda x, place: x.abs() ** place),
    "standardised, parametrised": lambda: weight_norm(Standardised(4, 4, 3, padding=1)),
}


@pytest.mark.parametrize("name", [*BETWEEN, *WHOLE])
def test_incremental_is_dense(name: str) -> None:
    torch.manual_seed(1)
    between = (BETWEEN | WHOLE)[name]()
    channels = between(torch.zeros(1, 4, 31, 26)).shape[1]
    net = randomised(Body(between, channels))
    x = pictures(2, 3, 31, 26)
    compared(net, x, [[0, 1, 2], [3, 2, 1]])
    found = parts(net, x)
    assert "stem" in found
    if name in BETWEEN:
        assert "conv" in found, "nothing of this may have been left to the dense engine"
    else:
        assert "conv" not in found


@pytest.mark.parametrize("net", [Residual, Functional, Repeated, plain, Normalising])
@pytest.mark.parametrize(("window", "stride"), [((3, 3), (2, 2)), ((4, 2), (3, 1)), (1, 1)])
def test_small_networks(net: Callable[[], nn.Module], window: Any, stride: Any) -> None:
    compared(randomised(net()), pictures(2), [3, 1], window=window, stride=stride)


def test_a_network_without_a_channel_axis() -> None:
    x = pictures(2, 1, 21, 16)[:, 0]
    compared(randomised(Gray()), x, [3, 1])


def standardised_rows(x: Tensor) -> Tensor:
    """A batch norm whose channels are rows."""
    numbers = torch.linspace(0.5, 2, 19, dtype=torch.float64)
    return F.batch_norm(x, numbers, numbers.flip(0))


@pytest.mark.parametrize(
    "middle",
    [
        *(nn.LocalResponseNorm(3, alpha=0.5), nn.PReLU(19), Through(standardised_rows), nn.PReLU()),
        *(nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2), Through(lambda x: x[:, ::2, 1:])),
    ],
)
def test_what_is_done_to_channels_may_be_done_to_rows(middle: nn.Module) -> None:
    """Of maps without a channel axis the rows stand where channels would."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 5, 3)
            self.middle, self.fc = middle, nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.middle(self.stem(x[:, None])[:, 0])
            return self.fc(self.conv(x[:, None]).mean((2, 3)))

    compared(randomised(Rows()), pictures(2, 1, 21, 16)[:, 0], [3, 1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_heads(head: str, score: str) -> None:
    function, classes = HEADS[head]
    net = randomised(Headed(function, classes))
    found, dense = compared(net, pictures(2, 3, 21, 16), [1, 0], score=score)
    assert differ(found.hidden_probability(), dense.hidden_probability()) < 1e-12


@pytest.mark.parametrize(
    "fill", [0.3, [0.1, -2.0, 3.0], "mean", "blur", pictures(1, 3, 31, 26, seed=3), "pictures"]
)
def test_fills(fill: Any) -> None:
    net = randomised(Body(nn.ReLU()))
    if isinstance(fill, str) and fill == "pictures":
        fill = pictures(2, 3, 31, 26, seed=3)
    compared(net, pictures(2, 3, 31, 26), [1, 0], fill=fill)


@pytest.mark.parametrize("target", [None, 2, [1, 3, 0], [[0, 1], [3, 3], [2, 0]]])
def test_targets(target: Any) -> None:
    compared(randomised(Body(nn.ReLU())), pictures(3, 3, 31, 26), target)


def test_a_callable_gets_all_pictures_in_their_order() -> None:
    weights = torch.tensor([1.0, 10.0, 100.0]).double()
    seen = []

    def asked(out: Tensor) -> Tensor:
        seen.append(out.shape)
        return (out[:, 0] - out[:, 2]) * weights

    compared(randomised(Body(nn.ReLU())), pictures(3, 3, 31, 26), asked)
    assert set(seen) == {(3, CLASSES)}


def test_maps_as_scores() -> None:
    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    found, _ = compared(net, pictures(2, 3, 31, 26), lambda out: out[:, 1, 3:9].mean((1, 2)))
    assert found.scores is None


@pytest.mark.parametrize("batch_size", [1, 2, 5, 13, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    net, x = randomised(Body(Concat(), 9)), pictures(2, 3, 31, 26)
    compared(net, x, [1, 2], batch_size=batch_size)
    sizes, found = [], []
    with undisturbed(net, x):
        engine = Engine(net, x, Request((5, 4), (3, 2), (10, 12), batch_size))
        engine.prepare()
        engine.show(x[:1], torch.zeros_like(x[:1]))
        for positions, output in engine.tiles():
            sizes.append(len(output.raw))
            assert len(positions) == len(output.raw)
            found += positions
    assert max(sizes) <= batch_size
    # None is computed twice, and none forgotten.
    assert sorted(found) == [(row, column) for row in range(10) for column in range(12)]


def test_hiding_nothing_costs_exactly_nothing() -> None:
    for between in (nn.ReLU(), Skip(in_place=True)):
        net, x = randomised(Body(between)).float(), pictures(2, 3, 31, 26).float()
        found = tvc.occlusion(net, x, [1, 2], window=5, stride=3, fill=x, engine="incremental")
        assert (found.values == 0).all()
        x[:, :, 6:11, 9:14] = 0.25
        found = tvc.occlusion(net, x, 1, window=5, stride=3, fill=0.25, engine="incremental")
        assert (found.values[:, 2, 3] == 0).all()
        assert (found.values != 0).sum() > 100


def test_what_is_never_read_costs_exactly_nothing() -> None:
    net = randomised(Body(nn.Conv2d(4, 4, 2, stride=4)), 0)
    x = pictures(1, 3, 31, 26)
    wide = randomised(nn.Sequential(nn.Conv2d(3, 4, 1, stride=4), nn.Conv2d(4, 4, 1), nn.Flatten()))
    found = tvc.occlusion(wide, x, 5, window=2, stride=1, engine="incremental").values
    dense = tvc.occlusion(wide, x, 5, window=2, stride=1, engine="dense").values
    assert ((found == 0) == (dense == 0)).all()
    assert ((found != 0).sum(), found.numel()) == ((dense != 0).sum(), dense.numel())
    compared(net, x)


@settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_random_networks(data: st.DataObject) -> None:
    draw: Callable[[Any], Any] = data.draw
    size = draw(st.tuples(st.integers(17, 34), st.integers(17, 34)))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "max", "mean", "skip", "cat", "bn", "relu"]))
        kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
        padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
        ceil = draw(st.booleans())
        if kind == "conv":
            groups, dilation = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 2))
            layers.append(nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups))
        elif kind == "max":
            layers.append(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil))
        elif kind == "mean":
            layers.append(nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans())))
        elif kind == "skip":
            layers.append(Skip(in_place=draw(st.booleans())))
        elif kind == "cat":
            layers.append(nn.Sequential(Concat(), nn.Conv2d(9, 4, 1)))
        else:
            layers.append(nn.BatchNorm2d(4) if kind == "bn" else nn.ReLU(inplace=True))
    between = nn.Sequential(*layers)
    try:
        net = randomised(Body(between, 4, size), draw(st.integers(0, 9)))
    except RuntimeError:  # nothing is left of the picture
        return
    window = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    stride = tuple(draw(st.integers(1, w)) for w in window)
    stride = tuple(max(s, 2) if w > 1 else s for s, w in zip(stride, window, strict=True))
    options = {"window": window, "stride": stride, "batch_size": 64}
    try:
        compared(net, pictures(1, 3, *size), **options)
    except tvc.InputError as error:
        assert "nearly all" in str(error)  # noqa: PT017 - anything else is a fault


SIZES = {"alexnet": 96, "googlenet": 96, "densenet121": 96}


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "vgg11", "resnet18", "googlenet", "densenet121", "squeezenet1_1"),
        *("mobilenet_v2", "shufflenet_v2_x0_5"),
    ],
)
def test_torchvision(name: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    net = randomised(torchvision.models.get_model(name, weights=None, num_classes=10, **options))
    x = pictures(1, 3, 96, 89)
    shared = {"window": (12, 9), "stride": (12, 9), "fill": 0.3, "batch_size": 8}
    # A third of the picture's width is enough to reach corners, edges and the interior.
    dense = tvc.occlusion(net, x, engine="dense", **shared)
    found = tvc.occlusion(net, x, engine="incremental", **shared)
    assert (dense.scores.amax((1, 2)) > dense.scores.amin((1, 2))).any()
    assert differ(found.scores, dense.scores) < 1e-12
    assert differ(found.score, dense.score) < 1e-12


# ---- what it cannot do ---------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.detach().sum()) > -1e9 else self.net(2 * x)


class Misled(nn.Module):
    """Another function where it is traced: a tracer's stand-in is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * 2 if isinstance(x, Tensor) else x)


class ReadsAgain(nn.Module):
    """Reads a tensor after it was written into under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        F.relu(y, inplace=True)
        return self.fc(y.mean((2, 3)))


class Mixing(nn.Module):
    """Every pixel sees every other one before the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean((2, 3), keepdim=True))


class WholeBatch(nn.Module):
    """Scales by one number of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (1 + 0 * x.mean()))


REFUSED = {
    "whole batch": (WholeBatch, "mean is one number for a whole batch"),
    "untraceable": (Branching, "torch.fx cannot trace it"),
    "misled": (Misled, "computes something else"),
    "in place": (ReadsAgain, "writes in place"),
    "mixing": (Mixing, "mean may look at all of the picture"),
    "no convolution": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 21 * 16, CLASSES)),
        "Flatten may look at all of the picture",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_in_part_is_refused_or_computed_whole(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = REFUSED[name]
    net, x = randomised(make()), pictures(2, 3, 21, 16)
    with pytest.raises(tvc.InputError, match=words):
        tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    with (
        caplog.at_level(logging.INFO, logger="torchviz_cnn"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Engine, "pays", True)
        found = tvc.occlusion(net, x, 1, **WINDOWS)
    told = [record.getMessage() for record in caplog.records if record.name == "torchviz_cnn"]
    assert len(told) == 1
    assert words in told[0]
    dense = tvc.occlusion(net, x, 1, engine="dense", **WINDOWS)
    assert (found.values == dense.values).all()


class Excited(nn.Module):
    """A squeeze and excitation after the first of its convolutions, so that the rest is dense."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rest = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 64, 5, padding=2)
        self.gate, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(64, CLASSES)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = y * torch.sigmoid(self.gate(self.pool(y)))
        return self.fc(F.relu(self.rest(y)).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "window", "words"),
    [
        (Excited, 5, "AdaptiveAvgPool2d may look at all of the picture"),
        (plain, 50, "a window changes nearly all that its first layers see"),
    ],
)
def test_that_little_would_be_saved_is_told_once(make, window, words, caplog) -> None:
    net, x = randomised(make()), pictures(3, 3, 56, 56)
    with caplog.at_level(logging.INFO, logger="torchviz_cnn"):
        found = tvc.occlusion(net, x, 1, window=window, stride=2)
        [told] = [each.getMessage() for each in caplog.records if each.name == "torchviz_cnn"]
        assert words in told
        assert told.endswith("every window runs the whole of it")
        dense = tvc.occlusion(net, x, 1, window=window, stride=2, engine="dense")
    assert (found.values == dense.values).all()
    assert len(caplog.records) == 1


def test_windows_that_change_most_of_every_map_are_told_of(caplog) -> None:
    """A network that puts out maps: nothing of it looks at all of the picture."""
    net, x = randomised(nn.Sequential(nn.Conv2d(3, 8, 3))), pictures(1, 3, 56, 56)
    with caplog.at_level(logging.INFO, logger="torchviz_cnn"):
        tvc.occlusion(net, x, lambda maps: maps.mean((1, 2, 3)), window=46, stride=2)
    [told] = [each.getMessage() for each in caplog.records]
    assert "a window changes most of all its maps" in told


def test_nothing_is_told_of_a_network_that_is_too_small_to_pay(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="torchviz_cnn"):
        tvc.occlusion(randomised(plain()), pictures(1, 3, 56, 56), 1, window=4)
    assert not caplog.records


def test_hooks_are_shown_whole_maps_only() -> None:
    net, x, shapes = randomised(plain()), pictures(2, 3, 21, 16), set()
    net.conv1.register_forward_hook(lambda module, args, out: shapes.add(out.shape[2:]))
    with pytest.raises(tvc.InputError, match="a hook is attached to a Conv2d"):
        tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    tvc.occlusion(net, x, 1, **WINDOWS)
    assert shapes == {(21, 16)}


def test_a_hook_on_all_modules_changes_what_is_computed() -> None:
    net, x = randomised(plain()), pictures(2, 3, 21, 16)

    def halve(module: nn.Module, _args: object, out: Tensor) -> Tensor | None:
        return out / 2 if isinstance(module, nn.Conv2d) else None

    hook = register_module_forward_hook(halve)
    try:
        with pytest.raises(tvc.InputError, match="a hook is attached to all modules"):
            tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    finally:
        hook.remove()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(tvc.InputError, match="auto or incremental or dense, not 'fast'"):
        tvc.occlusion(plain(), pictures(), 1, engine="fast")


class Remembering(nn.Module):
    """Keeps what it saw, as some networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last, self.all = plain(), None, []

    def forward(self, x: Tensor) -> Tensor:
        self.all.append(x.shape)
        return self.net(x)


def test_the_network_comes_back_untouched() -> None:
    net, x = randomised(Residual(dropout=0.4)), pictures(2, 3, 21, 16)
    net.train()
    net.bn1.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kept = {key: id(value) for key, value in [*net.named_parameters(), *net.named_buffers()]}
    flags = [module.training for module in net.modules()]
    attributes = [set(vars(module)) for module in net.modules()]
    given = x.clone()
    tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    assert (x == given).all()
    assert all((net.state_dict()[key] == value).all() for key, value in before.items())
    now = {key: id(value) for key, value in [*net.named_parameters(), *net.named_buffers()]}
    assert now == kept
    assert [module.training for module in net.modules()] == flags
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_nothing_of_the_tracing_stays_in_the_network() -> None:
    net, x = randomised(Remembering()), pictures(2, 3, 21, 16)
    tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    assert all(type(shape) is torch.Size for shape in net.all)


@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    before=st.integers(-9, 3),
    dilation=st.integers(1, 3),
    rows=st.integers(1, 6),
    low=st.integers(0, 20),
    size=st.integers(0, 8),
)
def test_what_sees_a_window(
    kernel: int, stride: int, before: int, dilation: int, rows: int, low: int, size: int
) -> None:
    """Against looking at what every row reads; a negative border is a part that is cut off."""
    seen = {o: {o * stride - before + dilation * i for i in range(kernel)} for o in range(rows)}
    spans = {o: range(min(each), max(each) + 1) for o, each in seen.items()}
    touched = [o for o in range(rows) if set(spans[o]) & set(range(low, low + size))]
    expected = (touched[0], touched[-1] + 1) if touched else (0, 0)
    assert Reach(kernel, stride, before, dilation, rows).changed(low, low + size) == expected


# ---- choosing ------------------------------------------------------------------------------------


def test_auto_takes_it_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    prepare = Engine.prepare
    monkeypatch.setattr(Engine, "prepare", lambda self: (taken.append(1), prepare(self)))
    small, x = randomised(plain()), pictures(1, 3, 56, 56)
    tvc.occlusion(small, x, 1, window=4)
    assert not taken, "getting ready takes longer"
    net, x = tvc.models.load("cat_dog", "none").module, pictures(1, 3, 150, 150).float()
    auto = tvc.occlusion(net, x, 1)
    assert taken
    assert (auto.values == tvc.occlusion(net, x, 1, engine="incremental").values).all()
    taken.clear()
    tvc.occlusion(net, x, 1, window=140, stride=2)
    assert not taken, "hardly any of the work falls away"


def test_auto_counts_what_small_operations_cost_besides() -> None:
    """A third fewer multiply-adds took 1.2 times as long: ResNet18 at 64×64."""
    net, x = torchvision.models.resnet18().eval(), torch.zeros(1, 3, 64, 64)
    with undisturbed(net, x):
        engine = Engine(net, x, Request((8, 8), (4, 4), (15, 15), 64))
        wide = torch.zeros(1, 3, 224, 224)
        large = Engine(net, wide, Request((16, 16), (8, 8), (27, 27), 64))
    assert engine.ratio > 1.25
    assert not engine.pays
    assert large.pays


def test_a_group_at_the_border_computes_no_more_than_it_must() -> None:
    """The windows of cat_dog's fourth convolution: 2, 3, 4, 5, 6, …, 6, 5, 4, 3, 2 of 15 rows."""
    net, x = tvc.models.load("cat_dog", "none").module, torch.zeros(1, 3, 150, 150)
    with undisturbed(net, x):
        engine = Engine(net, x, Request((16, 16), (8, 8), (18, 18), 25))
    (node,) = (n for n in engine.plan.spans if n.target == "conv2d_4.conv")
    rows = [high - low for low, high in engine.plan.spans[node][0]]
    assert rows == [2, 3, 4, 5, *[6] * 10, 5, 4, 3, 2]
    sizes = [strip.size for strip in engine.plan.areas[node][0] for _ in strip.starts]
    assert sum(rows) <= sum(sizes) < 18 * max(rows)


def test_the_counted_multiply_adds_are_near_those_of_the_geometry() -> None:
    """On vgg16 a window of 16 with stride 8 at 224 changes a 8.9th; batches must cost little."""
    net = torchvision.models.vgg16().eval()
    x = torch.zeros(1, 3, 224, 224)
    request = Request((16, 16), (8, 8), (27, 27), 8)
    with undisturbed(net, x):
        ratio = Engine(net, x, request).ratio
    assert 8.9 / 1.25 < ratio < 8.9


@pytest.mark.parametrize("limit", [1, 2, 4, 9, 20, 50, 300])
def test_no_more_variants_at_once_than_asked_for(limit: int) -> None:
    net, x = plain().double().eval(), pictures(1, 3, 64, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with undisturbed(net, x):
            plan = Engine(net, x, Request((4, 4), (2, 2), (31, 31), limit)).plan
    finally:
        torch.set_num_threads(threads)
    tile = math.prod(max(map(len, groups)) for groups in plan.tiles)
    assert 1 <= plan.workers <= 3
    assert plan.workers * tile <= limit
    assert plan.workers * plan.behind <= limit
    assert limit < 50 or plan.workers == 3


def test_groups_are_of_about_as_much_work_as_torch_counts(monkeypatch):
    """In part, where tiles at the border are smaller, and behind."""
    workers = 2
    monkeypatch.setattr(incremental, "cores_for", lambda device: workers)
    monkeypatch.setattr(grouping, "_SIDE", 3)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 9, 5, padding=2), nn.MaxPool2d(3), nn.ReLU()),
        *(nn.Conv2d(9, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 10 * 10, CLASSES)),
    )
    x = pictures(1, 3, 64, 64)
    with undisturbed(randomised(net), x), torch.no_grad():
        engine = Engine(net, x, Request((8, 8), (4, 4), (15, 15), 40 * workers))
        plan = engine.plan
        engine.prepare()
        engine.show(x, torch.zeros_like(x))
        loads = {}
        for tile in product(*(range(len(groups)) for groups in plan.tiles)):
            size = math.prod(map(len, plan.positions(tile)))
            with FlopCounterMode(display=False) as counted:
                engine._answered([tile], torch.zeros(1, 15, 15, dtype=torch.bool))
            loads[tile] = size, float(counted.get_total_flops())
    assert plan.workers == workers
    assert plan.groups == even_groups(loads, plan.behind, workers)
    alike = {tile: (size, float(size)) for tile, (size, _) in loads.items()}
    assert plan.groups != even_groups(alike, plan.behind, workers)


@pytest.mark.parametrize(("limit", "rows"), [(3, 3), (50, 5)])
def test_the_untouched_picture_is_answered_for_several_times_at_once(limit, rows, monkeypatch):
    """Of few rows kernels round otherwise than of as many as variants are."""
    monkeypatch.setattr(incremental, "_REFERENCES", 5)
    net, x = plain().double().eval(), pictures(2, 3, 64, 64)
    with undisturbed(net, x), torch.no_grad():
        engine = Engine(net, x, Request((4, 4), (2, 2), (31, 31), 2 * limit), 2)
        engine.prepare()
        shapes = shapes_given(monkeypatch, F, "linear")
        engine.show(x, torch.zeros_like(x))
    assert [shape[0] for shape in shapes] == [2 * rows]


class Branches(nn.Module):
    """Parts that wait for one another, one of them pooled; then a map that is needed whole."""

    def __init__(self, tail: nn.Module, features: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.last = nn.Conv2d(64, 8, 3, padding=1)
        self.tail = tail
        self.out = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        wide = self.wide(x).relu()
        x = torch.cat([wide, self.narrow(x).relu(), self.pool(x)], 1)
        out: Tensor = self.out(self.tail(self.last(x).relu()).flatten(1))
        return out


class Sum(nn.Module):
    """A window and a wider one, added; what the first is pasted into is wanted besides."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 1)
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.branch(x) + x
        return out


def _ending(*parts: nn.Module) -> nn.Module:
    ending = nn.MaxPool2d(24), nn.Flatten(), nn.Linear(16 * parts[-1].out_channels, CLASSES)  # type: ignore[operator]
    return nn.Sequential(*parts, *ending)


NEEDY = {
    "a whole map": lambda: Branches(nn.AdaptiveAvgPool2d(1), 8),
    "parts that wait": lambda: Branches(nn.MaxPool2d(12), 8 * 64),
    "a sum": lambda: _ending(Sum(nn.Conv2d(64, 64, 3, padding=1)), nn.Conv2d(64, 4, 1)),
    "two that wait": lambda: _ending(
        Sum(nn.Conv2d(64, 8, 1), nn.ReLU(), nn.Conv2d(8, 64, 1)), nn.Conv2d(64, 4, 1)
    ),
    "an average": lambda: _ending(
        nn.Conv2d(3, 64, 5, padding=2), nn.AvgPool2d(5, 1, 2), nn.Conv2d(64, 4, 1)
    ),
    "an activation in place": lambda: _ending(
        nn.Conv2d(3, 64, 1), nn.ReLU(inplace=True), nn.Conv2d(64, 4, 1)
    ),
    "a crop": lambda: _ending(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1)),
    "a pooling": lambda: _ending(
        nn.Conv2d(3, 64, 5, padding=2), nn.MaxPool2d(5, 1, 2), nn.Conv2d(64, 4, 1)
    ),
}


@pytest.mark.parametrize("neediest", NEEDY)
def test_a_batch_needs_the_memory_that_is_planned(neediest: str) -> None:
    """What is planned bounds the memory, so it has to be what is used; found out by torch's count."""
    net, x = randomised(NEEDY[neediest]()).float(), torch.rand(1, 3, 96, 96)
    with undisturbed(net, x):
        engine = Engine(net, x, Request((8, 8), (8, 8), (11, 11), 25))
        planned = engine.plan._numbers()[0]
        engine.prepare()
        engine.show(x, torch.zeros_like(x))
        tile = (1, 1)
        positions = math.prod(len(groups[1]) for groups in engine.plan.tiles)
        engine._wholes([tile], positions)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            engine._wholes([tile], positions)
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert 0.9 < max(accumulate(sizes)) / (4 * planned * positions) < 1.05


def test_behind_only_what_is_read_there_is_planned_for() -> None:
    """A whole map of 4 channels and their means; no window of it that it was made of."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    x = torch.rand(1, 3, 96, 96)
    with undisturbed(net.eval(), x):
        plan = Engine(net, x, Request((8, 8), (8, 8), (11, 11), 25)).plan
        assert plan._numbers()[1] == 4 * 96 * 96 + 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_keeps_its_place_may_be_computed_by_rows(layout):
    conv = nn.Conv2d(6, 4, 1, groups=2).double()
    draw = torch.Generator().manual_seed(0)
    part = torch.randn(3, 6, 5, 7, generator=draw, dtype=torch.float64)
    found = incremental._by_rows(conv, part.contiguous(memory_format=layout))
    torch.testing.assert_close(found, conv(part), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_few_windows_go_by_rows_through_windows_of_1_by_1(monkeypatch):
    monkeypatch.setattr(incremental, "_MANY", 12)
    few, many = [], []
    by_rows, conv2d = incremental._by_rows, F.conv2d

    def watched(apply: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
        few.append(len(part))
        return by_rows(apply, part)

    def counted(part: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        if weight.shape[-1] == 1 and part.shape[-2] > 1:
            many.append(len(part))
        return conv2d(part, weight, *args, **options)

    net, x = randomised(Body(nn.Conv2d(4, 4, 1))).float(), pictures(1, 3, 31, 26).float()
    dense = tvc.occlusion(net, x, 1, engine="dense", **WINDOWS).values
    monkeypatch.setattr(incremental, "_by_rows", watched)
    monkeypatch.setattr("torchviz_cnn.methods.nodes.F.conv2d", counted)
    found = tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS).values
    assert differ(found, dense) < 1e-4
    assert few
    assert max(few) < 12 <= min(count for count in many if count > 1)  # one is the whole picture


def test_windows_that_are_not_read_stand_between_others():
    """Nothing of them changes, so that they start at the first row, wherever they lie."""
    stem, conv = nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(stem, conv, nn.Flatten(), nn.Linear(4 * 16 * 16, CLASSES))
    compared(randomised(net), pictures(1, 3, 32, 32), window=1, stride=1, batch_size=25)
