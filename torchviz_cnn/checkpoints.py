"""Trained networks as plain files: safetensors for the weights, JSON for what they belong to.

Both are in one file, the JSON as safetensors' metadata, so that a rename puts them in place together;
a copy of the JSON lies beside it to be read by people. Nothing is pickled: a file cannot run code.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically
from torchviz_cnn.inputs import checked_size
from torchviz_cnn.preprocess import Channels, Interpolation, Preprocess
from torchviz_cnn.version import __version__

SUFFIX = ".safetensors"
BEST, LAST = f"best{SUFFIX}", f"last{SUFFIX}"

_KEY = "torchviz_cnn"
_VERSION = 1
_MOST_OUTPUTS = 100_000
# What a description says in words of its own; the rest is what somebody thought worth keeping.
_OWN_WORDS = {
    *("format", "architecture", "classes", "input_size", "preprocess", "metrics", "versions"),
}


@dataclass(frozen=True)
class Architecture:
    """A network without its weights.

    Attributes:
        name: as :func:`torchviz_cnn.models.load` takes it.
        outputs: how many numbers it puts out; ``None`` where that is the code's own affair.
        transform_input: of GoogLeNet and Inception: scale pictures as the published weights were
            trained.
    """

    name: str
    outputs: int | None = None
    transform_input: bool = False


@dataclass(frozen=True)
class Description:
    """What weights belong to.

    Attributes:
        architecture: the network.
        classes: names by index.
        input_size: ``(C, H, W)`` or ``(H, W)`` of one image.
        preprocess: from a picture to that.
        metrics: what was measured, by name.
        about: anything else worth keeping: settings, epoch, data.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    input_size: tuple[int, ...]
    preprocess: Preprocess
    metrics: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": _VERSION,
                "architecture": vars(self.architecture),
                "classes": self.classes,
                "input_size": self.input_size,
                "preprocess": plain(self.preprocess),
                "metrics": dict(self.metrics),
                **self.about,
                "versions": {
                    "torchviz_cnn": __version__,
                    "torch": torch.__version__,
                    "torchvision": version("torchvision"),
                    "python": platform.python_version(),
                },
            },
            indent=1,
            ensure_ascii=False,
        )


def plain(preprocess: Preprocess) -> dict[str, Any]:
    """From a picture to what a network takes, in values that JSON has."""
    return dict(vars(preprocess))


def write(path: str | Path, state: Mapping[str, Tensor], description: Description) -> Path:
    """Write weights with their description, atomically; the description beside them as ``.json``.

    Raises:
        CannotWrite: an ``OSError``, when the disk is full or the folder cannot be written.
        InputError: when safetensors is not installed.
    """
    words = description.to_json()
    # The copy first: where the weights are in place, all of it is.
    write_atomically(Path(path).with_suffix(".json"), lambda file: file.write(words.encode()))
    return write_tensors(path, state, {_KEY: words})


def write_tensors(path: str | Path, state: Mapping[str, Tensor], words: dict[str, str]) -> Path:
    """Tensors and words in one safetensors file, atomically."""
    save = _safetensors().torch.save
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    return write_atomically(path, lambda file: file.write(save(plain, words)))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and words of a safetensors file, on the CPU.

    Raises:
        InputError: when the file is missing or damaged, or safetensors is not installed.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a mapping


def read_words(path: str | Path) -> dict[str, str]:
    """The words of a safetensors file alone, however large its tensors are.

    Raises:
        InputError: when the file is missing or damaged, or safetensors is not installed.
    """
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    package = _safetensors()
    if Path(path).is_dir():
        raise InputError(f"{str(path)!r} is a folder, not a weights file")
    try:
        with package.safe_open(str(path), "pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"there is no weights file {str(path)!r}") from None
    except (package.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a readable weights file: {error}") from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise InputError(
            "weights of this form are read and written by safetensors: "
            'python -m pip install "torchviz-cnn[train]"'
        ) from None
    return safetensors


def is_checkpoint(spec: str) -> bool:
    """Whether a word names a file of this form, or a folder that holds one."""
    return spec.lower().endswith(SUFFIX) or Path(spec).is_dir()


def file_of(spec: str | Path) -> Path:
    """The file meant: of a folder, the best network in it.

    Raises:
        InputError: for a folder without one.
    """
    path = Path(spec)
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).exists():
            return path / name
    raise InputError(f"there is no trained network ({BEST}) in the folder {str(spec)!r}")


def read(spec: str | Path) -> tuple[dict[str, Tensor], Description | None]:
    """Weights and what they belong to; ``None`` where the file does not say.

    Raises:
        InputError: when the file is missing, damaged, or its description makes no sense.
    """
    path = file_of(spec)
    state, words = read_tensors(path)
    return state, _description(words[_KEY], str(path)) if _KEY in words else None


def describe(path: str | Path) -> Description | None:
    """What weights belong to, without reading them; ``None`` where the file does not say.

    Raises:
        InputError: when the file is missing, damaged, or its description makes no sense.
    """
    words = read_words(path)
    return _description(words[_KEY], str(path)) if _KEY in words else None


def _description(words: str, path: str) -> Description:
    """Checked field by field: a file comes from anywhere."""
    try:
        found = json.loads(words)
        if found["format"] != _VERSION:
            raise InputError(
                f"{path!r} is of form {found['format']!r}, and this version reads form {_VERSION}; "
                "a newer torchviz_cnn may read it"
            )
        return Description(
            _architecture(**found["architecture"]),
            _names(found["classes"]),
            checked_size(found["input_size"]),
            _preprocess(**found["preprocess"]),
            {str(key): float(value) for key, value in found["metrics"].items()},
            {key: value for key, value in found.items() if key not in _OWN_WORDS},
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the description in {path!r} is damaged: {type(error).__name__}: {error}"
        ) from None


def _architecture(name: str, outputs: int | None, transform_input: bool) -> Architecture:
    if not isinstance(name, str):
        raise TypeError("a network's name is a string")
    if outputs is not None and not (type(outputs) is int and 1 <= outputs <= _MOST_OUTPUTS):
        raise ValueError(f"a network cannot have {outputs!r} outputs")
    return Architecture(name, outputs, bool(transform_input))


def _names(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise TypeError("class names are strings")
    return tuple(found)


def _preprocess(
    size: Sequence[int],
    resize: int | None,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    channels: str,
    interpolation: str,
    channel_axis: bool,
) -> Preprocess:
    height, width = checked_size(size)
    if resize is not None:
        resize, _ = checked_size([resize, resize])
    if channels not in get_args(Channels):
        raise ValueError(f"there are no channels {channels!r}")
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"there is no interpolation {interpolation!r}")
    return Preprocess(
        size=(height, width),
        resize=resize,
        scale=float(scale),
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
        channels=channels,  # type: ignore[arg-type]
        interpolation=interpolation,  # type: ignore[arg-type]
        channel_axis=bool(channel_axis),
    )
