"""Rectangles drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from torchviz_cnn.errors import InputError
from torchviz_cnn.pictures import Picture, to_image

Box = tuple[float, float, float, float]

_COLORS = ((230, 60, 50), (40, 110, 200), (240, 170, 30), (40, 150, 80), (150, 70, 170))


def boxes(picture: Picture, places: Sequence[Box], *, dim: bool = False) -> Image.Image:
    """A picture with rectangles drawn on it, in white-edged colours that show on any ground.

    Args:
        picture: a file, PIL image or array.
        places: ``(top, left, bottom, right)`` in pixels of it; what lies outside is cut off.
        dim: darken what lies in none of them.

    Raises:
        InputError: for a rectangle without an inside.

    Example:
        >>> import numpy as np
        >>> boxes(np.zeros((40, 60), np.uint8), [(10, 10, 30, 50)]).size
        (60, 40)
    """
    image = to_image(picture).copy()
    width, height = image.size
    clipped = []
    for top, left, bottom, right in places:
        if not (top < bottom and left < right):
            raise InputError(
                f"a box is (top, left, bottom, right), not {(top, left, bottom, right)}"
            )
        clipped.append(
            (
                max(0, round(left)),
                max(0, round(top)),
                min(width, round(right)),
                min(height, round(bottom)),
            )
        )
    if dim and clipped:
        light = Image.new("L", image.size, 115)
        shade = ImageDraw.Draw(light)
        for left, top, right, bottom in clipped:
            shade.rectangle((left, top, right - 1, bottom - 1), fill=255)
        image = Image.composite(image, Image.new("RGB", image.size), light)
    draw = ImageDraw.Draw(image)
    thick = max(1, round(max(image.size) / 250))
    for index, (left, top, right, bottom) in enumerate(clipped):
        frame = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(frame, outline="white", width=2 * thick)
        draw.rectangle(frame, outline=_COLORS[index % len(_COLORS)], width=thick)
    return image
