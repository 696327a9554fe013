"""An imported network beside Keras itself. Needs Keras and TensorFlow: the extra ``keras``."""

import numpy as np
import pytest
import torch

import converters
import torchviz_cnn as tvc

# TensorFlow must come after torch: in the other order the two may load different LLVMs and abort.
keras = pytest.importorskip("keras", reason="Keras is not installed")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")


def random_weights(model):
    """The model, with biases and batch-norm statistics that are neither 0 nor 1."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        low, high = (0.5, 1.5) if "variance" in variable.name else (-0.4, 0.4)
        variable.assign(random.uniform(low, high, variable.shape))
    return model


def small(channels=3):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((18, 14, channels)),
            layers.Conv2D(6, 3, activation="relu", name="first"),
            layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False, name="second"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("relu", name="act"),
            layers.Dropout(0.3, name="drop"),
            layers.Flatten(name="flat"),
            layers.Dense(4, activation="softmax", name="last"),
        ]
    )
    return random_weights(model)


@pytest.fixture(scope="module", params=[True, False], ids=["every layer", "merged"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    model = small()
    model.save(folder / "net.keras")
    converters.export_keras(model, folder / "net.onnx", every_layer=request.param)
    return model, folder, request.param


def test_every_layer_is_keras_own(exported):
    model, folder, every = exported
    result = converters.compare_with_keras(folder / "net.onnx", model)
    assert result.passed
    assert result.worst < 1e-5
    assert result.reference == f"keras {keras.__version__}"
    assert [row.name for row in result.layers] == [layer.name for layer in model.layers]
    status = {row.name: row.status for row in result.layers}
    assert status["second"] == ("same" if every else "fused into norm")
    assert {status[name] for name in ("first", "norm", "act", "flat", "last")} == {"same"}


def test_a_keras_file_will_do(exported):
    _, folder, _ = exported
    assert converters.compare_with_keras(folder / "net.onnx", folder / "net.keras").passed


def test_other_weights_are_noticed_where_they_begin(exported):
    _, folder, _ = exported
    other = small()
    other.get_layer("norm").gamma.assign(other.get_layer("norm").gamma * -2.0)
    result = converters.compare_with_keras(folder / "net.onnx", other)
    assert not result.passed
    assert result.first_difference.name == "norm"


def test_the_numbers_are_keras_predictions(exported):
    model, folder, _ = exported
    x = np.random.default_rng(3).uniform(0, 1, (3, 18, 14, 3)).astype(np.float32)
    network = converters.load_onnx(folder / "net.onnx")
    found = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    assert found == pytest.approx(model.predict_on_batch(x), abs=1e-6)


def test_another_model_is_refused(exported):
    _, folder, _ = exported
    stranger = keras.Sequential([keras.Input((18, 14, 3)), keras.layers.Flatten(name="other")])
    with pytest.raises(tvc.InputError, match="is this the model it was exported from"):
        converters.compare_with_keras(folder / "net.onnx", stranger)


def test_a_gray_network_without_a_channel_axis(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((12, 12)),
            keras.layers.Reshape((12, 12, 1), name="shape"),
            keras.layers.Conv2D(3, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(2, name="last"),
        ]
    )
    converters.export_keras(model, tmp_path / "gray.onnx")
    assert converters.compare_with_keras(tmp_path / "gray.onnx", model).passed


def test_a_file_without_names_is_compared_under_the_models(exported, tmp_path):
    """Keras' torch back end writes no names; here they are wiped from a file that has them."""
    import onnx

    _, folder, every = exported
    file = onnx.load(folder / "net.onnx")
    del file.metadata_props[:]
    file.producer_name = "somebody"
    for number, node in enumerate(file.graph.node):
        node.name = f"node_{number}"
    onnx.save(file, tmp_path / "wiped.onnx")
    result = converters.compare_with_keras(tmp_path / "wiped.onnx", folder / "net.keras")
    assert result.passed, str(result)
    status = {row.name: row.status for row in result.layers}
    assert status["second"] == ("same" if every else "fused into norm")
    assert {status[name] for name in ("first", "norm", "act", "drop", "flat", "last")} == {"same"}


