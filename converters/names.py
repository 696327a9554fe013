"""Which Keras layer, and which call of it, every node of an ONNX file belongs to.

Nothing but names is looked at here: of nodes, of what they put out and of the weights they use. The
exporters that go through TensorFlow leave a path such as ``model_1/conv2d_1_2/Relu`` on most of
them. Keras 3 opens every scope twice, so that each part of the path carries exactly one number too
many (``conv2d_1`` in the file is the layer ``conv2d``); tf_keras adds none. What carries no name,
the exporter's own transposes and shape arithmetic, gets none: it goes to whoever uses it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from converters.metadata import has_table

Style = Literal["keras3", "keras2", "exact", "nameless"]

_PREFIX = re.compile(r"(?:ConstantFolding/)?(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)*")
_NUMBERED = re.compile(r"(.+)_\d+")
_HELPER = re.compile(r".*__\d+(?::\d+)?")
_FOLDED = re.compile(
    r"(?:const_|new_shape|pad_const|Const__|axes_const|const_fold|.*__\d+(?::\d+)?$)"
)
_FUSED_WEIGHT = re.compile(r"(.*?)(?:__\d+)?_(?:weights|bias)_fused_bn")

# Scopes that TensorFlow's operators open below a layer's own. A layer called so cannot be told from
# them, except directly under the model, where no operator opens one.
_OPERATOR_SCOPES = frozenset(
    [
        "Add",
        "AddV2",
        "BiasAdd",
        "Cast",
        "Const",
        "Conv1D",
        "Conv2D",
        "Conv3D",
        "DepthwiseConv2d",
        "Elu",
        "ExpandDims",
        "FusedBatchNormV3",
        "GatherV2",
        "Gelu",
        "MatMul",
        "Max",
        "Maximum",
        "Mean",
        "Min",
        "Minimum",
        "Mul",
        "Pad",
        "PartitionedCall",
        "Prod",
        "Rank",
        "ReadVariableOp",
        "RealDiv",
        "Relu",
        "Relu6",
        "Repeat",
        "Reshape",
        "Rsqrt",
        "Selu",
        "Shape",
        "Sigmoid",
        "Softmax",
        "SquaredDifference",
        "Squeeze",
        "StatefulPartitionedCall",
        "Sub",
        "Sum",
        "Tanh",
        "Tensordot",
        "Tile",
        "add",
        "batchnorm",
        "clip_by_value",
        "concat",
        "conv2d_transpose",
        "conv_transpose",
        "convolution",
        "depthwise",
        "einsum",
        "floordiv",
        "mean_and_variance",
        "merged_input",
        "mod",
        "moments",
        "mul",
        "range",
        "reduce_std",
        "reduce_variance",
        "resize",
        "rotation_matrix",
        "separable_conv2d",
        "split",
        "stack",
        "stateless_random_uniform",
        "strided_slice",
        "sub",
        "transform",
        "transpose",
        "truediv",
        "unstack",
        "zeros",
        "zeros_like",
    ]
)
_KERAS3_TOKENS = (
    "/convolution",
    "/Cast/ReadVariableOp",
    "merged_input",
    "/MaxPool2d",
    "/AvgPool2d",
)
_KERAS2_TOKENS = ("/Conv2D", "/MatMul/ReadVariableOp", "/MaxPool", "/FusedBatchNormV3", "_fused_bn")
_PARAMETERS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "MatMul": (1,), "Gemm": (1, 2)}
_KERNELS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Owner:
    """The Keras layer a node belongs to.

    Attributes:
        path: the layer's name, after those of the models it is nested in.
        scope: the same as the exporter spelled it; another scope of the same path is another call.
    """

    path: tuple[str, ...]
    scope: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """What the names say about one node.

    Attributes:
        owner: the layer the node computes, ``None`` where no name tells.
        alias: the batch norm that the exporter fused into the node: what the node puts out is the
            output of ``alias``, and the output of ``owner`` is not in the file.
        near: for an exporter's helper, the layer in whose place it stands.
    """

    owner: Owner | None = None
    alias: Owner | None = None
    near: Owner | None = None


@dataclass(frozen=True)
class Names:
    """What :func:`read_names` found.

    Attributes:
        exporter: ``producer_name`` of the file.
        style: how the exporter spells the layers.
        claims: one for each node of the graph.
    """

    exporter: str
    style: Style
    claims: tuple[Claim, ...]


def clean(name: str) -> str:
    """A tensor's or node's name without output number and the exporter's wrapping.

    >>> clean("StatefulPartitionedCall/sequential_1/dense_1/MatMul:0")
    'sequential_1/dense_1/MatMul'
    """
    return _PREFIX.sub("", re.sub(r":\d+$", "", name), count=1)


def read_names(model: onnx.ModelProto) -> Names:
    """Which layer every node of a file belongs to, from its names alone.

    Example:
        >>> from onnx import helper
        >>> relu = helper.make_node("Relu", ["x"], ["y"], name="net_1/conv2d_1_2/Relu")
        >>> conv = helper.make_node(
        ...     "Conv", ["i", "w"], ["x"], name="net_1/conv2d_1_2/convolution"
        ... )
        >>> graph = helper.make_graph([conv, relu], "tf2onnx", [], [])
        >>> names = read_names(helper.make_model(graph, producer_name="tf2onnx"))
        >>> names.style, names.claims[1].owner.path
        ('keras3', ('conv2d_1',))
    """
    graph = model.graph
    spelled = [clean(node.name) for node in graph.node]
    initializers = [clean(tensor.name) for tensor in graph.initializer]
    root = _root([*spelled, *initializers])
    style: Style = (
        "exact" if has_table(model) else _style(model.producer_name, spelled, initializers, root)
    )
    if style == "nameless":
        return Names(model.producer_name, style, tuple(Claim() for _ in graph.node))
    uses: dict[str, set[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            uses.setdefault(name, set()).add(index)
    constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    claims = tuple(_claim(node, root, style, uses, constants) for node in graph.node)
    claims = _named_by_helper(graph.node, claims, root, style)
    if style == "keras2":
        claims = _keras2_calls(graph.node, claims, constants)
    claims = _calls_without_names(graph.node, claims, constants)
    claims = _calls_of_norms(claims)
    return Names(model.producer_name, style, claims)


def _style(
    producer: str, nodes: Sequence[str], initializers: Sequence[str], root: str | None
) -> Style:
    """Numbers alone do not tell: the second model built in a tf_keras notebook has them too."""
    if producer != "tf2onnx":
        return "nameless"
    paths = [name.split("/") for name in nodes if "/" in name and not _HELPER.fullmatch(name)]
    paths += [name.split("/") for name in initializers if "/" in name]
    paths = [path for path in paths if root in (None, path[0])]
    scopes = {path[0] for path in paths} | {path[1] for path in paths if len(path) > 2}
    scopes -= _OPERATOR_SCOPES  # of functions between layers, which Keras does not number
    if not scopes:
        return "nameless"
    every = [*nodes, *initializers]
    keras3 = _count(every, _KERAS3_TOKENS)
    keras2 = _count(every, _KERAS2_TOKENS)
    numbered = all(_NUMBERED.fullmatch(scope) for scope in scopes)
    return "keras3" if numbered and keras3 >= keras2 else "keras2"


def _count(names: Iterable[str], tokens: tuple[str, ...]) -> int:
    ends = [
        name.removesuffix("/ReadVariableOp") if not name.endswith(tokens) else name
        for name in names
    ]
    return sum(re.sub(r"(?<=[a-zA-Z])_\d+$", "", end).endswith(tokens) for end in ends)


def _root(names: Sequence[str]) -> str | None:
    """The model's own scope, which the paths have in common, but for what an optimiser renamed."""
    first = [name.split("/")[0] for name in names if "/" in name and not _FOLDED.match(name)]
    common = Counter(first).most_common(1)
    return common[0][0] if common and common[0][1] > len(first) / 2 else None


