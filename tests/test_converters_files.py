"""Files made by hand: names of every style, broken exports, and operators one by one."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import converters
import torchviz_cnn as tvc
from converters import load_onnx
from converters import network as network_of
from converters.graph import Graph, Node
from converters.modules.shapes import Permute
from converters.names import Owner
from converters.owners import give_owners
from converters.passes import gelu as gelu_pass
from converters.passes import layout
from tests.onnx_files import DATA, FLOAT, evaluate, node, save


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def conv(scope: str, source: str, out: str, *, op: str = "convolution", **more: object) -> list:
    """A convolution and its ReLU as the exporter names them, kernel and bias included."""
    inputs = f"{source} {scope}/{op}/ReadVariableOp:0 {scope}/Squeeze:0"
    return [
        node("Conv", inputs, f"{scope}/BiasAdd:0", f"{scope}/BiasAdd", **more),
        node("Relu", f"{scope}/BiasAdd:0", out, f"{scope}/Relu"),
    ]


def weights(scope: str, before: int, after: int, *, op: str = "convolution", seed: int = 0) -> dict:
    return {
        f"{scope}/{op}/ReadVariableOp:0": draw(after, before, 3, 3, seed=seed),
        f"{scope}/Squeeze:0": draw(after, seed=seed + 1),
    }


TURN = node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2])


def run(path: Path, shape: tuple[int, ...], names: list[str], seed: int = 3) -> tuple:
    """A random input in the file's layout, the network, and the reference's tensors."""
    x = draw(*shape, seed=seed).astype(np.float32)
    network = load_onnx(path)
    return x, network, evaluate(path, {network.source.inputs[0]: x}, names)


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert tuple(found.shape) == expected.shape
    assert np.abs(expected).max() > 1e-3
    assert np.abs(found.detach().numpy() - expected).max() <= tolerance * np.abs(expected).max()


# ---------------------------------------------------------------- styles of names


def two_convolutions(path: Path, scopes: list[str], op: str, producer: str = "tf2onnx") -> Path:
    first, second = scopes
    nodes = [TURN, *conv(first, "t", "a", op=op), *conv(second, "a", "out", op=op)]
    constants = weights(first, 3, 4, op=op) | weights(second, 4, 2, op=op, seed=5)
    return save(path, nodes, constants, {"img": ["N", 8, 7, 3]}, ["out"], producer=producer)


@pytest.mark.parametrize(
    ("scopes", "op", "names"),
    [
        (["net_1/conv2d_1", "net_1/conv2d_1_2"], "convolution", ["conv2d", "conv2d_1"]),
        # the second model built in a notebook with tf_keras: numbered, and nothing to strip
        (["sequential_1/conv2d_2", "sequential_1/conv2d_3"], "Conv2D", ["conv2d_2", "conv2d_3"]),
        (["net/conv2d", "net/conv2d_1"], "Conv2D", ["conv2d", "conv2d_1"]),
        (
            [f"StatefulPartitionedCall/net_1/{n}_1" for n in ("block1_conv1", "block1_conv2")],
            "convolution",
            ["block1_conv1", "block1_conv2"],
        ),
        (["net_1/vggish_1/conv2d_1", "net_1/vggish_1/conv2d_1_2"], "convolution",
         ["vggish.conv2d", "vggish.conv2d_1"]),
    ],
)  # fmt: skip
def test_names_of_each_style(tmp_path: Path, scopes: list[str], op: str, names: list[str]) -> None:
    path = two_convolutions(tmp_path / "net.onnx", scopes, op)
    x, network, expected = run(path, (2, 8, 7, 3), ["a", "out"])
    found = [r.name for r in network.source.layers if r.type == "Conv2D"]
    assert found == names
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, image, names)
    for name, wanted in zip(names, expected, strict=True):
        close(seen[name], wanted)
    if "vggish" in scopes[0]:
        assert torch.equal(tvc.activations(network, image, "vggish")["vggish"], seen[names[-1]])


@pytest.mark.parametrize("name", ["input_layer", "dropout", "identity_1"])
def test_a_convolution_named_like_a_layer_without_weights_is_one(tmp_path: Path, name: str) -> None:
    """A tutorial's first convolution is called ``input_layer``."""
    path = two_convolutions(
        tmp_path / "net.onnx", [f"net_1/{name}_1", "net_1/conv_1_1"], "convolution"
    )
    table = tvc.layers(load_onnx(path), (3, 8, 7))
    assert [(row.name, row.type) for row in table] == [(name, "Conv2D"), ("conv_1", "Conv2D")]


def test_a_nested_model_called_twice_is_one_module(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "left", "tl", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Transpose", "right", "tr", "Transpose__2", perm=[0, 3, 1, 2]),
    ]
    kernel = weights("net_1/tower_1/conv2d_1", 3, 4)
    kernel_name, bias_name = kernel
    for source, scope, out in (("tl", "tower_1", "a"), ("tr", "tower_3", "b")):
        base = f"net_1/{scope}/conv2d_1"
        nodes += [
            node("Conv", f"{source} {kernel_name} {bias_name}", f"{base}/B:0", f"{base}/BiasAdd"),
            node("Relu", f"{base}/B:0", out, f"{base}/Relu"),
        ]
    nodes += [node("Sub", "a b", "out", "net_1/subtract_1/Sub")]
    sides = ["N", 6, 6, 3]
    path = save(tmp_path / "n.onnx", nodes, kernel, {"left": sides, "right": sides}, ["out"])
    network = load_onnx(path)
    assert [name for name, _ in network.named_children()] == ["tower", "subtract"]
    assert len(list(network.parameters())) == 2
    left, right = draw(1, 6, 6, 3).astype(np.float32), draw(1, 6, 6, 3, seed=9).astype(np.float32)
    a, b, out = evaluate(path, {"left": left, "right": right}, ["a", "b", "out"])
    pair = [torch.from_numpy(each.transpose(0, 3, 1, 2).copy()) for each in (left, right)]
    with tvc.capture(network, ["tower.conv2d@*", "tower@*"]) as seen:
        close(network(*pair), out)
    close(seen["tower.conv2d"], a)
    close(seen["tower.conv2d@1"], b)
    close(seen["tower@1"], b)


def test_a_nested_model_called_twice_by_tf_keras(tmp_path: Path) -> None:
    kernel = {"net/tower/conv2d/Conv2D/ReadVariableOp:0": draw(3, 3, 1, 1)}
    weight = next(iter(kernel))
    nodes = [
        TURN,
        node("Conv", f"t {weight}", "net/tower/conv2d/Conv2D:0", "net/tower/conv2d/Conv2D"),
        node("Relu", "net/tower/conv2d/Conv2D:0", "a", "net/tower/activation/Relu"),
        node("Conv", f"a {weight}", "net/tower/conv2d/Conv2D_1:0", "net/tower/conv2d/Conv2D_1"),
        node("Relu", "net/tower/conv2d/Conv2D_1:0", "out", "net/tower/activation/Relu_1"),
    ]
    path = save(tmp_path / "n.onnx", nodes, kernel, {"img": ["N", 4, 4, 3]}, ["out"])
    x, network, (a, out) = run(path, (1, 4, 4, 3), ["a", "out"])
    seen = tvc.activations(network, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), "tower@*")
    close(seen["tower"], a)
    close(seen["tower@1"], out)
    assert len(list(network.parameters())) == 1


def test_an_operator_used_twice_in_one_call_is_not_a_second_call(tmp_path: Path) -> None:
    nodes = [
        TURN,
        node("Mul", "t half", "m", "net/twice/mul"),
        node("Mul", "m third", "out", "net/twice/mul_1"),
        *conv("net/conv2d", "out", "c", op="Conv2D"),
    ]
    constants = {"half": 0.5, "third": 0.3} | weights("net/conv2d", 3, 2, op="Conv2D")
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 4, 4, 3]}, ["c"])
    x, network, (out,) = run(path, (1, 4, 4, 3), ["out"])
    assert [r.name for r in network.source.layers] == ["twice", "conv2d"]
    seen = tvc.activations(network, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), "twice@*")
    assert list(seen) == ["twice"]
    close(seen["twice"], out)


def test_equal_constants_of_two_layers_do_not_lend_their_name(tmp_path: Path) -> None:
    # The exporter stores the zero bias of both once, under the first one's name.
    zero = "net_1/first_1/Squeeze:0"
    nodes = [TURN]
    constants = {zero: np.zeros(3)}
    for number, (source, out) in enumerate((("t", "a"), ("a", "out"))):
        name = ("first", "second")[number]
        weight = f"net_1/{name}_1/convolution/ReadVariableOp:0"
        constants[weight] = draw(3, 3, 1, 1, seed=number)
        nodes.append(node("Conv", f"{source} {weight} {zero}", out, f"Conv__{number}"))
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 4, 4, 3]}, ["out"])
    x, network, (a, out) = run(path, (1, 4, 4, 3), ["a", "out"])
    assert network.unavailable_layers == {}
    seen = tvc.activations(network, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), "*")
    close(seen["first"], a)
    close(seen["second"], out)
    # stored once, and yet two biases: training one must not move the other
    assert network.first.conv.bias is not network.second.conv.bias


def test_a_fused_convolution_named_only_by_the_transpose_before_it(tmp_path: Path) -> None:
    constants = {
        "Conv__9_weights_fused_bn": draw(2, 3, 3, 3),
        "Conv__9_bias_fused_bn": draw(2, seed=1),
    } | weights("net/other", 2, 2, op="Conv2D")
    nodes = [
        node("Transpose", "img", "t", "net/conv1_conv/Conv2D__6", perm=[0, 3, 1, 2]),
        node(
            "Conv",
            "t Conv__9_weights_fused_bn Conv__9_bias_fused_bn",
            "net/conv1_bn/FusedBatchNormV3:0",
            "Conv__9",
        ),
        *conv("net/other", "net/conv1_bn/FusedBatchNormV3:0", "out", op="Conv2D"),
    ]
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 8, 8, 3]}, ["out"])
    x, network, (bn,) = run(path, (1, 8, 8, 3), ["net/conv1_bn/FusedBatchNormV3:0"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    close(tvc.activations(network, image, "conv1_bn")["conv1_bn"], bn)
    with pytest.raises(tvc.InputError, match=r"'conv1_conv' is not in the file.*'conv1_bn'"):
        tvc.activations(network, image, "conv1_conv")


def test_a_layer_may_put_out_a_tensor_of_its_own_name(tmp_path: Path) -> None:
    nodes = [
        TURN,
        node("Conv", "t net/first/Conv2D/ReadVariableOp:0", "net/first:0", "Conv__5"),
        *conv("net/second", "net/first:0", "out", op="Conv2D"),
    ]
    constants = {"net/first/Conv2D/ReadVariableOp:0": draw(4, 3, 1, 1)}
    constants |= weights("net/second", 4, 2, op="Conv2D")
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 5, 3]}, ["out"])
    x, network, (first, out) = run(path, (2, 6, 5, 3), ["net/first:0", "out"])
    assert [record.name for record in network.source.layers] == ["first", "second"]
    seen = tvc.activations(network, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), "*")
    close(seen["first"], first)
    close(seen["second"], out)


@pytest.mark.parametrize("producer", ["pytorch", "jax2onnx", "somebody"])
def test_a_file_without_names_gets_readable_ones(tmp_path: Path, producer: str) -> None:
    nodes = [
        TURN,
        node("Conv", "t k", "c", "/Conv"),
        node("Relu", "c", "r", "/Relu"),
        node("MaxPool", "r", "p", "/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p k2", "c2", "/Conv_1"),
        node("Relu", "c2", "r2", "/Relu_1"),
        node("GlobalAveragePool", "r2", "g", "/Mean"),
        node("Flatten", "g", "f", "/Flatten"),
        node("Gemm", "f w b", "d", "/Gemm", transB=1),
        node("Softmax", "d", "out", "/Softmax"),
    ]
    constants = {
        "k": draw(4, 3, 3, 3),
        "k2": draw(4, 4, 3, 3, seed=1),
        "w": draw(5, 4),
        "b": draw(5),
    }
    path = save(
        tmp_path / "n.onnx", nodes, constants, {"img": ["N", 12, 12, 3]}, ["out"], producer=producer
    )
    x, network, (r2, d) = run(path, (2, 12, 12, 3), ["r2", "d"])
    assert [r.name for r in network.source.layers] == [
        "conv_1",
        "relu_1",
        "max_pool_1",
        "conv_2",
        "relu_2",
        "global_average_pool_1",
        "flatten_1",
        "dense_1",
        "softmax_1",
    ]
    assert [note for note in network.source.notes if producer in note and "names" in note]
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, image, ["relu_2", "dense_1"])
    close(seen["relu_2"], r2)
    close(seen["dense_1"], d)


