"""One picture's walk through a network: every layer's output, and what reached it.

Activations and poolings written as functions in a network's ``forward`` have no name and no module;
they are seen among the operators that run, so the walk shows them as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchviz_cnn.axes import channels_last, widths_of
from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import run
from torchviz_cnn.inputs import batch_axis_required, check_inputs, misfits_explained
from torchviz_cnn.methods.examine import examine
from torchviz_cnn.naming import Layer, display_name, known, module_of, resolve
from torchviz_cnn.observe import (
    Enough,
    LayerChoice,
    capture,
    first_tensor,
    refuse_not_run,
)
from torchviz_cnn.summary import layers as layer_table
from torchviz_cnn.targets import Target, class_label

if TYPE_CHECKING:
    from PIL import Image

    from torchviz_cnn.models import Model
    from torchviz_cnn.pictures import Picture

Kind = Literal[
    "convolution",
    "activation",
    "pooling",
    "normalisation",
    "dropout",
    "flatten",
    "dense",
    "other",
]

Answer = Literal["score", "probability"]

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


@dataclass(frozen=True, eq=False)
class Step:
    """One layer on the way: what it was given, where that is of interest, and what it put out.

    Attributes:
        name: dotted name or alias, ``@1`` for a later run; for a function in the network's own
            code what it is and where (``relu after conv1``).
        type: class of the layer, or name of the function.
        kind: what it does.
        output: what it put out for the picture, without the batch axis, as the network has it.
        before: what reached it, likewise, of activations, poolings, normalisations, dropout and
            flattening; ``None`` of the others.
        channels_last: the output is ``(h, w, C)``, as in Swin transformers.
        weights: how much each channel speaks for the class asked for, where one was.
        answer: these numbers are what the network says of its classes, their scores or their
            probabilities; ``None`` of every other step.
    """

    name: str
    type: str
    kind: Kind
    output: Tensor
    before: Tensor | None = None
    channels_last: bool = False
    weights: Tensor | None = None
    answer: Answer | None = None

    @property
    def maps(self) -> Tensor | None:
        """The output as feature maps ``(C, h, w)``; ``None`` where it has no places."""
        return _as_maps(self.output, last=self.channels_last)

    @property
    def maps_before(self) -> Tensor | None:
        """What reached the layer, likewise."""
        return None if self.before is None else _as_maps(self.before, last=self.channels_last)

    @property
    def units(self) -> Tensor | None:
        """The output as a row of numbers, ``(units,)``; ``None`` where it has places."""
        return _as_units(self.output)

    @property
    def units_before(self) -> Tensor | None:
        """What reached the layer, likewise."""
        return None if self.before is None else _as_units(self.before)

    @property
    def zeros(self) -> float:
        """The share of its numbers that are exactly 0."""
        return float((self.output == 0).double().mean())

    @property
    def silenced(self) -> float | None:
        """The share of units an activation silenced: not 0 before, 0 after."""
        share = self.silenced_by_channel
        return None if share is None else float(share.mean())

    @property
    def silenced_by_channel(self) -> Tensor | None:
        """The same for each channel, or unit: ``(C,)``."""
        if self.kind != "activation" or self.before is None:
            return None
        if self.before.shape != self.output.shape:
            return None
        gone = ((self.output == 0) & (self.before != 0)).double()
        if self.maps is None:
            return gone.flatten()
        return gone.mean((0, 1)) if self.channels_last else gone.mean((1, 2))

    @property
    def identity(self) -> bool:
        """Whether exactly what reached it went on, as through dropout in eval mode."""
        return self.before is not None and torch.equal(self.before, self.output)

    def words(self) -> str:
        """A sentence or two about what happened here."""
        from torchviz_cnn import plates

        return plates.words(self)

    def picture(self, **options: Any) -> Image.Image | None:
        """The step drawn, see :meth:`Walk.pictures`; ``None`` for neither maps nor units."""
        from torchviz_cnn import plates

        return plates.drawn(self, plates.Drawing(**options))


def _as_maps(tensor: Tensor, *, last: bool = False) -> Tensor | None:
    if tensor.ndim != 3 or _as_units(tensor) is not None:
        return None
    return tensor.movedim(-1, 0) if last else tensor


def _as_units(tensor: Tensor) -> Tensor | None:
    if tensor.ndim == 1 or (tensor.ndim == 3 and tensor.shape[1:] == (1, 1)):
        return tensor.flatten()  # a map of one cell is a number
    return tensor.flatten() if tensor.ndim == 0 else None


@dataclass(frozen=True)
class Sparsity:
    """How much of what an activation puts out for a picture is exactly 0.

    Attributes:
        name: of the layer, or the function and where it is.
        zeros: the share of all its numbers.
        dead: the share of its channels that are 0 everywhere; ``None`` where it has no places.
    """

    name: str
    zeros: float
    dead: float | None


@dataclass(frozen=True, eq=False)
class Walk(Sequence[Step]):
    """The steps of a picture through a network, in the order they ran; reads like a list.

    ``walk[0]`` is the first step, ``walk["conv_1"]`` the step of that name; printed it is a table.

    Attributes:
        network: what was walked through, in words.
        input: the picture as the network got it, ``(C, H, W)`` or ``(H, W)``.
        steps: the layers.
        sparsity: of every activation that can put out zeros, drawn or not, over depth; empty
            where the walk ended before the network did.
        classes: class names by index, where known.
        picture: what the network saw, as a picture, where one was given.
        target: the class the steps' ``weights`` are about.
        notes: what should be known of the network, such as that its weights are random.
        to_the_end: whether the network ran to its end, and not only to the last layer asked for.
    """

    network: str
    input: Tensor
    steps: tuple[Step, ...]
    sparsity: tuple[Sparsity, ...]
    classes: Sequence[str] | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False)
    target: str | None = None
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = field(default=(), repr=False)
    to_the_end: bool = True

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @overload
    def __getitem__(self, key: int | str) -> Step: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Step | tuple[Step, ...]:
        if not isinstance(key, str):
            return self.steps[key]
        for step in self.steps:
            if step.name == key:
                return step
        raise InputError(f"the walk has no step {key!r}; its steps are {', '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]

    def __str__(self) -> str:
        from torchviz_cnn import plates

        return plates.as_table(self)

    def sparsity_trend(self) -> float | None:
        """Does sparsity increase with depth? Spearman's rank correlation of share and depth.

        1 where every activation is sparser than the one before, −1 where each is denser; ``None``
        for fewer than three activations, or where all are alike.
        """
        zeros = torch.tensor([each.zeros for each in self.sparsity], dtype=torch.float64)
        if len(zeros) < 3:
            return None
        # Equal shares have the mean of their ranks.
        below, equal = zeros[:, None] > zeros[None, :], zeros[:, None] == zeros[None, :]
        ranks = below.double().sum(1) + (equal.double().sum(1) - 1) / 2
        depth = torch.arange(len(zeros), dtype=torch.float64)
        if ranks.max() == ranks.min():
            return None
        return float(torch.corrcoef(torch.stack([ranks, depth]))[0, 1])

    def pictures(self, **options: Any) -> Iterator[tuple[str, Image.Image, str]]:
        """Every step drawn: a name for a file, the picture, and a sentence about it.

        Steps with neither maps nor units are left out, see :meth:`left_out`.

        Args:
            options: ``colormap``, ``scale`` and ``columns`` as for
                :func:`torchviz_cnn.render.feature_maps`; ``top``: only so many channels, and
                ``by``: those with the highest ``"mean"``, ``"max"``, ``"variance"`` or
                ``"weight"`` for the class given to :func:`walk`; ``channels``: draw these alone,
                large, and with ``over=True`` over the picture.

        Raises:
            InputError: for a bad option, before anything is drawn.
        """
        from torchviz_cnn import plates

        return plates.of_walk(self, plates.Drawing(**options))

    def left_out(self) -> list[str]:
        """A sentence for each layer that cannot be drawn."""
        return [
            *self.unseen,
            *(
                f"{step.name} is not drawn: it puts out {'×'.join(map(str, step.output.shape))}, "
                "which is neither maps nor a row of units"
                for step in self.steps
                if step.maps is None and step.units is None
            ),
        ]

    def sparsity_picture(self) -> Image.Image | None:
        """Sparsity over depth as a plot; ``None`` for a network whose activations give no zeros."""
        from torchviz_cnn import plates

        return plates.sparsity_picture(self)

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write every picture and a page of them, ``index.html``.

        Args:
            folder: made where it is missing.
            options: as for :meth:`pictures`.

        Returns:
            The page's path.

        Raises:
            InputError: for a bad option.
            OSError: when it cannot be written.
        """
        from torchviz_cnn import plates

        return plates.save(self, folder, plates.Drawing(**options))


