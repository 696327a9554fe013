"""Several methods and layers at once: the same results, in fewer passes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import (
    Functional,
    Gray,
    Headed,
    Repeated,
    Tripwire,
    pictures,
    plain,
    randomised,
    with_part,
)
from tests.test_promises import HARD_SETTINGS, _name, nothing_changes, residual
from torchviz_cnn.album import explain_with
from torchviz_cnn.errors import NotApplicable

CAMS = ["grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus"]
PIXELS = ["saliency", "input_x_gradient", "guided_backprop", "deconvnet"]
SHARING = [*PIXELS, *CAMS, "guided_grad_cam"]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: randomised(plain()),
    "residual": residual,
    "functional": lambda: randomised(Functional()),
    "repeated": lambda: randomised(Repeated()),
    "softmax": lambda: randomised(Headed(nn.Softmax(dim=1))),
    "one sigmoid": lambda: randomised(Headed(nn.Sigmoid(), 1)),
}


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    assert found.manifest() == {**wanted.manifest(), "score": found.manifest()["score"]}
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.score, wanted.score, rtol=1e-11, atol=1e-12)
    assert getattr(found, "place", None) == getattr(wanted, "place", None)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("several", [False, True])
def test_every_method_gives_what_it_gives_alone(network, score, several):
    net, x = NETWORKS[network](), pictures(3)
    target = [[0, 1, 1], [1, 0, 0], [1, 1, 0]] if several else None
    found = tvc.explain(net, x, target, methods=list(tvc.METHODS), score=score)
    assert list(found) == list(tvc.METHODS)
    for name, result in found.items():
        assert_same(result, tvc.METHODS[name](net, x, target, score=score))


def test_options_reach_the_methods_that_know_them():
    net, x = residual(), pictures(2)
    options = {"relu": False, "positive": True, "window": 4}
    found = tvc.explain(net, x, 1, methods=list(tvc.METHODS), layer="conv2", **options)
    layered = {"layer": "conv2"}
    assert_same(found["grad_cam"], tvc.grad_cam(net, x, 1, layer="conv2", relu=False))
    assert_same(found["saliency"], tvc.saliency(net, x, 1, positive=True))
    assert_same(found["occlusion"], tvc.occlusion(net, x, 1, window=4))
    assert_same(found["guided_grad_cam"], tvc.guided_grad_cam(net, x, 1, **layered))
    assert (found["grad_cam"].values < 0).any()
    assert (found["saliency"].values >= 0).all()


def test_a_callable_and_a_network_without_a_channel_axis():
    net, x = randomised(Gray()), pictures(3, channels=1)[:, 0]
    picked = torch.tensor([2, 0, 1])
    found = tvc.explain(net, x, lambda out: out[torch.arange(3), picked], methods=SHARING)
    for name, result in found.items():
        wanted = tvc.METHODS[name](net, x, picked.tolist())
        torch.testing.assert_close(result.values, wanted.values, rtol=1e-11, atol=1e-12)


# ---- several layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [CAMS, [*CAMS, "guided_grad_cam"], [*CAMS, "saliency"]])
@pytest.mark.parametrize("several", [False, True])
def test_several_layers_give_what_each_gives_alone(methods, several):
    net, x = residual(), pictures(3)
    names = ["conv3", "conv1", "bn2", "relu", "relu@0", "relu@1", "dropout"]
    target = [[0, 3], [1, 2], [2, 2]] if several else [1, 0, 3]
    found = tvc.explain(net, x, target, methods=methods, layer=names)
    wanted = {
        f"{method}:{layer}": tvc.METHODS[method](net, x, target, layer=layer)
        for method in methods
        if method != "saliency"
        for layer in names
    }
    assert [key for key in found if key != "saliency"] == list(wanted)
    for key, result in wanted.items():
        assert_same(found[key], result)


def test_layers_in_parallel_branches_do_not_disturb_each_other():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.left, self.right = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.fc((self.left(x) * self.right(x).sigmoid()).mean((2, 3)))

    net, x = randomised(Branches()), pictures(2)
    for layers in (["left", "right"], ["right", "left"], ["left", "right", "stem"]):
        found = tvc.explain(net, x, [[0, 1, 2]] * 2, methods="layer_cam", layer=layers)
        for layer in layers:
            assert_same(
                found[f"layer_cam:{layer}"], tvc.layer_cam(net, x, [[0, 1, 2]] * 2, layer=layer)
            )


class Frozen(nn.Module):
    """Runs its backbone under ``no_grad``, as for transfer learning."""

    def __init__(self) -> None:
        super().__init__()
        net = plain()
        self.backbone = net[:4]
        self.rest = net[4:]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x)
        return self.rest(x)


@pytest.mark.parametrize(
    "layers",
    [["backbone.conv1"], ["backbone.conv1", "backbone.conv2"], ["backbone.conv2", "rest.relu2"]],
)
def test_layers_inside_a_no_grad_block_are_explained_as_alone(layers):
    net, x = randomised(Frozen()), pictures(2)
    methods = ["hires_cam", "grad_cam"]
    found = tvc.explain(net, x, 1, methods=methods, layer=layers)
    for method in methods:
        for layer in layers:
            key = f"{method}:{layer}" if len(layers) > 1 else method
            assert_same(found[key], tvc.METHODS[method](net, x, 1, layer=layer))
            assert found[key].values.any()


# ---- passes are counted ---------------------------------------------------------------------------


@pytest.fixture
def backward_passes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    passes: list[None] = []
    differentiate = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(None)
        return differentiate(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return passes


@pytest.mark.parametrize(
    ("methods", "layers", "forward", "backward"),
    [
        (CAMS, "conv2", 1, 1),
        (CAMS, ["conv1", "pool1", "relu2"], 1, 1),
        (["saliency", "input_x_gradient"], None, 1, 1),
        (PIXELS, None, 1, 3),
        (["guided_backprop", "guided_grad_cam"], "conv2", 1, 2),
        (SHARING, "conv2", 1, 5),  # by three rules; at the maps for the family and its guided one
        (SHARING, ["conv1", "conv2"], 1, 6),
        (["grad_cam"], "conv2", 1, 1),
        (["grad_cam"], ["conv1", "conv2"], 1, 1),
    ],
)
def test_passes_are_shared(methods, layers, forward, backward, backward_passes):
    wire = Tripwire()
    net = randomised(with_part(wire, "conv1"))
    tvc.explain(net, pictures(3), 1, methods=methods, layer=layers)
    assert len(wire.runs) == forward
    assert len(backward_passes) == backward


def test_the_default_layer_is_looked_for_once():
    wire = Tripwire()
    net = randomised(with_part(wire, "conv1"))
    tvc.explain(net, pictures(3), 1, methods=CAMS)
    assert len(wire.runs) == 2
    tvc.explain(net, pictures(3), 1, methods=CAMS)
    assert len(wire.runs) == 3


def test_a_batch_size_is_kept_to():
    wire = Tripwire()
    net = randomised(with_part(wire, "conv1"))
    sizes: list[int] = []
    wire.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    x = pictures(5)
    found = tvc.explain(net, x, 1, methods=CAMS, layer="conv2", batch_size=2)
    assert sizes == [2, 2, 1]
    sizes.clear()
    both = tvc.explain(net, x, 1, methods=["saliency", *CAMS], layer="conv2", batch_size=2)
    assert sizes == [2, 2, 1, 2, 2, 1]
    assert_same(both["saliency"], tvc.saliency(net, x, 1))
    for name in CAMS:
        assert_same(found[name], tvc.METHODS[name](net, x, 1, layer="conv2"))
        assert_same(both[name], found[name])


@pytest.fixture
def four_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of large pictures: of small ones all of a test's would go together."""
    monkeypatch.setattr("torchviz_cnn.methods.passes._KEPT", 1)


