"""The comparison notices what is wrong, names the first layer where it goes wrong, and judges by a
fixed rule: no order of axes is searched for, nothing is sorted.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import converters
import torchviz_cnn as tvc
from converters.file_tensors import output_tensors, tensor_axes
from converters.reference import Session
from converters.trust import read_model
from converters.verdicts import Comparison, LayerComparison, beside
from tests.onnx_files import DATA, FLOAT, node, save
from tests.test_matching import Described, stored
from torchviz_cnn import cli

pytest.importorskip("onnxruntime", reason="the comparison runs the file in onnxruntime")

REAL = os.environ.get("TORCHVIZ_CNN_DATA")
FILES = sorted(path.name for path in DATA.glob("*.onnx"))
KINDS = sorted(path.name for path in (DATA / "keras").glob("*.onnx"))


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
@pytest.mark.parametrize("file", FILES)
def test_every_layer_of_an_untouched_import_is_the_same(file, layout):
    result = converters.compare(DATA / file, input_layout=layout)
    assert result.passed
    assert result.first_difference is None
    assert result.worst < 1e-5
    compared = {row.name for row in result.layers if row.relative is not None}
    assert {row.status for row in result.layers if row.name not in compared} <= {
        f"fused into {name}" for name in compared
    }
    with np.load(DATA / file.replace(".nospec", "").replace(".onnx", ".npz")) as stored:
        names = {str(name) for name in stored["layers"]}
    assert names & compared  # Keras' own names
    assert all("@" in name or "." in name or name in names for name in compared)


@pytest.mark.parametrize("file", KINDS)
def test_layers_of_every_common_kind_are_the_same(file):
    network = converters.load_onnx(DATA / "keras" / file)
    generator = torch.Generator().manual_seed(2)
    inputs = None
    if len(network.source.inputs) > 1:
        shapes = [
            value.shape
            for name, value in np.load(DATA / "keras" / npz(file)).items()
            if name[0] == "x"
        ]
        inputs = [torch.rand(shape, generator=generator).movedim(-1, 1) for shape in shapes]
    result = converters.compare(DATA / "keras" / file, network=network, inputs=inputs)
    assert result.passed, result.first_difference
    assert result.worst < 1e-5
    compared = [row for row in result.layers if row.relative is not None]
    assert len(compared) >= 2


# onnxruntime cannot run what Keras' JAX back end writes.
NAMELESS = sorted(
    path.name for path in (DATA / "nameless").glob("*.onnx") if "jax" not in path.name
)


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("file", NAMELESS)
def test_layers_that_the_file_does_not_name_are_the_same(file, named, layout):
    """Every one of them is compared, whichever way its maps lie in the file."""
    keras = Described(stored(file)) if named else None
    network = converters.load_onnx(DATA / "nameless" / file, keras=keras, input_layout=layout)
    result = converters.compare(DATA / "nameless" / file, network=network)
    assert {row.status for row in (*result.layers, *result.outputs)} <= {"same", "not in the file"}
    assert result.worst < 1e-5
    left = {row.name for row in result.layers if row.relative is None}
    assert left <= ({"img", "input_layer"} if named else {"pad_3"})


@pytest.mark.parametrize("ending", ["Transpose", "Reshape"])
def test_maps_that_a_file_without_names_puts_out_are_the_same(tmp_path, ending):
    """Channels last in the file; in the network only where a transpose says so."""
    nodes = [
        node("Transpose", "img", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c"),
        node("Transpose", "c", "l", perm=[0, 2, 3, 1]),
        node("Reshape", "l s", "v"),
        node("Reshape", "v m", "out"),
    ]
    if ending == "Transpose":
        nodes[2:] = [node("Transpose", "c", "out", perm=[0, 2, 3, 1])]
    constants = {"k": np.random.default_rng(5).normal(size=(2, 3, 1, 1))}
    constants |= {"s": [-1, 20, 2], "m": [-1, 4, 5, 2]} if ending == "Reshape" else {}
    sizes = {"img": [None, 4, 5, 3]}
    file = save(tmp_path / "n.onnx", nodes, constants, sizes, ["out"], producer="pytorch")
    result = converters.compare(file)
    assert result.passed, result.first_difference
    (output,) = result.outputs
    assert output.shape == ((2, 4, 5) if ending == "Transpose" else (4, 5, 2))
    assert output.relative is not None


def npz(file):
    """The numbers that belong to a file: ``x0``, ``x1``, … are its inputs as Keras takes them."""
    own = DATA / "keras" / file.replace(".onnx", ".npz")
    return own.name if own.exists() else f"{file.split('.')[0]}.npz"


@pytest.mark.skipif(REAL is None, reason="TORCHVIZ_CNN_DATA names no folder of real networks")
@pytest.mark.parametrize(
    ("file", "compared"), [("lenet", 8), ("resnet20", 52), ("squeezenet_v1.0", 39)]
)
def test_really_trained_networks(file, compared):
    result = converters.compare(Path(REAL) / "keras" / f"{file}.onnx")
    assert result.passed
    assert result.worst < 1e-5
    assert sum(row.relative is not None for row in result.layers) == compared


def spoilt(change):
    """An imported cat-dog network with something wrong in it."""
    network = converters.load_onnx(DATA / "catdog.k3export.onnx")
    with torch.no_grad():
        change(network)
    return converters.compare(DATA / "catdog.k3export.onnx", network=network)


def first_kernel(network, name):
    return next(p for key, p in network.named_parameters() if key.startswith(name) and p.ndim > 1)


NAMES = [row.name for row in converters.load_onnx(DATA / "catdog.k3export.onnx").source.layers]
CONVOLUTIONS = [name for name in NAMES if "conv" in name]
DENSE = [name for name in NAMES if "dense" in name]


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *DENSE])
def test_the_first_layer_that_went_wrong_is_named(name):
    result = spoilt(lambda network: first_kernel(network, name).mul_(-1.5))
    assert not result.passed
    assert result.first_difference.name == name
    before = [row.status for row in result.layers[: NAMES.index(name)]]
    assert set(before) <= {"same"}
    assert f"the first layer that differs is '{name}'" in str(result)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_kernel_with_rows_and_columns_exchanged_is_noticed(name):
    result = spoilt(lambda net: first_kernel(net, name).copy_(first_kernel(net, name).mT.clone()))
    assert result.first_difference.name == name


def test_features_flattened_in_another_order_are_noticed():
    """The same numbers, sorted otherwise: who compares sorted values would call them the same."""

    def turn(network):
        kernel = first_kernel(network, DENSE[0])
        kernel.copy_(kernel.flip(1))

    result = spoilt(turn)
    assert result.first_difference.name == DENSE[0]


def test_between_the_bounds_is_said_and_passes():
    name = CONVOLUTIONS[-1]
    result = spoilt(lambda network: first_kernel(network, name).mul_(1 + 4e-4))
    assert result.first_difference.status == "nearly the same"
    assert result.passed
    head = str(result).splitlines()[0]
    assert f"the first layer that is only nearly the same is '{name}'" in head
    assert head.endswith("; none differs")
    assert 1e-4 < result.worst < 1e-3


def test_a_layer_that_is_nearly_the_same_does_not_hide_one_that_differs():
    def change(network):
        first_kernel(network, CONVOLUTIONS[0]).mul_(1 + 4e-4)
        first_kernel(network, CONVOLUTIONS[1]).mul_(1.5)

    head = str(spoilt(change)).splitlines()[0]
    assert f"only nearly the same is '{CONVOLUTIONS[0]}'" in head
    assert head.endswith(f"; '{CONVOLUTIONS[1]}' differs")


@pytest.mark.parametrize("kind", ["UINT8", "INT32"])
def test_a_file_that_takes_whole_numbers_is_given_them(tmp_path, kind, capsys):
    nodes = [
        node("Cast", "img", "f", "net/rescaling/Cast", to=FLOAT),
        node("Mul", "f s", "m", "net/rescaling/mul"),
        node("Transpose", "m", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c", "net/conv2d/Conv2D", kernel_shape=[3, 3]),
        node("ReduceMean", "c", "out", "net/pool/Mean", axes=[2, 3], keepdims=0),
    ]
    constants = {"s": np.float32(1 / 255), "k": np.random.default_rng(8).normal(size=(2, 3, 3, 3))}
    file = save(tmp_path / "n.onnx", nodes, constants, {"img": [None, 6, 7, 3]}, ["out"])
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.elem_type = getattr(onnx.TensorProto, kind)
    onnx.save(model, file)
    pictures = torch.randint(0, 256, (2, 3, 6, 7), generator=torch.Generator().manual_seed(1))
    for inputs in (None, pictures, pictures.float()):
        result = converters.compare(file, inputs=inputs)
        assert {row.status for row in (*result.layers, *result.outputs)} == {"same"}
    with pytest.raises(tvc.InputError, match=r"whole numbers for 'img'.*preprocess='none'"):
        converters.compare(file, inputs=pictures / 255)
    cli.app(["compare", str(file)], standalone_mode=False)
    assert "explanations are not compared: the file takes whole numbers" in capsys.readouterr().err


def test_an_interpreter_shows_the_table():
    result = converters.compare(DATA / "catdog.k3export.onnx")
    assert repr(result) == str(result)
    assert "conv2d" in repr(result)


def test_no_picture_proves_nothing():
    network = converters.load_onnx(DATA / "catdog.k3export.onnx")
    none = torch.zeros((0, *network.source.input_size))
    with pytest.raises(tvc.InputError, match="give at least one picture"):
        converters.compare(DATA / "catdog.k3export.onnx", network=network, inputs=none)


def sure_of_cats(path, logit):
    """A network that is so sure of a picture that its sigmoid is next to nothing."""
    nodes = [
        node("ReduceMean", "img", "m:0", "net/mean/Mean", axes=[1, 2], keepdims=0),
        node("MatMul", "m:0 k", "p:0", "net/dense/MatMul"),
        node("Add", "p:0 b", "s:0", "net/dense/BiasAdd"),
        node("Sigmoid", "s:0", "y:0", "net/dense/Sigmoid"),
        node("Identity", "y:0", "out", "Identity"),
    ]
    constants = {"k": np.full((3, 1), 0.3), "b": np.array([logit])}
    return save(path, nodes, constants, {"img": [None, 4, 5, 3]}, ["out"])


@pytest.mark.parametrize("logit", [-60.0, -20.0, -14.0, -12.0, -10.0, 9.0, 30.0])
def test_a_sigmoid_that_rounds_to_nothing_is_the_same(tmp_path, logit):
    """onnxruntime's is 0 where torch's is 1e-9: both are right to the last bit beside 1."""
    result = converters.compare(sure_of_cats(tmp_path / "n.onnx", logit))
    assert [row.status for row in (*result.layers, *result.outputs)] == ["same"] * 3


@pytest.mark.parametrize(("logit", "off"), [(-8.0, 0.5), (-6.0, 0.1), (-1.0, 0.01)])
def test_a_small_sigmoid_that_is_wrong_differs(tmp_path, logit, off):
    file = sure_of_cats(tmp_path / "n.onnx", logit)
    network = converters.load_onnx(file)
    with torch.no_grad():
        network.dense.dense.bias.add_(off)
    result = converters.compare(file, network=network)
    assert [row.status for row in (*result.layers, *result.outputs)] == ["same"] + ["differs"] * 2


def test_the_numbers_are_those_of_the_definition():
    """One dense layer, whose weights are doubled: the differences can be written down."""
    network = converters.load_onnx(DATA / "catdog.k3export.onnx")
    x = torch.rand((3, *network.source.input_size), generator=torch.Generator().manual_seed(3))
    name = CONVOLUTIONS[0]
    right = tvc.activations(network, x, name)[name].double().numpy()
    with torch.no_grad():
        for parameter in network.get_submodule(name).parameters():
            parameter.mul_(2.0)  # its ReLU lets the factor through
    result = converters.compare(DATA / "catdog.k3export.onnx", network=network, inputs=x)
    row = next(row for row in result.layers if row.name == name)
    assert row.max_abs == pytest.approx(np.abs(right).max(), rel=1e-5)
    assert row.relative == pytest.approx(1.0, rel=1e-5)
    assert row.cosine == pytest.approx(1.0, abs=1e-9)
    assert row.shape == right.shape[1:]
    assert (row.status, result.images) == ("differs", 3)


def cube(path):
    """Rows, columns and channels are all 4: shapes alone cannot tell the order of axes."""
    rng = np.random.default_rng(0)
    return save(
        path,
        [
            node("Transpose", "img", "t", "net_1/conv2d_1/convolution__5", perm=[0, 3, 1, 2]),
            node(
                "Conv",
                "t net_1/conv2d_1/convolution/ReadVariableOp:0",
                "net_1/conv2d_1/convolution:0",
                "net_1/conv2d_1/convolution",
                kernel_shape=[1, 1],
            ),
            node("Relu", "net_1/conv2d_1/convolution:0", "r", "net_1/conv2d_1/Relu"),
            node("Transpose", "r", "l", "Transpose__9", perm=[0, 2, 3, 1]),
            node("Mul", "l net_1/scale_1/y:0", "out", "net_1/scale_1/mul"),
        ],
        {
            "net_1/conv2d_1/convolution/ReadVariableOp:0": rng.normal(size=(4, 4, 1, 1)),
            "net_1/scale_1/y:0": np.array([1.0, 2.0, 3.0, 4.0]),
        },
        {"img": [None, 4, 4, 4]},
        ["out"],
    )


def test_axes_of_equal_length_are_told_apart_by_rule(tmp_path):
    file = cube(tmp_path / "cube.onnx")
    axes = tensor_axes(read_model(file))
    assert {name: axes[name] for name in ("img", "t", "r", "l", "out")} == {
        "img": "channels last",
        "t": "channels first",
        "r": "channels first",
        "l": "channels last",
        "out": "channels last",
    }
    assert converters.compare(file).passed
    # By hand: a 1×1 convolution is a product over channels.
    x = torch.rand((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    kernel = numpy_helper.to_array(read_model(file).graph.initializer[0])[:, :, 0, 0]
    wanted = np.einsum("oc,nchw->nohw", kernel, x.numpy()).clip(0)
    network = converters.load_onnx(file)
    found = tvc.activations(network, x)
    assert np.allclose(found["conv2d"].numpy(), wanted, atol=1e-6)


def test_a_layers_output_is_the_last_tensor_that_others_read(tmp_path):
    model = read_model(cube(tmp_path / "cube.onnx"))
    found = {name: [call.tensor for call in calls] for name, calls in output_tensors(model).items()}
    assert found == {"conv2d": ["r"], "scale": ["out"]}


def repeated(path):
    """Rows repeated as Keras does it: along an axis of their own, between two orders of axes."""
    rng = np.random.default_rng(1)
    scope, kernel = "net_1/up_sampling2d_1/Repeat", "net_1/conv2d_1/convolution/ReadVariableOp:0"
    relus = [node("Relu", f"r{i}", f"r{i + 1}", f"net_1/relu_{i}_1/Relu") for i in range(4)]
    return save(
        path,
        [
            node("Transpose", "img", "t", "net_1/conv2d_1/convolution__5", perm=[0, 3, 1, 2]),
            node("Conv", f"t {kernel}", "r0", "net_1/conv2d_1/convolution", kernel_shape=[1, 1]),
            *relus,
            node("Unsqueeze", "r4 axis", "own", f"{scope}/ExpandDims"),
            node("Tile", "own times", "tiled", f"{scope}/Tile"),
            node("Transpose", "tiled", "last", "Transpose__9", perm=[0, 2, 3, 4, 1]),
            node("Reshape", "last size", "up", f"{scope}/Reshape_1"),
            node("ReduceMax", "up", "out", "net_1/global_max_pooling2d_1/Max", axes=[1, 2]),
        ],
        {
            kernel: rng.normal(size=(5, 3, 1, 1)),
            "axis": np.array([3]),
            "times": np.array([1, 1, 1, 2, 1]),
            "size": np.array([-1, 8, 4, 5]),
        },
        {"img": [None, 4, 4, 3]},
        ["out"],
    )


def test_a_repetition_is_compared_where_it_ends_and_in_its_order_of_axes(tmp_path):
    file = repeated(tmp_path / "repeated.onnx")
    axes = tensor_axes(read_model(file))
    assert [axes[name] for name in ("own", "tiled", "last", "up")] == [
        *["channels first"] * 2,
        *["channels last"] * 2,
    ]
    (place,) = output_tensors(read_model(file))["up_sampling2d"]
    assert place.tensor == "up"  # not "tiled", which a transpose of nobody's reads
    result = converters.compare(file)
    row = next(each for each in result.layers if each.name == "up_sampling2d")
    assert (row.shape, row.status) == ((5, 8, 4), "same")
    assert result.passed


@pytest.mark.parametrize("before", [3, 58, 59, 125])
def test_so_it_is_wherever_in_the_file_the_layer_stands(tmp_path, before):
    """A nested model, of which its fourth layer's output is read outside as well."""
    chain = [f"net/act_{n}/Tanh" for n in range(before)]
    chain += [f"net/base/inner_{n}/Sigmoid" for n in range(11)]
    tensors = ["t", *(f"{name}:0" for name in chain)]
    nodes = [node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2])]
    nodes += [
        node(name.rpartition("/")[2], given, made, name)
        for name, given, made in zip(chain, tensors, tensors[1:], strict=False)
    ]
    last = "net/base/inner_10/Sigmoid:0"
    nodes.append(node("Add", f"net/base/inner_3/Sigmoid:0 {last}", "out", "net/add/add"))
    file = save(tmp_path / "n.onnx", nodes, {}, {"img": [None, 4, 5, 3]}, ["out"])
    assert [call.tensor for call in output_tensors(read_model(file))["base"]] == [last]
    assert converters.compare(file).passed


