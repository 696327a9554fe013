"""Files without names get Keras' by their weights: against what Keras says each layer puts out.

The files were written by Keras' torch back end; in the ``.npz`` beside them are the description and
the weights of the Keras model, and the outputs of its layers, as Keras computed them.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import torchviz_cnn as tvc
from converters import load_onnx
from converters.keras_files import check_keras_file
from converters.keras_models import read_keras
from tests.onnx_files import DATA, evaluate, node, save

NAMELESS = DATA / "nameless"
FILES = sorted(path.name for path in NAMELESS.glob("*.onnx"))
REAL = os.environ.get("TORCHVIZ_CNN_DATA")


class Layer:
    """What a Keras model says of a layer, without Keras."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inner: dict[str, Layer] = {}
        self.arrays: list[np.ndarray] = []

    @property
    def layers(self) -> list[Layer]:
        return list(self.inner.values())

    def get_weights(self) -> list[np.ndarray]:
        return self.arrays


class Described(Layer):
    """A Keras model, as far as names are told by it."""

    def __init__(self, stored: Any, change: Any = None) -> None:
        super().__init__("stored")
        self.description = json.loads(str(stored["description"]))
        self.numbers = {key[7:]: stored[key] for key in stored.files if key.startswith("weight:")}
        if change is not None:
            change(self.description, self.numbers)
        for key, array in self.numbers.items():
            at: Layer = self
            for name in key.rpartition(":")[0].split("/"):
                at = at.inner.setdefault(name, Layer(name))
            at.arrays.append(array)

    def to_json(self) -> str:
        return json.dumps(self.description)


