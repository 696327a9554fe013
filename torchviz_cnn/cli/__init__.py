"""The command line: parses, calls, prints. The work is done elsewhere."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from torchviz_cnn.cli.explain import explain_command, methods_command
from torchviz_cnn.cli.keras import compare_command, export_keras_command
from torchviz_cnn.cli.look import (
    activations_command,
    field_command,
    filters_command,
    layers_command,
)
from torchviz_cnn.cli.search import maximize_command, patches_command, style_command
from torchviz_cnn.cli.show import demo_command
from torchviz_cnn.cli.speech import Command, note
from torchviz_cnn.cli.train import train_command
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import CannotWrite
from torchviz_cnn.inputs import network_failure
from torchviz_cnn.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="What is this convolutional network looking at?\n\n"
    "\b\nStart here:\n"
    "  torchviz-cnn demo\n"
    "  torchviz-cnn layers vgg16\n"
    "  torchviz-cnn explain cat.jpg --model resnet50 --method all",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"torchviz_cnn {__version__}")
        raise typer.Exit


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo_command,
    "layers": layers_command,
    "explain": explain_command,
    "methods": methods_command,
    "activations": activations_command,
    "filters": filters_command,
    "field": field_command,
    "maximize": maximize_command,
    "patches": patches_command,
    "style": style_command,
    "train": train_command,
    "compare": compare_command,
    "export-keras": export_keras_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(_command)


def main() -> None:
    """Run the command line; what the user did wrong is one sentence and exit code 2."""
    _say_what_can_be_said(sys.stdout)
    _say_what_can_be_said(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _told_warning
            app()
    except InputError as error:
        _fail(str(error))
    except CannotWrite as error:
        _fail(f"cannot write {error.filename}: {error.strerror or error}")
    except OSError as error:
        _fail(str(error))
    except Exception as error:
        sentence = _not_enough_memory(error) or network_failure(error)
        if sentence is None:  # a fault of this program: show where
            raise
        _fail(sentence)


def _say_what_can_be_said(stream: object) -> None:
    """Put a question mark where the terminal's, or a file's, encoding has not the character.

    Lines and crosses of tables are not in Latin-1, nor in what Windows gives a file; and the name
    of a picture need not be text in any encoding.
    """
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="replace")


def _told_warning(message: Warning | str, *_: object, **__: object) -> None:
    note(str(message))


def _not_enough_memory(error: Exception) -> str | None:
    words = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in words:
        return "there is not enough memory for this; try a smaller --input-size or --batch-size"
    return None


def _fail(sentence: str) -> None:
    typer.echo(f"torchviz-cnn: {sentence}", err=True)
    sys.exit(2)
