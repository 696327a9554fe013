"""Heat maps over pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from torchviz_cnn.errors import InputError
from torchviz_cnn.pictures import Picture, to_image
from torchviz_cnn.render.colormaps import colorize, colormap_for, limits


def _as_map(heatmap: Tensor | np.ndarray) -> np.ndarray:
    array = heatmap.detach().cpu().float().numpy() if isinstance(heatmap, Tensor) else heatmap
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 2:
        raise InputError(f"a heat map is (H, W), not {array.shape}; pick one of a batch first")
    return array


def stretch(heatmap: Tensor | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map ``(h, w)`` interpolated bilinearly to ``size``, which is (width, height) as in PIL.

    Cells keep their places: the first cell covers the same share of the picture before and after.
    """
    array = _as_map(heatmap)
    if array.shape == (size[1], size[0]):
        return array
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))


def overlay(
    picture: Picture,
    heatmap: Tensor | np.ndarray,
    colormap: str | None = None,
    alpha: float = 0.4,
    *,
    signed: bool = False,
) -> Image.Image:
    """A heat map laid over a picture.

    Args:
        picture: a file, PIL image or array; the map is stretched over the whole of it.
        heatmap: ``(H, W)`` of any size, 0…1, or −1…1 around zero.
        colormap: any matplotlib name; ``jet`` by default, a diverging one for signed maps.
        alpha: weight of the map, 0…1.
        signed: the map could have values below 0, whether or not it has: it lies in −1…1.

    Returns:
        An RGB image of the picture's size.

    Raises:
        InputError: for a heat map that is not two-dimensional, an alpha outside 0…1, an unknown
            colour map.

    Example:
        >>> import numpy as np
        >>> overlay(np.zeros((8, 6), np.uint8), np.ones((4, 3))).size
        (6, 8)
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie between 0 and 1, not {alpha}")
    image = to_image(picture)
    given = _as_map(heatmap)
    values = stretch(given, image.size)
    low = -1.0 if limits(given, signed=signed)[0] < 0 else 0.0
    colors = colorize(values, colormap_for(given, colormap, signed=signed), low, 1.0)
    blend = (1 - alpha) * np.asarray(image, dtype=np.float32) + alpha * colors
    return Image.fromarray(np.rint(blend).astype(np.uint8))


def masked(
    picture: Picture,
    heatmap: Tensor | np.ndarray,
    keep: float = 0.25,
    background: tuple[int, int, int] = (0, 0, 0),
) -> Image.Image:
    """A picture of which only the parts that matter stay visible.

    Args:
        picture: a file, PIL image or array.
        heatmap: ``(H, W)``; only positive values count.
        keep: the share of pixels to leave, those with the highest values.
        background: colour of the others.

    Raises:
        InputError: for a share outside 0…1.

    Example:
        >>> import numpy as np
        >>> seen = masked(np.full((2, 2), 255, np.uint8), np.array([[0.9, 0.1], [0.2, 0.3]]))
        >>> np.asarray(seen)[:, :, 0].tolist()
        [[255, 0], [0, 0]]
    """
    if not 0 < keep <= 1:
        raise InputError(f"keep must lie above 0 and at most at 1, not {keep}")
    image = to_image(picture)
    values = stretch(heatmap, image.size)
    count = max(1, round(keep * values.size))
    least = np.partition(values.ravel(), values.size - count)[values.size - count]
    visible = (values >= least) & (values > 0)
    pixels = np.asarray(image).copy()
    pixels[~visible] = background
    return Image.fromarray(pixels)
