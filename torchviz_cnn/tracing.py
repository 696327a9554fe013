"""One watched forward pass: what ran, what it cost, and where its cells lie on the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from torchviz_cnn.dispatch import OperatorMode
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.guard import every_module, undisturbed
from torchviz_cnn.inputs import check_inputs, misfits_explained
from torchviz_cnn.naming import display_name, module_of, original_name, split_call
from torchviz_cnn.observe import first_tensor
from torchviz_cnn.places import Place, follow, lay, place_of
from torchviz_cnn.words import counted, were_given

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


@dataclass
class Run:
    """One run of one module."""

    name: str
    shape: tuple[int, ...] | None = None
    macs: int = 0
    place: Place | None = None


@dataclass
class Trace:
    """One forward pass: module runs in the order they finished, and what the convolutions made.

    ``pictures`` is how many were shown.
    """

    runs: list[Run] = field(default_factory=list)
    convolutions: list[tuple[int, ...]] = field(default_factory=list)
    default: Run | None = None
    pictures: int = 0

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
        if torch.is_inference_mode_enabled():  # operators come whole there: a conv2d, a linear
            with self:
                parts: Any = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        packed = _packed_weight(packet, args)
        if packed is not None:
            macs = out.numel() * packed[0].numel()
        elif packet in _FUSED:
            macs = _FUSED[packet](*args)
        elif packet in flop_registry:
            # Two floating-point operations, one multiplication and one addition, make a MAC.
            macs = flop_registry[packet](*args, **kwargs, out_val=out) // 2
        else:
            macs = 0
        for run in self.running:
            run.macs += macs
        if isinstance(out, Tensor) and (
            packet is torch.ops.aten.convolution or (packed is not None and packed.ndim > 2)
        ):
            self.trace.convolutions.append(tuple(out.shape))
        follow(func, args, kwargs, out)
        return out


def _attention_macs(query: Tensor, _key: Tensor, _value: Tensor, width: int, *_: object) -> int:
    """Of self-attention: each token is projected four times, and meets every token twice."""
    if query.is_nested:  # sequences of several lengths: no shape
        return 0
    sequences, tokens = query.shape[:2]
    return sequences * tokens * width * (4 * width + 2 * tokens)


def _recurrent_macs(inputs: Tensor, of_input: Tensor, of_state: Tensor, *_: object) -> int:
    """Of a recurrent layer: both its weights are needed at every step of every sequence."""
    return inputs.shape[0] * inputs.shape[1] * (of_input.numel() + of_state.numel())


# What torch takes for several operators where there is no graph, and its counter does not know.
_FUSED: dict[object, Callable[..., int]] = {
    torch.ops.aten._native_multi_head_attention: _attention_macs,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_macs,
}


def _packed_weight(packet: Any, args: tuple[Any, ...]) -> Tensor | None:
    """The weight of a quantised convolution or linear layer, one row of it for each channel put out.

    ``None`` for every other operator.
    """
    name = str(packet)
    if not name.startswith(("quantized.conv", "quantized.linear")) or "transpose" in name:
        return None
    weight: Tensor | None = args[1].unpack()[0] if hasattr(args[1], "unpack") else None
    return weight


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
            trace.pictures = len(inputs[0])
            lay(inputs[0], Place())

    def enter(name: str) -> Any:
        return lambda _module, _inputs: running.append(Run(name))

    def leave(name: str) -> Any:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            run = running.pop()
            while run.name != name:  # a module that failed, and was caught, left its run behind
                run = running.pop()
            tensor = first_tensor(output)
            run.shape = None if tensor is None else tuple(tensor.shape)
            run.place = None if tensor is None else place_of(tensor)
            trace.runs.append(run)

        return note

    try:
        handles.append(module.register_forward_pre_hook(begin))
        for name, child in module.named_modules():
            handles.append(child.register_forward_pre_hook(enter(name)))
            handles.append(child.register_forward_hook(leave(name)))
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
    does a container that holds every convolution of the network: it is the trunk, not a layer; nor a
    transpose that a file has between its layers.

    Args:
        model: any network.
        inputs: ``(N, C, H, W)`` or ``(N, H, W)``; one image of it is run, the answer is remembered.

    Raises:
        InputError: for bad inputs.
        NotApplicable: when no convolution with more than one output cell runs, it sees parts of the
            pictures one by one, or most of what the network computes follows it, on tokens: a
            transformer's patches are no features.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> tvc.default_layer(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64))
        'layer4'
    """
    module = module_of(model)
    return display_name(module, default_run(module, check_inputs(model, module, inputs)).name)


