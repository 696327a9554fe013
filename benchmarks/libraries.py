"""The peers' own calls, as their documentation shows them, and the same asked of this library.

A peer's result is brought to one form with ours before anything is timed. Peers that are not
installed are left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.clock import Run
from benchmarks.subjects import Subject, plain
from torchviz_cnn.resample import upsample

Question = Callable[[Subject], Run]
INSTALL = 'python -m pip install -e ".[bench]"'

# The package that is imported -> the one that is installed.
PACKAGES = {
    "captum": "captum",
    "pytorch_grad_cam": "grad-cam",
    "torchcam": "torchcam",
    "zennit": "zennit",
    "matplotlib": "matplotlib",
}


@dataclass(frozen=True)
class Peer:
    """One method as one library has it.

    Attributes:
        name: what the library is called.
        package: what is imported.
        ask: makes the call that is timed.
        map_of: what the call gives, as a tensor.
        ours: makes the call of this library that gives as much.
        map_of_ours: what that gives, in the peer's form.
        why_different: why the map of a network may be another one, where that is known.
    """

    name: str
    package: str
    ask: Question
    ours: Question
    map_of: Callable[[Any], Tensor] = torch.as_tensor
    map_of_ours: Callable[[Any], Tensor] = lambda found: found.values
    why_different: Callable[[Subject], str] = lambda _: ""

    def missing(self) -> str | None:
        """Why the peer cannot be measured here; ``None`` where it can."""
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return (
                f"{self.name} is left out ({error}); "
                f"to have it: {INSTALL} (package {PACKAGES[self.package]})"
            )
        return None


# ---- this library ----------------------------------------------------------------------------


@lru_cache
def _ours(method: str) -> Question:
    """One question for all peers, so that one run of ours stands beside all of them."""
    function: Any = getattr(tvc, method)

    def ask(subject: Subject) -> Run:
        layer = {"layer": subject.layer} if method in ("grad_cam", "guided_grad_cam") else {}

        def run() -> object:
            return function(
                *(subject.module, subject.inputs, subject.target),
                score=subject.score,
                **layer,
            )

        return run

    return ask


def _our_heatmap(subject: Subject) -> Run:
    grad_cam = _ours("grad_cam")(subject)

    def run() -> object:
        found: Any = grad_cam()
        return found, found.maps()

    return run


def _scaled(maps: Tensor, eps: float) -> Tensor:
    """From the smallest number to the largest, as the peers' maps are."""
    maps = maps - maps.amin((-2, -1), keepdim=True)
    return maps / (maps.amax((-2, -1), keepdim=True) + eps)


def _as_pytorch_grad_cam(found: Any) -> Tensor:
    """Scaled, brought to the picture's size and, being a mean over one layer, scaled once more."""
    attribution, _ = found
    grown = upsample(_scaled(attribution.values, 1e-7), attribution.input_size)
    return _scaled(grown, 1e-7)


# ---- captum ----------------------------------------------------------------------------------


def _captum_grad_cam(subject: Subject) -> Run:
    from captum.attr import LayerGradCam

    method = LayerGradCam(subject.module, subject.layer_module())
    return lambda: method.attribute(subject.inputs, target=subject.column, relu_attributions=True)


def _captum(method: str, **options: Any) -> Question:
    def ask(subject: Subject) -> Run:
        from captum import attr

        made = getattr(attr, method)(subject.module)
        return lambda: made.attribute(subject.inputs, target=subject.column, **options)

    return ask


def _captum_guided_grad_cam(subject: Subject) -> Run:
    from captum.attr import GuidedGradCam

    method = GuidedGradCam(subject.module, subject.layer_module())
    return lambda: method.attribute(
        subject.inputs, target=subject.column, interpolate_mode="bilinear"
    )


def captum_occlusion(
    subject: Subject, window: int, stride: int, together: int
) -> Callable[[], Tensor]:
    """Captum's occlusion of all channels at once, ``together`` windows in one forward pass."""
    from captum.attr import Occlusion

    method = Occlusion(subject.module)
    channels = subject.inputs.shape[1]
    return lambda: method.attribute(
        subject.inputs,
        target=subject.column,
        sliding_window_shapes=(channels, window, window),
        strides=(channels, stride, stride),
        perturbations_per_eval=together,
    )


# ---- pytorch-grad-cam ------------------------------------------------------------------------


def _pytorch_grad_cam(subject: Subject) -> Run:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(subject.column)] * subject.batch

    def run() -> object:
        with GradCAM(model=subject.module, target_layers=[subject.layer_module()]) as method:
            return method(input_tensor=subject.inputs, targets=targets)

    return run


def _pytorch_guided_backprop(subject: Subject) -> Run:
    """Picture by picture, as it takes no batch. What it does to the network is undone."""
    from pytorch_grad_cam import GuidedBackpropReLUModel

    method = GuidedBackpropReLUModel(model=subject.module, device=subject.inputs.device)
    places = [
        (parent._modules, name, child)
        for parent in subject.module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.ReLU
    ]

    def run() -> object:
        # It leaves ReLUs of its own in the network, which do not work in place any more.
        try:
            return [
                method(picture[None].detach(), target_category=subject.column)
                for picture in subject.inputs
            ]
        finally:
            for modules, name, child in places:
                modules[name] = child

    return run


