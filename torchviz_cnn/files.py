"""Writing files so that none is ever half-written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from torchviz_cnn.errors import InputError


class CannotWrite(OSError):  # noqa: N818 - OSError's own subclasses are named so
    """A file could not be written: the disk is full, or the folder may not be written to."""


@contextmanager
def _told_as_writing(path: Path) -> Iterator[None]:
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(error.errno, error.strerror or str(error), str(path)) from error


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write a file under a temporary name beside its place, then rename it.

    Whatever goes wrong (a full disk, an interrupt), the old file stays and no new one appears.

    Args:
        path: where the file shall be; missing folders are made.
        write: is given the open binary file.

    Returns:
        The path written.

    Raises:
        CannotWrite: an ``OSError``, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with _told_as_writing(path):
        _write(path, write)
    return path


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        # mkstemp makes files for their owner alone; a picture is as readable as its folder allows.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_folder(folder: str | Path) -> None:
    """Say before any work that files cannot go to a folder.

    Raises:
        InputError: when it, or a folder it would be in, is a file, or may not be written to.
    """
    for place in (Path(folder), *Path(folder).parents):
        if place.exists():
            if not place.is_dir():
                raise InputError(f"{str(place)!r} is a file; name a folder to write to")
            effective = os.access in os.supports_effective_ids
            if not os.access(place, os.W_OK | os.X_OK, effective_ids=effective):
                raise InputError(
                    f"the folder {str(place)!r} may not be written to; name another one"
                )
            return


@contextmanager
def all_or_nothing(folder: str | Path) -> Iterator[Path]:
    """Write several files that belong together, or none of them.

    Args:
        folder: where the files shall be; made where it is missing.

    Yields:
        A folder beside them to write into. Its files move to ``folder`` when the block ends well;
        otherwise they go, and so does ``folder`` if it was made for them.

    Raises:
        CannotWrite: an ``OSError``, when the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with _told_as_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _told_as_writing(folder):
            staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
        try:
            yield staging
            files = sorted(staging.iterdir())
            for file in files:  # before the first one is moved
                if (folder / file.name).is_dir():
                    raise InputError(
                        f"{str(folder / file.name)!r} is a folder where a file of that name is to "
                        "be written; name another folder to write to"
                    )
            with _told_as_writing(folder):
                for file in files:
                    file.replace(folder / file.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        with suppress(OSError):  # not empty: somebody else's files are in it
            for place in missing:
                place.rmdir()
        raise


def file_name(text: str) -> str:
    """A name that any file system takes.

    >>> file_name("block1/conv:0")
    'block1_conv_0'
    """
    return re.sub(r"[^\w.@-]+", "_", text)