def test_a_layer_whose_inside_is_read_elsewhere_puts_out_its_last_tensor(tmp_path: Path) -> None:
    # Merging equal operators lets another layer read what is before the activation.
    nodes = [
        TURN,
        *conv("net_1/conv2d_1", "t", "a"),
        node("Add", "a net_1/conv2d_1/BiasAdd:0", "out", "net_1/add_1/Add"),
    ]
    constants = weights("net_1/conv2d_1", 3, 4)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 6, 3]}, ["out"])
    x, network, (a, out) = run(path, (1, 6, 6, 3), ["a", "out"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    close(network(image), out)
    close(tvc.activations(network, image, "conv2d")["conv2d"], a)


def test_layers_that_wait_for_each_other_are_split(tmp_path: Path) -> None:
    # The second half of "left" needs "right", which needs the first half of "left".
    nodes = [
        TURN,
        node("Neg", "t", "l1", "net_1/left_1/Neg"),
        node("Exp", "l1", "r1", "net_1/right_1/Exp"),
        node("Add", "l1 r1", "out", "net_1/left_1/Add"),
    ]
    nodes[1:2] = [*conv("net_1/conv2d_1", "t", "c"), node("Neg", "c", "l1", "net_1/left_1/Neg")]
    path = save(
        tmp_path / "n.onnx",
        nodes,
        weights("net_1/conv2d_1", 3, 2),
        {"img": ["N", 4, 4, 3]},
        ["out"],
    )
    x, network, (r1, out) = run(path, (1, 4, 4, 3), ["r1", "out"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, image, ["left", "right"])
    close(seen["left"], out)
    close(seen["right"], r1)


# ---------------------------------------------------------------- names that torch refuses


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, nn.Module]:
    scopes = ["net_1/mobilenetv2_1.00_224_1/train_1", "net_1/mobilenetv2_1.00_224_1/a.b_1"]
    nodes = [TURN, *conv(scopes[0], "t", "a"), *conv(scopes[1], "a", "b")]
    nodes += [node("MaxPool", "b", "c", "net_1/float_1/MaxPool2d", kernel_shape=[2, 2])]
    nodes += [node("Relu", "c", "out", "net_1/steps_1/Relu")]
    constants = weights(scopes[0], 3, 4) | weights(scopes[1], 4, 2, seed=5)
    path = save(tmp_path / "odd.onnx", nodes, constants, {"img": ["N", 12, 11, 3]}, ["out"])
    return path, load_onnx(path)


def test_names_that_torch_refuses_are_accepted(odd: tuple[Path, nn.Module]) -> None:
    path, network = odd
    x = draw(1, 12, 11, 3).astype(np.float32)
    wanted = ["a", "net_1/mobilenetv2_1.00_224_1/a.b_1/BiasAdd:0", "b", "c", "out"]
    a, before, b, c, out = evaluate(path, {"img": x}, wanted)
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    model = "mobilenetv2_1.00_224"
    expected = {
        f"{model}.train": a,
        f"{model}.a.b.conv": before,
        f"{model}.a.b": b,
        model: b,
        "float": c,
        "steps": out,
    }
    for net in (network, copy.deepcopy(network)):
        seen = tvc.activations(net, image, list(expected))
        assert set(seen) == set(expected)
        for name, value in expected.items():
            close(seen[name], value)
        cam = tvc.grad_cam(net, image, target=lambda y: y.sum((1, 2, 3)), layer=f"{model}.train")
        assert cam.layer == f"{model}.train"
        rows = tvc.layers(net, (3, 12, 11))
        assert rows.names == [f"{model}.train", f"{model}.a.b", "float", "steps"]
        assert rows[f"{model}.a.b"].type == "Conv2D"
    tvc.rename(network, {"float": "pool", f"{model}.train": "first"})
    seen = tvc.activations(network, image, ["pool", "float", "first"])
    close(seen["pool"], c)
    close(seen["first"], a)
    with pytest.raises(tvc.InputError, match=f"did you mean '{model}.a.b"):
        tvc.activations(network, image, f"{model}.a.c")


# ---------------------------------------------------------------- broken exports


def broken(path: Path, middle: onnx.NodeProto, **more: object) -> Path:
    nodes = [TURN, *conv("net_1/conv2d_1", "t", "a"), middle]
    inputs = {"img": ["N", 8, 8, 3]} | more.pop("inputs", {})
    return save(path, nodes, weights("net_1/conv2d_1", 3, 4), inputs, ["out"], **more)


@pytest.mark.parametrize(
    ("middle", "layer", "cause", "remedy"),
    [
        (
            node(
                "StatelessRandomUniformV2",
                "a",
                "out",
                "net_1/random_flip_1/stateless_random/StatelessRandomUniformV2",
            ),
            "random_flip",
            "augments pictures while training",
            "torchviz-cnn export-keras, which leaves it out",
        ),
        (
            node(
                "ImageProjectiveTransformV3",
                "a",
                "out",
                "net_1/random_rotation_1/transform/ImageProjectiveTransformV3",
            ),
            "random_rotation",
            "augments pictures while training",
            "torchviz-cnn export-keras, which leaves it out",
        ),
        (
            node("StatefulPartitionedCall", "a", "out", "net_1/conv2d_1_2/StatefulPartitionedCall"),
            "conv2d_1",
            "grouped convolution",
            "KERAS_BACKEND=torch",
        ),
        (
            node("SomethingOfTensorFlow", "a", "out", "net_1/my_layer_1/SomethingOfTensorFlow"),
            "my_layer",
            "no operator of ONNX 15",
            "replace that layer",
        ),
    ],
)
def test_broken_exports_say_what_to_do(
    tmp_path: Path, middle: onnx.NodeProto, layer: str, cause: str, remedy: str
) -> None:
    path = broken(tmp_path / "broken.onnx", middle)
    with pytest.raises(tvc.InputError) as caught:
        load_onnx(path)
    sentence = str(caught.value)
    assert f"'{layer}'" in sentence
    assert cause in sentence
    assert remedy in sentence
    assert "\n" not in sentence


def before_a(last: onnx.NodeProto, path: Path, opset: int, *, on: bool) -> Path:
    """A convolution before an operator that may be given ``on``."""
    constants = dict.fromkeys(["g", "b", "m", "v"], np.ones(4)) | {"half": np.float32(0.5)}
    constants |= weights("net_1/conv2d_1", 3, 4)
    nodes = [TURN, *conv("net_1/conv2d_1", "t", "a"), last]
    save(path, nodes, constants, {"img": ["N", 8, 8, 3]}, ["out"], opset=opset)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(on), "on"))
    onnx.save(model, path)
    return path


BATCH = "a g b m v"
WHILE_TRAINING = {
    "normalised by the batch": (
        node("BatchNormalization", BATCH, "out mean var", "net_1/bn_1/Norm", training_mode=1), 15,
    ),
    "normalised by the batch, as it was before": (
        node("BatchNormalization", BATCH, "out mean var sm sv", "net_1/bn_1/Norm"), 9,
    ),
    "dropped at random": (node("Dropout", "a half on", "out", "net_1/bn_1/dropout"), 15),
}  # fmt: skip


@pytest.mark.parametrize("name", WHILE_TRAINING)
def test_a_layer_that_works_as_while_training_is_refused(tmp_path: Path, name: str) -> None:
    operator, opset = WHILE_TRAINING[name]
    path = before_a(operator, tmp_path / "n.onnx", opset, on=True)
    with pytest.raises(tvc.InputError, match=r"'bn' works as while training.*for inference"):
        load_onnx(path)


def test_a_dropout_that_is_switched_off_is_none(tmp_path: Path) -> None:
    operator, opset = WHILE_TRAINING["dropped at random"]
    network = load_onnx(before_a(operator, tmp_path / "n.onnx", opset, on=False))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(network(x), tvc.activations(network, x, "conv2d")["conv2d"])


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "a s z", "q", "net_1/quant_1/Quantize"),
         node("DequantizeLinear", "q s z", "out", "net_1/quant_1/Dequantize")],
        [node("DequantizeLinear", "w8 s z", "w", "net_1/quant_1/Dequantize"),
         node("Conv", "a w", "out", "net_1/conv2d_1_2/convolution")],
        [node("DynamicQuantizeLinear", "a", "q qs qz", "net_1/quant_1/Quantize"),
         node("DequantizeLinear", "q qs qz", "out")],
    ],
)  # fmt: skip
def test_a_quantised_file_is_refused(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    constants = weights("net_1/conv2d_1", 3, 4) | {"s": np.float32(0.1)}
    path = tmp_path / "n.onnx"
    before = [TURN, *conv("net_1/conv2d_1", "t", "a")]
    save(path, [*before, *nodes], constants, {"img": ["N", 8, 8, 3]}, ["out"])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(128), "z"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 4, 1, 1), np.uint8), "w8"))
    onnx.save(model, path)
    with pytest.raises(tvc.InputError, match=r"'quant' is quantised.*before it was quantised"):
        load_onnx(path)


def test_normalization_that_lost_its_numbers(tmp_path: Path) -> None:
    lost = "net_1/normalization_1/Sub/y:0"
    middle = node("Sub", f"a {lost}", "out", "net_1/normalization_1/Sub")
    path = broken(tmp_path / "b.onnx", middle, inputs={lost: [1, 4, 1, 1]})
    with pytest.raises(tvc.InputError, match=r"'normalization' lost its numbers.*Rescaling\("):
        load_onnx(path)


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_that_some_exporters_write_for_an_open_one_is_open(
    tmp_path: Path, length: int
) -> None:
    nodes = [TURN, *conv("net_1/conv2d_1", "t", "a", pads=[1, 1, 1, 1])]
    nodes += [node("GlobalAveragePool", "a", "out", "net_1/pool_1/Mean")]
    constants = weights("net_1/conv2d_1", 3, 4)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", "H", "W", 3]}, ["out"])
    wanted = load_onnx(path)
    model = onnx.load(path)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:3]:
        dim.dim_value = length
    onnx.save(model, path)
    network = load_onnx(path)
    assert network.source.input_size == wanted.source.input_size == (3, None, None)
    x = torch.from_numpy(draw(2, 3, 6, 7).astype(np.float32))
    assert torch.equal(network(x), wanted(x))
    assert network.fixed_batch is None
    assert tvc.models.load(str(path)).input_size == (3, 224, 224)
    pytest.importorskip("onnxruntime")
    assert converters.compare(path).passed


def test_inputs_nobody_reads_are_dropped(tmp_path: Path) -> None:
    dead = "net_1/normalization_1/Sub/y:0"
    middle = node("Neg", "a", "out", "net_1/activation_1/Neg")
    path = broken(tmp_path / "b.onnx", middle, inputs={dead: [1, 1, 1, 3]})
    network = load_onnx(path)
    assert network.source.inputs == ("img",)
    x = draw(1, 8, 8, 3).astype(np.float32)
    (out,) = evaluate(path, {"img": x, dead: np.zeros((1, 1, 1, 3), np.float32)}, ["out"])
    close(network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())), out)


# ---------------------------------------------------------------- operators


def one(path: Path, middle: list, constants: dict, shape: list, *, opset: int = 15) -> Path:
    """A channels-first file of a few operators in one layer."""
    return save(path, middle, constants, {"x": shape}, ["out"], opset=opset, producer="by hand")


def layer(op: str, inputs: str, out: str = "out", **attributes: object) -> onnx.NodeProto:
    return node(op, inputs, out, f"/{op}", **attributes)


