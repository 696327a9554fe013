"""An imported network beside a torch network: which layers belong together, and what is said of it.

The torch network is written by hand, and so is the file, from the same numbers laid out as Keras has
them: kernels are turned and the dense layer's rows sorted here once more, by numpy.
"""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import converters
import torchviz_cnn as tvc
from tests.onnx_files import node, save

REAL = os.environ.get("TORCHVIZ_CNN_DATA")
needs_data = pytest.mark.skipif(REAL is None, reason="TORCHVIZ_CNN_DATA names no real networks")


class Net(nn.Module):
    """Its layers are registered in another order than they run."""

    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(5, 4)
        self.fc1 = nn.Linear(6 * 3 * 4, 5)
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(x, 2)
        x = self.third(self.second(x).relu()).relu()
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture
def net():
    generator = torch.Generator().manual_seed(7)
    net = Net()
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                low, high = (0.5, 1.5) if "var" in name or name == "norm.weight" else (-0.6, 0.6)
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return net.train()


def keras_file(path, net, *, merged=True):
    """The network as Keras 3's exporter writes it; the batch norm merged into the first kernel."""
    state = {key: value.double().numpy() for key, value in net.state_dict().items()}
    scale = state["norm.weight"] / np.sqrt(state["norm.running_var"] + net.norm.eps)
    shift = state["norm.bias"] - state["norm.running_mean"] * scale
    dense = state["fc1.weight"].reshape(5, 6, 3, 4).transpose(2, 3, 1, 0).reshape(-1, 5)
    kernel = state["first.weight"]
    weights = {
        "net_1/c1_1/convolution/merged_input:0": kernel * scale[:, None, None, None],
        "net_1/bn_1/batchnorm/sub:0": shift + state["first.bias"] * scale,
        "net_1/c2_1/convolution/k:0": state["second.weight"],
        "net_1/c2_1/b:0": state["second.bias"],
        "net_1/c3_1/convolution/k:0": state["third.weight"],
        "net_1/c3_1/b:0": state["third.bias"],
        "net_1/d1_1/Cast/ReadVariableOp:0": dense,
        "net_1/d1_1/b:0": state["fc1.bias"],
        "net_1/d2_1/Cast/ReadVariableOp:0": state["fc2.weight"].T,
        "net_1/d2_1/b:0": state["fc2.bias"],
        "shape": [-1, 72],
    }
    first = "t net_1/c1_1/convolution/merged_input:0 net_1/bn_1/batchnorm/sub:0"
    begin = [node("Conv", first, "n", "Conv__4", kernel_shape=[3, 3])]
    if not merged:
        weights["net_1/c1_1/convolution/merged_input:0"] = kernel
        weights["net_1/c1_1/b:0"] = state["first.bias"]
        weights["net_1/bn_1/batchnorm/mul:0"] = scale.reshape(1, 6, 1, 1)
        weights["net_1/bn_1/batchnorm/sub:0"] = shift.reshape(1, 6, 1, 1)
        begin = [
            node(
                "Conv",
                "t net_1/c1_1/convolution/merged_input:0 net_1/c1_1/b:0",
                "c",
                "net_1/c1_1/convolution",
                kernel_shape=[3, 3],
            ),
            node("Mul", "c net_1/bn_1/batchnorm/mul:0", "m", "net_1/bn_1/batchnorm/mul_1"),
            node("Add", "m net_1/bn_1/batchnorm/sub:0", "n", "net_1/bn_1/batchnorm/add_1"),
        ]
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        *begin,
        node("Relu", "n", "r", "net_1/act_1/Relu"),
        node("MaxPool", "r", "p", "net_1/pool_1/MaxPool2d", **pool),
        node("Conv", "p net_1/c2_1/convolution/k:0 net_1/c2_1/b:0", "c2", "net_1/c2_1/convolution", **same),
        node("Relu", "c2", "r2", "net_1/c2_1/Relu"),
        node("Conv", "r2 net_1/c3_1/convolution/k:0 net_1/c3_1/b:0", "c3", "net_1/c3_1/convolution", **same),
        node("Relu", "c3", "r3", "net_1/c3_1/Relu"),
        node("Transpose", "r3", "l", "Transpose__9", perm=[0, 2, 3, 1]),
        node("Reshape", "l shape", "f", "net_1/flat_1/Reshape"),
        node("MatMul", "f net_1/d1_1/Cast/ReadVariableOp:0", "m1", "net_1/d1_1/MatMul"),
        node("Add", "m1 net_1/d1_1/b:0", "a1", "net_1/d1_1/BiasAdd"),
        node("Relu", "a1", "r4", "net_1/d1_1/Relu"),
        node("MatMul", "r4 net_1/d2_1/Cast/ReadVariableOp:0", "m2", "net_1/d2_1/MatMul"),
        node("Add", "m2 net_1/d2_1/b:0", "a2", "net_1/d2_1/BiasAdd"),
        node("Softmax", "a2", "out", "net_1/d2_1/Softmax", axis=-1),
    ]  # fmt: skip
    return save(path, nodes, weights, {"img": ["N", 8, 10, 3]}, ["out"])


