"""Networks from ONNX files, and what :mod:`converters` does with such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchviz_cnn.errors import InputError
from torchviz_cnn.models.model import AboutPictures, AboutSize, Model
from torchviz_cnn.models.weights import load_state, read_state
from torchviz_cnn.preprocess import preprocess_by_name


def _converters(path: str) -> Any:
    """The package that reads ONNX files; the rest of the library does without it.

    Raises:
        InputError: when another package of that name hides it.
    """
    import converters

    if not getattr(converters, "__torchviz_cnn__", False):
        found = getattr(converters, "__file__", None) or str(getattr(converters, "__path__", ""))
        raise InputError(
            f"{path} cannot be read: the package 'converters' found at {found} is not this "
            "library's and hides it; rename it or take its folder off the path"
        )
    return converters


def noise(model: Model, seed: int = 0) -> Tensor:
    """Two pictures of uniform noise from 0 to 1, as the network takes them, on the CPU.

    As many as it takes where its file has fixed that; of whole numbers from 0 to 255 where its file
    takes those.
    """
    generator = torch.Generator().manual_seed(seed)
    count = getattr(model.module, "fixed_batch", None) or 2
    pictures = torch.rand((count, *model.input_size), generator=generator)
    whole = getattr(getattr(model.module, "source", None), "whole", ())
    return (pictures * 255).round() if whole else pictures


def compare_file(
    path: str | Path,
    model: Model,
    inputs: Tensor | None = None,
    layer_names: Sequence[str] | None = None,
    keras: str | Path | None = None,
    other: Model | None = None,
) -> Any:
    """An imported network beside its ONNX file, see :func:`converters.compare`; or beside Keras or
    another torch network.

    Args:
        path: the file.
        model: what :func:`load` made of it.
        inputs: pictures, prepared; noise otherwise.
        layer_names: Keras' names in order, to be checked against the file.
        keras: the Keras file it was exported from: compare with that instead.
        other: compare with this network instead, see :func:`converters.compare_with_torch`.

    Returns:
        A :class:`converters.Comparison`.

    Raises:
        InputError: as :func:`converters.compare`.
    """
    if inputs is None:
        inputs = noise(model)
    if other is not None:
        return _converters(str(path)).compare_with_torch(
            path, other, inputs=inputs, network=model.module
        )
    if keras is not None:
        return _converters(str(path)).compare_with_keras(
            path, keras, inputs=inputs, network=model.module
        )
    network = None if layer_names is not None else model.module
    return _converters(str(path)).compare(
        path, inputs=inputs, network=network, layer_names=layer_names
    )


def export_file(
    source: str | Path,
    target: str | Path,
    *,
    every_layer: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Any:
    """A Keras file as ONNX, see :func:`converters.export_keras`.

    Returns:
        A :class:`converters.Export`.

    Raises:
        InputError: as :func:`converters.export_keras`.
    """
    return _converters(str(source)).export_keras(
        source, target, every_layer=every_layer, input_shape=input_shape
    )


def from_onnx(
    path: str,
    weights: str | None,
    preprocess: str | None,
    input_size: tuple[int, ...] | None,
    keras: str | Path | None,
) -> Model:
    if weights in ("default", "none"):
        raise InputError(f"{path} holds its own weights; leave --weights out, or give a file")
    module = _converters(path).load_onnx(path, keras=keras)
    size, notes = _size_of_import(path, module.source, input_size)
    if preprocess is None:
        assumed = "the preprocessing 'rescale' is assumed"
        notes += (AboutPictures(f"{path} does not say how it wants its pictures: {assumed}"),)
    if weights is not None:
        load_state(module, read_state(weights), weights)
    mode = preprocess_by_name(preprocess or "rescale", size)
    return Model(module, mode, size, None, Path(path).name, (*module.source.notes, *notes))


def _size_of_import(
    path: str, source: Any, input_size: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """``(C, H, W)`` or ``(H, W)`` of an imported network, and what had to be assumed for it."""
    shape = tuple(source.input_size)
    wanted = "N×" + "×".join("any" if n is None else str(n) for n in shape)
    if len(source.inputs) != 1 or len(shape) not in (2, 3):
        raise InputError(
            f"{path} takes no single picture ({len(source.inputs)} inputs, the first {wanted}); "
            "converters.load_onnx imports it as a bare network"
        )
    if input_size is not None:
        given = input_size
        fits = len(given) == len(shape) and all(
            n in (None, m) for n, m in zip(shape, given, strict=True)
        )
        if not fits:
            raise InputError(f"{path} takes {wanted}, not N×{'×'.join(map(str, given))}")
        return given, ()
    if None not in shape:
        return shape, ()
    sides = (None, *shape)[-3:]
    channels, rest = (sides[0] or 3,), tuple(n or 224 for n in sides[1:])
    size = channels + rest if len(shape) == 3 else rest
    assumed = f"{'×'.join(map(str, size))} is assumed"
    return size, (AboutSize(f"{path} takes pictures of any size: {assumed}"),)
