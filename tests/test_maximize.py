"""Activation maximisation: its parts against slow twins, its pictures by what must be true of them."""

import math
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import functional as vision

import torchviz_cnn as tvc
from tests.networks import (
    BackwardTripwire,
    ChannelsLast,
    Gray,
    Repeated,
    TrippedError,
    Tripwire,
    plain,
    randomised,
    with_part,
)
from tests.test_promises import SETTINGS, nothing_changes, residual
from torchviz_cnn import objectives
from torchviz_cnn.methods import canvas
from torchviz_cnn.methods.ascent import Recipe, ascend, evaluator, uphill
from torchviz_cnn.preprocess import Preprocess, colors_of

SIZE = (3, 14, 10)
QUICK = {"input_size": SIZE, "steps": 6, "preprocess": "rescale"}
STILL = {"jitter": 0, "scale": (1.0, 1.0), "rotate": 0.0}
FREE = {"l2": 0.0, "total_variation": 0.0}
DATA = os.environ.get("TORCHVIZ_CNN_DATA")


def noise(*shape, seed=3):
    return np.random.default_rng(seed).random(shape)


# ---- the picture's numbers ------------------------------------------------------------------------


def slow_picture(spectrum, decay):
    """A half spectrum ``(H, W // 2 + 1)`` as a picture, cosine by cosine."""
    height, half = spectrum.shape
    width = slow_picture.width
    ys, xs = np.mgrid[:height, :width]
    picture = np.zeros((height, width))
    for u in range(height):
        for v in range(half):
            fy = u / height if u <= (height - 1) // 2 else u / height - 1
            frequency = max(math.hypot(fy, v / width), 1 / max(height, width))
            weight = math.sqrt(height * width) / frequency**decay / 4
            waves = np.exp(2j * np.pi * (u * ys / height + v * xs / width))
            # All but the first and, of an even width, the last column stand for two waves.
            times = 1 if v == 0 or 2 * v == width else 2
            picture += times * (spectrum[u, v] * weight * waves).real
    return picture / (height * width)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (7, 6)])
