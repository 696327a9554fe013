"""The examples run from beginning to end, print what they say and draw what they promise."""

import ast
import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PORTS = {
    "outputs_of_each_layer": ["layers/001_input_layer.act.png", "layers/004_pool_1.png",
                              "layers/011_output_layer.act.png",
                              "grad_cam_630.png", "maximized_3.png"],
    "understanding_vgg16": ["explanations.png",
                            *(f"layers/{i:03d}_features.{n}.png" for i, n in enumerate(
                                (1, 3, 6, 8, 11, 13, 15, 18, 20, 22)))],
    "cat_dog_small_channels": ["conv2d_1_channel_5.png", "max_pooling2d_1_channel_1.png",
                               "layers/sparsity.png"],
    "mnist_layer_names": ["conv_0.png", "conv_1.png"],
    "cat_dog_eight_layers": ["input.png", "channel_6.png", "channel_15.png",
                             "layer_1_conv2d_1.png", "layer_8_max_pooling2d_4.png"],
}  # fmt: skip
SAID = {
    "outputs_of_each_layer": [r"class 630 Loafer", r"conv_1.act silences \d+ % of its units"],
    "understanding_vgg16": [r"feature map \(512, 14, 14\)", "by hand the same"],
    "cat_dog_small_channels": [
        "Total params: 65,521",
        r"conv2d_1 \(1, 8, 148, 148\)",
        r"rank correlation of sparsity with depth: -?\d\.\d\d",
    ],
    "mnist_layer_names": [
        "Total params: 1,199,882",
        r"(?m)^conv_0$",
        r"accuracy (0\.\d+) before renaming and \1 after; every output is equal",
        r"conv_0 \(1, 32, 26, 26\)",
        r"conv_1 \(1, 64, 24, 24\)",
    ],
    "cat_dog_eight_layers": [
        "Total params: 3,453,121",
        r"\(1, 3, 150, 150\)\n\(1, 32, 148, 148\)",
        r"\['conv2d_1', 'max_pooling2d_1', 'conv2d_2', 'max_pooling2d_2', "
        r"'conv2d_3', 'max_pooling2d_3', 'conv2d_4', 'max_pooling2d_4'\]",
    ],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs an example once: what it printed, and the folder of its pictures."""
    known = {}

    def run(name):
        if name not in known:
            folder, said = tmp_path_factory.mktemp(name), io.StringIO()
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
                patch.syspath_prepend(str(EXAMPLES))
                patch.setattr(sys, "argv", [f"{name}.py", "--out", str(folder)])
                runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
            known[name] = said.getvalue(), folder
        return known[name]

    return run


@pytest.mark.parametrize("name", PORTS)
def test_an_example_prints_and_draws_what_its_document_does(name, ran):
    said, folder = ran(name)
    for pattern in SAID[name]:
        assert re.search(pattern, said), f"{pattern} is not in\n{said}"
    for file in PORTS[name]:
        with Image.open(folder / file) as image:
            assert max(image.size) >= 300, file
            assert np.asarray(image.convert("L")).std() > 5, file


@pytest.mark.parametrize("option", ["--picture", "--weights"])
@pytest.mark.parametrize("name", PORTS)
def test_an_example_takes_the_options_it_uses_and_no_others(name, option, monkeypatch, tmp_path):
    uses = f"options.{option[2:]}" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    words = [f"{name}.py", "--out", str(tmp_path), option, "nowhere"]
    monkeypatch.setattr(sys, "argv", words if not uses else [*words, "--help"])
    with pytest.raises(SystemExit) as stopped, redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert stopped.value.code == (0 if uses else 2)
    assert (option in said.getvalue()) == uses


@pytest.mark.parametrize("name", PORTS)
def test_an_example_is_short_and_says_which_claim_it_checks(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    said = ast.get_docstring(ast.parse(text)) or ""
    assert "Claims of" in said
    assert "RESULT" not in said


def test_the_grids_of_the_mnist_example_are_4_by_8_and_8_by_8(ran):
    """Counted in the picture: every cell of a grid is a block of colours 26 or 24 cells wide."""
    _, folder = ran("mnist_layer_names")
    for file, rows, columns, side in (("conv_0.png", 4, 8, 26), ("conv_1.png", 8, 8, 24)):
        array = np.asarray(Image.open(folder / file))
        edge = side * -(-40 // side)  # magnified by a whole number to at least 40 pixels
        found = sum(
            1
            for row in range(rows)
            for column in range(columns)
            for y in [30 + 15 + row * (edge + 19)]
            for x in [10 + column * (edge + 4)]
            if (array[y : y + edge, x : x + edge].std() > 1)
            and (array[y - 14 : y - 1, x : x + 20] < 128).any()
        )
        assert found == rows * columns
        assert array.shape[1] == 20 + columns * (edge + 4) - 4