@pytest.mark.usefixtures("four_at_a_time")
@pytest.mark.parametrize("layer", ["conv2", ["conv1", "conv2"]])
@pytest.mark.parametrize("target", [None, [[0, 3], [1, 2]] * 5])
def test_many_pictures_go_a_few_at_a_time_through_what_is_shared(layer, target):
    wire = Tripwire()
    net = randomised(with_part(wire, "conv1"))
    x = pictures(10)
    wanted = {
        f"{name}:{each}" if name not in PIXELS and layer != "conv2" else name: tvc.METHODS[name](
            net, x, target, **({} if name in PIXELS else {"layer": each})
        )
        for name in SHARING
        for each in ([layer] if layer == "conv2" else layer)
    }
    sizes: list[int] = []
    wire.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    found = tvc.explain(net, x, target, methods=SHARING, layer=layer)
    assert sizes == [4, 4, 2]
    assert found.keys() == wanted.keys()
    for key, result in found.items():
        assert_same(result, wanted[key])


@pytest.mark.usefixtures("four_at_a_time")
def test_of_several_parts_each_reason_and_each_warning_is_told_once_and_by_its_method():
    few = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Tanh(), nn.ELU(), nn.Flatten(), nn.Linear(384, 5))
    )
    told: list[str] = []
    options = {"batch_size": None}
    explain_with(
        PIXELS, tvc.Model(few.double(), None, (3, 14, 10)), pictures(9), 1, options,
        skip=False, tell=told.append,
    )  # fmt: skip
    assert [each.split(":")[0] for each in told] == ["guided_backprop", "deconvnet"]
    assert all("only 33% of the activation functions" in each for each in told)
    few[1] = nn.Tanh()
    with pytest.warns(UserWarning, match=r"(is|are) left out: \w+ rules") as caught:
        found = tvc.explain(few, pictures(9), 1, methods="all", layer="0", window=5)
    assert len([w for w in caught if "left out" in str(w.message)]) == 2  # one a rule
    assert {"saliency", "grad_cam"} <= set(found)
    with pytest.raises(NotApplicable, match="guided rules are about ReLUs"):
        tvc.explain(few, pictures(9), 1, methods=["saliency", "guided_backprop"])


