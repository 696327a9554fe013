"""Means of gradients beside their formulas: over noise, and along a path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import Headed, pictures, plain, randomised
from tests.test_promises import residual


def close(found: Tensor, wanted: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=atol)


def slope(net: nn.Module, x: Tensor, c: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf)[:, c].sum(), leaf)[0]


class Sizes:
    """How many pictures went through a network at once."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: list[Tensor] = []
        net.register_forward_pre_hook(lambda module, args: self.seen.append(args[0].detach()))

    @property
    def largest(self) -> int:
        return max(map(len, self.seen))


# ---- SmoothGrad -----------------------------------------------------------------------------------


def test_smooth_grad_is_the_mean_of_the_gradients_at_noisy_pictures_one_by_one():
    net, x = residual(), pictures(3)
    targets = [2, 0, 3]
    draw = torch.Generator().manual_seed(5)
    noise = [torch.randn(x.shape[1:], generator=draw) for _ in range(7)]
    wanted = torch.zeros_like(x)
    for n, c in enumerate(targets):
        sigma = 0.3 * (x[n].max() - x[n].min())
        for each in noise:
            wanted[n] += slope(net, x[n : n + 1] + sigma * each.double(), c)[0] / 7
    found = tvc.smooth_grad(net, x, targets, samples=7, noise=0.3, seed=5)
    close(found.values, wanted)
    close(found.score, net(x)[torch.arange(3), torch.tensor(targets)].detach())
    assert (found.values - tvc.saliency(net, x, targets).values).abs().max() > 1e-3


def test_without_noise_smooth_grad_is_the_gradient():
    net, x = residual(), pictures(3)
    for target in (None, 1, [[0, 1], [2, 3], [3, 1]]):
        found = tvc.smooth_grad(net, x, target, samples=4, noise=0)
        close(found.values, tvc.saliency(net, x, target).values)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("method", ["smooth_grad", "integrated_gradients"])
@pytest.mark.parametrize("kind", ["top", "several", "callable"])
def test_any_batch_size_gives_the_same_and_is_kept_to(method, batch_size, kind):
    net, x = residual(), pictures(3)
    rows = torch.arange(3)
    target: Any = {
        "top": None,
        "several": [[0, 1], [2, 3], [3, 1]],
        "callable": lambda out: out[rows, rows],
    }[kind]
    wanted = tvc.METHODS[method](net, x, target)
    sizes = Sizes(net)
    found = tvc.METHODS[method](net, x, target, batch_size=batch_size)
    assert sizes.largest <= (max(3, batch_size) if kind == "callable" else batch_size)
    close(found.values, wanted.values)
    close(found.score, wanted.score)


def test_the_noise_has_the_spread_asked_for_and_the_same_for_every_picture():
    net, x = randomised(plain()), pictures(2, height=40, width=30)
    x[1] *= 3
    sizes = Sizes(net)
    tvc.smooth_grad(net, x, 1, samples=30, noise=0.2, seed=1)
    variants = torch.cat(sizes.seen[1:]).unflatten(0, (30, 2))
    for n in range(2):
        sigma = 0.2 * float(x[n].max() - x[n].min())
        noise = (variants[:, n] - x[n]) / sigma
        assert noise.mean().abs() < 0.01
        assert noise.std() == pytest.approx(1, abs=0.01)
    first, second = ((variants[:, n] - x[n]) / (x[n].max() - x[n].min()) for n in range(2))
    close(first, second, atol=1e-12)
    assert not torch.allclose(variants[0], variants[1])


def test_another_seed_is_other_noise_and_the_same_seed_the_same():
    net, x = residual(), pictures(2)
    one, again, other = (tvc.smooth_grad(net, x, 1, seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_a_seed_may_be_any_number_of_64_bits(seed):
    net, x = smooth_network(), pictures(1)
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed))
    sigma = 0.15 * (x.max() - x.min())
    found = tvc.smooth_grad(net, x, 1, samples=1, seed=seed)
    close(found.values, slope(net, x + sigma * noise.double(), 1))


def test_single_precision_has_the_same_noise():
    net, x = randomised(plain()), pictures(2)
    wanted = tvc.smooth_grad(net, x, 1).values
    found = tvc.smooth_grad(net.float(), x.float(), 1).values
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5)


# ---- integrated gradients -------------------------------------------------------------------------


def midpoints(net: nn.Module, x: Tensor, empty: Tensor, c: int, steps: int) -> Tensor:
    total = torch.zeros_like(x)
    for i in range(steps):
        total += slope(net, empty + (i + 0.5) / steps * (x - empty), c) / steps
    return total * (x - empty)


def smooth_network() -> nn.Module:
    return randomised(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(480, 4)), seed=2
    )


