"""Class activation maps: a layer's feature maps, weighted by what they mean to the score."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchviz_cnn.attribution import CellAttribution, PixelAttribution
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.head import run
from torchviz_cnn.methods.examine import Examination, examine, gradients, parts
from torchviz_cnn.methods.registry import attribution_method
from torchviz_cnn.methods.relu import ReLURule, clamps_as_relus
from torchviz_cnn.naming import Layer, resolve_one
from torchviz_cnn.observe import first_tensor, replace_first_tensor
from torchviz_cnn.resample import upsample
from torchviz_cnn.targets import Explained, ScoreKind, Target, joined
from torchviz_cnn.tracing import default_layer, place_of_layer, traced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchviz_cnn.models import Model

LayerChoice = str | nn.Module | None


class _Maps:
    """Takes hold of one layer's output; its last run, unless the layer was named with a call.

    Args:
        layer: the layer to hold.
        cut: start the graph at the layer. What comes before it runs without one, so nothing is
            saved for, and nothing spent on, the part that no gradient is asked of.
    """

    def __init__(self, layer: Layer, spec: LayerChoice, *, cut: bool) -> None:
        self.layer = layer
        self.only_call = layer.call if isinstance(spec, str) and "@" in spec else None
        self.cut = cut
        self.calls = 0
        self.maps: Tensor | None = None

    @contextmanager
    def held(self, root: nn.Module) -> Iterator[None]:
        handles = [
            root.register_forward_pre_hook(self._begin),
            self.layer.module.register_forward_hook(self._hold),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, *_: object) -> None:
        self.calls = 0
        self.maps = None

    def _hold(self, _module: nn.Module, _inputs: object, output: Any) -> object:
        call, self.calls = self.calls, self.calls + 1
        if self.only_call not in (None, call):
            return None
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim != 4:
            what = type(output).__name__ if tensor is None else f"a tensor {tuple(tensor.shape)}"
            raise InputError(
                f"Grad-CAM weighs feature maps (N, C, h, w), and the layer {self.layer.name!r} "
                f"puts out {what}; choose a convolution, or leave the layer out"
            )
        if self.cut:
            torch.set_grad_enabled(True)  # the block around the whole pass puts it back
            tensor = tensor.detach().requires_grad_()
        self.maps = tensor
        # Downstream gets a clone: an in-place operation may follow, and would fail on a leaf or
        # rewrite the maps.
        return replace_first_tensor(output, tensor.clone())

    def taken(self) -> Tensor:
        if self.maps is None:
            raise InputError(
                f"the layer {self.layer.name!r} runs {self.calls} times in this forward pass, "
                f"counted from 0; there is no call {self.only_call}"
                if self.calls
                else f"the layer {self.layer.name!r} does not run in eval mode"
            )
        return self.maps


def _fault(layer: LayerChoice) -> type[InputError]:
    return NotApplicable if layer is None else InputError


def _choose(module: nn.Module, layer: LayerChoice, inputs: Tensor) -> tuple[Layer, str]:
    spec = layer if layer is not None else default_layer(module, inputs)
    chosen = resolve_one(module, spec)
    name = spec if isinstance(spec, str) and "@" in spec else chosen.name
    return chosen, name


def _head_only(
    examination: Examination, layer: Layer, spec: LayerChoice
) -> tuple[Tensor, Explained]:
    """One forward pass whose graph begins at the layer."""
    maps = _Maps(layer, spec, cut=True)
    with maps.held(examination.module), torch.no_grad():
        explained = examination.question.put(run(examination.module, examination.inputs))
    if not explained.score.requires_grad:
        # The layer lies inside a no_grad block of the network's own (a frozen backbone, say), and
        # leaving that block turned gradients off again: have them on all along.
        maps = _Maps(layer, spec, cut=True)
        with maps.held(examination.module), torch.enable_grad():
            explained = examination.question.put(run(examination.module, examination.inputs))
    return maps.taken(), explained


def _grad_cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """``(N, C, h, w)`` maps and ``(N[, K], C, h, w)`` gradients -> ``(N[, K], h, w)``."""
    weights = gradient.mean((-2, -1))
    if weights.ndim == 2:
        return torch.einsum("nc,nchw->nhw", weights, maps)
    return torch.einsum("nkc,nchw->nkhw", weights, maps)


@attribution_method
def grad_cam(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    classes: Sequence[str] | None = None,
) -> CellAttribution:
    r"""Where the network sees the class: feature maps weighted by their mean gradient.

    .. math::
        \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial S_c}{\partial A^k_{ij}}, \qquad
        M = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big)

    The network up to the layer runs without a graph, so a map costs about one forward pass.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        layer: whose feature maps; name, alias or module. Of a module that runs several times the
            last run, unless the name says which (``"relu@1"``). By default the layer that
            :func:`~torchviz_cnn.default_layer` finds.
        relu: the ReLU of the paper; ``False`` keeps what speaks against the class.
        batch_size: images in one forward pass; bounds the memory. By default as many as have the
            pixels of 4 pictures of 224×224, on a GPU of 64; a callable target sees all at once.

    Returns:
        ``values``: ``(N, h, w)`` at the layer's size; ``(N, K, h, w)`` for K targets an image. The
        heat map is interpolated bilinearly to the input's size.

    Raises:
        InputError: for bad inputs or targets, a layer that is not there or puts out no feature
            maps, a network without a convolution, a score the layer has no part in.

    Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", equations 1 and 2.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> result = tvc.grad_cam(torchvision.models.resnet18(), torch.randn(2, 3, 96, 64))
        >>> result.layer, result.values.shape
        ('layer4', torch.Size([2, 3, 2]))
    """
    with examine(model, inputs, target, score, classes) as examination:
        chosen, name = _choose(examination.module, layer, examination.inputs)
        explained, values = [], []
        for part in parts(examination, batch_size, 4):
            with traced(examination.module, part.inputs) as trace:
                maps, answer = _head_only(part, chosen, layer)
            gradient = gradients(answer, maps, of=f"the layer {name!r}", fault=_fault(layer))
            values.append(_grad_cam(maps.detach(), gradient))
            explained.append(answer.detached())
        whole, value = joined(explained), torch.cat(values)
        return CellAttribution(
            values=(value.relu() if relu else value).to(examination.inputs),
            layer=name,
            place=place_of_layer(examination.module, name, trace),
            **examination.about(whole, "grad_cam", {"relu": relu}),
        )


@attribution_method
def guided_grad_cam(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    classes: Sequence[str] | None = None,
) -> PixelAttribution:
    """Which details belong to the class: guided backpropagation where Grad-CAM looks.

    The guided gradient times the Grad-CAM map, interpolated bilinearly; one forward pass serves
    both.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        layer: as for :func:`grad_cam`.

    Returns:
        ``values``: ``(N, C, H, W)``, or ``(N, K, C, H, W)``. The heat map shows the largest
        magnitude over the channels.

    Raises:
        InputError: as :func:`grad_cam` and :func:`~torchviz_cnn.guided_backprop`.

    Warns:
        UserWarning: as :func:`~torchviz_cnn.guided_backprop`.

    Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", section 3.2.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.guided_grad_cam(net, torch.randn(1, 3, 64, 64)).values.shape
        torch.Size([1, 3, 64, 64])
    """
    with examine(model, inputs, target, score, classes) as examination:
        chosen, name = _choose(examination.module, layer, examination.inputs)
        held = _Maps(chosen, layer, cut=False)
        leaf = examination.inputs.requires_grad_()
        with torch.enable_grad(), held.held(examination.module), clamps_as_relus():
            output = run(examination.module, leaf)
            explained = examination.question.put(output)
        maps = held.taken()
        gradient = gradients(
            explained, maps, of=f"the layer {name!r}", keep_graph=True, fault=_fault(layer)
        )
        with ReLURule("guided") as rule:
            guided = gradients(explained, leaf, of="the picture")
        rule.report()
        cam = upsample(_grad_cam(maps.detach(), gradient).relu(), examination.size).to(guided)
        if examination.inputs.ndim == 4:
            cam = cam.unsqueeze(-3)
        return PixelAttribution(
            values=(guided * cam).to(examination.inputs.dtype),
            layer=name,
            quantity="guided gradient × Grad-CAM",
            **examination.about(explained, "guided_grad_cam", {}),
        )
