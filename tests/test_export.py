"""Exports of Keras models against Keras' own numbers; the layer table against files made by hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import torchviz_cnn as tvc
from converters import compare, export_keras, load_onnx  # torch before TensorFlow, or LLVM aborts
from converters.metadata import ExportedLayer, LayerTable, read_table, write_table
from tests.onnx_files import node, save
from torchviz_cnn import cli

KEY = "torchviz_cnn.layers"


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "other.KERAS"])
def test_a_keras_model_is_not_written_over(tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    model.write_bytes(b"weights of a week")
    with pytest.raises(tvc.InputError, match=r"called like a Keras file; .*\.onnx"):
        export_keras(model, model)
    assert model.read_bytes() == b"weights of a week"


# ---------------------------------------------------------------- the layer table, without Keras


def row(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


ROWS = [
    row("img", "InputLayer", status="input"),
    row("conv2d", "Conv2D", activation="linear", output_shape=[None, 6, 6, 2]),
    row("batch_normalization", "BatchNormalization"),
    row("noise", "MyNoise", status="does nothing", after="batch_normalization"),
    row("block", "Functional"),
    row("block.Add", "Sharpen", depth=1),
    row("twice", "ReLU"),
    row("lost", "Reshape", status="not in the file"),
]


def hand_made(path: Path, text: str | None, key: str = KEY) -> Path:
    nodes = [
        node("Transpose", "img", "t", "network_1/conv2d_1/Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t w b", "network_1/batch_normalization_1/Add:0", "network_1/conv2d_1/Conv"),
        node(
            "Sigmoid", "network_1/batch_normalization_1/Add:0", "s", "network_1/block_1/Add_1/Sig"
        ),
        node("Relu", "s", "r1", "network_1/twice_1/Relu"),
        node("Neg", "r1", "n", "network_1/twice_1/Neg"),
        node("Relu", "n", "r2", "network_1/twice_2/Relu"),
        node("Neg", "r2", "out", "network_1/twice_2/Neg"),
    ]
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(2, 3, 3, 3)), "b": random.normal(size=2)}
    save(path, nodes, weights, {"img": [None, 8, 8, 3]}, ["out"], producer="torchviz_cnn")
    if text is not None:
        model = onnx.load(path)
        model.metadata_props.add(key=key, value=text)
        onnx.save(model, path)
    return path


def table(rows: list[dict[str, Any]], version: object = 1) -> str:
    return json.dumps({"version": version, "exporter": "keras 9.9", "layers": rows})


def test_names_and_classes_come_from_the_table(tmp_path: Path) -> None:
    network = load_onnx(hand_made(tmp_path / "net.onnx", table(ROWS)))
    found = [(r.name, r.type, r.status) for r in network.source.layers]
    assert [each for each in found if "." not in each[0]] == [
        ("img", "InputLayer", "in the file"),
        ("conv2d", "Conv2D", "fused into batch_normalization"),
        ("batch_normalization", "BatchNormalization", "in the file"),
        ("noise", "MyNoise", "in the file"),
        ("block", "Functional", "in the file"),
        ("twice", "ReLU", "in the file"),
        ("lost", "Reshape", "not in the file"),
    ]
    assert ("block.Add", "Sharpen", "in the file") in found
    assert network.source.exporter == "torchviz_cnn"
    x = torch.rand(2, 3, 8, 8)
    seen = tvc.activations(network, x, ["img", "batch_normalization", "noise", "block.Add"])
    assert torch.equal(seen["img"], x)
    assert torch.equal(seen["noise"], seen["batch_normalization"])
    assert torch.equal(seen["block.Add"], torch.sigmoid(seen["noise"]))
    with pytest.raises(tvc.InputError, match="'lost' has left nothing in the file"):
        tvc.activations(network, x, "lost")


def test_without_the_table_the_same_file_is_nameless(tmp_path: Path) -> None:
    for text, key in [(None, KEY), (table(ROWS), "somebody.else")]:
        network = load_onnx(hand_made(tmp_path / "net.onnx", text, key))
        assert "does not carry the layers' names" in network.source.notes[0]


def test_two_calls_of_a_layer_are_told_apart(tmp_path: Path) -> None:
    network = load_onnx(hand_made(tmp_path / "net.onnx", table(ROWS)))
    seen = tvc.activations(network, torch.rand(1, 3, 8, 8), ["twice@*", "block.Add"])
    assert torch.equal(seen["twice"], -seen["block.Add"])
    assert torch.equal(seen["twice@1"], torch.zeros_like(seen["twice"]))


def test_a_table_takes_the_place_of_the_one_before_and_of_nothing_else() -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key="author", value="somebody")
    tables = [LayerTable("keras 3", (ExportedLayer(name, "Dense"),)) for name in ("first", "last")]
    for table in tables:
        write_table(model, table)
    assert read_table(model) == tables[1]
    entries = [(entry.key, entry.value) for entry in model.metadata_props]
    assert entries[0] == ("author", "somebody")
    assert len(entries) == 2


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    found = read_table(onnx.load(hand_made(tmp_path / "net.onnx", table(ROWS))))
    assert found is not None
    assert found.exporter == "keras 9.9"
    assert found.names == [
        "img",
        "conv2d",
        "batch_normalization",
        "noise",
        "block",
        "twice",
        "lost",
    ]
    assert found.kinds["block.Add"] == "Sharpen"
    assert found.idle == {"noise": "batch_normalization"}
    assert found.layers[1].output_shape == (None, 6, 6, 2)
    assert found.layers[1].activation == "linear"


def test_a_list_given_by_hand_comes_before_the_table(tmp_path: Path) -> None:
    names = [r["name"] for r in ROWS if "." not in r["name"]]
    path = hand_made(tmp_path / "net.onnx", table(ROWS))
    network = load_onnx(path, layer_names=dict.fromkeys(names, "Mine"))
    assert {r.type for r in network.source.layers if r.name == "twice"} == {"Mine"}
    with pytest.raises(tvc.InputError, match="'twice' that is not listed"):
        load_onnx(path, layer_names=[name for name in names if name != "twice"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is damaged"),
        ("[1, 2]", "is damaged"),
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        (table(ROWS, version="1"), "is damaged"),
        (table(ROWS, version=None), "is damaged"),
        (table([{"name": "conv2d"}]), "is damaged"),
        (table([*ROWS, ROWS[0]]), "is damaged"),
        (table([row("conv2d", "Conv2D", output_shape=[-1])]), "is damaged"),
        (table([row("conv2d", "Conv2D", output_shape=["a"])]), "is damaged"),
        (table([row("conv2d", "Conv2D", depth="x")]), "is damaged"),
        (table([row("conv2d", "Conv2D", after=3)]), "is damaged"),
        (table([row("conv2d", 5)]), "is damaged"),
        (table(ROWS, version=2), "install a newer torchviz-cnn"),
        (table(ROWS[1:-2]), "'twice' that is not listed"),
    ],
)
def test_a_table_that_cannot_be_true_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(tvc.InputError, match=sentence):
        load_onnx(hand_made(tmp_path / "net.onnx", text))


def test_a_layer_that_is_said_to_do_nothing_somewhere_else_is_not_invented(tmp_path: Path) -> None:
    rows = [r | {"after": "nowhere"} if r["name"] == "noise" else r for r in ROWS]
    network = load_onnx(hand_made(tmp_path / "net.onnx", table(rows)))
    assert {r.name: r.status for r in network.source.layers}["noise"] == "not in the file"


def test_without_keras_one_is_told_how_to_install_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(tvc.InputError, match=r'pip install "torchviz-cnn\[keras\]"'):
        export_keras(tmp_path / "model.keras", tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- with Keras


@pytest.fixture(scope="module")
def keras() -> Any:
    for name in ("tensorflow", "tf2onnx"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra keras)")
    return pytest.importorskip("keras", reason="Keras is not installed (extra keras)")


def stir(model: Any) -> Any:
    """Random numbers everywhere: fresh biases and statistics are zeros and ones, which hide much."""
    random = np.random.default_rng(7)
    for variable in model.weights:
        low = 0.5 if variable.name in ("gamma", "moving_variance") else -0.5
        if variable.dtype == "float32":
            variable.assign(random.uniform(low, low + 1, variable.shape))
    return model


def values_of(keras: Any, model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """What Keras says each layer puts out at its first call."""
    outputs = [layer.output for layer in model.layers]
    found = keras.Model(model.inputs, outputs).predict_on_batch(x)
    return dict(zip([layer.name for layer in model.layers], found, strict=True))


def as_keras(network: Any, name: str, maps: torch.Tensor) -> np.ndarray:
    record = next(r for r in network.source.layers if r.name == name)
    array = maps.numpy()
    if record.permutation is not None:
        array = array[:, list(record.permutation)]
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def check(keras: Any, model: Any, path: Path, gone: set[str] = frozenset()) -> Any:
    """Every layer but ``gone`` has Keras' name and puts out Keras' numbers."""
    x = np.random.default_rng(3).uniform(0, 1, (2, *model.input_shape[1:])).astype(np.float32)
    network = load_onnx(path)
    wanted = values_of(keras, model, x)
    there = {r.name for r in network.source.layers if r.status == "in the file"}
    named = {r.name for r in network.source.layers if "." not in r.name}
    assert set(wanted) - gone <= there
    assert named - set(wanted) <= {each.name for each in getattr(model, "operations", [])}
    assert not there & gone
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    seen = tvc.activations(network, inputs, sorted(set(wanted) - gone))
    for name in set(wanted) - gone:
        found, expected = as_keras(network, name, seen[name]), wanted[name]
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), name
        assert np.abs(expected).max() > 1e-3, name
    kinds = {r.name: r.type for r in network.source.layers}
    assert all(kinds[layer.name] == type(layer).__name__ for layer in model.layers)
    assert compare(path, inputs=inputs, network=network).worst <= 1e-5
    return network


@pytest.fixture(scope="module")
def mixed(keras: Any) -> Any:
    """A bit of everything: names that invite mistakes, and layers that exporters like to merge."""
    layers = keras.layers
    img = layers.Input((16, 12, 3), name="img")
    x = layers.RandomFlip(name="flip")(img)
    x = layers.RandomZoom(0.2, name="zoom")(x)
    x = layers.Rescaling(2.0, offset=-0.5, name="Mul")(x)
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv2d_1")(x)
    x = layers.BatchNormalization(name="conv2d")(x)
    one = layers.ReLU(name="re_lu")(x)
    two = layers.ReLU(name="re_lu_1")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="dw")(one)
    y = layers.BatchNormalization(name="dw_norm")(y)
    y = layers.Activation("swish", name="swish")(y)
    y = layers.Activation("linear", name="nothing")(y)
    y = layers.Dropout(0.5, name="drop")(y)
    z = layers.Conv2D(6, 1, groups=2, activation="relu", name="grouped")(two)
    x = layers.Concatenate(name="Add")([y, z])
    squeezed = layers.GlobalAveragePooling2D(name="squeeze")(x)
    squeezed = layers.Reshape((1, 1, 12), name="reshape")(squeezed)
    squeezed = layers.Conv2D(12, 1, activation="sigmoid", name="excite")(squeezed)
    x = layers.Multiply(name="multiply")([x, squeezed])
    x = layers.MaxPooling2D(2, name="pool.v1")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="train")(x)
    x = x + 1.5
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(7, activation="relu", name="dense")(x)
    return stir(keras.Model(img, layers.Dense(3, activation="softmax", name="out")(x)))


def test_every_layer_of_a_model_is_in_the_file(keras: Any, mixed: Any, tmp_path: Path) -> None:
    export = export_keras(mixed, tmp_path / "net.onnx", every_layer=True)
    check(keras, mixed, tmp_path / "net.onnx")
    assert export.left_out == ("flip", "zoom", "nothing", "drop")
    assert export.fused == ()
    rows = {layer.name: layer for layer in export.layers}
    for layer in mixed.layers:
        shape = layer.batch_shape if layer.name == "img" else layer.output.shape
        assert rows[layer.name].output_shape == tuple(shape), layer.name
        assert rows[layer.name].type == type(layer).__name__
    assert rows["grouped"].activation == "relu"
    assert rows["nothing"].after == "swish"
    assert rows["drop"].after == "nothing"
    assert rows["flip"].after is None
    assert rows["zoom"].after == "flip"


def test_merged_batch_norms_hide_their_convolutions(keras: Any, mixed: Any, tmp_path: Path) -> None:
    export = export_keras(mixed, tmp_path / "net.onnx")
    assert export.fused == ("conv2d_1", "dw")
    network = check(keras, mixed, tmp_path / "net.onnx", gone={"conv2d_1", "dw"})
    status = {r.name: r.status for r in network.source.layers}
    assert status["conv2d_1"] == "fused into conv2d"
    assert status["dw"] == "fused into dw_norm"


def test_the_file_is_the_network_for_any_batch(keras: Any, mixed: Any, tmp_path: Path) -> None:
    export_keras(mixed, tmp_path / "net.onnx", every_layer=True)
    network = load_onnx(tmp_path / "net.onnx")
    x = np.random.default_rng(0).uniform(0, 1, (5, 16, 12, 3)).astype(np.float32)
    expected = mixed.predict_on_batch(x)
    for count in (1, 5):
        found = network(torch.from_numpy(x[:count].transpose(0, 3, 1, 2).copy())).detach().numpy()
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


@pytest.fixture(scope="module")
def cat_dog(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((14, 14, 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(5, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(1, activation="sigmoid"),
        ],
        name="cat_dog",
    )
    model.compile(loss="binary_crossentropy", optimizer="adam")
    return stir(model)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_model_is_read(keras: Any, cat_dog: Any, tmp_path: Path, suffix: str) -> None:
    cat_dog.save(tmp_path / f"model{suffix}")
    export = export_keras(tmp_path / f"model{suffix}", tmp_path / "net.onnx")
    assert [type_.type for type_ in export.layers] == [type(x).__name__ for x in cat_dog.layers]
    assert len(export.left_out) == 3
    check(keras, cat_dog, tmp_path / "net.onnx")
    for op in onnx.load(tmp_path / "net.onnx").graph.node:
        assert "Random" not in op.op_type


def test_nested_and_shared_layers(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    inside = layers.Input((8, 8, 3))
    y = layers.Conv2D(3, 3, padding="same", name="conv2d")(inside)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Add(name="add")([y, inside])  # a scope that TensorFlow's operators open as well
    block = keras.Model(inside, layers.ReLU(name="re_lu")(y), name="block")
    img = layers.Input((8, 8, 3), name="img")
    shared = layers.Conv2D(3, 3, padding="same", activation="tanh", name="shared")
    first = shared(img)
    nested = block(first)
    second = shared(nested)
    model = stir(keras.Model(img, layers.Flatten(name="flatten")(second)))
    export_keras(model, tmp_path / "net.onnx", every_layer=True)
    network = load_onnx(tmp_path / "net.onnx")
    x = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 3)).astype(np.float32)
    a, b, c = keras.Model(img, [first, nested, second]).predict_on_batch(x)
    parts = [block.get_layer(name).output for name in ("conv2d", "norm", "add", "re_lu")]
    inner = keras.Model(inside, parts).predict_on_batch(a)
    wanted = dict(
        zip(["block.conv2d", "block.norm", "block.add", "block.re_lu"], inner, strict=True)
    )
    wanted |= {"shared": a, "block": b, "shared@1": c}
    seen = tvc.activations(network, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), list(wanted))
    for name, expected in wanted.items():
        found = seen[name].numpy().transpose(0, 2, 3, 1)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), name
    assert [p.shape for p in network.shared.parameters()] == [(3, 3, 3, 3), (3,)]
    kinds = {r.name: r.type for r in network.source.layers}
    assert kinds["block"] == "Functional"
    assert kinds["block.add"] == "Add"


def test_a_dropout_that_only_one_branch_goes_through_is_not_invented(
    keras: Any, tmp_path: Path
) -> None:
    layers = keras.layers
    img = layers.Input((8, 8, 3), name="img")
    x = layers.Conv2D(3, 3, name="conv")(img)
    x = layers.Add(name="add")([x, layers.Dropout(0.5, name="drop")(x)])
    model = stir(keras.Model(img, layers.ReLU(name="re_lu")(x)))
    export = export_keras(model, tmp_path / "net.onnx")
    assert export.left_out == ("drop",)
    check(keras, model, tmp_path / "net.onnx", gone={"drop"})


def test_numbers_that_are_no_weights_are_kept(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((6, 6, 3)),
            layers.Normalization(mean=[0.2, 0.4, 0.6], variance=[0.5, 1.0, 2.0]),
            layers.Conv2D(2, 3),
        ]
    )
    export_keras(stir(model), tmp_path / "net.onnx")
    check(keras, model, tmp_path / "net.onnx")


def test_what_the_exporter_gives_no_name_or_cannot_say(keras: Any, tmp_path: Path) -> None:
    """It calls a resize after nothing, has no operator for an exact GELU, and sums as none else."""
    layers = keras.layers
    img = layers.Input((6, 5, 3), name="img")
    x = layers.Conv2D(4, 3, padding="same", activation="gelu", name="first")(img)
    x = layers.UpSampling2D(2, interpolation="bilinear", name="smooth")(x)
    x = layers.Conv2D(5, 3, name="second")(x)
    x = layers.Activation("gelu", name="gelu")(x)
    x = layers.UpSampling2D((1, 3), name="repeated")(x)
    x = layers.Resizing(90, 80, name="resized")(x)
    x = layers.Resizing(75, 75, name="to_a_size")(x)  # in single precision 90 times 75/90 is less
    x = layers.Conv2D(5, 1, name="third")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.UnitNormalization(name="unit")(x)
    model = stir(keras.Model(img, layers.Dense(2, name="out")(x)))
    export_keras(model, tmp_path / "net.onnx", every_layer=True)
    network = check(keras, model, tmp_path / "net.onnx")
    kinds = {type(part).__name__ for part in network.get_submodule("gelu").modules()}
    assert "GELU" in kinds
    # Whoever reads the file finds as many rows, however the factor is multiplied.
    model = onnx.load(tmp_path / "net.onnx")
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    (factors,) = (
        constants[node.input[2]].astype(np.float64)
        for node in model.graph.node
        if node.op_type == "Resize" and "to_a_size" in node.name
    )
    assert np.floor(factors[2:] * [90, 80]).tolist() == [75, 75]


def test_pictures_of_any_size(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((None, None, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(name="pool"),
        ]
    )
    stir(model)
    x = np.random.default_rng(0).uniform(0, 1, (2, 9, 12, 3)).astype(np.float32)
    expected = model.predict_on_batch(x)
    given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    for shape in (None, (9, 12, 3)):
        export_keras(model, tmp_path / "net.onnx", input_shape=shape)
        found = load_onnx(tmp_path / "net.onnx")(given).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_model_that_was_never_called(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.Flatten()], name="new")
    with pytest.raises(tvc.InputError, match=r"'new' has never been called.*input_shape="):
        export_keras(model, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    export_keras(model, tmp_path / "net.onnx", input_shape=(5, 5, 3))
    stir(model)
    export_keras(model, tmp_path / "net.onnx")
    check(keras, model, tmp_path / "net.onnx")


def test_keras_is_left_as_it_was(keras: Any, mixed: Any, tmp_path: Path) -> None:
    import tensorflow as tf
    from tf2onnx import tfonnx

    before = [keras.layers.Layer.__call__, keras.Operation.__call__, tfonnx.rewrite_constant_fold]
    weights = [w.numpy().copy() for w in mixed.weights]
    export_keras(mixed, tmp_path / "net.onnx")
    with pytest.raises(tvc.InputError, match="cannot write"):
        export_keras(unknown_operator(keras), tmp_path / "net.onnx")
    after = [keras.layers.Layer.__call__, keras.Operation.__call__, tfonnx.rewrite_constant_fold]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert not tf.config.functions_run_eagerly()
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(weights, mixed.weights, strict=True))


def unknown_operator(keras: Any) -> Any:
    import tensorflow as tf

    class Odd(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.math.igamma(x + 1.0, x)

    return keras.Sequential([keras.layers.Input((4, 4, 3)), Odd(name="odd")])


def test_what_onnx_cannot_say_is_refused_by_name_and_the_old_file_stays(
    keras: Any, tmp_path: Path
) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")
    with pytest.raises(tvc.InputError, match="'odd' uses Igamma"):
        export_keras(unknown_operator(keras), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_loops_are_refused_by_the_name_of_their_layer(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    rows = [layers.Input((4, 4, 3)), layers.Reshape((4, 12)), layers.LSTM(5, name="memory")]
    model = keras.Sequential(rows)
    with pytest.raises(tvc.InputError, match="the layer 'memory' loops or branches"):
        export_keras(model, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_back_end_is_exported_by_tensorflow(keras: Any, tmp_path: Path) -> None:
    script = """
