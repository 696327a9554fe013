"""Products of rows with a matrix of weights, by the library that is faster on this processor.

Matrices are multiplied by MKL where torch is built with it. On an AMD processor that takes about
twice as long as oneDNN, which torch brings along for convolutions: VGG16's linear layers a quarter of
the time of its occlusion.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.methods.trials import are_allowed, is_clearly_faster

_ROWS = 9  # with fewer, weights take longer to read than to multiply
_WEIGHTS = 2**18  # with fewer, calls cost what is gained


def multiply_fast(module: nn.Module) -> None:
    """Give a graph's own linear layer the faster product, where there is one."""
    if _is_suited(module):
        assert isinstance(module, nn.Linear)
        module.__dict__["forward"] = partial(_linear, module)


def _is_suited(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__
        and module.weight.device.type == "cpu"
        and module.weight.dtype is torch.float32
        and module.weight.numel() >= _WEIGHTS
        and torch.backends.mkldnn.is_available()
        and are_allowed()
        and onednn_is_faster_here()
    )


@cache
def onednn_is_faster_here() -> bool:
    """Whether oneDNN multiplies faster on this processor; tried once, in a few milliseconds."""
    rows, weight = (torch.ones(n, 1024, device="cpu", dtype=torch.float32) for n in (25, 1024))
    return is_clearly_faster(
        partial(_by_onednn, rows, weight, None), partial(F.linear, rows, weight), rounds=5
    )


def _linear(module: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
    few = input.ndim != 2 or len(input) < _ROWS
    return (F.linear if few else _by_onednn)(input, module.weight, module.bias)


def _by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of a tensor in oneDNN's own format torch makes the product by oneDNN."""
    return F.linear(rows.to_mkldnn(), weight, bias).to_dense()
