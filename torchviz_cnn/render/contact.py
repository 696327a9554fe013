"""Many pictures, each with its own words, on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from torchviz_cnn.errors import InputError, check_counts
from torchviz_cnn.render.enlarge import fitted
from torchviz_cnn.render.text import PAPER, wrap, write

_LINE = 16
_GAP = 12


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    cell: int = 192,
    title: str = "",
) -> Image.Image:
    """Pictures in rows, with words under each.

    Args:
        pictures: any sizes; each is scaled to fit a square cell and keeps its shape. A row is as
            high as its highest picture with its words; upper edges are level.
        captions: one a picture; line breaks are kept, long lines wrapped.
        columns: pictures in a row; about as many as rows by default, at most 5.
        cell: side of a cell in pixels.
        title: a line above.

    Raises:
        InputError: for no pictures, or another number of captions.

    Example:
        >>> from PIL import Image
        >>> contact_sheet([Image.new("RGB", (8, 4))] * 3, ["a", "b", "c"], columns=3).width
        624
    """
    if not pictures or len(pictures) != len(captions):
        raise InputError(f"{len(captions)} captions were given for {len(pictures)} pictures")
    check_counts(columns=columns)
    columns = min(columns or min(5, math.ceil(math.sqrt(len(pictures)))), len(pictures))
    words = [
        [part for line in text.split("\n") for part in wrap(line, cell, 12)] for text in captions
    ]
    rows = [range(i, min(i + columns, len(pictures))) for i in range(0, len(pictures), columns)]
    width = columns * (cell + _GAP) + _GAP
    head = wrap(title, width - 2 * _GAP, 15) if title else []
    # A patch of a few pixels keeps them visible.
    scaled = [fitted(picture, cell, square_from=6) for picture in pictures]
    heights = [max(scaled[i].height + 4 + _LINE * len(words[i]) for i in row) for row in rows]
    top = _GAP + 22 * len(head)
    canvas = Image.new("RGB", (width, top + sum(heights) + _GAP * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(head):
        write(draw, (_GAP, _GAP - 4 + 22 * index), line, 15)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            x = _GAP + place * (cell + _GAP)
            canvas.paste(scaled[index], (x, y))
            foot = y + scaled[index].height + 3
            for below, text in enumerate(words[index]):
                write(draw, (x, foot + _LINE * below), text, 12)
        y += height + _GAP
    return canvas
