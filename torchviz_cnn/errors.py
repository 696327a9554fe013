"""The one exception that means: what was asked for cannot be done, and here is what could be."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Self


class InputError(ValueError):
    """A request that cannot be met, said in one sentence a person can act on.

    The command line prints the sentence and exits with 2; it never shows a traceback for it.

    Args:
        sentence: for who calls the library.
        typed: the same for who typed a command, where what helps is another thing there: an option
            in place of a keyword. Left out, the sentence serves both.

    Attributes:
        typed: the sentence for the command line.
        keyword: the keyword that the sentence begins with, where it is about one, see
            :meth:`about`.
    """

    def __init__(self, sentence: str, *, typed: str | None = None) -> None:
        super().__init__(sentence)
        self.typed = sentence if typed is None else typed
        self.keyword: str | None = None

    @classmethod
    def about(cls, keyword: str, fault: str) -> Self:
        """What is wrong with what was given for a keyword.

        The command line names its own option in place of it.

        >>> InputError.about("steps", "must be a whole number of at least 1, not 0")
        InputError('steps must be a whole number of at least 1, not 0')
        """
        error = cls(f"{keyword} {fault}")
        error.keyword = keyword
        return error

    def as_typed(self, options: Mapping[str, str]) -> str:
        """The sentence for who typed a command.

        Args:
            options: what the command's options are called, by the keywords they stand for.

        >>> InputError.about("scale", "is two factors").as_typed({"scale": "--zoom"})
        '--zoom is two factors'
        """
        if self.keyword is None or self.keyword not in options:
            return self.typed
        return options[self.keyword] + self.typed.removeprefix(self.keyword)

    def within(self, before: str) -> InputError:
        """The same, said of a part: with words in front of both sentences."""
        return InputError(f"{before}{self}", typed=f"{before}{self.typed}")


class NotApplicable(InputError):  # noqa: N818 - it is a finding about a network, not a fault
    """The network lacks what a method needs: a ReLU, a convolution, a gradient.

    Other methods may still answer; a question that is wrong for all of them is an
    :class:`InputError` proper.
    """


class NotInstalled(InputError):  # noqa: N818 - it is a finding about a machine, not a fault
    """What was asked for needs a package that is not there, or too old."""


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
        if value is not None and not (is_whole(value) and value >= 1):  # type: ignore[operator]
            raise InputError.about(name, f"must be a whole number of at least 1, not {value!r}")


def is_whole(value: object) -> bool:
    """Whether it is a whole number, Python's or NumPy's, and no truth value.

    Example:
        >>> [is_whole(value) for value in (2, 2.0, True)]
        [True, False, False]
    """
    return not isinstance(value, bool) and isinstance(value, Integral)


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