@pytest.mark.parametrize("gate", ["dense", "convolution"])
def test_a_gate_made_of_features_does_not_tell_how_the_maps_before_it_lie(tmp_path, gate):
    """Squeeze and excite: means of maps (N, 3), reshaped to (N, 1, 1, 3) as Keras has them."""
    rng = np.random.default_rng(2)
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c:0", "net/conv2d/Conv2D", kernel_shape=[1, 1]),
        node("Relu", "c:0", "r:0", "net/conv2d/Relu"),
        node("ReduceMean", "r:0", "m:0", "net/mean/Mean", axes=[2, 3], keepdims=0),
        node("MatMul", "m:0 d", "d:0", "net/dense/MatMul"),
        node("Reshape", "d:0 s", "s:0", "net/reshape/Reshape"),
        node("Transpose", "s:0", "u", "Transpose__2", perm=[0, 3, 1, 2]),
        node("Conv", "u g", "g:0", "net/gate/Conv2D", kernel_shape=[1, 1]),
        node("Mul", f"r:0 {'g:0' if gate == 'convolution' else 'u'}", "p:0", "net/multiply/mul"),
        node("ReduceMean", "p:0", "out", "net/mean_1/Mean", axes=[2, 3], keepdims=0),
    ]
    if gate == "dense":
        del nodes[7]
    constants = {"k": rng.normal(size=(3, 2, 1, 1)), "d": rng.normal(size=(3, 3))}
    constants |= {"g": rng.normal(size=(3, 3, 1, 1)), "s": [-1, 1, 1, 3]}
    file = save(tmp_path / "n.onnx", nodes, constants, {"img": [None, 4, 5, 2]}, ["out"])
    axes = tensor_axes(read_model(file))
    assert {name: axes[name] for name in ("r:0", "s:0", "u", "p:0")} == {
        "r:0": "channels first",
        "s:0": "channels last",
        "u": "channels first",
        "p:0": "channels first",
    }
    result = converters.compare(file)
    assert {row.status for row in (*result.layers, *result.outputs)} == {"same"}


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
def test_a_channel_cut_out_of_the_picture_is_compared_without_its_axis(tmp_path, layout):
    """As ``x[..., 2]`` in the preparation of pictures for VGG and ResNet: it ends in a squeeze."""
    nodes = [
        node("Slice", "img a b axis", "s:0", "net_1/get_item_1/Slice"),
        node("Squeeze", "s:0 axis", "q:0", "net_1/get_item_1/Squeeze__1"),
        node("Unsqueeze", "q:0 axis", "u:0", "net_1/stack_1/Unsqueeze__1"),
        node("Concat", "u:0 u:0", "j:0", "net_1/stack_1/Concat__1", axis=3),
        node("Transpose", "j:0", "t", "net_1/conv_1/Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c:0", "net_1/conv_1/Conv"),
        node("GlobalAveragePool", "c:0", "out", "net_1/pool_1/GlobalAveragePool"),
    ]
    constants = {"a": [2], "b": [3], "axis": [3]}
    constants |= {"k": np.random.default_rng(3).normal(size=(4, 2, 3, 3))}
    file = save(tmp_path / "n.onnx", nodes, constants, {"img": [None, 8, 6, 3]}, ["out"])
    network = converters.load_onnx(file, input_layout=layout)
    result = converters.compare(file, network=network)
    assert {row.name: row.status for row in result.layers}["get_item"] == "same"
    assert result.passed
    pictures = torch.rand(2, 3, 8, 6)
    given = pictures if layout == "NCHW" else pictures.movedim(1, -1)
    with tvc.capture(network, ["get_item"]) as seen:
        network(given)
    assert torch.equal(seen["get_item"], pictures[:, 2])


