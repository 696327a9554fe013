"""``python -m benchmarks``: ``cost``, ``classes``, ``occlusion``, ``maximize``, ``imported``, ``keras``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import classes, cost, imported, maximization, occlusion
from torchviz_cnn.errors import InputError
from torchviz_cnn.models import choose_device

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Benchmarks: every figure is a ratio taken within one run."""


@app.command("cost")
def cost_command(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="May be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Explanations beside a plain forward pass: time (median and quartiles) and peak memory."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print("ratios to a plain no_grad forward pass of the same batch, alternating\n")
    rows = cost.measure(
        model or ["vgg16", "resnet50"], batch or [1, 8], device=chosen, rounds=rounds
    )
    print(cost.table(rows))


@app.command("classes")
def classes_command(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    count: Annotated[list[int] | None, typer.Option(help="Classes; may be repeated.")] = None,
    method: Annotated[str, typer.Option(help="Of the Grad-CAM family.")] = "grad_cam",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Maps of many classes from one call beside a plain forward pass: time, median and quartiles."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print("ratios to a plain no_grad forward pass of the same batch, alternating\n")
    rows = classes.measure(
        model or ["resnet50"],
        count or [1, 10, 100],
        method=method,
        batch=batch,
        device=chosen,
        rounds=rounds,
    )
    print(classes.table(rows))


@app.command("imported")
def imported_command(
    file: Annotated[Path, typer.Argument(help="An ONNX file exported by Keras.")],
    against: Annotated[str, typer.Option(help="torchvision's network of the same kind.")],
    batch: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """An imported network's forward pass beside torchvision's: time, median and quartiles."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print(imported.measure(file, against, batch=batch, device=chosen, rounds=rounds))


@app.command("keras")
def keras_command(
    app_name: Annotated[
        list[str] | None, typer.Option("--app", help="Of keras.applications; may be repeated.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Batch norms merged into convolutions.")
    ] = False,
    device: Annotated[str, typer.Option(help="For Grad-CAM: auto, cpu or cuda.")] = "auto",
) -> None:
    """Keras applications exported, imported and compared layer by layer with Keras itself."""
    from benchmarks import keras_apps

    print(keras_apps.HEAD)
    print("|" + " --- |" * (keras_apps.HEAD.count("|") - 1))
    rows = []
    names = app_name or keras_apps.APPLICATIONS
    try:
        for row in keras_apps.measure(names, every_layer=not merged, device=device):
            rows.append(row)
            print(keras_apps.line(row), flush=True)
    except InputError as error:
        print(error)
        raise typer.Exit(2) from None
    failed = [row.name for row in rows if not row.passed]
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    raise typer.Exit(1 if failed else 0)


@app.command("occlusion")
def occlusion_command(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    size: Annotated[int, typer.Option(help="Side of the picture, in pixels.", min=32)] = 224,
    window: Annotated[int, typer.Option(min=1)] = 16,
    stride: Annotated[int, typer.Option(min=1)] = 8,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Occlusion: the dense engine's time and multiply-adds beside the incremental one's."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print(f"window {window}, stride {stride}, a picture of {size}×{size}; ratios to incremental\n")
    rows = occlusion.measure(
        model or ["vgg16", "resnet50"],
        size=size,
        window=window,
        stride=stride,
        device=chosen,
        rounds=rounds,
    )
    print(occlusion.table(rows))


@app.command("maximize")
def maximize_command(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    size: Annotated[int, typer.Option(help="Side of the picture, in pixels.", min=32)] = 128,
    steps: Annotated[int, typer.Option(help="Timed at once.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Activation maximisation: a step beside a plain forward pass, and a whole ascent in seconds."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print(f"a picture of {size}×{size}; ratios to as many no_grad forward passes, alternating\n")
    rows = maximization.measure(
        model or ["squeezenet1_0", "resnet18"],
        size=size,
        steps=steps,
        device=chosen,
        rounds=rounds,
    )
    print(maximization.table(rows))


app()
