"""Whose operators are whose, in a file without names of which only a list of layers is known.

Layers are put to the operators in the order in which they stand: Keras runs a model's layers as it
lists them. Each must find the operators that a layer of its class leaves, and none may be left over;
where that does not come out even, the list is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from converters.expected import ACTIVATIONS, AS_ACTIVATION, JOINING, SINGLE
from converters.graph import Graph, Node
from converters.kinds import ACTIVATIONS as ACTIVATING
from converters.kinds import IDLE, kind_by_name
from converters.names import Owner
from converters.passes.layers import product_of_silu
from torchviz_cnn.errors import InputError

# They stand in front of others to fit their shapes, and are layers only where one is listed.
_HELPERS = frozenset(["Pad", "Squeeze", "Unsqueeze", "Reshape", "Flatten"])
_MOVING = frozenset(["Transpose", "Cast", "SamePad"])
_MAY_BE_GONE = frozenset(["Activation", "Flatten", "Permute", "Reshape"])
_ACTIVATION_KINDS = frozenset(["Activation", "PReLU", *AS_ACTIVATION])
_SPELLED_OUT = {"PReLU": (("PRelu",), ("Relu", "Neg", "Relu", "Mul", "Add"))}
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_MOST_STEPS = {"BatchNormalization": 4, "Normalization": 2, "Rescaling": 2}


def name_by_order(graph: Graph, names: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Give the operators of a graph without names to layers listed in the order they run in.

    Args:
        graph: simplified, and not yet turned channels first; the operators' ``owner`` is set.
        names: Keras' layers in order.
        kinds: their classes, as far as they are not told by the names.

    Raises:
        InputError: for a layer whose class is not known, or where the operators are not those of
            the layers listed.
    """
    walk = _Walk(graph)
    known = {name: kinds.get(name) or kind_by_name(name) for name in names}
    unknown = next((name for name in names if known[name] is None), None)
    if unknown is not None and unknown not in graph.inputs:
        raise InputError(
            f"the file carries no names, and the class of the layer {unknown!r} cannot be told from "
            "its own; give layer_names={layer.name: type(layer).__name__ for layer in model.layers}"
        )
    listed = [(name, known[name] or "InputLayer") for name in names]
    listed = [(name, kind) for name, kind in listed if kind not in IDLE]
    for index, (name, kind) in enumerate(listed):
        after = listed[index + 1][1] if index + 1 < len(listed) else ""
        taken = walk.layer(kind, after)
        if taken is None and kind not in _MAY_BE_GONE and not kind.startswith("ZeroPadding"):
            there = walk.next
            has = "nothing" if there is None else f"a {there.op}"
            raise InputError(
                f"layer_names does not fit this file, which has {has} where {name!r} ({kind}) is "
                "listed; the Keras file it was exported from tells the layers by their weights "
                "(keras=, --keras)"
            )
        for node in taken or []:
            node.owner = Owner((name,), (name,))
    if walk.next is not None:
        raise InputError(
            f"layer_names does not fit this file: behind the layers listed it has a {walk.next.op}; "
            "give all of [layer.name for layer in model.layers]"
        )
    graph.notes.append(
        "the file does not carry the layers' names: they were told by their order in layer_names "
        "alone; the Keras file it was exported from tells them by their weights (keras=, --keras)"
    )


