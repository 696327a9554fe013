"""The result: maps scaled to be looked at, laid over pictures where they belong, and saved whole."""

from __future__ import annotations

import errno
import io
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import pictures, plain, randomised
from torchviz_cnn.attribution import CellAttribution, PixelAttribution, WindowAttribution
from torchviz_cnn.files import write_atomically
from torchviz_cnn.places import Place
from torchviz_cnn.preprocess import Preprocess


def close(found: Tensor, wanted: Any) -> None:
    wanted = torch.as_tensor(wanted, dtype=found.dtype)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _result(
    kind: type, values: Tensor, size: tuple[int, int], targets: int = 0, **more: Any
) -> Any:
    """A result made by hand; ``targets`` > 0 for that many targets an image."""
    shape = (len(values), targets) if targets else (len(values),)
    return kind(
        values=values,
        score=torch.zeros(shape, dtype=torch.float64),
        target=torch.zeros(shape, dtype=torch.long),
        method=more.pop("method", "by_hand"),
        input_size=size,
        **more,
    )


def cells(values: Tensor, size: tuple[int, int], targets: int = 0, **more: Any) -> CellAttribution:
    return _result(CellAttribution, values, size, targets, **more)


def pixels(values: Tensor, targets: int = 0, **more: Any) -> PixelAttribution:
    return _result(PixelAttribution, values, tuple(values.shape[-2:]), targets, **more)


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By the definition: cell centres at (i + 1/2) / n of the side, constant beyond the outermost."""
    result = np.zeros((*maps.shape[:-2], *size))
    h, w = maps.shape[-2:]
    for y in range(size[0]):
        for x in range(size[1]):
            fy = min(max((y + 0.5) / size[0] * h - 0.5, 0), h - 1)
            fx = min(max((x + 0.5) / size[1] * w - 0.5, 0), w - 1)
            y0, x0 = math.floor(fy), math.floor(fx)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            dy, dx = fy - y0, fx - x0
            result[..., y, x] = (
                maps[..., y0, x0] * (1 - dy) * (1 - dx)
                + maps[..., y0, x1] * (1 - dy) * dx
                + maps[..., y1, x0] * dy * (1 - dx)
                + maps[..., y1, x1] * dy * dx
            )
    return result


# ---- heat maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 13), (12, 8), (5, 5), (3, 4), (31, 6)])
def test_cells_are_interpolated_bilinearly_to_the_inputs_size(size: tuple[int, int]) -> None:
    values = normal(2, 3, 4)
    close(cells(values, size).maps(), bilinear(values.numpy(), size))
    several = normal(2, 5, 4, 3)
    close(cells(several, size, targets=5).maps(), bilinear(several.numpy(), size))


def test_maps_without_negative_values_are_divided_by_their_own_maximum() -> None:
    values = normal(3, 4, 5).abs() * torch.tensor([1.0, 1e-9, 1e9]).double()[:, None, None]
    wanted = bilinear(values.numpy(), (9, 12))
    wanted /= wanted.max((1, 2), keepdims=True)
    close(cells(values, (9, 12)).heatmap(), wanted)


def test_signed_maps_are_divided_by_their_own_largest_magnitude() -> None:
    values = normal(3, 4, 5)
    values[0, 2, 1] = -9.0
    wanted = bilinear(values.numpy(), (9, 12))
    wanted /= np.abs(wanted).max((1, 2), keepdims=True)
    found = cells(values, (9, 12)).heatmap()
    close(found, wanted)
    assert found[0].min() == -1


def test_a_heat_map_of_positive_values_keeps_zero_at_zero() -> None:
    values = torch.tensor([[[2.0, 3.0], [4.0, 8.0]]]).double()
    close(cells(values, (2, 2)).heatmap(), [[[0.25, 0.375], [0.5, 1.0]]])


def test_every_target_has_its_own_scale() -> None:
    values = normal(2, 3, 4, 5, seed=1) * torch.tensor([1.0, 100.0, 0.01]).double()[:, None, None]
    found = cells(values, (9, 12), targets=3).heatmap()
    assert found.shape == (2, 3, 9, 12)
    close(found.abs().amax((2, 3)), torch.ones(2, 3))
    for k in range(3):
        close(found[:, k], cells(values[:, k], (9, 12)).heatmap())


def test_pixels_show_the_largest_magnitude_over_channels_or_their_sum() -> None:
    values = normal(2, 3, 4, 5)
    magnitude = np.abs(values.numpy()).max(1)
    close(pixels(values).heatmap(), magnitude / magnitude.max((1, 2), keepdims=True))
    total = values.numpy().sum(1)
    wanted = total / np.abs(total).max((1, 2), keepdims=True)
    close(pixels(values, channels="sum").heatmap(), wanted)


def test_pixels_of_several_targets_keep_their_axis() -> None:
    values = normal(2, 4, 3, 5, 6)
    close(pixels(values, targets=4).maps(), np.abs(values.numpy()).max(2))
    close(pixels(values, targets=4, channels="sum").maps(), values.numpy().sum(2))


def test_pixels_without_a_channel_axis_are_maps_already() -> None:
    values = normal(2, 5, 6)
    close(pixels(values).maps(), values.abs())
    close(pixels(values, channels="sum").maps(), values)
    several = normal(2, 3, 5, 6)
    close(pixels(several, targets=3, channels="sum").maps(), several)


CONSTANTS = [0.0, 0.1, 0.3, 1.7, -0.2, 1e-30]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", CONSTANTS)
@pytest.mark.parametrize(
    ("grid", "size"), [((3, 2), (37, 53)), ((5, 4), (23, 17)), ((7, 7), (56, 56)), ((1, 1), (6, 9))]
)
def test_a_constant_map_of_cells_gives_zeros(
    grid: tuple[int, int], size: tuple[int, int], value: float, dtype: torch.dtype
) -> None:
    found = cells(torch.full((2, *grid), value, dtype=dtype), size).heatmap()
    assert found.shape == (2, *size)
    assert found.dtype == dtype
    assert (found == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", CONSTANTS)
def test_a_constant_map_of_pixels_or_windows_gives_zeros(value: float, dtype: torch.dtype) -> None:
    for channels in ("magnitude", "sum"):
        found = pixels(torch.full((2, 3, 5, 4), value, dtype=dtype), channels=channels).heatmap()
        assert (found == 0).all()
    grid = torch.full((2, 5, 4), value, dtype=dtype)
    found = _result(WindowAttribution, grid, (11, 8), window=(3, 3), stride=(2, 2)).heatmap()
    assert found.shape == (2, 11, 8)
    assert (found == 0).all()


def test_one_constant_map_does_not_silence_the_others() -> None:
    values = normal(3, 4, 5).abs()
    values[1] = 0
    found = cells(values, (9, 12)).heatmap()
    assert (found[1] == 0).all()
    close(found[[0, 2]], cells(values[[0, 2]], (9, 12)).heatmap())


@pytest.mark.parametrize("dtype", DTYPES)
def test_heat_maps_keep_the_dtype_and_stay_finite(dtype: torch.dtype) -> None:
    values = normal(2, 4, 5).to(dtype)
    found = cells(values, (9, 12)).heatmap()
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert found.abs().max() == 1
    wanted = bilinear(values.double().numpy(), (9, 12))
    wanted /= np.abs(wanted).max((1, 2), keepdims=True)
    allowed = 4 * torch.finfo(dtype).eps
    assert np.abs(found.double().numpy() - wanted).max() <= allowed


def test_one_map_and_one_heat_map_pick_image_and_target() -> None:
    several = cells(normal(2, 3, 4, 5), (9, 12), targets=3)
    for n in range(2):
        for k in range(3):
            np.testing.assert_allclose(several.one_map(n, k), several.maps()[n, k], rtol=1e-6)
            wanted = several.heatmap()[n, k]
            np.testing.assert_allclose(several.one_heatmap(n, k), wanted, rtol=1e-6)
    with pytest.raises(tvc.InputError, match=r"no image 2.* 2"):
        several.one_map(2, 0)
    with pytest.raises(tvc.InputError, match=r"no target 3.* 3"):
        several.one_heatmap(0, 3)


# ---- overlays ------------------------------------------------------------------------------------

PICTURE = np.array([[0, 100], [200, 255]], np.uint8)


def test_an_overlay_is_the_weighted_mean_of_picture_and_colour() -> None:
    heat = np.array([[0.0, 1.0], [0.5, 0.25]])
    found = np.asarray(tvc.render.overlay(PICTURE, heat, "gray", alpha=0.4))
    gray = np.array([[0, 255], [128, 64]])  # of 0…1, to whole bytes
    wanted = np.rint(0.6 * PICTURE + 0.4 * gray)
    assert (found == wanted[..., None]).all()
    assert found[0, 1].tolist() == [162, 162, 162]  # 0.6·100 + 0.4·255


def test_alpha_0_is_the_picture_and_alpha_1_the_map() -> None:
    heat = np.array([[0.0, 1.0], [0.5, 0.25]])
    assert (np.asarray(tvc.render.overlay(PICTURE, heat, alpha=0)) == PICTURE[..., None]).all()
    found = np.asarray(tvc.render.overlay(PICTURE, heat, "gray", alpha=1))
    assert found[..., 0].tolist() == [[0, 255], [128, 64]]
    for alpha in (-0.1, 1.1):
        with pytest.raises(tvc.InputError, match=str(alpha)):
            tvc.render.overlay(PICTURE, heat, alpha=alpha)


def test_the_default_colours_run_from_dark_blue_to_dark_red() -> None:
    found = np.asarray(tvc.render.overlay(PICTURE, np.array([[0.0, 1.0], [0.5, 0.5]]), alpha=1))
    low, high = found[0, 0].astype(int), found[0, 1].astype(int)
    assert low[:2].tolist() == [0, 0]
    assert abs(low[2] - 127.5) <= 0.5  # jet is defined from (0, 0, ½) to (½, 0, 0)
    assert high[1:].tolist() == [0, 0]
    assert abs(high[0] - 127.5) <= 0.5


def test_signed_maps_are_white_at_zero_and_their_ends_lie_at_minus_one_and_one() -> None:
    heat = np.array([[-1.0, 0.0], [1.0, 0.5]])
    found = np.asarray(tvc.render.overlay(PICTURE, heat, alpha=1)).astype(int)
    assert found[0, 1].min() >= 253
    negative, positive = found[0, 0], found[1, 0]
    assert negative[2] > 60
    assert negative[:2].tolist() == [0, 0]
    assert positive[0] > 100
    assert positive[1:].tolist() == [0, 0]
    # a weak negative map must not borrow the whole scale
    weak = np.asarray(tvc.render.overlay(PICTURE, np.full((2, 2), -1 / 255), alpha=1))
    assert weak.min() >= 250


def test_an_unknown_colour_map_is_refused_with_the_closest() -> None:
    with pytest.raises(tvc.InputError, match=r"'virids'.*'viridis'"):
        tvc.render.overlay(PICTURE, np.ones((2, 2)), "virids")


def test_a_results_overlay_is_that_of_its_heat_map() -> None:
    values = torch.tensor([[[0.0, 8.0], [4.0, 2.0]], [[8.0, 0.0], [0.0, 0.0]]]).double()
    result = cells(values, (2, 2))
    found = np.asarray(result.overlay(PICTURE, "gray", alpha=0.25))
    assert (
        found[..., 0].tolist()
        == np.rint(0.75 * PICTURE + 0.25 * np.array([[0, 255], [128, 64]])).astype(int).tolist()
    )
    second = np.asarray(result.overlay(PICTURE, "gray", alpha=1, index=1))
    assert second[..., 0].tolist() == [[255, 0], [0, 0]]
    several = cells(values[None], (2, 2), targets=2)
    assert (np.asarray(several.overlay(PICTURE, "gray", alpha=1, target=1)) == second).all()


def _centroid(picture: Image.Image | np.ndarray) -> tuple[float, float]:
    """Where the light is: (x, y) in pixels, 0 at the outer edge of the first pixel."""
    weight = np.asarray(picture, dtype=float)
    weight = weight[..., 0] if weight.ndim == 3 else weight
    assert weight.sum() > 0
    y, x = np.indices(weight.shape) + 0.5
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


@pytest.mark.parametrize("size", [(96, 64), (90, 70), (192, 320), (48, 32), (36, 60)])
@pytest.mark.parametrize("hot", [(1, 1), (1, 3), (3, 2), (4, 3)])
def test_a_hot_cell_lies_where_its_share_of_the_picture_is(
    hot: tuple[int, int], size: tuple[int, int]
) -> None:
    """Six rows and five columns of cells, an input of 48×60, pictures (width, height) of any size."""
    values = torch.zeros(1, 6, 5).double()
    values[0, hot[0], hot[1]] = 1
    picture = Image.new("RGB", size)
    overlay = cells(values, (48, 60)).overlay(picture, "gray", alpha=1)
    assert overlay.size == size
    x, y = _centroid(overlay)
    assert x == pytest.approx((hot[1] + 0.5) / 5 * size[0], abs=0.1)
    assert y == pytest.approx((hot[0] + 0.5) / 6 * size[1], abs=0.1)


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_a_hot_region_covers_exactly_its_part_of_a_larger_picture(factor: int) -> None:
    values = torch.zeros(1, 1, 12, 16).double()
    values[0, 0, 3:7, 9:14] = 1
    picture = Image.new("RGB", (16 * factor, 12 * factor))
    found = np.asarray(pixels(values).overlay(picture, "gray", alpha=1))[..., 0] > 127.5
    wanted = np.zeros((12 * factor, 16 * factor), bool)
    wanted[3 * factor : 7 * factor, 9 * factor : 14 * factor] = True
    # bilinear interpolation rounds the corners; the edges lie where they must
    assert (found.any(0) == wanted.any(0)).all()
    assert (found.any(1) == wanted.any(1)).all()
    assert not (found & ~wanted).any()
    assert (wanted & ~found).sum() <= 4 * (factor // 2) ** 2


def _model(preprocess: Preprocess) -> tvc.Model:
    return tvc.Model(RedSeeker(), preprocess, (3, *preprocess.size))


class RedSeeker(nn.Module):
    """One map: how much redder than green and blue a pixel is. One class: its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 1, 1), nn.Linear(1, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0, -1.0])[None, :, None, None])
            self.conv.bias.zero_()
            self.fc.weight.fill_(1)
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def _with_square(size: tuple[int, int], left: int, top: int, side: int) -> Image.Image:
    picture = Image.new("RGB", size, (0, 40, 40))
    picture.paste((255, 0, 0), (left, top, left + side, top + side))
    return picture


