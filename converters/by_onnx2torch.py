"""Operators that onnx2torch has good modules for, built by it; those in the file stay inside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, defs, helper, numpy_helper
from onnx2torch.node_converters import get_converter
from onnx2torch.onnx_graph import OnnxGraph
from torch import nn

from converters.graph import Graph, Node
from converters.modules.arithmetic import WithConstants
from converters.weights import check_trainable, tensor
from torchviz_cnn.errors import InputError

Built = tuple[nn.Module, list[str]]

# onnx2torch knows no later version of most operators.
NEWEST_OPSET = 17


EXPORT_AGAIN = (
    "export the Keras model with torchviz-cnn export-keras (converters.export_keras), or with Keras' "
    "torch back end (KERAS_BACKEND=torch)"
)


class Unsupported(InputError):  # noqa: N818 - it is a finding about a file
    """An operator, or a setting of one, that there is no module for.

    Args:
        fault: which, as a sentence begins; what may help depends on who wrote the file.
    """

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}; leave that layer out, or {EXPORT_AGAIN}")
        self.fault = fault

    def with_advice(self, style: str) -> InputError:
        """The same of a file that names its layers in this style: what to do about it first."""
        if style == "nameless":
            return self
        if style == "exact":  # of ours: export_keras has done what it can
            again = "replace that layer by others, or leave it out, and export again"
            return InputError(f"{self.fault}; {again}")
        return InputError(f"{self.fault}; {EXPORT_AGAIN}, or leave that layer out")


def unsupported(node: Node, why: str = "") -> Unsupported:
    """What to say of an operator that has no module."""
    layer = f" of the layer {'.'.join(node.owner.path)!r}" if node.owner and node.owner.path else ""
    return Unsupported(f"the operator {node.op}{layer} is not supported{f' {why}' if why else ''}")


_WITH_WEIGHTS = frozenset(
    ["BatchNormalization", "Conv", "ConvTranspose", "InstanceNormalization", "LayerNormalization"]
)


def by_onnx2torch(graph: Graph, node: Node) -> Built:
    """The module for an operator, and the tensors it must be given.

    Raises:
        InputError: for an operator, or a setting of one, that onnx2torch does not know.
    """
    for name in node.inputs:
        if node.op in _WITH_WEIGHTS and name in graph.constants:
            check_trainable(node, graph.constants[name])
    try:
        converter = _converter(graph, node)
        module, mapping = converter(*_as_onnx(graph, node))
    except (NotImplementedError, KeyError, ValueError) as error:
        # That an operator is not known is told without naming the library it is not known to.
        known = str(error) and "OperationDescription" not in str(error)
        raise unsupported(node, f"({error})" if known else "") from error
    return with_constants(graph, node, module, [name for name in mapping.inputs if name])


def _converter(graph: Graph, node: Node) -> Any:
    """What reads an operator; of a later version than is known, what reads the last known one.

    Later versions take more kinds of numbers; what they can be set to besides is not known.
    """
    version = _known_version(graph, node)
    try:
        return get_converter(node.op, version)
    except NotImplementedError:
        if version <= NEWEST_OPSET or not defs.has(node.op, max_inclusive_version=NEWEST_OPSET):
            raise
        known = defs.get_schema(node.op, NEWEST_OPSET).attributes
        if node.attributes.keys() - known.keys():
            raise
        return get_converter(node.op, NEWEST_OPSET)


def _known_version(graph: Graph, node: Node) -> int:
    """The version of the standard to read an operator by: the latest that onnx2torch knows it in.

    What an average pool of version 19 has more than one before it is a dilation.
    """
    plain = set(node.attributes.get("dilations", [1])) == {1}
    return min(graph.opset, 18) if node.op == "AveragePool" and plain else graph.opset


def with_constants(graph: Graph, node: Node, module: nn.Module, inputs: list[str]) -> Built:
    """The module with those operands that are fixed in the file inside it."""
    constants = {
        i: tensor(graph.constants[n]) for i, n in enumerate(inputs) if n in graph.constants
    }
    if constants:
        learnt = [
            i
            for i, value in constants.items()
            if value.is_floating_point() and _is_learnt(graph, node, i, inputs[i])
        ]
        module = WithConstants(module, constants, learnt)
    return module, [name for name in inputs if name not in graph.constants]


def _is_learnt(graph: Graph, node: Node, place: int, name: str) -> bool:
    """Whether an operand is a weight of a Keras layer; a batch norm's statistics are none."""
    is_weight = name in graph.learnt or name.split("//")[0].endswith("ReadVariableOp:0")
    return is_weight and not (node.op == "BatchNormalization" and place > 2)


def _as_onnx(graph: Graph, node: Node) -> tuple[Any, OnnxGraph]:
    """The node alone, in the form onnx2torch reads."""
    proto = helper.make_node(node.op, node.inputs, node.outputs, name="node")
    for name, value in node.attributes.items():
        plain = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        proto.attribute.append(helper.make_attribute(name, plain))
    infos, constants, known = [], [], []
    for name in node.inputs:
        if name in graph.constants:
            constants.append(numpy_helper.from_array(graph.constants[name], name))
            own = list(graph.constants[name].shape)
            known.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, own))
        elif name:
            shape = graph.shapes.get(name)
            dims = (
                None
                if shape is None
                else [n if n is not None else f"d{i}" for i, n in enumerate(shape)]
            )
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.outputs
    ]
    alone = OnnxGraph(
        helper.make_graph([proto], "one", infos, outputs, constants, value_info=known)
    )
    return next(iter(alone.nodes.values())), alone
