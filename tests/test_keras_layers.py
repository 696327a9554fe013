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
    model = keras.Sequential(
        [layers.Input((None, None, 3)), transposed(kernel_size=2, strides=2, name="up")]
    )
    model(np.zeros((1, 5, 4, 3), np.float32))
    model.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    with pytest.raises(tvc.InputError, match=r"settled only when the network runs.*export-keras"):
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


# ---------------------------------------------------------------- networks as users build them


def head(maps, **form):
    layers = keras.layers
    mean = layers.GlobalAveragePooling2D(name="mean", **form)(maps)
    return layers.Dense(3, name="scores")(mean)


def form_of(first):
    return {"data_format": "channels_first"} if first else {}


def separable(picture, axis, form):
    layers = keras.layers
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu", name="sep", **form)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, name="depth", **form)(x(picture))
    x = layers.BatchNormalization(axis=axis, name="norm")(x)
    x = layers.LeakyReLU(0.2, name="leaky")(x)
    return layers.ELU(0.7, name="elu")(x)


def enlarged(picture, axis, form):
    layers = keras.layers
    x = layers.Conv2D(4, 3, padding="same", name="conv", **form)(picture)
    low = layers.MaxPooling2D(2, name="max", **form)(x)
    low = layers.Conv2D(4, 3, padding="same", activation="relu", name="low", **form)(low)
    x = layers.Concatenate(axis=axis, name="skip")(
        [x, layers.UpSampling2D(2, name="up", **form)(low)]
    )
    x = layers.UpSampling2D((3, 2), name="wide", **form)(x)
    return layers.Conv2D(4, 1, name="mix", **form)(x)


def bordered(picture, axis, form):
    layers = keras.layers
    x = layers.ZeroPadding2D(((0, 2), (1, 0)), name="zeros", **form)(picture)
    x = layers.Conv2D(4, 3, activation="softplus", name="conv", **form)(x)
    x = layers.AveragePooling2D((2, 3), strides=(1, 2), padding="same", name="average", **form)(x)
    x = layers.Cropping2D(((1, 0), (0, 1)), name="cut", **form)(x)
    return layers.SpatialDropout2D(0.3, name="drop", **form)(x)


def normalised(picture, axis, form):
    layers = keras.layers
    x = layers.Conv2D(6, 3, name="conv", **form)(picture)
    x = layers.LayerNormalization(axis=axis, name="layer")(x)
    if None not in picture.shape[1:]:  # elsewhere its shapes depend on the picture
        x = layers.GroupNormalization(3, axis=axis, name="group")(x)
    x = layers.UnitNormalization(axis=axis, name="unit")(x)
    x = layers.PReLU(shared_axes=[2, 3] if axis == 1 else [1, 2], name="prelu")(x)
    return layers.Softmax(axis=axis, name="soft")(x)


def joined(picture, axis, form):
    layers = keras.layers
    one = layers.Conv2D(4, 3, activation="tanh", name="one", **form)(picture)
    other = layers.Conv2D(4, 3, activation="gelu", name="other", **form)(picture)
    less = layers.Subtract(name="less")([one, other])
    mean = layers.Average(name="average")([one, other, less])
    most = layers.Maximum(name="most")([less, mean])
    return layers.Multiply(name="times")([layers.Minimum(name="least")([most, one]), other])