@pytest.mark.parametrize("ending", ["out", "turned"])
def test_maps_turned_for_whoever_runs_the_network_are_no_part_of_its_last_layer(tmp_path, ending):
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c:0", "net/conv2d/Conv2D", kernel_shape=[1, 1]),
        node("Relu", "c:0", "r:0", "net/conv2d/Relu"),
        node("Transpose", "r:0", ending, "Transpose__2", perm=[0, 2, 3, 1]),
        node("Identity", ending, "out", "Identity"),
    ]
    constants = {"k": np.random.default_rng(3).normal(size=(2, 3, 1, 1))}
    kept = nodes if ending == "turned" else nodes[:-1]
    file = save(tmp_path / "n.onnx", kept, constants, {"img": [None, 4, 5, 3]}, ["out"])
    for layout in ("NCHW", "as_exported"):
        network = converters.load_onnx(file, input_layout=layout)
        assert [record.name for record in network.source.layers] == ["conv2d"]
        assert network.source.layers[0].output_shape == (2, 4, 5)
        result = converters.compare(file, network=network)
        assert [row.status for row in (*result.layers, *result.outputs)] == ["same", "same"]


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
def test_pictures_of_any_size_have_three_channels_and_64_rows_and_columns(tmp_path, layout):
    """Where the file leaves them open; and each of two outputs is compared."""
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
        node("Conv", "t k", "c:0", "net/conv2d/Conv2D", kernel_shape=[5, 3]),
        node("ReduceMean", "c:0", "mean", "net/mean/Mean", axes=[2, 3], keepdims=0),
        node("ReduceMax", "c:0", "most", "net/most/Max", axes=[2, 3], keepdims=0),
    ]
    constants = {"k": np.random.default_rng(4).normal(size=(2, 3, 5, 3))}
    sizes = {"img": [None, None, None, None]}
    file = save(tmp_path / "n.onnx", nodes, constants, sizes, ["mean", "most"])
    result = converters.compare(file, input_layout=layout)
    assert [(row.name, row.shape, row.status) for row in (*result.layers, *result.outputs)] == [
        ("conv2d", (2, 60, 62), "same"),
        ("mean", (2,), "same"),
        ("most", (2,), "same"),
        ("output mean", (2,), "same"),
        ("output most", (2,), "same"),
    ]


