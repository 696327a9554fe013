"""Which parts of many pictures excite a unit most."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from torchviz_cnn.errors import InputError, check_counts, is_whole
from torchviz_cnn.fields import Box, Cell, ReceptiveField, receptive_field
from torchviz_cnn.methods.examine import batch_of
from torchviz_cnn.naming import module_of, resolve_one
from torchviz_cnn.objectives import channel_of
from torchviz_cnn.observe import activations
from torchviz_cnn.pictures import read_picture
from torchviz_cnn.words import brief

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


@dataclass(frozen=True)
class Patch:
    """The part of one picture that excites a channel most.

    Attributes:
        file: the picture.
        value: what the unit puts out there.
        cell: ``(row, column)`` of the unit.
        box: what it sees, ``(top, left, bottom, right)`` in pixels of the network's input.
    """

    file: Path
    value: float
    cell: Cell
    box: Box


@dataclass(frozen=True)
class Patches:
    """The patches that excite a channel most, the strongest first.

    Attributes:
        layer, channel: of the unit.
        found: the patches.
        pictures: how many pictures were looked at.
        skipped: files of the folder that could not be read, and why.
        field: what the units of the layer see.
    """

    layer: str
    channel: int
    found: tuple[Patch, ...]
    pictures: int
    field: ReceptiveField = field(repr=False)
    skipped: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    @property
    def values(self) -> list[float]:
        """What the unit puts out for each patch."""
        return [patch.value for patch in self.found]

    def crops(self) -> list[Image.Image]:
        """The patches, cut out of their files by the unit's receptive field."""
        return [self.field.crop(read_picture(patch.file), patch.cell) for patch in self.found]

    def names(self) -> list[str]:
        """What the files are called; with the folders that differ where two have the same name."""
        parts = [patch.file.absolute().parts for patch in self.found]
        names = [each[-1] for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
        shared = next(i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1)
        return ["/".join(each[shared:]) for each in parts]

    def table(self) -> str:
        """A line a patch: value, file, unit and the pixels it sees."""
        names = self.names()
        width = max(map(len, names))
        return "\n".join(
            f"  {brief(patch.value, 4):>10}  {name:{width}}  unit {patch.cell}, "
            f"rows {patch.box[0]}–{patch.box[2] - 1}, columns {patch.box[1]}–{patch.box[3] - 1}"
            for name, patch in zip(names, self.found, strict=True)
        )

    def sheet(self, columns: int | None = None, *, cell: int = 192) -> Image.Image:
        """The patches with file names and values on one sheet.

        Args:
            columns: patches in a row.
            cell: side of each in pixels.
        """
        from torchviz_cnn import render

        most = f"{len(self)} patch{'es' * (len(self) != 1)}"
        named = zip(self.values, self.names(), strict=True)
        return render.contact_sheet(
            self.crops(),
            [f"{brief(value, 4)}\n{name}" for value, name in named],
            columns=columns,
            cell=cell,
            title=f"{self.layer} {self.channel}: the {most} of {self.pictures} pictures that "
            "excite it most",
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.sheet().save(buffer, format="PNG")
        return buffer.getvalue()


def pictures_in(folder: str | Path) -> list[Path]:
    """The picture files of a folder and of the folders in it, by name; hidden ones left out.

    Raises:
        InputError: when the folder is not there, or there is no picture in it.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file; name its folder, or give a list of files")
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}")
    known = Image.registered_extensions()
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in known
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"there is no picture in the folder {str(folder)!r}")
    return found


@overload
def patches(
    model: Model,
    pictures: str | Path | Iterable[str | Path],
    layer: str | nn.Module,
    channel: int,
    *,
    count: int = ...,
    batch_size: int | None = ...,
    progress: bool = ...,
) -> Patches: ...


@overload
def patches(
    model: Model,
    pictures: str | Path | Iterable[str | Path],
    layer: str | nn.Module,
    channel: Sequence[int],
    *,
    count: int = ...,
    batch_size: int | None = ...,
    progress: bool = ...,
) -> list[Patches]: ...


def patches(
    model: Model,
    pictures: str | Path | Iterable[str | Path],
    layer: str | nn.Module,
    channel: int | Sequence[int],
    *,
    count: int = 9,
    batch_size: int | None = None,
    progress: bool = False,
) -> Patches | list[Patches]:
    """The parts of a set of pictures that excite a channel most, one of each picture.

    The unit that answers most strongly to a picture is looked for, and what it sees is cut out of
    the picture. Pictures are read a batch at a time, and of all but the best only numbers are kept
    until better ones come: memory does not grow with the folder.

    Args:
        model: a :class:`~torchviz_cnn.models.Model`, which knows how to prepare pictures.
        pictures: a folder, looked through with its folders, or files.
        layer: a name, alias or module.
        channel: index of the channel; of the unit for a dense layer, which sees the whole picture.
            Of several the pictures are read once.
        count: how many patches at most.
        batch_size: pictures in one pass; by default as many as suit their size.
        progress: show a progress bar in a terminal.

    Returns:
        :class:`Patches`; a list of them, in the order asked for, where several channels are given.

    Raises:
        InputError: for a layer or channel that is not there, a network that is no Model, a file
            given by name that cannot be read, a folder without a picture that can be.

    Source: Zeiler, Fergus 2013, "Visualizing and Understanding Convolutional Networks", figure 2;
    Girshick, Donahue, Darrell, Malik 2014, "Rich feature hierarchies", section 3.1.

    Example:
        >>> import tempfile, pathlib, torchviz_cnn as tvc
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for shade in (10, 200, 90):
        ...     Image.new("L", (28, 28), shade).save(folder / f"{shade}.png")
        >>> best = tvc.patches(tvc.models.load("mnist_convnet"), folder, "conv_1.conv", 0, count=2)
        >>> len(best), best.field.size
        (2, (5, 5))
    """
    if isinstance(model, nn.Module) or not hasattr(model, "prepare"):
        raise InputError(
            "patches needs a Model, which knows how pictures are prepared: models.load gives one, "
            "or build Model(network, preprocess, input_size)"
        )
    check_counts(count=count)
    name = resolve_one(module_of(model), layer)
    key = name.key(name.call or 0)
    in_folder = isinstance(pictures, str | Path)
    files = pictures_in(pictures) if in_folder else [Path(path) for path in pictures]  # type: ignore[arg-type, union-attr]
    if not files:
        raise InputError("no pictures were given")
    # A field's name without a number means the last run, a layer's its first.
    seen = receptive_field(model, f"{name.name}@{name.call or 0}")
    like = torch.empty(1, *model.input_size, device=model.device)
    number = batch_of(like, batch_size, cpu=8)
    channels = _channels(channel)
    skipped: list[tuple[Path, str]] = []
    ranks = [_Best(count) for _ in channels]
    looked_at = 0
    bar = tqdm(
        files,
        desc="pictures",
        unit="picture",
        delay=2,
        leave=False,
        disable=None if progress else True,
    )
    for batch in _batches(model, bar, number, skipped if in_folder else None):
        maps = activations(model, torch.cat([x for _, x in batch]), layer)[key]
        for best, each in zip(ranks, channels, strict=True):
            for (file, _), (value, cell) in zip(batch, _strongest(maps, each, key), strict=True):
                best.offer(value, file, cell)
        looked_at += len(batch)
    if not looked_at:
        raise InputError(f"no picture in {str(pictures)!r} can be read: {skipped[0][1]}")
    results = [
        Patches(
            key,
            each,
            tuple(Patch(file, value, cell, seen.box(cell)) for value, file, cell in best.sorted()),
            looked_at,
            seen,
            tuple(skipped),
        )
        for each, best in zip(channels, ranks, strict=True)
    ]
    return results if np.ndim(channel) else results[0]


def _channels(wanted: Any) -> list[int]:
    """One channel, or several in a sequence, an array or a tensor, as a list of numbers."""
    found = wanted.tolist() if isinstance(wanted, Tensor | np.ndarray) else wanted
    several = isinstance(found, Sequence) and not isinstance(found, str)
    found = list(found) if several else [found]
    if not found:
        raise InputError("no channels were given")
    if not all(map(is_whole, found)):
        raise InputError(
            f"a channel is a whole number, and several are a list of them, not {wanted!r}"
        )
    return [int(each) for each in found]


class _Best:
    """The largest ``count`` of the values offered; of equal ones those that came first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.offered = 0
        self.heap: list[tuple[float, int, Path, Cell]] = []

    def offer(self, value: float, file: Path, cell: Cell) -> None:
        entry = (value, -self.offered, file, cell)
        self.offered += 1
        if len(self.heap) < self.count:
            heapq.heappush(self.heap, entry)
        elif entry[:2] > self.heap[0][:2]:
            heapq.heapreplace(self.heap, entry)

    def sorted(self) -> list[tuple[float, Path, Cell]]:
        return [(value, file, cell) for value, _, file, cell in sorted(self.heap, reverse=True)]


def _batches(
    model: Model, files: Iterable[Path], size: int, skipped: list[tuple[Path, str]] | None
) -> Iterator[list[tuple[Path, Tensor]]]:
    """Files with their prepared pictures, a batch at a time."""
    batch: list[tuple[Path, Tensor]] = []
    for file in files:
        try:
            batch.append((file, model.prepare(read_picture(file))))
        except InputError as error:
            if skipped is None:
                raise
            skipped.append((file, str(error)))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _strongest(maps: Tensor, channel: int, layer: str) -> list[tuple[float, Cell]]:
    """The largest value of a channel in each picture, and where it is."""
    chosen = channel_of(maps, channel, layer).double().reshape(len(maps), -1)
    if bool(chosen.isnan().any()):
        raise InputError(f"the layer {layer!r} puts out NaN; look at its weights")
    columns = maps.shape[3] if maps.ndim == 4 else 1
    values, places = chosen.max(1)
    cells = [divmod(place, columns) for place in places.tolist()]
    return list(zip(values.tolist(), cells, strict=True))
