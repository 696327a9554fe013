"""Words on pictures."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageDraw, ImageFont

from torchviz_cnn.render.glyphs import DEJAVU, line, runs

INK = (32, 32, 32)
PAPER = (255, 255, 255)


@lru_cache(maxsize=64)
def font(size: int = 12, path: str = DEJAVU) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along everywhere, or the font in another file."""
    return ImageFont.truetype(path, size)


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int = 12,
    fill: tuple[int, int, int] = INK,
) -> None:
    """A line of text, its upper left corner at a place; in another font what DejaVu has not."""
    x, y = place
    base = y + font(size).getmetrics()[0]
    for words, path in runs(text):
        face = font(size, path)
        draw.text((x, base), words, fill=fill, font=face, anchor="ls")
        x += face.getlength(words)


def text_width(text: str, size: int = 12) -> int:
    return int(sum(font(size, path).getlength(words) for words, path in runs(text))) + 1


def fit(text: str, width: int, size: int = 12) -> str:
    """The text in one legible line, cut with an ellipsis to at most ``width`` pixels."""
    text = line(text)
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def elide(text: str, width: int, size: int = 12) -> str:
    """The text in one legible line, cut to at most ``width`` pixels where it tells least: before its end.

    Names of layers and classes often begin alike, so twice as much is left of the end.

    Example:
        >>> elide("features.block_7.convolution.depthwise", 120)
        'featu…n.depthwise'
    """
    text = line(text)
    if text_width(text, size) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and text_width(_around(text, kept), size) > width:
        kept -= 1
    return _around(text, kept)


def _around(text: str, kept: int) -> str:
    start = kept // 3
    return f"{text[:start]}…{text[len(text) - kept + start :]}"


def inches(text: str, points: float) -> float:
    """How long a line of text is in a figure, at a size in points."""
    return text_width(text, 100) * points / 100 / 72


def wrap(text: str, width: int, size: int = 12) -> list[str]:
    """The text in lines of at most ``width`` pixels, broken between words; long words anywhere."""
    lines: list[str] = []
    pieces = [piece for word in text.split() for piece in _pieces(word, width, size)]
    for word in pieces:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _pieces(word: str, width: int, size: int) -> list[str]:
    """A word in pieces of at most ``width`` pixels, a dotted name where it has a dot if it can be."""
    pieces = []
    while len(word) > 1 and text_width(word, size) > width:
        end = len(word) - 1
        while end > 1 and text_width(word[:end], size) > width:
            end -= 1
        dot = max(word.rfind(mark, 1, end) for mark in "._/-")
        end = dot + 1 if dot > 0 else end
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]


def number(value: float) -> str:
    """A number short enough for a colour bar.

    >>> number(-0.0), number(12.345), number(-0.00123)
    ('0', '12.3', '-0.00123')
    """
    return f"{value + 0.0:.3g}"  # -0.0 + 0.0 is 0.0


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 in per cent; 0 and 100 only where it is just that.

    >>> percent(0.426), percent(1.0), percent(0.998), percent(1e-5), percent(0.9999, 1)
    ('43 %', '100 %', '>99 %', '<1 %', '>99.9 %')
    """
    words = f"{100 * share:.{digits}f}"
    step = 10.0**-digits
    if float(words) == 100 and share < 1:
        words = f">{100 - step:.{digits}f}"
    elif float(words) == 0 and share > 0:
        words = f"<{step:.{digits}f}"
    return f"{words} %"