K3 = {"k": draw(4, 2, 3, 3), "b": draw(4, seed=1)}
OPERATORS = {
    "uneven pads": (layer("Conv", "x k b", pads=[0, 0, 1, 1], strides=[2, 2]), K3),
    "negative slope": (layer("LeakyRelu", "x", alpha=0.3), {}),
    "pool, uneven pads": (
        layer("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        {},
    ),
    "average, uneven pads": (
        layer("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
        {},
    ),
    "global maximum": (layer("GlobalMaxPool", "x"), {}),
    "global average": (layer("GlobalAveragePool", "x"), {}),
    "transposed": (
        layer("ConvTranspose", "x kt bt", strides=[2, 2], pads=[1, 1, 0, 0]),
        {"kt": draw(2, 3, 3, 3), "bt": draw(3)},
    ),
    "transposed, even": (
        layer("ConvTranspose", "x kt", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        {"kt": draw(2, 3, 3, 3)},
    ),
    "transposed, dilated": (
        layer("ConvTranspose", "x kt", dilations=[2, 1]),
        {"kt": draw(2, 2, 3, 3)},
    ),
    "slice": (layer("Slice", "x s e a p"), {"s": [1, -1], "e": [5, -99], "a": [2, 3], "p": [2, -2]}),
    "slice, backwards up to a place": (
        layer("Slice", "x s e a p"), {"s": [6, 5], "e": [1, -7], "a": [2, -1], "p": [-2, -1]},
    ),
    "slice, backwards to the beginning": (
        layer("Slice", "x s e a p"), {"s": [5], "e": [-(2**63)], "a": [3], "p": [-3]},
    ),
    "new axes counted from the end": (layer("Unsqueeze", "x a"), {"a": [-2, 1]}),
    "split into one piece": (layer("Split", "x n", axis=1), {"n": [2]}),
    "sum of three": (layer("Sum", "x x x"), {}),
    "sum of one": (layer("Sum", "x"), {}),
    "joined with nothing": (layer("Concat", "x", axis=1), {}),
    "pad": (layer("Pad", "x w v"), {"w": [0, 0, 1, 2, 0, 0, 3, 0], "v": 0.7}),
    "reflect": (layer("Pad", "x w", mode="reflect"), {"w": [0, 0, 1, 2, 0, 0, 3, 0]}),
    "squeeze": (layer("ReduceMean", "x", axes=[2, 3], keepdims=0), {}),
    "maximum": (layer("ReduceMax", "x", axes=[-1], keepdims=1), {}),
    "nothing above": (layer("Clip", "x  top"), {"top": np.float32(0.3)}),
    "nothing below": (layer("Clip", "x low "), {"low": np.float32(-0.2)}),
    "between": (layer("Clip", "x low top"), {"low": np.float32(-0.2), "top": np.float32(0.3)}),
    "prelu": (layer("PRelu", "x slope"), {"slope": draw(2, 1, 1)}),
    "softmax": (layer("Softmax", "x", axis=1), {}),
    "hard sigmoid": (layer("HardSigmoid", "x", alpha=0.2), {}),
    "batch norm": (
        layer("BatchNormalization", "x g b m v", epsilon=1e-3),
        {"g": draw(2), "b": draw(2, seed=1), "m": draw(2, seed=2), "v": draw(2, seed=3) ** 2 + 0.1},
    ),
    "from a constant": (layer("Sub", "c x"), {"c": draw(2, 1, 1)}),
    "divided": (layer("Div", "x c"), {"c": draw(2, 1, 1)}),
    "reshape": (layer("Reshape", "x s"), {"s": [-1, 7, 16]}),
    "reshape, axis kept": (layer("Reshape", "x s"), {"s": [0, 4, -1]}),
    "flatten": (layer("Reshape", "x s"), {"s": [0, -1]}),
    "enlarge": (
        node("Resize", "x  s", "out", mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
        {"s": np.array([1, 1, 2, 3.0])},
    ),
    "enlarge, centred": (
        node("Resize", "x  s", "out", mode="nearest", coordinate_transformation_mode="half_pixel"),
        {"s": np.array([1, 1, 4, 3.0])},
    ),
    "enlarge smoothly": (
        node("Resize", "x  s", "out", mode="linear", coordinate_transformation_mode="half_pixel"),
        {"s": np.array([1, 1, 2, 2.0])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_those_of_the_standard(tmp_path: Path, name: str) -> None:
    operator, constants = OPERATORS[name]
    path = one(tmp_path / "n.onnx", [operator], constants, ["N", 2, 7, 8])
    x = draw(3, 2, 7, 8, seed=4).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    network = load_onnx(path)
    close(network(torch.from_numpy(x)), expected)
    double = copy.deepcopy(network).double()(torch.from_numpy(x).double())
    assert double.dtype is torch.float64
    close(double.float(), expected)
    torch.export.export(network, (torch.from_numpy(x),))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_a_newer_standard(tmp_path: Path, approximate: str) -> None:
    gelu = layer("Gelu", "x", approximate=approximate)
    path = one(tmp_path / "n.onnx", [gelu], {}, ["N", 2, 7, 8], opset=20)
    x = draw(3, 2, 7, 8).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    close(load_onnx(path)(torch.from_numpy(x)), expected)


HALF, ROOT = np.float32(0.5), np.float32(2**0.5)
SPELLED = {
    "as TensorFlow leaves it": (
        "none",
        [("Mul", "half x", "a"), ("Neg", "x", "b"), ("Mul", "b c", "d"), ("Erfc", "d", "e")],
        ("Mul", "a e", "out"),
        {"c": 1 / ROOT},
    ),
    "as torch writes it": (
        "none",
        [("Div", "x root", "a"), ("Erf", "a", "b"), ("Add", "b one", "c"), ("Mul", "x c", "d")],
        ("Mul", "d half", "out"),
        {},
    ),
    "by tanh": (
        "tanh",
        [
            *[("Pow", "x three", "a"), ("Mul", "a c", "b"), ("Add", "x b", "d")],
            *[("Mul", "d s", "e"), ("Tanh", "e", "f"), ("Add", "f one", "g"), ("Mul", "x half", "h")],
        ],
        ("Mul", "h g", "out"),
        {"three": np.float32(3), "c": np.float32(0.044715), "s": np.float32((2 / np.pi) ** 0.5)},
    ),
}  # fmt: skip


def spelled(path: Path, name: str, **change: object) -> Path:
    _, middle, last, more = SPELLED[name]
    constants = {"half": HALF, "one": np.float32(1), "root": ROOT, **more, **change}
    nodes = [
        node(op, inputs, out, f"net_1/act_1/Gelu/{op}_{number}")
        for number, (op, inputs, out) in enumerate([*middle, last])
    ]
    return save(path, nodes, constants, {"x": ["N", 2, 7, 8]}, ["out"])


def gelu(x: torch.Tensor, how: str) -> torch.Tensor:
    """Hendrycks and Gimpel 2016, section 2, in double precision."""
    x = x.double()
    inner = torch.erf(x / 2**0.5)
    if how == "tanh":
        inner = torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    return x / 2 * (1 + inner)


@pytest.mark.parametrize("name", SPELLED)
def test_gelu_spelled_out_is_one_activation(tmp_path: Path, name: str) -> None:
    how = SPELLED[name][0]
    network = load_onnx(spelled(tmp_path / "n.onnx", name))
    assert isinstance(network.act, nn.GELU)
    assert network.act.approximate == how
    x = torch.from_numpy(6 * draw(3, 2, 7, 8)).float()
    assert torch.allclose(network(x).double(), gelu(x, how), atol=1e-6)


@pytest.mark.parametrize("name", SPELLED)
def test_what_is_nearly_gelu_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    """A hundredth more: not GELU, and computed as the file says."""
    network = load_onnx(spelled(tmp_path / "n.onnx", name, half=np.float32(0.505)))
    assert not any(isinstance(module, nn.GELU) for module in network.modules())
    x = torch.from_numpy(6 * draw(3, 2, 7, 8)).float()
    assert torch.allclose(network(x).double(), 1.01 * gelu(x, SPELLED[name][0]), atol=1e-5)


def test_gelu_whose_inside_is_read_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    path = spelled(tmp_path / "n.onnx", "as torch writes it")
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("b", FLOAT, None))
    onnx.save(model, path)
    x = torch.from_numpy(draw(3, 2, 7, 8)).float()
    out, inside = load_onnx(path)(x)
    assert torch.allclose(out.double(), gelu(x, "none"), atol=1e-6)
    assert torch.allclose(inside, torch.erf(x / 2**0.5), atol=1e-6)


def test_gelu_that_two_layers_compute_together_is_none(tmp_path: Path) -> None:
    path = spelled(tmp_path / "n.onnx", "as torch writes it")
    model = onnx.load(path)
    model.graph.node[-1].name = "net_1/halved_1/mul"
    onnx.save(model, path)
    network = load_onnx(path)
    assert [record.name for record in network.source.layers] == ["act", "halved"]
    x = torch.from_numpy(draw(3, 2, 7, 8)).float()
    seen = tvc.activations(network, x, "*")
    assert torch.allclose(seen["act"].double(), 2 * gelu(x, "none"), atol=1e-5)
    assert torch.allclose(seen["halved"].double(), gelu(x, "none"), atol=1e-5)


# A map of 4 × 3 cells: the rows of all pictures together, then each picture's numbers together.
MERGED = {
    "flattened again": (
        [("Reshape", "x rows", "r"), ("Relu", "r", "a")],
        [("Reshape", "a target", "out")],
        {"rows": [-1, 3], "rest": [-1]},
    ),
    "to a map again": (
        [("Reshape", "x rows", "a")],
        [("Reshape", "a target", "out")],
        {"rows": [-1, 6], "rest": [3, -1, 2]},
    ),
    "to a map of stated size": (
        [("Reshape", "x rows", "a")],
        [("Reshape", "a target", "out")],
        {"rows": [-1, 6], "rest": [3, 4]},
    ),
    "not merged at all": (
        [("Reshape", "x rows", "r"), ("Relu", "r", "a")],
        [("Reshape", "a target", "out")],
        {"rows": [0, 2, 6], "rest": [-1]},
    ),
    "brought back, and flattened": (
        [("Reshape", "x rows", "m"), ("Reshape", "m maps", "b"), ("Exp", "b", "a")],
        [("Reshape", "a target", "out")],
        {"rows": [-1, 3], "maps": [-1, 2, 6], "rest": [-1]},
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_only_the_inputs_first_axis_is_the_batch(tmp_path: Path, name: str) -> None:
    """The target is worked out from the input's shape; what it is for may hold other rows."""
    before, after, constants = MERGED[name]
    steps = [
        *before,
        ("Shape", "x", "s"),
        ("Slice", "s zero one", "n"),
        ("Concat", "n rest", "target"),
        *after,
    ]
    nodes = [node(op, i, o, **({"axis": 0} if op == "Concat" else {})) for op, i, o in steps]
    constants = constants | {"zero": [0], "one": [1]}
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 4, 3])
    network = load_onnx(path)
    for batch in (1, 2, 3):
        x = draw(batch, 4, 3).astype(np.float32)
        (expected,) = evaluate(path, {"x": x}, ["out"])
        close(network(torch.from_numpy(x)), expected)


# Of a file for four pictures of 4 × 3 numbers.
FIXED = {
    "flattened": ([("Reshape", "x t", "out")], {"t": [4, 12]}),
    "the rest left open": ([("Reshape", "x t", "out")], {"t": [4, -1]}),
    "to maps": ([("Reshape", "x t", "a"), ("Relu", "a", "out")], {"t": [4, 2, 3, 2]}),
    "merged, and brought back": (
        [("Reshape", "x rows", "m"), ("Exp", "m", "e"), ("Reshape", "e t", "out")],
        {"rows": [-1, 3], "t": [4, 12]},
    ),
    "worked out from the input": (
        [
            ("Shape", "x", "s"),
            ("Slice", "s zero one", "n"),
            ("Concat", "n rest", "t"),
            ("Reshape", "x t", "out"),
        ],
        {"zero": [0], "one": [1], "rest": [12]},
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_batch_is_set_free(tmp_path: Path, name: str) -> None:
    steps, constants = FIXED[name]
    nodes = [node(op, i, o, **({"axis": 0} if op == "Concat" else {})) for op, i, o in steps]
    path = one(tmp_path / "n.onnx", nodes, constants, [4, 4, 3])
    network = load_onnx(path)
    x = draw(8, 4, 3).astype(np.float32)
    expected = np.concatenate([evaluate(path, {"x": part}, ["out"])[0] for part in (x[:4], x[4:])])
    for count in (1, 3, 4, 8):
        close(network(torch.from_numpy(x[:count])), expected[:count])


def test_a_batch_axis_opened_afterwards_is_open(tmp_path: Path) -> None:
    """Its inputs say that any number may come; what was inferred before is still in the file."""
    nodes = [
        TURN,
        *conv("net_1/conv2d_1", "t", "a"),
        node("Shape", "a", "s", "net_1/flatten_1/Shape"),
        node("Slice", "s zero one zero", "n", "net_1/flatten_1/strided_slice"),
        node("Concat", "n rest", "r", "net_1/flatten_1/stack", axis=0),
        node("Reshape", "a r", "out", "net_1/flatten_1/Reshape"),
    ]
    constants = weights("net_1/conv2d_1", 3, 4) | {"zero": [0], "one": [1], "rest": [-1]}
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": [1, 6, 7, 3]}, ["out"])
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    assert any(v.name == "a" for v in model.graph.value_info)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, path)
    x, network, (expected,) = run(path, (3, 6, 7, 3), ["out"])
    close(network(torch.from_numpy(x).movedim(-1, 1)), expected)


def test_an_operator_nobody_knows_is_named_without_ado(tmp_path: Path) -> None:
    operator = node("Hardmax", "x", "out", "/Hardmax")
    path = one(tmp_path / "n.onnx", [operator], {}, ["N", 4])
    with pytest.raises(
        tvc.InputError,
        match=r"'hardmax_1' is not supported; leave that layer out, or export the Keras model",
    ):
        load_onnx(path)


def test_a_fixed_batch_that_cannot_be_set_free_is_said(tmp_path: Path) -> None:
    """The batch stands last when it is reshaped: what is first there is not known to be it."""
    nodes = [
        node("Transpose", "x", "a", perm=[1, 2, 0]),
        node("Transpose", "a", "b", perm=[2, 0, 1]),
        node("Transpose", "b", "c", perm=[1, 0, 2]),
        node("Exp", "c", "d"),
        node("Reshape", "d t", "out"),
    ]
    path = one(tmp_path / "n.onnx", nodes, {"t": [4, 12]}, [4, 4, 3])
    network = load_onnx(path)
    x = draw(4, 4, 3).astype(np.float32)
    close(network(torch.from_numpy(x)), evaluate(path, {"x": x}, ["out"])[0])
    with pytest.raises(
        tvc.InputError, match=r"exported for a fixed batch of 4, and cannot take 1 p"
    ):
        network(torch.from_numpy(x[:1]))


def test_pictures_of_a_fixed_batch_are_explained_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large pictures go a few at a time through other networks; this one takes six or none."""
    monkeypatch.setattr("torchviz_cnn.methods.passes._KEPT", 1)
    nodes = [
        node("Conv", "x k", "c"),
        node("Transpose", "c", "a", perm=[1, 2, 3, 0]),
        node("Transpose", "a", "b", perm=[3, 0, 1, 2]),
        node("Transpose", "b", "d", perm=[1, 0, 2, 3]),
        node("Transpose", "d", "e", perm=[1, 0, 2, 3]),
        node("Tanh", "e", "f"),
        node("Reshape", "f t", "r"),
        node("MatMul", "r w", "out"),
    ]
    constants = {"k": draw(2, 3, 3, 3), "t": [6, 24], "w": draw(24, 5, seed=1)}
    network = load_onnx(one(tmp_path / "n.onnx", nodes, constants, [6, 3, 5, 6]))
    assert network.fixed_batch == 6
    x = torch.from_numpy(draw(6, 3, 5, 6, seed=2).astype(np.float32)).requires_grad_()
    (wanted,) = torch.autograd.grad(network(x)[:, 1].sum(), x)
    found = tvc.explain(network, x.detach(), 1, methods=["saliency", "input_x_gradient"])
    close(found["saliency"].values, wanted.numpy())
    close(found["input_x_gradient"].values, (wanted * x).detach().numpy())
    close(tvc.saliency(network, x.detach(), 1).values, wanted.numpy())


def test_a_batch_that_cannot_be_found_again_is_refused(tmp_path: Path) -> None:
    """How many numbers a picture has after the product does not follow from shapes alone."""
    nodes = [
        node("Reshape", "x rows", "m"),
        node("MatMul", "m w", "a"),
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "n"),
        node("Concat", "n rest", "target", axis=0),
        node("Reshape", "a target", "out"),
    ]
    constants = {"rows": [-1, 3], "w": draw(3, 5), "zero": [0], "one": [1], "rest": [-1]}
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 4, 3])
    with pytest.raises(tvc.InputError, match=r"Reshape.*target shape depends"):
        load_onnx(path)


LOGIC = {
    **{op: [(op, "x c", "b")] for op in ("GreaterOrEqual", "LessOrEqual", "Less")},
    **{
        op: [("Greater", "x c", "p"), ("Less", "x d", "q"), (op, "p q", "b")]
        for op in ("And", "Or", "Xor")
    },
    "Not": [("Greater", "x c", "p"), ("Not", "p", "b")],
    "IsNaN": [("Log", "x", "l"), ("IsNaN", "l", "b")],
    "ArgMin": [("ArgMin", "x", "b")],
}


@pytest.mark.parametrize("name", LOGIC)
def test_what_is_no_number_with_a_point_is_made_one(tmp_path: Path, name: str) -> None:
    nodes = [node(*step) for step in LOGIC[name]]
    nodes += [node("Cast", "b", "f", to=FLOAT), node("Add", "f f", "out")]
    constants = {"c": np.float32(-0.25), "d": np.float32(0.5)}
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 2, 7, 8])
    x = draw(3, 2, 7, 8).astype(np.float32)
    with np.errstate(invalid="ignore"):
        (expected,) = evaluate(path, {"x": x}, ["out"])
    found = load_onnx(path)(torch.from_numpy(x))
    assert found.dtype is torch.float32
    close(found, expected)


@pytest.mark.parametrize("kind", [1, 10, 11, 16])
def test_a_cast_of_floats_to_floats_is_none(tmp_path: Path, kind: int) -> None:
    nodes = [layer("Relu", "x", "r"), layer("Cast", "r", "c", to=kind), layer("Exp", "c")]
    network = load_onnx(one(tmp_path / "n.onnx", nodes, {}, ["N", 2, 7, 8]))
    assert [name for name, _ in network.named_children()] == ["relu_1", "exp_1"]


def mixed_precision(path: Path) -> Path:
    """As Keras' ``mixed_float16``: convolutions in half precision, a batch norm in single."""
    first, norm, second = (f"net_1/{name}_1" for name in ("conv2d", "bn", "conv2d_1"))
    nodes = [
        node("Cast", "img", "h", "net_1/cast_1/Cast", to=10),
        node("Transpose", "h", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t k1", "c", f"{first}/convolution", kernel_shape=[3, 3]),
        node("Relu", "c", "r", f"{first}/Relu"),
        node("Cast", "r", "rf", f"{norm}/Cast", to=1),
        node("Mul", "rf s", "m", f"{norm}/batchnorm/mul_1"),
        node("Add", "m o", "a", f"{norm}/batchnorm/add_1"),
        node("Cast", "a", "ah", f"{norm}/Cast_1", to=10),
        node("Conv", "ah k2", "d", f"{second}/convolution", kernel_shape=[1, 1]),
        node("Cast", "d", "out", "net_1/cast_1_1/Cast", to=1),
    ]
    constants = {"k1": draw(4, 3, 3, 3), "k2": draw(2, 4, 1, 1, seed=1)}
    constants |= {"s": draw(1, 4, 1, 1, seed=2), "o": draw(1, 4, 1, 1, seed=3)}
    save(path, nodes, constants, {"img": ["N", 7, 8, 3]}, ["out"])
    model = onnx.load(path)
    for tensor in model.graph.initializer[:2]:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    onnx.save(model, path)
    return path


def test_a_file_of_mixed_precision_is_a_network_of_one(tmp_path: Path) -> None:
    path = mixed_precision(tmp_path / "n.onnx")
    x, network, (expected,) = run(path, (2, 7, 8, 3), ["out"])
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert any("half and in single precision" in note for note in network.source.notes)
    pictures = torch.from_numpy(x).movedim(-1, 1)
    close(network(pictures), expected, 5e-3)
    assert tvc.saliency(network, pictures, target=lambda y: y.sum((1, 2, 3))).values.any()
    pytest.importorskip("onnxruntime")
    assert converters.compare(path).passed


def same_by_hand(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple:
    """TensorFlow's rule for padding="same", from its documentation."""
    reach = (kernel - 1) * dilation + 1
    total = max(reach - stride, 0) if size % stride == 0 else max(reach - size % stride, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("op", "kernel", "stride", "dilation"),
    [
        ("Conv", (3, 3), (2, 2), (1, 1)),
        ("Conv", (2, 4), (1, 3), (1, 1)),
        ("Conv", (3, 2), (1, 1), (2, 3)),
        ("MaxPool", (3, 2), (2, 2), (1, 1)),
        ("AveragePool", (3, 2), (2, 2), (1, 1)),
        ("AveragePool", (4, 4), (3, 2), (1, 1)),
        ("AveragePool", (3,), (2,), (1,)),
        ("AveragePool", (2, 3, 2), (2, 2, 1), (1, 1, 1)),
    ],
)
def test_same_padding(
    tmp_path: Path, op: str, kernel: tuple, stride: tuple, dilation: tuple, auto: str, fixed: bool
) -> None:
    settings: dict = {"kernel_shape": kernel, "strides": stride}
    constants = {}
    if op == "Conv":
        settings["dilations"] = dilation
        constants = {"k": draw(4, 2, *kernel), "b": draw(4)}
    inputs = "x k b" if op == "Conv" else "x"
    sizes = [size[: len(kernel)] for size in [(7, 8, 5), (8, 9, 6), (9, 7, 4)]]
    sizes = sizes[:1] if fixed else sizes
    given = ["N", 2, *sizes[0]] if fixed else ["N", 2, *"HWD"[: len(kernel)]]
    path = one(
        tmp_path / "auto.onnx", [layer(op, inputs, auto_pad=auto, **settings)], constants, given
    )
    network = load_onnx(path)
    for size in sizes:
        sides = [
            same_by_hand(*window, auto == "SAME_UPPER")
            for window in zip(size, kernel, stride, dilation, strict=True)
        ]
        settings["pads"] = [side[0] for side in sides] + [side[1] for side in sides]
        plain = layer(op, inputs, **settings)
        path = one(tmp_path / "plain.onnx", [plain], constants, ["N", 2, *size])
        x = (draw(2, 2, *size) - 2).astype(np.float32)  # negative: a border of zeros would show
        (expected,) = evaluate(path, {"x": x}, ["out"])
        assert expected.shape[2:] == tuple(
            -(-n // step) for n, step in zip(size, stride, strict=True)
        )
        close(network(torch.from_numpy(x)), expected)
        torch.export.export(network, (torch.from_numpy(x),))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_transposed_convolution_same(tmp_path: Path, auto: str, kernel: int, stride: int) -> None:
    """Where a window is smaller than its stride, the gap at the end holds the bias."""
    constants = {"k": draw(2, 3, kernel, kernel), "b": draw(3)}
    up = layer("ConvTranspose", "x k b", auto_pad=auto, strides=[stride, stride])
    network = load_onnx(one(tmp_path / "n.onnx", [up], constants, ["N", 2, 5, 4]))
    bare = layer("ConvTranspose", "x k b", strides=[stride, stride])
    path = one(tmp_path / "bare.onnx", [bare], constants, ["N", 2, 5, 4])
    x = draw(2, 2, 5, 4).astype(np.float32)
    (whole,) = evaluate(path, {"x": x}, ["out"])
    total = max(kernel - stride, 0)
    first = total // 2 if auto == "SAME_UPPER" else total - total // 2
    expected = np.tile(constants["b"][:, None, None], (2, 1, 5 * stride, 4 * stride))
    kept = whole[:, :, first : first + 5 * stride, first : first + 4 * stride]
    expected[:, :, : kept.shape[2], : kept.shape[3]] = kept
    close(network(torch.from_numpy(x)), expected)


def test_transposed_convolution_to_a_given_size(tmp_path: Path) -> None:
    """As the exporter writes Conv2DTranspose(padding="same"): the output's shape is stated."""
    constants = {"k": draw(2, 3, 3, 3)}
    up = layer("ConvTranspose", "x k", auto_pad="SAME_UPPER", strides=[2, 2], output_shape=[10, 8])
    network = load_onnx(one(tmp_path / "n.onnx", [up], constants, ["N", 2, 5, 4]))
    path = one(
        tmp_path / "b.onnx",
        [layer("ConvTranspose", "x k", strides=[2, 2])],
        constants,
        ["N", 2, 5, 4],
    )
    x = draw(1, 2, 5, 4).astype(np.float32)
    (whole,) = evaluate(path, {"x": x}, ["out"])
    close(network(torch.from_numpy(x)), whole[:, :, :10, :8])


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
@pytest.mark.parametrize(
    ("kernel", "sides"),
    [((2, 2), [15, 12]), ((1, 4), [15, 12]), ((4, 2), [14, 12]), ((2, 5), [16, 11])],
)
def test_transposed_convolution_to_a_size_with_a_gap(
    tmp_path: Path, auto: str, kernel: tuple, sides: list[int]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    up = layer("ConvTranspose", "x k b", auto_pad=auto, strides=[3, 3], output_shape=sides)
    constants = {"k": draw(2, 3, *kernel), "b": draw(3)}
    path = one(tmp_path / "n.onnx", [up], constants, ["N", 2, 5, 4])
    x = draw(2, 2, 5, 4, seed=3).astype(np.float32)
    (expected,) = runtime.InferenceSession(path).run(None, {"x": x})
    assert list(expected.shape[2:]) == sides
    close(load_onnx(path)(torch.from_numpy(x)), expected)


def test_a_gap_that_torch_cannot_leave_is_refused(tmp_path: Path) -> None:
    up = layer("ConvTranspose", "x k", strides=[2, 2], output_shape=[13, 8])
    path = one(tmp_path / "n.onnx", [up], {"k": draw(2, 3, 2, 2)}, ["N", 2, 5, 4])
    with pytest.raises(tvc.InputError, match=r"ConvTranspose.*larger than its steps reach"):
        load_onnx(path)


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_transposed_convolution_called_twice_is_one_layer(tmp_path: Path, kernel: int) -> None:
    weight, bias = "net_1/up_1/conv_transpose/ReadVariableOp:0", "net_1/up_1/Reshape:0"
    same = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    nodes = [TURN]
    for source, scope, out, sides in (("t", "up_1", "a", [8, 10]), ("a", "up_3", "out", [16, 20])):
        name = f"net_1/{scope}/conv_transpose"
        inputs = f"{source} {weight} {bias}"
        nodes.append(node("ConvTranspose", inputs, out, name, output_shape=sides, **same))
    constants = {weight: draw(3, 3, kernel, kernel), bias: draw(3)}
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 4, 5, 3]}, ["out"])
    network = load_onnx(path)
    assert [name for name, _ in network.named_children()] == ["up"]
    assert len(list(network.parameters())) == 2
    assert network.source.notes == ()


# ---------------------------------------------------------------- passes


@pytest.mark.parametrize("second", ["idx", ""])
def test_an_output_nobody_reads_is_left_out(tmp_path: Path, second: str) -> None:
    pool = node("MaxPool", "x", "p", "/MaxPool", kernel_shape=[2, 2])
    path = one(tmp_path / "plain.onnx", [pool, layer("Relu", "p")], {}, ["N", 2, 7, 8])
    pool.output.append(second)
    network = load_onnx(one(tmp_path / "n.onnx", [pool, layer("Relu", "p")], {}, ["N", 2, 7, 8]))
    for batch in (1, 2, 3):
        x = draw(batch, 2, 7, 8).astype(np.float32)
        (expected,) = evaluate(path, {"x": x}, ["out"])
        close(network(torch.from_numpy(x)), expected)


def test_a_second_output_that_is_read_is_refused(tmp_path: Path) -> None:
    pool = node("MaxPool", "x", "p idx", "net_1/pool_1/MaxPool2d", kernel_shape=[2, 2])
    nodes = [pool, layer("Cast", "idx", "i", to=FLOAT), layer("Add", "p i")]
    path = one(tmp_path / "n.onnx", nodes, {}, ["N", 2, 7, 8])
    with pytest.raises(tvc.InputError, match="MaxPool is asked for a second tensor, 'idx'"):
        load_onnx(path)


def test_a_gate_and_the_product_behind_it_stay_two_layers(tmp_path: Path) -> None:
    """``Activation("sigmoid", name="gate")`` and ``Multiply()([x, gate])``: no swish."""
    nodes = [
        TURN,
        *conv("net_1/conv2d_1", "t", "c"),
        node("Sigmoid", "c", "g", "net_1/gate_1/Sigmoid"),
        node("Mul", "c g", "out", "net_1/multiply_1/Mul"),
    ]
    constants = weights("net_1/conv2d_1", 3, 4)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 6, 3]}, ["out"])
    x, network, (c, g, out) = run(path, (2, 6, 6, 3), ["c", "g", "out"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, image, ["conv2d", "gate", "multiply"])
    for name, expected in (("conv2d", c), ("gate", g), ("multiply", out)):
        close(seen[name], expected)


def test_a_product_without_a_name_is_of_the_layer_whose_bias_is_added(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x kernel", "m", "MatMul__7"),
        node("Add", "m net_1/dense_1/BiasAdd/ReadVariableOp:0", "a", "net_1/dense_1/BiasAdd"),
        node("Relu", "a", "r", "net_1/dense_1/Relu"),
        node("MatMul", "r net_1/dense_1_2/Cast/ReadVariableOp:0", "out", "net_1/dense_1_2/MatMul"),
    ]
    constants = {
        "kernel": draw(6, 4),
        "net_1/dense_1/BiasAdd/ReadVariableOp:0": draw(4),
        "net_1/dense_1_2/Cast/ReadVariableOp:0": draw(4, 3),
    }
    path = save(tmp_path / "n.onnx", nodes, constants, {"x": ["N", 6]}, ["out"])
    x = draw(3, 6).astype(np.float32)
    a, r, out = evaluate(path, {"x": x}, ["a", "r", "out"])
    network = load_onnx(path)
    assert [record.name for record in network.source.layers] == ["dense", "dense_1"]
    assert network.source.notes == ()
    with tvc.capture(network, ["dense.dense", "dense", "dense_1"]) as seen:
        network(torch.from_numpy(x))
    for name, expected in (("dense.dense", a), ("dense", r), ("dense_1", out)):
        close(seen[name], expected)


def test_swish_and_unfused_batch_norm_become_one_module_each(tmp_path: Path) -> None:
    bn = "net_1/bn_1/batchnorm"
    constants = weights("net_1/conv2d_1", 3, 4) | {
        f"{bn}/mul:0": draw(1, 4, 1, 1, seed=2),
        "const_fold_opt__9": draw(1, 4, 1, 1, seed=3),
    }
    first = conv("net_1/conv2d_1", "t", "net_1/conv2d_1/Relu:0")
    nodes = [
        TURN,
        *first,
        node("Mul", f"net_1/conv2d_1/Relu:0 {bn}/mul:0", f"{bn}/mul_1:0", f"{bn}/mul_1"),
        node("Add", f"{bn}/mul_1:0 const_fold_opt__9", f"{bn}/add_1:0", f"{bn}/add_1"),
        node("Sigmoid", f"{bn}/add_1:0", "net_1/swish_1/Sigmoid:0", "net_1/swish_1/Sigmoid"),
        node("Mul", f"{bn}/add_1:0 net_1/swish_1/Sigmoid:0", "out", "net_1/swish_1/mul"),
    ]
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 6, 3]}, ["out"])
    x, network, (norm, out) = run(path, (2, 6, 6, 3), [f"{bn}/add_1:0", "out"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, image, ["bn", "swish"])
    close(seen["bn"], norm)
    close(seen["swish"], out)
    assert isinstance(network.swish, nn.SiLU)
    assert [name for name, _ in network.bn.named_parameters()] == ["weight", "bias"]
    assert dict(network.named_buffers()) == {}


def test_channels_last_constants_before_the_first_transpose_are_turned(tmp_path: Path) -> None:
    mean, scale = "net_1/norm_1/Sub/y:0", "net_1/norm_1/Sqrt:0"
    constants = {mean: draw(1, 1, 1, 3), scale: draw(3, seed=4) ** 2 + 0.5}
    constants |= weights("net_1/conv2d_1", 3, 4)
    nodes = [
        node("Sub", f"img {mean}", "s", "net_1/norm_1/Sub"),
        node("Div", f"s {scale}", "d", "net_1/norm_1/truediv"),
        node("Pad", "d w", "p", "net_1/zero_padding2d_1/Pad"),
        node("Transpose", "p", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        *conv("net_1/conv2d_1", "t", "out"),
    ]
    constants |= {"w": [0, 1, 0, 0, 0, 0, 2, 0]}
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 5, 6, 3]}, ["out"])
    x, network, (d, p, out) = run(path, (2, 5, 6, 3), ["d", "p", "out"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    close(network(image), out)
    seen = tvc.activations(network, image, ["norm", "zero_padding2d"])
    close(seen["norm"], d.transpose(0, 3, 1, 2))
    close(seen["zero_padding2d"], p.transpose(0, 3, 1, 2))
    assert not [m for m in network.modules() if type(m).__name__ == "Permute"]
    as_exported = load_onnx(path, input_layout="as_exported")
    close(as_exported(torch.from_numpy(x)), out)


def test_pictures_with_one_channel_are_turned_by_a_reshape(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", "img shape", "t", "net_1/conv2d_1/BiasAdd__22"),
        *conv("net_1/conv2d_1", "t", "a"),
        node("Transpose", "a", "u", "Transpose__3", perm=[0, 2, 3, 1]),
        node("Reshape", "u flat", "f", "net_1/flatten_1/Reshape"),
        node("Relu", "f", "r", "net_1/activation_1/Relu"),
        node("MatMul", "r net_1/dense_1/Cast/ReadVariableOp:0", "out", "net_1/dense_1/MatMul"),
    ]
    constants = weights("net_1/conv2d_1", 1, 4) | {
        "shape": [-1, 1, 6, 5],
        "flat": [-1, 48],
        "net_1/dense_1/Cast/ReadVariableOp:0": draw(48, 3),
    }
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 5, 1]}, ["out"])
    x, network, (f, r, out) = run(path, (2, 6, 5, 1), ["f", "r", "out"])
    assert network.source.input_size == (1, 6, 5)
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    close(network(image), out)
    records = {record.name: record for record in network.source.layers}
    seen = tvc.activations(network, image, ["flatten", "activation"])
    for name, wanted in (("flatten", f), ("activation", r)):
        close(seen[name][:, list(records[name].permutation)], wanted)
        assert not np.allclose(seen[name].numpy(), wanted)
    assert isinstance(network.dense.dense, nn.Linear)
    assert network.dense.dense.bias is None


def test_a_transpose_between_layers_is_not_what_grad_cam_looks_at(tmp_path: Path) -> None:
    """Two of them begin the pooling layer, and put out maps of the size of the convolution's."""
    nodes = [
        node("Transpose", "img", "t", "net_1/conv_1/convolution__5", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c", "net_1/conv_1/convolution"),
        node("Transpose", "c", "l", "net_1/conv_1/BiasAdd__6", perm=[0, 2, 3, 1]),
        node("Relu", "l", "r", "net_1/conv_1/Relu"),
        node("Transpose", "r", "p", "net_1/pool_1/turned", perm=[0, 3, 1, 2]),
        node("MaxPool", "p", "m", "net_1/pool_1/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "m", "q", "net_1/pool_1/back", perm=[0, 2, 3, 1]),
        node("ReduceMean", "q", "g", "net_1/mean_1/Mean", axes=[1, 2], keepdims=0),
        node("MatMul", "g w", "out", "net_1/dense_1/MatMul"),
    ]
    constants = {"k": draw(4, 3, 3, 3), "w": draw(4, 5)}
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": [None, 10, 10, 3]}, ["out"])
    network = load_onnx(path)
    x = torch.rand(1, 3, 10, 10)
    moved = [m for m in network.modules() if isinstance(m, Permute)]
    assert moved, "the file's transposes were cancelled: nothing is tested"
    assert tvc.default_layer(network, x) == "conv"
    assert tvc.grad_cam(network, x, 0).layer == "conv"


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_dense_layer_of_one_operator(tmp_path: Path, outputs: int, turned: int) -> None:
    kernel = draw(*((outputs, 5) if turned else (5, outputs)))
    nodes = [node("Gemm", "x w b", "out", "/Gemm", transB=turned)]
    constants = {"w": kernel, "b": draw(outputs, seed=1)}
    path = save(tmp_path / "n.onnx", nodes, constants, {"x": ["N", 5]}, ["out"], producer="pytorch")
    x = draw(4, 5).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    network = load_onnx(path)
    assert [name for name, _ in network.named_children()] == ["dense_1"]
    assert isinstance(network.dense_1.dense, nn.Linear)
    close(network(torch.from_numpy(x)), expected)


def test_a_layer_norm_learns_its_factor_and_summand() -> None:
    """And nothing else of it is learnt, the small number under the root above all."""
    network = load_onnx(DATA / "keras" / "mixed.k3.onnx")
    learnt = dict(network.layer_normalization.named_parameters())
    assert sorted(weight.numel() for weight in learnt.values()) == [8, 8]
    buffers = dict(network.layer_normalization.named_buffers())
    assert all(value.numel() == 1 for value in buffers.values())


def test_a_dense_layer_shared_by_two_flattened_maps_stays_one(tmp_path: Path) -> None:
    kernel = "net_1/dense_1/Cast/ReadVariableOp:0"
    nodes = [
        TURN,
        *conv("net_1/conv2d_1", "t", "a"),
        *conv("net_1/conv2d_1_2", "t", "b"),
        node("Transpose", "a", "ta", "Transpose__3", perm=[0, 2, 3, 1]),
        node("Transpose", "b", "tb", "Transpose__4", perm=[0, 2, 3, 1]),
        node("Reshape", "ta flat", "fa", "net_1/flatten_1/Reshape"),
        node("Reshape", "tb flat", "fb", "net_1/flatten_1_2/Reshape"),
        node("MatMul", f"fa {kernel}", "da", "net_1/dense_1/MatMul"),
        node("MatMul", f"fb {kernel}", "db", "net_1/dense_3/MatMul"),
        node("Add", "da db", "out", "net_1/add_1/Add"),
    ]
    constants = weights("net_1/conv2d_1", 3, 2) | weights("net_1/conv2d_1_2", 3, 2, seed=7)
    constants |= {"flat": [-1, 24], kernel: draw(24, 3)}
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 5, 3]}, ["out"])
    x, network, (da, db, out) = run(path, (2, 6, 5, 3), ["da", "db", "out"])
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    close(network(image), out)
    seen = tvc.activations(network, image, "dense@*")
    close(seen["dense"], da)
    close(seen["dense@1"], db)
    assert len([m for m in network.modules() if isinstance(m, nn.Linear)]) == 1


