"""The pictures of one network looking at one picture: every layer, every explanation.

What the command line and the demo write; each function returns pictures and writes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn import render
from torchviz_cnn.attribution import Attribution, PixelAttribution, WindowAttribution
from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import run
from torchviz_cnn.inputs import check_inputs
from torchviz_cnn.methods import METHODS
from torchviz_cnn.methods.registry import accepts
from torchviz_cnn.models import Model
from torchviz_cnn.naming import module_of
from torchviz_cnn.observe import activations
from torchviz_cnn.render.grids import Scale
from torchviz_cnn.summary import LayerInfo, layers


@dataclass(frozen=True)
class Prediction:
    """One line of a table of predictions."""

    index: int
    name: str
    probability: float


def predict(model: Model, inputs: Tensor, count: int = 5) -> list[list[Prediction]]:
    """The most probable classes of each image.

    Args:
        model: a classifier.
        inputs: ``(N, C, H, W)``.
        count: at most this many classes an image.

    Raises:
        InputError: for bad inputs, or an output that is not ``(N, classes)``.
    """
    module = module_of(model)
    inputs = check_inputs(model, module, inputs)
    with undisturbed(module, inputs):
        try:
            chances = run(module, inputs, sure=True).probabilities()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            shape = "×".join(map(str, inputs.shape[1:]))
            raise InputError(f"the network cannot take pictures of {shape}: {reason}") from error
    if chances.ndim == 1 or chances.shape[1] == 1:
        chances = chances.reshape(-1, 1)
        chances = torch.cat([1 - chances, chances], 1)
    if chances.ndim != 2:
        raise InputError(f"the network is no classifier: its output is {tuple(chances.shape)}")
    top = chances.topk(min(count, chances.shape[1]), 1)
    known = model.classes if model.classes and len(model.classes) == chances.shape[1] else None
    return [
        [
            Prediction(index, known[index] if known else str(index), probability)
            for index, probability in zip(indexes, values, strict=True)
        ]
        for indexes, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def predictions_table(predictions: Sequence[Prediction]) -> str:
    """Predictions as lines of text.

    >>> print(predictions_table([Prediction(630, "Loafer", 0.5)]))
       50.0 %  630  Loafer
    """
    digits = max(len(str(p.index)) for p in predictions)
    return "\n".join(
        f"  {100 * p.probability:5.1f} %  {p.index:{digits}d}"
        + (f"  {p.name}" if p.name != str(p.index) else "")
        for p in predictions
    )


def explain_with(
    names: Sequence[str],
    model: Model,
    inputs: Tensor,
    target: Any,
    options: dict[str, Any],
    *,
    skip: bool,
    tell: Callable[[str], None],
) -> dict[str, Attribution]:
    """Run several methods on the same images.

    Args:
        names: keys of ``METHODS``.
        model, inputs, target: as for every method.
        options: keyword arguments; each method gets those it knows.
        skip: leave out methods that cannot explain this network, and tell why.
        tell: is given a sentence for everything the user should know.

    Raises:
        InputError: when a method fails and ``skip`` is off, or when all do.
    """
    results: dict[str, Attribution] = {}
    for name in names:
        known = {key: value for key, value in options.items() if accepts(name, key)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                results[name] = METHODS[name](model, inputs, target, **known)
            except InputError as error:
                if not skip or (name == names[-1] and not results):
                    raise
                tell(f"{name} is left out: {error}")
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                tell(f"{name}: {warning.message}")
    return results


def map_picture(result: Attribution, *, index: int = 0, target: int = 0) -> Image.Image:
    """A heat map alone: gray for gradients, as in their papers; else coloured.

    A few pixels have gradients many times those of all others, beside which everything would be
    black: the hundredth part with the largest magnitudes is clipped.
    """
    values = result.one_heatmap(index, target)
    colormap, top = None, 1.0
    if isinstance(result, PixelAttribution):
        colormap = None if result.signed else "gray"
        top = float(np.quantile(np.abs(values), 0.99)) or 1.0
    low = -top if (values < 0).any() else 0.0
    colors = render.colorize(values, colormap or ("seismic" if low < 0 else "jet"), low, top)
    return Image.fromarray(colors)


def explanation_sheet(
    view: Image.Image,
    results: Sequence[Attribution],
    *,
    title: str,
    index: int = 0,
    target: int = 0,
    colormap: str | None = None,
    alpha: float = 0.4,
) -> Image.Image:
    """Overlays above, maps below, a column a method.

    Args:
        view: what the network saw, at a size to look at.
        results: of the methods, in order.
        title: a line above.
        index, target: which image and which of its targets.
        colormap, alpha: of the overlays.
    """
    overlays = [
        render.overlay(view, result.one_heatmap(index, target), colormap=colormap, alpha=alpha)
        for result in results
    ]
    maps = [
        map_picture(result, index=index, target=target).resize(view.size, Image.Resampling.BILINEAR)
        for result in results
    ]
    blank = Image.new("RGB", view.size, "white")
    names = [f"{r.method} ({r.layer})" if r.layer else r.method for r in results]
    return render.sheet(
        [[view, *overlays], [blank, *maps]],
        ["picture", *names],
        ["over the picture", "maps (of gradients without the largest hundredth)"],
        title=title,
    )


def probability_picture(
    view: Image.Image, result: WindowAttribution, *, index: int = 0, target: int = 0
) -> Image.Image:
    """The probability of the class with each place hidden, with numbers."""
    maps = result.probability_map()
    one = maps[index, target] if result.score.ndim == 2 else maps[index]
    figure = render.attribution_figure(
        one.float().cpu().numpy(),
        picture=view,
        title=f"occlusion: probability of class {result.label(index, target)}",
        unit="probability with the window hidden",
        colormap="viridis",
        span=(0.0, 1.0),
    )
    return figure_picture(figure)


def figure_picture(figure: Any, dpi: int = 100) -> Image.Image:
    """A matplotlib figure as an image."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def layer_picture(
    info: LayerInfo,
    output: Tensor,
    *,
    columns: int | None = None,
    colormap: str = "viridis",
    scale: Scale = "channel",
    top: int | None = None,
    classes: Sequence[str] | None = None,
) -> Image.Image | None:
    """What one layer put out for one image: a grid of maps, or bars for a dense layer.

    Args:
        info: the layer, for the title.
        output: ``(C, h, w)`` or ``(units,)``.
        columns, colormap, scale: of the grid, see :func:`torchviz_cnn.render.feature_maps`.
        top: only so many channels, those with the highest mean.
        classes: names of the units of a layer with as many.

    Returns:
        A picture; ``None`` for an output of another kind.
    """
    shape = "×".join(map(str, output.shape))
    title = f"{info.name} ({info.type}) {shape}"
    if output.ndim == 3:
        channels = None
        if top is not None and top < len(output):
            channels = output.mean((1, 2)).topk(top).indices.tolist()
            title += f", the {top} channels with the highest mean"
        return render.feature_maps(output, columns, colormap, scale, channels=channels, title=title)
    if output.ndim == 1:
        labels = classes if classes is not None and len(classes) == len(output) else None
        return render.units(output, colormap, labels=labels, title=title)
    return None


def layers_to_walk(model: Model) -> list[str]:
    """The layers worth a picture each: all of a small network, the stages of a deep one."""
    table = layers(model)
    if len(table) <= 40:
        return [row.name for row in table if row.calls]
    every = layers(model, nested=True)
    return [row.name for row in every if row.calls and row.depth == 0]


def walk_layers(
    model: Model, inputs: Tensor, names: str | Sequence[str]
) -> list[tuple[LayerInfo, Tensor]]:
    """The named layers' outputs for the first image, in the order they ran.

    Raises:
        InputError: for a layer that is not there or does not run.
    """
    table = layers(model, nested=True)
    found = activations(model, inputs, names)
    return [(table[name.partition("@")[0]], maps[0]) for name, maps in found.items()]
