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
        name = name.split("//")[0]  # part of an operator that ONNX does not have
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
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(values.pop(name)), name)
        )


def _worked_out(trace: Trace, work: list[onnx.NodeProto], wanted: set[str]) -> dict[str, Array]:
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
    at_work = {owner_of(node, owners) for node in graph.node if plain(node.name) == node.name}
    for node in graph.node:
        call = owner_of(node, owners)
        # An operator that ONNX does not have, a roll for one, is written by helpers alone.
        helps = plain(node.name) != node.name and (call in at_work or node.op_type == "Transpose")
        helps = helps or call is None
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


# ---------------------------------------------------------------------------- convolutions


def merge_biases(model: onnx.ModelProto, calls: Mapping[str, Call]) -> None:
    """A convolution and the sum of the same layer behind it become one operator."""
    _Merger(model, calls).merge_biases()
    drop_unused(model)


def merge_batch_norms(model: onnx.ModelProto, calls: Mapping[str, Call]) -> dict[Call, Call]:
    """Batch norms behind convolutions become part of them, as in Keras' own export.

    The convolution's operator keeps its name, and its output gets the batch norm's.

    Args:
        model: after :func:`make_names_regular`, changed in place.
        calls: the calls that operators belong to, by name.

    Returns:
        The calls of convolutions -> those of the batch norms they have taken in.
    """
    merged = _Merger(model, calls).merge_batch_norms()
    drop_unused(model)
    return merged


class _Merger:
    """Puts what comes after convolutions into them; what they stood for is left without a use."""

    def __init__(self, model: onnx.ModelProto, calls: Mapping[str, Call]) -> None:
        self.model = model
        self.calls = calls
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.final = {value.name for value in model.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def merge_biases(self) -> None:
        for conv in self._convolutions("Conv", "ConvTranspose"):
            add = self._next(conv, "Add", conv)
            if add is None or len(conv.input) > 2 or self._call(add) is not self._call(conv):
                continue
            name = self._fresh(f"{scope_of(self.calls[conv.name])}/bias")
            self._put(conv, [conv.input[1], name], {name: self._number(add)}, add)

    def merge_batch_norms(self) -> dict[Call, Call]:
        merged: dict[Call, Call] = {}
        for conv in self._convolutions("Conv"):
            whole = self._whole_norm(conv)
            if whole is not None:
                norm = self._call(whole)
                if norm is not None:
                    self._scale(conv, *self._affine(whole), whole)
                    merged[self.calls[conv.name]] = norm
                continue
            mul = self._next(conv, "Mul", conv)
            add = None if mul is None else self._next(mul, "Add", conv)
            norm = None if add is None else self._call(add)
            if mul is None or add is None or norm is None or self._call(mul) is not norm:
                continue
            if type(norm.layer).__name__ != "BatchNormalization" or len(norm.path) == 0:
                continue
            self._scale(conv, self._number(mul), self._number(add), add)
            merged[self.calls[conv.name]] = norm
        return merged

    def _whole_norm(self, conv: onnx.NodeProto) -> onnx.NodeProto | None:
        """The batch norm of one operator that alone reads a convolution, as tf_keras has it."""
        before = conv.output[0]
        users = self.readers.get(before, [])
        if before in self.final or len(users) != 1 or users[0].op_type != "BatchNormalization":
            return None
        norm = users[0]
        fixed = norm.input[0] == before and all(n in self.constants for n in norm.input[1:5])
        return norm if fixed and not any(norm.output[1:]) else None

    def _affine(self, norm: onnx.NodeProto) -> tuple[Array, Array]:
        """Factor and summand for each channel."""
        numbers = [numpy_helper.to_array(self.constants[n]) for n in norm.input[1:5]]
        gamma, beta, mean, variance = (each.astype(np.float64) for each in numbers)
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        return factor, beta - mean * factor

    def _convolutions(self, *kinds: str) -> list[onnx.NodeProto]:
        """Those whose weights are theirs alone: a layer called twice stays as it is."""
        return [
            node
            for node in self.model.graph.node
            if node.op_type in kinds
            and node.name in self.calls
            and node.input[1] in self.constants
            and len(self.readers[node.input[1]]) == 1
        ]

    def _call(self, node: onnx.NodeProto) -> Call | None:
        return self.calls.get(node.name)

    def _next(self, node: onnx.NodeProto, kind: str, conv: onnx.NodeProto) -> onnx.NodeProto | None:
        """The one operator that reads this one, if it takes a number for each channel."""
        before = node.output[0]
        users = self.readers.get(before, [])
        if before in self.final or len(users) != 1 or users[0].op_type != kind:
            return None
        other = next((name for name in users[0].input if name != before), "")
        if other not in self.constants:
            return None
        kernel = self.constants[conv.input[1]].dims
        groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
        channels = kernel[0] if conv.op_type == "Conv" else kernel[1] * groups
        wide = [channels, *[1] * (len(kernel) - 2)]
        dims = list(self.constants[other].dims)
        return users[0] if dims in (wide, [1, *wide]) else None

    def _number(self, node: onnx.NodeProto) -> Array:
        name = next(name for name in node.input if name in self.constants)
        return numpy_helper.to_array(self.constants[name]).reshape(-1)

    def _scale(
        self, conv: onnx.NodeProto, factor: Array, summand: Array, last: onnx.NodeProto
    ) -> None:
        kernel = numpy_helper.to_array(self.constants[conv.input[1]])
        wide = factor.astype(np.float64).reshape(-1, *[1] * (kernel.ndim - 1))
        bias = summand.astype(np.float64)
        if len(conv.input) > 2:
            bias = bias + numpy_helper.to_array(self.constants[conv.input[2]]) * wide.reshape(-1)
        scope = scope_of(self.calls[conv.name])
        names = [self._fresh(f"{scope}/merged_{role}") for role in ("kernel", "bias")]
        arrays = ((kernel * wide).astype(kernel.dtype), bias.astype(kernel.dtype))
        self._put(conv, names, dict(zip(names, arrays, strict=True)), last)

    def _fresh(self, stem: str) -> str:
        """A name of its own: one call may have several convolutions, as of a picture a step."""
        number = 1
        while (name := stem if number == 1 else f"{stem}_{number}") in self.constants:
            number += 1
        return name

    def _put(
        self,
        conv: onnx.NodeProto,
        weights: list[str],
        arrays: Mapping[str, Array],
        last: onnx.NodeProto,
    ) -> None:
        """Give a convolution other weights, and the output of the operator it stands for too."""
        for name, array in arrays.items():
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.model.graph.initializer.append(tensor)
            self.constants[name] = tensor
        del conv.input[1:]
        conv.input.extend(weights)
        old, conv.output[0] = conv.output[0], last.output[0]
        last.output[0] = old
