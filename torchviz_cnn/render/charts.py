"""How a training went: curves over epochs, and what is taken for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchviz_cnn.errors import InputError
from torchviz_cnn.render.glyphs import lettered
from torchviz_cnn.render.text import elide, inches

_MEASURED = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy")
_POINTS = 10  # of the classes' names
_LONGEST = 250  # of a name, in units of 1/72 inch
_SLANT = 45  # degrees; of names below columns narrower than they


def training_curves(history: Sequence[Mapping[str, float]], *, best: int | None = None) -> Figure:
    """Loss and accuracy over epochs, of training and held-out pictures, side by side.

    Args:
        history: an epoch each, with ``epoch``, ``loss``, ``accuracy``, ``validation_loss`` and
            ``validation_accuracy``.
        best: an epoch to mark.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        InputError: for no epochs, or one without those five numbers.
    """
    if not history:
        raise InputError("there are no epochs to draw curves of")
    for number, each in enumerate(history, 1):
        if missing := [name for name in _MEASURED if name not in each]:
            raise InputError(f"epoch {number} of the history has no {', '.join(missing)}")
    figure = Figure(figsize=(10.0, 4.0))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    epochs = [each["epoch"] for each in history]
    for axis, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        factor = 100 if name == "accuracy" else 1
        for prefix, words in (("", "training"), ("validation_", "held out")):
            values = [factor * each[prefix + name] for each in history]
            axis.plot(epochs, values, marker="o", markersize=3, label=words)
        if best is not None:
            axis.axvline(best, color="0.6", linestyle="--", linewidth=1)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss" if name == "loss" else "accuracy, %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.25)
        axis.legend()
    return lettered(figure)


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """How many pictures of each class were taken for which; colours are shares of the row.

    Args:
        counts: ``(classes, classes)``, rows the class, columns what it was taken for.
        names: of the classes.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        InputError: unless there is one name a row.
    """
    many = len(names)
    if counts.shape != (many, many) or not many:
        raise InputError(f"{many} names do not fit a confusion matrix of shape {counts.shape}")
    side = min(27.0, max(2.2, 0.55 * many))
    numbered = many <= 40  # beyond, numbers and names would be dust
    labels = [elide(name, _LONGEST, _POINTS) for name in names] if numbered else []
    longest = max((inches(label, _POINTS) for label in labels), default=0.3)
    slanted = longest > 0.9 * side / many
    # Paper for the names as they lie, so that the matrix keeps its size.
    below = longest * math.sin(math.radians(_SLANT)) if slanted else 0.2
    figure = Figure(figsize=(side + longest + 1.6, side + below + 0.6))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axis, fraction=0.046, label="% of the class")
    if numbered:
        for row, column in np.ndindex(many, many):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, str(int(counts[row, column])), ha="center", va="center", color=ink
            )
        axis.set_xticks(range(many), labels, fontsize=_POINTS)
        if slanted:
            axis.tick_params(axis="x", rotation=_SLANT)
            for label in axis.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axis.set_yticks(range(many), labels, fontsize=_POINTS)
    axis.set_xlabel("the network says")
    axis.set_ylabel("it is")
    return lettered(figure)