@pytest.mark.parametrize("decay", [1.0, 1.5])
def test_a_spectrum_becomes_the_picture_its_waves_add_up_to(size, decay):
    board = canvas.Canvas(
        (3, *size),
        [5],
        "fourier",
        decay=decay,
        middle=torch.tensor([0.5, 0.3, 0.6]),
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    board.numbers = board.numbers * 40  # so that the sigmoid bends
    slow_picture.width = size[1]
    spectra = torch.view_as_complex(board.numbers.detach()).numpy()[0]
    plain_colors = np.stack([slow_picture(each, decay) for each in spectra])
    # Olah et al. 2017: the root of the colours' covariance over its longest column.
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    root = root / max(math.sqrt(sum(row[k] ** 2 for row in root)) for k in range(3))
    mixed = np.zeros((3, *size))
    for c in range(3):
        for k in range(3):
            mixed[c] += root[c, k] * plain_colors[k]
        middle = [0.5, 0.3, 0.6][c]
        mixed[c] += math.log(middle / (1 - middle))
    np.testing.assert_allclose(board.colors()[0].detach(), 1 / (1 + np.exp(-mixed)), atol=1e-12)


def test_independent_numbers_become_colours_that_go_together_as_in_photographs():
    """Light and dark vary most, and channels near in the spectrum are alike."""
    mixing = canvas.color_mixing(3)
    covariance = mixing @ mixing.T
    spread, directions = torch.linalg.eigh(covariance)
    gray = directions[:, -1] / directions[:, -1].sum()
    assert spread[-1] / spread.sum() > 0.85
    assert (gray - 1 / 3).abs().max() < 0.02
    assert covariance[0, 1] > covariance[0, 2]
    assert torch.equal(canvas.color_mixing(1), torch.eye(1, dtype=torch.float64))


def test_pixels_start_around_the_middle_and_stay_colours():
    make = partial(
        canvas.Canvas,
        (1, 40, 50),
        parametrization="pixels",
        decay=1.0,
        middle=torch.tensor([0.2]),
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    board = make([3])
    start = board.colors()
    assert abs(float(start.detach().mean()) - 0.2) < 1e-3
    assert 0.005 < float(start.detach().std()) < 0.02
    assert torch.equal(make([4, 3]).colors()[1:], start)
    with torch.no_grad():
        board.numbers += torch.linspace(-2, 2, 50, dtype=torch.float64)
    board.clip()
    assert (board.colors().min(), board.colors().max()) == (0, 1)


def slow_variation(picture, power):
    """Mahendran, Vedaldi 2015, section 3: over pixels that have a right and a lower neighbour."""
    total = 0.0
    for plane in picture:
        for y in range(plane.shape[0] - 1):
            for x in range(plane.shape[1] - 1):
                across, down = plane[y, x + 1] - plane[y, x], plane[y + 1, x] - plane[y, x]
                total += (across**2 + down**2) ** (power / 2)
    return total / picture.size


@pytest.mark.parametrize("power", [2.0, 1.0])
def test_total_variation_is_the_sum_over_neighbours(power):
    pictures = noise(2, 3, 5, 7)
    found = canvas.total_variation(torch.tensor(pictures), power)
    np.testing.assert_allclose(found, [slow_variation(p, power) for p in pictures], rtol=1e-5)


@pytest.mark.parametrize("power", [2, 6])
def test_norms_are_means_of_powers(power):
    pictures, origin = noise(2, 3, 5, 7), [0.5, 0.1, 0.9]
    wanted = [
        np.mean([abs(v - origin[c]) ** power for c in range(3) for v in picture[c].ravel()])
        for picture in pictures
    ]
    found = canvas.p_norm(torch.tensor(pictures), torch.tensor(origin).double(), power)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


# ---- moving it ------------------------------------------------------------------------------------


def slow_move(picture, move):
    """Bilinear, each pixel from where it was: the border mirrored, edge pixels repeated."""
    height, width = picture.shape
    wide = np.pad(picture, 40, mode="symmetric")
    out = np.zeros_like(picture)
    angle = math.radians(move.degrees)
    for row in range(height):
        for column in range(width):
            # From the middle, y upwards, before the shift and the turn.
            x = column - move.right - (width - 1) / 2
            y = -(row - move.down - (height - 1) / 2)
            turned = complex(x, y) * complex(math.cos(angle), -math.sin(angle)) / move.factor
            y0, x0 = -turned.imag + (height - 1) / 2 + 40, turned.real + (width - 1) / 2 + 40
            top, left = math.floor(y0), math.floor(x0)
            fy, fx = y0 - top, x0 - left
            out[row, column] = (
                (1 - fy) * (1 - fx) * wide[top, left]
                + (1 - fy) * fx * wide[top, left + 1]
                + fy * (1 - fx) * wide[top + 1, left]
                + fy * fx * wide[top + 1, left + 1]
            )
    return out


MOVES = [
    canvas.Move(down=2, right=-3),
    canvas.Move(factor=1.3),
    canvas.Move(degrees=25.0),
    canvas.Move(down=-1, right=4, factor=0.8, degrees=-12.0),
]


@pytest.mark.parametrize("move", MOVES)
def test_moves_take_each_pixel_where_it_was(move):
    pictures = noise(2, 1, 9, 13)
    found = canvas.moved(torch.tensor(pictures), [canvas.Move(), move])
    np.testing.assert_allclose(found[0], pictures[0], atol=1e-12)
    np.testing.assert_allclose(found[1, 0], slow_move(pictures[1, 0], move), atol=1e-9)


def test_a_shift_is_a_shift_and_a_quarter_turn_a_quarter_turn():
    picture = noise(1, 1, 8, 8)
    shifted = canvas.moved(torch.tensor(picture), [canvas.Move(down=2, right=-1)])[0, 0]
    np.testing.assert_allclose(shifted[2:, :-1], picture[0, 0, :-2, 1:], atol=1e-12)
    turned = canvas.moved(torch.tensor(picture), [canvas.Move(degrees=90.0)])[0, 0]
    np.testing.assert_allclose(turned, np.rot90(picture[0, 0]), atol=1e-9)


def test_moves_are_drawn_within_their_bounds_and_reach_them():
    moves = canvas.Moves(jitter=2, scale=(0.5, 1.5), rotate=30.0)
    generator = torch.Generator().manual_seed(0)
    drawn = [moves.draw(generator) for _ in range(400)]
    assert {each.down for each in drawn} == {each.right for each in drawn} == {-2, -1, 0, 1, 2}
    factors, degrees = [each.factor for each in drawn], [each.degrees for each in drawn]
    # 400 uniform draws all miss the last fiftieth of their range with probability 0.98⁴⁰⁰ = 0.0003.
    assert 0.5 <= min(factors) < 0.52
    assert 1.48 < max(factors) <= 1.5
    assert -30 <= min(degrees) < -29
    assert 29 < max(degrees) <= 30
    assert canvas.Moves().none
    assert not moves.none


# ---- colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rescale", "tf", "torch", "caffe", "none"])
def test_colours_become_inputs_as_pictures_do(mode):
    """The preparation of a picture is the oracle; the same is found out of a mere function."""
    prepare = Preprocess((6, 7))
    from torchviz_cnn.preprocess import preprocess_by_name

    prepare = preprocess_by_name(mode, (3, 6, 7))
    picture = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    colors = torch.tensor(picture).permute(2, 0, 1)[None].double() / 255
    for exact in (colors_of(prepare, (3, 6, 7)), colors_of(lambda p: prepare(p), (3, 6, 7))):
        torch.testing.assert_close(
            exact.inputs(colors), prepare(picture).double(), rtol=1e-4, atol=1e-3
        )
        back = exact.inputs(exact.of_zero()[None, :, None, None])
        if mode in ("torch", "caffe", "tf"):
            assert back.abs().max() < 1e-3


def test_gray_networks_get_one_colour():
    colors = colors_of("rescale", (28, 28))
    assert (colors.count, colors.channel_axis) == (1, False)
    assert torch.equal(colors.inputs(torch.full((2, 1, 3, 4), 0.25)), torch.full((2, 3, 4), 0.25))
    found_out = colors_of(lambda p: torch.tensor(np.array(p.convert("L")))[None] / 255, (28, 28))
    assert (found_out.count, found_out.channel_axis) == (1, False)
    assert found_out.matrix.item() == pytest.approx(1)


def test_a_preparation_is_tried_on_a_picture_of_the_networks_size():
    def without_resizing(picture):
        assert picture.size == (12, 10)
        return vision.pil_to_tensor(picture)[None] / 255

    colors = colors_of(without_resizing, (3, 10, 12))
    torch.testing.assert_close(colors.matrix, torch.eye(3).double())
    torch.testing.assert_close(colors.offset, torch.zeros(3).double())


def test_a_preparation_that_makes_other_channels_than_the_network_takes_is_refused():
    with pytest.raises(tvc.InputError, match="does not make inputs of its size"):
        colors_of(lambda p: vision.pil_to_tensor(p.convert("L"))[None] / 255, (3, 12, 12))


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(1, [0.0], [1.0]), (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
)
def test_a_bare_network_is_taken_for_one_of_gray_or_of_torchvisions_pictures(channels, mean, std):
    net, size = randomised(plain(channels)), (channels, 14, 10)
    found = tvc.maximize(net, target=1, steps=2, input_size=size)
    low, spread = (torch.tensor(each).double()[:, None, None] for each in (mean, std))
    assert found.colors.shape == found.inputs.shape
    torch.testing.assert_close(found.inputs, (found.colors - low) / spread, rtol=1e-6, atol=1e-6)


def test_a_preparation_that_bends_colours_is_refused():
    with pytest.raises(tvc.InputError, match="name one with preprocess="):
        colors_of(lambda p: Preprocess((6, 7))(p) ** 2, (3, 6, 7))


def first_channel(weights):
    """The score of class 0 is a weighted sum of the mean of each input channel."""
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    with torch.no_grad():
        net[0].weight[:] = 0
        net[0].weight[0] = torch.tensor(weights).double()[:, None, None]
    return net


@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_pictures_are_shown_in_true_colours(parametrization):
    """A network for BGR inputs that likes its first channel, likes blue."""
    model = tvc.Model(first_channel([1.0, 0, 0]), colors_preprocess("caffe"), (3, 8, 8))
    result = tvc.maximize(model, target=0, steps=80, parametrization=parametrization, **FREE)
    red, green, blue = np.asarray(result.image).reshape(-1, 3).mean(0)
    # Colours go together, so in the spectrum the others follow at first; they are not asked for.
    assert blue > 180
    assert blue > max(red, green) + 15
    assert float(result.inputs[0, 0].mean()) == pytest.approx(blue - 103.939, abs=0.5)


def colors_preprocess(mode):
    from torchviz_cnn.preprocess import preprocess_by_name

    return preprocess_by_name(mode, (3, 8, 8))


# ---- the ascent -----------------------------------------------------------------------------------


def recipe(**options):
    usual = {
        "steps": 5,
        "parametrization": "fourier",
        "decay": 1.0,
        "learning_rate": 0.05,
        "moves": canvas.Moves(),
        "l2": 0.0,
        "lp": 0.0,
        "power": 6.0,
        "total_variation": 0.0,
        "origin": torch.full((3,), 0.5, dtype=torch.float64),
    }
    return Recipe(**(usual | options))


def board_for(parametrization="fourier", seeds=(0,), size=SIZE):
    return canvas.Canvas(
        size,
        list(seeds),
        parametrization,
        decay=1.0,
        middle=torch.full((3,), 0.5),
        device=torch.device("cpu"),
        dtype=torch.float64,
    )


OBJECTIVES = {
    "channel": objectives.channel("conv2", 3),
    "unit": objectives.channel("conv1", 2, (4, 5)),
    "dense unit": objectives.channel("fc", 1),
    "class": objectives.target(2),
    "callable": objectives.score(lambda out: out[:, 0] * out[:, 1]),
    "sum and difference": objectives.channel("conv2", 3)
    - 0.5 * objectives.channel("conv1", 1)
    + objectives.target(0) / 4,
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_the_direction_is_the_slope_measured_by_finite_differences(name, parametrization):
    net = randomised(plain())
    wanted = OBJECTIVES[name].bound(net)
    board, colors = board_for(parametrization), colors_of("torch", SIZE)
    move = canvas.Move(1, -2, 1.1, 7.0)

    def value(numbers):
        board.numbers = numbers
        shown = canvas.moved(board.colors(), [move])
        return evaluate(colors.inputs(shown), [wanted])

    with evaluator(net, [wanted]) as evaluate:
        numbers = board.numbers.detach().clone().requires_grad_()
        with torch.enable_grad():
            slope, silent = uphill(value(numbers), numbers, lambda: value(numbers))
        assert not silent.any()
        picked = np.random.default_rng(1).choice(numbers.numel(), 12, replace=False)
        for place in picked:
            step = torch.zeros(numbers.numel(), dtype=torch.float64)
            step[place] = 1e-6
            step = step.view_as(numbers)
            with torch.no_grad():
                change = value(numbers + step) - value(numbers - step)
            assert float(change) / 2e-6 == pytest.approx(float(slope.flatten()[place]), abs=1e-7)


def by_hand(net, wanted, own):
    """What an objective is of a network's own output, through hooks of the test's."""
    seen = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, out.clone())
        )
        for name in ("conv1", "conv2")
    ]
    with torch.no_grad():
        out = net(own.clone())
    for handle in handles:
        handle.remove()
    return {
        "channel": seen["conv2"][:, 3].mean((1, 2)),
        "unit": seen["conv1"][:, 2, 4, 5],
        "dense unit": out[:, 1],
        "class": out[:, 2],
        "callable": out[:, 0] * out[:, 1],
        "sum and difference": seen["conv2"][:, 3].mean((1, 2))
        - 0.5 * seen["conv1"][:, 1].mean((1, 2))
        + out[:, 0] / 4,
    }[wanted]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_kind_of_objective_grows_and_is_told_as_it_is(name):
    net = randomised(plain())
    result = tvc.maximize(net, OBJECTIVES[name], **(QUICK | STILL | FREE | {"steps": 30}))
    assert result.history.shape == (1, 30)
    assert result.value[0] > result.history[0, 0] + 0.05
    torch.testing.assert_close(result.value, by_hand(net, name, result.inputs))
    assert (result.colors >= 0).all()
    assert (result.colors <= 1).all()


