"""From operators to a network whose modules are the Keras layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from torch import nn

from converters import operators
from converters.graph import Graph, Node, attributes_equal
from converters.kinds import kind_of, part_names
from converters.wiring import (
    ImportedNetwork,
    ImportedNetworkOfSeveralInputs,
    Nested,
    Step,
    Wired,
    WiredLayer,
)
from torchviz_cnn.overwriting import Layer

# ---------------------------------------------------------------------------- building


@dataclass(eq=False)
class Unit:
    """Operators that become one call of one module.

    Attributes:
        name: as Keras has it, without the models it is nested in; an operator's for one that
            belongs to no layer in particular.
        nodes: in an order in which they can run, the same for every call of a layer.
        nested: a model used as a layer, with layers of its own.
        raw: an operator alone, no layer.
        call: grows from one call of a layer to the next.
    """

    name: str
    nodes: list[Node]
    call: tuple[int, int] = (0, 0)
    nested: bool = False
    raw: bool = False
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """What a Keras layer has become.

    Attributes:
        path: Keras' names, those of the models it is nested in first.
        module: dotted name of the module.
        output: the tensor it puts out at its first call.
        kind: its Keras class, as far as it can be told.
    """

    path: tuple[str, ...]
    module: str
    output: str
    kind: str


class Builder:
    """Builds the network of a graph all of whose nodes have an owner.

    Args:
        graph: after all passes.
        kinds: Keras classes of layers by dotted name, where they are known.
    """

    def __init__(self, graph: Graph, kinds: Mapping[str, str]) -> None:
        self.graph = graph
        self.kinds = kinds
        self.made: dict[tuple[str, ...], Made] = {}

    def network(self) -> ImportedNetwork:
        several = len(self.graph.inputs) != 1
        cls = ImportedNetworkOfSeveralInputs if several else ImportedNetwork
        root = Unit("", self.graph.nodes, nested=True)
        root.inputs, root.outputs = list(self.graph.inputs), self.graph.outputs
        network = self._wired(root, (), (), cls)
        assert isinstance(network, ImportedNetwork)
        return network

    def _wired(
        self, whole: Unit, path: tuple[str, ...], modules: tuple[str, ...], cls: type[Wired]
    ) -> Wired:
        """A module with one child for each layer of a model."""
        units = units_of(whole, len(path), self.graph.constants)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        first: dict[str, list[tuple[str, Unit]]] = {}
        calls: list[Call] = []
        for unit in units:
            earlier = first.setdefault(unit.name, [])
            name = next((n for n, known in earlier if self._same(known, unit)), None)
            if name is None:
                if earlier and not unit.raw:
                    self.graph.notes.append(
                        f"the calls of {'.'.join((*path, unit.name))!r} are not alike in the file: "
                        "they have become modules of their own"
                    )
                name = legal_name(unit.name, parts, cls)
                parts[name] = self._module(unit, path, (*modules, name))
                earlier.append((name, unit))
            calls.append((name, unit.inputs, unit.outputs))
        return cls(parts, *_steps(calls, whole.inputs, whole.outputs))

    def _module(self, unit: Unit, path: tuple[str, ...], modules: tuple[str, ...]) -> nn.Module:
        if unit.raw:
            return self._operator(unit.nodes[0])
        path = (*path, unit.name)
        known = self.kinds.get(".".join(path))
        module: nn.Module
        if unit.nested:
            kind = known or "Functional"
            module = self._wired(unit, path, modules, Nested)
        else:
            kind = known or kind_of(path[-1], unit.nodes, self.graph)
            module = self._layer(unit, kind)
        made = Made(path, ".".join(modules), unit.outputs[0] if unit.outputs else "", kind)
        self.made.setdefault(path, made)
        return module

    def _operator(self, node: Node) -> nn.Module:
        return operators.build(self.graph, node)[0]

    def _layer(self, unit: Unit, kind: str) -> nn.Module:
        built = [(node, *operators.build(self.graph, node)) for node in unit.nodes]
        names = part_names(unit.nodes)
        layer: nn.Module
        if len(built) == 1 and names[0] not in ("conv", "dense") and built[0][2] == unit.inputs:
            layer = built[0][1]
            layer.is_layer = True  # type: ignore[assignment]
        else:
            parts = OrderedDict(zip(names, (module for _, module, _ in built), strict=True))
            if _is_chain(unit, [inputs for _, _, inputs in built]):
                layer = Layer(parts)
            else:
                calls = [
                    (name, inputs, node.outputs)
                    for name, (node, _, inputs) in zip(names, built, strict=True)
                ]
                layer = WiredLayer(parts, *_steps(calls, unit.inputs, unit.outputs))
        layer.layer_type = kind  # type: ignore[assignment]
        return layer

    def _same(self, one: Unit, other: Unit) -> bool:
        """Whether two calls compute the same thing with the same numbers."""
        if one.raw or (len(one.nodes), len(one.inputs), len(one.outputs)) != (
            len(other.nodes),
            len(other.inputs),
            len(other.outputs),
        ):
            return False
        constants = self.graph.constants
        match = dict(zip(one.inputs, other.inputs, strict=True))
        for a, b in zip(one.nodes, other.nodes, strict=True):
            if (a.op, len(a.inputs), len(a.outputs)) != (b.op, len(b.inputs), len(b.outputs)):
                return False
            if not attributes_equal(a.attributes, b.attributes) or _path(a) != _path(b):
                return False
            for x, y in zip(a.inputs, b.inputs, strict=True):
                if x in constants and y in constants:
                    if x != y and not np.array_equal(constants[x], constants[y]):
                        return False
                elif match.get(x, "") != y:
                    return False
            match.update(zip(a.outputs, b.outputs, strict=True))
        return [match.get(name) for name in one.outputs] == other.outputs


Call = tuple[str, list[str], list[str]]  # part, tensors it is given, tensors it puts out


def _path(node: Node) -> tuple[str, ...]:
    return node.owner.path if node.owner is not None else ()


def _is_chain(unit: Unit, inputs: Sequence[list[str]]) -> bool:
    """Whether every operator works on nothing but what the one before put out."""
    if len(unit.inputs) != 1 or len(unit.outputs) != 1:
        return False
    before = unit.inputs[0]
    for node, given in zip(unit.nodes, inputs, strict=True):
        if given != [before] or len(node.outputs) != 1:
            return False
        before = node.output
    return before == unit.outputs[0]


def _steps(
    calls: Sequence[Call], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[list[Step], list[int]]:
    """Calls on named tensors as calls on numbered values, each forgotten after its last use."""
    numbers = {name: number for number, name in enumerate(inputs)}
    last: dict[str, int] = {}
    for index, (_, given, made) in enumerate(calls):
        for name in (*made, *given):
            numbers.setdefault(name, len(numbers))
            last[name] = index
    for name in outputs:
        last.pop(name, None)
    done: dict[int, list[int]] = {}
    for name, index in last.items():
        done.setdefault(index, []).append(numbers[name])
    steps = [
        Step(
            part,
            tuple(numbers[name] for name in given),
            tuple(numbers[name] for name in made),
            tuple(done.get(index, ())),
        )
        for index, (part, given, made) in enumerate(calls)
    ]
    return steps, [numbers[name] for name in outputs]


def legal_name(name: str, taken: Mapping[str, object], cls: type[nn.Module] = nn.Module) -> str:
    """A name torch allows for a submodule, as near as can be to Keras'.

    >>> legal_name("mobilenetv2_1.00_224", {}), legal_name("train", {}), legal_name("dense", {})
    ('mobilenetv2_1_00_224', 'train_', 'dense')
    """
    legal = "".join("_" if character in ".@*?[]/" else character for character in name) or "_"
    own = {"steps", "results", "makers", "source", "layer_names", "training"}
    own |= {"unavailable_layers", "merged_norms"}
    while legal in taken or legal in own or hasattr(cls, legal) or legal in _ATTRIBUTES:
        legal += "_"
    return legal


_ATTRIBUTES = frozenset(vars(nn.Module()))


# ---------------------------------------------------------------------------- grouping


def units_of(whole: Unit, depth: int, constants: Mapping[str, object]) -> list[Unit]:
    """The operators of a model, one unit for each call of each of its layers, in running order."""
    groups: dict[tuple[object, ...], Unit] = {}
    for node in whole.nodes:
        path = _path(node)
        if len(path) <= depth:
            name = part_names([node])[0]
            groups[(node,)] = Unit(name, [node], raw=True)
            continue
        assert node.owner is not None
        key = (path[depth], node.owner.scope[depth])
        unit = groups.setdefault(key, Unit(path[depth], [], call_number(node.owner.scope[depth])))
        unit.nodes.append(node)
        unit.nested = unit.nested or len(path) > depth + 1
    units = _in_order(list(groups.values()))
    _find_interfaces(units, whole.outputs, constants)
    return units


def call_number(scope: str) -> tuple[int, int]:
    """A scope's number, and that of a call inside it.

    >>> call_number("conv2d_3"), call_number("dense@1")
    ((3, 0), (0, 1))
    """
    name, _, call = scope.partition("@")
    number = name.rpartition("_")[2]
    return _short_number(number), _short_number(call)


def _short_number(text: str) -> int:
    """A number; 0 for anything else a name may end in, and for numbers no exporter counts to."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _in_order(units: list[Unit]) -> list[Unit]:
    """Units in an order in which they can run.

    Calls of one layer run in their own order where they do not depend on each other.

    Where an exporter merged operators of different layers, two layers may wait for each other: then
    what can run of the one becomes a unit of its own, and the rest keeps the name.
    """
    waiting, ordered = list(units), list[Unit]()
    pending = {name for unit in units for node in unit.nodes for name in node.outputs}
    calls: dict[str, list[tuple[int, int]]] = {}
    for unit in units:
        calls.setdefault(unit.name, []).append(unit.call)
    while waiting:
        able = (unit for unit in waiting if not _needs(unit.nodes, pending))
        first = next(able, None)
        in_turn = (
            unit for unit in chain([first], able) if unit and unit.call <= min(calls[unit.name])
        )
        ready = next(in_turn, first)
        if ready is None:
            ready = _split_first(waiting, pending)
        else:
            waiting.remove(ready)
            calls[ready.name].remove(ready.call)
        ordered.append(ready)
        pending.difference_update(name for node in ready.nodes for name in node.outputs)
    return ordered


