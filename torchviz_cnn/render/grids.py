"""Many small maps in one picture, drawn as one array: no axes, no plotting library in the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from torchviz_cnn.errors import InputError, check_counts, is_real
from torchviz_cnn.pictures import Picture, to_image
from torchviz_cnn.render.colormaps import colorize
from torchviz_cnn.render.enlarge import viewable
from torchviz_cnn.render.lost import LOST, lost, sound, told
from torchviz_cnn.render.overlays import overlay
from torchviz_cnn.render.paper import MARGIN, framed
from torchviz_cnn.render.text import PAPER, text_width, write

Scale = Literal["channel", "layer"] | tuple[float, float]
Limit = np.ndarray | float

CROSS = (200, 60, 60)
_GAP = 4
_SMALLEST_CELL = 40
_WIDEST = 2400
_LABEL = 11


def feature_maps(
    maps: Tensor | np.ndarray,
    columns: int | None = None,
    colormap: str = "gray",
    scale: Scale = "channel",
    *,
    channels: Sequence[int] | None = None,
    numbers: bool = True,
    title: str | None = None,
) -> Image.Image:
    """The feature maps of one layer as one picture, each with its channel number.

    Args:
        maps: ``(C, h, w)``.
        columns: maps in a row; about as many as rows by default.
        colormap: any matplotlib name.
        scale: what black and white mean. ``"channel"``: each channel's own minimum and maximum;
            ``"layer"``: those of all channels shown; ``(low, high)``: these numbers. The picture
            says which, and has a colour bar where the scale is one for all.
        channels: which channels, in which order, see :func:`strongest`; all by default.
        numbers: print channel numbers.
        title: a line above.

    Returns:
        An RGB image. Every cell shows its map in the same whole magnification; a channel that is
        the same everywhere is crossed out, twice where it is 0: a dead channel. NaN and infinite
        numbers are magenta, and counted below.

    Raises:
        InputError: for maps that are not three-dimensional, a channel that is not there, a bad
            scale or colour map.

    Example:
        >>> import numpy as np
        >>> feature_maps(np.random.default_rng(0).random((32, 26, 26)), columns=8).mode
        'RGB'
    """
    check_counts(columns=columns)
    given, shown = _chosen(maps, channels)
    array = sound(given)
    low, high, words = _limits(array, scale)
    dead, constant = _silent(given)
    shrunk, factor, thin = _fit_cells(array, columns)
    cells = enlarged(_colors(shrunk, lost(given), thin, (low, high), colormap), factor)
    body, places = grid(cells, [str(c) for c in shown] if numbers else None, columns)
    foot = [_scale_words(words, thin), *_silent_words(dead, constant), *_lost_words(given)]
    canvas, top = framed(body, title, "; ".join(foot), _bar(scale, low, high, colormap))
    _cross_out(canvas, top, places, cells[0].shape[:2], dead, constant)
    return canvas


def before_and_after(
    before: Tensor | np.ndarray,
    after: Tensor | np.ndarray,
    columns: int | None = None,
    colormap: str = "gray",
    scale: Scale = "channel",
    *,
    channels: Sequence[int] | None = None,
    notes: Sequence[str] | None = None,
    words: tuple[str, str] = ("before", "after"),
    title: str | None = None,
) -> Image.Image:
    """What went into a layer beside what came out of it, channel by channel.

    Both maps of a pair have the same scale and the same magnification, so that one can be compared
    with the other and a pooled map is smaller than what it pooled.

    Args:
        before: ``(C, h, w)``.
        after: ``(C, h', w')``, as many channels.
        columns: pairs in a row.
        colormap, channels, title: as for :func:`feature_maps`.
        scale: likewise; minimum and maximum are those of both maps together.
        notes: a few words for each channel, printed beside its number; ``C`` of them.
        words: what the left and the right map of a pair are.

    Returns:
        An RGB image, each map crossed out as in :func:`feature_maps`.

    Raises:
        InputError: for maps that do not pair, and as :func:`feature_maps`.

    Example:
        >>> import numpy as np
        >>> maps = np.random.default_rng(0).normal(size=(8, 12, 12))
        >>> before_and_after(maps, np.maximum(maps, 0)).mode
        'RGB'
    """
    check_counts(columns=columns)
    given_left, shown = _chosen(before, channels)
    given_right, _ = _chosen(after, channels)
    left, right = sound(given_left), sound(given_right)
    count = len(_as_maps(before))
    if count != len(_as_maps(after)):
        raise InputError(
            f"{count} channels before and {len(_as_maps(after))} after are no pairs of maps"
        )
    if notes is not None and len(notes) != count:
        raise InputError(f"{len(notes)} notes were given for {count} channels")
    low, high, said = _limits_of_both(left, right, scale)
    silent = [_silent(given_left), _silent(given_right)]
    if columns is None:
        columns = max(1, _layout(len(shown), None, (left.shape[1], 2 * left.shape[2]))[1])
    a, factor, thin = _fit_cells(left, 2 * columns)
    b, _, thin_b = _fit_cells(right, None, (factor, thin))
    halves = [
        enlarged(_colors(x, lost(given), cells_of, (low, high), colormap), factor)
        for x, given, cells_of in ((a, given_left, thin), (b, given_right, thin_b))
    ]
    cells = _side_by_side(*halves)
    labels = [str(c) if notes is None else f"{c}  {notes[c]}" for c in shown]
    body, places = grid(cells, labels, columns, gap=12)  # pairs apart, their halves together
    foot = [
        f"left: {words[0]}, {_size(left)}; right: {words[1]}, {_size(right)}",
        _scale_words(said, thin),
        *(
            f"{word}: {sentence}"
            for word, each in zip(words, silent, strict=True)
            for sentence in _silent_words(*each)
        ),
        *_lost_words(given_left, given_right),
    ]
    canvas, top = framed(body, title, "; ".join(foot), _bar(scale, low, high, colormap))
    for half, each, offset in zip(halves, silent, (0, halves[0].shape[2] + _BETWEEN), strict=True):
        _cross_out(canvas, top, [(y, x + offset) for y, x in places], half.shape[1:3], *each)
    return canvas


def feature_map(
    values: Tensor | np.ndarray,
    colormap: str = "viridis",
    *,
    picture: Picture | None = None,
    alpha: float = 0.5,
    title: str | None = None,
) -> Image.Image:
    """One channel, large, with a colour bar from its minimum to its maximum.

    Args:
        values: ``(h, w)``.
        colormap: any matplotlib name.
        picture: laid under the map, which is stretched over the whole of it.
        alpha: weight of the map over a picture.
        title: a line above.

    Raises:
        InputError: for values that are not two-dimensional.

    Example:
        >>> import numpy as np
        >>> feature_map(np.eye(12), title="channel 6").width > 300
        True
    """
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"one feature map is (h, w), not {array.shape}")
    gone, array = lost(array), sound(array[None])[0]
    low, high = float(array.min()), float(array.max())
    unit = _unit(array, low, high)
    if picture is None:
        drawn = viewable(Image.fromarray(colorize(unit, colormap)), 448)
    else:
        drawn = overlay(viewable(to_image(picture), 448), unit, colormap, alpha)
    words = f"{_size(array[None])}, from its minimum to its maximum"
    if gone.any():
        words += f"; {told(gone.ravel(), 'cells', 'are')[0]}"
        mask = Image.fromarray(gone).resize(drawn.size, Image.Resampling.NEAREST)
        drawn.paste(LOST, mask=mask)
    return framed(np.asarray(drawn), title, words, (low, high, colormap))[0]


def strongest(
    maps: Tensor | np.ndarray,
    top: int | None = None,
    by: str | Sequence[float] | np.ndarray | Tensor = "mean",
) -> list[int]:
    """The channels that stand out, the first one most.

    Args:
        maps: ``(C, h, w)``.
        top: at most so many; all by default.
        by: ``"mean"``, ``"max"`` or ``"variance"`` over the places of a channel, or a number for
            each channel, such as its weight for a class.

    Returns:
        Channel numbers, those with the largest numbers first; of equals the lower one first;
        channels with NaN last.

    Raises:
        InputError: for another ``by``, or another number of weights.

    Example:
        >>> import numpy as np
        >>> strongest(np.array([[[1.0, 1.0]], [[0.0, 4.0]], [[3.0, 3.0]]]), 2, "max")
        [1, 2]
    """
    check_counts(top=top)
    array = _as_maps(maps).astype(np.float64)
    if isinstance(by, str):
        if by not in ("mean", "max", "variance"):
            raise InputError(f"channels are ranked by mean, max or variance, not by {by!r}")
        places = array.reshape(len(array), -1)
        rank = places.mean(1) if by == "mean" else places.max(1) if by == "max" else places.var(1)
    else:
        rank = np.asarray(by.detach().cpu() if isinstance(by, Tensor) else by, dtype=np.float64)
        if rank.shape != (len(array),):
            raise InputError(f"weights of shape {rank.shape} were given for {len(array)} channels")
    return [int(c) for c in np.argsort(-rank, kind="stable")[:top]]


def _as_maps(maps: Tensor | np.ndarray) -> np.ndarray:
    array = maps.detach().cpu().float().numpy() if isinstance(maps, Tensor) else np.asarray(maps)
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"feature maps of one picture are (C, h, w), not {array.shape}")
    return array.astype(np.float32, copy=False)


def _chosen(
    maps: Tensor | np.ndarray, channels: Sequence[int] | None
) -> tuple[np.ndarray, list[int]]:
    """The maps to draw, and their channel numbers."""
    array = _as_maps(maps)
    shown = list(range(len(array))) if channels is None else list(channels)
    if wrong := [c for c in shown if not 0 <= c < len(array)]:
        raise InputError(f"there is no channel {wrong[0]}: the layer has {len(array)}, from 0")
    if not shown:
        raise InputError("no channels to draw")
    return (array if channels is None else array[shown]), shown


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[2]}"


def check_scale(scale: object) -> None:
    """Say before any work that a scale is none.

    Raises:
        InputError: with what would be one.
    """
    if scale in ("channel", "layer"):
        return
    pair = isinstance(scale, tuple | list) and len(scale) == 2 and all(map(is_real, scale))
    if not pair or not scale[0] < scale[1]:  # type: ignore[index]
        raise InputError(f"scale must be 'channel', 'layer' or (low, high), not {scale!r}")


def _limits(array: np.ndarray, scale: Scale) -> tuple[Limit, Limit, str]:
    check_scale(scale)
    if scale == "channel":
        return (
            array.min((1, 2), keepdims=True),
            array.max((1, 2), keepdims=True),
            "each channel from its own minimum to its own maximum",
        )
    if scale == "layer":
        return float(array.min()), float(array.max()), "one scale for all channels"
    return float(scale[0]), float(scale[1]), "one scale for all channels, clipped"


def _limits_of_both(left: np.ndarray, right: np.ndarray, scale: Scale) -> tuple[Limit, Limit, str]:
    low, high, words = _limits(left, scale)
    other_low, other_high, _ = _limits(right, scale)
    if scale == "channel":
        words = "each pair from the minimum to the maximum of both"
    return np.minimum(low, other_low), np.maximum(high, other_high), words


def _bar(scale: Scale, low: Limit, high: Limit, colormap: str) -> tuple[float, float, str] | None:
    return None if scale == "channel" else (float(low), float(high), colormap)


def _scale_words(words: str, thin: int) -> str:
    if thin > 1:
        return f"{words}; every pixel the mean of {thin}×{thin} cells"
    return words


def _unit(array: np.ndarray, low: Limit, high: Limit) -> np.ndarray:
    span = np.where(np.asarray(high) > np.asarray(low), np.asarray(high) - low, 1.0)
    return (array - low) / span


def _fit_cells(
    array: np.ndarray, columns: int | None, scaling: tuple[int, int] | None = None
) -> tuple[np.ndarray, int, int]:
    """Small maps are to be magnified, large ones are thinned, so that a grid fits a screen.

    Returns:
        The maps, by which whole number they are to be magnified, and how many cells make a pixel.
    """
    _, height, width = array.shape
    factor = max(1, math.ceil(_SMALLEST_CELL / max(width, height)))
    per_row = columns or math.ceil(math.sqrt(len(array)))
    thin = math.ceil(per_row * (width + _GAP) / _WIDEST) if factor == 1 else 1
    if scaling is not None:
        factor, thin = scaling
    height, width = height // thin, width // thin
    if thin > 1 and height and width:
        array = array[:, : height * thin, : width * thin]
        array = array.reshape(len(array), height, thin, width, thin).mean((2, 4))
        return array, factor, thin
    return array, factor, 1


def _colors(
    shrunk: np.ndarray, gone: np.ndarray, thin: int, span: tuple[Limit, Limit], colormap: str
) -> np.ndarray:
    """Maps as colours; pixels that any lost number went into are marked."""
    colors = colorize(_unit(shrunk, *span), colormap)
    if gone.any():
        count, height, width = shrunk.shape
        gone = gone[:, : height * thin, : width * thin]
        colors[gone.reshape(count, height, thin, width, thin).any((2, 4))] = LOST
    return colors


def enlarged(cells: np.ndarray, factor: int) -> np.ndarray:
    """Cells ``(…, h, w, 3)`` magnified by a whole number.

    Colours rather than numbers: there is a quarter as much to look up for a factor of two.
    """
    return cells if factor == 1 else cells.repeat(factor, -3).repeat(factor, -2)


def _layout(count: int, columns: int | None, cell: tuple[int, int]) -> tuple[int, int]:
    if columns is None:
        # A power of two divides most channel counts; twice as wide as high suits a screen.
        columns = 2 ** math.ceil(math.log2(max(1.0, math.sqrt(count * cell[0] / cell[1]))))
        if count > 32:
            columns = max(columns, 8)
    columns = min(columns, count)
    return math.ceil(count / columns), columns


_BETWEEN = 2  # pixels between the two maps of a pair


def _side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pairs of cells on paper, their upper edges level."""
    height = max(left.shape[1], right.shape[1])
    width = left.shape[2] + _BETWEEN + right.shape[2]
    cells = np.full((len(left), height, width, 3), PAPER, np.uint8)
    cells[:, : left.shape[1], : left.shape[2]] = left
    cells[:, : right.shape[1], left.shape[2] + _BETWEEN :] = right
    return cells


