"""The Grad-CAM family beside its formulas, and many classes from one pass beside one at a time."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from tests.networks import pictures, plain, randomised
from torchviz_cnn import head
from torchviz_cnn.methods import classes
from torchviz_cnn.methods.closed import slopes

CAMS = ["grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus"]
every_cam = pytest.mark.parametrize("method", CAMS)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def cam(method: str, net: Any, x: Tensor, target: Any = None, **options: Any) -> Any:
    return tvc.METHODS[method](net, x, target, **{"relu": False, **options})


# ---- the formulas, written out --------------------------------------------------------------------


def split(net: nn.Sequential, after: str) -> tuple[nn.Sequential, nn.Sequential]:
    at = [name for name, _ in net.named_children()].index(after) + 1
    return net[:at], net[at:]


def maps_and_gradient(net: nn.Sequential, x: Tensor, c: int, after: str) -> tuple[Tensor, Tensor]:
    trunk, head = split(out_of_place(net), after)
    maps = trunk(x).detach().requires_grad_()
    return maps.detach(), torch.autograd.grad(head(maps)[:, c].sum(), maps)[0]


def out_of_place(net: nn.Sequential) -> nn.Sequential:
    twin = copy.deepcopy(net)
    for part in twin.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    return twin


def grad_cam_twin(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("nk,nkij->nij", torch.einsum("nkij->nk", g) / (a.shape[2] * a.shape[3]), a)


def hires_cam_twin(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("nkij,nkij->nij", g, a)


def layer_cam_twin(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("nkij,nkij->nij", g * (g > 0), a)


def grad_cam_plus_plus_twin(a: Tensor, g: Tensor) -> Tensor:
    """Term by term, with the second and third derivatives of exp(S), at each cell by itself."""
    out = torch.zeros(a.shape[0], *a.shape[2:], dtype=a.dtype)
    for n in range(a.shape[0]):
        for k in range(a.shape[1]):
            weight = 0.0
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    slope = float(g[n, k, i, j])
                    second, third = slope**2, slope**3
                    below = 2 * second + float(a[n, k].sum()) * third
                    alpha = second / below if below else 0.0
                    weight += alpha * max(slope, 0.0)
            out[n] += weight * a[n, k]
    return out


TWINS = {
    "grad_cam": grad_cam_twin,
    "hires_cam": hires_cam_twin,
    "layer_cam": layer_cam_twin,
    "grad_cam_plus_plus": grad_cam_plus_plus_twin,
}


def with_dense_layers() -> nn.Sequential:
    """Two dense layers behind a 2×2 pooling, as VGG has them."""
    net = plain()
    parts = OrderedDict(list(net.named_children())[:5])
    parts |= {
        "pool": nn.AdaptiveAvgPool2d((3, 2)),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(48, 9),
        "act": nn.ReLU(inplace=True),
        "drop": nn.Dropout(0.5),
        "fc2": nn.Linear(9, 4),
    }
    return randomised(nn.Sequential(parts), seed=3)


@every_cam
@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool1", "conv2", "relu2"])
@pytest.mark.parametrize("build", [lambda: randomised(plain(), seed=2), with_dense_layers])
def test_each_map_is_its_formula(method, layer, build):
    net, x = build(), pictures(3)
    for c in range(4):
        wanted = TWINS[method](*maps_and_gradient(net, x, c, layer))
        assert wanted.abs().max() > 1e-3
        close(cam(method, net, x, c, layer=layer).values, wanted)
        close(tvc.METHODS[method](net, x, c, layer=layer).values, wanted.clamp(min=0))


def test_the_four_methods_are_four_different_maps():
    net, x = with_dense_layers(), pictures(2)
    maps = [cam(method, net, x, 1, layer="relu1").values for method in CAMS]
    for i, one in enumerate(maps):
        for other in maps[i + 1 :]:
            assert float((one - other).abs().max()) > 1e-2 * float(one.abs().max())


def test_grad_cam_plus_plus_survives_gradients_whose_square_underflows():
    net = randomised(plain(), seed=2).float()
    with torch.no_grad():
        net.fc.weight.mul_(1e-25)
    x = pictures(1).float()
    found = cam("grad_cam_plus_plus", net, x, 1, layer="relu2").values.double()
    wide = randomised(plain(), seed=2)
    with torch.no_grad():
        wide.fc.weight.mul_(1e-25)
    wanted = grad_cam_plus_plus_twin(*maps_and_gradient(wide, pictures(1), 1, "relu2"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_grad_cam_plus_plus_without_a_denominator_is_zero_not_nan():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[0].bias.zero_()
        net[3].weight.fill_(4)
    x = torch.full((1, 1, 2, 2), -0.5)  # ΣA · g = −2 · 1
    assert not tvc.grad_cam_plus_plus(net, x, 1, layer="0", relu=False).values.any()


# ---- global average pooling and a linear layer ----------------------------------------------------


def test_behind_global_average_pooling_grad_cam_and_hires_cam_are_cam_for_every_class():
    net, x = randomised(plain(), seed=6), pictures(3)
    maps = out_of_place(net)[:5](x).detach()
    wanted = torch.einsum("ck,nkij->ncij", net.fc.weight.detach(), maps) / maps[0, 0].numel()
    everything = [[0, 1, 2, 3]] * 3
    for method in ("grad_cam", "hires_cam"):
        close(cam(method, net, x, everything, layer="relu2").values, wanted)
    positive = net.fc.weight.detach().clamp(min=0)
    close(
        cam("layer_cam", net, x, everything, layer="relu2").values,
        torch.einsum("ck,nkij->ncij", positive, maps) / maps[0, 0].numel(),
    )


@pytest.mark.parametrize("build", ["pooled", "flattened"])
def test_hires_cam_sums_to_the_score_without_its_bias_and_grad_cam_need_not(build):
    net = randomised(plain(), seed=6)
    if build == "flattened":
        parts = OrderedDict(list(net.named_children())[:5])
        parts |= {"flatten": nn.Flatten(), "fc": nn.Linear(8 * 7 * 5, 4)}
        net = randomised(nn.Sequential(parts), seed=6)
    x = pictures(3)
    everything = [[0, 1, 2, 3]] * 3
    found = cam("hires_cam", net, x, everything, layer="relu2")
    close(found.values.sum((2, 3)), found.score - net.fc.bias.detach())
    mean = cam("grad_cam", net, x, everything, layer="relu2")
    gap = (mean.values.sum((2, 3)) - (found.score - net.fc.bias.detach())).abs().max()
    assert (gap > 1e-2) == (build == "flattened")


class Ending(nn.Module):
    """Two convolutions, and any function of their maps as the rest."""

    def __init__(self, rest: Callable[[nn.Module, Tensor], Tensor], classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, classes)
        self.other = nn.Linear(8, classes)
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, self.conv2(F.relu(self.conv1(x))))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def hooked(x: Tensor) -> Tensor:
    x.register_hook(lambda gradient: gradient * (1 + gradient.abs()))
    return x


def gap(net: Any, a: Tensor) -> Tensor:
    return torch.flatten(net.gap(a), 1)


CLOSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "flatten": lambda net, a: net.fc(gap(net, a)),
    "mean": lambda net, a: net.fc(a.mean((2, 3))),
    "mean of negative axes": lambda net, a: net.fc(a.mean([-1, -2])),
    "mean of one axis of all cells": lambda net, a: net.fc(a.flatten(2).mean(2)),
    "mean of the last axis": lambda net, a: net.fc(a.flatten(2).mean(-1)),
    "average pooling of all": lambda net, a: net.fc(F.avg_pool2d(a, a.shape[2:]).view(len(a), -1)),
    "squeezed": lambda net, a: net.fc(net.gap(a).squeeze(-1).squeeze(-1)),
    "no bias": lambda net, a: F.linear(a.mean((2, 3)), net.fc.weight),
    "matmul and bias": lambda net, a: a.mean((2, 3)) @ net.fc.weight.T + net.fc.bias,
    "bias and matmul": lambda net, a: net.fc.bias + a.mean((2, 3)) @ net.fc.weight.T,
    "dropout": lambda net, a: net.fc(F.dropout(gap(net, a), 0.5, training=net.training)),
    "channels last": lambda net, a: net.fc(
        gap(net, a.contiguous(memory_format=torch.channels_last))
    ),
    "softmax": lambda net, a: net.fc(gap(net, a)).softmax(1),
    "sigmoid": lambda net, a: net.fc(gap(net, a)).sigmoid(),
    "view after": lambda net, a: net.fc(gap(net, a)).view(len(a), -1),
}
NOT_CLOSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "ReLU before": lambda net, a: net.fc(gap(net, F.relu(a))),
    "ReLU between": lambda net, a: net.fc(F.relu(gap(net, a))),
    "maximum": lambda net, a: net.fc(a.amax((2, 3))),
    "max pooling": lambda net, a: net.fc(F.adaptive_max_pool2d(a, 1).flatten(1)),
    "mean and square": lambda net, a: net.fc(gap(net, a) ** 2),
    "twice the mean": lambda net, a: net.fc(2 * gap(net, a)),
    "mean of some cells": lambda net, a: net.fc(a[:, :, 1:].mean((2, 3))),
    "pooling of some cells": lambda net, a: net.fc(
        F.avg_pool2d(a, (a.shape[2] - 1, a.shape[3]), 99).flatten(1)
    ),
    "padded pooling": lambda net, a: net.fc(
        F.avg_pool2d(a, a.shape[2:], padding=(0, 1), stride=99).flatten(1)
    ),
    "pooling by another number": lambda net, a: net.fc(
        F.avg_pool2d(a, a.shape[2:], divisor_override=3).flatten(1)
    ),
    "sum": lambda net, a: net.fc(a.sum((2, 3)) / 100),
    "mean of a transposed map": lambda net, a: net.fc(a.mT.reshape(len(a), 8, 2, -1).mean((2, 3))),
    "means across channels": lambda net, a: net.fc(a.reshape(len(a), -1, 8).mean(1)),
    "means across pictures": lambda net, a: net.fc(
        net.gap(a).as_strided((len(a), 8, 1, 1), (1, len(a), 1, 1)).flatten(1)
    ),
    "the first picture's means": lambda net, a: net.fc(
        net.gap(a).as_strided((len(a), 8, 1, 1), (0, 1, 1, 1)).flatten(1)
    ),
    "channels shuffled": lambda net, a: net.fc(gap(net, a).flip(1)),
    "two linear layers in a sum": lambda net, a: net.fc(gap(net, a)) + net.other(gap(net, a)),
    "two linear layers in a row": lambda net, a: net.fc(gap(net, a)) @ net.other.weight[:, :5].T,
    "a score added": lambda net, a: net.fc(gap(net, a)) + a.square().mean((1, 2, 3))[:, None],
    "a bias of the maps": lambda net, a: torch.addmm(
        a.amax((0, 2, 3))[:5], gap(net, a), net.fc.weight.T
    ),
    "a weight of the maps": lambda net, a: gap(net, a) @ (net.fc.weight * a.amax()).T,
    "addmm with a factor": lambda net, a: torch.addmm(
        net.fc.bias, gap(net, a), net.fc.weight.T, alpha=3
    ),
    "added with a factor": lambda net, a: torch.add(
        net.fc.bias, a.mean((2, 3)) @ net.fc.weight.T, alpha=3
    ),
    "broadcast sum": lambda net, a: net.fc(gap(net, a))[:, :1] + net.fc.bias,
    "some of the classes": lambda net, a: net.fc(gap(net, a))[:, 1:],
    "classes permuted": lambda net, a: net.fc(gap(net, a)).flip(1),
    "temperature": lambda net, a: (net.fc(gap(net, a)) / 3).softmax(1),
    "a function's own gradient": lambda net, a: net.fc(gap(net, Doubled.apply(a))),
    "a hook on the means": lambda net, a: net.fc(hooked(gap(net, a))),
    "a hook on the maps": lambda net, a: net.fc(gap(net, hooked(a * 1))),
    "a hook on the scores": lambda net, a: hooked(net.fc(gap(net, a))),
    "a hook on the maps themselves": lambda net, a: net.fc(gap(net, hooked(a))),
}


@pytest.fixture
def backward_passes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every backward pass from now on; true for one of many classes together."""
    passes: list[bool] = []
    differentiate = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(bool(kwargs.get("is_grads_batched")))
        return differentiate(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return passes


def one_by_one(
    method: str, net: Any, x: Tensor, targets: list[list[int]], **options: Any
) -> Tensor:
    columns = zip(*targets, strict=True)
    return torch.stack([cam(method, net, x, list(c), **options).values for c in columns], 1)


TARGETS = [[0, 1, 2, 3], [3, 3, 0, 1], [2, 0, 1, 2]]


@every_cam
@pytest.mark.parametrize("ending", [*CLOSED, *NOT_CLOSED])
def test_many_classes_equal_one_at_a_time_however_the_network_ends(method, ending, backward_passes):
    net = randomised(Ending({**CLOSED, **NOT_CLOSED}[ending]), seed=8)
    x = pictures(3)
    wanted = one_by_one(method, net, x, TARGETS, layer="conv2")
    backward_passes.clear()
    found = cam(method, net, x, TARGETS, layer="conv2")
    close(found.values, wanted)
    if ending in CLOSED:
        assert backward_passes == [False], "the gradients were not taken from the closed form"
    else:
        assert len(backward_passes) > 1


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("ending", [*CLOSED, *(name for name in NOT_CLOSED if "hook" not in name)])
def test_the_graph_alone_tells_which_networks_have_a_closed_form(ending, leaf):
    """Without the first class's own gradient, which would notice as well."""
    net = randomised(Ending({**CLOSED, **NOT_CLOSED}[ending]), seed=8).requires_grad_(False)
    maps = pictures(3, channels=8).requires_grad_()
    maps = maps if leaf else maps * 1.5
    scores = run_head(net, maps)
    found = slopes(scores, maps)
    if ending in NOT_CLOSED:
        assert found is None
        return
    for c in range(5):
        gradient = torch.autograd.grad(scores[:, c].sum(), maps, retain_graph=True)[0]
        close(found[c][None, :, None, None].expand_as(gradient), gradient)


@pytest.mark.parametrize("axes", [(1, 3), (2, 1)])
def test_means_over_channels_are_no_means_of_maps_though_there_are_as_many(axes):
    net = nn.Linear(6, 4).double().requires_grad_(False)
    maps = pictures(2, 6, 6, 6).requires_grad_()
    assert slopes(net(maps.mean((2, 3))), maps) is not None
    assert slopes(net(maps.mean(axes)), maps) is None


def run_head(net: nn.Module, maps: Tensor) -> Tensor:
    with head._Watch() as watch:
        raw = net.rest(net, maps.clone())
    found = watch.output(raw)
    return raw if found is None else found.logits


@pytest.mark.parametrize("ending", CLOSED)
def test_the_closed_form_is_used_for_channels_last_pictures_too(ending, backward_passes):
    net = randomised(Ending(CLOSED[ending]), seed=8)
    x = pictures(3).contiguous(memory_format=torch.channels_last)
    wanted = one_by_one("grad_cam", net, pictures(3), TARGETS, layer="conv2")
    backward_passes.clear()
    close(cam("grad_cam", net, x, TARGETS, layer="conv2").values, wanted)
    assert backward_passes == [False]


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("outputs", ["(N, 1)", "(N,)"])
def test_both_classes_of_one_sigmoid_from_one_call(score, outputs, backward_passes):
    def end(net: Any, a: Tensor) -> Tensor:
        scores = net.fc(gap(net, a)).sigmoid()
        return scores if outputs == "(N, 1)" else scores.squeeze(1)

    net, x = randomised(Ending(end, classes=1), seed=8), pictures(3)
    targets = [[0, 1], [1, 1], [1, 0]]
    wanted = one_by_one("layer_cam", net, x, targets, layer="conv2", score=score)
    backward_passes.clear()
    found = cam("layer_cam", net, x, targets, layer="conv2", score=score)
    close(found.values, wanted)
    assert (len(backward_passes) == 1) == (score == "logit")


def halved(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output / 2


def halved_gradient(_module: nn.Module, before: Any, _after: Any) -> Any:
    return (before[0] / 2,)


def one_reversed(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    output.register_hook(lambda gradient: -gradient)


HOOKS: dict[str, tuple[Callable[[Any], None], bool]] = {
    "forward hook that watches": (
        lambda net: net.fc.register_forward_hook(lambda module, inputs, output: None),
        True,
    ),
    "forward hook that scales": (lambda net: net.fc.register_forward_hook(halved), False),
    "forward hook on a tensor's gradient": (
        lambda net: net.gap.register_forward_hook(one_reversed),
        False,
    ),
    "full backward hook": (
        lambda net: net.fc.register_full_backward_hook(halved_gradient),
        False,
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_the_users_own_are_heeded(hook, backward_passes):
    put, closed = HOOKS[hook]
    net, x = randomised(Ending(CLOSED["flatten"]), seed=8), pictures(3)
    bare = cam("grad_cam", net, x, TARGETS, layer="conv2").values
    put(net)
    wanted = one_by_one("grad_cam", net, x, TARGETS, layer="conv2")
    backward_passes.clear()
    close(cam("grad_cam", net, x, TARGETS, layer="conv2").values, wanted)
    assert (len(backward_passes) == 1) == closed
    assert torch.allclose(wanted, bare) == closed


def test_wrapped_networks_are_proved_like_bare_ones(backward_passes):
    net, x = randomised(Ending(CLOSED["flatten"]), seed=8), pictures(3)
    wanted = one_by_one("grad_cam", net, x, TARGETS, layer="conv2")
    torch._dynamo.reset()
    for wrapped in (nn.DataParallel(net), torch.compile(net, backend="eager")):
        backward_passes.clear()
        close(cam("grad_cam", wrapped, x, TARGETS, layer="conv2").values, wanted)
        assert backward_passes == [False]


def test_a_layer_before_the_last_is_not_taken_for_the_last(backward_passes):
    net, x = randomised(Ending(CLOSED["flatten"]), seed=8), pictures(3)
    wanted = one_by_one("grad_cam", net, x, TARGETS, layer="conv1")
    backward_passes.clear()
    close(cam("grad_cam", net, x, TARGETS, layer="conv1").values, wanted)
    assert len(backward_passes) == 4  # through a convolution, one after the other


def test_a_callable_is_differentiated(backward_passes):
    net, x = randomised(Ending(CLOSED["flatten"]), seed=8), pictures(3)
    found = cam("grad_cam", net, x, lambda scores: scores[:, 1] * scores[:, 2], layer="conv2")
    maps = {c: cam("grad_cam", net, x, c, layer="conv2") for c in (1, 2)}
    wanted = sum(maps[a].values * maps[b].score[:, None, None] for a, b in ((1, 2), (2, 1)))
    close(found.values, wanted)


@every_cam
def test_every_class_of_every_image_in_pieces_equals_the_whole(method, monkeypatch):
    everything = [list(range(4))] * 3
    for net in (randomised(plain(), seed=6), with_dense_layers()):
        whole = cam(method, net, pictures(3), everything)
        for room in (1, 3 * 8 * 2, 3 * 8 * 35 * 2):
            monkeypatch.setattr(classes, "ROOM", {"cpu": room})
            close(cam(method, net, pictures(3), everything).values, whole.values)
        monkeypatch.undo()


# ---- heads whose classes are differentiated together ----------------------------------------------

HEADS: dict[str, Callable[[], nn.Module]] = {
    "VGG": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.Linear(48, 9),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(9, 4),
    ),
    "ConvNeXt": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 4)
    ),
    "MobileNetV3": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.Hardswish(inplace=True),
        nn.Linear(6, 4),
    ),
    "DenseNet": lambda: nn.Sequential(
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ),
    "max pooling": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4)),
    "average pooling": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 4)),
    "softer activations": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(280, 6), nn.SiLU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4)
    ),
    "sigmoid and tanh": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(280, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)
    ),
    "ReLU6": lambda: nn.Sequential(nn.Flatten(), nn.Linear(280, 6), nn.ReLU6(), nn.Linear(6, 4)),
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(280, 4), nn.Softmax(1)),
    "log-softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(280, 4), nn.LogSoftmax(1)),
}


