"""What is measured: a network with random weights, pictures, and the question put to all sides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn.targets import ScoreKind

NETWORKS = ("vgg16", "resnet50", "resnet18", "mobilenet_v2", "googlenet", "cat_dog")
OCCLUDED = (*NETWORKS, "squeezenet1_1")


def plain(module: nn.Module, inputs: Tensor) -> Tensor:
    """A forward pass without a graph."""
    with torch.no_grad():
        found: Tensor = module(inputs)
    return found


@dataclass(frozen=True)
class Subject:
    """One question: the same object, input, target and layer for every side.

    Attributes:
        name, module: the network; in eval mode, parameters as they were made.
        inputs: ``(N, 3, H, W)``.
        layer: name of the layer whose maps Grad-CAM weighs.
        target: the class, as this library numbers it.
        column: the same as a column of the network's output.
        score: which score that column is.
    """

    name: str
    module: nn.Module
    inputs: Tensor
    layer: str
    target: int
    column: int
    score: ScoreKind

    @property
    def batch(self) -> int:
        return len(self.inputs)

    @property
    def size(self) -> str:
        return "×".join(map(str, self.inputs.shape[-2:]))

    @property
    def setting(self) -> str:
        return f"batch {self.batch}, {self.size}"

    def forward(self) -> Tensor:
        """The plain forward pass, without a graph."""
        return plain(self.module, self.inputs)

    def forward_and_gradient(self) -> Tensor:
        """The score's gradient at the picture and nothing else: what any gradient method costs."""
        leaf = self.inputs.detach().requires_grad_()
        score = self.module(leaf)[:, self.column].sum()
        return torch.autograd.grad(score, leaf)[0]

    def layer_module(self) -> nn.Module:
        return self.module.get_submodule(self.layer)


@lru_cache(maxsize=2)
def network(name: str, device: torch.device) -> nn.Module:
    """A network with random weights, the same every time; not touched by anybody for long."""
    module = tvc.models.load(name, weights="none", device=device).module
    _calibrate(module, usual_side(name), device)
    return module


def _calibrate(module: nn.Module, side: int, device: torch.device) -> None:
    """Give batch norms the statistics of noise, as training would have given them some.

    Without them the numbers of a deep network with random weights die away from layer to layer, its
    scores are all but the same for every picture, and their differences nothing but rounding.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(8, 3, side, side, generator=generator).to(device)
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    plain(module, pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def usual_side(name: str, *, quick: bool = False) -> int:
    """The side of the pictures that a network is made for; half of it in a quick run."""
    if name.startswith("cat_dog"):  # takes no other
        return 150
    return 112 if quick else 224


def takes(name: str, side: int) -> bool:
    """Whether a network takes colour pictures of a size; found out without computing anything."""
    with torch.device("meta"):
        module = tvc.models.load(name, weights="none", device=torch.device("meta")).module
        return fits(module, torch.empty(1, 3, side, side))


def fits(module: nn.Module, pictures: Tensor) -> bool:
    """Whether a network can be given pictures of a shape."""
    try:
        plain(module, pictures)
    except (torch.OutOfMemoryError, NotImplementedError):  # that is no matter of shape
        return True
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return False
    return True


def subject(
    name: str,
    *,
    batch: int = 1,
    side: int | None = None,
    device: torch.device,
    frozen: bool = False,
) -> Subject:
    """A question about a network.

    Args:
        name: as ``models.load`` knows it.
        batch: pictures.
        side: height and width of them, in pixels.
        device: where they and the network are.
        frozen: no parameter asks for a gradient: the cheapest way to run it.
    """
    module = network(name, device)
    for parameter in module.parameters():
        parameter.requires_grad_(not frozen)
    side = side or usual_side(name)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, side, side, generator=generator).to(device)
    layer = tvc.default_layer(module, inputs[:1])
    single = plain(module, inputs[:1]).shape[1] == 1
    if single:  # one sigmoid output: the probability of class 1, which is what others explain
        return Subject(name, module, inputs, layer, 1, 0, "probability")
    target = _telling_class(module, inputs, layer)
    return Subject(name, module, inputs, layer, target, target, "logit")


def _telling_class(module: nn.Module, inputs: Tensor, layer: str) -> int:
    """A class with a Grad-CAM map that is not empty: of empty maps nothing can be compared."""
    few = inputs[:8]
    scores = plain(module, few).mean(0)
    likely: list[int] = scores.topk(min(20, len(scores))).indices.tolist()
    found = tvc.grad_cam(module, few, [likely] * len(few), layer=layer).values
    seen = found.flatten(2).amax(2).gt(0).all(0).tolist()
    return next((c for c, good in zip(likely, seen, strict=True) if good), likely[0])
