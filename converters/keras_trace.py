"""A Keras model as an ONNX graph without its weights, and which layer every operator came from.

The model is called once while TensorFlow records. Each operator recorded during a layer's call is
that layer's: nothing has to be read out of names later. The weights stay outside (they become inputs
of the graph), so that the exporter works on a few kilobytes however large the network is, and finds
no numbers to fold into one another: VGG16's weights made its passes need more than 24 GB.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.exact_sizes import reach_sizes, settle_borders
from torchviz_cnn.errors import InputError

Array = NDArray[Any]
OPSET = 15
_SMALL = 2**14


@dataclass(eq=False)
class Call:
    """One call of one layer.

    Attributes:
        layer: the Keras layer, or operation such as ``x + y`` between layers.
        path: its name, after those of the models it is nested in.
        numbers: for each part of the path, which call within the one around it; from 1.
        inputs: tensors it was given.
        outputs: tensors it put out.
        operators: what TensorFlow recorded meanwhile, without that of layers inside.
        calls: how many layers inside it ran.
    """

    layer: Any
    path: tuple[str, ...]
    numbers: tuple[int, ...]
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def does_nothing(self) -> bool:
        """Whether it handed on what it was given, as dropout does outside training."""
        return (
            not self.calls
            and len(self.inputs) == len(self.outputs) == 1
            and original(self.outputs[0]) is original(self.inputs[0])
        )


def original(tensor: Any) -> Any:
    """The tensor that this one is a copy of."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


@dataclass
class Trace:
    """What was recorded.

    Attributes:
        calls: of layers, those inside another before it.
        model: the ONNX graph, with an input for every weight.
        weights: reads the weight behind each of these inputs.
        inputs: names of the other inputs.
    """

    calls: list[Call]
    model: onnx.ModelProto
    weights: dict[str, Callable[[], Array]]
    inputs: list[str]

    def owners(self) -> dict[str, Call]:
        """Whose each operator is, by the name TensorFlow gave it."""
        return {op.name: call for call in self.calls for op in call.operators}


# ---------------------------------------------------------------------------- recording


