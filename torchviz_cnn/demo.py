"""One command, one folder of pictures: what a trained CNN sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from torchviz_cnn import album, render
from torchviz_cnn.attribution import Align, Attribution, CellAttribution, WindowAttribution
from torchviz_cnn.data import Digits, digits
from torchviz_cnn.methods import METHODS
from torchviz_cnn.methods.registry import summary
from torchviz_cnn.models import Model
from torchviz_cnn.pictures import Picture
from torchviz_cnn.plates import sparsity_words
from torchviz_cnn.report import Plate, Section, write_page
from torchviz_cnn.summary import layers
from torchviz_cnn.training import accuracy, digits_model
from torchviz_cnn.walking import walk
from torchviz_cnn.words import percent

# A digit's stroke is about three pixels wide: smaller windows hide too little of it.
WINDOWS = {"window": 6, "stride": 2}


def as_picture(image: Tensor) -> Image.Image:
    """A gray tensor ``(1, H, W)`` from 0 to 1 as a picture."""
    return Image.fromarray((image[0] * 255).round().byte().cpu().numpy()).convert("RGB")


def digits_demo(
    folder: str | Path,
    *,
    digit: int = 3,
    device: str | torch.device = "cpu",
    progress: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train on the bundled digits (or fetch the network from the cache) and draw what it sees.

    Args:
        folder: where the pictures and ``index.html`` go.
        digit: which digit is looked at closely, 0 to 9.
        device: where the network runs; training is on the CPU.
        progress: show progress bars in a terminal.
        tell: is given a sentence about each step.

    Returns:
        The page's path.
    """
    data = digits()
    model, trained = digits_model(progress=progress)
    share = accuracy(model.module, data.test, data.test_labels)
    tell(
        f"{'trained' if trained else 'loaded from the cache'}: {model.source}; "
        f"{percent(share, 1)} of {len(data.test)} held-out digits are read correctly"
    )
    model = model.to(device)
    chosen = _examples(model, data)
    picture = as_picture(data.test[chosen[digit]])
    inputs = data.test[chosen[digit]][None].to(device)
    sections = picture_sections(
        model,
        picture,
        inputs,
        None,
        tell=tell,
        options={"progress": progress, **WINDOWS},
        align="receptive_field",
    )
    sections.append(_ten_digits(model, data, chosen))
    return write_page(
        folder,
        "What a CNN sees in a handwritten digit",
        f"The MNIST ConvNet, trained on scikit-learn's handwritten digits, reads "
        f"{percent(share, 1)} of {len(data.test)} digits it has never seen correctly. This is one of them, on its "
        "way through the network. Its training added to the usual loss a small price on what the "
        "last convolution puts out; without it some channels answer to empty paper, and maps of "
        "them show paper.",
        sections,
    )


def _examples(model: Model, data: Digits) -> list[int]:
    """For each digit the first held-out picture that is read correctly."""
    with torch.no_grad():
        guesses = model.module(data.test.to(model.device)).argmax(1).cpu()
    right = guesses == data.test_labels
    return [int(torch.nonzero(right & (data.test_labels == digit))[0]) for digit in range(10)]


def _ten_digits(model: Model, data: Digits, chosen: Sequence[int]) -> Section:
    inputs = data.test[list(chosen)].to(model.device)
    names = ["saliency", "guided_backprop", "grad_cam", "occlusion"]
    results = [
        METHODS[name](model, inputs, **(WINDOWS if name == "occlusion" else {})) for name in names
    ]
    views = [render.viewable(as_picture(data.test[which]), 112) for which in chosen]
    rows = [views]
    for result in results:
        heatmaps = [result.one_heatmap(i, align="receptive_field") for i in range(len(views))]
        rows.append(
            [
                render.overlay(view, heatmap, alpha=0.55, signed=result.signed)
                for view, heatmap in zip(views, heatmaps, strict=True)
            ]
        )
    sheet = render.sheet(rows, row_titles=["picture", *names], cell=112)
    return Section(
        "Ten digits",
        "One held-out example of every digit, and what speaks for it.",
        [
            Plate(
                "ten_digits.png", sheet, "Each column a digit, each row a method, over the picture."
            )
        ],
    )


