"""Numbers that are none: NaN and infinities have no place on a scale, and are marked."""

from __future__ import annotations

import numpy as np

# In no usual colour map, and on no paper.
LOST = (255, 0, 255)


def lost(values: np.ndarray) -> np.ndarray:
    """Which numbers are NaN or infinite, ``values``' shape."""
    return ~np.isfinite(values)


def sound(values: np.ndarray) -> np.ndarray:
    """The same with the least of each row's numbers in place of those that are lost.

    A row is what lies along the first axis; of one without any numbers 0 is put in their place.

    Example:
        >>> import numpy as np
        >>> sound(np.array([[1.0, np.nan, 3.0], [np.inf, np.nan, np.nan]])).tolist()
        [[1.0, 1.0, 3.0], [0.0, 0.0, 0.0]]
    """
    gone = lost(values)
    if not gone.any():
        return values
    flat = np.where(gone, np.inf, values).reshape(len(values), -1)
    least = flat.min(1)
    least[np.isinf(least)] = 0
    return np.where(gone, least.reshape(-1, *[1] * (values.ndim - 1)), values)


def told(gone: np.ndarray, what: str, verb: str) -> list[str]:
    """How many of some things are marked; nothing where none is.

    Example:
        >>> told(np.array([True, False]), "channels", "hold")
        ['1 of 2 channels hold NaN or infinite numbers (magenta)']
    """
    if not gone.any():
        return []
    return [f"{int(gone.sum())} of {len(gone)} {what} {verb} NaN or infinite numbers (magenta)"]