class _Recorder:
    """Notes every call of a layer while it is on."""

    def __init__(self, keras: Any, tf: Any, graph: Any) -> None:
        self.keras = keras
        self.tf = tf
        self.graph = graph
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.taken: set[str] = set()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's ``__call__`` with a note of it."""

        def noted(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if self.stack and self._is_part(layer, self.stack[-1].layer):
                return call(layer, *args, **kwargs)
            entry = self._enter(layer)
            before = len(self.graph.get_operations())
            self.stack.append(entry)
            try:
                made = call(layer, *args, **kwargs)
            finally:
                self.stack.pop()
            entry.inputs = self._tensors((args, kwargs))
            if any(made is tensor for tensor in entry.inputs):
                made = self.tf.identity(made)  # who reads the layer, and who what stands before it?
            entry.outputs = self._tensors(made)
            new = self.graph.get_operations()[before:]
            entry.operators = [op for op in new if op.name not in self.taken]
            self.taken.update(op.name for op in new)
            self.calls.append(entry)
            return made

        return noted

    def _is_part(self, layer: Any, around: Any) -> bool:
        """Whether this is no call of its own, but how the layer around it does its work."""
        if layer is around:  # Layer.__call__ goes on to Operation.__call__
            return True
        layers = self.keras.layers.Layer
        return not isinstance(layer, layers) and not isinstance(around, self.keras.Model)

    def _enter(self, layer: Any) -> Call:
        if not self.stack:
            return Call(layer, (), ())
        around = self.stack[-1]
        around.calls[layer.name] = around.calls.get(layer.name, 0) + 1
        number = around.calls[layer.name]
        return Call(layer, (*around.path, layer.name), (*around.numbers, number))

    def _tensors(self, value: Any) -> list[Any]:
        return [each for each in self.tf.nest.flatten(value) if hasattr(each, "op")]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def trace(
    keras: Any, model: Any, sizes: Sequence[tuple[tuple[int | None, ...], str, str]]
) -> Trace:
    """Call a model once, as outside training, and turn what TensorFlow records into ONNX.

    Args:
        keras: the package the model is made with: ``keras`` on TensorFlow, or ``tf_keras``.
        model: built, all its weights in place.
        sizes: shape, type and name of each input.

    Raises:
        InputError: where TensorFlow or tf2onnx cannot follow the model, or it does not take inputs
            of these sizes.
    """
    import tensorflow as tf

    graph = tf.__internal__.FuncGraph("network")
    recorder = _Recorder(keras, tf, graph)
    kinds = [kind for kind in (keras.layers.Layer, getattr(keras, "Operation", None)) if kind]
    with ExitStack() as stack:
        stack.enter_context(_inlined(tf))
        stack.enter_context(graph.as_default())
        given = [
            tf.compat.v1.placeholder(kind, shape, name=f"network_input_{index}")
            for index, (shape, kind, _) in enumerate(sizes)
        ]
        for kind in kinds:
            stack.enter_context(_replaced(kind, "__call__", recorder.around(kind.__call__)))
        with refusals_told(tf, model):
            made = model(given[0] if len(given) == 1 else given, training=False)
    outputs = [tensor for tensor in tf.nest.flatten(made) if hasattr(tensor, "op")]
    needed = _needed(outputs)
    _check_plain(needed.values(), recorder.calls)
    definition, weights = _without_weights(tf, graph, needed)
    proto = _to_onnx(
        tf,
        definition,
        [t.name for t in given] + list(weights),
        [t.name for t in outputs],
        _settled(tf, recorder.calls),
        {op.name: call.layer for call in recorder.calls for op in call.operators},
    )
    _rename(proto, {t.name: name for t, (_, _, name) in zip(given, sizes, strict=True)})
    return Trace(recorder.calls, proto, weights, [name for _, _, name in sizes])


_BRANCHING = frozenset(["While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"])


def _check_plain(operators: Iterable[Any], calls: Sequence[Call]) -> None:
    """Refuse what does not compute the same operators for every picture.

    Raises:
        InputError: names the layer.
    """
    owners = {operator.name: call for call in calls for operator in call.operators}
    for operator in operators:
        call = owners.get(operator.name)
        where = f"the layer {'.'.join(call.path)!r}" if call and call.path else "the model"
        if operator.type in _BRANCHING:
            raise InputError(
                f"{where} loops or branches ({operator.type}), as recurrent layers do; only plain "
                "networks are exported"
            )
        if operator.type == "ResizeArea":  # the exporter would take the nearest cell
            raise InputError(
                f"{where} resizes by the mean over areas, which ONNX cannot say; replace it by one "
                "that is bilinear, or by average pooling"
            )


@contextmanager
def refusals_told(tf: Any, model: Any) -> Iterator[None]:
    """What Keras or TensorFlow says when a model cannot be called, as our own error."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"the model {model.name!r} cannot be called: {reason}") from error


@contextmanager
def _inlined(tf: Any) -> Iterator[None]:
    """Functions inside layers (a grouped convolution is one) leave their operators, not a call."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _without_weights(
    tf: Any, graph: Any, needed: Container[str]
) -> tuple[Any, dict[str, Callable[[], Array]]]:
    """The recorded graph, each reading of a variable replaced by an input of its own.

    Without what no output depends on, as chance that is drawn and not used outside training, or what
    is only to run before (a check of numbers, a line printed).
    A few numbers for each channel stay, for transposes move past an operator on constants only. What
    else was captured from outside (the numbers of a ``Normalization``) becomes a constant.
    """
    captured = {inside.op.name: outside for outside, inside in graph.captures}
    recorded = graph.as_graph_def(add_shapes=True)
    definition = tf.compat.v1.GraphDef(versions=recorded.versions)
    weights: dict[str, Callable[[], Array]] = {}
    for node in recorded.node:
        if node.name not in needed and node.op != "Placeholder":
            continue
        plain_inputs = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(plain_inputs)
        outside = captured.get(node.name)
        if outside is None and node.op != "ReadVariableOp":
            definition.node.append(node)
        elif outside is not None and outside.dtype != tf.resource:
            definition.node.append(_constant(tf, node.name, outside.numpy()))
        elif outside is None:
            handle = captured.get(node.input[0])
            if handle is None:
                raise InputError(f"{node.name!r} reads a variable made during the call itself")
            kind = tf.dtypes.as_dtype(node.attr["dtype"].type)
            read = _reading(tf, handle, kind)
            shape = node.attr["_output_shapes"].list.shape[0]
            if len(shape.dim) < 3 and math.prod(side.size for side in shape.dim) <= _SMALL:
                definition.node.append(_constant(tf, node.name, read()))
                continue
            weights[f"{node.name}:0"] = read
            definition.node.append(_placeholder(tf, node.name, kind, shape))
    return definition, weights


def _needed(outputs: Sequence[Any]) -> dict[str, Any]:
    """The operators that outputs depend on, by their names."""
    found: dict[str, Any] = {}
    waiting = [tensor.op for tensor in outputs]
    while waiting:
        operator = waiting.pop()
        if operator.name not in found:
            found[operator.name] = operator
            waiting += [tensor.op for tensor in operator.inputs]
    return found


