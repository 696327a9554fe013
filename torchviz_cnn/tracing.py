"""One watched forward pass: what ran, what it cost, and where its cells lie on the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from torchviz_cnn.dispatch import OperatorMode
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.guard import every_module, undisturbed
from torchviz_cnn.inputs import check_inputs, misfits_explained
from torchviz_cnn.naming import display_name, module_of, original_name, split_call
from torchviz_cnn.observe import first_tensor

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

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


def _packets(*names: str) -> frozenset[Any]:
    """Operators by name; those that this version of torch does not have are left out."""
    return frozenset(getattr(_ATEN, name) for name in names if hasattr(_ATEN, name))


# What leaves every cell where it was, wherever the map keeps its size. Operators that work number
# by number say so themselves, but for some. A view of the same two last lengths is cut out of
# memory in the same order.
_IN_PLACE = _packets(
    *("clone", "detach", "alias", "_to_copy", "lift_fresh", "copy_", "contiguous", "expand"),
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "repeat", "channel_shuffle"),
    *("native_channel_shuffle", "native_dropout", "hardswish", "hardswish_", "_prelu_kernel"),
    *("rrelu_with_noise", "log_sigmoid_forward", "_adaptive_avg_pool2d", "adaptive_max_pool2d"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_native_batch_norm_legit_no_training"),
)
# What takes a map's size, and nothing else of it.
_NEW = _packets(
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
    *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
)
# What works along axes, and which argument says so: harmless where these are not the map's two.
_ALONG = {
    getattr(_ATEN, name): position
    for position, names in {
        1: "_softmax _log_softmax cumsum flip index_select gather sort glu cat stack slice select "
        "unbind mean sum amax amin max min prod var std logsumexp squeeze unsqueeze any all",
        2: "roll split split_with_sizes topk linalg_vector_norm",
    }.items()
    for name in names.split()
}
# What mixes all cells and leaves the map's size.
_NORMALISING = _packets(
    "native_group_norm", "native_layer_norm", "_native_batch_norm_legit", "_fused_rms_norm"
)
_WITH_STATISTICS = _packets("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
_MIXING = _packets("_softmax", "_log_softmax", "cumsum")


def _moves(packet: Any, args: tuple[Any, ...], pointwise: bool, out: Tensor) -> bool | None:
    """What an operator that keeps the size of a map does with its cells.

    Returns:
        ``False`` where each stays in its place, ``True`` where each may see all of them; ``None``
        where it is not known, or they change places.
    """
    if pointwise or packet in _IN_PLACE:
        return False
    if packet in _NORMALISING:
        return True
    if packet in _WITH_STATISTICS:
        return bool(args[5])  # those of the maps themselves
    if packet in (_ATEN.permute, _ATEN.transpose):
        axes = list(range(out.ndim))
        if packet is _ATEN.permute:
            axes = [axis % out.ndim for axis in args[1]]
        else:
            first, second = args[1:3]
            axes[first], axes[second] = axes[second], axes[first]
        return False if axes[-2:] == [out.ndim - 2, out.ndim - 1] else None
    if packet is _ATEN.index:
        return False if len(args[1]) <= args[0].ndim - 2 else None
    if packet is _ATEN.avg_pool3d:
        return False if list(args[1][-2:]) == [1, 1] else None
    if packet in _ALONG and len(args) >= _ALONG[packet]:
        given = args[_ALONG[packet]] if len(args) > _ALONG[packet] else 0
        axes = [given] if isinstance(given, int) else list(given or ())
        if not all(isinstance(axis, int) for axis in axes):
            return None
        ndim = max(out.ndim, args[0].ndim if isinstance(args[0], Tensor) else 0)
        if axes and all(axis % ndim < ndim - 2 for axis in axes):
            return False
        return True if packet in _MIXING else None
    return None


def _place_after(
    packet: Any, args: tuple[Any, ...], out: Tensor, *, pointwise: bool
) -> Place | None:
    """Where an operator's output lies, from where its inputs lie; ``None`` where it is not known.

    Positions of the arguments are those of the operators' schemas.
    """
    sources = [
        each for each in _flat(args) if isinstance(each, Tensor) and _comes_from_picture(each)
    ]
    source = next((each for each in sources if _place_of(each)), None)
    if source is None:
        return None
    place: Place = _place_of(source)  # type: ignore[assignment]
    if packet is _ATEN.convolution:
        _, weight, _, stride, padding, dilation, transposed = args[:7]
        return _window(place, weight.shape[2:], stride, padding, dilation, transposed=transposed)
    if packet in (_ATEN.max_pool2d_with_indices, _ATEN.max_pool2d, _ATEN.avg_pool2d):
        kernel, stride, padding, dilation = (*args[1:5], *([], 0, 1)[len(args) - 2 :])[:4]
        return _window(
            place, kernel, stride, padding, 1 if packet is _ATEN.avg_pool2d else dilation
        )
    if packet is _ATEN.constant_pad_nd:
        left, _, top = (*args[1], 0, 0, 0)[:3]
        return place.moved((-top, -left))
    moves = _moves(packet, args, pointwise, out)
    if moves is None or out.shape[-2:] != source.shape[-2:]:
        return None
    if moves:
        place = replace(place, extent=(math.inf, math.inf))
    for other in sources:
        if other is source:
            continue
        known = _place_of(other) if other.shape[-2:] == source.shape[-2:] else None
        # What has no place on the picture, such as the mean of a map, may have seen all of it.
        place = place.joined(known or replace(place, extent=(math.inf, math.inf)))
    return place


def _flat(args: tuple[Any, ...]) -> list[Any]:
    return [inner for each in args for inner in (each if isinstance(each, list) else [each])]


def _place_of(tensor: Tensor) -> Place | None:
    # On the tensor itself, so that it is forgotten when the tensor is.
    return getattr(tensor, "_torchviz_cnn_place", None)


def _comes_from_picture(tensor: Tensor) -> bool:
    """Whether the picture has a part in it, at a known place or not."""
    return hasattr(tensor, "_torchviz_cnn_place")


def _follow(function: Any, args: tuple[Any, ...], out: Any) -> None:
    """Note on an operator's outputs where they lie, if the picture has a part in them."""
    packet, pointwise = function._overloadpacket, torch.Tag.pointwise in function.tags
    if packet in _NEW:
        return
    if packet is _ATEN.copy_:
        args = args[1:]  # what was there is gone
    if not any(isinstance(each, Tensor) and _comes_from_picture(each) for each in _flat(args)):
        return
    for each in out if isinstance(out, tuple | list) else [out]:
        if isinstance(each, Tensor):
            known = each.ndim >= 2
            place = _place_after(packet, args, each, pointwise=pointwise) if known else None
            each._torchviz_cnn_place = place  # type: ignore[attr-defined]