def walk(
    model: nn.Module | Model,
    inputs: Tensor,
    layers: LayerChoice | None = None,
    *,
    picture: Picture | None = None,
    target: Target = None,
    index: int = 0,
) -> Walk:
    """One picture layer by layer through a network, from one forward pass.

    Convolutions with their maps, activations with what went in and came out, poolings beside what
    they pooled, normalisations, dropout (the identity in eval mode), flattening, dense layers.

    Args:
        model: any network; comes back as it was.
        inputs: ``(N, C, H, W)``, or ``(N, H, W)`` where the network has no channel axis.
        layers: as for :func:`~torchviz_cnn.capture`. Left out, every layer of a small network and
            every stage of a deep one (more than 40 layers), and the activations and poolings
            written as functions between them.
        picture: what the inputs were made of, to be drawn; cut as a Model cuts it.
        target: a class by index or name, for which channels are to be weighed; takes one more
            forward and a backward pass.
        index: which of the N pictures.

    Returns:
        The walk: numbers as tensors on the input's device, and ways to draw them.

    Raises:
        InputError: for bad inputs, a layer asked for by its name that is not there, does not run or
            puts out no tensor, a class that is not there.

    Example:
        >>> import torch, torchviz_cnn as tvc
        >>> model = tvc.models.load("mnist_convnet")
        >>> steps = tvc.walk(model, torch.rand(1, 1, 28, 28))
        >>> steps.names[:5]
        ['input_layer', 'input_layer.act', 'conv_1', 'conv_1.act', 'pool_1']
        >>> steps["pool_1"].before.shape, steps["pool_1"].output.shape
        (torch.Size([64, 24, 24]), torch.Size([64, 12, 12]))
        >>> steps["dropout_1"].identity
        True
    """
    whole = layers is None
    if layers is None:
        inputs = check_inputs(model, module_of(model), inputs)
        layers = layers_to_walk(model, inputs.shape[1:])
    return walk_through(
        model, inputs, layers, whole=whole, picture=picture, target=target, index=index
    )


