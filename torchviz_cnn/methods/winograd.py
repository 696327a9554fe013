"""Convolutions of 3×3 windows by Winograd's minimal filtering.

Squares of 4×4 numbers of a map are computed from the 6×6 that they see by 36 products for each
channel, where summing up takes 144 (Lavin and Gray 2016, *Fast algorithms for convolutional neural
networks*, section 4). The matrices are those of Toom and Cook for five points and infinity. It is the
same sum in another order, so only rounding differs.
"""

from __future__ import annotations

import math
import threading
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.methods.convolutions import OwnConvolution
from torchviz_cnn.methods.products import Matrix, are_packed_faster
from torchviz_cnn.methods.trials import are_allowed, is_clearly_faster

_SIDE = 4  # of the squares of outputs
_KERNEL = 3
_SEEN = _SIDE + _KERNEL - 1  # of what they see
# Which points decides how much rounding grows. Of 512 channels the numbers are off by 1.0e-6 of their
# deviation, with 2 for ½ by 1.2e-6; summed up by 0.5e-6.
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
# Squares: 9 MiB of 512 channels, twice; half as fast again with 32, hardly faster with 128.
_AT_A_TIME = 64
# Where oneDNN multiplies: with 64, ResNet18 and ResNet50 take 1.04 times as long.
_AT_A_TIME_PACKED = 128

# Where it is faster. Its time over summing up, for batches of 25: of 512 channels 0.5 for maps of 7×7,
# 0.7 of 14×14; of 256 channels 0.5 for crops of 8×8, 0.9 for maps of 14×14; of 128 channels 0.8 to 1.3.
_CHANNELS = 256
_LEAST_SQUARES = 32  # weights have to be read for each batch
_LEAST_SHARE = 0.5  # of the squares that must lie inside of the map
# These are times of a Xeon. On an EPYC they are about the same where oneDNN multiplies, see
# :class:`Matrix`; MKL takes twice as long there, and nothing is gained. So it is tried, see
# :func:`is_faster_here`.


def is_suited(module: nn.Module) -> bool:
    """Whether :class:`WinogradConvolution` can, and should, take its place."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (_KERNEL, _KERNEL)
        and {*module.stride, *module.dilation, module.groups} == {1}
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not {"forward", "_conv_forward"} & set(module.__dict__)
        and min(module.weight.shape[:2]) >= _CHANNELS
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.float64)  # in fewer digits nothing is left
        and are_allowed()
        and is_faster_here(module.weight.dtype)
    )


@cache
def is_faster_here(dtype: torch.dtype) -> bool:
    """Whether filtering is worth it on this processor; tried once, in less than a tenth of a second."""
    weight = torch.ones(_CHANNELS, _CHANNELS, _KERNEL, _KERNEL, dtype=dtype, device="cpu")
    crops = torch.ones(16, _CHANNELS, 10, 10, dtype=dtype, device="cpu")
    weight, crops = (t.contiguous(memory_format=torch.channels_last) for t in (weight, crops))
    shift, filters, bench = weight.new_zeros(_CHANNELS), Filters(weight), Workbench()
    return is_clearly_faster(
        lambda: _filtered(crops, filters, shift, (0, 0), (8, 8), bench),  # squares all lie inside
        lambda: F.conv2d(crops, weight, shift),
        rounds=4,
    )


class Filters:
    """Weights as products need them.

    Args:
        weight: ``(K, C, 3, 3)``.

    Attributes:
        outputs: how many channels come out, ``K``.
        at_a_time: how many squares are best multiplied at a time.
    """

    def __init__(self, weight: Tensor) -> None:
        self.outputs = len(weight)
        self.at_a_time = _AT_A_TIME
        self._matrices: list[Matrix] | None = None
        if weight.dtype is torch.float32 and are_packed_faster():
            self.at_a_time = _AT_A_TIME_PACKED
            self._matrices = _packed(weight)
        else:
            self._whole = _transformed(weight)

    def times(self, seen: Tensor, into: Tensor) -> None:
        """Products of ``(36, squares, C)``, put into ``(36, squares, K)``."""
        if self._matrices is None:
            torch.bmm(seen, self._whole, out=into)
        else:
            for matrix, rows, result in zip(self._matrices, seen, into, strict=True):
                result.copy_(matrix.times(rows))


class Workbench(threading.local):
    """Memory that is used over and over, by each thread its own; asking for it anew takes long."""

    def __init__(self) -> None:
        self._taken: dict[str, Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this shape, whatever is in it, until one of that name is asked for again."""
        count = math.prod(shape)
        found = self._taken.get(name)
        if found is None or found.dtype is not like.dtype or found.numel() < count:
            self._taken.pop(name, None)
            found = self._taken[name] = like.new_empty(count)
        return found[:count].view(shape)