@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_of_a_linear_network_the_best_picture_is_found(parametrization):
    """Each pixel black or white by the sign of its weight: there is nothing better."""
    weight = torch.tensor(noise(1, 3 * 4 * 6) - 0.5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 2, bias=False)).double()
    net[1].weight.data = torch.cat([weight, -weight])
    result = tvc.maximize(
        net,
        target=[0, 1],
        input_size=(3, 4, 6),
        preprocess="rescale",
        steps=300,
        parametrization=parametrization,
        decay=1.0,
        learning_rate=0.03 if parametrization == "fourier" else 0.05,
        **STILL,
        **FREE,
    )
    best = (weight > 0).double().view(3, 4, 6)
    for found, wanted in ((result.colors[0], best), (result.colors[1], 1 - best)):
        if parametrization == "pixels":
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        else:  # a sigmoid is long on its way back from the wrong end
            assert ((found - wanted).abs() < 0.1).double().mean() > 0.6
    assert result.value[0] > 0.75 * weight.clamp(min=0).sum()


def test_a_penalty_pulls_to_where_the_logarithm_says():
    """``log(w·x) − λ mean|x − o|²`` of one pixel's colours has its top at a known place."""
    net = first_channel([0.0, 1.0, 0.0])  # a = x, mean over 3 colours of |x − o|² = (x − o)²/3
    result = tvc.maximize(
        net,
        target=0,
        input_size=(3, 4, 4),
        preprocess="rescale",
        steps=800,
        learning_rate=0.001,
        parametrization="pixels",
        l2=30.0,
        total_variation=0.0,
        **STILL,
    )
    # 1/x = (2 λ/3) (x − 1/2)  →  20 x² − 10 x − 1 = 0
    top = (10 + math.sqrt(180)) / 40
    assert float(result.colors[0, 1].mean()) == pytest.approx(top, abs=2e-3)
    torch.testing.assert_close(
        result.colors[0, ::2], torch.full((2, 4, 4), 0.5).double(), atol=2e-3, rtol=0
    )


