"""What is captured is what the layer computed, and the table of layers tells the truth about them.

The oracle is always another mechanism than hooks: the same network written out by hand, out of
place and in double precision, with autograd asked for the gradient at the very tensor.
"""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, namedtuple
from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils.checkpoint import checkpoint

import torchviz_cnn as tvc
from tests.networks import (
    BackwardTripwire,
    Repeated,
    Residual,
    TrippedError,
    Tripwire,
    pictures,
    plain,
    randomised,
    with_part,
)
from torchviz_cnn.fields import receptive_fields


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def hooks_of(net: nn.Module) -> list[str]:
    """Every hook left on any module, by name."""
    return [
        f"{name}.{attribute}"
        for name, part in net.named_modules()
        for attribute, value in vars(part).items()
        if "hook" in attribute and isinstance(value, dict) and value
    ]


# ---- the same networks by hand --------------------------------------------------------------------


def plain_by_hand(net: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Each layer's output of the plain network, without one in-place operation."""
    seen = {"conv1": F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)}
    seen["relu1"] = seen["conv1"].clamp(min=0)
    seen["pool1"] = F.max_pool2d(seen["relu1"], 2)
    seen["conv2"] = F.conv2d(seen["pool1"], net.conv2.weight, net.conv2.bias, padding=1)
    seen["relu2"] = seen["conv2"].clamp(min=0)
    seen["gap"] = seen["relu2"].mean((2, 3), keepdim=True)
    seen["flatten"] = seen["gap"][:, :, 0, 0]
    seen["fc"] = seen["flatten"] @ net.fc.weight.T + net.fc.bias
    return seen


def residual_by_hand(net: Residual, x: Tensor) -> dict[str, Tensor]:
    """The same for the residual network; its one ReLU runs three times."""

    def norm(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        shift = bn.bias - bn.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    seen = {"conv1": F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)}
    seen["bn1"] = norm(net.bn1, seen["conv1"])
    seen["relu"] = seen["bn1"].clamp(min=0)
    seen["conv2"] = F.conv2d(seen["relu"], net.conv2.weight, net.conv2.bias, padding=1)
    seen["bn2"] = norm(net.bn2, seen["conv2"])
    seen["relu@1"] = (seen["bn2"] + seen["relu"]).clamp(min=0)
    seen["conv3"] = F.conv2d(seen["relu@1"], net.conv3.weight, net.conv3.bias, 2, 1)
    seen["relu@2"] = seen["conv3"].clamp(min=0)
    seen["gap"] = seen["relu@2"].mean((2, 3), keepdim=True)
    seen["fc"] = seen["gap"][:, :, 0, 0] @ net.fc.weight.T + net.fc.bias
    return seen


def repeated_by_hand(net: Repeated, x: Tensor) -> dict[str, Tensor]:
    x = F.conv2d(x, net.stem.weight, net.stem.bias, padding=1)
    seen = {"stem": x}
    for call, suffix in enumerate(("", "@1", "@2")):
        before = f"relu@{call - 1}".removesuffix("@0") if call else "stem"
        seen["conv" + suffix] = F.conv2d(seen[before], net.conv.weight, net.conv.bias, padding=1)
        seen["relu" + suffix] = seen["conv" + suffix].clamp(min=0)
    seen["fc"] = seen["relu@2"].mean((2, 3)) @ net.fc.weight.T + net.fc.bias
    return seen


TWINS = {
    "plain": (lambda: randomised(plain()), plain_by_hand),
    "residual": (lambda: randomised(Residual()), residual_by_hand),
    "repeated": (lambda: randomised(Repeated()), repeated_by_hand),
}
every_twin = pytest.mark.parametrize("twin", TWINS)


def weighted(scores: Tensor) -> Tensor:
    """A score with another weight for every number of the output."""
    weights = torch.arange(1, scores.numel() + 1, dtype=scores.dtype, device=scores.device)
    return (scores * weights.reshape(scores.shape).sin()).sum()


# ---- values ---------------------------------------------------------------------------------------


@every_twin
def test_activations_are_what_each_layer_computed(twin):
    build, by_hand = TWINS[twin]
    net, x = build(), pictures()
    wanted = by_hand(net, x)
    found = tvc.activations(net, x, list(wanted))
    assert list(found) == list(wanted), "in the order they ran"
    for name, tensor in wanted.items():
        assert_close(found[name], tensor.detach())
        assert not found[name].requires_grad


@every_twin
@pytest.mark.parametrize("gradients", [False, True])
def test_captured_values_are_what_each_layer_computed(twin, gradients):
    build, by_hand = TWINS[twin]
    net, x = build(), pictures()
    wanted = by_hand(net, x)
    with tvc.capture(net, list(wanted), gradients=gradients) as seen:
        output = net(x)
    assert set(seen) == set(wanted)
    assert len(seen) == len(wanted)
    for name, tensor in wanted.items():
        assert_close(seen[name].detach(), tensor.detach())
        assert seen[name].requires_grad == gradients
    assert_close(output, wanted["fc"])


def test_an_in_place_relu_does_not_rewrite_what_was_captured_before_it():
    net, x = randomised(plain()), pictures()
    with tvc.capture(net, "conv1") as seen:
        net(x)
    assert seen["conv1"].min() < -0.5
    assert tvc.activations(net, x, "conv1")["conv1"].min() < -0.5
    assert tvc.activations(net, x, ["conv1", "relu2"])["conv1"].min() < -0.5


def test_an_in_place_skip_does_not_rewrite_what_was_captured_before_it():
    net, x = randomised(Residual()), pictures()
    wanted = residual_by_hand(net, x)["bn2"]
    assert_close(tvc.activations(net, x, ["bn2", "fc"])["bn2"], wanted.detach())


def test_writing_into_what_was_captured_does_not_change_the_network():
    net, x = randomised(plain()), pictures()
    wanted = plain_by_hand(net, x)["fc"].detach()

    def spoil(_module: nn.Module, _inputs: object) -> None:
        seen["conv1"].zero_()

    net.conv2.register_forward_pre_hook(spoil)
    with torch.no_grad(), tvc.capture(net, "conv1") as seen:
        assert_close(net(x), wanted)
    assert not seen["conv1"].any()


