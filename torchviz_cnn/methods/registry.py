"""The table of attribution methods: name -> function.

The command line's choices, the README's table and the tests every method must pass come from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torchviz_cnn.attribution import Attribution, CellAttribution

F = TypeVar("F", bound=Callable[..., Attribution])

METHODS: dict[str, Callable[..., Attribution]] = {}


def attribution_method(function: F) -> F:
    """Enter a function into :data:`METHODS` under its own name.

    Its docstring's first line says what it shows, and a line ``Source: …`` where it comes from.
    """
    METHODS[function.__name__] = function
    return function


def summary(name: str) -> str:
    """What a method shows, in one sentence: the first line of its docstring."""
    return (inspect.getdoc(METHODS[name]) or "").splitlines()[0]


def source(name: str) -> str:
    """Where a method comes from: the ``Source:`` paragraph of its docstring."""
    text = inspect.getdoc(METHODS[name]) or ""
    _, _, rest = text.partition("Source: ")
    return " ".join(rest.split("\n\n")[0].split())


def accepts(name: str, option: str) -> bool:
    """Whether a method takes the keyword ``option``."""
    parameters: Any = inspect.signature(METHODS[name]).parameters
    return option in parameters


def shows_cells(name: str) -> bool:
    """Whether a method's result has a value for each cell of a layer."""
    return METHODS[name].__annotations__["return"] in ("CellAttribution", CellAttribution)
