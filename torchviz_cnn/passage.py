"""A forward pass watched step by step: the modules that run, and the operators between them.

Activations and poolings written as functions in a network's ``forward`` have no name and no module;
they are seen among the operators that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.axes import channels_last, widths_of
from torchviz_cnn.dispatch import OperatorMode
from torchviz_cnn.errors import InputError
from torchviz_cnn.naming import Layer, display_name
from torchviz_cnn.observe import Enough, first_tensor
from torchviz_cnn.steps import Answer, Kind, Sparsity, Step, as_maps, same
from torchviz_cnn.words import a

_ATEN = torch.ops.aten

_ACTIVATIONS = {
    packet: name
    for name in (
        "relu",
        "hardtanh",
        "leaky_relu",
        "elu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "softplus",
        "threshold",
        "clamp",
        "clamp_min",
        "_prelu_kernel",
        "_softmax",
        "_log_softmax",
    )
    for packet in (getattr(_ATEN, name, None), getattr(_ATEN, f"{name}_", None))
    if packet is not None
}
_POOLINGS = {
    getattr(_ATEN, name): name.removeprefix("_").removesuffix("_with_indices")
    for name in (
        "max_pool2d",
        "max_pool2d_with_indices",
        "avg_pool2d",
        "_adaptive_avg_pool2d",
        "adaptive_max_pool2d",
    )
}
# What these put out can be exactly 0: of them it can be said how sparse they are.
_RECTIFIERS = {"relu", "hardtanh", "threshold", "clamp", "clamp_min", "hardswish", "hardsigmoid"}
# What makes scores of classes to be put out of it.
_CLOSING: dict[str, Answer] = {
    "softmax": "probability",
    "log_softmax": "score",
    "sigmoid": "probability",
}


@dataclass
class _Event:
    """One activation or pooling among the operators."""

    function: str
    kind: Kind
    before: Tensor
    after: Tensor
    name: str
    part: nn.Module | None


@dataclass
class _Frame:
    """A module that is running."""

    name: str
    module: nn.Module
    call: int
    wanted: str | None = None
    before: Tensor | None = None
    last: _Event | None = None


class Passage(OperatorMode):
    """Watches one forward pass: modules by hooks, functions without a module as operators."""

    def __init__(
        self,
        module: nn.Module,
        chosen: list[Layer],
        size: tuple[int, ...],
        classes: Sequence[str] | None,
        *,
        whole: bool,
    ) -> None:
        super().__init__()
        self.root = module
        self.whole = whole
        self.size = size
        self.classes = classes
        self.by_module: dict[nn.Module, list[Layer]] = {}
        for layer in chosen:
            self.by_module.setdefault(layer.module, []).append(layer)
        self.names = {m: n for n, m in module.named_modules()}
        self.calls: dict[nn.Module, int] = {}
        self.pending = {(layer.name, layer.call) for layer in chosen}
        self.endless = whole or any(layer.call is None for layer in chosen)
        self.running: list[_Frame] = []
        self.steps: list[Step] = []
        self.sparsity: list[Sparsity] = []
        self.widths = widths_of(module)
        self.functions: set[str] = set()  # names of steps that are no modules
        self.seen: set[str] = set()
        self.unseen: list[str] = []
        self.uncounted: list[str] = []  # of sparsity over depth
        self.latest = "the input"
        self.last: _Event | None = None
        self.at_the_end = False
        self.answers: list[tuple[Tensor, Answer]] = []

    # ---- modules --------------------------------------------------------------------------------

    def attach(self) -> list[Any]:
        handles = []
        for child in self.names:
            if child is not self.root or child in self.by_module:
                handles.append(child.register_forward_pre_hook(self.enter))
                handles.append(child.register_forward_hook(self.leave))
        return handles

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        call = self.calls.get(module, 0)
        self.calls[module] = call + 1
        name = display_name(self.root, self.names[module]) + (f"@{call}" if call else "")
        frame = _Frame(name, module, call)
        for layer in self.by_module.get(module, ()):
            if layer.call in (None, call):
                frame.wanted = layer.key(call)
        given = _numbers(first_tensor(inputs))
        if given is not None and frame.wanted is not None and _looks_back(kind_of(module)):
            frame.before = given.detach().clone()
        self.running.append(frame)

    def leave(self, module: nn.Module, _inputs: object, output: object) -> None:
        frame = self.running.pop()
        if frame.module is not module:  # a module that failed and was caught left its frame behind
            while self.running and frame.module is not module:
                frame = self.running.pop()
        self.latest = frame.name
        if frame.wanted is not None:
            self.done(frame, output)

    def done(self, frame: _Frame, output: object) -> None:
        tensor = _numbers(first_tensor(output))
        wanted = [
            layer for layer in self.by_module[frame.module] if layer.call in (None, frame.call)
        ]
        if tensor is None:
            if explicit := [layer.name for layer in wanted if layer.explicit and not self.whole]:
                raise InputError(
                    f"the layer {explicit[0]!r} puts out {a(type(output).__name__)}, not a tensor"
                )
        elif tensor.ndim == 0 or len(tensor) != 1:
            self.unseen.append(f"{frame.name} is not drawn: {_no_batch(tensor)}")
            self.seen.update(layer.key(frame.call) for layer in wanted)
        else:
            self.seen.update(layer.key(frame.call) for layer in wanted)
            self.steps.append(self.step(frame, tensor))
            if self.whole and (step := self.closing_activation(frame, tensor)):
                self.steps.append(step)
        self.pending -= {(layer.name, layer.call) for layer in wanted}
        if not self.endless and not self.pending and not self.may_answer():
            raise Enough

    def may_answer(self) -> bool:
        """Whether a step is a row as long as there are classes: what the network puts out tells."""
        if self.classes is None:
            return False
        counts = (len(self.classes), 1 if len(self.classes) == 2 else None)
        return any(each.units is not None and len(each.units) in counts for each in self.steps)

    def step(self, frame: _Frame, tensor: Tensor) -> Step:
        kind = kind_of(frame.module)
        type_name = str(getattr(frame.module, "layer_type", type(frame.module).__name__))
        before = frame.before
        return Step(
            frame.wanted or frame.name,
            type_name,
            kind,
            tensor.detach()[0].clone(),
            None if before is None or len(before) != len(tensor) else before[0],
        )

    def closing_activation(self, frame: _Frame, output: Tensor) -> Step | None:
        """The activation a layer ends with, where it is not the layer itself."""
        event = frame.last
        if event is None or kind_of(frame.module) == "activation":
            return None
        if event.kind != "activation" or event.after.shape != output.shape:
            return None
        if not same(event.after, output):
            return None
        return self.event_step(event)

    # ---- operators ------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        packet = func._overloadpacket
        found = _function(packet, args, kwargs)
        if found is None or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        before = args[0].detach().clone()
        out = func(*args, **kwargs)
        after = first_tensor(out)
        if after is not None and after.is_floating_point():
            if isinstance(args[0], nn.Parameter):
                self.pass_over(*found, "it is computed of weights, not of the picture")
            elif before.ndim and after.ndim and len(before) == len(after) == 1:
                self.note(*found, before, after.detach())
            else:
                self.pass_over(*found, _no_batch(after))
        return out

    def name_of(self, function: str, kind: Kind) -> tuple[str, nn.Module | None]:
        """What a function is called, and the module whose function it is, where there is one."""
        inside = self.running[-1] if self.running else None
        if inside is not None and kind_of(inside.module) == kind:
            return inside.name, inside.module
        return f"{function} after {self.latest}", None

    def pass_over(self, function: str, kind: Kind, why: str) -> None:
        """Tell what is left out that would have been drawn, or counted."""
        name, _ = self.name_of(function, kind)
        if self.whole and not any(frame.wanted is not None for frame in self.running):
            self.unseen.append(f"{name} is not drawn: {why}")
        elif function in _RECTIFIERS:
            self.uncounted.append(f"{name} is not counted: {why}")

    def note(self, function: str, kind: Kind, before: Tensor, after: Tensor) -> None:
        name, part = self.name_of(function, kind)
        event = self.last = _Event(function, kind, before, after.clone(), name, part)
        if kind == "activation" and function in _RECTIFIERS:
            last = channels_last(tuple(after.shape[1:]), self.size, self.widths)
            self.sparsity.append(_sparsity(name, event.after[0], last=last))
        walked = [frame for frame in self.running if frame.wanted is not None]
        for frame in walked:
            frame.last = event
        if self.whole and not walked:
            self.steps.append(self.event_step(event))

    def event_step(self, event: _Event) -> Step:
        type_name = event.function
        if event.part is None:
            self.functions.add(event.name)
        else:
            type_name = str(getattr(event.part, "layer_type", type(event.part).__name__))
        return Step(event.name, type_name, event.kind, event.after[0], event.before[0])

    # ---- afterwards -----------------------------------------------------------------------------

    def ended(self, output: object) -> None:
        """The network ran to its end and put this out."""
        self.at_the_end = True
        self.unseen += self.uncounted
        tensor = _numbers(first_tensor(output))
        if tensor is None:
            return
        tensor, event = tensor.detach().flatten(), self.last
        kind: Answer = "score"
        closes = event is not None and event.function in _CLOSING
        if closes and event is not None and _same(event.after.flatten(), tensor):
            self.answers.append((event.before.flatten(), "score"))
            kind = _CLOSING[event.function]
        self.answers.append((tensor, kind))

    def finished(self) -> list[Step]:
        """The steps, with their channels' axis found, and those that are the network's answer."""
        return [
            replace(
                step,
                channels_last=channels_last(tuple(step.output.shape), self.size, self.widths),
                answer=self.answer_in(step),
            )
            for step in self.steps
        ]

    def answer_in(self, step: Step) -> Answer | None:
        units = step.units
        if units is None:
            return None
        return next((kind for each, kind in self.answers if _same(each, units)), None)


def _numbers(tensor: Tensor | None) -> Tensor | None:
    """What a layer of a quantised network puts out, as the numbers that are meant."""
    return tensor.dequantize() if tensor is not None and tensor.is_quantized else tensor


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether numbers are the same, in whichever precision they went on."""
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)