def test_total_variation_and_high_powers_do_what_they_are_for():
    net = randomised(plain())
    ask = partial(tvc.maximize, net, target=1, **(QUICK | STILL | {"steps": 60, "l2": 0.0}))
    rough, smooth = (ask(total_variation=weight) for weight in (0.0, 300.0))
    assert canvas.total_variation(smooth.colors) < 0.2 * canvas.total_variation(rough.colors)
    wild, tame = (ask(total_variation=0.0, lp=weight) for weight in (0.0, 1e4))
    assert (tame.colors - 0.5).abs().max() < 0.8 * (wild.colors - 0.5).abs().max()


# ---- promises -------------------------------------------------------------------------------------


def assert_same(found, wanted):
    for name in ("colors", "inputs", "history", "value"):
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=1e-7, atol=1e-9, check_device=False
        )


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize(
    "wish", [{"target": [1, 2]}, {"layer": "conv2", "channel": [4, 1]}], ids=["class", "channel"]
)
def test_the_network_comes_back_as_it_was_whatever_was_around(setting, wish):
    found = setting(residual())
    with found.around(), nothing_changes(found.net):
        result = tvc.maximize(found.model, **wish, **QUICK)
    assert_same(result, tvc.maximize(residual(), **wish, **QUICK))
    assert not any(
        tensor.requires_grad or tensor.is_inference()
        for tensor in (result.colors, result.inputs, result.history, result.value)
    )


@pytest.mark.parametrize("part", [Tripwire(at=3), BackwardTripwire()], ids=["forward", "backward"])
def test_after_an_exception_nothing_has_changed(part):
    net = randomised(with_part(part))
    part.runs = []
    with nothing_changes(net), pytest.raises(TrippedError):
        tvc.maximize(net, target=1, **QUICK)


@pytest.mark.parametrize("wish", [{"target": [1, 2, 1]}, {"layer": "conv2", "channel": [4, 1, 0]}])
@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_a_batch_equals_its_pictures_one_by_one(wish, parametrization):
    ask = partial(tvc.maximize, residual(), parametrization=parametrization, **QUICK)
    together = ask(**wish, seed=[0, 5, 9])
    assert_same(ask(**wish, seed=[0, 5, 9], batch_size=2), together)
    for index, seed in enumerate((0, 5, 9)):
        one = {key: each[index] if isinstance(each, list) else each for key, each in wish.items()}
        single = ask(**one, seed=seed)
        assert single.labels == together.labels[index : index + 1]
        for name in ("colors", "inputs", "history", "value"):
            torch.testing.assert_close(getattr(single, name)[0], getattr(together, name)[index])


