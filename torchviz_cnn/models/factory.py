"""Networks from code of the user's own."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from torchviz_cnn.errors import InputError
from torchviz_cnn.models.model import AboutPictures, Model, of_its_size
from torchviz_cnn.models.weights import at_random, load_state, read_state
from torchviz_cnn.preprocess import preprocess_by_name
from torchviz_cnn.words import a, one_line


def from_factory(spec: str, weights: str | None, input_size: tuple[int, ...] | None) -> Model:
    module_name, _, attribute = spec.partition(":")
    if weights == "default":
        raise InputError(f"{spec} has no published weights; leave --weights out, or give a file")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = at_random(
            lambda: _users_code(spec, lambda: importlib.import_module(module_name))
        )
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot find {spec!r}: {error}") from error
    finally:
        sys.path.pop(0)
    if isinstance(found, type) or (not isinstance(found, nn.Module | Model) and callable(found)):
        found = _made_by(found, spec)
    if not isinstance(found, nn.Module | Model):
        raise InputError(f"{spec} gave {a(type(found).__name__)}, not a torch.nn.Module")
    if isinstance(found, Model):
        found = of_its_size(found, input_size)
    else:
        found = _assumed(found, spec, input_size)
    if weights not in (None, "none"):
        load_state(found.module, read_state(str(weights)), str(weights))
    return found


def _made_by(factory: Callable[[], Any], spec: str) -> Any:
    """What a factory makes, the same random weights every time."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise InputError(
            f"{spec} must be callable without arguments ({error}); write a function that calls it"
        ) from None
    except ValueError:  # written in C: it has no signature to ask
        pass
    return at_random(lambda: _users_code(spec, factory))


def _users_code(spec: str, run: Callable[[], Any]) -> Any:
    """Run what the user wrote; whatever it raises is told as the user's.

    Raises:
        InputError: with the file and line, for anything but a module that cannot be found.
    """
    try:
        return run()
    except ModuleNotFoundError as error:
        if error.name is not None and spec.partition(":")[0].startswith(error.name):
            raise
        raise InputError(f"{spec} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{spec} failed: {one_line(error)} ({where.filename}, line {where.lineno})"
        ) from error


def _assumed(module: nn.Module, spec: str, input_size: tuple[int, ...] | None) -> Model:
    """A bare network with what it does not say of itself."""
    size = input_size or (3, 224, 224)
    mode = "torch" if size[0] == 3 and len(size) == 3 else "rescale"
    guess = "" if input_size else f"an input of {'×'.join(map(str, size))} and "
    note = AboutPictures(
        f"{spec} does not say how it wants its pictures: {guess}the preprocessing {mode!r} "
        f"{'are' if guess else 'is'} assumed"
    )
    preprocess = preprocess_by_name(mode, size, nearest=False)
    return Model(module, preprocess, size, None, spec, (note,))
