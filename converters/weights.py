"""Constants of a file as torch has them: tensors, and parameters that can be trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from converters.graph import Array, Node
from torchviz_cnn.errors import InputError


def tensor(constant: Array) -> Tensor:
    """A copy of its own: files are read-only memory, and parameters are written to.

    A matrix that is but turned is turned by torch, which is many times faster at it than NumPy.
    """
    if not _fits_torch(constant):
        raise InputError(
            f"this file stores numbers as {constant.dtype}, which are not supported; export the "
            "network with float32 weights"
        )
    if constant.ndim == 2 and constant.flags.f_contiguous and not constant.flags.c_contiguous:
        rows = constant.T if constant.flags.writeable else np.array(constant.T)
        return torch.from_numpy(rows).t().contiguous()
    return torch.from_numpy(np.array(constant, copy=True, order="C"))


def _fits_torch(constant: Array) -> bool:
    return constant.dtype.kind in "biuf" and constant.dtype.isbuiltin == 1


def parameter(node: Node, constant: Array) -> nn.Parameter:
    """A weight, copied.

    Raises:
        InputError: for numbers that torch cannot train.
    """
    check_trainable(node, constant)
    return nn.Parameter(tensor(constant))


def check_trainable(node: Node, constant: Array) -> None:
    """Refuse weights of an operator that torch cannot train."""
    if constant.dtype.kind != "f" or not _fits_torch(constant):
        layer = f" of the layer {'.'.join(node.owner.path)!r}" if node.owner else ""
        raise InputError(
            f"the weights of the operator {node.op}{layer} are stored as {constant.dtype}, and a "
            "network of such numbers is not supported; export it with float32 weights"
        )