def owner_of(name: str, root: str | None, style: Style) -> Owner | None:
    """The layer in a node's, tensor's or weight's name.

    Example:
        >>> owner_of("net_1/vggish_1/conv2d_1_2/Cast_1/x:0", "net_1", "keras3").path
        ('vggish', 'conv2d_1')
        >>> owner_of("net/conv2d_1/BiasAdd/ReadVariableOp:0", "net", "keras2").path
        ('conv2d_1',)
    """
    parts = clean(name).split("/")
    if root is not None:
        if parts[0] != root:
            return None
        parts = parts[1:]
    scopes = parts[:-1]
    path: list[str] = []
    for depth, scope in enumerate(scopes):
        numbered = _NUMBERED.fullmatch(scope)
        bare = numbered[1] if numbered else scope
        operator = bare in _OPERATOR_SCOPES or scope in _OPERATOR_SCOPES
        if depth and operator and style != "exact":
            break
        if style in ("keras3", "exact"):
            if numbered is None:
                break
            path.append(bare)
        else:
            path.append(scope)
    return Owner(tuple(path), tuple(scopes[: len(path)])) if path else None


def _claim(
    node: onnx.NodeProto,
    root: str | None,
    style: Style,
    uses: Mapping[str, set[int]],
    constants: Mapping[str, int],
) -> Claim:
    """Evidence in order of weight: the node's name, its output's, its kernel's, its bias'."""
    helper = bool(_HELPER.fullmatch(clean(node.name)))
    by_node = None if helper else owner_of(node.name, root, style)
    by_output = next(
        (
            owner
            for name in node.output
            if not _HELPER.fullmatch(name) and (owner := owner_of(name, root, style))
        ),
        None,
    )
    weights = [
        owner_of(_fused_weight(node.input[index]), root, style)
        for index in _PARAMETERS.get(node.op_type, ())
        if index < len(node.input) and _is_evidence(node, index, uses, constants)
    ]
    owner = next((each for each in (by_node, by_output, *weights) if each), None)
    if node.op_type in _KERNELS and weights and weights[0] is not None and by_node is None:
        owner = weights[0]  # an anonymous convolution is called after its kernel
    if owner is None:
        return Claim(near=owner_of(node.name.rsplit("__", 1)[0], root, style) if helper else None)
    alias = None
    if node.op_type in _KERNELS:
        others = [each for each in (by_output, *weights[1:]) if each and each.path != owner.path]
        alias = others[0] if others else None
    return Claim(owner, alias)


