"""Hostile and broken files: each is refused in one sentence, and nothing but a refusal comes out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from converters import trust
from converters.trust import (
    Limits,
    elsewhere,
    read_model,
    sizes,
    tensors,
    unknown_operators,
)
from converters.trust.values import FOLDED
from torchviz_cnn.errors import InputError

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
MANY = 2**20


def weights(shape: tuple[int, ...], name: str, seed: int = 0) -> TensorProto:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return from_array(values, name)


def integers(name: str, *values: int) -> TensorProto:
    return from_array(np.array(values, np.int64), name)


def scalar(name: str, value: float, kind: type = np.int64) -> TensorProto:
    return from_array(np.array(value, kind), name)


def network(
    nodes: list[NodeProto],
    stored: list[TensorProto] | tuple[()] = (),
    *,
    shape: tuple[int | str, ...] | None = ("N", 3, 8, 8),
    output: str = "out",
    opset: int = 15,
    **more: Any,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info(output, F, None)],
        list(stored),
    )
    imports = more.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def good() -> ModelProto:
    """A small network such as Keras writes it: transposed, and flattened by its own shape."""
    node = helper.make_node
    return network(
        [
            node("Transpose", ["x"], ["nchw"], name="transpose", perm=[0, 3, 1, 2]),
            node("Conv", ["nchw", "kernel", "bias"], ["conv"], name="conv", strides=[1, 1]),
            node("Relu", ["conv"], ["relu"], name="relu"),
            node("MaxPool", ["relu"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Shape", ["pool"], ["shape"], name="shape"),
            node("Slice", ["shape", "zero", "one"], ["batch"], name="batch"),
            node("Concat", ["batch", "rest"], ["target"], name="target", axis=0),
            node("Reshape", ["pool", "target"], ["flat"], name="flatten"),
            node("MatMul", ["flat", "dense"], ["scores"], name="matmul"),
            node("Softmax", ["scores"], ["out"], name="softmax"),
        ],
        [
            weights((4, 3, 3, 3), "kernel"),
            weights((4,), "bias"),
            weights((36, 5), "dense"),
            integers("zero", 0),
            integers("one", 1),
            integers("rest", -1),
        ],
        shape=("N", 8, 8, 3),
    )


def relu(inputs: str = "x", output: str = "out", **more: Any) -> NodeProto:
    return helper.make_node("Relu", [inputs], [output], **more)


def conv_of(kernel: TensorProto) -> ModelProto:
    return network([helper.make_node("Conv", ["x", kernel.name], ["out"], name="conv1")], [kernel])


@pytest.fixture
def save(tmp_path: Path) -> Callable[[ModelProto | bytes], Path]:
    def write(what: ModelProto | bytes) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(what if isinstance(what, bytes) else what.SerializeToString())
        return path

    return write


Save = Callable[[ModelProto | bytes], Path]


def verdict(path: Path, **options: Any) -> ModelProto | None:
    """The model, or nothing where it was refused; whatever else is raised goes through."""
    try:
        return read_model(path, **options)
    except InputError:
        return None


def refused(path: Path, *words: str, **options: Any) -> str:
    """The file is refused in one sentence that names it and holds these words."""
    before = time.process_time()
    with pytest.raises(InputError) as caught:
        read_model(path, **options)
    assert time.process_time() - before < 2
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    assert str(path)[:60] in sentence
    # The path holds the test's name, and with it half of the words.
    said = sentence.split("': ", 1)[1]
    for word in words:
        assert word in said
    return said


# --- what is let in ------------------------------------------------------------------------------


def test_a_good_file_comes_through_as_it_is(save: Save) -> None:
    model = good()
    assert read_model(save(model)) == model
    assert read_model(str(save(model))) == model


def test_every_keras_route_is_read() -> None:
    folder = os.environ.get("TORCHVIZ_CNN_DATA")
    if not folder:
        pytest.skip("TORCHVIZ_CNN_DATA names no folder with the exported networks")
    files = sorted((Path(folder) / "keras").rglob("*.onnx"))
    assert len(files) >= 20
    for file in files:
        model = read_model(file)
        assert model == onnx.load(file)
        assert unknown_operators(model) == []


def test_an_unused_domain_is_let_in_and_the_standard_has_one_name(save: Save) -> None:
    imports = [helper.make_opsetid("ai.onnx", 15), helper.make_opsetid("ai.onnx.ml", 2)]
    model = network([relu(domain="ai.onnx")], opset_imports=imports)
    read = read_model(save(model))
    assert [node.domain for node in read.graph.node] == [""]
    assert [entry.domain for entry in read.opset_import] == ["", "ai.onnx.ml"]
    assert trust.opset(read) == 15


def test_unknown_operators_are_reported_and_not_refused(save: Save) -> None:
    nodes = [
        helper.make_node("Erfc", ["x"], ["a"], name="gelu", config=b"\xff\xfe", seed=2**40),
        helper.make_node("Upsample", ["a", "scales"], ["b"], name="withdrawn"),
        relu("b"),
    ]
    scales = from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    read = read_model(save(network(nodes, [scales])))
    assert [node.name for node in unknown_operators(read)] == ["gelu", "withdrawn"]


def test_a_withdrawn_operator_is_known_where_it_was_young(save: Save) -> None:
    scales = from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node("Upsample", ["x", "scales"], ["out"])
    assert unknown_operators(read_model(save(network([node], [scales], opset=9)))) == []


def test_weights_that_are_inputs_too_are_no_inputs(save: Save) -> None:
    model = conv_of(weights((4, 3, 3, 3), "kernel"))
    model.graph.input.append(helper.make_tensor_value_info("kernel", F, [4, 3, 3, 3]))
    assert read_model(save(model), limits=Limits(inputs=1)) == model


@pytest.mark.parametrize("side", [8, "H"])
def test_sizes_that_follow_from_the_picture_are_let_in(save: Save, side: int | str) -> None:
    """Doubling height and width by their own shape, as an exporter writes UpSampling2D."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "two", "four"], ["sides"]),
        node("Mul", ["sides", "two"], ["doubled"]),
        node("Slice", ["shape", "zero", "two"], ["front"]),
        node("Concat", ["front", "doubled"], ["sizes"], axis=0),
        node("Resize", ["x", "", "", "sizes"], ["out"], mode="nearest"),
    ]
    stored = [integers("zero", 0), integers("two", 2), integers("four", 4)]
    read_model(save(network(nodes, stored, shape=("N", 3, side, side))))


