"""GELU, which exporters spell out in small operators, as the one activation it is.

There are many ways to write it. So the operators around an ``Erf`` or ``Tanh`` are not compared with
a list of them, but run on a row of numbers: what comes to GELU is GELU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush

import numpy as np

from converters.graph import Array, Graph, Node, Wires
from converters.names import Owner

_NUMBERS = np.linspace(-6, 6, 241)
_ERROR = np.vectorize(math.erf, otypes=[float])
# The constants in files are float32.
_CLOSE = 1e-6
_MOST_OPERATORS = 12
# Of a tensor that many operators read, few compute one activation.
_MOST_SEEN = 8 * _MOST_OPERATORS

_COMPUTE: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Erf": _ERROR,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pow": np.power,
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
_EXACT = _NUMBERS * 0.5 * (1 + _ERROR(_NUMBERS / math.sqrt(2)))
_INNER = math.sqrt(2 / math.pi) * (_NUMBERS + 0.044715 * _NUMBERS**3)
_BY_TANH = _NUMBERS * 0.5 * (1 + np.tanh(_INNER))


def merge_gelu(graph: Graph) -> None:
    """Make ``Gelu`` of every group of operators of one layer that computes it, and nothing else.

    Source: Hendrycks, Gimpel 2016, "Gaussian Error Linear Units (GELUs)", section 2: exact by the
    error function, or by its approximation with tanh.
    """
    wires = Wires(graph)
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op not in ("Erf", "Tanh") or not wires.is_there(node):
            continue
        wanted, how = (_EXACT, "none") if node.op == "Erf" else (_BY_TANH, "tanh")
        found = next(_groups(wires, place, node, wanted), None)
        if found is not None:
            source, group = found
            last = group.pop()
            for each in group:
                wires.take_out(each)
            wires.feed(last, [source])
            last.op, last.attributes = "Gelu", {"approximate": how}
    wires.settle()


def _groups(
    wires: Wires, place: Mapping[Node, int], centre: Node, wanted: Array
) -> Iterator[tuple[str, list[Node]]]:
    """Where it begins, and the operators, last one last."""
    for source in _upstream(wires, centre):
        values, group = {source: _NUMBERS}, list[Node]()
        for node in _downstream(wires, place, source, centre.owner, values):
            value = _value(wires.graph, node, values)
            if value is None:
                continue
            values[node.output] = value
            group.append(node)
            if np.abs(value - wanted).max() <= _CLOSE and _is_closed(wires, group):
                yield source, group
            if len(group) == _MOST_OPERATORS:
                break


def _downstream(
    wires: Wires,
    place: Mapping[Node, int],
    source: str,
    owner: Owner | None,
    values: Mapping[str, Array],
) -> Iterator[Node]:
    """The operators of a layer that compute with a tensor, in running order.

    What comes after one is looked at where the caller has put its output into ``values``.
    """
    waiting: list[tuple[int, int, Node]] = []
    seen = set[Node]()
    name: str | None = source
    while name is not None or waiting:
        for node in wires.readers(name) if name is not None else ():
            if node.op in _COMPUTE and node.owner == owner and node not in seen:
                seen.add(node)
                heappush(waiting, (place[node], id(node), node))
        if not waiting or len(seen) > _MOST_SEEN:
            return
        node = heappop(waiting)[-1]
        yield node
        name = node.output if node.output in values else None


def _upstream(wires: Wires, node: Node) -> Iterator[str]:
    """Tensors that this operator's input comes from, the nearest first."""
    waiting, seen = list(node.inputs), set[str]()
    while waiting and len(seen) < _MOST_OPERATORS:
        name = waiting.pop(0)
        if name in wires.graph.constants or name in seen:
            continue
        seen.add(name)
        yield name
        maker = wires.makers.get(name)
        if maker is not None and maker.op in _COMPUTE:
            waiting += maker.inputs


def _value(graph: Graph, node: Node, values: Mapping[str, Array]) -> Array | None:
    compute = _COMPUTE.get(node.op)
    if compute is None or not any(name in values for name in node.inputs):
        return None
    operands = []
    for name in node.inputs:
        constant = graph.constants.get(name)
        if name in values:
            operands.append(values[name])
        elif constant is not None and constant.size == 1 and constant.dtype.kind in "fiu":
            operands.append(constant.reshape(()).astype(np.float64))
        else:
            return None
    with np.errstate(all="ignore"):
        value = compute(*operands)
    return value if np.isfinite(value).all() else None


def _is_closed(wires: Wires, group: list[Node]) -> bool:
    """Whether nobody outside reads what is computed on the way."""
    return all(
        node.output not in wires.graph.outputs
        and all(reader in group for reader in wires.readers(node.output))
        for node in group[:-1]
    )
