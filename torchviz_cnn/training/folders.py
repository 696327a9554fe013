"""Pictures in folders, one folder a class: found, opened once at the start, and read when wanted.

The layout is that of Keras' ``flow_from_directory``: classes are the folders' names, sorted. Every
picture is decoded before training begins, so that a damaged one is told at once and not after hours;
what was decoded is kept, scaled, where it fits into memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from torchviz_cnn.errors import InputError
from torchviz_cnn.pictures import read_with_remarks
from torchviz_cnn.preprocess import Preprocess
from torchviz_cnn.training.sets import Labelled, split
from torchviz_cnn.words import counted

HELD_OUT = ("validation", "val", "valid")
# What folders are called that hold a part of the pictures each, and no class of them.
_PART = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|eval(uation)?|dev)([ _-]?(set|data|images|pictures))?",
    re.IGNORECASE,
)
KEPT = 2 << 30  # bytes of scaled pictures that are kept in memory


@dataclass(frozen=True)
class Found:
    """Picture files with their classes, not opened yet.

    Attributes:
        classes: the folders' names, sorted.
        train, validation: files and class indexes.
        notes: what had to be decided, each a sentence.
    """

    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    validation: tuple[tuple[Path, int], ...]
    notes: tuple[str, ...] = ()


def find(folder: str | Path, share: float | None = None, seed: int = 0) -> Found:
    """The pictures of ``DIR/train/<class>`` and ``DIR/validation/<class>``, or of ``DIR/<class>``.

    Args:
        folder: DIR.
        share: of one folder's pictures, how many are held out, of each class; a fifth by default.
        seed: which ones are.

    Raises:
        InputError: when a folder is missing, may not be read, has fewer than two classes, or a
            class without files; when its folders are parts of the pictures by their names, and
            other ones.
    """
    place = Path(folder)
    parts = {path.name: path for path in _folders(place)}
    only_parts = all(map(_PART.fullmatch, parts))
    if only_parts:  # in capitals as well; beside others a Train is one of them: of vehicles
        parts = {name.lower(): path for name, path in parts.items()}
    divided = "train" in parts and bool(_folders(parts["train"]))  # else it is a class: of vehicles
    train = parts["train"] if divided else place
    held_out = next((parts[name] for name in HELD_OUT if divided and name in parts), None)
    if held_out is not None:
        if share is not None:
            has = f"{str(held_out)!r} holds the pictures to validate on;"
            raise InputError(
                f"{has} validation_share is for a folder without one",
                typed=f"{has} --validation-share is for a folder without one",
            )
        return _two_folders(train, held_out)
    share = 0.2 if share is None else share
    if not 0 < share < 1:
        raise InputError.about("validation_share", f"must lie between 0 and 1, not {share}")
    if not divided and len(parts) > 1 and only_parts:
        raise InputError(
            f"{str(place)!r} holds {', '.join(repr(path.name) for path in parts.values())}, which "
            "are no classes; call the two to train and to validate on train and validation"
        )
    classes, files = _classes(train)
    own: list[tuple[Path, int]] = []
    held: list[tuple[Path, int]] = []
    for index, name in enumerate(classes):
        of_class = [pair for pair in files if pair[1] == index]
        if len(of_class) < 2:
            raise InputError(
                f"the class {name!r} has one picture; some are needed to train and to validate"
            )
        stay, leave = split(len(of_class), share, seed)
        own += [of_class[number] for number in stay]
        held += [of_class[number] for number in leave]
    note = (
        f"{str(train)!r} has no folder of pictures to validate on: {len(held)} of {len(files)} are "
        "held out, a share of each class"
    )
    return Found(classes, tuple(own), tuple(held), (note,))


def _two_folders(train: Path, held_out: Path) -> Found:
    classes, files = _classes(train)
    others, held = _classes(held_out)
    if classes != others:
        differ = sorted(set(classes) ^ set(others))
        raise InputError(
            f"{str(train)!r} and {str(held_out)!r} must have the same classes; "
            f"only one has {', '.join(map(repr, differ[:5]))}"
        )
    return Found(classes, tuple(files), tuple(held))


def _folders(place: Path) -> list[Path]:
    return [path for path in _entries(place) if path.is_dir()]


def _entries(place: Path) -> list[Path]:
    """What is in a folder, by name; what is hidden is nobody's picture."""
    try:
        return sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        raise InputError(f"there is no folder {str(place)!r}") from None
    except NotADirectoryError:
        raise InputError(f"{str(place)!r} is a file; a folder of pictures is needed") from None
    except OSError as error:
        raise InputError(
            f"the folder {str(place)!r} cannot be read: {error.strerror or error}"
        ) from None


