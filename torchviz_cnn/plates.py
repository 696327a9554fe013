"""A walk's steps drawn: maps, pairs of before and after, bars and strips, and a page of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from torchviz_cnn import render
from torchviz_cnn.errors import InputError, check_counts
from torchviz_cnn.files import file_name, write_atomically
from torchviz_cnn.render.bars import MOST_BARS
from torchviz_cnn.render.grids import Scale
from torchviz_cnn.report import Plate, Section, page, write_page, write_picture
from torchviz_cnn.steps import Step, Walk, same
from torchviz_cnn.words import brief, percent

MOST_SCORES = 20
_RANKS = ("mean", "max", "variance", "weight")


@dataclass(frozen=True)
class Drawing:
    """How steps are drawn.

    Attributes:
        colormap, scale, columns: as for :func:`torchviz_cnn.render.feature_maps`.
        top: only so many channels.
        by: what ranks them: ``mean``, ``max``, ``variance``, or ``weight`` for a class.
        channels: draw these alone, each of them large; what is for grids is then left alone.
        over: draw them over the picture.
    """

    colormap: str = "viridis"
    scale: Scale = "channel"
    columns: int | None = None
    top: int | None = None
    by: str = "mean"
    channels: Sequence[int] | None = None
    over: bool = False

    def check(self) -> None:
        """Say before any work what cannot be drawn.

        Raises:
            InputError: for what is out of range or unknown.
        """
        render.check_colormap(self.colormap)
        if self.by not in _RANKS:
            raise InputError(f"channels are ranked by {', '.join(_RANKS)}, not by {self.by!r}")
        render.check_scale(self.scale)
        check_counts(top=self.top, columns=self.columns)
        if self.over and not self.channels:
            raise InputError("only single channels are drawn over the picture: say which channels")
        if self.by != "mean" and self.top is None and not self.channels:
            fault = "channels are ranked to draw the first of them: say how many"
            raise InputError(f"{fault}, top=16", typed=f"{fault}, --top 16")
        grids = {"top": None, "by": "mean", "columns": None, "scale": "channel"}
        for name, left_alone in grids.items() if self.channels else ():
            if getattr(self, name) != left_alone:
                raise InputError.about(
                    name,
                    "is for grids of channels: single ones are drawn large, each from its own "
                    "minimum to its own maximum",
                )


def of_walk(walk: Walk, drawing: Drawing) -> Iterator[tuple[str, Image.Image, str]]:
    """A file name, the picture, and the name and a sentence for every step, see :meth:`Walk.pictures`."""
    drawing.check()
    if drawing.by == "weight" and walk.target is None:
        raise InputError("channels are weighed for a class: give walk() a target")
    _check_channels(walk, drawing)
    if drawing.over and walk.picture is None:
        raise InputError("there is no picture to draw over: give walk() the picture")
    return _drawn_steps(walk, drawing)


def _check_channels(walk: Walk, drawing: Drawing) -> None:
    for step in walk:
        count = 0 if step.maps is None else len(step.maps)
        if count and (wrong := [c for c in drawing.channels or () if not 0 <= c < count]):
            raise InputError(f"{step.name} has no channel {wrong[0]}: it has {count}, from 0")
    if drawing.channels and all(step.maps is None for step in walk):
        raise InputError("none of these layers has channels to draw large")


def _drawn_steps(walk: Walk, drawing: Drawing) -> Iterator[tuple[str, Image.Image, str]]:
    for number, step in enumerate(walk):
        name = f"{number:03d}_{file_name(step.name)}"
        if drawing.channels and step.maps is None:
            continue
        for channel in drawing.channels or ():
            yield (
                f"{name}_channel_{channel}",
                one_channel(step, channel, drawing, walk.picture if drawing.over else None),
                f"{step.name}, channel {channel}.",
            )
        if not drawing.channels:
            image = drawn(step, drawing, walk.classes, walk.target)
            if image is not None:
                yield name, image, f"{step.name}, {words(step)}"


def one_channel(
    step: Step, channel: int, drawing: Drawing, picture: Image.Image | None = None
) -> Image.Image:
    """One channel of a step, large, over the picture where one is given."""
    maps = step.maps
    assert maps is not None
    return render.feature_map(
        maps[channel],
        drawing.colormap,
        picture=picture,
        title=f"{step.name} ({step.type}), channel {channel}",
    )


def drawn(
    step: Step,
    drawing: Drawing,
    classes: Sequence[str] | None = None,
    target: str | None = None,
) -> Image.Image | None:
    """A step as a picture; ``None`` for an output of neither maps nor units."""
    if step.maps is not None:
        return _maps_drawn(step, drawing, target)
    if step.units is not None:
        return _units_drawn(step, drawing, classes)
    return None


def _maps_drawn(step: Step, drawing: Drawing, target: str | None) -> Image.Image:
    maps, before = step.maps, step.maps_before
    assert maps is not None
    channels, ranked = _channels(step, maps, drawing, target)
    title = f"{_headline(step)}{ranked}"
    look = (drawing.columns, drawing.colormap, drawing.scale)
    if before is None or step.identity or len(before) != len(maps) or step.kind == "dropout":
        return render.feature_maps(maps, *look, channels=channels, title=title)
    notes = None
    if (share := step.silenced_by_channel) is not None and step.silenced:
        notes = [percent(float(each)) for each in share]
        title += "; beside each channel's number the share of its units that is silenced"
    return render.before_and_after(before, maps, *look, channels=channels, notes=notes, title=title)


def _channels(
    step: Step, maps: Tensor, drawing: Drawing, target: str | None
) -> tuple[list[int] | None, str]:
    """Which channels are drawn, and how they were chosen."""
    if drawing.top is None or drawing.top >= len(maps):
        return None, ""
    if drawing.by == "weight" and step.weights is not None:
        return (
            render.strongest(maps, drawing.top, step.weights),
            f", the {drawing.top} channels with the largest weight for class {target}",
        )
    by = "mean" if drawing.by == "weight" else drawing.by
    return render.strongest(maps, drawing.top, by), (
        f", the {drawing.top} channels with the highest {by}"
    )


def _units_drawn(step: Step, drawing: Drawing, classes: Sequence[str] | None) -> Image.Image:
    values, before = step.units, step.units_before
    assert values is not None
    title, colormap = _headline(step), drawing.colormap
    pair = step.kind == "activation" and before is not None and before.shape == values.shape
    names = _class_names(step, classes, pair=pair)
    named = names is not None and len(values) > MOST_SCORES
    top = drawing.top or (MOST_SCORES if named else None)
    if not pair or before is None:
        return render.units(values, colormap, names=names, top=top, title=title)
    if top is None and len(values) > MOST_BARS and _are_chances(values):
        top = MOST_SCORES
    if top is not None:
        few = _strongest(values, top)
        title += f"; the {len(few)} strongest"
        names = [str(int(i)) if names is None else names[int(i)] for i in few]
        before, values = before[few], values[few]
    return render.units_before_and_after(before, values, colormap, names=names, title=title)


def _strongest(values: Tensor, count: int) -> Tensor:
    """The units with the highest values, NaN after all numbers."""
    # As floating-point numbers, which whole ones and truth values may not be.
    ranked = values.double().masked_fill(values.isnan(), -torch.inf)
    return torch.topk(ranked, min(count, len(values))).indices


def _class_names(step: Step, classes: Sequence[str] | None, *, pair: bool) -> list[str] | None:
    """What stands beside each bar of the network's answer; of other layers only their numbers."""
    if classes is None or step.answer is None or step.units is None:
        return None
    if (len(classes), len(step.units)) == (2, 1):  # one sigmoid: its unit 0 is about class 1
        about = f"score of {classes[1]}" if step.answer == "score" else f"P({classes[1]})"
        return [classes[1] if pair else about]
    return render.numbered(classes) if len(classes) == len(step.units) else None