@pytest.fixture
def file(net, tmp_path):
    return keras_file(tmp_path / "net.onnx", net)


def rows(result):
    return {row.name: row for row in result.layers}


@pytest.mark.parametrize("merged", [True, False])
def test_layers_are_found_by_their_weights_in_whatever_order_they_are_registered(
    net, tmp_path, merged
):
    result = converters.compare_with_torch(
        keras_file(tmp_path / "net.onnx", net, merged=merged), net
    )
    assert result.passed, str(result)
    assert result.worst < 1e-5
    found = [(row.name, row.beside) for row in result.layers]
    first = [("c1 + bn", "first + norm")] if merged else [("c1", "first"), ("bn", "norm")]
    rest = [("c2", "second"), ("c3", "third"), ("d1", "fc1"), ("d2", "fc2")]
    assert found == [*first, *rest]
    assert [row.name for row in result.outputs] == ["output before the softmax"]
    assert f"all {len(found)} layers with weights have the weights of Net" in result.notes
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_compare_takes_a_torch_network(net, file):
    result = converters.compare(file, torch=net, seed=3)
    assert (result.passed, result.reference) == (True, "Net")
    assert "second" in result.format(100)
    x = torch.rand(3, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    given = converters.compare(file, torch=net, inputs=x)
    assert given.images == 3
    assert given == converters.compare_with_torch(file, net, inputs=x)


def test_the_numbers_are_the_networks_own(net, file):
    """One row by hand: the torch side doubled behind its equal weights."""
    x = torch.rand(3, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    spoilt = copy.deepcopy(net)
    with torch.no_grad():
        spoilt.second.weight.mul_(2)
        spoilt.second.bias.mul_(2)
    result = converters.compare_with_torch(file, spoilt, inputs=x)
    net.eval()
    wanted = tvc.activations(net, x, "second")["second"].double()
    row = rows(result)["c2"]
    assert row.beside == "second"
    assert row.relative == pytest.approx(0.5, abs=1e-5)
    assert row.max_abs == pytest.approx(float(wanted.abs().max()), rel=1e-5)
    assert row.weights == pytest.approx(0.5, abs=1e-6)
    assert (row.status, result.passed, result.images) == ("differs", False, 3)
    assert result.first_difference.name == "c2"
    assert any("4 of 5 layers" in note and "'c2' beside 'second'" in note for note in result.notes)


def test_of_equal_layers_the_first_to_run_comes_first(net, tmp_path):
    with torch.no_grad():
        net.third.load_state_dict(net.second.state_dict())
    result = converters.compare_with_torch(keras_file(tmp_path / "net.onnx", net), net)
    assert result.passed
    assert (rows(result)["c2"].beside, rows(result)["c3"].beside) == ("second", "third")


def test_a_layer_called_twice_is_compared_at_both_calls(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 1))
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t net_1/c_1/convolution/k:0", "a", "net_1/c_1/convolution"),
        node("Relu", "a", "r", "net_1/act_1/Relu"),
        node("Conv", "r net_1/c_1/convolution/k:0", "b", "net_1/c_2/convolution"),
        node("Transpose", "b", "out", "Transpose__9", perm=[0, 2, 3, 1]),
    ]
    weights = {"net_1/c_1/convolution/k:0": kernel}
    file = save(tmp_path / "n.onnx", nodes, weights, {"img": ["N", 5, 4, 3]}, ["out"])

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    twice = Twice()
    with torch.no_grad():
        twice.conv.weight.copy_(torch.from_numpy(kernel))
    result = converters.compare_with_torch(file, twice)
    assert [(row.name, row.beside) for row in result.layers] == [("c", "conv"), ("c@1", "conv@1")]
    assert result.passed, str(result)
    assert result.worst < 1e-5


def test_branches_may_run_in_another_order(tmp_path):
    kernels = np.random.default_rng(0).normal(size=(2, 3, 3, 1, 1))
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t net_1/a_1/convolution/k:0", "a", "net_1/a_1/convolution"),
        node("Conv", "t net_1/b_1/convolution/k:0", "b", "net_1/b_1/convolution"),
        node("Sub", "a b", "s", "net_1/minus_1/Sub"),
        node("Transpose", "s", "out", "Transpose__9", perm=[0, 2, 3, 1]),
    ]
    weights = {f"net_1/{n}_1/convolution/k:0": k for n, k in zip("ab", kernels, strict=True)}
    file = save(tmp_path / "n.onnx", nodes, weights, {"img": ["N", 5, 4, 3]}, ["out"])

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(2))
            for conv, kernel in zip((self.left, self.right), kernels, strict=True):
                conv.weight = nn.Parameter(torch.from_numpy(kernel).float())

        def forward(self, x):
            right = self.right(x)
            return self.left(x) - right

    result = converters.compare_with_torch(file, Branches())
    assert result.passed, str(result)
    assert {name: row.beside for name, row in rows(result).items()} == {"a": "left", "b": "right"}