# The picture is 150×100. Its short side becomes 40, so 60×40, of which the middle 32×32 is cut:
# 14 and 4 pixels off, that is x from 35 to 115 and y from 10 to 90 of the original.
CROP = Preprocess((32, 32), resize=40)


def test_an_overlay_through_a_model_is_the_part_of_the_picture_it_saw() -> None:
    picture = _with_square((150, 100), 75, 30, 10)
    values = torch.zeros(1, 3, 32, 32).double()
    values[0, :, 8:12, 16:20] = 1  # (30…40)·0.4 − 4 rows, (75…85)·0.4 − 14 columns
    result = pixels(values, view=_model(CROP).view)
    seen = result.overlay(picture, alpha=0)
    assert seen.size == (80, 80)
    assert _centroid(np.asarray(seen)[..., 0] > 128) == pytest.approx((45, 25), abs=0.1)
    heat = result.overlay(picture, "gray", alpha=1)
    assert _centroid(heat) == pytest.approx((45, 25), abs=0.1)
    hot, red = np.asarray(heat)[..., 0] > 127.5, np.asarray(seen)[..., 0] > 128
    for axis in (0, 1):
        assert (hot.any(axis) == red.any(axis)).all()


@pytest.mark.parametrize(
    ("preprocess", "size", "square"),
    [
        (CROP, (150, 100), (75, 30, 10)),
        (CROP, (100, 150), (25, 80, 10)),
        (CROP, (33, 47), (12, 14, 6)),
        (Preprocess((32, 48)), (150, 100), (20, 60, 15)),
        (Preprocess((32, 48), resize=40), (200, 100), (110, 40, 20)),
        (Preprocess((40, 40), resize=32), (100, 50), (55, 20, 10)),  # padded above and below
        (Preprocess((40, 40), resize=32), (50, 100), (20, 55, 10)),  # padded left and right
    ],
)
def test_a_models_heat_map_lies_on_what_it_saw(
    preprocess: Preprocess, size: tuple[int, int], square: tuple[int, int, int]
) -> None:
    model, picture = _model(preprocess), _with_square(size, *square)
    result = tvc.grad_cam(model, model.preprocess(picture), 1, layer="conv")
    seen = np.asarray(result.overlay(picture, alpha=0)).astype(int)
    red = np.clip(seen[..., 0] - seen[..., 1], 0, None)
    heat = result.overlay(picture, "gray", alpha=1)
    step = max(seen.shape[1] / preprocess.size[1], seen.shape[0] / preprocess.size[0])
    assert _centroid(heat) == pytest.approx(_centroid(red), abs=0.3 * step)


