"""Where the cells of a map lie on the picture, followed from operator to operator."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Place:
    """Where the cells of a map lie on the picture, in pixels; pixel i reaches from i to i + 1.

    Attributes:
        centre: of the first cell's receptive field, ``(y, x)``.
        step: from one cell to the next.
        extent: height and width of a receptive field; infinite where a cell may see everything.
    """

    centre: tuple[float, float] = (0.5, 0.5)
    step: tuple[float, float] = (1.0, 1.0)
    extent: tuple[float, float] = (1.0, 1.0)

    def moved(self, cells: tuple[float, float]) -> Place:
        """With the first cell so many cells further."""
        y, x = (c + s * n for c, s, n in zip(self.centre, self.step, cells, strict=True))
        return replace(self, centre=(y, x))

    def strided(self, factor: tuple[float, float]) -> Place:
        """With only every ``factor``-th cell."""
        return replace(self, step=(self.step[0] * factor[0], self.step[1] * factor[1]))

    def widened(self, cells: tuple[float, float]) -> Place:
        """With fields that reach over so many cells more."""
        y, x = (e + s * n for e, s, n in zip(self.extent, self.step, cells, strict=True))
        return replace(self, extent=(y, x))

    def joined(self, other: Place) -> Place:
        """With fields that cover those of both."""
        if self.extent == (math.inf, math.inf) or self == other:
            return self
        if not all(math.isclose(a, b) for a, b in zip(self.step, other.step, strict=True)):
            return replace(self, extent=(math.inf, math.inf))
        low = [min(p.centre[i] - p.extent[i] / 2 for p in (self, other)) for i in (0, 1)]
        high = [max(p.centre[i] + p.extent[i] / 2 for p in (self, other)) for i in (0, 1)]
        if math.inf in high:
            return replace(self, extent=(math.inf, math.inf))
        return replace(
            self,
            centre=((low[0] + high[0]) / 2, (low[1] + high[1]) / 2),
            extent=(high[0] - low[0], high[1] - low[1]),
        )


def _two(values: Any, default: float = 0) -> tuple[float, float]:
    if isinstance(values, int | float):
        return values, values
    values = list(values)
    if not values:
        return default, default
    values = values[-2:]  # what goes before them is depth
    return (values[0], values[-1])


def _window(
    place: Place, kernel: Any, stride: Any, padding: Any, dilation: Any, *, transposed: bool = False
) -> Place:
    """The place of what slides a window over a map: its first cell is the window's middle."""
    kernel, padding, dilation = _two(kernel), _two(padding), _two(dilation, 1)
    stride = _two(stride) if stride not in ([], ()) else kernel
    middle = [d * (k - 1) / 2 - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    reach = (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
    if transposed:
        finer = place.strided((1 / stride[0], 1 / stride[1]))
        return finer.moved((-middle[0], -middle[1])).widened(reach)
    return place.moved((middle[0], middle[1])).widened(reach).strided(stride)


def _packets(names: str) -> frozenset[Any]:
    """Operators by name, and those that do the same to their argument itself.

    Those that this version of torch does not have are left out.
    """
    every = (f"{name}{ending}" for name in names.split() for ending in ("", "_"))
    return frozenset(getattr(_ATEN, name) for name in every if hasattr(_ATEN, name))


# What leaves every cell where it was, wherever the map keeps its size. Operators that work number
# by number say so themselves, but for these (the last three only in torch 2.6) …
_NUMBER_BY_NUMBER = _packets(
    "hardswish _prelu_kernel rrelu_with_noise log_sigmoid_forward _add_relu masked_fill rsub xlogy "
    "floor_divide complex polar fill zero dequantize fake_quantize_per_tensor_affine_cachemask "
    "fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine "
    "_fake_quantize_learnable_per_channel_affine "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams bernoulli native_dropout "
    "_fused_dropout _masked_scale leaky_relu ldexp _conj_physical"
)
# … and those that hand the numbers on. A view of the same two last lengths is cut out of memory in
# the same order, and a map that is resized to its own size stays what it is.
_IN_PLACE = _packets(
    "clone detach alias _to_copy lift lift_fresh copy contiguous expand view _unsafe_view reshape "
    "_reshape_alias _reshape_copy squeeze unsqueeze repeat channel_shuffle native_channel_shuffle "
    "_adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d _upsample_nearest_exact2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "_native_batch_norm_legit_no_training"
)
# What takes a map's size, and nothing else of it.
_NEW = _packets(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones "
    "new_full new_empty_strided"
)
# What works along axes: harmless where these are not the map's two …
_ALONG = _packets(
    "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp _logcumsumexp cummax cummin "
    "flip index_select index_fill gather sort glu cat stack slice select unbind mean sum amax amin "
    "max min prod var std median nanmedian logsumexp any all roll split split_with_sizes topk "
    "linalg_vector_norm"
)
# … of which these let a cell see the others of its row or column, and leave the map's size.
_MIXING = _packets(
    "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp _logcumsumexp cummax cummin"
)
# What mixes all cells and leaves the map's size.
_NORMALISING = _packets("native_group_norm native_layer_norm _fused_rms_norm")
_BATCH_NORM = _packets(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _batch_norm_with_update _batch_norm_no_update "
    "_batch_norm_with_update_functional"
)
_WITH_UPDATE = _packets("_batch_norm_with_update _batch_norm_with_update_functional")


@cache
def _works_number_by_number(function: Any) -> bool:
    """Whether each number an operator puts out is made of those at the same place alone.

    What works on its argument itself, or into ``out=``, often does not say so, even where the
    operator that makes a new tensor does.
    """
    if torch.Tag.pointwise in function.tags or function._overloadpacket in _NUMBER_BY_NUMBER:
        return True
    if function.namespace != "aten" or not function._schema.is_mutable:
        return False
    plain = getattr(_ATEN, function._overloadpacket.__name__.removesuffix("_"), None)
    overload = function._overloadname.removesuffix("out").removesuffix("_") or "default"
    twin = getattr(plain, overload, None)
    return twin is not None and torch.Tag.pointwise in twin.tags


@cache
def _parameters(function: Any) -> tuple[tuple[str, Any, bool, bool], ...]:
    """An operator's arguments: name, default, whether it is written to, whether only by name."""
    return tuple(
        (
            each.name,
            each.default_value if each.has_default_value() else None,
            each.alias_info is not None and each.alias_info.is_write,
            each.kwarg_only,
        )
        for each in function._schema.arguments
    )


def _given(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All of an operator's arguments by name; those left out have their defaults.

    Torch leaves out of ``args`` what equals the default: ``x.sort(-1)`` comes as ``x`` alone. What
    is only written to, the ``out=`` of an operator and where ``copy_`` copies to, is left out here.
    """
    found = {}
    for index, (name, default, written, by_name) in enumerate(_parameters(function)):
        if written and (by_name or function._overloadpacket is _ATEN.copy_):
            continue
        found[name] = args[index] if index < len(args) else kwargs.get(name, default)
    return found


def _moves(function: Any, given: dict[str, Any], out: Tensor) -> bool | None:
    """What an operator that keeps the size of a map does with its cells.

    Returns:
        ``False`` where each stays in its place, ``True`` where each may see all of them; ``None``
        where it is not known, or they change places.
    """
    packet = function._overloadpacket
    if packet in _IN_PLACE or _works_number_by_number(function):
        return False
    if packet in _NORMALISING:
        return True
    if packet in _BATCH_NORM:  # of the maps themselves, or of what was seen in training
        kept = given.get("running_mean") is not None
        return not kept or bool(given.get("training", packet in _WITH_UPDATE))
    if packet in (_ATEN.permute, _ATEN.transpose):
        axes = list(range(out.ndim))
        if packet is _ATEN.permute:
            axes = [axis % out.ndim for axis in given["dims"]]
        else:
            first, second = given["dim0"], given["dim1"]
            axes[first], axes[second] = axes[second], axes[first]
        return False if axes[-2:] == [out.ndim - 2, out.ndim - 1] else None
    if packet is _ATEN.index:
        return False if _axes_taken(given["indices"]) <= given["self"].ndim - 2 else None
    if packet in _PUTTING:
        return False if _is_masked_fill(given) else None
    if packet is _ATEN.avg_pool3d:
        return False if list(given["kernel_size"][-2:]) == [1, 1] else None
    if packet in _ALONG:
        return _moves_along(packet, given, out)
    return None


_PUTTING = _packets("index_put _index_put_impl _unsafe_index_put")


def _axes_taken(indices: list[Tensor | None]) -> int:
    """Over how many axes, from the first on, indices reach; a mask takes all of its own."""
    masks = (torch.bool, torch.uint8)
    return sum(1 if i is None or i.dtype not in masks else i.ndim for i in indices)


def _is_masked_fill(given: dict[str, Any]) -> bool:
    """Whether one number is written wherever a mask of the map's own shape says so."""
    indices = given["indices"]
    return (
        len(indices) == 1
        and indices[0] is not None
        and indices[0].dtype is torch.bool
        and indices[0].shape == given["self"].shape
        and given["values"].numel() == 1
    )


def _moves_along(packet: Any, given: dict[str, Any], out: Tensor) -> bool | None:
    axes = given.get("dim", given.get("dims"))
    axes = [axes] if isinstance(axes, int) else list(axes or ())
    if not all(isinstance(axis, int) for axis in axes):
        return None
    source = given.get("self")
    ndim = max(out.ndim, source.ndim if isinstance(source, Tensor) else 0)
    if axes and all(axis % ndim < ndim - 2 for axis in axes):
        return False
    return True if packet in _MIXING else None


def _place_after(function: Any, given: dict[str, Any], out: Tensor) -> Place | None:
    """Where an operator's output lies, from where its inputs lie; ``None`` where it is not known."""
    sources = [
        each
        for each in _flat(given.values())
        if isinstance(each, Tensor) and _comes_from_picture(each)
    ]
    source = next((each for each in sources if place_of(each)), None)
    if source is None:
        return None
    place: Place = place_of(source)  # type: ignore[assignment]
    packet = function._overloadpacket
    if packet is _ATEN.convolution:
        stride, padding, dilation = (given[name] for name in ("stride", "padding", "dilation"))
        kernel = given["weight"].shape[2:]
        if len(kernel) == 1:  # rows taken for channels: they have no places any more
            return None
        return _window(place, kernel, stride, padding, dilation, transposed=given["transposed"])
    if packet in (_ATEN.max_pool2d_with_indices, _ATEN.max_pool2d, _ATEN.avg_pool2d):
        kernel, stride, padding = (given[name] for name in ("kernel_size", "stride", "padding"))
        return _window(place, kernel, stride, padding, given.get("dilation", 1))
    if packet is _ATEN.constant_pad_nd:
        left, _, top = (*given["pad"], 0, 0, 0)[:3]
        return place.moved((-top, -left))
    moves = _moves(function, given, out)
    if moves is None or out.shape[-2:] != source.shape[-2:]:
        return None
    if moves:
        place = replace(place, extent=(math.inf, math.inf))
    for other in sources:
        if other is source:
            continue
        known = place_of(other) if other.shape[-2:] == source.shape[-2:] else None
        # What has no place on the picture, such as the mean of a map, may have seen all of it.
        place = place.joined(known or replace(place, extent=(math.inf, math.inf)))
    return place


def _flat(args: Iterable[Any]) -> list[Any]:
    return [
        inner for each in args for inner in (each if isinstance(each, list | tuple) else [each])
    ]


def place_of(tensor: Tensor) -> Place | None:
    """Where a tensor's cells lie; ``None`` where it is not known, or no part of it is a picture's."""
    return getattr(tensor, "_torchviz_cnn_place", None)


def lay(tensor: Tensor, place: Place | None) -> None:
    """Note where a tensor's cells lie, on itself, so that it is forgotten when the tensor is."""
    tensor._torchviz_cnn_place = place  # type: ignore[attr-defined]


def _comes_from_picture(tensor: Tensor) -> bool:
    """Whether the picture has a part in it, at a known place or not."""
    return hasattr(tensor, "_torchviz_cnn_place")


def follow(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Note on an operator's outputs where they lie, if the picture has a part in them."""
    if function._overloadpacket in _NEW:
        return
    given = _given(function, args, kwargs)
    if not any(
        isinstance(each, Tensor) and _comes_from_picture(each) for each in _flat(given.values())
    ):
        return
    for each in out if isinstance(out, tuple | list) else [out]:
        if isinstance(each, Tensor):
            place = _place_after(function, given, each) if each.ndim >= 2 else None
            lay(each, place)
            if function._schema.is_mutable and each._base is not None:
                _written_into(each._base, each, place)


def _written_into(whole: Tensor, part: Tensor, place: Place | None) -> None:
    """Note on a map that a part of it, some of its channels say, has been written to."""
    if part.shape[-2:] != whole.shape[-2:]:
        place = None
    elif place is not None and _comes_from_picture(whole):
        before = place_of(whole)
        place = before and before.joined(place)
    lay(whole, place)