def test_maps_that_the_network_puts_out_come_channels_first_and_it_says_so(tmp_path: Path) -> None:
    nodes = [
        TURN,
        *conv("net_1/conv2d_1", "t", "a"),
        node("Transpose", "a", "out", "Transpose__3", perm=[0, 2, 3, 1]),
    ]
    constants = weights("net_1/conv2d_1", 3, 2)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 6, 5, 3]}, ["out"])
    x, network, (a, out) = run(path, (2, 6, 5, 3), ["a", "out"])
    close(network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())), a)
    assert [note for note in network.source.notes if "(N, C, H, W)" in note]
    close(load_onnx(path, input_layout="as_exported")(torch.from_numpy(x)), out)


def test_a_file_that_is_channels_first_already_is_left_alone(tmp_path: Path) -> None:
    nodes = conv("net_1/conv2d_1", "img", "out")
    path = save(
        tmp_path / "n.onnx",
        nodes,
        weights("net_1/conv2d_1", 3, 2),
        {"img": ["N", 3, 6, 5]},
        ["out"],
    )
    x, network, (out,) = run(path, (2, 3, 6, 5), ["out"])
    close(network(torch.from_numpy(x)), out)
    assert network.source.input_size == (3, 6, 5)


def in_type(model: onnx.ModelProto, kind: int) -> None:
    """Let all floating-point weights be stored in another type."""
    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            array = numpy_helper.to_array(tensor).astype(wanted)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def without_shapes(model: onnx.ModelProto) -> None:
    """Give the network its input through a Reshape to a shape that nobody can infer."""
    graph = model.graph
    name = graph.input[0].name
    for each in graph.node:
        each.input[:] = ["any" if given == name else given for given in each.input]
    graph.node.insert(0, node("NonZero", name, "any_places"))
    graph.node.insert(1, node("Gather", "any_places any_row", "any_shape"))
    graph.node.insert(2, node("Reshape", f"{name} any_shape", "any"))
    graph.initializer.append(numpy_helper.from_array(np.array(0), "any_row"))


