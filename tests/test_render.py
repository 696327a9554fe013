"""Pictures by their properties: sizes, order, colours at known values, words that do not overlap."""

import time

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from torchviz_cnn import Filters, InputError, render
from torchviz_cnn.render import paper
from torchviz_cnn.render.colormaps import colorize, limits
from torchviz_cnn.render.text import fit, font, text_width, wrap


def test_colours_are_matplotlibs():
    values = np.linspace(0, 1, 256)
    for name in ("jet", "viridis", "gray", "seismic"):
        expected = matplotlib.colormaps[name](values)[:, :3]
        assert np.abs(colorize(values, name) / 255 - expected).max() <= 0.5 / 255 + 1e-9


def test_numbers_outside_the_scale_are_clipped_and_nan_is_low():
    colors = colorize(np.array([-5.0, 5.0, np.nan]), "gray", 0, 1)
    assert colors[:, 0].tolist() == [0, 255, 0]


def test_signed_limits_are_symmetric():
    assert limits(np.array([-3.0, 1.0])) == (-3.0, 3.0)
    assert limits(np.array([0.0, 2.0])) == (0.0, 2.0)


def find_cell(array, color):
    ys, xs = np.nonzero((array == color).all(2))
    return ys.min(), xs.min(), ys.max() + 1, xs.max() + 1


def test_channels_stand_in_reading_order_each_at_the_same_whole_magnification():
    maps = np.zeros((6, 5, 10), np.float32)
    for channel in range(6):  # each channel one colour on an absolute scale
        maps[channel] = (channel + 1) / 10
    picture = np.asarray(render.feature_maps(maps, 3, "viridis", scale=(0.0, 1.0), numbers=False))[
        :-60
    ]  # without the colour bar
    boxes = []
    for channel in range(6):
        color = colorize(np.array(maps[channel, 0, 0]), "viridis")
        boxes.append(find_cell(picture, color))
    for channel, (y0, x0, y1, x1) in enumerate(boxes):
        assert (y1 - y0) % 5 == 0
        assert (x1 - x0) == 2 * (y1 - y0)
        if channel % 3:
            assert x0 > boxes[channel - 1][3]
            assert y0 == boxes[channel - 1][0]
        if channel >= 3:
            assert y0 > boxes[channel - 3][2]
            assert x0 == boxes[channel - 3][1]


def test_scale_by_channel_by_layer_and_absolute():
    maps = np.stack([np.linspace(0, 1, 16).reshape(4, 4), np.linspace(0, 10, 16).reshape(4, 4)])
    by_channel = np.asarray(render.feature_maps(maps, columns=2, numbers=False))
    by_layer = np.asarray(render.feature_maps(maps, columns=2, scale="layer", numbers=False))
    clipped = np.asarray(render.feature_maps(maps, columns=2, scale=(0, 1), numbers=False))
    factor = 10
    first, second = slice(10, 10 + 4 * factor), slice(10 + 4 * factor + 4, 10 + 8 * factor + 4)

    def corner(picture, columns):  # the last cell of the map, its largest value
        return int(picture[10 + 4 * factor - 1, columns.stop - 1, 0])

    assert (corner(by_channel, first), corner(by_channel, second)) == (255, 255)
    assert (corner(by_layer, first), corner(by_layer, second)) == (round(255 / 10), 255)
    assert (corner(clipped, first), corner(clipped, second)) == (255, 255)
    assert int(clipped[10, second.start + factor * 2, 0]) == 255  # 1.33 is above the scale
    assert by_layer.shape[0] > by_channel.shape[0]  # room for the colour bar


