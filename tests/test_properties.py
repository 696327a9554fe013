"""Exact mathematics: every method against its formula written out by hand, in float64."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import GuidedBackprop, Occlusion, Saliency
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from torchviz_cnn.methods.examine import batch_of
from torchviz_cnn.methods.relu import clamps_as_relus

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def close(found: Tensor, wanted: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, **(tolerance or EXACT))


def seeded(net: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval mode, and random numbers everywhere: biases and batch statistics included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 4
            parameter.copy_(normal(parameter) / math.sqrt(fan))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.add_(1)
                module.running_mean.copy_(normal(module.running_mean) * 0.3)
                module.running_var.copy_(normal(module.running_var).square() + 0.5)
    return net


def pictures(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation by its definition: cell centres at (i + 1/2) / n, edges held."""

    def matrix(cells: int, pixels: int) -> np.ndarray:
        result = np.zeros((pixels, cells))
        for pixel in range(pixels):
            place = min(max((pixel + 0.5) * cells / pixels - 0.5, 0), cells - 1)
            low = math.floor(place)
            high = min(low + 1, cells - 1)
            result[pixel, low] += 1 - (place - low)
            result[pixel, high] += place - low
        return result

    return matrix(maps.shape[-2], size[0]) @ maps @ matrix(maps.shape[-1], size[1]).T


class GapNet(nn.Module):
    """Two convolutions with batch norm, global average pooling, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def trunk(self, x: Tensor) -> Tensor:
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x).mean((2, 3)))


class HandNet(nn.Module):
    """A small network whose backward pass is also written out by hand, layer by layer.

    conv → batch norm → act → 2×2 max pooling → conv (stride 2) → act → flatten → linear → act →
    linear. ``act`` may be any spelling of a ReLU.
    """

    def __init__(self, act: Callable[[Tensor], Tensor] | None = None, top: float = math.inf):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(6 * 2 * 3, 7), nn.Linear(7, 4)
        self.act = act or nn.ReLU()
        self.top = top

    def trunk(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.bn(self.conv1(x))), 2)
        return self.act(self.conv2(x))

    def head(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))

    @torch.no_grad()
    def backward_by_hand(self, x: Tensor, target: int, rule: str) -> Tensor:
        """What arrives at the picture when every ReLU passes the signal on by ``rule``."""

        def activate(z: Tensor) -> Tensor:
            return torch.where(z > 0, z, 0.0 * z).minimum(torch.full_like(z, self.top))

        def through_relu(z: Tensor, signal: Tensor) -> Tensor:
            active = ((z > 0) & (z < self.top)).double()
            positive = (signal > 0).double()
            if rule == "gradient":
                return signal * active
            return signal * positive if rule == "deconvnet" else signal * active * positive

        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        shift = self.bn.bias - self.bn.running_mean * scale
        z1 = F.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1)
        z1 = z1 * scale[:, None, None] + shift[:, None, None]
        a1 = activate(z1)
        pooled, switches = F.max_pool2d(a1, 2, return_indices=True)
        z2 = F.conv2d(pooled, self.conv2.weight, self.conv2.bias, stride=2, padding=1)
        a2 = activate(z2).flatten(1)
        z3 = a2 @ self.fc1.weight.T + self.fc1.bias

        signal = self.fc2.weight[target].expand(len(x), -1)
        signal = through_relu(z3, signal) @ self.fc1.weight
        signal = through_relu(z2, signal.reshape(z2.shape))
        odd = [pooled.shape[i] - (2 * z2.shape[i] - 1) for i in (2, 3)]
        signal = F.conv_transpose2d(
            signal, self.conv2.weight, stride=2, padding=1, output_padding=odd
        )
        signal = F.max_unpool2d(signal, switches, 2, output_size=a1.shape[2:])
        signal = through_relu(z1, signal) * scale[:, None, None]
        return F.conv_transpose2d(signal, self.conv1.weight, padding=1)


HAND_INPUT = (3, 2, 8, 10)  # the first max pooling leaves 4×5, the second convolution 2×3


def difference_quotients(net: nn.Module, x: Tensor, targets: list[int], step: float) -> Tensor:
    """The gradient by central differences, one pixel at a time: no autograd anywhere."""
    result = torch.zeros_like(x)
    with torch.no_grad():
        for n, target in enumerate(targets):
            steps = torch.eye(x[n].numel(), dtype=x.dtype).reshape(-1, *x[n].shape) * step
            quotient = net(x[n] + steps)[:, target] - net(x[n] - steps)[:, target]
            result[n] = (quotient / (2 * step)).reshape(x[n].shape)
    return result


# ---- gradients -----------------------------------------------------------------------------------


def test_saliency_is_the_difference_quotient_of_the_score() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 7, 6)
    wanted = difference_quotients(net, x, [3, 1], 1e-6)
    close(tvc.saliency(net, x, [3, 1]).values, wanted, rtol=1e-6, atol=1e-8)


def test_saliency_equals_captum_and_the_score_is_the_networks() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 9, 6)
    result = tvc.saliency(net, x, [4, 0])
    leaf = x.clone().requires_grad_()
    captum = Saliency(net).attribute(leaf, target=torch.tensor([4, 0]), abs=False)
    close(result.values, captum)
    close(result.score, net(x).detach()[[0, 1], [4, 0]])


def test_saliency_map_is_the_largest_magnitude_over_channels() -> None:
    net, x = seeded(GapNet()), pictures(1, 3, 7, 6)
    gradient = difference_quotients(net, x, [2], 1e-6)
    close(tvc.saliency(net, x, 2).maps(), gradient.abs().max(1).values, rtol=1e-6, atol=1e-8)


def test_positive_saliency_is_the_positive_part() -> None:
    net, x = seeded(GapNet()), pictures(1, 3, 7, 6)
    gradient = difference_quotients(net, x, [2], 1e-6)
    assert (gradient < -1e-3).any()
    found = tvc.saliency(net, x, 2, positive=True).values
    close(found, gradient * (gradient > 0), rtol=1e-6, atol=1e-8)


def test_input_x_gradient_is_pixel_times_difference_quotient() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 7, 6)
    wanted = x * difference_quotients(net, x, [0, 4], 1e-6)
    result = tvc.input_x_gradient(net, x, [0, 4])
    close(result.values, wanted, rtol=1e-6, atol=1e-8)
    close(result.maps(), wanted.sum(1), rtol=1e-6, atol=1e-8)


def test_several_targets_give_each_its_own_gradient() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 7, 6)
    for method in (tvc.saliency, tvc.input_x_gradient, tvc.guided_backprop, tvc.deconvnet):
        found = method(net, x, [[0, 3], [2, 1]]).values
        for n, row in enumerate([[0, 3], [2, 1]]):
            for k, target in enumerate(row):
                close(found[n, k], method(net, x[n : n + 1], target).values[0])


def test_without_biases_input_x_gradient_sums_to_the_score() -> None:
    net = seeded(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 4 * 5, 4, bias=False),
        )
    )
    x = pictures(3, 3, 10, 12)
    result = tvc.input_x_gradient(net, x, [[0, 1, 2, 3]] * 3)
    close(result.values.sum((2, 3, 4)), net(x).detach())


def test_with_biases_input_x_gradient_misses_the_score() -> None:
    net, x = seeded(GapNet()), pictures(1, 3, 10, 12)
    result = tvc.input_x_gradient(net, x, 0)
    assert (result.values.sum() - result.score).abs() > 1e-3


# ---- guided backpropagation and deconvnet --------------------------------------------------------


class _Reused(nn.Module):
    """One ReLU module for every place."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x)


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "in-place module": nn.ReLU(inplace=True),
    "module in a module": _Reused(False),
    "in-place module in a module": _Reused(True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": lambda x: F.relu_(x),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu": lambda x: x.relu(),
    "x.relu_, result": lambda x: x.relu_(),
    "x.relu_, x": lambda x: (x.relu_(), x)[1],
    "torch.clamp(min=0)": lambda x: torch.clamp(x, min=0),
    "torch.clamp(input=, min=0.0)": lambda x: torch.clamp(input=x, min=0.0),
    "torch.clamp(x, 0)": lambda x: torch.clamp(x, 0),
    "torch.clamp_(x, 0)": lambda x: torch.clamp_(x, 0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clamp(0, inf)": lambda x: x.clamp(0, math.inf),
    "x.clamp_(min=0)": lambda x: x.clamp_(min=0),
    "x.clamp_(min=0), x": lambda x: (x.clamp_(min=0), x)[1],
    "x.clamp_min(0)": lambda x: x.clamp_min(0),
    "x.clamp_min_(0)": lambda x: x.clamp_min_(0),
    "aten.clamp(x, 0)": lambda x: torch.ops.aten.clamp(x, 0),
    "aten.clamp.default(min=0)": lambda x: torch.ops.aten.clamp.default(x, min=0),
    "aten.clamp.default(self=)": lambda x: torch.ops.aten.clamp.default(self=x, min=0),
    "aten.clamp_.default": lambda x: torch.ops.aten.clamp_.default(x, 0),
    "aten.clamp_min.default": lambda x: torch.ops.aten.clamp_min.default(x, 0),
    "aten.clamp_min_.default": lambda x: torch.ops.aten.clamp_min_.default(x, 0),
    "x.clip(0)": lambda x: x.clip(0),
    "torch.clip": lambda x: torch.clip(x, min=0),
    "x.clip_": lambda x: x.clip_(min=0),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0),
}

