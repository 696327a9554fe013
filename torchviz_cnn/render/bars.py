"""Numbers without a place, such as a dense layer's: bars for few, heat strips for many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from torchviz_cnn.errors import InputError, check_counts
from torchviz_cnn.render.colormaps import colorize
from torchviz_cnn.render.lost import LOST, lost, told
from torchviz_cnn.render.paper import framed
from torchviz_cnn.render.text import PAPER, fit, text_width, write
from torchviz_cnn.words import brief

MOST_BARS = 40


def units(
    values: Tensor | np.ndarray,
    colormap: str = "viridis",
    *,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    top: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """The outputs of a dense layer: labelled bars for up to 40 units, else a heat strip.

    Args:
        values: ``(units,)``.
        colormap: of the strip, any matplotlib name.
        labels: what each unit is about, printed after its number.
        names: what stands beside each bar instead of its number and label.
        top: only so many, those with the largest values, the largest first; as bars.
        title: a line above.

    Raises:
        InputError: for values that are not one-dimensional, or names or labels of another number.

    Example:
        >>> import numpy as np
        >>> units(np.arange(10.0)).mode
        'RGB'
    """
    check_counts(top=top)
    array = _as_units(values)
    order = np.argsort(-array, kind="stable")
    beside = _names(len(array), labels, names)
    low, high = _span(array)
    gone = told(lost(array), "units", "are")
    if top is not None and top < len(array):
        words = f"length is the unit's output; the {top} largest of {len(array)}"
        few = order[:top]
        body = _bars(array[few], [beside[i] for i in few])
        return framed(body, title, "; ".join([words, *gone]))[0]
    if len(array) <= MOST_BARS:
        words = "; ".join(["length is the unit's output", *gone])
        return framed(_bars(array, beside), title, words)[0]
    body, columns = _strip(array, colormap, low, high)
    first = ", ".join(f"{fit(beside[i], 180, 11)} ({brief(array[i])})" for i in order[:5])
    words = f"{len(array)} units, {columns} in a row; strongest: {first}"
    return framed(body, title, "; ".join([words, *gone]), (low, high, colormap))[0]


def units_before_and_after(
    before: Tensor | np.ndarray,
    after: Tensor | np.ndarray,
    colormap: str = "viridis",
    *,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    words: tuple[str, str] = ("before", "after"),
    title: str | None = None,
) -> Image.Image:
    """The same units before and after an activation, one above the other.

    Args:
        before, after: ``(units,)``. Up to 40 are drawn as bars, more as heat strips of one scale.
        colormap, labels, title: as for :func:`units`.
        names: what stands beside each bar, where the units are not all of a layer in order.
        words: what the upper and the lower drawing are.

    Raises:
        InputError: for values that do not pair, or names or labels of another number.

    Example:
        >>> import numpy as np
        >>> units_before_and_after(np.arange(-2.0, 2.0), np.array([0.0, 0.0, 0.0, 1.0])).mode
        'RGB'
    """
    a, b = _as_units(before), _as_units(after)
    if len(a) != len(b):
        raise InputError(f"{len(a)} units before and {len(b)} after are no pairs")
    beside = _names(len(a), labels, names)
    if len(a) <= MOST_BARS:
        # Each with a scale of its own: a score of 12 and a probability of 0.9 have no common one.
        bodies, foot, bar = (
            [_bars(a, beside), _bars(b, beside)],
            "each scaled to its own range",
            None,
        )
    else:
        low, high = _span(np.concatenate([a, b]))
        strips = [_strip(each, colormap, low, high) for each in (a, b)]
        bodies = [body for body, _ in strips]
        foot = f"{len(a)} units, {strips[0][1]} in a row, one scale for both"
        bar = (low, high, colormap)
    foot = "; ".join([foot, *told(lost(a) | lost(b), "units", "are")])
    return framed(_stacked(bodies, words), title, foot, bar)[0]


def _span(array: np.ndarray) -> tuple[float, float]:
    """The least and the largest number, or 0 where that lies beyond them."""
    finite = array[~lost(array)]
    return float(finite.min(initial=0.0)), float(finite.max(initial=0.0))


def _names(count: int, labels: Sequence[str] | None, names: Sequence[str] | None) -> list[str]:
    """The number of each unit, and its label where it says more; or the names as given."""
    if names is not None and len(names) != count:
        raise InputError(f"{len(names)} names were given for {count} units")
    if names is not None:
        return list(names)
    if labels is not None and len(labels) != count:
        raise InputError(f"{len(labels)} labels were given for {count} units")
    return [str(i) for i in range(count)] if labels is None else numbered(labels)


def numbered(labels: Sequence[str]) -> list[str]:
    """The number of each unit, and its label where it says more.

    Example:
        >>> numbered(["cat", "1"])
        ['0 cat', '1']
    """
    return [label if label == str(i) else f"{i} {label}" for i, label in enumerate(labels)]


def _stacked(bodies: Sequence[np.ndarray], words: Sequence[str]) -> np.ndarray:
    """Drawings one above the other, with a word above each."""
    line, gap = 17, 8
    width = max(body.shape[1] for body in bodies)
    height = sum(body.shape[0] + line + gap for body in bodies) - gap
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = 0
    for body, word in zip(bodies, words, strict=True):
        write(draw, (0, y), word, 12)
        canvas.paste(Image.fromarray(body), (0, y + line))
        y += line + body.shape[0] + gap
    return np.asarray(canvas)


def _as_units(values: Tensor | np.ndarray) -> np.ndarray:
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 1 or not array.size:
        raise InputError(f"the outputs of a dense layer are (units,), not {array.shape}")
    return array


def _strip(array: np.ndarray, colormap: str, low: float, high: float) -> tuple[np.ndarray, int]:
    """Units as small squares in rows, and how many are in a row."""
    # Small cells for many units, so that a flattened layer fills a screen and not a wall.
    columns, cell = 32, 12
    if len(array) > 128:
        columns = 2 ** math.ceil(math.log2(math.sqrt(2 * len(array))))
        cell = max(2, min(12, 640 // columns))
    rows = math.ceil(len(array) / columns)
    padded = np.full(rows * columns, np.nan, np.float32)
    padded[: len(array)] = array
    colors = colorize(padded, colormap, low, high)
    colors[: len(array)][lost(array)] = LOST
    colors[len(array) :] = PAPER
    return colors.reshape(rows, columns, 3).repeat(cell, 0).repeat(cell, 1), columns


def _bars(array: np.ndarray, names: Sequence[str]) -> np.ndarray:
    row, length = 18, 320
    low, high = _span(array)
    left = min(240, max(text_width(name, 11) for name in names)) + 8
    span = (high - low) or 1.0
    zero = left + round(-low / span * length)
    canvas = Image.new("RGB", (left + length + 70, row * len(array)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (value, name) in enumerate(zip(array.tolist(), names, strict=True)):
        y = index * row
        write(draw, (0, y + 2), fit(name, left - 8, 11), 11)
        if not math.isfinite(value):
            write(draw, (zero + 5, y + 2), brief(value), 11, LOST)
            continue
        end = zero + round(value / span * length)
        color = (49, 104, 142) if value >= 0 else (178, 60, 60)
        draw.rectangle((min(zero, end), y + 2, max(zero, end), y + row - 4), fill=color)
        words = brief(value) if abs(value) >= 1e-3 * span or not value else "≈ 0"
        write(draw, (max(zero, end) + 5, y + 2), words, 11)
    return np.asarray(canvas)
