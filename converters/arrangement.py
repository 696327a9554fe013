"""Whether two arrays hold the same numbers with their axes in another order, or cut otherwise.

Exporters merge what ends a layer with what begins the next one, where both move axes or change the
shape: what then stands at the border is no other output, only laid out for the next layer.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from converters.graph import Array

_MOST_AXES = 6
_A_FEW = 512


def as_laid_out(theirs: Array, ours: Array, tolerance: float) -> Array | None:
    """The one array laid out as the other is, if that is all in which they differ.

    Args:
        theirs: the numbers as they ought to be, the pictures along the first axis.
        ours: the same, perhaps, in another shape, or with the pictures along another axis.
        tolerance: how far two numbers may be apart that are the same, of the largest.

    Returns:
        ``theirs`` in the shape of ``ours``; ``None`` where no order of its axes has these numbers in
        these places. Two arrays of one shape are another order only where the pictures have moved:
        maps whose rows and columns are exchanged are not the same.

    Example:
        >>> steps = np.arange(30.0).reshape(2, 3, 5)
        >>> as_laid_out(steps, steps.swapaxes(0, 1), 1e-6).shape
        (3, 2, 5)
        >>> as_laid_out(steps, steps.swapaxes(0, 1) + 1, 1e-6) is None
        True
    """
    room = tolerance * float(np.abs(theirs).max(initial=0.0))
    if theirs.size != ours.size or theirs.ndim > _MOST_AXES or not np.isfinite(room):
        return None
    if not _close(np.sort(theirs, axis=None), np.sort(ours, axis=None), room):
        return None
    for order in permutations(range(theirs.ndim)):
        if order[:1] == (0,) and theirs.shape == ours.shape:
            continue
        turned = theirs.transpose(order)
        if not _close(turned.flat[:_A_FEW], ours.flat[:_A_FEW], room):
            continue
        laid_out = turned.reshape(ours.shape)
        if _close(laid_out, ours, room):
            return laid_out
    return None


def _close(one: Array, other: Array, room: float) -> bool:
    return bool((np.abs(one - other) <= room).all())