def _fused_weight(name: str) -> str:
    """``conv/Conv2D_weights_fused_bn`` belongs where ``conv/Conv2D`` belongs."""
    match = _FUSED_WEIGHT.fullmatch(name)
    return match[1] if match else name


def _is_evidence(
    node: onnx.NodeProto, index: int, uses: Mapping[str, set[int]], constants: Mapping[str, int]
) -> bool:
    """Equal constants of different layers are stored once, under the name of one of them.

    Kernels are not equal by chance; biases are (zeros), unless they are used where one kernel is.
    """
    name = node.input[index]
    if name not in constants:
        return False
    return len(uses[name]) == 1 or constants[name] > 1 or uses[name] == uses[node.input[1]]


def _named_by_helper(
    nodes: Sequence[onnx.NodeProto], claims: tuple[Claim, ...], root: str | None, style: Style
) -> tuple[Claim, ...]:
    """A fused convolution may have left its name only on the transpose in front of it."""
    found = list(claims)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    for index, node in enumerate(nodes):
        before = maker.get(node.input[0]) if node.input else None
        if node.op_type not in _KERNELS or before is None or nodes[before].op_type != "Transpose":
            continue
        near = claims[before].near
        tail = clean(nodes[before].name).rsplit("__", 1)[0].rsplit("/", 1)[-1]
        if near is None or tail not in ("Conv2D", "convolution", "depthwise"):
            continue
        owner = claims[index].owner
        by_weight = _is_batch_norm(node, root, style, owner)
        if owner is None:
            found[index] = Claim(near)
        elif by_weight and owner.path != near.path:
            found[index] = Claim(near, alias=owner)
    return tuple(found)


def _is_batch_norm(
    node: onnx.NodeProto, root: str | None, style: Style, owner: Owner | None
) -> bool:
    """Whether all a convolution has of its owner's name is what a fused batch norm left."""
    names = [
        name for name in (*node.output, *node.input[2:]) if owner_of(name, root, style) == owner
    ]
    return owner is not None and any("batchnorm" in n or "FusedBatchNorm" in n for n in names)


def _keras2_calls(
    nodes: Sequence[onnx.NodeProto], claims: tuple[Claim, ...], constants: Mapping[str, int]
) -> tuple[Claim, ...]:
    """tf_keras keeps the scope and numbers the operators of later calls: ``c/Relu``, ``c/Relu_1``.

    An operator that a layer uses twice in one call is numbered in the same way. So the numbers
    count as calls only where each call consists of the same operators on the same weights.
    """
    numbers: dict[tuple[str, ...], dict[int, list[tuple[str, ...]]]] = {}
    for node, claim in zip(nodes, claims, strict=True):
        if claim.owner is not None:
            by_number = numbers.setdefault(claim.owner.path, {})
            what = (node.op_type, *(name for name in node.input if name in constants))
            by_number.setdefault(_number(node, claim.owner), []).append(what)
    shared = {
        path: len(by_number)
        for path, by_number in numbers.items()
        if len(by_number) > 1
        and set(by_number) == set(range(len(by_number)))
        and len({tuple(sorted(ops)) for ops in by_number.values()}) == 1
    }
    whole = _models_called_again(numbers, shared)
    return tuple(
        replace(claim, owner=_numbered(claim.owner, _number(node, claim.owner), whole))
        if claim.owner is not None and claim.owner.path in shared
        else claim
        for node, claim in zip(nodes, claims, strict=True)
    )