RELU6S: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(),
    "in-place nn.ReLU6": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "nn.Hardtanh": nn.Hardtanh(0, 6),
    "x.clamp(0, 6)": lambda x: x.clamp(0, 6),
    "aten.clamp.default(x, 0, 6)": lambda x: torch.ops.aten.clamp.default(x, 0, 6),
    "torch.clamp(min, max)": lambda x: torch.clamp(x, min=0.0, max=6.0),
    "x.clamp_(0, 6)": lambda x: x.clamp_(0, 6),
    "x.clamp_(0, 6), x": lambda x: (x.clamp_(0, 6), x)[1],
    "torch.clip": lambda x: torch.clip(x, 0, 6),
}


def test_the_oracle_itself_gives_the_gradient_when_told_the_ordinary_rule() -> None:
    net, x = seeded(HandNet()), pictures(*HAND_INPUT)
    wanted = difference_quotients(net, x, [2, 2, 2], 1e-6)
    close(net.backward_by_hand(x, 2, "gradient"), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spelling", RELUS)
@pytest.mark.parametrize(
    ("method", "rule"), [(tvc.guided_backprop, "guided"), (tvc.deconvnet, "deconvnet")]
)
def test_every_spelling_of_relu_follows_the_hand_made_rule(
    method: Callable[..., tvc.Attribution], rule: str, spelling: str
) -> None:
    net, x = seeded(HandNet(RELUS[spelling])), pictures(*HAND_INPUT)
    wanted = net.backward_by_hand(x, 1, rule)
    assert (wanted - net.backward_by_hand(x, 1, "gradient")).abs().max() > 1e-2
    result = method(net, x, 1)
    close(result.values, wanted)
    close(result.score, seeded(HandNet(nn.ReLU()))(x)[:, 1].detach())


@pytest.mark.parametrize("spelling", RELU6S)
@pytest.mark.parametrize(
    ("method", "rule"), [(tvc.guided_backprop, "guided"), (tvc.deconvnet, "deconvnet")]
)
def test_every_spelling_of_relu6_follows_the_hand_made_rule(
    method: Callable[..., tvc.Attribution], rule: str, spelling: str
) -> None:
    net, x = seeded(HandNet(RELU6S[spelling], top=6.0)), 15 * pictures(*HAND_INPUT)
    unlimited = seeded(HandNet())
    assert (net(x) - unlimited(x)).abs().max() > 1e-2, "nothing reaches 6, so nothing is tested"
    close(method(net, x, 1).values, net.backward_by_hand(x, 1, rule))


@pytest.mark.parametrize("top", [0.5, 1])
def test_a_clamp_from_0_follows_the_rule_whatever_its_upper_end(top: float) -> None:
    net, x = seeded(HandNet(lambda z: z.clamp(0, top), top=top)), pictures(*HAND_INPUT)
    for method, rule in ((tvc.guided_backprop, "guided"), (tvc.deconvnet, "deconvnet")):
        wanted = net.backward_by_hand(x, 1, rule)
        assert (wanted - net.backward_by_hand(x, 1, "gradient")).abs().max() > 1e-3
        close(method(net, x, 1).values, wanted)


OTHER_CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "from 1": lambda x: x.clamp(min=1),
    "from -1 to 1": lambda x: x.clamp(-1, 1),
    "up to 1": lambda x: x.clamp(max=1),
    "from 0 to 0": lambda x: x.clamp(0, 0),
    "from 0 to -1": lambda x: x.clamp(0, -1),
    "from each its own": lambda x: x.clamp(min=torch.zeros_like(x)),
    "from 0 to each its own": lambda x: x.clamp(torch.zeros_like(x), torch.ones_like(x)),
    "whole numbers": lambda x: x.long().clamp(min=0),
}