@pytest.mark.parametrize("batch_size", [0, 2.5, "two", True])
def test_a_batch_size_that_is_none_is_refused_whatever_shares_a_pass(batch_size: object) -> None:
    for methods in (["saliency", "input_x_gradient"], CAMS):
        with pytest.raises(tvc.InputError, match="batch_size must be a whole number of at least 1"):
            tvc.explain(plain(), pictures(3), methods=methods, batch_size=batch_size)


@pytest.mark.parametrize("inputs", [None, 5, torch.tensor(1.0)])
def test_what_is_no_picture_is_refused_with_a_batch_size_too(inputs: Any) -> None:
    with pytest.raises(tvc.InputError, match="inputs must be"):
        tvc.explain(plain(), inputs, methods=["saliency", *CAMS], batch_size=2)


def test_clamps_that_a_rule_rewrites_do_not_change_the_plain_gradient():
    """At exactly 0 the slope of ``clamp(min=0)`` is 1 and that of a ReLU is 0."""

    class Clamp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(min=0)

    wire = Tripwire()
    parts = OrderedDict(list(plain().named_children()))
    parts["relu1"] = Clamp()
    parts["relu2"] = wire
    net = randomised(nn.Sequential(parts))
    with torch.no_grad():
        net.conv1.weight[:3] = 0
        net.conv1.bias[:3] = 0
    x = pictures(2)
    wanted = {name: tvc.METHODS[name](net, x, 1, layer="conv1") for name in CAMS}
    wanted |= {name: tvc.METHODS[name](net, x, 1) for name in PIXELS}
    wire.runs.clear()
    found = tvc.explain(net, x, 1, methods=[*CAMS, *PIXELS], layer="conv1")
    assert len(wire.runs) == 2
    for name, result in wanted.items():
        assert_same(found[name], result)


def test_the_family_and_its_memory_end_with_the_call():
    """The same bytes at the start of the second call: no graph is kept."""
    net, x = residual(), pictures(2)
    first = tvc.explain(net, x, 1, methods=SHARING)
    assert all(result.values.grad_fn is None for result in first.values())
    assert not any(result.values.is_inference() for result in first.values())


# ---- what every function promises -----------------------------------------------------------------