def stored(file: str) -> Any:
    return np.load(NAMELESS / f"{file.split('.')[0]}.npz")


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def check(network: Any, keras: Any, gone: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Every layer of Keras' is there under its name, and puts out what Keras says."""
    records = {r.name: r for r in network.source.layers if r.status == "in the file" and r.module}
    names = {key[6:] for key in keras.files if key.startswith("layer:")}
    assert names - records.keys() == gone
    seen = tvc.activations(network, nchw(keras["x"]), sorted(names - gone))
    for name in names - gone:
        order = records[name].permutation
        found = (seen[name] if order is None else seen[name][:, list(order)]).numpy()
        found = found.transpose(0, 2, 3, 1) if found.ndim == 4 else found
        wanted = keras[f"layer:{name}"]
        assert found.shape == wanted.shape, name
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
    with torch.no_grad():
        result = network(nchw(keras["x"])).numpy()
    assert np.abs(result - keras["y"]).max() <= 1e-5 * np.abs(keras["y"]).max()


@pytest.mark.parametrize("file", FILES)
def test_every_layer_is_keras_by_name_and_by_value(file: str) -> None:
    keras = stored(file)
    network = load_onnx(NAMELESS / file, keras=Described(keras))
    check(network, keras)
    assert network.source.notes == ()
    assert not network.source.names_in_file
    kinds = {record.name: record.type for record in network.source.layers}
    by_keras = {
        each["config"]["name"]: each["class_name"]
        for each in json.loads(str(keras["description"]))["config"]["layers"]
    }
    assert [(name, kind) for name, kind in kinds.items() if "." not in name] == [*by_keras.items()]


@pytest.mark.parametrize("file", FILES)
def test_without_the_model_names_are_readable_and_it_says_what_would_help(file: str) -> None:
    network = load_onnx(NAMELESS / file)
    assert any("--keras" in note for note in network.source.notes)
    assert "conv_1" in [record.name for record in network.source.layers]


def test_nested_and_shared_layers_and_twins_are_told_apart() -> None:
    """``twin_a`` and ``twin_b`` have equal weights; ``shared`` is called twice."""
    network = load_onnx(NAMELESS / "twins.dyn.onnx", keras=Described(stored("twins")))
    x = nchw(stored("twins")["x"])
    seen = tvc.activations(network, x, ["twin_a", "twin_b", "base.inner", "base", "shared@*"])
    assert not torch.allclose(seen["twin_a"], seen["twin_b"])
    assert "shared@1" in seen
    assert torch.equal(network.twin_a.conv.weight, network.twin_b.conv.weight)
    assert network.base.inner.act(torch.tensor([-1.0])) == 0


def test_a_model_inside_may_count_its_making_as_a_call() -> None:
    """Keras 2 does, so that what reads its only call names call 1; the list has that call alone."""
    text = str(stored("twins")["description"])
    assert text.count('["base", 0, 0]') == 1

    def as_keras_2(description: dict[str, Any], _: Any) -> None:
        description.update(json.loads(text.replace('["base", 0, 0]', '["base", 1, 0]')))

    network = load_onnx(NAMELESS / "twins.dyn.onnx", keras=Described(stored("twins"), as_keras_2))
    check(network, stored("twins"))
    assert network.source.notes == ()


def twin_branches(path: Path, *, equal: bool) -> tuple[Path, Any]:
    """Two convolutions side by side on one tensor, then their difference."""

    random = np.random.default_rng(0)
    kernels = [random.normal(size=(1, 1, 3, 2)).astype(np.float32) for _ in range(2)]
    if equal:
        kernels[1] = kernels[0]
    nodes = [
        node("Transpose", "img", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t k0", "b"),
        node("Conv", "t k1", "a"),
        node("Sub", "b a", "s"),
        node("Transpose", "s", "out", perm=[0, 2, 3, 1]),
    ]
    constants = {f"k{i}": k.transpose(3, 2, 0, 1) for i, k in enumerate(kernels)}
    file = save(
        path, nodes, constants, {"img": ["N", 5, 4, 3]}, ["out"], producer="pytorch"
    )  # fmt: skip

    def layer(kind: str, name: str, *given: str, **config: Any) -> dict[str, Any]:
        nodes = [[[each, 0, 0, {}] for each in given]] if given else []
        return {
            "class_name": kind,
            "name": name,
            "config": {"name": name, **config},
            "inbound_nodes": nodes,
        }

    config = {
        "name": "net",
        "layers": [
            layer("InputLayer", "img"),
            layer("Conv2D", "left", "img", activation="linear", use_bias=False),
            layer("Conv2D", "right", "img", activation="linear", use_bias=False),
            layer("Subtract", "minus", "left", "right"),
        ],
        "input_layers": [["img", 0, 0]],
        "output_layers": [["minus", 0, 0]],
    }
    content = {
        "description": np.array(json.dumps({"class_name": "Functional", "config": config})),
        "weight:left:0": kernels[0],
        "weight:right:0": kernels[1],
    }
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    buffer.seek(0)
    return file, Described(np.load(buffer))


def test_branches_are_told_by_their_weights_not_by_their_order(tmp_path: Path) -> None:
    file, keras = twin_branches(tmp_path / "n.onnx", equal=False)
    network = load_onnx(file, keras=keras)
    assert {record.name for record in network.source.layers} == {"img", "left", "right", "minus"}
    kernel = keras.numbers["left:0"].transpose(3, 2, 0, 1)
    assert np.array_equal(network.left.conv.weight.detach().numpy(), kernel)


def test_what_cannot_be_told_is_not_guessed(tmp_path: Path) -> None:
    file, keras = twin_branches(tmp_path / "n.onnx", equal=True)
    network = load_onnx(file, keras=keras)
    made = [record.name for record in network.source.layers if record.module]
    assert {"conv_1", "conv_2"} <= set(made)
    assert not {"left", "right"} & set(made)
    assert any(
        "could not be told beyond doubt: 3 (left, right, minus)" in note
        for note in network.source.notes
    )
    with pytest.raises(tvc.InputError, match="'left'"):
        tvc.activations(network, torch.rand(1, 3, 5, 4), "left")


def test_another_models_weights_are_refused() -> None:
    def change(_: Any, numbers: dict[str, np.ndarray]) -> None:
        for key, array in numbers.items():
            numbers[key] = array + 1

    with pytest.raises(tvc.InputError, match="is this the model it was exported from"):
        load_onnx(NAMELESS / "catdog.dyn.onnx", keras=Described(stored("catdog"), change))


def test_one_layer_of_other_weights_keeps_a_readable_name() -> None:
    """… and the layers behind it are found again by the next one's weights."""

    def change(_: Any, numbers: dict[str, np.ndarray]) -> None:
        numbers["b_c1:0"] = numbers["b_c1:0"][::-1].copy()

    keras = stored("res")
    network = load_onnx(NAMELESS / "res.static.onnx", keras=Described(keras, change))
    assert any("beyond doubt" in note and "(b_c1" in note for note in network.source.notes)
    check(network, keras, gone={"b_c1", "b_bn1", "b_r1"} & gone_names(network, keras))
    assert {"b_c2", "b_add", "b_out", "drop", "pred"} <= {
        record.name for record in network.source.layers if record.module
    }


def test_a_layer_one_of_whose_calls_cannot_be_told_is_not_named_after_the_other() -> None:
    """Nothing is known between ``first`` and ``base``; ``shared`` runs before and after that."""

    def change(_: Any, numbers: dict[str, np.ndarray]) -> None:
        numbers["first:0"] = numbers["first:0"] * 2

    keras = stored("twins")
    network = load_onnx(NAMELESS / "twins.dyn.onnx", keras=Described(keras, change))
    check(network, keras, gone={"first", "shared", "r1"})
    assert any("beyond doubt: 3 (first, shared, r1)" in note for note in network.source.notes)


def gone_names(network: Any, keras: Any) -> set[str]:
    there = {record.name for record in network.source.layers if record.module}
    return {key[6:] for key in keras.files if key.startswith("layer:")} - there


def test_a_batch_norm_merged_into_its_convolution_is_seen_through(tmp_path: Path) -> None:
    """As torch's own exporter merges them: the kernel is neither's, and tells both."""
    keras = stored("res")
    path = NAMELESS / "res.static.onnx"
    numbers = {key[7:]: keras[key].astype(np.float64) for key in keras.files if key[0] == "w"}
    gamma, beta, mean, variance = (numbers[f"a_bn1:{i}"] for i in range(4))
    scale = gamma / np.sqrt(variance + 1e-3)
    model = onnx.load(path)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kernel = numbers["a_c1:0"].transpose(3, 2, 0, 1)
    conv = next(
        node
        for node in model.graph.node
        if node.op_type == "Conv" and np.array_equal(weights[node.input[1]], kernel)
    )
    at = list(model.graph.node).index(conv)
    turn, subtract, multiply, add = model.graph.node[at + 1 : at + 5]
    assert [n.op_type for n in (turn, subtract, multiply, add)] == [
        "Transpose",
        "Sub",
        "Mul",
        "Add",
    ]
    merged = (kernel * scale[:, None, None, None]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(merged, "merged"))
    shift = (beta - mean * scale).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(shift, "shift"))
    del conv.input[1:]
    conv.input.extend(["merged", "shift"])
    turn.output[0] = add.output[0]
    for each in (subtract, multiply, add):
        model.graph.node.remove(each)
    onnx.save(model, tmp_path / "merged.onnx")
    network = load_onnx(tmp_path / "merged.onnx", keras=Described(keras))
    check(network, keras, gone={"a_c1"})
    record = next(r for r in network.source.layers if r.name == "a_c1")
    assert record.status == "fused into a_bn1"
    with pytest.raises(tvc.InputError, match="look at 'a_bn1'"):
        tvc.activations(network, nchw(keras["x"]), "a_c1")


def test_a_file_with_names_has_them_checked(tmp_path: Path) -> None:
    description = {
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [{"class_name": "Dense", "config": {"name": "other"}}],
        },
    }
    buffer = io.BytesIO()
    np.savez(buffer, description=np.array(json.dumps(description)))
    buffer.seek(0)
    with pytest.raises(tvc.InputError, match="that is not listed"):
        load_onnx(DATA / "catdog.k3export.onnx", keras=Described(np.load(buffer)))


