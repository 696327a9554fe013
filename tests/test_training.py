"""Training: the tutorials' recipe against NumPy, what is learnt, and runs that are cut off."""

import errno
import gzip
import itertools
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw
from torch import nn

import torchviz_cnn as tvc
from torchviz_cnn import checkpoints, cli, training
from torchviz_cnn.files import CannotWrite
from torchviz_cnn.preprocess import Preprocess
from torchviz_cnn.training import Settings, accuracy, fit, outcome
from torchviz_cnn.training.augment import Augmentation, warped
from torchviz_cnn.training.ending import ending_of
from torchviz_cnn.training.folders import find
from torchviz_cnn.training.idx import mnist_files, read_idx
from torchviz_cnn.training.outcome import Judgement
from torchviz_cnn.training.plan import best_epoch
from torchviz_cnn.training.sets import Order, in_memory, split
from torchviz_cnn.training.start import start
from torchviz_cnn.training.watch import Watch, shown_columns, watched_layers

ROOT = Path(__file__).parents[1]
SHORT = Settings(epochs=2, batch_size=4, learning_rate=1e-3, steps=None, validation_steps=None)


def noise(count, classes=2, size=(3, 150, 150), seed=0):
    """Pictures nobody can learn anything of, with labels."""
    draw = np.random.default_rng(seed)
    pixels = torch.from_numpy(draw.integers(0, 256, (count, *size), dtype=np.uint8))
    return in_memory(pixels, torch.arange(count) % classes, "noise")


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """Type ``torchviz-cnn train …`` in an empty folder; gives exit code, output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def type_in(*words):
        monkeypatch.setattr(sys, "argv", ["torchviz-cnn", "train", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return type_in


# -- the recipe, beside NumPy


def columns(x):
    """``(N, C, H, W)`` -> ``(N, H−2, W−2, 9·C)``: what a 3×3 window sees."""
    seen = sliding_window_view(x, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    return seen.reshape(*seen.shape[:3], -1)


class NumpyCatDog:
    """The tutorial's network forwards and backwards, with nothing but NumPy."""

    def __init__(self, weights):
        self.w = {key: value.numpy().copy() for key, value in weights.items()}
        self.mean_square = {key: np.zeros_like(value) for key, value in self.w.items()}

    def gradients(self, x, y):
        kept, w = [], self.w
        for n in range(1, 5):
            kernel = w[f"conv2d_{n}.conv.weight"]
            seen = columns(x)
            z = seen @ kernel.reshape(len(kernel), -1).T + w[f"conv2d_{n}.conv.bias"]
            z = z.transpose(0, 3, 1, 2)
            a = np.maximum(z, 0)
            height, width = a.shape[2] // 2, a.shape[3] // 2
            tiles = a[:, :, : 2 * height, : 2 * width]
            tiles = tiles.reshape(*a.shape[:2], height, 2, width, 2).transpose(0, 1, 2, 4, 3, 5)
            tiles = tiles.reshape(*a.shape[:2], height, width, 4)
            where = tiles.argmax(-1)
            kept.append((x.shape, seen, z, where))
            x = tiles.max(-1)
        flat = x.reshape(len(x), -1)
        z1 = flat @ w["dense_1.dense.weight"].T + w["dense_1.dense.bias"]
        a1 = np.maximum(z1, 0)
        z2 = (a1 @ w["dense_2.dense.weight"].T + w["dense_2.dense.bias"])[:, 0]
        p = 1 / (1 + np.exp(-z2))
        loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))

        g = {}
        d2 = ((p - y) / len(y))[:, None]  # of the mean binary cross-entropy, through the sigmoid
        g["dense_2.dense.weight"], g["dense_2.dense.bias"] = d2.T @ a1, d2.sum(0)
        d1 = d2 @ w["dense_2.dense.weight"] * (z1 > 0)
        g["dense_1.dense.weight"], g["dense_1.dense.bias"] = d1.T @ flat, d1.sum(0)
        d = (d1 @ w["dense_1.dense.weight"]).reshape(x.shape)
        for n in range(4, 0, -1):
            shape, seen, z, where = kept[n - 1]
            da = np.zeros_like(z)
            for place in range(4):
                row, column = divmod(place, 2)
                part = da[:, :, row : 2 * d.shape[2] : 2, column : 2 * d.shape[3] : 2]
                part += d * (where == place)
            dz = (da * (z > 0)).transpose(0, 2, 3, 1)
            kernel = w[f"conv2d_{n}.conv.weight"]
            flat_dz, flat_seen = dz.reshape(-1, dz.shape[-1]), seen.reshape(-1, seen.shape[-1])
            g[f"conv2d_{n}.conv.weight"] = (flat_dz.T @ flat_seen).reshape(kernel.shape)
            g[f"conv2d_{n}.conv.bias"] = dz.sum((0, 1, 2))
            d = np.zeros(shape)
            for row, column in itertools.product(range(3), range(3)):
                back = (dz @ kernel[:, :, row, column]).transpose(0, 3, 1, 2)
                d[:, :, row : row + dz.shape[1], column : column + dz.shape[2]] += back
        return loss, g

    def step(self, x, y, rate):
        """RMSprop of Keras 2: ``a = ρ·a + (1 − ρ)·g²``, ``w −= rate·g / (√a + ε)``."""
        loss, gradients = self.gradients(x, y)
        for key, g in gradients.items():
            self.mean_square[key] = 0.9 * self.mean_square[key] + 0.1 * g * g
            self.w[key] -= rate * g / (np.sqrt(self.mean_square[key]) + 1e-7)
        return loss


def test_three_steps_are_those_of_the_tutorials_rmsprop_and_cross_entropy(tmp_path):
    begin = start("cat_dog", 2)
    begin.module.double()
    names = [row.name for row in tvc.layers(begin.module, input_size=(3, 150, 150))]
    assert names == [
        *(f"{kind}_{n}" for n in range(1, 5) for kind in ("conv2d", "max_pooling2d")),
        "flatten_1",
        "dense_1",
        "dense_2",
    ]
    assert sum(p.numel() for p in begin.module.parameters()) == 3_453_121
    twin = NumpyCatDog(begin.module.state_dict())
    pictures = noise(2)
    x = (pictures.kept.numpy().astype(np.float32) * np.float32(1 / 255)).astype(np.float64)
    y = pictures.labels.numpy()
    losses = [twin.step(x, y, 1e-4) for _ in range(3)]

    assert Settings().learning_rate == 1e-4  # the tutorial's, with the rest of its figures:
    assert (Settings().batch_size, Settings().steps, Settings().epochs) == (20, 100, 30)
    assert Settings().validation_steps == 50
    settings = replace(Settings(), epochs=1, batch_size=2, steps=3)
    run = fit(begin, ("cat", "dog"), pictures, pictures, tmp_path / "run", settings)
    state, _ = checkpoints.read_tensors(tmp_path / "run" / "last.safetensors")
    for key, value in twin.w.items():
        assert state[key].dtype == torch.float64
        # A step is at most 1e-4 a weight: 1e-11 is seven digits of it.
        np.testing.assert_allclose(state[key].numpy(), value, rtol=0, atol=1e-11, err_msg=key)
    assert run.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


# -- what is learnt


