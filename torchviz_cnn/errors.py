"""The one exception that means: what was asked for cannot be done, and here is what could be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A request that cannot be met, said in one sentence a person can act on.

    The command line prints the sentence and exits with 2; it never shows a traceback for it.
    """


class NotApplicable(InputError):  # noqa: N818 - it is a finding about a network, not a fault
    """The network lacks what a method needs: a ReLU, a convolution, a gradient.

    Other methods may still answer; a question that is wrong for all of them is an
    :class:`InputError` proper.
    """


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