CONTRADICTIONS = {
    "squeeze": ([layer("Squeeze", "x table")], {"table": [[2]]}),
    "unsqueeze": ([layer("Unsqueeze", "x table")], {"table": [[2]]}),
    "sum": ([layer("ReduceSum", "x table")], {"table": [[2]]}),
    "mean": ([layer("ReduceSum", "x half")], {"half": np.float32(0.5)}),
    "slice": ([layer("Slice", "x table ends axes")], {"table": [[0]], "ends": [2], "axes": [1]}),
    "slice of lists": ([layer("Slice", "x s ends axes")], {"s": [0], "ends": [2], "axes": [1, 2]}),
    "slice without steps": (
        [layer("Slice", "x s ends axes steps")],
        {"s": [0], "ends": [2], "axes": [1], "steps": [0]},
    ),
    "split": ([node("Split", "x table", "out b", axis=1)], {"table": [[1, 1]]}),
    "pad": ([layer("Pad", "x pads")], {"pads": [1, 1, 1, 1]}),
    "strides": ([layer("Conv", "x k", strides=[2])], {"k": draw(4, 2, 3, 3)}),
    "dilations": ([layer("Conv", "x k", dilations=[2, 2, 2])], {"k": draw(4, 2, 3, 3)}),
    "pads": ([layer("Conv", "x k", pads=[1, 1])], {"k": draw(4, 2, 3, 3)}),
    "uneven pads": ([layer("Conv", "x k", pads=[1, 1, 1])], {"k": draw(4, 2, 3, 3)}),
    "another window": ([layer("Conv", "x k", kernel_shape=[3, 2])], {"k": draw(4, 2, 3, 3)}),
    "no steps": ([layer("Conv", "x k", strides=[0, 1])], {"k": draw(4, 2, 3, 3)}),
    "steps of a pool": ([layer("MaxPool", "x", kernel_shape=[2, 2], strides=[2])], {}),
    "pads of a mean": ([layer("AveragePool", "x", kernel_shape=[2, 2], pads=[1, 1, 0])], {}),
    "gap": (
        [layer("ConvTranspose", "x k", output_padding=[0], strides=[2, 2])],
        {"k": draw(2, 4, 3, 3)},
    ),
    "order": ([layer("Transpose", "x", perm=[0, 2, 2, 1])], {}),
    "two orders": (
        [node("Transpose", "x", "t", perm=[0, 2, 1, 3]), node("Transpose", "t", "out", perm=[1, 0])],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "known"),
    # widths in a table of several rows are right as long as nobody knows the axes they are for
    [(name, known) for name in CONTRADICTIONS for known in (True, False) if known or name != "pad"],
)
def test_settings_that_contradict_themselves_are_refused(
    tmp_path: Path, name: str, known: bool
) -> None:
    nodes, constants = CONTRADICTIONS[name]
    path = one(tmp_path / "n.onnx", copy.deepcopy(nodes), constants, ["N", 2, 7, 8])
    if not known:
        model = onnx.load(path)
        without_shapes(model)
        onnx.save(model, path)
    said = "contradicts itself|damaged|does not fit|no order|at least one|rules of ONNX"
    with pytest.raises(tvc.InputError, match=said):
        load_onnx(path)


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze", "ReduceSum"])
def test_one_number_stands_for_a_list_of_one(tmp_path: Path, op: str) -> None:
    """So torch's exporter writes the axes, and onnxruntime reads them."""
    shape = ["N", 2, 1, 8]
    path = one(tmp_path / "n.onnx", [layer(op, "x axes")], {"axes": 2}, shape)
    x = draw(3, 2, 1, 8).astype(np.float32)
    expected = {"Squeeze": x[:, :, 0], "Unsqueeze": x[:, :, None], "ReduceSum": x}[op]
    close(load_onnx(path)(torch.from_numpy(x)), expected)