def test_pads_as_torch_writes_them_are_let_in(save: Save) -> None:
    """Pairs from the last axis on, turned round by a chain of small operators."""
    node = helper.make_node
    nodes = [
        node("ConstantOfShape", ["four"], ["zeros"], value=integers("v", 0)),
        node("Concat", ["given", "zeros"], ["pairs"], axis=0),
        node("Reshape", ["pairs", "table"], ["rows"]),
        node("Slice", ["rows", "last", "first", "zero", "last"], ["turned"]),
        node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
        node("Reshape", ["columns", "last"], ["pads"]),
        node("Pad", ["x", "pads"], ["out"]),
    ]
    stored = [
        integers("four", 4),
        integers("given", 1, 2, 3, 4),
        integers("table", -1, 2),
        integers("last", -1),
        integers("first", -(2**63) + 1),
        integers("zero", 0),
    ]
    read_model(save(network(nodes, stored)))
    # The pads are known to the last number: one pixel more than the result has is one too many.
    read_model(
        save(network(nodes, stored, shape=(1, 3, 8, 8))), limits=Limits(elements=3 * 15 * 11)
    )
    refused(
        save(network(nodes, stored, shape=(1, 3, 8, 8))),
        "(Pad)",
        "495 elements (1 × 3 × 15 × 11)",
        limits=Limits(elements=3 * 15 * 11 - 1),
    )


def test_the_value_of_a_chain_is_what_the_chain_computes(save: Save) -> None:
    """Each operator that shapes are worked out with, against onnx's own reference."""
    node = helper.make_node
    chains = [
        node("Div", ["a", "b"], ["out"]),
        node("Mod", ["a", "b"], ["out"]),
        node("Sub", ["a", "b"], ["out"]),
        node("Min", ["a", "b"], ["out"]),
        node("Max", ["a", "b"], ["out"]),
        node("Slice", ["a", "two", "minus", "zero", "minus"], ["out"]),
        node("Slice", ["a", "zero", "two"], ["out"]),
        node("Gather", ["a", "two"], ["out"]),
        node("Unsqueeze", ["a", "zero"], ["out"]),
        node("Concat", ["a", "b"], ["out"], axis=0),
        node("Expand", ["two", "two"], ["out"]),
        node("Tile", ["a", "two"], ["out"]),
        node("ReduceProd", ["a"], ["out"], keepdims=0),
        node("ReduceSum", ["a"], ["out"], keepdims=1),
        node("Cast", ["a"], ["out"], to=F),
        node("Shape", ["a"], ["out"]),
        node("Size", ["a"], ["out"]),
        node("ConstantOfShape", ["two"], ["out"], value=integers("v", 7)),
        node("Where", ["is", "a", "b"], ["out"]),
        node("Equal", ["a", "b"], ["out"]),
        node("Constant", [], ["out"], value_int=7),
        node("Constant", [], ["out"], value_ints=[7, -7]),
        node("Constant", [], ["out"], value_float=0.5),
        node("Constant", [], ["out"], value_floats=[0.5, -3.0]),
        node("Constant", [], ["out"], value=integers("v", 3, 4)),
        node("Less", ["a", "b"], ["out"]),
        node("Greater", ["a", "b"], ["out"]),
        node("And", ["is", "was"], ["out"]),
        node("Or", ["is", "was"], ["out"]),
        node("Not", ["is"], ["out"]),
        node("Neg", ["a"], ["out"]),
        node("Abs", ["a"], ["out"]),
        node("Add", ["a", "table"], ["out"]),
        node("Mul", ["a", "table"], ["out"]),
        node("Min", ["a", "table", "b"], ["out"]),
        node("Max", ["a", "table", "b"], ["out"]),
        node("Floor", ["halves"], ["out"]),
        node("Ceil", ["halves"], ["out"]),
        node("Round", ["halves"], ["out"]),
        node("Div", ["halves", "halves"], ["out"]),
        node("Cast", ["halves"], ["out"], to=I),
        node("Gather", ["table", "minus"], ["out"], axis=1),
        node("Concat", ["table", "table"], ["out"], axis=1),
        node("Expand", ["table", "blocks"], ["out"]),
        node("Tile", ["table", "steps"], ["out"]),
        node("Range", ["first", "last", "step"], ["out"]),
        node("ReduceProd", ["table"], ["out"], axes=[1], keepdims=0),
        node("ReduceMax", ["table"], ["out"], axes=[0]),
        node("ReduceMin", ["table"], ["out"], axes=[-1], keepdims=1),
        node("ReduceSum", ["table", "zero"], ["out"], keepdims=0),
        node("Reshape", ["table", "kept"], ["out"]),
        node("Reshape", ["none", "empty"], ["out"], allowzero=1),
        node("Slice", ["table", "minus", "far", "minus", "back"], ["out"]),
        node("Slice", ["table", "ends", "steps"], ["out"]),
        node("Squeeze", ["long", "zero"], ["out"]),
        node("Squeeze", ["long"], ["out"]),
        node("Transpose", ["table"], ["out"]),
        node("Transpose", ["long"], ["out"], perm=[2, 0, 1]),
        node("Unsqueeze", ["table", "ends"], ["out"]),
        node("Shape", ["long"], ["out"], start=1),
        node("Shape", ["long"], ["out"], start=-3, end=-1),
        node("ConstantOfShape", ["two"], ["out"]),
    ]
    stored = [
        integers("a", 7, -7, 9),
        integers("b", 2, 2, 9),
        integers("two", 2),
        integers("zero", 0),
        integers("minus", -1),
        from_array(np.array([True, False, True]), "is"),
        from_array(np.array([True, True, False]), "was"),
        from_array(np.array([[4, -5, 6], [1, 2, 3]]), "table"),
        from_array(np.array([[[4], [-5], [6]]]), "long"),
        from_array(np.zeros((0, 3), np.int64), "none"),
        from_array(np.array([0.5, -1.5, 2.5, -0.7], np.float32), "halves"),
        *[scalar(name, value) for name, value in [("first", 9), ("last", 2), ("step", -3)]],
        integers("kept", 0, -1),
        integers("empty", 3, 0),
        integers("blocks", 2, 2, 3),
        integers("steps", 2, 1),
        integers("ends", 0, 1),
        integers("far", -(2**63)),
        integers("back", -2),
    ]
    for chain in chains:
        model = network([chain], stored)
        walk = sizes.Walk(model, Limits(), ordinary=True, refuse_misfits=True, refuse_open=True)
        walk.run(list(model.graph.input))
        wanted = onnx.reference.ReferenceEvaluator(model).run(None, {"x": np.zeros(1)})[0]
        found = walk.values["out"]
        assert found.dtype == wanted.dtype, chain.op_type
        np.testing.assert_array_equal(found, wanted, err_msg=chain.op_type)