def test_a_seed_makes_the_picture():
    ask = partial(tvc.maximize, residual(), target=1, **QUICK)
    first = ask(seed=3)
    assert torch.equal(first.colors, ask(seed=3).colors)
    assert (first.colors - ask(seed=4).colors).abs().max() > 1e-3


def test_a_seed_moves_the_picture_too(monkeypatch):
    """From one and the same start, other moves make another picture."""
    monkeypatch.setattr(canvas, "_noise", lambda shape, _seed: torch.ones(shape).double())
    ask = partial(tvc.maximize, residual(), target=[1, 1], seed=[0, 1], **(QUICK | FREE))
    assert (ask().colors[0] - ask().colors[1]).abs().max() > 1e-3
    still = ask(**STILL).colors
    torch.testing.assert_close(still[0], still[1])


def test_what_comes_after_the_layer_does_not_run():
    counts = {}
    net = randomised(plain())
    for name in ("conv1", "conv2", "fc"):
        net.get_submodule(name).register_forward_hook(
            lambda *_, name=name: counts.__setitem__(name, counts.get(name, 0) + 1)
        )
    tvc.maximize(net, layer="conv1", channel=0, **QUICK)
    assert counts == {"conv1": 7}  # six steps, and the finished picture
    tvc.maximize(net, objectives.channel("conv1", 0) + objectives.channel("conv2", 0), **QUICK)
    assert counts == {"conv1": 14, "conv2": 7}
    tvc.maximize(net, target=0, **QUICK)
    assert counts == {"conv1": 21, "conv2": 14, "fc": 7}


class Saved:
    """A tensor that some graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize("wish", [{"target": 1}, {"layer": "conv2", "channel": 1}])
def test_no_steps_graph_is_there_any_more_when_the_next_step_begins(wish):
    net, alive, found = randomised(plain()), WeakSet(), []

    def keep(tensor):
        saved = Saved(tensor.detach())  # else an output would keep its own graph
        alive.add(saved)
        return saved

    # Before the network there are only the moves and the colours, which are made anew.
    net.conv1.register_forward_pre_hook(lambda *_: found.append(len(alive)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor):
        tvc.maximize(net, **wish, **QUICK)
    assert found[0] > 0
    assert found[1:6] == [found[0]] * 5


def test_a_later_run_of_a_layer_is_meant_by_its_number():
    net = randomised(Repeated())
    first, last = (tvc.maximize(net, layer=name, channel=2, **QUICK) for name in ("conv", "conv@2"))
    assert last.labels == ("conv@2 2",)
    assert not torch.allclose(first.value, last.value)
    with tvc.capture(net, "conv@2") as seen:
        net(last.inputs)
    torch.testing.assert_close(seen["conv@2"][:, 2].mean((1, 2)), last.value)


@pytest.mark.parametrize(("cell", "place"), [(None, ...), ((5, 1), (5, 1)), ("middle", (3, 2))])
def test_channels_that_come_last_are_still_the_channels(cell, place):
    """The layer puts out 7×5 places of 12 channels, and in this order."""
    net = randomised(ChannelsLast())
    result = tvc.maximize(net, layer="mix", channel=[2, 11], cell=cell, **QUICK)
    with torch.no_grad(), tvc.capture(net, "mix") as seen:
        net(result.inputs)
    assert seen["mix"].shape == (2, 7, 5, 12)
    for picture, channel in enumerate((2, 11)):
        wanted = seen["mix"][picture, ..., channel][place].mean()
        torch.testing.assert_close(result.value[picture], wanted)
    with pytest.raises(tvc.InputError, match="the layer 'mix' has 12, from 0"):
        tvc.maximize(net, layer="mix", channel=12, **QUICK)


def test_precision_and_device_stay(device):
    # The lazy device cannot look at a picture that is moved: it has no view that affine_grid takes.
    options = QUICK | (STILL if device.type == "lazy" else {})
    wanted = tvc.maximize(residual(), target=1, **options)
    assert wanted.colors.dtype == wanted.value.dtype == torch.float64
    found = tvc.maximize(residual().to(device), target=1, **options)
    assert found.inputs.device.type == device.type
    assert_same(found, wanted)
    single = tvc.maximize(residual().float(), target=1, **options)
    assert single.inputs.dtype == torch.float32
    torch.testing.assert_close(single.colors.double(), wanted.colors, rtol=0, atol=1e-3)


def test_a_network_of_half_precision_is_asked_with_a_finer_picture():
    wanted = tvc.maximize(residual().float(), target=1, **QUICK)
    found = tvc.maximize(residual().bfloat16(), target=1, **QUICK)
    assert (found.colors.dtype, found.inputs.dtype) == (torch.float32, torch.bfloat16)
    assert (found.colors - wanted.colors).abs().max() < 0.15
    assert found.image.size == (10, 14)


def test_a_network_without_a_channel_axis_is_asked_like_the_one_inside_it():
    net = randomised(Gray())
    options = QUICK | {"target": 1}
    found = tvc.maximize(net, **(options | {"input_size": (14, 10)}))
    wanted = tvc.maximize(net.net, **(options | {"input_size": (1, 14, 10)}))
    assert found.inputs.shape == (1, 14, 10)
    torch.testing.assert_close(found.inputs, wanted.inputs[:, 0])
    assert found.image.mode == "RGB"


def test_inputs_that_are_no_pictures_are_optimised_and_not_drawn():
    net = randomised(plain(channels=5))
    result = tvc.maximize(net, target=1, input_size=(5, 14, 10), steps=20)
    assert result.inputs.shape == (1, 5, 14, 10)
    assert result.value[0] > result.history[0, 0]
    with pytest.raises(tvc.InputError, match="no pictures"):
        _ = result.image


def test_the_score_is_that_before_the_softmax():
    net = nn.Sequential(randomised(plain()), nn.Softmax(1))
    found = tvc.maximize(net, target=1, **QUICK)
    assert_same(found, tvc.maximize(net[0], target=1, **QUICK))
    probability = tvc.maximize(net, target=1, score="probability", **QUICK)
    assert 0 < float(probability.value[0]) < 1


# ---- closed ReLUs, NaN, nothing at all ------------------------------------------------------------


def closed(depth):
    """The last convolution answers to gray with ``-depth``, and a ReLU follows it."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(noise(4, 3, 3, 3)))
        net[0].weight -= net[0].weight.mean((1, 2, 3), keepdim=True)
        net[0].bias = nn.Parameter(torch.full((4,), -depth, dtype=torch.float64))
    return net


