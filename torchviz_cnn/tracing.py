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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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


def _place_after(packet: Any, args: tuple[Any, ...], out: Tensor) -> Place | None:
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
    if packet is _ATEN.slice and source.ndim - args[1] % source.ndim <= 2:
        return None  # cut along an axis of the picture
    if out.shape[-2:] != source.shape[-2:]:
        return None
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


def _follow(packet: Any, args: tuple[Any, ...], out: Any) -> None:
    """Note on an operator's outputs where they lie, if the picture has a part in them."""
    if not any(isinstance(each, Tensor) and _comes_from_picture(each) for each in _flat(args)):
        return
    for each in out if isinstance(out, tuple | list) else [out]:
        if isinstance(each, Tensor):
            place = _place_after(packet, args, each) if each.ndim >= 2 else None
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


class _CostMode(TorchDispatchMode):
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
        _follow(packet, args, out)
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
