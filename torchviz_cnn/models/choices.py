"""What else is chosen by a word: the device, a file of class names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch

from torchviz_cnn.errors import InputError
from torchviz_cnn.words import counted

DeviceChoice = Literal["auto", "cpu", "cuda"]


def choose_device(wish: str = "auto") -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: for a device that is not there.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wish not in ("cpu", "cuda"):
        raise InputError(f"there is no device {wish!r}; choose auto, cpu or cuda")
    if wish == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device can be used here; choose --device cpu or auto")
    return torch.device(wish)


def read_classes(path: str | Path) -> list[str]:
    """Class names from a file: one a line; a JSON list; or JSON as Keras has it, for ImageNet
    ``{"0": ["n01440764", "tench"], …}``, of a generator's ``class_indices`` ``{"cat": 0, …}``.

    Raises:
        InputError: when the file is missing or holds something else, or an index has no name.
    """
    return read_list(path, "class names")


def read_list(path: str | Path, what: str) -> list[str]:
    """Names from a file, as :func:`read_classes`; ``what`` they are is said of a file without."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows marks the beginning
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read {what} from {str(path)!r}: {reason}") from None
    if text.lstrip()[:1] not in ("[", "{"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{str(path)!r} is broken JSON: {error}") from None
    if isinstance(found, dict):
        found = _in_order(found, str(path), what)
    names = [each[-1] if isinstance(each, list) and each else each for each in found]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{str(path)!r} holds no list of {what}")
    return names


def _in_order(numbered: dict[str, Any], path: str, what: str) -> list[Any]:
    """What stands behind the indexes 0, 1, …, whether it is named by them or they by it."""
    if all(re.fullmatch("[0-9]+", key) for key in numbered):
        by_index = {int(key): each for key, each in numbered.items()}
    elif all(type(index) is int for index in numbered.values()):
        by_index = {index: name for name, index in numbered.items()}
    else:
        by_index = {}
    if not by_index:
        raise InputError(f"{path!r} holds no list of {what}")
    if len(by_index) != len(numbered) or set(by_index) != set(range(len(numbered))):
        raise InputError(
            f"{path!r} numbers {counted(len(numbered), what.removesuffix('s'))} otherwise than from "
            f"0 to {len(numbered) - 1}, each once"
        )
    return [by_index[index] for index in range(len(by_index))]
