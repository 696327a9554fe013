"""Layers of several operators: a dense layer, a bias, a batch norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from converters.graph import Array, Graph, Node
from converters.names import Owner


def expanded_numbers(graph: Graph) -> None:
    """One number repeated for every channel of a batch norm may as well stay one number."""
    makers = graph.makers()
    for node in graph.nodes:
        for position, name in enumerate(
            node.inputs[1:3] if node.op == "BatchNormalization" else []
        ):
            before = makers.get(name)
            number = graph.static(before, 0) if before is not None else None
            if before is None or before.op != "Expand" or number is None or number.size != 1:
                continue
            flat = f"{before.inputs[0]}//number"
            graph.constants[flat] = number.reshape(1)
            node.inputs[position + 1] = flat


def dense_on_maps(graph: Graph) -> None:
    """A product flattened to a matrix and back works on the last axis as it is."""
    consumers, makers = graph.consumers(), graph.makers()
    for node in list(graph.nodes):
        kernel = graph.static(node, 1) if node.op == "MatMul" else None
        before = makers.get(node.inputs[0]) if kernel is not None and kernel.ndim == 2 else None
        users = consumers.get(node.output, [])
        if kernel is None or before is None or before.op != "Reshape" or len(users) != 1:
            continue
        if node.output in graph.outputs:
            continue
        source, target = graph.shapes.get(before.inputs[0]), users[0].attributes.get("shape")
        if users[0].op != "Reshape" or source is None or target is None:
            continue
        flat = before.attributes.get("shape")
        inner = list(source[1:-1])
        if flat == [-1, kernel.shape[0]] and target[1:] == [*inner, kernel.shape[1]]:
            node.inputs[0], node.outputs = before.inputs[0], users[0].outputs
            graph.nodes.remove(users[0])


def linear_layers(graph: Graph) -> None:
    """A product with a constant matrix, and the sum after it, are one dense layer.

    The result is an operator ``Linear`` whose kernel is laid out as torch has it, (out, in).
    """
    consumers = graph.consumers()
    for node in list(graph.nodes):
        kernel = graph.static(node, 1)
        if kernel is None or kernel.ndim != 2 or node.inputs[0] in graph.constants:
            continue
        if node.op == "MatMul":
            matrix = _transposed(graph, node.inputs[1])
            _make_linear(graph, node, matrix, _bias_after(graph, node, consumers))
        elif node.op == "Gemm" and _is_dense(node):
            turned = node.attributes.get("transB", 0)
            if not _fits_as_bias(graph, node, kernel.shape[0 if turned else 1]):
                continue
            matrix = node.inputs[1] if turned else _transposed(graph, node.inputs[1])
            bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
            _make_linear(graph, node, matrix, bias)


def _is_dense(node: Node) -> bool:
    a = node.attributes
    return a.get("alpha", 1.0) == 1.0 and a.get("beta", 1.0) == 1.0 and not a.get("transA", 0)


def _fits_as_bias(graph: Graph, node: Node, outputs: int) -> bool:
    """Whether what a Gemm adds, if anything, is one number for each output."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return True
    bias = graph.static(node, 2)
    return bias is not None and bias.shape == (outputs,)


def _transposed(graph: Graph, name: str) -> str:
    """The same matrix laid out the other way; one name for one matrix, so that sharing is seen.

    Nothing is moved yet: of a hundred million weights that takes seconds, once is enough.
    """
    new = f"{name}//T"
    graph.constants.setdefault(new, graph.constants[name].T)
    return new


def _make_linear(graph: Graph, node: Node, matrix: str, bias: str | None) -> None:
    node.op, node.attributes = "Linear", {}
    node.inputs = [node.inputs[0], matrix, *([bias] if bias is not None else [])]


def _bias_after(graph: Graph, node: Node, consumers: dict[str, list[Node]]) -> str | None:
    """The name of the constant that is added next, which is then taken into the node."""
    most_axes = len(graph.shapes.get(node.output, (None, None)))

    def is_row(constant: Array, width: int) -> bool:
        return 1 <= constant.ndim <= most_axes and _is_last(constant, (width,))

    return _absorb_add(graph, node, consumers, is_row)


def _is_last(constant: Array, shape: tuple[int, ...]) -> bool:
    """Whether a constant has this shape, behind axes of length one."""
    return constant.shape == (1,) * (constant.ndim - len(shape)) + shape


def _absorb_add(
    graph: Graph,
    node: Node,
    consumers: dict[str, list[Node]],
    fits: Callable[[Array, int], bool],
) -> str | None:
    users = consumers.get(node.output, [])
    if len(users) != 1 or users[0].op != "Add" or node.output in graph.outputs:
        return None
    add = users[0]
    if add.owner is not None and node.owner is not None and add.owner != node.owner:
        return None
    name = next((n for n in add.inputs if n in graph.constants), None)
    kernel = graph.constants[node.inputs[1]]
    width = kernel.shape[-1] if node.op == "MatMul" else _output_channels(node, kernel)
    if name is None or not fits(graph.constants[name], width):
        return None
    flat = name if graph.constants[name].ndim == 1 else f"{name}//flat"
    graph.constants.setdefault(flat, graph.constants[name].reshape(-1))
    node.outputs, node.owner = add.outputs, node.owner or add.owner
    graph.nodes.remove(add)
    return flat


