"""Pictures side by side, with words and colour bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from torchviz_cnn.errors import InputError
from torchviz_cnn.render.colormaps import check_colormap, colorize, colormap_for, limits
from torchviz_cnn.render.enlarge import fitted
from torchviz_cnn.render.glyphs import lettered
from torchviz_cnn.render.overlays import overlay
from torchviz_cnn.render.text import INK, PAPER, elide, inches, text_width, wrap, write
from torchviz_cnn.words import brief


def attribution_figure(
    values: np.ndarray,
    *,
    picture: Image.Image | None = None,
    title: str = "",
    unit: str = "",
    colormap: str | None = None,
    span: tuple[float, float] | None = None,
    signed: bool = False,
) -> Figure:
    """Picture, map with a colour bar in the unit of the values, and overlay.

    Args:
        values: ``(H, W)`` in their own unit; signed ones get a diverging colour map centred at 0.
            Those that are the same everywhere have nothing to show: they are drawn as 0 is, the
            colour bar is that colour, and says so.
        picture: shown before the map, and under it, which is stretched over the whole of it;
            without it there is the map alone. The three stand side by side, or one below the other
            where they are much wider than high.
        title: a line above.
        unit: what the values measure, beside the colour bar.
        colormap: any matplotlib name.
        span: the numbers of the first and last colour; from the values otherwise.
        signed: the values could be of both signs, whether or not these are.

    Returns:
        A figure of its own, not registered with pyplot.
    """
    low, high = span or limits(values, signed=signed)
    name = colormap_for(values, colormap, signed=signed)
    check_colormap(name)
    nothing = span is None and float(np.ptp(values)) == 0
    only = brief(float(values.flat[0]))
    values = np.zeros_like(values) if nothing else values
    panels = 1 if picture is None else 3
    height, width = values.shape
    # The network may have seen the picture squashed; it is shown as it is.
    ratio = height / width if picture is None else picture.height / picture.width
    figure = _empty_figure(panels, ratio, title)
    axes = figure.axes
    middle = axes[0 if picture is None else 1]
    # One frame for all panels, so that a place is at the same height in each.
    frame: dict[str, Any] = {
        "extent": (0.0, float(width), float(height), 0.0),
        "aspect": ratio * width / height,
        "origin": "upper",  # whatever the user's matplotlib does otherwise
    }
    # Of one number there is no scale to invent: one colour.
    colors: Any = ListedColormap(colorize(np.zeros(1), name, low, high) / 255) if nothing else name
    drawn = middle.imshow(
        values, cmap=colors, vmin=low, vmax=high, interpolation="nearest", **frame
    )
    where: dict[str, Any] = {"fraction": min(0.2, 0.046 * max(1.0, ratio))}
    room = figure.get_figheight() - 0.35  # inches along the bar, below a title
    if ratio < 0.4:  # a bar beside it would be too short for its numbers
        where, room = {"location": "bottom", "aspect": 40}, figure.get_figwidth()
    lines = wrap(unit, round(room * 720), 100)  # of matplotlib's usual 10 points
    bar = figure.colorbar(drawn, ax=middle, label="\n".join(lines), **where)
    if nothing:
        bar.set_ticks([(low + high) / 2], labels=[only])
        middle.set_title(f"{only} everywhere", fontsize=9)
    if picture is not None:
        axes[0].imshow(np.asarray(picture), **frame)
        # The overlay has the colours of the map: −1…1 around zero, else from the first to the last.
        both = low == -high
        scaled = values / high if both else (values - low) / (high - low)
        over = overlay(picture, scaled, colormap=name, signed=both)
        axes[2].imshow(np.asarray(over), **frame)
        name_of_map = f"map: {only} everywhere" if nothing else "map"
        for axis, words in zip(axes, ("picture", name_of_map, "overlay"), strict=True):
            axis.set_title(words, fontsize=9)
    return lettered(figure)


def _empty_figure(panels: int, ratio: float, title: str) -> Figure:
    """With room for so many panels of one ratio of height to width, side by side or one below the other."""
    stacked = panels > 1 and ratio < 0.4
    if stacked:
        size = (9.0, panels * (0.4 + max(0.5, 8.0 * ratio)) + 0.5)
    else:
        size = (4.0 * panels + 0.9, 3.6 * min(2.0, max(0.1, ratio)) + 1.0)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    if title:
        figure.suptitle(title, fontsize=11, wrap=True)
    grid = (panels, 1) if stacked else (1, panels)
    for axis in figure.subplots(*grid, squeeze=False).ravel():
        axis.set_axis_off()
        # Not drawn, but laid out all the same while there are any: half the time of a figure.
        axis.set(xticks=[], yticks=[])
    return figure


def color_scale(
    colormap: str,
    low: float,
    high: float,
    unit: str,
    width: int,
    *,
    everywhere: float | None = None,
) -> Image.Image:
    """A colour map as a bar with its first and last number, and what they measure below.

    Args:
        colormap: any matplotlib name.
        low, high: the numbers of the first and last colour; 0 is marked where it lies between.
        unit: words below the bar.
        width: in pixels.
        everywhere: the one number of a map that is the same everywhere, drawn as 0 is: that colour
            alone, and words that say so.

    Raises:
        InputError: for an unknown colour map.

    Example:
        >>> color_scale("viridis", 0.0, 2.5, "logit", 120).width
        120
    """
    words = wrap(unit, width, 11)
    bar = 12
    canvas = Image.new("RGB", (width, bar + 18 + 15 * len(words)), PAPER)
    shades = np.linspace(low, high, width) if everywhere is None else np.zeros(width)
    ramp = colorize(shades[None].repeat(bar, 0), colormap, low, high)
    canvas.paste(Image.fromarray(ramp), (0, 0))
    draw = ImageDraw.Draw(canvas)
    marks = [(0.0, brief(low)), (1.0, brief(high))] + ([(0.5, "0")] if low == -high else [])
    if everywhere is not None:
        draw.rectangle((0, 0, width - 1, bar - 1), outline=INK)  # which may be white
        marks = [(0.0, f"{brief(everywhere)} everywhere")]
    for share, text in marks:
        left = round(share * (width - text_width(text, 11)))
        write(draw, (left, bar + 2), text, 11)
    for index, line in enumerate(words):
        write(draw, (0, bar + 17 + 15 * index), line, 11)
    return canvas


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    *,
    cell: int = 224,
    title: str | None = None,
) -> Image.Image:
    """Pictures in a table with words above the columns and the rows.

    Args:
        rows: pictures row by row, as many in each.
        column_titles, row_titles: words, wrapped to the cell; row titles stand above their row.
        cell: the longer side of every picture in pixels.
        title: a line above everything.

    Raises:
        InputError: for rows of different lengths, or titles of another number.

    Example:
        >>> from PIL import Image
        >>> tile = Image.new("RGB", (30, 20))
        >>> sheet([[tile, tile]], ["a", "b"], cell=60).size[0] >= 120
        True
    """
    width = len(rows[0]) if rows else 0
    if not width or any(len(row) != width for row in rows):
        raise InputError("a sheet needs rows of pictures, as many in each")
    if column_titles and len(column_titles) != width:
        raise InputError(f"{len(column_titles)} column titles were given for {width} columns")
    if row_titles and len(row_titles) != len(rows):
        raise InputError(f"{len(row_titles)} row titles were given for {len(rows)} rows")
    gap, line = 10, 17
    # Small maps keep their square cells.
    scaled = [[fitted(picture, cell, square_from=2) for picture in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in scaled]
    total = width * (cell + gap) + gap
    head = wrap(title, total - 2 * gap, 15) if title else []
    columns = [wrap(text, cell, 13) for text in column_titles]
    names = [wrap(text, total - 2 * gap, 13) for text in row_titles] or [[] for _ in rows]
    top = gap + 22 * len(head) + line * max((len(lines) for lines in columns), default=0) + gap // 2
    height = top + sum(heights) + sum(line * len(lines) + gap for lines in names)
    canvas = Image.new("RGB", (total, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, text in enumerate(head):
        write(draw, (gap, gap // 2 + 22 * index), text, 15)
    for column, lines in enumerate(columns):
        for index, text in enumerate(lines):
            y = top - gap // 2 - line * (len(lines) - index)
            write(draw, (gap + column * (cell + gap), y), text, 13)
    y = top
    for row, lines, row_height in zip(scaled, names, heights, strict=True):
        for text in lines:
            write(draw, (gap, y - 1), text, 13)
            y += line
        for column, picture in enumerate(row):
            canvas.paste(picture, (gap + column * (cell + gap), y))
        y += row_height + gap
    return canvas


def figure_picture(figure: Figure, dpi: int = 100) -> Image.Image:
    """A matplotlib figure as an image."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def errors_figure(
    names: Sequence[str],
    errors: Sequence[float],
    *,
    bounds: Sequence[tuple[float, str]] = (),
    title: str = "",
) -> Figure:
    """Errors of layers over depth, on a logarithmic scale.

    Args:
        names: of the layers, in order.
        errors: not negative; those below 1e-9 are drawn there.
        bounds: lines across, each with a word.
        title: a line above.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        InputError: for no layers, or another number of errors.

    Example:
        >>> figure = errors_figure(["conv", "dense"], [1e-7, 2e-6], bounds=[(1e-3, "fails")])
        >>> figure.axes[0].get_yscale()
        'log'
    """
    if not names or len(names) != len(errors):
        raise InputError(f"{len(errors)} errors were given for {len(names)} layers")
    figure, axis = _over_depth(names)
    drawn = np.clip(np.nan_to_num(np.asarray(errors, float), nan=10.0, posinf=10.0), 1e-9, 10.0)
    axis.plot(range(len(names)), drawn, "o-", color="#31688e", markersize=4, linewidth=1)
    for value, word in bounds:
        axis.axhline(value, color="#b23c3c", linewidth=0.8, linestyle="--")
        axis.text(len(names) - 0.5, value, f" {word}", va="center", fontsize=8, color="#b23c3c")
    axis.set_yscale("log")
    axis.set_ylim(5e-10, 20)
    axis.set_ylabel("largest difference / layer's largest value", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, wrap=True)
    return lettered(figure)


