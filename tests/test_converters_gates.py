"""Files without names: ``x * sigmoid(x)`` is one layer or two, as Keras has it.

What each layer puts out is compared with the file's own tensor.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchviz_cnn as tvc
from converters import load_onnx
from converters.calls import with_weights
from converters.keras_models import KerasLayer, KerasModel, Weight
from tests.onnx_files import evaluate, node, save
from tests.test_matching import Described

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
SECOND = np.random.default_rng(1).normal(size=(1, 1, 4, 2)).astype(np.float32)
X = np.random.default_rng(2).normal(size=(2, 6, 5, 3)).astype(np.float32)
CONV = ("Conv2D", "conv", ["img"], {"activation": "linear", "use_bias": False})
LAST = ("Conv2D", "last", ["swish"], {"activation": "linear", "use_bias": False})
GATE = ("Activation", "gate", ["conv"], {"activation": "sigmoid"})
PRODUCT = ("Multiply", "product", ["conv", "gate"], {})
SWISH = ("Activation", "swish", ["conv"], {"activation": "swish"})

# Name -> operators behind a first convolution that puts out ``c``; Keras' layers; the tensor each
# of these puts out. ``M`` is of a layer of the user's own, which is not told.
CASES: dict[str, tuple[list[tuple[str, str, str]], list[Any], dict[str, str]]] = {
    "two layers": (
        [("Sigmoid", "c", "g"), ("Mul", "c g", "end")],
        [CONV, GATE, PRODUCT],
        {"conv": "c", "gate": "g", "product": "end"},
    ),
    "one layer": (
        [("Sigmoid", "c", "g"), ("Mul", "g c", "end")],
        [CONV, SWISH],
        {"conv": "c", "swish": "end"},
    ),
    "of the convolution": (
        [("Sigmoid", "c", "g"), ("Mul", "c g", "end")],
        [(*CONV[:3], {"activation": "silu", "use_bias": False})],
        {"conv": "end"},
    ),
    "both, one after the other": (
        [
            *(("Sigmoid", "c", "g"), ("Mul", "c g", "p")),
            *(("Sigmoid", "p", "s"), ("Mul", "p s", "end")),
        ],
        [CONV, GATE, PRODUCT, ("Activation", "swish", ["product"], {"activation": "silu"})],
        {"conv": "c", "gate": "g", "product": "p", "swish": "end"},
    ),
    "one layer and a product of its own": (
        [("Sigmoid", "c", "g"), ("Mul", "c g", "s"), ("Mul", "s c", "end")],
        [CONV, SWISH, ("Multiply", "product", ["swish", "conv"], {})],
        {"conv": "c", "swish": "s", "product": "end"},
    ),
    "both, side by side": (
        [
            *(("Sigmoid", "c", "g"), ("Sigmoid", "c", "h")),
            *(("Mul", "c h", "s"), ("Add", "g s", "end")),
        ],
        [CONV, GATE, SWISH, ("Add", "sum", ["gate", "swish"], {})],
        {"conv": "c", "gate": "g", "swish": "s", "sum": "end"},
    ),
    "one layer that is gone past": (
        [("Sigmoid", "c", "g"), ("Mul", "c g", "s"), ("Add", "c s", "end")],
        [CONV, SWISH, ("Add", "sum", ["conv", "swish"], {})],
        {"conv": "c", "swish": "s", "sum": "end"},
    ),
    "told from behind": (
        [
            *(("MatMul", "c square", "M"), ("Sigmoid", "M", "g")),
            *(("Mul", "g M", "s"), ("Conv", "s k1", "end")),
        ],
        [CONV, ("Mine", "mine", ["conv"], {}), (*SWISH[:2], ["mine"], SWISH[3]), LAST],
        {"conv": "c", "swish": "s", "last": "end"},
    ),
}


def described(layers: list[Any]) -> Described:
    """The description of a Keras model of these layers."""
    given = {"class_name": "InputLayer", "name": "img", "config": {}, "inbound_nodes": []}
    config = {
        "name": "net",
        "layers": [given]
        + [
            {
                "class_name": kind,
                "name": name,
                "config": {"name": name, **more},
                "inbound_nodes": [[[each, 0, 0, {}] for each in sources]],
            }
            for kind, name, sources, more in layers
        ],
        "input_layers": [["img", 0, 0]],
        "output_layers": [[layers[-1][1], 0, 0]],
    }
    content = {
        "description": np.array(json.dumps({"class_name": "Functional", "config": config})),
        "weight:conv:0": KERNEL,
    }
    if any(name == "last" for _, name, *_ in layers):
        content["weight:last:0"] = SECOND
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    buffer.seek(0)
    return Described(np.load(buffer))


def nameless(path: Path, operators: list[tuple[str, str, str]]) -> Path:
    nodes = [
        node("Transpose", "img", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t k0", "c"),
        *(node(op, inputs, output) for op, inputs, output in operators),
        node("Transpose", "end", "out", perm=[0, 2, 3, 1]),
    ]
    constants = {"k0": KERNEL.transpose(3, 2, 0, 1), "k1": SECOND.transpose(3, 2, 0, 1)}
    constants["square"] = np.random.default_rng(3).normal(size=(1, 1, 3, 3))
    used = {name for each in nodes for name in each.input}
    kept = {name: array for name, array in constants.items() if name in used}
    return save(path, nodes, kept, {"img": ["N", 6, 5, 3]}, ["out"], producer="pytorch")


def check_each(path: Path, network: Any, tensors: dict[str, str]) -> None:
    found = tvc.activations(network, torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), [*tensors])
    wanted = evaluate(path, {"img": X}, [*tensors.values()])
    for (name, maps), array in zip(found.items(), wanted, strict=True):
        assert maps.shape == array.shape, name
        assert np.abs(maps.numpy() - array).max() <= 1e-5 * np.abs(array).max(), name


@pytest.mark.parametrize("case", CASES)
def test_a_sigmoid_and_a_product_are_as_many_layers_as_keras_has(tmp_path: Path, case: str) -> None:
    operators, layers, tensors = CASES[case]
    path = nameless(tmp_path / "n.onnx", operators)
    network = load_onnx(path, keras=described(layers))
    check_each(path, network, tensors)
    made = [record.name for record in network.source.layers if record.module]
    if case != "told from behind":
        assert made == ["img", *tensors]
        assert not any("beyond doubt" in note for note in network.source.notes)
    if "swish" in tensors:
        assert isinstance(network.swish, torch.nn.SiLU)


@pytest.mark.parametrize(
    "case", ["two layers", "one layer", "of the convolution", "one layer and a product of its own"]
)
def test_so_they_are_where_only_the_order_is_known(tmp_path: Path, case: str) -> None:
    operators, layers, tensors = CASES[case]
    path = nameless(tmp_path / "n.onnx", operators)
    network = load_onnx(path, layer_names={name: kind for kind, name, *_ in layers})
    check_each(path, network, tensors)
    assert [record.name for record in network.source.layers] == [*tensors]


@pytest.mark.parametrize("kind", ["sigmoid", "silu"])
def test_two_alike_on_one_tensor_are_not_guessed(tmp_path: Path, kind: str) -> None:
    """Nor is what joins them taken for a part of either."""
    halves = [("Sigmoid", "c", "g"), ("Sigmoid", "c", "h")]
    if kind == "silu":
        halves += [("Mul", "c g", "a"), ("Mul", "c h", "b")]
    path = nameless(
        tmp_path / "n.onnx", [*halves, ("Add", "a b" if kind == "silu" else "g h", "end")]
    )
    layers = [
        CONV,
        ("Activation", "left", ["conv"], {"activation": kind}),
        ("Activation", "right", ["conv"], {"activation": kind}),
        ("Add", "sum", ["left", "right"], {}),
    ]
    network = load_onnx(path, keras=described(layers))
    check_each(path, network, {"conv": "c"})
    assert any("beyond doubt: 3 (left, right, sum)" in note for note in network.source.notes)


def test_without_a_description_they_are_one(tmp_path: Path) -> None:
    path = nameless(tmp_path / "n.onnx", CASES["two layers"][0])
    assert [record.name for record in load_onnx(path).source.layers] == ["conv_1", "silu_1"]


def test_layers_with_weights_come_in_the_order_in_which_keras_has_them() -> None:
    """Not in one that changes from run to run, in which a note would list them."""
    random = np.random.default_rng(0)
    names = [f"conv_{number}" for number in random.permutation(30)]
    weights = {(name,): [Weight((3, 3, 1, 1), lambda: KERNEL)] for name in names}
    keras = KerasModel("a file", KerasLayer("net", "", {}), weights, described=False)
    assert [path for _, path, _ in with_weights(keras.model, keras, ())] == [*weights]