@pytest.mark.parametrize("producer", ["tf2onnx", "pytorch"])
@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
def test_rows_of_cells_are_compared_however_they_lie(tmp_path, layout, producer):
    """A Conv1D between transposes of three axes, which the network may do without."""
    nodes = [
        node("Transpose", "img", "t", "Transpose__1", perm=[0, 2, 1]),
        node("Conv", "t k", "c:0", "net/conv1d/Conv1D", kernel_shape=[3], pads=[1, 1]),
        node("Transpose", "c:0", "l", "Transpose__2", perm=[0, 2, 1]),
        node("Add", "l b", "a:0", "net/conv1d/BiasAdd"),
        node("Relu", "a:0", "r:0", "net/conv1d/Relu"),
        node("Transpose", "r:0", "u", "Transpose__3", perm=[0, 2, 1]),
        node("MaxPool", "u", "p:0", "net/pool/MaxPool", kernel_shape=[2], strides=[2]),
        node("ReduceMean", "p:0", "out", "net/mean/Mean", axes=[2], keepdims=0),
    ]
    rng = np.random.default_rng(7)
    constants = {"k": rng.normal(size=(4, 5, 3)), "b": rng.normal(size=4)}
    sizes = {"img": [None, 4, 5]}
    file = save(tmp_path / "n.onnx", nodes, constants, sizes, ["out"], producer=producer)
    result = converters.compare(file, input_layout=layout)
    assert {row.status for row in (*result.layers, *result.outputs)} == {"same"}


