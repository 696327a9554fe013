"""What else is chosen by a word: the device, a file of class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from torchviz_cnn.errors import InputError

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
        lacking = "no CUDA device can be used here; choose"
        raise InputError(f"{lacking} cpu or auto", typed=f"{lacking} --device cpu or auto")
    return torch.device(wish)


def read_classes(path: str | Path) -> list[str]:
    """Class names from a file: one a line; a JSON list; or JSON as Keras has it, for ImageNet
    ``{"0": ["n01440764", "tench"], …}``, for folders of pictures (``class_indices``)
    ``{"cats": 0, "dogs": 1}``.

    Raises:
        InputError: when the file is missing or holds something else, or an index has no name.
    """
    return read_list(path, "class names")


def read_list(path: str | Path, what: str) -> list[str]:
    """Names from a file, as :func:`read_classes`; ``what`` they are is said of a file without."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows marks files as UTF-8
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read {what} from {str(path)!r}: {reason}") from None
    if text.lstrip()[:1] not in ("[", "{"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is broken JSON: {error}") from None
    if isinstance(found, dict):
        found = _by_number(found)
        if found is None:
            raise InputError(
                f"{str(path)!r} holds no list of {what}: a table must number all of them from 0 on, "
                'like {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}'
            )
    names = [each[-1] if isinstance(each, list) and each else each for each in found]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{str(path)!r} holds no list of {what}")
    return names


def _by_number(table: dict[str, Any]) -> list[Any] | None:
    """What a table numbers from 0 on, in order; ``None`` where it does not."""
    if all(type(number) is int for number in table.values()):
        numbered = {number: name for name, number in table.items()}
    elif all(key.isdecimal() for key in table):
        numbered = {int(key): name for key, name in table.items()}
    else:
        return None
    whole = sorted(numbered) == list(range(len(table)))
    return [numbered[number] for number in range(len(table))] if whole else None
