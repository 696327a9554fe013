"""Imported networks against Keras' own numbers, and against onnx's reference implementation.

Expected values never come from the importer: they are Keras' (``.npz`` files beside the exports) or
those of ``onnx.reference``. Which tensor of a file is which layer's output is written down by hand.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from converters import load_onnx
from converters.by_onnx2torch import unsupported
from converters.graph import Node
from converters.names import Owner
from tests.onnx_files import DATA, evaluate

EXTERNAL = os.environ.get("TORCHVIZ_CNN_DATA")
needs_data = pytest.mark.skipif(
    EXTERNAL is None, reason="TORCHVIZ_CNN_DATA names no folder of real networks"
)
TRAINED = ["lenet", "resnet20", "squeezenet_v1.0"]


def external(name: str) -> Path:
    return Path(EXTERNAL or "") / "keras" / name


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy() if array.ndim == 4 else array)


def as_keras(network: nn.Module, name: str, maps: torch.Tensor) -> np.ndarray:
    """A layer's output as Keras lays it out: by the fixed rule and the recorded permutation."""
    record = next(r for r in network.source.layers if r.name == name)
    array = maps.detach().numpy()
    if record.permutation is not None:
        array = array[:, list(record.permutation)]
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def in_file(network: nn.Module) -> list[str]:
    return [r.name for r in network.source.layers if r.status == "in the file"]


# ---------------------------------------------------------------- trained networks, Keras' numbers


@needs_data
@pytest.mark.parametrize("name", TRAINED)
def test_every_layer_of_a_trained_network_is_keras(name: str) -> None:
    network = load_onnx(external(f"{name}.onnx"))
    reference = np.load(external(f"{name}_reference.npz"))
    stored = [key.removeprefix("layer:") for key in reference.files if key.startswith("layer:")]
    compared = [layer for layer in stored if layer in in_file(network)]
    seen = tvc.activations(network, nchw(reference["x"]), compared)
    for layer in compared:
        assert error(as_keras(network, layer, seen[layer]), reference[f"layer:{layer}"]) <= 1e-5, (
            layer
        )
    gone = {"lenet": 1, "resnet20": 21, "squeezenet_v1.0": 0}[name]
    assert len(stored) - len(compared) == gone
    listed = [str(layer) for layer in reference["layer_names"]]
    fused = [r.name for r in network.source.layers if r.status.startswith("fused into")]
    assert set(in_file(network)) | set(fused) <= set(listed)


def settle_the_kink(network: nn.Module, reference: np.lib.npyio.NpzFile) -> int:
    """Let ReLUs decide as they did in Keras where their input is zero to rounding.

    One cell of resnet20's second picture is 1.5e-7 before a ReLU here and not positive in Keras.
    Its gradient is either passed or not: nothing in between. What is added is the difference of
    Keras' own stored output from ours in the cells of another sign.
    """
    name = "layer2_2_add"
    keras = nchw(reference[f"layer:{name}"])
    own = tvc.activations(network, nchw(reference["x"]), name)[name]
    differs = (own > 0) != (keras > 0)
    assert float((own - keras)[differs].abs().max()) < 1e-6
    network.get_submodule(name).register_forward_hook(
        lambda _m, _i, out: torch.where(differs, keras, out)
    )
    return int(differs.sum())


@needs_data
@pytest.mark.parametrize("name", TRAINED)
def test_explanations_of_a_trained_network_are_keras(name: str) -> None:
    network = load_onnx(external(f"{name}.onnx"))
    reference = np.load(external(f"{name}_reference.npz"))
    if name == "resnet20":
        assert settle_the_kink(network, reference) == 1
    x, target = nchw(reference["x"]), int(reference["target"])
    score = "probability" if name == "resnet20" else "logit"
    saliency = tvc.saliency(network, x, target=target, score=score).values
    expected = reference["saliency"]
    for found, wanted in zip(saliency, nchw(expected), strict=True):
        assert error(found.numpy(), wanted.numpy()) <= 1e-4
    layer = str(reference["gradcam_layer"])
    cam = tvc.grad_cam(network, x, target=target, layer=layer, score=score)
    assert error(cam.values.numpy(), reference["gradcam"]) <= 1e-4
    assert tvc.default_layer(network, x) == layer


