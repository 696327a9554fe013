"""``torchviz-cnn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchviz_cnn import demo, models
from torchviz_cnn.cli.options import ClassFile, Device, InputSize, Out, PreprocessMode, Weights
from torchviz_cnn.cli.speech import load_model, tell
from torchviz_cnn.files import check_folder
from torchviz_cnn.pictures import read_picture


def demo_command(
    picture: Annotated[
        Path | None, typer.Option(help="Your own picture, instead of a handwritten digit.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="For --picture.")] = "resnet50",
    weights: Weights = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="For --picture: class index or name.")
    ] = None,
    digit: Annotated[
        int, typer.Option(help="The digit to look at without --picture.", min=0, max=9)
    ] = 3,
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
    check_folder(out)
    if picture is None:
        page = demo.digits_demo(
            out, digit=digit, device=models.choose_device(device), progress=True, tell=tell
        )
    else:
        image = read_picture(picture)
        network = load_model(model, weights, preprocess, classes, input_size, device)
        wish = int(target) if target is not None and target.isdigit() else target
        page = demo.picture_demo(out, network, image, wish, progress=True, tell=tell)
    tell(f"open {page}")
