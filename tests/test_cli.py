"""The command line as a stranger types it: what it writes, and what it says when it cannot."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image

from tests.onnx_files import node as onnx_node
from tests.onnx_files import save as save_onnx
from torchviz_cnn import cli, render
from torchviz_cnn.methods import METHODS


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Type a command in an empty folder; gives exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def type_in(*words):
        monkeypatch.setattr(sys, "argv", ["torchviz-cnn", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return type_in


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(noise).resize((180, 120), Image.Resampling.BICUBIC).save(path)
    return path


def files(folder):
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def test_layers_prints_a_summary(run):
    code, out, _ = run("layers", "cat_dog")
    assert code == 0
    assert "Total params: 3,453,121" in out
    assert "conv2d_1 (Conv2D)" in out


def test_layers_as_data(run):
    code, out, _ = run("layers", "mnist_convnet", "--json", "--all")
    rows = json.loads(out)
    assert code == 0
    assert {"name": "conv_1.act", "type": "ReLU"}.items() <= {
        k: v for row in rows if row["name"] == "conv_1.act" for k, v in row.items()
    }.items()


def test_explain_all_methods_writes_overlays_and_a_sheet(run, picture, tmp_path):
    code, out, err = run(
        "explain",
        picture,
        "-m",
        "cat_dog_small",
        "--method",
        "all",
        "--keep",
        0.3,
        "--npz",
        "--out",
        "o",
    )
    assert code == 0, err
    written = files(tmp_path / "o")
    for name in METHODS:
        assert f"photo_{name}.png" in written
        assert f"photo_{name}_masked.png" in written
        assert f"photo_{name}.npz" in written
    assert "photo_sheet.png" in written
    assert "photo_occlusion_probability.png" in written
    assert "random weights" in err
    assert "%" in out  # the predictions
    with Image.open(tmp_path / "o" / "photo_grad_cam.png") as image:
        assert image.size == (360, 240)  # the picture's shape, enlarged to be looked at


def test_a_sheet_has_few_columns_and_speaks_only_of_the_gradients_it_shows(
    run, picture, monkeypatch
):
    drawn = []
    whole = render.sheet
    monkeypatch.setattr(
        render, "sheet", lambda *given, **options: drawn.append(given) or whole(*given, **options)
    )
    for names in (["grad_cam"], ["saliency"], ["all"]):
        words = [word for name in names for word in ("--method", name)]
        code, _, err = run("explain", picture, "-m", "cat_dog_small", *words, "--out", "o")
        assert code == 0, err
    clipped = "maps alone (gradients: the largest 1 % clipped)"
    assert [given[2][2] for given in drawn[:2]] == ["maps alone", clipped]
    rows = [given[1] for given in drawn[2:]]
    assert [name.split(" ")[0] for row in rows for name in row] == ["picture", *METHODS]
    assert max(map(len, rows)) <= 5
    assert [len(row) for row in rows[:-1]] == [5] * (len(rows) - 1)
    with Image.open("o/photo_sheet.png") as sheet:
        assert sheet.width < 1280


def test_explain_several_targets_and_several_pictures_of_one_name(run, picture, tmp_path):
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "photo.png"
    second.write_bytes(picture.read_bytes())
    code, _, err = run(
        "explain", picture, second, "-m", "cat_dog_small", "-t", "dog", "-t", "0", "--out", "o"
    )
    assert code == 0, err
    written = files(tmp_path / "o")
    for stem in ("photo", "photo-2"):
        assert {
            f"{stem}_grad_cam_dog.png",
            f"{stem}_grad_cam_0.png",
            f"{stem}_sheet_dog.png",
        } <= set(written)


def test_explain_several_layers_writes_a_picture_of_each(run, picture, tmp_path):
    code, _, err = run(
        *("explain", picture, "-m", "cat_dog_small", "--out", "o", "--npz"),
        *("--method", "layer_cam", "--method", "saliency", "--method", "smooth_grad"),
        *("--layer", "conv2d_1", "--layer", "conv2d_2", "--samples", 2, "--noise", 0.1),
    )
    assert code == 0, err
    written = files(tmp_path / "o")
    stems = ("layer_cam_conv2d_1", "layer_cam_conv2d_2", "saliency", "smooth_grad")
    assert {f"photo_{stem}.{kind}" for stem in stems for kind in ("png", "npz")} <= set(written)
    with np.load(tmp_path / "o" / "photo_layer_cam_conv2d_1.npz") as stored:
        first = stored["values"].shape
    with np.load(tmp_path / "o" / "photo_layer_cam_conv2d_2.npz") as stored:
        assert stored["values"].shape[1] < first[1]
    with np.load(tmp_path / "o" / "photo_smooth_grad.npz") as stored:
        assert json.loads(str(stored["manifest"]))["parameters"]["samples"] == 2


def test_explain_all_leaves_out_what_a_network_cannot_and_says_so(run, picture, tmp_path):
    (tmp_path / "smooth.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),"
        " nn.Linear(16, 3))\n"
    )
    words = ["explain", picture, "-m", "smooth:net", "--input-size", "3x32x48"]
    code, _, err = run(*words, "--method", "all", "--out", "o")
    assert code == 0, err
    assert "note: guided_backprop, guided_grad_cam are left out: guided rules" in err
    assert "photo_grad_cam.png" in files(tmp_path / "o")
    assert "photo_guided_backprop.png" not in files(tmp_path / "o")
    code, _, err = run(*words, "--method", "guided_backprop", "--out", "p")
    assert code == 2
    assert "has none; use saliency" in err
    assert not (tmp_path / "p").exists()


def test_activations_draw_a_picture_a_layer(run, picture, tmp_path):
    code, _, err = run("activations", picture, "-m", "mnist_convnet", "--out", "o")
    assert code == 0, err
    names = [name.removeprefix("photo_") for name in files(tmp_path / "o")]
    steps = [name.split("_", 1)[1] for name in names if name[:3].isdigit()]
    assert steps == [
        f"{layer}.png"
        for layer in (
            "input_layer",
            "input_layer.act",
            "conv_1",
            "conv_1.act",
            "pool_1",
            "dropout_1",
            "flate_1",
            "dense_1",
            "dense_1.act",
            "dropout_2",
            "output_layer",
            "output_layer.act",
        )
    ]
    assert {"input.png", "sparsity.png", "walk.html"} == {n for n in names if not n[:3].isdigit()}
    html = (tmp_path / "o" / "photo_walk.html").read_text()
    shown = {part.split('"')[0] for part in html.split('src="')[1:]}
    assert shown == {name for name in files(tmp_path / "o") if name.endswith(".png")}
    assert "random weights" in html


@pytest.mark.parametrize("layer", ["conv2d_9", "relu*", "conv2d_1@2"])
def test_layers_that_are_not_there_are_refused_before_anything_is_said(
    run, picture, tmp_path, layer
):
    code, out, err = run("activations", picture, "-m", "cat_dog_small", "--layers", layer)
    assert code == 2
    assert "torchviz-cnn: " in err
    assert out == ""
    assert files(tmp_path) == ["photo.png"]


def test_activations_of_named_layers_and_the_strongest_channels(run, picture, tmp_path):
    code, _, err = run(
        "activations",
        picture,
        "-m",
        "cat_dog_small",
        "-l",
        "conv2d_?",
        "--top",
        4,
        "--scale",
        "0,1",
        "--colormap",
        "gray",
        "--out",
        "o",
    )
    assert code == 0, err
    assert len(files(tmp_path / "o")) == 4


def test_methods_lists_every_method(run):
    _, out, _ = run("methods")
    assert all(name in out for name in METHODS)


def bad_pictures(folder):
    (folder / "text.png").write_text("no picture at all")
    image = Image.effect_noise((200, 200), 60).convert("RGB")
    image.save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:3000])


ALL = ["explain", "photo.png", "-m", "cat_dog", "--method", "all"]
NETS = """
import torch
from torch import nn