def _are_chances(values: Tensor) -> bool:
    """What a softmax puts out: beside its scores on one scale it would all be dark."""
    return bool((values >= 0).all()) and abs(float(values.double().sum()) - 1) < 1e-3


def _headline(step: Step) -> str:
    """Name, type and shape of a step, and what is to be known of the picture."""
    shape = "×".join(map(str, step.output.shape))
    line = f"{step.name} ({step.type}) {shape}"
    if step.channels_last:
        line += ", channels last"
    if step.kind == "dropout" and step.identity:
        line += ", the identity in eval mode"
    if step.kind == "activation" and step.silenced:
        line += f": {percent(step.silenced)} of its units silenced"
    return line


def words(step: Step) -> str:
    """A sentence or two about what happened at a step."""
    return f"{step.type}: {_what(step)} {_zeros(step)}".strip()


def _what(step: Step) -> str:
    shape = _shape_words(step)
    if step.kind == "activation" and step.before is not None and step.silenced is not None:
        return f"{shape}; {percent(step.silenced)} of the units are silenced, not 0 before and 0 after."
    if step.kind == "pooling" and step.maps_before is not None:
        height, width = step.maps_before.shape[1:]
        return f"{shape}, pooled from {height}×{width}."
    if step.kind == "normalisation" and step.before is not None:
        was, now = (_spread(each) for each in (step.before, step.output))
        return f"{shape}; mean and standard deviation {was} before, {now} after."
    if step.kind == "dropout" and step.before is not None:
        told = (
            "the identity in eval mode: what reaches it goes on unchanged"
            if step.identity
            else "what reaches it does not go on unchanged"
        )
        return f"{shape}; {told}."
    if step.kind == "flatten" and step.before is not None:
        was = "×".join(map(str, step.before.shape))
        unchanged = same(step.before.flatten(), step.output.flatten())
        return f"{was} in a row of {step.output.numel()}" + (
            "; no number changes." if unchanged else ", in another order."
        )
    if step.units is not None and len(step.units) > 1:
        strongest = _strongest(step.units, 3).tolist()
        return f"{shape}; the strongest are {', '.join(map(str, strongest))}."
    return f"{shape}."