def _output_channels(node: Node, kernel: Array) -> int:
    if node.op == "ConvTranspose":
        return kernel.shape[1] * int(node.attributes.get("group", 1))
    return kernel.shape[0]


def convolution_biases(graph: Graph) -> None:
    """A constant added to every channel right after a convolution is its bias."""
    consumers = graph.consumers()
    for node in list(graph.nodes):
        if node.op not in ("Conv", "ConvTranspose") or len(node.inputs) != 2:
            continue
        kernel = graph.static(node, 1)
        if kernel is None:
            continue
        bias = _absorb_add(graph, node, consumers, _one_for_each_channel(kernel.ndim))
        if bias is not None:
            node.inputs.append(bias)


def _one_for_each_channel(rank: int) -> Callable[[Array, int], bool]:
    """Whether a constant has one number for each channel of maps of so many axes."""

    def fits(constant: Array, channels: int) -> bool:
        return constant.ndim <= rank and _is_last(constant, (channels, *(1,) * (rank - 2)))

    return fits


def batch_norms(graph: Graph) -> None:
    """A factor and a summand for every channel are one operator, ``Affine``."""
    makers, consumers = graph.makers(), graph.consumers()
    for node in list(graph.nodes):
        if node.op != "Mul" or node not in graph.nodes:
            continue
        scale = _per_channel(graph, node)
        users = consumers.get(node.output, [])
        if scale is None or len(users) != 1 or node.output in graph.outputs:
            continue
        add = users[0]
        if add.op != "Add" or add.owner != node.owner:
            continue
        offset = _per_channel(graph, add)
        if offset is None or graph.constants[offset].size != graph.constants[scale].size:
            continue
        source = next(name for name in node.inputs if name not in graph.constants)
        rank = len(graph.shapes.get(source, ()))
        flat = [f"{name}//flat" for name in (scale, offset)]
        for name, new in zip((scale, offset), flat, strict=True):
            graph.constants[new] = graph.constants[name].reshape(-1)
        before = _mean_before(graph, node, source, makers, consumers)
        if before is not None:
            source, mean = before
            shift = graph.constants[mean].reshape(-1).astype(np.float64)
            shift = graph.constants[flat[1]] - shift * graph.constants[flat[0]]
            flat[1] = f"{flat[1]}//{mean}"
            graph.constants[flat[1]] = shift.astype(graph.constants[flat[0]].dtype)
        add.op, add.inputs, add.attributes = "Affine", [source, *flat], {"rank": rank}
        graph.nodes.remove(node)


def _mean_before(
    graph: Graph,
    node: Node,
    source: str,
    makers: dict[str, Node],
    consumers: dict[str, list[Node]],
) -> tuple[str, str] | None:
    """What a mean is taken from right before the factor, and the mean: Keras' torch back end."""
    before = makers.get(source)
    if before is None or before.op != "Sub" or before.owner != node.owner:
        return None
    mean = _per_channel(graph, before)
    if len(consumers.get(source, [])) != 1 or source in graph.outputs or mean is None:
        return None
    if before.inputs[1] != mean or graph.constants[mean].size < 2:
        return None
    graph.nodes.remove(before)
    return before.inputs[0], mean


def _per_channel(graph: Graph, node: Node) -> str | None:
    """The constant of a Mul or Add that holds one number for each channel (axis 1)."""
    names = [name for name in node.inputs if name in graph.constants]
    source = next((name for name in node.inputs if name not in graph.constants), None)
    shape = graph.shapes.get(source or "")
    if len(names) != 1 or shape is None or len(shape) < 2:
        return None
    constant = graph.constants[names[0]]
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(full) != len(shape) or constant.size < 2 or full[1] != constant.size:
        return None
    return names[0]


def normalising_weights(graph: Graph) -> None:
    """A layer that computes a mean and a deviation learns what it multiplies by and adds.

    Keras 3 writes layer norms so, and the exporter calls their weights after what it folded.
    """
    parts: dict[Owner, set[str]] = {}
    for node in graph.nodes:
        if node.owner is not None:
            parts.setdefault(node.owner, set()).add(node.op)
    for node in graph.nodes:
        if node.op not in ("Add", "Mul", "Sub") or node.owner is None:
            continue
        if {"ReduceMean", "Sqrt"} <= parts[node.owner]:
            constants = [name for name in node.inputs if name in graph.constants]
            graph.learnt.update(name for name in constants if graph.constants[name].size > 1)


def silu(graph: Graph) -> None:
    """``x * sigmoid(x)`` is one activation, ``Silu`` (Keras: swish)."""
    consumers = graph.consumers()
    for node in list(graph.nodes):
        product = product_of_silu(graph, node, consumers)
        if product is None or product.owner != node.owner:  # Keras' "gate" and "multiply" are two
            continue
        product.op, product.inputs = "Silu", [node.inputs[0]]
        graph.nodes.remove(node)


def product_of_silu(
    graph: Graph, node: Node, consumers: Mapping[str, Sequence[Node]]
) -> Node | None:
    """The product with its own input that a sigmoid goes into, if that is all it is for."""
    users = consumers.get(node.output, [])
    if node.op != "Sigmoid" or len(users) != 1 or node.output in graph.outputs:
        return None
    is_silu = users[0].op == "Mul" and set(users[0].inputs) == {node.output, node.inputs[0]}
    return users[0] if is_silu else None
