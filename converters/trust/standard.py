"""The operators that the standard knows, in a model's version of it."""

from __future__ import annotations

from functools import lru_cache

import onnx
from onnx import ModelProto, NodeProto, TensorProto, defs
from onnx.helper import make_node

from torchviz_cnn.errors import InputError

STANDARD_DOMAINS = ("", "ai.onnx")


def opset(model: ModelProto) -> int:
    """The version of the standard operators that a model is written in.

    Raises:
        InputError: when it names none, two, or one that does not exist.

    >>> opset(onnx.helper.make_model(onnx.GraphProto(), opset_imports=[onnx.helper.make_opsetid("", 15)]))
    15
    """
    found = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if len(found) != 1:
        raise InputError(
            f"it names {len(found) or 'no'} versions of the standard operators (its opset) where "
            "exactly one is needed; export it again"
        )
    newest = defs.onnx_opset_version()
    if not 1 <= found[0] <= newest:
        raise InputError(
            f"its opset is {found[0]}, and onnx {onnx.__version__} knows 1 to {newest}; "
            "export it with one of these, 15 for example"
        )
    return found[0]


def unknown_operators(model: ModelProto) -> list[NodeProto]:
    """The nodes whose operator is not in the model's opset, or was withdrawn before it.

    >>> erfc = onnx.helper.make_node("Erfc", ["x"], ["y"])
    >>> graph = onnx.GraphProto(node=[erfc])
    >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    >>> [node.op_type for node in unknown_operators(model)]
    ['Erfc']
    """
    version = opset(model)
    return [node for node in model.graph.node if schema_of(node.op_type, version) is None]


# The names come from files, so that there may be any number of them.
@lru_cache(1024)
def schema_of(op_type: str, version: int) -> defs.OpSchema | None:
    try:
        schema = defs.get_schema(op_type, version, "")
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def spell_out(model: ModelProto) -> None:
    """Write ``Erfc``, which is no operator of ONNX, as ``1 − Erf``: the same by definition.

    TensorFlow's exporter leaves it in every file with an exact GELU, and means nothing else by it.
    """
    nodes = list(model.graph.node)
    if not any(_is_erfc(node) for node in nodes):
        return
    taken = {name for node in nodes for name in (*node.input, *node.output)}
    rewritten = []
    for node in nodes:
        if not _is_erfc(node):
            rewritten.append(NodeProto.FromString(node.SerializeToString()))
            continue
        inner, one = (_free(f"{node.output[0]}//{what}", taken) for what in ("erf", "one"))
        value = TensorProto(data_type=TensorProto.FLOAT, float_data=[1.0])
        rewritten += [
            make_node("Constant", [], [one], f"{node.name}_one", value=value),
            make_node("Erf", [node.input[0]], [inner], f"{node.name}_erf"),
            make_node("Sub", [one, inner], [node.output[0]], node.name),
        ]
    del model.graph.node[:]
    model.graph.node.extend(rewritten)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "/"
    taken.add(name)
    return name


def _is_erfc(node: NodeProto) -> bool:
    plain = len(node.input) == len(node.output) == 1 and not node.attribute
    return node.op_type == "Erfc" and plain and bool(node.input[0] and node.output[0])
