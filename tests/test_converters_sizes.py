"""Sizes that a file works out while it runs: nearest cells, repeated cells, lengths of a shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from converters import load_onnx
from converters.reference import run_reference
from tests.onnx_files import node, save

RULE = {
    "mode": "nearest",
    "coordinate_transformation_mode": "tf_half_pixel_for_nn",
    "nearest_mode": "floor",
}


def check(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """The network puts out what onnxruntime does; the standard's reference lacks this rule."""
    pytest.importorskip("onnxruntime")
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = run_reference(onnx.load(path), {"x": x}, ["out"])["out"]
    found = load_onnx(path)(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    return found


def of_any_size(folder: Path, nodes: list, constants: dict) -> Path:
    """A file of these operators, which takes any number of maps of two channels and any size."""
    sizes = {"x": ["N", 2, "H", "W"]}
    return save(folder / "n.onnx", nodes, constants, sizes, ["out"], producer="by hand")


@pytest.mark.parametrize("sides", [(5, 4), (11, 21), (3, 30)], ids=str)
def test_the_cell_in_which_the_middle_lies(tmp_path: Path, sides: tuple[int, int]) -> None:
    factors = np.array([1, 1, sides[0] / 8, sides[1] / 10], np.float32)
    nodes = [node("Resize", "x  s", "out", "/Resize", **RULE)]
    path = save(
        tmp_path / "n.onnx",
        nodes,
        {"s": factors},
        {"x": ["N", 2, 8, 10]},
        ["out"],
        producer="by hand",
    )
    assert check(path, (2, 2, 8, 10)).shape[2:] == sides


def test_a_size_that_follows_the_number_of_pictures(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "shape"),
        node("Slice", "shape begin two", "kept"),
        node("Concat", "kept sides", "size", axis=0),
        node("Resize", "x   size", "out", "/Resize", **RULE),
    ]
    constants = {"begin": np.array([0]), "two": np.array([2]), "sides": np.array([6, 7])}
    path = of_any_size(tmp_path, nodes, constants)
    for shape in ((1, 2, 4, 9), (3, 2, 13, 6)):
        assert check(path, shape).shape == (*shape[:2], 6, 7)


@pytest.mark.parametrize(("merged", "is_known"), [("before", True), ("behind", False)])
def test_cells_are_repeated_whatever_the_size(tmp_path: Path, merged: str, is_known: bool) -> None:
    """A new axis, tiled: merged with the one before it, each cell is repeated; else the whole map."""
    longer = "rows" if merged == "before" else "columns"
    parts = {"rows": "rows", "columns": "columns", longer: "longer"}
    nodes = [
        node("Shape", "x", "shape"),
        *[
            node("Slice", f"shape {first} {last}", name)
            for name, first, last in [("kept", "0", "2"), ("rows", "2", "3"), ("columns", "3", "4")]
        ],
        node("Mul", f"{longer} times", "longer"),
        node("Concat", f"kept {parts['rows']} {parts['columns']}", "target", axis=0),
        node("Unsqueeze", "x 3", "more"),
        node("Tile", "more tiles", "tiled"),
        node("Reshape", "tiled target", "out", "/Reshape"),
    ]
    constants = {str(n): np.array([n]) for n in (0, 2, 3, 4)}
    constants |= {"times": np.array([3]), "tiles": np.array([1, 1, 1, 3, 1])}
    path = of_any_size(tmp_path, nodes, constants)
    if is_known:
        assert check(path, (2, 2, 4, 5)).shape == (2, 2, 12, 5)
    else:
        with pytest.raises(ValueError, match="depends on the size of the picture"):
            load_onnx(path)


def test_lengths_that_a_shape_is_cut_and_gathered_for_are_numbers(tmp_path: Path) -> None:
    """Half the rows and columns of maps of known size, worked out as TensorFlow does."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape order", "turned"),  # pictures, of any number; rows, columns, channels
        node("Cast", "turned", "whole", to=6),
        node("Slice", "whole one three", "cut"),
        node("Cast", "cut", "sides", to=7),
        node("Div", "sides two", "half"),
        node("Slice", "x half sides axes", "out", "/Slice"),
    ]
    constants = {
        "order": np.array([0, 2, 3, 1]),
        "one": np.array([1]),
        "two": np.array([2]),
        "three": np.array([3]),
        "axes": np.array([2, 3]),
    }
    path = save(
        tmp_path / "n.onnx", nodes, constants, {"x": ["N", 2, 8, 10]}, ["out"], producer="by hand"
    )
    assert check(path, (2, 2, 8, 10)).shape == (2, 2, 4, 5)


def test_maps_rolled_twice_have_the_rows_they_had(tmp_path: Path) -> None:
    """As TensorFlow writes a roll: cut where the length of an axis says, and put together again."""
    nodes = []
    for number, (before, after) in enumerate([("x", "once"), ("once", "out")]):
        nodes += [
            node("Shape", before, f"shape{number}"),
            node("Slice", f"shape{number} two three", f"rows{number}"),
            node("Mod", f"by rows{number}", f"moved{number}"),
            node("Sub", f"rows{number} moved{number}", f"at{number}"),
            node("Slice", f"{before} at{number} rows{number} two", f"end{number}"),
            node("Slice", f"{before} zero at{number} two", f"rest{number}"),
            node("Concat", f"end{number} rest{number}", after, f"/Concat_{number}", axis=2),
        ]
    numbers = {"zero": 0, "two": 2, "three": 3, "by": 11}
    path = save(
        tmp_path / "n.onnx",
        nodes,
        {name: np.array([value]) for name, value in numbers.items()},
        {"x": ["N", 2, 8, 10]},
        ["out"],
        producer="by hand",
    )
    x = torch.arange(320.0).reshape(2, 2, 8, 10)
    assert torch.equal(load_onnx(path)(x), x.roll(6, dims=2))
    assert check(path, (2, 2, 8, 10)).shape == (2, 2, 8, 10)
