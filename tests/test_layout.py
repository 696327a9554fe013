"""Channels last where that is faster, and nothing else of it: numbers, layouts, habits of networks.

Double precision is never laid out anew, so it serves as the reference for single precision.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from tests.networks import Functional, pictures, plain, randomised
from tests.test_promises import ROWS, nothing_changes, residual
from torchviz_cnn import layout

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: row.options for name, row in ROWS.items()},
    "occlusion": {**ROWS["occlusion"].options, "engine": "dense"},
}
every_method = pytest.mark.parametrize("method", OPTIONS)


def explained(method: str, net: nn.Module, x: Tensor, target: Any = 1) -> Any:
    return tvc.METHODS[method](net, x, target, **OPTIONS[method])


def small(count: int = 2) -> Tensor:
    return pictures(count).float()


class Layouts:
    """In which layouts a layer's inputs came: whether channels last, pass after pass."""

    def __init__(self, layer: nn.Module) -> None:
        self.last: list[bool] = []
        layer.register_forward_pre_hook(lambda _, args: self.last.append(_is_last(args[0])))

    def always(self, method: str) -> bool:
        """But for the pass that finds the default layer, which is as the pictures were given."""
        own = self.last[int(ROWS[method].layer) :]
        return bool(own) and all(own)


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.fixture
def as_given(monkeypatch):
    """Calls a function with the layout left as it is given."""

    def call(function: Any, *args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(layout, "_pays", lambda *_: False)
            return function(*args)

    return call


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)


# ---- what comes out -------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("make", [plain, residual, Functional])
@pytest.mark.parametrize("target", [1, [[0, 3], [2, 1]]])
def test_every_method_runs_channels_last_and_gives_what_double_precision_gives(
    method, make, target
):
    wanted = explained(method, randomised(make()), pictures(), target)
    net = randomised(make()).float()
    seen = Layouts(net.conv1)
    found = explained(method, net, small(), target)
    assert seen.always(method)
    close(found.values, wanted.values)
    close(found.score, wanted.score)


def test_grad_cam_and_saliency_are_their_formulas():
    net = randomised(plain(), seed=3).float()
    x, double = small(3), randomised(plain(), seed=3)
    maps = double[:5](x.double())
    weights = double.fc.weight[2] / maps[0, 0].numel()
    wanted = torch.einsum("c,nchw->nhw", weights, maps).detach()
    close(tvc.grad_cam(net, x, 2, relu=False).values, wanted)
    leaf = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(double(leaf)[:, 2].sum(), leaf)
    close(tvc.saliency(net, x, 2).values, slope)


@every_method
@pytest.mark.parametrize("count", [1, 3])
def test_what_a_method_gives_is_contiguous(method, count):
    found = explained(method, randomised(plain()).float(), small(count))
    assert found.values.is_contiguous()
    assert found.score.is_contiguous()