def test_a_class_behind_a_closed_relu_is_reached_and_it_is_said():
    options = QUICK | {"steps": 60}
    with pytest.warns(UserWarning, match="closed ReLU") as told:
        result = tvc.maximize(closed(0.3), target=[1, 2], **options)
    assert (result.history[:, 0] == 0).all()
    assert (result.value > 0.01).all()
    assert [str(each.message) for each in told] == list(result.notes)
    assert re.match(
        r"class 1 \(for \d+ steps\), class 2 \(for \d+ steps\): .* closed ReLU", result.notes[0]
    )
    open_net = tvc.maximize(closed(-5.0), target=1, **options)
    assert open_net.notes == ()


class Clamped(nn.Module):
    def forward(self, x):
        return x.clamp(min=0)


def test_a_clamp_that_is_a_relu_is_opened_like_one():
    net = closed(0.3)
    options = QUICK | {"steps": 60}
    with pytest.warns(UserWarning, match="closed ReLU"):
        wanted = tvc.maximize(net, target=1, **options)
    net[1] = Clamped()
    with pytest.warns(UserWarning, match="closed ReLU"):
        found = tvc.maximize(net, target=1, **options)
    assert float(found.value) > 0.01
    assert_same(found, wanted)


def test_redirected_gradients_are_the_ordinary_ones_where_relus_are_open():
    """The rule is another only where nothing came through."""
    from torchviz_cnn.methods.relu import ReLURule

    x = torch.tensor([-2.0, -1.0, 1.0, 2.0], requires_grad=True)
    y = (x.relu() * torch.tensor([3.0, -3.0, 3.0, -3.0])).sum()
    with ReLURule("redirected"):
        (gradient,) = torch.autograd.grad(y, x)
    assert gradient.tolist() == [3.0, 0.0, 3.0, -3.0]


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        return self.net(x.detach())


def test_nothing_to_climb_is_said():
    with pytest.raises(tvc.InputError, match="class 1 has no gradient at the picture it starts"):
        tvc.maximize(randomised(Detached()), target=1, **QUICK)


def test_nan_is_said_with_the_step():
    net = randomised(plain())
    net.conv2.weight.data[3] = torch.nan
    with pytest.raises(tvc.InputError, match=r"conv2 0: .*at step 1"):
        tvc.maximize(net, layer="conv2", channel=[0, 3], **QUICK)