@pytest.mark.filterwarnings("error")  # torch warns of operators that it would loop over
@every_cam
@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("ending", HEADS)
def test_classes_differentiated_together_equal_one_at_a_time(
    method, score, ending, backward_passes
):
    body = plain()[:4]
    net = randomised(nn.Sequential(OrderedDict(body=body, head=HEADS[ending]())), seed=9)
    x = pictures(3)
    wanted = one_by_one(method, net, x, TARGETS, layer="body", score=score)
    backward_passes.clear()
    found = cam(method, net, x, TARGETS, layer="body", score=score)
    close(found.values, wanted)
    assert backward_passes == [False, True]


def test_a_head_with_a_gradient_of_its_own_is_differentiated_one_class_at_a_time(backward_passes):
    """Its backward pass may do what cannot be done for many classes at once."""

    class Peeking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * float(gradient.abs().sum())

    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Peeking.apply(x)

    parts = OrderedDict(list(plain().named_children())[:7])
    parts |= {"own": Head(), "fc": nn.Linear(8, 4)}
    net, x = randomised(nn.Sequential(parts), seed=4), pictures(3)
    wanted = one_by_one("grad_cam", net, x, TARGETS, layer="relu2")
    backward_passes.clear()
    close(cam("grad_cam", net, x, TARGETS, layer="relu2").values, wanted)
    assert backward_passes == [False] * 4


@pytest.mark.parametrize(
    ("channels", "stride", "wanted"),
    [(64, 1, [1, 1, 1, 1]), (64, 2, [4]), (32, 1, [2, 2]), (8, 1, [4])],
)
def test_networks_with_small_first_maps_see_more_pictures_at_once(channels, stride, wanted):
    """At 448² there is room for one picture of a network that begins as VGG16 does."""
    net = nn.Sequential(
        nn.Conv2d(1, channels, 1, stride=stride), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * channels, 3),
    )  # fmt: skip
    seen = []
    net[0].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    tvc.grad_cam(net.eval(), torch.rand(4, 1, 448, 448), 1, layer="0")
    assert seen == wanted
