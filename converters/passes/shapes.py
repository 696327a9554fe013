"""Shapes that a file works out while it runs: flattening in seven operators, repeated rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converters.graph import Array, Graph, Node, Shape, known_length
from converters.passes.batch import Batch
from converters.passes.vocabulary import UNARY

Dim = int | str  # a known length, or the name of one that is not known

_BATCH = "batch"


def shape_arithmetic(graph: Graph) -> None:
    """Follow Shape, Gather, Slice, Concat, … and make each Reshape's target a constant.

    The batch axis keeps its freedom: a target that starts with the batch's length becomes ``-1``,
    also where the file has fixed that length. What cannot be set free is told by ``graph.batch``.
    """
    batch, makers = Batch(graph), graph.makers()
    known: dict[str, list[Dim]] = {}
    for name, value in graph.constants.items():
        if value.dtype.kind in "iu" and value.size <= 64 and value.ndim <= 1:
            known[name] = value.reshape(-1).tolist()
    for node in graph.nodes:
        result = _dims(node, known, graph, batch, makers)
        if result is not None:
            known[node.output] = result
        to_shape = node.op == "Reshape" and len(node.inputs) == 2
        target = known.get(node.inputs[1]) if to_shape else None
        if target is not None and not _repeated(graph, node, target, batch, makers):
            _fix_reshape(graph, node, target, batch)
        if node.op == "Resize" and len(node.inputs) == 4 and node.inputs[3] in known:
            _fix_size(graph, node, known[node.inputs[3]], batch)
        if batch.length is not None and _fixes_batch(graph, node, batch.length):
            graph.batch = batch.length
        batch.follow(node)


def _first(name: str, batch: Batch) -> str:
    """What the length of a tensor's first axis is called where it is open."""
    return _BATCH if name in batch else f"{name}#0"


Makers = Mapping[str, Node]


def _lengths(graph: Graph, tensor: str, batch: Batch, makers: Makers) -> list[Dim] | None:
    """The lengths of a tensor's axes, or what they are called: after the first that has them."""
    shape = graph.shape(tensor)
    if shape is None:
        return None
    places = list(range(len(shape)))
    before: str | None = tensor
    while before is not None:
        name, maker = before, makers.get(before)
        before = maker.inputs[0] if maker is not None and maker.op in UNARY else None
        if maker is not None and maker.op == "Transpose" and "perm" in maker.attributes:
            places = [maker.attributes["perm"][place] for place in places]
            before = maker.inputs[0]
    names: list[Dim] = [
        f"{name}#{p}" if n is None else n for p, n in zip(places, shape, strict=True)
    ]
    if shape and shape[0] is None:
        names[0] = _first(tensor, batch)
    return names


def _dims(
    node: Node, known: dict[str, list[Dim]], graph: Graph, batch: Batch, makers: Makers
) -> list[Dim] | None:
    if node.op == "Shape":
        names = _lengths(graph, node.inputs[0], batch, makers)
        if names is None:
            return None
        return names[node.attributes.get("start", 0) : node.attributes.get("end")]
    values = [known.get(name) for name in node.inputs if name]
    if not values or any(value is None for value in values):
        return None
    first, *rest = [value for value in values if value is not None]
    if node.op in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return first
    if node.op == "Gather":
        inside = range(-len(first), len(first))
        index = [i for i in rest[0] if isinstance(i, int) and i in inside] if rest else []
        return [first[i] for i in index] if rest and len(index) == len(rest[0]) else None
    if node.op == "Slice" and {"starts", "ends"} <= node.attributes.keys():
        a = node.attributes
        if len(a["starts"]) != 1:
            return None
        return first[a["starts"][0] : a["ends"][0] : a.get("steps", [1])[0]]
    if node.op == "Concat":
        return [dim for value in (first, *rest) for dim in value]
    if node.op in ("Mul", "ReduceProd"):
        factors = [first, *rest] if node.op == "Mul" else [[dim] for dim in first]
        return _product(factors)
    return None


def _product(factors: Sequence[list[Dim]]) -> list[Dim] | None:
    """The product of single lengths; with one that is not known it is not known either."""
    if any(len(factor) != 1 for factor in factors):
        return None
    unknown = [factor[0] for factor in factors if isinstance(factor[0], str)]
    number = 1
    for factor in factors:
        number *= factor[0] if isinstance(factor[0], int) else 1
    if not unknown:
        return [number]
    return ["*".join([*sorted(unknown), str(number)]) if number != 1 or unknown[1:] else unknown[0]]