@pytest.mark.parametrize("sides", [(16, 12), (None, None)], ids=["one size", "any size"])
@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize("body", [separable, enlarged, bordered, normalised, joined])
def test_layers_numbers_and_class_activation_maps_are_keras_own(body, first, sides, tmp_path):
    picture = keras.layers.Input((3, *sides) if first else (*sides, 3), name="picture")
    axis, form = (1 if first else 3), form_of(first)
    model = keras.Model(picture, head(body(picture, axis, form), **form))
    network = imported(model, tmp_path / "net.onnx")
    rows = 14 if None in sides else sides[0]
    x = np.random.default_rng(1).uniform(0, 1, (2, 3, rows, 12)).astype(np.float32)
    given = x if first else x.transpose(0, 2, 3, 1)
    for layer in model.layers[1:-2]:
        probe = keras.Model(picture, [layer.output, model.output])
        with tf.GradientTape() as tape:
            maps, scores = probe(tf.constant(given), training=False)
            score = tf.reduce_sum(scores[:, 1])
        if (slope := tape.gradient(score, maps)) is None:  # a dropout's, which Keras leaves out
            continue
        slope = slope.numpy()
        places = (2, 3) if first else (1, 2)
        weighed = (maps.numpy() * slope.mean(places, keepdims=True)).sum(axis)
        found = tvc.grad_cam(network, torch.from_numpy(x.copy()), 1, layer=layer.name)
        largest = np.abs(weighed).max()
        assert largest > 1e-9, layer.name
        np.testing.assert_allclose(
            found.values.numpy(), np.maximum(weighed, 0), atol=1e-4 * largest, err_msg=layer.name
        )


def test_a_transformers_rows_are_no_maps(tmp_path):
    """Means over features look to the exporter like poolings of rows."""
    layers = keras.layers
    picture = layers.Input((16, 12, 3))
    x = layers.Reshape((12, 8), name="rows")(layers.Conv2D(8, 4, strides=4, name="cut")(picture))
    y = layers.LayerNormalization(name="even")(x)
    x = layers.Add(name="seen")([x, layers.MultiHeadAttention(2, 4, name="look")(y, y)])
    y = layers.Dense(16, activation="gelu", name="wide")(layers.LayerNormalization(name="same")(x))
    x = layers.Add(name="thought")([x, layers.Dense(8, name="narrow")(y)])
    model = keras.Model(picture, layers.GlobalAveragePooling1D(name="mean")(x))
    imported(model, tmp_path / "net.onnx")


def test_the_first_call_of_a_shared_layer_is_the_one_that_runs_first(tmp_path):
    layers = keras.layers
    picture = layers.Input((8, 7, 3))
    maps = layers.Conv2D(6, 3, name="conv")(picture)
    mean = layers.GlobalAveragePooling2D(name="mean")(maps)
    most = layers.GlobalMaxPooling2D(name="most")(maps)
    small, wide = layers.Dense(2, activation="relu", name="small"), layers.Dense(6, name="wide")
    model = keras.Model(picture, layers.Add(name="sum")([wide(small(mean)), wide(small(most))]))
    imported(model, tmp_path / "net.onnx")


def test_an_idle_layer_that_several_read_is_put_back(tmp_path):
    layers = keras.layers
    row = layers.Input((5,))
    x = layers.Dropout(0.5, name="drop")(layers.Dense(4, name="first")(row))
    model = keras.Model(row, layers.Add(name="sum")([x, layers.Dense(4, name="more")(x)]))
    imported(model, tmp_path / "net.onnx")


def test_chance_that_is_drawn_and_not_used_is_left_out(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 7, 3)),
            layers.RandomHue(0.1, name="hue"),
            layers.RandomPosterization(4, name="poster"),
            layers.Conv2D(4, 3, name="conv"),
        ]
    )
    imported(model, tmp_path / "net.onnx")


def test_functions_between_layers_do_not_hide_that_keras_3_numbers_its_layers(tmp_path):
    layers, ops = keras.layers, keras.ops
    picture = layers.Input((8, 7, 3))
    x = ops.clip(layers.Conv2D(4, 3, name="conv")(picture), -1.0, 1.0)
    x = x - ops.var(x, axis=(1, 2), keepdims=True)
    model = random_weights(keras.Model(picture, layers.Conv2D(2, 3, name="last")(x)))
    model(np.zeros((1, 8, 7, 3), np.float32))
    model.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    result = converters.compare_with_keras(tmp_path / "net.onnx", model)
    assert result.passed
    assert {row.name: row.status for row in result.layers} == {"conv": "same", "last": "same"}


