"""What every command does: loading a network by name, notes, names of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from torchviz_cnn import models
from torchviz_cnn.cli.options import size_of
from torchviz_cnn.models import Model


def tell(sentence: str) -> None:
    typer.echo(sentence)


def note(sentence: str) -> None:
    typer.echo(f"note: {sentence}", err=True)


def load_model(
    name: str,
    weights: str | None,
    preprocess: str | None,
    classes: Path | None,
    input_size: str | None,
    device: str,
    keras: Path | None = None,
) -> Model:
    chosen = models.choose_device(device)
    model = models.load(
        name,
        weights,
        preprocess=preprocess,
        classes=None if classes is None else models.read_classes(classes),
        input_size=size_of(input_size),
        device=chosen,
        keras=keras,
    )
    for sentence in model.notes:
        note(sentence)
    return model


def stems(paths: Iterable[Path]) -> list[str]:
    """File stems, made different where two pictures have the same one."""
    return different([path.stem for path in paths])


def different(names: Iterable[str]) -> list[str]:
    """Names, numbered from the second of the same on."""
    taken: list[str] = []
    for name in names:
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.append(unique)
    return taken