def _number(node: onnx.NodeProto, owner: Owner) -> int:
    """The number on the operator that follows the layer's path."""
    named = node.name if not _HELPER.fullmatch(clean(node.name)) else node.output[0]
    parts = clean(named).split("/")
    below = parts[parts.index(owner.scope[-1]) + 1 :] if owner.scope[-1] in parts else parts[-1:]
    match = re.fullmatch(r".*[a-zA-Z0-9]_(\d{1,9})", below[0]) if below else None
    return int(match[1]) if match else 0


def _models_called_again(
    numbers: Mapping[tuple[str, ...], object], shared: Mapping[tuple[str, ...], int]
) -> set[tuple[str, ...]]:
    """Nested models all of whose layers run equally often: it is the model that is called again."""
    prefixes = {path[:depth] for path in numbers for depth in range(1, len(path))}
    return {
        prefix
        for prefix in prefixes
        if len({shared.get(path, 1) for path in numbers if path[: len(prefix)] == prefix}) == 1
        and not any(prefix[:depth] in prefixes for depth in range(1, len(prefix)))
    }


def _numbered(owner: Owner, number: int, whole: set[tuple[str, ...]]) -> Owner:
    depth = next((len(p) for p in whole if owner.path[: len(p)] == p), len(owner.path)) - 1
    scope = list(owner.scope)
    if number:
        scope[depth] = f"{scope[depth]}@{number}"
    return replace(owner, scope=tuple(scope))


def _calls_without_names(
    nodes: Sequence[onnx.NodeProto], claims: tuple[Claim, ...], constants: Mapping[str, int]
) -> tuple[Claim, ...]:
    """Convolutions known by their kernel alone: each is a call of its own.

    Which call of a nested model each belongs to, its neighbours tell.
    """
    by_kernel: dict[str, list[int]] = {}
    for index, (node, claim) in enumerate(zip(nodes, claims, strict=True)):
        if node.op_type in _KERNELS and claim.owner is not None and _HELPER.fullmatch(node.name):
            by_kernel.setdefault(node.input[1], []).append(index)
    found = list(claims)
    for indices in by_kernel.values():
        taken: dict[tuple[str, ...], int] = {}
        for index in indices if len(indices) > 1 else []:
            owner = claims[index].owner
            assert owner is not None
            around = _scope_around(nodes, claims, index, len(owner.path) - 1) or owner.scope[:-1]
            scope = (*around, owner.scope[-1])
            number = taken[scope] = taken.get(scope, -1) + 1
            scope = (*around, f"{scope[-1]}@{number}") if number else scope
            found[index] = replace(claims[index], owner=replace(owner, scope=scope))
    return tuple(found)


def _scope_around(
    nodes: Sequence[onnx.NodeProto], claims: tuple[Claim, ...], start: int, depth: int
) -> tuple[str, ...] | None:
    """The scope of the nested model that whatever reads a node's output is in."""
    owner = claims[start].owner
    assert owner is not None
    seen = set(nodes[start].output)
    for index in range(start + 1, len(nodes)):
        node, other = nodes[index], claims[index].owner
        if not depth or not seen.intersection(node.input):
            continue
        if other is not None and other.path[:depth] == owner.path[:depth]:
            return other.scope[:depth]
        seen.update(node.output)
    return None


def _calls_of_norms(claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """A fused batch norm is called as often as the convolution that it was fused into."""
    calls: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    found = []
    for claim in claims:
        if claim.owner is None or claim.alias is None:
            found.append(claim)
            continue
        alias, scope = claim.alias, claim.owner.scope
        known = calls.setdefault(alias.path, [])
        if scope not in known:
            known.append(scope)
        same_model = alias.path[:-1] == claim.owner.path[:-1]
        around = scope[:-1] if same_model else alias.scope[:-1]
        number = [each for each in known if each[:-1] == scope[:-1]].index(scope)
        last = f"{alias.scope[-1]}@{number}" if number else alias.scope[-1]
        found.append(replace(claim, alias=replace(alias, scope=(*around, last))))
    return tuple(found)