def test_a_cut_keeps_the_squares_place_by_arithmetic() -> None:
    """As above, without the library's own idea of what was seen."""
    model, picture = _model(CROP), _with_square((100, 150), 25, 80, 10)
    result = tvc.saliency(model, model.preprocess(picture), 1)
    # 40×60 of which 4 columns and 14 rows are cut: x from 10 to 90, y from 35 to 115
    wanted = _centroid(np.asarray(picture.crop((10, 35, 90, 115)))[..., 0] > 128)
    assert wanted == (20, 50)
    assert _centroid(result.overlay(picture, "gray", alpha=1)) == pytest.approx(wanted, abs=1)


def test_with_a_bare_network_the_map_covers_the_whole_picture() -> None:
    values = torch.zeros(1, 1, 10, 10).double()
    values[0, 0, 2:4, 6:8] = 1
    found = pixels(values).overlay(Image.new("RGB", (150, 50)), "gray", alpha=1)
    assert found.size == (150, 50)
    assert _centroid(found) == pytest.approx((105, 15), abs=0.1)


def test_a_masked_picture_keeps_exactly_the_share_asked_for() -> None:
    order = np.random.default_rng(0).permutation(120).reshape(10, 12)
    result = pixels(torch.from_numpy(order + 1.0)[None, None])
    picture = np.random.default_rng(1).integers(1, 255, (10, 12, 3)).astype(np.uint8)
    for keep in (0.25, 0.1, 0.5, 1.0, 1 / 120):
        found = np.asarray(result.masked(picture, keep))
        visible = order >= 120 - round(120 * keep)
        assert visible.sum() == round(120 * keep)
        assert (found[visible] == picture[visible]).all()
        assert (found[~visible] == 0).all()