def test_a_callable_gets_scores_that_it_can_view():
    """A network that scores every place; its user knows its output as contiguous."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    seen = Layouts(net[0])

    def score(raw: Tensor) -> Tensor:
        return raw.view(len(raw), -1)[:, :7].sum(1)

    found = tvc.saliency(randomised(net).float(), small(), score)
    assert seen.last == [True]
    close(found.values, tvc.saliency(net.double(), pictures(), score).values)


def test_recorded_activations_stay_contiguous():
    net = randomised(plain()).float()
    tvc.grad_cam(net, small(), 1)
    seen = tvc.activations(net, small())
    assert seen
    assert all(each.is_contiguous() for each in seen.values())


def test_methods_that_share_a_pass_give_the_same_channels_last():
    net, names = randomised(residual()).float(), ["saliency", "grad_cam", "guided_grad_cam"]
    seen = Layouts(net.conv1)
    together = tvc.explain(net, small(), 1, methods=names, relu=False)
    assert seen.last == [False, True]
    for name in names:
        options = {"relu": False} if name == "grad_cam" else {}
        close(
            together[name].values, tvc.METHODS[name](net.double(), pictures(), 1, **options).values
        )
        net.float()


def test_the_place_of_a_map_is_found_channels_last(as_given):
    net = randomised(residual()).float()
    found = tvc.layer_cam(net, small(), 1, layer="conv3")
    wanted = as_given(
        lambda: tvc.layer_cam(randomised(residual()).float(), small(), 1, layer="conv3")
    )
    assert found.place is not None
    assert found.place == wanted.place


@every_method
@pytest.mark.parametrize("make", [plain, residual])
def test_where_pixels_are_alike_the_same_of_them_are_the_largest(method, make, as_given):
    """Max pooling has to choose among equals, and chooses the same in both layouts."""
    x = torch.zeros(2, 3, 14, 10)
    x[1, :, 4:9, 3:7] = 1
    found = explained(method, randomised(make()).float(), x)
    close(found.values, as_given(explained, method, randomised(make()).float(), x).values)


# ---- networks that care ---------------------------------------------------------------------------


class Habit(nn.Module):
    """A network with something of its own between convolution and scores."""

    def __init__(self, habit: Any) -> None:
        super().__init__()
        self.habit = habit
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6 * 12 * 8, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.habit(self, self.conv1(x).relu())
        return self.fc(x.reshape(len(x), -1))


def _views(net: Habit, x: Tensor) -> Tensor:
    return x.view(len(x), -1)


def _strides(net: Habit, x: Tensor) -> Tensor:
    return x.as_strided((len(x), 6 * 12 * 8), (6 * 12 * 8, 1))


def _asserts(net: Habit, x: Tensor) -> Tensor:
    assert x.is_contiguous()
    return x


def _drops(net: Habit, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True)


def _counts(net: Habit, x: Tensor) -> Tensor:
    net.calls += 1
    return x * net.calls


def _counts_and_views(net: Habit, x: Tensor) -> Tensor:
    net.calls = net.calls + 1
    return (x * net.calls).view(len(x), -1)


def _counts_draws_and_views(net: Habit, x: Tensor) -> Tensor:
    net.calls.data.add_(torch.rand(()))
    return (x * net.calls).view(len(x), -1)


def _draws_alike() -> bool:
    """Whether dropout drops the same numbers in both layouts: torch 2.6 does, later ones do not."""
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            maps = torch.ones(1, 3, 4, 5).contiguous(memory_format=order)
            found.append(F.dropout(maps, 0.5, training=True))
    return torch.equal(*found)


CARING = [_views, _strides, _asserts, _drops, _counts_and_views, _counts_draws_and_views]


@every_method
@pytest.mark.parametrize("habit", [*CARING, _counts])
def test_a_network_that_cares_for_its_layout_answers_as_it_always_did(method, habit, as_given):
    def twice(net: nn.Module) -> list[Any]:
        torch.manual_seed(3)
        return [explained(method, net, small()) for _ in range(2)]

    net = randomised(Habit(habit)).float()
    seen = Layouts(net.conv1)
    torch.manual_seed(3)
    with nothing_changes(net):
        found = [explained(method, net, small()) for _ in range(2)]
    indifferent = habit is _counts or (habit is _drops and _draws_alike())
    assert any(seen.last) is indifferent
    wanted = as_given(twice, randomised(Habit(habit)).float())
    for one, other in zip(found, wanted, strict=True):
        if habit is _counts:
            close(one.values, other.values)
        elif indifferent:
            room = 1e-4 * float(other.values.abs().max())
            torch.testing.assert_close(one.values, other.values, rtol=0, atol=room)
        else:
            assert torch.equal(one.values, other.values)
            assert torch.equal(one.score, other.score)


@every_method
def test_a_view_gives_what_a_reshape_gives(method):
    views, reshapes = (randomised(Habit(h)).float() for h in (_views, lambda net, x: x))
    close(explained(method, views, small()).values, explained(method, reshapes, small()).values)


def _writes(net: Habit, x: Tensor) -> Tensor:
    return x


class Writing(Habit):
    def forward(self, x: Tensor) -> Tensor:
        x *= 2
        return super().forward(x)


@every_method
def test_a_network_may_write_into_its_input(method):
    net, x = randomised(Writing(_writes)).float(), small()
    seen = Layouts(net.conv1)
    with nothing_changes(net, x):
        found = [explained(method, net, x).values for _ in range(2)]
    assert seen.always(method)
    wanted = explained(method, randomised(Writing(_writes)), pictures()).values
    for each in found:
        close(each, wanted)


class Late(nn.Module):
    """Its maps can be viewed in any layout while there is one column of them, as in a rehearsal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, (3, 3))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.conv1(x).relu(), 0.5, training=bool(x.shape[-1] > 3))
        return self.fc(x.view(len(x), 6, -1)[..., :1].flatten(1) + x.view(-1)[:1])