@pytest.mark.parametrize("spelling", [*RELUS, *RELU6S, *OTHER_CLAMPS])
def test_a_clamp_that_runs_as_a_relu_gives_and_writes_what_it_would(spelling: str) -> None:
    function = {**RELUS, **RELU6S, **OTHER_CLAMPS}[spelling]
    alone, x = (torch.linspace(-9, 9, 13, dtype=torch.float64) for _ in range(2))
    wanted = function(alone)
    with clamps_as_relus() as clamps:
        found = function(x)
    assert found.dtype is wanted.dtype
    assert torch.equal(found, wanted)
    assert torch.equal(x, alone), "what it was given is not left, or written over, likewise"
    if spelling in OTHER_CLAMPS:
        assert clamps.rewritten == 0


def test_positive_guided_backprop_and_deconvnet_keep_the_positive_part() -> None:
    net, x = seeded(HandNet()), pictures(*HAND_INPUT)
    for method, rule in ((tvc.guided_backprop, "guided"), (tvc.deconvnet, "deconvnet")):
        wanted = net.backward_by_hand(x, 0, rule)
        assert (wanted < -1e-3).any()
        close(method(net, x, 0, positive=True).values, wanted * (wanted > 0))


def test_deconvnet_does_not_depend_on_which_relus_were_active() -> None:
    """Without pooling the projection is linear layers and ReLUs of the signal alone."""
    net = seeded(
        nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AvgPool2d(4),
            nn.Flatten(), nn.Linear(8, 4),
        )
    )  # fmt: skip
    one, other = (tvc.deconvnet(net, pictures(1, 2, 8, 8, seed=s), 1).values for s in (1, 2))
    close(one, other)
    assert one.abs().max() > 1e-3
    guided = [tvc.guided_backprop(net, pictures(1, 2, 8, 8, seed=s), 1).values for s in (1, 2)]
    assert (guided[0] - guided[1]).abs().max() > 1e-3


def test_with_no_negative_weight_after_a_relu_guided_backprop_is_the_gradient() -> None:
    net, x = seeded(HandNet()), pictures(*HAND_INPUT)
    assert (
        tvc.guided_backprop(net, x, 2).values - tvc.saliency(net, x, 2).values
    ).abs().max() > 0.01
    with torch.no_grad():
        for layer in (net.conv2, net.fc1, net.fc2):
            layer.weight.abs_()
    guided, gradient = tvc.guided_backprop(net, x, 2).values, tvc.saliency(net, x, 2).values
    assert gradient.abs().max() > 0.01
    close(guided, gradient, rtol=0, atol=0)


def _captum_guided(net: nn.Module, x: Tensor, target: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GuidedBackprop(net).attribute(x.clone().requires_grad_(), target=target).detach()


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_guided_backprop_is_captums_to_the_last_bit(name: str) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 64, 72)
    captum = _captum_guided(copy.deepcopy(net), x, 7)
    ours = tvc.guided_backprop(net, x, 7).values
    torch.testing.assert_close(ours, captum, rtol=0, atol=0)
    gradient = tvc.saliency(net, x, 7).values
    assert (ours - gradient).abs().max() > 1e-3 * gradient.abs().max()


class _GuidedReLU(torch.autograd.Function):
    """Guided backpropagation's rule, by hand."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * (x > 0)

    @staticmethod
    def backward(ctx, signal):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return signal * (signal > 0) * (x > 0)


class _BasicConv2d(nn.Module):
    """torchvision's convolution, batch norm and F.relu, with the hand-made rule instead."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = original.conv, original.bn

    def forward(self, x: Tensor) -> Tensor:
        return _GuidedReLU.apply(self.bn(self.conv(x)))


def _with_hand_made_relus(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "BasicConv2d":
                setattr(parent, name, _BasicConv2d(child))
    return net


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 75)])
def test_guided_backprop_overrides_the_functional_relus_captum_misses(name: str, side: int) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=False)
    net, x = net.double().eval(), pictures(1, 3, side, side)
    twin = _with_hand_made_relus(net)
    assert sum(isinstance(m, _BasicConv2d) for m in twin.modules()) > 50
    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad(twin(leaf)[0, 3], leaf)[0]
    size = wanted.abs().max().item()
    close(tvc.guided_backprop(net, x, 3).values, wanted, rtol=0, atol=1e-10 * size)

    captum, gradient = _captum_guided(net, x, 3), tvc.saliency(net, x, 3).values
    close(captum, gradient, rtol=0, atol=1e-10 * gradient.abs().max().item())
    assert (captum - wanted).abs().max() > 0.01 * size


@pytest.mark.parametrize("method", [tvc.guided_backprop, tvc.deconvnet])
def test_a_network_without_relus_is_refused(method: Callable[..., tvc.Attribution]) -> None:
    smooth = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2)))
    linear = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)))
    for net in (smooth, linear):
        with pytest.raises(tvc.InputError, match="ReLU"):
            method(net, pictures(1, 3, 6, 6), 0)


