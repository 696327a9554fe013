"""From a traced model to the file's: weights put in, constants worked out, names made regular."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.keras_trace import Call, Trace, plain
from torchviz_cnn.errors import InputError

Array = NDArray[Any]

_KERNELS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def scope_of(call: Call) -> str:
    """Where the names of a call's operators begin: each part numbered by its call.

    >>> scope_of(Call(None, ("vggish", "conv2d_1"), (1, 2)))
    'network_1/vggish_1/conv2d_1_2'
    """
    parts = [f"{name}_{number}" for name, number in zip(call.path, call.numbers, strict=True)]
    return "/".join(["network_1", *parts])


# ---------------------------------------------------------------------------- operators


def check_operators(trace: Trace) -> None:
    """Refuse what the exporter could not translate.

    Raises:
        InputError: names the layer.
    """
    owners = trace.owners()
    opset = next(o.version for o in trace.model.opset_import if o.domain in ("", "ai.onnx"))
    for node in trace.model.graph.node:
        known = node.domain in ("", "ai.onnx") and onnx.defs.has(
            node.op_type, max_inclusive_version=opset
        )
        if not known:
            call = owner_of(node, owners)
            where = f"the layer {'.'.join(call.path)!r}" if call and call.path else "the model"
            raise InputError(
                f"{where} uses {node.op_type}, which the exporter cannot write as ONNX {opset}; "
                "replace that layer by others"
            )


def owner_of(node: onnx.NodeProto, owners: Mapping[str, Call]) -> Call | None:
    """Whose call a node belongs to; ``None`` for the exporter's own."""
    for name in (node.name, *node.output):
        stem = plain(name)
        while stem not in owners and plain(name) != name and "_" in stem.rsplit("/", 1)[-1]:
            stem = stem.rsplit("_", 1)[0]  # Mean_Squeeze__12 stands behind Mean
        if stem in owners:
            return owners[stem]
    return None


# ---------------------------------------------------------------------------- weights


def put_in_weights(trace: Trace) -> None:
    """The weights, and all that follows from weights alone, become constants of the graph."""
    graph = trace.model.graph
    fixed = {tensor.name for tensor in graph.initializer} | set(trace.weights)
    known = set(fixed)
    work: list[onnx.NodeProto] = []
    rest: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.input and all(name in known or not name for name in node.input):
            work.append(node)
            known.update(node.output)
        else:
            rest.append(node)
    wanted = {name for node in rest for name in node.input} | {v.name for v in graph.output}
    values = _worked_out(trace, work, wanted)
    given = {tensor.name: tensor for tensor in graph.initializer}
    kept = [onnx.TensorProto.FromString(given[n].SerializeToString()) for n in given if n in wanted]
    kept_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rest]
    inputs = [value for value in graph.input if value.name in trace.inputs]
    inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    for parts in (graph.node, graph.input, graph.initializer, graph.value_info):
        del parts[:]
    graph.node.extend(kept_nodes)
    graph.input.extend(inputs)
    graph.initializer.extend(kept)
    for name in sorted(values):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values.pop(name)), name))


def _worked_out(
    trace: Trace, work: list[onnx.NodeProto], wanted: set[str]
) -> dict[str, Array]:
    """What the weights are, and what these operators make of them."""
    used = wanted | {name for node in work for name in node.input}
    values = {name: read() for name, read in trace.weights.items() if name in used}
    found = {name: value for name, value in values.items() if name in wanted}
    asked = [name for node in work for name in node.output if name in wanted]
    if asked:
        graph = helper.make_graph(
            work,
            "constants",
            [helper.make_empty_tensor_value_info(name) for name in values],
            [helper.make_empty_tensor_value_info(name) for name in asked],
            list(trace.model.graph.initializer),
        )
        small = helper.make_model(graph, opset_imports=trace.model.opset_import)
        results: Any = ReferenceEvaluator(small).run(asked, values)
        found |= dict(zip(asked, results, strict=True))
    return found