def _classes(place: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    folders = _folders(place)
    if not folders:
        raise InputError(
            f"{str(place)!r} holds no folders; it must hold one for each class, with its pictures "
            f"({place.name}/cats, {place.name}/dogs)"
        )
    if len(folders) == 1:
        raise InputError(
            f"{str(place)!r} holds one class only, {folders[0].name!r}; two are needed to tell apart"
        )
    files = []
    for index, folder in enumerate(folders):
        of_class = _files(folder)
        if not of_class:
            raise InputError(f"the class folder {str(folder)!r} is empty")
        files += [(path, index) for path in of_class]
    return tuple(folder.name for folder in folders), files


def _files(folder: Path) -> list[Path]:
    """All files below a class' folder, as Keras walks it."""
    found = []
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            found += _files(path)
        elif path.is_file():
            found.append(path)
    return found


@dataclass
class Remarks:
    """What was found out about the pictures while all of them were opened.

    Attributes:
        skipped: a sentence for each that cannot be used.
        converted: what was done, and to which files.
    """

    skipped: list[str] = field(default_factory=list)
    converted: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, most: int | None = 10) -> list[str]:
        """In words: each that is skipped, and every conversion with the files it was done to.

        Args:
            most: at most so many of each; ``None`` for all.
        """
        said = [f"skipped: {sentence}" for sentence in self.skipped[:most]]
        if len(self.skipped) > len(said):
            said.append(f"skipped: {len(self.skipped) - len(said)} more")
        for words, files in sorted(self.converted.items()):
            shown = ", ".join(files[:most])
            more = "" if most is None or len(files) <= most else f" and {len(files) - most} more"
            said.append(f"{words} ({counted(len(files), 'picture')}: {shown}{more})")
        return said


@dataclass(frozen=True)
class Reader:
    """Reads a file's picture as the network takes it; handed to worker processes."""

    files: tuple[Path, ...]
    preprocess: Preprocess

    def __call__(self, index: int) -> Tensor:
        return self.preprocess.pixels(self.files[index])


def open_all(
    files: Sequence[tuple[Path, int]],
    preprocess: Preprocess,
    remarks: Remarks,
    *,
    keep: bool,
    progress: bool = False,
) -> Labelled:
    """Decode every picture, leave out those that cannot be, and keep them scaled where asked.

    Args:
        files: with their class indexes.
        preprocess: from a picture to what the network takes.
        remarks: is told what is skipped or converted.
        keep: hold the scaled pictures in memory.
        progress: show a progress bar in a terminal.
    """
    channels = 1 if preprocess.channels == "L" else 3
    kept = (
        torch.empty((len(files), channels, *preprocess.size), dtype=torch.uint8) if keep else None
    )

    def look(number: int) -> tuple[str | None, tuple[str, ...]]:
        try:
            picture, said = read_with_remarks(files[number][0])
        except InputError as error:
            return str(error), ()
        if kept is not None:
            kept[number] = preprocess.pixels(picture)
        return None, said

    good = []
    for number, (problem, said) in enumerate(_in_threads(look, len(files), progress)):
        path = files[number][0]
        if problem is not None:
            remarks.skipped.append(problem)
            continue
        good.append(number)
        for words in said:
            if channels == 3 or not words.startswith("gray"):
                remarks.converted.setdefault(words, []).append(str(path))
    paths = tuple(files[number][0] for number in good)
    if kept is not None and len(good) < len(files):
        kept = _moved_up(kept, good)
    labels = torch.tensor([files[number][1] for number in good], dtype=torch.long)
    return Labelled(tuple(map(str, paths)), labels, Reader(paths, preprocess), kept)


def _moved_up(rows: Tensor, good: Sequence[int]) -> Tensor:
    """Some rows, by their rising numbers, in the memory they are in: a copy may not fit."""
    for place, number in enumerate(good):
        if place != number:
            rows[place] = rows[number]
    return rows[: len(good)]


def _in_threads(
    work: Callable[[int], tuple[str | None, tuple[str, ...]]], count: int, progress: bool
) -> Iterable[tuple[str | None, tuple[str, ...]]]:
    """Pillow lets go of the interpreter while it decodes: threads do."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(
            pool.map(work, range(count)),
            total=count,
            desc="looking at the pictures",
            unit="picture",
            delay=1,
            leave=False,
            disable=None if progress else True,
        )


def load(
    found: Found, preprocess: Preprocess, *, memory: int = KEPT, progress: bool = False
) -> tuple[Labelled, Labelled, Remarks]:
    """The pictures to train and to validate on, each of them opened once.

    Args:
        found: by :func:`find`.
        preprocess: from a picture to what the network takes.
        memory: bytes that scaled pictures may take; beyond that, files are read as they are needed.
        progress: show a progress bar in a terminal.

    Raises:
        InputError: when a class is left without a picture that can be read.
    """
    channels = 1 if preprocess.channels == "L" else 3
    one = channels * preprocess.size[0] * preprocess.size[1]
    keep = one * (len(found.train) + len(found.validation)) <= memory
    remarks = Remarks()
    sets = []
    for files, purpose in ((found.train, "train"), (found.validation, "validate")):
        loaded = open_all(files, preprocess, remarks, keep=keep, progress=progress)
        counts = torch.bincount(loaded.labels, minlength=len(found.classes)).tolist()
        for index, (name, count) in enumerate(zip(found.classes, counts, strict=True)):
            if not count:
                own = [repr(str(path)) for path, label in files if label == index]
                reason = next(s for s in remarks.skipped if any(path in s for path in own))
                raise InputError(
                    f"none of the pictures of the class {name!r} to {purpose} on can be read; {reason}"
                )
        sets.append(loaded)
    return sets[0], sets[1], remarks