class WinogradConvolution(OwnConvolution):
    """A convolution, and perhaps the batch norm behind it, as a graph's own.

    Weights are transformed by :meth:`prepare`, to four times as many; where there are few squares, the
    network's own weights are summed up. Where that is always so, :meth:`fold` is better.

    Args:
        convolution: one that :func:`is_suited`.
        norm: the batch norm that follows it, and nothing else.
    """

    filters: Filters | None = None

    @property
    def size(self) -> int:
        """How many numbers the transformed weights are."""
        return self.weight.shape[:2].numel() * _SEEN**2

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__(convolution)
        weight, bias = convolution.weight.detach(), convolution.bias
        self.weight = weight
        self.scale: Tensor | None = None
        self.shift = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self.scale = torch.rsqrt(norm.running_var + norm.eps)
            if norm.weight is not None:
                self.scale = self.scale * norm.weight.detach()
            self.shift = (self.shift - norm.running_mean) * self.scale
            if norm.bias is not None:
                self.shift = self.shift + norm.bias.detach()

    def suits(self, count: int, size: tuple[int, int]) -> bool:
        """Whether filtering is faster for so many maps of this height and width."""
        each = _squares(size)
        inside = math.prod(size) / (_SIDE**2 * each)
        return count * each >= _LEAST_SQUARES and inside >= _LEAST_SHARE

    def prepare(self, bench: Workbench | None = None) -> None:
        """Transform the weights; what is worked on may be shared with other convolutions."""
        self.bench = bench or Workbench()
        weight = self.weight
        if self.scale is not None:
            weight = weight * self.scale[:, None, None, None]
        self.filters = Filters(weight)

    def fold(self) -> None:
        """Weights of its own to sum up, batch norm and all, as they are read fastest."""
        weight = self.weight
        if self.scale is not None:
            weight = weight * self.scale[:, None, None, None]
        last = weight.dtype is torch.float32
        layout = torch.channels_last if last else torch.contiguous_format
        self.weight, self.scale = weight.contiguous(memory_format=layout), None

    def forward(self, maps: Tensor) -> Tensor:
        """Of whole maps ``(N, C, H, W)``."""
        return self._of(maps, self.padding)

    def of_crops(self, crops: Tensor) -> Tensor:
        """Of crops that hold all that is seen, padding included."""
        return self._of(crops, (0, 0))

    def _of(self, maps: Tensor, padding: tuple[int, ...]) -> Tensor:
        rows, columns = (
            length + 2 * before - _KERNEL + 1
            for length, before in zip(maps.shape[-2:], padding, strict=True)
        )
        if self.filters is not None and self.suits(len(maps), (rows, columns)):
            return _filtered(
                *(maps, self.filters, self.shift, padding, (rows, columns)), self.bench
            )
        bias = self.shift if self.scale is None else None
        sums = F.conv2d(maps, self.weight, bias, self.stride, padding, self.dilation)
        if self.scale is not None:
            scale, shift = self.scale[:, None, None], self.shift[:, None, None]
            torch.addcmul(shift, sums, scale, out=sums)
        return sums


def _transformed(weight: Tensor) -> Tensor:
    """Weights ``(K, C, 3, 3)`` as products need them, ``(36, C, K)``."""
    outputs, channels = weight.shape[:2]
    windows = weight.permute(2, 3, 1, 0).reshape(_KERNEL**2, -1)
    return torch.mm(_matrices(weight.dtype)[1], windows).view(_SEEN**2, channels, outputs)


