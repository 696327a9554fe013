"""Many small maps in one picture, drawn as one array: no axes, no plotting library in the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from torchviz_cnn.errors import InputError
from torchviz_cnn.render.colormaps import colorize, table
from torchviz_cnn.render.text import INK, PAPER, fit, font, number, text_width, wrap

Scale = Literal["channel", "layer"] | tuple[float, float]

_GAP = 4
_MARGIN = 10
_SMALLEST_CELL = 40
_WIDEST = 2400


def feature_maps(
    maps: Tensor | np.ndarray,
    columns: int | None = None,
    colormap: str = "gray",
    scale: Scale = "channel",
    *,
    channels: Sequence[int] | None = None,
    numbers: bool = True,
    title: str | None = None,
) -> Image.Image:
    """The feature maps of one layer as one picture, each with its channel number.

    Args:
        maps: ``(C, h, w)``.
        columns: maps in a row; about as many as rows by default.
        colormap: any matplotlib name.
        scale: what black and white mean. ``"channel"``: each channel's own minimum and maximum;
            ``"layer"``: those of all channels shown; ``(low, high)``: these numbers. The picture
            says which, and has a colour bar where the scale is one for all.
        channels: which channels, in which order; all by default.
        numbers: print channel numbers.
        title: a line above.

    Returns:
        An RGB image. Every cell shows its map in the same whole magnification; a channel that is
        the same everywhere is crossed out.

    Raises:
        InputError: for maps that are not three-dimensional, a channel that is not there, a bad
            scale or colour map.

    Example:
        >>> import numpy as np
        >>> feature_maps(np.random.default_rng(0).random((32, 26, 26)), columns=8).mode
        'RGB'
    """
    array = maps.detach().cpu().float().numpy() if isinstance(maps, Tensor) else np.asarray(maps)
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"feature maps of one picture are (C, h, w), not {array.shape}")
    array = array.astype(np.float32, copy=False)
    shown = list(range(len(array))) if channels is None else list(channels)
    if wrong := [c for c in shown if not 0 <= c < len(array)]:
        raise InputError(f"there is no channel {wrong[0]}: the layer has {len(array)}, from 0")
    if not shown:
        raise InputError("no channels to draw")
    array = array[shown]
    low, high, words = _scale(array, scale)
    array, cell = _fit_cells(array, columns)
    rows, columns = _layout(len(shown), columns, cell)

    colors = colorize(_unit(array, low, high), colormap)
    font_size = 11
    strip = font_size + 4 if numbers else 0
    needed = max(text_width(str(c), font_size) for c in shown) if numbers else 0
    pitch_x, pitch_y = max(cell[1], needed) + _GAP, cell[0] + strip + _GAP
    body = np.full((rows * pitch_y - _GAP, columns * pitch_x - _GAP, 3), PAPER, np.uint8)
    places = [(i // columns * pitch_y + strip, i % columns * pitch_x) for i in range(len(shown))]
    for (y, x), picture in zip(places, colors, strict=True):
        body[y : y + cell[0], x : x + cell[1]] = picture

    canvas, top = _framed(
        body, title, words, None if scale == "channel" else (float(low), float(high), colormap)
    )
    draw = ImageDraw.Draw(canvas)
    flat = array.reshape(len(array), -1)
    constant = flat.max(1) == flat.min(1)
    for index, (y, x) in enumerate(places):
        x, y = x + _MARGIN, y + top
        if numbers:
            draw.text((x, y - strip + 1), str(shown[index]), fill=INK, font=font(font_size))
        if constant[index]:
            draw.line((x, y, x + cell[1] - 1, y + cell[0] - 1), fill=(200, 60, 60))
    return canvas


def _scale(array: np.ndarray, scale: Scale) -> tuple[np.ndarray | float, np.ndarray | float, str]:
    if scale == "channel":
        return (
            array.min((1, 2), keepdims=True),
            array.max((1, 2), keepdims=True),
            "each channel from its own minimum to its own maximum",
        )
    if scale == "layer":
        return float(array.min()), float(array.max()), "one scale for all channels"
    if isinstance(scale, tuple | list) and len(scale) == 2 and scale[0] < scale[1]:
        return float(scale[0]), float(scale[1]), "one scale for all channels, clipped"
    raise InputError(f"scale must be 'channel', 'layer' or (low, high), not {scale!r}")


def _unit(array: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    span = np.where(np.asarray(high) > np.asarray(low), np.asarray(high) - low, 1.0)
    return (array - low) / span


def _fit_cells(array: np.ndarray, columns: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Small maps magnified by a whole number, large ones thinned, so that a grid fits a screen."""
    _, height, width = array.shape
    factor = max(1, math.ceil(_SMALLEST_CELL / max(width, height)))
    if factor > 1:
        array = array.repeat(factor, 1).repeat(factor, 2)
    per_row = columns or math.ceil(math.sqrt(len(array)))
    thin = math.ceil(per_row * (width + _GAP) / _WIDEST)
    if factor == 1 and thin > 1:
        height, width = height // thin * thin, width // thin * thin
        if height and width:
            array = array[:, :height, :width]
            array = array.reshape(len(array), height // thin, thin, width // thin, thin).mean(
                (2, 4)
            )
    return array, (array.shape[1], array.shape[2])


