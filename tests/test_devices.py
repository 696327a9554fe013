"""On another device than the CPU: everything is found there, and pictures are made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from tests.networks import Residual, pictures, randomised

TARGETS = [[0, 1, 3], [2, 3, 0]]


def dense() -> nn.Module:
    """Poolings that divide by what lies inside, and two dense layers behind."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 6, 3, padding=1))
    net.add_module("relu", nn.ReLU())
    net.add_module("average", nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    net.add_module("flatten", nn.Flatten())
    net.add_module("hidden", nn.Linear(6 * 12 * 10, 8))
    net.add_module("silu", nn.SiLU())
    net.add_module("scores", nn.Linear(8, 4))
    return randomised(net)


NETWORKS = {"residual": lambda: randomised(Residual()), "dense": dense}
every_network = pytest.mark.parametrize("network", NETWORKS)


def same_there(device, found, wanted):
    assert wanted.any()
    assert found.device.type == device.type
    torch.testing.assert_close(found.detach().cpu(), wanted.detach())


def test_the_device_refuses_what_was_left_on_the_cpu(device):
    """Or it would be of no use here."""
    try:
        torch.ones(2, device=device) + torch.ones(2)
    except RuntimeError:
        assert device.type != "cpu"
    else:
        assert device.type == "cpu"


@every_network
@pytest.mark.parametrize("engine", ["dense", "incremental"])
@pytest.mark.parametrize("fill", [0.5, "blur"])
def test_occlusion_with_either_engine(device, network, engine, fill):
    net, inputs = NETWORKS[network](), pictures(2, height=24, width=20)
    options = {"window": 4, "stride": 3, "fill": fill, "engine": engine, "score": "probability"}
    wanted = tvc.occlusion(net, inputs, TARGETS, **options)
    found = tvc.occlusion(net.to(device), inputs.to(device), TARGETS, **options)
    same_there(device, found.values, wanted.values)
    same_there(device, found.heatmap(), wanted.heatmap())
    same_there(device, found.probability_map(), wanted.probability_map())


@every_network
@pytest.mark.parametrize("score", ["probability", "logit"])
def test_several_methods_of_one_pass(device, network, score):
    net, inputs = NETWORKS[network](), pictures(2, height=24, width=20)
    methods = ["grad_cam", "guided_grad_cam", "saliency", "score_cam", "integrated_gradients"]
    wanted = tvc.explain(net, inputs, TARGETS, methods=methods, score=score)
    found = tvc.explain(net.to(device), inputs.to(device), TARGETS, methods=methods, score=score)
    for method in methods:
        same_there(device, found[method].values, wanted[method].values)
        same_there(device, found[method].score, wanted[method].score)


def test_what_layers_put_out_and_what_comes_back(device):
    net, inputs = randomised(Residual()), pictures()
    kept = {}
    for place in ("cpu", device):
        moved = net.to(place)
        with tvc.capture(moved, ["*"], gradients=True) as seen:
            moved(inputs.to(place))[:, 1].sum().backward()
        kept[str(place)] = [(seen[name], seen.gradients[name]) for name in seen]
    assert len(kept["cpu"]) > 5
    for wanted, found in zip(kept["cpu"], kept[str(device)], strict=True):
        for one, other in zip(found, wanted, strict=True):
            same_there(device, one, other)


def test_styles(device):
    net, inputs = randomised(Residual()), pictures(2, height=24, width=20)
    first, second = inputs.split(1)
    layers = ["conv1", "relu"]
    wanted = tvc.style_distance(net, first, second, layers)
    found = tvc.style_distance(net.to(device), first.to(device), second.to(device), layers)
    same_there(device, found.distance, wanted.distance)
    same_there(device, found.relative, wanted.relative)


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_a_result_is_drawn_and_written_as_on_the_cpu(device, method, tmp_path):
    net, inputs = randomised(Residual()), pictures(1, height=24, width=20)
    picture = (inputs[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    options = {"window": 4} if method == "occlusion" else {}
    drawn, numbers = [], []
    for place in ("cpu", device):
        found = getattr(tvc, method)(net.to(place), inputs.to(place), 1, **options)
        drawn.append([found.overlay(picture), found.masked(picture)])
        with np.load(found.save(tmp_path / f"{place}.npz".replace(":", "_"))) as file:
            numbers.append({name: file[name] for name in ("values", "heatmap", "score", "target")})
        assert found.save(tmp_path / "figure.png", picture).stat().st_size > 1000
    for wanted, image in zip(*drawn, strict=True):
        off = np.abs(np.asarray(wanted).astype(int) - np.asarray(image).astype(int))
        assert off.max() <= 1  # a colour may be rounded otherwise
    for name, wanted in numbers[0].items():
        np.testing.assert_allclose(numbers[1][name], wanted, rtol=1e-6, atol=1e-9)