def _no_batch(tensor: Tensor) -> str:
    size = "×".join(map(str, tensor.shape)) or "a single number"
    return f"of one picture it makes {size}, no batch of one"


def _function(
    packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, Kind] | None:
    """What an operator is called, and does, if it is an activation or a pooling."""
    name = _ACTIVATIONS.get(packet)
    if name in ("clamp", "clamp_min", "hardtanh"):
        low = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
        if isinstance(low, Tensor) or low != 0:
            return None  # cuts something off, and is no ReLU
    if name is not None:
        return name.strip("_").removesuffix("_kernel"), "activation"
    if packet in _POOLINGS:
        return _POOLINGS[packet], "pooling"
    over_places = packet is _ATEN.mean and len(args) > 1 and isinstance(args[0], Tensor)
    if over_places and args[0].ndim == 4 and sorted(d % 4 for d in args[1] or ()) == [2, 3]:
        return "mean over places", "pooling"
    return None


def _sparsity(name: str, output: Tensor, *, last: bool) -> Sparsity:
    silent = output == 0
    maps = as_maps(silent, last=last)
    dead = None if maps is None else float(maps.flatten(1).all(1).double().mean())
    return Sparsity(name, float(silent.double().mean()), dead)


_LOOK_BACK = {"activation", "pooling", "normalisation", "dropout", "flatten"}


