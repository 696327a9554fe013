"""The result every method returns: raw values, and ways to look at them."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.endings import Kind
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically
from torchviz_cnn.head import of_both_classes, probabilities
from torchviz_cnn.resample import at_places, spread, upsample
from torchviz_cnn.targets import class_label
from torchviz_cnn.version import __version__
from torchviz_cnn.words import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from torchviz_cnn.pictures import Picture
    from torchviz_cnn.places import Place

MANIFEST_VERSION = 1

Align = Literal["stretch", "receptive_field"]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What a method found, raw, and how to look at it.

    N is the number of images, K the number of targets an image (the axis is there only when several
    were asked for), (H, W) the size of the network's input.

    Attributes:
        values: what the method computed, on the input's device and in its dtype. Gradient methods:
            ``(N, C, H, W)``; the CAM family: ``(N, h, w)`` at the layer's size; occlusion:
            ``(N, rows, columns)``, the score lost by hiding each window. K targets insert an axis:
            ``(N, K, …)``.
        score: the explained score of the untouched images, ``(N,)`` or ``(N, K)``.
        target: the classes explained, ``(N,)`` or ``(N, K)``; ``None`` for a callable.
        method: the function's name.
        layer: the layer looked at, where the method has one.
        input_size: ``(H, W)``.
        classes: class names by index, where known.
        parameters: the options it was made with, for the manifest.
    """

    values: Tensor
    score: Tensor
    target: Tensor | None
    method: str
    input_size: tuple[int, int]
    layer: str | None = None
    classes: Sequence[str] | None = field(default=None, repr=False)
    parameters: dict[str, Any] = field(default_factory=dict)
    # How a picture is cut and scaled before the network sees it; None: as a whole.
    view: Callable[[Image.Image], Image.Image] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("values", "score", "target"):
            tensor = getattr(self, name)
            if tensor is not None:
                object.__setattr__(self, name, tensor.detach().contiguous())

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        layer = f", layer={self.layer!r}" if self.layer else ""
        return (
            f"{type(self).__name__}({self.method}{layer}, "
            f"values={tuple(self.values.shape)}, target={self.labels()})"
        )

    # ---- numbers to look at -------------------------------------------------------------------

    def maps(self, align: Align = "stretch") -> Tensor:
        """Maps at the input's size in the unit of the values: ``(N, H, W)`` or ``(N, K, H, W)``."""
        raise NotImplementedError

    def heatmap(self, align: Align = "stretch") -> Tensor:
        """Maps at the input's size, scaled to be looked at.

        Args:
            align: how a layer's cells are laid over the picture. ``"stretch"``: over the whole of
                it, as the papers do. ``"receptive_field"``: each at the middle of what it sees;
                after convolutions without padding the two differ most at the border.

        Returns:
            ``(N, H, W)`` or ``(N, K, H, W)``. Maps without negative values are divided by their
            maximum, so 0 stays 0 and the strongest pixel is 1; signed maps by their largest
            magnitude, so that they lie in −1…1 around 0. Each map on its own. A constant map has
            nothing to show and gives zeros.
        """
        if align not in get_args(Align):
            raise InputError(f"align must be {' or '.join(get_args(Align))}, not {align!r}")
        given = self.maps(align)
        # Half precision has no room for the quotient of two small gradients.
        maps = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
        scale = maps.abs().amax((-2, -1), keepdim=True)
        varies = maps.amax((-2, -1), keepdim=True) > maps.amin((-2, -1), keepdim=True)
        tiny = torch.finfo(maps.dtype).tiny
        scaled = torch.where(varies, maps / scale.clamp_min(tiny), torch.zeros_like(maps))
        return scaled.to(given.dtype)

    def one_map(self, index: int = 0, target: int = 0, align: Align = "stretch") -> np.ndarray:
        """The map of one image and target, ``(H, W)``, in the unit of the values."""
        return self._pick(self.maps(align), index, target).float().cpu().numpy()

    def one_heatmap(self, index: int = 0, target: int = 0, align: Align = "stretch") -> np.ndarray:
        """The scaled map of one image and target, ``(H, W)``."""
        return self._pick(self.heatmap(align), index, target).float().cpu().numpy()

    def _pick(self, tensor: Tensor, index: int, target: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise InputError(f"there is no image {index}: the result has {len(self)}")
        tensor = tensor[index]
        if self.score.ndim == 1:
            return tensor
        count = self.score.shape[1]
        if not -count <= target < count:
            raise InputError(f"there is no target {target}: the result has {count} an image")
        return tensor[target]

    # ---- words --------------------------------------------------------------------------------

    def labels(self) -> list[Any]:
        """The targets by name where names are known, else by index; nested for several."""
        if self.target is None:
            return ["callable"] * len(self)

        def name(index: Any) -> Any:
            if isinstance(index, list):
                return [name(each) for each in index]
            label = class_label(index, self.classes)
            return index if label == str(index) else label

        return [name(index) for index in self.target.tolist()]

    def label(self, index: int = 0, target: int = 0) -> str:
        """What was explained of one image, in words."""
        label = self.labels()[index]
        return str(label[target] if isinstance(label, list) else label)

    def title(self, index: int = 0, target: int = 0) -> str:
        """One line that says what a map shows: method, layer, class and score."""
        where = f" at {self.layer}" if self.layer else ""
        what = "" if self.target is None else f"class {self.label(index, target)}, "
        score = float(self._pick(self.score, index, target))
        kind = self.parameters.get("score", "logit")
        return f"{self.method}{where}: {what}{kind} {brief(score)}"

    def manifest(self) -> dict[str, Any]:
        """How this was made, as plain data: method, layer, target, score, options, versions."""
        return {
            "manifest_version": MANIFEST_VERSION,
            "method": self.method,
            "layer": self.layer,
            "target": None if self.target is None else self.target.tolist(),
            "labels": self.labels(),
            "score": self.score.double().tolist(),
            "input_size": list(self.input_size),
            "values_shape": list(self.values.shape),
            "parameters": self.parameters,
            "device": str(self.values.device),
            "versions": {
                "torchviz_cnn": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    # ---- pictures -----------------------------------------------------------------------------

    def _seen(self, picture: Picture) -> Image.Image:
        """The part of a picture that the network saw."""
        from torchviz_cnn.pictures import to_image

        image = to_image(picture)
        return self.view(image) if self.view is not None else image

    def overlay(
        self,
        picture: Picture,
        colormap: str | None = None,
        alpha: float = 0.4,
        *,
        index: int = 0,
        target: int = 0,
        align: Align = "stretch",
    ) -> Image.Image:
        """The heat map laid over the picture.

        Args:
            picture: a file, PIL image, or array ``(H, W[, 3])``: the original, any size. Where the
                result was made with a ``Model``, it is cut exactly as the network saw it; with a
                bare module the map covers the whole of it.
            colormap: any matplotlib name; ``jet`` by default, a diverging one where there may be
                values of both signs.
            alpha: weight of the map; the picture has 1 − alpha.
            index, target: which image and which of its targets.
            align: as for :meth:`heatmap`.
        """
        from torchviz_cnn import render

        return render.overlay(
            self._seen(picture),
            self.one_heatmap(index, target, align),
            colormap=colormap,
            alpha=alpha,
            signed=self.signed,
        )

    def masked(
        self,
        picture: Picture,
        keep: float = 0.25,
        *,
        index: int = 0,
        target: int = 0,
        align: Align = "stretch",
    ) -> Image.Image:
        """The picture with only the parts that matter left visible.

        Args:
            picture: as for :meth:`overlay`.
            keep: the share of pixels to leave, those with the highest positive values.
            index, target: which image and which of its targets.
            align: as for :meth:`heatmap`.
        """
        from torchviz_cnn import render

        heatmap = self.one_heatmap(index, target, align)
        return render.masked(self._seen(picture), heatmap, keep=keep)

    def figure(
        self,
        picture: Picture | None = None,
        *,
        colormap: str | None = None,
        target: int = 0,
        index: int = 0,
        align: Align = "stretch",
    ) -> Figure:
        """Picture, map with a colour bar in the unit of the values, and overlay, side by side."""
        from torchviz_cnn import render

        return render.attribution_figure(
            self.one_map(index, target, align),
            picture=None if picture is None else self._seen(picture),
            title=self.title(index, target),
            unit=self.unit,
            colormap=colormap,
            signed=self.signed,
        )

    @property
    def signed(self) -> bool:
        """Whether maps of this kind may have values of both signs, whatever these have."""
        return False

    @property
    def unit(self) -> str:
        """What the values measure, for a colour bar."""
        return "value"

    def save(self, path: str | Path, picture: Picture | None = None, **options: Any) -> Path:
        """Write the result: ``.png`` or ``.jpg`` a figure, ``.npz`` the numbers and a manifest.

        An NPZ holds ``values``, ``heatmap``, ``score``, ``target`` and ``manifest`` (JSON).

        Args:
            path: the file to write; never half-written.
            picture: drawn beside the map in a picture file.
            options: for :meth:`figure`.

        Returns:
            The path.

        Raises:
            InputError: for another suffix.
            OSError: when it cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return write_atomically(path, self._write_npz)
        if suffix not in (".png", ".jpg", ".jpeg"):
            raise InputError(f"cannot save {path.name!r}: the name must end in .png, .jpg or .npz")
        figure = self.figure(picture, **options)
        kind = "png" if suffix == ".png" else "jpg"
        return write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=120))

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "values": _array(self.values),
            "heatmap": _array(self.heatmap()),
            "score": _array(self.score),
            "manifest": np.array(json.dumps(self.manifest())),
        }
        if self.target is not None:
            arrays["target"] = _array(self.target)
        return arrays

    def _write_npz(self, file: BinaryIO) -> None:
        np.savez_compressed(file, **self._arrays())  # type: ignore[arg-type]

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def _array(tensor: Tensor) -> np.ndarray:
    """The numbers for NumPy, which knows no bfloat16."""
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).cpu().numpy()


@dataclass(frozen=True, eq=False, repr=False)
class PixelAttribution(Attribution):
    """A value for every number of the input: ``(N, C, H, W)``.

    Attributes:
        channels: how the map is made of the channels: the largest magnitude over them (Simonyan et
            al. 2013, section 3.1), or their sum.
        quantity: what a value is.
    """

    channels: Literal["magnitude", "sum"] = "magnitude"
    quantity: str = "gradient of the score"

    def maps(self, align: Align = "stretch") -> Tensor:
        values = self.values
        if values.ndim == 3 + (self.score.ndim - 1):  # no channel axis
            return values.abs() if self.channels == "magnitude" else values
        return values.abs().amax(-3) if self.channels == "magnitude" else values.sum(-3)

    @property
    def signed(self) -> bool:
        return self.channels == "sum"

    @property
    def unit(self) -> str:
        if self.channels == "magnitude":
            return f"largest |{self.quantity}| over channels"
        return self.quantity


@dataclass(frozen=True, eq=False, repr=False)
class PathAttribution(PixelAttribution):
    """A value for every number of the input that shares out how the score rose from a baseline.

    Attributes:
        baseline_score: the explained score of the baseline, ``(N,)`` or ``(N, K)``.
    """

    baseline_score: Tensor = field(kw_only=True, repr=False)

    @property
    def gap(self) -> Tensor:
        """How much more the values sum to than the score rose, ``(N,)`` or ``(N, K)``: 0 if exact."""
        return self.values.flatten(self.score.ndim).sum(-1) - (self.score - self.baseline_score)

    def manifest(self) -> dict[str, Any]:
        return {
            **super().manifest(),
            "baseline_score": self.baseline_score.double().tolist(),
            "gap": self.gap.double().tolist(),
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            **super()._arrays(),
            "baseline_score": _array(self.baseline_score),
            "gap": _array(self.gap),
        }


@dataclass(frozen=True, eq=False, repr=False)
class CellAttribution(Attribution):
    """A value for every cell of a layer's output: ``(N, h, w)``.

    Attributes:
        place: where the cells lie on the picture; ``None`` where that is not known.
    """

    place: Place | None = field(default=None, repr=False)

    def maps(self, align: Align = "stretch") -> Tensor:
        if align == "stretch":
            return upsample(self.values, self.input_size)
        if self.place is None:
            fault = (
                f"where the cells of {self.layer!r} lie on the picture is not known (something "
                "before it resizes or reorders the map)"
            )
            raise InputError(f"{fault}; use align='stretch'", typed=f"{fault}; use --align stretch")
        return at_places(self.values, self.place, self.input_size)

    @property
    def signed(self) -> bool:
        return self.parameters.get("relu") is False

    @property
    def unit(self) -> str:
        return "class activation"


@dataclass(frozen=True, eq=False, repr=False)
class WindowAttribution(Attribution):
    """The score lost by hiding each window: ``(N, rows, columns)``.

    Attributes:
        window, stride: height and width of the window, and its steps, in pixels.
        scores: the network's scores for all classes with each window hidden, before the final
            softmax or sigmoid: ``(N, rows, columns, classes)``. ``None`` where they were not kept.
        kind: the network's final softmax or sigmoid.
    """

    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    scores: Tensor | None = field(default=None, repr=False)
    kind: Kind | None = None

    def maps(self, align: Align = "stretch") -> Tensor:
        """At each pixel the mean over the windows that hid it."""
        return self._over_pixels(self.values)

    def _over_pixels(self, grid: Tensor) -> Tensor:
        return spread(grid, self.window, self.stride, self.input_size)

    def hidden_score(self) -> Tensor:
        """The score with each window hidden: ``(N, rows, columns)`` or ``(N, K, …)``."""
        return self.score[..., None, None] - self.values

    def hidden_probability(self) -> Tensor:
        """The target's probability with each window hidden: ``(N, rows, columns)`` or with K.

        Low where the network needs what is under the window.

        Raises:
            InputError: when a callable was explained, or the scores of all classes were not kept.
        """
        if self.target is None:
            raise InputError("a callable target has no class, so no probability")
        if self.scores is None:
            raise InputError("pass all_scores=True to occlusion to keep the scores of all classes")
        n, rows, columns, classes = self.scores.shape
        flat = self.scores.reshape(-1, classes)
        chances = of_both_classes(probabilities(flat, self.kind))
        chances = chances.reshape(n, rows, columns, -1)
        target = self.target if self.target.ndim == 2 else self.target[:, None]
        wanted = target[:, None, None, :].expand(n, rows, columns, -1)
        picked = chances.gather(-1, wanted).permute(0, 3, 1, 2)
        return picked if self.target.ndim == 2 else picked[:, 0]

    def probability_map(self) -> Tensor:
        """:meth:`hidden_probability` at the input's size, ``(N, H, W)`` or ``(N, K, H, W)``."""
        return self._over_pixels(self.hidden_probability())

    @property
    def signed(self) -> bool:
        return True

    @property
    def unit(self) -> str:
        kind = self.parameters.get("score", "logit")
        return f"{kind} lost when hidden"

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = super()._arrays()
        if self.scores is not None:
            arrays["scores"] = _array(self.scores)
        return arrays
