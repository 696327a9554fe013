"""What is said: on the command line in words of its options, in Python in words of its keywords."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from tests.networks import pictures, plain
from tests.test_matching import unpacked
from torchviz_cnn import cli
from torchviz_cnn.cli.speech import Command
from torchviz_cnn.methods import METHODS
from torchviz_cnn.training.folders import Remarks

DATA = Path(__file__).parent / "data"
ANY_SIZE = DATA / "keras" / "any_size.k3.onnx"
NETS = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )

def gray():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1))

class Broken(nn.Module):
    def forward(self, x):
        raise TypeError("first line\\n   second line")

def failing():
    raise ValueError("first line\\n   second line")

def number():
    return 3

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x, y):
        return self.fc(self.conv(x).relu().mean((2, 3))) + y
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command in a folder with a picture and code; gives exit code, output and error."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, "nets", raising=False)

    def type_in(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchviz-cnn", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return type_in


def names(*words: str, folder: Path = Path("o")) -> list[str]:
    """The pictures written of which the name begins with one of the words."""
    return sorted(path.stem for path in folder.glob("*.png") if path.name.startswith(words))


EXPLAIN = ("explain", "photo.png", "-m")
DIGITS = ("maximize", "mnist_convnet", "--class", 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*EXPLAIN, "nets:small", "-t", "foo"), "give its index, or class names (--classes FILE)"),
        ((*EXPLAIN, "cat_dog", "--layer", "zzz"), "'torchviz-cnn layers MODEL --all' lists them"),
        (("activations", "photo.png", "-m", "cat_dog", "-l", "z*"), "'torchviz-cnn layers MODEL"),
        ((*EXPLAIN, "cat_dog", "--score", "loss"), "--score must be 'logit' or 'probability'"),
        ((*EXPLAIN, "cat_dog", "--weights", "default"), "the file, or --weights none"),
        (
            (*EXPLAIN, "cat_dog", "--method", "smooth_grad", "--noise=-1"),
            "--noise must be a share of the picture's range",
        ),
        (
            ("maximize", "nets:small"),
            "nothing was asked for: give --layer and --channel, or --class",
        ),
        ((*DIGITS, "--cell", "0,0"), "a cell is one of a channel: give --layer and --channel too"),
        ((*DIGITS, "--zoom", "2,1"), "--zoom is two factors above 0, the lower first"),
        ((*DIGITS, "--zoom", "nan,1"), "--zoom is two factors, the lower first"),
        ((*DIGITS, "--rate", 0), "--rate must be above 0, not 0.0"),
        ((*DIGITS, "--tv=-1"), "--tv must be a weight from 0, not -1.0"),
        ((*DIGITS, "--decay", 5), "--decay must lie between 0 and 4"),
        ((*DIGITS, "--rotate", 181), "--rotate is an angle of 0 to 180 degrees"),
        ((*DIGITS, "--parametrization", "wavelets"), "--parametrization must be fourier or pixels"),
        ((*EXPLAIN, "nosuch"), "ONNX files, and folders of trained networks"),
        ((*EXPLAIN, "nets:small", "--input-size", "3x64"), "must be like 3x224x224, not '3x64'"),
        (
            (*EXPLAIN, "nets:Two"),
            "network's forward needs 'y' besides the pictures; name a package.",
        ),
        (
            ("activations", "photo.png", "-m", "nets:gray", "--input-size", "28x28", "-l", "0"),
            "give --input-size with the channels",
        ),
        (("layers", "nets:number"), "nets:number gave an int, not a torch.nn.Module"),
        (("layers", "lenet.h5"), "'torchviz-cnn export-keras lenet.h5 lenet.onnx'"),
        (("compare", "lenet.h5"), "'lenet.h5' is a Keras file: export it as ONNX first"),
        (("compare", "photo.png"), "'photo.png' is not an ONNX file"),
        (
            ("compare", "x.onnx", "--layer-names", "none.txt"),
            "cannot read layer names from 'none.txt'",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_command_line_speaks_of_its_own_options(
    run: Run, words: tuple[object, ...], sentence: str
) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert sentence in err.splitlines()[-1]
    assert "=" not in err.splitlines()[-1]
    assert "models.load" not in err


def test_python_is_spoken_to_in_its_keywords() -> None:
    net, x = plain().double(), pictures()
    with pytest.raises(tvc.InputError, match="a Model from models"):
        tvc.grad_cam(net, x, "foo")
    with pytest.raises(tvc.InputError, match=r"; layers\(\) lists them all"):
        tvc.grad_cam(net, x, 1, layer="zzz")
    with pytest.raises(tvc.InputError, match="give layer= and channel=, or target=, or an obj"):
        tvc.maximize(net, input_size=(3, 14, 10))
    with pytest.raises(tvc.InputError, match=r"^scale is two factors above 0"):
        tvc.maximize(net, target=1, input_size=(3, 14, 10), scale=(2, 1))


def test_every_command_tells_its_faults_so() -> None:
    assert all(command.cls is Command for command in cli.app.registered_commands)


def test_an_error_keeps_both_of_its_sentences() -> None:
    """As when a worker process hands it back."""
    fault = tvc.InputError("give layer=", typed="give --layer").within("maximize: ")
    again = pickle.loads(pickle.dumps(fault))
    assert (str(again), again.typed) == ("maximize: give layer=", "maximize: give --layer")
    about = pickle.loads(pickle.dumps(tvc.InputError.about("scale", "is too small")))
    assert (str(about), about.as_typed({"scale": "--zoom"})) == (
        "scale is too small",
        "--zoom is too small",
    )
    assert about.as_typed({"steps": "--steps"}) == "scale is too small"


@pytest.mark.parametrize("command", ["explain", "activations", "patches", "style"])
def test_the_help_tells_of_every_network_that_can_be_named(run: Run, command: str) -> None:
    _, out, _ = run(command, "--help")
    said = " ".join(out.split())
    assert "an ONNX file, what train wrote (a folder or .safetensors file)" in said


@pytest.mark.parametrize("net", ["nets:Broken", "nets:failing"])
def test_a_failure_of_several_lines_is_told_on_one(run: Run, net: str) -> None:
    code, _, err = run(*EXPLAIN, net)
    assert code == 2
    assert "Error: first line second line (" in err.splitlines()[-1]


# ---- networks from files --------------------------------------------------------------------------


def test_filters_say_nothing_of_preprocessing_and_take_a_keras_file(
    run: Run, tmp_path: Path
) -> None:
    code, _, err = run("filters", DATA / "catdog.k3export.onnx", "-l", "conv2d", "-o", "o")
    assert (code, err) == (0, "")
    keras = unpacked("twins.h5", tmp_path)
    nameless = DATA / "nameless" / "twins.dyn.onnx"
    code, out, err = run("filters", nameless, "-l", "twin_a", "--keras", keras, "-o", "o")
    assert code == 0, err
    assert "twin_a: " in out
    code, _, err = run("filters", ANY_SIZE, "-l", "*conv*", "-o", "o")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        ("maximize", "-l", "twin_a", "-k", 0, "--steps", 1),
        ("patches", ".", "-l", "twin_a", "-k", 0, "-m"),
        ("style", "photo.png", "photo.png", "-l", "twin_a", "-m"),
    ],
)
def test_the_layers_of_an_onnx_file_are_named_by_a_keras_file(
    run: Run, tmp_path: Path, words: tuple[object, ...]
) -> None:
    keras = unpacked("twins.h5", tmp_path)
    code, _, err = run(*words, DATA / "nameless" / "twins.dyn.onnx", "--keras", keras, "-o", "o")
    assert code == 0, err
    assert names(words[0] if isinstance(words[0], str) else "")


def test_compare_tells_the_size_of_its_noise_and_not_how_pictures_are_prepared(run: Run) -> None:
    pytest.importorskip("onnxruntime")
    _, _, err = run("compare", ANY_SIZE, "--no-explanations")
    assert "takes pictures of any size: " in err
    assert "preprocessing" not in err


def test_another_networks_keras_file_is_called_so(run: Run, tmp_path: Path) -> None:
    keras = unpacked("twins.h5", tmp_path)
    code, _, err = run("layers", DATA / "tiny.k3export.onnx", "--keras", keras)
    assert code == 2
    assert "it is another network's: give the Keras file that this one was exported from" in err
    assert "layer.name" not in err


def test_layer_names_that_do_not_fit_are_told_by_their_option(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "names.txt").write_text("conv\n")
    code, _, err = run("compare", DATA / "tiny.k3export.onnx", "--layer-names", "names.txt")
    assert (code, "--layer-names does not fit this file" in err) == (2, True), err


def test_weights_in_another_file_are_helped_by_what_is_said(run: Run, tmp_path: Path) -> None:
    whole = onnx.load(DATA / "catdog.k3export.onnx")
    onnx.save(whole, tmp_path / "apart.onnx", save_as_external_data=True, size_threshold=0)
    code, _, err = run("layers", "apart.onnx")
    assert code == 2
    assert "in Python by onnx.save(onnx.load(FILE), NEW_FILE)" in err
    assert "external_data" not in err
    onnx.save(onnx.load(tmp_path / "apart.onnx"), tmp_path / "one.onnx")
    code, out, err = run("layers", "one.onnx")
    assert (code, "conv2d (Conv2D)" in out) == (0, True), err


# ---- globs ----------------------------------------------------------------------------------------


def test_a_glob_means_every_layer_of_feature_maps() -> None:
    net, x = plain().double(), pictures()
    maps = [name for name, out in tvc.activations(net, x).items() if out.ndim == 4]
    found = tvc.explain(net, x, 1, methods=["grad_cam", "saliency"], layer=["conv*"])
    wanted = [f"grad_cam:{name}" for name in maps if name.startswith("conv")]
    assert len(wanted) > 1
    assert list(found) == [*wanted, "saliency"]
    alone = tvc.grad_cam(net, x, 1, layer=wanted[0].removeprefix("grad_cam:"))
    torch.testing.assert_close(found[wanted[0]].values, alone.values)
    every = tvc.explain(net, x, 1, methods="layer_cam", layer=["conv1", "*"])
    others = [name for name in maps if name != "conv1"]
    assert list(every) == [f"layer_cam:{name}" for name in ["conv1", *others]]


def test_one_run_of_each_is_a_glob_too() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = tvc.explain(net, torch.rand(1, 3, 8, 8), 1, methods="grad_cam", layer="0@*")
    assert list(found) == ["grad_cam:0", "grad_cam:0@1"]


def test_a_command_takes_globs_where_it_takes_several_layers(run: Run) -> None:
    code, _, err = run(
        *EXPLAIN, "mnist_convnet", "--layer", "conv_?", "--layer", "pool*", "-o", "o"
    )
    assert code == 0, err
    assert names("photo_grad") == ["photo_grad_cam_conv_1", "photo_grad_cam_pool_1"]
    code, out, err = run("filters", "cat_dog", "-l", "conv2d_?", "-l", "conv2d_1", "-o", "o")
    assert code == 0, err
    assert names("filters") == [f"filters_conv2d_{number}" for number in (1, 2, 3, 4)]
    assert "4 pictures of filters in o" in out
    code, _, err = run("filters", "cat_dog", "-l", "dense*", "-o", "o")
    assert (code, "no layer that 'dense*' matches is a convolution" in err) == (2, True)


def test_each_convolution_a_glob_reaches_is_drawn_once(run: Run) -> None:
    code, out, err = run("filters", "resnet18", "--weights", "none", "-l", "layer2*", "-o", "o")
    assert code == 0, err
    told = [line.partition(":")[0] for line in out.splitlines()[:-1]]
    assert told == [
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.0.downsample",
        "layer2.1.conv1",
        "layer2.1.conv2",
    ]


@pytest.mark.parametrize(("count", "end"), [(3, "'2')"), (4, "'2', …)")])
def test_more_is_said_to_follow_only_where_it_does(count: int, end: str) -> None:
    net = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(count)], nn.Flatten())
    with pytest.raises(tvc.InputError) as caught:
        tvc.grad_cam(net, pictures().float(), layer=f"[0-{count - 1}]")
    assert str(caught.value).endswith(end)
    with pytest.raises(tvc.InputError) as caught:
        tvc.filters(net, str(count))
    assert str(caught.value).endswith(end.rstrip(")"))


# ---- every method ---------------------------------------------------------------------------------


def test_all_methods_are_asked_for_in_a_word() -> None:
    net, x = plain().double(), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tvc.explain(net, x, 1, methods="all", samples=2, steps=2)
    assert list(found) == list(METHODS)
    torch.testing.assert_close(found["saliency"].values, tvc.saliency(net, x, 1).values)


def test_what_all_leaves_out_is_told_with_the_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match="left out: ") as told:
        found = tvc.explain(net.double(), pictures(), 1, methods=["all"], samples=2, steps=2)
    said = [str(each.message).partition(": ")[0] for each in told]
    assert said == ["guided_backprop, guided_grad_cam are left out", "deconvnet is left out"]
    left_out = {"guided_backprop", "deconvnet", "guided_grad_cam"}
    assert set(found) == set(METHODS) - left_out
    assert {Path(each.filename).name for each in told} == {Path(__file__).name}


# ---- how things show themselves -------------------------------------------------------------------


def test_a_model_shows_itself_on_one_line() -> None:
    model = tvc.models.load("resnet18", weights="none")
    assert repr(model) == (
        "Model(resnet18: ResNet, takes (3, 224, 224), 1000 classes ('tench', 'goldfish', "
        "'great white shark', …), 11,689,512 parameters in 52 layers, on cpu)"
    )
    bare = tvc.models.Model(nn.Sequential(nn.LazyLinear(2), nn.ReLU()), torch.zeros, (1, 4, 4))
    assert "class names not known, 0 parameters in 2 layers" in repr(bare)


def test_what_was_captured_shows_its_layers_and_shapes() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with tvc.capture(net, gradients=True) as seen:
        assert repr(seen) == "Observation of 0 layers"
        out = net(torch.rand(1, 1, 4, 4))
    assert repr(seen) == "Observation of 2 layers\n  0: (1, 2, 2, 2)\n  1: (1, 2, 2, 2)"
    assert repr(seen.gradients) == "Gradients of 0 layers"
    out.sum().backward()
    assert repr(seen.gradients) == "Gradients of 2 layers\n  0: (1, 2, 2, 2)\n  1: (1, 2, 2, 2)"
    deep = nn.Sequential(*[nn.ReLU() for _ in range(25)])
    with tvc.capture(deep) as seen:
        deep(torch.rand(1, 2))
    assert repr(seen).splitlines()[-2:] == ["  19: (1, 2)", "  … and 5 more"]


def test_the_methods_stand_in_a_column(run: Run) -> None:
    _, out, _ = run("methods")
    lines = out.splitlines()
    starts = {len(name) + len(rest) - len(rest.lstrip()) for name, rest in map(_cut, lines)}
    assert len(lines) == len(METHODS)
    assert len(starts) == 1
    assert all(rest.startswith("  ") for _, rest in map(_cut, lines))


def _cut(line: str) -> tuple[str, str]:
    name = line.split()[0]
    return name, line[len(name) :]


# ---- one and several ------------------------------------------------------------------------------


def test_one_thing_is_told_as_one(run: Run) -> None:
    net = plain().double()
    with pytest.raises(tvc.InputError, match="2 seeds were given for 1 picture;"):
        tvc.maximize(net, target=1, seed=[1, 2], input_size=(3, 14, 10))
    with pytest.raises(tvc.InputError, match="1 target was given for 2 images;"):
        tvc.saliency(net, pictures(2), [1])
    with pytest.raises(tvc.InputError, match="runs 1 time in this"):
        tvc.activations(net, pictures(), "conv1@1")
    code, out, err = run(
        *("activations", "photo.png", "-m", "mnist_convnet", "-l", "conv_1", "--channel", 5)
    )
    assert code == 0, err
    assert "1 picture of layers in torchviz-cnn-out" in out


def test_one_converted_picture_is_told_as_one() -> None:
    remarks = Remarks(converted={"CMYK: converted to RGB": ["a.jpg"], "turned": ["b", "c"]})
    assert remarks.lines() == [
        "CMYK: converted to RGB (1 picture: a.jpg)",
        "turned (2 pictures: b, c)",
    ]


# ---- networks of several tensors ------------------------------------------------------------------


class Two(nn.Module):
    """Takes two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.conv(x + y).relu().mean((2, 3)))
        return scores