def _packed(weight: Tensor) -> list[Matrix]:
    """The same 36 matrices laid out for oneDNN, a few at a time, so that not all are in hand twice."""
    windows = weight.permute(2, 3, 0, 1).reshape(_KERNEL**2, -1)
    pieces = (torch.mm(some, windows) for some in _matrices(weight.dtype)[1].split(_SEEN))
    return [Matrix(each.view(weight.shape[:2])) for piece in pieces for each in piece]


def _squares(size: tuple[int, int]) -> int:
    """Of how many squares a map of this height and width is made."""
    return math.ceil(size[0] / _SIDE) * math.ceil(size[1] / _SIDE)


def _filtered(
    maps: Tensor,
    filters: Filters,
    shift: Tensor,
    padding: tuple[int, ...],
    size: tuple[int, int],
    bench: Workbench,
) -> Tensor:
    """The convolution, channels last.

    Args:
        maps: ``(N, C, H, W)``.
        filters: the weights transformed.
        shift: ``(K,)``, to be added.
        padding: rows and columns of zeros on each side.
        size: height and width of the result.
        bench: what it works on.
    """
    to_seen, _, to_sums = _matrices(maps.dtype)
    down, across = (math.ceil(length / _SIDE) for length in size)
    found = maps.new_empty(len(maps), down, _SIDE, across, _SIDE, filters.outputs)
    places = maps.movedim(1, -1)  # channels are neighbours
    _, height, width, channels = places.shape
    after = (down * _SIDE + 2 - padding[0] - height, across * _SIDE + 2 - padding[1] - width)
    together = max(1, filters.at_a_time // (down * across))
    pieces = math.ceil(len(maps) / together)  # of about one size
    for some, into in zip(places.tensor_split(pieces), found.tensor_split(pieces), strict=True):
        count = len(some)
        squares = count * down * across
        whole = F.pad(some, (0, 0, padding[1], after[1], padding[0], after[0])).contiguous()
        picture, row, column, _ = whole.stride()
        shape = (_SEEN, _SEEN, count, down, across, channels)
        strides = (row, column, picture, _SIDE * row, _SIDE * column, 1)
        cut = bench.room("one", shape, maps).copy_(whole.as_strided(shape, strides))
        seen = bench.room("other", (_SEEN**2, squares, channels), maps)
        torch.mm(to_seen, cut.view(_SEEN**2, -1), out=seen.view(_SEEN**2, -1))
        products = bench.room("one", (_SEEN**2, squares, filters.outputs), maps)
        filters.times(seen, into=products)
        sums = bench.room("other", (_SIDE**2, squares * filters.outputs), maps)
        torch.mm(to_sums, products.view(_SEEN**2, -1), out=sums)
        sums = sums.view(_SIDE, _SIDE, count, down, across, filters.outputs)
        torch.add(sums, shift, out=into.permute(2, 4, 0, 1, 3, 5))
    whole = found.view(len(maps), down * _SIDE, across * _SIDE, filters.outputs)
    return whole[:, : size[0], : size[1]].contiguous().movedim(-1, 1)


@cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What transforms the 6×6 numbers seen, the 3×3 weights, and 6×6 products into 4×4 numbers."""
    points = torch.tensor(_POINTS, dtype=torch.float64, device="cpu")
    seen, weights, sums = (
        points.new_zeros(shape) for shape in ((_SEEN, _SEEN), (_SEEN, _KERNEL), (_SIDE, _SEEN))
    )
    for i, point in enumerate(points):
        others = torch.cat([points[:i], points[i + 1 :]])
        seen[i, : _SEEN - 1] = _polynomial(others)
        weights[i] = point ** torch.arange(_KERNEL, device="cpu") / (point - others).prod()
        sums[:, i] = point ** torch.arange(_SIDE, device="cpu")
    seen[-1] = _polynomial(points)
    weights[-1, -1] = sums[-1, -1] = 1
    one, two, three = (torch.kron(each, each).to(dtype) for each in (seen, weights, sums))
    return one, two, three


def _polynomial(roots: Tensor) -> Tensor:
    """The coefficients of the polynomial with these roots and the leading one 1, rising."""
    found = roots.new_ones(1)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found