def test_each_forward_pass_replaces_what_was_seen_before():
    net = randomised(Repeated())
    first, second = pictures(seed=1), pictures(seed=2)
    with tvc.capture(net, "relu@*") as seen:
        net(first)
        net(second)
    assert set(seen) == {"relu", "relu@1", "relu@2"}
    assert_close(seen["relu@2"], repeated_by_hand(net, second)["relu@2"].detach())


# ---- gradients ------------------------------------------------------------------------------------


@every_twin
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_are_those_of_the_network_written_out_of_place(twin, frozen, inside):
    build, by_hand = TWINS[twin]
    net, x = build(), pictures()
    wanted = by_hand(net, x)
    names = list(wanted)
    grads = torch.autograd.grad(weighted(wanted["fc"]), [wanted[name] for name in names])
    net.requires_grad_(not frozen)
    with tvc.capture(net, names, gradients=True) as seen:
        score = weighted(net(x))
        if inside:
            score.backward()
    if not inside:
        score.backward()
    assert set(seen.gradients) == set(names)
    for name, gradient in zip(names, grads, strict=True):
        assert_close(seen.gradients[name], gradient)
        assert not seen.gradients[name].requires_grad


@every_twin
def test_capturing_changes_neither_the_users_own_gradients_nor_the_output(twin):
    build, _ = TWINS[twin]
    net, x = build(), pictures().requires_grad_()
    weighted(net(x)).backward()
    wanted = [x.grad.clone(), *(p.grad.clone() for p in net.parameters())]
    x.grad = None
    net.zero_grad()
    with tvc.capture(net, ["*", "relu@*"] if twin != "plain" else "*", gradients=True):
        weighted(net(x)).backward()
    for found, gradient in zip([x, *net.parameters()], wanted, strict=True):
        assert_close(found.grad, gradient)


def test_what_was_captured_is_part_of_the_graph():
    net, x = randomised(Residual()), pictures()
    wanted = residual_by_hand(net, x)
    with tvc.capture(net, ["bn2", "relu@1"], gradients=True) as seen:
        score = weighted(net(x))
    found = torch.autograd.grad(score, [seen["bn2"], seen["relu@1"]])
    by_hand = torch.autograd.grad(weighted(wanted["fc"]), [wanted["bn2"], wanted["relu@1"]])
    for one, other in zip(found, by_hand, strict=True):
        assert_close(one, other)


def test_a_second_backward_replaces_the_first_gradient():
    net, x = randomised(plain()), pictures()
    with tvc.capture(net, "relu2", gradients=True) as seen:
        output = net(x)
    output[:, 0].sum().backward(retain_graph=True)
    output[:, 3].sum().backward()
    cells = seen["relu2"].shape[-1] * seen["relu2"].shape[-2]
    wanted = (net.fc.weight[3] / cells)[None, :, None, None].expand_as(seen["relu2"])
    assert_close(seen.gradients["relu2"], wanted.detach())


def test_a_gradient_that_was_read_is_not_added_to_by_the_next_backward():
    net, x = randomised(plain()).requires_grad_(False), pictures()
    with tvc.capture(net, "conv1", gradients=True) as seen:
        output = net(x)
    output[:, 0].sum().backward(retain_graph=True)
    first = seen.gradients["conv1"]
    (wanted,) = torch.autograd.grad(output[:, 0].sum(), seen["conv1"], retain_graph=True)
    output[:, 3].sum().backward()
    assert_close(first, wanted)


class PassesOn(nn.Module):
    """What the shortcut is given is written over afterwards; a parameter is put out by a module."""

    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.randn(1, 3, 1, 1))

        def forward(self) -> Tensor:
            return self.values

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Identity()
        self.learnt = self.Learnt()
        self.conv = nn.Conv2d(3, 4, 3)
        self.shortcut = nn.Sequential(nn.Flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.start(x) + self.learnt())
        kept = self.shortcut(x)
        return x.relu_().mean((2, 3)) + kept.mean(2)


def test_what_a_layer_only_passes_on_is_kept_as_it_was():
    net, x = randomised(PassesOn()), pictures()
    values = net.learnt.values
    wanted = F.conv2d(x + values, net.conv.weight, net.conv.bias).flatten(2)
    with tvc.capture(net, "shortcut", gradients=True) as seen:
        net(x).sum().backward()
    assert_close(seen["shortcut"], wanted)
    cells = torch.full_like(wanted, 1 / wanted.shape[2])
    assert_close(seen.gradients["shortcut"], cells)