class Gray(nn.Module):
    '''Takes N pictures without a channel axis.'''

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x[:, None]).relu().mean((2, 3)))

def gray():
    return Gray()

def double():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).double()

def exact():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net.double()

class Bare(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

class Complaining(Bare):
    def forward(self, x):
        raise TypeError("my own complaint")

class Lost(Bare):
    def forward(self, x):
        return x.mean((2, 3)) * float("nan")

class Complex(Bare):
    def forward(self, x):
        return x.mean((2, 3)).to(torch.complex64)

def raising():
    return {}["weights"]

def needs(size):
    return nn.Linear(size, 2)
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["explain", "nowhere.png", "-m", "cat_dog"], "there is no file 'nowhere.png'"),
        (["explain", "cut.jpg", "-m", "cat_dog"], "'cut.jpg' is damaged"),
        (["explain", "text.png", "-m", "cat_dog"], "'text.png' is not a picture"),
        (["explain", "photo.png", "cut.jpg", "-m", "cat_dog"], "'cut.jpg' is damaged"),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--out", "photo.png"],
            "is a file; name a folder",
        ),
        (["demo", "--out", "photo.png/deep"], "'photo.png' is a file; name a folder"),
        (["explain", "photo.png", "-m", "resnet5O"], "did you mean 'resnet50'"),
        (["explain", "photo.png", "-m", "cat_dog", "--layer", "conv2d_9"], "did you mean 'conv2d_"),
        (["explain", "photo.png", "-m", "cat_dog", "--layer", "dense_1"], "weighs feature maps"),
        (
            ["explain", "photo.png", "-m", "cat_dog", "-t", "2"],
            "class 2 is out of range: there are names of 2",
        ),
        (["explain", "photo.png", "-m", "cat_dog", "-t", "bird"], "no class is called 'bird'"),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--method", "gradcam"],
            "did you mean 'grad_cam'",
        ),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--method", "occlusion", "--window", "200"],
            "the window 200×200 is larger than the picture 150×150",
        ),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--window", "20"],
            "--window is not for grad_cam",
        ),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--method", "occlusion", "--stride", "60"],
            "larger than the window",
        ),
        (["explain", "photo.png", "-m", "cat_dog", "--colormap", "jett"], "did you mean 'jet'"),
        (["explain", "photo.png", "-m", "cat_dog", "--alpha", "3"], "--alpha must lie between"),
        (["explain", "photo.png", "-m", "cat_dog", "--score", "loss"], "score must be"),
        (["explain", "photo.png", "-m", "cat_dog", "--weights", "nowhere.pt"], "no weights file"),
        (["explain", "photo.png", "-m", "cat_dog", "--preprocess", "cafe"], "did you mean 'caffe'"),
        (["explain", "photo.png", "-m", "cat_dog", "--device", "tpu"], "choose auto, cpu or cuda"),
        (
            ["explain", "photo.png", "-m", "flat:net", "--input-size", "3x8x8"],
            "no convolution of this network",
        ),
        (
            [
                "explain",
                "photo.png",
                "-m",
                "flat:net",
                "--input-size",
                "3x9x9",
                "--method",
                "saliency",
            ],
            "inputs of shape (N, 3, 9, 9): the layer '1' takes 192 features and is reached by 243",
        ),
        (
            ["activations", "photo.png", "-m", "cat_dog", "-l", "conv9"],
            "the network has no layer 'conv9'",
        ),
        (
            ["activations", "photo.png", "-m", "cat_dog", "-l", "block*"],
            "no layer matches 'block*'",
        ),
        (["activations", "photo.png", "-m", "cat_dog", "--scale", "huge"], "--scale must be"),
        (["layers", "vgg_16"], "did you mean 'vgg16'"),
        (["demo", "--picture", "nowhere.png"], "there is no file"),
        (
            [*ALL, "--layer", "conv2d_9"],
            "did you mean 'conv2d_",
        ),
        ([*ALL, "--layer", "dense_1"], "weighs feature maps"),
        ([*ALL, "--window", "400"], "is larger than the picture"),
        ([*ALL, "--stride", "60"], "larger than the window"),
        ([*ALL, "-t", "9" * 20], "is out of range"),
        ([*ALL, "--window", "0"], "--window must be like"),
        (["layers", "vgg16", "--input-size", "1x64x64"], "vgg16 takes colour pictures"),
        (["layers", "cat_dog", "--input-size", "3x64x64"], "takes 3×150×150, not 3×64×64"),
        (["layers", "vgg16", "--input-size", "3x0x5"], "--input-size must be like"),
        (
            ["layers", "vgg16", "--input-size", "3x16x16"],
            "inputs of shape (N, 3, 16, 16): the layer 'features.30' (MaxPool2d) says:",
        ),
        (
            ["layers", "nets:gray", "--input-size", "3x20x24"],
            "takes 1 channel and is reached by 3",
        ),
        (["layers", "nets:needs"], "must be callable without arguments"),
        (["layers", "torch.nn:Conv2d"], "must be callable without arguments"),
        (["explain", "photo.png", "-m", "cat_dog", "--fill", "1"], "--fill is not for grad_cam"),
        (
            [
                "explain",
                "photo.png",
                "-m",
                "cat_dog",
                "--method",
                "saliency",
                "--layer",
                "conv2d_4",
            ],
            "--layer is not for saliency, but for grad_cam, hires_cam, layer_cam,",
        ),
        (
            [
                *("explain", "photo.png", "-m", "cat_dog"),
                *("--method", "saliency", "--align", "stretch"),
            ],
            "--align is not for saliency, but for grad_cam, hires_cam, layer_cam, "
            "grad_cam_plus_plus, score_cam",
        ),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--samples", "3"],
            "--samples is not for grad_cam, but for smooth_grad",
        ),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--steps", "3"],
            "--steps is not for grad_cam, but for integrated_gradients",
        ),
        (
            [
                *("explain", "photo.png", "-m", "cat_dog", "--method", "score_cam"),
                *("--dtype", "float64"),
            ],
            "--dtype must be bfloat16 or float16, not 'float64'",
        ),
        (
            [
                *("explain", "photo.png", "-m", "cat_dog", "--method", "integrated_gradients"),
                *("--baseline", "dark"),
            ],
            "--baseline must be a number, mean or blur, not 'dark'",
        ),
        (["explain", "photo.png", "-m", "zzzzz"], "package.module:factory"),
        (["layers", "vit_b_16", "--input-size", "3x256x256"], "Wrong image height"),
        (["layers", "nets:double", "--input-size", "3x100000x100000"], "positive whole numbers"),
        (["layers", "nets:raising"], "nets:raising failed: KeyError: 'weights' ("),
        (["layers", "wrong:net"], "wrong:net failed: SyntaxError"),
        (["layers", "quits:net"], "quits:net failed: SystemExit: 3 ("),
        (["layers", "sys:exit"], "sys:exit failed: SystemExit"),
        (["layers", "nowhere.nets:net"], "cannot find 'nowhere.nets:net'"),
        (["layers", "nets:nowhere"], "cannot find 'nets:nowhere'"),
        (
            ["explain", "photo.png", "-m", "nets:Complaining"],
            "the network failed when it was run: TypeError: my own complaint (",
        ),
        (
            ["explain", "photo.png", "-m", "nets:Lost", "--method", "saliency"],
            "the network puts out NaN",
        ),
        (["explain", "photo.png", "-m", "nets:Complex"], "puts out torch.complex64 numbers"),
        (
            ["explain", "photo.png", "-m", "cat_dog", "--method", "nope", "--method", "all"],
            "there is no method 'nope'",
        ),
        (["activations", "photo.png", "-m", "cat_dog", "--scale", "0,inf"], "two finite numbers"),
        (
            ["activations", "photo.png", "-m", "cat_dog", "--classes", "three.txt"],
            "3 class names are known for a network of 2 classes",
        ),
        (["explain", "nan.tiff", "-m", "cat_dog"], "holds NaN or infinite numbers"),
        (["demo", "-m", "vgg16"], "--model is for a picture of yours, named with --picture"),
        (["demo", "--weights", "none"], "--weights is for a picture of yours"),
        (["demo", "-t", "4"], "--target is for a picture of yours"),
        (
            ["demo", "--picture", "photo.png", "--digit", "4"],
            "--digit is for the demo without --picture",
        ),
        (
            ["demo", "--picture", "photo.png", "-m", "cat_dog_small", "-t", "²"],
            "no class is called '²'",
        ),
        (
            ["activations", "photo.png", "-m", "cat_dog", "--by", "max"],
            "ranked to draw the first of them: say how many, --top 16",
        ),
        *(
            (
                ["activations", "photo.png", "-m", "cat_dog", "-k", "1", *option],
                f"{option[0]} is for grids of channels: single ones are drawn large",
            )
            for option in (["--top", "3"], ["--by", "max"], ["--columns", "4"], ["--scale", "0,1"])
        ),
        (
            ["filters", "cat_dog", "-l", "conv2d_1", "--colormap", "viridis"],
            "--colormap is for kernels drawn channel by channel",
        ),
        (
            ["filters", "cat_dog", "-l", "conv2d_2", "--columns", "4"],
            "--columns is for grids of kernels",
        ),
        (
            ["filters", "cat_dog", "-l", "conv2d_[23]", "--bgr"],
            "--bgr is for kernels that see three colours, and these see 32, 64 input channels",
        ),
        (
            ["maximize", "cat_dog", "-t", "1", "--parametrization", "pixels", "--decay", "2"],
            "--decay is of a spectrum: it is for --parametrization fourier",
        ),
        (
            ["patches", ".", "-m", "cat_dog", "-l", "x", "-k", "1", "--classes", "three.txt"],
            "No such option",
        ),
        (
            ["style", "photo.png", "photo.png", "-m", "cat_dog", "--classes", "three.txt"],
            "No such option",
        ),
        (["explain", "photo.png"], "Missing option"),
        (["explain"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(
    run, monkeypatch, picture, tmp_path, words, sentence
):
    bad_pictures(tmp_path)
    (tmp_path / "flat.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n"
    )
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "wrong.py").write_text("def broken(:")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(3)")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    before = [name for name in files(tmp_path) if "pycache" not in name]
    code, out, err = run(*words)
    assert code == 2
    assert sentence in err.replace("\n", " ")
    assert "Traceback" not in out + err
    assert "torchviz-cnn-out" not in files(tmp_path)
    after = [
        name for name in files(tmp_path) if "pycache" not in name and not name.endswith(".pyc")
    ]
    assert after == before


@pytest.mark.parametrize("mode", ["palette", "deep", "cmyk", "transparent", "turned"])
def test_unusual_pictures_work(run, tmp_path, mode):
    base = Image.effect_noise((60, 40), 80)
    path = tmp_path / "odd.png"
    if mode == "palette":
        base.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    elif mode == "deep":
        Image.fromarray(np.asarray(base).astype(np.uint16) * 257).save(path)
    elif mode == "cmyk":
        path = tmp_path / "odd.jpg"
        base.convert("CMYK").save(path)
    elif mode == "transparent":
        base.convert("LA").save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        base.save(path, exif=exif)
    code, _, err = run("explain", path, "-m", "cat_dog_small", "--out", "o")
    assert code == 0, err
    with Image.open(tmp_path / "o" / "odd_grad_cam.png") as image:
        turned = image.height > image.width
    assert turned == (mode == "turned")


LIMITED = """
import resource, signal, sys
from torchviz_cnn import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.argv = ["torchviz-cnn", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")
def test_out_of_disk_is_a_sentence_and_leaves_no_half_file(picture, tmp_path):
    """Files may not grow past 2,000 bytes: writing fails as on a full disk."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED,
            "explain",
            str(picture),
            "-m",
            "cat_dog_small",
            "--out",
            "o",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path / "mpl")},
    )
    assert done.returncode == 2, done.stderr
    assert "torchviz-cnn: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_it_runs_as_a_module_where_the_script_is_not_on_the_path(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torchviz_cnn", "layers", "cat_dog"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Total params: 3,453,121" in done.stdout