def test_guided_grad_cam_refuses_a_network_without_relus() -> None:
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2)))
    with pytest.raises(tvc.InputError, match="ReLU"):
        tvc.guided_grad_cam(net, pictures(1, 3, 6, 6), 0)


@pytest.mark.parametrize("method", [tvc.guided_backprop, tvc.deconvnet])
def test_where_most_activations_are_no_relus_the_share_is_told(
    method: Callable[..., tvc.Attribution],
) -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_large().eval()
    runs = {nn.ReLU: 0, nn.Hardswish: 0}

    def count(module: nn.Module, *_: object) -> None:
        runs[type(module)] += 1

    handles = [m.register_forward_hook(count) for m in net.modules() if type(m) in runs]
    x = torch.randn(1, 3, 64, 64)
    net(x)
    for handle in handles:
        handle.remove()
    share = 100 * runs[nn.ReLU] / (runs[nn.ReLU] + runs[nn.Hardswish])
    assert 0 < share < 50
    with pytest.warns(UserWarning, match=r"only \d+%") as caught:
        method(net, x, 0)
    told = re.search(r"only (\d+)%", str(caught[0].message))
    assert told is not None
    assert abs(float(told[1]) - share) <= 0.5 + 1e-9
    assert caught[0].filename == __file__, "the warning must point at the line that asked"


def test_no_warning_where_relus_are_the_majority() -> None:
    net = seeded(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(),
            nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid(),
        )
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tvc.guided_backprop(net, pictures(1, 3, 6, 6), 0)


# ---- Grad-CAM ------------------------------------------------------------------------------------