# --- what is no ONNX file ------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "there is no such file")


def test_a_path_with_a_nul_character() -> None:
    with pytest.raises(InputError, match="NUL"):
        read_model("model\0.onnx")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "folder", "name the .onnx file")
    (tmp_path / "saved_model.pb").touch()
    refused(tmp_path, "SavedModel", "export it to ONNX")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a plain file")


def test_a_file_that_may_not_be_read(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(good())
    monkeypatch.setattr(Path, "open", denied)
    refused(path, "Permission denied")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"This is a letter, not a network.\n" * 9, ["text"]),
        (b'{"class_name": "Sequential"}', ["text"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), ["PNG"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), ["HDF5", "export it to ONNX first"]),
        (b"PK\x03\x04" + bytes(22) + b"model.weights.h5", [".keras", "export it to ONNX first"]),
        (b"PK\x03\x04" + bytes(22) + b"archive/data.pkl", ["PyTorch", "torch.onnx.export"]),
        (b"PK\x03\x04" + bytes(99), ["zip"]),
        (b"\x80\x04\x95" + bytes(99), ["pickle"]),
        (b"\x1c\x00\x00\x00TFL3" + bytes(99), ["TensorFlow Lite"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
        (b"\x1f\x8b\x08" + bytes(99), ["gzip"]),
        (bytes(99), ["not ONNX"]),
        (bytes(range(256)) * 4, ["not ONNX"]),
        (b"\x08\x08", ["without a network"]),
    ],
)
def test_what_is_not_onnx_is_named(save: Save, content: bytes, words: list[str]) -> None:
    refused(save(content), *words)