def test_what_imports_every_module_runs_no_command():
    assert importlib.import_module("torchviz_cnn.__main__").main is cli.main


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_a_terminal_or_file_that_lacks_characters_gets_the_rest(tmp_path, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "torchviz_cnn.cli", "layers", "mnist_convnet"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode(encoding)
    assert re.search(r"conv_1 \(Conv2D\) +64×24×24", said)
    assert ("═" in said) == (encoding == "utf-8")


def test_a_picture_whose_name_is_no_text_is_drawn_and_found_from_its_page(run, picture, tmp_path):
    """Old files are called in Latin-1: a name need not be UTF-8, and the page's links are bytes."""
    named = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        named.write_bytes(picture.read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    code, out, err = run("activations", named, "-m", "mnist_convnet", "--out", "o")
    assert code == 0, err
    assert "caf?.png" in out
    page = (tmp_path / "o" / os.fsdecode(b"caf\xe9_walk.html")).read_text(encoding="utf-8")
    links = re.findall('href="([^"#]+)"', page)
    assert len(links) > 5
    there = {os.fsencode(path.name) for path in (tmp_path / "o").iterdir()}
    assert {unquote_to_bytes(link) for link in links} <= there


def test_an_old_result_survives_a_failure_and_other_files_stay(picture, tmp_path):
    from torchviz_cnn.files import all_or_nothing

    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "old.png").write_bytes(b"old")
    with pytest.raises(OSError, match="full"), all_or_nothing(tmp_path / "o") as staging:
        (staging / "old.png").write_bytes(b"new")
        raise OSError("full")
    assert files(tmp_path / "o") == ["old.png"]
    assert (tmp_path / "o" / "old.png").read_bytes() == b"old"
    with pytest.raises(KeyboardInterrupt), all_or_nothing(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()
    with all_or_nothing(tmp_path / "a" / "b") as staging:
        (staging / "x.png").write_bytes(b"x")
    assert files(tmp_path / "a") == ["b", "x.png"]


def test_options_for_some_of_the_pictures_are_taken(run, tmp_path):
    """One of the layers is drawn in colour, the other as a table: each option serves one of them."""
    words = ("filters", "cat_dog_small", "-l", "conv2d_1", "-l", "conv2d_2", "--out", "o")
    code, _, err = run(*words, "--colormap", "gray", "--columns", 3, "--bgr")
    assert code == 0, err
    assert files(tmp_path / "o") == ["filters_conv2d_1.png", "filters_conv2d_2.png"]


def test_help_teaches_by_example(run):
    for command in ("explain", "activations", "layers", "demo"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "Examples:" in out
        assert f"\n    torchviz-cnn {command}" in out or f"\n  torchviz-cnn {command}" in out


def test_the_demo_with_ones_own_picture(run, picture, tmp_path):
    torch.manual_seed(0)
    code, out, err = run("demo", "--picture", picture, "-m", "cat_dog_small", "--out", "d")
    assert code == 0, err
    page = (tmp_path / "d" / "index.html").read_text()
    shown = {part.split('"')[0] for part in page.split('src="')[1:]}
    assert shown == {name for name in files(tmp_path / "d") if name.endswith(".png")}
    # Score-CAM takes a forward pass a channel: minutes, for the networks people use.
    assert {f"{name}.png" for name in METHODS} - shown == {"score_cam.png"}
    assert "index.html" in out


@pytest.fixture
def nets(monkeypatch, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "nets", raising=False)


def test_a_network_without_a_channel_axis_is_explained_by_every_method(
    run, nets, picture, tmp_path
):
    size = ("-m", "nets:gray", "--input-size", "20x24", "--out", "o")
    code, _, err = run("explain", picture, *size, "--method", "all", "--npz")
    assert code == 0, err
    with np.load(tmp_path / "o" / "photo_saliency.npz") as stored:
        assert stored["values"].shape == (1, 20, 24)
    assert {f"photo_{name}.png" for name in METHODS} <= set(files(tmp_path / "o"))
    code, _, err = run("activations", picture, *size)
    assert (code, "photo_000_conv.png" in files(tmp_path / "o")) == (0, True), err


def test_a_network_in_double_precision_gets_its_pictures_so(run, nets, picture, tmp_path):
    size = ("-m", "nets:exact", "--input-size", "3x12x12", "--out", "o")
    for command in (("explain", "--npz"), ("activations",)):
        code, _, err = run(command[0], picture, *size, *command[1:])
        assert code == 0, err
    with np.load(tmp_path / "o" / "photo_grad_cam.npz") as stored:
        assert stored["values"].dtype == np.float64


def test_a_network_without_parameters_is_explained(run, nets, picture, tmp_path):
    size = ("-m", "nets:Bare", "--input-size", "3x12x12", "--out", "o")
    code, _, err = run("explain", picture, *size, "--method", "all")
    assert code == 0, err
    assert (
        "hires_cam, layer_cam, grad_cam_plus_plus, guided_grad_cam, score_cam are left out: no"
        in err
    )
    assert "guided_backprop is left out: guided rules are about ReLUs" in err
    assert {"photo_saliency.png", "photo_occlusion.png"} <= set(files(tmp_path / "o"))
    assert "photo_grad_cam.png" not in files(tmp_path / "o")
    assert run("layers", "nets:Bare", "--input-size", "3x12x12")[0] == 0


def test_random_weights_are_the_same_every_time(run, picture, tmp_path):
    told = [
        run("explain", picture, "-m", "cat_dog_small", "--out", f"o{which}")[1].replace(
            f"o{which}", ""
        )
        for which in (1, 2)
    ]
    assert told[0] == told[1]
    first, second = (tmp_path / f"o{which}" / "photo_grad_cam.png" for which in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_a_larger_input_is_really_used(run, picture, tmp_path):
    size = ("-m", "squeezenet1_1", "--weights", "none", "--input-size", "3x96x128")
    code, _, err = run("explain", picture, *size, "--npz", "--out", "o")
    assert code == 0, err
    with np.load(tmp_path / "o" / "photo_grad_cam.npz") as stored:
        assert stored["heatmap"].shape == (1, 96, 128)
    _, out, _ = run("layers", "squeezenet1_1", "--input-size", "3x96x128")
    assert "3×96×128" in out


def test_a_damaged_file_of_published_weights_is_told_by_its_name(
    run, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    for content in (b"", b"not weights", b"PK\x03\x04 half a file"):
        file.write_bytes(content)
        code, out, err = run("explain", picture, "-m", "squeezenet1_1", "--out", "o")
        assert code == 2
        assert "squeezenet1_1-b8a52dc0.pth" in err
        assert "damaged" in err
        assert "Traceback" not in out + err


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("out", ["locked", "locked/deeper/still"])
def test_a_folder_that_may_not_be_written_to_is_told_before_any_work(
    run, monkeypatch, picture, out
):
    """Not after all methods have run. Who may write anywhere is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        shutil.copy(picture, folder)
        (folder / "locked").mkdir(mode=0o555)
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            words = ("explain", folder / "photo.png", "-m", "cat_dog_small", "--out", folder / out)
            code, said, err = run(*words)
        finally:
            os.seteuid(user)
            monkeypatch.chdir("/")
        assert files(folder / "locked") == []
    assert code == 2
    assert said == ""
    assert f"the folder '{folder / 'locked'}' may not be written to; name another one" in err


def test_a_folder_where_a_picture_is_to_go_is_found_before_anything_is_moved(
    run, picture, tmp_path
):
    (tmp_path / "o" / "photo_sheet.png").mkdir(parents=True)
    code, _, err = run("explain", picture, "-m", "cat_dog_small", "--out", "o")
    assert code == 2
    assert "is a folder where a file of that name" in err
    assert files(tmp_path / "o") == ["photo_sheet.png"]


def test_activations_run_the_network_twice_a_picture_at_most(run, picture, monkeypatch):
    """Once for the predictions and once for the layers, after it has been looked over once."""
    from torchviz_cnn import models

    runs = []
    load = models.load

    def counting(*args, **kwargs):
        model = load(*args, **kwargs)
        model.module.register_forward_pre_hook(lambda *_: runs.append(1))
        return model

    monkeypatch.setattr(models, "load", counting)
    code, _, err = run("activations", picture, picture, "-m", "cat_dog_small", "--out", "o")
    assert code == 0, err
    assert len(runs) <= 5


def test_a_fault_of_this_program_is_not_hidden(run, picture, monkeypatch):
    from torchviz_cnn import album

    def broken(*_args, **_options):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(album, "predict", broken)
    with pytest.raises(KeyError, match="a mistake of ours"):
        run("explain", picture, "-m", "cat_dog_small", "--out", "o")


def test_targets_that_would_share_a_file_name_do_not(run, picture, tmp_path):
    (tmp_path / "two.txt").write_text("b c\nb/c\n")
    words = ("-m", "cat_dog_small", "--classes", "two.txt", "-t", "b c", "-t", "b/c", "-o", "o")
    code, _, err = run("explain", picture, *words)
    assert code == 0, err
    assert {"photo_grad_cam_b_c.png", "photo_grad_cam_b_c-2.png"} <= set(files(tmp_path / "o"))


def test_the_layers_of_a_network_that_is_no_classifier_are_drawn(run, nets, picture, tmp_path):
    (tmp_path / "maps.py").write_text(
        "from torch import nn\n"
        "def score():\n"
        "    return nn.Sequential(nn.Conv2d(3, 1, 3, stride=20))\n"
        "class Parts(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 2, 3)\n"
        "    def forward(self, x):\n"
        "        return {'boxes': [self.conv(x)]}\n"
    )
    size = ("--input-size", "3x120x140", "-o", "o")
    code, out, err = run("activations", picture, "-m", "maps:score", *size)
    assert code == 0, err
    assert "the network is no classifier: its output is (1, 1, 6, 7)" in err
    assert " %  " not in out
    code, out, err = run("activations", picture, "-m", "maps:Parts", *size)
    assert code == 0, err
    assert "returned a dict without a tensor of class scores" in err
    assert {"photo_000_0.png", "photo_000_conv.png"} <= set(files(tmp_path / "o"))
    code, _, err = run("explain", picture, "-m", "maps:score", *size)
    assert code == 2
    assert "the network is no classifier" in err


def test_what_a_network_warns_of_is_a_note(run, nets, picture, tmp_path):
    (tmp_path / "spelt.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, x):\n"
        "        e = self.conv(x).mean((2, 3)).exp()\n"
        "        return e / e.sum(1, keepdim=True)\n"
    )
    code, _, err = run(
        "explain", picture, "-m", "spelt:Net", "--input-size", "3x20x20", "--out", "o"
    )
    assert code == 0, err
    assert "note: this network puts out probabilities" in err
    assert "UserWarning" not in err


ONNX = Path(__file__).parent / "data"


def test_compare_proves_an_import_and_writes_what_it_found(run, tmp_path):
    pytest.importorskip("onnxruntime")
    code, out, err = run("compare", ONNX / "tiny.k3export.onnx", "--out", "o")
    assert code == 0, err
    assert "all the same" in out
    assert "grad_cam at" in out
    assert files(tmp_path / "o") == ["comparison.json", "comparison.png"]
    stored = json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert stored["passed"] is True
    assert [row["method"] for row in stored["explanations"]] == ["saliency", "grad_cam"]


def test_compare_fails_with_1_where_a_layer_differs(run, monkeypatch):
    pytest.importorskip("onnxruntime")
    from torchviz_cnn import models

    load = models.load

    def spoilt(*args, **kwargs):
        model = load(*args, **kwargs)
        with torch.no_grad():
            next(p for p in model.module.parameters() if p.ndim == 4).mul_(-1)
        return model

    monkeypatch.setattr(models, "load", spoilt)
    code, out, _ = run("compare", ONNX / "catdog.k3export.onnx", "--no-explanations")
    assert code == 1
    assert "the first layer that differs is 'conv2d'" in out


def test_an_onnx_file_is_a_model_for_every_command(run, picture, tmp_path):
    model = ONNX / "catdog.k3export.onnx"
    code, out, err = run("layers", model)
    assert code == 0, err
    assert "conv2d (Conv2D)" in out
    code, _, err = run("explain", picture, "-m", model, "--layer", "conv2d_1", "-o", "o")
    assert code == 0, err
    assert "the preprocessing 'rescale' is assumed" in err
    code, _, err = run("activations", picture, "-m", model, "-l", "conv2d", "-o", "o")
    assert code == 0, err
    assert {"photo_grad_cam.png", "photo_000_conv2d.png"} <= set(files(tmp_path / "o"))


def test_compare_takes_a_folder_of_pictures(run, picture, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "photos").mkdir()
    picture.rename(tmp_path / "photos" / "a.png")
    words = ("compare", ONNX / "catdog.k3export.onnx", "--images", "photos")
    code, out, err = run(*words, "--preprocess", "rescale", "--no-explanations")
    assert code == 0, err
    assert "all the same" in out
    (tmp_path / "none").mkdir()
    code, _, err = run("compare", ONNX / "catdog.k3export.onnx", "--images", "none")
    assert (code, "there is no picture in the folder 'none'" in err) == (2, True)


def compared_and_written(run, tmp_path, *words):
    """What a comparison says on either stream, where it passes and leaves its files."""
    pytest.importorskip("onnxruntime")
    code, out, err = run("compare", *words, "--out", "o")
    assert code == 0, err
    assert "all the same" in out
    assert files(tmp_path / "o") == ["comparison.json", "comparison.png"]
    return out, err, json.loads((tmp_path / "o" / "comparison.json").read_text())


def test_compare_of_a_network_without_classes_says_what_it_leaves_out(run, tmp_path):
    weights = {"k": np.random.default_rng(0).normal(size=(2, 3, 3, 3))}
    nodes = [onnx_node("Conv", "x k", "out", "net_1/conv_1/convolution")]
    save_onnx(tmp_path / "n.onnx", nodes, weights, {"x": [None, 3, 8, 8]}, ["out"])
    _, err, stored = compared_and_written(run, tmp_path, "n.onnx")
    assert (
        "note: explanations are not compared: the file puts out N×2×6×6, no scores of classes"
        in err
    )
    assert stored["explanations"] == []


def test_compare_leaves_grad_cam_out_where_there_are_no_maps(run, tmp_path):
    from tests.test_parity import one_axis

    one_axis(tmp_path / "n.onnx")
    out, err, stored = compared_and_written(run, tmp_path, "n.onnx")
    assert "saliency of class" in out
    assert "is not compared: the layer 'conv' puts out (1, 4, 14), no maps" in err
    assert [row["verdict"] for row in stored["explanations"]] == ["agrees", "not compared"]


@pytest.mark.parametrize("batch", [1, 4])
def test_compare_runs_a_file_of_a_fixed_batch(run, picture, tmp_path, batch):
    from tests.test_comparison import dense_behind_reshape

    dense_behind_reshape(tmp_path / "n.onnx", batch, target=[batch, 80])
    words = ("n.onnx", "--images", picture, "--preprocess", "rescale")
    for given in (words[:1], words):
        out, err, _ = compared_and_written(run, tmp_path, *given)
        assert "grad_cam at conv" in out
        assert "Traceback" not in err
    code, out, err = run("layers", "n.onnx")
    assert code == 0, err
    assert "flatten (Flatten)" in out


def test_compare_gives_a_batch_that_cannot_be_set_free_as_many_as_it_takes(run, tmp_path):
    """Pictures and channels change places and back again: the importer loses sight of the batch."""
    rng = np.random.default_rng(0)
    nodes = [
        onnx_node("Conv", "x k", "c", "net_1/conv_1/convolution"),
        onnx_node("Transpose", "c", "a", "net_1/flatten_1/one", perm=[1, 0, 2, 3]),
        onnx_node("Exp", "a", "e", "net_1/flatten_1/Exp"),
        onnx_node("Transpose", "e", "b", "net_1/flatten_1/two", perm=[1, 2, 3, 0]),
        onnx_node("Reshape", "b t", "f", "net_1/flatten_1/Reshape"),
        onnx_node("MatMul", "f w", "out", "net_1/dense_1/MatMul"),
    ]
    weights = {
        "k": rng.normal(size=(2, 3, 3, 3)) / 9,
        "t": np.array([4, 72]),
        "w": rng.normal(size=(72, 3)),
    }
    save_onnx(tmp_path / "n.onnx", nodes, weights, {"x": [4, 3, 8, 8]}, ["out"])
    _, err, stored = compared_and_written(run, tmp_path, "n.onnx")
    assert stored["images"] == 4
    assert "not compared: the network was exported for a fixed batch of 4, and cannot" in err
    code, _, err = run("layers", "n.onnx")
    assert code == 2
    assert "fixed batch of 4, and cannot take 1 picture; export it again with the batch" in err
    assert "Traceback" not in err


def test_compare_without_keras_says_so_and_writes_the_rest(run, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    from tests.test_comparison import cube
    from tests.test_export import archive

    cube(tmp_path / "n.onnx")
    layers = [
        {"class_name": "InputLayer", "config": {"name": "img"}},
        {"class_name": "Conv2D", "config": {"name": "conv2d", "activation": "relu"}},
        {"class_name": "Rescaling", "config": {"name": "scale"}},
    ]
    description = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
    archive(tmp_path / "n.keras", description)
    monkeypatch.setitem(sys.modules, "keras", None)  # as where it is not installed
    _, err, stored = compared_and_written(run, tmp_path, "n.onnx", "--keras", "n.keras")
    assert "not compared: comparing with Keras needs Keras 3 with TensorFlow, and Keras is" in err
    assert "exporting" not in err
    assert stored["keras"] is None


def test_compare_fails_with_1_where_there_are_no_numbers(run, tmp_path):
    pytest.importorskip("onnxruntime")
    weights = {"k": np.full((2, 3, 3, 3), np.nan), "w": np.ones((2, 3))}
    nodes = [
        onnx_node("Conv", "x k", "c", "net_1/conv_1/convolution"),
        onnx_node("ReduceMean", "c", "g", "net_1/pool_1/Mean", axes=[2, 3], keepdims=0),
        onnx_node("MatMul", "g w", "out", "net_1/dense_1/MatMul"),
    ]
    save_onnx(tmp_path / "n.onnx", nodes, weights, {"x": [None, 3, 8, 8]}, ["out"])
    code, out, err = run("compare", "n.onnx", "--out", "o")
    assert code == 1, err
    assert "the layer 'conv' (Conv2D) is NaN on both sides" in out
    assert " same " not in out
    assert files(tmp_path / "o") == ["comparison.json"]
    assert "comparison.json in o" in out


def test_maximize_writes_a_picture_each_a_sheet_and_the_curves(run, tmp_path):
    words = ["maximize", "mnist_convnet", "--steps", 4, "--npz", "--out", "o"]
    code, out, err = run(*words, "--layer", "conv_1", "-k", 3, "-k", 5, "-k", 5)
    assert code == 0, err
    assert files(tmp_path / "o") == [
        "maximize.npz",
        "maximize_conv_1_3.png",
        "maximize_conv_1_5-2.png",
        "maximize_conv_1_5.png",
        "maximize_objective.png",
        "maximize_sheet.png",
    ]
    assert "conv_1 3: from " in out
    assert "%" in out  # what the network says to its picture
    with Image.open(tmp_path / "o" / "maximize_conv_1_3.png") as image:
        assert image.size == (28, 28)
    code, out, err = run(
        *words[:4], "--class", 7, "--class", "8", "--parametrization", "pixels", "--out", "p"
    )
    assert code == 0, err
    assert "maximize_class_7.png" in files(tmp_path / "p")
    assert "class 8: from " in out


def test_maximize_makes_a_picture_of_another_size(run, tmp_path):
    words = ["maximize", "squeezenet1_1", "--weights", "none", "-l", "features.0", "-k", 2]
    code, _, err = run(*words, "--steps", 2, "--size", "40x56", "--cell", "middle", "--out", "o")
    assert code == 0, err
    with Image.open(tmp_path / "o" / "maximize_features.0_2_at_middle.png") as image:
        assert image.size == (56, 40)


def test_field_tells_what_every_layer_sees_and_draws_it(run, tmp_path):
    """By hand: 3×3 windows without padding, each convolution followed by a pooling by two."""
    code, out, err = run("field", "cat_dog", "--json")
    assert code == 0, err
    fields = json.loads(out)
    size, stride = 1, 1
    for number in range(1, 5):
        size += 2 * stride
        assert fields[f"conv2d_{number}"]["size"] == [size, size]
        assert fields[f"conv2d_{number}"]["stride"] == [stride, stride]
        size, stride = size + stride, 2 * stride
    assert fields["dense_1"]["size"] == [None, None]
    Image.new("RGB", (300, 300), (200, 200, 200)).save(tmp_path / "gray.png")
    code, out, err = run(
        "field", "cat_dog", "-l", "conv2d_4", "-l", "conv2d_1", "--picture", "gray.png",
        "--cell", "14,14", "--out", "o",
    )  # fmt: skip
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["layer", "conv2d_4", "conv2d_1"]
    assert "38×38" in out
    assert "2 pictures in o" in out
    drawn = np.asarray(Image.open(tmp_path / "o" / "gray_field_conv2d_4.png"))
    top = 2 * 8 * 14  # of the last unit, in a picture twice the network's size
    assert (drawn[top + 6 : top + 70, top + 6 : top + 70] == 200).all()
    assert drawn[: top - 6, : top - 6].max() < 110


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cell", "1,1"], "give --picture and --layers"),
        (["--picture", "photo.png"], "--picture needs --layers"),
        (["-l", "conv2d_9"], "no layer 'conv2d_9'"),
        (["-l", "conv2d_4", "--picture", "photo.png", "--cell", "99,1"], "there is no cell"),
        (["-l", "conv2d_4", "--picture", "photo.png", "--cell", "x"], "--cell must be"),
    ],
)
def test_a_bad_wish_for_fields_is_one_sentence(run, tmp_path, options, words):
    Image.new("RGB", (30, 30)).save(tmp_path / "photo.png")
    code, _, err = run("field", "cat_dog", *options, "--out", "o")
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_patches_writes_a_sheet_and_a_table(run, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"nothing")
    code, out, err = run(
        "patches",
        "photos",
        "-m",
        "mnist_convnet",
        "-l",
        "conv_1",
        "-k",
        2,
        "-k",
        0,
        "--top",
        3,
        "--out",
        "o",
    )
    assert code == 0, err
    assert files(tmp_path / "o") == ["patches_conv_1_0.png", "patches_conv_1_2.png"]
    assert out.count("unit (") == 6
    assert "conv_1 2, of 4 pictures" in out
    assert "bad.png is left out" in err


def test_style_writes_a_figure_and_prints_a_table(run, picture, tmp_path):
    other = tmp_path / "other.png"
    with Image.open(picture) as image:
        image.rotate(90, expand=True).save(other)
    words = ["style", picture, other, "-m", "cat_dog_small", "--out", "o"]
    code, out, err = run(*words)
    assert code == 0, err
    assert files(tmp_path / "o") == ["style_photo_other.png"]
    assert "conv2d_1" in out
    assert "relative" in out
    code, out, err = run(*words, "--json", "-l", "conv2d_2")
    assert code == 0, err
    (row,) = json.loads(out)["layers"]
    assert row["name"] == "conv2d_2"
    assert 0 < row["relative"] < 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["maximize", "mnist_convnet"], "nothing was asked for"),
        (["maximize", "mnist_convnet", "-l", "conv_2", "-k", "1"], "did you mean 'conv_1'"),
        (["maximize", "mnist_convnet", "-l", "conv_1", "-k", "64"], "has 64, from 0"),
        (["maximize", "mnist_convnet", "--class", "ten"], "no class is called 'ten'"),
        (["maximize", "mnist_convnet", "--class", "1", "--zoom", "x"], "--zoom must be like"),
        (["maximize", "mnist_convnet", "--class", "1", "--cell", "x"], "--cell must be ROW,COLUMN"),
        (["maximize", "mnist_convnet", "--class", "1", "--size", "x"], "--size must be like"),
        (
            ["maximize", "mnist_convnet", "--class", "1", "--size", "20"],
            "cannot take inputs of shape",
        ),
        (["patches", "nowhere", "-m", "vgg16", "-l", "a", "-k", "1"], "there is no folder"),
        (["style", "photo.png", "none.png", "-m", "vgg16"], "there is no file 'none.png'"),
        (
            ["style", "photo.png", "photo.png", "-m", "cat_dog_small", "-l", "dense_1"],
            "has no Gram matrix",
        ),
    ],
)
def test_a_bad_wish_to_maximize_patches_or_style_is_one_sentence(
    run, picture, tmp_path, words, sentence
):
    code, out, err = run(*words, "--out", "o")
    assert code == 2, out
    assert sentence in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()