def test_a_channel_that_is_the_same_everywhere_is_crossed_out():
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, :4] = 1
    picture = np.asarray(render.feature_maps(maps, columns=2)).astype(int)
    red = (picture[:, :, 0] > 150) & (picture[:, :, 1] < 120) & (picture[:, :, 2] < 120)
    assert red[:, : picture.shape[1] // 2].any()
    assert not red[:, picture.shape[1] // 2 :].any()


def test_chosen_channels_in_the_asked_order():
    maps = np.random.default_rng(0).random((5, 8, 8)).astype(np.float32)
    some = render.feature_maps(maps, columns=2, channels=[4, 1], numbers=False)
    same = render.feature_maps(maps[[4, 1]], columns=2, numbers=False)
    assert np.array_equal(np.asarray(some), np.asarray(same))
    with pytest.raises(InputError, match="no channel 5"):
        render.feature_maps(maps, channels=[5])


def ink(words, size=11):
    """Where words put ink, cut to what is not blank; drawn by Pillow alone."""
    canvas = Image.new("RGB", (200, 40), "white")
    ImageDraw.Draw(canvas).text((5, 5), words, fill=(32, 32, 32), font=font(size))
    return trimmed(np.asarray(canvas)[:, :, 0] < 128)


def trimmed(mask):
    ys, xs = np.nonzero(mask)
    return mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] if len(ys) else mask[:0, :0]


@pytest.mark.parametrize(
    ("shape", "columns", "channels"),
    [
        ((12, 6, 9), 4, None),
        ((130, 40, 3), 16, None),  # cells much narrower than their numbers
        ((2048, 4, 4), 3, [2047, 0, 1023, 7, 512]),  # not in order
    ],
)
def test_every_map_has_its_own_number_above_it_and_nothing_over_it(shape, columns, channels):
    count = shape[0]
    shown = list(range(count)) if channels is None else channels
    maps = np.zeros(shape, np.float32)
    maps[shown] = np.linspace(0.2, 1, len(shown), dtype=np.float32)[:, None, None]
    maps[:, 0, 0] -= 0.001  # a map that is the same everywhere is crossed out
    picture = render.feature_maps(maps, columns, "gray", scale=(-2.0, 1.0), channels=channels)
    array = np.asarray(picture).astype(int)
    size = (
        max(1, -(-40 // max(shape[1:]))) * shape[1],
        max(1, -(-40 // max(shape[1:]))) * shape[2],
    )
    right = array.shape[1]
    starts_x = [10 + i * _pitch(array, columns, size[1]) for i in range(columns)]
    strip = 15
    for index, number in enumerate(shown[: 3 * columns]):
        x = starts_x[index % columns]
        y = 10 + strip + index // columns * (size[0] + strip + 4)
        level = colorize(np.array((maps[number, -1, -1] + 2) / 3), "gray")[0]
        cell = array[y : y + size[0], x : x + size[1]]
        assert np.abs(cell - level).max() <= 1  # nothing is written over the map
        end = starts_x[index % columns + 1] if index % columns + 1 < columns else right - 10
        above = array[y - strip : y, x - 1 : end - 1, 0] < 128
        assert np.array_equal(trimmed(above), ink(str(number))), number


def _pitch(array, columns, width):
    """From one map to the next, measured: the first row of the first maps is not paper."""
    row = (array[10 + 15 + 2] != 255).any(1)
    edges = np.nonzero(np.diff(row.astype(int)) == 1)[0] + 1
    return int(edges[1] - edges[0]) if columns > 1 else width


def test_512_maps_are_one_array_and_take_well_under_a_second():
    maps = torch.rand(512, 28, 28)
    render.feature_maps(maps)
    spent = []
    for _ in range(3):
        start = time.process_time()
        picture = render.feature_maps(maps)
        spent.append(time.process_time() - start)
    assert picture.width < 4000
    assert min(spent) < 1  # of processor time, the best of three: usually a tenth


@pytest.mark.parametrize(
    "call",
    [
        lambda: render.feature_maps(np.zeros((4, 4))),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), scale="other"),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), scale=(1, 0)),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), colormap="virdis"),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), columns=0),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), columns=-1),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), scale="ab"),
        lambda: render.feature_maps(np.zeros((1, 4, 4)), scale=None),
        lambda: render.before_and_after(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), columns=-1),
        lambda: render.strongest(np.zeros((3, 4, 4)), top=-1),
        lambda: render.units(np.zeros(3), top=0),
        lambda: render.units(np.zeros((2, 2))),
        lambda: render.units(np.zeros(3), labels=["a"]),
        lambda: render.overlay(np.zeros((4, 4)), np.zeros((4, 4)), alpha=2),
        lambda: render.overlay(np.zeros((4, 4)), np.zeros((1, 4, 4))),
        lambda: render.masked(np.zeros((4, 4)), np.zeros((4, 4)), keep=0),
        lambda: render.sheet([]),
    ],
)
def test_bad_requests_are_sentences(call):
    with pytest.raises(InputError):
        call()