@needs_data
def test_a_network_that_torch_exported() -> None:
    path = external("resnet20.onnx").parent.parent / "resnet20_cifar10.onnx"
    network = load_onnx(path)
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    (expected,) = evaluate(path, {"image": x}, ["logits"])
    assert error(network(torch.from_numpy(x)).detach().numpy(), expected) <= 1e-5
    assert network.source.input_size == (3, 32, 32)
    assert tvc.default_layer(network, torch.from_numpy(x)) == "relu_19"


# ---------------------------------------------------------------- every exporter


def routes() -> list[Path]:
    folder = DATA if EXTERNAL is None else external("routes")
    return sorted(folder.glob("*.onnx"))


def keras_beside(path: Path) -> np.lib.npyio.NpzFile:
    stem = path.name.removesuffix(".onnx").removesuffix(".nospec")
    return np.load(path.with_name(f"{stem}.npz"))


ABSENT = {"tiny": {"img", "dropout"}, "shared": {"input_layer", "input_1"}, "catdog": set()}


@pytest.mark.parametrize("path", [*sorted(DATA.glob("*.onnx"))], ids=lambda p: p.stem)
@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
def test_names_and_output_of_every_exporter(path: Path, layout: str) -> None:
    check_route(path, layout)


@needs_data
@pytest.mark.parametrize("path", routes() if EXTERNAL else [None], ids=lambda p: p and p.stem)
def test_names_and_output_of_all_routes(path: Path) -> None:
    check_route(path, "NCHW")


def check_route(path: Path, layout: str) -> None:
    network = load_onnx(path, input_layout=layout)
    keras = keras_beside(path)
    expected = [str(n) for n in keras["layers"] if str(n) not in ABSENT[path.name.split(".")[0]]]
    assert sorted(r.name for r in network.source.layers) == sorted(expected)
    assert network.source.notes == ()
    x = nchw(keras["x"]) if layout == "NCHW" else torch.from_numpy(keras["x"])
    assert error(network(x).detach().numpy(), keras["y"]) <= 1e-5
    size = keras["x"].shape[1:] if layout == "as_exported" else tuple(x.shape[1:])
    assert network.source.input_size == size


