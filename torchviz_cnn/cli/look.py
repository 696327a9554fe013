"""Layers, what they put out, and their filters."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from torchviz_cnn import album, models, plates, render
from torchviz_cnn.cli.options import (
    ClassFile,
    Colormap,
    Device,
    Images,
    InputSize,
    KerasFile,
    ModelName,
    Out,
    PreprocessMode,
    Weights,
    cell_of,
    scale_of,
    size_of,
)
from torchviz_cnn.cli.speech import load_model, note, stems, tell
from torchviz_cnn.errors import InputError
from torchviz_cnn.fields import fields_table, receptive_fields
from torchviz_cnn.files import all_or_nothing, check_folder, file_name
from torchviz_cnn.head import NoScores
from torchviz_cnn.kernels import Filters, convolutions
from torchviz_cnn.kernels import filters as find_filters
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.report import write_picture
from torchviz_cnn.summary import layers as layer_table
from torchviz_cnn.walking import layers_to_walk, walk_through
from torchviz_cnn.words import counted


def layers_command(
    model: Annotated[str, typer.Argument(help="As for --model of the other commands.")],
    weights: Weights = None,
    input_size: InputSize = None,
    every: Annotated[bool, typer.Option("--all", help="Containers and parts too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
    keras: KerasFile = None,
    device: Device = "auto",
) -> None:
    """Print a network's layers: names, shapes, parameters, multiply-adds, calls.

    \b
    Examples:
      torchviz-cnn layers vgg16
      torchviz-cnn layers cat_dog --all
      torchviz-cnn layers mypackage.nets:build --input-size 1x64x64 --json
    """
    chosen = models.choose_device(device)
    if weights is None and not models.holds_weights(model):
        weights = "none"  # the table does not depend on them
    loaded = models.load(model, weights, input_size=size_of(input_size), device=chosen, keras=keras)
    table = layer_table(loaded, nested=every)
    if as_json:
        typer.echo(json.dumps(table.to_dicts(), indent=1))
        return
    typer.echo(table.format() if sys.stdout.isatty() else table.format(width=120))


def activations_command(
    images: Images,
    model: ModelName,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            "-l",
            help="Names or globs, such as conv1 or 'features.*'; may be repeated. "
            "By default the whole walk: every layer of a small network, every stage of a deep one, "
            "the activations between them, sparsity over depth, and a page of it all.",
        ),
    ] = None,
    weights: Weights = None,
    top: Annotated[int | None, typer.Option(help="Only so many channels, see --by.", min=1)] = None,
    by: Annotated[
        str,
        typer.Option(help="Which ones: highest mean, max, variance, or weight for --target."),
    ] = "mean",
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Class index or name, for --by weight.")
    ] = None,
    channel: Annotated[
        list[int] | None,
        typer.Option("--channel", "-k", help="Draw this channel alone, large; may be repeated."),
    ] = None,
    over: Annotated[bool, typer.Option("--over", help="--channel over the picture.")] = False,
    columns: Annotated[int | None, typer.Option(help="Maps in a row.", min=1)] = None,
    colormap: Colormap = "viridis",
    scale: Annotated[
        str,
        typer.Option(help="channel (each its own minimum and maximum), layer, or LOW,HIGH."),
    ] = "channel",
    preprocess: PreprocessMode = None,
    classes: ClassFile = None,
    input_size: InputSize = None,
    keras: KerasFile = None,
    device: Device = "auto",
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Draw what the layers put out: one picture a layer, every channel numbered.

    Activations and poolings are drawn beside what reached them. Without --layers the walk through
    the whole network is written, with a page of it, PICTURE_walk.html.

    \b
    Examples:
      torchviz-cnn activations cat.jpg --model vgg16 --layers 'features.*'
      torchviz-cnn activations cat.jpg -m resnet50 -l conv1 -l layer1 --top 16 --colormap gray
      torchviz-cnn activations cat.jpg -m resnet50 -l layer4 --top 9 --by weight --target tabby
      torchviz-cnn activations cat.jpg -m cat_dog -l conv2d_1 --channel 6 --channel 15 --over
    """
    check_folder(out)
    pictures = [read_picture(path) for path in images]
    drawing = plates.Drawing(
        colormap or "viridis", scale_of(scale), columns, top, by, channel, over
    )
    drawing.check()
    if (by == "weight") != (target is not None):
        raise InputError("--by weight and --target belong together: give both, or none of them")
    network = load_model(model, weights, preprocess, classes, input_size, device, keras)
    names = layers or layers_to_walk(network)
    for path, stem, picture in zip(images, stems(images), pictures, strict=True):
        inputs = network.prepare(picture)
        seen = walk_through(  # first of all: it knows whether what was asked for is there
            network, inputs, names, whole=layers is None, picture=picture, target=target
        )
        tell(str(path))
        try:
            tell(album.predictions_table(album.predict(network, inputs)[0]))
        except NoScores as reason:  # its layers can be looked at all the same
            note(f"no classes are told: {reason.typed}")
        for sentence in seen.left_out():
            note(sentence)
        with all_or_nothing(out) as staging:
            drawn = plates.write(seen, drawing, staging, f"{stem}_", whole=layers is None)
        tell(f"{counted(drawn, 'picture')} of layers in {out}")
        if layers is None:
            tell(f"{plates.sparsity_words(seen)}\nopen {out / f'{stem}_walk.html'}")