def test_bars_are_as_long_as_their_values():
    picture = np.asarray(render.units(np.array([1.0, 0.5, 0.0, -0.5])))
    blue = (picture == (49, 104, 142)).all(2)
    red = (picture == (178, 60, 60)).all(2)
    lengths = [n for n in blue.sum(1) if n > 1]
    assert max(lengths) == pytest.approx(2 * min(lengths), abs=2)
    assert red.sum(1).max() == pytest.approx(min(lengths), abs=2)
    assert np.nonzero(red)[1].max() <= np.nonzero(blue)[1].min() + 1  # on the other side of zero


def test_a_heat_strip_shows_every_unit_once_in_order():
    values = np.zeros(64, np.float32)
    values[[0, 33]] = 1.0
    picture = np.asarray(render.units(values, colormap="gray"))
    white = (picture[10:34, 10 : 10 + 32 * 12] == 255).all(2)
    assert white[:12, :12].all()
    assert white[12:24, 12:24].all()
    assert white.sum() == 2 * 144


MAGENTA = (255, 0, 255)


def said(monkeypatch):
    """The words below every picture that is made from now on."""
    from torchviz_cnn.render import bars, grids, paper

    feet = []

    def framed(body, title, words, bar=None):
        feet.append((words, bar))
        return paper.framed(body, title, words, bar)

    for room in (bars, grids):
        monkeypatch.setattr(room, "framed", framed)
    return feet


def test_bars_without_a_length_are_marked_and_counted(monkeypatch):
    feet = said(monkeypatch)
    values = np.array([np.nan, 2.0, -np.inf, 1.0, np.inf])
    array = np.asarray(render.units(values)).astype(int)
    assert feet == [
        ("length is the unit's output; 3 of 5 units are NaN or infinite numbers (magenta)", None)
    ]
    # Rows of 18 pixels: bars where there are numbers, magenta words where there are none.
    rows = [array[10 + 18 * i : 28 + 18 * i] for i in range(5)]
    bars = [int((row == (49, 104, 142)).all(2).any(0).sum()) for row in rows]
    assert (bars[0], bars[2], bars[4]) == (0, 0, 0)
    assert bars[1] / bars[3] == pytest.approx(2, rel=0.02)
    assert bars[1] > 300  # the scale is that of the numbers
    assert [bool((row == MAGENTA).all(2).any()) for row in rows] == [True, False] * 2 + [True]
    render.units(values, top=2)
    render.units_before_and_after(values, np.ones(5))
    assert all("3 of 5 units" in words for words, _ in feet)


def test_cells_of_a_strip_without_a_colour_are_marked_and_counted(monkeypatch):
    feet = said(monkeypatch)
    values = np.linspace(-1, 3, 100)
    values[[7, 40]] = np.nan, np.inf
    array = np.asarray(render.units(values)).astype(int)
    cells = array[16:-60:12, 16::12][:4, :32]
    assert (cells == MAGENTA).all(2).reshape(-1).nonzero()[0].tolist() == [7, 40]
    words, bar = feet[0]
    assert bar == (-1.0, 3.0, "viridis")
    assert "2 of 100 units are NaN or infinite numbers (magenta)" in words
    render.units_before_and_after(values, np.zeros(100))
    assert feet[1][1] == (-1.0, 3.0, "viridis")


def test_small_maps_in_a_long_row_are_magnified_and_not_averaged(monkeypatch):
    """Black beside white stays black and white, though the row is wider than a screen."""
    feet = said(monkeypatch)
    board = np.indices((30, 30)).sum(0) % 2
    array = np.asarray(render.feature_maps(np.repeat(board[None], 80, 0), columns=80))
    assert feet == [("each channel from its own minimum to its own maximum", None)]
    cell = array[25:85, 10:70, 0]  # a margin of 10, and 15 above for the number
    assert np.array_equal(cell, np.kron(255 * board, np.ones((2, 2))))