def _needs(nodes: Sequence[Node], pending: set[str]) -> set[str]:
    """Tensors these operators wait for, other than their own."""
    own = {name for node in nodes for name in node.outputs}
    return {name for node in nodes for name in node.inputs if name in pending} - own


def _split_first(waiting: list[Unit], pending: set[str]) -> Unit:
    for unit in waiting:
        can_run: list[Node] = []
        made: set[str] = set()
        for node in unit.nodes:
            if not {name for name in node.inputs if name in pending} - made:
                can_run.append(node)
                made.update(node.outputs)
        if can_run:
            unit.nodes = [node for node in unit.nodes if node not in can_run]
            return Unit(f"{unit.name}_begin", can_run, nested=unit.nested, raw=unit.raw)
    raise AssertionError("a graph of operators has no cycles")


def _find_interfaces(
    units: Sequence[Unit], outputs: Sequence[str], constants: Mapping[str, object]
) -> None:
    """What each unit is given and puts out, and its nodes in an order that does not depend on the
    file: two calls of one layer then look the same.
    """
    readers: dict[str, set[int]] = {}
    for index, unit in enumerate(units):
        for node in unit.nodes:
            for name in node.inputs:
                readers.setdefault(name, set()).add(index)
    for index, unit in enumerate(units):
        made = [name for node in unit.nodes for name in node.outputs]
        seen_outside = [
            name for name in made if readers.get(name, set()) - {index} or name in outputs
        ]
        # The layer's output is the last of them: hooks look at the first of several.
        unit.outputs = seen_outside[::-1] if len(unit.nodes) > 1 else made
        unit.nodes = _from_outputs(unit.nodes, unit.outputs)
        fixed = {"", *made}
        given = [name for node in unit.nodes for name in node.inputs]
        unit.inputs = list(dict.fromkeys(n for n in given if n not in fixed and n not in constants))


def _from_outputs(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Nodes in the order a walk back from the outputs meets their inputs."""
    makers = {name: node for node in nodes for name in node.outputs}
    ordered: dict[Node, None] = {}
    stack = [(makers[name], False) for name in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        if node in ordered:
            continue
        if ready:
            ordered[node] = None
            continue
        stack.append((node, True))
        stack += [(makers[name], False) for name in reversed(node.inputs) if name in makers]
    return list(ordered)