def test_what_a_layer_passes_on_of_a_part_of_a_map_is_kept_as_it_was():
    """The part is a view: what is written into the whole map is written into it, too."""

    class OfAPart(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout()

        def forward(self, x):
            maps = self.conv(x)
            kept = self.drop(maps[:, 1:3])
            return maps.relu_().mean((2, 3)) + kept.sum((1, 2, 3))[:, None]

    net, x = randomised(OfAPart()), pictures()
    wanted = F.conv2d(x, net.conv.weight, net.conv.bias)[:, 1:3]
    assert (wanted < 0).any()
    with tvc.capture(net, "drop", gradients=True) as seen:
        net(x).sum().backward()
    assert_close(seen["drop"], wanted)
    assert_close(seen.gradients["drop"], torch.full_like(wanted, 4.0))


# ---- checkpointed parts ---------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A network whose middle is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.again = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = checkpoint(self.middle, x, use_reentrant=False) if self.again else self.middle(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("whole", [None, False, True])
def test_what_is_computed_again_in_the_backward_pass_is_no_run(whole):
    """A part of the network is checkpointed, or all of it, reentrant or not."""
    net, x = randomised(Checkpointed()), pictures().requires_grad_()
    layers = ["conv", "middle.0@*", "middle.1", "middle"]
    net.again = False
    with tvc.capture(net, layers, gradients=True) as wanted:
        weighted(net(x)).backward()
    net.again = whole is None
    with tvc.capture(net, layers, gradients=True) as seen:
        out = net(x) if whole is None else checkpoint(net, x, use_reentrant=whole)
        weighted(out).backward()
    assert list(seen) == list(wanted) == ["conv", "middle.0", "middle.1", "middle"]
    for name in wanted:
        assert_close(seen[name], wanted[name])
        assert_close(seen.gradients[name], wanted.gradients[name])


# ---- hooks ----------------------------------------------------------------------------------------


def test_no_hook_is_left_on_a_parameter_or_on_the_users_picture():
    net, x = randomised(PassesOn()), pictures().requires_grad_()
    with tvc.capture(net, "*", gradients=True) as seen:
        net(x).sum().backward()
    assert_close(seen.gradients["start"], x.grad)
    assert_close(seen.gradients["learnt"], net.learnt.values.grad)
    assert not x._backward_hooks
    assert not net.learnt.values._backward_hooks


def test_no_hook_is_left_after_the_block():
    net = randomised(Residual())
    with tvc.capture(net, ["*", "relu@*"], gradients=True):
        assert hooks_of(net), "this test would see none if there were some"
        net(pictures())
    assert hooks_of(net) == []


def test_no_hook_is_left_after_an_exception_in_the_block():
    net = randomised(with_part(Tripwire(at=1)))

    def run() -> None:
        with tvc.capture(net, "*", gradients=True):
            net(pictures())

    with pytest.raises(TrippedError):
        run()
    assert hooks_of(net) == []


@pytest.mark.parametrize(
    ("layers", "error"),
    [("*", None), ("conv1", None), (["conv1", "nowhere"], "no layer"), ("fc@3", "did not run")],
)
def test_activations_leave_no_hook_after_success_or_refusal(layers, error):
    net = randomised(plain())
    with pytest.raises(tvc.InputError, match=error) if error else nullcontext():
        tvc.activations(net, pictures(), layers)
    assert hooks_of(net) == []


def test_activations_leave_no_hook_and_no_mode_behind_when_the_network_raises():
    net = randomised(with_part(Tripwire(at=1))).train()
    with pytest.raises(TrippedError):
        tvc.activations(net, pictures())
    assert hooks_of(net) == []
    assert all(part.training for part in net.modules())


def test_the_hooks_of_the_user_stay_and_run():
    net = randomised(plain())
    ran = []
    net.conv1.register_forward_hook(lambda *_: ran.append("hook"))
    net.register_forward_pre_hook(lambda *_: ran.append("pre"))
    before = hooks_of(net)
    with tvc.capture(net, "*"):
        net(pictures())
    tvc.activations(net, pictures(), "conv1")
    assert ran == ["pre", "hook"] * 2
    assert hooks_of(net) == before


def test_capture_leaves_the_mode_of_the_network_to_the_caller():
    net = randomised(Residual(dropout=0.5)).train()
    with tvc.capture(net, "bn1") as seen:
        net(pictures())
    assert all(part.training for part in net.modules())
    conv = F.conv2d(pictures(), net.conv1.weight, net.conv1.bias, padding=1)
    mean, var = conv.mean((0, 2, 3)), conv.var((0, 2, 3), unbiased=False)
    wanted = (conv - mean[:, None, None]) / (var + net.bn1.eps).sqrt()[:, None, None]
    wanted = wanted * net.bn1.weight[:, None, None] + net.bn1.bias[:, None, None]
    assert_close(seen["bn1"], wanted.detach())


# ---- naming layers --------------------------------------------------------------------------------


def test_each_call_of_a_repeated_module_has_its_name():
    net, x = randomised(Repeated()), pictures()
    wanted = repeated_by_hand(net, x)
    assert list(tvc.activations(net, x, "relu")) == ["relu"]
    assert list(tvc.activations(net, x, "relu@1")) == ["relu@1"]
    assert list(tvc.activations(net, x, ["relu@2", "conv"])) == ["conv", "relu@2"]
    every = tvc.activations(net, x, ["relu@*", "conv@*"])
    assert list(every) == ["conv", "relu", "conv@1", "relu@1", "conv@2", "relu@2"]
    for name, tensor in every.items():
        assert_close(tensor, wanted[name].detach())


def test_a_glob_means_the_layers_it_matches_and_their_first_calls():
    net, x = randomised(Repeated()), pictures()
    assert list(tvc.activations(net, x, "*")) == ["stem", "conv", "relu", "fc"]
    assert list(tvc.activations(net, x, "[cr]*")) == ["conv", "relu"]
    assert list(tvc.activations(net, x, ["r?lu@2"])) == ["relu@2"]
    assert list(tvc.activations(net, x, "r*@*")) == ["relu", "relu@1", "relu@2"]
    nested = nn.Sequential(OrderedDict(a=randomised(plain()), b=nn.ReLU()))
    assert list(tvc.activations(nested, x, "a.conv*")) == ["a.conv1", "a.conv2"]


def test_a_module_itself_may_stand_for_its_name():
    net, x = randomised(Residual()), pictures()
    wanted = residual_by_hand(net, x)
    found = tvc.activations(net, x, [net.bn1, "conv3", net.conv2])
    assert list(found) == ["bn1", "conv2", "conv3"]
    assert_close(found["bn1"], wanted["bn1"].detach())
    with pytest.raises(tvc.InputError, match=r"ReLU.*not part of this network"):
        tvc.activations(net, x, nn.ReLU())


def test_two_names_of_one_module_see_the_same_run():
    shared = nn.Conv2d(3, 3, 1)
    net = randomised(nn.Sequential(OrderedDict(a=shared, b=shared)))
    x = pictures()
    once = F.conv2d(x, shared.weight, shared.bias)
    found = tvc.activations(net, x, ["a", "b", "a@1"])
    assert_close(found["a"], once.detach())
    assert_close(found["b"], once.detach())
    assert_close(found["a@1"], F.conv2d(once, shared.weight, shared.bias).detach())
    assert list(tvc.activations(net, x, "module.b")) == ["b"]  # as DataParallel would call it


def test_a_call_that_does_not_happen_is_an_error_that_says_how_many_do():
    net = randomised(Repeated())
    with pytest.raises(tvc.InputError, match=r"'relu@3'.*runs 3 times"):
        tvc.activations(net, pictures(), "relu@3")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("conv11", "no layer 'conv11'.*did you mean 'conv1'"),
        ("CONV2", "did you mean 'conv2'"),
        ("zzz", r"no layer 'zzz'.*layers\(\) lists them"),
        ("zzz*", r"no layer matches 'zzz\*'"),
        (["conv1", 3], "string or a module, not by 3"),
        (3, "string or a module, not by 3"),
        (None, "string or a module, not by None"),
    ],
)
def test_a_name_no_layer_has_is_an_error_before_anything_runs(layers, words):
    wire = Tripwire()
    net = randomised(with_part(wire))
    with pytest.raises(tvc.InputError, match=words):
        tvc.activations(net, pictures(), layers)
    with pytest.raises(tvc.InputError, match=words), tvc.capture(net, layers):
        pass
    assert not wire.runs


