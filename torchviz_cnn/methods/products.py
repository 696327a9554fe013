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


# ---- weights that are laid out beforehand -------------------------------------------------------

_MANY = 100  # rows, to lay weights out for; nothing changes with 30 or 4000


class Matrix:
    """A matrix of weights as oneDNN reads them fastest: for many products with one matrix.

    Args:
        weight: ``(K, C)``, in single precision on the CPU.
    """

    def __init__(self, weight: Tensor) -> None:
        reorder = torch.ops.mkldnn._reorder_linear_weight.default
        self._packed = reorder(weight.contiguous(), _MANY)

    def times(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(N, K)``: the products of rows ``(N, C)``, and the bias added."""
        product = torch.ops.mkldnn._linear_pointwise.default
        result: Tensor = product(rows, self._packed, bias, "none", [], "")
        return result


@cache
def are_packed_faster() -> bool:
    """Whether a :class:`Matrix` multiplies faster on this processor; tried once, as above.

    Torch has these operations for its compiler's use and may change them; then nothing is lost but time.
    """
    draw = torch.Generator(device="cpu").manual_seed(0)
    rows, weight = (
        torch.randn(n, 256, generator=draw, device="cpu", dtype=torch.float32)
        for n in (_MANY, 1024)
    )
    usual = partial(F.linear, rows, weight)
    try:
        packed = partial(Matrix(weight).times, rows)
        right = torch.allclose(packed(), usual(), rtol=1e-4, atol=1e-3)
    except Exception:  # whatever becomes of what is not public
        return False
    return right and is_clearly_faster(packed, usual, rounds=5)