def shares_figure(
    names: Sequence[str],
    shares: Mapping[str, Sequence[float]],
    *,
    title: str = "",
) -> Figure:
    """Shares from 0 to 100 % of layers over depth, a line for each kind of share.

    Args:
        names: of the layers, in order.
        shares: what is measured -> a number from 0 to 1 for each layer; NaN where there is none.
        title: a line above.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        InputError: for no layers, or another number of shares.

    Example:
        >>> figure = shares_figure(["relu1", "relu2"], {"units that are 0": [0.4, 0.7]})
        >>> [round(float(y), 1) for y in figure.axes[0].lines[0].get_ydata()]
        [40.0, 70.0]
    """
    if not names or any(len(values) != len(names) for values in shares.values()):
        counts = ", ".join(str(len(values)) for values in shares.values())
        raise InputError(f"{counts} shares were given for {len(names)} layers")
    figure, axis = _over_depth(names)
    for (label, values), color, mark in zip(shares.items(), _LINES, "os^", strict=False):
        percents = 100 * np.asarray(values, dtype=float)
        axis.plot(
            range(len(names)),
            percents,
            f"{mark}-",
            color=color,
            label=label,
            markersize=5,
            linewidth=1,
        )
    axis.set_ylim(-3, 103)
    axis.set_ylabel("%", fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(shares), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11, wrap=True)
    return lettered(figure)


_LINES = ("#31688e", "#b23c3c", "#35b779")


def _over_depth(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with the layers' names below it, as many of them as can be read."""
    step = -(-len(names) // 80)
    shown = [elide(name, 160, 7) for name in names[::step]]
    # Long names get paper of their own: they must not eat the axes.
    below = max(inches(name, 7) for name in shown)
    size = (max(5.0, min(20.0, 3.0 + 0.22 * len(names))), 4.5 + max(0.0, below - 1.0))
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_xticks(range(0, len(names), step), shown, rotation=90, fontsize=7)
    axis.grid(axis="y", linewidth=0.3)
    return figure, axis
