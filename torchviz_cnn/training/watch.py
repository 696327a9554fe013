"""One picture after every epoch: what the layers learn over time, as a strip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from torch import Tensor, nn

from torchviz_cnn import render
from torchviz_cnn.album import predict
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.files import write_atomically
from torchviz_cnn.methods import grad_cam
from torchviz_cnn.models import Model
from torchviz_cnn.naming import module_of, resolve_one
from torchviz_cnn.observe import activations
from torchviz_cnn.report import write_picture
from torchviz_cnn.summary import layers

T = TypeVar("T")

CELL = 168
STRIP = "watch.png"
MOST = 24  # columns in a strip: as many as can be looked at, however long the run
_FRAMES = "watch"
_PICTURE = "picture.sha256"
_LAYERS = 3
_SIDE = 3  # channels in a row and in a column


@dataclass(frozen=True)
class Watch:
    """Looks at one picture through a network in training.

    Every epoch's column is kept in ``OUT/watch``, so that a run that is taken up again has all of
    them; ``OUT/watch.png`` is made of them anew after each, of evenly chosen ones where they are many.

    Attributes:
        picture: to look at.
        folder: OUT.

    Raises:
        InputError: where columns of another picture are in the folder.
    """

    picture: Image.Image
    folder: Path

    def __post_init__(self) -> None:
        known = self.folder / _FRAMES / _PICTURE
        if known.exists() and known.read_text(encoding="ascii", errors="replace") != self._digest():
            raise InputError(
                f"{str(self.folder / _FRAMES)!r} shows another picture over time, and one strip is of "
                "one picture; watch that one again, or move that folder away"
            )

    def _digest(self) -> str:
        """What tells the picture from others, whatever file it came from."""
        image = self.picture.convert("RGB")
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def __call__(self, model: Model, epoch: int) -> None:
        """Draw the column of an epoch, and the strip so far.

        Args:
            model: the network as it is, which takes the prepared picture, ``(1, C, H, W)`` or
                ``(1, H, W)``; it is left as it was.
            epoch: how many are done.

        Raises:
            CannotWrite: an ``OSError``, when the disk is full or the folder cannot be written.
        """
        names = watched_layers(model)
        column = self._column(model, names)
        says = predict(model, model.prepare(self.picture), 1)[0][0]
        frame = render.sheet(
            [[picture] for picture in column],
            [f"epoch {epoch}: {says.name} {100 * says.probability:.0f} %"],
            ["Grad-CAM", *names],
            cell=CELL,
        )
        digest = self._digest().encode()
        write_atomically(self.folder / _FRAMES / _PICTURE, lambda file: file.write(digest))
        write_picture(self.folder / _FRAMES, f"epoch_{epoch:04d}.png", frame)
        write_picture(self.folder, STRIP, self.strip(epoch))

    def strip(self, last: int) -> Image.Image:
        """The columns of the epochs so far, side by side: at most ``MOST`` of them."""
        frames: list[Image.Image] = []
        for path in shown_columns(self.folder, last).values():
            with Image.open(path) as file:
                frames.append(file.convert("RGB"))
        height = max(frame.height for frame in frames)
        canvas = Image.new("RGB", (sum(frame.width for frame in frames), height), "white")
        left = 0
        for frame in frames:
            canvas.paste(frame, (left, 0))
            left += frame.width
        return canvas

    def _column(self, model: Model, names: list[str]) -> list[Image.Image]:
        inputs = model.prepare(self.picture)
        view = render.viewable(model.view(self.picture), CELL)
        try:
            overlay = render.overlay(view, grad_cam(model, inputs).one_heatmap())
        except NotApplicable:  # nothing to see is a finding as well
            overlay = view
        seen = activations(model, inputs, names)
        return [overlay, *(_mosaic(seen[name][0]) for name in names)]


def shown_columns(folder: Path, last: int) -> dict[int, Path]:
    """The columns a strip is made of, by their epoch: the first, the last, and evenly between.

    Args:
        folder: OUT.
        last: the epoch of the last one; what a run that was here before left beyond it is not shown.
    """
    kept = {
        epoch: path
        for path in sorted((folder / _FRAMES).glob("epoch_*.png"))
        if (epoch := int(path.stem.removeprefix("epoch_"))) <= last
    }
    return {epoch: kept[epoch] for epoch in _evenly(sorted(kept), MOST)}


def _evenly(items: list[T], most: int) -> list[T]:
    """At most so many of a list, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _mosaic(maps: Tensor) -> Image.Image:
    """The first channels of a layer ``(C, h, w)``, each from its own minimum to its own maximum."""
    tile = CELL // _SIDE
    canvas = Image.new("RGB", (CELL, CELL), "white")
    for number, values in enumerate(maps[: _SIDE * _SIDE].float().cpu().numpy()):
        low, high = float(values.min()), float(values.max())
        drawn = render.colorize(values, "gray", low, high if high > low else low + 1)
        row, column = divmod(number, _SIDE)
        factor = (tile - 2) / max(values.shape)
        size = (max(1, round(values.shape[1] * factor)), max(1, round(values.shape[0] * factor)))
        # Small maps keep their square cells; large ones are averaged.
        how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
        picture = Image.fromarray(drawn).resize(size, how)
        canvas.paste(picture, (column * tile, row * tile))
    return canvas


def watched_layers(model: Model) -> list[str]:
    """Some layers with maps, from the first convolution to the last."""
    with_maps = [
        row.name for row in layers(model) if row.calls and _has_convolution(model, row.name)
    ]
    return _evenly(with_maps, _LAYERS)


def _has_convolution(model: Model, name: str) -> bool:
    part = resolve_one(module_of(model), name).module
    return any(isinstance(each, nn.Conv2d) for each in part.modules())