@pytest.mark.parametrize(("length", "size"), [(90, 75), (80, 75), (7, 3), (41, 37), (10, 25)])
def test_maps_are_resized_to_as_many_rows_as_onnxruntime_makes(
    tmp_path: Path, length: int, size: int
) -> None:
    """A factor in single precision may come to a trace less than the size it was made for."""
    runtime = pytest.importorskip("onnxruntime")
    factor = np.float32(size / length)
    nodes = [layer("Resize", "x  scales", mode="linear")]
    scales = {"scales": np.array([1, 1, factor, 1], np.float32)}
    path = one(tmp_path / "n.onnx", nodes, scales, ["N", 2, length, 4])
    x = draw(1, 2, length, 4).astype(np.float32)
    (expected,) = runtime.InferenceSession(path).run(None, {"x": x})
    assert expected.shape[2] == size
    close(
        load_onnx(path)(torch.from_numpy(x)), expected, 1e-4
    )  # its places are in single precision


@pytest.mark.parametrize(("length", "factor"), [(7, 1.5), (9, 0.6), (5, 2.3)])
def test_maps_are_resized_by_the_factor_and_not_to_the_size_it_comes_to(
    tmp_path: Path, length: int, factor: float
) -> None:
    """Where it leaves a rest, the rows are not spread over the whole map."""
    runtime = pytest.importorskip("onnxruntime")
    nodes = [layer("Resize", "x  scales", mode="linear")]
    scales = {"scales": np.array([1, 1, factor, 1], np.float32)}
    path = one(tmp_path / "n.onnx", nodes, scales, ["N", 2, length, 4])
    x = draw(1, 2, length, 4).astype(np.float32)
    (expected,) = runtime.InferenceSession(path).run(None, {"x": x})
    close(load_onnx(path)(torch.from_numpy(x)), expected)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [], [-1], [1], [1, 2]])
@pytest.mark.parametrize("spared", [0, 1])
def test_a_sum_goes_over_the_axes_it_names(
    tmp_path: Path, axes, keepdims: int, spared: int
) -> None:
    """tf2onnx always says that none named were none summed over, whether or not there are some."""
    settings = {"keepdims": keepdims, "noop_with_empty_axes": spared}
    given = {} if axes is None else {"axes": np.array(axes, np.int64)}
    nodes = [layer("ReduceSum", " ".join(["x", *given]), **settings)]
    path = one(tmp_path / "n.onnx", nodes, given, ["N", 2, 3, 8])
    x = draw(3, 2, 3, 8).astype(np.float32)
    over = tuple(axes) if axes else tuple(range(4)) if not spared else ()
    expected = x.sum(over, keepdims=bool(keepdims)) if over else x
    close(load_onnx(path)(torch.from_numpy(x)), expected)


