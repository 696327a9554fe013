"""The handwritten digits that come with scikit-learn: real data that needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.errors import InputError


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

    The 8×8 originals are enlarged bicubically to 20×20 in the middle of 28×28, as MNIST's are.

    Raises:
        InputError: when scikit-learn is not installed.

    Example:
        >>> data = digits()
        >>> tuple(data.train.shape), tuple(data.test.shape)
        ((1437, 1, 28, 28), (360, 1, 28, 28))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            'the digits come with scikit-learn: python -m pip install "torchviz-cnn[demo]"'
        ) from None
    bundle = load_digits()
    small = torch.tensor(bundle.images, dtype=torch.float32)[:, None] / 16
    large = F.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    images = F.pad(large, (4, 4, 4, 4))
    labels = torch.tensor(bundle.target, dtype=torch.long)
    # A generator of its own: the split is the same whatever ran before.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    train, test = order[360:], order[:360]
    return Digits(images[train], labels[train], images[test], labels[test])
