"""Class activation maps: a layer's feature maps, weighted by what they mean to the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchviz_cnn.attribution import CellAttribution, PixelAttribution
from torchviz_cnn.methods.classes import gradients_at_maps
from torchviz_cnn.methods.examine import Examination, examine, light, parts
from torchviz_cnn.methods.passes import (
    Chosen,
    LayerChoice,
    Pass,
    PixelPass,
    choose,
    head_pass,
    in_parts,
)
from torchviz_cnn.methods.registry import attribution_method
from torchviz_cnn.resample import upsample
from torchviz_cnn.targets import ClassNames, ScoreKind, Target, joined
from torchviz_cnn.tracing import Trace, place_of_layer, traced

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

Wanted = tuple[str, Chosen]


def _mean_weights(_maps: Tensor, gradient: Tensor) -> Tensor:
    return gradient.mean((-2, -1), keepdim=True)


def _own_weights(_maps: Tensor, gradient: Tensor) -> Tensor:
    return gradient


def _positive_weights(_maps: Tensor, gradient: Tensor) -> Tensor:
    return gradient.relu()


def _plus_plus_weights(maps: Tensor, gradient: Tensor) -> Tensor:
    # α · ReLU(g) with α = g² / (2 g² + ΣA · g³): where g > 0, g² cancels, before it can underflow.
    total = 2 + maps.sum((-2, -1))[:, None, :, None, None] * gradient
    weights = torch.where(total == 0, 0, gradient.relu() / total)
    cells = maps.shape[-2] * maps.shape[-1]
    return weights.mean((-2, -1), keepdim=True) * cells


# How feature maps (N, C, h, w) are weighted, given gradients (N, k, C, h, w), or (N, k, C, 1, 1)
# where those are the same at every cell: weights of one of these two shapes.
WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": _mean_weights,
    "hires_cam": _own_weights,
    "layer_cam": _positive_weights,
    "grad_cam_plus_plus": _plus_plus_weights,
}


def _weighted(maps: Tensor, weights: Tensor) -> Tensor:
    """The maps' weighted sum over channels, ``(N, k, h, w)``."""
    if weights.shape[-2:] == (1, 1):
        summed = weights[..., 0, 0] @ maps.flatten(2)
        return summed.unflatten(-1, maps.shape[2:])
    return torch.einsum("nkchw,nchw->nkhw", weights, maps)


def class_maps(
    seen: Pass, wanted: Sequence[Wanted], *, keep_graph: bool = False
) -> dict[Wanted, Tensor]:
    """Maps by several methods and of several layers, from one pass, before their ReLU.

    Args:
        seen: the pass.
        wanted: method and layer of each.
        keep_graph: whether the graph will be used again.

    Returns:
        ``(N, h, w)``, or ``(N, K, h, w)`` for K targets an image.

    Raises:
        NotApplicable: when the scores do not depend on a layer's maps differentiably;
            ``InputError`` for a layer that the user named.
    """
    layers = list(dict.fromkeys(layer for _, layer in wanted))
    maps = {layer.name: seen.maps[layer.name].detach() for layer in layers}
    made: dict[Wanted, list[Tensor]] = {each: [] for each in wanted}
    for gradients in gradients_at_maps(seen, layers, keep_graph=keep_graph):
        for method, layer in wanted:
            own = maps[layer.name]
            weights = WEIGHTS[method](own, gradients[layer.name])
            made[method, layer].append(_weighted(own, weights))
    several = seen.explained.score.ndim == 2
    return {
        each: torch.cat(blocks, 1) if several else blocks[0][:, 0] for each, blocks in made.items()
    }


def cell_attributions(
    examination: Examination,
    wanted: Sequence[Wanted],
    *,
    relu: bool = True,
    batch_size: int | None = None,
) -> dict[Wanted, CellAttribution]:
    """Results of several methods at several layers: one forward pass and one of the head's back.

    Args:
        examination: network, pictures, question.
        wanted: method and layer of each.
        relu: see :func:`grad_cam`.
        batch_size: pictures in one pass.

    Raises:
        InputError: as :func:`grad_cam`.
    """
    layers = list(dict.fromkeys(layer for _, layer in wanted))
    explained = []
    made: dict[Wanted, list[Tensor]] = {each: [] for each in wanted}
    together = 4 * light(examination.module, examination.inputs)
    for part in parts(examination, batch_size, together):
        with traced(examination.module, part.inputs) as trace:
            seen = head_pass(part, layers)
        for each, values in class_maps(seen, wanted).items():
            made[each].append(values)
        explained.append(seen.explained.detached())
        del seen
    whole = joined(explained)
    about = examination.about(whole, "", {"relu": relu})
    return {
        each: cell_attribution(examination, each, torch.cat(values), trace, about)
        for each, values in made.items()
    }