def test_digits_are_learnt_from_the_command_line(train, tmp_path):
    code, out, err = train("digits", "--epochs", 4, "--out", "d")
    assert code == 0, err
    shares = [float(each) for each in re.findall(r"validation: .*accuracy ([\d.]+) %", out)]
    assert len(shares) == 4
    best = float(re.search(r"([\d.]+) % of 360 held-out pictures are right", out)[1])
    assert best >= 97
    assert best in shares
    model = tvc.models.load(str(tmp_path / "d"))
    assert model.classes == tuple("0123456789")
    assert model.input_size == (1, 28, 28)
    page = (tmp_path / "d" / "index.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'src="([^"]+)"', page))
    assert {"curves.png", "confusion.png"} <= shown
    assert all((tmp_path / "d" / name).exists() for name in shown)


@pytest.mark.skipif("TORCHVIZ_CNN_DATA" not in os.environ, reason="needs MNIST's test files")
def test_mnist_is_learnt_from_its_original_files(train):
    code, out, err = train(
        *("mnist", "--data", os.environ["TORCHVIZ_CNN_DATA"], "--epochs", 2, "--batch-size", 32)
    )
    assert code == 0, err
    assert "only the t10k pair is there: 2000 of its 10000 digits are held out" in err
    assert float(re.search(r"([\d.]+) % of 2,000 held-out", out)[1]) >= 97


def shape_picture(kind, draw, size=150):
    """A disc of stripes, across or upright, over clutter; and where it is."""
    clutter = draw.integers(60, 190, (10, 10, 3), dtype=np.uint8)
    image = Image.fromarray(clutter).resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        (x, y), (w, h) = draw.integers(0, size, 2), draw.integers(4, 18, 2)
        pen.rectangle((x, y, x + w, y + h), fill=tuple(draw.integers(0, 255, 3).tolist()))
    side = int(draw.integers(44, 64))
    x, y = draw.integers(0, size - side, 2).tolist()
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse((x, y, x + side, y + side), fill=255)
    stripes = ((np.mgrid[:size, :size][kind] // 4) % 2 * 255).astype(np.uint8)
    image.paste(Image.fromarray(stripes).convert("RGB"), mask=mask)
    return image, np.asarray(mask) > 0


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """400 pictures of two classes, a fifth held out; and the masks of those."""
    folder, draw, masks = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0), {}
    for number in range(400):
        kind = number % 2
        part = "validation" if number < 80 else "train"
        path = folder / part / ("across", "upright")[kind] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image, mask = shape_picture(kind, draw)
        image.save(path, quality=92)
        if part == "validation":
            masks[path] = mask
    return folder, masks


def test_shapes_are_learnt_and_grad_cam_lies_on_them(train, shapes, tmp_path):
    folder, masks = shapes
    code, out, err = train(
        *("cat-dog", "--data", folder, "--epochs", 2, "--steps", 8, "--batch-size", 16),
        *("--learning-rate", 4e-4, "--watch", next(iter(masks)), "--out", "run"),
    )
    assert code == 0, err
    assert "cat_dog: 3,453,121 parameters; 320 pictures to train on, 80 to validate on" in out
    assert float(re.search(r"([\d.]+) % of 80 held-out", out)[1]) > 95
    model = tvc.models.load(str(tmp_path / "run"))
    assert model.classes == ("across", "upright")
    gains = []
    for path, mask in itertools.islice(masks.items(), 24):
        target = model.classes.index(path.parent.name)
        heat = tvc.grad_cam(model, model.prepare(path), target).heatmap()[0].numpy()
        gains.append(heat[mask].sum() / max(heat.sum(), 1e-9) / mask.mean())
    assert np.median(gains) >= 2
    frames = sorted(path.name for path in (tmp_path / "run" / "watch").glob("*.png"))
    assert frames == ["epoch_0000.png", "epoch_0001.png", "epoch_0002.png"]
    with Image.open(tmp_path / "run" / "watch.png") as strip:
        with Image.open(tmp_path / "run" / "watch" / frames[0]) as frame:
            assert strip.size == (3 * frame.width, frame.height)


# -- runs that are cut off


def weights(folder, name="last.safetensors"):
    return checkpoints.read_tensors(folder / name)[0]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def history(folder):
    words = checkpoints.read_tensors(folder / "resume.safetensors")[1]
    return json.loads(words["resume"])["history"]


def mnist_start():
    return start("mnist_convnet", 10, seed=3)  # with dropout


def test_a_run_taken_up_again_is_the_run_that_never_stopped(tmp_path):
    pictures = noise(10, 10, (1, 28, 28))
    changed = Augmentation(flip=True, rotate=20, shift=0.1, zoom=0.2)
    whole = replace(SHORT, epochs=3, steps=4, augmentation=changed)  # epochs end within a pass
    classes = "0123456789"
    fit(mnist_start(), classes, pictures, pictures, tmp_path / "a", whole)
    torch.manual_seed(77)  # whatever happened before must not matter
    fit(mnist_start(), classes, pictures, pictures, tmp_path / "b", replace(whole, epochs=1))
    before = torch.get_rng_state()
    said = []
    run = fit(
        *(mnist_start(), classes, pictures, pictures, tmp_path / "b", whole),
        resume=True,
        tell=said.append,
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert said[0] == "going on after epoch 1 of 3"
    assert len(said) == 3
    for name in ("last.safetensors", "best.safetensors", "resume.safetensors"):
        assert same(weights(tmp_path / "a", name), weights(tmp_path / "b", name)), name
    assert history(tmp_path / "a") == history(tmp_path / "b") == run.history
    other = replace(whole, seed=1, epochs=1)
    fit(mnist_start(), classes, pictures, pictures, tmp_path / "c", other)
    assert history(tmp_path / "c")[0] != history(tmp_path / "a")[0]
    with pytest.raises(tvc.InputError, match=r"another one: its seed is 0, not 1"):
        fit(mnist_start(), classes, pictures, pictures, tmp_path / "a", other, resume=True)
    with pytest.raises(tvc.InputError, match="holds a trained network already"):
        fit(mnist_start(), classes, pictures, pictures, tmp_path / "a", whole)


def test_pictures_read_by_other_processes_train_the_same_run_and_resume_it(pets, tmp_path):
    """Files read as they are needed, by two workers, cut off and taken up; beside all in memory."""
    from torchviz_cnn.training.folders import load

    begin = start("cat_dog_small", 2)
    first = {key: value.clone() for key, value in begin.module.state_dict().items()}
    changed = Augmentation(flip=True, rotate=20)
    settings = replace(SHORT, workers=2, batch_size=2, augmentation=changed)
    folders, histories = [], []
    for memory, parts in ((1 << 30, (2,)), (0, (1, 2))):
        begin.module.load_state_dict(first)
        train, validation, _ = load(find(pets), begin.preprocess, memory=memory)
        assert (train.kept is None) == (memory == 0)
        folders.append(tmp_path / f"run-{memory}")
        for epochs in parts:
            run = fit(
                *(begin, ("cats", "dogs"), train, validation, folders[-1]),
                replace(settings, epochs=epochs),
                resume=epochs > parts[0],
            )
        histories.append(run.history)
    assert histories[0] == histories[1]
    assert len(histories[0]) == 2
    for name in ("last.safetensors", "resume.safetensors"):
        assert same(*(weights(folder, name) for folder in folders)), name


def test_a_run_is_not_taken_up_with_another_network_size_or_preprocessing(tmp_path):
    pictures = noise(4, 2, (3, 64, 64))
    begin = start("squeezenet1_1", 2, input_size=(3, 64, 64))
    once = replace(SHORT, epochs=1)
    fit(begin, ("a", "b"), pictures, pictures, tmp_path / "run", once)
    look, built = begin.preprocess, begin.architecture
    for other, sentence in (
        (
            replace(begin, input_size=(3, 64, 96)),
            r"its input size is \[3, 64, 64\], not \[3, 64, 96",
        ),
        (
            replace(begin, preprocess=replace(look, std=(1.0,))),
            r"its preprocess is .*'std': \[0.229",
        ),
        (replace(begin, architecture=replace(built, outputs=1)), "its outputs is 2, not 1"),
        (
            replace(begin, architecture=replace(built, transform_input=True)),
            "its transform input is False, not True",
        ),
    ):
        with pytest.raises(tvc.InputError, match=sentence):
            fit(other, ("a", "b"), pictures, pictures, tmp_path / "run", once, resume=True)
    run = fit(begin, ("a", "b"), pictures, pictures, tmp_path / "run", once, resume=True)
    assert len(run.history) == 1


def test_killed_in_the_middle_of_an_epoch_it_goes_on_from_the_last_one(train, tmp_path):
    words = ["digits", "--steps", "6", "--batch-size", "16", "--validation-steps", "2"]
    command = [sys.executable, "-c", "from torchviz_cnn.cli import main; main()", "train"]
    process = subprocess.Popen(
        [*command, *words, "--epochs", "500", "--out", str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
        # One thread, as here: with another number, sums are rounded otherwise.
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        for line in process.stdout:
            if line.startswith("epoch   2/500"):
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(history(tmp_path / "killed"))
    assert 2 <= done < 500
    model = tvc.models.load(str(tmp_path / "killed"))  # whole, whatever was being written
    assert model.classes == tuple("0123456789")
    total = done + 1
    code, out, err = train(*words, "--epochs", total, "--out", "killed", "--resume")
    assert code == 0, err
    assert f"going on after epoch {done} of {total}" in out
    code, _, err = train(*words, "--epochs", total, "--out", "whole")
    assert code == 0, err
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_ctrl_c_leaves_the_last_good_epoch_and_says_how_to_go_on(train, tmp_path, monkeypatch):
    """As a signal, in the middle of the third epoch."""
    from torchviz_cnn.training.recipe import Recipe

    step = Recipe.training_step

    def interrupted(self, batch, batch_idx):
        if self.epoch == 2 and batch_idx == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Recipe, "training_step", interrupted)
    words = ("digits", "--epochs", 4, "--steps", 3, "--validation-steps", 1, "--out", "d")
    # A shell's background job, which these tests may run in, ignores the signal.
    given = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = train(*words)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, given)
    assert code == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert len(history(tmp_path / "d")) == 2
    assert tvc.models.load(str(tmp_path / "d")).input_size == (1, 28, 28)


def test_files_that_may_not_grow_leave_the_last_good_checkpoint(tmp_path):
    """The system refuses to write beyond a limit, as on a full disk: the first write fails."""
    pictures = noise(8, 10, (1, 28, 28))
    folder = tmp_path / "run"
    fit(mnist_start(), "0123456789", pictures, pictures, folder, replace(SHORT, epochs=1))
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CannotWrite):
            fit(mnist_start(), "0123456789", pictures, pictures, folder, SHORT, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    run = fit(mnist_start(), "0123456789", pictures, pictures, folder, SHORT, resume=True)
    assert len(run.history) == 2


def best_of(folder):
    """Which epoch's network the best file says it is, and its loss."""
    found = checkpoints.read(folder / "best.safetensors")[1]
    return found.about["epoch"], found.metrics["validation_loss"]


def test_wherever_the_disk_gets_full_the_files_agree_when_the_run_is_taken_up_again(
    tmp_path, monkeypatch
):
    """Two epochs write ten files: each of them in turn is the one that fails."""
    pictures, classes = noise(8, 10, (1, 28, 28)), "0123456789"
    rest = (classes, pictures, pictures)
    whole = fit(mnist_start(), *rest, tmp_path / "whole", SHORT)
    assert whole.best == 2  # both epochs write all their files
    make, once = tempfile.mkstemp, replace(SHORT, epochs=1)
    for failing in range(1, 11):
        folder, written = tmp_path / f"full-{failing}", itertools.count(1)

        def full(*args, written=written, failing=failing, **named):
            if next(written) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return make(*args, **named)

        monkeypatch.setattr(tempfile, "mkstemp", full)
        with pytest.raises(CannotWrite):
            fit(mnist_start(), *rest, folder, SHORT)
        monkeypatch.setattr(tempfile, "mkstemp", make)
        assert next(written) == failing + 1
        if (folder / "best.safetensors").exists():  # of an epoch that can be gone on from
            assert best_of(folder)[0] <= len(history(folder))
        done = 1 if failing <= 6 else 2  # the sixth is the second epoch's first
        run = fit(mnist_start(), *rest, folder, once, resume=True)
        assert (len(run.history), run.best) == (done, done)
        best = (done, run.history[done - 1]["validation_loss"])
        assert best_of(folder) == best
        assert json.loads((folder / "best.json").read_text())["epoch"] == done
        assert same(weights(folder), weights(folder, "best.safetensors"))
        run = fit(mnist_start(), *rest, folder, SHORT, resume=True)
        assert run.history == whole.history
        for name in ("last.safetensors", "best.safetensors", "resume.safetensors"):
            assert same(weights(tmp_path / "whole", name), weights(folder, name)), (failing, name)


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        (1, "epochs done: 2, asked for: 1; nothing is left to do"),
        (2, "epochs done: 2, asked for: 2; nothing is left to do"),
        (3, "going on after epoch 2 of 3"),
    ],
)
def test_a_run_that_is_taken_up_says_what_is_left(epochs, said, tmp_path):
    pictures = noise(8, 2, (1, 28, 28))
    rest = ("0123456789", pictures, pictures, tmp_path / "run")
    fit(mnist_start(), *rest, replace(SHORT, epochs=2))
    told: list[str] = []
    again = replace(SHORT, epochs=epochs)
    run = fit(mnist_start(), *rest, again, resume=True, tell=told.append)
    assert said in told
    assert sum("epoch" in line and ("going on" in line or "left" in line) for line in told) == 1
    assert len(run.history) == max(2, epochs)


def test_a_run_without_its_best_network_is_not_taken_up_silently(tmp_path):
    pictures = noise(8, 2, (1, 28, 28))
    opposite = replace(pictures, labels=1 - pictures.labels)
    settings = replace(SHORT, epochs=4, patience=1)
    rest = ("0123456789", pictures, opposite, tmp_path / "run", settings)
    run = fit(mnist_start(), *rest)
    assert run.best < len(run.history)
    best = tmp_path / "run" / "best.safetensors"
    best.write_bytes((tmp_path / "run" / "last.safetensors").read_bytes())
    with pytest.raises(tvc.InputError, match=rf"the best epoch, {run.best}, should be in .* not"):
        fit(mnist_start(), *rest, resume=True)
    best.unlink()
    with pytest.raises(tvc.InputError, match="it was removed or replaced"):
        fit(mnist_start(), *rest, resume=True)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("optimizer/first/square_avg", None),
        ("optimizer/1", None),
        ("momentum/1/x", None),
        (None, {"history": [], "scaler": {}}),
        (None, {"history": [{"epoch": 1}], "scaler": {}}),
        (None, {"history": 3, "scaler": {}}),
        (None, {"history": [{"epoch": 1, "validation_loss": 0.5}], "scaler": 7}),
    ],
)
def test_a_state_that_makes_no_sense_is_called_damaged(tmp_path, key, words):
    pictures = noise(4, 10, (1, 28, 28))
    rest = ("0123456789", pictures, pictures, tmp_path, replace(SHORT, epochs=1))
    fit(mnist_start(), *rest)
    tensors, kept = checkpoints.read_tensors(tmp_path / "resume.safetensors")
    found = json.loads(kept["resume"]) | (words or {})
    tensors |= {} if key is None else {key: torch.zeros(2)}
    checkpoints.write_tensors(
        tmp_path / "resume.safetensors", tensors, {"resume": json.dumps(found)}
    )
    with pytest.raises(tvc.InputError, match=r"resume\.safetensors' is damaged"):
        fit(mnist_start(), *rest, resume=True)


# -- what will not go is said at once


def test_what_cannot_run_is_refused_before_a_picture_is_decoded(train, pets, monkeypatch, tmp_path):
    from torchviz_cnn.training import tasks

    (pets / "train" / "cats" / "letter.jpg").write_text("Dear cat")
    words = ("cat-dog", "--data", pets, *QUICK, "--device", "cpu", "--out", "run")
    decoded = tasks.load
    monkeypatch.setattr(tasks, "load", lambda *_, **__: pytest.fail("pictures were decoded"))
    for wrong, sentence in (
        (("--precision", "16-mixed"), "the precision 16-mixed needs CUDA"),
        (("--devices", 2), "2 devices means GPUs; on the CPU it is 1"),
        (("--model", "short_of_one:three", "--input-size", "3x32x32"), "puts out 3 numbers"),
    ):
        (tmp_path / "short_of_one.py").write_text(
            "from torch import nn\ndef three(): return nn.Sequential(nn.Conv2d(3, 3, 3), "
            "nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        )
        code, _, err = train(*words, *wrong)
        assert (code, sentence in err) == (2, True), err
        assert "Traceback" not in err
        assert not Path("run").exists()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lightning", None)
        without.delitem(sys.modules, "torchviz_cnn.training.recipe", raising=False)
        for name in [each for each in sys.modules if each.startswith("lightning.")]:
            without.setitem(sys.modules, name, None)
        code, _, err = train(*words)
        assert (code, 'install "torchviz-cnn[train]"' in err) == (2, True), err
        assert not Path("run").exists()

    monkeypatch.setattr(tasks, "load", decoded)
    code, _, err = train(*words)
    assert code == 0, err
    kept = (Path("run") / "pictures.txt").read_bytes()
    assert b"letter.jpg" in kept
    (pets / "train" / "cats" / "note.jpg").write_text("Dear dog")
    monkeypatch.setattr(tasks, "load", lambda *_, **__: pytest.fail("pictures were decoded"))
    for again in (("--resume", "--seed", 1), ()):
        code, _, err = train(*words, *again)
        assert code == 2
        assert "the run in 'run' was another one: its seed is 0" in err or "--resume" in err
    monkeypatch.setattr(tasks, "load", decoded)
    (pets / "train" / "cats" / "0.png").unlink()
    code, _, err = train(*words, "--resume")  # seen only when the pictures are read
    assert (code, "its pictures is '6 + 6" in err) == (2, True), err
    assert (Path("run") / "pictures.txt").read_bytes() == kept


# Two processes of a run, as Lightning starts them for two GPUs.
TWO = """
import os, pathlib, sys, time, warnings
warnings.simplefilter("ignore")
import lightning.pytorch as pl
import torch
from tests.test_training import noise
from torchviz_cnn.training import Settings
from torchviz_cnn.training.recipe import Recipe
from torchviz_cnn.training.start import start

pictures = noise(21, 2, (3, 32, 32))
settings = Settings(batch_size=5, steps=2, validation_steps=None, learning_rate=1e-3)
begin = start("resnet18", 2, input_size=(3, 32, 32))
def kept(recipe):
    time.sleep(3)  # a large network on a slow disk
    torch.save((recipe.history, recipe.network.state_dict()), sys.argv[1])

pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
    use_distributed_sampler=False, reload_dataloaders_every_n_epochs=1,
).fit(Recipe(begin, 2, pictures, pictures, settings, after_epoch=kept))
there = pathlib.Path(sys.argv[1]).exists()
pathlib.Path(f"{os.environ.get('LOCAL_RANK', '0')}.txt").write_text(str(there))
"""


def test_devices_that_share_pictures_unevenly_find_the_mean_over_all_of_them(tmp_path):
    """11 pictures here and 10 there, in batches of 5, 5, 1 and 5, 5."""
    (tmp_path / "two.py").write_text(TWO)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "two.py", "kept.pt"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told, since = tmp_path / "1.txt", time.monotonic()
    while not told.exists() and time.monotonic() - since < 60:
        time.sleep(0.1)
    # Every process reads the best network when the run is over.
    assert told.read_text() == "True"
    [epoch], state = torch.load(tmp_path / "kept.pt")
    begin, pictures = start("resnet18", 2, input_size=(3, 32, 32)), noise(21, 2, (3, 32, 32))
    begin.module.load_state_dict(state)
    x = begin.preprocess.numbers(pictures.kept)
    with torch.no_grad():
        logits = begin.module.eval()(x)[:, 0].double().numpy()
    labels = pictures.labels.numpy()
    losses = np.log1p(np.exp(np.where(labels == 1, -logits, logits)))
    assert epoch["validation_loss"] == pytest.approx(losses.mean(), rel=1e-6)
    right = np.mean((logits > 0) == (labels == 1))
    assert epoch["validation_accuracy"] == pytest.approx(right, rel=1e-6)


def test_more_gpus_than_there_are_or_than_pictures_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    pictures = noise(4, 10, (1, 28, 28))
    rest = ("0123456789", pictures, pictures.part([0, 1]), tmp_path / "run")
    shared = replace(SHORT, batch_size=12)
    with pytest.raises(tvc.InputError, match="4 GPUs are asked for, and 3 can be used here"):
        fit(mnist_start(), *rest, replace(shared, devices=4), device="cuda")
    with pytest.raises(tvc.InputError, match="3 devices cannot share 2 pictures to validate on"):
        fit(mnist_start(), *rest, replace(shared, devices=3), device="cuda")
    with pytest.raises(tvc.InputError, match="2 devices means GPUs; on the CPU it is 1"):
        fit(mnist_start(), *rest, replace(shared, devices=2))
    assert not (tmp_path / "run").exists()


def test_a_picture_is_watched_however_the_run_is_taken_up(train, tmp_path):
    colour((30, 40)).save(tmp_path / "seven.png")
    words = ("digits", "--steps", 2, "--validation-steps", 1, "--out", "d")
    strip, page = tmp_path / "d" / "watch.png", tmp_path / "d" / "index.html"

    def frames():
        return sorted(path.stem for path in (tmp_path / "d" / "watch").glob("*.png"))

    assert train(*words, "--epochs", 1)[0] == 0
    assert not strip.exists()
    assert "watch.png" not in page.read_text(encoding="utf-8")
    code, _, err = train(*words, "--epochs", 1, "--resume", "--watch", "seven.png")
    assert code == 0, err  # nothing was left to train: the network as it is
    assert frames() == ["epoch_0001"]
    assert "watch.png" in page.read_text(encoding="utf-8")
    code, _, err = train(*words, "--epochs", 2, "--resume", "--watch", "seven.png")
    assert code == 0, err
    assert frames() == ["epoch_0001", "epoch_0002"]
    assert "Epochs 1, 2; 0 is before the first." in page.read_text(encoding="utf-8")
    before = strip.read_bytes()
    colour((30, 40), seed=1).save(tmp_path / "eight.png")
    code, _, err = train(*words, "--epochs", 3, "--resume", "--watch", "eight.png")
    assert (code, "shows another picture over time" in err) == (2, True)
    code, _, err = train(*words, "--epochs", 2, "--resume")
    assert code == 0, err
    assert "watch.png" in page.read_text(encoding="utf-8")  # what was watched is not lost
    assert strip.read_bytes() == before


def test_layers_that_were_renamed_are_watched_too():
    model = tvc.models.load("cat_dog_small")
    tvc.rename(model, {"conv2d_1": "edges"})
    assert watched_layers(model)[0] == "edges"


def test_a_long_runs_strip_is_made_of_evenly_chosen_columns(tmp_path):
    """Each column in a grey of its own, as wide as it is tall: the strip tells which they are."""
    seen = Watch(colour(), tmp_path)
    (tmp_path / "watch").mkdir()
    for epoch in range(200):
        Image.new("RGB", (2, 3), (epoch,) * 3).save(tmp_path / "watch" / f"epoch_{epoch:04d}.png")

    def epochs_of(strip):
        assert strip.height == 3
        return [strip.getpixel((x, 0))[0] for x in range(0, strip.width, 2)]

    assert epochs_of(seen.strip(5)) == [0, 1, 2, 3, 4, 5]
    assert epochs_of(seen.strip(23)) == list(range(24))
    for last in (24, 100, 199):
        shown = epochs_of(seen.strip(last))
        assert shown == list(shown_columns(tmp_path, last))
        assert len(shown) == 24
        assert (shown[0], shown[-1]) == (0, last)
        steps = np.diff(shown)
        assert steps.max() - steps.min() <= 1
        assert steps.min() >= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_is_gone_when_it_is_wanted_is_told_in_a_sentence(pets, tmp_path, workers):
    from torchviz_cnn.training.folders import load

    begin = start("cat_dog_small", 2)
    pictures, held_out, _ = load(find(pets), begin.preprocess, memory=0)
    for path in (pets / "train" / "cats").iterdir():
        path.unlink()
    settings = replace(SHORT, workers=workers)
    with pytest.raises(tvc.InputError) as told:
        fit(begin, ("cats", "dogs"), pictures, held_out, tmp_path / "run", settings)
    assert re.fullmatch(r"there is no file '.*train/cats/\d\.png'", str(told.value))


@pytest.mark.parametrize(
    ("classes", "labels", "sentence"),
    [
        (("a", "b"), (0, 1, 2), "a picture to train on is of class 2; classes go from 0 to 1"),
        (
            ("a", "b", "c"),
            (0, -1, 1),
            "a picture to train on is of class -1; classes go from 0 to 2",
        ),
        (("a",), (0, 0, 0), "two classes or more are needed to tell apart, and one is named"),
    ],
)
def test_pictures_of_other_classes_are_refused(tmp_path, classes, labels, sentence):
    """One sigmoid would learn class 2 as something beyond certainty, and say nothing."""
    pictures = replace(noise(3), labels=torch.tensor(labels))
    begin = start("cat_dog_small", len(classes))
    with pytest.raises(tvc.InputError, match=sentence):
        fit(begin, classes, pictures, noise(2, len(classes)), tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, not 1.5"),
        ({"epochs": None}, "epochs must be a whole number of at least 1, not None"),
        ({"steps": "3"}, "steps must be a whole number of at least 1, not '3'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"devices": None}, "devices must be a whole number of at least 1, not None"),
        ({"patience": True}, "patience must be a whole number of at least 1, not True"),
        ({"seed": 0.5}, "seed must be a whole number of at least 0, not 0.5"),
        ({"workers": -1}, "workers must be a whole number of at least 0, not -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"learning_rate": "fast"}, "learning_rate must be above 0, not 'fast'"),
    ],
)
def test_settings_that_are_none(wish, sentence):
    with pytest.raises(tvc.InputError, match=re.escape(sentence)):
        Settings(**wish)


def test_settings_may_be_numbers_of_numpy(tmp_path):
    settings = replace(
        SHORT, epochs=np.int64(1), batch_size=np.int32(4), learning_rate=np.float32(0.5**10)
    )
    pictures = noise(4, 10, (1, 28, 28))
    fit(mnist_start(), "0123456789", pictures, pictures, tmp_path / "run", settings)
    kept = checkpoints.describe(tmp_path / "run" / "last.safetensors").about["settings"]
    assert (kept["batch_size"], kept["learning_rate"]) == (4, 0.5**10)


def test_of_a_class_without_a_picture_its_own_picture_is_told(pets):
    from torchviz_cnn.training.folders import load

    for path in (pets / "train" / "cats").iterdir():
        path.write_bytes(b"x")
    (pets / "train" / "dogs" / "letter.png").write_text("Dear dog")
    begin = start("cat_dog_small", 2)
    with pytest.raises(tvc.InputError) as told:
        load(find(pets), begin.preprocess)
    assert "class 'cats' to train on can be read; '" in str(told.value)
    assert "train/cats/" in str(told.value)
    assert "letter" not in str(told.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_accuracy_leaves_every_layer_in_its_mode(channels):
    """Its owner trains a network whose batch norm stays as it was; then pictures do not fit it."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    net.train()[1].eval()
    images, labels = torch.randn(4, channels, 8, 8), torch.zeros(4, dtype=torch.long)
    wanted = [module.training for module in net.modules()]
    with nullcontext() if channels == 1 else pytest.raises(RuntimeError):
        right = accuracy(net, images, labels)
    assert [module.training for module in net.modules()] == wanted
    if channels == 1:
        with torch.no_grad():
            assert right == float((net.eval()(images).argmax(1) == labels).float().mean())


def test_a_loss_that_explodes_ends_the_run_and_keeps_what_was_good(tmp_path):
    pictures = noise(8, 10, (1, 28, 28))
    wild = replace(SHORT, epochs=3, learning_rate=1e30)
    with pytest.raises(tvc.InputError, match="no longer a finite number after epoch 1"):
        fit(mnist_start(), "0123456789", pictures, pictures, tmp_path / "run", wild)
    assert not (tmp_path / "run").exists()


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    """Validated on the opposite labels, it gets worse with every step it learns."""
    pictures = noise(8, 2, (3, 150, 150))
    opposite = replace(pictures, labels=1 - pictures.labels)
    settings = replace(SHORT, epochs=30, learning_rate=1e-4, patience=2)
    told = []
    begin = start("cat_dog_small", 2)
    given = (("a", "b"), pictures, opposite, tmp_path / "run", settings)
    run = fit(begin, *given, tell=told.append)
    assert len(run.history) == run.best + 2
    stopped = f"stopped after epoch {run.best + 2} of 30: 2 epochs without a lower validation loss"
    assert told[-1] == stopped
    fit(start("cat_dog_small", 2), *given, resume=True, tell=told.append)  # nothing is left to do
    assert told[-2:] == [f"going on after epoch {run.best + 2} of 30", stopped]
    assert len(run.history) < 30
    losses = [epoch["validation_loss"] for epoch in run.history]
    assert run.best - 1 == losses.index(min(losses)) == best_epoch(run.history)
    best = checkpoints.read(tmp_path / "run")[1]
    assert best.metrics["validation_loss"] == min(losses)


def test_without_lightning_the_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "torchviz_cnn.training.recipe", raising=False)
    for name in [each for each in sys.modules if each.startswith("lightning.")]:
        monkeypatch.setitem(sys.modules, name, None)
    pictures = noise(4, 10, (1, 28, 28))
    with pytest.raises(tvc.InputError, match=r'install "torchviz-cnn\[train\]"'):
        fit(mnist_start(), "0123456789", pictures, pictures, tmp_path / "run", SHORT)


# -- pictures


def colour(size=(40, 30), seed=0):
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def pets(tmp_path):
    """Two classes of good pictures to train and to validate on."""
    for part, kind, number in itertools.product(
        ("train", "validation"), ("cats", "dogs"), range(3)
    ):
        path = tmp_path / "pets" / part / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour(seed=number).save(path)
    return tmp_path / "pets"


QUICK = ("--model", "cat_dog_small", "--epochs", 1, "--steps", 1, "--validation-steps", 1)


def test_from_python_a_run_is_that_of_the_command_line(train, pets, tmp_path):
    picture = pets / "validation" / "dogs" / "1.png"
    words = ("--flip", "--rotate", 10, "--seed", 3, "--watch", picture, "--out", "typed")
    code, out, err = train("cat-dog", "--data", pets, *QUICK, *words)
    assert code == 0, err
    said = []
    run = training.train(
        "cat-dog",
        str(pets),
        tmp_path / "called",
        model="cat_dog_small",
        epochs=1,
        steps=1,
        validation_steps=1,
        flip=True,
        rotate=10,
        seed=3,
        watch=Image.open(picture),
        tell=said.append,
    )
    assert said == out.splitlines()[:-1]  # the last says how to go on typing
    assert run.history == history(tmp_path / "called") == history(tmp_path / "typed")
    assert same(weights(tmp_path / "called"), weights(tmp_path / "typed"))
    for file in ("index.html", "watch.png", "curves.png"):
        assert (tmp_path / "called" / file).read_bytes() == (tmp_path / "typed" / file).read_bytes()
    assert run.model.classes == ("cats", "dogs")
    assert tvc.grad_cam(run.model, run.model.prepare(picture), "dogs").layer == "conv2d_4"


@pytest.mark.parametrize(
    ("task", "given", "typed", "words"),
    [
        ("cat-dig", {}, (), "there is no training run 'cat-dig'; .* did you mean 'cat-dog'"),
        ("digits", {"epoch": 3}, None, "a run has no setting 'epoch'; did you mean 'epochs'"),
        ("digits", {"epochs": 0}, None, "epochs must be a whole number of at least 1, not 0"),
        ("digits", {"zoom": 2}, ("--zoom", 2), "zoom must lie between 0 and 0.95, not 2"),
        ("digits", {"rotate": "20"}, None, "rotate must lie between 0 and 180, not '20'"),
        (
            "digits",
            {"augmentation": True},
            None,
            "augmentation is an Augmentation, such as .* not True",
        ),
        ("cat-dog", {}, (), "in one folder a class: name the folder with (data=|--data DIR)"),
        ("digits", {"data": "m"}, ("--data", "m"), "(data|--data) is not for digits"),
        (
            "digits",
            {"validation_share": 0.3},
            ("--validation-share", 0.3),
            "(validation_share|--validation-share) is not for the digits",
        ),
        (
            "digits",
            {"freeze": True},
            ("--freeze",),
            "freeze keeps weights as they are: give some, with (weights=|--weights)",
        ),
        ("digits", {"device": "gpu"}, ("--device", "gpu"), "there is no device 'gpu'"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_in_words_of_its_caller(
    train, tmp_path, task, given, typed, words
):
    with pytest.raises(tvc.InputError, match=words) as refused:
        training.train(task, folder=tmp_path / "run", **given)
    assert "--" not in str(refused.value)
    if typed is not None:
        code, _, err = train(task, *typed, "--out", "run")
        assert (code, bool(re.search(words, err))) == (2, True), err
        assert "=" not in err
    assert not (tmp_path / "run").exists()


def test_broken_pictures_are_skipped_and_odd_ones_converted_and_both_are_told(train, pets):
    cats = pets / "train" / "cats"
    whole = (cats / "0.png").read_bytes()
    (cats / "cut.png").write_bytes(whole[: len(whole) // 2])
    (cats / "empty.jpg").write_bytes(b"")
    (cats / "letter.jpg").write_text("Dear cat")
    (cats / ".hidden").write_text("not looked at")
    colour().save(cats / "film.gif", save_all=True, append_images=[colour(seed=1)])
    colour().convert("CMYK").save(cats / "print.jpg")
    colour().convert("L").save(cats / "gray.png")
    colour().convert("RGBA").save(cats / "glass.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour().save(cats / "turned.jpg", exif=exif)
    code, out, err = train("cat-dog", "--data", pets, *QUICK, "--out", "run")
    assert code == 0, err
    assert "11 pictures to train on, 6 to validate on; classes cats, dogs" in out
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    skipped = [line for line in notes if "skipped" in line]
    assert len(skipped) == 3
    for file, words in (
        ("cut.png", "is damaged"),
        ("empty.jpg", "is not a picture"),
        ("letter.jpg", "is not a picture"),
        ("film.gif", "an animation: its first frame is used"),
        ("print.jpg", "CMYK: converted to RGB"),
        ("gray.png", "gray: used as red, green and blue alike"),
        ("glass.png", "partly transparent: laid on white"),
        ("turned.jpg", "turned upright"),
    ):
        assert [line for line in notes if file in line and words in line], (file, notes)
    assert ".hidden" not in err
    listed = (Path("run") / "pictures.txt").read_text(encoding="utf-8")
    assert "empty.jpg" in listed


def test_what_can_be_read_of_a_folder_is_what_explain_gives_the_network(pets):
    from torchviz_cnn.training.folders import load

    begin = start("resnet18", 2)
    for memory in (1 << 30, 0):
        train, validation, _ = load(find(pets), begin.preprocess, memory=memory)
        assert (train.kept is None) == (memory == 0)
        for part in (train, validation):
            given = begin.preprocess.numbers(part.pixels(range(len(part))))
            expected = begin.preprocess(list(part.names))
            assert torch.equal(given, expected)
            assert [
                Path(name).parent.name == "dogs" for name in part.names
            ] == part.labels.bool().tolist()


def test_pictures_kept_in_memory_are_not_copied_to_leave_one_out(pets):
    from torchviz_cnn.training.folders import load

    (pets / "train" / "cats" / "1.png").write_bytes(b"no picture")
    begin = start("cat_dog_small", 2)
    train, _, remarks = load(find(pets), begin.preprocess)
    assert len(remarks.skipped) == 1
    left = [f"{Path(name).parent.name}/{Path(name).stem}" for name in train.names]
    assert left == ["cats/0", "cats/2", "dogs/0", "dogs/1", "dogs/2"]
    for number, name in enumerate(train.names):
        assert torch.equal(train.kept[number], begin.preprocess.pixels(Path(name)))
    assert train.kept.untyped_storage().nbytes() == 6 * 3 * 150 * 150  # the room of all six


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("empty", r"the class folder '.*train/cats' is empty"),
        ("one", "holds one class only, 'dogs'"),
        ("differ", r"must have the same classes; only one has 'cows'"),
        ("broken", "none of the pictures of the class 'cats' to train on can be read"),
        ("missing", "there is no folder"),
        ("file", "is a file; a folder of pictures is needed"),
        ("unreadable", "the folder .* cannot be read: Permission denied"),
        ("bare", "holds no folders; it must hold one for each class"),
    ],
)
def test_folders_that_cannot_be_trained_on(train, pets, spoil, sentence, monkeypatch, tmp_path):
    cats = pets / "train" / "cats"
    data = pets
    for file in list(cats.iterdir()):
        if spoil in ("empty", "one"):
            file.unlink()
        if spoil == "broken":
            file.write_bytes(b"x")
    if spoil == "one":
        cats.rmdir()
    if spoil == "differ":
        (pets / "validation" / "cows").mkdir()
        colour().save(pets / "validation" / "cows" / "a.png")
    if spoil == "missing":
        data = tmp_path / "nowhere"
    if spoil == "file":
        data = cats / "0.png"
    if spoil == "bare":
        data = cats
    if spoil == "unreadable":  # a superuser may read everything: the system's answer is given here
        iterdir = Path.iterdir

        def denied(self):
            if self == cats:
                raise PermissionError(13, "Permission denied")
            return iterdir(self)

        monkeypatch.setattr(Path, "iterdir", denied)
    code, _, err = train("cat-dog", "--data", data, *QUICK, "--out", "run")
    assert code == 2
    assert re.search(sentence, err), err
    assert not Path("run").exists()


@pytest.mark.parametrize("parts", [("training_set", "test_set"), ("Training", "val", "test")])
def test_parts_of_the_pictures_are_not_taken_for_classes(train, pets, parts):
    """The folders of cats and dogs would be two classes, each with cats and dogs in it."""
    other = pets.with_name("other")
    for part in parts:
        shutil.copytree(pets / "train", other / part)
    code, _, err = train("cat-dog", "--data", other, *QUICK, "--out", "run")
    assert code == 2
    assert f"{parts[1]!r}" in err
    assert "which are no classes; call the two to train and to validate on train and" in err
    (other / parts[0]).rename(other / "Train")
    (other / parts[1]).rename(other / "Bus")
    assert set(find(other).classes) == {"Train", "Bus", *parts[2:]}  # vehicles, in folders of years


def test_folders_may_be_written_with_capitals(pets):
    wanted = find(pets)
    (pets / "train").rename(pets / "Train")
    (pets / "validation").rename(pets / "Validation")
    found = find(pets)
    assert (found.classes, found.notes) == (("cats", "dogs"), ())
    assert [len(found.train), len(found.validation)] == [
        *(len(wanted.train), len(wanted.validation))
    ]


def test_one_folder_is_split_by_the_seed_and_nothing_is_on_both_sides(pets):
    found = find(pets / "train", 0.34, seed=1)
    again = find(pets / "train", 0.34, seed=1)
    assert found == again
    assert found.classes == ("cats", "dogs")
    train, held = set(found.train), set(found.validation)
    assert not train & held
    assert len(train | held) == 6
    assert [label for _, label in found.validation] == [0, 1]  # a share of each class
    others = [find(pets / "train", 0.34, seed=seed).validation for seed in range(8)]
    assert len(set(others)) > 1
    with pytest.raises(tvc.InputError, match="for a folder without one"):
        find(pets, 0.2)


def test_more_classes_end_in_a_softmax(train, pets, tmp_path):
    for part in ("train", "validation"):
        (pets / part / "ants").mkdir()
        colour(seed=9).save(pets / part / "ants" / "a.png")
    code, _, err = train("cat-dog", "--data", pets, *QUICK, "--out", "run")
    assert code == 0, err
    model = tvc.models.load(str(tmp_path / "run"))
    assert model.classes == ("ants", "cats", "dogs")
    out = model(model.prepare(pets / "train" / "ants" / "a.png"))
    assert out.shape == (1, 3)
    assert out.sum().item() == pytest.approx(1, abs=1e-5)


def test_one_pass_sees_every_picture_once_and_epochs_cut_passes_where_they_end():
    for epoch in range(3):
        keys = [key for batch in Order(10, 4, epoch=epoch, seed=5) for key in batch]
        assert sorted(index for index, _ in keys) == list(range(10))
    steps = [list(Order(10, 4, epoch=e, seed=5, steps=3)) for e in range(5)]  # 60 = six passes
    drawn = [key for epoch in steps for batch in epoch for key in batch]
    for turn in range(6):
        assert sorted(index for index, t in drawn if t == turn) == list(range(10))
    assert [index for index, t in drawn if t == 0] != [index for index, t in drawn if t == 1]
    shares = [list(Order(10, 4, epoch=1, seed=5, steps=3, rank=r, ranks=2)) for r in range(2)]
    for whole, first, second in zip(steps[1], *shares, strict=True):
        assert sorted(whole) == sorted(first + second)
        assert len(first) == len(second) == 2


def test_augmentation_is_what_scipy_makes_of_keras_matrices():
    """Rotation · shift · zoom about the middle, rows first, then the mirror; fill is the border."""
    from scipy.ndimage import affine_transform

    size, draw = (20, 31), np.random.default_rng(4)
    images = torch.from_numpy(draw.random((6, 2, *size)))
    how = Augmentation(flip=True, rotate=40, shift=0.2, zoom=0.3)
    keys = [(7, 0, index) for index in range(6)]
    made = warped(images, torch.stack([how.warp(key, size) for key in keys]))
    mirrored = 0
    for number, key in enumerate(keys):
        numbers = np.random.default_rng(key)
        angle = np.deg2rad(numbers.uniform(-40, 40))
        shift = numbers.uniform(-0.2, 0.2, 2) * size
        zoom = numbers.uniform(0.7, 1.3, 2)
        mirror = numbers.random() < 0.5
        mirrored += mirror
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.diag(zoom)
        middle = np.array(size) / 2 - 0.5
        offset = turn @ shift + middle - matrix @ middle
        for channel in range(2):
            expected = affine_transform(
                images[number, channel].numpy(), matrix, offset, order=1, mode="nearest"
            )
            if mirror:
                expected = expected[:, ::-1]
            np.testing.assert_allclose(made[number, channel].numpy(), expected, atol=1e-10)
    assert 0 < mirrored < 6
    alone = warped(images[2:3], how.warp(keys[2], size)[None])
    assert torch.equal(alone[0], made[2])


# -- MNIST's files


def idx(shape, values, kind=8):
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(values)


def test_idx_files_gzipped_or_not(tmp_path):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for stem, pack, ending in (("train", bytes, ""), ("t10k", gzip.compress, ".gz")):
        images = tmp_path / f"{stem}-images-idx3-ubyte{ending}"
        images.write_bytes(pack(idx((5, 28, 28), pixels.tobytes())))
        labels = tmp_path / f"{stem}-labels-idx1-ubyte{ending}"
        labels.write_bytes(pack(idx((5,), [7, 2, 1, 0, 4])))
    found = mnist_files(tmp_path)
    assert list(found) == ["train", "t10k"]
    for images, labels in found.values():
        assert np.array_equal(images[:, 0].numpy(), pixels)
        assert labels.tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"PK\3\4 and so on", "is no IDX file"),
        (idx((9,), [1, 2, 3]), "is cut short: 9 bytes are announced, and 3 follow"),
        (idx((2,), [1, 2, 3]), "is longer than it says"),
        (idx((2**31, 2**31, 2**31), []), "is cut short"),
        (idx((3,), [1, 2, 3], kind=13), "holds numbers of type 13"),
        (bytes([0, 0, 8, 3, 0, 0]), "is damaged: its head says 3 axes"),
        (gzip.compress(idx((300,), range(256)))[:-12], "is a damaged gzip file"),
    ],
)
def test_idx_files_that_lie(tmp_path, content, sentence):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(tvc.InputError, match=re.escape(sentence)):
        read_idx(tmp_path / "f")


def test_mnist_folders_that_cannot_be_used(train, tmp_path):
    (tmp_path / "m").mkdir()
    code, _, err = train("mnist", "--data", "m")
    assert (code, "MNIST's files are not in 'm'" in err) == (2, True)
    (tmp_path / "m" / "t10k-images-idx3-ubyte").write_bytes(idx((2, 28, 28), bytes(2 * 784)))
    code, _, err = train("mnist", "--data", "m")
    assert (code, "its labels are not: t10k-labels-idx1-ubyte" in err) == (2, True)
    (tmp_path / "m" / "t10k-labels-idx1-ubyte").write_bytes(idx((3,), [1, 2, 3]))
    code, _, err = train("mnist", "--data", "m")
    assert (code, "they do not belong together" in err) == (2, True)
    (tmp_path / "m" / "t10k-labels-idx1-ubyte").write_bytes(idx((2,), [1, 12]))
    code, _, err = train("mnist", "--data", "m")
    assert (code, "are not MNIST's: 28×28 pixels, labels up to 12" in err) == (2, True)


# -- networks and checkpoints


def test_frozen_weights_stay_and_the_new_last_layer_is_trained(pets, tmp_path):
    torch.manual_seed(1)
    given = tvc.models.load("resnet18", "none").module
    torch.save(given.state_dict(), tmp_path / "given.pth")
    begin = start(
        "resnet18", 2, weights=str(tmp_path / "given.pth"), freeze=True, input_size=(3, 64, 64)
    )
    assert begin.module.fc.weight.shape == (1, 512)
    assert "fc.weight, fc.bias from random" in begin.notes[0]
    before = {key: value.clone() for key, value in begin.module.state_dict().items()}
    assert all(torch.equal(before[k], v) for k, v in given.state_dict().items() if "fc" not in k)
    pictures = noise(8, 2, (3, 64, 64))
    fit(begin, ("a", "b"), pictures, pictures, tmp_path / "run", SHORT)
    after = weights(tmp_path / "run")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"fc.weight", "fc.bias"}  # no batch norm's statistics either
    model = tvc.models.load(str(tmp_path / "run"))
    assert model.input_size == (3, 64, 64)
    assert tvc.grad_cam(model, torch.rand(1, 3, 64, 64), "b").layer == "layer4"
    free = start("resnet18", 2, weights=str(tmp_path / "given.pth"), input_size=(3, 64, 64))
    assert not free.frozen
    with pytest.raises(tvc.InputError, match="keeps weights as they are: give some"):
        start("resnet18", 2, freeze=True)
    with pytest.raises(tvc.InputError, match="none of the weights"):
        start("squeezenet1_1", 2, weights=str(tmp_path / "given.pth"), input_size=(3, 64, 64))


@pytest.mark.parametrize("freeze", [True, False])
def test_weights_that_nobody_published_are_not_made_up(freeze):
    with pytest.raises(tvc.InputError, match="cat_dog_small has no published weights"):
        start("cat_dog_small", 2, weights="default", freeze=freeze)


def test_weights_from_a_file_keep_their_scaling_of_pictures(tmp_path, monkeypatch):
    """Published weights (1000 classes) were trained on −1…1: so must they be trained further."""
    torch.manual_seed(0)
    name, make = "googlenet", torchvision.models.googlenet
    published = make(weights=None, init_weights=False, aux_logits=True, transform_input=True)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    own = make(weights=None, init_weights=False, num_classes=3, aux_logits=False)
    begin = start(name, 2, weights=str(tmp_path / "published.pth"))
    assert begin.architecture.transform_input is True
    assert any("transform_input=True" in note for note in begin.notes)
    for other in ("googlenet", "inception_v3", "resnet18"):
        for classes in (1000, 3):
            last = {"fc.weight": torch.zeros(classes, 2), "fc.bias": torch.zeros(classes)}
            rescales, notes = tvc.models.transforms_input(other, last, "x.pth")
            assert rescales is bool(notes) is (classes == 1000 and other != "resnet18")
    loaded = tvc.models.load(name, tmp_path / "published.pth").module.eval()
    image = torch.rand(1, *begin.input_size)
    heads = {module: nn.Identity() for module in (loaded, begin.module)}
    features = []
    for module, nothing in heads.items():
        monkeypatch.setattr(module, "fc", nothing)
        with torch.no_grad():
            features.append(module.eval()(image))
    assert torch.equal(*features)

    # What was trained here says so itself, in whatever number of classes.
    kept = checkpoints.Description(
        replace(begin.architecture, outputs=3), ("a", "b", "c"), begin.input_size, begin.preprocess
    )
    file = checkpoints.write(tmp_path / "kept.safetensors", own.state_dict(), kept)
    assert tvc.models.load(str(file)).module.transform_input is True
    assert tvc.models.load(name, file).module.transform_input is True
    assert start(name, 5, weights=str(file)).architecture.transform_input is True


def test_what_was_trained_is_loaded_with_everything_that_was_known(tmp_path):
    begin = start("cat_dog_small", 2)
    pictures = noise(4)
    run = fit(
        begin, ("siamese", "pug"), pictures, pictures, tmp_path / "r", replace(SHORT, epochs=1)
    )
    described = json.loads((tmp_path / "r" / "best.json").read_text(encoding="utf-8"))
    assert described["classes"] == ["siamese", "pug"]
    assert described["architecture"]["name"] == "cat_dog_small"
    assert described["metrics"]["validation_loss"] == run.history[0]["validation_loss"]
    file = tmp_path / "r" / "best.safetensors"
    photo = colour((200, 100))
    expected = None
    for model in (
        tvc.models.load(str(tmp_path / "r")),
        tvc.models.load(str(file)),
        tvc.models.load("cat_dog_small", file),
    ):
        assert model.classes == ("siamese", "pug")
        assert model.preprocess == begin.preprocess
        result = tvc.grad_cam(model, model.prepare(photo), "pug")
        assert result.target.tolist() == [1]
        expected = result.values if expected is None else expected
        assert torch.equal(result.values, expected)
    assert not model.module.training
    with torch.no_grad():
        assert torch.equal(
            model(model.prepare(photo)), begin.module.eval()(begin.preprocess(photo))
        )


def described(**changes):
    base = {
        "format": 1,
        "architecture": {"name": "cat_dog_small", "outputs": 1, "transform_input": False},
        "classes": ["a", "b"],
        "input_size": [3, 150, 150],
        "preprocess": {
            "size": [150, 150],
            "resize": None,
            "scale": 1 / 255,
            "mean": [0.0],
            "std": [1.0],
            "channels": "RGB",
            "interpolation": "nearest",
            "channel_axis": True,
        },
        "metrics": {},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = base
        for part in path:
            place = place[part]
        place[last] = value
    return json.dumps(base)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        (described(format=99), "is of form 99"),
        (described(architecture__name="os:abort"), "from code of your own"),
        (described(architecture__outputs=10**12), "cannot have 1000000000000 outputs"),
        (described(architecture__outputs=7), "do not fit"),
        (described(classes=[1, 2]), "class names are strings"),
        (described(preprocess__channels="CMYK"), "there are no channels"),
        (described(preprocess__size=[10**9, 10**9]), "positive whole numbers"),
        (described(preprocess__interpolation="magic"), "magic"),
        (described(input_size="all"), "positive whole numbers"),
    ],
)
def test_checkpoints_are_not_trusted(tmp_path, words, sentence):
    state = start("cat_dog_small", 2).module.state_dict()
    path = checkpoints.write_tensors(tmp_path / "x.safetensors", state, {"torchviz_cnn": words})
    with pytest.raises(tvc.InputError, match=re.escape(sentence)):
        tvc.models.load(str(path))


def test_checkpoint_files_that_are_none(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(tvc.InputError, match="is not a readable weights file"):
        tvc.models.load(str(tmp_path / "x.safetensors"))
    with pytest.raises(tvc.InputError, match="there is no weights file"):
        tvc.models.load(str(tmp_path / "y.safetensors"))
    with pytest.raises(tvc.InputError, match="there is no trained network"):
        tvc.models.load(str(tmp_path))
    bare = checkpoints.write_tensors(tmp_path / "z.safetensors", {"w": torch.zeros(2)}, {})
    with pytest.raises(tvc.InputError, match="does not say of which network"):
        tvc.models.load(str(bare))


def test_confusions_and_the_most_wrong():
    chances = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.01, 0.99], [0.3, 0.7]])
    found = Judgement(chances, torch.tensor([0, 0, 0, 0, 1]))
    assert found.confusion().tolist() == [[1, 3], [0, 1]]
    assert found.worst(2) == [3, 1]
    assert found.accuracy == pytest.approx(0.4)


def test_a_map_of_nothing_but_0_beside_a_wrong_picture_is_said_to_be_one():
    """Brightness speaks against class 0 and for class 1; on a dark picture only 0's bias is left."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(1, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(0.1)
        net[4].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net[4].bias.copy_(torch.tensor([1.0, 0.0]))
    model = tvc.models.Model(
        net, Preprocess((8, 8), channels="L"), (1, 8, 8), ("dark", "bright"), "two lights"
    )
    pixels = torch.tensor([20, 240], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    pictures = in_memory(pixels.contiguous(), torch.tensor([1, 0]), "light")
    found = outcome.judge(model, pictures)
    assert found.guesses.tolist() == [0, 1]
    (plate,) = outcome._worst(model, found, pictures).plates
    assert "Of bright, taken for dark (" in plate.caption
    assert "nothing did: Grad-CAM's map is 0 everywhere" in plate.caption
    assert "dark, taken for bright" not in plate.caption


@pytest.mark.parametrize(("wrong", "said"), [(0, "100.0 %"), (1, ">99.9 %"), (999, "90.0 %")])
def test_all_pictures_are_right_only_where_none_is_wrong(wrong, said):
    chances = torch.tensor([[0.9, 0.1]]).repeat(10000, 1)
    found = Judgement(chances, (torch.arange(10000) < wrong).long())
    run = SimpleNamespace(model=SimpleNamespace(source="net (x)"), history=[{}], best=1)
    assert f" {said} of 10,000 held-out pictures are right" in outcome.lead(run, found, 5)


def test_curves_are_drawn_of_every_number_or_the_missing_one_is_named():
    epochs = [
        {
            "epoch": number,
            "loss": 1 / number,
            "accuracy": 0.5,
            "validation_loss": 2 / number,
            "validation_accuracy": number / 4,
        }
        for number in (1, 2, 3)
    ]
    loss, accuracy = tvc.render.training_curves(epochs, best=2).axes
    drawn = {line.get_label(): line.get_ydata() for line in loss.lines}
    np.testing.assert_allclose(drawn["training"], [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(drawn["held out"], [2, 1, 2 / 3])
    drawn = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    np.testing.assert_allclose(drawn["held out"], [25, 50, 75])  # per cent
    del epochs[1]["validation_loss"]
    with pytest.raises(tvc.InputError, match="epoch 2 of the history has no validation_loss"):
        tvc.render.training_curves(epochs)
    with pytest.raises(tvc.InputError, match="there are no epochs"):
        tvc.render.training_curves([])


def test_a_network_that_does_not_fit_the_classes_is_refused_before_training(train, tmp_path, pets):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def three(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(4, 3))\n"
        "def two(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(4, 2))\n"
    )
    rest = (*QUICK[2:], "--input-size", "3x32x32", "--out", "run")
    code, _, err = train("cat-dog", "--data", pets, "--model", "own_nets:three", *rest)
    assert code == 2
    assert "puts out 3 numbers a picture; 2 classes call for 1 or 2" in err
    code, _, err = train("cat-dog", "--data", pets, "--model", "own_nets:two", *rest)
    assert code == 0, err
    with pytest.raises(tvc.InputError, match="code of your own"):
        tvc.models.load(str(tmp_path / "run"))
    model = tvc.models.load("own_nets:two", tmp_path / "run" / "best.safetensors")
    assert model.classes == ("cats", "dogs")
    assert model.input_size == (3, 32, 32)


def test_squeezenets_scores_come_out_of_a_relu_and_both_classes_are_learnt(tmp_path):
    """One score that is never below 0 could only ever say the second class."""
    draw = np.random.default_rng(0)
    labels = torch.arange(24) % 2
    pixels = torch.from_numpy(draw.integers(0, 60, (24, 3, 64, 64), dtype=np.uint8))
    for number, label in enumerate(labels.tolist()):
        pixels[number, 2 * label] += 150  # red against blue
    pictures = in_memory(pixels, labels, "plate")
    # From others of the first weights a class's ReLU may never open, which ones torch's version decides.
    begin = start("squeezenet1_1", 2, input_size=(3, 64, 64), seed=6)
    assert begin.architecture.outputs == 2
    settings = replace(SHORT, epochs=6, batch_size=8)
    run = fit(begin, ("red", "blue"), pictures, pictures, tmp_path / "run", settings)
    found = outcome.judge(run.model, pictures)
    assert found.confusion().tolist() == [[12, 0], [0, 12]]
    assert tvc.models.load(str(tmp_path / "run")).classes == ("red", "blue")
    assert start("resnet18", 2, input_size=(3, 64, 64)).architecture.outputs == 1


class _Does(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "does",
    [
        lambda x: x.clamp(max=6),
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp_min(-0.5),
        lambda x: x.clamp(min=x.new_full((), -0.5)),
        lambda x: x.clamp(max=x.new_full((), 0.5)),
        lambda x: torch.maximum(x, x.new_full((), -1.0)),
        lambda x: torch.maximum(x, -x),
        lambda x: torch.minimum(x, x.new_zeros(())),
        lambda x: nn.functional.threshold(x, -1.0, -1.0),
    ],
)
def test_one_score_that_is_only_cut_off_elsewhere_is_taken(does):
    network = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), _Does(does))
    assert ending_of(network, (3, 8, 8), 2) is None


@pytest.mark.parametrize(
    "last",
    [
        (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (nn.AdaptiveMaxPool2d(1), nn.ReLU(inplace=True), nn.Flatten(0), nn.Sigmoid()),
        (nn.ReLU6(), nn.AvgPool2d(6), nn.Dropout(), nn.Flatten()),
        (nn.Threshold(0, 0), nn.MaxPool2d(6), nn.Flatten(1), nn.Identity()),
        (nn.AvgPool2d(6), nn.Flatten(), nn.Softplus()),
        (nn.Threshold(0.5, 0), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        (_Does(lambda x: x.clamp(min=0)), nn.AvgPool2d(6), nn.Flatten()),
        (_Does(lambda x: x.clamp(0, 6)), nn.AvgPool2d(6), nn.Flatten()),
        (_Does(lambda x: x.clamp(min=0.5)), nn.AvgPool2d(6), nn.Flatten()),
        (nn.AvgPool2d(6), nn.Flatten(), _Does(lambda x: (1 * x).clamp_(0))),
        (nn.AvgPool2d(6), nn.Flatten(), _Does(lambda x: torch.clamp_min(x, 0))),
        (nn.AvgPool2d(6), nn.Flatten(), _Does(lambda x: x.clamp(min=x.new_zeros(())))),
        (nn.AvgPool2d(6), nn.Flatten(), _Does(lambda x: x.clamp_min(x.new_zeros(1)))),
        (nn.AvgPool2d(6), nn.Flatten(), _Does(lambda x: torch.maximum(x, x.new_zeros(())))),
        (nn.AvgPool2d(6), nn.Flatten(), _Does(lambda x: torch.max(torch.zeros_like(x), x))),
        (nn.ReLU(), _Does(lambda x: x.amax((2, 3)))),
        (nn.ReLU(), _Does(lambda x: x.flatten(2).max(2)[0])),
    ],
)
def test_one_score_out_of_a_relu_is_refused(last):
    network = nn.Sequential(nn.Conv2d(3, 1, 3), *last)
    with pytest.raises(tvc.InputError, match="comes out of a ReLU: it is never below 0"):
        ending_of(network, (3, 8, 8), 2)
    network.insert(1, nn.ReLU())
    network.insert(2, nn.Conv2d(1, 1, 1))
    free = nn.Sequential(*network[:3], nn.AdaptiveAvgPool2d(1), nn.Hardtanh(), nn.Flatten())
    assert ending_of(free, (3, 8, 8), 2) is None
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("count", "share", "held_out"),
    [
        (2, 0.2, 1),  # never none
        (3, 0.2, 1),
        (10, 0.2, 2),
        (10, 0.25, 2),
        (101, 0.2, 20),
        (4, 0.5, 2),
        (4, 0.9, 3),  # never all: something must be left to train on
        (2, 0.99, 1),
        (1000, 0.001, 1),
    ],
)
def test_splits_hold_out_a_share_and_lose_nothing(count, share, held_out):
    own, held = split(count, share, seed=4)
    assert len(held) == held_out
    assert sorted(own + held) == list(range(count))