def _looks_back(kind: Kind) -> bool:
    return kind in _LOOK_BACK


# By torch's classes; then by what an imported or own layer calls itself.
_CLASSES: tuple[tuple[tuple[type, ...], Kind], ...] = (
    ((nn.modules.conv._ConvNd,), "convolution"),
    ((nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm), "normalisation"),
    ((nn.modules.dropout._DropoutNd, nn.Identity), "dropout"),
    ((nn.Flatten,), "flatten"),
    ((nn.Linear,), "dense"),
)
_WORDS: tuple[tuple[str, Kind], ...] = (
    ("conv", "convolution"),
    ("pool", "pooling"),
    ("norm", "normalisation"),
    ("drop", "dropout"),
    ("stochasticdepth", "dropout"),
    ("flatten", "flatten"),
    ("dense", "dense"),
    ("activation", "activation"),
    ("relu", "activation"),
    ("softmax", "activation"),
    ("sigmoid", "activation"),
)
_OF_ACTIVATION = "torch.nn.modules.activation"


def kind_of(module: nn.Module) -> Kind:
    """What a layer does, as far as it can be told from its class.

    A container says so only where it declares itself to be one layer.

    Example:
        >>> kind_of(nn.Conv2d(3, 8, 3)), kind_of(nn.ReLU6()), kind_of(nn.Sequential())
        ('convolution', 'activation', 'other')
    """
    for classes, kind in _CLASSES:
        if isinstance(module, classes):
            return kind
    if type(module).__module__ == _OF_ACTIVATION and not isinstance(module, nn.MultiheadAttention):
        return "activation"
    declared = getattr(module, "layer_type", None)
    if declared is None and any(True for _ in module.children()):
        return "other"
    name = str(declared or type(module).__name__).lower()
    return next((kind for word, kind in _WORDS if word in name), "other")
