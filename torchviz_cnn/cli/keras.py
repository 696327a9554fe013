"""``torchviz-cnn compare`` and ``export-keras``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchviz_cnn import models, parity, render
from torchviz_cnn.cli.options import Device, InputSize, PreprocessMode, shape_of, size_of
from torchviz_cnn.cli.speech import note, tell
from torchviz_cnn.errors import InputError, NotInstalled
from torchviz_cnn.files import all_or_nothing, check_folder, write_atomically
from torchviz_cnn.models.model import AboutPictures, AboutSize
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.report import write_picture

if TYPE_CHECKING:
    from converters import Comparison


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
    if file.suffix.lower() not in (".onnx", *models.KERAS):  # those are told what to do instead
        raise InputError(
            f"{str(file)!r} is not an ONNX file: its name does not end in .onnx; a torch network to "
            "compare one with is named by --torch"
        )
    if out is not None:
        check_folder(out)
    names = None if layer_names is None else models.read_list(layer_names, "layer names")
    pictures = [read_picture(path) for path in _pictures_in(images or [])]
    if weights is not None and other is None:
        raise InputError("--weights is of the network named by --torch: name one")
    chosen = models.choose_device(device)
    network = None if other is None else models.load(other, weights, device=chosen)
    model = models.load(
        str(file), preprocess=preprocess, input_size=size_of(input_size), device=chosen, keras=keras
    )
    told = list(model.notes)
    if not pictures:  # of noise only the size is of interest
        told = [n for n in told if isinstance(n, AboutSize) or not isinstance(n, AboutPictures)]
    if network is not None:  # it is given what the imported one is given
        told += [n for n in network.notes if not isinstance(n, AboutPictures)]
    for sentence in told:
        note(sentence)
    inputs = model.preprocess(pictures) if pictures else None
    result = models.compare_file(file, model, inputs, names)
    tell(result.format(None if sys.stdout.isatty() else 120))
    results = {"comparison": result}
    if keras is not None:
        try:
            results["keras"] = models.compare_file(file, model, inputs, keras=keras)
            tell(results["keras"].format(None if sys.stdout.isatty() else 120))
        except NotInstalled as error:  # its file was read without it, and fits
            note(f"what Keras itself puts out is not compared: {error}")
    if network is not None:
        results["torch"] = models.compare_file(file, model, inputs, other=network)
        tell(results["torch"].format(None if sys.stdout.isatty() else 120))
    agreed = []
    if explanations:
        first = (models.noise(model) if inputs is None else inputs)[:1]
        try:
            agreed = parity.compare_explanations(file, model, first.to(chosen))
        except InputError as error:  # the layers were compared: no fault of the file's
            note(f"explanations are not compared: {error.typed}")
        for row in agreed:
            say = tell if row.reason is None else note
            say(str(row))
    if out is not None:
        drawn = _write_comparison(out, results, agreed)
        tell(f"comparison.json{' and comparison.png' if drawn else ''} in {out}")
    if not all(each.passed for each in (*results.values(), *agreed)):
        raise typer.Exit(1)


def _write_comparison(
    out: Path, results: dict[str, Comparison], agreed: Sequence[parity.ExplanationParity]
) -> bool:
    """Whether there were errors to draw: some layer's numbers on both sides."""
    drawn = False
    data = {
        **results["comparison"].to_dict(),
        "keras": results["keras"].to_dict() if "keras" in results else None,
        "torch": results["torch"].to_dict() if "torch" in results else None,
        "explanations": [row.to_dict() for row in agreed],
    }
    with all_or_nothing(out) as staging:
        write_atomically(
            staging / "comparison.json", lambda f: f.write(json.dumps(data, indent=1).encode())
        )
        for name, each in results.items():
            errors = {row.name: row.relative for row in each.layers if row.relative is not None}
            if not errors:
                continue
            drawn = True
            figure = render.errors_figure(
                list(errors),
                list(errors.values()),
                bounds=[(each.bounds.same, "same"), (each.bounds.fails, "differs")],
                title=f"{each.file}: the imported network beside {each.reference}",
            )
            write_picture(staging, f"{name}.png", render.figure_picture(figure))
    return drawn


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
    tell(f"{target}: {len(done.layers)} layers ({done.exporter})")
    if done.left_out:
        tell(f"left out, for they do nothing outside training: {', '.join(done.left_out)}")
    if done.fused:
        tell(
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
