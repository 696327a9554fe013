"""Numbers over steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchviz_cnn.errors import InputError
from torchviz_cnn.render.glyphs import lettered
from torchviz_cnn.render.text import fit


def curves_figure(
    curves: np.ndarray, labels: Sequence[str], *, x: str = "step", y: str = "", title: str = ""
) -> Figure:
    """Curves with their names, in one frame.

    Args:
        curves: ``(N, steps)``.
        labels: N names, in a list beside the frame; above 20 curves without one.
        x, y: what the axes are.
        title: a line above.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        InputError: for curves of another shape, or another number of names.

    Example:
        >>> import numpy as np
        >>> len(curves_figure(np.zeros((2, 9)), ["a", "b"]).axes[0].lines)
        2
    """
    if curves.ndim != 2 or len(curves) != len(labels) or not curves.size:
        raise InputError(f"{len(labels)} names were given for curves of shape {curves.shape}")
    figure = Figure(figsize=(7.5, 4.0))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    steps = np.arange(1, curves.shape[1] + 1)
    marker = "o" if curves.shape[1] == 1 else None
    lines = [axis.plot(steps, curve, linewidth=1.2, marker=marker)[0] for curve in curves]
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.grid(linewidth=0.3)
    if len(labels) <= 20:
        numbers = [str(index) for index in range(len(labels))]
        legend = figure.legend(lines, numbers, loc="outside right upper", fontsize=8, frameon=False)
        # Named afterwards: matplotlib leaves out what begins with _, and layers are called so.
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set_text(fit(label, 220, 11))
    if title:
        figure.suptitle(title, fontsize=11, wrap=True)
    return lettered(figure)
