"""Numbers, kinds and lists of things, as they are said."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence


def counted(number: int, what: str, many: str | None = None) -> str:
    """A number of things.

    >>> counted(1, "byte"), counted(4096, "byte"), counted(2, "patch", "patches")
    ('1 byte', '4,096 bytes', '2 patches')
    """
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def were_given(number: int, what: str) -> str:
    """A number of things that were given.

    >>> were_given(1, "seed"), were_given(3, "seed")
    ('1 seed was given', '3 seeds were given')
    """
    return f"{counted(number, what)} {'was' if number == 1 else 'were'} given"


def a(noun: str) -> str:
    """A noun with its article.

    >>> a("tuple"), a("int"), a("OrderedDict"), a("UNet")
    ('a tuple', 'an int', 'an OrderedDict', 'a UNet')
    """
    return f"an {noun}" if re.match("[aeio]|up", noun, re.IGNORECASE) else f"a {noun}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of several names; that there are more is said only where there are.

    >>> some(["c1", "c2", "c3"]), some(["c1", "c2", "c3", "c4"])
    ("'c1', 'c2', 'c3'", "'c1', 'c2', 'c3', …")
    """
    return ", ".join(map(repr, names[:most])) + (", …" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """What an error of others' code says: on one line, and not without end.

    >>> one_line(TypeError("no weights:" + chr(10) + "  conv.weight"))
    'TypeError: no weights: conv.weight'
    """
    said = textwrap.shorten(str(error), 400, placeholder=" …")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