def picture_demo(
    folder: str | Path,
    model: Model,
    picture: Picture,
    target: int | str | None = None,
    *,
    progress: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """The same for the user's picture and any network.

    Args:
        folder: where the pictures and ``index.html`` go.
        model: the network.
        picture: any picture.
        target: the class to explain; the top class by default.
        progress: show progress bars in a terminal.
        tell: is given a sentence about each step.

    Returns:
        The page's path.
    """
    inputs = model.prepare(picture)
    view = model.view(picture)
    sections = picture_sections(
        model,
        view,
        inputs,
        target,
        methods=[name for name in METHODS if name != "score_cam"],  # minutes: a pass a channel
        tell=tell,
        options={"progress": progress},
    )
    lead = f"One picture on its way through {model.source}."
    return write_page(folder, f"What {model.source} sees", " ".join([lead, *model.notes]), sections)


def picture_sections(
    model: Model,
    picture: Image.Image,
    inputs: Tensor,
    target: int | str | None,
    *,
    methods: Sequence[str] = tuple(METHODS),
    tell: Callable[[str], None],
    options: dict[str, Any],
    align: Align = "stretch",
) -> list[Section]:
    """Input, layers and explanations of one picture, as sections of a page.

    Args:
        model: the network.
        picture: what it sees, as a picture.
        inputs: the same as a batch of one.
        target: the class to explain; ``None`` for the top class.
        methods: by which it is explained.
        tell: is given a sentence about each step.
        options: for the methods that know them.
        align: how Grad-CAM's cells are laid over the picture.
    """
    view = render.viewable(picture)
    guesses = album.predict(model, inputs)[0]
    tell("the network says:\n" + album.predictions_table(guesses))
    results = album.explain_with(methods, model, inputs, target, options, skip=True, tell=tell)
    first = next(iter(results.values()))
    label = first.label()
    seen = walk(model, inputs, picture=picture)
    layer_plates = [
        Plate(f"layer_{name}.png", drawn, words) for name, drawn, words in seen.pictures()
    ]
    if (plot := seen.sparsity_picture()) is not None:
        layer_plates.append(Plate("sparsity.png", plot, f"{sparsity_words(seen)}."))
    return [
        Section(
            "The picture, and what the network says",
            f"What the network is shown, and its {len(guesses)} most probable classes.",
            [Plate("input.png", view, f"The input, {'×'.join(map(str, inputs.shape[1:]))}.")],
            album.predictions_table(guesses),
        ),
        Section(
            "The layers",
            "Every layer by name, the shape of what it puts out, and what it costs.",
            [],
            layers(model).format(width=100),
        ),
        Section(
            "What each layer puts out",
            "Early layers keep most of the picture and answer to edges and colours; deeper ones "
            "are smaller, sparser, and answer to parts.",
            layer_plates,
        ),
        _explanations(view, results, label, align),
    ]


def _explanations(
    view: Image.Image, results: dict[str, Attribution], label: str, align: Align
) -> Section:
    plates = []
    for name, result in results.items():
        figure = render.figure_picture(_figure(result, view, align))
        words = f"{name}: {summary(name)}"
        if isinstance(result, CellAttribution) and align == "receptive_field":
            words += " Each cell is drawn at the middle of what it sees."
        plates.append(Plate(f"{name}.png", figure, words))
        if isinstance(result, WindowAttribution) and result.target is not None:
            plates.append(
                Plate(
                    "occlusion_probability.png",
                    album.probability_picture(view, result),
                    f"The probability of class {label} with a window hidden there: low where the "
                    "network cannot do without what is under it. Each pixel is the mean over the "
                    "windows that hid it, at the lowest "
                    f"{percent(float(result.probability_map().min()), 1)}; with the one window "
                    "that matters most hidden it falls to "
                    f"{percent(float(result.hidden_probability().min()), 1)}.",
                )
            )
        if name in ("grad_cam", "occlusion"):
            heatmap = result.one_heatmap(align=align)
            plates.append(
                Plate(
                    f"{name}_masked.png",
                    render.masked(view, heatmap, keep=0.25),
                    f"What matters most to {name}, at most a quarter of the picture; the rest is hidden.",
                )
            )
    return Section(
        f"Why class {label}?",
        "The same question put in several ways. Gradients point at pixels, Grad-CAM at places, "
        "occlusion at what the score cannot do without.",
        plates,
    )


def _figure(result: Attribution, view: Image.Image, align: Align) -> Figure:
    return render.attribution_figure(
        result.one_map(align=align),
        picture=view,
        title=result.title(),
        unit=result.unit,
        signed=result.signed,
    )
