"""Imported networks are hidden window by window as any other is: computed in part, by their graph.

Against onnx's reference implementation on pictures that are hidden by hand, and against running the
whole network for every window.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import torchviz_cnn as tvc
from converters import load_onnx
from tests.onnx_files import evaluate, node, save
from torchviz_cnn.methods.graphs import Network
from torchviz_cnn.methods.incremental import Engine

EXTERNAL = os.environ.get("TORCHVIZ_CNN_DATA")
needs_data = pytest.mark.skipif(
    EXTERNAL is None, reason="TORCHVIZ_CNN_DATA names no folder of real networks"
)


def network_of_any_size(folder: Path, pool: str) -> Path:
    """As Keras' are exported: "same" borders and others, a batch norm apart from its convolution, every
    second cell of a map, and a pool over the whole of it.
    """
    numbers = np.random.default_rng(0)
    same = {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", "x k1 b1", "c1", "net/conv1/Conv", strides=[2, 2], **same),
        node("Relu", "c1", "r1", "net/conv1/Relu"),
        node("MaxPool", "r1", "p", "net/pool/MaxPool", strides=[2, 2], **same),
        node("Mul", "p scale", "m", "net/norm/mul"),
        node("Add", "m shift", "a", "net/norm/add"),
        node("Relu", "a", "r2", "net/relu/Relu"),
        node("Pad", "r2 border", "b", "net/border/Pad"),
        node("Conv", "b k2 b2", "c2", "net/conv2/Conv", **same),
        node("Slice", "c2 starts ends axes steps", "s", "net/cut/Slice"),
        node("Conv", "s k3", "c3", "net/conv3/Conv", **same),
        node(pool, "c3", "g", "net/global/Pool"),
        node("Flatten", "g", "f", "net/flat/Flatten"),
        node("Gemm", "f k4 b4", "y", "net/dense/MatMul"),
    ]
    shapes = {"k1": (6, 3, 3, 3), "b1": 6, "k2": (5, 6, 3, 3), "b2": 5, "k3": (5, 5, 3, 3)}
    shapes |= {"k4": (5, 4), "b4": 4}
    weights = {name: numbers.normal(size=shape) for name, shape in shapes.items()}
    weights |= {
        "scale": numbers.normal(size=(1, 6, 1, 1)),
        "shift": numbers.normal(size=(1, 6, 1, 1)),
    }
    weights |= {"border": [0, 0, 0, 1, 0, 0, 2, 0]}
    weights |= {"starts": [1, 0], "ends": [2**31, 2**31], "axes": [2, 3], "steps": [2, 1]}
    return save(folder / "any.onnx", nodes, weights, {"x": ["n", 3, "h", "w"]}, ["y"])


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("size", [(41, 36), (50, 31)])
def test_a_network_for_pictures_of_any_size(
    tmp_path: Path, pool: str, size: tuple[int, int]
) -> None:
    path = network_of_any_size(tmp_path, pool)
    network = load_onnx(path)
    x = np.random.default_rng(1).normal(size=(1, 3, *size)).astype(np.float32)
    window, stride = 6, 5
    found = tvc.occlusion(
        network, torch.from_numpy(x), 2, window=window, stride=stride, engine="incremental"
    )
    rows, columns = (math.ceil((n - window) / stride) + 1 for n in size)
    hidden = np.repeat(x, rows * columns, 0)
    for i in range(rows * columns):
        top, left = i // columns * stride, i % columns * stride
        hidden[i, :, top : top + window, left : left + window] = 0
    (untouched,) = evaluate(path, {"x": x}, ["y"])
    (scores,) = evaluate(path, {"x": hidden}, ["y"])
    drop = untouched[0, 2] - scores[:, 2].reshape(rows, columns)
    assert np.abs(found.values[0].numpy() - drop).max() < 1e-5 * np.abs(scores).max()
    assert np.abs(drop).max() > 0.01 * np.abs(scores).max()

    with torch.inference_mode():
        local = {node.name for node in Network(network, torch.from_numpy(x)).local}
    assert sum("pad" in name for name in local) == 3, "borders, too, are computed in part"
    assert any("getitem" in name for name in local)
    assert any("addcmul" in name for name in local)
    assert {"conv1_conv", "pool_pool", "conv2_conv", "conv3_conv"} <= local


@needs_data
@pytest.mark.parametrize(
    ("name", "size", "window"),
    [("keras/squeezenet_v1.0", 99, 24), ("keras/resnet20", 32, 8), ("resnet20_cifar10", 32, 8)],
)
def test_keras_networks_are_computed_in_part(name: str, size: int, window: int) -> None:
    network = load_onnx(Path(EXTERNAL or "") / f"{name}.onnx").double()
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    options = {"window": window, "stride": window}
    dense = tvc.occlusion(network, x, [[3, 5]], engine="dense", **options)
    found = tvc.occlusion(network, x, [[3, 5]], engine="incremental", **options)
    assert dense.values.abs().max() > 0
    assert (found.values - dense.values).abs().max() < 1e-12 * dense.score.abs().max()


@needs_data
def test_occlusion_takes_the_short_way_with_a_keras_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SqueezeNet as Keras exports it, whose last pool asks how many axes a map has."""
    taken = []
    prepare = Engine.prepare
    monkeypatch.setattr(Engine, "prepare", lambda self: (taken.append(self.ratio), prepare(self)))
    network = load_onnx(Path(EXTERNAL or "") / "keras/squeezenet_v1.0.onnx")
    tvc.occlusion(network, torch.rand(1, 3, 131, 131), 3, window=16, stride=16)
    assert taken
    assert taken[0] > 2


@needs_data
@pytest.mark.parametrize("name", ["keras/squeezenet_v1.0", "keras/resnet20", "resnet20_cifar10"])
def test_torch_fx_reads_keras_networks(name: str) -> None:
    """As quantisation, or torchvision's ``create_feature_extractor``, does."""
    network = load_onnx(Path(EXTERNAL or "") / f"{name}.onnx").eval()
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))
