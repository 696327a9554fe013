"""Weights in other files: only where that was asked for, and never outside the model's folder."""

from __future__ import annotations

import re
import stat
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, checker
from onnx.external_data_helper import load_external_data_for_tensor

from converters.trust.tensors import ALL_LISTS, bytes_needed
from converters.trust.words import by, counted, quoted, words_of
from torchviz_cnn.errors import InputError


def location_of(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def fetch(tensor: TensorProto, folder: Path, where: str) -> None:
    """Read a tensor's bytes from a plain file in the model's own folder."""
    if _release(onnx.__version__) < (1, 21):
        raise InputError(
            f"weights in other files need onnx 1.21 or newer, and this is {onnx.__version__}: "
            "older ones follow links out of the folder; update onnx"
        )
    if any(getattr(tensor, name) for name in (*ALL_LISTS, "raw_data")):
        raise InputError(f"{where} is stored in the file and outside it; export it again")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise InputError(f"{where} says twice where its bytes lie; export it again")
    location = entries.get("location", "")
    _check_location(location, where)
    file = folder / location
    needed = bytes_needed(tensor)
    offset = _whole_number(entries.get("offset", "0"), "offset", where)
    length = _whole_number(entries.get("length", str(needed)), "length", where)
    if length != needed:
        raise InputError(
            f"{where} has the shape {by(list(tensor.dims))}, which needs "
            f"{counted(needed, 'byte')}, and names {length:,} in {quoted(location)}"
        )
    size = _plain_size(folder, file, where)
    if offset + length > size:
        raise InputError(
            f"{where} ends at byte {offset + length:,} of {quoted(location)}, which has "
            f"{counted(size, 'byte')}; fetch that file again"
        )
    del tensor.external_data[:]
    # With no length given, onnx would read the rest of the file, whatever its size.
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    try:
        # onnx looks at the links again while it opens the file, so that none can be slipped in.
        load_external_data_for_tensor(tensor, str(folder))
    except (checker.ValidationError, ValueError, OSError) as problem:
        raise InputError(
            f"{where} cannot be read from {quoted(location)}: {words_of(problem)}"
        ) from problem


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _check_location(location: str, where: str) -> None:
    place = PurePosixPath(location)
    odd = any(letter in location for letter in "\\:\0")
    if not place.parts or place.is_absolute() or ".." in place.parts or odd:
        raise InputError(
            f"{where} points to {quoted(location)}; weights may only lie in the model's own "
            "folder, named by a plain relative path"
        )


def _whole_number(text: str, what: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(
            f"{where} has the {what} {quoted(text)} in another file, which is no number of bytes"
        )
    return int(text)


def _plain_size(folder: Path, file: Path, where: str) -> int:
    """The size of a file that no link leads to."""
    relative = file.relative_to(folder)
    try:
        for part in (relative, *list(relative.parents)[:-1]):
            if (folder / part).is_symlink():
                raise InputError(
                    f"{where} points through the symbolic link {quoted(str(part))}; put the "
                    "file itself there"
                )
        status = file.lstat()
    except FileNotFoundError:
        raise InputError(
            f"{where} lies in {quoted(str(relative))}, which is not beside the model; put it there"
        ) from None
    except OSError as problem:
        raise InputError(
            f"{where} cannot be read from {quoted(str(relative))}: {problem.strerror}"
        ) from problem
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{where} points to {quoted(str(relative))}, which is not a plain file")
    if status.st_nlink > 1:
        raise InputError(
            f"{where} points to {quoted(str(relative))}, a hard link to a file that may be "
            "somebody else's; copy the file itself there"
        )
    return status.st_size
