"""Which font has a character: names of classes, layers and files need not be Latin."""

from __future__ import annotations

import unicodedata
import warnings
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text

DEJAVU = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
MISSING = "□"  # drawn for what no font has


@lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[int]:
    """The code points a font has outlines of; none of a font that cannot be read."""
    try:
        face = get_font(path)
        return frozenset(face.get_charmap()) if face.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=4096)
def _other(character: str) -> tuple[str, str] | None:
    """Name and file of an installed font that has a character which DejaVu Sans has not."""
    upright = [each for each in fontManager.ttflist if each.style == "normal"]
    for entry in sorted(upright, key=lambda each: (each.weight != 400, each.name, each.fname)):
        # The font of last resort has a box for every character there is.
        if not entry.name.startswith("Last Resort") and ord(character) in _characters(entry.fname):
            return entry.name, entry.fname
    return None


def _is_usual(character: str) -> bool:
    return character.isascii() or ord(character) in _characters(DEJAVU)


def legible(text: str) -> str:
    r"""The text with a box for each character that no installed font has; told once.

    Control characters have no shape: they become spaces, and line breaks stay.

    >>> legible("très\tnet")
    'très net'
    """
    if text.isascii() and text.isprintable():
        return text
    shaped = "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)
    found = "".join(c if _is_usual(c) or _other(c) is not None else MISSING for c in shaped)
    if found != shaped:
        _tell()
    return found


def line(text: str) -> str:
    r"""The text, legible and in one line.

    >>> line("a name\nin two lines")
    'a name in two lines'
    """
    return legible(text).replace("\n", " ")


@lru_cache(maxsize=1)  # one note, however many pictures have such names
def _tell() -> None:
    warnings.warn(
        f"no installed font has some characters of these names, which are drawn as {MISSING}; "
        "install one that has them, such as Noto Sans CJK for Chinese, Japanese and Korean",
        stacklevel=2,
    )


def runs(text: str) -> list[tuple[str, str]]:
    """A legible line in parts, each with the file of a font that has it.

    >>> [words for words, _ in runs("très net")]
    ['très net']
    """
    text = line(text)
    if text.isascii():
        return [(text, DEJAVU)]
    parts = groupby(text, lambda character: _file_of(character))
    return [("".join(characters), path) for path, characters in parts]


def _file_of(character: str) -> str:
    found = None if _is_usual(character) else _other(character)
    return DEJAVU if found is None else found[1]


def lettered(figure: Figure) -> Figure:
    """The figure, its words in fonts that have them: else matplotlib warns of every character.

    Words at ticks, which matplotlib writes anew whenever it draws, must be :func:`legible` already.
    Names are no formulas: a ``$`` in one is drawn as it is.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        words = legible(text.get_text())
        found = [_other(character) for character in words if not _is_usual(character)]
        if words != text.get_text():
            text.set_text(words)
        if "$" in words and text.get_wrap():  # which looks for formulas whatever is said
            text.set_text(words.replace("$", r"\$"))
        elif "$" in words:  # the numbers at ticks, matplotlib's own formulas, are not there yet
            text.set_parse_math(False)
        if names := dict.fromkeys(other[0] for other in found if other is not None):
            text.set_fontfamily([*text.get_fontfamily(), *names])
    return figure