WEIGHTED = {
    "MatMul": ([layer("MatMul", "x w")], {"w": draw(8, 3)}),
    "Gemm": ([layer("Flatten", "x", "f"), layer("Gemm", "f w b")], {"w": draw(112, 3), "b": draw(3)}),
    "Conv": ([layer("Conv", "x w")], {"w": draw(4, 2, 3, 3)}),
    "ConvTranspose": ([layer("ConvTranspose", "x w")], {"w": draw(2, 4, 3, 3)}),
    "PRelu": ([layer("PRelu", "x w")], {"w": draw(2, 1, 1)}),
    "BatchNormalization": (
        [layer("BatchNormalization", "x w b m v")],
        {name: draw(2) ** 2 + 1 for name in "wbmv"},
    ),
    "Affine": (
        [layer("Mul", "x w", "m"), layer("Add", "m b")],
        {"w": draw(2, 1, 1) ** 2 + 1, "b": draw(2, 1, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["INT32", "BFLOAT16"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_that_torch_cannot_train_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    nodes, constants = WEIGHTED[name]
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 2, 7, 8])
    model = onnx.load(path)
    number = getattr(onnx.TensorProto, kind)
    in_type(model, number)
    model.graph.input[0].type.tensor_type.elem_type = number
    model.graph.output[0].type.tensor_type.elem_type = number
    onnx.save(model, path)
    with pytest.raises(
        tvc.InputError, match=f"stored as {kind.lower()}.*float32 weights|unsupported type"
    ):
        load_onnx(path)


OPS = [
    *["Relu", "Add", "Concat", "Reshape", "Transpose", "Squeeze", "MatMul"],
    *["MaxPool", "Conv", "Flatten", "Pad", "Slice", "Gather"],
]


def single(tensor: onnx.TensorProto) -> None:
    """One number instead of a list of one, or a table of one."""
    if list(tensor.dims) == [1]:
        tensor.dims.append(1)
    elif math.prod(tensor.dims) == 1:
        del tensor.dims[:]


def turn(graph: onnx.GraphProto, chosen: onnx.NodeProto, draws: random.Random) -> None:
    """Put a transpose of any number of axes before a node's first input."""
    if chosen.input:
        perm = draws.sample(range(4), 4)[: draws.choice([2, 3, 4, 4])]
        perm = [sorted(perm).index(axis) for axis in perm]
        at = list(graph.node).index(chosen)
        graph.node.insert(at, node("Transpose", chosen.input[0], f"turned{at}", perm=perm))
        graph.node[at + 1].input[0] = f"turned{at}"


def mutate(model: onnx.ModelProto, draws: random.Random) -> None:
    """Change something small: an operator, an input, a setting, a size, a name."""
    graph = model.graph
    names = [name for each in graph.node for name in each.output]
    names += [tensor.name for tensor in graph.initializer]
    chosen = draws.choice(graph.node)
    sizes = draws.choice(graph.input).type.tensor_type.shape.dim
    changes = [
        lambda: setattr(chosen, "op_type", draws.choice(OPS)),
        lambda: (
            chosen.input.__setitem__(draws.randrange(len(chosen.input)), draws.choice(names))
            if chosen.input
            else None
        ),
        lambda: chosen.input.append(draws.choice(names)),
        lambda: chosen.input.pop(),
        lambda: chosen.attribute.pop() if chosen.attribute else None,
        lambda: draws.choice(chosen.attribute).ints.append(draws.choice([-3, 0, 1, 2])),
        lambda: setattr(draws.choice(chosen.attribute), "i", draws.choice([-3, 0, 1, 2])),
        lambda: graph.node.remove(chosen),
        lambda: in_type(model, draws.choice([6, 7, 9, 10, 11, 16])),
        lambda: single(draws.choice(graph.initializer)),
        lambda: turn(graph, chosen, draws),
        lambda: without_shapes(model),
        lambda: draws.choice(graph.initializer).dims.reverse(),
        lambda: setattr(chosen, "name", draws.choice(["", "a/b/c", "x_1/y_1/Relu"])),
        lambda: setattr(draws.choice(sizes), "dim_value", draws.choice([1, 2, 20])),
    ]
    with contextlib.suppress(IndexError):  # nothing there to change
        draws.choice(changes)()


@pytest.mark.parametrize("start", sorted(DATA.rglob("*.onnx")), ids=lambda path: path.stem)
def test_a_damaged_file_is_refused_or_is_what_it_says(tmp_path: Path, start: Path) -> None:
    draws = random.Random(start.stem)
    loaded = 0
    for _ in range(25):
        model = onnx.load(start)
        mutate(model, draws)
        onnx.save(model, tmp_path / "n.onnx")
        try:  # any other exception fails the test
            network = load_onnx(tmp_path / "n.onnx", input_layout="as_exported")
        except tvc.InputError:
            continue
        loaded += 1
        assert all(isinstance(module, nn.Module) for module in network.modules())
    assert loaded


def numbers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def many(op: str, inputs: str, out: str = "many") -> list[onnx.NodeProto]:
    """A long list of whole numbers, and what onnx would carry it through to infer shapes."""
    return [
        node(op, inputs, out, **({"value": numbers("", 1)} if op == "ConstantOfShape" else {})),
        node("Cast", out, f"{out}_floats", to=FLOAT),
        node("ReduceSum", f"{out}_floats", f"{out}_sum", keepdims=0),
        node("Add", f"x {out}_sum", "out"),
    ]


# All of them are within what the gate lets through: 2²⁸ elements in a tensor.
LONG = {
    "filled": many("ConstantOfShape", "size"),
    "counted": many("Range", "none all step"),
    "spread": many("Expand", "three size"),
    "tiled": many("Tile", "three size"),
    "doubled": [
        node("Concat", "three three", "c0", axis=0),
        *(node("Concat", f"c{k} c{k}", f"c{k + 1}", axis=0) for k in range(23)),
        *many("Identity", "c23"),
    ],
    "joined": [
        node("ConstantOfShape", "size", "a"),
        node("ConstantOfShape", "size", "b"),
        node("Concat", "a b", "c", axis=0),
        node("ReduceSum", "c", "d", keepdims=0),
        node("Add", "x d", "out"),
    ],
    "one by one": [
        *(node("ConstantOfShape", "size", f"c{k}") for k in range(20)),
        node("Sum", " ".join(f"c{k}" for k in range(20)), "d"),
        node("ReduceSum", "d", "e", keepdims=0),
        node("Add", "x e", "out"),
    ],
    "summed again and again": [
        node("ConstantOfShape", "size", "c0"),
        *(node("Add", f"c{k} one", f"c{k + 1}") for k in range(20)),
        node("ReduceSum", "c20", "e", keepdims=0),
        node("Add", "x e", "out"),
    ],
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps this limit")
def test_long_lists_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """All of them in one process that may take no more than 600 MB beyond its imports."""
    for number, nodes in enumerate(LONG.values()):
        constants = {"size": [2**24], "three": [3], "one": np.float32(1)}
        constants |= {"none": 0, "all": 2**24, "step": 1}
        one(tmp_path / f"{number}.onnx", nodes, constants, ["N", 2, 4, 4])
    program = f"""
import resource, time, torch
from pathlib import Path
from converters import load_onnx
from converters import network as network_of
from converters.graph import Graph, Node
from converters.names import Owner
from converters.owners import give_owners
from converters.passes import gelu as gelu_pass
from converters.passes import layout
from torchviz_cnn.errors import InputError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
for number in range({len(LONG)}):
    start = time.process_time()
    try:
        network = load_onnx(f"{tmp_path}/{{number}}.onnx")
    except InputError as problem:
        print(number, problem)
    else:
        print(number, "loaded")
        del network
    assert time.process_time() - start < 2, number
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(LONG)


def test_what_does_not_depend_on_the_input_is_refused(tmp_path: Path) -> None:
    nodes = [layer("MaxPool", "k", "p", kernel_shape=[2, 2]), layer("Relu", "p")]
    path = one(tmp_path / "n.onnx", nodes, {"k": draw(1, 2, 4, 4)}, ["N", 2, 7, 8])
    with pytest.raises(tvc.InputError, match="'out' of this file does not depend on any input"):
        load_onnx(path)


ROW, COLUMN = draw(8), draw(7, 1, seed=1)
# What exporters leave to be computed from constants alone: its operators, the last one's output "c".
FOLDED = {
    "a whole quotient": ([node("Div", "a b", "c")], {"a": np.arange(-4, 4), "b": np.int64(3)}),
    "a whole rest": ([node("Mod", "a b", "c")], {"a": np.arange(-4, 4), "b": np.int64(3)}),
    "the larger of two": ([node("Max", "a b", "c")], {"a": ROW, "b": COLUMN}),
    "the smaller of two": ([node("Min", "a b", "c")], {"a": ROW, "b": COLUMN}),
    "one of two": (
        [node("Less", "a b", "l"), node("Equal", "a a", "e"), node("And", "l e", "w"),
         node("Where", "w a b", "c")],
        {"a": ROW, "b": COLUMN},
    ),
    "a factor": (
        [node("Sqrt", "a", "s"), node("Reciprocal", "s", "r"), node("Neg", "r", "n"),
         node("Sub", "n b", "c")],
        {"a": ROW**2 + 1, "b": COLUMN},
    ),
    "an axis less": ([node("Squeeze", "a axes", "c")], {"a": draw(1, 7, 1, 8), "axes": [0, -2]}),
    "an axis more": ([node("Unsqueeze", "a axes", "c")], {"a": draw(2, 8), "axes": [-2]}),
    "another order of axes": ([node("Transpose", "a", "c", perm=[2, 0, 1])], {"a": draw(7, 8, 2)}),
    "the axes the other way round": ([node("Transpose", "a", "c")], {"a": draw(8, 7)}),
    "another shape": ([node("Reshape", "a shape", "c")], {"a": draw(7, 4, 2), "shape": [0, -1]}),
    "two joined": ([node("Concat", "a b", "c", axis=-1)], {"a": draw(7, 5), "b": draw(7, 3)}),
    "a part": (
        [node("Slice", "a first last axes steps", "c")],
        {"a": draw(20, 9), "first": [-1, 1], "last": [-(2**63), 2**63 - 1], "axes": [0, 1],
         "steps": [-3, 1]},
    ),
    "a part along the first axes": (
        [node("Slice", "a first last", "c")], {"a": draw(4, 9, 8), "first": [1, 2], "last": [3, 9]},
    ),
    "nothing, and what follows": (
        [node("Slice", "a first last", "n"), node("Concat", "n b", "c", axis=0)],
        {"a": draw(3, 8), "b": COLUMN * ROW, "first": [0], "last": [-(2**63)]},
    ),
    "so many numbers": (
        [node("ConstantOfShape", "shape", "c",
              value=onnx.helper.make_tensor("value", onnx.TensorProto.DOUBLE, [1], [0.3]))],
        {"shape": [7, 8]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_computed_from_constants_is_what_the_standard_says(
    tmp_path: Path, name: str
) -> None:
    nodes, constants = FOLDED[name]
    nodes = [*nodes, node("Cast", "c", "f", to=FLOAT), layer("Add", "x f")]
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 2, 7, 8])
    x = draw(3, 2, 7, 8, seed=4).astype(np.float32)
    expected, numbers = evaluate(path, {"x": x}, ["out", "f"])
    network = load_onnx(path)
    close(network(torch.from_numpy(x)), expected)
    (kept,) = network.state_dict().values()  # computed once, when the file was read
    close(kept, numbers, 1e-6)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_the_largest_of_three_constants_is_not_written_into_the_third(
    tmp_path: Path, op: str
) -> None:
    constants = {name: draw(8, seed=seed) for seed, name in enumerate("abc")}
    nodes = [node(op, "a b c", "d"), node("Add", "x d", "e"), layer("Add", "c e")]
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 2, 7, 8])
    x = draw(3, 2, 7, 8, seed=4)
    chosen = {"Max": np.maximum, "Min": np.minimum}[op].reduce([*constants.values()])
    close(load_onnx(path)(torch.from_numpy(x).float()), x + chosen + constants["c"])


def test_an_operator_on_a_constant_has_it_inside(tmp_path: Path) -> None:
    nodes = [layer("MaxPool", "k", "p", kernel_shape=[2, 2]), layer("Add", "p x")]
    path = one(tmp_path / "n.onnx", nodes, {"k": draw(1, 2, 8, 9)}, ["N", 2, 7, 8])
    x = draw(2, 2, 7, 8).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    close(load_onnx(path)(torch.from_numpy(x)), expected)


@pytest.mark.parametrize("sizes", [None, [1, 3]])
def test_pieces(tmp_path: Path, sizes: list[int] | None) -> None:
    inputs = "x" if sizes is None else "x sizes"
    nodes = [
        node("Split", inputs, "a b", "/Split", axis=1),
        layer("Relu", "a", "r"),
        layer("Exp", "b", "e"),
        layer("Concat", "e r", axis=1),
    ]
    constants = {} if sizes is None else {"sizes": sizes}
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 4, 5, 3])
    x = draw(2, 4, 5, 3).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    network = load_onnx(path)
    close(network(torch.from_numpy(x)), expected)
    torch.export.export(network, (torch.from_numpy(x),))


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
def test_cells_repeated_by_a_new_axis(tmp_path: Path, layout: str) -> None:
    """As Keras' torch back end enlarges maps, channels last: rows three times, columns twice."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c"),
        node("Transpose", "c", "l", perm=[0, 2, 3, 1]),
        node("Unsqueeze", "l two", "u"),
        node("Expand", "u rows", "e"),
        node("Reshape", "e higher", "h"),
        node("Unsqueeze", "h three", "v"),
        node("Expand", "v columns", "f"),
        node("Reshape", "f wider", "out"),
    ]
    constants = {
        "k": draw(4, 3, 1, 1),
        "two": [2],
        "three": [3],
        "rows": [1, 1, 3, 1, 1],
        "columns": [1, 15, 6, 2, 4],
        "higher": [-1, 15, 6, 4],
        "wider": [-1, 15, 12, 4],
    }
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 5, 6, 3])
    x = draw(2, 5, 6, 3, seed=3).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    first = layout == "NCHW"
    network = load_onnx(path, input_layout=layout)
    assert [name for name, _ in network.named_children()][-2:] == ["repeat_1", "repeat_2"]
    given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if first else x)
    torch.export.export(network, (given,))
    found = network(given)
    close(found.permute(0, 2, 3, 1) if found.shape[1] == 4 else found, expected)


def test_a_border_of_same_padding_worked_out_at_run_time(tmp_path: Path) -> None:
    """From the maps' size, which itself follows from a border before; division rounds to zero."""
    nodes = [
        node("Pad", "x first", "p"),
        node("Relu", "p", "r"),
        node("Shape", "r", "s"),
        node("Gather", "s two", "rows", axis=0),
        node("Sub", "three rows", "minus"),  # 3 − 9 = −6, by 4: −1, not −2
        node("Div", "minus four", "less"),
        node("Neg", "less", "more"),
        node("Unsqueeze", "more zero", "width"),
        node("Concat", "nothing width zero nothing nothing", "widths", axis=0),
        node("Pad", "r widths", "q"),
        node("Conv", "q k", "out", strides=[2, 1]),
    ]
    constants = {
        "first": [0, 0, 1, 0, 0, 0, 1, 0],
        "two": 2,
        "three": 3,
        "four": 4,
        "zero": [0],
        "nothing": [0, 0],
        "k": draw(3, 2, 3, 3),
    }
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 2, 7, 8])
    x = draw(2, 2, 7, 8, seed=3).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    network = load_onnx(path)
    close(network(torch.from_numpy(x)), expected)
    torch.export.export(network, (torch.from_numpy(x),))


def test_a_mean_factor_and_summand_are_one_batch_norm(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x k", "c"),
        node("Sub", "c m", "s"),
        node("Mul", "s f", "p"),
        node("Add", "p b", "out"),
    ]
    per_channel = {name: draw(1, 3, 1, 1, seed=i) for i, name in enumerate("mfb")}
    path = one(tmp_path / "n.onnx", nodes, {"k": draw(3, 2, 3, 3), **per_channel}, ["N", 2, 7, 8])
    x = draw(2, 2, 7, 8, seed=3).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    network = load_onnx(path)
    assert [name for name, _ in network.named_children()] == ["conv_1", "batch_norm_1"]
    close(network(torch.from_numpy(x)), expected)


@pytest.mark.parametrize("group", [1, 2])
def test_the_sum_behind_a_transposed_convolution_is_the_bias_of_its_outputs(
    tmp_path: Path, group: int
) -> None:
    """Their number stands behind that of the inputs, and is that of one group."""
    runtime = pytest.importorskip("onnxruntime")  # the reference knows no groups
    nodes = [layer("ConvTranspose", "x k", "u", group=group), layer("Add", "u b")]
    constants = {"k": draw(2, 3, 2, 2), "b": draw(3 * group, 1, 1)}
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 2, 5, 4])
    x = draw(3, 2, 5, 4).astype(np.float32)
    (expected,) = runtime.InferenceSession(path).run(None, {"x": x})
    network = load_onnx(path)
    close(network(torch.from_numpy(x)), expected)
    (up,) = (part for part in network.modules() if isinstance(part, nn.ConvTranspose2d))
    close(up.bias, constants["b"].reshape(-1))