def _cam(net: GapNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Zhou et al. 2016: the class's weights times the last maps; ``(N, classes, h, w)``."""
    with torch.no_grad():
        maps = net.trunk(x)
        return torch.einsum("kc,nchw->nkhw", net.fc.weight, maps), maps


def test_grad_cam_before_its_relu_is_cam_over_the_number_of_cells() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    cam, maps = _cam(net, x)
    found = tvc.grad_cam(net, x, [[0, 1, 2, 3, 4]] * 2, layer="relu2", relu=False)
    close(found.values, cam / (maps.shape[2] * maps.shape[3]))
    for target in range(5):
        one = tvc.grad_cam(net, x, target, layer="relu2", relu=False).values
        close(one, cam[:, target] / (maps.shape[2] * maps.shape[3]))


def test_grad_cams_relu_is_relu_of_the_map_before_it() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    cam, maps = _cam(net, x)
    assert (cam < 0).any()
    found = tvc.grad_cam(net, x, [[0, 1, 2, 3, 4]] * 2, layer="relu2").values
    close(found, (cam / maps[0, 0].numel()).clamp(min=0))


def test_grad_cam_before_its_relu_sums_to_score_minus_bias() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    found = tvc.grad_cam(net, x, [[0, 1, 2, 3, 4]] * 2, relu=False)
    close(found.values.sum((2, 3)), (net(x) - net.fc.bias).detach())
    close(found.values.sum((2, 3)), found.score - net.fc.bias.detach())


def test_grad_cam_equals_equations_1_and_2_written_out() -> None:
    net, x = seeded(HandNet()), pictures(*HAND_INPUT)
    targets = torch.tensor([1, 3, 0])
    maps = net.trunk(x).detach().requires_grad_()
    gradient = torch.autograd.grad(net.head(maps)[range(3), targets].sum(), maps)[0]
    alpha = torch.einsum("nkij->nk", gradient) / maps[0, 0].numel()
    wanted = torch.einsum("nk,nkij->nij", alpha, maps).relu().detach()
    assert wanted.abs().max() > 1e-3
    # the activation is one module that runs three times: its second run is what the trunk gives
    close(tvc.grad_cam(net, x, targets, layer="act@1").values, wanted)


def test_grad_cams_weights_are_difference_quotients_of_the_score() -> None:
    """alpha_k is how the score answers when channel k is raised everywhere by 1/(h·w)."""
    net, x = seeded(HandNet()), pictures(*HAND_INPUT)
    with torch.no_grad():
        maps, step = net.trunk(x), 1e-6
        alpha = torch.zeros(3, 6, dtype=torch.float64)
        for k in range(6):
            raised = torch.zeros_like(maps)
            raised[:, k] = step / maps[0, 0].numel()
            alpha[:, k] = (net.head(maps + raised) - net.head(maps - raised))[:, 2] / (2 * step)
        wanted = (alpha[:, :, None, None] * maps).sum(1)
    found = tvc.grad_cam(net, x, 2, layer="act@1", relu=False).values
    close(found, wanted, rtol=1e-6, atol=1e-8)


def test_grad_cam_of_an_earlier_layer_differentiates_everything_after_it() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    maps = net.bn1(net.conv1(x)).detach().requires_grad_()  # an in-place ReLU follows
    rest = net.fc(net.relu2(net.bn2(net.conv2(maps.clamp(min=0)))).mean((2, 3)))
    gradient = torch.autograd.grad(rest[:, 3].sum(), maps)[0]
    wanted = torch.einsum("nk,nkij->nij", gradient.mean((2, 3)), maps).detach()
    close(tvc.grad_cam(net, x, 3, layer="bn1", relu=False).values, wanted)
    assert (maps < 0).any(), "the in-place ReLU would be invisible"


def test_grad_cam_of_a_layer_with_a_skip_around_it_holds_the_skip_constant() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            y = self.branch(x)
            y += x
            return self.fc(y.relu_().mean((2, 3)))

    net, x = seeded(Skip()), pictures(2, 3, 7, 9)
    stem = net.stem(x).relu().detach()
    maps = net.branch(stem).detach().requires_grad_()
    gradient = torch.autograd.grad(net.fc((maps + stem).relu().mean((2, 3)))[:, 1].sum(), maps)[0]
    wanted = torch.einsum("nk,nkij->nij", gradient.mean((2, 3)), maps).detach()
    close(tvc.grad_cam(net, x, 1, layer="branch", relu=False).values, wanted)


def test_guided_grad_cam_is_the_guided_gradient_times_the_bilinear_map() -> None:
    net, x = seeded(HandNet()), pictures(*HAND_INPUT)
    maps = net.trunk(x).detach().requires_grad_()
    for target in range(4):
        gradient = torch.autograd.grad(net.head(maps)[:, target].sum(), maps)[0]
        cam = torch.einsum("nk,nkij->nij", gradient.mean((2, 3)), maps).relu().detach()
        large = torch.from_numpy(bilinear(cam.numpy(), HAND_INPUT[2:]))
        wanted = net.backward_by_hand(x, target, "guided") * large[:, None]
        close(tvc.guided_grad_cam(net, x, target, layer="act@1").values, wanted)


def test_guided_grad_cam_of_several_targets_is_each_ones_own() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    found = tvc.guided_grad_cam(net, x, [[0, 4], [3, 2]]).values
    for n, row in enumerate([[0, 4], [3, 2]]):
        for k, target in enumerate(row):
            guided = tvc.guided_backprop(net, x[n : n + 1], target).values[0]
            cam = _cam(net, x[n : n + 1])[0][:, target].relu() / (5 * 3)
            large = torch.from_numpy(bilinear(cam.numpy(), (11, 8)))
            close(found[n, k], guided * large)


# ---- occlusion -----------------------------------------------------------------------------------


class Affine(nn.Module):
    """Convolution and linear layer without any activation: an affine map of the picture."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.fc = nn.Linear(4 * height * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))

    @torch.no_grad()
    def weights(self, x: Tensor) -> Tensor:
        """``(classes, C, H, W)``, read off by showing it one pixel at a time."""
        pixels = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
        return (self(pixels) - self(torch.zeros_like(pixels))).T.reshape(-1, *x.shape[1:])


class Pixels(nn.Module):
    """Every pixel is a class: the scores of a hidden variant are the variant itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def _gaussian(x: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """Blur along both axes with the picture mirrored at its border pixels."""
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (-2, -1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (reach, reach)
        mirrored, n = np.pad(x, pad, mode="reflect"), x.shape[axis]
        x = sum(t * mirrored.take(range(i, i + n), axis) for i, t in enumerate(taps))
    return x


def _fills(x: Tensor) -> dict[str, tuple[object, Tensor]]:
    picture, batch = pictures(*x.shape[1:], seed=7), pictures(*x.shape, seed=8)
    channel = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    means = torch.stack([torch.stack([c.sum() / c.numel() for c in image]) for image in x])
    return {
        "default": (0.0, torch.zeros_like(x)),
        "scalar": (-0.7, torch.full_like(x, -0.7)),
        "integer": (2, torch.full_like(x, 2.0)),
        "per channel": ([0.5, -1.0, 2.0], channel[:, None, None].expand(x.shape)),
        "per channel, tensor": (channel, channel[:, None, None].expand(x.shape)),
        "per channel, numpy": (channel.numpy(), channel[:, None, None].expand(x.shape)),
        "mean": ("mean", means[:, :, None, None].expand(x.shape)),
        "blur": ("blur", torch.from_numpy(_gaussian(x.numpy(), 1.0, 3))),
        "picture": (picture, picture.expand(x.shape)),
        "picture, numpy": (picture.numpy(), picture.expand(x.shape)),
        "picture each": (batch, batch),
    }


FILL_NAMES = list(_fills(torch.zeros(2, 3, 9, 6, dtype=torch.float64)))


@pytest.mark.parametrize("name", FILL_NAMES)
def test_of_an_affine_network_occlusion_is_the_weighted_difference_under_the_window(
    name: str,
) -> None:
    x = pictures(2, 3, 9, 6)
    net = seeded(Affine(3, 9, 6))
    fill, hidden = _fills(x)[name]
    contributions = (net.weights(x)[None] * (x - hidden)[:, None]).sum(2)  # (N, classes, H, W)
    found = tvc.occlusion(net, x, [[0, 1, 2]] * 2, window=(3, 2), stride=(3, 2), fill=fill)
    for row in range(3):
        for column in range(3):
            patch = contributions[:, :, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
            close(found.values[:, :, row, column], patch.sum((2, 3)))


@pytest.mark.parametrize("name", FILL_NAMES)
def test_windows_that_tile_the_picture_sum_to_score_minus_score_of_the_fill(name: str) -> None:
    x = pictures(2, 3, 9, 6)
    net = seeded(Affine(3, 9, 6))
    fill, hidden = _fills(x)[name]
    found = tvc.occlusion(net, x, [[0, 1, 2]] * 2, window=3, stride=3, fill=fill)
    close(found.values.sum((2, 3)), (net(x) - net(hidden)).detach())


def test_blur_grows_with_the_picture() -> None:
    """Standard deviation a fourteenth of the shorter side."""
    x = pictures(1, 1, 42, 50)
    found = tvc.occlusion(Pixels(), x, 0, window=(42, 50), stride=1, fill="blur")
    wanted = torch.from_numpy(_gaussian(x.numpy(), 3.0, 9))
    close(found.scores.reshape(x.shape), wanted)


@pytest.mark.parametrize("size", [(2, 9), (9, 3), (3, 3)])
def test_blur_reaches_to_where_a_narrow_picture_is_mirrored_once(size: tuple[int, int]) -> None:
    x = pictures(1, 2, *size)
    found = tvc.occlusion(Pixels(), x, 0, window=size, stride=1, fill="blur")
    wanted = torch.from_numpy(_gaussian(x.numpy(), 1.0, min(size) - 1))
    close(found.scores.reshape(x.shape), wanted)


def test_mean_fill_is_each_pictures_own() -> None:
    x = torch.stack([torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), -5.0)]).double()
    x[:, :, 0, 0] += 16
    found = tvc.occlusion(Pixels(), x, 0, window=4, stride=1, fill="mean")
    close(found.scores[:, 0, 0], torch.tensor([3.0, -4.0]).double()[:, None].expand(2, 16))


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((9, 6), (3, 2), (3, 2)),
        ((10, 7), (3, 3), (2, 2)),
        ((10, 7), (4, 3), (3, 1)),
        ((5, 8), (5, 8), (1, 1)),
        ((5, 8), (5, 1), (4, 1)),
        ((11, 5), (4, 2), (4, 2)),
    ],
)
def test_exactly_the_window_is_hidden_and_the_last_ones_are_clipped(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> None:
    x = pictures(2, 2, *size)
    found = tvc.occlusion(Pixels(), x, 0, window=window, stride=stride, fill=9.0)
    rows, columns = (math.ceil((size[i] - window[i]) / stride[i]) + 1 for i in (0, 1))
    assert found.scores.shape == (2, rows, columns, 2 * size[0] * size[1])
    covered = torch.zeros(size, dtype=torch.bool)
    for row in range(rows):
        for column in range(columns):
            wanted, top, left = x.clone(), row * stride[0], column * stride[1]
            wanted[:, :, top : top + window[0], left : left + window[1]] = 9.0
            covered[top : top + window[0], left : left + window[1]] = True
            close(found.scores[:, row, column].reshape(x.shape), wanted, rtol=0, atol=0)
    assert covered.all()


def test_the_default_window_is_a_seventh_of_the_side_and_the_stride_half_of_it() -> None:
    found = tvc.occlusion(Pixels(), pictures(1, 1, 28, 42), 0, all_scores=False)
    assert (found.window, found.stride) == ((4, 6), (2, 3))
    assert found.values.shape == (1, 13, 13)


@torch.no_grad()
def _hidden_one_by_one(
    net: nn.Module, x: Tensor, window: tuple[int, int], stride: tuple[int, int], fill: float
) -> Tensor:
    """What the network puts out with each window hidden, ``(N, rows, columns, classes)``."""
    rows, columns = (math.ceil((x.shape[2 + i] - window[i]) / stride[i]) + 1 for i in (0, 1))
    grid = []
    for image in x:
        for row in range(rows):
            for column in range(columns):
                variant = image.clone()
                for y in range(row * stride[0], min(row * stride[0] + window[0], x.shape[2])):
                    for z in range(
                        column * stride[1], min(column * stride[1] + window[1], x.shape[3])
                    ):
                        variant[:, y, z] = fill
                grid.append(net(variant[None])[0])
    return torch.stack(grid).reshape(len(x), rows, columns, -1)


def _mean_over_covering_windows(
    grid: Tensor, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    result = torch.zeros(*grid.shape[:-2], *size, dtype=torch.float64)
    for y in range(size[0]):
        for x in range(size[1]):
            over = [
                grid[..., row, column]
                for row in range(grid.shape[-2])
                for column in range(grid.shape[-1])
                if row * stride[0] <= y < row * stride[0] + window[0]
                and column * stride[1] <= x < column * stride[1] + window[1]
            ]
            result[..., y, x] = sum(over) / len(over)
    return result


@pytest.mark.parametrize(
    ("window", "stride"), [((3, 3), (2, 2)), ((4, 2), (3, 1)), ((5, 4), (5, 4))]
)
def test_occlusion_equals_hiding_the_windows_one_by_one(
    window: tuple[int, int], stride: tuple[int, int]
) -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    hidden = _hidden_one_by_one(net, x, window, stride, 0.3)
    whole = net(x).detach()
    found = tvc.occlusion(net, x, [4, 1], window=window, stride=stride, fill=0.3)
    close(found.scores, hidden)
    drop = torch.stack([whole[n, t] - hidden[n, :, :, t] for n, t in enumerate((4, 1))])
    close(found.values, drop)
    close(found.hidden_score(), whole[[0, 1], [4, 1]][:, None, None] - drop)
    close(found.maps(), _mean_over_covering_windows(drop, (11, 8), window, stride))

    several = tvc.occlusion(net, x, [[0, 3], [2, 2]], window=window, stride=stride, fill=0.3)
    wanted = torch.stack(
        [
            torch.stack([whole[n, t] - hidden[n, :, :, t] for t in row])
            for n, row in enumerate([[0, 3], [2, 2]])
        ]
    )
    close(several.values, wanted)
    close(several.maps(), _mean_over_covering_windows(wanted, (11, 8), window, stride))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    options = {"window": 4, "stride": 3, "fill": "mean"}
    plain = tvc.occlusion(net, x, [[0, 1], [3, 2]], **options)
    other = tvc.occlusion(net, x, [[0, 1], [3, 2]], batch_size=batch_size, **options)
    close(other.values, plain.values)
    close(other.scores, plain.scores)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(tvc.InputError, match=f"at least 1, not {batch_size}"):
        tvc.occlusion(Pixels(), pictures(1, 1, 6, 6), 0, window=2, batch_size=batch_size)


@pytest.mark.parametrize(
    ("window", "stride", "fill"),
    [((3, 3), (2, 2), 0.0), ((4, 2), (3, 1), 0.4), ((5, 4), (5, 4), -1.0)],
)
def test_occlusion_map_is_captums(
    window: tuple[int, int], stride: tuple[int, int], fill: float
) -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    with torch.no_grad():
        captum = Occlusion(net).attribute(
            x,
            sliding_window_shapes=(3, *window),
            strides=(3, *stride),
            baselines=fill,
            target=torch.tensor([2, 4]),
            perturbations_per_eval=4,
        )
    found = tvc.occlusion(net, x, [2, 4], window=window, stride=stride, fill=fill).maps()
    for channel in range(3):  # captum adds up in float32, whatever the network's dtype
        close(found, captum[:, channel].double(), rtol=1e-5, atol=1e-6)


class OneUnit(nn.Module):
    """Scores read from a single unit of the last map, whose receptive field is 5×5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu())[:, :, 5, 8]  # sees rows 3…7, columns 6…10


def test_occlusion_outside_the_receptive_field_is_exactly_zero() -> None:
    net, x = seeded(OneUnit()), pictures(2, 2, 12, 14)
    found = tvc.occlusion(net, x, [[0, 1, 2]] * 2, window=2, stride=1, fill=1.5).values
    touches = torch.zeros(11, 13, dtype=torch.bool)
    touches[2:8, 5:11] = True
    assert found.shape[2:] == touches.shape
    assert (found[:, :, ~touches] == 0).all()
    assert ((found != 0).any(0).any(0) == touches).all()
    assert (found[:, :, 3:7, 6:10] != 0).all()


def test_occlusion_of_pixels_that_are_never_read_is_exactly_zero() -> None:
    class Crop(GapNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, 2:9, 3:10])

    net, x = seeded(Crop()), pictures(3, 3, 12, 13)
    found = tvc.occlusion(net, x, [[0, 1, 2]] * 3, window=2, stride=1, fill=1.5).values
    read = torch.zeros(11, 12, dtype=torch.bool)
    read[1:9, 2:10] = True
    assert ((found != 0).any(0).any(0) == read).all()


def test_occlusion_by_what_is_there_already_is_exactly_zero() -> None:
    net, x = seeded(GapNet()), pictures(2, 3, 11, 8)
    found = tvc.occlusion(net, x, [[0, 1, 2, 3, 4]] * 2, window=3, stride=2, fill=x)
    assert (found.values == 0).all()
    assert (found.heatmap() == 0).all()
    x[:, :, 2:5, 4:7] = 0.25
    found = tvc.occlusion(net, x, 1, window=3, stride=(2, 2), fill=0.25).values
    assert (found[:, 1, 2] == 0).all()
    assert (found != 0).sum() == found.numel() - 2


class Classifier(nn.Module):
    """A trunk and one of the usual ends."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 1 if "one" in end else 4)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.conv(x).relu().mean((2, 3)))
        if "softmax" in self.end:
            return x.log_softmax(1) if "log" in self.end else x.softmax(1)
        if "sigmoid" in self.end:
            x = torch.sigmoid(x)
        return x.squeeze(1) if "squeezed" in self.end else x


def _chance(logits: Tensor, end: str) -> Tensor:
    """The probabilities by their definitions, ``(…, classes)``."""
    if "one" in end:
        p = 1 / (1 + torch.exp(-logits))
        return torch.cat([1 - p, p], -1)
    if "sigmoid" in end:
        return 1 / (1 + torch.exp(-logits))
    return torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "end",
    [
        "softmax",
        "log_softmax",
        "logits only",
        "sigmoid",
        "one sigmoid",
        "one sigmoid, squeezed",
        "one logit",
    ],
)
def test_hidden_probabilities_equal_direct_evaluation(end: str) -> None:
    net, x = seeded(Classifier(end)), pictures(2, 3, 9, 7)
    bare = seeded(Classifier("one logit" if "one" in end else "logits only"))
    window, stride = (4, 3), (3, 2)
    logits = _hidden_one_by_one(bare, x, window, stride, 0.0)
    chances = _chance(logits, end)
    targets = [1, 0] if "one" in end else [3, 1]
    found = tvc.occlusion(net, x, targets, window=window, stride=stride)
    close(found.scores, logits)
    wanted = torch.stack([chances[n, :, :, t] for n, t in enumerate(targets)])
    close(found.hidden_probability(), wanted)
    spread = _mean_over_covering_windows(wanted, (9, 7), window, stride)
    close(found.probability_map(), spread)

    several = tvc.occlusion(net, x, [[0, 1], [1, 0]], window=window, stride=stride)
    wanted = torch.stack([chances[0].movedim(-1, 0)[[0, 1]], chances[1].movedim(-1, 0)[[1, 0]]])
    close(several.hidden_probability(), wanted)
    close(several.probability_map(), _mean_over_covering_windows(wanted, (9, 7), window, stride))


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "logits only", "one sigmoid"])
def test_occlusion_of_the_probability_is_the_probability_lost(end: str) -> None:
    net, x = seeded(Classifier(end)), pictures(2, 3, 9, 7)
    bare = seeded(Classifier("one logit" if "one" in end else "logits only"))
    chances = _chance(_hidden_one_by_one(bare, x, (4, 3), (3, 2), 0.0), end)
    whole = _chance(bare(x).detach(), end)
    found = tvc.occlusion(net, x, [1, 0], window=(4, 3), stride=(3, 2), score="probability")
    wanted = torch.stack([whole[n, t] - chances[n, :, :, t] for n, t in enumerate((1, 0))])
    close(found.values, wanted)
    close(found.hidden_score(), found.hidden_probability())


