"""A network with what is needed to use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchviz_cnn.errors import InputError
from torchviz_cnn.inputs import place_and_kind
from torchviz_cnn.pictures import Picture, to_image
from torchviz_cnn.words import counted, some


class AboutPictures(str):
    """A note on how pictures are prepared, which is nothing to who gives none."""

    __slots__ = ()


class AboutSize(AboutPictures):
    """A note on the size of pictures, which noise made up for them has as well."""

    __slots__ = ()


@dataclass(frozen=True, repr=False)
class Model:
    """A network with what is needed to use it.

    Attributes:
        module: the network, in eval mode.
        preprocess: picture, or list of pictures, -> ``(N, C, H, W)`` on the CPU; any function that
            does so will do.
        input_size: ``(C, H, W)`` of one image, or ``(H, W)`` without a channel axis.
        classes: class names by index; ``None`` where they are not known.
        source: where it came from, in words.
        notes: what was assumed on the way, each a sentence a user should be told.
    """

    module: nn.Module
    preprocess: Callable[[Any], Tensor]
    input_size: tuple[int, ...]
    classes: tuple[str, ...] | None = None
    source: str = "network"
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: what it is, takes and knows, and how large it is."""
        parts = [part for part in self.module.modules() if not any(part.children())]
        numbers = [p for p in self.module.parameters() if not is_lazy(p)]
        known = "class names not known"
        if self.classes is not None:
            known = f"{len(self.classes)} classes ({some(self.classes)})"
        return (
            f"Model({self.source}: {type(self.module).__name__}, takes {self.input_size}, {known}, "
            f"{counted(sum(p.numel() for p in numbers), 'parameter')} in "
            f"{counted(len(parts), 'layer')}, on {self.device})"
        )

    def __call__(self, inputs: Tensor) -> Any:
        return self.module(inputs)

    def to(self, device: str | torch.device) -> Model:
        """The same with the network moved to a device (the module itself moves)."""
        return replace(self, module=self.module.to(device))

    @property
    def device(self) -> torch.device:
        """Where the network is: the device of its first parameter, the CPU without any."""
        device: torch.device = place_and_kind(self.module)["device"]
        return device

    def prepare(self, pictures: Picture | list[Picture]) -> Tensor:
        """Pictures ready for the network: preprocessed, on its device and of its dtype.

        Raises:
            InputError: for a picture that cannot be read.
        """
        return self.preprocess(pictures).to(**place_and_kind(self.module))

    def view(self, picture: Picture) -> Image.Image:
        """The part of a picture that the network sees; heat maps cover exactly this.

        The whole of it where ``preprocess`` is a function that does not tell.
        """
        view = getattr(self.preprocess, "view", to_image)
        return view(picture)


def of_its_size(model: Model, size: tuple[int, ...] | None) -> Model:
    """A network that takes one size only."""
    if size is not None and size != model.input_size:
        takes, asked = ("×".join(map(str, each)) for each in (model.input_size, size))
        raise InputError(f"{model.source} takes {takes}, not {asked}; leave the input size out")
    return model