def test_a_masked_picture_shows_only_what_speaks_for_the_class() -> None:
    values = torch.full((1, 1, 4, 5), -3.0).double()
    values[0, 0, 1, 2], values[0, 0, 3, 0] = 2.0, 1.0
    picture = np.full((4, 5, 3), 200, np.uint8)
    found = np.asarray(pixels(values, channels="sum").masked(picture, 0.5))
    wanted = np.zeros((4, 5), bool)
    wanted[1, 2] = wanted[3, 0] = True
    assert ((found == 200).all(2) == wanted).all()


def test_a_masked_pictures_index_target_and_background_are_as_asked() -> None:
    values = torch.zeros(2, 2, 3, 3).double()
    for n, k, place in ((0, 0, (0, 0)), (0, 1, (1, 1)), (1, 0, (2, 0)), (1, 1, (0, 2))):
        values[(n, k, *place)] = 1
    result, white = cells(values, (3, 3), targets=2), np.full((3, 3), 255, np.uint8)
    assert np.argwhere(np.asarray(result.masked(white, 1 / 9))[..., 0]).tolist() == [[0, 0]]
    found = np.asarray(result.masked(white, 1 / 9, index=1, target=1))[..., 0]
    assert np.argwhere(found).tolist() == [[0, 2]]
    red = np.asarray(
        tvc.render.masked(white, np.eye(3)[::-1] * [1, 2, 3], 1 / 9, background=(9, 8, 7))
    )
    assert red[0, 2].tolist() == [255, 255, 255]
    assert red[1, 1].tolist() == [9, 8, 7]
    for keep in (0, -0.1, 1.1):
        with pytest.raises(tvc.InputError, match=f"not {keep}"):
            result.masked(white, keep)


