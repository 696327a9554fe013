"""Labelled pictures as a network in training takes them, and the order in which it gets them.

Everything here is a function of seed, pass and index, never of what ran before: a run that was cut
off goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from torchviz_cnn.training.augment import Augmentation

Key = tuple[int, int]  # a picture's index, and which pass over the pictures it is


class Batch(NamedTuple):
    """What the loader hands over.

    Attributes:
        pixels: bytes ``(N, C, H, W)``.
        labels: class indexes ``(N,)``.
        warps: ``(N, 2, 3)``, where each pixel is to be taken from; ``None`` without augmentation.
    """

    pixels: Tensor
    labels: Tensor
    warps: Tensor | None


@dataclass(frozen=True)
class Labelled:
    """Pictures with their classes.

    Attributes:
        names: of the pictures, such as paths: what a report shows.
        labels: class indexes ``(N,)``.
        read: gives one picture's bytes ``(C, H, W)`` by index.
        kept: all of them in memory, ``(N, C, H, W)``, where they fit.
    """

    names: tuple[str, ...]
    labels: Tensor
    read: Callable[[int], Tensor]
    kept: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indexes: Sequence[int]) -> Tensor:
        """Some of the pictures, ``(N, C, H, W)``."""
        if self.kept is not None:
            return self.kept[list(indexes)]
        return torch.stack([self.read(index) for index in indexes])

    def part(self, indexes: Sequence[int]) -> Labelled:
        """Some of them as a set of their own; nothing is copied that was not kept."""
        chosen = list(indexes)
        kept = None if self.kept is None else self.kept[chosen]
        return Labelled(
            tuple(self.names[index] for index in chosen),
            self.labels[chosen],
            _Renumbered(self.read, chosen),
            kept,
        )


@dataclass(frozen=True)
class _Renumbered:
    """A reader for a part: a class, because worker processes are handed it."""

    read: Callable[[int], Tensor]
    chosen: list[int]

    def __call__(self, index: int) -> Tensor:
        return self.read(self.chosen[index])


@dataclass(frozen=True)
class InMemory:
    """A reader of pictures that are there already."""

    pixels: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.pixels[index]


def in_memory(pixels: Tensor, labels: Tensor, kind: str) -> Labelled:
    """Pictures that came as one tensor of bytes ``(N, C, H, W)``, named by their number."""
    names = tuple(f"{kind} {index}" for index in range(len(labels)))
    return Labelled(names, labels, InMemory(pixels), pixels)


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers to train on, and a share of them held out: a function of the seed alone.

    Example:
        >>> train, held_out = split(10, 0.2, seed=0)
        >>> len(train), len(held_out), sorted(train + held_out) == list(range(10))
        (8, 2, True)
    """
    order = np.random.default_rng([seed, count]).permutation(count).tolist()
    held = min(max(1, round(count * share)), count - 1)
    return sorted(order[held:]), sorted(order[:held])


class Loaded(Dataset[Batch]):
    """Batches by their keys; the loader asks for a whole batch at once.

    Args:
        pictures: what to take from.
        augmentation: how training pictures are changed; ``None`` leaves them.
        seed: of the changes.
    """

    def __init__(
        self, pictures: Labelled, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self.pictures, self.augmentation, self.seed = pictures, augmentation, seed

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        pixels = self.pictures.pixels([index for index, _ in keys])
        labels = self.pictures.labels[[index for index, _ in keys]]
        if self.augmentation is None:
            return Batch(pixels, labels, None)
        size = (pixels.shape[-2], pixels.shape[-1])
        warps = [self.augmentation.warp((self.seed, turn, index), size) for index, turn in keys]
        return Batch(pixels, labels, torch.stack(warps))


class Order(Sampler[list[Key]]):
    """The batches of one epoch.

    Training goes through pass after pass, each in an order of its own, and cuts epochs off that:
    with fewer pictures than an epoch takes, one is seen several times in it, as with Keras'
    generators. (Theirs cut the last batch of every pass short; here it is filled from the next.)

    Args:
        count: of the pictures.
        batch_size: over all devices.
        epoch: which.
        seed: of the orders.
        steps: batches in an epoch; ``None`` for one pass, whose last batch may be short.
        rank, ranks: which part of each batch this process takes, of how many.

    Example:
        >>> [len(batch) for batch in Order(5, 2, epoch=0, seed=0)]
        [2, 2, 1]
        >>> [len(batch) for batch in Order(5, 2, epoch=0, seed=0, steps=4)]
        [2, 2, 2, 2]
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        epoch: int,
        seed: int,
        steps: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.count, self.batch_size, self.epoch, self.seed = count, batch_size, epoch, seed
        whole = -(-count // batch_size) if ranks == 1 else max(1, count // batch_size)
        self.one_pass = steps is None
        self.steps = whole if steps is None else steps
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.batch_size
        for step in range(self.steps):
            if self.one_pass:
                first = self.epoch * self.count + step * size
                last = min(first + size, (self.epoch + 1) * self.count)
            else:
                first = (self.epoch * self.steps + step) * size
                last = first + size
            keys = [self._key(number) for number in range(first, last)]
            yield keys[self.rank :: self.ranks]

    def _key(self, number: int) -> Key:
        turn, place = divmod(number, self.count)
        return int(self._pass(turn)[place]), turn

    def _pass(self, turn: int) -> np.ndarray:
        if getattr(self, "_turn", None) != turn:
            self._turn = turn
            self._permutation = np.random.default_rng([self.seed, turn]).permutation(self.count)
        return self._permutation


def in_order(
    indexes: Sequence[int], batch_size: int, rank: int = 0, ranks: int = 1
) -> list[list[Key]]:
    """Batches to validate on: always the same."""
    own = list(indexes)[rank::ranks]
    return [
        [(index, 0) for index in own[i : i + batch_size]] for i in range(0, len(own), batch_size)
    ]