def test_a_shared_layer_has_a_row_for_each_call():
    result = converters.compare(DATA / "shared.k3export.onnx")
    names = [row.name for row in result.layers]
    assert any(name.endswith("@1") for name in names)
    assert len(names) == len(set(names))
    assert all(row.status == "same" for row in result.layers)


def test_names_that_do_nothing_in_the_file_are_listed_as_not_in_it():
    with np.load(DATA / "catdog.k3export.npz") as stored:
        names = [str(name) for name in stored["layers"]]
    result = converters.compare(DATA / "catdog.k3export.onnx", layer_names=names)
    assert [row.name for row in result.layers] == names
    assert result.passed


def test_as_data_and_as_text():
    result = converters.compare(DATA / "tiny.k3export.onnx")
    data = json.loads(result.to_json())
    assert data["passed"] is True
    assert data["worst_relative"] == result.worst
    assert [row["name"] for row in data["layers"]] == [row.name for row in result.layers]
    text = result.format(width=90)
    assert all(row.name in text for row in result.layers)
    assert max(map(len, text.splitlines()[2:])) <= 90


def test_names_and_shapes_are_shown_whole_where_there_is_room():
    name = "block_13_expand_batch_normalization"
    layers = (
        LayerComparison("input", "InputLayer", None, "not in the file"),
        LayerComparison(name, "BatchNormalization", (24, 7, 9), "same", 1e-7, 1e-7, 1.0),
    )
    result = Comparison("n.onnx", "onnxruntime", 2, layers, outputs=())
    head, _, titles, _, first, second = result.format(width=200).splitlines()[:6]
    assert head.startswith("n.onnx: 1 of 2 layers compared with onnxruntime, all the same")
    assert [*second.split()] == [
        *(name, "(BatchNormalization)", "24×7×9", "same", "1.0e-07", "1.0e-07", "1.000000")
    ]
    assert titles.index("Shape") == second.index("24×7×9") == len(f"{name} (BatchNormalization)  ")
    assert first.split() == ["input", "(InputLayer)", "not", "in", "the", "file"]
    narrow = result.format(width=70).splitlines()[2:]
    assert max(map(len, narrow)) == 70
    assert any(line.startswith("block_13_expand") and "…" in line for line in narrow)


