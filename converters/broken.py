"""Exports that Keras and tf2onnx write without complaint, and that no program can run.

Each is told with the layer, the cause and the way to a good file.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

import onnx
from onnx import numpy_helper

from converters.by_onnx2torch import EXPORT_AGAIN
from converters.graph import Graph
from converters.names import Claim, clean
from converters.trust.values import constant_of
from torchviz_cnn.errors import InputError

_AUGMENTATION = re.compile(
    r"(Stateless|Stateful)?(Random\w+|Truncated\w+|Multinomial)(V\d)?|ImageProjectiveTransform(V\d)?"
    r"|AdjustContrastv2|AdjustHue|AdjustSaturation|RandomUniform(Like)?|RandomNormal(Like)?|Bernoulli"
)
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_RECURRENT = ("LSTM", "GRU", "RNN", "Loop", "Scan", "If")
_QUANTISED = frozenset(
    [
        *("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "QuantizeLinear"),
    ]
)


def refuse_broken(model: onnx.ModelProto, claims: Sequence[Claim], opset: int) -> None:
    """Raise for what is known to be broken in an export.

    Raises:
        InputError: one sentence that names the layer, the cause and how to export again.
    """
    off = _switched_off(model)
    for node, claim in zip(model.graph.node, claims, strict=True):
        where = _where(node, claim)
        if sentence := _refusal(node, opset):
            raise InputError(f"{where} {sentence}")
        if _is_in_training(node, off):
            raise InputError(
                f"{where} works as while training ({node.op_type}): what it puts out depends on "
                "chance, or on the other pictures; export the network again for inference "
                "(training=False)"
            )
    _refuse_lost_constants(model, claims)


def _where(node: onnx.NodeProto, claim: Claim) -> str:
    owner = claim.owner or claim.near
    if owner is not None:
        return f"the layer {'.'.join(owner.path)!r}"
    return f"the node {clean(node.name or node.output[0])!r}"


def _refusal(node: onnx.NodeProto, opset: int) -> str | None:
    op = node.op_type
    if _AUGMENTATION.fullmatch(op):
        return (
            f"draws random numbers ({op}): it augments pictures while training and was exported in "
            "training mode; export the Keras model with torchviz-cnn export-keras, which leaves it "
            "out, or build the network anew without such layers, give it the trained weights and "
            "export that"
        )
    if op in _CALLS:
        return (
            f"was left as a call into TensorFlow ({op}), as happens to a grouped convolution; "
            + EXPORT_AGAIN
        )
    if op in _QUANTISED:
        return (
            f"is quantised ({op}), and a network of whole numbers is not imported; export it, or "
            "take the file, from before it was quantised"
        )
    if op in _RECURRENT:
        return f"is recurrent or branches ({op}), which is not imported; only plain networks are"
    if node.domain in ("", "ai.onnx") and not onnx.defs.has(op, max_inclusive_version=opset):
        return (
            f"uses {op}, which is no operator of ONNX {opset}: the exporter could not translate "
            f"it; replace that layer, or {EXPORT_AGAIN}"
        )
    return None


def _is_in_training(node: onnx.NodeProto, off: Container[str]) -> bool:
    """Whether a node drops numbers, or normalises by those of the batch that it is given.

    Before version 14 a batch norm does that where it is asked for what it has measured.
    """
    if node.op_type == "Dropout":
        return len(node.input) > 2 and bool(node.input[2]) and node.input[2] not in off
    if node.op_type != "BatchNormalization":
        return False
    mode = next((a.i for a in node.attribute if a.name == "training_mode"), 0)
    return bool(mode) or any(node.output[1:])


def _switched_off(model: onnx.ModelProto) -> set[str]:
    """Constants that are ``False``."""
    stored = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        tensor = constant_of(node) if node.op_type == "Constant" else None
        if tensor is not None:
            stored.append((node.output[0], tensor))
    return {
        name
        for name, tensor in stored
        if tensor.data_type == onnx.TensorProto.BOOL and not numpy_helper.to_array(tensor).any()
    }


def _refuse_lost_constants(model: onnx.ModelProto, claims: Sequence[Claim]) -> None:
    """``Normalization(mean=…)``: its numbers have become inputs, and their values are lost."""
    given = {tensor.name for tensor in model.graph.initializer}
    lost = [v.name for v in model.graph.input if v.name not in given and "/" in clean(v.name)]
    used = {name: claim for node, claim in zip(model.graph.node, claims, strict=True)
            for name in node.input if name in lost}  # fmt: skip
    for name, claim in used.items():
        owner = claim.owner or claim.near
        where = f"the layer {'.'.join(owner.path)!r}" if owner else f"the input {name!r}"
        raise InputError(
            f"{where} lost its numbers in the export: {name!r} has become an input of the network; "
            "replace the Normalization layer by Rescaling(scale=1 / std, offset=-mean / std) and "
            "export again"
        )


def refuse_unbuildable(graph: Graph) -> None:
    """Raise for what is valid ONNX and yet no network of layers.

    Raises:
        InputError: when an output does not depend on what the network is given, or a convolution
            has no fixed kernel.
    """
    made = {name for node in graph.nodes for name in node.outputs} | graph.inputs.keys()
    for name in graph.outputs:
        if name not in made or not graph.inputs:
            raise InputError(f"the output {name!r} of this file does not depend on any input")
    for node in graph.nodes:
        if node.op not in ("Conv", "ConvTranspose"):
            continue
        weights = [graph.static(node, position) for position in range(1, len(node.inputs))]
        ranks = [None if weight is None else weight.ndim for weight in weights]
        if not ranks or ranks[0] not in (3, 4, 5) or any(rank != 1 for rank in ranks[1:]):
            raise InputError(
                f"the convolution {clean(node.name or node.output)!r} has no fixed kernel and bias "
                "of the right shape; only networks with stored weights are imported"
            )