@pytest.mark.parametrize("setting", HARD_SETTINGS, ids=_name)
@pytest.mark.parametrize("layers", [None, ["relu@0", "conv3"]])
def test_the_network_comes_back_as_it_was(setting, layers):
    found = setting(residual())
    x = pictures()
    wanted = tvc.explain(residual(), x, 1, methods=SHARING, layer=layers)
    with found.around(), nothing_changes(found.net, x):
        got = tvc.explain(found.model, x, 1, methods=SHARING, layer=layers)
    assert got.keys() == wanted.keys()
    for key, result in got.items():
        torch.testing.assert_close(result.values, wanted[key].values, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("no method 'grad_came'.*grad_cam", {"methods": ["grad_cam", "grad_came"]}),
        ("at least one method", {"methods": []}),
        ("at least one layer", {"methods": "grad_cam", "layer": []}),
        ("one layer is needed, not 5", {"methods": ["grad_cam", "layer_cam"], "layer": 5}),
        ("there is no method 5; choose from saliency", {"methods": 5}),
        ("there is no method None; choose from saliency", {"methods": ["saliency", None]}),
        (r"there is no method \['saliency'\]; choose", {"methods": [["saliency"]]}),
        ("no layer 'nowhere'", {"methods": CAMS, "layer": ["conv1", "nowhere"]}),
        ("no layer 'nowhere'", {"methods": SHARING, "layer": "nowhere"}),
        ("none of saliency has an option 'window'", {"methods": "saliency", "window": 3}),
        ("99 is out of range", {"methods": SHARING, "target": 99}),
        ("no layer that 'fc\\*' matches", {"methods": "grad_cam", "layer": ["conv1", "fc*"]}),
        ("puts out", {"methods": CAMS, "layer": ["conv1", "fc"]}),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_and_leaves_no_trace(words, arguments):
    net, x = residual(), pictures()
    with nothing_changes(net, x), pytest.raises(tvc.InputError, match=words):
        tvc.explain(net, x, **arguments)


def test_methods_and_layers_may_come_from_anything_that_gives_them_in_a_row():
    net, x = randomised(plain()), pictures(2)
    methods, layers = ["grad_cam", "layer_cam"], {"conv1": 1, "conv2": 2}
    found = tvc.explain(net, x, 1, methods=iter(methods), layer=layers.keys())
    wanted = tvc.explain(net, x, 1, methods=methods, layer=list(layers))
    assert list(found) == list(wanted)
    assert len(found) == 4
    assert all((found[key].values == wanted[key].values).all() for key in found)


def test_one_method_refuses_several_layers_and_tells_of_explain():
    with pytest.raises(tvc.InputError, match=r"one layer .* explain\(model, inputs, methods"):
        tvc.grad_cam(residual(), pictures(), layer=["conv1", "conv2"])


def test_a_method_a_network_is_not_made_for_is_refused_like_alone():
    net = randomised(nn.Sequential(nn.Flatten(), nn.Linear(math.prod((3, 14, 10)), 4)))
    with pytest.raises(tvc.InputError, match="no convolution"):
        tvc.explain(net, pictures(), 1, methods=["saliency", "grad_cam", "layer_cam"])


class Aside(nn.Module):
    """Computes something else besides, last of all, that does not reach the score."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.side = plain(), nn.Sequential(nn.Conv2d(3, 4, 3), Then(then))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        self.side(x)
        return scores


class Then(nn.Module):
    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(x)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (Tensor.relu, "does not depend on the layer 'side'"),
        (Tensor.long, "'side' puts out torch.int64 numbers, and maps .* floating-point"),
        (
            lambda x: x.unflatten(1, (2, 2)).flatten(0, 1),
            "'side' puts out the maps of 4 pictures where 2",
        ),
    ],
)
def test_a_layer_that_cannot_serve_is_the_fault_of_who_named_it(then, words):
    """No method is left out for it then, as for what the network is not made for."""
    net, x = randomised(Aside(then)), pictures(2)
    with pytest.raises(tvc.InputError, match=words) as caught:
        tvc.explain(net, x, 1, methods="all", layer="side")
    assert not isinstance(caught.value, NotApplicable)


def test_where_the_usual_layer_cannot_serve_the_other_methods_answer():
    net, x = randomised(Aside(Tensor.relu)), pictures(2)
    with pytest.warns(UserWarning, match="are left out: the score does not depend on the layer"):
        found = tvc.explain(net, x, 1, methods="all")
    assert set(tvc.METHODS) - set(found) == {*CAMS, "guided_grad_cam"}
    assert_same(found["saliency"], tvc.saliency(net, x, 1))


def test_guided_grad_cam_of_half_precision_does_not_fall_below_its_range():
    """Half precision holds its factors, but not their product: the least it knows is 6e-8."""
    net, x = randomised(plain()).float(), pictures(2).float()
    with torch.no_grad():
        for each in (net[-1].weight, net[-1].bias):
            each.mul_(1e-3)
    wanted = tvc.guided_grad_cam(net, x, 1).values
    found = tvc.guided_grad_cam(net.half(), x.half(), 1).values
    assert 1e-10 < float(wanted.abs().max()) < 3e-8
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