def field_command(
    model: Annotated[str, typer.Argument(help="As for --model of the other commands.")],
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", "-l", help="Names or globs; may be repeated. Every layer by default."
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the fields of --cell on it, a picture a layer.")
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="ROW,COLUMN of a unit, or middle; may be repeated.", show_default="middle"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
    input_size: InputSize = None,
    keras: KerasFile = None,
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Print what the units of each layer see of the picture: their receptive fields, in pixels.

    \b
    Examples:
      torchviz-cnn field vgg16
      torchviz-cnn field resnet50 -l layer2 -l layer3 --picture cat.jpg
      torchviz-cnn field cat_dog -l conv2d_4 --picture cat.jpg --cell 0,0 --cell 8,8 --json
    """
    if cell and (picture is None or not layers):
        raise InputError("--cell says what to draw: give --picture and --layers too")
    if picture is not None and not layers:
        raise InputError("--picture needs --layers: which units are to be drawn?")
    places = [cell_of(each) for each in cell or ["middle"]]
    image = None
    if picture is not None:
        check_folder(out)
        image = read_picture(picture)
    weights = None if models.holds_weights(model) else "none"  # fields do not depend on them
    loaded = models.load(model, weights, input_size=size_of(input_size), device="cpu", keras=keras)
    fields = receptive_fields(loaded, layers)
    known = [each for each in fields.values() if each is not None]
    if image is not None and not known:
        raise InputError("what these layers see is not known, so nothing can be drawn")
    if as_json:
        typer.echo(json.dumps({name: f and f.to_dict() for name, f in fields.items()}, indent=1))
    else:
        tell(fields_table(fields))
    if image is None or picture is None:
        return
    with all_or_nothing(out) as staging:
        for each in known:
            cells = [each.cell(place) for place in places]
            name = f"{picture.stem}_field_{file_name(each.layer)}.png"
            write_picture(staging, name, each.draw(image, cells))
    if not as_json:
        tell(f"{counted(len(known), 'picture')} in {out}")


def filters_command(
    model: Annotated[str, typer.Argument(help="As for --model of the other commands.")],
    layer: Annotated[
        list[str],
        typer.Option("--layer", "-l", help="A convolution by name, or a glob; may be repeated."),
    ],
    weights: Weights = None,
    top: Annotated[
        int | None, typer.Option(help="Only so many filters, those with the largest norm.", min=1)
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Kernels in a row.", min=1)] = None,
    colormap: Colormap = None,
    scale: Annotated[
        str, typer.Option(help="filter (each from -max|w| to max|w| of its own) or layer.")
    ] = "filter",
    rgb: Annotated[
        bool | None,
        typer.Option(help="Three input channels as one colour picture; on where there are three."),
    ] = None,
    bgr: Annotated[
        bool, typer.Option("--bgr", help="The network takes blue first, as Keras' caffe mode.")
    ] = False,
    keras: KerasFile = None,
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Draw the filters of convolutions: in colour where they see colours, else channel by channel.

    \b
    Examples:
      torchviz-cnn filters resnet50 --layer conv1
      torchviz-cnn filters vgg16 -l 'features.*' --top 16
      torchviz-cnn filters cat_dog -l conv2d_1 --no-rgb --scale layer --weights cat_dog.pt
    """
    check_folder(out)
    if scale not in ("filter", "layer"):
        raise InputError(f"--scale must be filter or layer, not {scale!r}")
    chosen = colormap or "seismic"
    render.check_colormap(chosen)
    network = load_model(model, weights, None, None, None, "cpu", keras, pictures=False)
    named = dict.fromkeys(name for each in layer for name in convolutions(network, each))
    found = [find_filters(network, name) for name in named]
    _check_used(found, rgb, colormap=colormap, columns=columns, bgr=bgr)
    with all_or_nothing(out) as staging:
        for each in found:
            each.save(
                staging / f"filters_{file_name(each.layer)}.png",
                top=top,
                columns=columns,
                colormap=chosen,
                scale=scale,
                rgb=rgb,
                inputs=(2, 1, 0) if bgr and each.weight.shape[1] == 3 else None,
            )
    for each in found:
        tell(str(each))
    tell(f"{counted(len(found), 'picture')} of filters in {out}")


def _check_used(
    found: Sequence[Filters],
    rgb: bool | None,
    *,
    colormap: str | None,
    columns: int | None,
    bgr: bool,
) -> None:
    """Refuse an option that says nothing about any of the pictures asked for."""
    channels = [each.weight.shape[1] for each in found]
    coloured = [count == 3 and rgb is not False for count in channels]
    if colormap is not None and all(coloured):
        raise InputError(
            "--colormap is for kernels drawn channel by channel, and these are drawn in red, green "
            "and blue; --no-rgb draws them channel by channel"
        )
    grids = [colour or count == 1 for colour, count in zip(coloured, channels, strict=True)]
    if columns is not None and not any(grids):
        raise InputError(
            "--columns is for grids of kernels, and these are drawn as a table: a row for each "
            "filter, a column for each input channel"
        )
    if bgr and 3 not in channels:
        raise InputError(
            f"--bgr is for kernels that see three colours, and these see "
            f"{', '.join(map(str, dict.fromkeys(channels)))} input channels"
        )