def test_every_output_of_several_is_compared(tmp_path):
    layers = keras.layers
    img = layers.Input((12, 10, 3), name="img")
    maps = layers.Conv2D(4, 3, activation="relu", name="maps")(img)
    flat = layers.Flatten(name="flat")(maps)
    ends = [layers.Dense(n, name=f"last_{n}")(flat) for n in (2, 3)]
    model = keras.Model(img, ends)
    converters.export_keras(model, tmp_path / "net.onnx")
    result = converters.compare_with_keras(tmp_path / "net.onnx", model)
    assert result.passed
    assert [row.shape for row in result.outputs] == [(2,), (3,)]
    assert all(row.status == "same" for row in result.outputs)
    model.get_layer("last_3").bias.assign([1.0, 2.0, 3.0])
    result = converters.compare_with_keras(tmp_path / "net.onnx", model)
    assert [row.status for row in result.outputs] == ["same", "differs"]


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("ways", ["ours", "Keras'"])
def test_rows_and_volumes_are_compared_in_the_order_the_file_has_them(axes, ways, tmp_path):
    """Keras has the channels last, a convolution of the file first; as many of all tell no order."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((*(7, 6, 5)[:axes], 4)),
            getattr(layers, f"Conv{axes}D")(5, 3, padding="same", activation="relu", name="one"),
            getattr(layers, f"MaxPooling{axes}D")(2, name="pool"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("tanh", name="act"),
            getattr(layers, f"GlobalAveragePooling{axes}D")(name="mean"),
            layers.Dense(3, name="last"),
        ]
    )
    random_weights(model)
    if ways == "ours":
        converters.export_keras(model, tmp_path / "net.onnx", every_layer=True)
    else:
        model(np.zeros((1, *model.input_shape[1:]), np.float32))
        model.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    assert converters.compare(tmp_path / "net.onnx").passed
    result = converters.compare_with_keras(tmp_path / "net.onnx", model)
    assert [row.name for row in result.layers] == [layer.name for layer in model.layers]
    assert result.passed
    assert {row.status for row in result.layers} <= {"same", "not in the file"}
    assert sum(row.status == "same" for row in result.layers) >= 5


def statuses(model, path):
    converters.export_keras(model, path, every_layer=True)
    result = converters.compare_with_keras(path, model)
    assert result.passed, str(result)
    assert [row.status for row in result.outputs] == ["same"] * len(result.outputs)
    return {row.name: row.status for row in result.layers}


def base(name="base"):
    layers = keras.layers
    picture = layers.Input((12, 10, 3))
    maps = layers.Conv2D(4, 3, activation="relu", name="conv")(picture)
    return keras.Model(picture, layers.BatchNormalization(name="norm")(maps), name=name)


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_model_under_a_head_is_one_layer(kind, tmp_path):
    """As in transfer learning: what the model put out when it was made, the head never saw."""
    layers = keras.layers
    head = [layers.GlobalAveragePooling2D(name="pool"), layers.Dense(2, name="last")]
    picture = layers.Input((12, 10, 3))
    if kind == "sequential":
        model = keras.Sequential([picture, base(), *head])
    else:
        model = keras.Model(picture, head[1](head[0](base()(picture))))
    found = statuses(random_weights(model), tmp_path / "net.onnx")
    assert found == {"base": "same", "pool": "same", "last": "same"}
    model.get_layer("base").get_layer("conv").bias.assign([5.0, 5.0, 5.0, 5.0])
    result = converters.compare_with_keras(tmp_path / "net.onnx", model)
    assert result.first_difference.name == "base"


def test_a_name_may_be_in_a_model_and_in_the_one_around_it(tmp_path):
    layers = keras.layers
    picture = layers.Input((12, 10, 3))
    maps = layers.Conv2D(3, 3, padding="same", name="conv")(picture)
    maps = layers.BatchNormalization(name="norm")(base("inside")(maps))
    model = keras.Model(picture, layers.GlobalAveragePooling2D(name="pool")(maps))
    found = statuses(random_weights(model), tmp_path / "net.onnx")
    assert found == dict.fromkeys(["conv", "inside", "norm", "pool"], "same")


def test_layers_that_another_model_called_first_are_compared(tmp_path):
    """As of a model trained with augmentation, and one without it around the same layers."""
    layers = keras.layers
    conv, flat = layers.Conv2D(4, 3, name="conv"), layers.Flatten(name="flat")
    training = layers.Input((12, 10, 3))
    flat(conv(layers.RandomFlip()(training)))
    picture = layers.Input((12, 10, 3))
    model = keras.Model(picture, flat(conv(picture)))
    found = statuses(random_weights(model), tmp_path / "net.onnx")
    assert found == {"conv": "same", "flat": "same"}


def test_a_model_with_channels_first_is_compared_as_it_is(tmp_path):
    layers = keras.layers
    first = {"data_format": "channels_first"}
    model = keras.Sequential(
        [
            layers.Input((3, 12, 10)),
            layers.Conv2D(4, 3, name="conv", **first),
            layers.BatchNormalization(axis=1, name="norm"),
            layers.ReLU(name="act"),
            layers.MaxPooling2D(name="pool", **first),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="last"),
        ]
    )
    found = statuses(random_weights(model), tmp_path / "net.onnx")
    assert found == dict.fromkeys(["conv", "norm", "act", "pool", "flat", "last"], "same")


def test_a_model_that_is_code_is_refused(tmp_path):
    class Coded(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(4, 3, name="conv")

        def call(self, pictures):
            return self.conv(pictures)

    model = Coded()
    model(np.zeros((1, 12, 10, 3), np.float32))
    converters.export_keras(model, tmp_path / "net.onnx", input_shape=(12, 10, 3))
    with pytest.raises(tvc.InputError, match="does not say how its layers hang together"):
        converters.compare_with_keras(tmp_path / "net.onnx", model)


def test_weights_may_lie_in_a_file_beside_it(tmp_path):
    """Rows of cells, whose order of axes is looked up in the file once more."""
    import onnx

    model = keras.Sequential(
        [
            keras.layers.Input((9, 4)),
            keras.layers.Conv1D(5, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling1D(name="pool"),
        ]
    )
    converters.export_keras(random_weights(model), tmp_path / "one.onnx")
    path = tmp_path / "two.onnx"
    onnx.save(
        onnx.load(tmp_path / "one.onnx"),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    result = converters.compare_with_keras(path, model, external_data=True)
    assert {row.name: row.status for row in result.layers} == {"conv": "same", "pool": "same"}
    network = converters.load_onnx(path, external_data=True)
    assert converters.compare_with_keras(path, model, network=network, external_data=True).passed
    with pytest.raises(tvc.InputError, match="external_data"):
        converters.compare_with_keras(path, model)


def by_way(ways, model, path):
    """The rows beside Keras, and those beside the file itself, which must be the same."""
    if ways == "ours":
        converters.export_keras(model, path, every_layer=True)
    else:
        model(np.zeros((1, *model.input_shape[1:]), np.float32))
        model.export(path, format="onnx", verbose=False)
    itself = converters.compare(path)
    assert itself.passed, str(itself)
    result = converters.compare_with_keras(path, model)
    assert result.passed, str(result)
    return {row.name: row.status for row in result.layers}


def test_layers_that_run_step_by_step_are_compared(tmp_path):
    """They put the steps before the pictures inside, and the pictures before the steps again."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((4, 11, 10, 3)),
            layers.TimeDistributed(layers.Conv2D(5, 3, activation="relu"), name="conv"),
            layers.TimeDistributed(layers.MaxPooling2D(), name="pool"),
            layers.TimeDistributed(layers.Flatten(), name="flat"),
            layers.TimeDistributed(layers.Dense(6), name="dense"),
            layers.GlobalAveragePooling1D(name="mean"),
        ]
    )
    found = by_way("ours", random_weights(model), tmp_path / "net.onnx")
    assert found == dict.fromkeys(["conv", "pool", "flat", "dense", "mean"], "same")
    model.get_layer("dense").layer.bias.assign([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = converters.compare_with_keras(tmp_path / "net.onnx", model)
    assert result.first_difference.name == "dense"


def test_volumes_may_come_step_by_step_too(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((2, 6, 5, 7, 3)),
            layers.TimeDistributed(layers.Conv3D(4, 3, activation="relu"), name="conv"),
            layers.Flatten(name="flat"),
        ]
    )
    found = by_way("ours", random_weights(model), tmp_path / "net.onnx")
    assert found == {"conv": "same", "flat": "same"}


def test_layers_that_end_in_a_reshape_are_not_merged_with_the_next(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((9, 8, 3)),
            layers.Conv2D(8, 3, name="conv"),
            layers.GroupNormalization(4, name="norm"),
            layers.Reshape((42, 8), name="rows"),
            layers.GlobalMaxPooling1D(name="most"),
            layers.RepeatVector(4, name="again"),
            layers.Reshape((2, 2, 8), name="maps"),
            layers.Conv2D(3, 2, name="last"),
        ]
    )
    found = by_way("ours", random_weights(model), tmp_path / "net.onnx")
    assert found == {layer.name: "same" for layer in model.layers}