class AfterACheck(keras.layers.Layer):
    """Twice what it is given, once TensorFlow has looked at that."""

    def __init__(self, check, **settings):
        super().__init__(**settings)
        self.check = check

    def call(self, x):
        with tf.control_dependencies([self.check(x)]):
            return 2 * tf.identity(x)


@pytest.mark.parametrize(
    "check",
    [
        lambda x: tf.reduce_sum(x),
        lambda x: tf.debugging.assert_less(tf.reduce_min(x), 1e9),
        lambda x: tf.image.resize(x, (4, 4), method="area"),
    ],
    ids=["a sum", "an assertion", "what could not be exported"],
)
def test_what_only_runs_before_a_layer_is_no_part_of_the_network(check, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((6, 5, 3)),
            layers.Conv2D(4, 3, name="before"),
            AfterACheck(check, name="checked"),
            layers.Conv2D(2, 3, name="conv"),
        ]
    )
    imported(model, tmp_path / "net.onnx")


class NormedSteps(keras.layers.Layer):
    """One kernel and one batch norm for each of some pictures in a row."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.norm = keras.layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], 4), name="kernel")
        self.norm.build((None, None, None, 4))

    def call(self, x):
        made = [
            self.norm(keras.ops.conv(x[:, step], self.kernel, padding="same"))
            for step in range(x.shape[1])
        ]
        return keras.ops.stack(made, 1)


def test_norms_merged_into_several_convolutions_of_one_layer(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((3, 6, 5, 2)),
            NormedSteps(name="steps"),
            layers.GlobalAveragePooling3D(name="mean"),
        ]
    )
    converters.export_keras(random_weights(model), tmp_path / "net.onnx")
    network = converters.load_onnx(tmp_path / "net.onnx")
    x = np.random.default_rng(1).uniform(0, 1, (2, 3, 6, 5, 2)).astype(np.float32)
    ours = network(torch.from_numpy(x))
    np.testing.assert_allclose(ours.detach().numpy(), model.predict_on_batch(x), atol=1e-5)


@pytest.mark.parametrize("last", ["sigmoid", "softmax", "relu"])
@pytest.mark.parametrize("way", ["bilinear", "nearest"])
def test_maps_resized_and_activated_at_the_very_end(way, last, tmp_path):
    """As networks that segment end: nothing behind takes the turn back to channels last; and where
    the middle of a new cell lies between two (6 cells become 7), the file has the one Keras takes.
    """
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 9, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.Resizing(7, 12, interpolation=way, name="resized"),
            layers.Activation(last, name="last"),
        ]
    )
    imported(model, tmp_path / "net.onnx")


def test_an_operator_that_onnx_writes_as_several_is_a_layer(tmp_path):
    """Rolled maps are those of the roll, not of the convolution before it."""
    layers = keras.layers
    given = layers.Input((6, 5, 3))
    conv = layers.Conv2D(4, 3, padding="same", name="conv")(given)
    rolled = keras.ops.roll(layers.SpatialDropout2D(0.3, name="idle")(conv), 2, axis=1)
    model = keras.Model(given, layers.Conv2D(2, 3, name="last")(rolled))
    network = imported(model, tmp_path / "net.onnx")
    name = next(row.name for row in network.source.layers if row.name.startswith("roll"))
    seen = tvc.activations(network, torch.rand(1, 3, 6, 5), ["conv", name])
    conv, after = seen["conv"], seen[name]
    torch.testing.assert_close(after, conv.roll(2, dims=2), atol=0, rtol=0)


def test_what_cannot_be_imported_is_told_by_the_layer_that_does_it(tmp_path):
    layers = keras.layers
    given = layers.Input((6, 5, 3))
    turned = keras.ops.flip(layers.Conv2D(4, 3, name="conv")(given), 1)
    model = keras.Model(given, layers.Conv2D(2, 3, name="last")(turned))
    converters.export_keras(model, tmp_path / "net.onnx")
    with pytest.raises(tvc.InputError, match="ReverseSequence of the layer 'flip"):
        converters.load_onnx(tmp_path / "net.onnx")