def test_hidden_probability_needs_a_class_and_the_scores() -> None:
    net, x = seeded(GapNet()), pictures(1, 3, 9, 7)
    with pytest.raises(tvc.InputError, match="callable"):
        tvc.occlusion(net, x, lambda out: out.sum(1), window=4).hidden_probability()
    with pytest.raises(tvc.InputError, match="all_scores=True"):
        tvc.occlusion(net, x, 0, window=4, all_scores=False).hidden_probability()


def test_the_top_class_of_occlusion_is_the_untouched_pictures() -> None:
    """Hiding may change which class wins; the class explained stays."""
    x = pictures(2, 1, 4, 5)
    top = x.flatten(1).argmax(1)
    found = tvc.occlusion(Pixels(), x, window=1, stride=1, fill=0.0)
    assert found.target.tolist() == top.tolist()
    for n in range(2):
        wanted = torch.zeros(20, dtype=torch.float64)
        wanted[top[n]] = x[n].max()
        close(found.values[n].flatten(), wanted, rtol=0, atol=0)


def test_pictures_without_a_channel_axis_are_hidden_likewise() -> None:
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = pictures(2, 6, 5)
    found = tvc.occlusion(net, x, 1, window=2, stride=1, fill=0.5)
    hidden = _hidden_one_by_one(net, x[:, None], (2, 2), (1, 1), 0.5)
    close(found.values, net(x).detach()[:, 1, None, None] - hidden[..., 1])
    levels = [0.5, -2.0]
    own = torch.tensor(levels)[:, None, None].expand(2, 6, 5)
    found = tvc.occlusion(net, x, 1, window=2, stride=1, fill=own)
    for i, level in enumerate(levels):
        hidden = _hidden_one_by_one(net, x[i : i + 1, None], (2, 2), (1, 1), level)
        close(found.values[i], net(x).detach()[i, 1] - hidden[0, ..., 1])
    for fill in ([0.0, 1.0], torch.zeros(6, 4), torch.zeros(3, 6, 5)):  # no value a picture
        with pytest.raises(tvc.InputError, match=r"does not fit pictures of shape \(2, 6, 5\)"):
            tvc.occlusion(net, x, 1, window=2, stride=1, fill=fill)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": (7, 2)}, "7×2.*6×6"),
        ({"window": (2, 7)}, "2×7.*6×6"),
        ({"window": 2, "stride": (3, 1)}, "3×1.*2×2"),
        ({"window": 0}, "not 0"),
        ({"window": (2, 2, 2)}, r"\(2, 2, 2\)"),
        ({"window": 2, "stride": -1}, "not -1"),
        ({"window": 2, "fill": "median"}, "median"),
        ({"window": 2, "fill": [0.0, 1.0]}, r"\(2, 1, 1\).*\(1, 3, 6, 6\)"),
        ({"window": 2, "fill": np.zeros((3, 5, 6))}, r"\(3, 5, 6\).*\(1, 3, 6, 6\)"),
    ],
)
def test_windows_and_fills_that_do_not_fit_are_refused(
    options: dict[str, object], told: str
) -> None:
    with pytest.raises(tvc.InputError, match=told):
        tvc.occlusion(Pixels(), pictures(1, 3, 6, 6), 0, **options)