def test_integrated_gradients_is_the_integral():
    net, x = smooth_network(), pictures(2)
    empty = torch.full_like(x, 0.25)
    found = tvc.integrated_gradients(net, x, 3, baseline=0.25, steps=30)
    wanted = midpoints(net, x, empty, 3, 4000)
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_integrated_gradients_is_captums(steps):
    captum = pytest.importorskip("captum.attr")
    net, x = residual(), pictures(3)
    targets = [2, 0, 3]
    found = tvc.integrated_gradients(net, x, targets, baseline=-0.4, steps=steps)
    wanted, delta = captum.IntegratedGradients(net).attribute(
        x,
        baselines=-0.4,
        target=torch.tensor(targets),
        n_steps=steps,
        method="gausslegendre",
        return_convergence_delta=True,
    )
    # It rounds points and weights to single precision.
    torch.testing.assert_close(found.values, wanted.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.gap, delta.detach(), rtol=1e-4, atol=1e-6)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_completeness_is_exact_where_the_quadrature_is():
    """The score is a polynomial of degree 4 along the path, its slope one of degree 3."""
    net = randomised(
        nn.Sequential(
            nn.Conv2d(3, 5, 3), Square(), nn.Conv2d(5, 4, 3), Square(), nn.Flatten(),
            nn.Linear(240, 4),
        )
    )  # fmt: skip
    x = pictures(3)
    exact = tvc.integrated_gradients(net, x, [[0, 1, 2, 3]] * 3, baseline=0.3, steps=2)
    rough = tvc.integrated_gradients(net, x, [[0, 1, 2, 3]] * 3, baseline=0.3, steps=1)
    with torch.no_grad():
        rise = net(x) - net(torch.full_like(x, 0.3))
    close(exact.values.sum((2, 3, 4)), rise, atol=1e-9)
    close(exact.gap, torch.zeros_like(rise), atol=1e-9)
    close(rough.gap, rough.values.sum((2, 3, 4)) - rise, atol=1e-9)
    assert rough.gap.abs().min() > 1e-3


def test_of_a_linear_network_one_step_is_the_input_times_its_gradient():
    net = randomised(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(480, 4)))
    x = pictures(2)
    found = tvc.integrated_gradients(net, x, 1, steps=1)
    close(found.values, tvc.input_x_gradient(net, x, 1).values)
    close(found.gap, torch.zeros(2, dtype=torch.float64))


def test_more_steps_close_the_gap():
    net, x = residual(), pictures(3)
    gaps = [
        float(tvc.integrated_gradients(net, x, 1, steps=n).gap.abs().mean()) for n in (2, 20, 400)
    ]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2]


@pytest.mark.parametrize("target", [0, 1])
def test_the_gap_of_one_sigmoid_and_of_probabilities(target):
    net, x = randomised(Headed(nn.Sigmoid(), 1)), pictures(2)
    found = tvc.integrated_gradients(net, x, target, steps=300, score="probability")
    with torch.no_grad():
        chance, empty = net(x)[:, 0], net(torch.zeros_like(x))[:, 0]
    rise = chance - empty if target else empty - chance
    close(found.score - found.baseline_score, rise)
    torch.testing.assert_close(found.values.sum((1, 2, 3)), rise, rtol=0, atol=1e-4)


def test_the_baseline_may_be_anything_an_occlusion_fills_with():
    net, x = residual(), pictures(2)
    whole = torch.randn_like(x)
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    channels = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[None, :, None, None].expand_as(x)
    for given, empty in (
        ("mean", mean),
        ([0.1, 0.2, 0.3], channels),
        (whole, whole),
        (whole[0].numpy(), whole[:1].expand_as(x)),
    ):
        found = tvc.integrated_gradients(net, x, 1, baseline=given, steps=9)
        wanted = tvc.integrated_gradients(net, x, 1, baseline=empty, steps=9)
        close(found.values, wanted.values)
        close(found.baseline_score, net(empty)[:, 1].detach())
    assert not tvc.integrated_gradients(net, x, 1, baseline=x, steps=3).values.any()


def test_the_gap_is_kept_with_the_numbers(tmp_path):
    net, x = residual(), pictures(2)
    found = tvc.integrated_gradients(net, x, [[0, 1], [1, 2]], steps=3)
    path = found.save(tmp_path / "path.npz")
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["gap"], found.gap.numpy())
        np.testing.assert_array_equal(stored["baseline_score"], found.baseline_score.numpy())
    assert found.manifest()["gap"] == found.gap.tolist()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("smooth_grad", {"samples": 0}, "samples must be .* at least 1, not 0"),
        ("smooth_grad", {"samples": 2.5}, "samples"),
        ("smooth_grad", {"noise": -0.1}, "noise must be"),
        ("smooth_grad", {"noise": float("nan")}, "noise must be"),
        ("smooth_grad", {"noise": "much"}, "noise must be"),
        ("smooth_grad", {"seed": 0.5}, "seed must be"),
        ("smooth_grad", {"seed": 2**64}, "seed must be .* at most 64 bits"),
        ("smooth_grad", {"seed": -(2**63) - 1}, "seed must be .* at most 64 bits"),
        ("smooth_grad", {"batch_size": 0}, r"batch_size must be .* at least 1"),
        ("integrated_gradients", {"steps": 0}, "steps must be .* at least 1, not 0"),
        ("integrated_gradients", {"baseline": "black"}, "baseline must be a value, 'mean'"),
        ("integrated_gradients", {"baseline": torch.zeros(3, 5, 5)}, r"baseline of shape \(3, 5"),
        ("integrated_gradients", {"baseline": float("inf")}, "baseline must be made of finite"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(method, options, words):
    net = residual()
    sizes = Sizes(net)
    with pytest.raises(tvc.InputError, match=words):
        tvc.METHODS[method](net, pictures(2), 1, **options)
    assert not sizes.seen