def test_a_file_cut_anywhere(save: Save) -> None:
    data = good().SerializeToString()
    for length in range(1, len(data) - 1, 7):
        refused(save(data[:length]))
    refused(save(data[: len(data) // 2]), "cut short")


def test_a_file_too_large_is_not_read(save: Save) -> None:
    refused(save(good()), "bytes", "Limits.file_bytes", limits=Limits(file_bytes=500))


# --- graphs that hold more than a plain network --------------------------------------------------


def test_an_operator_of_an_unknown_domain(save: Save) -> None:
    imports = [helper.make_opsetid("", 15), helper.make_opsetid("evil", 1)]
    model = network([relu(name="trap", domain="evil")], opset_imports=imports)
    refused(save(model), "'trap'", "'evil'", "standard")


def test_operators_that_the_model_defines(save: Save) -> None:
    own = helper.make_function(
        "", "Relu", ["x"], ["y"], [relu("x", "y")], [helper.make_opsetid("", 15)]
    )
    refused(save(network([relu()], functions=[own])), "'Relu'", "inline")


def branch(depth: int = 1) -> onnx.GraphProto:
    inner = [relu()] if depth == 1 else [condition(depth - 1)]
    return helper.make_graph(inner, "branch", [], [helper.make_tensor_value_info("out", F, None)])


def condition(depth: int = 1) -> NodeProto:
    graph = branch(depth)
    return helper.make_node("If", ["yes"], ["out"], name="if", then_branch=graph)


def test_a_condition(save: Save) -> None:
    model = network([condition()], [from_array(np.array(True), "yes")])
    refused(save(model), "'if' (If)", "'then_branch'", "graph within")


def test_a_loop(save: Save) -> None:
    node = helper.make_node("Loop", ["", "", "x"], ["out"], name="again", body=branch())
    refused(save(network([node])), "'again' (Loop)", "'body'", "graph within")


def test_graphs_in_a_list_and_in_an_unknown_operator(save: Save) -> None:
    node = helper.make_node("Anything", ["x"], ["out"], name="list", parts=[branch()])
    refused(save(network([node])), "'list'", "graph within")


def nested(depth: int) -> bytes:
    """Graphs within graphs, written byte by byte: protobuf would not even serialise them."""

    def wrapped(tag: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length >= 128:
            size += bytes([length & 127 | 128])
            length >>= 7
        return bytes([tag]) + size + bytes([length]) + content

    graph = b""
    for _ in range(depth):
        attribute = wrapped(0x32, graph) + b"\xa0\x01\x05"  # g, type GRAPH
        node = wrapped(0x22, b"If") + wrapped(0x2A, attribute)
        graph = wrapped(0x0A, node)
    return b"\x08\x08" + wrapped(0x3A, graph) + wrapped(0x42, b"\x10\x0f")


@pytest.mark.parametrize("depth", [60, 5000])
def test_graphs_nested_deep(save: Save, depth: int) -> None:
    refused(save(nested(depth)), "nested", "conditions and loops")


def test_graphs_nested_a_little(save: Save) -> None:
    refused(save(nested(3)), "graph within")


def test_a_value_taken_from_a_function_that_is_not_there(save: Save) -> None:
    model = network([relu(name="n", alpha=1.0)])
    model.graph.node[0].attribute[0].ref_attr_name = "slope"
    refused(save(model), "'n' (Relu)", "'alpha'", "function")


def test_sparse_weights(save: Save) -> None:
    model = network([relu()])
    values, places = weights((1,), "few"), integers("places", MANY**2)
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, places, [MANY, MANY, MANY])
    )
    refused(save(model), "'few'", "sparse")
    model = network([helper.make_node("Constant", [], ["out"], name="c")])
    attribute = model.graph.node[0].attribute.add(name="sparse_value", type=11)
    attribute.sparse_tensor.CopyFrom(helper.make_sparse_tensor(values, places, [MANY, MANY]))
    refused(save(model), "'c'", "sparse")


def test_a_training_program(save: Save) -> None:
    model = network([relu()])
    model.training_info.add()
    refused(save(model), "training")


@pytest.mark.parametrize(
    ("imports", "words"),
    [
        ([], "no versions"),
        ([("", 15), ("ai.onnx", 13)], "2 versions"),
        ([("ai.onnx.ml", 2)], "no versions"),
        ([("", 0)], "opset is 0"),
        ([("", -5)], "opset is -5"),
        ([("", 10**9)], "opset is 1000000000"),
    ],
)
def test_versions_of_the_standard(save: Save, imports: list[tuple[str, int]], words: str) -> None:
    model = network([relu()], opset_imports=[helper.make_opsetid(*entry) for entry in imports])
    refused(save(model), words)


@pytest.mark.parametrize("version", [0, 2, 999, -1])
def test_versions_of_the_format(save: Save, version: int) -> None:
    model = network([relu()])
    model.ir_version = version
    refused(save(model), f"format version is {version}")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([relu("later", "out"), relu("x", "later")], ["'later'", "before it is made"]),
        ([relu("out", "a"), relu("a", "out")], ["'out'", "never in a circle"]),
        ([relu("nothing")], ["'nothing'", "nothing makes"]),
        ([relu("x", "out"), relu("x", "out")], ["'out'", "there already"]),
        ([relu("x", "x"), relu("x", "out")], ["'x'", "there already"]),
        ([relu("x", "kernel"), relu("x", "out")], ["'kernel'", "there already"]),
        ([relu("x", "a")], ["no node makes the output 'out'"]),
        ([helper.make_node("", ["x"], ["out"], name="n")], ["'n'", "names no operator"]),
        ([helper.make_node("Conv", ["x"], ["out"], name="n")], ["'n' (Conv)", "rules of ONNX"]),
        ([relu(name="n", slope=1.0)], ["'n' (Relu)", "rules of ONNX", "slope"]),
        ([relu(name="n", alpha=2**40)], ["'n' (Relu)", "'alpha'", "absurd"]),
    ],
)
def test_graphs_that_cannot_run(save: Save, nodes: list[NodeProto], words: list[str]) -> None:
    refused(save(network(nodes, [weights((4, 3, 3, 3), "kernel")])), *words)


def test_names_that_are_there_twice_or_not_at_all(save: Save) -> None:
    kernel = weights((4, 3, 3, 3), "kernel")
    model = conv_of(kernel)
    model.graph.initializer.append(kernel)
    refused(save(model), "weight 'kernel'", "twice")
    model = conv_of(kernel)
    model.graph.input.append(model.graph.input[0])
    refused(save(model), "input 'x'", "twice")
    model = conv_of(kernel)
    model.graph.initializer.append(weights((1,), ""))
    refused(save(model), "weight has no name")
    model = conv_of(kernel)
    model.graph.output.append(model.graph.output[0])
    refused(save(model), "output 'out'", "twice")
    del model.graph.output[:]
    refused(save(model), "no output")
    model = conv_of(kernel)
    model.graph.node[0].attribute.extend([helper.make_attribute("group", 1)] * 2)
    refused(save(model), "'conv1'", "'group'", "twice")


@pytest.mark.parametrize("side", [0, -1, "H"])
def test_an_open_size_may_be_written_in_three_ways(save: Save, side: int | str) -> None:
    model = good()
    for place in (1, 2):
        dim = model.graph.input[0].type.tensor_type.shape.dim[place]
        dim.dim_param, dim.dim_value = "H", 1
        if isinstance(side, int):
            dim.dim_value = side
        else:
            dim.dim_param = side
    # The dense layer fits only one size; for an open one that is nobody's fault.
    read_model(save(model))


def test_inputs_that_are_no_pictures(save: Save) -> None:
    model = network([relu()])
    model.graph.input[0].type.CopyFrom(
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, [1]))
    )
    refused(save(model), "input 'x'", "not a tensor")
    model.graph.input[0].type.tensor_type.elem_type = 99
    refused(save(model), "input 'x'", "no known data type")
    refused(save(network([relu()], shape=None)), "input 'x'", "nothing of its shape")
    refused(save(network([relu()], shape=(1,) * 65)), "input 'x'", "65 axes")
    refused(save(network([relu()], shape=(MANY, MANY))), "input 'x'", "elements")


def test_names_that_are_not_text(save: Save) -> None:
    data = network([relu(name="first-conv")]).SerializeToString()
    refused(save(data.replace(b"first-conv", b"first\xff\xfe\xfd\xfc\xfb")), "not text")
    data = network(
        [helper.make_node("Conv", ["x", "k"], ["out"], name="n", auto_pad="SAME_UPPER")],
        [weights((4, 3, 3, 3), "k")],
    ).SerializeToString()
    refused(save(data.replace(b"SAME_UPPER", b"SAME_UPP\xff\xfe")), "'n'", "'auto_pad'", "not text")