def test_maps_of_one_row_are_not_thinned_to_none():
    values = np.linspace(0, 1, 64 * 400).reshape(64, 1, 400)
    array = np.asarray(render.feature_maps(values, columns=8, numbers=False)).astype(int)
    first = array[10, 10:410, 0]
    assert (first[0], first[-1]) == (0, 255)
    assert (np.diff(first) >= 0).all()


@pytest.mark.parametrize("side", [5, 50])
@pytest.mark.parametrize("scale", ["channel", "layer", (0.0, 4.0)])
def test_places_of_maps_without_a_number_are_marked_and_counted(monkeypatch, scale, side):
    """All others keep their colours, as if nothing were missing but these places."""
    feet = said(monkeypatch)
    maps = np.random.default_rng(0).random((3, side, side)) + 1
    maps[:, 0, 0] = 1.0  # the least, so that nothing changes the scale
    whole = np.asarray(render.feature_maps(maps, 3, "gray", scale)).astype(int)
    holed = maps.copy()
    holed[1, 2, 3], holed[1, 4, 0] = np.nan, np.inf
    array = np.asarray(render.feature_maps(holed, 3, "gray", scale)).astype(int)
    marked = (array == MAGENTA).all(2)
    factor = 8 if side == 5 else 1
    height = min(len(whole), len(array)) - 80
    assert marked.sum() == 2 * factor**2
    ys, xs = np.nonzero(marked)
    assert ys.max() - ys.min() == 3 * factor - 1  # rows 2 to 4
    assert xs.max() - xs.min() == 4 * factor - 1  # columns 0 to 3
    same = (array[:height, :150] == whole[:height, :150]).all(2)
    assert (same | marked[:height, :150]).all()
    assert "1 of 3 channels hold NaN or infinite numbers (magenta)" in feet[1][0]
    assert feet[1][1] == feet[0][1]
    holed[0] = np.nan
    both = np.asarray(render.before_and_after(maps, holed, 3, "gray", scale)).astype(int)
    assert (both == MAGENTA).all(2).sum() == (2 + side**2) * factor**2
    assert "2 of 3 channels hold" in feet[2][0]
    assert "everywhere" not in feet[2][0]  # nor is a lost channel a dead one


def test_maps_that_are_thinned_keep_their_marks():
    maps = np.random.default_rng(0).random((64, 400, 300)).astype(np.float32)
    maps[5, 200, 100] = np.nan
    array = np.asarray(render.feature_maps(maps)).astype(int)
    assert (array == MAGENTA).all(2).sum() == 1


def test_one_map_large_keeps_its_marks(monkeypatch):
    feet = said(monkeypatch)
    values = np.random.default_rng(0).random((4, 8))
    values[1, 2] = np.nan
    for picture in (None, np.zeros((40, 80, 3), np.uint8)):
        image = render.feature_map(values, picture=picture)
        ys, xs = np.nonzero((np.asarray(image).astype(int) == MAGENTA).all(2))
        side = (image.width - 20) // 8
        assert (ys.max() + 1 - ys.min(), xs.max() + 1 - xs.min()) == (side, side)
        assert (ys.min(), xs.min()) == (10 + side, 10 + 2 * side)
    assert "1 of 32 cells are NaN" in feet[0][0]


def test_filters_without_numbers_are_refused():
    weight = np.ones((4, 3, 3, 3))
    weight[2, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="1 of 4 filters hold NaN"):
        render.filters(weight)


def test_stretching_keeps_places():
    """A cell of a 4×4 map covers its sixteenth of the picture, centre on centre."""
    spot = np.zeros((4, 4))
    spot[1, 2] = 1
    large = render.stretch(spot, (400, 200))
    ys, xs = np.mgrid[0:200, 0:400]
    centre = ((large * (ys + 0.5)).sum() / large.sum(), (large * (xs + 0.5)).sum() / large.sum())
    assert centre == pytest.approx((75.0, 250.0), abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_heat_map_may_be_a_tensor(dtype):
    """As ``result.heatmap()[0]`` is, in whatever precision the network runs."""
    white = Image.new("RGB", (6, 4), "white")
    tensor = torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.75, 0.125]], dtype=dtype, requires_grad=True)
    array = tensor.detach().double().numpy()
    for draw in (render.overlay, render.masked):
        assert np.array_equal(np.asarray(draw(white, tensor)), np.asarray(draw(white, array)))
    assert np.array_equal(render.stretch(tensor, (6, 4)), render.stretch(array, (6, 4)))
    with pytest.raises(InputError, match=r"not \(1, 2, 3\); pick one of a batch first"):
        render.overlay(white, tensor[None])