def _reading(tf: Any, handle: Any, kind: Any) -> Callable[[], Array]:
    def read() -> Array:
        return np.asarray(tf.raw_ops.ReadVariableOp(resource=handle, dtype=kind).numpy())

    return read


def _constant(tf: Any, name: str, value: Array) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.dtypes.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node


def _placeholder(tf: Any, name: str, kind: Any, shape: Any) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op="Placeholder")
    node.attr["dtype"].type = kind.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(shape)
    return node


# ---------------------------------------------------------------------------- to ONNX

# Those that move transposes and drop what does nothing. Others merge equal layers into one.
_PASSES = (
    "optimize_transpose",
    "reshape_optimizer",
    "global_pool_optimizer",
    "remove_identity",
    "remove_back_to_back",
)
# Padding is a layer of its own; the other one needs a NumPy before 2.
_REWRITERS_LEFT_OUT = ("rewrite_constant_fold", "rewrite_conv2d_with_pad")


_SETTLED = "SettledTranspose"


def _settled(tf: Any, calls: Sequence[Call]) -> set[str]:
    """Transposes that must stay where they are, or a layer would put out what another one does.

    Those that are layers of their own (``Permute``), and those by which a layer looks at the batch
    step by step (``TimeDistributed``): all others only lead to a convolution and back.
    """
    found = set()
    for call in calls:
        work = [op for op in call.operators if op.type != "Const"]
        for op in work:
            perm = tf.get_static_value(op.inputs[1]) if op.type == "Transpose" else None
            if perm is not None and call.path and (work == [op] or perm[0] != 0):
                found.add(op.name)
    return found


def _to_onnx(
    tf: Any,
    definition: Any,
    inputs: list[str],
    outputs: list[str],
    settled: set[str],
    layers: dict[str, Any],
) -> onnx.ModelProto:
    from tf2onnx import optimizer, tfonnx
    from tf2onnx.optimizer import back_to_back_optimizer as pairs

    class Transposes(optimizer.TransposeOptimizer):  # type: ignore[misc]
        """Merges no sum into a convolution, and lets transposes of 1×1 maps be transposes."""

        def _add_handler(self, transpose: Any, node: Any) -> Any:
            return self._handle_node_having_branches(transpose, node)

        def post_optimize_action(self) -> None:
            pass

    passes = {name: each for name, each in optimizer._get_optimizers().items() if name in _PASSES}
    passes["optimize_transpose"] = Transposes
    with ExitStack() as stack:
        for name in _REWRITERS_LEFT_OUT:
            stack.enter_context(_replaced(tfonnx, name, lambda _graph, ops: ops))
        only = {pair: each for pair, each in pairs._func_map.items() if pair == ("Transpose",)}
        stack.enter_context(_replaced(pairs, "_func_map", only))
        stack.enter_context(_quiet("tf2onnx"))
        graph = stack.enter_context(tf.Graph().as_default())
        tf.import_graph_def(definition, name="")
        try:
            found = tfonnx.process_tf_graph(
                graph, opset=OPSET, input_names=inputs, output_names=outputs
            )
            reach_sizes(found)
            settle_borders(found, layers)
            nameless = _nameless(found)
            for node in found.get_nodes():
                node.type = _SETTLED if node.name in settled else node.type
            found = optimizer.optimize_graph(found, False, optimizers=passes)
        except (ValueError, KeyError, NotImplementedError, AttributeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"tf2onnx cannot write this model as ONNX: {reason}") from error
    model = found.make_model("network")
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.name in nameless.values():
            node.name += "__0"  # it only turns, wherever it has been moved
        node.name = nameless.get(node.name, node.name)
        node.op_type = "Transpose" if node.op_type == _SETTLED else node.op_type
    return model


def _nameless(graph: Any) -> dict[str, str]:
    """Operators to which the exporter gives a name of its own -> the one that TensorFlow knows.

    A resize goes between two transposes; it is the last of the three that is called so, and that one
    may be moved far away.
    """
    found = {}
    for node in graph.get_nodes():
        if node.type != "Resize":
            continue
        readers = graph.find_output_consumers(node.output[0])
        if [reader.type for reader in readers] == ["Transpose"]:
            found[node.name] = readers[0].name
    return found


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What goes wrong is said in one sentence by us, not in a log."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def plain(name: str) -> str:
    """The operator's name in that of a node or tensor the exporter made beside it.

    >>> plain("net/conv/BiasAdd__14:0"), plain("net/conv/BiasAdd")
    ('net/conv/BiasAdd', 'net/conv/BiasAdd')
    """
    return re.sub(r"(__\d+)*(:\d+)?$", "", name)
