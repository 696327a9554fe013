"""``torchviz-cnn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchviz_cnn import demo, models
from torchviz_cnn.cli.options import ClassFile, Device, InputSize, Out, PreprocessMode, Weights
from torchviz_cnn.cli.speech import load_model, tell
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import check_folder
from torchviz_cnn.pictures import read_picture


def demo_command(
    picture: Annotated[
        Path | None, typer.Option(help="Your own picture, instead of a handwritten digit.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="For --picture.", show_default="resnet50"),
    ] = None,
    weights: Weights = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="For --picture: class index or name.")
    ] = None,
    digit: Annotated[
        int | None,
        typer.Option(
            help="The digit to look at without --picture.", min=0, max=9, show_default="3"
        ),
    ] = None,
    preprocess: PreprocessMode = None,
    classes: ClassFile = None,
    input_size: InputSize = None,
    device: Device = "auto",
    out: Out = Path("torchviz-cnn-demo"),
) -> None:
    """Show everything at once: a folder of pictures and a page, index.html.

    Without a picture it needs no network: it trains a small CNN on the handwritten digits that come
    with scikit-learn (once, in about a minute) and looks inside it.

    \b
    Examples:
      torchviz-cnn demo
      torchviz-cnn demo --picture cat.jpg --model resnet50
      torchviz-cnn demo --picture cat.jpg --model vgg16 --weights vgg16-397923af.pth
    """
    for_pictures = {
        "--model": model,
        "--weights": weights,
        "--target": target,
        "--preprocess": preprocess,
        "--classes": classes,
        "--input-size": input_size,
    }
    for option, value in for_pictures.items():
        if picture is None and value is not None:
            raise InputError(
                f"{option} is for a picture of yours, named with --picture; without one the demo "
                "shows its own network and a handwritten digit"
            )
    if picture is not None and digit is not None:
        raise InputError("--digit is for the demo without --picture; leave one of them out")
    check_folder(out)
    if picture is None:
        page = demo.digits_demo(
            out,
            digit=3 if digit is None else digit,
            device=models.choose_device(device),
            progress=True,
            tell=tell,
        )
    else:
        image = read_picture(picture)
        network = load_model(model or "resnet50", weights, preprocess, classes, input_size, device)
        page = demo.picture_demo(out, network, image, target, progress=True, tell=tell)
    tell(f"open {page}")