def _rest_of_picture(target: list[Dim], size: int | None) -> list[Dim]:
    """The target with its ``-1`` behind the batch as a number, where that is known."""
    others = known_length(n for n in target[1:] if isinstance(n, int) and n != -1)
    if size is None or not others or target[1:].count(-1) != 1 or size % others:
        return target
    return [target[0], *(size // others if n == -1 else n for n in target[1:])]


def _set_free(target: list[int], batch: Batch, size: int | None) -> list[int]:
    """A target that starts with the length the file has fixed for the batch, for any other length.

    Only where the rest of it holds one picture's numbers: then nothing else can be meant.
    """
    if size is None or batch.length is None or target[:1] != [batch.length]:
        return target
    rest = [int(n) for n in _rest_of_picture([*target], size)[1:]]
    return [-1, *rest] if known_length(rest) == size else target


def _fixes_batch(graph: Graph, node: Node, length: int) -> bool:
    """Whether a node makes a tensor of so many pictures, whatever it is given."""
    if node.op == "Reshape":
        return list(node.attributes.get("shape", []))[:1] == [length]
    target = graph.static(node, 1) if node.op == "Expand" and length > 1 else None
    return target is not None and target.reshape(-1)[:1].tolist() == [length]


def _fix_reshape(graph: Graph, node: Node, target: list[Dim], batch: Batch) -> None:
    source = graph.shape(node.inputs[0])
    if sum(isinstance(dim, str) for dim in target) > 1:
        return
    if -1 in target[1:] and target[0] == _first(node.inputs[0], batch):
        target = [0, *target[1:]]
    elif target[:1] == [_BATCH]:
        # The first axis of what is reshaped is another: the batch has been merged with others.
        target = _rest_of_picture(target, batch.sizes.get(node.inputs[0]))
    if any(isinstance(dim, str) for dim in target):
        if -1 in target:
            return
        target = [-1 if isinstance(dim, str) else dim for dim in target]
    lengths = [int(dim) for dim in target]
    if source is not None and not node.attributes.get("allowzero"):
        lengths = [
            n if n or i >= len(source) or source[i] is None else int(source[i] or 0)
            for i, n in enumerate(lengths)
        ]
    lengths = _set_free(lengths, batch, batch.sizes.get(node.inputs[0]))
    node.inputs = node.inputs[:1]
    node.attributes = {"shape": lengths}
    inner = known_length(source[1:]) if source else None
    free = lengths[:1] in ([-1], [0]) and inner is not None
    if free and len(lengths) == 2 and lengths[1] in (inner, -1):
        node.op, node.attributes = "Flatten", {"axis": 1}
        graph.shapes[node.output] = (source[0] if source else None, inner)
        return
    # The rest of the shape fixes the length of the batch axis: keep it free by its own name.
    if (
        inner is not None
        and lengths
        and lengths[0] in (-1, 0)
        and known_length(lengths[1:]) == inner
    ):
        node.attributes["keeps_batch"] = True
        graph.shapes[node.output] = (source[0] if source else None, *lengths[1:])
    elif all(n != 0 for n in lengths):
        graph.shapes.setdefault(node.output, tuple(None if n < 0 else n for n in lengths))


def _fix_size(graph: Graph, node: Node, target: list[Dim], batch: Batch) -> None:
    """The size that a Resize is given, where it is that of its input but for rows and columns."""
    first, *rest = target or [0]
    if first != _first(node.inputs[0], batch) or any(isinstance(side, str) for side in rest):
        return
    name = f"{node.inputs[3]}//sides"
    graph.constants[name] = np.array([1, *rest], np.int64)  # the number of pictures stays open
    node.inputs = [*node.inputs[:3], name]


def _repeated(graph: Graph, node: Node, target: list[Dim], batch: Batch, makers: Makers) -> bool:
    """Make a Reshape a ``Repeat`` where TensorFlow enlarges maps, of whatever size they are.

    A new axis is tiled and merged with the one before it.
    """
    tile = makers.get(node.inputs[0])
    new = makers.get(tile.inputs[0]) if tile is not None and tile.op == "Tile" else None
    times = None if tile is None or new is None else graph.static(tile, 1)
    axes = [] if new is None or new.op != "Unsqueeze" else new.attributes.get("axes", [])
    if new is None or times is None or len(axes) != 1:
        return False
    source = _lengths(graph, new.inputs[0], batch, makers)
    if source is None or len(times) != len(source) + 1:
        return False
    axis = axes[0] % len(times)
    longer = _product([[source[axis - 1]], [int(times[axis])]])
    others = [int(n) for place, n in enumerate(times) if place != axis]
    if axis < 2 or set(others) != {1} or longer is None:
        return False
    if target != [*source[: axis - 1], *longer, *source[axis:]]:
        return False
    node.op, node.inputs = "Repeat", [new.inputs[0]]
    node.attributes = {"axis": axis - 1, "times": int(times[axis])}
    graph.shapes[node.output] = tuple(n if isinstance(n, int) else None for n in target)
    return True


def repeats(graph: Graph) -> None:
    """A new axis, widened and merged with the one before it, repeats each cell: ``Repeat``.

    So does Keras' torch back end enlarge maps.
    """
    consumers = graph.consumers()
    for node in list(graph.nodes):
        axes = node.attributes.get("axes", ())
        source = graph.shapes.get(node.inputs[0]) if node.inputs else None
        if node.op != "Unsqueeze" or len(axes) != 1 or source is None:
            continue
        axis = axes[0] % (len(source) + 1) - 1
        wide = consumers.get(node.output, [])
        merged = consumers.get(wide[0].output, []) if len(wide) == 1 else []
        if len(merged) != 1 or (wide[0].op, merged[0].op) != ("Expand", "Reshape") or axis < 1:
            continue
        if node.output in graph.outputs or wide[0].output in graph.outputs:
            continue
        factor = _factor(graph.static(wide[0], 1), source, axis + 1)
        side = None if factor is None or source[axis] is None else factor * int(source[axis] or 0)
        target = merged[0].attributes.get("shape", [])[1:]
        if side is None or target != [*source[1:axis], side, *source[axis + 1 :]]:
            continue
        last = merged[0]
        last.op, last.inputs = "Repeat", [node.inputs[0]]
        last.attributes = {"axis": axis, "times": factor}
        graph.shapes[last.output] = (source[0], *target)
        graph.nodes = [each for each in graph.nodes if each not in (node, wide[0])]


def _factor(wanted: Array | None, source: Shape, axis: int) -> int | None:
    """How often the new axis is repeated, if it is the only one."""
    sides = [*source[:axis], 1, *source[axis:]]
    if wanted is None or wanted.ndim != 1 or len(wanted) != len(sides):
        return None
    others = [i for i in range(len(sides)) if i != axis]
    if any(wanted[i] != 1 and wanted[i] != sides[i] for i in others):
        return None
    return int(wanted[axis]) if wanted[axis] > 0 else None