BAD = [
    ({}, "nothing was asked for"),
    ({"layer": "conv1"}, "give both"),
    ({"channel": 1}, "give both"),
    ({"layer": "conv1", "channel": 1, "target": 1}, "too much was asked for"),
    ({"target": 1, "cell": (0, 0)}, "a cell is one of a channel"),
    ({"layer": "conv1", "channel": []}, "list of what to maximise is empty"),
    ({"layer": "conv9", "channel": 0}, "or 'conv1'"),
    ({"layer": "conv1", "channel": 6}, "there is no channel 6: the layer 'conv1' has 6"),
    ({"layer": "conv1", "channel": "a"}, "given by its index"),
    ({"layer": "conv1", "channel": 0, "cell": (14, 0)}, "maps of 'conv1' are 14×10"),
    ({"layer": "conv1", "channel": 0, "cell": "left"}, "or 'middle'"),
    ({"layer": "fc", "channel": 0, "cell": "middle"}, "have no cell"),
    ({"target": 4}, "out of range"),
    ({"target": "cat"}, "class names of this network are not known"),
    ({"objective": "conv1"}, "from torchviz_cnn.objectives"),
    ({"objective": lambda out: out}, "must return one score an image"),
    ({"target": 1, "steps": 0}, "steps must be"),
    ({"target": 1, "steps": "8"}, "steps must be"),
    ({"target": 1, "learning_rate": 0.0}, "learning_rate must be above 0"),
    ({"target": 1, "learning_rate": "x"}, "learning_rate must be above 0, not 'x'"),
    ({"target": 1, "decay": "x"}, "decay must lie"),
    ({"target": 1, "decay": -0.1}, "decay must lie between 0 and 4, not -0.1"),
    ({"target": 1, "decay": 4.1}, "decay must lie between 0 and 4, not 4.1"),
    ({"target": 1, "power": None}, "power must be"),
    ({"target": 1, "power": 1}, "power must be above 1, not 1"),
    ({"target": 1, "lp": "x"}, "lp must be"),
    ({"target": 1, "total_variation": math.nan}, "total_variation must be"),
    ({"target": 1, "parametrization": "wavelets"}, "must be fourier or pixels"),
    ({"target": 1, "jitter": -1}, "jitter is"),
    ({"target": 1, "jitter": math.nan}, "jitter is"),
    ({"target": 1, "jitter": 1.5}, "jitter is"),
    ({"target": 1, "jitter": "x"}, "jitter is"),
    ({"target": 1, "rotate": None}, "rotate is"),
    ({"target": 1, "scale": ("a", "b")}, "scale is two factors"),
    ({"target": 1, "scale": (1.0, math.inf)}, "scale is two factors"),
    ({"target": 1, "scale": (1.2, 0.8)}, "the lower first"),
    ({"target": 1, "scale": 1.1}, "scale is two factors"),
    ({"target": 1, "rotate": 200.0}, "angle"),
    ({"target": 1, "l2": -1.0}, "l2 must be"),
    ({"target": [1, 2], "seed": [1]}, "1 seed was given for 2 pictures"),
    ({"target": 1, "seed": -1}, "a seed is"),
    ({"target": 1, "seed": 2**63}, "a seed is a whole number from 0, not 9223372036854775808"),
    ({"target": 1, "seed": None}, "a seed is a whole number from 0, not None"),
    ({"target": 1, "seed": 1.5}, "a seed is"),
    ({"target": 1, "seed": True}, "a seed is"),
    ({"target": [1, None]}, "a class is an index or a name, not None"),
    ({"target": [len], "classes": ("ant", "bee", "cat", "dog")}, "is an objective by itself"),
    ({"target": 1, "input_size": None}, "give input_size"),
    ({"target": 1, "input_size": (4, 14, 10)}, "takes 4 channels"),
    ({"target": 1, "input_size": (3, 1, 10)}, "at least 2×2 pixels, not 1×10"),
    ({"target": 1, "preprocess": "cafe"}, "did you mean 'caffe'"),
    ({"target": 1, "batch_size": 0}, "batch_size must be"),
]


@pytest.mark.parametrize(("wish", "words"), BAD)
def test_bad_input_is_one_sentence_and_changes_nothing(wish, words):
    net = randomised(plain())
    with nothing_changes(net), pytest.raises(tvc.InputError, match=words):
        tvc.maximize(net, **(QUICK | wish))


@pytest.mark.parametrize("decay", [0, 4])
def test_the_least_and_the_most_of_each_option_are_allowed(decay):
    options = {"steps": 1, "decay": decay, "l2": 0, "lp": 0, "total_variation": 0, "seed": 0}
    found = tvc.maximize(randomised(plain()), target=1, **(QUICK | STILL | options))
    assert found.history.shape == (1, 1)
    assert {name: found.parameters[name] for name in options} == options | {"seed": [0]}


@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_the_smallest_picture_has_2_by_2_pixels(parametrization):
    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)))
    options = QUICK | FREE | {"input_size": (3, 2, 2), "parametrization": parametrization}
    found = tvc.maximize(net, target=1, **options)
    assert found.inputs.shape == (1, 3, 2, 2)
    torch.testing.assert_close(found.value, net(found.inputs)[:, 1].detach())
    assert found.value > found.history[:, 0]


def test_a_models_pictures_may_be_larger_but_not_of_other_channels():
    model = tvc.Model(randomised(plain()), None, (3, 14, 10))
    wish = {"layer": "conv1", "channel": 0, "steps": 2, "preprocess": "rescale"}
    assert tvc.maximize(model, **wish, input_size=(3, 20, 16)).inputs.shape == (1, 3, 20, 16)
    with pytest.raises(tvc.InputError, match=r"takes 3×14×10; another .* not be 1×14×10"):
        tvc.maximize(model, **wish, input_size=(1, 14, 10))


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple])
def test_several_may_be_numbers_of_any_kind_in_a_row(kind):
    net, options = randomised(plain()), {**QUICK, "steps": 2, "layer": "conv1"}
    wanted = tvc.maximize(net, channel=[0, 3], seed=[5, 6], **options)
    found = tvc.maximize(net, channel=kind([0, 3]), seed=kind([5, 6]), **options)
    assert found.labels == wanted.labels == ("conv1 0", "conv1 3")
    assert_same(found, wanted)


# ---- what comes out -------------------------------------------------------------------------------


