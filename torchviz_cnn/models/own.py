"""The tutorials' networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from torchviz_cnn import networks
from torchviz_cnn.errors import InputError
from torchviz_cnn.models.model import Model
from torchviz_cnn.models.weights import at_random, load_state, read_state
from torchviz_cnn.preprocess import preprocess_by_name


@dataclass(frozen=True)
class _Own:
    """A network of the tutorials."""

    build: Callable[..., nn.Module]
    input_size: tuple[int, int, int]
    classes: tuple[str, ...]
    about: str


OWN: dict[str, _Own] = {
    "mnist_convnet": _Own(
        networks.MnistConvNet, (1, 28, 28), tuple("0123456789"), "the MNIST ConvNet"
    ),
    "cat_dog": _Own(networks.cat_dog, (3, 150, 150), ("cat", "dog"), "cats against dogs"),
    "cat_dog_small": _Own(
        networks.cat_dog_small, (3, 150, 150), ("cat", "dog"), "cats against dogs, small"
    ),
}


def own_network(name: str, weights: str | None) -> Model:
    own = OWN[name]
    if weights == "default":
        fault = f"{name} has no published weights; train it and give the file"
        raise InputError(f"{fault}, or use weights='none'", typed=f"{fault}, or --weights none")
    module = at_random(own.build)
    notes: tuple[str, ...] = ()
    if weights in (None, "none"):
        notes = (f"{name} has random weights: its maps show the architecture, nothing learnt",)
    else:
        load_state(module, read_state(str(weights)), str(weights))
    return Model(
        module,
        preprocess_by_name("rescale", own.input_size, nearest=own.input_size[0] == 3),
        own.input_size,
        own.classes,
        f"{name} ({own.about})",
        notes,
    )
