"""MNIST's original files: the IDX format, gzipped or not.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File
formats": two zero bytes, the type (8 for unsigned bytes), the number of axes, each axis' length as a
big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from torchviz_cnn.errors import InputError

_BYTES = 8
_MOST = 1 << 30  # more than any file of this kind: a damaged head must not ask for all memory


def read_idx(path: str | Path) -> Tensor:
    """One IDX file of unsigned bytes, of the shape it says.

    Raises:
        InputError: when it is missing, damaged, cut short, longer than it says, or of other numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "three"
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        ...     read_idx(file).tolist()
        [7, 8, 9]
    """
    head, rest = _content(Path(path))
    name = repr(str(path))
    if head[:2] != b"\0\0" or head[3] == 0:
        raise InputError(f"{name} is no IDX file: it begins with {head[:4].hex(' ')}")
    if head[2] != _BYTES:
        raise InputError(f"{name} holds numbers of type {head[2]}, not bytes as MNIST's files do")
    axes = head[3]
    if axes > 4 or len(rest) < 4 * axes:
        raise InputError(f"{name} is damaged: its head says {axes} axes")
    shape = struct.unpack(f">{axes}I", rest[: 4 * axes])
    told, there = math.prod(shape), len(rest) - 4 * axes
    if told != there:
        what = "cut short" if there < told else "longer than it says"
        raise InputError(
            f"{name} is {what}: {'×'.join(map(str, shape))} bytes are announced, and {there:,} follow"
        )
    return torch.frombuffer(bytearray(rest[4 * axes :] or b"\0"), dtype=torch.uint8)[:told].reshape(
        shape
    )


def _content(path: Path) -> tuple[bytes, bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source = gzip.GzipFile(fileobj=file) if packed else file
            content = source.read(_MOST)
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{str(path)!r} is a damaged gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    if len(content) < 4:
        raise InputError(f"{str(path)!r} is empty, no IDX file")
    return content[:4], content[4:]


def _pair(folder: Path, stem: str) -> tuple[Path, Path] | None:
    """Pictures and labels of one part, whichever way the files are named."""
    found = []
    for kind, axes in (("images", 3), ("labels", 1)):
        names = [f"{stem}-{kind}-idx{axes}-ubyte", f"{stem}-{kind}.idx{axes}-ubyte"]
        places = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
        found.append(next((place for place in places if place.is_file()), None))
    images, labels = found
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        lacks = "images" if images is None else "labels"
        raise InputError(
            f"{str(images or labels)!r} is there, and its {lacks} are not: "
            f"{stem}-{lacks}-idx{3 if images is None else 1}-ubyte, with or without .gz"
        )
    return images, labels


def read_pair(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """Pictures ``(N, 1, H, W)`` in bytes and their classes ``(N,)``.

    Raises:
        InputError: when the two do not belong together.
    """
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(f"{str(images)!r} holds no pictures: its shape is {tuple(pixels.shape)}")
    if numbers.ndim != 1 or len(numbers) != len(pixels):
        raise InputError(
            f"{str(images)!r} holds {len(pixels):,} pictures and {str(labels)!r} labels of shape "
            f"{tuple(numbers.shape)}; they do not belong together"
        )
    return pixels[:, None], numbers.long()


def mnist_files(folder: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What there is of MNIST in a folder: ``"train"``, ``"t10k"`` or both.

    Raises:
        InputError: when there is neither, or a file is damaged.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{str(folder)!r} is no folder; name that of MNIST's files")
    pairs = {stem: pair for stem in ("train", "t10k") if (pair := _pair(place, stem))}
    if not pairs:
        raise InputError(
            f"MNIST's files are not in {str(folder)!r}: train-images-idx3-ubyte and "
            "train-labels-idx1-ubyte, or the t10k- pair, with or without .gz"
        )
    return {stem: read_pair(*pair) for stem, pair in pairs.items()}
