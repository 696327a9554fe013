"""The pictures that activation maximisation made, and ways to look at them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from torch import Tensor

from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically
from torchviz_cnn.words import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Maximization:
    """Pictures that were optimised, and how it went.

    N is the number of objectives, K the number of colours (3 or 1).

    Attributes:
        colors: the pictures, ``(N, K, H, W)`` from 0 to 1, RGB or gray.
        inputs: the same as the network takes them, ``(N, C, H, W)`` or ``(N, H, W)``.
        history: ``(N, steps)``, the objective at each step, of the picture as it was then moved.
        value: ``(N,)``, the objective of the finished pictures, not moved.
        labels: what was maximised, in words, one a picture.
        layers: the layers looked at.
        parameters: the options it was made with.
        notes: what a user should know, each a sentence.
    """

    colors: Tensor
    inputs: Tensor
    history: Tensor
    value: Tensor
    labels: tuple[str, ...]
    layers: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.colors)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.labels)}; {tuple(self.colors.shape)})"

    @property
    def image(self) -> Image.Image:
        """The first picture, at its own size."""
        return self.images[0]

    @property
    def images(self) -> list[Image.Image]:
        """Every picture, 8-bit RGB at its own size.

        Raises:
            InputError: for a network whose inputs are not pictures of 1 or 3 colours.
        """
        from torchviz_cnn.pictures import to_image

        if self.colors.shape[1] not in (1, 3):
            raise InputError(
                f"inputs of {self.colors.shape[1]} channels are no pictures; "
                "their numbers are in .inputs"
            )
        bytes_of = (self.colors.double() * 255).round().clamp(0, 255).byte().cpu()
        return [to_image(each.movedim(0, -1).numpy()) for each in bytes_of]

    def sheet(self, columns: int | None = None, *, cell: int = 192) -> Image.Image:
        """The pictures on one sheet, with what was maximised and how far it came.

        Args:
            columns: pictures in a row.
            cell: side of each in pixels.
        """
        from torchviz_cnn import render

        words = [
            f"{label}\n{brief(value, 4)}"
            for label, value in zip(self.labels, self.value.tolist(), strict=True)
        ]
        return render.contact_sheet(self.images, words, columns=columns, cell=cell)

    def figure(self) -> Figure:
        """The objective over the steps, one curve a picture."""
        from torchviz_cnn import render

        return render.curves_figure(
            self.history.double().cpu().numpy(), self.labels, x="step", y="objective"
        )

    def save(self, path: str | Path) -> Path:
        """Write the picture (several on a sheet) as PNG or JPEG, or the numbers as NPZ.

        An NPZ holds ``colors``, ``inputs``, ``history``, ``value`` and ``manifest`` (JSON).

        Raises:
            InputError: for another suffix.
            OSError: when it cannot be written.
        """
        path = Path(path)
        kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
        if path.suffix.lower() == ".npz":
            return write_atomically(path, self._write_npz)
        if kind is None:
            raise InputError(f"cannot save {path.name!r}: the name must end in .png, .jpg or .npz")
        image = self.image if len(self) == 1 else self.sheet()
        return write_atomically(path, lambda file: image.save(file, format=kind))

    def _write_npz(self, file: BinaryIO) -> None:
        arrays = {
            name: getattr(self, name).double().cpu().numpy()
            for name in ("colors", "inputs", "history", "value")
        }
        np.savez_compressed(file, manifest=np.array(json.dumps(self.manifest())), **arrays)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.sheet().save(buffer, format="PNG")
        return buffer.getvalue()

    def manifest(self) -> dict[str, Any]:
        """How this was made, as plain data."""
        return {
            "method": "maximize",
            "labels": list(self.labels),
            "layers": list(self.layers),
            "value": self.value.double().tolist(),
            "parameters": self.parameters,
            "notes": list(self.notes),
        }
