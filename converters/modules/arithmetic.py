"""Sums, products, means: numbers computed from numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """``x * weight + bias`` channel by channel: a batch norm outside training.

    The mean and variance it was trained with are folded into the two.
    """

    puts_out_its_own = True

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.shape = (1, -1, *(1,) * (rank - 2))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.addcmul(self.bias.view(self.shape), input, self.weight.view(self.shape))

    def extra_repr(self) -> str:
        return str(self.weight.numel())


class Standardize(nn.Module):
    """A batch norm whose mean and variance are computed, as tf_keras does in layer norms."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> Tensor:
        shape = (1, -1, *(1,) * (input.ndim - 2))
        scale = weight / (variance + self.eps).sqrt()
        return (input - mean.view(shape)) * scale.view(shape) + bias.view(shape)


class Add(nn.Module):
    """The sum of what it is given."""

    puts_out_its_own = True

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0] + inputs[1] if len(inputs) > 1 else inputs[0].clone()
        for each in inputs[2:]:
            total = total + each
        return total


class Multiply(nn.Module):
    """The product of what it is given."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


class Reduce(nn.Module):
    """Mean, maximum, minimum or sum over fixed axes."""

    def __init__(self, op: str, axes: Sequence[int], *, keepdim: bool) -> None:
        super().__init__()
        self.op, self.axes, self.keepdim = op, tuple(axes), keepdim

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return REDUCTIONS[self.op](input, dim=self.axes, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        return f"{self.op}, axes={self.axes}"


class AtMost(nn.Module):
    """No number larger than this."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input.clamp(max=self.largest)

    def extra_repr(self) -> str:
        return str(self.largest)


class MatMul(nn.Module):
    """A matrix product of two activations."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first @ second


class WithConstants(nn.Module):
    """An operation some of whose operands are fixed.

    Those that a Keras layer learns are parameters, the rest buffers; names ``operand_0``, ….
    """

    def __init__(
        self, operation: nn.Module, constants: dict[int, Tensor], learnt: Sequence[int]
    ) -> None:
        super().__init__()
        self.operation = operation
        self.places = tuple(constants)
        for place, value in constants.items():
            name = f"operand_{place}"
            if place in learnt:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        operands = list(inputs)
        for place in self.places:
            operands.insert(place, getattr(self, f"operand_{place}"))
        return self.operation(*operands)