def test_sheet_titles_stand_above_their_columns_and_pictures_do_not_touch():
    red, blue = Image.new("RGB", (50, 50), (255, 0, 0)), Image.new("RGB", (50, 25), (0, 0, 255))
    picture = np.asarray(
        render.sheet([[red, blue]], ["first", "second"], ["row"], cell=100, title="all")
    )
    y0, x0, y1, x1 = find_cell(picture, (255, 0, 0))
    v0, u0, v1, u1 = find_cell(picture, (0, 0, 255))
    assert (y1 - y0, x1 - x0, v1 - v0, u1 - u0) == (100, 100, 50, 100)
    assert u0 - x1 >= 5
    assert (picture[:y0] < 100).any()  # words above


def test_words_are_cut_and_wrapped_to_their_width():
    assert text_width(fit("a very long title indeed", 60), 12) <= 60
    assert all(text_width(line, 12) <= 80 for line in wrap("several words that wrap", 80))
    assert " ".join(wrap("several words that wrap", 80)) == "several words that wrap"


def test_figures_have_a_colour_bar_in_the_unit_and_nothing_overlaps():
    values = np.linspace(-1, 2, 48).reshape(6, 8)
    picture = Image.new("RGB", (80, 60), "gray")
    figure = render.attribution_figure(values, picture=picture, title="a title", unit="logit lost")
    figure.canvas.draw()
    bars = [axis for axis in figure.axes if axis.get_ylabel() == "logit lost"]
    assert len(bars) == 1
    assert bars[0].get_ylim() == (-2.0, 2.0)
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert box.x1 <= other.x0 + 1 or other.x1 <= box.x0 + 1
    title = figure._suptitle.get_window_extent()
    assert all(box.y1 <= title.y0 + 1 for box in boxes)
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 for box in boxes)
    assert title.y1 <= height


def test_a_tall_map_keeps_its_place_beside_the_colour_bar():
    figure = render.attribution_figure(
        np.random.default_rng(0).random((600, 12)), picture=Image.new("RGB", (12, 600)), unit="x"
    )
    figure.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    assert all(box.width > 1 and box.height > 1 for box in boxes)
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert box.x1 <= other.x0 + 1 or other.x1 <= box.x0 + 1


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (900, 300)])
def test_a_picture_that_the_network_saw_squashed_is_shown_as_it_is(size):
    """The network's input is square, the picture is not: a circle in it stays a circle."""
    values = np.random.default_rng(0).random((150, 150))
    figure = render.attribution_figure(values, picture=Image.new("RGB", size), unit="x")
    figure.canvas.draw()
    panels = {axis.get_title(): axis for axis in figure.axes if axis.images}
    for name in ("picture", "map", "overlay"):
        box = panels[name].get_window_extent()
        assert box.width / box.height == pytest.approx(size[0] / size[1], rel=0.02)
        assert tuple(panels[name].images[0].get_extent()) == (0, 150, 150, 0)


def test_a_figure_stands_upright_whatever_matplotlib_is_told_elsewhere():
    """Astronomers have their pictures begin below."""
    values = np.zeros((8, 8))
    values[0, 0] = 1.0
    picture = Image.new("RGB", (80, 80))
    usual = render.figure_picture(render.attribution_figure(values, picture=picture))
    with matplotlib.rc_context({"image.origin": "lower"}):
        told = render.figure_picture(render.attribution_figure(values, picture=picture))
    assert np.array_equal(np.asarray(usual), np.asarray(told))


