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


def brief(value: float, digits: int = 3) -> str:
    """A number short enough for a colour bar; a power of ten only where it is very large or small.

    >>> brief(-0.0), brief(12.345), brief(-0.00123), brief(4231.7), brief(-98765.4, 4)
    ('0', '12.3', '-0.00123', '4230', '-98770')
    >>> brief(1.5e6), brief(4.7e-5)
    ('1.5e+06', '4.7e-05')
    """
    short = f"{value + 0.0:.{digits}g}"  # -0.0 + 0.0 is 0.0
    return f"{float(short):.0f}" if "e+" in short and abs(value) < 1e6 else short


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 in per cent; 0 and 100 only where it is just that.

    >>> percent(0.426), percent(1.0), percent(0.998), percent(1e-5), percent(0.9999, 1)
    ('43 %', '100 %', '>99 %', '<1 %', '>99.9 %')
    """
    words = f"{100 * share:.{digits}f}"
    step = 10.0**-digits
    if float(words) == 100 and share < 1:
        words = f">{100 - step:.{digits}f}"
    elif float(words) == 0 and share > 0:
        words = f"<{step:.{digits}f}"
    return f"{words} %"