@dataclass
class Run:
    """One run of one module."""

    name: str
    shape: tuple[int, ...] | None = None
    macs: int = 0
    place: Place | None = None


@dataclass
class Trace:
    """One forward pass: module runs in the order they finished, and what the convolutions made."""

    runs: list[Run] = field(default_factory=list)
    convolutions: list[tuple[int, ...]] = field(default_factory=list)
    default: str | None = None

    def of(self, module: nn.Module, layer: str) -> list[Run]:
        """The runs of a layer given by name or alias; all of them, or the one it says."""
        base, call = split_call(module, layer)
        name = original_name(module, base)
        runs = [run for run in self.runs if run.name == name]
        if "@" not in layer or call is None or base == layer:
            return runs
        return runs[call : call + 1]


class _CostMode(OperatorMode):
    """Counts multiply-adds into the innermost module that is running; notes convolutions.

    Seeing operators rather than modules, it does not miss ``F.conv2d`` or ``x @ w``.
    """

    def __init__(self, trace: Trace, running: list[Run]) -> None:
        super().__init__()
        self.trace = trace
        self.running = running

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            # Two floating-point operations, one multiplication and one addition, make a MAC.
            macs = flop_registry[packet](*args, **kwargs, out_val=out) // 2
            for run in self.running:
                run.macs += macs
        if packet is torch.ops.aten.convolution and isinstance(out, Tensor):
            self.trace.convolutions.append(tuple(out.shape))
        _follow(func, args, out)
        return out


@contextmanager
def _watching(module: nn.Module) -> Iterator[Trace]:
    """Note every module's runs in the last forward pass of the block."""
    trace, running = Trace(), list[Run]()
    handles = []

    def begin(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        trace.runs.clear()
        trace.convolutions.clear()
        running.clear()
        if inputs and isinstance(inputs[0], Tensor):
            inputs[0]._torchviz_cnn_place = Place()  # type: ignore[attr-defined]

    def enter(name: str) -> Any:
        return lambda _module, _inputs: running.append(Run(name))

    def leave(_module: nn.Module, _inputs: object, output: object) -> None:
        run = running.pop()
        tensor = first_tensor(output)
        run.shape = None if tensor is None else tuple(tensor.shape)
        run.place = None if tensor is None else _place_of(tensor)
        trace.runs.append(run)

    try:
        handles.append(module.register_forward_pre_hook(begin))
        for name, child in module.named_modules():
            handles.append(child.register_forward_pre_hook(enter(name)))
            handles.append(child.register_forward_hook(leave))
        with _CostMode(trace, running):
            yield trace
    finally:
        for handle in handles:
            handle.remove()


def watch(module: nn.Module, inputs: Tensor) -> Trace:
    """Run ``module`` once, undisturbed and without a graph, and note every module's runs."""
    with misfits_explained(module, inputs), undisturbed(module, inputs), _watching(module) as trace:
        module(inputs.clone())
    return trace


# network -> (input shape, what it is made of) -> what was seen
_TRACES: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Trace]] = WeakKeyDictionary()