def test_a_masked_picture_through_a_model_is_what_it_saw() -> None:
    picture = _with_square((150, 100), 75, 30, 10)
    values = torch.zeros(1, 3, 32, 32).double()
    values[0, :, 8:12, 16:20] = 1
    found = np.asarray(pixels(values, view=_model(CROP).view).masked(picture, 0.02))
    assert found.shape == (80, 80, 3)
    assert _centroid((found.sum(2) > 0).astype(float)) == pytest.approx((45, 25), abs=1.5)


# ---- words ---------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


NAMES = ["tabby cat", "lynx", "crane"]


def test_a_title_says_method_layer_class_and_score() -> None:
    result = tvc.grad_cam(Tiny(), normal(2, 3, 7, 8), [[2, 0], [1, 1]], classes=NAMES)
    assert result.labels() == [["2 crane", "0 tabby cat"], ["1 lynx", "1 lynx"]]
    for n, row in enumerate([["2 crane", "0 tabby cat"], ["1 lynx", "1 lynx"]]):
        for k, label in enumerate(row):
            title = result.title(n, k)
            for word in ("grad_cam", "conv", label, "logit", f"{result.score[n, k].item():.3g}"):
                assert word in title


def test_without_names_a_label_is_the_index_and_a_callable_says_so() -> None:
    x = normal(2, 3, 7, 8)
    assert tvc.saliency(Tiny(), x, [2, 0]).labels() == [2, 0]
    assert "class 2" in tvc.saliency(Tiny(), x, [2, 0]).title()
    result = tvc.saliency(Tiny(), x, lambda out: out[:, 0], score="probability")
    assert result.labels() == ["callable", "callable"]
    assert "class" not in result.title()
    assert "probability" in result.title()


def _drawn(figure: Any) -> list[Any]:
    return [image for axis in figure.axes for image in axis.get_images()]


@pytest.mark.parametrize("strongest", [-7.0, 7.0])
def test_a_figures_colour_bar_is_symmetric_for_signed_maps(strongest: float) -> None:
    values = normal(1, 4, 5)
    values[0, 1, 1] = strongest
    result = cells(values, (4, 5))
    (drawn,) = _drawn(result.figure())
    assert drawn.get_clim() == (-7.0, 7.0)
    np.testing.assert_allclose(drawn.get_array(), values[0], rtol=1e-6)
    assert drawn.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.02)


def test_a_figures_colour_bar_starts_at_zero_for_positive_maps() -> None:
    values = normal(1, 4, 5).abs() + 1
    (drawn,) = _drawn(cells(values, (4, 5)).figure())
    assert drawn.get_clim() == (0.0, np.float32(values.max().item()))


def test_a_figure_shows_picture_map_and_overlay_of_the_same_place() -> None:
    picture = _with_square((150, 100), 75, 30, 10)
    values = torch.zeros(2, 3, 32, 32).double()
    values[1, :, 8:12, 16:20] = 4
    result = pixels(values, view=_model(CROP).view, classes=NAMES, method="saliency")
    figure = result.figure(picture, index=1, colormap="gray")
    seen, heat, overlay = _drawn(figure)
    assert seen.get_array().shape == (80, 80, 3)
    assert _centroid(np.asarray(seen.get_array())[..., 0] > 128) == pytest.approx((45, 25), abs=0.1)
    assert (np.asarray(heat.get_array()) == values[1].numpy().max(0)).all()
    assert heat.get_clim() == (0.0, 4.0)
    blend = np.asarray(overlay.get_array()).astype(float)
    expected = 0.6 * np.asarray(seen.get_array())[25, 45] + 0.4 * 255
    assert blend[25, 45] == pytest.approx(expected, abs=1)
    assert {tuple(image.get_extent()) for image in (seen, heat, overlay)} == {(0, 32, 32, 0)}
    assert "0 tabby cat" in figure.get_suptitle()
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert any("gradient" in label for label in labels)


def test_a_notebook_is_given_a_png() -> None:
    data = tvc.grad_cam(Tiny(), normal(1, 3, 7, 8))._repr_png_()
    assert isinstance(data, bytes)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


# ---- files ---------------------------------------------------------------------------------------


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_an_npz_holds_the_numbers_and_how_they_were_made(tmp_path: Path) -> None:
    x = normal(2, 3, 7, 8)
    result = tvc.grad_cam(Tiny(), x, [[2, 0], [1, 1]], classes=NAMES, relu=False)
    path = result.save(tmp_path / "new" / "map.npz")
    assert path == tmp_path / "new" / "map.npz"
    found = _npz(path)
    assert set(found) == {"values", "heatmap", "score", "target", "manifest"}
    for name, tensor in (
        ("values", result.values),
        ("heatmap", result.heatmap()),
        ("score", result.score),
        ("target", result.target),
    ):
        assert found[name].dtype == tensor.numpy().dtype
        assert (found[name] == tensor.numpy()).all()
    manifest = json.loads(str(found["manifest"]))
    assert manifest == {
        "manifest_version": 1,
        "method": "grad_cam",
        "layer": "conv",
        "target": [[2, 0], [1, 1]],
        "labels": [["2 crane", "0 tabby cat"], ["1 lynx", "1 lynx"]],
        "score": Tiny()(x)[[[0], [1]], [[2, 0], [1, 1]]].tolist(),
        "input_size": [7, 8],
        "values_shape": [2, 2, 5, 6],
        "parameters": {"score": "logit", "relu": False},
        "device": "cpu",
        "versions": manifest["versions"],
    }
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["torchviz_cnn"] == tvc.__version__
    assert manifest["versions"]["numpy"] == np.__version__