def described(*layers: tuple[str, str, tuple[str, ...]], **numbers: np.ndarray) -> Any:
    """A Keras model of these layers: class, name, the layers it reads."""
    entries = [
        {
            "class_name": kind,
            "name": name,
            "config": {"name": name},
            "inbound_nodes": [[[each, 0, 0, {}] for each in given]] if given else [],
        }
        for kind, name, given in layers
    ]
    config = {
        "name": "net",
        "layers": entries,
        "input_layers": [[layers[0][1], 0, 0]],
        "output_layers": [[layers[-1][1], 0, 0]],
    }
    buffer = io.BytesIO()
    text = json.dumps({"class_name": "Functional", "config": config})
    np.savez(buffer, description=np.array(text), **numbers)
    buffer.seek(0)
    return Described(np.load(buffer))


def test_what_turns_pictures_before_a_shared_layer_is_no_layer(tmp_path: Path) -> None:
    """As exported, a transpose stands before the first of its calls, and one behind the last."""
    kernel = np.random.default_rng(4).normal(size=(3, 3, 3, 3))
    nodes = [
        node("Transpose", "img", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r k", "d", pads=[1, 1, 1, 1]),
        node("Transpose", "d", "out", perm=[0, 2, 3, 1]),
    ]
    sizes = {"img": ["N", 6, 5, 3]}
    path = save(tmp_path / "n.onnx", nodes, {"k": kernel}, sizes, ["out"], producer="pytorch")
    keras = described(
        ("InputLayer", "img", ()),
        ("Conv2D", "conv", ("img",)),
        ("ReLU", "relu", ("conv",)),
        **{"weight:conv:0": kernel.transpose(2, 3, 1, 0).astype(np.float32)},
    )
    model = keras.description["config"]
    model["layers"][1]["inbound_nodes"].append([["relu", 0, 0, {}]])
    model["output_layers"] = [["conv", 1, 0]]
    x = np.random.default_rng(5).normal(size=(2, 6, 5, 3)).astype(np.float32)
    first, last, out = evaluate(path, {"img": x}, ["c", "d", "out"])
    network = load_onnx(path, keras=keras, input_layout="as_exported")
    assert [record.name for record in network.source.layers] == ["img", "conv", "relu"]
    seen = tvc.activations(network, torch.from_numpy(x), ["conv", "conv@1"])
    assert np.allclose(seen["conv"], first, atol=1e-5)
    assert np.allclose(seen["conv@1"], last, atol=1e-5)
    assert np.allclose(network(torch.from_numpy(x)).detach(), out, atol=1e-5)


def test_a_sum_behind_a_layer_without_a_bias_is_none_of_its_own(tmp_path: Path) -> None:
    kernel = np.random.default_rng(4).normal(size=(2, 3, 1, 1))
    nodes = [
        node("Conv", "img k", "c", "/Conv"),
        node("Add", "c o", "a", "/Add"),
        node("Relu", "a", "out", "/Relu"),
    ]
    numbers = {"k": kernel, "o": np.array([0.3, -0.2]).reshape(2, 1, 1)}
    sizes = {"img": ["N", 3, 4, 4]}
    path = save(tmp_path / "n.onnx", nodes, numbers, sizes, ["out"], producer="pytorch")
    keras = described(
        ("InputLayer", "img", ()),
        ("Conv2D", "conv", ("img",)),
        ("Rescaling", "shift", ("conv",)),
        ("ReLU", "relu", ("shift",)),
        **{"weight:conv:0": kernel.transpose(2, 3, 1, 0).astype(np.float32)},
    )
    keras.description["config"]["layers"][2]["config"] |= {"scale": 1.0, "offset": [0.3, -0.2]}
    network = load_onnx(path, keras=keras)
    x = torch.rand(2, 3, 4, 4)
    seen = tvc.activations(network, x, ["conv", "relu"])
    wanted = np.einsum("oc,nchw->nohw", kernel[:, :, 0, 0], x.double().numpy())
    np.testing.assert_allclose(seen["conv"], wanted, atol=1e-6)
    shifted = wanted + numbers["o"]
    np.testing.assert_allclose(seen["relu"], shifted.clip(0), atol=1e-6)


@pytest.mark.parametrize("stated", [True, False])
def test_a_normalization_is_both_its_operators(stated: bool, tmp_path: Path) -> None:
    """A difference and a quotient, by the numbers it was made with or measured; nothing less."""
    mean, variance = np.array([0.3, -0.2, 0.5]), np.array([0.25, 4.0, 0.81])
    kernel = np.random.default_rng(4).normal(size=(2, 3, 1, 1))
    nodes = [
        node("Sub", "img m", "s", "/Sub"),
        node("Div", "s d", "n", "/Div"),
        node("Conv", "n k", "out", "/Conv"),
    ]
    numbers = {"m": mean.reshape(3, 1, 1), "d": np.sqrt(variance).reshape(3, 1, 1), "k": kernel}
    sizes = {"img": ["N", 3, 4, 4]}
    path = save(tmp_path / "n.onnx", nodes, numbers, sizes, ["out"], producer="pytorch")
    weights = {"weight:conv:0": kernel.transpose(2, 3, 1, 0).astype(np.float32)}
    if not stated:
        weights |= {
            "weight:scale:0": mean,
            "weight:scale:1": variance,
            "weight:scale:2": np.array(9),
        }
    layers = [("InputLayer", "img", ()), ("Normalization", "scale", ("img",))]
    keras = described(*layers, ("Conv2D", "conv", ("scale",)), **weights)
    config = keras.description["config"]["layers"][1]["config"]
    config |= {"mean": mean.tolist(), "variance": variance.tolist()} if stated else {"mean": None}
    network = load_onnx(path, keras=keras)
    x = torch.rand(2, 3, 4, 4)
    found = tvc.activations(network, x, "scale")["scale"].double().numpy()
    wanted = (x.double().numpy() - mean[:, None, None]) / np.sqrt(variance)[:, None, None]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    kept = {"weight:conv:0": weights["weight:conv:0"]}
    for otherwise in (
        {"mean": [1.0, 2.0, 3.0], "variance": [1.0, 1.0, 1.0]},
        {"mean": mean.tolist(), "variance": [-1.0, 1.0, 1.0]},
        {"mean": "far", "variance": "wide"},
        {"mean": None},
    ):
        other = described(*layers, ("Conv2D", "conv", ("scale",)), **kept)
        other.description["config"]["layers"][1]["config"] |= otherwise
        names = [r.name for r in load_onnx(path, keras=other).source.layers if r.module]
        assert "conv" in names
        assert "scale" not in names


@pytest.mark.parametrize("rest", [{"max_value": 2.0, "negative_slope": 0.25}, {"threshold": 0.5}])
def test_a_relu_of_several_operators_is_all_of_them(rest: dict[str, float], tmp_path: Path) -> None:
    kernel = np.random.default_rng(4).normal(size=(2, 3, 1, 1))
    if "threshold" in rest:
        nodes = [
            node("Greater", "c t", "g", "/Greater"),
            node("Where", "g c z", "r", "/Where"),
        ]
    else:
        nodes = [
            node("Clip", "c z t", "p", "/Clip"),
            node("Neg", "c", "n", "/Neg"),
            node("Relu", "n", "q", "/Relu"),
            node("Mul", "q a", "m", "/Mul"),
            node("Sub", "p m", "r", "/Sub"),
        ]
    nodes = [node("Conv", "img k", "c", "/Conv"), *nodes, node("Conv", "r l", "out", "/Conv_1")]
    second = np.random.default_rng(5).normal(size=(4, 2, 1, 1))
    most = np.array(rest.get("threshold", rest.get("max_value")))
    numbers = {"k": kernel, "l": second, "z": np.array(0.0), "t": most, "a": np.array(0.25)}
    sizes = {"img": ["N", 3, 4, 4]}
    path = save(tmp_path / "n.onnx", nodes, numbers, sizes, ["out"], producer="pytorch")
    keras = described(
        ("InputLayer", "img", ()),
        ("Conv2D", "first", ("img",)),
        ("ReLU", "relu", ("first",)),
        ("Conv2D", "second", ("relu",)),
        **{
            "weight:first:0": kernel.transpose(2, 3, 1, 0).astype(np.float32),
            "weight:second:0": second.transpose(2, 3, 1, 0).astype(np.float32),
        },
    )
    keras.description["config"]["layers"][2]["config"] |= rest
    network = load_onnx(path, keras=keras)
    x = 3 * torch.randn(2, 3, 4, 4)
    seen = tvc.activations(network, x, ["first", "relu"])
    c = seen["first"]
    wanted = (
        torch.where(c > 0.5, c, 0.0)
        if "threshold" in rest
        else c.clamp(0, 2) + 0.25 * c.clamp(max=0)
    )
    torch.testing.assert_close(seen["relu"], wanted)


@pytest.mark.parametrize("before", ["conv_a", "conv_b"])
def test_the_description_tells_where_an_idle_layer_stands(before: str, tmp_path: Path) -> None:
    """Its connections do; the order of the layers is the same in both models."""
    from tests.test_converters_files import branching

    path = branching(tmp_path / "n.onnx")
    other = "conv_a" if before == "conv_b" else "conv_b"
    keras = described(
        ("InputLayer", "img", ()),
        ("Conv2D", "conv_a", ("img",)),
        ("Conv2D", "conv_b", ("conv_a",)),
        ("Dropout", "dropout", (before,)),
        ("Concatenate", "concatenate", (other, "dropout")),
    )
    network = load_onnx(path, keras=keras)
    x = torch.rand(1, 3, 8, 7)
    if before == "conv_b":
        seen = tvc.activations(network, x, ["conv_b", "dropout"])
        assert torch.equal(seen["conv_b"], seen["dropout"])
    else:  # conv_b reads the tensor as well, and not through the dropout
        with pytest.raises(tvc.InputError, match="'dropout' has left nothing in the file"):
            tvc.activations(network, x, "dropout")


def test_what_could_not_be_told_is_not_called_after_another_layer(tmp_path: Path) -> None:
    """The user's layers are called as a made-up name would be."""
    file, keras = twin_branches(tmp_path / "n.onnx", equal=True)
    text = json.dumps(keras.description).replace("left", "conv_1").replace("right", "conv_2")
    keras.description = json.loads(text)
    network = load_onnx(file, keras=keras)
    made = [record.name for record in network.source.layers if record.module]
    assert {"conv_3", "conv_4"} <= set(made)
    assert not {"conv_1", "conv_2"} & set(made)


def classes(keras: Any) -> dict[str, str]:
    layers = json.loads(str(keras["description"]))["config"]["layers"]
    return {each["config"]["name"]: each["class_name"] for each in layers}


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
@pytest.mark.parametrize("file", [name for name in FILES if not name.startswith("twins")])
def test_layers_of_a_list_are_told_by_their_order(file: str, layout: str) -> None:
    keras = stored(file)
    network = load_onnx(NAMELESS / file, layer_names=classes(keras), input_layout=layout)
    records = [(record.name, record.type) for record in network.source.layers]
    assert records == [*classes(keras).items()]
    assert "told by their order in layer_names alone" in network.source.notes[0]
    if layout == "NCHW":
        # whether c_add reads b_out, or drop behind it, no list can tell
        check(network, keras, gone={"drop"} if file.startswith("res") else set())


def test_default_names_tell_their_classes() -> None:
    keras = stored("catdog")
    network = load_onnx(NAMELESS / "catdog.dyn.onnx", layer_names=list(classes(keras)))
    check(network, keras)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda names: [n for n in names if n != "conv2d_1"], "has a Conv where 'max_pooling2d_1'"),
        (lambda names: [n for n in names if n != "dense_1"], "behind the layers listed it has a"),
        (lambda names: [*names, "dense_2"], r"has nothing where 'dense_2' \(Dense\) is listed"),
        (lambda names: [n.replace("conv2d", "block") for n in names], "the class of the layer 'bl"),
    ],
)
def test_lists_whose_classes_do_not_fit_in_order_are_refused(change: Any, sentence: str) -> None:
    names = list(classes(stored("catdog")))
    with pytest.raises(tvc.InputError, match=sentence):
        load_onnx(NAMELESS / "catdog.dyn.onnx", layer_names=change(names))


