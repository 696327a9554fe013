"""Forward passes that several explanations share: their graph begins at a layer, or at the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchviz_cnn.attribution import Attribution, PixelAttribution
from torchviz_cnn.axes import channels_last, widths_of
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.head import Output
from torchviz_cnn.layout import run
from torchviz_cnn.methods.examine import Examination, gradients, parts
from torchviz_cnn.methods.relu import ReLURule, Rule, clamps_as_relus
from torchviz_cnn.naming import display_name, resolve_one
from torchviz_cnn.observe import first_tensor, replace_first_tensor
from torchviz_cnn.targets import Explained, Question
from torchviz_cnn.tracing import default_run, maps_of_parts, remembered
from torchviz_cnn.words import counted

LayerChoice = str | nn.Module | None
R = TypeVar("R", bound=Attribution)
# Pictures that go together through a pass from the picture on a CPU: at least so many, and as long as
# no map of theirs takes more bytes than the most that C's allocator keeps for the next to have. It has
# larger ones from the system each time, cleared: mobilenet_v2 takes for two times 4 pictures of 224×224
# 0.64 of what it takes for 8.
FEW, _KEPT = 4, 2**25


@dataclass(frozen=True)
class Chosen:
    """A layer whose feature maps are looked at.

    Attributes:
        module: the layer.
        name: what it is called.
        only_call: which of its runs is meant; ``None`` for the last.
        named: whether the user named it, and so is to blame where it cannot serve.
    """

    module: nn.Module
    name: str
    only_call: int | None
    named: bool

    @property
    def fault(self) -> type[InputError]:
        """What to raise where its maps have no part in the score."""
        return InputError if self.named else NotApplicable


def choose(module: nn.Module, layer: LayerChoice, inputs: Tensor) -> Chosen:
    """The layer a user means; by default the one that ``default_layer`` finds.

    Args:
        module: an unwrapped network.
        layer: the user's word.
        inputs: pictures that have been checked.

    Raises:
        InputError: for a layer that is not there, or several of them.
        NotApplicable: for a network that has no layer of feature maps.
    """
    spec = layer if layer is not None else _usual_layer(module, inputs)
    if not isinstance(spec, str | nn.Module):
        raise InputError(
            f"one layer is needed, not {spec!r}; explain(model, inputs, methods=[…], layer=[…]) "
            "takes several"
        )
    found = resolve_one(module, spec)
    if isinstance(spec, str) and "@" in spec:
        return Chosen(found.module, spec, found.call, layer is not None)
    return Chosen(found.module, found.name, None, layer is not None)


def _usual_layer(module: nn.Module, inputs: Tensor) -> str:
    run = default_run(module, inputs)
    name = display_name(module, run.name)
    if run.shape is None or len(run.shape) != 4:
        raise NotApplicable(
            f"the last convolution's layer, {name!r}, puts out {run.shape}, no feature maps "
            "(N, C, h, w), so there is nothing for Grad-CAM to weigh; use saliency or occlusion"
        )
    return name


class HeldMaps:
    """Takes hold of what layers put out; of each the last run, unless it was named with a call.

    Args:
        layers: the layers to hold.
        cut: start the graph at the first of them to run. What comes before it runs without one, so
            nothing is saved for, and nothing spent on, the part that no gradient is asked of.
    """

    def __init__(self, layers: Sequence[Chosen], *, cut: bool) -> None:
        self.layers = layers
        self.cut = cut
        self.calls: dict[nn.Module, int] = {}
        self.maps: dict[str, Tensor] = {}
        self.interrupted = False
        self.root = nn.Module()
        self.picture: tuple[int, ...] = ()
        self.count = 0

    @contextmanager
    def on(self, root: nn.Module) -> Iterator[None]:
        """Hold while the block runs the network."""
        handles: list[Any] = [root.register_forward_pre_hook(self._begin)]
        modules = dict.fromkeys(layer.module for layer in self.layers)
        handles += [module.register_forward_hook(self._hold) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, root: nn.Module, args: tuple[Any, ...]) -> None:
        self.root, self.picture, self.count = root, tuple(args[0].shape[-2:]), len(args[0])
        self.calls = {layer.module: 0 for layer in self.layers}
        self.maps = {}
        self.interrupted = False

    def _hold(self, module: nn.Module, _inputs: object, output: Any) -> object:
        call = self.calls[module]
        self.calls[module] = call + 1
        wanted = [
            layer
            for layer in self.layers
            if layer.module is module and layer.only_call in (None, call)
        ]
        if not wanted:
            return None
        tensor = self._maps_in(output, wanted[0])
        last = self._has_channels_last(tensor)
        if last:
            tensor = tensor.movedim(-1, 1)
        if self.cut:
            tensor = self._begun(tensor)
        for layer in wanted:
            self.maps[layer.name] = tensor
        # Downstream gets a clone: an in-place operation may follow, and would fail on a leaf or
        # rewrite the maps.
        passed_on = tensor.movedim(1, -1) if last else tensor
        return replace_first_tensor(output, passed_on.clone())

    def _maps_in(self, output: object, layer: Chosen) -> Tensor:
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim != 4:
            what = type(output).__name__ if tensor is None else f"a tensor {tuple(tensor.shape)}"
            raise InputError(
                f"a class activation map weighs feature maps (N, C, h, w), and the layer "
                f"{layer.name!r} puts out {what}; choose a convolution, or leave the layer out"
            )
        if len(tensor) != self.count:
            raise layer.fault(maps_of_parts(layer.name, len(tensor), self.count))
        if not tensor.is_floating_point():
            raise layer.fault(
                f"the layer {layer.name!r} puts out {tensor.dtype} numbers, and maps that can be "
                "weighed are floating-point numbers; choose another layer, or use occlusion"
            )
        return tensor

    def _has_channels_last(self, maps: Tensor) -> bool:
        shape = tuple(maps.shape[1:])
        might = channels_last(shape, self.picture, {shape[-1]})
        return might and shape[-1] in widths_of(self.root)

    def _begun(self, tensor: Tensor) -> Tensor:
        """The maps with the graph begun at them, if it has not begun before."""
        others = any(layer.name in self.maps for layer in self.layers) and len(self.layers) > 1
        if others and not torch.is_grad_enabled():
            self.interrupted = True
        torch.set_grad_enabled(True)  # the block around the whole pass puts it back
        if others and tensor.requires_grad:
            return tensor
        return tensor.detach().requires_grad_()

    def taken(self) -> dict[str, Tensor]:
        """Layer name -> ``(N, C, h, w)``, in the order of the layers.

        Raises:
            InputError: for a layer that did not run.
        """
        for layer in self.layers:
            if layer.name not in self.maps:
                times = self.calls[layer.module]
                name = layer.name.rpartition("@")[0] or layer.name
                raise InputError(
                    f"the layer {name!r} runs {counted(times, 'time')} in this forward pass, "
                    f"counted from 0; there is no call {layer.only_call}"
                    if times
                    else f"the layer {name!r} does not run in eval mode"
                )
        return {layer.name: self.maps[layer.name] for layer in self.layers}


@dataclass(frozen=True)
class Pass:
    """What one forward pass showed.

    Attributes:
        question: what was asked.
        output: what the network put out.
        explained: the scores to explain.
        maps: layer name -> what the layer put out, ``(N, C, h, w)``, of the scores' graph;
            channels are moved there from the last place.
    """

    question: Question
    output: Output
    explained: Explained
    maps: dict[str, Tensor]


def head_pass(examination: Examination, layers: Sequence[Chosen]) -> Pass:
    """One forward pass whose graph begins at the first of the layers."""
    module, question = examination.module, examination.question
    held = HeldMaps(layers, cut=True)

    def seen() -> Pass:
        output = run(module, examination.inputs)
        return Pass(question, output, question.put(output), held.taken())

    with held.on(module), torch.no_grad():
        found = seen()
    if held.interrupted or not found.explained.score.requires_grad:
        # A layer lies inside a no_grad block of the network's own (a frozen backbone, say), and
        # leaving that block turned gradients off again: have them on all along.
        with held.on(module), torch.enable_grad():
            found = seen()
    return found


class PixelPass:
    """One forward pass whose graph begins at the picture, and its gradients by any rule.

    Args:
        examination: network, pictures, question.
        rules: whether a rule for ReLUs will be asked for. ``clamp(min=0)`` then runs as a ReLU.
        layers: whose maps are held as well.
        keep: whether several gradients will be asked for.
        warns: whether to warn where a rule finds few ReLUs.
    """

    def __init__(
        self,
        examination: Examination,
        *,
        rules: bool = False,
        layers: Sequence[Chosen] = (),
        keep: bool = False,
        warns: bool = True,
    ) -> None:
        self.examination = examination
        self.keep = keep
        self.warns = warns
        self.leaf = examination.inputs.detach().requires_grad_()
        held = HeldMaps(layers, cut=False)
        clamps = clamps_as_relus()
        with torch.enable_grad():
            with held.on(examination.module), clamps if rules else nullcontext():
                output = run(examination.module, self.leaf)
            explained = examination.question.put(output)
        self.clamps = clamps.rewritten
        self.seen = Pass(examination.question, output, explained, held.taken())
        self._known: dict[Rule | None, tuple[Tensor, ReLURule | None]] = {}

    @property
    def explained(self) -> Explained:
        """The scores to explain."""
        return self.seen.explained

    def gradient(self, rule: Rule | None = None) -> Tensor:
        """The score's gradient at the picture, ``(N[, K], C, H, W)``.

        Args:
            rule: how ReLUs are differentiated.

        Raises:
            InputError: when the score does not depend on the picture differentiably, or when there
                is a rule and no ReLU for it.

        Warns:
            UserWarning: when there is a rule and few ReLUs for it.
        """
        if rule not in self._known:
            overriding = None if rule is None else ReLURule(rule)
            with overriding or nullcontext():
                found = gradients(self.explained, self.leaf, of="the picture", keep_graph=self.keep)
            self._known[rule] = found, overriding
        found, overriding = self._known[rule]
        if overriding is not None:
            overriding.report(warns=self.warns)
        return found


def fast_together(examination: Examination) -> int | None:
    """How many pictures go together fastest from the picture to the score and back."""
    inputs = examination.inputs
    if inputs.device.type != "cpu":
        return None
    fixed = getattr(examination.module, "fixed_batch", None)  # of a file that takes so many or none
    if len(inputs) in (fixed, *range(FEW + 1)) or examination.question.callable:
        return len(inputs)
    shapes = [inputs.shape, *remembered(examination.module, inputs.detach()).convolutions]
    largest = max(math.prod(shape[1:]) for shape in shapes) * inputs.element_size()
    return max(FEW, _KEPT // largest)


def in_parts(
    examination: Examination,
    batch_size: int | None,
    explain: Callable[[Examination, bool], PixelAttribution],
) -> PixelAttribution:
    """What a pass from the picture tells, of as many pictures at a time as go together.

    All that such a pass computes is kept for the way back, so it bounds the memory.

    Args:
        examination: network, pictures, question.
        batch_size: pictures in one pass; by default as many as are fast.
        explain: gives the result for some of the pictures; is told whether they are the first.
    """
    size = fast_together(examination) if batch_size is None else batch_size
    return joined(
        [explain(part, number == 0) for number, part in enumerate(parts(examination, size, FEW))]
    )


def joined(found: Sequence[R]) -> R:
    """The results of a method for some pictures after the other as one."""
    first, *others = found
    if not others:
        return first
    targets = [each.target for each in found if each.target is not None]
    return replace(
        first,
        values=torch.cat([each.values for each in found]),
        score=torch.cat([each.score for each in found]),
        target=torch.cat(targets) if targets else None,
    )
