"""What excites a unit most, found by ascent or among pictures; and styles compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from torchviz_cnn import album, render
from torchviz_cnn.cli.options import (
    ClassFile,
    Device,
    InputSize,
    KerasFile,
    ModelName,
    Out,
    PreprocessMode,
    Weights,
    cell_of,
    pair_of,
    span_of,
)
from torchviz_cnn.cli.speech import different, load_model, note, stems, tell
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import all_or_nothing, check_folder, file_name
from torchviz_cnn.methods.maximization import maximize
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.report import write_picture
from torchviz_cnn.retrieval import patches, pictures_in
from torchviz_cnn.texture import style_distance
from torchviz_cnn.words import brief


def maximize_command(
    model: Annotated[str, typer.Argument(help="As for --model of the other commands.")],
    layer: Annotated[str | None, typer.Option("--layer", "-l", help="Of the channels.")] = None,
    channel: Annotated[
        list[int] | None,
        typer.Option("--channel", "-k", help="Or a dense layer's unit; may be repeated."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--class", "-t", help="Class index or name; may be repeated."),
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help="A single unit of the channel: ROW,COLUMN or middle.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Of the picture: 128 or HEIGHTxWIDTH; the network's own else."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Another one, another picture.", min=0)] = 0,
    parametrization: Annotated[str, typer.Option(help="fourier or pixels.")] = "fourier",
    decay: Annotated[
        float | None,
        typer.Option(help="For fourier: more makes smoother pictures.", show_default="1.5"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--rate", help="Of Adam.", show_default="0.05; pixels 0.02")
    ] = None,
    jitter: Annotated[
        int | None,
        typer.Option(help="Shifted by up to so many pixels.", min=0, show_default="side / 10"),
    ] = None,
    scale: Annotated[
        str, typer.Option("--zoom", help="Magnified by factors from LOW,HIGH.")
    ] = "0.8,1.2",
    rotate: Annotated[float, typer.Option(help="Turned by up to so many degrees.")] = 10.0,
    l2: Annotated[
        float | None,
        typer.Option(help="Weight against strong colours.", show_default="6; pixels 3"),
    ] = None,
    lp: Annotated[float, typer.Option(help="Weight against extreme colours (6th powers).")] = 0.0,
    total_variation: Annotated[
        float | None,
        typer.Option(
            "--tv", help="Weight against differences of neighbours.", show_default="3; pixels 10"
        ),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--npz", help="Also write the values with a manifest, as .npz.")
    ] = False,
    weights: Weights = None,
    preprocess: PreprocessMode = None,
    classes: ClassFile = None,
    input_size: InputSize = None,
    keras: KerasFile = None,
    device: Device = "auto",
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Find the picture that excites a class, a channel or a unit most, by gradient ascent.

    \b
    Examples:
      torchviz-cnn maximize vgg16 --class flamingo --class zebra --size 128
      torchviz-cnn maximize resnet50 --layer layer2 --channel 130 --channel 131
      torchviz-cnn maximize mnist_convnet --weights digits.pt --class 3 --parametrization pixels
    """
    check_folder(out)
    if decay is not None and parametrization == "pixels":
        raise InputError("--decay is of a spectrum: it is for --parametrization fourier")
    options = {
        "cell": None if cell is None else cell_of(cell),
        "steps": steps,
        "seed": seed,
        "parametrization": parametrization,
        "learning_rate": learning_rate,
        "jitter": jitter,
        "scale": span_of(scale, "--zoom"),
        "rotate": rotate,
        "l2": l2,
        "lp": lp,
        "total_variation": total_variation,
    }
    if decay is not None:
        options["decay"] = decay
    sides = pair_of(size, "--size")
    network = load_model(model, weights, preprocess, classes, input_size, device, keras)
    wish = None if sides is None else (*network.input_size[:-2], *sides)
    result = maximize(
        network,
        layer=layer,
        channel=channel or None,
        target=target or None,
        input_size=wish,
        progress=True,
        **options,  # type: ignore[arg-type]
    )
    guesses = album.guesses(network, result.inputs)
    names = different(file_name(label) for label in result.labels)
    with all_or_nothing(out) as staging:
        for index, (name, image) in enumerate(zip(names, result.images, strict=True)):
            write_picture(staging, f"maximize_{name}.png", image)
            first, last = float(result.history[index, 0]), float(result.value[index])
            tell(f"{result.labels[index]}: from {brief(first, 4)} to {brief(last, 4)}")
            if guesses is not None:
                tell(album.predictions_table(guesses[index]))
        sheet = render.figure_picture(result.figure())
        write_picture(staging, "maximize_objective.png", sheet)
        if len(result) > 1:
            write_picture(staging, "maximize_sheet.png", result.sheet())
        if numbers:
            result.save(staging / "maximize.npz")
    tell(f"pictures in {out}")


