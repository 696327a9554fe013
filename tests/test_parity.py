"""Explanations of an imported network beside slopes measured in its file."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import converters
import torchviz_cnn as tvc
from converters.slopes import FileScores, score_tensor
from converters.trust import read_model
from tests.onnx_files import DATA
from torchviz_cnn.parity import compare_explanations

pytest.importorskip("onnxruntime", reason="slopes are measured in onnxruntime")

REAL = os.environ.get("TORCHVIZ_CNN_DATA")


class Twisted(torch.autograd.Function):
    """The identity, with a wrong derivative: no comparison of layers can notice it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(-1)


class Twist(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return Twisted.apply(self.inner(x))


def picture(network, seed=1):
    size = network.source.input_size
    return torch.rand((1, *size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("file", ["tiny.k3export", "tiny.tfkexport", "shared.k3export"])
def test_an_import_agrees_with_its_file(file):
    network = converters.load_onnx(DATA / f"{file}.onnx")
    rows = compare_explanations(DATA / f"{file}.onnx", network, picture(network))
    assert [row.method for row in rows] == ["saliency", "grad_cam"]
    for row in rows:
        assert row.passed, row
        assert row.cosine > 0.999
    assert rows[0].compared >= 32


def test_a_wrong_gradient_behind_right_layers_is_noticed():
    path = DATA / "tiny.k3export.onnx"
    network = converters.load_onnx(path)
    x = picture(network)
    first = next(n for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, name = first.rpartition(".")
    owner = network.get_submodule(parent) if parent else network
    owner.add_module(name, Twist(owner.get_submodule(name)))
    assert converters.compare(path, network=network, inputs=x).passed
    saliency, grad_cam = compare_explanations(path, network, x)
    assert not saliency.passed
    assert "differs from" in str(saliency)
    assert grad_cam.passed  # it begins behind the twist


@pytest.mark.parametrize("end", ["Softmax", "Sigmoid"])
def test_the_score_is_what_goes_into_the_last_activation(end):
    file = {"Softmax": "tiny.k3export.onnx", "Sigmoid": "catdog.k3export.onnx"}[end]
    model = read_model(DATA / file)
    last = [node for node in model.graph.node if node.op_type == end][-1]
    assert score_tensor(model) == last.input[0]
    network = converters.load_onnx(DATA / file)
    x = picture(network)
    scores = torch.from_numpy(FileScores(DATA / file, network).scores(x))
    ends = scores.softmax(1) if end == "Softmax" else scores.sigmoid()
    torch.testing.assert_close(ends, network(x).detach().double(), rtol=1e-4, atol=1e-6)


def test_the_file_from_a_layer_on_gives_the_scores_of_the_whole():
    path = DATA / "tiny.k3export.onnx"
    network = converters.load_onnx(path)
    x = picture(network)
    file = FileScores(path, network)
    layer = tvc.default_layer(network, x)
    maps = tvc.activations(network, x, layer)[layer].numpy()
    found = file.beyond(layer).scores(np.concatenate([maps, 2 * maps]), x)
    assert found[0] == pytest.approx(file.scores(x)[0], rel=1e-4, abs=1e-5)
    assert not np.allclose(found[1], found[0])


def test_one_picture_is_asked_for():
    network = converters.load_onnx(DATA / "tiny.k3export.onnx")
    two = torch.rand((2, *network.source.input_size))
    with pytest.raises(tvc.InputError, match="on one picture, not on 2"):
        compare_explanations(DATA / "tiny.k3export.onnx", network, two)


@pytest.mark.skipif(REAL is None, reason="TORCHVIZ_CNN_DATA names no folder of real networks")
@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_really_trained_networks_agree_with_their_files(name):
    path = Path(REAL) / "keras" / f"{name}.onnx"
    network = converters.load_onnx(path)
    with np.load(path.with_name(f"{name}_reference.npz")) as stored:
        x = torch.from_numpy(stored["x"][:1]).float()
    x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x
    assert all(row.passed for row in compare_explanations(path, network, x))


def test_weights_beside_the_file(tmp_path):
    model = onnx.load(DATA / "tiny.k3export.onnx")
    path = tmp_path / "n.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    network = converters.load_onnx(path, external_data=True)
    x = picture(network)
    rows = compare_explanations(path, network, x, external_data=True)
    assert all(row.passed for row in rows)
    with pytest.raises(tvc.InputError, match="external_data"):
        compare_explanations(path, network, x)