# ---- aliases --------------------------------------------------------------------------------------


def test_a_layer_whose_name_looks_like_a_glob_is_found_by_it():
    net = nn.Sequential(OrderedDict({"conv[0]": nn.Conv2d(3, 4, 3), "conv0": nn.ReLU()}))
    x = torch.randn(1, 3, 5, 5)
    assert list(tvc.activations(net, x, "conv[0]")) == ["conv[0]"]
    assert list(tvc.activations(net, x, "conv[0-9]")) == ["conv0"]
    assert tvc.receptive_field(net, "conv[0]", (3, 5, 5)).size == (3, 3)


def test_an_alias_and_the_original_name_mean_the_same_layer():
    net, x = randomised(Residual()), pictures()
    wanted = residual_by_hand(net, x)
    before = net(x)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tvc.rename(net, {"conv1": "edges", "relu": "gate"})
    assert torch.equal(net(x), before)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    for name in ("edges", "conv1"):
        found = tvc.activations(net, x, name)
        assert list(found) == ["edges"]
        assert_close(found["edges"], wanted["conv1"].detach())
    for name in ("gate@1", "relu@1", "g?te@1"):
        found = tvc.activations(net, x, name)
        assert list(found) == ["gate@1"]
        assert_close(found["gate@1"], wanted["relu@1"].detach())
    with tvc.capture(net, ["edges", "relu@*"], gradients=True) as seen:
        weighted(net(x)).backward()
    assert seen["conv1"] is seen["edges"]
    assert seen["relu@2"] is seen["gate@2"]
    assert seen.gradients["relu"] is seen.gradients["gate"]
    assert "edges" in tvc.layers(net).names
    assert "conv1" not in tvc.layers(net).names


def test_an_alias_may_be_renamed_and_taken_back():
    net = randomised(Residual())
    names = tvc.layers(net).names
    tvc.rename(net, {"conv1": "first"})
    tvc.rename(net, {"first": "edges"})
    assert tvc.layers(net).names == ["edges", *names[1:]]
    with pytest.raises(tvc.InputError, match=r"no layer 'first'"):
        tvc.activations(net, pictures(), "first")
    tvc.rename(net, {"conv1": "contours"})  # by its own name, though it has an alias
    assert tvc.layers(net).names == ["contours", *names[1:]]
    tvc.rename(net, {"contours": "conv1"})
    assert tvc.layers(net).names == names


def test_a_name_taken_back_is_free_again():
    net = randomised(Residual())
    tvc.rename(net, {"conv1": "edges"})
    tvc.rename(net, {"edges": "conv1"})
    tvc.rename(net, {"conv2": "edges"})
    assert list(tvc.activations(net, pictures(), "edges")) == ["edges"]
    assert_close(
        tvc.activations(net, pictures(), "edges")["edges"],
        residual_by_hand(net, pictures())["conv2"].detach(),
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"conv1": "conv2"}, "'conv2'.*another layer has that name"),
        ({"conv1": "x", "conv2": "x"}, "another layer has that name"),
        ({"conv9": "x"}, "no layer 'conv9'.*did you mean"),
        ({"bn1": "x", "conv9": "y"}, "no layer 'conv9'"),
        ({"conv1": ""}, "must not be empty"),
        ({"conv1": "a*"}, "cannot name a layer"),
        ({"conv1": "a@1"}, "cannot name a layer"),
        ({"conv1": " a"}, "cannot name a layer"),
        ({"bn1": "x", "conv1": 3}, "a layer's name is a string, not 3"),
        ({"bn1": "x", 3: "y"}, "a layer's name is a string, not 3"),
        (["conv1"], "from what a layer is called to what it shall be called, not as a list"),
    ],
)
def test_a_rename_that_cannot_be_done_renames_nothing(names, words):
    net = randomised(Residual())
    before = tvc.layers(net).names
    with pytest.raises(tvc.InputError, match=words):
        tvc.rename(net, names)
    assert tvc.layers(net).names == before


def test_two_networks_of_one_class_have_their_own_aliases():
    one, other = randomised(Residual()), randomised(Residual())
    tvc.rename(one, {"conv1": "edges"})
    assert "edges" in tvc.layers(one).names
    assert "edges" not in tvc.layers(other).names


# ---- containers, tuples, layers that cannot be seen -----------------------------------------------