@pytest.mark.parametrize("ratio", [0.41, 0.6, 0.9])
def test_a_long_unit_is_whole_beside_a_low_map(ratio):
    unit = "largest |gradient of the score| over channels"
    values = np.random.default_rng(0).random((round(60 * ratio), 60))
    picture = Image.new("RGB", (600, 10 * len(values)))
    figure = render.attribution_figure(values, picture=picture, title="title", unit=unit)
    figure.canvas.draw()
    (bar,) = (axis for axis in figure.axes if axis.get_ylabel())
    assert bar.get_ylabel().split() == unit.split()
    box = bar.yaxis.label.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure._suptitle.get_window_extent().y0


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_steps_are_counted_in_whole_numbers(steps):
    figure = render.curves_figure(np.zeros((1, steps)), ["a"])
    figure.canvas.draw()
    ticks = figure.axes[0].get_xticks()
    assert len(ticks)
    assert np.array_equal(ticks, np.round(ticks))


def test_a_curve_has_its_name_whatever_it_begins_with():
    """To matplotlib a label that begins with _ is none; to others it is a layer's name."""
    names = ["_conv_stem 1", "class 2", "__ 3"]
    figure = render.curves_figure(np.arange(9.0).reshape(3, 3), names)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert [line.get_color() for line in legend.get_lines()] == colours


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3])
def test_wide_maps_stand_one_below_the_other_and_use_the_width(ratio):
    values = np.random.default_rng(0).normal(size=(max(2, round(400 * ratio)), 400))
    picture = Image.new("RGB", (800, 2 * len(values)), "gray")
    figure = render.attribution_figure(values, picture=picture, title="title", unit="unit")
    figure.canvas.draw()
    width = figure.canvas.get_width_height()[0]
    panels = [axis for axis in figure.axes if axis.get_title()]
    boxes = [axis.get_window_extent() for axis in panels]
    assert [axis.get_title() for axis in panels] == ["picture", "map", "overlay"]
    assert all(box.width > 0.8 * width for box in boxes)
    assert boxes[0].y0 >= boxes[1].y1
    assert boxes[1].y0 >= boxes[2].y1
    assert boxes[0].x0 == pytest.approx(boxes[1].x0) == pytest.approx(boxes[2].x0)


def test_a_colour_scale_has_the_maps_colours_and_its_numbers():
    scale = np.asarray(render.color_scale("viridis", 0.0, 2.5, "logit", 200)).astype(int)
    for share in (0.0, 0.3, 1.0):
        wanted = colorize(np.array(share), "viridis").astype(int)
        assert np.abs(scale[3, round(share * 199)] - wanted).max() <= 2
    numbers = scale[12:29].min(2) < 128
    assert np.array_equal(trimmed(numbers[:, :40]), ink("0"))
    assert np.array_equal(trimmed(numbers[:, 150:]), ink("2.5"))
    signed = np.asarray(render.color_scale("seismic", -3.0, 3.0, "", 200)).min(2) < 128
    assert np.array_equal(trimmed(signed[12:29, 80:120]), ink("0"))


def test_the_overlay_of_a_figure_has_the_colours_of_its_map():
    """A span far from zero: the overlay's lowest and highest places are the ends of the bar."""
    values = np.linspace(0.11, 0.113, 24).reshape(4, 6)
    white = Image.new("RGB", (6, 4), "white")
    figure = render.attribution_figure(
        values, picture=white, colormap="viridis", span=(values.min(), values.max())
    )
    over = np.asarray(figure.axes[2].images[0].get_array()).astype(float)
    for place, share in (((0, 0), 0.0), ((3, 5), 1.0)):
        wanted = 0.6 * 255 + 0.4 * colorize(np.array(share), "viridis").astype(float)
        assert over[place] == pytest.approx(wanted, abs=1.5)


def test_long_words_are_broken_not_cut():
    name = "a_rather_long_backbone_name.with.dots_and.more_of_them"
    lines = wrap(name, 90)
    assert "".join(lines) == name
    assert len(lines) > 1
    assert all(text_width(line, 12) <= 90 for line in lines)
    assert wrap("iiii", 1) == ["i", "i", "i", "i"]  # narrower than any letter