def test_the_same_numbers_in_another_order_are_other_weights(net, file):
    """Who sorted them, or searched for an order of axes, would call them the same."""
    spoilt = copy.deepcopy(net)
    with torch.no_grad():
        spoilt.third.weight.copy_(net.third.weight.mT.clone())
    result = converters.compare_with_torch(file, spoilt)
    assert not result.passed
    assert result.first_difference.name == "c3"
    assert rows(result)["c3"].weights > 0.1


def test_equal_weights_behind_another_setting_are_told_apart_from_other_weights(net, file):
    other = Net().eval()
    other.load_state_dict(net.state_dict())
    other.second.padding_mode = "circular"
    result = converters.compare_with_torch(file, other)
    assert not result.passed
    assert result.first_difference.name == "c2"
    assert rows(result)["c2"].weights <= 1e-5
    assert any("'c2' has the weights of 'second' and puts out other" in n for n in result.notes)


def test_a_network_of_other_weights_is_said_to_be_one(file):
    result = converters.compare_with_torch(file, Net())
    assert not result.passed
    assert any(
        note.startswith("the weights are not those of Net: 0 of 5 layers")
        and "'c1 + bn' beside 'first + norm'" in note
        for note in result.notes
    )


def test_layers_without_a_counterpart_are_listed(net, file):
    class Shorter(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = net.first
            self.extra = nn.Conv2d(6, 2, 1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.out = nn.Linear(2, 4)

        def forward(self, x):
            return self.out(self.pool(self.extra(self.c(x))).flatten(1))

    result = converters.compare_with_torch(file, Shorter())
    assert {row.status for row in result.layers} == {"not in the torch network"}
    assert any(note.endswith("without a counterpart: c, extra, out") for note in result.notes)
    assert not result.passed  # by its output


def test_another_import_may_be_the_other_side(net, file, tmp_path):
    """Two files of one network, one with its batch norm merged and one without."""
    other = converters.load_onnx(keras_file(tmp_path / "apart.onnx", net, merged=False))
    result = converters.compare_with_torch(file, other)
    assert result.passed, str(result)
    assert result.reference == "apart.onnx"
    assert result.layers[0].beside == "c1 + bn"


def test_float64_and_a_network_of_any_dtype(net, file):
    result = converters.compare_with_torch(file, net.double())
    assert result.passed


def test_what_cannot_be_compared_is_a_sentence(net, file):
    with pytest.raises(tvc.InputError, match="imported as NCHW"):
        converters.compare_with_torch(file, net, input_layout="as_exported")
    with pytest.raises(tvc.InputError):  # 3 channels are wanted where 1 are taken
        converters.compare_with_torch(file, nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    with pytest.raises(tvc.InputError, match="there is no network 'vg16'"):
        converters.compare_with_torch(file, "vg16")
    with pytest.raises(tvc.InputError, match=r"expected a torch\.nn\.Module"):
        converters.compare_with_torch(file, 7)


def test_the_command(net, file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from torchviz_cnn import cli

    torch.save(net.state_dict(), tmp_path / "weights.pth")
    source = Path(__file__).read_text().split("class Net")[1].split("@pytest")[0]
    (tmp_path / "their_net.py").write_text(f"from torch import nn\n\n\nclass Net{source}")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["torchviz-cnn", "compare", str(file), *words])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    words = ("--torch", "their_net:Net", "--no-explanations")
    code, out, err = run(*words, "--weights", "weights.pth", "--out", "o")
    assert code == 0, err
    assert "first + norm" in out
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "comparison.json",
        "comparison.png",
        "torch.png",
    }
    code, out, _ = run(*words)
    assert code == 1
    assert "the weights are not those of their_net:Net" in out
    code, _, err = run("--weights", "weights.pth")
    assert (code, "--torch" in err) == (2, True)


@needs_data
def test_one_trained_network_through_keras_and_through_torch():
    """Keras' own export of ResNet-20 beside the file that torch exported of the same weights."""
    folder = Path(REAL)
    other = converters.load_onnx(folder / "resnet20_cifar10.onnx")
    result = converters.compare_with_torch(folder / "keras" / "resnet20.onnx", other)
    assert result.passed
    assert result.worst < 1e-5
    pairs = {row.name: row.beside for row in result.layers}
    # Keras' two shortcuts are convolutions with fixed kernels, torch's are slices.
    assert [name for name, beside in pairs.items() if beside is None] == [
        "layer2_0_shortcut",
        "layer3_0_shortcut",
    ]
    found = [beside for beside in pairs.values() if beside]
    assert found == [f"conv_{n}" for n in range(1, 20)] + ["dense_1"]