def test_labels_say_what_was_maximised():
    net = randomised(plain())
    a, b = objectives.channel("conv1", 2), objectives.channel("conv2", 1, "middle")
    assert (a - b / 2).label == "conv1 2 − 0.5 · conv2 1 at middle"
    assert (-a).label == "− conv1 2"
    names = ("ant", "bee", "cat", "dog")
    result = tvc.maximize(net, target=["cat", 0], classes=names, **QUICK)
    assert result.labels == ("class 2 cat", "class 0 ant")
    with pytest.raises(TypeError):
        _ = a + 1
    with pytest.raises(TypeError):
        _ = a / "2"
    with pytest.raises(tvc.InputError, match="divided by 0"):
        _ = a / 0
    with pytest.raises(tvc.InputError, match="a finite number, not nan"):
        _ = math.nan * a
    with pytest.raises(tvc.InputError, match="not None"):
        objectives.target(None)


def test_results_are_saved_and_show_themselves(tmp_path):
    net = randomised(plain())
    one = tvc.maximize(net, target=1, **QUICK)
    assert one.save(tmp_path / "one.png").is_file()
    from PIL import Image

    with Image.open(tmp_path / "one.png") as image:
        found = np.asarray(image).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(found, one.colors[0].numpy(), atol=0.5 / 255 + 1e-9)
    several = tvc.maximize(net, target=[1, 2], **QUICK)
    with Image.open(several.save(tmp_path / "several.jpg")) as image:
        assert image.width > 2 * 192
    with np.load(several.save(tmp_path / "several.npz")) as arrays:
        np.testing.assert_array_equal(arrays["inputs"], several.inputs.numpy())
        assert '"seed": [0, 0]' in str(arrays["manifest"])
    assert several._repr_png_()[:4] == b"\x89PNG"
    assert len(several.figure().axes[0].lines) == 2
    with pytest.raises(tvc.InputError, match=r"must end in .png"):
        several.save(tmp_path / "several.gif")
    assert "conv1 0" in repr(tvc.maximize(net, layer="conv1", channel=0, **QUICK))


# ---- networks that have learnt something ----------------------------------------------------------


UNSEEN = {  # none of them is among the moves of the ascent
    "as it is": lambda x: x,
    "mirrored": lambda x: x.flip(-1),
    "darker": lambda x: 0.8 * x,
    "flatter": lambda x: 0.8 * (x - 0.5) + 0.5,
    "noisy": lambda x: (
        x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    ).clamp(0, 1),
    "8 bits": lambda x: (x * 255).round() / 255,
    "scaled down and up": lambda x: F.interpolate(
        F.interpolate(x, scale_factor=0.75, mode="bilinear", antialias=True),
        size=x.shape[-2:],
        mode="bilinear",
    ),
}


@pytest.mark.skipif(DATA is None, reason="TORCHVIZ_CNN_DATA names no folder of real networks")
def test_a_trained_squeezenet_recognises_what_was_made_for_it():
    model = tvc.models.load(Path(str(DATA)) / "keras" / "squeezenet_v1.0.onnx", preprocess="caffe")
    assert isinstance(model.preprocess, Preprocess)
    prepare = replace(model.preprocess, mean=(104.0, 117.0, 123.0))
    model = replace(model, preprocess=prepare)
    flamingo, zebra = 130, 340
    result = tvc.maximize(model, target=[flamingo, zebra], steps=96, input_size=(3, 128, 128))
    colors = colors_of(prepare, model.input_size)
    for name, change in UNSEEN.items():
        with torch.no_grad():
            chances = model.module(colors.inputs(change(result.colors)))
        assert chances[0, flamingo] > 0.9, name
        assert chances[1, zebra] > 0.9, name
    tint = result.colors[0].mean((1, 2))
    assert tint[0] > tint[1] + 0.02  # a flamingo is more red than green


def test_digits_made_for_a_trained_network_look_like_digits():
    """A stranger to the network, the nearest of the real digits, reads them as well."""
    from torchviz_cnn.data import digits
    from torchviz_cnn.training import digits_model

    model, _ = digits_model()
    result = tvc.maximize(model, target=list(range(10)), parametrization="pixels", steps=96)
    for name, change in UNSEEN.items():
        if name == "mirrored":
            continue  # a mirrored digit is another one
        with torch.no_grad():
            chances = model.module(change(result.inputs)).diagonal()
        assert (chances > 0.9).all(), (name, chances)
    data = digits()
    real = F.normalize(data.train.flatten(1) - data.train.flatten(1).mean(1, keepdim=True))
    made = result.inputs.flatten(1)
    made = F.normalize(made - made.mean(1, keepdim=True))
    nearest = data.train_labels[(made @ real.T).argmax(1)]
    assert (nearest == torch.arange(10)).sum() >= 7, nearest


def test_the_ascent_ends_higher_for_more_steps():
    net = randomised(plain())
    wanted = [objectives.target(1).bound(net)]
    board, colors = board_for(), colors_of("torch", SIZE)
    from tqdm import tqdm

    with evaluator(net, wanted) as evaluate, tqdm(disable=True) as bar:
        history, redirected = ascend(
            board, wanted, lambda x: evaluate(colors.inputs(x), wanted), recipe(steps=40), bar
        )
    assert (history[0, 1:] > history[0, :-1]).float().mean() > 0.9
    assert redirected.tolist() == [0]