class Nested(nn.Module):
    """Containers that return what their last child returned, one of them written into later."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Identity()), nn.Identity())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.block(x)).mean((2, 3))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_container_that_returns_its_childs_tensor_has_the_childs_value_and_gradient(gradients):
    net, x = randomised(Nested()), pictures()
    conv = net.block[0][0]
    wanted = F.conv2d(x, conv.weight, conv.bias)
    (gradient,) = torch.autograd.grad(weighted(wanted.clamp(min=0).mean((2, 3))), wanted)
    names = ["block.0.0", "block.0.1", "block.0", "block"]
    with tvc.capture(net, names, gradients=gradients) as seen:
        weighted(net(x)).backward()
    for name in names:
        assert_close(seen[name].detach(), wanted.detach())
        if gradients:
            assert_close(seen.gradients[name], gradient)


def test_a_container_and_its_child_share_one_copy():
    net = randomised(Nested())
    with tvc.capture(net, "block*") as seen:
        net(pictures())
    assert len({tensor.data_ptr() for tensor in seen.values()}) == 1
    assert len(seen) == 5


def test_a_container_whose_childs_output_was_written_into_has_a_value_of_its_own():
    net = randomised(
        nn.Sequential(OrderedDict(block=nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(True))))
    )
    x = pictures()
    conv = net.block[0]
    before = F.conv2d(x, conv.weight, conv.bias).detach()
    found = tvc.activations(net, x, ["block.0", "block.1", "block"])
    assert_close(found["block.0"], before)
    assert_close(found["block.1"], before.clamp(min=0))
    assert_close(found["block"], before.clamp(min=0))


Pair = namedtuple("Pair", ["maps", "count"])


class Several(nn.Module):
    """Puts out several things, the maps first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor):
        maps = self.conv(x)
        made = {
            "tuple": (maps, 3),
            "list": [maps, 3],
            "named": Pair(maps, 3),
            "dict": {"out": maps},
        }
        return made[self.kind]


