"""Keras' layers as users combine them, exported here: names, numbers and slopes are Keras' own."""

import numpy as np
import pytest
import torch

import converters
import torchviz_cnn as tvc

# TensorFlow must come after torch: in the other order the two may load different LLVMs and abort.
keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")


def random_weights(model):
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.dtype == "float32":
            low, high = (0.5, 1.5) if "variance" in variable.name else (-0.4, 0.4)
            variable.assign(random.uniform(low, high, variable.shape))
    return model


def imported(model, path, gone=()):
    """The network; every layer but those gone is there under its name, with Keras' numbers."""
    converters.export_keras(random_weights(model), path, every_layer=True)
    network = converters.load_onnx(path)
    itself = converters.compare(path, network=network)
    assert itself.passed, str(itself)
    beside = converters.compare_with_keras(path, model, network=network)
    assert beside.passed, str(beside)
    status = {row.name: row.status for row in beside.layers}
    assert {name for name, each in status.items() if each != "same"} == set(gone)
    return network


def transposed(**settings):
    return keras.layers.Conv2DTranspose(4, bias_initializer="normal", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2, "strides": 3, "padding": "same"},
        {"kernel_size": 2, "strides": 3},
        {"kernel_size": 1, "strides": 3, "padding": "same"},
        {"kernel_size": (1, 2), "strides": (4, 3)},
        {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
        {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 0},
        {"kernel_size": 3, "strides": 2, "padding": "valid", "output_padding": 1},
        {"kernel_size": (5, 2), "strides": (2, 3), "padding": "same"},
        {"kernel_size": 4, "strides": 2, "padding": "same"},
        {"kernel_size": 3, "dilation_rate": 2, "padding": "same"},
        {"kernel_size": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("sides", [(5, 4), (None, None)], ids=["one size", "any size"])
def test_transposed_convolutions_put_out_keras_maps(settings, sides, tmp_path):
    """Steps longer than the window leave gaps, on the side where TensorFlow has them."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((*sides, 3)),
            transposed(name="up", **settings),
            layers.Conv2D(2, 1, name="last"),
        ]
    )
    network = imported(model, tmp_path / "net.onnx")
    x = np.random.default_rng(1).uniform(0, 1, (2, 5, 4, 3)).astype(np.float32)
    wanted = keras.Model(model.inputs, model.get_layer("up").output).predict_on_batch(x)
    seen = tvc.activations(network, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), "up")
    np.testing.assert_allclose(seen["up"].numpy().transpose(0, 2, 3, 1), wanted, atol=1e-5)


@pytest.mark.parametrize("sides", [(7,), (None,), (4, 3, 5)], ids=str)
def test_transposed_convolutions_of_rows_and_volumes(sides, tmp_path):
    layers, rank = keras.layers, len(sides)
    model = keras.Sequential(
        [
            layers.Input((*sides, 3)),
            getattr(layers, f"Conv{rank}DTranspose")(4, 2, strides=3, padding="same", name="up"),
            getattr(layers, f"Conv{rank}D")(2, 2, name="conv"),
            getattr(layers, f"GlobalAveragePooling{rank}D")(name="mean"),
        ]
    )
    imported(model, tmp_path / "net.onnx")


def test_transposed_convolutions_with_channels_first(tmp_path):
    layers, first = keras.layers, {"data_format": "channels_first"}
    model = keras.Sequential(
        [
            layers.Input((3, None, None)),
            transposed(kernel_size=2, strides=3, padding="same", name="up", **first),
            transposed(kernel_size=4, strides=2, padding="same", name="on", **first),
            layers.GlobalAveragePooling2D(name="mean", **first),
        ]
    )
    imported(model, tmp_path / "net.onnx")


def test_borders_that_keras_exporter_got_wrong_lead_to_ours(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((5, 4, 3)), transposed(kernel_size=2, strides=3, name="up")]
    )
    model(np.zeros((1, 5, 4, 3), np.float32))
    model.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    with pytest.raises(tvc.InputError, match=r"no border is narrower than 0.*export-keras"):
        converters.load_onnx(tmp_path / "net.onnx")
