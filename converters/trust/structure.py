"""The model part by part: all that can be said without looking at weights or shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, checker

from converters.trust.limits import Limits, check_extent, shape_of
from converters.trust.standard import STANDARD_DOMAINS, opset, schema_of
from converters.trust.tensors import BITS
from converters.trust.values import attribute_of, constant_of
from converters.trust.words import by, counted, quoted, title_of, words_of
from torchviz_cnn.errors import InputError


def check_model(model: ModelProto, limits: Limits) -> None:
    """Everything that can be said without looking at weights or shapes."""
    _check_versions(model)
    _check_counts(model, limits)
    graph = model.graph
    if model.functions:
        raise InputError(
            f"it defines operators of its own, {quoted(model.functions[0].name)} for one; inline "
            "them first with onnx.inliner.inline_local_functions"
        )
    if model.training_info:
        raise InputError("it holds a program for training; export the network for inference")
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise InputError(f"its tensor {quoted(name)} is sparse; store all weights dense")
    for index, node in enumerate(graph.node):
        _check_node(node, title_of(node, index))
    _check_inputs(model, limits)
    _check_order(model)
    _use_one_domain(model)


def _check_counts(model: ModelProto, limits: Limits) -> None:
    nodes = len(model.graph.node)
    outputs = sum(len(node.output) for node in model.graph.node)
    if max(nodes, outputs) > limits.nodes:
        raise InputError(
            f"it has {counted(nodes, 'node')} that put out {counted(outputs, 'tensor')}; the limit "
            f"is {limits.nodes:,} (Limits.nodes)"
        )


def _check_versions(model: ModelProto) -> None:
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise InputError(
            f"its format version is {model.ir_version}, and onnx {onnx.__version__} reads 3 to "
            f"{onnx.IR_VERSION}; export it again, or install a newer onnx"
        )
    opset(model)


def _check_node(node: NodeProto, title: str) -> None:
    """That a node is one plain operator of the standard."""
    if node.domain not in STANDARD_DOMAINS:
        raise InputError(
            f"{title} is of the domain {quoted(node.domain)}; only the standard ONNX operators "
            "are read, so export without custom operators and without runtime optimisations"
        )
    if not node.op_type:
        raise InputError(f"{title} names no operator; it is damaged, export it again")
    names = set()
    for attribute in node.attribute:
        where = f"{title}, attribute {quoted(attribute.name)},"
        if attribute.HasField("g") or attribute.graphs:
            raise InputError(
                f"{where} holds a graph within the graph; conditions and loops (If, Loop, Scan) "
                "are not read, so export a network without them"
            )
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise InputError(f"{where} is a sparse tensor; store it dense")
        if attribute.ref_attr_name:
            raise InputError(f"{where} takes its value from a function, and there is none")
        if attribute.name in names:
            raise InputError(f"{where} is there twice; it is damaged, export it again")
        names.add(attribute.name)


def _check_inputs(model: ModelProto, limits: Limits) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) > limits.inputs:
        raise InputError(
            f"it has {counted(len(inputs), 'input')}; the limit is {limits.inputs:,} (Limits.inputs)"
        )
    read = {name for node in model.graph.node for name in node.input} - weights
    for entry in model.graph.input:
        where = f"the input {quoted(entry.name)}"
        if not entry.type.HasField("tensor_type"):
            raise InputError(f"{where} is not a tensor; a picture is one")
        if entry.type.tensor_type.elem_type not in BITS:
            raise InputError(f"{where} has no known data type; export it again")
        shape = shape_of(entry.type)
        if shape is None and entry.name in read:
            raise InputError(
                f"{where} says nothing of its shape, not even how many axes it has; export it "
                "again with the shape of a picture, (None, height, width, channels) for one"
            )
        check_extent([1 if dim is None else dim for dim in shape or ()], where, limits)


def leave_open(model: ModelProto) -> None:
    """Lengths of 0 or -1, as some exporters write those that are open, become open ones.

    Of what the network is given and puts out; what is in between follows.
    """
    graph = model.graph
    for entry in (*graph.input, *graph.output, *graph.value_info):
        if entry.type.HasField("tensor_type"):
            for dim in entry.type.tensor_type.shape.dim:
                if dim.HasField("dim_value") and dim.dim_value < 1:
                    dim.ClearField("dim_value")


def _check_order(model: ModelProto) -> None:
    """That every tensor is made once, and before it is used."""
    graph = model.graph
    inputs = [entry.name for entry in graph.input]
    weights = [tensor.name for tensor in graph.initializer]
    _check_distinct(inputs, "input")
    _check_distinct(weights, "weight")
    _check_distinct([entry.name for entry in graph.output], "output")
    known = {*inputs, *weights}
    made_somewhere = {name for node in graph.node for name in node.output}
    for index, node in enumerate(graph.node):
        title = title_of(node, index)
        for name in filter(None, node.input):
            if name not in known:
                raise InputError(_unmade(title, name, name in made_somewhere))
        for name in filter(None, node.output):
            if name in known:
                raise InputError(
                    f"{title} makes the tensor {quoted(name)}, which is there already; each "
                    "tensor is made once, so export it again"
                )
            known.add(name)
    if not graph.output:
        raise InputError("the network has no output; export it again")
    for entry in graph.output:
        if entry.name not in known:
            raise InputError(f"no node makes the output {quoted(entry.name)}; export it again")


def _check_distinct(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise InputError(
                f"the {what} {quoted(name)} is there twice; export it again"
                if name
                else f"one {what} has no name; export it again"
            )
        seen.add(name)


def _unmade(title: str, name: str, later: bool) -> str:
    if later:
        return (
            f"{title} uses the tensor {quoted(name)} before it is made; nodes stand in the order "
            "in which they run, and never in a circle"
        )
    return f"{title} uses the tensor {quoted(name)}, which nothing makes; export it again"


def _use_one_domain(model: ModelProto) -> None:
    """Write ``ai.onnx`` as ``""``: onnx2torch and the checker know the standard by that name."""
    for entry in (*model.graph.node, *model.opset_import):
        if entry.domain == "ai.onnx":
            entry.ClearField("domain")


def check_known_nodes(model: ModelProto) -> None:
    """Inputs, outputs and attributes of each known operator, by onnx's own rules."""
    version = opset(model)
    context = checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {"": version}
    stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        tensor = constant_of(node) if node.op_type == "Constant" else None
        if tensor is not None and node.output:
            stored[node.output[0]] = list(tensor.dims)
        if schema_of(node.op_type, version) is None:
            continue
        title = title_of(node, index)
        for attribute in node.attribute:
            _check_integers(node, attribute, title)
        try:
            checker.check_node(node, context)
        except checker.ValidationError as problem:
            raise InputError(f"{title} breaks the rules of ONNX: {words_of(problem)}") from problem
        for attribute in node.attribute:
            _check_attribute_text(attribute, title)
        _check_window(node, stored, title)
        _check_perm(node, title)


