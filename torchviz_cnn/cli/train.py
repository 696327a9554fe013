"""``torchviz-cnn train``: parses, calls, prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from torchviz_cnn import models
from torchviz_cnn.cli.options import Device, InputSize, size_of
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.report import write_page
from torchviz_cnn.training import outcome
from torchviz_cnn.training.augment import Augmentation
from torchviz_cnn.training.fit import check_network, check_run, fit, is_first
from torchviz_cnn.training.start import start
from torchviz_cnn.training.tasks import TASKS, pictures
from torchviz_cnn.training.watch import Watch
from torchviz_cnn.words import percent

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def _silent(sentence: str, *, err: bool = False) -> None:
    """What a process says that only helps another."""


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
    known = pictures(task, data, validation_share, seed)
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
    settings = replace(
        TASKS[task].settings,
        **wishes,
        patience=patience,
        seed=seed,
        augmentation=Augmentation(flip, rotate, shift, zoom),
        devices=devices,
        workers=workers,
    )
    place = models.choose_device(device)
    check_run(out, resume, settings, place)
    watched = None if watch is None else Watch(read_picture(watch), out)
    begin = start(
        model or TASKS[task].model,
        len(known.classes),
        weights=weights,
        freeze=freeze,
        input_size=size_of(input_size),
        seed=seed,
    )
    check_network(out, resume, settings, begin, known.classes)
    train, validation, remarks, notes = known.load(begin.preprocess, progress=True)
    tell = typer.echo if is_first() else _silent
    for line in (*begin.notes, *notes, *remarks.lines()):
        tell(f"note: {line}", err=True)
    parameters = sum(p.numel() for p in begin.module.parameters())
    tell(
        f"{begin.architecture.name}: {parameters:,} parameters; {len(train):,} pictures to train "
        f"on, {len(validation):,} to validate on; classes {', '.join(known.classes[:10])}"
        + (" …" if len(known.classes) > 10 else "")
    )
    try:
        run = fit(
            begin,
            known.classes,
            train,
            validation,
            out,
            settings,
            resume=resume,
            device=place,
            progress=True,
            tell=tell,
            watch=watched,
            remarks=remarks.lines(None),
        )
    except KeyboardInterrupt:
        typer.echo("\nstopped; go on after the last finished epoch with --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not is_first():
        return
    found = outcome.judge(run.model.to(place), validation)
    typer.echo(
        f"the best epoch is {run.best}: {percent(found.accuracy, 1)} of {len(validation):,} "
        "held-out pictures are right"
    )
    page = write_page(
        out,
        f"What {begin.architecture.name} learnt",
        outcome.lead(run, found, len(train)),
        outcome.sections(run, found, validation, watched=resume or watched is not None),
    )
    typer.echo(f"open {page}; look further with --model {out}")
