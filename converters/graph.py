"""An ONNX graph in plain Python, easier to rewrite than protocol buffers."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from converters.names import Claim, Owner, clean
from converters.trust.limits import USUAL, shape_of
from converters.trust.sizes import KNOWN_VALUES, Walk
from torchviz_cnn.errors import InputError

Array = NDArray[Any]
Shape = tuple[int | None, ...]

_SEVERAL_OUTPUTS = frozenset(["Split", "TopK"])
# onnx carries what these compute along as one message for each number.
_CARRIED = frozenset("Add Cast Concat Gather Mul Shape Size Slice Squeeze Sub Unsqueeze".split())  # noqa: SIM905
# What may be computed from constants alone: this much, and some times what the file holds.
_FOLDED_BYTES, _FOLDED_TIMES = 1 << 26, 4
_SMALL = 1024  # numbers of a constant from which a shape may follow


@dataclass(eq=False)
class Node:
    """One operator. ``owner`` is the Keras layer it belongs to, once that is known."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    owner: Owner | None = None
    alias: Owner | None = None
    near: Owner | None = None

    @property
    def output(self) -> str:
        return self.outputs[0]


@dataclass
class Graph:
    """Operators in an order in which they can run, and what they run on.

    Attributes:
        nodes: the operators.
        constants: weights and other fixed tensors by name.
        inputs: name -> shape, batch axis first; ``None`` for an axis of any length.
        outputs: names of what the network returns.
        shapes: what is known of the shape of each tensor.
        opset: version of the standard operators.
        types: the standard's number of each tensor's data type, where it is known; of constants
            their arrays say it.
        foldable: how many bytes may still be computed from constants alone.
        notes: sentences a user should be told.
        permuted: tensors whose features stand in another order than in Keras -> where Keras' lie.
        learnt: constants that a layer learns, and that the file does not call so.
        batch: the only number of pictures that an operator can reshape; ``None`` for any number.
        turned: places of outputs that come channels first, and in the file channels last.
        in_file: tensors that the file has under another name, and the axes to turn there from here.
    """

    nodes: list[Node]
    constants: dict[str, Array]
    inputs: dict[str, Shape]
    outputs: list[str]
    shapes: dict[str, Shape]
    opset: int
    types: dict[str, int] = field(default_factory=dict)
    foldable: int = _FOLDED_BYTES
    notes: list[str] = field(default_factory=list)
    permuted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    learnt: set[str] = field(default_factory=set)
    batch: int | None = None
    turned: list[int] = field(default_factory=list)
    in_file: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    _made: int = 0

    def fresh(self, stem: str) -> str:
        """A tensor name nobody uses."""
        self._made += 1
        return f"{stem}//{self._made}"

    def stands_for(self, new: str, old: str, perm: Sequence[int] | None = None) -> None:
        """Remember that ``old`` is ``new``, turned by ``perm``; as it is, where that is left out."""
        name, turn = self.in_file.get(old, (old, None))
        if perm is None:
            perm = turn or ()
        elif turn:
            perm = [perm[axis] for axis in turn]
        self.in_file[new] = name, tuple(perm)

    def consumers(self) -> dict[str, list[Node]]:
        """Who reads each tensor; a node that reads it twice stands there twice."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def makers(self) -> dict[str, Node]:
        """Who puts out each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}

    def shape(self, name: str) -> Shape | None:
        if name in self.constants:
            return self.constants[name].shape
        return self.shapes.get(name)

    def static(self, node: Node, index: int) -> Array | None:
        """The constant a node is given at a position, if it is one."""
        if index >= len(node.inputs):
            return None
        return self.constants.get(node.inputs[index])

    def rename_uses(self, old: str, new: str) -> None:
        """Let everybody who reads ``old`` read ``new``."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
        self.outputs = [new if name == old else name for name in self.outputs]

    def prune(self) -> None:
        """Forget what no output depends on: operators, constants, inputs."""
        wanted = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        self.nodes = kept[::-1]
        self.constants = {name: c for name, c in self.constants.items() if name in wanted}
        self.inputs = {name: shape for name, shape in self.inputs.items() if name in wanted}

    def sort(self) -> None:
        """Put the operators into an order in which they can run, as near as can be to the old."""
        makers = self.makers()
        done: set[Node] = set()
        ordered: list[Node] = []
        for start in self.nodes:
            stack: list[tuple[Node, Iterator[str]]] = [(start, iter(start.inputs))]
            while stack:
                node, inputs = stack[-1]
                if node in done:
                    stack.pop()
                    continue
                before = next(
                    (makers[i] for i in inputs if i in makers and makers[i] not in done), None
                )
                if before is not None:
                    stack.append((before, iter(before.inputs)))
                    continue
                done.add(node)
                ordered.append(node)
                stack.pop()
        self.nodes = ordered


class Wires:
    """Who makes and who reads each tensor of a graph, kept current while it is rewired.

    For passes that change a node for each they meet: asking the graph anew every time would take
    the square of its length. Nodes taken out or put in stand in the graph's list from
    :meth:`settle` on.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = graph.makers()
        self._readers: dict[str, dict[Node, None]] = {}
        for node in graph.nodes:
            self._read(node)
        self._outputs = frozenset(graph.outputs)
        self._behind: dict[Node, list[Node]] = {}
        self._gone: set[Node] = set()

    def _read(self, node: Node) -> None:
        for name in node.inputs:
            self._readers.setdefault(name, {})[node] = None

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a tensor, each once."""
        return list(self._readers.get(name, ()))

    def is_read(self, name: str) -> bool:
        return name in self._outputs or bool(self._readers.get(name))

    def is_there(self, node: Node) -> bool:
        return node not in self._gone

    def feed(self, node: Node, inputs: list[str]) -> None:
        """Let a node read other tensors."""
        for name in dict.fromkeys(node.inputs):
            self._readers[name].pop(node, None)
        node.inputs = inputs
        self._read(node)

    def put_behind(self, node: Node, new: Node) -> None:
        """A new node after one whose outputs have just been renamed."""
        self._behind.setdefault(node, []).append(new)
        for each in (node, new):
            self.makers.update(dict.fromkeys(each.outputs, each))
        self._read(new)

    def take_out(self, node: Node) -> None:
        """A node whose outputs nobody reads any more."""
        self.feed(node, [])
        self._gone.add(node)
        for name in node.outputs:
            self.makers.pop(name, None)

    def settle(self) -> None:
        """Bring the graph's list of nodes up to date."""
        nodes: list[Node] = []
        waiting = self.graph.nodes[::-1]
        while waiting:
            node = waiting.pop()
            if node not in self._gone:
                nodes.append(node)
            waiting += reversed(self._behind.get(node, []))
        self.graph.nodes = nodes
        self._behind, self._gone = {}, set()


