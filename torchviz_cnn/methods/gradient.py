"""Attribution by the gradient of the score with respect to the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from torchviz_cnn.attribution import PixelAttribution
from torchviz_cnn.methods.examine import Examination, examine
from torchviz_cnn.methods.passes import PixelPass, in_parts
from torchviz_cnn.methods.registry import attribution_method
from torchviz_cnn.methods.relu import Rule
from torchviz_cnn.targets import ClassNames, ScoreKind, Target

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


def gradient_map(
    shared: PixelPass, method: str, rule: Rule | None = None, *, positive: bool = False
) -> PixelAttribution:
    """The gradient itself, ReLUs differentiated by ``rule``, as a method's result."""
    gradient = shared.gradient(rule)
    values = gradient.clamp(min=0) if positive else gradient
    return PixelAttribution(
        values=values.to(shared.examination.inputs.dtype),
        **shared.examination.about(shared.explained, method, {"positive": positive}),
    )


def product_map(shared: PixelPass) -> PixelAttribution:
    """Input × gradient from a pass that begins at the picture."""
    pixels = shared.examination.inputs.detach()
    if shared.explained.score.ndim == 2:
        pixels = pixels[:, None]
    return PixelAttribution(
        values=(shared.gradient() * pixels).to(pixels.dtype),
        channels="sum",
        quantity="input × gradient",
        **shared.examination.about(shared.explained, "input_x_gradient", {}),
    )


def _by_rule(
    examination: Examination, method: str, rule: Rule, positive: bool, batch_size: int | None
) -> PixelAttribution:
    def explain(part: Examination, first: bool) -> PixelAttribution:
        shared = PixelPass(part, rules=True, warns=first)
        return gradient_map(shared, method, rule, positive=positive)

    return in_parts(examination, batch_size, explain)


@attribution_method
def saliency(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    score: ScoreKind = "logit",
    positive: bool = False,
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PixelAttribution:
    r"""How strongly the score answers to a small change of each pixel (vanilla gradient).

    .. math:: w = \partial S_c / \partial I, \qquad M_{ij} = \max_k |w_{ijk}|

    Args:
        model: any network; comes back as it was.
        inputs: ``(N, C, H, W)``, or ``(N, H, W)`` where the network has no channel axis.
        target: class index or name, one or several an image, or a callable that takes the tensor of
            scores and returns one score an image; the top class by default.
        score: ``"logit"``, before the final softmax or sigmoid, or ``"probability"``.
        positive: keep only the positive part of the gradient: pixels that raise the score.
        batch_size: images in one pass; bounds the memory. By default, on a CPU, at least 4 and as many
            as have no map of more than 32 MiB, on a GPU as many as have the pixels of 64 pictures of
            224×224; a callable target sees all at once.
        classes: class names, a list or by index, where ``model`` does not know them.

    Returns:
        ``values``: the signed gradient of every channel, ``(N, C, H, W)``. The heat map shows its
        largest magnitude over the channels.

    Raises:
        InputError: for bad inputs or targets, or a score that cannot be differentiated.

    Source: Simonyan, Vedaldi, Zisserman 2013, "Deep Inside Convolutional Networks", section 3.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> result = tvc.saliency(torchvision.models.resnet18(), torch.randn(2, 3, 64, 48))
        >>> result.values.shape, result.heatmap().shape
        (torch.Size([2, 3, 64, 48]), torch.Size([2, 64, 48]))
    """
    with examine(model, inputs, target, score, classes) as examination:
        return in_parts(
            examination,
            batch_size,
            lambda part, _: gradient_map(PixelPass(part), "saliency", positive=positive),
        )


@attribution_method
def input_x_gradient(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    score: ScoreKind = "logit",
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PixelAttribution:
    """What each pixel contributes to the score, to first order: its value times its gradient.

    For a network of convolutions, ReLUs and max pooling without biases the values sum to the score.

    Args:
        model, inputs, target, score, batch_size, classes: as for :func:`saliency`.

    Returns:
        ``values``: ``x · ∂S/∂x``, ``(N, C, H, W)``. The heat map shows their sum over channels,
        with its sign.

    Raises:
        InputError: as :func:`saliency`.

    Source: Shrikumar, Greenside, Shcherbina, Kundaje 2016, "Not Just a Black Box", section 2.

    Example:
        >>> import torch, torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
        >>> result = tvc.input_x_gradient(net, torch.randn(2, 3, 2, 2), target=4)
        >>> torch.allclose(result.values.sum((1, 2, 3)), result.score, atol=1e-6)
        True
    """
    with examine(model, inputs, target, score, classes) as examination:
        return in_parts(examination, batch_size, lambda part, _: product_map(PixelPass(part)))


@attribution_method
def guided_backprop(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    score: ScoreKind = "logit",
    positive: bool = False,
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PixelAttribution:
    r"""Which details excite the score: the gradient, with negative parts cut off at every ReLU.

    .. math:: R^l = [f^l > 0] \cdot [R^{l+1} > 0] \cdot R^{l+1}

    Every ReLU and ReLU6 is overridden, however it is spelled: a module, in-place, re-used,
    ``F.relu``, ``x.relu_()``, ``x.clamp(min=0)`` (but not one composed of other operations, such as
    ``torch.maximum(x, zero)`` or ``x * (x > 0)``). Sharp, but says little about the class (Adebayo
    et al. 2018, "Sanity Checks for Saliency Maps"): read it together with Grad-CAM.

    Args:
        model, inputs, target, score, positive, batch_size, classes: as for :func:`saliency`.

    Returns:
        ``values``: the guided gradient of every channel, ``(N, C, H, W)``. The heat map shows its
        largest magnitude over the channels.

    Raises:
        InputError: as :func:`saliency`, and for a network without any ReLU.

    Warns:
        UserWarning: where most activation functions of the network are not ReLUs.

    Source: Springenberg, Dosovitskiy, Brox, Riedmiller 2014, "Striving for Simplicity", section 3.4.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.guided_backprop(net, torch.randn(1, 3, 64, 64)).values.shape
        torch.Size([1, 3, 64, 64])
    """
    with examine(model, inputs, target, score, classes) as examination:
        return _by_rule(examination, "guided_backprop", "guided", positive, batch_size)


@attribution_method
def deconvnet(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    score: ScoreKind = "logit",
    positive: bool = False,
    batch_size: int | None = None,
    classes: ClassNames | None = None,
) -> PixelAttribution:
    r"""What a deconvolutional network projects the score back to: ReLU on the way down only.

    .. math:: R^l = [R^{l+1} > 0] \cdot R^{l+1}

    Max pooling uses the switches of the forward pass, as in the paper.

    Args:
        model, inputs, target, score, positive, batch_size, classes: as for :func:`saliency`.

    Returns:
        ``values``: the projection, ``(N, C, H, W)``. The heat map shows its largest magnitude over
        the channels.

    Raises:
        InputError: as :func:`guided_backprop`.

    Warns:
        UserWarning: as :func:`guided_backprop`.

    Source: Zeiler, Fergus 2013, "Visualizing and Understanding Convolutional Networks", section 2.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net = torchvision.models.resnet18()
        >>> tvc.deconvnet(net, torch.randn(1, 3, 64, 64), target=3).target
        tensor([3])
    """
    with examine(model, inputs, target, score, classes) as examination:
        return _by_rule(examination, "deconvnet", "deconvnet", positive, batch_size)