@dataclass
class _Walk:
    """A place in the running order of a graph's operators."""

    graph: Graph
    at: int = 0
    before: dict[str, str] = field(default_factory=dict)  # what only moves axes hands on

    def __post_init__(self) -> None:
        constants = self.graph.constants
        self.consumers = self.graph.consumers()
        self.nodes = [
            node for node in self.graph.nodes if node.op not in _MOVING and self._is_run(node)
        ]
        for node in self.graph.nodes:
            if node.op in _MOVING and node.inputs[0] not in constants:
                self.before[node.output] = node.inputs[0]

    def _is_run(self, node: Node) -> bool:
        return any(name not in self.graph.constants for name in node.inputs)

    @property
    def next(self) -> Node | None:
        """The next operator that is more than a change of shape."""
        rest = map(self.nodes.__getitem__, range(self.at, len(self.nodes)))
        return next((node for node in rest if node.op not in _HELPERS), None)

    def layer(self, kind: str, after: str) -> list[Node] | None:
        """The operators of a layer, if it is the next; ``None``, and no step on, if it is not.

        What may be the layer's own activation, or its next sum, is that of the layer listed
        ``after`` it where that one is of such a class.
        """
        begin = self.at
        taken = self._begin(kind, after)
        if taken is None:
            self.at = begin
            return None
        if "Conv" in kind or kind == "Dense":
            taken += self._while(taken[-1], lambda node: node.op == "Slice", 4)
            taken += self._while(taken[-1], lambda node: self._on_constant(node, ("Add",)), 1)
            if after not in _ACTIVATION_KINDS:
                taken += self._while(taken[-1], lambda node: node.op in ACTIVATING, 1)
                taken += self._rest_of_activation(taken[-1], "")
        elif kind in JOINING and after != kind:  # more than two, one after another
            taken += self._while(taken[-1], lambda node: self._joins(node, JOINING[kind]), 16)
        return taken

    def _begin(self, kind: str, after: str) -> list[Node] | None:
        if kind in _MOST_STEPS:
            if (found := self._chain(("BatchNormalization",))) is not None:
                return found
            first = self._step(None, lambda node: self._on_constant(node, _ARITHMETIC))
            if first is None:
                return None
            more = _MOST_STEPS[kind] - 1
            return first + self._while(
                first[-1], lambda node: self._on_constant(node, _ARITHMETIC), more
            )
        if kind in JOINING:
            return self._step(None, lambda node: self._joins(node, JOINING[kind]))
        if kind == "Activation":
            found = self._step(None, lambda node: node.op in ACTIVATING)
            return None if found is None else found + self._rest_of_activation(found[-1], after)
        for chain in _chains(kind):
            if (found := self._chain(chain, linked=kind not in _SPELLED_OUT)) is not None:
                return found
        return None

    def _rest_of_activation(self, node: Node, after: str) -> list[Node]:
        """The second operator of ReLU6 and SiLU.

        A product that the layer listed next needs, for want of another, is no part of a SiLU.
        """
        if node.op == "Relu":
            return self._while(node, lambda each: each.op in ("Clip", "Min"), 1)
        begin, product = self.at, product_of_silu(self.graph, node, self.consumers)
        taken = self._while(node, lambda each: each is product, 1)
        if (
            taken
            and after == "Multiply"
            and not self._is_next(lambda each: self._joins(each, "Mul"))
        ):
            self.at = begin
            return []
        return taken

    def _is_next(self, fits: Callable[[Node], bool]) -> bool:
        begin = self.at
        found = self._step(None, fits)
        self.at = begin
        return found is not None

    def _chain(self, ops: Sequence[str], *, linked: bool = True) -> list[Node] | None:
        begin, taken = self.at, list[Node]()
        after: Node | None = None
        for op in ops:
            found = self._step(after, lambda node, op=op: node.op == op)  # type: ignore[misc]
            if found is None:
                self.at = begin
                return None
            taken += found
            after = taken[-1] if linked else None
        return taken

    def _while(self, after: Node, fits: Callable[[Node], bool], most: int) -> list[Node]:
        taken: list[Node] = []
        while len(taken) < most and (found := self._step(after, fits)) is not None:
            taken += found
            after = taken[-1]
        return taken

    def _step(self, after: Node | None, fits: Callable[[Node], bool]) -> list[Node] | None:
        """The next operator with the changes of shape before it, if it fits and reads ``after``."""
        way: list[Node] = []
        for place in range(self.at, len(self.nodes)):
            node = self.nodes[place]
            if fits(node) and (after is None or self._reads(node, after, way)):
                self.at += len(way) + 1
                return [*way, node]
            if node.op not in _HELPERS:
                return None
            way.append(node)
        return None

    def _reads(self, node: Node, after: Node, way: Sequence[Node]) -> bool:
        helped = {each.output: each.inputs[0] for each in way}
        for name in node.inputs:
            while name in self.before or name in helped:
                name = self.before.get(name) or helped[name]
            if name in after.outputs:
                return True
        return False

    def _on_constant(self, node: Node, ops: Sequence[str]) -> bool:
        """One number for each channel, or one for all, and a map."""
        constants = [self.graph.constants[n] for n in node.inputs if n in self.graph.constants]
        if node.op not in ops or len(constants) != 1 or len(node.inputs) != 2:
            return False
        return bool(constants[0].size == max(constants[0].shape, default=1))

    def _joins(self, node: Node, op: str) -> bool:
        sources = [name for name in node.inputs if name not in self.graph.constants]
        return node.op in (op, "Sum" if op == "Add" else op) and len(sources) > 1


def _chains(kind: str) -> Sequence[tuple[str, ...]]:
    if kind in _SPELLED_OUT:
        return _SPELLED_OUT[kind]
    if kind in AS_ACTIVATION:
        return sorted(ACTIVATIONS[AS_ACTIVATION[kind]], key=len, reverse=True)
    if kind in SINGLE:
        return SINGLE[kind]
    if kind.startswith("Conv") and kind.endswith("Transpose"):
        return [("ConvTranspose",)]
    if kind.startswith("SeparableConv"):
        return [("Conv", "Conv")]
    if kind.startswith(("Conv", "DepthwiseConv")):
        return [("Conv",)]
    return [("Linear",)] if kind == "Dense" else []