def test_names_cannot_flood_or_steer_a_terminal(save: Save) -> None:
    name = "\x1b[2J" + "a" * 10**6
    sentence = refused(save(network([relu(name, "out", name=name)])), "nothing makes")
    assert "\x1b" not in sentence


@pytest.mark.parametrize("kind", [-3, 0, 99])
def test_a_data_type_that_does_not_exist(save: Save, kind: int) -> None:
    cast = helper.make_node("Cast", ["x"], ["out"], to=kind)
    refused(save(network([cast])), "Cast", f"data type {kind}")


def test_shapes_that_cannot_fit(save: Save) -> None:
    refused(save(conv_of(weights((4, 3, 3), "kernel"))), "'conv1' (Conv)", "does not fit")
    refused(save(conv_of(weights((4, 3, 10, 10), "kernel"))), "'conv1' (Conv)", "larger than its")
    model = network([helper.make_node("Softmax", ["whole"], ["out"])], [integers("whole", 1, 2)])
    refused(save(model), "node 0 (Softmax)", "does not fit")


def test_a_misfit_of_one_batch_size_is_no_misfit_of_the_file(save: Save) -> None:
    """A file for batches of eight says nothing of it: its input has any batch size."""
    node = helper.make_node("Reshape", ["x", "eight"], ["out"])
    read_model(save(network([node], [integers("eight", 8, 192)])))


# --- limits --------------------------------------------------------------------------------------


def test_too_many_nodes(save: Save) -> None:
    refused(save(good()), "10 nodes", "Limits.nodes", limits=Limits(nodes=9))
    read_model(save(good()), limits=Limits(nodes=10))
    idle = helper.make_node("Relu", ["x"], [])
    refused(save(network([relu(), idle, idle])), "3 nodes", limits=Limits(nodes=2))
    split = helper.make_node("Split", ["x"], ["out", "a", "b"], axis=1)
    refused(save(network([split])), "3 tensors", "Limits.nodes", limits=Limits(nodes=2))


def test_too_many_inputs(save: Save) -> None:
    model = network([relu()])
    model.graph.input.append(helper.make_tensor_value_info("y", F, [1]))
    refused(save(model), "2 inputs", "Limits.inputs", limits=Limits(inputs=1))


def test_too_many_weight_bytes(save: Save) -> None:
    model = conv_of(weights((4, 3, 3, 3), "kernel"))
    refused(save(model), "432 bytes", "Limits.weight_bytes", limits=Limits(weight_bytes=431))
    read_model(save(model), limits=Limits(weight_bytes=432))


def test_too_many_fields(save: Save) -> None:
    refused(save(good()), "50 fields", "Limits.fields", limits=Limits(fields=50))


def test_integers_that_unpack_to_much_more(save: Save) -> None:
    zeros = helper.make_tensor("zeros", I, [1000], [0] * 1000)
    model = network([relu()], [zeros])
    refused(save(model), "unpack", "Limits.weight_bytes", limits=Limits(weight_bytes=7999))


# --- dims against bytes --------------------------------------------------------------------------


def lying(dims: list[int], name: str = "kernel", **data: Any) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data.pop("data_type", F), dims=dims)
    for key, value in data.items():
        if isinstance(value, bytes | int):
            setattr(tensor, key, value)
        else:
            getattr(tensor, key).extend(value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lying([4, 3, 3, 3], raw_data=bytes(428)), ["432 bytes", "holds 428"]),
        (lying([4, 3, 3, 3], raw_data=bytes(436)), ["432 bytes", "holds 436"]),
        (lying([4, 3, 3, 3], float_data=[0.0] * 107), ["108 numbers", "holds 107"]),
        (lying([4, 3, 3, 3]), ["108 numbers", "holds 0"]),
        (lying([2**14, 2**14]), ["numbers", "holds 0"]),
        (lying([-4, -3, 3, 3], raw_data=bytes(432)), ["impossible shape", "-4"]),
        (lying([2**32, 2**32], raw_data=b""), ["larger than any memory"]),
        (lying([2**62, 0, 4], raw_data=b""), ["larger than any memory"]),
        (lying([1] * 65, raw_data=bytes(4)), ["impossible shape", "65 axes"]),
        (lying([2**35], raw_data=b""), ["Limits.weight_bytes"]),
        (lying([1], data_type=0, raw_data=bytes(4)), ["no data type"]),
        (lying([1], data_type=99, raw_data=bytes(4)), ["no data type"]),
        (lying([1], raw_data=bytes(4), float_data=[1.0]), ["stored twice"]),
        (lying([1], int64_data=[1]), ["wrong type"]),
        (lying([1], data_type=TensorProto.STRING, raw_data=bytes(4)), ["wrong type"]),
    ],
)
def test_dims_that_lie(save: Save, tensor: TensorProto, words: list[str]) -> None:
    assert "'kernel'" in refused(save(network([relu()], [tensor])), *words)
    constant = helper.make_node("Constant", [], ["out"], name="c", value=tensor)
    sentence = refused(save(network([constant])), *words)
    assert "'c' (Constant)" in sentence
    assert "'value'" in sentence


def test_a_tensor_in_segments(save: Save) -> None:
    tensor = lying([1], raw_data=bytes(4))
    tensor.segment.begin = 0
    refused(save(network([relu()], [tensor])), "'kernel'", "segments")


