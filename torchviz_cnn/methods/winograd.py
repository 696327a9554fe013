"""Convolutions of 3×3 windows by Winograd's minimal filtering.

Squares of 4×4 numbers of a map are computed from the 6×6 that they see by 36 products for each
channel, where summing up takes 144 (Lavin and Gray 2016, *Fast algorithms for convolutional neural
networks*, section 4); smaller ones at the edges by fewer. The matrices are those of Toom and Cook for
five points and infinity. It is the same sum in another order, so only rounding differs.
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
from torchviz_cnn.methods.squares import KERNEL, SEEN, SIDE, Kind, Tiling, of_weights, tiling
from torchviz_cnn.methods.trials import are_allowed, is_clearly_faster

# Squares: 9 MiB of 512 channels, twice; half as fast again with 32, hardly faster with 128.
_AT_A_TIME = 64
# Where oneDNN multiplies: with 64, ResNet50 takes 1.04 times as long, with 128 ResNet18 1.03 times.
_AT_A_TIME_PACKED = 192

# Where it is faster. Its time over summing up, for batches of 25: of 512 channels 0.5 for maps of 7×7,
# 0.7 of 14×14; of 256 channels 0.5 for crops of 8×8, 0.9 for maps of 14×14; of 128 channels 0.8 to 1.3.
_CHANNELS = 256
_LEAST_SQUARES = 32  # weights have to be read for each batch
_MOST_PRODUCTS = 4.5  # for each number that comes out; summing up takes 9
# What is off is a share of the largest numbers that a square sees, and an infinite one spoils all of it.
# So a map's largest place must not be larger than most of them by more. Hardly any place is as small as
# the smallest: the largest are 2 to 14 times the median of trained SqueezeNet's and ResNet-20's maps,
# windows hidden or not, and up to 12,000 times the least.
_MOST_UNEVEN = 1000
# These are times of a Xeon. On an EPYC they are about the same where oneDNN multiplies, see
# :class:`Matrix`; MKL takes twice as long there, and nothing is gained. So it is tried, see
# :func:`is_faster_here`.


def is_suited(module: nn.Module) -> bool:
    """Whether :class:`WinogradConvolution` can, and should, take its place."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (KERNEL, KERNEL)
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
    weight = torch.ones(_CHANNELS, _CHANNELS, KERNEL, KERNEL, dtype=dtype, device="cpu")
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

    def times(self, seen: Tensor, squares: Tiling, into: Tensor) -> None:
        """Products of ``(points, squares, C)``, put into ``(points, squares, K)``."""
        count = seen.shape[1] // squares.squares
        for point, rows, result in zip(squares.points, seen, into, strict=True):
            which = point.down * SEEN + point.across
            some = slice(count * point.squares.start, count * point.squares.stop)
            if self._matrices is None:
                torch.mm(rows[some], self._whole[which], out=result[some])
            else:
                result[some] = self._matrices[which].times(rows[some])


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

    Weights are transformed by :meth:`prepare`, to four times as many; where there are few squares, or
    maps are very uneven, the network's own weights are summed up. Where that is always so, :meth:`fold`
    is better.

    Args:
        convolution: one that :func:`is_suited`.
        norm: the batch norm that follows it, and nothing else.
    """

    filters: Filters | None = None

    @property
    def size(self) -> int:
        """How many numbers the transformed weights are."""
        return self.weight.shape[:2].numel() * SEEN**2

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
        squares = tiling(size)
        few = squares.products <= _MOST_PRODUCTS * math.prod(size)
        return few and count * squares.squares >= _LEAST_SQUARES

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

    def of_maps(self, maps: Tensor) -> Tensor:
        """Of whole maps ``(N, C, H, W)``."""
        return self._of(maps, self.padding)

    def of_crops(self, crops: Tensor) -> Tensor:
        """Of crops that hold all that is seen, padding included."""
        return self._of(crops, (0, 0))

    def _of(self, maps: Tensor, padding: tuple[int, ...]) -> Tensor:
        rows, columns = (
            length + 2 * before - KERNEL + 1
            for length, before in zip(maps.shape[-2:], padding, strict=True)
        )
        if self.filters is not None and self.suits(len(maps), (rows, columns)) and _are_even(maps):
            return _filtered(
                *(maps, self.filters, self.shift, padding, (rows, columns)), self.bench
            )
        bias = self.shift if self.scale is None else None
        sums = F.conv2d(maps, self.weight, bias, self.stride, padding, self.dilation)
        if self.scale is not None:
            scale, shift = self.scale[:, None, None], self.shift[:, None, None]
            torch.addcmul(shift, sums, scale, out=sums)
        return sums


def _are_even(maps: Tensor) -> bool:
    """Whether what is off is small beside most places' sums; zeros do not count."""
    sizes = torch.linalg.vector_norm(maps, dim=1).flatten(1)
    least, largest = torch.aminmax(sizes)
    if largest.item() < _MOST_UNEVEN * least.item():  # as a rule, and sooner seen
        return True
    usual = sizes.where(sizes > 0, torch.nan).nanmedian(1).values
    most = sizes.amax(1)  # where that is not finite, neither comparison holds
    return bool(((most < _MOST_UNEVEN * usual) | (most == 0)).all())


