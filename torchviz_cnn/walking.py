"""One picture's walk through a network: every layer's output, and what reached it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError, is_whole
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import run
from torchviz_cnn.inputs import batch_axis_required, check_inputs, misfits_explained
from torchviz_cnn.methods.examine import examine
from torchviz_cnn.naming import known, module_of, resolve
from torchviz_cnn.observe import Enough, LayerChoice, capture, refuse_not_run
from torchviz_cnn.passage import Passage
from torchviz_cnn.steps import Step, Walk
from torchviz_cnn.summary import layers as layer_table
from torchviz_cnn.targets import Target, class_label

if TYPE_CHECKING:
    from PIL import Image

    from torchviz_cnn.models import Model
    from torchviz_cnn.pictures import Picture


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
    index = _position(index, len(inputs))
    if target is not None and (callable(target) or not isinstance(target, int | str)):
        raise InputError(f"target must be one class, by index or name, not {target!r}")
    one = inputs[index : index + 1]
    if whole and not isinstance(layers, str | nn.Module):  # every run of each
        layers = [f"{layer}@*" for layer in layers]
    chosen = resolve(module, layers)
    classes = known(model, "classes")
    passage = Passage(module, chosen, tuple(one.shape[-2:]), classes, whole=whole)
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


def _position(index: Any, count: int) -> int:
    """Which of so many, counted from 0."""
    if not is_whole(index) or not -count <= index < count:
        raise InputError(f"there is no picture {index!r}: {count} were given")
    return int(index) % count


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


MOST_TO_WALK = 40


def layers_to_walk(model: nn.Module | Model, input_size: Sequence[int] | None = None) -> list[str]:
    """The layers worth a picture each: all of a small network, the stages of a deep one.

    The stages are the network's own children; where one of them holds nine tenths of the
    convolutions (``features``, ``backbone``), does not run itself (``nn.ModuleList``) or puts out
    no tensor but several by name (the backbone of a segmentation network), its children, and so on.

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
        # A list of modules does not run itself, and there is no drawing a dictionary: its modules do.
        drawn = table[name].calls and table[name].output_shape is not None
        if children and (not drawn or len(held) >= 0.9 * max(len(convolutions), 1)):
            waiting = children + waiting
        elif drawn:
            stages.append(name)
    return [table[name].name for name in stages]