def walk_through(
    model: nn.Module | Model,
    inputs: Tensor,
    layers: LayerChoice,
    *,
    whole: bool,
    picture: Picture | None = None,
    target: Target = None,
    index: int = 0,
) -> Walk:
    """As :func:`walk`, with the layers found beforehand.

    Args:
        model, inputs, picture, target, index: as for :func:`walk`.
        layers: their names.
        whole: they are those of :func:`layers_to_walk`: show what happens between them too.
    """
    module = module_of(model)
    inputs = check_inputs(model, module, inputs)
    if not -len(inputs) <= index < len(inputs):
        raise InputError(f"there is no picture {index}: {len(inputs)} were given")
    index %= len(inputs)
    if target is not None and (callable(target) or not isinstance(target, int | str)):
        raise InputError(f"target must be one class, by index or name, not {target!r}")
    one = inputs[index : index + 1]
    if whole and not isinstance(layers, str | nn.Module):  # every run of each
        layers = [f"{layer}@*" for layer in layers]
    chosen = resolve(module, layers)
    classes = known(model, "classes")
    passage = _Passage(module, chosen, tuple(one.shape[-2:]), classes, whole=whole)
    with ExitStack() as stack:
        stack.enter_context(misfits_explained(module, one))
        stack.enter_context(undisturbed(module, one))
        stack.enter_context(batch_axis_required(module, one))
        for handle in passage.attach():
            stack.callback(handle.remove)
        with suppress(Enough), passage:
            passage.ended(module(one.clone()))
    if not whole:
        refuse_not_run(chosen, passage.seen, passage.calls)
    steps = passage.finished()
    label = None
    if target is not None:
        steps, label = _weighed(model, one, target, steps, passage.functions)
    view = getattr(known(model, "preprocess"), "view", None)
    return Walk(
        network=known(model, "source") or type(module).__name__,
        input=one[0],
        steps=tuple(steps),
        sparsity=tuple(passage.sparsity) if passage.at_the_end else (),
        classes=classes,
        picture=None if picture is None else _seen(picture, view),
        target=label,
        notes=known(model, "notes") or (),
        unseen=tuple(dict.fromkeys(passage.unseen)),
        to_the_end=passage.at_the_end,
    )