def _traces(module: nn.Module, inputs: Tensor) -> tuple[dict[tuple[object, ...], Trace], Any]:
    """What has been seen of a network, and the key of what ``inputs`` would show.

    It is another network once a part has been exchanged.
    """
    known = _TRACES.setdefault(module, {})
    if len(known) >= 64:  # many sizes, or a network rebuilt again and again
        known.clear()
    return known, (*inputs.shape[1:], *map(_identity, every_module(module)))


def remembered(module: nn.Module, inputs: Tensor) -> Trace:
    """What one image of ``inputs`` showed; run anew when the network has been changed."""
    known, key = _traces(module, inputs)
    if key not in known:
        try:
            known[key] = watch(module, inputs[:1])
        except (RuntimeError, ValueError) as error:
            refused = isinstance(error, InputError) and error.__cause__ is None
            if len(inputs) == 1 or refused:
                raise
            known[key] = watch(module, inputs)  # a network for batches of one size, or of several
    return known[key]


@contextmanager
def traced(module: nn.Module, inputs: Tensor) -> Iterator[Trace]:
    """Watch the forward pass of the block, unless one of that size has been watched before.

    Whoever runs the network anyway need not run it again to know where its cells lie.

    Yields:
        The trace; filled when the block has ended.
    """
    known, key = _traces(module, inputs)
    if key in known:
        yield known[key]
        return
    with _watching(module) as trace:
        yield trace
    known[key] = trace


def place_of_layer(module: nn.Module, layer: str, trace: Trace) -> Place | None:
    """Where the cells of a layer's output lie on the picture; ``None`` where it is not known.

    Args:
        module: an unwrapped network.
        layer: a name or alias; of several runs the last, unless it says which.
        trace: of a forward pass of it.
    """
    runs = trace.of(module, layer)
    return runs[-1].place if runs else None


def default_layer(model: nn.Module | Model, inputs: Tensor) -> str:
    """The layer Grad-CAM looks at when none is named.

    The last named module to finish whose output has the spatial size of the last convolution's
    output. That is after the convolution's batch norm, activation and skip connection: ``layer4``
    of a ResNet, ``features.29`` of VGG16. Convolutions that put out a single cell (the gates of
    squeeze-and-excitation, classifiers written as 1×1 convolutions after pooling) do not count, nor
    does a container that holds every convolution of the network: it is the trunk, not a layer.

    Args:
        model: any network.
        inputs: ``(N, C, H, W)`` or ``(N, H, W)``; one image of it is run, the answer is remembered.

    Raises:
        InputError: for bad inputs.
        NotApplicable: when no convolution with more than one output cell runs.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> tvc.default_layer(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64))
        'layer4'
    """
    module = module_of(model)
    trace = remembered(module, check_inputs(model, module, inputs))
    if trace.default is None:
        trace.default = _find_default_layer(module, trace)
    return display_name(module, trace.default)


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "output_size")


def _identity(module: nn.Module) -> object:
    """What tells a module from another as far as sizes are concerned."""
    own = module.__dict__
    if "kernel_size" in own or "output_size" in own:
        return id(module), str([own.get(name) for name in _GEOMETRY])
    return id(module)


def _find_default_layer(module: nn.Module, trace: Trace) -> str:
    sizes = [shape[2:] for shape in trace.convolutions if max(shape[2:], default=1) > 1]
    if not sizes:
        raise NotApplicable(
            "no convolution of this network puts out a map, so there is nothing for Grad-CAM to "
            "weigh; name a layer with a spatial output, or use saliency or occlusion"
        )
    convolutions = {m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    for run in reversed(trace.runs):
        if not run.name or run.shape is None or run.shape[2:] != sizes[-1]:
            continue
        inside = {m for m in module.get_submodule(run.name).modules() if m in convolutions}
        if len(convolutions) > 1 and inside == convolutions:
            continue
        return run.name
    raise NotApplicable(
        "the last convolution of this network belongs to no named module; name a layer"
    )
