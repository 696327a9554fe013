"""``torchviz-cnn train``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torchviz_cnn.cli.options import Device, InputSize, size_of
from torchviz_cnn.cli.speech import note, tell
from torchviz_cnn.training import train
from torchviz_cnn.training.fit import is_first

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def train_command(
    task: Annotated[str, typer.Argument(help="cat-dog, mnist or digits.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder: train/CLASS/* and validation/CLASS/*, or CLASS/*; of MNIST, its files."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="cat_dog, cat_dog_small, mnist_convnet, a torchvision classifier, or "
            "package.module:factory.",
            show_default="cat_dog or mnist_convnet",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="To start from: default (published ones) or a file; random otherwise."),
    ] = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Keep those weights; train the new last layer.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, show_default="30; 12 for mnist and digits")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, show_default="20; 64 for mnist and digits")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of RMSprop.", show_default="1e-4; 1e-3 for mnist, digits")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Of an epoch; 0 for one pass over the pictures.",
            min=0,
            show_default="100; one pass for mnist, digits",
        ),
    ] = None,
    validation_steps: Annotated[
        int | None,
        typer.Option(
            help="At most so many; 0 for all.", min=0, show_default="50; all for mnist, digits"
        ),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(help="Held out, where nothing says what to validate on.", show_default="0.2"),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror every second picture.")] = False,
    rotate: Annotated[float, typer.Option(help="By up to so many degrees.")] = 0.0,
    shift: Annotated[float, typer.Option(help="By up to this share of each side.")] = 0.0,
    zoom: Annotated[float, typer.Option(help="Each side times 1 − ZOOM to 1 + ZOOM.")] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without a lower validation loss.", min=1),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last epoch finished in --out.")
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option(help="A picture: its feature maps and Grad-CAM after every epoch, a strip."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, changes, dropout.", min=0)] = 0,
    precision: Annotated[str, typer.Option(help="32, 16-mixed or bf16-mixed (CUDA).")] = "32",
    devices: Annotated[int, typer.Option(help="So many GPUs share each batch.", min=1)] = 1,
    workers: Annotated[
        int, typer.Option(help="Processes that read pictures which do not fit into memory.", min=0)
    ] = 2,
    input_size: InputSize = None,
    device: Device = "auto",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the network and the page about it.")
    ] = Path("torchviz-cnn-train"),
) -> None:
    """Train a network as the tutorials do, then show what it learnt and where it errs.

    Afterwards --model OUT of the other commands is the best epoch's network, with its class names
    and its way of preparing pictures. Stopped at any moment, it goes on with --resume.

    \b
    Examples:
      torchviz-cnn train digits
      torchviz-cnn train mnist --data mnist --out my-mnist
      torchviz-cnn train cat-dog --data pets --flip --rotate 20 --zoom 0.2 --watch cat.jpg
      torchviz-cnn train cat-dog --data pets --model resnet18 --weights default --freeze
      torchviz-cnn explain cat.jpg --model torchviz-cnn-train
    """
    wishes: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
    }
    wishes = {name: value for name, value in wishes.items() if value is not None}
    for name, count in (("steps", steps), ("validation_steps", validation_steps)):
        if count is not None:
            wishes[name] = count or None
    try:
        train(
            task,
            data,
            out,
            model=model,
            weights=weights,
            freeze=freeze,
            input_size=size_of(input_size),
            validation_share=validation_share,
            resume=resume,
            watch=watch,
            device=device,
            progress=True,
            tell=tell,
            note=note,
            **wishes,
            patience=patience,
            seed=seed,
            flip=flip,
            rotate=rotate,
            shift=shift,
            zoom=zoom,
            devices=devices,
            workers=workers,
        )
    except KeyboardInterrupt:
        typer.echo("\nstopped; go on after the last finished epoch with --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if is_first():
        tell(f"open {out / 'index.html'}; look further with --model {out}")