@pytest.mark.parametrize(("height", "width"), [(8, 4), (4, 8)])
def test_each_side_of_a_window_is_measured_by_its_own_side_of_the_picture(
    height: int, width: int
) -> None:
    net, x = Pixels(), pictures(1, 3, height, width)
    found = tvc.occlusion(net, x, 0, window=(height, width), stride=1)
    assert found.values.shape == (1, 1, 1)
    for window in ((height + 1, 1), (1, width + 1)):
        with pytest.raises(tvc.InputError, match=f"{window[0]}×{window[1]}.*{height}×{width}"):
            tvc.occlusion(net, x, 0, window=window, stride=1)


@pytest.mark.parametrize("size", [(6, 1), (1, 6)])
def test_a_picture_one_pixel_wide_cannot_be_blurred(size: tuple[int, int]) -> None:
    with pytest.raises(tvc.InputError, match="one pixel wide cannot be blurred"):
        tvc.occlusion(Pixels(), pictures(1, 3, *size), 0, window=1, fill="blur")


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(224, 224, 8), (112, 448, 8), (448, 56, 16), (32, 32, 256), (1500, 1500, 1)],
)
def test_by_default_as_many_go_together_as_have_so_many_pixels(
    height: int, width: int, count: int
) -> None:
    assert batch_of(torch.zeros(()).expand(1, 3, height, width), None, 8) == count