def read_graph(model: onnx.ModelProto, claims: Sequence[Claim]) -> Graph:
    """The graph of a model whose nodes have been given their layers.

    Args:
        model: without external data, subgraphs or functions.
        claims: one for each node, from :func:`converters.names.read_names`.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in graph.output)
    nodes = []
    for node, claim in zip(graph.node, claims, strict=True):
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
            continue
        attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
        nodes.append(
            Node(
                node.op_type,
                list(node.input),
                _read_outputs(node, claim, read),
                attributes,
                node.name,
                claim.owner,
                claim.alias,
                claim.near,
            )
        )
    tensors = _infer(model)
    stored = sum(constant.nbytes for constant in constants.values())
    return Graph(
        nodes=nodes,
        constants=constants,
        inputs={v.name: _shape(v) or () for v in graph.input if v.name not in constants},
        outputs=[value.name for value in graph.output],
        shapes=_shapes(tensors),
        opset=opset_of(model),
        types={name: value.type.tensor_type.elem_type for name, value in tensors.items()},
        foldable=_FOLDED_BYTES + _FOLDED_TIMES * stored,
    )


def _read_outputs(node: onnx.NodeProto, claim: Claim, read: Container[str]) -> list[str]:
    """What a node puts out, without what is optional and nobody asks for.

    Raises:
        InputError: where somebody asks for more than the first of an operator that becomes a module
            with one output.
    """
    outputs = list(node.output)
    if node.op_type in _SEVERAL_OUTPUTS:
        return outputs
    second = next((name for name in outputs[1:] if name and name in read), None)
    if second is not None:
        owner = claim.owner or claim.near
        layer = f" of the layer {'.'.join(owner.path)!r}" if owner is not None else ""
        raise InputError(
            f"the operator {node.op_type}{layer} is asked for a second tensor, {clean(second)!r}, "
            "beside its result, which is not supported; export the network without what reads it"
        )
    return outputs[:1]


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators a model uses."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def is_whole(kind: int) -> bool:
    """Whether the standard's number of a data type is one of whole numbers."""
    return kind > 0 and helper.tensor_dtype_to_np_dtype(kind).kind in "iu"


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every tensor, as far as it follows from the inputs'."""
    return _shapes(_infer(model))


def infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """The standard's number of each tensor's data type, as far as it follows from the inputs'."""
    return {name: value.type.tensor_type.elem_type for name, value in _infer(model).items()}


def _shapes(tensors: Mapping[str, onnx.ValueInfoProto]) -> dict[str, Shape]:
    found = {name: _shape(value) for name, value in tensors.items()}
    return {name: shape for name, shape in found.items() if shape is not None}


def _infer(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What onnx can say of every tensor that is no weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    bare = _without_weights(model)
    _take_out_long_lists(bare, model)
    inferred = shape_inference.infer_shapes(bare, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: value for value in values if value.name not in weights}


def _take_out_long_lists(bare: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Leave no lists of numbers in a model from which no shape can follow: they cost gigabytes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    walk = Walk(model, USUAL, ordinary=True, refuse_misfits=False, refuse_open=False)
    walk.run([value for value in model.graph.input if value.name not in weights])
    sizes = {name: shape_of(kind) for name, kind in walk.types.items()}
    long = {
        name
        for name, size in sizes.items()
        if size is not None and len(size) == 1 and (size[0] is None or size[0] > KNOWN_VALUES)
    }
    kept, taken = list[onnx.NodeProto](), list[str]()
    for node in bare.graph.node:
        if node.op_type in _CARRIED and long.intersection((*node.input, *node.output)):
            taken += node.output
        else:
            kept.append(node)
    if not taken:
        return
    plain = shape_inference.infer_shapes(bare).graph
    known = {value.name: value for value in (*plain.value_info, *plain.output)}
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del bare.graph.node[:]
    bare.graph.node.extend(copies)
    bare.graph.input.extend(known[name] for name in taken if name in known)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the shapes of large weights in the place of their numbers.

    To infer shapes, a model is written out and read again: with the numbers, gigabytes.
    """
    small = onnx.ModelProto()
    small.ir_version, graph = max(model.ir_version, 4), small.graph
    small.opset_import.extend(model.opset_import)
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    fixed = not _leaves_batch_open(model)
    graph.value_info.extend(v for v in model.graph.value_info if fixed or not _is_of_so_many(v))
    weights = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in weights)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.append(info)
    return small


def _leaves_batch_open(model: onnx.ModelProto) -> bool:
    weights = {tensor.name for tensor in model.graph.initializer}
    given = (_shape(value) for value in model.graph.input if value.name not in weights)
    return any(shape is not None and shape[:1] == (None,) for shape in given)


def _is_of_so_many(value: onnx.ValueInfoProto) -> bool:
    """Whether a file says of a tensor inside that its first axis has one length.

    Who opens the batch axis of a file, at its inputs, mostly leaves the old length inside.
    """
    shape = _shape(value)
    return shape is not None and len(shape) > 1 and shape[0] is not None


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _constant(node: onnx.NodeProto) -> Array:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value, np.float32 if "float" in attribute.name else np.int64)


def attributes_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two operators are set alike."""
    return one.keys() == other.keys() and all(
        np.array_equal(np.asarray(one[key]), np.asarray(other[key])) for key in one
    )


def known_length(dims: Iterable[int | None]) -> int | None:
    """The product of some axes' lengths, where all are known."""
    product = 1
    for dim in dims:
        if dim is None:
            return None
        product *= dim
    return product