def overlap(a, b):
    return a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1


BREEDS = ["golden_retriever", "staffordshire_bull_terrier", "west_highland_terrier"]


@pytest.mark.parametrize(
    "names", [BREEDS, ["cat", "dog"], [f"{name}_{i}" for name in BREEDS * 4 for i in "ab"]]
)
def test_the_names_of_a_confusion_matrix_are_whole_and_do_not_lie_on_each_other(names):
    figure = render.confusion_matrix(np.eye(len(names), dtype=int), names)
    figure.canvas.draw()
    axis = figure.axes[0]
    below, beside = axis.get_xticklabels(), axis.get_yticklabels()
    assert [[each.get_text() for each in labels] for labels in (below, beside)] == [names, names]
    frames = [each.get_window_extent() for each in (*below, *beside)]
    lying = [each.get_window_extent() for each in (*below, *beside) if each.get_rotation() == 0]
    for index, box in enumerate(lying):
        assert not any(overlap(box, other) for other in lying[index + 1 :])
    width, height = figure.canvas.get_width_height()
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in frames)
    if slanted := [each for each in below if each.get_rotation()]:
        # Parallel lines: as far apart as their columns, times the sine of the angle.
        pitch = axis.get_window_extent().width / len(names)
        assert pitch * np.sin(np.radians(slanted[0].get_rotation())) > 10 / 72 * figure.dpi
    # The matrix and its words fill the paper: no blank half.
    plot = axis.get_tightbbox()
    assert plot.height > 0.9 * height


def test_a_very_long_class_name_keeps_both_its_ends():
    names = [f"first words {'and more ' * 20} last words {end}" for end in "ab"]
    axis = render.confusion_matrix(np.eye(2, dtype=int), names).axes[0]
    labels = [each.get_text() for each in axis.get_yticklabels()]
    assert all(each.startswith("first") and "…" in each for each in labels)
    assert [each[-12:] for each in labels] == ["last words a", "last words b"]


@pytest.mark.parametrize("count", [2, 4])
def test_a_very_long_layer_name_leaves_the_plot_and_its_legend_their_room(count, recwarn):
    names = [
        f"a_layer_with_{'a_really_unreasonably_' * 4}long_name_number_{i}" for i in range(count)
    ]
    figure = render.shares_figure(names, {"zeros": [0.5] * count, "dead": [0.1] * count}, title="t")
    figure.canvas.draw()
    axis = figure.axes[0]
    legend = figure.legends[0].get_window_extent()
    assert axis.get_window_extent().height > 150
    assert legend.y1 <= axis.get_tightbbox().y0 + 1
    assert [each.get_text()[-8:] for each in axis.get_xticklabels()] == [
        f"number_{i}" for i in range(count)
    ]
    assert not recwarn


def where(mask, wanted):
    """The places, from the left and then from above, where a picture has just this ink."""
    windows = np.lib.stride_tricks.sliding_window_view(mask, wanted.shape)
    ys, xs = np.nonzero((windows == wanted).all((2, 3)))
    return sorted(zip(xs.tolist(), ys.tolist(), strict=True))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 5), (5, 1)])
def test_every_row_and_column_of_a_table_of_kernels_has_its_number(size):
    """In whatever order they are: from one number those beside it cannot be told."""
    rows, columns = [42, 70, 63, 85, 19], [105, 490, 371, 286, 488]
    blank = np.zeros((100, 512, *size))  # of white kernels, so that all ink is words
    picture = render.filters(blank, chosen=rows, inputs=columns)
    mask = np.asarray(picture)[:, :, 0] < 128
    beside = [where(mask, ink(f"{row}  ‖0‖")) for row in rows]
    assert [len(found) for found in beside] == [1] * len(rows)
    heights = np.diff([found[0][1] for found in beside])
    assert heights.min() >= 14
    upright = [where(mask, ink(str(column))) for column in columns]
    turned = [where(mask, np.rot90(ink(str(column)))) for column in columns]
    above = upright if upright[0] else turned
    assert [len(found) for found in above] == [1] * len(columns)
    assert np.diff([found[0][0] for found in above]).min() >= 14