_WINDOWED = ("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool")


def _check_window(node: NodeProto, stored: Mapping[str, Sequence[int]], title: str) -> None:
    """That the settings of a sliding window speak of the same number of axes.

    onnx looks at that only where it knows what the window slides over.
    """
    if node.op_type not in _WINDOWED:
        return
    settings = {a.name: list(a.ints) for a in node.attribute if a.ints}
    kernel = stored.get(node.input[1]) if node.op_type.startswith("Conv") else None
    size = settings.get("kernel_shape", []) if kernel is None else list(kernel)[2:]
    if settings.get("kernel_shape", size) != size:
        raise InputError(
            f"{title} has a window of {by(settings['kernel_shape'])}, and weights of {by(size)}; "
            "it is damaged, export it again"
        )
    counts = {
        name: len(given) / 2 if name == "pads" else len(given) for name, given in settings.items()
    }
    axes = len(size) or min(counts.values(), default=0)
    for name, given in settings.items():
        whole_shape = name == "output_shape" and len(given) == axes + 2
        if counts[name] != axes and not whole_shape:
            raise InputError(
                f"{title}, attribute {quoted(name)}, has {counted(len(given), 'number')} where "
                f"its window has {len(size) or 'fewer'} axes; it is damaged, export it again"
            )
        if name == "pads" and node.op_type == "ConvTranspose" and min(given) < 0:
            raise InputError(
                f"{title}, attribute {quoted(name)}, is {given}, and no border is narrower than 0; "
                "Keras' own exporter writes such borders where a transposed convolution's steps are "
                "longer than its window: export the Keras model with torchviz-cnn export-keras "
                "(converters.export_keras)"
            )
        if name in ("kernel_shape", "strides", "dilations") and min(given) < 1:
            raise InputError(
                f"{title}, attribute {quoted(name)}, is {by(given)}; a window is at least one "
                "cell wide, and moves on"
            )


def _check_perm(node: NodeProto, title: str) -> None:
    perm = attribute_of(node, "perm") if node.op_type == "Transpose" else None
    if perm is not None and sorted(perm) != list(range(len(perm))):
        raise InputError(f"{title} turns the axes to {list(perm)}, which is no order of them")


# These may say "to the end" with the largest integer, or hold any number at all.
UNBOUNDED_INTEGERS = {"Slice", "Constant"}


# These say with a number of what type the tensor is that they make.
_DATA_TYPES = {
    "Cast": ("to",),
    **dict.fromkeys(
        ("Bernoulli", "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "Multinomial"),
        ("dtype", "output_datatype"),
    ),
    **dict.fromkeys(
        ("MelWeightMatrix", "RandomNormal", "RandomNormalLike", "RandomUniform", "SequenceEmpty"),
        ("dtype", "output_datatype"),
    ),
    "RandomUniformLike": ("dtype",),
}


def _check_integers(node: NodeProto, attribute: AttributeProto, title: str) -> None:
    """Strides, pads and sizes near 2**63 would overflow where shapes are worked out."""
    if attribute.name in _DATA_TYPES.get(node.op_type, ()) and attribute.i not in BITS:
        raise InputError(
            f"{title}, attribute {quoted(attribute.name)}, names the data type {attribute.i}, which "
            "does not exist; it is damaged, export it again"
        )
    if node.op_type in UNBOUNDED_INTEGERS:
        return
    for value in (attribute.i, *attribute.ints):
        if abs(value) >= 2**31:
            raise InputError(
                f"{title}, attribute {quoted(attribute.name)}, has the absurd value {value}; "
                "export it again"
            )


def _check_attribute_text(attribute: AttributeProto, title: str) -> None:
    """Words such as ``auto_pad`` are bytes to protobuf, and text to every reader."""
    for text in (attribute.s, *attribute.strings):
        try:
            text.decode()
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{title}, attribute {quoted(attribute.name)}, is not text; export it again"
            ) from problem
