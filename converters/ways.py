"""Ways through a graph in which it is being told whose operators are whose.

What has an owner stands in the way; transposes and changes of shape do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from converters.graph import Array, Graph, Node
from converters.names import Owner

HELPERS = frozenset(["Pad", "SamePad", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"])


class Ways:
    """Who makes and who reads each tensor, seen past the transposes that exporters put in."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = graph.makers()
        self.turned = {
            node.output: node.inputs[0]
            for node in graph.nodes
            if node.op == "Transpose" and node.inputs[0] not in graph.constants
        }
        self.users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if node.output in self.turned:
                continue
            for name in dict.fromkeys(map(self.origin, node.inputs)):
                self.users.setdefault(name, []).append(node)

    def origin(self, name: str) -> str:
        """A tensor before the transposes that led to it."""
        while name in self.turned:
            name = self.turned[name]
        return name

    def claim(self, nodes: Sequence[Node], owner: Owner) -> None:
        """Give operators that nobody has to a layer."""
        for node in nodes:
            if node.owner is None and node.output not in self.turned:
                node.owner = owner

    def ahead(
        self, start: str, ops: Sequence[str], through: Sequence[str] = ()
    ) -> list[tuple[list[Node], Node]]:
        """Operators of these kinds that read a tensor, and what stands between."""
        found: list[tuple[list[Node], Node]] = []
        waiting: list[tuple[str, list[Node]]] = [(start, [])]
        while waiting:
            at, way = waiting.pop()
            for node in self.users.get(at, []):
                if node.owner is not None or len(way) > 4:
                    continue
                if node.op in ops:
                    found.append((way, node))
                elif node.op in HELPERS or node.op in through:
                    waiting.append((node.output, [*way, node]))
        return found

    def back(self, name: str, ends: Sequence[str]) -> str | None:
        """Which of some tensors one comes from, with nothing but helpers between."""
        name = self.origin(name)
        while name not in ends:
            maker = self.makers.get(name)
            if maker is None or maker.owner is not None or maker.op not in HELPERS:
                return None
            name = self.origin(maker.inputs[0])
        return name

    def reaches(self, name: str, start: str) -> bool:
        return self.back(name, [start]) is not None

    def between(
        self, name: str, start: str | None, ends: Sequence[str] | None = None
    ) -> list[Node]:
        """The helpers between a tensor and where a layer begins, if that can be told."""
        wanted = [start] if ends is None else list(ends)
        if self.back(name, [each for each in wanted if each is not None]) is None:
            return []
        way = []
        name = self.origin(name)
        while name not in wanted:
            maker = self.makers[name]
            way.append(maker)
            name = self.origin(maker.inputs[0])
        return way

    def constant_of(self, node: Node) -> Array | None:
        """The one constant that an operator is given."""
        constants = [self.graph.constants[n] for n in node.inputs if n in self.graph.constants]
        return constants[0] if len(constants) == 1 else None