def _transformed(weight: Tensor) -> Tensor:
    """Weights ``(K, C, 3, 3)`` as products need them, ``(36, C, K)``."""
    outputs, channels = weight.shape[:2]
    windows = weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
    return torch.mm(of_weights(weight.dtype), windows).view(SEEN**2, channels, outputs)


def _packed(weight: Tensor) -> list[Matrix]:
    """The same 36 matrices laid out for oneDNN, a few at a time, so that not all are in hand twice."""
    windows = weight.permute(2, 3, 0, 1).reshape(KERNEL**2, -1)
    pieces = (torch.mm(some, windows) for some in of_weights(weight.dtype).split(SEEN))
    return [Matrix(each.view(weight.shape[:2])) for piece in pieces for each in piece]


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
    squares = tiling(size)
    found = maps.new_empty(len(maps), *size, filters.outputs)
    places = maps.movedim(1, -1)  # channels are neighbours
    together = max(1, filters.at_a_time // squares.squares)
    pieces = math.ceil(len(maps) / together)  # of about one size
    for some, into in zip(places.tensor_split(pieces), found.tensor_split(pieces), strict=True):
        whole = _surrounded(some, padding, bench) if any(padding) else some
        seen = _seen(whole, squares, bench)
        products = bench.room("one", (*seen.shape[:2], filters.outputs), maps)
        filters.times(seen, squares, into=products)
        _sum(products, squares, shift, into, bench)
    return found.movedim(-1, 1)


def _surrounded(places: Tensor, padding: tuple[int, ...], bench: Workbench) -> Tensor:
    """Places ``(N, H, W, C)`` with zeros around them."""
    count, height, width, channels = places.shape
    top, left = padding
    shape = (count, height + 2 * top, width + 2 * left, channels)
    whole = bench.room("around", shape, places).zero_()
    whole[:, top : top + height, left : left + width] = places
    return whole


def _seen(places: Tensor, squares: Tiling, bench: Workbench) -> Tensor:
    """What squares see, transformed: ``(points, squares, C)``."""
    count, channels = len(places), places.shape[-1]
    picture, row, column, channel = places.stride()
    room = (len(squares.points), squares.squares * count, channels)
    seen = bench.room("other", room, places)
    for kind in squares.kinds:
        down, across = kind.down, kind.across
        first = places[:, down.start :, across.start :]
        shape = (down.points, across.points, count, down.count, across.count, channels)
        strides = (row, column, picture, SIDE * row, SIDE * column, channel)
        cut = bench.room("one", shape, places).copy_(first.as_strided(shape, strides))
        matrix, _ = squares.matrices(kind, places.dtype)
        some = _of_kind(seen, kind, count)
        torch.mm(matrix, cut.view(matrix.shape[1], -1), out=some)
    return seen


def _sum(products: Tensor, squares: Tiling, shift: Tensor, into: Tensor, bench: Workbench) -> None:
    """What squares give, of their products ``(points, squares, K)``, into places ``(N, H, W, K)``."""
    count, outputs = len(into), into.shape[-1]
    for kind in squares.kinds:
        down, across = kind.down, kind.across
        _, matrix = squares.matrices(kind, into.dtype)
        some = _of_kind(products, kind, count)
        sums = bench.room("other", (len(matrix), some.shape[1]), into)
        torch.mm(matrix, some, out=sums)
        shape = (down.side, across.side, count, down.count, across.count, outputs)
        there = into[:, down.start :, across.start :]
        there = there[:, : down.count * down.side, : across.count * across.side]
        there = there.unflatten(2, (across.count, across.side)).unflatten(
            1, (down.count, down.side)
        )
        torch.add(sums.view(shape), shift, out=there.permute(2, 4, 0, 1, 3, 5))


def _of_kind(numbers: Tensor, kind: Kind, count: int) -> Tensor:
    """Those of the squares of a kind of so many maps, at their points: ``(points, squares · C)``."""
    rows = slice(count * kind.squares.start, count * kind.squares.stop)
    some = numbers[kind.points, rows]
    return some.view(len(some), -1)