class Normalising(GapNet):
    """Prepares its pictures itself; ``in_place`` writes into what it is given."""

    def __init__(self, in_place: bool, end: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.in_place, self.end = in_place, end

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).mul_(2) if self.in_place else (x - 0.5) * 2
        out = super().forward(x)
        return out if self.end is None else self.end(out)


@pytest.mark.parametrize("method", sorted(tvc.METHODS))
def test_a_network_that_writes_into_its_input_is_explained_as_one_that_does_not(
    method: str,
) -> None:
    x, options = pictures(2, 3, 11, 8), {"window": 4} if method == "occlusion" else {}
    kept = x.clone()
    for again in range(2):  # with the default layer known, and with a softmax that appears
        plain, writing = seeded(Normalising(False)), seeded(Normalising(True))
        if again:
            tvc.METHODS[method](writing, x, [3, 1], **options)
            writing.end = lambda out: out.softmax(1)
        wanted = tvc.METHODS[method](plain, x, [3, 1], **options)
        found = tvc.METHODS[method](writing, x, [3, 1], **options)
        close(found.score, wanted.score)
        close(found.values, wanted.values)
        assert (x == kept).all()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_grad_cam_in_batches_of_any_size_is_the_same(batch_size: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).double()
    images = torch.randn(5, 3, 9, 11, dtype=torch.float64)
    targets = [[i % 5, (i + 2) % 5] for i in range(5)]
    for target in (None, 3, targets, lambda out: out[torch.arange(5), torch.arange(5)]):
        whole = tvc.grad_cam(net, images, target, relu=False, batch_size=100)
        parts = tvc.grad_cam(net, images, target, relu=False, batch_size=batch_size)
        torch.testing.assert_close(parts.values, whole.values, rtol=0, atol=1e-12)
        torch.testing.assert_close(parts.score, whole.score, rtol=0, atol=1e-12)
        assert (parts.target is None) == (whole.target is None)
        assert parts.target is None or torch.equal(parts.target, whole.target)
    with pytest.raises(tvc.InputError, match=r"batch_size must be .* at least 1, not 0"):
        tvc.grad_cam(net, images, batch_size=0)


def test_occlusion_shows_a_callable_all_images_in_their_order() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    ).double()
    images = torch.randn(3, 3, 12, 10, dtype=torch.float64)
    by_index = tvc.occlusion(net, images, [3, 5, 1], window=5, stride=3)
    for batch_size in (1, 2, 4, 50):
        own = tvc.occlusion(
            net,
            images,
            lambda out: out[torch.arange(3), [3, 5, 1]],
            window=5,
            stride=3,
            batch_size=batch_size,
        )
        torch.testing.assert_close(own.values, by_index.values, rtol=0, atol=1e-12)
        torch.testing.assert_close(own.scores, by_index.scores, rtol=0, atol=1e-12)


def test_occlusion_keeps_no_grid_of_scores_for_a_network_that_is_no_classifier() -> None:
    net = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1))
    result = tvc.occlusion(net, torch.randn(1, 3, 8, 8), lambda out: out[:, 2].mean((1, 2)))
    assert result.scores is None
    assert result.values.abs().max() > 0


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), [0.0, 1.0, float("nan")]])
def test_a_fill_that_is_no_number_is_refused(fill: object) -> None:
    with pytest.raises(tvc.InputError, match="finite"):
        tvc.occlusion(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.zeros(1, 3, 4, 4), fill=fill
        )
