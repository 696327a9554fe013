"""Numbers to colours."""

from __future__ import annotations

from functools import lru_cache

import matplotlib
import numpy as np

from torchviz_cnn.errors import InputError, closest

SEQUENTIAL = "jet"
DIVERGING = "seismic"


def check_colormap(name: str) -> None:
    """Say before any work that a colour map is unknown.

    Raises:
        InputError: with the closest names.
    """
    if name not in matplotlib.colormaps:
        raise InputError(f"there is no colour map {name!r}{closest(name, matplotlib.colormaps)}")


@lru_cache(maxsize=64)
def table(name: str) -> np.ndarray:
    """The 256 colours of a matplotlib colour map, ``(256, 3)`` bytes.

    Raises:
        InputError: for an unknown name; offers the closest.

    Example:
        >>> table("gray")[255].tolist()
        [255, 255, 255]
    """
    check_colormap(name)
    colors = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return np.rint(colors * 255).astype(np.uint8)


def colorize(values: np.ndarray, colormap: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Colours for numbers from ``low`` to ``high``; outside is clipped, NaN is ``low``.

    Args:
        values: any shape.
        colormap: any matplotlib name.
        low, high: the numbers that get the first and the last colour.

    Returns:
        Bytes of shape ``(*values.shape, 3)``.

    Example:
        >>> import numpy as np
        >>> colorize(np.array([0.0, 1.0]), "gray").tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    span = high - low if high > low else 1.0
    unit = np.nan_to_num((np.asarray(values, dtype=np.float32) - low) / span)
    return table(colormap)[np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)]


def limits(values: np.ndarray, *, signed: bool = False) -> tuple[float, float]:
    """From 0 to the maximum; for numbers of both signs the same distance on both sides of 0.

    Args:
        values: any shape.
        signed: they could be of both signs, whether or not these are.

    >>> import numpy as np
    >>> limits(np.array([1.0, 4.0])), limits(np.array([-1.0, 4.0]))
    ((0.0, 4.0), (-4.0, 4.0))
    >>> limits(np.array([1.0, 4.0]), signed=True)
    (-4.0, 4.0)
    """
    top = float(np.abs(values).max(initial=0.0)) or 1.0
    return (-top, top) if signed or _has_negative(values) else (0.0, top)


def colormap_for(values: np.ndarray, wish: str | None, *, signed: bool = False) -> str:
    """The wished colour map, else a diverging one for numbers of both signs, else ``jet``."""
    if wish is not None:
        return wish
    return DIVERGING if signed or _has_negative(values) else SEQUENTIAL


def _has_negative(values: np.ndarray) -> bool:
    return bool(values.size) and float(values.min()) < 0
