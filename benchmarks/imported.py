"""An imported Keras network beside torchvision's own of the same kind: conversion and forward pass."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
import torchvision

import torchviz_cnn as tvc
from benchmarks.clock import ratios
from benchmarks.cost import plain


def measure(
    file: str | Path, against: str, *, batch: int, device: torch.device, rounds: int
) -> str:
    """How long the import takes, and its forward pass as a ratio to torchvision's network.

    The two are not the same network to the last operation (Keras' ResNet50 has its strides in other
    convolutions), so their multiply-adds stand beside the times.

    Args:
        file: an ONNX file.
        against: torchvision's name of the network.
        batch: pictures in one pass, of the file's size.
        device: where both run.
        rounds: how often the two take turns.
    """
    start = time.perf_counter()
    model = tvc.models.load(str(file), preprocess="none", device=device)
    seconds = time.perf_counter() - start
    native = torchvision.models.get_model(against, weights=None).eval().to(device)
    inputs = torch.rand((batch, *model.input_size), device=device)
    timed = ratios(
        partial(plain, native, inputs),
        {"imported": partial(plain, model.module, inputs)},
        device=device,
        rounds=rounds,
    )["imported"]
    size = model.input_size
    macs = [tvc.layers(each, size).macs or 0 for each in (model.module, native)]
    return (
        f"{Path(file).name}: imported in {seconds:.1f} s; forward pass of {batch} × "
        f"{'×'.join(map(str, size))} takes {timed} times torchvision's {against}, "
        f"with {macs[0] / macs[1]:.2f} times its multiply-adds"
    )
