"""Sums and products that look like a part of a layer and are none, beside onnx's own evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from converters import load_onnx
from tests.onnx_files import evaluate, node, save

RANDOM = np.random.default_rng(0)

# Name -> operators, constants, shape of the input, and the outputs.
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[int], list[str]]] = {
    "a sum along the depth of a volume": (
        [node("Conv", "x k", "c"), node("Add", "c a", "out")],
        {"k": RANDOM.normal(size=(3, 2, 2, 2, 2)), "a": RANDOM.normal(size=(3, 1, 1))},
        [2, 2, 4, 5, 6],
        ["out"],
    ),
    "a sum with one number for each channel of a volume": (
        [node("Conv", "x k", "c"), node("Add", "c a", "out")],
        {"k": RANDOM.normal(size=(3, 2, 2, 2, 2)), "a": RANDOM.normal(size=(1, 3, 1, 1, 1))},
        [2, 2, 4, 5, 6],
        ["out"],
    ),
    "a sum with more axes than a convolution's maps": (
        [node("Conv", "x k", "c"), node("Add", "c a", "out")],
        {"k": RANDOM.normal(size=(3, 2, 2)), "a": RANDOM.normal(size=(1, 3, 1, 1))},
        [3, 2, 6],
        ["out"],
    ),
    "a sum that adds an axis": (
        [node("MatMul", "x k", "m"), node("Add", "m a", "out")],
        {"k": RANDOM.normal(size=(4, 3)), "a": RANDOM.normal(size=(1, 1, 3))},
        [2, 4],
        ["out"],
    ),
    "a product that the network puts out before it is folded": (
        [
            node("Reshape", "x flat", "f"),
            node("MatMul", "f k", "m"),
            node("Reshape", "m maps", "out"),
        ],
        {
            "flat": np.array([-1, 4]),
            "k": RANDOM.normal(size=(4, 3)),
            "maps": np.array([-1, 5, 6, 3]),
        },
        [2, 5, 6, 4],
        ["m", "out"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_bias_is_not_taken_for_one(tmp_path: Path, case: str) -> None:
    nodes, constants, shape, outputs = CASES[case]
    path = save(tmp_path / "n.onnx", nodes, constants, {"x": shape}, outputs, producer="pytorch")
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted = evaluate(path, {"x": x}, outputs)
    with torch.no_grad():
        found = load_onnx(path, input_layout="as_exported")(torch.from_numpy(x))
    for one, array in zip([found] if len(outputs) == 1 else found, wanted, strict=True):
        assert tuple(one.shape) == array.shape
        assert np.abs(one.numpy() - array).max() <= 1e-5 * np.abs(array).max()