@pytest.mark.parametrize("name", sorted(set(tensors.BITS_BY_NAME) - {"STRING"}))
@pytest.mark.parametrize("raw", [True, False])
def test_every_data_type_is_measured_as_onnx_reads_it(save: Save, name: str, raw: bool) -> None:
    """What onnx itself can read is let in; for one element less or four more it is not."""
    kind = getattr(TensorProto, name, None)
    if kind is None:
        pytest.skip(f"this onnx has no {name}")
    tensor = from_array(np.zeros(5, helper.tensor_dtype_to_np_dtype(kind)), "w")
    if not raw:
        tensor = _as_list(tensor)
    assert to_array(tensor).shape == (5,)
    read_model(save(network([relu()], [tensor])))
    for length in (1, 9):
        tensor.dims[0] = length
        refused(save(network([relu()], [tensor])), "weight 'w'", "holds")


def test_strings_are_counted_too(save: Save) -> None:
    tensor = helper.make_tensor("w", TensorProto.STRING, [3], [b"a", b"b", b"c"])
    read_model(save(network([relu()], [tensor])))
    tensor.dims[0] = 4
    refused(save(network([relu()], [tensor])), "4 numbers", "holds 3")


def _as_list(tensor: TensorProto) -> TensorProto:
    kind = tensor.data_type
    field = helper.tensor_dtype_to_field(kind)
    entries = {2: 2, 4: 3, 6: 5}.get(tensors.BITS[kind], 5)
    if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        entries = 10
    return lying([5], "w", data_type=kind, **{field: [0] * entries})


# --- weights in other files ----------------------------------------------------------------------


