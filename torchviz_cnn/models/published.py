"""torchvision's networks, with their published weights or others.

It is opened only where one of them is asked for: importing torchvision takes longer than importing
all of this library. The rest does without, but for what is blurred in :mod:`~torchviz_cnn.methods`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from torchviz_cnn.checkpoints import Architecture
from torchviz_cnn.errors import InputError
from torchviz_cnn.models.model import Model
from torchviz_cnn.models.weights import (
    RESCALING,
    UNREADABLE,
    at_random,
    class_count,
    load_state,
    read_state,
    transforms_input,
)
from torchviz_cnn.preprocess import Preprocess, preprocess_by_name


def names() -> list[str]:
    """Every classifier of torchvision's."""
    return torchvision.models.list_models(module=torchvision.models)


def load(name: str, weights: str | None, size: tuple[int, ...] | None = None) -> Model:
    """A network by name, see :func:`torchviz_cnn.models.load`."""
    return _resized(_loaded(name, weights), size)


def untrained(architecture: Architecture) -> nn.Module:
    """A network to be trained, or filled with what was trained here."""
    name, outputs = architecture.name, architecture.outputs
    options: dict[str, Any] = {} if outputs is None else {"num_classes": outputs}
    if name in RESCALING:
        options |= {"aux_logits": False, "transform_input": architecture.transform_input}
        options["init_weights"] = True
    module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return module


def _resized(model: Model, size: tuple[int, ...] | None) -> Model:
    """A torchvision network for pictures of another size than it was trained on."""
    if size is None or size == model.input_size:
        return model
    if len(size) != 3 or size[0] != 3:
        raise InputError(
            f"{model.source} takes colour pictures: 3×H×W, not {'×'.join(map(str, size))}"
        )
    usual = model.preprocess
    assert isinstance(usual, Preprocess)
    resize = None
    if size[1] == size[2] and usual.resize is not None:  # the same part of the picture, larger
        resize = round(usual.resize * size[1] / usual.size[0])
    preprocess = replace(usual, size=(size[1], size[2]), resize=resize)
    return replace(model, preprocess=preprocess, input_size=size)


def _loaded(name: str, weights: str | None) -> Model:
    published = torchvision.models.get_model_weights(name)
    best = getattr(published, "DEFAULT", None)
    notes: tuple[str, ...] = ()
    classes = tuple(best.meta["categories"]) if best else None
    if weights == "none":
        module = at_random(lambda: _build(name, {}, False))
        notes = (f"{name} has random weights: its maps show the architecture, nothing learnt",)
    elif weights in (None, "default"):
        module = _published(name, best)
    else:
        state = read_state(str(weights))
        rescales, notes = transforms_input(name, state, str(weights))
        module = _build(name, state, rescales)
        load_state(module, state, str(weights))
        count = class_count(state)
        if classes is not None and count != len(classes):
            classes = None
    return Model(module, _torchvision_preprocess(best), _size(best), classes, name, notes)


def _build(name: str, state: Mapping[str, Tensor], transform_input: bool) -> nn.Module:
    """The architecture with random weights, shaped to take a state dict."""
    options: dict[str, Any] = {}
    if state and (count := class_count(state)):
        options["num_classes"] = count
    if name in RESCALING:
        options["init_weights"] = False
        options["aux_logits"] = any(key.lower().startswith("aux") for key in state)
        options["transform_input"] = transform_input
    return torchvision.models.get_model(name, weights=None, **options)


def _published(name: str, best: Any) -> nn.Module:
    if best is None:
        fault = f"{name} has no published weights; give a file"
        raise InputError(f"{fault}, or use weights='none'", typed=f"{fault}, or --weights none")
    file = best.url.rsplit("/", 1)[-1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torchvision.models.get_model(name, weights=best, progress=sys.stderr.isatty())
    except (URLError, *UNREADABLE) as error:
        reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        reason = reason.splitlines()[0]
        if (folder / file).exists():
            raise InputError(
                f"{str(folder / file)!r}, the weights of {name}, is damaged ({reason}): delete it "
                f"to have it downloaded again from {best.url}"
            ) from None
        raise InputError(
            f"the weights of {name} could not be had from {best.url} ({reason}): put that file "
            f"into {folder}, or name a file with --weights PATH (weights=PATH in Python), or use "
            "--weights none for random ones"
        ) from None


def _size(best: Any) -> tuple[int, int, int]:
    crop = best.transforms().crop_size[0] if best else 224
    return 3, crop, crop


def _torchvision_preprocess(best: Any) -> Preprocess:
    """The published weights' own preparation of pictures."""
    if best is None:
        return preprocess_by_name("torch", (3, 224, 224))
    preset = best.transforms()
    return Preprocess(
        size=(preset.crop_size[0], preset.crop_size[0]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )
