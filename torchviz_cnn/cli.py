"""The command line: parses, calls, prints. The work is done elsewhere."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from torchviz_cnn import album, demo, models, parity, plates, render
from torchviz_cnn.errors import InputError, NotApplicable, closest
from torchviz_cnn.files import (
    CannotWrite,
    all_or_nothing,
    check_folder,
    file_name,
    write_atomically,
)
from torchviz_cnn.inputs import network_failure
from torchviz_cnn.kernels import filters as find_filters
from torchviz_cnn.methods import METHODS
from torchviz_cnn.methods.maximization import maximize
from torchviz_cnn.methods.registry import accepts, shows_cells, source, summary
from torchviz_cnn.models import Model
from torchviz_cnn.options import (
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
    fill_of,
    pair_of,
    precision_of,
    scale_of,
    shape_of,
    size_of,
    span_of,
)
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.report import write_picture
from torchviz_cnn.retrieval import patches, pictures_in
from torchviz_cnn.summary import layers as layer_table
from torchviz_cnn.texture import style_distance
from torchviz_cnn.train_command import train_command
from torchviz_cnn.version import __version__
from torchviz_cnn.walking import layers_to_walk, walk_through

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


def _tell(sentence: str) -> None:
    typer.echo(sentence)


def _note(sentence: str) -> None:
    typer.echo(f"note: {sentence}", err=True)


def _model(
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
    for note in model.notes:
        _note(note)
    return model


def _stems(paths: Iterable[Path]) -> list[str]:
    """File stems, made different where two pictures have the same one."""
    return _different([path.stem for path in paths])


def _different(names: Iterable[str]) -> list[str]:
    """Names, numbered from the second of the same on."""
    taken: list[str] = []
    for name in names:
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.append(unique)
    return taken


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"torchviz_cnn {__version__}")
        raise typer.Exit


@app.command("layers")
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


@app.command("activations")
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
    network = _model(model, weights, preprocess, classes, input_size, device, keras)
    names = layers or layers_to_walk(network)
    for path, stem, picture in zip(images, _stems(images), pictures, strict=True):
        inputs = network.prepare(picture)
        _tell(f"{path}\n{album.predictions_table(album.predict(network, inputs)[0])}")
        seen = walk_through(
            network, inputs, names, whole=layers is None, picture=picture, target=target
        )
        for sentence in seen.left_out():
            _note(sentence)
        with all_or_nothing(out) as staging:
            drawn = plates.write(seen, drawing, staging, f"{stem}_", whole=layers is None)
        _tell(f"{drawn} pictures of layers in {out}")
        if layers is None:
            _tell(f"{plates.sparsity_words(seen)}\nopen {out / f'{stem}_walk.html'}")


@app.command("filters")
def filters_command(
    model: Annotated[str, typer.Argument(help="As for --model of the other commands.")],
    layer: Annotated[
        list[str],
        typer.Option("--layer", "-l", help="A convolution by name; may be repeated."),
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
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Draw the filters of convolutions: in colour where they see colours, else channel by channel.

    \b
    Examples:
      torchviz-cnn filters resnet50 --layer conv1
      torchviz-cnn filters vgg16 -l features.0 -l features.2 --top 16
      torchviz-cnn filters cat_dog -l conv2d_1 --no-rgb --scale layer --weights cat_dog.pt
    """
    check_folder(out)
    if scale not in ("filter", "layer"):
        raise InputError(f"--scale must be filter or layer, not {scale!r}")
    chosen = colormap or "seismic"
    render.check_colormap(chosen)
    network = _model(model, weights, None, None, None, "cpu")
    found = [find_filters(network, name) for name in layer]
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
        _tell(str(each))
    _tell(f"{len(found)} picture{'s' * (len(found) != 1)} of filters in {out}")


def _methods(wished: Sequence[str]) -> tuple[list[str], bool]:
    """The methods meant, and whether those that cannot be used may be left out."""
    for name in wished:
        if name not in METHODS and name != "all":
            raise InputError(
                f"there is no method {name!r}"
                + (closest(name, METHODS) or f"; choose from {', '.join(METHODS)}, or all")
            )
    if "all" in wished:
        return list(METHODS), True
    return list(dict.fromkeys(wished)), False


@app.command("explain")
def explain_command(
    images: Images,
    model: ModelName,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", help="May be repeated; all for every one.", show_default="grad_cam"
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Class index or name; may be repeated. The top class by default.",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="For the Grad-CAM family; may be repeated; found by running otherwise."),
    ] = None,
    weights: Weights = None,
    score: Annotated[str, typer.Option(help="logit or probability.")] = "logit",
    window: Annotated[
        str | None, typer.Option(help="For occlusion, pixels: 32 or HEIGHTxWIDTH.")
    ] = None,
    stride: Annotated[str | None, typer.Option(help="For occlusion, likewise.")] = None,
    fill: Annotated[
        str | None,
        typer.Option(help="For occlusion: a value, mean or blur.", show_default="0"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Pictures in one pass: for the Grad-CAM family and methods that vary the picture.",
            min=1,
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="For smooth_grad: noisy copies.", show_default="25", min=1)
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="For smooth_grad: share of the picture's range.", show_default="0.15"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="For integrated_gradients: points.", show_default="50", min=1),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="For integrated_gradients: a value, mean or blur.", show_default="0"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="For occlusion and score_cam: bfloat16 or float16, faster on a GPU."),
    ] = None,
    colormap: Colormap = None,
    alpha: Annotated[float, typer.Option(help="Weight of the map, 0 to 1.")] = 0.4,
    keep: Annotated[
        float | None,
        typer.Option(help="Also draw the picture with only this share visible, such as 0.25."),
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(
            help="Grad-CAM over the picture: stretch (as the papers) or receptive_field.",
            show_default="stretch",
        ),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--npz", help="Also write the values with a manifest, as .npz.")
    ] = False,
    preprocess: PreprocessMode = None,
    classes: ClassFile = None,
    input_size: InputSize = None,
    keras: KerasFile = None,
    device: Device = "auto",
    out: Out = Path("torchviz-cnn-out"),
) -> None:
    """Explain what a network sees: an overlay a method, and a sheet of them side by side.

    The pictures made of one image are written together, or none of them.

    \b
    Examples:
      torchviz-cnn explain cat.jpg --model resnet50
      torchviz-cnn explain *.jpg -m vgg16 --method all --target tabby --target 630
      torchviz-cnn explain cat.jpg -m resnet50 --method occlusion --window 48 --stride 16 --keep 0.2
      torchviz-cnn explain cat.jpg -m resnet50 --method layer_cam --layer layer2 --layer layer4
    """
    names, skip = _methods(method or ["grad_cam"])
    drawing = album.Drawing(colormap, alpha, keep, align or "stretch")
    drawing.check()
    options = {
        "layer": layer or None,
        "score": score,
        "window": pair_of(window, "--window"),
        "stride": pair_of(stride, "--stride"),
        "fill": fill_of(fill or "0"),
        "batch_size": batch_size,
        "baseline": fill_of(baseline or "0", "--baseline"),
        "dtype": precision_of(dtype),
        "progress": True,
    }
    given = {"samples": samples, "noise": noise, "steps": steps}
    options |= {key: value for key, value in given.items() if value is not None}
    _check_used(
        names,
        {
            "layer": layer or None,
            "window": window,
            "stride": stride,
            "fill": fill,
            "batch_size": batch_size,
            "samples": samples,
            "noise": noise,
            "steps": steps,
            "baseline": baseline,
            "dtype": dtype,
            "align": align,
        },
    )
    check_folder(out)
    pictures = [read_picture(path) for path in images]
    network = _model(model, weights, preprocess, classes, input_size, device, keras)
    bar = tqdm(
        zip(images, _stems(images), pictures, strict=True),
        total=len(images),
        desc="pictures",
        unit="picture",
        delay=2,
        leave=False,
        disable=None,
    )
    for path, stem, picture in bar:
        inputs = network.prepare(picture)
        question = None if not target else [list(target)] if len(target) > 1 else target[0]
        guesses = album.predict(network, inputs)[0]
        results = album.explain_with(
            names, network, inputs, question, options, skip=skip, tell=_note
        )
        tqdm.write(f"{path}\n{album.predictions_table(guesses)}")
        marks = [""]
        if target and len(target) > 1:
            marks = _different(f"_{file_name(each)}" for each in target)
        with all_or_nothing(out) as staging:
            for which, mark in enumerate(marks):
                label = next(iter(results.values())).label(0, which)
                tqdm.write(f"  explained: class {label}")
                drawn = album.explanation_pictures(
                    render.viewable(network.view(picture)),
                    results,
                    title=f"{path.name}, {network.source}, class {label}",
                    target=which,
                    drawing=drawing,
                )
                for name, image in drawn:
                    write_picture(staging, f"{stem}_{name.format(mark=mark)}.png", image)
            if numbers:
                for name, result in results.items():
                    result.save(staging / f"{stem}_{file_name(name)}.npz")
    _tell(f"pictures in {out}")


def _check_used(names: Sequence[str], given: dict[str, object]) -> None:
    """Refuse an option that none of the methods asked for knows."""
    for option, value in given.items():
        # align is not the method's, but its drawing's
        takes = shows_cells if option == "align" else partial(accepts, option=option)
        takers = [name for name in METHODS if takes(name)]
        if value is not None and not set(takers) & set(names):
            raise InputError(
                f"--{option.replace('_', '-')} is not for {', '.join(names)}, "
                f"but for {', '.join(takers)}"
            )


@app.command("compare")
def compare_command(
    file: Annotated[Path, typer.Argument(help="An ONNX file exported by Keras.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures to compare on, or a folder of them; noise otherwise."),
    ] = None,
    preprocess: PreprocessMode = None,
    keras: Annotated[
        Path | None,
        typer.Option(
            help="The .keras or .h5 file it was exported from: compare with Keras too, and take the "
            "layers' names from it where the ONNX file has none."
        ),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--torch",
            help="A torch network, as for --model of the other commands: compare with it too.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of the torch network: default, none (random), or a file."),
    ] = None,
    layer_names: Annotated[
        Path | None,
        typer.Option(help="Keras' layer names in order, one a line: checked against the file."),
    ] = None,
    explanations: Annotated[
        bool, typer.Option(help="Compare saliency and Grad-CAM too, on the first picture.")
    ] = True,
    input_size: InputSize = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for comparison.json and comparison.png."),
    ] = None,
) -> None:
    """Prove layer by layer that an imported network computes what its ONNX file does.

    The file is run by onnxruntime, the imported network by torch, and every layer's output is
    compared: up to 1e-4 of its largest value is the same, from 1e-3 on it differs and the exit
    code is 1. Then saliency and Grad-CAM are compared with slopes measured in the file.

    Layers of a torch network (--torch) are put beside those whose weights they have, in running
    order; both networks are given the same numbers, prepared by --preprocess.

    \b
    Examples:
      torchviz-cnn compare model.onnx
      torchviz-cnn compare vgg16.onnx --torch vgg16 --weights vgg16-397923af.pth
      torchviz-cnn compare model.onnx --images photos --preprocess caffe --out proof
      torchviz-cnn compare model.onnx --keras model.keras
    """
    if out is not None:
        check_folder(out)
    names = None if layer_names is None else models.read_classes(layer_names)
    pictures = [read_picture(path) for path in _pictures_in(images or [])]
    if weights is not None and other is None:
        raise InputError("--weights is of the network named by --torch: name one")
    chosen = models.choose_device(device)
    network = None if other is None else models.load(other, weights, device=chosen)
    model = models.load(
        str(file), preprocess=preprocess, input_size=size_of(input_size), device=chosen, keras=keras
    )
    told = [note for note in model.notes if pictures or "preprocessing" not in note]
    if network is not None:  # it is given what the imported one is given
        told += [note for note in network.notes if "preprocessing" not in note]
    for note in told:
        _note(note)
    inputs = model.preprocess(pictures) if pictures else None
    result = models.compare_file(file, model, inputs, names)
    _tell(result.format(None if sys.stdout.isatty() else 120))
    results = {"comparison": result}
    if keras is not None:
        results["keras"] = models.compare_file(file, model, inputs, keras=keras)
        _tell(results["keras"].format(None if sys.stdout.isatty() else 120))
    if network is not None:
        results["torch"] = models.compare_file(file, model, inputs, other=network)
        _tell(results["torch"].format(None if sys.stdout.isatty() else 120))
    agreed = []
    if explanations:
        first = (models.noise(model) if inputs is None else inputs)[:1]
        try:
            agreed = parity.compare_explanations(file, model, first.to(chosen))
        except NotApplicable as error:
            _note(f"explanations are not compared: {error}")
        for row in agreed:
            _tell(str(row))
    if out is not None:
        data = {
            **result.to_dict(),
            "keras": results["keras"].to_dict() if "keras" in results else None,
            "torch": results["torch"].to_dict() if "torch" in results else None,
            "explanations": [asdict(row) for row in agreed],
        }
        with all_or_nothing(out) as staging:
            write_atomically(
                staging / "comparison.json", lambda f: f.write(json.dumps(data, indent=1).encode())
            )
            for name, each in results.items():
                rows = [row for row in each.layers if row.relative is not None]
                figure = render.errors_figure(
                    [row.name for row in rows],
                    [row.relative for row in rows],
                    bounds=[(1e-4, "same"), (1e-3, "differs")],
                    title=f"{each.file}: the imported network beside {each.reference}",
                )
                write_picture(staging, f"{name}.png", album.figure_picture(figure))
        _tell(f"comparison.json and comparison.png in {out}")
    if not all(each.passed for each in (*results.values(), *agreed)):
        raise typer.Exit(1)


@app.command("export-keras")
def export_keras_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A Keras model's .keras or .h5 file.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The ONNX file to write.")],
    every_layer: Annotated[
        bool,
        typer.Option(
            "--every-layer",
            help="Keep batch norms apart from the convolutions before them: slower, but every "
            "layer can be looked at.",
        ),
    ] = False,
    input_shape: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTHxCHANNELS, where the model leaves it open."),
    ] = None,
) -> None:
    """Write a Keras model as an ONNX file that keeps its layers and their names.

    Runs where Keras and TensorFlow are installed; the file needs neither.

    \b
    Examples:
      torchviz-cnn export-keras cat_dog.keras cat_dog.onnx
      torchviz-cnn export-keras resnet50.h5 resnet50.onnx --every-layer
    """
    shape = None if input_shape is None else shape_of(input_shape, "--input-shape")
    done = models.export_file(source, target, every_layer=every_layer, input_shape=shape)
    _tell(f"{target}: {len(done.layers)} layers ({done.exporter})")
    if done.left_out:
        _tell(f"left out, for they do nothing outside training: {', '.join(done.left_out)}")
    if done.fused:
        _tell(
            f"merged with the batch norm after them: {len(done.fused)} convolutions, whose own "
            "output is not in the file (--every-layer keeps it)"
        )


def _pictures_in(paths: Sequence[Path]) -> list[Path]:
    """The files given, and those of the folders given."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
            if not files:
                raise InputError(f"there is no picture in the folder {str(path)!r}")
            found += files
        else:
            found.append(path)
    return found


@app.command("methods")
def methods_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the table of the README.")
    ] = False,
) -> None:
    """List the explanation methods, a sentence each."""
    if markdown:
        typer.echo("| method | what it shows | source |\n|---|---|---|")
    for name in METHODS:
        typer.echo(
            f"| `{name}` | {summary(name)} | {source(name)} |"
            if markdown
            else f"{name:18} {summary(name)}"
        )


@app.command("maximize")
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
    decay: Annotated[float, typer.Option(help="For fourier: more makes smoother pictures.")] = 1.5,
    rate: Annotated[
        float | None, typer.Option(help="Adam's learning rate.", show_default="0.05; pixels 0.02")
    ] = None,
    jitter: Annotated[
        int | None,
        typer.Option(help="Shifted by up to so many pixels.", min=0, show_default="side / 10"),
    ] = None,
    zoom: Annotated[str, typer.Option(help="Magnified by factors from LOW,HIGH.")] = "0.8,1.2",
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
    options = {
        "cell": cell_of(cell),
        "steps": steps,
        "seed": seed,
        "parametrization": parametrization,
        "decay": decay,
        "learning_rate": rate,
        "jitter": jitter,
        "scale": span_of(zoom, "--zoom"),
        "rotate": rotate,
        "l2": l2,
        "lp": lp,
        "total_variation": total_variation,
    }
    sides = pair_of(size, "--size")
    network = _model(model, weights, preprocess, classes, input_size, device)
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
    names = _different(file_name(label) for label in result.labels)
    with all_or_nothing(out) as staging:
        for index, (name, image) in enumerate(zip(names, result.images, strict=True)):
            write_picture(staging, f"maximize_{name}.png", image)
            first, last = float(result.history[index, 0]), float(result.value[index])
            _tell(f"{result.labels[index]}: from {first:.4g} to {last:.4g}")
            if guesses is not None:
                _tell(album.predictions_table(guesses[index]))
        sheet = album.figure_picture(result.figure())
        write_picture(staging, "maximize_objective.png", sheet)
        if len(result) > 1:
            write_picture(staging, "maximize_sheet.png", result.sheet())
        if numbers:
            result.save(staging / "maximize.npz")
    _tell(f"pictures in {out}")


@app.command("patches")
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
    classes: ClassFile = None,
    input_size: InputSize = None,
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
    network = _model(model, weights, preprocess, classes, input_size, device)
    with all_or_nothing(out) as staging:
        for number, each in enumerate(dict.fromkeys(channel)):
            found = patches(
                network, folder, layer, each, count=top, batch_size=batch_size, progress=True
            )
            if not number:
                for file, reason in found.skipped:
                    _note(f"{file} is left out: {reason}")
            _tell(f"{found.layer} {each}, of {found.pictures} pictures:\n{found.table()}")
            name = f"patches_{file_name(found.layer)}_{each}.png"
            write_picture(staging, name, found.sheet(columns))
    _tell(f"pictures in {out}")


@app.command("style")
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
    classes: ClassFile = None,
    input_size: InputSize = None,
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
    network = _model(model, weights, preprocess, classes, input_size, device)
    a, b = (network.prepare(picture) for picture in pictures)
    found = style_distance(network, a, b, layers or None)
    _tell(json.dumps(found.to_dict(), indent=1) if as_json else found.table())
    views = [render.viewable(network.view(picture)) for picture in pictures]
    figure = found.figure((views[0], views[1]), names=(first.name, second.name))
    names = "_".join(_stems([first, second]))
    with all_or_nothing(out) as staging:
        write_picture(staging, f"style_{names}.png", album.figure_picture(figure, 120))
    if not as_json:
        _tell(f"style_{names}.png in {out}")


@app.command("demo")
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
            out, digit=digit, device=models.choose_device(device), progress=True, tell=_tell
        )
    else:
        image = read_picture(picture)
        network = _model(model, weights, preprocess, classes, input_size, device)
        wish = int(target) if target is not None and target.isdigit() else target
        page = demo.picture_demo(out, network, image, wish, progress=True, tell=_tell)
    _tell(f"open {page}")


app.command("train")(train_command)


def main() -> None:
    """Run the command line; what the user did wrong is one sentence and exit code 2."""
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


def _told_warning(message: Warning | str, *_: object, **__: object) -> None:
    _note(str(message))


def _not_enough_memory(error: Exception) -> str | None:
    words = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in words:
        return "there is not enough memory for this; try a smaller --input-size or --batch-size"
    return None


def _fail(sentence: str) -> None:
    typer.echo(f"torchviz-cnn: {sentence}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