def _seen(picture: Picture, view: Any) -> Image.Image:
    from torchviz_cnn.pictures import to_image

    return to_image(picture) if view is None else view(picture)


def _weighed(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target,
    steps: list[Step],
    functions: set[str],
) -> tuple[list[Step], str]:
    """The steps with the mean gradient of the class score over each channel's places.

    That is the weight Grad-CAM gives the channel (Selvaraju et al. 2017, equation 1). Functions
    without a module of their own cannot be captured, and have none.
    """
    named = {s.name: s for s in steps if s.maps is not None and s.name not in functions}
    if not named:
        raise InputError("no layer of this walk has channels that could be weighed for a class")
    with examine(model, inputs, target, "logit") as examination:
        with (
            torch.enable_grad(),
            capture(examination.module, [*named], gradients=True) as seen,
        ):
            explained = examination.question.put(run(examination.module, examination.inputs))
        found: Sequence[Tensor | None] = [None] * len(named)
        if explained.score.requires_grad:
            found = torch.autograd.grad(
                explained.score, [seen[name] for name in named], allow_unused=True
            )
        label = _label(explained.target, examination.classes)
    weights = {
        name: gradient[0].mean((0, 1) if named[name].channels_last else (1, 2))
        for name, gradient in zip(named, found, strict=True)
        if gradient is not None  # no part of the score, as an auxiliary head
    }
    return [replace(step, weights=weights.get(step.name)) for step in steps], label


def _label(target: Tensor | None, classes: Sequence[str] | None) -> str:
    return class_label(0 if target is None else int(target.flatten()[0]), classes)


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


class _Passage(TorchDispatchMode):
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
        given = first_tensor(inputs)
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
        tensor = first_tensor(output)
        wanted = [
            layer for layer in self.by_module[frame.module] if layer.call in (None, frame.call)
        ]
        if tensor is None:
            if explicit := [layer.name for layer in wanted if layer.explicit and not self.whole]:
                raise InputError(
                    f"the layer {explicit[0]!r} puts out a {type(output).__name__}, not a tensor"
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
        if not torch.equal(event.after, output):
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
        tensor = first_tensor(output)
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
        default = -1.0 if name == "hardtanh" else None
        low = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val", default))
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
    maps = _as_maps(silent, last=last)
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


MOST_TO_WALK = 40


def layers_to_walk(model: nn.Module | Model, input_size: Sequence[int] | None = None) -> list[str]:
    """The layers worth a picture each: all of a small network, the stages of a deep one.

    The stages are the network's own children; where one of them holds nine tenths of the
    convolutions (``features``, ``backbone``), its children, and so on.

    Args:
        model: any network.
        input_size: of one image; a Model knows its own.
    """
    table = layer_table(model, None if input_size is None else tuple(input_size))
    ran = [row for row in table if row.calls]
    if len(ran) <= MOST_TO_WALK:
        return [row.name for row in ran]
    module = module_of(model)
    convolutions = {m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    stages: list[str] = []
    waiting = [name for name, _ in module.named_children()]
    while waiting:
        name = waiting.pop(0)
        part = module.get_submodule(name)
        children = [f"{name}.{child}" for child, _ in part.named_children()]
        held = convolutions & set(part.modules())
        if children and len(held) >= 0.9 * max(len(convolutions), 1):
            waiting = children + waiting
        else:
            stages.append(name)
    return [table[name].name for name in stages if table[name].calls]
