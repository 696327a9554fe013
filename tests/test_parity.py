"""Explanations of an imported network beside slopes measured in its file."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import converters
import torchviz_cnn as tvc
from converters.slopes import FileScores, score_tensor
from converters.trust import read_model
from tests.onnx_files import DATA, node, save
from tests.test_matching import Described, stored
from torchviz_cnn.errors import NotApplicable
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


class Weakened(Twist):
    """A derivative half as large as it should be."""

    def forward(self, x):
        maps = self.inner(x)
        return 0.5 * maps + 0.5 * maps.detach()


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


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"directions": 0}, "directions must be a whole number of at least 1, not 0"),
        ({"layer": "conv2d*"}, r"layer must name one layer, and 'conv2d\*' names \d"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(wish, words):
    network = converters.load_onnx(DATA / "catdog.k3export.onnx")
    with pytest.raises(tvc.InputError, match=words):
        compare_explanations(DATA / "catdog.k3export.onnx", network, picture(network), **wish)


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


def saturated(path, *, batch=None):
    """Maps of tanh near 1, weighed with both signs: their sum nearly cancels."""
    rng = np.random.default_rng(0)
    return save(
        path,
        [
            node("Transpose", "img", "t", "net_1/conv_1/convolution__5", perm=[0, 3, 1, 2]),
            node("Conv", "t k b", "c", "net_1/conv_1/convolution", kernel_shape=[3, 3]),
            node("Transpose", "c", "l", "Transpose__9", perm=[0, 2, 3, 1]),
            node("Softplus", "l", "s", "net_1/softplus_1/Softplus"),
            node("Tanh", "s", "h", "net_1/tanh_1/Tanh"),
            node("ReduceMean", "h", "g", "net_1/pool_1/Mean", axes=[1, 2], keepdims=0),
            node("MatMul", "g w", "d", "net_1/dense_1/MatMul"),
            node("Softmax", "d", "out", "net_1/prob_1/Softmax"),
        ],
        {
            "k": rng.normal(size=(8, 3, 3, 3)) / 12,
            "b": np.full(8, 1.2),
            "w": balanced(rng.normal(size=(8, 4))),
        },
        {"img": [batch, 34, 34, 3]},
        ["out"],
    )


def balanced(weights):
    """Columns that nearly add up to nothing."""
    return weights - 0.999 * weights.mean(0)


def test_slopes_that_rounding_drowns_are_no_difference(tmp_path):
    """A mean over a thousand cells loses more than the last bits of a score."""
    path = saturated(tmp_path / "n.onnx")
    network = converters.load_onnx(path)
    for seed in range(6):
        _, row = compare_explanations(path, network, picture(network, seed), seed=seed)
        assert row.layer == "tanh"
        assert row.verdict == "agrees", row


@pytest.mark.parametrize("behind", ["conv", "tanh"])
def test_a_wrong_gradient_is_still_found_there(tmp_path, behind):
    path = saturated(tmp_path / "n.onnx")
    network = converters.load_onnx(path)
    x = picture(network)
    network.add_module(behind, Weakened(network.get_submodule(behind)))
    assert converters.compare(path, network=network, inputs=x).passed
    assert compare_explanations(path, network, x)[0].verdict == "differs"


def test_a_wrong_weight_of_a_class_is_found(tmp_path):
    path = saturated(tmp_path / "n.onnx")
    network = converters.load_onnx(path)
    with torch.no_grad():
        network.dense.dense.weight[:, :4] *= -1
    rows = compare_explanations(path, network, picture(network), target=2)
    assert [row.verdict for row in rows] == ["differs", "differs"]
    assert not any(row.passed for row in rows)


def test_where_there_is_no_slope_to_measure_it_is_said(tmp_path):
    """Behind a factor of 1e-9 beside a summand of 1, float32 does not know of the picture."""
    path = save(
        tmp_path / "n.onnx",
        [
            node("Transpose", "img", "t", "net_1/conv_1/convolution__5", perm=[0, 3, 1, 2]),
            node("Conv", "t k", "c", "net_1/conv_1/convolution", kernel_shape=[3, 3]),
            node("Transpose", "c", "l", "Transpose__9", perm=[0, 2, 3, 1]),
            node("ReduceMean", "l", "g", "net_1/pool_1/Mean", axes=[1, 2], keepdims=0),
            node("MatMul", "g w", "m", "net_1/dense_1/MatMul"),
            node("Add", "m b", "out", "net_1/dense_1/BiasAdd"),
        ],
        {
            "k": np.random.default_rng(0).normal(size=(4, 3, 3, 3)),
            "w": np.random.default_rng(1).normal(size=(4, 3)) * 1e-9,
            "b": np.ones(3),
        },
        {"img": [None, 8, 8, 3]},
        ["out"],
    )
    network = converters.load_onnx(path)
    rows = compare_explanations(path, network, picture(network), target=0)
    for row in rows:
        assert row.verdict == "not measured"
        assert row.passed
        assert "cannot be measured in the file: float32 leaves its slopes in doubt" in str(row)
        json.dumps(row.to_dict(), allow_nan=False)


def test_a_file_that_puts_out_nan_has_no_slopes(tmp_path):
    """Beside a network that does not: the layers differ, and the slopes are no numbers."""
    path = saturated(tmp_path / "n.onnx")
    network = converters.load_onnx(path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            numbers = np.full(tensor.dims, np.nan, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numbers, "w"))
    onnx.save(model, path)
    rows = compare_explanations(path, network, picture(network), target=0)
    assert [row.verdict for row in rows] == ["not measured", "not measured"]
    assert [row.to_dict()["relative"] for row in rows] == [None, None]


@pytest.mark.parametrize("batch", [1, 4])
def test_slopes_of_a_file_of_a_fixed_batch(tmp_path, batch):
    path = saturated(tmp_path / "n.onnx", batch=batch)
    network = converters.load_onnx(path)
    assert [row.verdict for row in compare_explanations(path, network, picture(network))] == [
        "agrees"
    ] * 2


def test_a_file_of_two_outputs_has_no_one_score(tmp_path):
    nodes = [node("MatMul", "x w", "a", "/MatMul"), node("MatMul", "x v", "b", "/MatMul_1")]
    constants = {"w": np.eye(4)[:, :3], "v": np.eye(4)[:, 1:]}
    path = save(
        tmp_path / "n.onnx", nodes, constants, {"x": [None, 4]}, ["a", "b"], producer="pytorch"
    )
    with pytest.raises(NotApplicable, match="1 inputs and 2 outputs; slopes need one of each"):
        FileScores(path, converters.load_onnx(path))


def test_half_precision_is_too_rough(tmp_path):
    model = onnx.load(saturated(tmp_path / "n.onnx"))
    for tensor in model.graph.initializer:
        numbers = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    network = converters.load_onnx(tmp_path / "half.onnx")
    with pytest.raises(NotApplicable, match="half precision, which is too rough"):
        compare_explanations(tmp_path / "half.onnx", network, picture(network))


def test_a_layer_of_a_file_without_names_is_where_the_table_has_it(tmp_path):
    """As Keras' torch back end writes it, channels first: the table goes by the importer's names."""
    rng = np.random.default_rng(0)
    path = save(
        tmp_path / "n.onnx",
        [
            node("Conv", "x k", "c", "node_conv2d", kernel_shape=[3, 3]),
            node("Relu", "c", "r", "node_relu"),
            node("ReduceMean", "r", "g", "node_mean", axes=[2, 3], keepdims=0),
            node("MatMul", "g w", "out", "node_matmul"),
        ],
        {"k": rng.normal(size=(4, 3, 3, 3)), "w": rng.normal(size=(4, 3))},
        {"x": [None, 3, 12, 12]},
        ["out"],
        producer="pytorch",
    )
    network = converters.load_onnx(path)
    assert not network.source.names_in_file
    saliency, grad_cam = compare_explanations(path, network, picture(network))
    assert (saliency.verdict, grad_cam.verdict) == ("agrees", "agrees")
    compared = [row.name for row in converters.compare(path).layers if row.relative is not None]
    assert grad_cam.layer in compared


def one_axis(path):
    """A convolution along one axis: no rows and columns that Grad-CAM could weigh."""
    return save(
        path,
        [
            node("Transpose", "img", "t", "net_1/conv_1/convolution__5", perm=[0, 2, 1]),
            node("Conv", "t k", "c", "net_1/conv_1/convolution", kernel_shape=[3]),
            node("Transpose", "c", "l", "Transpose__9", perm=[0, 2, 1]),
            node("ReduceMean", "l", "g", "net_1/pool_1/Mean", axes=[1], keepdims=0),
            node("MatMul", "g w", "out", "net_1/dense_1/MatMul"),
        ],
        {"k": np.random.default_rng(0).normal(size=(4, 3, 3)), "w": np.eye(4)[:, :3]},
        {"img": [None, 16, 3]},
        ["out"],
    )


def test_which_call_of_a_layer_nobody_named_is_meant_is_not_guessed():
    file = DATA / "nameless" / "twins.dyn.onnx"
    network = converters.load_onnx(file, keras=Described(stored(file.name)))
    saliency, cam = compare_explanations(file, network, picture(network))
    assert saliency.verdict == "agrees"
    assert (cam.verdict, cam.layer) == ("not compared", "shared")
    assert "called 2 times" in cam.reason
    last = compare_explanations(file, network, picture(network), layer="base")[1]
    assert (last.layer, last.verdict) == ("base", "agrees")


def test_saliency_is_compared_where_grad_cam_has_no_maps(tmp_path):
    path = one_axis(tmp_path / "n.onnx")
    network = converters.load_onnx(path)
    saliency, grad_cam = compare_explanations(path, network, picture(network))
    assert saliency.verdict == "agrees"
    assert (grad_cam.verdict, grad_cam.passed, grad_cam.relative) == ("not compared", True, None)
    assert "puts out (1, 4, 14), no maps of rows and columns" in str(grad_cam)
    with pytest.raises(NotApplicable, match="no maps"):
        compare_explanations(path, network, picture(network), layer=grad_cam.layer)