def test_inputs_that_do_not_fit_are_sentences():
    with pytest.raises(tvc.InputError, match="takes 1 tensors, not 2"):
        converters.compare(DATA / "catdog.k3export.onnx", inputs=[torch.rand(1)] * 2)
    with pytest.raises(tvc.InputError, match="onnxruntime cannot run the file"):
        converters.compare(DATA / "catdog.k3export.onnx", inputs=torch.rand(1, 3, 9, 9))


def test_the_network_comes_back_as_it_was():
    network = converters.load_onnx(DATA / "catdog.k3export.onnx").train()
    converters.compare(DATA / "catdog.k3export.onnx", network=network)
    assert network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_layer_that_the_import_lost_fails(monkeypatch):
    from dataclasses import replace

    path = DATA / "catdog.k3export.onnx"
    network = converters.load_onnx(path)
    lost = CONVOLUTIONS[1]
    kept = tuple(row for row in network.source.layers if row.name != lost)
    network.source = replace(network.source, layers=kept)
    result = converters.compare(path, network=network)
    assert not result.passed
    assert result.first_difference.name == lost
    assert result.first_difference.status == "not in the network"
    assert [row.name for row in result.layers] == NAMES  # in running order
    assert f"the layer '{lost}' (Conv2D) is not in the network" in str(result)
    # said to be gone, though the file has it
    gone = [
        replace(row, status="not in the file", module=None) if row.name == lost else row
        for row in converters.load_onnx(path).source.layers
    ]
    network.source = replace(network.source, layers=tuple(gone))
    result = converters.compare(path, network=network)
    assert not result.passed
    assert sorted(row.name for row in result.layers) == sorted(NAMES)  # one row each