# The tensor each layer puts out, and the layout it has in the file, written down by hand.
TINY_KERAS3 = {
    "rescaling": "tiny_1/rescaling_1/add:0",
    "conv2d.conv": "tiny_1/conv2d_1/BiasAdd:0",
    "conv2d.act": "tiny_1/conv2d_1/Relu:0",
    "conv2d": "tiny_1/conv2d_1/Relu:0",
    "max_pooling2d": "tiny_1/max_pooling2d_1/MaxPool2d:0",
    "zero_padding2d": "tiny_1/zero_padding2d_1/Pad:0",
    "dw": "Conv__54:0",
    "conv2d_2": "tiny_1/conv2d_2_1/BiasAdd:0",
    "bn_last": "tiny_1/bn_last_1/batchnorm/add_1:0",
    "re_lu": "tiny_1/re_lu_1/Relu6:0",
    "batch_normalization": "Conv__48:0",
    "activation": "tiny_1/activation_1/Relu:0",
    "add": "tiny_1/add_1/Add:0",
    "leaky_re_lu": "tiny_1/leaky_re_lu_1/LeakyRelu:0",
    "concatenate": "tiny_1/concatenate_1/concat:0",
    "flatten": "tiny_1/flatten_1/Reshape:0",
    "dense.dense": "tiny_1/dense_1/BiasAdd:0",
    "dense": "tiny_1/dense_1/Relu:0",
    "predictions.dense": "tiny_1/predictions_1/BiasAdd:0",
    "predictions": "Identity:0",
}
_TFK = "StatefulPartitionedCall/tiny/"
TINY_TFK = {
    "rescaling": f"{_TFK}rescaling/add:0",
    "conv2d.conv": f"{_TFK}conv2d/BiasAdd:0",
    "conv2d": f"{_TFK}conv2d/Relu:0",
    "max_pooling2d": f"{_TFK}max_pooling2d/MaxPool:0",
    "zero_padding2d": f"{_TFK}zero_padding2d/Pad:0",
    "dw": "Conv__49:0",
    "conv2d_2": f"{_TFK}conv2d_2/BiasAdd:0",
    "bn_last": f"{_TFK}bn_last/FusedBatchNormV3:0",
    "re_lu": f"{_TFK}re_lu/Relu6:0",
    "batch_normalization": f"{_TFK}batch_normalization/FusedBatchNormV3:0",
    "activation": f"{_TFK}activation/Relu:0",
    "add": f"{_TFK}add/add:0",
    "leaky_re_lu": f"{_TFK}leaky_re_lu/LeakyRelu:0",
    "concatenate": f"{_TFK}concatenate/concat:0",
    "flatten": f"{_TFK}flatten/Reshape:0",
    "dense": f"{_TFK}dense/Relu:0",
    "predictions.dense": f"{_TFK}predictions/BiasAdd:0",
    "predictions": "output_0",
}
CATDOG_KERAS3 = {  # the trap: conv2d_1 in the file is Keras' conv2d, and conv2d_1_2 is conv2d_1
    "conv2d": "sequential_1/conv2d_1/Relu:0",
    "max_pooling2d": "sequential_1/max_pooling2d_1/MaxPool2d:0",
    "conv2d_1": "sequential_1/conv2d_1_2/Relu:0",
    "max_pooling2d_1": "sequential_1/max_pooling2d_1_2/MaxPool2d:0",
    "flatten": "sequential_1/flatten_1/Reshape:0",
    "dense": "sequential_1/dense_1/Relu:0",
    "dense_1.dense": "sequential_1/dense_1_2/Add:0",
    "dense_1": "Identity:0",
}
SHARED_KERAS3 = {
    "conv2d": "shared_1/conv2d_1/Relu:0",
    "conv2d@1": "shared_1/conv2d_3/Relu:0",
    "conv2d_1": "shared_1/conv2d_1_2/BiasAdd:0",
    "flatten": "Identity:0",
}
SHARED_TFK = {
    "conv2d": "shared/conv2d/Relu:0",
    "conv2d@1": "shared/conv2d/Relu_1:0",
    "conv2d_1": "shared/conv2d_1/BiasAdd:0",
    "flatten": "flatten",
}
# In the file these keep channels last; what comes after the first transpose does not.
CHANNELS_LAST = {"rescaling"}


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
@pytest.mark.parametrize(
    ("file", "tensors"),
    [
        ("tiny.k3export", TINY_KERAS3),
        ("tiny.tfkexport", TINY_TFK),
        ("catdog.k3export", CATDOG_KERAS3),
        ("shared.k3export", SHARED_KERAS3),
        ("shared.tfkfrom", SHARED_TFK),
    ],
)
def test_every_layer_is_the_tensor_it_is_said_to_be(
    file: str, tensors: dict[str, str], layout: str
) -> None:
    path = DATA / f"{file}.onnx"
    network = load_onnx(path, input_layout=layout)
    x = np.random.default_rng(5).uniform(0, 2, keras_beside(path)["x"].shape).astype(np.float32)
    expected = evaluate(path, {network.source.inputs[0]: x}, list(tensors.values()))
    given = nchw(x) if layout == "NCHW" else torch.from_numpy(x)
    seen = tvc.activations(network, given, list(tensors))
    records = {r.name: r for r in network.source.layers}
    for (name, _), wanted in zip(tensors.items(), expected, strict=True):
        maps = seen[name].numpy()
        record = records.get(name.split(".")[0].split("@")[0])
        assert record is not None
        if "." not in name:
            assert maps.shape[1:] == record.output_shape
            if record.permutation is not None:
                maps = maps[:, list(record.permutation)]
        if name in CHANNELS_LAST and layout == "NCHW":
            wanted = wanted.transpose(0, 3, 1, 2)
        assert error(maps, wanted) <= 1e-5, name


def test_flatten_before_a_dense_layer_is_permuted_and_says_so() -> None:
    path = DATA / "catdog.k3export.onnx"
    records = {r.name: r for r in load_onnx(path).source.layers}
    order = np.arange(36).reshape(4, 3, 3).transpose(1, 2, 0).reshape(-1)
    assert records["flatten"].permutation == tuple(order.tolist())
    assert all(r.permutation is None for name, r in records.items() if name != "flatten")
    as_exported = load_onnx(path, input_layout="as_exported")
    assert all(r.permutation is None for r in as_exported.source.layers)