def with_table(path: Path) -> Path:
    """A file as ``export_keras`` writes it."""
    from converters.metadata import INPUT, ExportedLayer, LayerTable, write_table

    nodes = [
        node("Transpose", "img", "t", "turn", perm=[0, 3, 1, 2]),
        node("Relu", "t", "r", "network_1/first_1/Relu"),
        node("MaxPool", "r", "out", "network_1/pool_1/MaxPool", kernel_shape=[2, 2]),
    ]
    save(path, nodes, {}, {"img": ["N", 5, 4, 3]}, ["out"], producer="torchviz_cnn")
    model = onnx.load(path)
    rows = (
        ExportedLayer("img", "InputLayer", status=INPUT),
        ExportedLayer("first", "ReLU"),
        ExportedLayer("pool", "MaxPooling2D"),
    )
    write_table(model, LayerTable("keras 3.15.1", rows))
    onnx.save(model, path)
    return path


def test_a_keras_model_beside_a_file_with_a_table_is_checked(tmp_path: Path) -> None:
    path = with_table(tmp_path / "n.onnx")
    layers = [("InputLayer", "input", ()), ("ReLU", "first", ("input",))]
    right = described(*layers, ("MaxPooling2D", "pool", ("first",)))
    network = load_onnx(path, keras=right)
    assert [record.name for record in network.source.layers] == ["img", "first", "pool"]
    assert network.source.notes == load_onnx(path).source.notes
    for wrong in (
        described(*layers),
        described(*layers, ("MaxPooling2D", "other", ("first",))),
        described(*layers, ("Dropout", "more", ("first",)), ("MaxPooling2D", "pool", ("more",))),
    ):
        with pytest.raises(tvc.InputError, match="only one of the two has a layer"):
            load_onnx(path, keras=wrong)