class TakesSeveral(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.several = Several(kind)
        self.kinds: list[type] = []

    def forward(self, x: Tensor) -> Tensor:
        made = self.several(x)
        self.kinds.append(type(made))
        maps = made["out"] if isinstance(made, dict) else made[0]
        return maps.relu_().mean((2, 3))


@pytest.mark.parametrize(("kind", "made"), [("tuple", tuple), ("list", list), ("named", Pair)])
def test_of_several_outputs_the_first_is_seen_and_the_rest_passed_on(kind, made):
    net, x = randomised(TakesSeveral(kind)), pictures()
    conv = net.several.conv
    wanted = F.conv2d(x, conv.weight, conv.bias)
    (gradient,) = torch.autograd.grad(weighted(wanted.clamp(min=0).mean((2, 3))), wanted)
    with tvc.capture(net, "several", gradients=True) as seen:
        weighted(net(x)).backward()
    assert_close(seen["several"].detach(), wanted.detach())
    assert_close(seen.gradients["several"], gradient)
    assert_close(tvc.activations(net, x, "several")["several"], wanted.detach())
    assert set(net.kinds) == {made}


def test_a_layer_without_a_tensor_is_refused_by_name_and_left_out_of_a_glob():
    net = randomised(TakesSeveral("dict"))
    with pytest.raises(tvc.InputError, match="'several' puts out a dict"):
        tvc.activations(net, pictures(), "several")
    assert list(tvc.activations(net, pictures(), "*")) == ["several.conv"]


class Auxiliary(nn.Module):
    """An auxiliary head that runs in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.aux = nn.Linear(4, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.fc(x) + (self.aux(x) if self.training else 0)


def test_a_layer_that_does_not_run_in_eval_mode_is_an_error_by_name_and_left_out_of_a_glob():
    net = randomised(Auxiliary()).train()
    with pytest.raises(tvc.InputError, match="'aux' does not run in eval mode"):
        tvc.activations(net, pictures(), ["conv", "aux"])
    assert list(tvc.activations(net, pictures(), "*")) == ["conv", "fc"]
    assert net.training
    assert net.aux.training


# ---- stopping early, and memory -------------------------------------------------------------------


def test_the_pass_stops_after_the_last_layer_asked_for():
    wire = Tripwire(at=1)
    net, x = randomised(with_part(wire, after="conv2")), pictures()
    wanted = plain_by_hand(net, x)
    found = tvc.activations(net, x, ["conv2", "conv1"])
    assert not wire.runs
    assert_close(found["conv2"], wanted["conv2"].detach())
    with pytest.raises(TrippedError):
        tvc.activations(net, x, ["conv2", "relu2"])
    assert len(wire.runs) == 1


def test_the_pass_stops_after_the_last_call_asked_for():
    net = randomised(Repeated())
    ran: list[str] = []
    net.conv.register_forward_hook(lambda *_: ran.append("conv"))
    tvc.activations(net, pictures(), ["relu", "conv@1"])
    assert ran == ["conv"] * 2


def test_a_network_that_catches_exceptions_does_not_catch_the_stop():
    caught: list[Exception] = []

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.net(x)
            except Exception as error:
                caught.append(error)
                return x

    net, x = randomised(Careful()), pictures()
    found = tvc.activations(net, x, "net.conv1")
    assert not caught
    assert_close(found["net.conv1"], plain_by_hand(net.net, x)["conv1"].detach())


def test_activations_hold_nothing_alive_but_themselves():
    net = randomised(Residual())
    alive: list[weakref.ref[Tensor]] = []
    for part in net.modules():
        part.register_forward_hook(lambda _m, _i, output: alive.append(weakref.ref(output)))
    found = tvc.activations(net, pictures(), ["conv2", "relu@1"])
    assert len(alive) > 5
    assert not any(each() is not None for each in alive)
    refs = [weakref.ref(tensor) for tensor in found.values()]
    del found
    gc.collect()
    assert not any(each() is not None for each in refs)


class _Token:
    """Lives as long as the graph it was put into."""


@pytest.mark.parametrize("backward", [False, True])
def test_an_observation_that_is_dropped_frees_what_it_saw_and_its_graph(backward):
    net = randomised(Residual())
    tokens: list[weakref.ref[_Token]] = []

    def mark(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        token = _Token()
        tokens.append(weakref.ref(token))
        output.register_hook(lambda _gradient, _token=token: None)

    net.conv1.register_forward_hook(mark)
    with tvc.capture(net, ["*", "relu@*"], gradients=True) as seen:
        score = weighted(net(pictures()))
        if backward:
            score.backward()
    refs = [weakref.ref(tensor) for tensor in seen.values()]
    assert tokens[0]() is not None
    del seen, score
    gc.collect()
    assert tokens[0]() is None
    assert not any(each() is not None for each in refs)


def test_gradients_may_be_taken_where_later_layers_cannot_be_differentiated():
    """Forward values only: capture must not need a backward pass."""
    net, x = randomised(with_part(BackwardTripwire())), pictures()
    with tvc.capture(net, "conv1", gradients=True) as seen:
        net(x)
    assert_close(seen["conv1"].detach(), plain_by_hand(net, x)["conv1"].detach())


# ---- compiled and wrapped -------------------------------------------------------------------------


@pytest.fixture(params=["wrapped", "in place", "child in place", "DataParallel"])
def found(request):
    """A network, what the user calls, after it was compiled by a first run."""
    torch._dynamo.reset()
    net = randomised(Residual())
    called = net
    if request.param == "wrapped":
        called = torch.compile(net, backend="eager")
    elif request.param == "in place":
        net.compile(backend="eager")
    elif request.param == "child in place":
        net.bn2.compile(backend="eager")
        net.relu.compile(backend="eager")
    else:
        called = nn.DataParallel(net)
    called(pictures())
    return net, called


def test_compiled_and_wrapped_networks_are_captured_correctly(found):
    net, called = found
    x = pictures()
    wanted = residual_by_hand(net, x)
    names = list(wanted)
    grads = torch.autograd.grad(weighted(wanted["fc"]), [wanted[name] for name in names])
    with tvc.capture(called, names, gradients=True) as seen:
        weighted(called(x)).backward()
    values = tvc.activations(called, x, names)
    for name, gradient in zip(names, grads, strict=True):
        assert_close(seen[name].detach(), wanted[name].detach())
        assert_close(seen.gradients[name], gradient)
        assert_close(values[name], wanted[name].detach())
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert hooks_of(net) == []


def test_layers_may_be_named_as_the_wrapper_names_them(found):
    net, called = found
    prefix = next(name for name, part in called.named_modules() if part is net.bn1)
    seen = tvc.activations(called, pictures(), prefix)
    assert list(seen) == ["bn1"]


def test_layers_within_a_compiled_part_keep_the_names_they_had():
    net, x = randomised(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))), pictures()
    wanted = tvc.activations(net, x, ["0.0", "0.1"])
    net[0] = torch.compile(net[0], backend="eager")
    for names in (["0.0", "0.1"], ["0._orig_mod.0", "0._orig_mod.1"]):
        found = tvc.activations(net, x, names)
        assert list(found) == ["0.0", "0.1"]
        for name in wanted:
            assert_close(found[name], wanted[name])


def test_replicas_that_run_in_threads_are_refused():
    spread = nn.DataParallel(randomised(plain()))
    spread.device_ids = [0, 1]  # as on a machine with two GPUs
    with (
        pytest.raises(tvc.InputError, match=r"replicas.*capture and run model\.module"),
        tvc.capture(spread),
    ):
        pass


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_scripted_networks_are_refused_in_words():
    net = torch.jit.trace(randomised(plain()), pictures())
    with pytest.raises(tvc.InputError, match="TorchScript"):
        tvc.activations(net, pictures(), "*")


# ---- sentences ------------------------------------------------------------------------------------


def test_asking_for_a_layer_that_was_not_seen_says_so():
    net = randomised(Auxiliary())
    with tvc.capture(net, ["conv", "aux"]) as seen:
        with pytest.raises(tvc.InputError, match=r"nothing was seen of 'conv'.*did not run"):
            seen["conv"]
        net(pictures())
    with pytest.raises(tvc.InputError, match=r"nothing was seen of 'fc'.*not among the layers"):
        seen["fc"]
    with pytest.raises(tvc.InputError, match=r"nothing was seen of 'aux'.*did not run"):
        seen["aux"]
    with pytest.raises(tvc.InputError, match=r"no layer 'convv'.*did you mean 'conv'"):
        seen["convv"]


def test_whether_a_layer_was_seen_can_be_asked_as_of_any_mapping():
    net = randomised(Auxiliary())
    tvc.rename(net, {"conv": "edges"})
    with tvc.capture(net, ["conv", "aux"], gradients=True) as seen:
        net(pictures())
    assert [name in seen for name in ("edges", "conv", "aux", "fc", "no such", "conv@1")] == [
        *(True, True, False, False, False, False)
    ]
    assert seen.get("aux") is None
    assert seen.get("conv") is seen["edges"]
    assert not any(each in seen for each in (net.conv, 0, None))
    with pytest.raises(tvc.InputError, match="named by a string here, not by 0"):
        seen[0]
    assert "conv" not in seen.gradients
    with tvc.capture(net, "conv") as seen:
        net(pictures()).sum().backward()
    assert "conv" not in seen.gradients
    assert seen.gradients.get("conv", 0) == 0


def test_asking_for_gradients_that_were_not_asked_for_says_how_to():
    net = randomised(plain())
    with tvc.capture(net, "conv1") as seen:
        net(pictures()).sum().backward()
    with pytest.raises(tvc.InputError, match=r"not asked for.*gradients=True"):
        seen.gradients["conv1"]
    assert len(seen.gradients) == 0


def test_asking_for_gradients_before_backward_says_what_is_missing():
    net = randomised(plain())
    with tvc.capture(net, "conv1", gradients=True) as seen:
        net(pictures())
        with pytest.raises(tvc.InputError, match=r"'conv1'.*backward\(\)"):
            seen.gradients["conv1"]
    with tvc.capture(net, "conv1", gradients=True) as seen, torch.no_grad():
        net(pictures())
    with pytest.raises(tvc.InputError, match="gradients enabled"):
        seen.gradients["conv1"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("cat.png", "tensor.*not a str"),
        (torch.zeros(3, 8), r"\(N, C, H, W\).*\(3, 8\)"),
        (torch.zeros(0, 3, 8, 8), "at least one image"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point, not torch.uint8"),
        (torch.zeros(1, 3, 8, 8), "float64.*float32"),
        (torch.zeros(3, 8, 8, dtype=torch.float64), r"batch axis.*inputs\[None\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(inputs, words):
    with pytest.raises(tvc.InputError, match=words):
        tvc.activations(randomised(plain()), inputs, "conv1")


# ---- the table of layers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables():
    """Tables of networks that are worth building once."""
    built: dict[str, tvc.LayerTable] = {}

    def table(name: str) -> tvc.LayerTable:
        if name not in built:
            with torch.device("meta"):  # shapes and costs need no numbers
                net = torchvision.models.get_model(name, weights=None)
            built[name] = tvc.layers(net, (3, 224, 224))
        return built[name]

    return table


@pytest.mark.parametrize(
    ("name", "giga_macs"), [("vgg16", 15.470), ("resnet18", 1.814), ("resnet50", 4.089)]
)
def test_multiply_adds_at_224_are_the_published_ones(tables, name, giga_macs):
    assert tables(name).macs / 1e9 == pytest.approx(giga_macs, abs=0.0005)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vgg16", 138_357_544), ("resnet18", 11_689_512), ("resnet50", 25_557_032)],
)
def test_parameter_totals_are_the_published_ones(tables, name, parameters):
    assert tables(name).parameters == tables(name).trainable == parameters


def test_calls_tell_how_often_a_module_runs(tables):
    table = tables("resnet50")
    assert table["relu"].calls == 1
    assert table["layer1.0.relu"].calls == 3  # after each of the bottleneck's three batch norms
    assert table["layer1.0.conv1"].calls == 1
    assert tvc.layers(randomised(Repeated()), (3, 8, 8))["conv"].calls == 3


def test_rows_add_up_to_the_totals(tables):
    table = tables("resnet18")
    assert sum(row.macs for row in table) == table.macs
    assert sum(row.parameters for row in table) == table.parameters
    assert table["layer1"].macs == sum(r.macs for r in table if r.name.startswith("layer1."))


def test_a_table_tells_what_is_in_none_of_its_rows():
    """A module with parts has no row; its own parameters and products are in the totals alone."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6, 1, 1))
            self.mix = nn.Conv2d(6, 6, 1, bias=False)  # its weight is used, and it does not run

        def forward(self, x):
            return self.scale * nn.functional.conv2d(x, self.mix.weight)

    net = nn.Sequential(nn.Conv2d(3, 6, 1), Scaled())
    table = tvc.layers(net, (3, 5, 7))
    said = "In none of these rows, but in modules that hold them: "
    assert table.format().splitlines()[-1] == said + "6 params, 1.26 k multiply-adds"
    assert tvc.layers(net).format().splitlines()[-1] == said + "6 params"
    for told in (tvc.layers(net, (3, 5, 7), nested=True), tvc.layers(net[0:1], (3, 5, 7))):
        assert said not in told.format()


def test_a_row_counts_what_its_layer_computes():
    net = randomised(Repeated())
    table = tvc.layers(net, (3, 9, 12))
    assert table["stem"].output_shape == (6, 9, 12)
    assert table["stem"].macs == 9 * 12 * 6 * 3 * 9
    assert table["stem"].parameters == 6 * 3 * 9 + 6
    assert table["conv"].macs == 3 * 9 * 12 * 6 * 6 * 9
    assert table["fc"].macs == 6 * 4
    assert table["fc"].output_shape == (4,)
    assert table.macs == sum(row.macs for row in table)
    assert table["relu"].parameters == 0
    assert table["stem"].type == "Conv2d"
    assert table["stem"].depth == 0
    assert table.names == ["stem", "conv", "relu", "fc"]
    assert (table[0], table[-1], len(table)) == (table["stem"], table["fc"], 4)
    assert table[1:3] == (table["conv"], table["relu"])


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_counted_whichever_way_torch_computes_it(batch_first):
    """Without a graph torch computes a whole self-attention in one operator of its own."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 2, stride=2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x):
            tokens = self.patches(x).flatten(2)
            tokens = tokens.permute(0, 2, 1) if batch_first else tokens.permute(2, 0, 1)
            return self.attention(tokens, tokens, tokens)[0]

    table = tvc.layers(Attending(), (3, 6, 10))
    tokens, width = 3 * 5, 8
    projections = 4 * tokens * width * width  # query, key, value and what is put out
    meetings = 2 * tokens * tokens * width  # every query with every key, every weight with a value
    assert table["attention"].macs == projections + meetings
    assert table.macs == projections + meetings + tokens * width * 3 * 2 * 2


def test_recurrent_layers_are_counted():
    class Reading(nn.Module):
        """The columns of a map are read from both sides, as where a line of text is recognised."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3)
            self.reader = nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x):
            return self.reader(self.conv(x).mean(2).permute(0, 2, 1))[0]

    columns = 9
    gates = 4 * 4
    first, second = gates * (6 + 4), gates * (2 * 4 + 4)  # of the input, and of the state
    assert tvc.layers(Reading(), (1, 5, columns + 2))["reader"].macs == columns * 2 * (
        first + second
    )


