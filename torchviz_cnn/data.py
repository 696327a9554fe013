"""The handwritten digits that come with scikit-learn: real data that needs no download."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.cache import cache_folder
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically

_FILE, _COUNT = "digits.npz", 1797


@dataclass(frozen=True)
class Digits:
    """Digits in the form of MNIST, split once and for all.

    Attributes:
        train, test: ``(N, 1, 28, 28)`` from 0, paper, to 1, ink.
        train_labels, test_labels: ``(N,)`` from 0 to 9.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """1,797 handwritten digits (E. Alpaydin, C. Kaynak, 1998), a fifth of them held out.

    The 8×8 originals are enlarged bicubically to 20×20 in the middle of 28×28, as MNIST's are. They
    are read from scikit-learn once and then kept in the cache.

    Raises:
        InputError: when scikit-learn is not installed.

    Example:
        >>> data = digits()
        >>> tuple(data.train.shape), tuple(data.test.shape)
        ((1437, 1, 28, 28), (360, 1, 28, 28))
    """
    originals, numbers = _kept() or _bundled()
    small = torch.tensor(originals, dtype=torch.float32)[:, None] / 16
    large = F.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    images = F.pad(large, (4, 4, 4, 4))
    labels = torch.tensor(numbers, dtype=torch.long)
    # A generator of its own: the split is the same whatever ran before.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    train, test = order[360:], order[:360]
    return Digits(images[train], labels[train], images[test], labels[test])


def _kept() -> tuple[np.ndarray, np.ndarray] | None:
    """What :func:`_bundled` kept; ``None`` where there is nothing, or something else."""
    try:
        with np.load(cache_folder() / _FILE, allow_pickle=False) as kept:
            originals, numbers = kept["originals"], kept["numbers"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None
    if originals.shape != (_COUNT, 8, 8) or numbers.shape != (_COUNT,):
        return None
    return originals, numbers


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """The originals ``(1797, 8, 8)`` from 0 to 16 and the numbers they show, from scikit-learn.

    Kept in the cache where that can be written: importing scikit-learn takes longer than all that
    is done with them.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            'the digits come with scikit-learn: python -m pip install "torchviz-cnn[demo]"'
        ) from None
    bundle = load_digits()
    originals, numbers = bundle.images.astype(np.uint8), bundle.target.astype(np.uint8)
    with suppress(OSError):
        write_atomically(
            cache_folder() / _FILE,
            lambda file: np.savez_compressed(file, originals=originals, numbers=numbers),
        )
    return originals, numbers
