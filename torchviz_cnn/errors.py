"""The one exception that means: what was asked for cannot be done, and here is what could be."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path


class InputError(ValueError):
    """A request that cannot be met, said in one sentence a person can act on.

    The command line prints the sentence and exits with 2; it never shows a traceback for it.
    """


class NotApplicable(InputError):  # noqa: N818 - it is a finding about a network, not a fault
    """The network lacks what a method needs: a ReLU, a convolution, a gradient.

    Other methods may still answer; a question that is wrong for all of them is an
    :class:`InputError` proper.
    """


def check_counts(**counts: object) -> None:
    """Refuse what is no number of things; ``None`` is as many as there are.

    Raises:
        InputError: with the name of the first that is none.

    Example:
        >>> check_counts(columns=4, top=None)
        >>> check_counts(columns=-1)
        Traceback (most recent call last):
        torchviz_cnn.errors.InputError: columns must be a whole number of at least 1, not -1
    """
    for name, value in counts.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):  # type: ignore[operator]
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")


def is_real(value: object) -> bool:
    """Whether it is a number that can be reckoned with: neither NaN nor infinite, no truth value.

    Example:
        >>> [is_real(value) for value in (2, 0.5, float("nan"), True, "1")]
        [True, True, False, False, False]
    """
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that offers the known names most like ``name``; empty when nothing is near.

    >>> closest("resnet5O", ["resnet50", "vgg16"])
    "; did you mean 'resnet50'?"
    >>> closest("zebra", ["resnet50", "vgg16"])
    ''
    """
    by_folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_folded, n=count, cutoff=0.5)
    if not near:
        return ""
    return "; did you mean " + " or ".join(repr(by_folded[match]) for match in near) + "?"


def levels_to_the_caller() -> int:
    """The ``stacklevel`` of whoever called this library."""
    here = str(Path(__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame, level = frame.f_back, level + 1
    return level