def test_layers_that_turn_axes_stay_where_they_are(tmp_path):
    """The exporter's transposes are moved until they meet; these are layers of their own."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((9, 8, 3)),
            layers.Conv2D(5, 3, name="conv"),
            layers.Permute((2, 1, 3), name="mirror"),
            layers.Activation("tanh", name="act"),
            layers.Permute((3, 1, 2), name="first"),
            layers.Activation("elu", name="more"),
            layers.Permute((2, 3, 1), name="back"),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="last"),
        ]
    )
    found = by_way("ours", random_weights(model), tmp_path / "net.onnx")
    assert found == {layer.name: "same" for layer in model.layers}


@pytest.mark.parametrize("ways", ["ours", "Keras'"])
def test_maps_made_in_a_network_with_channels_first_have_them_first(ways, tmp_path):
    """As in squeeze and excitation: what is made of a vector has nothing that would say so."""
    layers, first = keras.layers, {"data_format": "channels_first"}
    picture = layers.Input((3, 12, 10))
    maps = layers.Conv2D(6, 3, name="conv", **first)(picture)
    mean = layers.GlobalAveragePooling2D(name="mean", **first)(maps)
    wide = layers.Reshape((6, 1, 1), name="wide")(mean)
    gate = layers.Activation("sigmoid", name="gate")(wide)
    gated = layers.Multiply(name="gated")([maps, gate])
    turned = layers.Permute((1, 3, 2), name="turned")(gated)
    model = keras.Model(picture, layers.Flatten(name="flat")(turned))
    path = tmp_path / "net.onnx"
    found = by_way(ways, random_weights(model), path)
    wanted = dict.fromkeys(["conv", "mean", "wide", "gate", "gated", "flat"], "same")
    assert found.items() >= wanted.items()
    if ways == "ours":
        assert found["turned"] == "same"
    seen = tvc.activations(converters.load_onnx(path), torch.rand(2, 3, 12, 10), ["wide", "gated"])
    assert [maps.shape[1:] for maps in seen.values()] == [(6, 1, 1), (6, 10, 8)]


@pytest.mark.parametrize("ways", ["ours", "Keras'"])
def test_scores_may_come_as_maps_of_one_cell(ways, tmp_path):
    """Keras' exporter turns them around by changing their shape, for the numbers stay in order."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((6, 5, 3)),
            layers.Conv2D(8, (6, 5), name="wide"),
            layers.Conv2D(4, 1, name="scores"),
        ]
    )
    path = tmp_path / "net.onnx"
    assert by_way(ways, random_weights(model), path) == {"wide": "same", "scores": "same"}
    assert converters.load_onnx(path)(torch.rand(2, 3, 6, 5)).shape == (2, 4, 1, 1)