def test_a_picture_of_some_filters_says_why_these(monkeypatch):
    feet = []
    monkeypatch.setattr(
        "torchviz_cnn.render.kernels.framed",
        lambda *given: feet.append(given[2]) or paper.framed(*given),
    )
    kernels = Filters("conv", torch.randn(20, 130, 1, 1), None)
    kernels.picture(top=8)
    assert "8 of 20 filters, those with the largest norm, the largest first;" in feet[0]
    assert (
        "64 of 130 input channels, those in which the filters drawn have the largest norm"
        in feet[0]
    )
    kernels.picture(chosen=[3, 1], inputs=[5, 4, 2])  # whoever chose them knows
    assert "2 of 20 filters; 3 of 130 input channels; a row" in feet[1]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(12, 16), (4, 40)])
@pytest.mark.parametrize("value", [0, 0.25])
def test_a_figure_of_nothing_but_one_number_has_one_colour_and_says_so(signed, shape, value):
    """As its overlay alone has: what is the same everywhere points nowhere, however large."""
    black = Image.new("RGB", shape[::-1])
    figure = render.attribution_figure(
        np.full(shape, value), picture=black, unit="logit", signed=signed
    )
    figure.canvas.draw()
    of_0 = colorize(np.array(0.5 if signed else 0.0), "seismic" if signed else "jet")
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        "picture",
        f"map: {value} everywhere",
        "overlay",
    ]
    image = figure.axes[1].images[0]
    assert image.to_rgba(image.get_array(), bytes=True)[0, 0, :3].tolist() == of_0.tolist()
    over = np.asarray(figure.axes[2].images[0].get_array())
    assert np.abs(over[0, 0] - 0.4 * of_0).max() <= 1
    words = figure.axes[3].get_xticklabels() + figure.axes[3].get_yticklabels()
    assert [each.get_text() for each in words] == [str(value)]
    assert image.get_cmap().N == 1
    alone = render.attribution_figure(np.full(shape, value))
    assert alone.axes[0].get_title() == f"{value} everywhere"


@pytest.mark.parametrize(("low", "shade"), [(0.0, 0.0), (-1.0, 0.5)])
def test_the_scale_of_a_map_that_is_the_same_everywhere_has_one_colour_and_one_number(low, shade):
    colormap = "viridis"
    scale = render.color_scale(colormap, low, 1.0, "", 200, everywhere=0.3)
    array = np.asarray(scale)
    assert (array[1:11, 1:199] == colorize(np.array(shade), colormap)).all()
    assert np.array_equal(trimmed(array[12:29].min(2) < 128), ink("0.3 everywhere"))


def test_maps_that_are_0_everywhere_get_no_invented_scale():
    for picture in (
        render.feature_maps(np.zeros((2, 40, 40)), None, "viridis", "layer"),
        render.feature_map(np.zeros((40, 40)), "viridis"),
        render.units(np.zeros(300), "viridis"),
    ):
        array = np.asarray(picture)
        mask = array[:, :, 0] < 200
        assert where(array[:, :, 0] < 128, ink("0 everywhere"))
        bar = array[np.flatnonzero(mask[:, 10:200].all(1))[-1], 10:200]
        assert len(np.unique(bar, axis=0)) == 1


def test_a_contact_sheet_leaves_no_room_for_what_its_pictures_are_not():
    """Wide pictures in square cells would hang below half a cell of nothing."""
    red, blue = (255, 0, 0), (0, 0, 255)
    wide, wider = Image.new("RGB", (96, 48), red), Image.new("RGB", (96, 24), blue)
    sheet = render.contact_sheet([wide, wider], ["one", "two"], columns=2, cell=96, title="all")
    picture = np.asarray(sheet)
    first, second = find_cell(picture, red), find_cell(picture, blue)
    assert (first[2] - first[0], second[2] - second[0]) == (48, 24)
    assert first[0] == second[0] < 40  # right below the title, level
    for cell, words in ((first, "one"), (second, "two")):
        below = picture[cell[2] : cell[2] + 20, cell[1] : cell[3], 0] < 128
        assert np.array_equal(trimmed(below), ink(words, 12))
    assert sheet.height < first[2] + 40