def default_run(module: nn.Module, inputs: Tensor) -> Run:
    """The run of the :func:`default_layer` of an unwrapped network, for checked inputs."""
    trace = remembered(module, inputs)
    if trace.default is None:
        trace.default = _find_default_layer(module, trace)
    return trace.default


_GEOMETRY = (
    *("kernel_size", "stride", "padding", "dilation", "ceil_mode", "output_size"),
    *("size", "scale_factor"),
)


def _identity(module: nn.Module) -> object:
    """What tells a module from another as far as sizes are concerned."""
    own = module.__dict__
    itself = ref(module)  # no number: another may be given it when this one is gone
    if "kernel_size" in own or "output_size" in own or "scale_factor" in own:
        return itself, str([own.get(name) for name in _GEOMETRY])
    return itself


def _check_is_late(trace: Trace, index: int) -> None:
    """Refuse the last map of a network that computes on in another form, as transformers do.

    Linear layers behind flattened maps are no such form: they give one row an image.

    Raises:
        NotApplicable: when over half of the multiply-adds follow, of tokens or of maps with the
            channels last.
    """
    behind = trace.runs[index + 1 :]
    follows = sum(run.macs for run in behind if len(run.shape or ()) > 2)
    share = follows / max(1, sum(run.macs for run in trace.runs))
    if share <= 0.5:
        return
    shapes = {run.name: run.shape for run in behind if run.name and run.shape}
    grid = tuple((trace.runs[index].shape or ())[2:])
    maps = [name for name, shape in shapes.items() if _has_places(shape, grid)]
    raise NotApplicable(
        f"the last convolution's map, {trace.runs[index].name!r}, says little of what this network "
        f"sees: {share:.0%} of its multiply-adds follow, as a transformer's do; "
        + (f"name a later layer, such as {maps[-1]!r}, " if maps else "")
        + "or use saliency or occlusion".removeprefix("" if maps else "or ")
    )


def _has_places(shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether these are maps with the proportions of the patches, channels first or last.

    The keys of an attention have four axes too: heads, tokens and their numbers.
    """
    if len(shape) != 4 or len(grid) != 2 or min(shape[1:]) == 1:
        return False
    sides = (shape[2:], shape[1:3])
    return any(abs(h * grid[1] - w * grid[0]) <= max(grid) for h, w in sides)


def _only_moves_axes(layer: nn.Module) -> bool:
    """A transpose, such as exporters put between layers: it computes no map of its own."""
    return getattr(layer, "moves_axes", None) is True


def maps_of_parts(layer: str, found: int, pictures: int) -> str:
    """What is said of a layer that puts out another number of maps than pictures were given."""
    return (
        f"the layer {layer!r} puts out the maps of {counted(found, 'picture')} where "
        f"{were_given(pictures, 'picture')}, as where a network cuts them up or looks at each "
        "several times; choose a layer that looks at each once, or use saliency or occlusion"
    )


def _find_default_layer(module: nn.Module, trace: Trace) -> Run:
    sizes = [shape[2:] for shape in trace.convolutions if max(shape[2:], default=1) > 1]
    if not sizes:
        raise NotApplicable(
            "no convolution of this network puts out a map, so there is nothing for Grad-CAM to "
            "weigh; name a layer with a spatial output, or use saliency or occlusion"
        )
    convolutions = {m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    for index, run in reversed(list(enumerate(trace.runs))):
        if not run.name or run.shape is None or run.shape[2:] != sizes[-1]:
            continue
        layer = module.get_submodule(run.name)
        inside = {m for m in layer.modules() if m in convolutions}
        if len(convolutions) > 1 and inside == convolutions:
            continue
        if _only_moves_axes(layer):
            continue
        _check_is_late(trace, index)
        if run.shape[0] != trace.pictures:
            name = display_name(module, run.name)
            raise NotApplicable(maps_of_parts(name, run.shape[0], trace.pictures))
        return run
    raise NotApplicable(
        "the last convolution of this network belongs to no named module; name a layer"
    )
