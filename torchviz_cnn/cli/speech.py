"""What every command does: saying what went wrong, loading a network, notes, names of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from torchviz_cnn import models
from torchviz_cnn.cli.options import size_of
from torchviz_cnn.errors import InputError
from torchviz_cnn.models import Model
from torchviz_cnn.models.model import AboutPictures


class Command(TyperCommand):
    """A command that says what was wrong in words of the command line.

    A parameter of its function is called as the library's keyword it is handed on for, so that the
    library's complaint about that keyword can be told of the option: ``scale`` as ``--zoom``.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            options = {p.name: max(p.opts, key=len) for p in self.params if p.name}
            flags = {name: flag for name, flag in options.items() if flag.startswith("--")}
            raise InputError(error.as_typed(flags)) from error


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
    *,
    pictures: bool = True,
) -> Model:
    """The network meant, told of what was assumed for it.

    Args:
        name, weights, preprocess, classes, input_size, device, keras: as they were typed.
        pictures: whether it is going to be given any; if not, nothing is told of their preparation.
    """
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
        if pictures or not isinstance(sentence, AboutPictures):
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
