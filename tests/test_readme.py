"""What the README says is what the code does."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from torchviz_cnn.methods import METHODS
from torchviz_cnn.methods.registry import source, summary

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_method_table_is_the_registry():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", README, flags=re.M)
    assert rows == [(name, summary(name), source(name)) for name in METHODS]
    assert sorted(name for name, _, _ in rows) == sorted(METHODS)


def test_every_method_says_where_it_comes_from_and_shows_an_example():
    for name, function in METHODS.items():
        assert source(name), name
        assert ">>> " in (function.__doc__ or ""), name


def test_its_pictures_are_there():
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert linked
    assert [path for path in linked if not (ROOT / path).is_file()] == []


def test_its_python_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((320, 240), 60).convert("RGB").save("cat.jpg")
    shutil.copy(ROOT / "tests" / "data" / "catdog.k3export.onnx", "model.onnx")
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"ROOT": ROOT})


@pytest.mark.parametrize(
    "command",
    [
        'python -m pip install -e ".[demo]" && torchviz-cnn demo',
        'python -m pip install -e ".[test]" && python -m pytest',
    ],
)
def test_the_two_commands_stand_there_word_for_word(command):
    assert command in README
