"""The pictures of one network looking at one picture: what it says, and every explanation.

What the command line and the demo write; each function returns pictures and writes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from torchviz_cnn import render
from torchviz_cnn.attribution import Align, Attribution, PixelAttribution, WindowAttribution
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.files import file_name
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import NoScores, of_both_classes, run
from torchviz_cnn.inputs import check_inputs, misfits_explained
from torchviz_cnn.methods.together import explained_by, left_out
from torchviz_cnn.models import Model
from torchviz_cnn.naming import module_of

CELL = 224  # pixels of a picture in a sheet
MOST_COLUMNS = 5  # of them side by side


@dataclass(frozen=True)
class Prediction:
    """One line of a table of predictions."""

    index: int
    name: str
    probability: float


def predict(model: Model, inputs: Tensor, count: int = 5) -> list[list[Prediction]]:
    """The most probable classes of each image.

    Args:
        model: a classifier.
        inputs: ``(N, C, H, W)``.
        count: at most this many classes an image.

    Raises:
        InputError: for bad inputs, or names of another number of classes.
        NoScores: for an output that is not ``(N, classes)``.
    """
    module = module_of(model)
    inputs = check_inputs(model, module, inputs)
    with misfits_explained(module, inputs), undisturbed(module, inputs):
        chances = run(module, inputs, sure=True).probabilities()
    chances = of_both_classes(chances)
    if chances.ndim != 2:
        raise NoScores(f"the network is no classifier: its output is {tuple(chances.shape)}")
    top = chances.topk(min(count, chances.shape[1]), 1)
    known = model.classes
    if known is not None and len(known) != chances.shape[1]:
        raise InputError(
            f"{len(known)} class names are known for a network of {chances.shape[1]} classes; give "
            "one name a class"
        )
    return [
        [
            Prediction(index, known[index] if known else str(index), probability)
            for index, probability in zip(indexes, values, strict=True)
        ]
        for indexes, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def guesses(model: Model, inputs: Tensor, count: int = 3) -> list[list[Prediction]] | None:
    """:func:`predict`, or ``None`` where the network is no classifier or takes another size."""
    try:
        return predict(model, inputs, count)
    except (InputError, RuntimeError):
        return None


def predictions_table(predictions: Sequence[Prediction]) -> str:
    """Predictions as lines of text.

    >>> print(predictions_table([Prediction(630, "Loafer", 0.5)]))
       50.0 %  630  Loafer
    """
    digits = max(len(str(p.index)) for p in predictions)
    return "\n".join(
        f"  {100 * p.probability:5.1f} %  {p.index:{digits}d}"
        + (f"  {p.name}" if p.name != str(p.index) else "")
        for p in predictions
    )


def explain_with(
    names: Sequence[str],
    model: Model,
    inputs: Tensor,
    target: Any,
    options: dict[str, Any],
    *,
    skip: bool,
    tell: Callable[[str], None],
) -> dict[str, Attribution]:
    """Run several methods on the same images, with the forward passes they have in common.

    Args:
        names: keys of ``METHODS``.
        model, inputs, target: as for every method.
        options: keyword arguments; each method gets those it knows. Several layers are possible.
        skip: leave out methods that this network is not made for, and tell why.
        tell: is given a sentence for everything the user should know.

    Raises:
        InputError: when the question is wrong; when a method does not apply and ``skip`` is off,
            or when none does.
    """
    bar = tqdm(
        total=len(names),
        desc="methods",
        unit="method",
        delay=2,
        leave=False,
        disable=None if options.get("progress") else True,
    )

    @contextmanager
    def attended(name: str) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        bar.update()
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                tell(f"{name}: {warning.message}")

    others = {key: value for key, value in options.items() if key != "layer"}
    layer = options.get("layer")
    found = explained_by(names, model, inputs, target, layer, others, skip=skip, around=attended)
    bar.close()
    failures = {key: each for key, each in found.items() if isinstance(each, NotApplicable)}
    results = {key: each for key, each in found.items() if isinstance(each, Attribution)}
    if not results:
        raise next(iter(failures.values()))
    for sentence in left_out({name: failure.typed for name, failure in failures.items()}):
        tell(sentence)
    return results


def map_picture(heatmap: np.ndarray, *, gray: bool, signed: bool = False) -> Image.Image:
    """A heat map alone: gray for gradients, as in their papers; else coloured, if signed by sign.

    A few pixels have gradients many times those of all others, beside which everything would be
    black: the hundredth part with the largest magnitudes is clipped.
    """
    signed = signed or bool((heatmap < 0).any())
    top = float(np.quantile(np.abs(heatmap), 0.99)) or 1.0 if gray else 1.0
    colormap = "seismic" if signed else "gray" if gray else "jet"
    return Image.fromarray(render.colorize(heatmap, colormap, -top if signed else 0.0, top))


@dataclass(frozen=True)
class Overlays:
    """How explanations are drawn.

    Attributes:
        colormap: of the overlays, any matplotlib name; by default as suits the map.
        alpha: weight of the map in an overlay.
        keep: the share that stays visible in masked pictures; ``None`` for none of them.
        align: how Grad-CAM's cells are laid over the picture.
    """

    colormap: str | None = None
    alpha: float = 0.4
    keep: float | None = None
    align: str = "stretch"

    def check(self) -> None:
        """Say before any work what cannot be drawn.

        Raises:
            InputError: for what is out of range or unknown.
        """
        if self.colormap is not None:
            render.check_colormap(self.colormap)
        if not 0 <= self.alpha <= 1:
            raise InputError(f"--alpha must lie between 0 and 1, not {self.alpha}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputError(f"--keep must lie above 0 and at most at 1, not {self.keep}")
        if self.align not in get_args(Align):
            raise InputError(f"--align must be {' or '.join(get_args(Align))}, not {self.align!r}")


def explanation_pictures(
    view: Image.Image,
    results: Mapping[str, Attribution],
    *,
    title: str,
    target: int,
    drawing: Overlays,
) -> Iterator[tuple[str, Image.Image]]:
    """Every picture of one image's explanations: overlays, masks, probabilities, and a sheet.

    Args:
        view: what the network saw, at a size to look at.
        results: by method, each of one image.
        title: of the sheet.
        target: which of the image's targets.
        drawing: how.

    Yields:
        A name with a place ``{mark}`` for what tells targets apart, and the picture.
    """
    columns = [_Column("picture", view)]
    for key, result in results.items():
        name = file_name(key)
        heatmap = result.one_heatmap(0, target, cast("Align", drawing.align))
        over = render.overlay(
            view, heatmap, colormap=drawing.colormap, alpha=drawing.alpha, signed=result.signed
        )
        gradient = isinstance(result, PixelAttribution)
        alone = map_picture(heatmap, gray=gradient, signed=result.signed)
        columns.append(
            _Column(
                f"{result.method} ({result.layer})" if result.layer else result.method,
                over,
                _overlay_scale(result, heatmap, target, drawing),
                alone.resize(view.size, Image.Resampling.BILINEAR),
                clipped=gradient,
            )
        )
        yield f"{name}{{mark}}", over
        if drawing.keep is not None:
            yield f"{name}{{mark}}_masked", render.masked(view, heatmap, keep=drawing.keep)
        if isinstance(result, WindowAttribution):
            yield f"{name}{{mark}}_probability", probability_picture(view, result, target=target)
    yield "sheet{mark}", _sheet(columns, title)


@dataclass(frozen=True)
class _Column:
    """What a sheet shows of one method, or of the picture."""

    name: str
    over: Image.Image
    scale: Image.Image | None = None
    alone: Image.Image | None = None
    clipped: bool = False


def _sheet(columns: Sequence[_Column], title: str) -> Image.Image:
    """Columns in rows of a few, each row with its overlays, their colours and the maps alone."""
    parts = []
    for first in range(0, len(columns), MOST_COLUMNS):
        few = columns[first : first + MOST_COLUMNS]
        clipped = " (gradients: the largest 1 % clipped)" if any(c.clipped for c in few) else ""
        blank = Image.new("RGB", few[0].over.size, "white")
        parts.append(
            render.sheet(
                [
                    [each.over for each in few],
                    [each.scale or Image.new("RGB", (CELL, 12), "white") for each in few],
                    [each.alone or blank for each in few],
                ],
                [each.name for each in few],
                ["overlays", "their colours", f"maps alone{clipped}"],
                cell=CELL,
                title=None if first else title,
            )
        )
    size = (max(part.width for part in parts), sum(part.height for part in parts))
    canvas = Image.new("RGB", size, "white")
    y = 0
    for part in parts:
        canvas.paste(part, (0, y))
        y += part.height
    return canvas


def _overlay_scale(
    result: Attribution, heatmap: np.ndarray, target: int, drawing: Overlays
) -> Image.Image:
    """What the colours of an overlay mean, in the unit of the values."""
    values = result.one_map(0, target, cast("Align", drawing.align))
    low, high = render.limits(values, signed=result.signed)
    colormap = render.colormap_for(heatmap, drawing.colormap, signed=result.signed)
    # Such a map has nothing to show, and its heat map is 0.
    alike = float(values.flat[0]) if float(np.ptp(values)) == 0 else None
    return render.color_scale(colormap, low, high, result.unit, CELL, everywhere=alike)


def probability_picture(
    view: Image.Image, result: WindowAttribution, *, index: int = 0, target: int = 0
) -> Image.Image:
    """The probability of the class with each place hidden, with numbers."""
    maps = result.probability_map()
    one = maps[index, target] if result.score.ndim == 2 else maps[index]
    low, high = float(one.min()), float(one.max())
    if high - low > 0.5 or high == low:  # else there would be nothing to see
        low, high = 0.0, 1.0
    figure = render.attribution_figure(
        one.float().cpu().numpy(),
        picture=view,
        title=f"occlusion: probability of class {result.label(index, target)}",
        unit="probability with the window hidden",
        colormap="viridis",
        span=(low, high),
    )
    return render.figure_picture(figure)
