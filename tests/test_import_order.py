"""Imported after TensorFlow: Triton's LLVM must not meet TensorFlow's in one process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("package", ["torchviz_cnn", "converters"])
def test_after_tensorflow_triton_is_not_imported(package: str, tmp_path: Path) -> None:
    """An empty package stands in for TensorFlow: only its being loaded matters."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").touch()
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import tensorflow\n"
        f"import {package}\n"
        "import torch\n"
        "assert not any(name.startswith('triton.') for name in sys.modules)\n"
        "print(torch.compile(torch.nn.Identity(), backend='eager')(torch.ones(2)).tolist())"
    )
    assert run(code) == "[1.0, 1.0]"


def test_without_tensorflow_triton_is_left_alone() -> None:
    code = "import sys, torchviz_cnn\nprint(sys.modules.get('triton', 'absent') is None)"
    assert run(code) == "False"


@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow")
def test_after_the_real_tensorflow_the_process_lives() -> None:
    assert run("import tensorflow, torchviz_cnn, converters\nprint('lives')") == "lives"