def test_a_batch_norm_of_numbers_that_the_picture_tells(tmp_path: Path) -> None:
    """So tf_keras writes a layer norm: its mean and variance are computed."""
    nodes = [
        node("ReduceMax", "x", "m", "net/norm/Max", axes=[0, 2, 3], keepdims=0),
        node("Mul", "m m", "v", "net/norm/mul"),
        node("BatchNormalization", "x g b m v", "out", "net/norm/FusedBatchNormV3", epsilon=0.03),
    ]
    constants = {"g": draw(2), "b": draw(2, seed=1)}
    path = save(tmp_path / "n.onnx", nodes, constants, {"x": ["N", 2, 7, 8]}, ["out"])
    x = draw(3, 2, 7, 8).astype(np.float32)
    (expected,) = evaluate(path, {"x": x}, ["out"])
    close(load_onnx(path)(torch.from_numpy(x)), expected)


def test_widths_of_a_border_that_torch_exported_as_arithmetic(tmp_path: Path) -> None:
    nodes = [
        node("ConstantOfShape", "four", "zeros", value=numpy_helper.from_array(np.zeros(1, int))),
        node("Concat", "given zeros", "all", axis=0),
        node("Reshape", "all pairs", "matrix"),
        node("Slice", "matrix m1 end zero m1", "turned"),
        node("Transpose", "turned", "columns", perm=[1, 0]),
        node("Reshape", "columns m1", "flat"),
        node("Cast", "flat", "widths", to=7),
        node("Pad", "x widths", "out", "/Pad"),
    ]
    constants = {
        "four": [4],
        "given": [1, 2, 3, 0],  # left, right, top, bottom
        "pairs": [-1, 2],
        "m1": [-1],
        "end": [-9223372036854775807],
        "zero": [0],
    }
    path = one(tmp_path / "n.onnx", nodes, constants, ["N", 4, 5, 3])
    x = draw(2, 4, 5, 3).astype(np.float32)
    network = load_onnx(path)
    close(network(torch.from_numpy(x)), np.pad(x, ((0, 0), (0, 0), (3, 0), (1, 2))))
    torch.export.export(network, (torch.from_numpy(x),))


def test_enlarging_that_torch_rounds_otherwise_is_refused(tmp_path: Path) -> None:
    enlarge = node("Resize", "x r s", "out", mode="nearest", nearest_mode="floor")
    constants = {"s": np.array([1, 1, 2, 2.0]), "r": np.zeros(0)}
    path = one(tmp_path / "n.onnx", [enlarge], constants, ["N", 2, 7, 8])
    with pytest.raises(tvc.InputError, match=r"nearest, half_pixel, floor"):
        load_onnx(path)


def chain_of(op: str, count: int) -> list[onnx.NodeProto]:
    ends = ["first", *(f"t{k}" for k in range(1, count)), "out"]
    steps = [node(op, *pair) for pair in itertools.pairwise(ends)]
    return [node("Transpose", "x", "first", perm=[0, 2, 3, 1]), *steps]


def work_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many operators the passes look at, all their walks through the graph together."""
    done = 0

    def counted(owner: object, name: str, size: Callable[..., int]) -> None:
        original = getattr(owner, name)

        def counting(*args: object, **more: object) -> object:
            nonlocal done
            done += size(*args)
            return original(*args, **more)

        monkeypatch.setattr(owner, name, counting)

    with monkeypatch.context() as patch:
        monkeypatch = patch
        for name in ("makers", "consumers", "prune", "sort", "rename_uses"):
            counted(Graph, name, lambda graph, *_: len(graph.nodes))
        for owner, name in ((gelu_pass, "_value"), (layout, "_push"), (network_of, "_needs")):
            counted(owner, name, lambda *_: 1)
        load_onnx(path)
    return done


@pytest.mark.parametrize("op", ["Tanh", "Erf", "Relu", "Dropout", "Identity"])
def test_twice_as_many_operators_are_twice_as_much_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    def work(count: int) -> int:
        path = one(tmp_path / "n.onnx", chain_of(op, count), {}, ["N", 2, 3, 4])
        return work_for(path, monkeypatch)

    assert work(80) < 2.5 * work(40)


@pytest.mark.parametrize("readers", [1, 2])
def test_what_goes_to_the_layer_behind_it_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    def work(count: int) -> int:
        ends = ["x", *(f"t{k}" for k in range(count))]
        steps = [
            node("Unsqueeze" if k % 2 == 0 else "Squeeze", f"{a} axes", b, f"Helper__{k}")
            for k, (a, b) in enumerate(itertools.pairwise(ends))
        ]
        relus = [
            node("Relu", ends[-1], f"r{k}", f"net_1/re_lu_1_{k + 1}/Relu") for k in range(readers)
        ]
        total = node("Sum", " ".join(f"r{k}" for k in range(readers)), "out", "net_1/add_1/Sum")
        nodes = [*steps, *relus, total]
        path = save(tmp_path / "n.onnx", nodes, {"axes": [1]}, {"x": ["N", 3]}, ["out"])
        return work_for(path, monkeypatch)

    assert work(80) < 2.5 * work(40)


def test_a_change_of_shape_that_three_layers_read_is_a_part_of_each() -> None:
    nodes = [
        Node("Unsqueeze", ["x"], ["u"], {"axes": [1]}),
        Node("Squeeze", ["u"], ["s"], {"axes": [1]}),
        *(Node("Relu", ["s"], [name], owner=Owner((name,), (name,))) for name in "abc"),
    ]
    graph = Graph(nodes, {}, {"x": (None, 3)}, list("abc"), {}, 15)
    give_owners(graph)
    graph.sort()
    makers = graph.makers()
    for name in "abc":
        at = makers[name]
        for op in ("Squeeze", "Unsqueeze"):
            at = makers[at.inputs[0]]
            assert (at.op, at.owner) == (op, Owner((name,), (name,)))
        assert at.inputs == ["x"]
    assert len(graph.nodes) == 9


def test_a_bad_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tvc.InputError, match="'NCHW' or 'as_exported', not 'NHWC'"):
        load_onnx(tmp_path / "n.onnx", input_layout="NHWC")


@pytest.mark.parametrize(
    "scope", ["dense@ense_1", "dense_1@x", "dense_" + "9" * 5000, "dense@" + "9" * 5000, "@", "_"]
)
def test_scopes_that_end_in_no_number_are_names_as_well(tmp_path, scope):
    """A damaged name is a name; Python refuses to read numbers of more than 4,300 digits."""
    path = save(
        tmp_path / "odd.onnx",
        [
            node("Relu", "x", "a", f"net_1/{scope}/Relu"),
            node("Relu", "a", "y", f"net_1/{scope}_1/Relu_1"),
        ],
        {},
        {"x": [None, 4]},
        ["y"],
    )
    network = load_onnx(path)
    x = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    assert network(x).tolist() == [[0.0, 0.0, 1.0, 2.0]]


# ---------------------------------------------------------------- layers that left no operator


def branching(path: Path) -> Path:
    """Keras' ``[img, conv_a, conv_b(conv_a), dropout(conv_a), concatenate([conv_b, dropout])]``."""
    a, b = "net_1/conv_a_1", "net_1/conv_b_1"
    nodes = [
        TURN,
        *conv(a, "t", "a"),
        *conv(b, "a", "b", pads=[1, 1, 1, 1]),
        node("Concat", "b a", "out", "net_1/concatenate_1/concat", axis=1),
    ]
    constants = weights(a, 3, 4) | weights(b, 4, 2, seed=5)
    return save(path, nodes, constants, {"img": ["N", 8, 7, 3]}, ["out"])


BRANCHING = ["img", "conv_a", "conv_b", "dropout", "concatenate"]


def test_an_idle_layer_in_one_of_two_branches_is_not_put_into_the_other(tmp_path: Path) -> None:
    path = branching(tmp_path / "n.onnx")
    network = load_onnx(path, layer_names=BRANCHING)
    assert {r.name: r.status for r in network.source.layers}["dropout"] == "not in the file"
    assert [note for note in network.source.notes if "dropout" in note and "keras=" in note]
    with pytest.raises(tvc.InputError, match="'dropout' has left nothing in the file"):
        tvc.activations(network, torch.rand(1, 3, 8, 7), "dropout")


def test_an_idle_layer_that_a_later_one_skips_back_to_is_not_invented(tmp_path: Path) -> None:
    """``dropout`` hands on ``conv_a``, and is read by ``add``; ``conv_b`` ends in one reader."""
    a, b, c = "net_1/conv_a_1", "net_1/conv_b_1", "net_1/conv_c_1"
    nodes = [
        TURN,
        *conv(a, "t", "a"),
        *conv(b, "a", "b", pads=[1, 1, 1, 1]),
        *conv(c, "b", "c", pads=[1, 1, 1, 1]),
        node("Add", "c a", "out", "net_1/add_1/Add"),
    ]
    constants = weights(a, 3, 4) | weights(b, 4, 4, seed=5) | weights(c, 4, 4, seed=7)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 8, 7, 3]}, ["out"])
    names = ["img", "conv_a", "conv_b", "dropout", "conv_c", "add"]
    network = load_onnx(path, layer_names=names)
    assert {r.name: r.status for r in network.source.layers}["dropout"] == "not in the file"
    # where everything goes through one tensor there is no doubt
    names = ["img", "conv_a", "dropout", "conv_b", "conv_c", "add", "dropout_1"]
    network = load_onnx(path, layer_names=names)
    seen = tvc.activations(network, torch.rand(1, 3, 8, 7), ["add", "dropout_1", "img"])
    assert torch.equal(seen["add"], seen["dropout_1"])


def test_an_idle_layer_behind_a_merged_convolution_is_not_the_batch_norm(tmp_path: Path) -> None:
    constants = {
        "net_1/first_1/convolution/merged_input:0": draw(2, 3, 3, 3),
        "net_1/norm_1/batchnorm/sub:0": draw(2, seed=1),
    } | weights("net_1/other_1", 2, 2)
    kernel, bias, *_ = constants
    nodes = [TURN, node("Conv", f"t {kernel} {bias}", "c", "Conv__9")]
    nodes += conv("net_1/other_1", "c", "out")
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 8, 8, 3]}, ["out"])
    names = ["img", "first", "dropout", "norm", "other"]
    network = load_onnx(path, layer_names=names)
    status = {r.name: r.status for r in network.source.layers}
    assert status["first"] == "fused into norm"
    assert status["dropout"] == "not in the file"


def test_an_idle_layer_behind_the_second_of_two_outputs(tmp_path: Path) -> None:
    nodes = [
        TURN,
        node("Split", "t", "s0 s1", "net_1/split_1/split", axis=1),
        *conv("net_1/conv_a_1", "s1", "out"),
    ]
    constants = weights("net_1/conv_a_1", 2, 4)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 8, 7, 4]}, ["out"])
    network = load_onnx(path, layer_names=["img", "split", "dropout", "conv_a"])
    x = torch.rand(1, 4, 8, 7)
    assert torch.equal(tvc.activations(network, x, "dropout")["dropout"], x[:, 2:])
    assert network(x).shape == (1, 4, 6, 5)


# ---------------------------------------------------------------- names that are made up


@pytest.mark.parametrize(
    ("scope", "op"), [("net_1/conv_1_1", "convolution"), ("net/conv_1", "Conv2D")]
)
def test_a_name_that_is_made_up_is_never_that_of_a_layer(
    tmp_path: Path, scope: str, op: str
) -> None:
    nodes = [TURN, node("Conv", "t k", "c", "Conv__7"), *conv(scope, "c", "out", op=op)]
    constants = {"k": draw(4, 3, 1, 1)} | weights(scope, 4, 2, op=op, seed=5)
    path = save(tmp_path / "n.onnx", nodes, constants, {"img": ["N", 8, 7, 3]}, ["out"])
    x, network, (made_up, out) = run(path, (1, 8, 7, 3), ["c", "out"])
    assert [r.name for r in network.source.layers] == ["conv_2", "conv_1"]
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, image, ["conv_1", "conv_2"])
    close(seen["conv_1"], out)
    close(seen["conv_2"], made_up)
    assert "'conv_2'" in network.source.notes[0]


def test_limits_can_be_set(tmp_path: Path) -> None:
    path = branching(tmp_path / "n.onnx")
    with pytest.raises(tvc.InputError, match=r"Limits\.elements"):
        load_onnx(path, limits=converters.Limits(elements=100))
    with pytest.raises(tvc.InputError, match=r"Limits\.nodes"):
        load_onnx(path, limits=converters.Limits(nodes=3))
    assert load_onnx(path, limits=converters.Limits(nodes=7)).source.inputs == ("img",)