def test_a_layer_that_did_not_run_fails():
    path = DATA / "catdog.k3export.onnx"
    network = converters.load_onnx(path)
    *steps, last = network.steps
    network.steps, network.results = tuple(steps), last.inputs
    result = converters.compare(path, network=network)
    assert not result.passed
    assert (result.first_difference.name, result.first_difference.status) == (
        NAMES[-1],
        "not run by the network",
    )


def normed(path):
    """A convolution and a batch norm whose statistics are those of no picture."""
    rng = np.random.default_rng(0)
    names = ["scale", "shift", "mean", "variance"]
    return save(
        path,
        [
            node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
            node("Conv", "t k", "c", "net_1/conv2d_1/convolution"),
            node("BatchNormalization", f"c {' '.join(names)}", "n", "net_1/norm_1/FusedBatch"),
            node("Relu", "n", "out", "net_1/re_lu_1/Relu"),
        ],
        {"k": rng.normal(size=(4, 3, 3, 3)), **{n: rng.uniform(1, 2, size=4) for n in names}},
        {"img": [None, 6, 5, 3]},
        ["out"],
    )


def test_a_network_in_training_is_compared_as_outside_it_and_comes_back(tmp_path):
    path = normed(tmp_path / "n.onnx")
    network = converters.load_onnx(path).train()
    network.re_lu.eval()
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert converters.compare(path, network=network).passed
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_in_double_precision_is_compared(tmp_path):
    network = converters.load_onnx(normed(tmp_path / "n.onnx")).double()
    assert converters.compare(tmp_path / "n.onnx", network=network).passed


@pytest.mark.parametrize("stored", ["node", "derived"])
def test_a_constant_does_not_tell_where_the_channels_are(stored, tmp_path):
    rng = np.random.default_rng(0)
    one = numpy_helper.from_array(np.ones((1, 1), np.float32))
    name = {"node": "one", "derived": "wide"}[stored]
    path = save(
        tmp_path / "n.onnx",
        [
            node("Transpose", "img", "t", "Transpose__1", perm=[0, 3, 1, 2]),
            node("Conv", "t k", "c", "net_1/conv2d_1/convolution"),
            node("Constant", "", "one", "one", value=one),
            node("Reshape", "one shape", "wide", "wide"),
            node("Sub", f"{name} c", "out", "net_1/subtract_1/sub"),
        ],
        {"k": rng.normal(size=(4, 4, 1, 1)), "shape": np.array([1, 1, 1, 1])},
        {"img": [None, 4, 4, 4]},
        ["out"],
    )
    result = converters.compare(path)
    assert result.passed, str(result)
    assert {row.status for row in result.layers} == {"same"}


@pytest.mark.parametrize("layout", ["NCHW", "as_exported"])
def test_what_the_import_leaves_as_it_is_is_fed_as_it_is(layout, tmp_path):
    """No convolution tells where the channels are; torch's own files have them first."""
    from converters.slopes import FileScores

    rng = np.random.default_rng(0)
    path = save(
        tmp_path / "n.onnx",
        [
            node("Relu", "img", "r", "/Relu"),
            node("Flatten", "r", "f", "/Flatten"),
            node("Gemm", "f w b", "out", "/Gemm"),
        ],
        {"w": rng.normal(size=(64, 3)), "b": rng.normal(size=3)},
        {"img": [None, 4, 4, 4]},
        ["out"],
        producer="pytorch",
    )
    network = converters.load_onnx(path, input_layout=layout)
    result = converters.compare(path, network=network)
    assert result.passed, str(result)
    assert {row.status for row in result.layers} == {"same"}
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        FileScores(path, network).scores(x), network(x).detach(), rtol=1e-4, atol=1e-4
    )


def test_what_was_turned_is_recorded(tmp_path):
    path = cube(tmp_path / "cube.onnx")
    assert converters.load_onnx(path).source.turned == ("img",)
    assert converters.load_onnx(path, input_layout="as_exported").source.turned == ()


def test_infinite_differences_are_null_in_json():
    network = converters.load_onnx(DATA / "catdog.k3export.onnx")
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    result = converters.compare(DATA / "catdog.k3export.onnx", network=network)
    assert result.worst == float("inf")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    data = json.loads(result.to_json(), parse_constant=refuse)
    assert data["worst_relative"] is None
    assert data["passed"] is False
    assert json.dumps(result.to_dict(), allow_nan=False)