def _shape_words(step: Step) -> str:
    if step.maps is not None:
        count, height, width = step.maps.shape
        last = ", channels last in the network" if step.channels_last else ""
        return f"{count} channel{'s' * (count != 1)} of {height}×{width}{last}"
    if step.units is not None:
        return f"{len(step.units)} unit{'s' * (len(step.units) != 1)}"
    return "×".join(map(str, step.output.shape))


def _spread(values: Tensor) -> str:
    mean, spread = float(values.double().mean()), float(values.double().std(correction=0))
    return f"{brief(mean, 2)} ± {brief(spread, 2)}"


def _zeros(step: Step) -> str:
    return f"{percent(step.zeros)} of the values are exactly 0."


def _title(step: Step) -> str:
    return f"{step.name} ({step.type})"


def as_table(walk: Walk) -> str:
    """A walk as text: a line for each step."""
    rows = [("step (type)", "output", "zeros", "silenced", "from … to")]
    for step in walk:
        values = step.output.double()
        rows.append(
            (
                _title(step),
                "×".join(map(str, step.output.shape)) + (" last" if step.channels_last else ""),
                percent(step.zeros, 1),
                "" if step.silenced is None else percent(step.silenced, 1),
                f"{brief(float(values.min()))} … {brief(float(values.max()))}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([walk.network, *lines])


def input_picture(walk: Walk) -> Image.Image:
    """The picture, and beside it its channels as the network got them."""
    channels = walk.input if walk.input.ndim == 3 else walk.input[None]
    size = "×".join(map(str, walk.input.shape))
    grid = render.feature_maps(
        channels,
        columns=min(len(channels), 4),
        scale="layer",
        title=f"input {size}, channel by channel",
    )
    if walk.picture is None:
        return grid
    view = render.viewable(walk.picture)
    height = max(view.height, grid.height)
    canvas = Image.new("RGB", (view.width + grid.width + 10, height), "white")
    canvas.paste(view, (0, 0))
    canvas.paste(grid, (view.width + 10, 0))
    return canvas


def sparsity_picture(walk: Walk) -> Image.Image | None:
    """Sparsity over depth, see :meth:`Walk.sparsity_picture`."""
    if not walk.sparsity:
        return None
    shares = {"values that are exactly 0": [each.zeros for each in walk.sparsity]}
    dead = [np.nan if each.dead is None else each.dead for each in walk.sparsity]
    if not np.isnan(dead).all():
        shares["channels that are 0 everywhere in this picture"] = dead
    figure = render.shares_figure(
        [each.name for each in walk.sparsity], shares, title=sparsity_words(walk)
    )
    return render.figure_picture(figure)


def sparsity_words(walk: Walk) -> str:
    """Whether sparsity increases with depth, in a sentence."""
    if not walk.to_the_end:
        return "the walk ended before the network did, so nothing is known of sparsity over depth"
    if not walk.sparsity:
        return "no activation of this network puts out exact zeros"
    first, last = walk.sparsity[0], walk.sparsity[-1]
    line = (
        f"{percent(first.zeros)} of the values are 0 after the first activation, "
        f"{percent(last.zeros)} after the last"
    )
    trend = walk.sparsity_trend()
    return line + ("" if trend is None else f"; rank correlation with depth {trend:.2f}")


def sections(walk: Walk, drawing: Drawing, prefix: str = "") -> list[Section]:
    """A page of a walk: the input, every step, sparsity over depth; files begin with ``prefix``."""
    size = "×".join(map(str, walk.input.shape))
    steps, links = [], dict[str, str]()
    for name, image, text in _with_a_bar(of_walk(walk, drawing)):
        steps.append(Plate(f"{prefix}{name}.png", image, text))
        links.setdefault(_title(walk[int(name.partition("_")[0])]), steps[-1].file)
    parts = [
        Section(
            "What the network is shown",
            f"The input, {size}, and its channels on one scale.",
            [Plate(f"{prefix}input.png", input_picture(walk), f"The input, {size}.")],
        ),
        Section("Layer by layer", " ".join(walk.left_out()), steps, str(walk), links),
    ]
    if (plot := sparsity_picture(walk)) is not None:
        plate = Plate(f"{prefix}sparsity.png", plot, f"{sparsity_words(walk)}.")
        parts.append(
            Section("Sparsity over depth", "Is more of what a deeper layer puts out 0?", [plate])
        )
    return parts


def _with_a_bar(
    drawn: Iterator[tuple[str, Image.Image, str]],
) -> Iterator[tuple[str, Image.Image, str]]:
    """The same, with a progress bar in a terminal where it takes a while."""
    yield from tqdm(drawn, desc="layers", unit="layer", delay=2, leave=False, disable=None)


def write(walk: Walk, drawing: Drawing, folder: Path, prefix: str, *, whole: bool) -> int:
    """Write the pictures of a walk, and of a whole walk a page; how many layers were drawn.

    Args:
        walk, drawing: what, and how.
        folder: must exist.
        prefix: of every file's name.
        whole: with input, sparsity and a page, ``PREFIXwalk.html``.
    """
    if not whole:
        written = [
            write_picture(folder, f"{prefix}{name}.png", image)
            for name, image, _ in _with_a_bar(of_walk(walk, drawing))
        ]
        return len(written)
    parts = sections(walk, drawing, prefix)
    for section in parts:
        for plate in section.plates:
            write_picture(folder, plate.file, plate.image)
    html = page(*_heading(walk), parts)
    write_atomically(folder / f"{prefix}walk.html", lambda file: file.write(html))
    return len(parts[1].plates)


def _heading(walk: Walk) -> tuple[str, str]:
    lead = " ".join(["Every layer, in the order it ran.", *(f"{note}." for note in walk.notes)])
    return f"A picture's walk through {walk.network}", lead


def save(walk: Walk, folder: str | Path, drawing: Drawing) -> Path:
    """Write a page of a walk and its pictures, see :meth:`Walk.save`."""
    return write_page(folder, *_heading(walk), sections(walk, drawing))
