"""Weights: out of files, into networks, or random."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from torchviz_cnn import checkpoints
from torchviz_cnn.errors import InputError
from torchviz_cnn.words import a

T = TypeVar("T")

# What loading a file of weights raises when it is not there, not one, or damaged.
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, BadZipFile, pickle.UnpicklingError)

KERAS = (".keras", ".h5", ".hdf5")  # endings of files that Keras saves whole networks in

IMAGENET_CLASSES = 1000
# torchvision's networks that scale pictures themselves where their weights want it.
RESCALING = ("googlenet", "inception_v3")


def at_random(build: Callable[[], T], seed: int = 0) -> T:
    """A network with random weights, the same ones every time; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def transforms_input(
    name: str, state: Mapping[str, Tensor], path: str
) -> tuple[bool, tuple[str, ...]]:
    """Whether a network must scale pictures anew to suit its weights, and what was assumed.

    The published weights of GoogLeNet and Inception, ported from TensorFlow, were trained on another
    scaling of pictures than torchvision's. What was trained here says which it was; of other files,
    those of 1000 classes are taken for published ones: whoever trained another number of classes did
    so on the usual scaling.

    Args:
        name: of the network.
        state: its weights.
        path: their file, or ``"default"``.
    """
    if name not in RESCALING:
        return False, ()
    described = checkpoints.describe(path) if path.lower().endswith(checkpoints.SUFFIX) else None
    if described is not None and described.architecture.name == name:
        return described.architecture.transform_input, ()
    if class_count(state) != IMAGENET_CLASSES:
        return False, ()
    if path == "default":
        return True, ()
    return True, (
        f"{name} has {IMAGENET_CLASSES} classes, so its weights are taken for published "
        "ones, which scale pictures to −1…1 (transform_input=True)",
    )


def class_count(state: Mapping[str, Tensor]) -> int:
    """How many classes a state dict's last layer tells apart."""
    last = [tensor for key, tensor in state.items() if tensor.ndim and "aux" not in key.lower()]
    return last[-1].shape[0] if last else 0


def read_state(path: str) -> dict[str, Tensor]:
    """A state dict from a file, on the CPU; wrappers such as ``{"state_dict": …}`` are taken off.

    Loaded with ``weights_only=True``, or by safetensors: a file cannot run code.

    Raises:
        InputError: when the file is missing, damaged, or holds something else.
    """
    if path.lower().endswith(checkpoints.SUFFIX):
        return checkpoints.read_tensors(path)[0]
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"there is no weights file {path!r}") from None
    except IsADirectoryError:
        raise InputError(f"{path!r} is a folder, not a weights file") from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise InputError(f"{path!r} holds {a(type(found).__name__)}, not a state dict of tensors")
    if not found:
        raise InputError(f"{path!r} holds an empty state dict")
    return _unwrapped(dict(found))


def _unreadable(path: str, error: Exception) -> InputError:
    """What is to be said of a file that torch cannot load."""
    if path.lower().endswith(KERAS):
        return InputError(
            f"{path!r} is a Keras file, and a network of torch's cannot take its weights: "
            f"{how_to_export(path)}, and give that file in place of the network"
        )
    if isinstance(error, pickle.UnpicklingError):
        return InputError(
            f"{path!r} is no state dict that can be loaded safely: it is damaged, or holds a whole "
            "pickled network; save network.state_dict() instead"
        )
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path!r} is not a readable weights file: {reason}")


def how_to_export(path: str) -> str:
    """What to do with a file that Keras saved.

    >>> how_to_export("nets/cat.h5")
    "export it as ONNX first, where Keras is installed, with 'torchviz-cnn export-keras nets/cat.h5 cat.onnx'"
    """
    return (
        "export it as ONNX first, where Keras is installed, with "
        f"'torchviz-cnn export-keras {path} {Path(path).stem}.onnx'"
    )


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what ``DataParallel`` and ``torch.compile``, one in the other, put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            return _unwrapped({key.removeprefix(prefix): v for key, v in state.items()})
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Put a state dict into a network.

    Raises:
        InputError: naming what is missing, left over or of another shape, before anything is
            changed.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{what} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in (("it lacks", missing), ("it also has", surplus), ("in it", shapes))
        if found
    ]
    if problems:
        raise InputError(
            f"the weights in {path!r} do not fit this {type(module).__name__}: "
            + "; ".join(problems)
        )
    module.load_state_dict(dict(state), strict=False)
