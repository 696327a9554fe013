"""Gram matrices and their distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from torchviz_cnn.errors import InputError
from torchviz_cnn.render.glyphs import lettered
from torchviz_cnn.render.text import fit


def style_figure(
    layers: Sequence[str],
    grams: Sequence[tuple[np.ndarray, np.ndarray]],
    relative: np.ndarray,
    *,
    pictures: tuple[Image.Image, Image.Image] | None = None,
    names: tuple[str, str] = ("first", "second"),
) -> Figure:
    """Distances over the layers, and each layer's two Gram matrices with their difference.

    Args:
        layers: names.
        grams: of both pictures, ``(C, C)`` each.
        relative: ``(L,)``, from 0 to 1.
        pictures: shown at the left and right of the distances.
        names: of the two pictures.

    Returns:
        A figure of its own, not registered with pyplot. Each pair of matrices has one scale; roots
        are drawn, because a few products are a thousand times all others.

    Raises:
        InputError: for no layers, or another number of matrices or distances.

    Example:
        >>> import numpy as np
        >>> figure = style_figure(["conv"], [(np.eye(4), np.ones((4, 4)))], np.array([0.3]))
        >>> len(figure.axes)
        4
    """
    if not layers or not len(layers) == len(grams) == len(relative):
        raise InputError(f"{len(grams)} pairs of Gram matrices were given for {len(layers)} layers")
    count = len(layers)
    columns = max(2, count)
    figure = Figure(figsize=(max(7.0, 1.9 * columns + 0.9), 8.6))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.6, 6.0))
    top, bottom = halves
    _distances(top, layers, relative, pictures, names)
    panels = bottom.subplots(3, count, squeeze=False)
    for column, (layer, (a, b)) in enumerate(zip(layers, grams, strict=True)):
        roots = [np.sign(each) * np.sqrt(np.abs(each)) for each in (a, b)]
        most = max(float(np.quantile(np.abs(each), 0.995)) for each in roots) or 1.0
        signed = min(float(each.min()) for each in roots) < 0
        low, colors = (-most, "seismic") if signed else (0.0, "viridis")
        apart = np.sign(a - b) * np.sqrt(np.abs(a - b))
        for row, (matrix, colormap, least) in enumerate(
            [(roots[0], colors, low), (roots[1], colors, low), (apart, "seismic", -most)]
        ):
            axis = panels[row, column]
            axis.imshow(matrix, cmap=colormap, vmin=least, vmax=most, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        panels[0, column].set_title(f"{fit(layer, 130, 11)}\n{len(a)} channels", fontsize=8)
    for axis, words in zip(panels[:, 0], (*names, "difference"), strict=True):
        axis.set_ylabel(fit(words, 140, 11), fontsize=9)
    bottom.suptitle(
        "Gram matrices (which channels are active together; signed roots, one scale a layer)",
        fontsize=9,
    )
    return lettered(figure)


def _distances(
    place: Any,
    layers: Sequence[str],
    relative: np.ndarray,
    pictures: tuple[Image.Image, Image.Image] | None,
    names: tuple[str, str],
) -> None:
    if pictures is None:
        left, curve, right = None, place.subplots(), None
    else:
        left, curve, right = place.subplots(1, 3, width_ratios=(1, 2.2, 1))
        for axis, picture, name in zip((left, right), pictures, names, strict=True):
            axis.imshow(np.asarray(picture))
            axis.set_title(fit(name, 150, 11), fontsize=9)
            axis.set_axis_off()
    numbers = range(len(layers))
    curve.bar(numbers, relative, color="#31688e", width=0.6)
    for number, value in zip(numbers, relative, strict=True):
        curve.text(number, value + 0.015, f"{value:.2f}", ha="center", fontsize=8)
    curve.set_xticks(
        list(numbers),
        [fit(layer, 110, 11) for layer in layers],
        rotation=20,
        ha="right",
        fontsize=8,
    )
    curve.set_ylim(0, min(1.12, max(0.25, 1.25 * float(np.max(relative)))))
    curve.set_ylabel("relative distance", fontsize=9)
    curve.set_title("0: the same style, 1: nothing in common", fontsize=9)
    curve.grid(axis="y", linewidth=0.3)
    curve.set_axisbelow(True)
