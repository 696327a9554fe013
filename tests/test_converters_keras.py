"""Layers of every common kind, exported by Keras 3 and by tf_keras, against what Keras computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from converters import load_onnx
from tests.onnx_files import DATA

FILES = sorted((DATA / "keras").glob("*.onnx"))

# Keras' layers that the exporter left nothing of, or whose own output it merged away.
GONE = {
    "again.k3": {"conv2d", "conv2d@1"},
    "again.tfk": {"conv2d", "conv2d@1"},
    "any_size.k3": set(),
    "any_size.tfk": set(),
    "dense_on_maps.k3": {"dropout"},
    "dense_on_maps.tfk": {"dropout"},
    "gray.k3": {"dropout"},
    "gray.tfk": {"dropout"},
    "mixed.k3": set(),
    "mixed.tfk": set(),
    "nested.k3": {"base_1.0.conv2d"},
    "nested.tfk": {"base_1.0.conv2d", "conv2d_1"},
    "towers.k3": {"tower.conv2d", "tower.conv2d@1"},
    "towers.tfk": {"tower.conv2d", "tower.conv2d@1"},
    "upwards.k3": set(),
    "upwards.tfk": set(),
    "windows.k3": {"up_sampling2d_1", "dropout"},
    # also a depthwise convolution whose name its batch norm took
    "windows.tfk": {"up_sampling2d", "up_sampling2d_1", "dropout", "depthwise_conv2d"},
}


def reference(path: Path) -> np.lib.npyio.NpzFile:
    own = path.with_suffix(".npz")
    return np.load(own if own.exists() else path.with_name(path.name.split(".")[0] + ".npz"))


def images(keras: np.lib.npyio.NpzFile) -> list[torch.Tensor]:
    arrays = [keras[key] for key in sorted(keras.files) if key in ("x0", "x1")]
    return [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in arrays]


def error(found: torch.Tensor, expected: np.ndarray) -> float:
    """By the fixed rule: what has four axes is (N, C, H, W) here and (N, H, W, C) in Keras."""
    array = found.detach().numpy()
    array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    assert array.shape == expected.shape
    return float(np.abs(array - expected).max() / np.abs(expected).max())


def watched(network: nn.Module, given: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every call of every layer whose output the file has, in Keras' order of features."""
    records = {r.name: r for r in network.source.layers if r.status == "in the file"}
    with torch.no_grad(), tvc.capture(network, [f"{name}@*" for name in records]) as seen:
        network(*given)
    found = {}
    for name, maps in seen.items():
        order = records[name.split("@")[0]].permutation
        found[name] = maps if order is None else maps[:, list(order)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_layer_is_keras(path: Path) -> None:
    network = load_onnx(path)
    keras = reference(path)
    given = images(keras)
    stored = {key[6:] for key in keras.files if key.startswith("layer:")}
    stored = {name for name in stored if not name.startswith("input_")}
    seen = watched(network, given)
    assert set(seen) & stored == stored - GONE[path.stem]
    listed = [str(name) for name in keras["layers"]]  # those of the outermost model
    unknown = [name for name in set(seen) - stored if name.split("@")[0] not in listed]
    assert not unknown
    for name in stored - GONE[path.stem]:
        assert error(seen[name], keras[f"layer:{name}"]) <= 1e-5, name
    assert error(network(*given), keras["y"]) <= 1e-5
    torch.export.export(network, tuple(given))
    as_exported = load_onnx(path, input_layout="as_exported")
    assert error(as_exported(*(x.permute(0, 2, 3, 1) for x in given)), keras["y"]) <= 1e-5


def test_all_files_are_listed() -> None:
    assert {path.stem for path in FILES} == set(GONE)


@pytest.mark.parametrize("style", ["k3", "tfk"])
def test_calls_share_their_modules(style: str) -> None:
    again = load_onnx(DATA / "keras" / f"again.{style}.onnx")
    assert [name for name, _ in again.named_children()] == [
        "conv2d",
        "batch_normalization",
        "activation",
        "flatten",
    ]
    towers = load_onnx(DATA / "keras" / f"towers.{style}.onnx")
    assert len([m for m in towers.modules() if isinstance(m, nn.Conv2d)]) == 1
    assert len([m for m in towers.modules() if isinstance(m, nn.Linear)]) == 2
    assert towers.source.notes == ()


@pytest.mark.parametrize("style", ["k3", "tfk"])
def test_a_network_of_any_size(style: str) -> None:
    network = load_onnx(DATA / "keras" / f"any_size.{style}.onnx")
    assert network.source.input_size == (3, None, None)
    x = torch.rand(2, 3, 31, 18)
    assert network(x).shape == (2, 3)
    cam = tvc.grad_cam(network, x, target=0)
    assert cam.layer == "conv2d_1"
    assert cam.values.shape == (2, 8, 5)  # 31 and 18, halved twice and rounded up
    model = tvc.models.load(str(DATA / "keras" / f"any_size.{style}.onnx"))
    assert model.input_size == (3, 224, 224)
    assert [note for note in model.notes if "any size" in note]
    path = str(DATA / "keras" / f"any_size.{style}.onnx")
    assert tvc.models.load(path, input_size=(3, 31, 18)).input_size == (3, 31, 18)


def test_a_nested_model_whose_name_torch_refuses() -> None:
    network = load_onnx(DATA / "keras" / "nested.k3.onnx")
    x = torch.rand(1, 3, 16, 16)
    seen = tvc.activations(network, x, ["base_1.0.activation", "base_1.0"])
    assert list(seen) == ["base_1.0.activation", "base_1.0"]
    with pytest.raises(tvc.InputError, match=r"'base_1\.0\.conv2d' is not in the file"):
        tvc.activations(network, x, "base_1.0.conv2d")


def test_a_dense_layer_on_maps_puts_them_out_channels_first() -> None:
    network = load_onnx(DATA / "keras" / "dense_on_maps.k3.onnx")
    assert isinstance(network.dense.conv, nn.Conv2d)
    record = {r.name: r for r in network.source.layers}["dense"]
    assert record.type == "Dense"
    assert record.output_shape == (6, 9, 9)