class Fixed(nn.Module):
    """The same with the second picture fixed, as the sentence says."""

    def __init__(self, net: nn.Module, y: torch.Tensor) -> None:
        super().__init__()
        self.net, self.y = net, y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(x, self.y)
        return scores


def test_a_network_of_two_tensors_is_told_how_to_be_looked_into() -> None:
    net, x = Two(), torch.rand(1, 3, 8, 8)
    wrap = "wrap one that takes more in a module whose forward takes the pictures alone"
    for inputs in ((x, x), {"x": x, "y": x}):
        with pytest.raises(tvc.InputError, match=f"not a (tuple|dict); .*{wrap}"):
            tvc.activations(net, inputs)  # type: ignore[arg-type]
    asked = (tvc.activations, tvc.grad_cam, tvc.occlusion, tvc.walk, tvc.layers)
    for function in asked:
        given = (3, 8, 8) if function is tvc.layers else x
        with pytest.raises(tvc.InputError, match=f"needs 'y' besides the pictures; .*{wrap}"):
            function(net, given)
    assert tvc.grad_cam(Fixed(net, x), x, 1).values.shape == (1, 6, 6)
    with tvc.capture(net, "conv") as seen:
        net(x, y=x)
    torch.testing.assert_close(seen["conv"], net.conv(x + x).detach())


def test_a_networks_own_mistake_about_types_stays_its_own() -> None:
    class Mistaken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise TypeError("its own")

    with pytest.raises(TypeError, match=r"^its own$"):
        tvc.saliency(Mistaken(), torch.rand(1, 3, 4, 4))


def test_the_documented_precisions_are_those_that_are_taken() -> None:
    net, x = plain(), pictures().float()
    for method in (tvc.occlusion, tvc.score_cam):
        said = inspect.getdoc(method) or ""
        for dtype in (torch.bfloat16, torch.float16):
            assert f"``{dtype}``" in said
            assert method(net, x, 1, dtype=dtype).parameters["dtype"] == str(dtype)[6:]
