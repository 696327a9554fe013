"""Operators in settings that are seldom met, beside onnxruntime: right, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import torchviz_cnn as tvc
from converters import load_onnx
from tests.onnx_files import node, save

ort = pytest.importorskip("onnxruntime", reason="onnxruntime says what the operators compute")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def file_of(path: Path, op: onnx.NodeProto, constants: dict, shape: list, opset: int) -> Path:
    sizes = {"x": ["N", *shape]}
    return save(path, [op], constants, sizes, ["out"], producer="pytorch", opset=opset)


def by_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(["out"], {"x": x})
    return found


def pool(**settings: object) -> onnx.NodeProto:
    return node("MaxPool", "x", "out", ceil_mode=1, **settings)


TWICE = {"s": np.array([1, 1, 2, 3.0])}
MAPS = [3, 8, 9]
RIGHT = {
    "slopes along the last axis, as many as channels": (
        node("PRelu", "x k", "out"), {"k": draw(6)}, [6, 6, 6], 15,
    ),
    "slopes along the last of three axes": (node("PRelu", "x k", "out"), {"k": draw(5)}, [5, 5], 9),
    "one slope for each cell": (node("PRelu", "x k", "out"), {"k": draw(3, 8, 9)}, MAPS, 15),
    "enlarged, version 9": (node("Upsample", "x s", "out", mode="nearest"), TWICE, MAPS, 9),
    "enlarged, version 7": (
        node("Upsample", "x", "out", mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]), {}, MAPS, 7,
    ),
    "enlarged, version 10": (node("Resize", "x s", "out", mode="nearest"), TWICE, MAPS, 10),
    "sums on the way": (node("CumSum", "x a", "out"), {"a": np.int64(2)}, MAPS, 14),
    "sums on the way, without itself": (
        node("CumSum", "x a", "out", exclusive=1), {"a": np.int64(3)}, MAPS, 14,
    ),
    "product over the last axes": (
        node("ReduceProd", "x", "out", axes=[-2, -1], keepdims=0), {}, [3, 2, 2], 13,
    ),
    "all in one row": (node("Flatten", "x", "out", axis=0), {}, MAPS, 13),
    "rounded up, a row less": (
        pool(kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]), {}, MAPS, 15,
    ),
    "rounded up, a column less": (
        pool(kernel_shape=[2, 2], strides=[3, 3], pads=[0, 0, 1, 1]), {}, MAPS, 12,
    ),
    "rounded up, a row more": (
        pool(kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 0, 1]), {}, [3, 10, 11], 15,
    ),
    "rounded up, a window more": (
        pool(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]), {}, MAPS, 15,
    ),
    "rounded up, with gaps": (
        pool(kernel_shape=[2, 2], strides=[2, 2], dilations=[2, 3], pads=[0, 1, 1, 0]), {}, MAPS, 15,
    ),
    "rounded up, the border as wide as needed": (
        pool(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"), {}, MAPS, 15,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_seldom_settings_are_those_of_onnxruntime(tmp_path: Path, name: str) -> None:
    op, constants, shape, opset = RIGHT[name]
    path = file_of(tmp_path / "n.onnx", op, constants, shape, opset)
    x = draw(2, *shape, seed=4)
    expected = by_onnxruntime(path, x)
    found = load_onnx(path)(torch.from_numpy(x)).detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-3
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


SHRINK = {"s": np.array([1, 1, 0.5, 0.5]), "r": np.zeros(0)}
REFUSED = {
    "smoothly, version 10": (
        node("Resize", "x s", "out", mode="linear"), TWICE, 10, "linear, asymmetric",
    ),
    "smoothed before it is made smaller": (
        node("Resize", "x r s", "out", mode="linear", antialias=1), SHRINK, 18, "smoothed before",
    ),
    "to one cell": (
        node("Resize", "x r  z", "out", mode="linear",
             coordinate_transformation_mode="pytorch_half_pixel"),
        {"r": np.zeros(0), "z": np.array([1, 3, 1, 4])}, 13, "linear, pytorch_half_pixel",
    ),
    "an average with gaps": (
        node("AveragePool", "x", "out", kernel_shape=[2, 2], dilations=[2, 2]), {}, 19, "gaps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_computes_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    op, constants, opset, words = REFUSED[name]
    path = file_of(tmp_path / "n.onnx", op, constants, MAPS, opset)
    with pytest.raises(tvc.InputError, match=words):
        load_onnx(path)


@pytest.mark.parametrize("turned", [False, True])
def test_a_border_of_numbers_that_the_picture_tells_is_refused(
    tmp_path: Path, turned: bool
) -> None:
    nodes = [
        node("ReduceMax", "img", "m", "net_1/most_1/Max", keepdims=0),
        node("Pad", "img w m", "p", "net_1/zero_padding2d_1/Pad"),
        node(
            "Transpose", "p", "out", "Transpose__3", perm=[0, 3, 1, 2] if turned else [0, 1, 2, 3]
        ),
    ]
    widths = {"w": np.array([0, 1, 1, 0, 0, 1, 1, 0])}
    path = save(tmp_path / "n.onnx", nodes, widths, {"img": ["N", 8, 9, 3]}, ["out"])
    with pytest.raises(tvc.InputError, match=r"'zero_padding2d'.*fills the border"):
        load_onnx(path)


@pytest.mark.parametrize("opset", [21, 22, 23])
def test_one_operator_without_a_way_back_keeps_no_other_out(tmp_path: Path, opset: int) -> None:
    """A file that onnx cannot write in an older version is read in its own."""
    nodes = [
        node("Conv", "x k b", "c", pads=[1, 1, 1, 1]),
        node("Elu", "c", "e", alpha=0.5),
        node("ConvTranspose", "e t", "u", strides=[2, 2]),
        node("ReduceL2", "u one", "n", keepdims=1),
        node("Div", "u n", "d"),
        node("HardSwish", "d", "h"),
        node("GlobalMaxPool", "h", "out"),
    ]
    constants = {"k": draw(4, 3, 3, 3), "b": draw(4), "t": draw(4, 2, 2, 2), "one": [1]}
    sizes = {"x": ["N", *MAPS]}
    path = save(
        tmp_path / "n.onnx", nodes, constants, sizes, ["out"], producer="pytorch", opset=opset
    )
    x = draw(2, *MAPS, seed=4)
    expected = by_onnxruntime(path, x)
    found = load_onnx(path)(torch.from_numpy(x)).detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", [18, 22])
def test_a_mean_along_no_axis_is_what_it_is_given(tmp_path: Path, opset: int) -> None:
    mean = node("ReduceMean", "x", "out", noop_with_empty_axes=1)
    path = file_of(tmp_path / "n.onnx", mean, {}, MAPS, opset)
    x = draw(2, *MAPS, seed=4)
    assert np.array_equal(load_onnx(path)(torch.from_numpy(x)).numpy(), by_onnxruntime(path, x))
    length = node("ReduceL2", "x", "out", noop_with_empty_axes=1)
    with pytest.raises(tvc.InputError, match=r"the operator ReduceL2.*along no axis"):
        load_onnx(file_of(tmp_path / "n.onnx", length, {}, MAPS, opset))