def patches_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of pictures, with its folders.")],
    model: ModelName,
    layer: Annotated[str, typer.Option("--layer", "-l")],
    channel: Annotated[
        list[int],
        typer.Option("--channel", "-k", help="Or a dense layer's unit; may be repeated."),
    ],
    top: Annotated[int, typer.Option(help="So many patches.", min=1)] = 9,
    columns: Annotated[int | None, typer.Option(help="Patches in a row.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures in one pass.", min=1)] = None,
    weights: Weights = None,
    preprocess: PreprocessMode = None,
    input_size: InputSize = None,
    keras: KerasFile = None,
    device: Device = "auto",
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Find the parts of many pictures that excite a channel most, each cut out by what a unit sees.

    \b
    Examples:
      torchviz-cnn patches photos --model vgg16 --layer features.28 --channel 130
      torchviz-cnn patches photos -m resnet50 -l layer2 -k 5 -k 17 --top 16
    """
    check_folder(out)
    pictures_in(folder)  # before a network is loaded
    network = load_model(model, weights, preprocess, None, input_size, device, keras)
    every = patches(
        network,
        folder,
        layer,
        list(dict.fromkeys(channel)),
        count=top,
        batch_size=batch_size,
        progress=True,
    )
    for file, reason in every[0].skipped:
        note(f"{file} is left out: {reason}")
    with all_or_nothing(out) as staging:
        for found in every:
            tell(f"{found.layer} {found.channel}, of {found.pictures} pictures:\n{found.table()}")
            name = f"patches_{file_name(found.layer)}_{found.channel}.png"
            write_picture(staging, name, found.sheet(columns))
    tell(f"pictures in {out}")


def style_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A picture file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    model: ModelName,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            "-l",
            help="Names or globs; may be repeated. By default the first convolution of each size.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The table as data.")] = False,
    weights: Weights = None,
    preprocess: PreprocessMode = None,
    input_size: InputSize = None,
    keras: KerasFile = None,
    device: Device = "auto",
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Compare the styles of two pictures, layer by layer: Gram matrices and their distances.

    \b
    Examples:
      torchviz-cnn style photo.jpg painting.jpg --model vgg16
      torchviz-cnn style a.jpg b.jpg -m resnet18 -l layer1 -l layer2
    """
    check_folder(out)
    pictures = [read_picture(path) for path in (first, second)]
    network = load_model(model, weights, preprocess, None, input_size, device, keras)
    a, b = (network.prepare(picture) for picture in pictures)
    found = style_distance(network, a, b, layers or None)
    tell(json.dumps(found.to_dict(), indent=1) if as_json else found.table())
    views = [render.viewable(network.view(picture)) for picture in pictures]
    figure = found.figure((views[0], views[1]), names=(first.name, second.name))
    names = "_".join(stems([first, second]))
    with all_or_nothing(out) as staging:
        write_picture(staging, f"style_{names}.png", render.figure_picture(figure, 120))
    if not as_json:
        tell(f"style_{names}.png in {out}")