def cell_attribution(
    examination: Examination,
    wanted: Wanted,
    values: Tensor,
    trace: Trace,
    about: dict[str, Any],
) -> CellAttribution:
    """One map's result.

    Args:
        examination: network, pictures, question.
        wanted: method and layer.
        values: the map before its ReLU.
        trace: of a forward pass.
        about: what ``Examination.about`` tells, of any method.
    """
    method, layer = wanted
    return CellAttribution(
        values=(values.relu() if about["parameters"]["relu"] else values).to(examination.inputs),
        layer=layer.name,
        place=place_of_layer(examination.module, layer.name, trace),
        **{**about, "method": method},
    )


def _alone(
    method: str,
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target,
    layer: LayerChoice,
    score: ScoreKind,
    relu: bool,
    batch_size: int | None,
    classes: ClassNames | None,
) -> CellAttribution:
    with examine(model, inputs, target, score, classes) as examination:
        wanted = method, choose(examination.module, layer, examination.inputs)
        found = cell_attributions(examination, [wanted], relu=relu, batch_size=batch_size)
        return found[wanted]


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
    classes: ClassNames | None = None,
) -> CellAttribution:
    r"""Where the network sees the class: feature maps weighted by their mean gradient.

    .. math::
        \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial S_c}{\partial A^k_{ij}}, \qquad
        M = \mathrm{ReLU}\Big(\sum_k \alpha_k A^k\Big)

    The network up to the layer runs without a graph, so a map costs about one forward pass. Several
    targets share it; where the network ends in global average pooling and a linear layer, and this
    is proved by the graph of the forward pass, all of them take one small backward pass.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        layer: whose feature maps; name, alias or module. Of a module that runs several times the
            last run, unless the name says which (``"relu@1"``). Maps with the channels last, as
            Swin's, are known by the picture's proportions. By default the layer that
            :func:`~torchviz_cnn.default_layer` finds.
        relu: the ReLU of the paper; ``False`` keeps what speaks against the class.
        batch_size: images in one forward pass; bounds the memory. By default as many as have the
            pixels of 4 pictures of 224×224 (16 for networks whose first maps are small, as
            ResNet's), on a GPU of 64; a callable target sees all at once.

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
    return _alone("grad_cam", model, inputs, target, layer, score, relu, batch_size, classes)


@attribution_method
def hires_cam(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> CellAttribution:
    r"""Which places raised the score: feature maps times their gradient, cell by cell.

    .. math:: M_{ij} = \mathrm{ReLU}\Big(\sum_k \frac{\partial S_c}{\partial A^k_{ij}} A^k_{ij}\Big)

    Unlike Grad-CAM it never shows a place that the score did not use. Behind global average pooling
    the two are equal. Where one linear layer follows, pooling or none between, the map before its
    ReLU sums to the score without its bias.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        layer, relu, batch_size: as for :func:`grad_cam`.

    Returns:
        ``values``: as for :func:`grad_cam`.

    Raises:
        InputError: as :func:`grad_cam`.

    Source: Draelos, Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks".

    Example:
        >>> import torch, torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5, bias=False))
        >>> result = tvc.hires_cam(net, torch.randn(2, 3, 6, 6), target=4, relu=False)
        >>> torch.allclose(result.values.sum((1, 2)), result.score, atol=1e-5)
        True
    """
    return _alone("hires_cam", model, inputs, target, layer, score, relu, batch_size, classes)


@attribution_method
def layer_cam(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> CellAttribution:
    r"""Where early and late layers see the class: feature maps times their positive gradient.

    .. math::
        M_{ij} = \mathrm{ReLU}\Big(\sum_k
        \mathrm{ReLU}\Big(\frac{\partial S_c}{\partial A^k_{ij}}\Big) A^k_{ij}\Big)

    Made for layers before the last, where a mean over all cells says little; finer there.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        layer, batch_size: as for :func:`grad_cam`.
        relu: the outer ReLU.

    Returns:
        ``values``: as for :func:`grad_cam`.

    Raises:
        InputError: as :func:`grad_cam`.

    Source: Jiang, Zhang, Hou, Cheng, Wei 2021, "LayerCAM: Exploring Hierarchical Class Activation
    Maps for Localization", section III.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.layer_cam(net, torch.randn(1, 3, 64, 96), layer="layer2").values.shape
        torch.Size([1, 8, 12])
    """
    return _alone("layer_cam", model, inputs, target, layer, score, relu, batch_size, classes)


@attribution_method
def grad_cam_plus_plus(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> CellAttribution:
    r"""Where the network sees each of several objects of the class: positive gradients, evened out.

    .. math::
        g^k_{ij} = \frac{\partial S_c}{\partial A^k_{ij}}, \quad
        \alpha^k_{ij} = \frac{(g^k_{ij})^2}{2 (g^k_{ij})^2 + \sum_{ab} A^k_{ab} (g^k_{ij})^3}, \quad
        w_k = \sum_{ij} \alpha^k_{ij} \mathrm{ReLU}(g^k_{ij}), \quad
        M = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big)

    This is the paper's derivation for :math:`Y = e^{S_c}`, whose second and third derivatives
    behind the last convolution are :math:`Y g^2` and :math:`Y g^3`; its first is :math:`Y g`, and
    the positive factor :math:`Y`, the same for the whole map, is left out: it would overflow and
    changes no heat map. A weight whose denominator is 0 is 0.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        layer, relu, batch_size: as for :func:`grad_cam`. The derivation assumes a layer after a
            ReLU; with negative maps a denominator may come close to 0.

    Returns:
        ``values``: as for :func:`grad_cam`.

    Raises:
        InputError: as :func:`grad_cam`.

    Source: Chattopadhyay, Sarkar, Howlader, Balasubramanian 2018, "Grad-CAM++: Generalized
    Gradient-based Visual Explanations for Deep Convolutional Networks", section 3.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.grad_cam_plus_plus(net, torch.randn(1, 3, 64, 64), [[1, 2, 3]]).values.shape
        torch.Size([1, 3, 2, 2])
    """
    return _alone(
        "grad_cam_plus_plus", model, inputs, target, layer, score, relu, batch_size, classes
    )


def guided_map(shared: PixelPass, layer: Chosen) -> PixelAttribution:
    """Guided Grad-CAM from a pass that begins at the picture and holds the layer's maps."""
    examination = shared.examination
    wanted = "grad_cam", layer
    values = class_maps(shared.seen, [wanted], keep_graph=True)[wanted]
    guided = shared.gradient("guided")
    if guided.dtype is torch.float16:
        guided = guided.float()  # two small numbers' product falls below half precision's range
    cam = upsample(values.to(guided).relu(), examination.size)
    if examination.inputs.ndim == 4:
        cam = cam.unsqueeze(-3)
    return PixelAttribution(
        values=guided * cam,
        layer=layer.name,
        quantity="guided gradient × Grad-CAM",
        **examination.about(shared.explained, "guided_grad_cam", {}),
    )


@attribution_method
def guided_grad_cam(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    layer: LayerChoice = None,
    score: ScoreKind = "logit",
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PixelAttribution:
    """Which details belong to the class: guided backpropagation where Grad-CAM looks.

    The guided gradient times the Grad-CAM map, interpolated bilinearly; one forward pass serves
    both.

    Args:
        model, inputs, target, score, batch_size, classes: as for :func:`~torchviz_cnn.saliency`.
        layer: as for :func:`grad_cam`.

    Returns:
        ``values``: ``(N, C, H, W)``, or ``(N, K, C, H, W)``; of pictures in half precision in
        float32, as such a product is too small for them. The heat map shows the largest magnitude
        over the channels.

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
        chosen = choose(examination.module, layer, examination.inputs)
        return in_parts(
            examination,
            batch_size,
            lambda part, first: guided_map(
                PixelPass(part, rules=True, layers=[chosen], warns=first), chosen
            ),
        )