def test_a_keras_model_that_is_not_asked_is_said(tmp_path: Path) -> None:
    path = with_table(tmp_path / "n.onnx")
    keras = described(("InputLayer", "img", ()), ("ReLU", "first", ("img",)))
    network = load_onnx(path, keras=keras, layer_names=["img", "first", "pool"])
    assert any("layer_names was given" in note for note in network.source.notes)


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
@pytest.mark.parametrize("file", ["res.static.onnx", "res.dyn.onnx", "mixed.static.onnx"])
def test_the_result_is_an_ordinary_network(file: str, layout: str) -> None:
    keras = stored(file)
    network = load_onnx(NAMELESS / file, keras=Described(keras), input_layout=layout)
    x = nchw(keras["x"]) if layout == "NCHW" else torch.from_numpy(keras["x"])
    torch.export.export(network, (x,))
    copied = copy.deepcopy(network).double()
    assert torch.allclose(copied(x.double()).float(), network(x), atol=1e-5)


# ---------------------------------------------------------------------------- Keras' files

h5py = pytest.importorskip("h5py", reason="h5py is not installed: it reads Keras' files")


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    source = NAMELESS / name
    path.write_bytes(
        source.read_bytes()
        if source.exists()
        else gzip.decompress((NAMELESS / f"{name}.gz").read_bytes())
    )
    return path