import sys, numpy as np
from converters import export_keras
import keras
assert keras.backend.backend() == "torch"
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.layers.Input((9, 9, 3)),
    keras.layers.Conv2D(4, 3, activation="relu", bias_initializer="normal", name="first"),
    keras.layers.Dropout(0.5, name="drop"), keras.layers.Flatten(name="flat"),
    keras.layers.Dense(2, bias_initializer="normal", name="last")])
x = np.random.default_rng(0).uniform(0, 1, (2, 9, 9, 3)).astype("float32")
export = export_keras(model, sys.argv[1] + "/net.onnx")
print([layer.name for layer in export.layers], export.left_out)
np.savez(sys.argv[1] + "/seen.npz", x=x, y=model.predict_on_batch(x))
try:
    export_keras(keras.Sequential(name="new"), sys.argv[1] + "/no.onnx")
except ValueError as error:
    print(type(error).__name__, error)
open(sys.argv[1] + "/file", "w").close()
try:
    export_keras(model, sys.argv[1] + "/file/net.onnx")
except OSError as error:
    print(type(error).__name__, error.filename)
"""
    environment = os.environ | {"KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[-3] == "['first', 'drop', 'flat', 'last'] ('drop',)"
    assert lines[-2].startswith("InputError the model 'new' has never been called")
    assert lines[-1] == f"CannotWrite {tmp_path}/file/net.onnx"
    seen = np.load(tmp_path / "seen.npz")
    found = load_onnx(tmp_path / "net.onnx")(torch.from_numpy(seen["x"].transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found.detach().numpy(), seen["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("built", [True, False])
def test_pictures_that_a_model_does_not_take(built: bool, keras: Any, tmp_path: Path) -> None:
    parts = [keras.layers.Conv2D(2, 7, name="wide"), keras.layers.Flatten(name="flat")]
    first = [keras.layers.Input((None, None, 3))] if built else []
    model = keras.Sequential([*first, *parts], name="net")
    with pytest.raises(tvc.InputError, match="the model 'net' cannot be called: "):
        export_keras(model, tmp_path / "net.onnx", input_shape=(4, 4, 3))
    assert not list(tmp_path.iterdir())


def test_models_of_keras_2(keras: Any, tmp_path: Path) -> None:
    old = pytest.importorskip("tf_keras", reason="tf_keras is not installed")
    layers = old.layers
    img = layers.Input((12, 12, 3), name="img")
    x = layers.RandomFlip(name="flip")(img)
    x = layers.DepthwiseConv2D(3, name="conv2d_1")(x)  # Keras 3 cannot read this one from a file
    x = layers.BatchNormalization(name="conv2d")(x)
    y = layers.ReLU(6.0, name="re_lu")(x)
    x = layers.Add(name="Add")([x, layers.Conv2D(3, 1, activation="relu", name="relu")(y)])
    x = layers.Dropout(0.3, name="drop")(x)
    x = layers.Flatten(name="flatten")(x)
    model = old.Model(img, layers.Dense(2, activation="softmax", name="out")(x))
    random = np.random.default_rng(7)
    for weight in model.weights:
        low = 0.5 if "gamma" in weight.name or "variance" in weight.name else -0.5
        if weight.dtype == "float32":
            weight.assign(random.uniform(low, low + 1, weight.shape))
    model.save(tmp_path / "model.h5")
    export_keras(model, tmp_path / "one.onnx", every_layer=True)
    export_keras(tmp_path / "model.h5", tmp_path / "two.onnx", every_layer=True)
    for file in ("one.onnx", "two.onnx"):
        check(old, model, tmp_path / file)
    merged = export_keras(model, tmp_path / "merged.onnx")
    assert merged.fused == ("conv2d_1",)
    check(old, model, tmp_path / "merged.onnx", gone={"conv2d_1"})


# ---------------------------------------------------------------- files nobody vouches for


def archive(
    path: Path, description: Any, weights: bytes | None = None, *, version: str = "3.0.0"
) -> Path:
    if weights is None:
        h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra keras)")
        buffer = io.BytesIO()
        h5py.File(buffer, "w").close()
        weights = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        text = description if isinstance(description, str) else json.dumps(description)
        file.writestr("config.json", text)
        file.writestr("metadata.json", json.dumps({"keras_version": version}))
        file.writestr("model.weights.h5", weights)
    return path


def with_description(container: bytes, description: Any) -> bytes:
    import h5py

    buffer = io.BytesIO(container)
    with h5py.File(buffer, "r+") as file:
        file.attrs["model_config"] = json.dumps(description)
    return buffer.getvalue()


def sequential(**layer: Any) -> dict[str, Any]:
    return {
        "module": "keras",
        "class_name": "Sequential",
        "registered_name": None,
        "config": {"name": "net", "layers": [layer]},
    }


def refused(path: Path, tmp_path: Path, sentence: str) -> None:
    with pytest.raises(tvc.InputError, match=sentence):
        export_keras(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("kind", ["Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer"])
def test_layers_that_run_code_are_refused(keras: Any, tmp_path: Path, kind: str) -> None:
    layer = {"module": "keras.layers", "class_name": kind, "config": {"name": "evil"}}
    path = archive(tmp_path / "a.keras", sequential(**layer))
    refused(path, tmp_path, f"'evil' is a {kind}, which runs code")
    wrapped = {"class_name": "TimeDistributed", "config": {"name": "outer", "layer": layer}}
    path = archive(tmp_path / "b.keras", sequential(module="keras.layers", **wrapped))
    refused(path, tmp_path, f"'evil' is a {kind}, which runs code")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_real_lambda_is_refused(keras: Any, tmp_path: Path, suffix: str) -> None:
    layers = keras.layers
    model = keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: x * 2, name="evil")])
    model.save(tmp_path / f"m{suffix}")
    refused(tmp_path / f"m{suffix}", tmp_path, "'evil' is a Lambda, which runs code")


def test_classes_that_are_not_keras_are_refused(keras: Any, tmp_path: Path) -> None:
    layer = {"class_name": "Mine", "config": {"name": "odd"}}
    for more in [
        {"module": "os", "registered_name": None},
        {"module": "keras_evil.layers", "registered_name": None},
        {"module": None, "registered_name": "Custom>Mine"},
        {"module": "builtins", "registered_name": "package>Mine"},
    ]:
        path = archive(tmp_path / "a.keras", sequential(**layer, **more))
        refused(path, tmp_path, "'odd' is a .*Mine, a class that is not Keras' own")
    path = archive(tmp_path / "a.keras", sequential(module=None, class_name="pkg>Mine", config={}))
    refused(path, tmp_path, "pkg>Mine, a class that is not Keras' own")


def test_an_archive_of_keras_2_is_told_where_it_can_be_read(keras: Any, tmp_path: Path) -> None:
    said = "it is of Keras 2, .* load it with tf_keras .* or save it there as .h5"
    functional = {"module": "tf_keras.src.engine.functional", "class_name": "Functional"}
    path = archive(tmp_path / "a.keras", sequential(**functional, config={"name": "base"}))
    refused(path, tmp_path, said)
    config = {"name": "c", "filters": 2, "kernel_size": 3, "batch_input_shape": [None, 9, 9, 3]}
    first = sequential(module="keras.layers", class_name="Conv2D", config=config)
    refused(archive(tmp_path / "b.keras", first), tmp_path, "Keras cannot read")
    refused(archive(tmp_path / "b.keras", first, version="2.15.0"), tmp_path, said)


def test_containers_that_point_elsewhere_are_refused(keras: Any, tmp_path: Path) -> None:
    import h5py

    def made(build: Any) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            build(file)
        return buffer.getvalue()

    def external_data(file: Any) -> None:
        file.create_group("layers").create_dataset(
            "x", (4,), "f4", external=[("/etc/hostname", 0, 16)]
        )

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("layers/x", layout)

    def huge(file: Any) -> None:
        file.create_dataset("layers/x", (2**20, 2**20), "f4", chunks=(1024, 1024))

    def twice(file: Any) -> None:
        file["layers/a"] = np.zeros(3)
        file["layers/b"] = file["layers"]

    def linked(link: Any) -> Any:
        return lambda file: file.create_group("layers").__setitem__("x", link)

    good = sequential(module="keras.layers", class_name="Flatten", config={"name": "flat"})
    for build, sentence in [
        (linked(h5py.ExternalLink("/etc/passwd", "/x")), "'/layers/x' is a link to another place"),
        (linked(h5py.SoftLink("/layers")), "'/layers/x' is a link to another place"),
        (external_data, "'/layers/x' lie in another file"),
        (virtual, "'/layers/x' lie in another file"),
        (huge, "'/layers/x' claims 4096.0 GiB"),
        (twice, "'/layers/b' stands in the file twice"),
    ]:
        path = archive(tmp_path / "a.keras", good, made(build))
        refused(path, tmp_path, sentence)
        (tmp_path / "a.h5").write_bytes(made(build))
        refused(tmp_path / "a.h5", tmp_path, sentence)


def test_files_that_are_no_models_are_refused(keras: Any, cat_dog: Any, tmp_path: Path) -> None:
    good = sequential(module="keras.layers", class_name="Flatten", config={"name": "flat"})
    refused(tmp_path / "none.keras", tmp_path, "there is no such file")
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path / "a.txt", tmp_path, r"ends in \.keras or \.h5")
    (tmp_path / "a.keras").write_bytes(b"no zip")
    refused(tmp_path / "a.keras", tmp_path, r"it is no \.keras file")
    refused(archive(tmp_path / "a.keras", "{"), tmp_path, "is no JSON")
    refused(archive(tmp_path / "a.keras", "[]"), tmp_path, "is no JSON object")
    refused(archive(tmp_path / "a.keras", good, b"no hdf5"), tmp_path, "it is no HDF5 file")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as file:
        file.writestr("config.json", json.dumps(good))
    refused(tmp_path / "a.keras", tmp_path, "lacks model.weights.h5")
    cat_dog.save_weights(tmp_path / "only.weights.h5")
    refused(tmp_path / "only.weights.h5", tmp_path, "weights alone")
    cat_dog.save(tmp_path / "whole.h5")
    data = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "half.h5").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "half.h5", tmp_path, "it is no HDF5 file, or a damaged one")
    broken = sequential(module="keras.layers", class_name="Conv2D", config={"name": "c"})
    refused(archive(tmp_path / "a.keras", broken), tmp_path, "Keras cannot read")
    with zipfile.ZipFile(tmp_path / "a.keras") as file, (tmp_path / "b.h5").open("wb") as bare:
        bare.write(with_description(file.read("model.weights.h5"), broken))
    refused(tmp_path / "b.h5", tmp_path, "tf_keras (may help|can read)")
    with pytest.raises(tvc.InputError, match="is a folder"):
        export_keras(cat_dog, tmp_path)
    with pytest.raises(tvc.InputError, match="not Linear"):
        export_keras(torch.nn.Linear(1, 1), tmp_path / "out.onnx")


def test_old_versions_and_missing_packages(keras: Any, cat_dog: Any, monkeypatch, tmp_path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keras, "__version__", "3.13.1")
        with pytest.raises(tvc.InputError, match=r"Keras 3\.13\.1 is installed.*3\.13\.2 or later"):
            export_keras(cat_dog, tmp_path / "out.onnx")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tf2onnx", None)
        with pytest.raises(tvc.InputError, match="needs tf2onnx"):
            export_keras(cat_dog, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the command


def type_in(monkeypatch: Any, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["torchviz-cnn", "export-keras", *map(str, words)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command(keras: Any, cat_dog: Any, mixed: Any, monkeypatch, tmp_path, capsys) -> None:
    cat_dog.save(tmp_path / "cat_dog.h5")
    assert type_in(monkeypatch, tmp_path / "cat_dog.h5", tmp_path / "cd.onnx") == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'cd.onnx'}: 9 layers (keras {keras.__version__})" in printed
    names = [x.name for x in cat_dog.layers if type(x).__name__ in LEFT_OUT]
    assert f"left out, for they do nothing outside training: {', '.join(names)}\n" in printed
    check(keras, cat_dog, tmp_path / "cd.onnx")
    mixed.save(tmp_path / "mixed.keras")
    assert type_in(monkeypatch, tmp_path / "mixed.keras", tmp_path / "m.onnx") == 0
    assert "merged with the batch norm after them: 2 convolutions" in capsys.readouterr().out
    words = [tmp_path / "mixed.keras", tmp_path / "m.onnx", "--every-layer"]
    assert type_in(monkeypatch, *words) == 0
    assert "merged" not in capsys.readouterr().out


LEFT_OUT = ("RandomFlip", "RandomRotation", "Dropout")


def test_the_command_says_what_is_wrong(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    assert type_in(monkeypatch, tmp_path / "m.h5", tmp_path / "m.onnx") == 2
    assert "torchviz-cnn[keras]" in capsys.readouterr().err
    words = [tmp_path / "m.h5", tmp_path / "m.onnx", "--input-shape", "big"]
    assert type_in(monkeypatch, *words) == 2
    assert "--input-shape must be like 224x224x3, not 'big'" in capsys.readouterr().err
