"""The kernels of a convolution: in colour where they see colours, else one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from torchviz_cnn.errors import InputError, check_counts
from torchviz_cnn.render.colormaps import DIVERGING, colorize
from torchviz_cnn.render.grids import enlarged, grid
from torchviz_cnn.render.paper import framed
from torchviz_cnn.render.text import PAPER, text_width, write
from torchviz_cnn.words import brief

KernelScale = Literal["filter", "layer"]

_SIDE = 36  # pixels of a kernel in a grid
_TABLE_SIDE = 18  # and in a table of filters and input channels
_GROUND = (226, 226, 226)
_LABEL = 11
_LINE = 14  # pixels that a number and the space around it take


def filters(
    weight: Tensor | np.ndarray,
    columns: int | None = None,
    colormap: str = DIVERGING,
    scale: KernelScale = "filter",
    *,
    rgb: bool | None = None,
    chosen: Sequence[int] | None = None,
    inputs: Sequence[int] | None = None,
    reasons: tuple[str, str] = ("", ""),
    title: str | None = None,
) -> Image.Image:
    """The kernels of a convolution as one picture, with their numbers and norms.

    Filters over three input channels are drawn in colour, gray where a weight is 0. Filters over
    one are a grid, all others a table: a row for each filter, a column for each input channel.

    Args:
        weight: ``(filters, input channels, h, w)``.
        columns: kernels in a row of a grid.
        colormap: of single kernels, any matplotlib name; its middle is 0.
        scale: ``"filter"``: each filter from −max|w| to max|w| of its own; ``"layer"``: all alike,
            with a colour bar. The picture says which.
        rgb: draw three input channels as red, green and blue; left out, wherever there are three.
        chosen: which filters, in which order; all by default.
        inputs: which input channels, in which order; all by default. For colour which three are
            red, green and blue, such as ``(2, 1, 0)`` for a network that takes blue first.
        reasons: why these filters, and why these input channels, where they are not all: a few
            words for the line below.
        title: a line above.

    Returns:
        An RGB image. Beside the number of each filter stands its norm, the root of the sum of its
        squared weights over all input channels, those not drawn included.

    Raises:
        InputError: for weights that are not four-dimensional, a filter or channel that is not
            there, a bad scale or colour map.

    Example:
        >>> import numpy as np
        >>> filters(np.random.default_rng(0).normal(size=(8, 3, 5, 5))).mode
        'RGB'
    """
    array = weight.detach().cpu().double().numpy() if isinstance(weight, Tensor) else weight
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(
            f"the kernels of a convolution are (filters, channels, h, w), not {array.shape}"
        )
    if not np.isfinite(array).all():
        broken = int((~np.isfinite(array)).any((1, 2, 3)).sum())
        raise InputError(
            f"{broken} of {len(array)} filters hold NaN or infinite weights, which cannot be drawn"
        )
    if scale not in ("filter", "layer"):
        raise InputError(f"scale must be 'filter' or 'layer', not {scale!r}")
    check_counts(columns=columns)
    in_colour = array.shape[1] == 3 if rgb is None else rgb
    if in_colour and array.shape[1] != 3:
        raise InputError(f"colours need 3 input channels, and these kernels have {array.shape[1]}")
    rows = picked(chosen, array.shape[0], "filter")
    seen = picked(inputs, array.shape[1], "input channel")
    if in_colour and len(seen) != 3:
        raise InputError(f"colours need 3 input channels, not {len(seen)}")
    norms = np.sqrt((array[rows] ** 2).sum((1, 2, 3)))
    kernels = array[np.ix_(rows, seen)]
    top = np.abs(kernels).max((1, 2, 3), keepdims=True)
    if scale == "layer":
        top = np.full_like(top, top.max())
    unit = kernels / np.where(top > 0, top, 1.0)  # −1…1 around 0

    labels = [f"{row}  ‖{brief(norm)}‖" for row, norm in zip(rows, norms, strict=True)]
    if in_colour:
        colors = np.rint((unit.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
        body = grid(_enlarged(colors, _SIDE), labels, columns)[0]
    elif len(seen) == 1:
        cells = _enlarged(colorize(unit[:, 0], colormap, -1.0, 1.0), _SIDE)
        body = grid(_outlined(cells), labels, columns)[0]
    else:
        colors = colorize(unit, colormap, -1.0, 1.0)
        body = _table(colors, labels, seen)
    limit = float(top.max())
    bar = (-limit, limit, colormap) if scale == "layer" and limit and not in_colour else None
    chosen_words = [
        f"{some} of {count} {what}{f', {reason}' if reason else ''}"
        for some, count, what, reason in (
            (len(rows), array.shape[0], "filters", reasons[0]),
            (len(seen), array.shape[1], "input channels", reasons[1]),
        )
        if some < count
    ]
    words = _words(
        array.shape, chosen_words, scale, table=len(seen) > 1, in_colour=in_colour, limit=limit
    )
    if in_colour:
        words = f"input channels {seen[0]}, {seen[1]}, {seen[2]} as red, green, blue; {words}"
    return framed(body, title, words, bar)[0]


def _words(
    shape: tuple[int, ...],
    chosen: Sequence[str],
    scale: KernelScale,
    *,
    table: bool,
    in_colour: bool,
    limit: float,
) -> str:
    height, width = shape[2:]
    words = [f"{height}×{width} kernels, ‖norm‖ of each filter", *chosen]
    if table and not in_colour:
        words.append("a row for each filter, a column for each input channel")
    zero = "gray is 0" if in_colour else "the middle of the colour map is 0"
    if scale == "filter":
        words.append(f"each filter from −max|w| to max|w| of its own; {zero}")
    else:
        words.append(f"one scale for all filters, ±{brief(limit)}; {zero}")
    return "; ".join(words)


def picked(wish: Sequence[int] | None, count: int, what: str) -> list[int]:
    """The numbers wished, or all.

    Raises:
        InputError: for one that is not there, or for none.
    """
    found = list(range(count)) if wish is None else list(wish)
    if wrong := [i for i in found if not 0 <= i < count]:
        raise InputError(f"there is no {what} {wrong[0]}: there are {count}, from 0")
    if not found:
        raise InputError(f"no {what} to draw")
    return found


def _enlarged(cells: np.ndarray, side: int) -> np.ndarray:
    """Cells ``(…, h, w, 3)`` magnified by a whole number to at least ``side`` pixels."""
    factor = max(1, math.ceil(side / max(cells.shape[-3:-1])))
    return enlarged(cells, factor)


def _outlined(cells: np.ndarray) -> np.ndarray:
    """With a gray line around: the middle of a diverging map is as white as paper."""
    margins = ((0, 0), (1, 1), (1, 1))
    planes = [
        np.pad(cells[..., c], margins, constant_values=shade) for c, shade in enumerate(_GROUND)
    ]
    return np.stack(planes, -1)


def _table(colors: np.ndarray, labels: Sequence[str], seen: Sequence[int]) -> np.ndarray:
    """Kernels ``(filters, channels, h, w, 3)`` in rows and columns with numbers at both sides."""
    single = colors.shape[2:4] == (1, 1)
    cells = _enlarged(colors, _LINE if single else _TABLE_SIDE)
    rows, columns, height, width, _ = cells.shape
    gap = 0 if single else 2
    # Every row and column is named, so each gets at least a line's height; numbers wider than
    # their column are turned.
    pitch_y, pitch_x = max(height + gap, _LINE), max(width + gap, _LINE)
    numbers = [_number_above(str(each)) for each in seen]
    turned = max(each.width for each in numbers) + 4 > pitch_x
    if turned:
        numbers = [each.transpose(Image.Transpose.ROTATE_90) for each in numbers]
    left = max(text_width(text, _LABEL) for text in labels) + 6
    top = max(each.height for each in numbers) + 3
    body = np.full((rows * pitch_y + gap, columns * pitch_x + gap, 3), _GROUND, np.uint8)
    down, along = (pitch_y - gap - height) // 2, (pitch_x - gap - width) // 2
    for row in range(rows):
        for column in range(columns):
            y, x = gap + down + row * pitch_y, gap + along + column * pitch_x
            body[y : y + height, x : x + width] = cells[row, column]
    canvas = Image.new("RGB", (left + body.shape[1], top + body.shape[0]), PAPER)
    canvas.paste(Image.fromarray(body), (left, top))
    for column, each in enumerate(numbers):
        # Turned ones end at the table; both stand in the middle of their column.
        x = left + gap + column * pitch_x + (pitch_x - gap - each.width) // 2
        canvas.paste(each, (x, top - 3 - each.height))
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(labels):
        y = top + gap + row * pitch_y + (pitch_y - gap - _LABEL - 3) // 2
        write(draw, (0, y), text, _LABEL)
    return np.asarray(canvas)


def _number_above(text: str) -> Image.Image:
    """A number on paper of its own, which can be turned."""
    paper = Image.new("RGB", (text_width(text, _LABEL), _LABEL + 2), PAPER)
    write(ImageDraw.Draw(paper), (0, -1), text, _LABEL)
    return paper