def drop_unused(model: onnx.ModelProto) -> None:
    """Operators and constants that no output depends on."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if wanted.intersection(node.output):
            wanted.update(node.input)
        else:
            del graph.node[index]
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in wanted:
            del graph.initializer[index]


# ---------------------------------------------------------------------------- names


def make_names_regular(trace: Trace) -> dict[str, Call]:
    """Every operator, tensor and weight is called after its layer, in the same way throughout.

    Returns:
        The names of operators -> the calls they belong to.
    """
    graph = trace.model.graph
    owners = trace.owners()
    taken: Counter[str] = Counter()
    renamed: dict[str, str] = {name: name for name in trace.inputs}
    found: dict[str, Call] = {}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        call = owner_of(node, owners)
        helps = plain(node.name) != node.name or call is None
        stem = f"{scope_of(call) if call else 'network_1'}/{node.op_type}"
        node.name = _free(stem, taken, helper=helps)
        if call is not None and not helps:
            found[node.name] = call
        for index, name in enumerate(node.output):
            renamed[name] = f"{node.name}:{index}" if name else ""
        for index, name in enumerate(node.input):
            if name in constants and name not in renamed:
                stem = f"{node.name.rsplit('/', 1)[0]}/{_role(node, index)}"
                renamed[name] = _free(stem, taken, helper=False)
    _rename(graph, renamed)
    return found


def _role(node: onnx.NodeProto, index: int) -> str:
    if node.op_type in _KERNELS:
        return {1: "kernel", 2: "bias"}.get(index, "constant")
    return "constant"


def _free(stem: str, taken: Counter[str], *, helper: bool) -> str:
    """A name of its own; two underscores and a number mark what the exporter added for itself."""
    taken[stem] += 1
    number = taken[stem]
    if helper:
        return f"{stem}__{number}"
    return stem if number == 1 else f"{stem}_{number}"


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)
    values: Iterable[Any]
    for values in (graph.initializer, graph.input, graph.output, graph.value_info):
        for value in values:
            value.name = names.get(value.name, value.name)


# ---------------------------------------------------------------------------- batch norms


def fuse_batch_norms(model: onnx.ModelProto, calls: Mapping[str, Call]) -> dict[Call, Call]:
    """Batch norms behind convolutions become part of them, as in Keras' own export.

    The convolution's node keeps its name, and its output gets the batch norm's.

    Returns:
        The calls of convolutions -> those of the batch norms they have taken in.
    """
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fused: dict[Call, Call] = {}
    gone: set[str] = set()
    final = {value.name for value in graph.output}
    for conv in graph.node:
        pair = _batch_norm_after(conv, readers, constants, calls, final)
        if pair is not None:
            mul, add = pair
            _fuse(graph, conv, mul, add, constants)
            fused[calls[conv.name]] = calls[add.name]
            gone.update((mul.name, add.name))
    for index in reversed(range(len(graph.node))):
        if graph.node[index].name in gone:
            del graph.node[index]
    drop_unused(model)
    return fused


def _batch_norm_after(
    conv: onnx.NodeProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
    calls: Mapping[str, Call],
    final: set[str],
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The factor and the summand of a batch norm that alone reads a convolution."""
    if conv.op_type != "Conv" or len(readers[conv.input[1]]) > 1:
        return None
    chain = [conv]
    for op in ("Mul", "Add"):
        before = chain[-1].output[0]
        users = readers.get(before, [])
        if len(users) != 1 or users[0].op_type != op or before in final:
            return None
        if not _per_channel(users[0], before, constants, conv):
            return None
        chain.append(users[0])
    _, mul, add = chain
    norm = calls.get(add.name)
    whole = norm is not None and calls.get(mul.name) is norm and calls.get(conv.name) is not norm
    if not whole or conv.name not in calls or type(norm.layer).__name__ != "BatchNormalization":  # type: ignore[union-attr]
        return None
    return mul, add


def _per_channel(
    node: onnx.NodeProto,
    before: str,
    constants: Mapping[str, onnx.TensorProto],
    conv: onnx.NodeProto,
) -> bool:
    other = next(name for name in node.input if name != before)
    if other not in constants:
        return False
    channels, rank = constants[conv.input[1]].dims[0], len(constants[conv.input[1]].dims)
    return list(constants[other].dims)[-rank + 1 :] == [channels, *[1] * (rank - 2)]


def _fuse(
    graph: onnx.GraphProto,
    conv: onnx.NodeProto,
    mul: onnx.NodeProto,
    add: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
) -> None:
    def number(node: onnx.NodeProto) -> Array:
        name = next(n for n in node.input if n in constants)
        return numpy_helper.to_array(constants[name]).astype(np.float64).reshape(-1)

    kernel = numpy_helper.to_array(constants[conv.input[1]])
    factor, summand = number(mul), number(add)
    wide = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    bias = summand
    if len(conv.input) > 2:
        bias = bias + numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64) * factor
    stem = conv.name.rsplit("/", 1)[0]
    number_of = conv.name.rsplit("/", 1)[1]
    names = f"{stem}/{number_of}.kernel", f"{stem}/{number_of}.bias"
    for name, array in zip(names, (wide, bias), strict=True):
        graph.initializer.append(numpy_helper.from_array(array.astype(kernel.dtype), name))
    del conv.input[1:]
    conv.input.extend(names)
    conv.output[0] = add.output[0]