def test_an_npz_of_occlusion_holds_every_score_unrounded(tmp_path: Path) -> None:
    result = tvc.occlusion(Tiny(), normal(1, 3, 7, 8), 1, window=(3, 4), stride=(3, 2), fill="mean")
    found = _npz(result.save(tmp_path / "map.npz"))
    assert json.loads(str(found["manifest"]))["parameters"] == {
        "score": "logit",
        "window": [3, 4],
        "stride": [3, 2],
        "fill": "mean",
    }
    assert (found["values"] == result.values.numpy()).all()
    assert found["scores"].shape == (1, 3, 3, 3)
    assert (found["scores"] == result.scores.numpy()).all()


@pytest.mark.parametrize("fill", [0.5, np.float32(0.5), [0.1, 0.2, 0.3], torch.zeros(3, 7, 8)])
def test_every_kind_of_fill_can_be_saved(fill: Any, tmp_path: Path) -> None:
    result = tvc.occlusion(Tiny(), normal(1, 3, 7, 8), 1, window=3, fill=fill)
    manifest = json.loads(str(_npz(result.save(tmp_path / "map.npz"))["manifest"]))
    assert manifest["parameters"]["fill"] in (0.5, "array")


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("saliency", {"positive": True}),
        ("guided_backprop", {"positive": True}),
        ("deconvnet", {"positive": False}),
        ("input_x_gradient", {}),
        ("smooth_grad", {"samples": 2, "noise": 0.5, "seed": 7}),
        ("integrated_gradients", {"baseline": 0.5, "steps": 3}),
        ("integrated_gradients", {"baseline": "mean", "steps": 3}),
        ("layer_cam", {"relu": False}),
        ("guided_grad_cam", {}),
        ("score_cam", {"relu": False}),
        ("occlusion", {"window": [3, 4], "stride": [2, 3], "fill": 0.25}),
    ],
)
def test_what_was_asked_for_stands_in_the_manifest(method, options, score) -> None:
    net, x = randomised(plain()), pictures(2)
    found = tvc.METHODS[method](net, x, 1, score=score, **options).manifest()
    assert found["parameters"] == {"score": score, **options}
    assert found["method"] == method


def test_a_baseline_of_pictures_is_an_array_to_the_manifest() -> None:
    net, x = randomised(plain()), pictures(2)
    found = tvc.integrated_gradients(net, x, 1, baseline=torch.zeros_like(x), steps=3)
    assert found.manifest()["parameters"]["baseline"] == "array"


def test_an_npz_of_a_callable_has_no_target(tmp_path: Path) -> None:
    result = tvc.saliency(Tiny(), normal(1, 3, 7, 8), lambda out: out[:, 0])
    found = _npz(result.save(tmp_path / "map.npz"))
    assert "target" not in found
    assert json.loads(str(found["manifest"]))["target"] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_saved_as_the_same_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    result = cells(normal(2, 3, 4).to(dtype), (9, 12))
    found = _npz(result.save(tmp_path / "map.npz"))
    assert (found["values"] == result.values.float().numpy()).all()
    assert (found["heatmap"] == result.heatmap().float().numpy()).all()


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("A.PNG", "PNG")]
)
def test_a_picture_file_holds_the_figure(name: str, kind: str, tmp_path: Path) -> None:
    result = cells(normal(1, 3, 4).abs(), (24, 32))
    path = result.save(tmp_path / name, Image.new("RGB", (64, 48), (0, 255, 0)))
    with Image.open(path) as image:
        assert image.format == kind
        array = np.asarray(image.convert("RGB")).astype(int)
    greenish = (array - [0, 255, 0]).__abs__().max(2) < 12
    assert 0.02 < greenish.mean() < 0.5, "the picture is drawn beside the map"
    alone = result.save(tmp_path / f"alone{path.suffix}")
    with Image.open(alone) as image:
        assert image.width < array.shape[1]


@pytest.mark.parametrize("name", ["map.gif", "map", "map.npy", "png"])
def test_another_suffix_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(tvc.InputError, match=rf"'{name}'.*\.png, \.jpg or \.npz"):
        cells(normal(1, 3, 4), (9, 12)).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_write_that_fails_half_way_leaves_the_folder_as_it_was(
    exists: bool, problem: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "map.npz"
    if exists:
        path.write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"new, but only ha")
        file.flush()
        raise problem

    with pytest.raises(type(problem)):
        write_atomically(path, half)
    assert [p.name for p in tmp_path.iterdir()] == (["map.npz"] if exists else [])
    assert not exists or path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["map.npz", "map.png"])