def test_operations_without_a_module_are_counted_where_they_run():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(4, 3, 3, 3))
            self.weight = nn.Parameter(torch.zeros(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel).mean((2, 3)) @ self.weight

    table = tvc.layers(nn.Sequential(Bare()), (3, 10, 8))
    assert table.macs == table["0"].macs == 8 * 6 * 4 * 27 + 4 * 2


def test_grouped_convolutions_cost_what_they_multiply():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1, groups=2))
    table = tvc.layers(net, (8, 6, 7))
    assert table["0"].macs == 4 * 5 * 8 * 9
    assert table["1"].macs == 4 * 5 * 4 * 4


def test_parameters_that_are_shared_count_once_in_the_total():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    table = tvc.layers(net)
    assert table["0"].parameters == table["2"].parameters == 72
    assert (table.parameters, table.trainable) == (80, 72)
    assert (table["0"].trainable, table["2"].trainable) == (64, 72)


def test_layers_that_do_not_run_in_eval_mode_have_no_calls():
    table = tvc.layers(randomised(Auxiliary()).train(), (3, 8, 8))
    row = table["aux"]
    assert (row.calls, row.macs, row.output_shape) == (0, 0, None)
    assert row.parameters == 10


def test_without_an_input_size_nothing_runs_and_nothing_is_made_up():
    wire = Tripwire(at=1)
    table = tvc.layers(randomised(with_part(wire)))
    assert not wire.runs
    assert table.macs is None
    assert all((row.macs, row.calls, row.output_shape) == (None, None, None) for row in table)
    assert table["conv1"].parameters == 6 * 27 + 6


