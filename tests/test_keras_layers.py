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


def resized(sides=(20, 15), **settings):
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((*sides, 3)),
            layers.Conv2D(4, 3, padding="same", name="before"),
            layers.Resizing(9, 12, name="resized", **settings),
            layers.Conv2D(2, 3, name="conv"),
            layers.GlobalAveragePooling2D(name="mean"),
        ]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"interpolation": "nearest"},
        {"interpolation": "bilinear"},
        {"crop_to_aspect_ratio": True},
        {"crop_to_aspect_ratio": True, "interpolation": "nearest"},
    ],
    ids=str,
)
def test_maps_are_resized_as_keras_does(settings, tmp_path):
    network = imported(resized(**settings), tmp_path / "net.onnx")
    x = torch.rand(2, 3, 20, 15)
    slow, fast = (tvc.occlusion(network, x, 0, window=5, engine=way) for way in ("dense", "auto"))
    torch.testing.assert_close(fast.values, slow.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["nearest", "bilinear"])
def test_pictures_of_any_size_are_resized_to_one(way, tmp_path):
    model = resized((None, None), interpolation=way)
    network = imported(model, tmp_path / "net.onnx")
    for sides in ((9, 31), (60, 24)):
        x = np.random.default_rng(1).uniform(0, 1, (2, *sides, 3)).astype(np.float32)
        found = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
        np.testing.assert_allclose(found, model.predict_on_batch(x), atol=1e-5)


def test_the_nearest_cell_is_that_of_the_middle_however_many_are_skipped(tmp_path):
    """Every sixth of sixty: the middle lies where two cells meet, and the later one is taken."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((60, 40, 3)),
            layers.Resizing(10, 10, interpolation="nearest", name="fewer"),
            layers.Conv2D(2, 1, name="conv"),
        ]
    )
    network = imported(model, tmp_path / "net.onnx")
    x = torch.rand(1, 3, 60, 40)
    seen = tvc.activations(network, x, "fewer")["fewer"]
    assert torch.equal(seen, x[:, :, 3::6, 2::4])


def test_a_resize_that_cannot_be_read_is_not_sent_back_to_where_it_comes_from(tmp_path):
    converters.export_keras(resized(interpolation="bicubic"), tmp_path / "net.onnx")
    with pytest.raises(
        tvc.InputError, match=r"'resized' is not supported .*replace that layer"
    ) as e:
        converters.load_onnx(tmp_path / "net.onnx")
    assert "export-keras" not in str(e.value)
    model = resized((None, None), crop_to_aspect_ratio=True)
    converters.export_keras(model, tmp_path / "net.onnx")
    with pytest.raises(tvc.InputError, match=r"'resized'.*size of the picture.*replace that layer"):
        converters.load_onnx(tmp_path / "net.onnx")


def test_means_over_areas_are_refused_rather_than_written_as_single_cells(tmp_path):
    with pytest.raises(tvc.InputError, match="'resized' resizes by the mean over areas"):
        converters.export_keras(resized((18, 24), interpolation="area"), tmp_path / "net.onnx")


def test_what_keras_exporter_writes_too_loosely_is_to_be_exported_here(tmp_path):
    """Attention: how long its rows are, that file says only while it runs."""
    layers = keras.layers
    rows = layers.Input((6, 8))
    seen = layers.MultiHeadAttention(2, 4, name="look")(rows, rows)
    model = keras.Model(rows, layers.GlobalAveragePooling1D(name="mean")(seen))
    imported(model, tmp_path / "ours.onnx")
    model(np.zeros((1, 6, 8), np.float32))
    model.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    with pytest.raises(
        tvc.InputError, match=r"not supported .*; export the Keras model with torch"
    ):
        converters.load_onnx(tmp_path / "net.onnx")


def test_layers_that_could_not_be_told_apart_by_name_are_refused(tmp_path):
    """A name may have dots, and dots stand between the names of models and of their layers."""
    layers, path = keras.layers, tmp_path / "net.onnx"

    def around(name):
        picture = layers.Input((8, 7, 3))
        model = keras.Sequential([layers.Input((8, 7, 3)), layers.Conv2D(4, 3, name="b")], name="a")
        return keras.Model(picture, layers.Conv2D(4, 3, name=name)(model(picture)))

    model = around("a.b")
    told = r"two layers would be called 'a\.b', .*give one of them another name"
    with pytest.raises(tvc.InputError, match=told):
        converters.export_keras(model, path)
    assert not path.exists()
    model(np.zeros((1, 8, 7, 3), np.float32))
    model.export(path, format="onnx", verbose=False)
    with pytest.raises(tvc.InputError, match=told):
        converters.load_onnx(path)
    imported(around("a.c"), path)