def test_a_save_that_fails_half_way_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    good = cells(normal(1, 3, 4), (9, 12))
    path = good.save(tmp_path / name)
    before = path.read_bytes()
    if name.endswith(".npz"):  # fails while the manifest is written
        bad = cells(normal(1, 3, 4), (9, 12), parameters={"unwritable": object()})
        with pytest.raises(TypeError):
            bad.save(path)
    else:
        with pytest.raises(tvc.InputError):
            good.save(path, colormap="no such colours")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        cells(normal(1, 3, 4), (9, 12)).save(tmp_path / "file" / "map.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_saved_file_replaces_the_old_one_and_is_as_readable_as_any(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    path = tmp_path / "map.npz"
    path.write_bytes(b"old")
    cells(normal(1, 3, 4), (9, 12)).save(path)
    assert set(_npz(path)) >= {"values", "manifest"}
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.npz", "plain"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_heat_map_of_tiny_half_precision_values_still_reaches_1(dtype: torch.dtype) -> None:
    values = torch.tensor([[[[1e-6, 5e-7], [0.0, 2e-6]]]]).to(dtype)
    result = tvc.PixelAttribution(
        values=values,
        score=torch.zeros(1),
        target=torch.zeros(1, dtype=torch.long),
        method="saliency",
        input_size=(2, 2),
    )
    assert result.heatmap().dtype is dtype
    assert float(result.heatmap().max()) == 1.0


# ---- what is drawn is what was asked for ---------------------------------------------------------


def off_centre() -> CellAttribution:
    """The middle of nine cells is active, and looks at row 6, column 8 of a picture of 24×32."""
    values = torch.zeros(1, 3, 3)
    values[0, 1, 1] = 1.0
    return cells(values, (24, 32), place=Place(centre=(2.0, 3.0), step=(4.0, 5.0)))


def test_pictures_follow_the_alignment() -> None:
    """Stretched, the cell lies in the middle; by its receptive field, where it looks."""
    result = off_centre()
    gray = np.full((24, 32, 3), 100, np.uint8)

    def peak(values: np.ndarray) -> Any:
        ys, xs = np.nonzero(values > 0.98 * values.max())
        return pytest.approx((float(ys.mean()), float(xs.mean())), abs=1.1)

    def light(image: Image.Image) -> np.ndarray:
        return np.asarray(image).astype(int)[:, :, 0]

    for align, place in (("stretch", (11.5, 15.5)), ("receptive_field", (5.5, 7.5))):
        assert peak(light(result.overlay(gray, "gray", align=align))) == place
        assert peak(light(result.masked(gray, 0.02, align=align))) == place
        drawn = np.asarray(result.figure(align=align).axes[0].images[0].get_array())
        assert peak(drawn) == place


def test_a_signed_map_is_laid_over_the_picture_in_two_colours_unless_told_otherwise() -> None:
    values = torch.zeros(1, 1, 4, 6)
    values[..., 0], values[..., 5] = -1.0, 1.0
    result = pixels(values, channels="sum")
    white = np.full((4, 6, 3), 255, np.uint8)
    over = np.asarray(result.overlay(white, alpha=1.0))
    ends = (matplotlib.colormaps["seismic"](np.array([0.0, 0.5, 1.0]))[:, :3] * 255).round()
    assert over[0, 0] == pytest.approx(ends[0], abs=1)
    assert over[0, 5] == pytest.approx(ends[2], abs=1)
    assert over[0, 2] == pytest.approx(ends[1], abs=3)
    told = np.asarray(result.overlay(white, "viridis", alpha=1.0))
    assert not np.array_equal(told, over)


NET = randomised(plain())
SIGNED = {"input_x_gradient", "integrated_gradients", "occlusion"}


@pytest.mark.parametrize("name", tvc.METHODS)
def test_the_colours_are_the_methods_and_not_those_of_the_signs_it_happens_to_find(
    name: str,
) -> None:
    """Occlusion's map of one picture may be positive everywhere, and of the next not."""
    found = tvc.METHODS[name](NET, pictures(1, 3, 20, 24), 1)
    above = replace(found, values=found.values.abs() + 0.1)
    above.values[0, ..., -1, -1] += 1.0
    colormap = matplotlib.colormaps["seismic" if name in SIGNED else "jet"]
    over = np.asarray(above.overlay(np.zeros((20, 24, 3), np.uint8), alpha=1.0)).astype(int)
    # Only shades of one side: seismic's upper half, or all of jet's.
    table = (colormap(np.linspace(0.5 if name in SIGNED else 0, 1, 512))[:, :3] * 255).round()
    away = np.abs(over.reshape(-1, 1, 3) - table).max(2).min(1)
    assert away.max() <= 2
    figure = above.figure()
    bars = [axis for axis in figure.axes if axis.get_ylabel() == above.unit]
    low, high = bars[0].get_ylim()
    assert low == (-high if name in SIGNED else 0)
    assert figure.axes[0].images[0].get_cmap().name == colormap.name


def test_a_class_activation_without_its_relu_may_have_both_signs() -> None:
    given = pictures(1, 3, 20, 24)
    assert tvc.grad_cam(NET, given, 1, relu=False).signed
    assert not tvc.grad_cam(NET, given, 1).signed


@pytest.mark.parametrize("kind", ["pixels", "cells", "windows"])
def test_an_unknown_alignment_is_refused_by_every_result(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    method = {"pixels": "saliency", "cells": "grad_cam", "windows": "occlusion"}[kind]
    result = tvc.METHODS[method](net, torch.rand(1, 1, 6, 6, dtype=torch.float64), 0)
    with pytest.raises(tvc.InputError, match="align must be stretch or receptive_field"):
        result.heatmap("middle")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_without_negative_cells_has_no_negative_pixel(dtype):
    """One at -1e-10, a rounding, would give the picture the colours of a signed map."""
    values = (0.01 * normal(60, 12, 12)).relu().to(dtype)
    values[:, 0, 0] += 0.003
    result = cells(values, (28, 30))
    assert float(result.maps().min()) == 0
    assert float(result.heatmap().min()) == 0
    ground = Image.new("RGB", (30, 28))
    for index in range(0, 60, 7):
        drawn = np.asarray(result.overlay(ground, index=index, alpha=1.0))
        heat = result.one_heatmap(index)
        assert np.abs(drawn[heat == 0].astype(int) - [0, 0, 128]).max() <= 1  # jet's first colour


def test_a_cell_that_is_nan_is_seen_where_it_is_and_nowhere_else():
    values = normal(2, 4, 4).abs()
    values[0, 0, 0] = torch.nan
    values[1, 3, 3] = torch.inf
    grown = cells(values, (16, 16)).maps()
    reach = torch.zeros(16, 16, dtype=torch.bool)
    reach[:6, :6] = True
    assert grown[0][~reach].isfinite().all()
    assert grown[0][:2, :2].isnan().all()
    assert grown[1][~reach.flip(0, 1)].isfinite().all()


# ---- many pictures -------------------------------------------------------------------------------

FROM_THE_PICTURE = {
    "saliency": {"positive": True},
    "input_x_gradient": {},
    "guided_backprop": {},
    "deconvnet": {},
    "guided_grad_cam": {"layer": "conv2"},
}


def watched() -> tuple[nn.Module, list[int]]:
    """A network, and how many pictures it was shown at a time."""
    net, sizes = randomised(plain()), list[int]()
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return net, sizes


@pytest.mark.parametrize("target", [None, 2, [1, 0, 2, 3, 1], [[0, 1]] * 5])
@pytest.mark.parametrize("method", FROM_THE_PICTURE)
def test_pictures_may_go_a_few_at_a_time(method: str, target: Any) -> None:
    (net, sizes), x = watched(), pictures(5)
    options = FROM_THE_PICTURE[method]
    whole = tvc.METHODS[method](net, x, target, batch_size=5, **options)
    assert sizes == [5]
    sizes.clear()
    found = tvc.METHODS[method](net, x, target, batch_size=2, **options)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(found.values, whole.values, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.score, whole.score, rtol=1e-12, atol=1e-14)
    assert found.target is not None
    assert torch.equal(found.target, whole.target)
    assert found.manifest().keys() == whole.manifest().keys()


@pytest.mark.parametrize("method", FROM_THE_PICTURE)
def test_a_callable_is_given_all_pictures_at_once(method: str) -> None:
    (net, sizes), x = watched(), pictures(5)

    def margin(scores: Tensor) -> Tensor:
        return scores[:, 0] - scores.mean()  # of all pictures

    options = FROM_THE_PICTURE[method]
    found = tvc.METHODS[method](net, x, margin, batch_size=2, **options)
    assert sizes == [5]
    assert found.target is None
    tvc.METHODS[method](net, x, margin, **options)
    assert sizes == [5, 5]


def test_by_default_maps_stay_below_what_the_allocator_keeps(monkeypatch: Any) -> None:
    (net, sizes), x = watched(), pictures(9)
    shape = net.conv1(x).shape
    tvc.saliency(net, x, 1)
    assert sizes[-1] == 9
    monkeypatch.setattr("torchviz_cnn.methods.passes._KEPT", 5 * 8 * shape[1:].numel())
    sizes.clear()
    found = tvc.saliency(net, x, 1)
    assert sizes == [5, 4]
    torch.testing.assert_close(found.values, tvc.saliency(net, x, 1, batch_size=9).values)
    monkeypatch.setattr("torchviz_cnn.methods.passes._KEPT", 1)
    sizes.clear()
    tvc.saliency(net, x[:8], 1)
    tvc.saliency(net, x[:4], 1)
    assert sizes == [4, 4, 4]


def test_it_is_said_once_that_few_activations_are_relus() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Tanh(), nn.ELU(), nn.Flatten())
    net.append(nn.Linear(4 * 12 * 8, 5))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tvc.guided_backprop(net.double(), pictures(4), batch_size=1)
    assert len([w for w in said if "only 33% of the activation functions" in str(w.message)]) == 1


def test_no_pictures_at_a_time_are_refused() -> None:
    with pytest.raises(tvc.InputError, match="batch_size must be a whole number of at least 1"):
        tvc.saliency(randomised(plain()), pictures(2), batch_size=0)