def dense_behind_reshape(path, batch, *, target=None, dtype=FLOAT):
    """A convolution, flattened to a stated shape, and a dense layer; of maps 6 × 6 × 3."""
    rng = np.random.default_rng(5)
    return save(
        path,
        [
            node("Transpose", "img", "t", "net_1/conv_1/convolution__5", perm=[0, 3, 1, 2]),
            node("Conv", "t k", "c", "net_1/conv_1/convolution", kernel_shape=[3, 3]),
            node("Relu", "c", "r", "net_1/conv_1/Relu"),
            node("Transpose", "r", "l", "Transpose__9", perm=[0, 2, 3, 1]),
            node("Reshape", "l s", "f", "net_1/flatten_1/Reshape"),
            node("MatMul", "f w", "out", "net_1/dense_1/MatMul"),
        ],
        {
            "k": rng.normal(size=(5, 3, 3, 3)) / 3,
            "s": np.array(target or [-1, 4 * 4 * 5]),
            "w": rng.normal(size=(4 * 4 * 5, 4)) / 9,
        },
        {"img": [batch, 6, 6, 3]},
        ["out"],
        dtype=dtype,
    )


@pytest.mark.parametrize("pictures", [None, 1, 3, 4, 9])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_of_a_fixed_batch_is_run_as_often_as_it_takes(tmp_path, batch, pictures):
    path = dense_behind_reshape(tmp_path / "n.onnx", batch, target=[batch, 80])
    x = None if pictures is None else torch.rand(pictures, 3, 6, 6)
    result = converters.compare(path, inputs=x)
    assert result.passed
    assert result.images == (pictures or 2)
    assert [row.shape for row in result.layers] == [(5, 4, 4), (80,), (4,)]
    assert result.worst < 1e-5


def test_every_picture_of_a_fixed_batch_is_compared(tmp_path):
    """The last of five, alone in its run: rows that are filled up must not stand for it."""
    path = dense_behind_reshape(tmp_path / "n.onnx", 4)
    x = torch.rand((5, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    session = Session(read_model(path), 4)
    feeds = np.moveaxis(x.numpy(), 1, -1)
    (found,) = session.run(["out"], {"img": feeds})
    (alone,) = session.run(["out"], {"img": feeds[4:]})
    assert (found.shape, alone.shape) == ((5, 4), (1, 4))
    assert np.allclose(found[4:], alone, atol=1e-6)
    assert not np.allclose(found[3], found[4], atol=1e-3)
    assert np.allclose(found, converters.load_onnx(path)(x).detach().numpy(), atol=1e-5)


def test_half_precision_has_bounds_of_its_own(tmp_path):
    path = dense_behind_reshape(tmp_path / "n.onnx", None, dtype=onnx.TensorProto.FLOAT16)
    result = converters.compare(path)
    assert result.passed
    assert result.first_difference is None
    assert "in half precision, up to 0.01 of a layer's largest value is the same" in str(result)
    for factor, status in ((1.004, "same"), (1.02, "nearly the same"), (1.1, "differs")):
        network = converters.load_onnx(path)
        with torch.no_grad():
            first_kernel(network, "dense").mul_(factor)
        changed = converters.compare(path, network=network)
        assert [row.status for row in changed.layers] == ["same", "same", status]
        assert changed.passed == (status != "differs")


def test_what_is_nan_on_both_sides_is_not_the_same():
    numbers = np.array([[1.0, np.nan, 3.0]])
    both = beside("a", "Dense", numbers, numbers.copy())
    assert (both.status, both.relative) == ("NaN on both sides", None)
    elsewhere = beside("a", "Dense", numbers, numbers[:, ::-1].copy() * 2)
    assert elsewhere.status == "NaN on both sides"  # in the same place
    assert beside("a", "Dense", numbers, np.array([[np.nan, 1.0, 3.0]])).status == "differs"
    assert beside("a", "Dense", numbers, np.ones((1, 3))).status == "differs"
    assert beside("a", "Dense", np.ones((1, 3)), numbers).status == "differs"
    infinite = np.array([[1.0, -np.inf]])
    assert beside("a", "Dense", infinite, infinite.copy()).status == "same"  # as of a mask


def test_noise_is_for_pictures_and_not_for_an_embedding(tmp_path):
    path = save(
        tmp_path / "words.onnx",
        [
            node("Gather", "table words", "rows", "net_1/embedding_1/Gather"),
            node("ReduceMean", "rows", "out", "net_1/mean_1/Mean", axes=[1], keepdims=0),
        ],
        {"table": np.arange(60.0).reshape(20, 3)},
        {"words": ["N", 7]},
        ["out"],
    )
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(model, path)
    with pytest.raises(tvc.InputError, match=r"takes whole numbers and no pictures.* give inputs="):
        converters.compare(path)
    assert converters.compare(path, inputs=torch.arange(14).reshape(2, 7)).passed
