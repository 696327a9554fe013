"""Pictures at a size at which they can be looked at."""

from __future__ import annotations

from PIL import Image


def viewable(image: Image.Image, least: int = 336, most: int = 1024) -> Image.Image:
    """Small pictures magnified by a whole number, pixel by pixel; large ones scaled down.

    Args:
        image: any picture.
        least: the longer side shall have at least about this many pixels,
        most: and at most this many.

    Example:
        >>> from PIL import Image
        >>> viewable(Image.new("RGB", (28, 28))).size, viewable(Image.new("RGB", (4000, 1000))).size
        ((336, 336), (1024, 256))
    """
    longer = max(image.size)
    if longer > most:
        factor = most / longer
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(size, Image.Resampling.LANCZOS)
    times = max(1, round(least / longer))
    size = (image.width * times, image.height * times)
    return image if times == 1 else image.resize(size, Image.Resampling.NEAREST)


def fitted(picture: Image.Image, cell: int, *, square_from: float) -> Image.Image:
    """A picture scaled so that its longer side is ``cell`` pixels; others are averaged.

    Args:
        picture: any.
        cell: in pixels.
        square_from: magnified so many times or more, its pixels stay squares.

    Example:
        >>> from PIL import Image
        >>> fitted(Image.new("L", (28, 14)), 224, square_from=2).size
        (224, 112)
    """
    factor = cell / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    how = Image.Resampling.NEAREST if factor >= square_from else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, how)