def _from_pictures(found: Any) -> Tensor:
    return torch.stack([torch.as_tensor(picture).permute(2, 0, 1) for picture in found])


# ---- torchcam --------------------------------------------------------------------------------


def _torchcam(subject: Subject) -> Run:
    from torchcam.methods import GradCAM

    def run() -> object:
        with GradCAM(subject.module, subject.layer) as method:
            scores = subject.module(subject.inputs)
            return method(subject.column, scores)

    return run


# ---- zennit ----------------------------------------------------------------------------------


def _zennit(composite: str | None) -> Question:
    def ask(subject: Subject) -> Run:
        from zennit import composites
        from zennit.attribution import Gradient

        made = None if composite is None else getattr(composites, composite)()
        classes = plain(subject.module, subject.inputs[:1]).shape[1]
        row = torch.zeros(classes, device=subject.inputs.device)
        row[subject.column] = 1
        wanted = row.expand(subject.batch, -1)

        def run() -> object:
            with Gradient(model=subject.module, composite=made) as method:
                leaf = subject.inputs.detach().requires_grad_()
                return method(leaf, wanted)[1]

        return run

    return ask


def zennit_occlusion(window: int, stride: int) -> Question:
    """Zennit's occlusion of all channels at once, hiding the window and not what is around it."""

    def ask(subject: Subject) -> Run:
        from zennit.attribution import Occlusion, occlude_independent

        hide = partial(occlude_independent, fill_fn=torch.zeros_like, invert=True)
        row = torch.zeros_like(plain(subject.module, subject.inputs[:1])[0])
        row[subject.column] = 1

        def score(output: Tensor) -> Tensor:
            return output * row

        def run() -> object:
            with Occlusion(
                model=subject.module,
                attr_output=score,
                occlusion_fn=hide,
                window=(window, window),
                stride=(stride, stride),
            ) as method:
                return method(subject.inputs)[1]

        return run

    return ask


# ---- activations of all layers ---------------------------------------------------------------


def single_layers(module: nn.Module, inputs: Tensor) -> list[str]:
    """The innermost layers that run once in a forward pass."""
    runs: dict[str, int] = {}
    handles = [
        child.register_forward_hook(
            lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})
        )
        for name, child in module.named_modules()
        if not any(True for _ in child.children())
    ]
    try:
        plain(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, count in runs.items() if count == 1]


def _our_activations(subject: Subject) -> Run:
    names = single_layers(subject.module, subject.inputs[:1])
    return lambda: tvc.activations(subject.module, subject.inputs, names)


def _captum_activations(subject: Subject) -> Run:
    from captum.attr import LayerActivation

    names = single_layers(subject.module, subject.inputs[:1])
    layers = [subject.module.get_submodule(name) for name in names]
    method = LayerActivation(subject.module, layers)
    return lambda: method.attribute(subject.inputs)


def _flat(found: Any) -> Tensor:
    """Everything that every layer put out, each layer by its own largest number."""
    tensors = found.values() if isinstance(found, Mapping) else found
    return torch.cat([t.flatten() / t.abs().amax().clamp_min(1e-30) for t in tensors])


# ---- why -------------------------------------------------------------------------------------


def _module_relus_only(subject: Subject) -> str:
    relus = [type(m) for m in subject.module.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    if not relus:
        return "it overrides nn.ReLU modules, and this network calls F.relu: a plain gradient"
    if any(kind is not nn.ReLU for kind in relus):
        return "it overrides nn.ReLU and not nn.ReLU6: a plain gradient there"
    return ""


ZENNIT_OCCLUDES = "it adds up the scores with windows hidden, not their mean loss"


PEERS: dict[str, tuple[Peer, ...]] = {
    "grad_cam": (
        Peer(
            *("captum", "captum", _captum_grad_cam, _ours("grad_cam")),
            map_of=lambda found: found[:, 0],
        ),
        Peer(
            *("pytorch-grad-cam", "pytorch_grad_cam", _pytorch_grad_cam, _our_heatmap),
            map_of_ours=_as_pytorch_grad_cam,
        ),
        Peer(
            *("torchcam", "torchcam", _torchcam, _ours("grad_cam")),
            map_of=lambda found: found[0],
            map_of_ours=lambda found: _scaled(found.values, 1e-8),
        ),
    ),
    "saliency": (
        Peer("captum", "captum", _captum("Saliency", abs=False), _ours("saliency")),
        Peer("zennit", "zennit", _zennit(None), _ours("saliency")),
    ),
    "guided_backprop": (
        Peer(
            *("captum", "captum", _captum("GuidedBackprop"), _ours("guided_backprop")),
            why_different=_module_relus_only,
        ),
        Peer(
            *("pytorch-grad-cam", "pytorch_grad_cam"),
            *(_pytorch_guided_backprop, _ours("guided_backprop")),
            map_of=_from_pictures,
            why_different=_module_relus_only,
        ),
        Peer(
            *("zennit", "zennit", _zennit("GuidedBackprop"), _ours("guided_backprop")),
            why_different=_module_relus_only,
        ),
    ),
    "guided_grad_cam": (
        Peer(
            *("captum", "captum", _captum_guided_grad_cam, _ours("guided_grad_cam")),
            why_different=_module_relus_only,
        ),
    ),
    "activations": (
        Peer(
            *("captum", "captum", _captum_activations, _our_activations),
            map_of=_flat,
            map_of_ours=_flat,
        ),
    ),
}