@pytest.mark.parametrize("name", ["twins.keras", "twins.h5"])
def test_names_from_a_file_keras_wrote(name: str, tmp_path: Path) -> None:
    keras = stored("twins")
    path = unpacked(name, tmp_path)
    check(load_onnx(NAMELESS / "twins.dyn.onnx", keras=path), keras)
    found = read_keras(path)
    assert found.names == [str(each) for each in keras["layers"]]
    for key in keras.files:
        if key.startswith("weight:"):
            place, _, number = key[7:].rpartition(":")
            weight = found.weights[tuple(place.split("/"))][int(number)]
            assert np.array_equal(weight.read(), keras[key])
            assert weight.shape == keras[key].shape


def test_names_from_a_file_without_layers_names_in_its_weights(tmp_path: Path) -> None:
    """Keras 3 before it wrote them: the second Conv2D is conv2d_1, whatever it is called."""
    path = unpacked("twins.keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(content, "r+") as container:
        container.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    parts["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    check(load_onnx(NAMELESS / "twins.dyn.onnx", keras=path), stored("twins"))


def test_weights_alone_name_what_has_kernels_of_its_own(tmp_path: Path) -> None:
    path = unpacked("twins.weights.h5", tmp_path)
    network = load_onnx(NAMELESS / "twins.dyn.onnx", keras=path)
    names = [record.name for record in network.source.layers]
    assert {"first", "base.inner", "out"} <= set(names)
    assert not {"twin_a", "twin_b", "shared"} & set(names)  # equal, or called twice
    assert any("could not be told" in note for note in network.source.notes)
    keras = stored("twins")
    out = tvc.activations(network, nchw(keras["x"]), "out")["out"]
    assert np.allclose(out.numpy(), keras["layer:out"], atol=1e-4)


def test_weights_alone_beside_a_file_with_a_table_are_said_not_to_be_used(tmp_path: Path) -> None:
    path = with_table(tmp_path / "n.onnx")
    network = load_onnx(path, keras=unpacked("twins.weights.h5", tmp_path))
    assert any("holds weights alone, is not used" in note for note in network.source.notes)


def test_the_commands_take_a_keras_file(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from torchviz_cnn import cli

    path = unpacked("twins.h5", tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["torchviz-cnn", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, *capsys.readouterr()  # type: ignore[return-value]
        return 0, *capsys.readouterr()

    code, out, err = run("layers", NAMELESS / "twins.dyn.onnx", "--keras", path)
    assert code == 0, err
    assert "twin_a (Conv2D)" in out
    code, _, err = run("layers", "vgg16", "--keras", path)
    assert (code, "tells the layers' names of an ONNX file" in err) == (2, True)
    code, _, err = run("layers", DATA / "tiny.k3export.onnx", "--keras", path)
    assert (code, "twins.h5 does not fit this file" in err) == (2, True)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda parts: parts.pop("config.json"), "lacks config.json"),
        (lambda parts: parts.update({"config.json": b"{"}), "no JSON"),
        (lambda parts: parts.update({"config.json": b'{"class_name": "Model"}'}), "damaged"),
        (lambda parts: parts.update({"model.weights.h5": b"nothing"}), "no HDF5 file"),
    ],
)
def test_broken_files_are_refused(spoil: Any, sentence: str, tmp_path: Path) -> None:
    path = unpacked("twins.keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    spoil(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(tvc.InputError, match=sentence):
        load_onnx(NAMELESS / "twins.dyn.onnx", keras=path)


def test_files_that_point_elsewhere_or_lie_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.h5").write_bytes(b"")
    for number, build in enumerate(
        [
            lambda f: f.__setitem__("layers", h5py.ExternalLink("secret.h5", "/")),
            lambda f: f.create_dataset("w", (2**20,), "f4", external=[("secret.h5", 0, 2**22)]),
            lambda f: f.create_dataset("w", (2**31,), "f4", chunks=(2**20,)),
        ]
    ):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as container:
            build(container)
        with pytest.raises(tvc.InputError, match="cannot read"):
            load_onnx(NAMELESS / "twins.dyn.onnx", keras=path)
    packed = tmp_path / "bomb.keras"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(2**27))
    with pytest.raises(tvc.InputError, match="unpack to more than twenty times"):
        load_onnx(NAMELESS / "twins.dyn.onnx", keras=packed)
    with pytest.raises(tvc.InputError, match="no such file"):
        load_onnx(NAMELESS / "twins.dyn.onnx", keras=tmp_path / "none.keras")
    with pytest.raises(tvc.InputError, match="takes a Keras model or the path of one"):
        load_onnx(NAMELESS / "twins.dyn.onnx", keras=7)


def layers_with_weights(container: Any) -> list[Any]:
    found: list[Any] = []
    container.visititems(
        lambda name, item: found.append(item) if name.endswith("vars") and len(item) else None
    )
    return found


def renumbered(container: Any) -> None:
    group = layers_with_weights(container)[0]
    group.move("0", "first")


def numbers_for_a_folder(container: Any) -> None:
    name = next(iter(container["layers"]))
    del container["layers"][name]
    container["layers"][name] = np.zeros(3)


def numbers_for_the_weights(container: Any) -> None:
    group = layers_with_weights(container)[0].parent
    del group["vars"]
    group["vars"] = np.zeros(3)


def words_for_a_weight(container: Any) -> None:
    group = layers_with_weights(container)[0]
    del group["0"]
    group["0"] = [b"no", b"numbers"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (renumbered, "are not numbered"),
        (numbers_for_a_folder, "numbers where the weights of layers should be"),
        (numbers_for_the_weights, "numbers where the weights of layers should be"),
        (words_for_a_weight, "something other than numbers for a weight"),
    ],
)
def test_a_container_of_another_build_is_refused(spoil: Any, sentence: str, tmp_path: Path) -> None:
    path = unpacked("twins.keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(content, "r+") as container:
        spoil(container)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", parts["config.json"])
        archive.writestr("model.weights.h5", content.getvalue())
    with pytest.raises(tvc.InputError, match=sentence):
        load_onnx(NAMELESS / "twins.dyn.onnx", keras=path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda top: top.attrs.__setitem__("layer_names", 7), "no list of names"),
        (lambda top: top.attrs.__setitem__("layer_names", [1.5]), "no list of names"),
        (lambda top: top["first"].attrs.__setitem__("weight_names", 7), "no list of names"),
        (lambda top: top["first"].attrs.__setitem__("weight_names", ["none"]), "other than numb"),
        (lambda top: top.attrs.__setitem__("layer_names", ["none"]), "nothing where"),
    ],
)
def test_an_old_container_of_another_build_is_refused(
    spoil: Any, sentence: str, tmp_path: Path
) -> None:
    path = unpacked("twins.h5", tmp_path)
    with h5py.File(path, "r+") as container:
        spoil(container.get("model_weights", container))
    with pytest.raises(tvc.InputError, match=sentence):
        load_onnx(NAMELESS / "twins.dyn.onnx", keras=path)