def _layout(count: int, columns: int | None, cell: tuple[int, int]) -> tuple[int, int]:
    if columns is None:
        # A power of two divides most channel counts; twice as wide as high suits a screen.
        columns = 2 ** math.ceil(math.log2(max(1.0, math.sqrt(count * cell[0] / cell[1]))))
        if count > 32:
            columns = max(columns, 8)
    if columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    columns = min(columns, count)
    return math.ceil(count / columns), columns


def _framed(
    body: np.ndarray,
    title: str | None,
    words: str,
    bar: tuple[float, float, str] | None,
) -> tuple[Image.Image, int]:
    """The grid on paper with its title above and its scale below; where the grid begins."""
    width = max(body.shape[1], 260)
    title_lines = wrap(title, width, 14) if title else []
    top = _MARGIN + 20 * len(title_lines)
    foot = wrap(words, width, 11)
    bar_height = 34 if bar else 0
    canvas = Image.new(
        "RGB",
        (width + 2 * _MARGIN, top + body.shape[0] + 8 + 16 * len(foot) + bar_height + _MARGIN),
        PAPER,
    )
    canvas.paste(Image.fromarray(body), (_MARGIN, top))
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(title_lines):
        draw.text((_MARGIN, _MARGIN - 4 + 20 * index), line, fill=INK, font=font(14))
    y = top + body.shape[0] + 8
    for line in foot:
        draw.text((_MARGIN, y), line, fill=INK, font=font(11))
        y += 16
    if bar:
        low, high, colormap = bar
        length = min(width, 240)
        ramp = table(colormap)[np.linspace(0, 255, length).astype(int)]
        canvas.paste(
            Image.fromarray(np.broadcast_to(ramp, (10, length, 3)).copy()), (_MARGIN, y + 2)
        )
        right = number(high)
        draw.text((_MARGIN, y + 15), number(low), fill=INK, font=font(11))
        draw.text(
            (_MARGIN + length - text_width(right, 11), y + 15), right, fill=INK, font=font(11)
        )
    return canvas, top


def units(
    values: Tensor | np.ndarray,
    colormap: str = "viridis",
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """The outputs of a dense layer: labelled bars for up to 40 units, else a heat strip.

    Args:
        values: ``(units,)``.
        colormap: of the strip, any matplotlib name.
        labels: a name for each unit.
        title: a line above.

    Raises:
        InputError: for values that are not one-dimensional, or labels of another length.

    Example:
        >>> import numpy as np
        >>> units(np.arange(10.0)).mode
        'RGB'
    """
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 1 or not array.size:
        raise InputError(f"the outputs of a dense layer are (units,), not {array.shape}")
    if labels is not None and len(labels) != len(array):
        raise InputError(f"{len(labels)} labels were given for {len(array)} units")
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    if len(array) <= 40:
        names = [
            str(i) if labels is None or labels[i] == str(i) else f"{i} {labels[i]}"
            for i in range(len(array))
        ]
        body = _bars(array, names, low, high)
        return _framed(body, title, "length is the unit's output", None)[0]
    # Small cells for many units, so that a flattened layer fills a screen and not a wall.
    columns, cell = 32, 12
    if len(array) > 128:
        columns = 2 ** math.ceil(math.log2(math.sqrt(2 * len(array))))
        cell = max(2, min(12, 640 // columns))
    rows = math.ceil(len(array) / columns)
    padded = np.full(rows * columns, np.nan, np.float32)
    padded[: len(array)] = array
    colors = colorize(padded, colormap, low, high)
    colors[len(array) :] = PAPER
    body = colors.reshape(rows, columns, 3).repeat(cell, 0).repeat(cell, 1)
    strongest = ", ".join(str(i) for i in np.argsort(array)[::-1][:5])
    words = f"{len(array)} units, {columns} in a row; strongest: {strongest}"
    return _framed(body, title, words, (low, high, colormap))[0]


def _bars(array: np.ndarray, names: Sequence[str], low: float, high: float) -> np.ndarray:
    row, length = 18, 320
    left = min(240, max(text_width(name, 11) for name in names)) + 8
    span = (high - low) or 1.0
    zero = left + round(-low / span * length)
    canvas = Image.new("RGB", (left + length + 70, row * len(array)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (value, name) in enumerate(zip(array.tolist(), names, strict=True)):
        y = index * row
        draw.text((0, y + 2), fit(name, left - 8, 11), fill=INK, font=font(11))
        end = zero + round(value / span * length)
        color = (49, 104, 142) if value >= 0 else (178, 60, 60)
        draw.rectangle((min(zero, end), y + 2, max(zero, end), y + row - 4), fill=color)
        words = number(value) if abs(value) >= 1e-3 * span or not value else "≈ 0"
        draw.text((max(zero, end) + 5, y + 2), words, fill=INK, font=font(11))
    return np.asarray(canvas)
