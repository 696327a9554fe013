"""``torchviz-cnn explain`` and ``methods``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from torchviz_cnn import album, render
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
    fill_of,
    pair_of,
    precision_of,
)
from torchviz_cnn.cli.speech import different, load_model, note, stems, tell
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import all_or_nothing, check_folder, file_name
from torchviz_cnn.methods import METHODS
from torchviz_cnn.methods.registry import accepts, shows_cells, source, summary
from torchviz_cnn.methods.together import methods_meant
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.report import write_picture


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
        typer.Option(
            help="For the Grad-CAM family: a name or glob; may be repeated; found by running "
            "otherwise."
        ),
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
            help="Pictures in one pass; bounds the memory.",
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
    names, skip = methods_meant(method or ["grad_cam"])
    drawing = album.Overlays(colormap, alpha, keep, align or "stretch")
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
    network = load_model(model, weights, preprocess, classes, input_size, device, keras)
    bar = tqdm(
        zip(images, stems(images), pictures, strict=True),
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
            names, network, inputs, question, options, skip=skip, tell=note
        )
        tqdm.write(f"{path}\n{album.predictions_table(guesses)}")
        marks = [""]
        if target and len(target) > 1:
            marks = different(f"_{file_name(each)}" for each in target)
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
    tell(f"pictures in {out}")


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


def methods_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the table of the README.")
    ] = False,
) -> None:
    """List the explanation methods, a sentence each."""
    if markdown:
        typer.echo("| method | what it shows | source |\n|---|---|---|")
    width = max(map(len, METHODS))
    for name in METHODS:
        typer.echo(
            f"| `{name}` | {summary(name)} | {source(name)} |"
            if markdown
            else f"{name:{width}}  {summary(name)}"
        )
