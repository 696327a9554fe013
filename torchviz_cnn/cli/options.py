"""The options several commands share, and what their texts mean."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from torchviz_cnn.errors import InputError
from torchviz_cnn.render import Scale

Images = Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A torchvision classifier, mnist_convnet, cat_dog, cat_dog_small, an ONNX file, what "
        "train wrote (a folder or .safetensors file), or package.module:factory.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="default (published ones, downloaded once), none (random), or a file."),
]
PreprocessMode = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="Prepare pictures as Keras does: rescale, tf, torch, caffe or none; "
        "otherwise as the network's publisher does.",
    ),
]
ClassFile = Annotated[
    Path | None,
    typer.Option(
        "--classes", help="Class names: one a line, a JSON list, or Keras' class_indices as JSON."
    ),
]
KerasFile = Annotated[
    Path | None,
    typer.Option(
        "--keras",
        help="For an ONNX file without layer names: the .keras or .h5 file it was exported from.",
    ),
]
InputSize = Annotated[
    str | None, typer.Option(help="Of one image, such as 3x448x448, where it is not the usual one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")]
Colormap = Annotated[
    str | None, typer.Option(help="Any matplotlib colour map, such as jet, viridis, gray.")
]


def size_of(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = re.split(r"[x×,]", text)
    # 3x64 is a side forgotten rather than a strip three pixels high without channels.
    cut_short = len(parts) == 2 and parts[0].strip() in ("1", "3")
    if not all(_is_size(part) for part in parts) or len(parts) not in (2, 3) or cut_short:
        raise InputError(f"--input-size must be like 3x224x224, not {text!r}")
    return tuple(int(part) for part in parts)


def shape_of(text: str, option: str) -> tuple[int, ...]:
    """Of one picture as Keras has it, channels last or without channels."""
    parts = re.split(r"[x×,]", text)
    if not all(_is_size(part) for part in parts) or len(parts) not in (2, 3):
        raise InputError(f"{option} must be like 224x224x3, not {text!r}")
    return tuple(int(part) for part in parts)


def _is_size(part: str) -> bool:
    return part.strip().isdecimal() and 0 < int(part) < 2**31


def scale_of(text: str) -> Scale:
    if text == "channel":
        return "channel"
    if text == "layer":
        return "layer"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--scale must be channel, layer or LOW,HIGH, not {text!r}") from None
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise InputError(f"--scale needs two finite numbers, the lower first, not {text!r}")
    return (low, high)


def pair_of(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = re.split(r"[x×,]", text)
    if not all(_is_size(part) for part in parts) or len(parts) not in (1, 2):
        raise InputError(f"{option} must be like 32 or 32x16 (height x width), not {text!r}")
    return int(parts[0]), int(parts[-1])


def fill_of(text: str, option: str = "--fill") -> float | str:
    if text in ("mean", "blur"):
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} must be a number, mean or blur, not {text!r}") from None


def precision_of(text: str | None) -> torch.dtype | None:
    known = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text not in known:
        raise InputError(f"--dtype must be bfloat16 or float16, not {text!r}")
    return known[text]


def span_of(text: str, option: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be like 0.9,1.1, not {text!r}") from None
    return low, high


def cell_of(text: str) -> tuple[int, int] | Literal["middle"]:
    if text == "middle":
        return "middle"
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--cell must be ROW,COLUMN or middle, not {text!r}")
    return int(parts[0]), int(parts[1])