def outside(location: str, dims: tuple[int, ...] = (4, 3, 3, 3), **keys: Any) -> ModelProto:
    tensor = TensorProto(name="kernel", data_type=F, dims=dims, data_location=1)
    for key, value in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=str(value))
    return conv_of(tensor)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A file of weights beside the model, and one that is nobody's business in another folder."""
    values = np.arange(108, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(bytes(8) + values.tobytes() + bytes(8))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(values.tobytes())
    return tmp_path


def test_other_files_are_refused_unless_asked_for(save: Save, beside: Path) -> None:
    refused(save(outside("weights.bin", offset=8)), "'weights.bin'", "external_data=True")
    model = outside("weights.bin")
    model.graph.initializer[0].data_location = 0
    model.graph.initializer[0].raw_data = bytes(432)
    refused(save(model), "'weights.bin'", "external_data=True")


@pytest.mark.parametrize(
    ("location", "keys"),
    [
        ("weights.bin", {"offset": 8}),
        ("weights.bin", {"offset": 8, "length": 432, "checksum": "unused"}),
        ("sub/weights.bin", {}),
    ],
)
def test_other_files_are_read_where_asked_for(
    save: Save, beside: Path, location: str, keys: dict[str, Any]
) -> None:
    model = read_model(save(outside(location, **keys)), external_data=True)
    tensor = model.graph.initializer[0]
    np.testing.assert_array_equal(to_array(tensor).ravel(), np.arange(108, dtype=np.float32))
    assert tensor.data_location == TensorProto.DEFAULT
    assert not tensor.external_data


@pytest.mark.parametrize(
    ("location", "keys", "words"),
    [
        ("../secret.bin", {}, ["'../secret.bin'", "own folder"]),
        ("sub/../../secret.bin", {}, ["own folder"]),
        ("/etc/passwd", {}, ["'/etc/passwd'", "own folder"]),
        ("C:\\secret.bin", {}, ["own folder"]),
        ("..\\secret.bin", {}, ["own folder"]),
        ("", {}, ["own folder"]),
        (".", {}, ["own folder"]),
        ("sub", {}, ["not a plain file"]),
        ("none.bin", {}, ["'none.bin'", "not beside the model"]),
        ("weights.bin/x", {}, ["cannot be read"]),
        ("weights.bin", {"offset": -8}, ["offset", "'-8'"]),
        ("weights.bin", {"offset": "8x"}, ["offset", "'8x'"]),
        ("weights.bin", {"offset": 17}, ["byte 449", "448 bytes"]),
        ("weights.bin", {"offset": 10**17}, ["448 bytes"]),
        ("weights.bin", {"offset": "9" * 5000}, ["offset"]),
        ("weights.bin", {"length": -1}, ["length", "'-1'"]),
        ("weights.bin", {"length": 431}, ["432 bytes", "names 431"]),
        ("weights.bin", {"length": 10**15}, ["names 1,000,000,000,000,000"]),
    ],
)
def test_other_files_that_are_not_the_models(
    save: Save, beside: Path, location: str, keys: dict[str, Any], words: list[str]
) -> None:
    (beside.parent / "secret.bin").write_bytes(bytes(432))
    path = save(outside(location, **keys))
    refused(path, "'kernel'", *words, external_data=True)
    refused(path, "'kernel'", "external_data=True")


def test_links_are_not_followed(save: Save, beside: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.bin").write_bytes(bytes(432))
    (beside / "soft.bin").symlink_to(elsewhere / "secret.bin")
    refused(save(outside("soft.bin")), "'soft.bin'", "symbolic link", external_data=True)
    (beside / "folder").symlink_to(elsewhere)
    refused(save(outside("folder/secret.bin")), "'folder'", "symbolic link", external_data=True)
    os.link(elsewhere / "secret.bin", beside / "hard.bin")
    refused(save(outside("hard.bin")), "'hard.bin'", "hard link", external_data=True)


def test_a_link_slipped_in_after_the_look_is_refused_too(
    save: Save, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (beside.parent / "secret.bin").write_bytes(bytes(432))
    (beside / "soft.bin").symlink_to(beside.parent / "secret.bin")
    monkeypatch.setattr(elsewhere, "_plain_size", lambda *_: 432)
    refused(save(outside("soft.bin")), "'kernel'", "cannot be read", external_data=True)


def test_other_files_count_before_they_are_read(save: Save, beside: Path) -> None:
    model = outside("weights.bin", dims=(2**20, 2**13))
    refused(save(model), "34,359,738,368 bytes", "Limits.external_bytes", external_data=True)


def test_weights_inside_and_outside_at_once(save: Save, beside: Path) -> None:
    model = outside("weights.bin")
    model.graph.initializer[0].float_data.append(1.0)
    refused(save(model), "'kernel'", "in the file and outside", external_data=True)
    model = outside("weights.bin")
    model.graph.initializer[0].external_data.add(key="location", value="sub/weights.bin")
    refused(save(model), "'kernel'", "twice", external_data=True)


def test_an_old_onnx_is_not_trusted_with_other_files(
    save: Save, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "__version__", "1.20.1")
    refused(save(outside("weights.bin", offset=8)), "1.21", "1.20.1", external_data=True)
    monkeypatch.setattr(onnx, "__version__", "1.21.0rc1")
    read_model(save(outside("weights.bin", offset=8)), external_data=True)


# --- memory bombs: a few hundred bytes that ask for terabytes ------------------------------------


def node(kind: str, *inputs: str, output: str = "out", **more: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), [output], name="bomb", **more)


def doubled(times: int) -> ModelProto:
    chain = [
        helper.make_node("Concat", [f"t{i}"] * 2, [f"t{i + 1}"], name="bomb", axis=1)
        for i in range(times)
    ]
    return network([relu("x", "t0"), *chain, relu(f"t{times}")])


BOMBS: dict[str, ModelProto] = {
    "constant": network([node("ConstantOfShape", "s")], [integers("s", MANY, MANY)]),
    "nothing times a lot": network([node("ConstantOfShape", "s")], [integers("s", 0, MANY, MANY)]),
    "expand": network(
        [node("Expand", "one", "s")], [weights((1,), "one"), integers("s", MANY, MANY)]
    ),
    "tile": network([node("Tile", "x", "s")], [integers("s", 1, MANY, MANY, 1)]),
    "tile that overflows to nothing": network(
        [node("Tile", "x", "s")], [integers("s", 1, 1, 2**61, 1)]
    ),
    "range": network(
        [node("Range", "a", "b", "c")], [scalar("a", 0), scalar("b", 2**40), scalar("c", 1)]
    ),
    "range that overflows to nothing": network(
        [node("Range", "a", "b", "c")], [scalar("a", -(2**62)), scalar("b", 2**62), scalar("c", 1)]
    ),
    "range in tiny steps": network(
        [node("Range", "a", "b", "c")],
        [scalar(n, v, np.float32) for n, v in (("a", 0), ("b", 1), ("c", 1e-30))],
    ),
    "range that stands still": network(
        [node("Range", "a", "b", "c")], [scalar("a", 0), scalar("b", 9), scalar("c", 0)]
    ),
    "resize by sizes": network(
        [node("Resize", "x", "", "", "s")], [integers("s", 1, 3, MANY, MANY)]
    ),
    "resize by scales": network(
        [node("Resize", "x", "", "s")], [from_array(np.array([1, 1, 1e5, 1e5], np.float32), "s")]
    ),
    "resize by no number": network(
        [node("Resize", "x", "", "s")],
        [from_array(np.array([1, 1, np.nan, np.inf], np.float32), "s")],
    ),
    "upsample": network(
        [node("Upsample", "x", "s")],
        [from_array(np.array([1, 1, 1e6, 1e6], np.float32), "s")],
        opset=9,
    ),
    "pad": network([node("Pad", "x", "s")], [integers("s", 0, 0, MANY, MANY, 0, 0, 0, 0)]),
    "one-hot": network(
        [node("OneHot", "i", "d", "v")],
        [
            from_array(np.zeros(MANY // 64, np.int64), "i"),
            scalar("d", MANY),
            from_array(np.array([0, 1], np.float32), "v"),
        ],
    ),
    "random": network([node("RandomNormal", shape=[MANY, MANY])]),
    "doubled forty times": doubled(40),
    "outer product": network(
        [node("MatMul", "column", "row")],
        [weights((30000, 1), "column"), weights((1, 30000), "row")],
    ),
    "broadcast": network(
        [node("Add", "column", "row")], [weights((30000, 1), "column"), weights((30000,), "row")]
    ),
    "transposed convolution": network(
        [node("ConvTranspose", "x", "k", strides=[100000, 100000])], [weights((3, 4, 3, 3), "k")]
    ),
    "size worked out from the picture's": network(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Mul", ["shape", "many"], ["s"]),
            node("ConstantOfShape", "s"),
        ],
        [integers("many", MANY)],
    ),
    "size worked out from the picture's pixels": network(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["number"], to=I),
            helper.make_node("Reshape", ["number", "one"], ["s"]),
            node("ConstantOfShape", "s"),
        ],
        [integers("one", 1)],
    ),
    "hidden behind a constant node": network(
        [
            helper.make_node("Constant", [], ["s"], value_ints=[MANY, MANY]),
            node("ConstantOfShape", "s"),
        ]
    ),
    "hidden behind an unknown operator": network(
        [helper.make_node("Erfc", ["x"], ["y"]), node("ConstantOfShape", "s")],
        [integers("s", MANY, MANY)],
    ),
    "axes upon axes": network(
        [
            relu("x", "t0"),
            *(
                helper.make_node("Unsqueeze", [f"t{i}", "zero"], [f"t{i + 1}"], name="bomb")
                for i in range(3000)
            ),
            relu("t3000"),
        ],
        [integers("zero", 0)],
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(save: Save, name: str) -> None:
    refused(save(BOMBS[name]), "'bomb'")


def test_a_bomb_within_the_limit_is_none(save: Save) -> None:
    model = network([node("ConstantOfShape", "s")], [integers("s", 10, 10)])
    read_model(save(model), limits=Limits(elements=192))
    refused(save(model), "(Limits.elements)", limits=Limits(elements=99))
    # An open batch counts as one picture.
    read_model(save(network([relu()])), limits=Limits(elements=192))


@pytest.mark.parametrize(
    "senseless",
    [
        helper.make_node("Gather", ["shape", "far"], ["s"]),
        helper.make_node("Slice", ["shape", "", "far"], ["s"]),
        helper.make_node("Div", ["far", "zero"], ["s"]),
    ],
)
def test_a_size_that_cannot_be_computed_is_unknown(save: Save, senseless: NodeProto) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), senseless, node("ConstantOfShape", "s")]
    refused(save(network(nodes, [integers("far", 99), integers("zero", 0)])), "(")


def test_what_fills_a_tensor_is_no_size(save: Save) -> None:
    """The border of a maximum is of minus infinity, a one-hot row may hold any two numbers."""
    border = helper.make_node("Pad", ["x", "widths", "filling"], ["wide"])
    hot = helper.make_node("OneHot", ["class", "classes", "off_on"], ["hot"])
    again = helper.make_node("Tile", ["off_on", "class"], ["again"])
    wider = helper.make_node("Expand", ["off_on", "shape"], ["out"])
    stored = [integers("widths", *[0, 0, 1, 1] * 2), scalar("filling", -np.inf, np.float32)]
    stored += [integers("class", 2), scalar("classes", 4), integers("off_on", -(10**12), 10**12)]
    stored += [integers("shape", 3, 2)]
    read_model(save(network([border, hot, again, wider], stored)))


def test_volumes_of_any_size_are_not_looked_at_as_if_they_were_pictures(save: Save) -> None:
    """224 cells along three axes, and 32 channels, would be more than the limit."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 4, 1, 2, 3]),
        helper.make_node("Conv", ["first", "kernel"], ["out"]),
    ]
    kernel = weights((32, 1, 1, 1, 1), "kernel")
    read_model(save(network(nodes, [kernel], shape=("N", "D", "H", "W", 1))))
    maps = network(nodes[1:], [weights((5400, 1, 1, 1), "kernel")], shape=("N", 1, "H", "W"))
    maps.graph.node[0].input[0] = "x"
    refused(save(maps), "(Limits.elements)")


def test_a_size_that_is_no_number_is_named(save: Save) -> None:
    refused(save(BOMBS["resize by no number"]), "'bomb' (Resize)", "the size nan")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps this limit")
def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """All of them in one process that may take no more than 500 MB beyond its imports."""
    files = {name: model.SerializeToString() for name, model in BOMBS.items()}
    # Two bytes of a file are one empty node; protobuf alone would make gigabytes of these.
    empty = b"\x0a\x00" * 10_000_000
    length = len(empty)
    size = bytes(
        [length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21]
    )
    files["empty nodes"] = b"\x08\x08\x3a" + size + empty
    files["nested"] = nested(5000)
    files["dims"] = network([relu()], [lying([2**28])]).SerializeToString()
    files["tall text"] = network([relu("x" * 10**7)]).SerializeToString()
    for name, data in files.items():
        (tmp_path / f"{name.replace(' ', '-')}.onnx").write_bytes(data)
    program = f"""
import resource, time
from pathlib import Path
from converters.trust import read_model
from torchviz_cnn.errors import InputError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)
for path in sorted(Path({str(tmp_path)!r}).glob("*.onnx")):
    start = time.process_time()
    try:
        read_model(path)
    except InputError as problem:
        print(path.name, problem)
    assert time.process_time() - start < 2, path
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(said) == len(files)
    assert "Limits.fields" in said["empty-nodes.onnx"]
    # That is also what protobuf's refusal to take more memory would come to.
    assert not any("damaged" in sentence for name, sentence in said.items() if name != "dims.onnx")