def test_the_table_of_layers_has_one_row_for_each_keras_layer() -> None:
    network = load_onnx(DATA / "tiny.k3export.onnx")
    table = tvc.layers(network, (3, 24, 24))
    assert {row.name: row.type for row in table} == {
        "rescaling": "Rescaling",
        "conv2d": "Conv2D",
        "max_pooling2d": "MaxPooling2D",
        "zero_padding2d": "ZeroPadding2D",
        "dw": "DepthwiseConv2D",
        "conv2d_2": "Conv2D",
        "bn_last": "BatchNormalization",
        "re_lu": "ReLU",
        "conv2d_1": "Conv2D",
        "batch_normalization": "BatchNormalization",
        "activation": "Activation",
        "add": "Add",
        "leaky_re_lu": "LeakyReLU",
        "concatenate": "Concatenate",
        "flatten": "Flatten",
        "dense": "Dense",
        "predictions": "Dense",
    }
    # 3·3·3·4+4, 3·3·4+4, 4·8+8, 2·8, 3·3·4·8+8, 576·7+7, 7·5+5: Keras' own count but for what the
    # exporter folded into others
    assert table.parameters == 112 + 40 + 40 + 16 + 296 + 4039 + 40
    assert table["dense"].parameters == 4039


# ---------------------------------------------------------------- shared layers


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
@pytest.mark.parametrize("file", ["shared.k3export", "shared.tfkfrom", "shared.tfkfrom.nospec"])
def test_a_shared_layer_is_one_module_called_twice(file: str, layout: str) -> None:
    network = load_onnx(DATA / f"{file}.onnx", input_layout=layout)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2
    assert len(list(network.parameters())) == 4
    table = tvc.layers(network, network.source.input_size)
    assert table["conv2d"].calls == 2
    assert table["conv2d_1"].calls == 1
    x = torch.rand(2, *network.source.input_size)
    with tvc.capture(network, ["conv2d@*"], gradients=True) as seen:
        network(x).sum().backward()
    assert list(seen) == ["conv2d", "conv2d@1"]
    both = network.conv2d.conv.weight.grad
    assert both is not None
    # the same gradient, written as the two calls' shares
    shares = []
    for call in ("conv2d", "conv2d@1"):
        given = x if layout == "NCHW" else x.permute(0, 3, 1, 2)
        before = given if call == "conv2d" else seen["conv2d"]
        weight = network.conv2d.conv.weight.detach().clone().requires_grad_()
        bias = network.conv2d.conv.bias.detach()
        out = torch.relu(nn.functional.conv2d(before.detach(), weight, bias, padding=1))
        shares.append(torch.autograd.grad(out, weight, seen.gradients[call])[0])
    torch.testing.assert_close(both, sum(shares), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- fused batch norms


@pytest.fixture
def tiny() -> nn.Module:
    return load_onnx(DATA / "tiny.k3export.onnx")


def test_a_fused_convolution_is_refused_by_name(tiny: nn.Module) -> None:
    x = torch.rand(1, 3, 24, 24)
    sentence = "'conv2d_1' is not in the file.*'batch_normalization'"
    for network in (tiny, copy.deepcopy(tiny)):
        for layer in ("conv2d_1", "conv2d_1.conv", network.conv2d_1, "conv2d_1@0"):
            with pytest.raises(tvc.InputError, match=sentence):
                tvc.activations(network, x, layer)
            with pytest.raises(tvc.InputError, match=sentence):
                tvc.grad_cam(network, x, target=0, layer=layer)
            with pytest.raises(tvc.InputError, match=sentence), tvc.capture(network, layer):
                pass
        seen = tvc.activations(network, x)
        assert not [name for name in seen if name.startswith("conv2d_1")]
        assert "batch_normalization" in seen
        assert tvc.grad_cam(network, x, target=0, layer="batch_normalization").values.any()
    status = {r.name: r.status for r in tiny.source.layers}
    assert status["conv2d_1"] == "fused into batch_normalization"
    assert {s for name, s in status.items() if name != "conv2d_1"} == {"in the file"}


def test_a_fused_convolution_has_its_merged_kernels_to_show(tiny: nn.Module) -> None:
    kernel = tiny.conv2d_1.conv.weight
    for network in (tiny, copy.deepcopy(tiny)):
        for layer in ("conv2d_1", "conv2d_1.conv", network.conv2d_1):
            found = tvc.filters(network, layer)
            assert torch.equal(found.weight, kernel)
            assert found.scaled_by == "batch_normalization"
            assert "scaled by the batch norm 'batch_normalization' that was merged" in str(found)
    assert tvc.filters(tiny, "conv2d").scaled_by is None


def test_every_convolution_that_is_offered_has_filters(tiny: nn.Module) -> None:
    """Who asks for the batch norm's filters is sent to layers that are not refused in turn."""
    with pytest.raises(tvc.InputError, match="'batch_normalization' is no convolution") as problem:
        tvc.filters(tiny, "batch_normalization")
    offered = re.findall(r"'([^']+\.conv)'", str(problem.value))
    assert len(offered) == 3
    for name in (*offered, "conv2d_1.conv"):
        assert tvc.filters(tiny, name).norms.min() > 0


# ---------------------------------------------------------------- an ordinary module


@pytest.mark.parametrize("file", ["tiny.k3export", "shared.tfkfrom", "catdog.k3export"])
def test_it_is_an_ordinary_module(file: str) -> None:
    path = DATA / f"{file}.onnx"
    network = load_onnx(path)
    assert not network.training
    name = network.source.inputs[0]
    images = np.random.default_rng(1).uniform(0, 1, (5, *keras_beside(path)["x"].shape[1:]))
    images = images.astype(np.float32)
    (expected,) = evaluate(path, {name: images}, [network.source.outputs[0]])
    x = nchw(images)

    def check(net: nn.Module, tolerance: float = 1e-5) -> None:
        out = net(x.to(next(net.parameters()).dtype)).detach().float().numpy()
        assert error(out, expected) <= tolerance

    check(network)
    for part in x:  # any batch size, and no picture knows of the others
        torch.testing.assert_close(
            network(part[None]), network(x)[[torch.equal(part, p) for p in x]]
        )
    check(copy.deepcopy(network))
    check(copy.deepcopy(network).double())
    other = load_onnx(path)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(network.state_dict())
    check(other)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(network, (x[:3],), dynamic_shapes=({0: batch},)).module()
    check(exported)
    check(torch.compile(network, backend="eager", fullgraph=True))
    assert all(p.requires_grad for p in network.parameters())


def test_it_can_be_trained(tiny: nn.Module) -> None:
    tiny.train()
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    logits = []
    tiny.predictions.dense.register_forward_hook(lambda _m, _i, out: logits.append(out))
    tiny(torch.rand(4, 3, 24, 24) * 255)
    nn.functional.cross_entropy(logits[0], torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in tiny.named_parameters())


def test_it_moves_to_a_device(tiny: nn.Module, device: torch.device) -> None:
    keras = keras_beside(DATA / "tiny.k3export.onnx")
    x = nchw(keras["x"])
    names = ["conv2d", "add", "flatten", "predictions.dense"]
    expected = tvc.activations(tiny, x, names)
    moved = copy.deepcopy(tiny).to(device)
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {device.type}
    for name, maps in tvc.activations(moved, x.to(device), names).items():
        torch.testing.assert_close(maps.cpu(), expected[name], rtol=1e-3, atol=1e-3)
    assert error(moved(x.to(device)).detach().cpu().numpy(), keras["y"]) <= 1e-3


def test_copies_keep_what_they_know(tiny: nn.Module) -> None:
    again = copy.deepcopy(tiny)
    assert again.source == tiny.source
    assert again.unavailable_layers == tiny.unavailable_layers
    assert again.conv2d.layer_type == "Conv2D"


# ---------------------------------------------------------------- layer_names


def test_listed_layers_that_do_nothing_are_put_back() -> None:
    names = [str(n) for n in keras_beside(DATA / "tiny.k3export.onnx")["layers"]]
    plain = load_onnx(DATA / "tiny.k3export.onnx")
    x = torch.rand(2, 3, 24, 24)
    network = load_onnx(DATA / "tiny.k3export.onnx", layer_names=names)
    assert [r.name for r in network.source.layers] == names
    assert tvc.layers(network).names.count("dropout") == 1
    seen = tvc.activations(network, x, ["img", "concatenate", "dropout"])
    assert torch.equal(seen["dropout"], seen["concatenate"])
    assert torch.equal(seen["img"], x)
    assert torch.equal(network(x), plain(x))


def test_a_listed_layer_that_was_merged_away_is_not_invented() -> None:
    names = [str(n) for n in keras_beside(DATA / "tiny.k3export.onnx")["layers"]]
    names.insert(names.index("flatten"), "mystery")
    network = load_onnx(DATA / "tiny.k3export.onnx", layer_names=names)
    assert {r.name: r.status for r in network.source.layers}["mystery"] == "not in the file"
    x = torch.rand(1, 3, 24, 24)
    with pytest.raises(tvc.InputError, match="'mystery' has left nothing in the file"):
        tvc.activations(network, x, "mystery")
    kinds = dict.fromkeys(names, "") | {"mystery": "GaussianNoise", "dense": "MyDense"}
    network = load_onnx(DATA / "tiny.k3export.onnx", layer_names=kinds)
    seen = tvc.activations(network, x, ["mystery", "dropout", "concatenate"])
    assert torch.equal(seen["mystery"], seen["concatenate"])
    assert tvc.layers(network)["dense"].type == "MyDense"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda names: [n for n in names if n != "re_lu"], "'re_lu' that is not listed"),
        (lambda names: [n.replace("dense", "dence") for n in names], "did you mean 'dence'"),
        (lambda names: [*names, "conv2d"], "lists 'conv2d' twice"),
        (lambda names: names[::-1], "comes before"),
        (lambda names: "conv2d", "must be a list of names"),
        (lambda names: [1, 2], "must be a list of names"),
    ],
)
def test_lists_that_contradict_the_file_are_refused(change, sentence) -> None:
    names = [str(n) for n in keras_beside(DATA / "tiny.k3export.onnx")["layers"]]
    with pytest.raises(tvc.InputError, match=sentence):
        load_onnx(DATA / "tiny.k3export.onnx", layer_names=change(names))