def test_a_network_that_cares_only_later_is_run_again_with_the_same_random_numbers(as_given):
    x = small(1)

    def later(net: nn.Module) -> Tensor:
        tvc.saliency(net, x[..., :3, :3].contiguous(), 1)
        torch.manual_seed(3)
        return tvc.saliency(net, x, 1).values

    net = randomised(Late()).float()
    seen = Layouts(net.conv1)
    found = later(net)
    assert torch.equal(found, as_given(later, randomised(Late()).float()))
    assert seen.last[1:] == [True, False]
    tvc.grad_cam(net, x, 1)
    assert not any(seen.last[2:])  # it is remembered


def test_the_gradient_mode_of_a_pass_that_was_given_up_is_forgotten():
    """Grad-CAM turns gradients on at its layer; what comes before it keeps no graph again."""
    net, modes = randomised(Late()).float(), []
    tvc.saliency(net, small(1)[..., :3, :3].contiguous(), 1)
    net.conv1.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    tvc.grad_cam(net, small(1), 1, layer="conv1")
    assert modes[-2:] == [False, False]


# ---- hooks and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("habit", [_views, _counts])
def test_hooks_see_one_pass_and_no_rehearsal(habit):
    net, calls = randomised(Habit(habit)).float(), []
    for part in net.modules():
        part.register_forward_pre_hook(lambda m, _: calls.append(type(m).__name__))
        part.register_forward_hook(lambda m, *_: calls.append(type(m).__name__))
    with nothing_changes(net):
        tvc.saliency(net, small(), 1)
    assert calls == ["Habit", "Conv2d", "Conv2d", "Linear", "Linear", "Habit"]