# --- mutations -----------------------------------------------------------------------------------

GOOD = good().SerializeToString()


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "set", "delete", "insert", "copy", "cut"]))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "copy":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mutants())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    model = verdict(path, limits=Limits(elements=10**6))
    for tensor in model.graph.initializer if model else ():
        assert to_array(tensor).shape == tuple(tensor.dims)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_file_of_senseless_numbers_is_read_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Well-formed files whose numbers, operators and wires were drawn at random."""
    model = good()
    numbers = st.sampled_from([0, 1, -1, 2, 3, 7, 8, 65, 2**31, 2**62, -(2**63)])
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.sampled_from(list(model.graph.node)))
        what = data.draw(st.sampled_from(["operator", "wire", "attribute", "dims", "values"]))
        if what == "operator":
            chosen.op_type = data.draw(st.sampled_from([*FOLDED, *sizes.SIZED_BY_NUMBERS]))
        elif what == "wire":
            names = [tensor.name for tensor in model.graph.initializer] + ["x", "", "pool"]
            chosen.input[data.draw(st.integers(0, len(chosen.input) - 1))] = data.draw(
                st.sampled_from(names)
            )
        elif what == "attribute":
            for attribute in chosen.attribute:
                attribute.i = data.draw(numbers)
                for place in range(len(attribute.ints)):
                    attribute.ints[place] = data.draw(numbers)
        elif what == "dims":
            tensor = data.draw(st.sampled_from(list(model.graph.initializer)))
            tensor.dims[0] = data.draw(numbers)
        else:
            tensor = data.draw(st.sampled_from(list(model.graph.initializer)[3:]))
            tensor.raw_data = np.array([data.draw(numbers)], np.int64).tobytes()
    path = tmp_path / "senseless.onnx"
    path.write_bytes(model.SerializeToString())
    verdict(path, limits=Limits(elements=10**6))


def test_an_unforeseen_error_is_not_hidden(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(trust, "check_sizes", broken)
    with pytest.raises(RuntimeError, match="unforeseen"):
        read_model(save(good()))


def test_borders_narrower_than_nothing_are_keras_exporters(save: Save) -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "kernel"], ["out"], pads=[0, 0, -1, -1])]
    path = save(network(nodes, [weights((3, 2, 2, 2), "kernel")]))
    refused(path, "'pads'", "[0, 0, -1, -1]", "narrower than 0", "export-keras")