def grid(
    cells: np.ndarray, labels: Sequence[str] | None, columns: int | None, gap: int = _GAP
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Cells ``(n, h, w, 3)`` in rows with a label above each; where each cell begins."""
    count, height, width, _ = cells.shape
    columns = _layout(count, columns, (height, width))[1]
    strip = _LABEL + 4 if labels else 0
    needed = max(text_width(text, _LABEL) for text in labels) if labels else 0
    pitch_x, pitch_y = max(width, needed) + gap, height + strip + _GAP
    rows = math.ceil(count / columns)
    body = np.full((rows * pitch_y - _GAP, columns * pitch_x - gap, 3), PAPER, np.uint8)
    places = [(i // columns * pitch_y + strip, i % columns * pitch_x) for i in range(count)]
    for (y, x), cell in zip(places, cells, strict=True):
        body[y : y + height, x : x + width] = cell
    if labels:
        canvas = Image.fromarray(body)
        draw = ImageDraw.Draw(canvas)
        for (y, x), text in zip(places, labels, strict=True):
            write(draw, (x, y - strip + 1), text, _LABEL)
        body = np.asarray(canvas)
    return body, places


def _silent(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which channels are 0 everywhere, and which the same everywhere."""
    flat = array.reshape(len(array), -1)
    constant = flat.max(1) == flat.min(1)
    return constant & (flat[:, 0] == 0), constant


def _lost_words(*maps: np.ndarray) -> list[str]:
    gone = [lost(each).any((1, 2)) for each in maps]
    return told(np.any(gone, 0), "channels", "hold")


def _silent_words(dead: np.ndarray, constant: np.ndarray) -> list[str]:
    words = []
    if dead.any():
        words.append(f"{dead.sum()} of {len(dead)} channels are 0 everywhere (crossed out twice)")
    if (alike := int((constant & ~dead).sum())) > 0:
        words.append(f"{alike} of {len(dead)} the same everywhere, not 0 (crossed out)")
    return words


def _cross_out(
    canvas: Image.Image,
    top: int,
    places: Sequence[tuple[int, int]],
    cell: tuple[int, ...],
    dead: np.ndarray,
    constant: np.ndarray,
) -> None:
    draw = ImageDraw.Draw(canvas)
    for index in np.nonzero(constant)[0].tolist():
        y, x = places[index][0] + top, places[index][1] + MARGIN
        draw.line((x, y, x + cell[1] - 1, y + cell[0] - 1), fill=CROSS)
        if dead[index]:
            draw.line((x, y + cell[0] - 1, x + cell[1] - 1, y), fill=CROSS)
