"""Convolutions that a graph computes in a way of its own: the same sums, sooner."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.methods.products import Matrix, are_packed_faster
from torchviz_cnn.methods.trials import are_allowed

# With fewer, calls cost what is gained: with 2¹⁴ ResNet50 takes 0.98 of the time, GoogLeNet 1.04.
_WEIGHTS = 2**17


class OwnConvolution(nn.Module):
    """A graph's own convolution of zeros around a map.

    Args:
        convolution: what it computes; its weights are not copied.

    Attributes:
        costs: multiply-adds a position of the output.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(convolution.padding, str)
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.dilation = convolution.dilation
        self.padding: tuple[int, ...] = convolution.padding
        self.costs = convolution.weight.numel()

    @abstractmethod
    def prepare(self) -> None:
        """Lay out what it computes with; without that the network's own weights are summed up."""

    def forward(self, maps: Tensor) -> Tensor:
        """Of whole maps ``(N, C, H, W)``, or of one picture's, ``(C, H, W)``."""
        return self.of_maps(maps) if maps.ndim == 4 else self.of_maps(maps[None])[0]

    @abstractmethod
    def of_maps(self, maps: Tensor) -> Tensor:
        """Of whole maps ``(N, C, H, W)``."""

    @abstractmethod
    def of_crops(self, crops: Tensor) -> Tensor:
        """Of crops that hold all that is seen, padding included."""


class ProductConvolution(OwnConvolution):
    """A convolution of 1×1 windows as one product of rows, a row for each place.

    Torch lays out the weights anew at every call, or has MKL multiply; on an AMD processor that takes
    up to twice as long for the crops of ResNet50's later layers.
    """

    matrix: Matrix | None = None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution)
        self.weight: Tensor | None = convolution.weight.detach()
        self.bias = None if convolution.bias is None else convolution.bias.detach()

    def prepare(self) -> None:
        """Lay out the weights, and let go of the others."""
        if self.weight is not None:
            self.matrix = Matrix(self.weight.flatten(1))
            self.weight = None

    def of_maps(self, maps: Tensor) -> Tensor:
        """Of whole maps ``(N, C, H, W)``."""
        return self.of_crops(maps)  # there is no padding

    def of_crops(self, crops: Tensor) -> Tensor:
        """Of crops that hold all that is seen."""
        if self.matrix is None:
            assert self.weight is not None
            return F.conv2d(crops, self.weight, self.bias, self.stride)
        down, across = self.stride
        places = crops[..., ::down, ::across].movedim(1, -1)  # channels are neighbours
        sums = self.matrix.times(places.reshape(-1, places.shape[-1]), self.bias)
        return sums.view(*places.shape[:-1], -1).movedim(-1, 1)


def is_product(module: nn.Module) -> bool:
    """Whether :class:`ProductConvolution` can, and should, take its place."""
    return (
        type(module) is nn.Conv2d
        and {*module.kernel_size, module.groups} == {1}
        and module.padding == (0, 0)
        and module.padding_mode == "zeros"
        and not {"forward", "_conv_forward"} & set(module.__dict__)
        and module.weight.device.type == "cpu"
        and module.weight.dtype is torch.float32
        and module.weight.numel() >= _WEIGHTS
        and are_allowed()
        and are_packed_faster()
    )