def test_a_shared_layer_may_run_after_later_ones() -> None:
    names = ["input_layer", "conv2d", "conv2d_1", "flatten"]
    network = load_onnx(DATA / "shared.k3export.onnx", layer_names=names)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(tvc.activations(network, x, "input_layer")["input_layer"], x)
    assert tvc.layers(network, (3, 8, 8))["conv2d"].calls == 2


# ---------------------------------------------------------------- in the library


def test_models_load_takes_a_file() -> None:
    path = str(DATA / "catdog.k3export.onnx")
    model = tvc.models.load(path)
    assert model.input_size == (3, 20, 20)
    assert model.classes is None
    assert [note for note in model.notes if "'rescale' is assumed" in note]
    assert tvc.models.load(path, preprocess="caffe").notes == ()
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    (expected,) = evaluate(
        Path(path), {"keras_tensor": (picture / 255).astype(np.float32)[None]}, ["Identity:0"]
    )
    assert error(model(model.preprocess(picture)).detach().numpy(), expected) <= 1e-5
    with pytest.raises(tvc.InputError, match="holds its own weights"):
        tvc.models.load(path, "none")
    with pytest.raises(tvc.InputError, match=r"takes N×3×20×20, not N×3×32×32"):
        tvc.models.load(path, input_size=(3, 32, 32))


def test_an_imported_network_knows_what_it_takes_without_being_told():
    network = load_onnx(DATA / "catdog.k3export.onnx")
    size = network.source.input_size
    assert None not in size
    told = tvc.layers(network, input_size=size)
    assert tvc.layers(network).rows == told.rows
    assert tvc.layers(torch.compile(network, backend="eager")).macs == told.macs > 0
    assert tvc.receptive_field(network, "conv2d_1") == tvc.receptive_field(
        network, "conv2d_1", input_size=size
    )
    turned = load_onnx(DATA / "catdog.k3export.onnx", input_layout="as_exported")
    assert tvc.layers(turned).input_size is None  # rows and columns come first there


def test_an_operator_of_no_layer_is_refused_without_an_empty_name() -> None:
    node = Node("Loop", ["x"], ["y"], {}, owner=Owner((), ()))
    assert str(unsupported(node)).startswith("the operator Loop is not supported; leave")