def test_a_description_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = unpacked("twins.h5", tmp_path)
    with h5py.File(path, "r+") as container:
        container.attrs["model_config"] = 7
    for read in (read_keras, check_keras_file):
        with pytest.raises(tvc.InputError, match="description of the network is no text"):
            read(path)


def test_a_part_that_does_not_unpack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Model", "config": {}}))
        archive.writestr("model.weights.h5", bytes(100))
    data = bytearray(path.read_bytes())
    begin = data.index(b"config.json") + len(b"config.json")
    data[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(data)
    for read in (read_keras, check_keras_file):
        with pytest.raises(tvc.InputError, match="cannot read"):
            read(path)


def test_parts_packed_in_another_way_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"")
    for read in (read_keras, check_keras_file):
        with pytest.raises(tvc.InputError, match="packed in a way Keras does not use"):
            read(path)


def test_numbers_that_are_damaged_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "n.h5"
    with h5py.File(path, "w") as container:
        numbers = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
        group = container.create_group("first")
        group.create_dataset("kernel", data=numbers, compression="gzip")
        container.attrs["layer_names"] = ["first"]
        group.attrs["weight_names"] = ["kernel"]
        place = group["kernel"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    weight = read_keras(path).weights["first",][0]
    with pytest.raises(tvc.InputError, match="a weight of the Keras layer 'first' is damaged"):
        weight.read()


@pytest.mark.parametrize("shape", [(3,), (3, 3), (0, 3, 3, 4)])
def test_a_kernel_that_is_none_tells_nothing(shape: tuple[int, ...], tmp_path: Path) -> None:
    file, keras = twin_branches(tmp_path / "n.onnx", equal=False)
    numbers = np.zeros(shape, np.float32)
    keras.inner["left"].arrays[0] = numbers
    for kind in ("Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "SeparableConv2D"):
        keras.description["config"]["layers"][1]["class_name"] = kind
        network = load_onnx(file, keras=keras)
        made = [record.name for record in network.source.layers if record.module]
        assert "right" in made
        assert "left" not in made


def test_statistics_of_different_lengths_are_no_batch_norms() -> None:
    keras = Described(stored("res"))
    norm = keras.inner["a_bn1"]
    norm.arrays[1] = norm.arrays[1][:-1]
    network = load_onnx(NAMELESS / "res.static.onnx", keras=keras)
    assert "a_c1" in [record.name for record in network.source.layers if record.module]


def test_without_h5py_it_says_what_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for name in ("twins.h5", "twins.keras"):
        with pytest.raises(tvc.InputError, match="needs h5py"):
            read_keras(unpacked(name, tmp_path))


@pytest.mark.skipif(REAL is None, reason="TORCHVIZ_CNN_DATA names no folder of real networks")
def test_a_trained_network_that_torch_exported_gets_keras_names() -> None:
    """All but what the two have differently: Keras' shortcuts are convolutions, torch's slices."""
    folder = Path(REAL or "")
    network = load_onnx(
        folder / "resnet20_cifar10.onnx", keras=folder / "resnet20_cifar10.keras"
    )  # fmt: skip
    keras = np.load(folder / "keras" / "resnet20_reference.npz")
    gone = {key[6:] for key in keras.files if key.startswith("layer:")} & {
        *(record.name for record in network.source.layers if record.status.startswith("fused")),
        *(f"layer{n}_0_{what}" for n in (2, 3) for what in ("conv1_pad", "shortcut")),
        "prob",
    }
    records = {r.name: r for r in network.source.layers if r.status == "in the file" and r.module}
    names = {key[6:] for key in keras.files if key.startswith("layer:")} - gone
    assert names <= records.keys()
    assert len(names) == 49
    seen = tvc.activations(network, nchw(keras["x"]), sorted(names))
    for name in names:
        found = seen[name].numpy()
        found = found.transpose(0, 2, 3, 1) if found.ndim == 4 else found
        wanted = keras[f"layer:{name}"]
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