class Noting(nn.Module):
    """Notes each pass, and hands everything on."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


def test_a_network_that_cannot_do_without_its_hooks_is_rehearsed_once():
    net = nn.Sequential(Noting(), *randomised(plain()).float())
    net[1].register_forward_pre_hook(lambda _, args: torch.cat([args[0], args[0][:, :1]], 1))
    for _ in range(3):
        tvc.saliency(net.eval(), small()[:, :2].contiguous(), 1)
    assert net[0].passes == 4


def test_a_network_is_rehearsed_once_in_both_layouts():
    net = nn.Sequential(Noting(), *randomised(plain()).float()).eval()
    for side in (10, 9, 8):
        tvc.saliency(net, small()[..., :side].contiguous(), 1)
    assert net[0].passes == 5


@every_method
def test_of_two_errors_the_one_of_the_layout_that_was_given_is_told(method):
    def fails(net: Habit, x: Tensor) -> Tensor:
        raise RuntimeError("channels last" if _is_last(x) else "as given")

    net = randomised(Habit(fails)).float()
    with nothing_changes(net), pytest.raises(RuntimeError, match="as given"):
        explained(method, net, small())


def test_an_error_that_has_nothing_to_do_with_the_layout_is_not_held_against_the_network():
    net = randomised(plain()).float()
    seen = Layouts(net.conv1)
    with pytest.raises(tvc.InputError, match="takes 3 channels"):
        tvc.saliency(net, torch.zeros(1, 2, 14, 10), 1)
    tvc.saliency(net, small(), 1)
    assert seen.last[-1]


# ---- when -----------------------------------------------------------------------------------------


def _double(net: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return net.double(), x.double()


def _bfloat16(net: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return net.bfloat16(), x.bfloat16()


@pytest.mark.parametrize("turned", [_double, _bfloat16])
def test_other_precisions_are_left_as_they_are(turned):
    net, x = turned(randomised(plain()), small())
    seen = Layouts(net.conv1)
    tvc.grad_cam(net, x, 1)
    tvc.saliency(net, x, 1)
    assert not any(seen.last)


def test_under_autocast_the_layout_is_left_as_it_is():
    net = randomised(plain()).float()
    seen = Layouts(net.conv1)
    with torch.autocast("cpu", torch.bfloat16):
        tvc.saliency(net, small(), 1)
    assert seen.last == [False]


class Ungrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv1(x[:, None]).relu().mean((2, 3)))


def test_pictures_without_a_channel_axis_are_taken():
    net, x = randomised(Ungrouped()), pictures(channels=1)[:, 0]
    wanted = tvc.saliency(net, x, 1).values
    close(tvc.saliency(net.float(), x.float(), 1).values, wanted)


def test_pictures_that_come_channels_last_are_shown_so_even_where_it_does_not_pay(as_given):
    net = randomised(plain()).float()
    seen = Layouts(net.conv1)
    as_given(tvc.saliency, net, small().contiguous(memory_format=torch.channels_last), 1)
    assert seen.last == [True]


@pytest.fixture
def heavy(monkeypatch):
    """Every network has too many weights for channels last, and so has every convolution."""
    monkeypatch.setattr(layout, "_WEIGHTS_A_PIXEL", 0)
    monkeypatch.setattr(layout, "_WEIGHTS_A_PIXEL_OF_A_MAP", 0)
    monkeypatch.setattr(layout, "_MOST_WEIGHTS_A_PIXEL", torch.inf)


@every_method
@pytest.mark.parametrize("make", [plain, residual, Functional])
def test_heavy_networks_give_what_double_precision_gives(method, make, heavy):
    wanted = explained(method, randomised(make()), pictures())
    net = randomised(make()).float()
    given, read = Layouts(net.conv1), {}
    for name in ("conv1", "conv2"):
        getattr(net, name).register_forward_hook(partial(_note, read, name))
    with nothing_changes(net):
        found = explained(method, net, small())
    assert given.always(method)
    assert read == {"conv1": False, "conv2": False}
    close(found.values, wanted.values)
    close(found.score, wanted.score)


def test_a_heavy_network_may_view_its_last_maps(heavy, monkeypatch):
    """In a batch in which it is not heavy it may not; what is known of the one is not of the other."""
    monkeypatch.setattr(layout, "_WEIGHTS_A_PIXEL", 1)
    net = randomised(Habit(_views)).float()
    seen = Layouts(net.conv1)
    for count in (1, 8, 1, 8):
        found = tvc.saliency(net, small(count), 1, batch_size=count)
        close(found.values, tvc.saliency(randomised(Habit(_views)), pictures(count), 1).values)
    assert seen.last == [True, False, True, False]


def _note(notes: dict[str, bool], name: str, part: nn.Module, args: Any, out: Any = None) -> None:
    notes[name] = _is_last(args[0])


@pytest.mark.parametrize(
    ("name", "batch", "size", "last", "turned"),
    [
        ("resnet18", 1, 64, False, []),
        ("resnet18", 1, 224, True, ["layer3.0.conv1"]),
        ("resnet18", 8, 224, True, []),
        ("mobilenet_v2", 1, 224, True, []),
        ("vgg16", 1, 224, True, ["features.17"]),
    ],
)
def test_convolutions_of_heavy_networks_read_small_maps_channels_first(
    name, batch, size, last, turned
):
    """The first of them is found; those that follow get such maps anyway."""
    net = getattr(torchvision.models, name)(weights=None).eval()
    given, read = {}, {}
    for part_name, part in net.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_pre_hook(partial(_note, given, part_name))
            part.register_forward_hook(partial(_note, read, part_name))
    tvc.saliency(net, torch.rand(batch, 3, size, size), 1)
    assert next(iter(given.values())) is last
    assert [part for part in given if given[part] and not read[part]] == turned