def test_a_row_is_found_by_alias_and_by_name():
    net = randomised(Residual())
    tvc.rename(net, {"conv1": "edges"})
    table = tvc.layers(net, (3, 8, 8))
    assert table["edges"] is table["conv1"]
    assert [each in table for each in ("edges", "conv1", table["fc"], "edge", 0)] == [
        *(True, True, True, False, False)
    ]
    assert table["edges"].name == "edges"
    assert "edges (Conv2d)" in str(table)
    with pytest.raises(tvc.InputError, match=r"no layer 'edge'.*did you mean 'edges'"):
        table["edge"]


def test_containers_are_rows_only_when_asked_for():
    net = nn.Sequential(OrderedDict(a=plain(), b=nn.ReLU()))
    assert "a" not in tvc.layers(net).names
    assert tvc.layers(net, nested=True).names[:2] == ["a", "a.conv1"]
    assert tvc.layers(net)["a"].parameters == sum(p.numel() for p in net.parameters())
    own = tvc.models.load("cat_dog_small")
    assert "conv2d_1" in tvc.layers(own).names
    assert "conv2d_1.conv" not in tvc.layers(own).names
    assert "conv2d_1.conv" in tvc.layers(own, nested=True).names


def test_rows_become_plain_dictionaries():
    table = tvc.layers(nn.Sequential(nn.Conv2d(2, 4, 3)), (2, 5, 6))
    assert table.to_dicts() == [
        {
            "name": "0",
            "type": "Conv2d",
            "output_shape": (4, 3, 4),
            "parameters": 76,
            "trainable": 76,
            "macs": 12 * 4 * 18,
            "calls": 1,
            "depth": 0,
        }
    ]


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
@pytest.mark.parametrize("width", [48, 60, 80, 100])
def test_a_printed_table_keeps_within_the_width_asked_for(tables, name, width):
    lines = tables(name).format(width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) > len(tables(name))


def test_a_printed_table_shows_every_layer_and_the_totals(tables):
    text = tables("resnet50").format(100)
    assert all(f"{name} (" in text for name in tables("resnet50").names)
    assert "25,557,032" in text
    assert "4.09 G" in text


@pytest.mark.parametrize("size", [(3,), (3, 0, 8), (1, 3, 8, 8), (3, -8, 8)])
def test_an_input_size_that_is_none_is_refused(size):
    with pytest.raises(tvc.InputError, match="input_size"):
        tvc.layers(randomised(plain()), size)


# ---- the layer Grad-CAM looks at ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("vgg16", "features.29", 64),
        ("resnet50", "layer4", 64),
        ("densenet121", "features.norm5", 64),
        ("googlenet", "inception5b", 64),
        ("mobilenet_v2", "features.18", 64),
        ("cat_dog", "conv2d_4", 150),
        ("mnist_convnet", "conv_1", 28),
    ],
)
def test_the_default_layer_of_known_networks(name, layer, side):
    if name in tvc.models.OWN:
        net = tvc.models.load(name).module
        channels = 1 if name == "mnist_convnet" else 3
    else:
        with torch.device("meta"):
            options = {"init_weights": False} if name in ("vgg16", "googlenet") else {}
            net = torchvision.models.get_model(name, weights=None, **options)
        net, channels = net.to_empty(device="cpu"), 3
    assert tvc.default_layer(net, torch.zeros(1, channels, side, side)) == layer


def test_the_default_layer_goes_by_its_alias():
    net = randomised(plain())
    tvc.rename(net, {"relu2": "eyes"})
    assert tvc.default_layer(net, pictures()) == "eyes"
    assert tvc.grad_cam(net, pictures()).layer == "eyes"


def test_the_default_layer_follows_a_network_that_is_changed():
    net, x = randomised(plain()), pictures()
    assert tvc.default_layer(net, x) == "relu2"
    net.relu2 = nn.Identity()
    net.gap = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net.double()
    assert tvc.default_layer(net, x) == "gap.1"
    net.gap = nn.AdaptiveAvgPool2d(1)
    assert tvc.default_layer(net, x) == "relu2"


def test_the_default_layer_follows_a_convolution_whose_stride_is_changed():
    """The same modules, another size: what was found before no longer holds."""
    net = randomised(with_part(nn.Conv2d(8, 8, 3, padding=1), after="conv2"))
    net.relu2 = nn.MaxPool2d(2)
    x = pictures(height=16, width=12)
    assert tvc.default_layer(net, x) == "part"
    net.part.stride = (2, 2)
    net.relu2.kernel_size, net.relu2.stride = 1, 1
    assert tvc.default_layer(net, x) == "relu2"


class Gated(nn.Module):
    """Squeeze-and-excitation after the last maps, and a classifier written as 1×1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.squeeze = nn.Conv2d(6, 2, 1)
        self.excite = nn.Conv2d(2, 6, 1)
        self.act = nn.ReLU()
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = self.act(x * gate)
        return self.classifier(x.mean((2, 3), keepdim=True)).flatten(1)


def test_sizes_are_those_of_the_network_as_it_is_however_often_it_was_changed():
    """A part that is gone may leave its number in memory to the next one."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 3))
    for turn in range(40):
        net[1] = nn.Upsample(scale_factor=1 + turn % 5)
        field = receptive_fields(net, "1", (1, 8, 8))["1"]
        assert (field is None) == (turn % 5 > 0)
    net[1].scale_factor = 1.0
    assert receptive_fields(net, "1", (1, 8, 8))["1"].size == (1, 1)


def test_gates_and_one_by_one_classifiers_do_not_count_as_the_last_convolution():
    assert tvc.default_layer(randomised(Gated()), pictures()) == "act"


def test_a_network_without_maps_has_no_default_layer_and_says_what_to_do():
    net = randomised(nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 10, 4)))
    with pytest.raises(tvc.InputError, match=r"no convolution.*saliency or occlusion"):
        tvc.default_layer(net, pictures())
    with pytest.raises(tvc.InputError, match="no convolution"):
        tvc.grad_cam(net, pictures())
