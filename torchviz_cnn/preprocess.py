"""From a picture to the tensor a network was trained on, and back to what it saw of the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.pictures import Picture, to_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = Literal["RGB", "BGR", "L"]
# Pillow's ways of resizing, by the names torchvision gives them.
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocess:
    """Scale, cut and normalise pictures as a network expects them.

    Attributes:
        size: height and width of the network's input.
        resize: the picture's short side is scaled to this and the middle cut out; ``None`` scales
            the whole picture to ``size``, whatever its shape.
        scale: a byte is multiplied by this,
        mean: then this is subtracted, one a channel,
        std: then it is divided by this.
        channels: ``"RGB"``, ``"BGR"`` or ``"L"`` (gray).
        interpolation: how the picture is resized: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, …
        channel_axis: ``False`` for gray networks that take ``(N, H, W)``.

    Example:
        >>> import numpy as np
        >>> Preprocess((4, 4), scale=1 / 255)(np.full((9, 7, 3), 255, np.uint8)).unique()
        tensor([1.])
    """

    size: tuple[int, int]
    resize: int | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Channels = "RGB"
    interpolation: Interpolation = "bilinear"
    channel_axis: bool = True

    def __post_init__(self) -> None:
        if self.interpolation not in get_args(Interpolation):
            raise InputError(
                f"there is no interpolation {self.interpolation!r}; choose one of "
                + ", ".join(get_args(Interpolation))
            )

    def view(self, picture: Picture) -> Image.Image:
        """What the network sees of a picture, at the picture's own resolution where that is finer.

        A heat map of the network's input covers exactly this.
        """
        image = to_image(picture)
        if self.resize is None:
            return image
        width, height = image.size
        new_height, new_width = self._scaled(height, width)
        top, left = (
            round((n - m) / 2.0) for n, m in zip((new_height, new_width), self.size, strict=True)
        )
        sx, sy = width / new_width, height / new_height
        box = (left * sx, top * sy, (left + self.size[1]) * sx, (top + self.size[0]) * sy)
        target = (
            max(self.size[1], round(box[2] - box[0])),
            max(self.size[0], round(box[3] - box[1])),
        )
        if box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height:
            return image.resize(target, Image.Resampling.BICUBIC, box=box)
        return self._resized(image)  # the cut reaches over the border, which is padded

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        assert self.resize is not None
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)

    def _resized(self, image: Image.Image) -> Image.Image:
        how = Image.Resampling[self.interpolation.upper()]
        height, width = self.size
        if self.resize is None:
            return image.resize((width, height), how)
        image = _shortened(image, max(self.size) / self.resize)
        new_height, new_width = self._scaled(image.height, image.width)
        image = image.resize((new_width, new_height), how)
        top, left = _margin(new_height, height), _margin(new_width, width)
        return image.crop((left, top, left + width, top + height))  # black beyond the border

    def __call__(self, pictures: Picture | list[Picture]) -> Tensor:
        """One picture or several as a batch ``(N, C, H, W)`` or ``(N, H, W)``, float32.

        Raises:
            InputError: for a picture that cannot be read, or no picture at all.
        """
        if isinstance(pictures, list):
            if not pictures:
                raise InputError("there is no picture in the list; give at least one")
            return torch.cat([self(picture) for picture in pictures])
        prepared = self.numbers(self.pixels(pictures))
        return prepared[None] if self.channel_axis else prepared

    def pixels(self, picture: Picture) -> Tensor:
        """One picture scaled and cut, still in bytes ``(C, H, W)``: a quarter of the memory.

        Raises:
            InputError: for a picture that cannot be read.
        """
        image = self._resized(to_image(picture))
        if self.channels == "L":
            image = image.convert("L")
        tensor = torch.from_numpy(np.array(image))
        tensor = tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()
        return tensor.flip(0) if self.channels == "BGR" else tensor

    def numbers(self, pixels: Tensor) -> Tensor:
        """Bytes ``(…, C, H, W)`` of :meth:`pixels` scaled and normalised, on their device."""
        mean, std = (
            torch.tensor(v, device=pixels.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (pixels.float() * self.scale - mean) / std


def _margin(long: int, cut: int) -> int:
    """Where the middle of ``long`` pixels begins, as torchvision's ``center_crop`` has it."""
    return round((long - cut) / 2) if long >= cut else -((cut - long) // 2)


def _shortened(image: Image.Image, needed: float) -> Image.Image:
    """The middle of a picture a hundred times as long as wide, of which only the middle is used.

    Scaled up as a whole it would take gigabytes. ``needed`` is in short sides; what is cut off is
    far from what is seen.
    """
    short, long = min(image.size), max(image.size)
    keep = math.ceil(needed + 8) * short
    if long <= 100 * short or long <= keep:
        return image
    keep += (long - keep) % 2  # as much on both sides
    start = (long - keep) // 2
    box = (start, 0, start + keep, image.height)
    if image.height > image.width:
        box = (0, start, image.width, start + keep)
    return image.crop(box)


@dataclass(frozen=True)
class Colors:
    """How colours become a network's inputs, pixel by pixel: ``inputs = matrix · colours + offset``.

    Colours are RGB or gray, from 0 to 1. Differentiable, so that a picture can be optimised.

    Attributes:
        matrix: ``(C, K)``, for K colours and C channels of the input.
        offset: ``(C,)``, the inputs that black becomes.
        channel_axis: ``False`` for gray networks that take ``(N, H, W)``.
    """

    matrix: Tensor
    offset: Tensor
    channel_axis: bool = True

    @property
    def count(self) -> int:
        """K: 3 for RGB, 1 for gray; otherwise a network's own channels."""
        return self.matrix.shape[1]

    def inputs(self, colors: Tensor) -> Tensor:
        """``(N, K, H, W)`` from 0 to 1 -> what the network takes."""
        matrix, offset = self.matrix.to(colors), self.offset.to(colors)
        mixed = torch.einsum("ck,nkhw->nchw", matrix, colors) + offset[:, None, None]
        return mixed if self.channel_axis else mixed[:, 0]

    def of_zero(self) -> Tensor:
        """The colours, ``(K,)``, nearest to those that become an input of zero."""
        solved = torch.linalg.lstsq(self.matrix, -self.offset[:, None]).solution
        return solved[:, 0].clamp(0, 1)


def colors_of(preprocess: object, input_size: Sequence[int]) -> Colors:
    """How a preparation of pictures treats colours; of a function it is found out by trying.

    Args:
        preprocess: a :class:`Preprocess`, one of Keras' modes by name, or any function from a
            picture to ``(N, C, H, W)``.
        input_size: ``(C, H, W)``, or ``(H, W)``, of the network.

    Raises:
        InputError: for a function that does more to a picture of one colour than an affine map of
            its colours.

    Example:
        >>> colors_of("caffe", (3, 8, 8)).offset
        tensor([-103.9390, -116.7790, -123.6800], dtype=torch.float64)
    """
    channels = 1 if len(input_size) == 2 else input_size[0]
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 colours; this network takes {channels} channels")
    if isinstance(preprocess, str):
        preprocess = preprocess_by_name(preprocess, input_size)
    if not isinstance(preprocess, Preprocess):
        return _colors_by_trial(preprocess, input_size)
    gray = preprocess.channels == "L"
    order = torch.eye(1 if gray else 3, dtype=torch.float64, device="cpu")
    mean, std = (
        torch.tensor(v, dtype=torch.float64, device="cpu").expand(len(order))
        for v in (preprocess.mean, preprocess.std)
    )
    if preprocess.channels == "BGR":
        order = order.flip(0)
    return Colors(
        order * (255 * preprocess.scale) / std[:, None], -mean / std, preprocess.channel_axis
    )


def _unsuited(fault: str) -> InputError:
    sentence = f"the network's preprocessing {fault}; name one with"
    return InputError(f"{sentence} preprocess=", typed=f"{sentence} --preprocess")


def _colors_by_trial(preprocess: object, input_size: Sequence[int]) -> Colors:
    if not callable(preprocess):
        raise InputError(
            f"preprocess is a name ({', '.join(KERAS_MODES)}) or a function from pictures to "
            f"inputs, not {type(preprocess).__name__}"
        )
    input_size = tuple(input_size)
    size = (max(8, input_size[-1]), max(8, input_size[-2]))
    channels = 1 if len(input_size) == 2 else input_size[0]

    def shown(*color: int) -> Tensor:
        found = preprocess(Image.new("RGB", size, color))
        if not isinstance(found, Tensor) or found.shape[-len(input_size) :][:-2] != input_size[:-2]:
            raise _unsuited("does not make inputs of its size of a picture")
        return found.double().reshape(channels, -1).mean(1)

    black, white = shown(0, 0, 0), shown(255, 255, 255)
    if channels == 1:
        matrix = (white - black)[:, None]
    else:
        pure = [shown(255, 0, 0), shown(0, 255, 0), shown(0, 0, 255)]
        matrix = torch.stack(pure, 1) - black[:, None]
    tried = shown(51, 51, 51)
    wanted = matrix @ matrix.new_full((matrix.shape[1],), 0.2) + black
    if not torch.allclose(tried, wanted, atol=1e-3 * float((white - black).abs().max() + 1e-6)):
        raise _unsuited(
            "does more to colours than scale and shift them, so a picture cannot be optimised "
            "through it"
        )
    return Colors(matrix, black, len(input_size) == 3)


# Keras' ways of preparing pictures: keras.applications' three modes, and ImageDataGenerator's
# rescale=1/255. All scale the whole picture to the input's size, taking the nearest pixel, as
# load_img(target_size=…) does unless it is told otherwise.
KERAS_MODES: dict[str, Preprocess] = {
    "rescale": Preprocess((0, 0)),
    "tf": Preprocess((0, 0), scale=1 / 127.5, mean=(1.0,)),
    "torch": Preprocess((0, 0), mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "caffe": Preprocess((0, 0), scale=1.0, mean=(103.939, 116.779, 123.68), channels="BGR"),
    "none": Preprocess((0, 0), scale=1.0),
}


def preprocess_by_name(mode: str, input_size: Sequence[int], *, nearest: bool = True) -> Preprocess:
    """One of Keras' ways of preparing a picture, for an input of a given size.

    Args:
        mode: ``"rescale"``, ``"tf"``, ``"torch"``, ``"caffe"`` or ``"none"``.
        input_size: ``(C, H, W)``, or ``(H, W)`` for gray pictures without a channel axis.
        nearest: take the nearest pixel when resizing, as Keras does; else average, which is
            kinder to thin strokes.

    Raises:
        InputError: for another name, or a mode that needs colour on a gray input.
    """
    if mode not in KERAS_MODES:
        raise InputError(
            f"there is no preprocessing {mode!r}; choose one of {', '.join(KERAS_MODES)}"
            + closest(mode, KERAS_MODES)
        )
    how: Interpolation = "nearest" if nearest else "bilinear"
    chosen = replace(
        KERAS_MODES[mode],
        size=(input_size[-2], input_size[-1]),
        interpolation=how,
        channel_axis=len(input_size) == 3,
    )
    if len(input_size) == 2 or input_size[0] == 1:
        if len(chosen.mean) == 3:
            raise InputError(f"the preprocessing {mode!r} needs colour, and this network is gray")
        return replace(chosen, channels="L", channel_axis=len(input_size) == 3)
    return chosen
