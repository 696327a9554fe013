"""A drawing on paper: title above, words and a colour bar below."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from torchviz_cnn.render.colormaps import table
from torchviz_cnn.render.text import INK, PAPER, text_width, wrap, write
from torchviz_cnn.words import brief

MARGIN = 10


def framed(
    body: np.ndarray,
    title: str | None,
    words: str,
    bar: tuple[float, float, str] | None = None,
) -> tuple[Image.Image, int]:
    """A drawing on paper with its title above and its scale below; where the drawing begins.

    Args:
        body: ``(H, W, 3)`` bytes.
        title: a line above, wrapped to the width.
        words: below, wrapped likewise.
        bar: first number, last number and colour map of a colour bar; of one number twice, a map
            of which is drawn in the first colour, that colour alone.
    """
    width = max(body.shape[1], 260)
    title_lines = wrap(title, width, 14) if title else []
    top = MARGIN + 20 * len(title_lines)
    foot = wrap(words, width, 11)
    bar_height = 34 if bar else 0
    canvas = Image.new(
        "RGB",
        (width + 2 * MARGIN, top + body.shape[0] + 8 + 16 * len(foot) + bar_height + MARGIN),
        PAPER,
    )
    canvas.paste(Image.fromarray(body), (MARGIN, top))
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(title_lines):
        write(draw, (MARGIN, MARGIN - 4 + 20 * index), line, 14)
    y = top + body.shape[0] + 8
    for line in foot:
        write(draw, (MARGIN, y), line, 11)
        y += 16
    if bar:
        low, high, colormap = bar
        length = min(width, 240)
        flat = low == high
        ramp = table(colormap)[np.linspace(0, 0 if flat else 255, length).astype(int)]
        canvas.paste(
            Image.fromarray(np.broadcast_to(ramp, (10, length, 3)).copy()), (MARGIN, y + 2)
        )
        left, right = f"{brief(low)}{' everywhere' if flat else ''}", "" if flat else brief(high)
        write(draw, (MARGIN, y + 15), left, 11)
        write(draw, (MARGIN + length - text_width(right, 11), y + 15), right, 11)
        if low < 0 < high:
            x = MARGIN + round(-low / (high - low) * (length - 1))
            draw.line((x, y + 12, x, y + 15), fill=INK)
            zero = x - text_width("0", 11) // 2
            ends = (MARGIN + text_width(left, 11), MARGIN + length - text_width(right, 11))
            if ends[0] + 4 <= zero and zero + text_width("0", 11) + 4 <= ends[1]:
                write(draw, (zero, y + 15), "0", 11)
    return canvas, top
