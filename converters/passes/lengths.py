"""Lengths of axes that follow once a border's width is known: onnx infers shapes before that.

Exporters work out the border of ``padding="same"`` while the network runs, from the size of the
maps; with a picture of known size it is a constant, and so is every size behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import helper

from converters.graph import Graph, Node, Shape


def known_lengths(graph: Graph, elementwise: Collection[str]) -> bool:
    """Fill in lengths that have become known, and make constants of those that are asked for.

    Args:
        graph: its ``shapes`` and ``constants`` are added to.
        elementwise: operators that keep the shape of what they are given.

    Returns:
        Whether there was anything new.
    """
    news = False
    for node in list(graph.nodes):
        before = graph.shapes.get(node.output)
        found = _shape(graph, node, elementwise)
        if found is not None and (before is None or len(before) == len(found)):
            merged = found
            if before is not None:
                merged = tuple(old if old is not None else new for old, new in zip(before, found, strict=True))  # fmt: skip
            if merged != before:
                graph.shapes[node.output] = merged
                news = True
    asked = _lengths(graph)
    for node in list(graph.nodes):
        numbers = _worth(graph, asked.get(node.output))
        if numbers is not None:
            graph.constants[node.output] = numbers
            graph.nodes.remove(node)
            news = True
    return news


@dataclass(frozen=True)
class _Lengths:
    """Some lengths of a tensor's shape: which, of whose, and as what kind of numbers."""

    of: str
    places: np.ndarray
    kind: np.dtype = field(default_factory=lambda: np.dtype(np.int64))


def _lengths(graph: Graph) -> dict[str, _Lengths]:
    """What nodes put out that hold nothing but lengths of one tensor's axes."""
    found: dict[str, _Lengths] = {}
    for node in graph.nodes:
        if node.op == "Shape" and not {"start", "end"} & node.attributes.keys():
            shape = graph.shape(node.inputs[0])
            if shape is not None:
                found[node.output] = _Lengths(node.inputs[0], np.arange(len(shape)))
            continue
        before = found.get(node.inputs[0]) if node.inputs else None
        if before is None:
            continue
        if node.op == "Cast":
            kind = helper.tensor_dtype_to_np_dtype(node.attributes["to"])
            if kind.kind == "i":
                found[node.output] = replace(before, kind=kind)
        elif (places := _chosen(graph, node, before.places)) is not None:
            found[node.output] = replace(before, places=places)
    return found


def _chosen(graph: Graph, node: Node, places: np.ndarray) -> np.ndarray | None:
    """Which of these a Slice or a Gather takes."""
    a, count = node.attributes, places.size
    if places.ndim != 1:
        return None
    if node.op == "Slice" and {"starts", "ends"} <= a.keys() and len(a["starts"]) == 1:
        step = a.get("steps", [1])[0]
        along = a.get("axes", [0]) in ([0], [-1]) and step > 0
        return places[a["starts"][0] : a["ends"][0] : step] if along else None
    index = graph.static(node, 1) if node.op == "Gather" else None
    if index is None or a.get("axis", 0) != 0 or index.dtype.kind not in "iu":
        return None
    inside = all(-count <= i < count for i in index.reshape(-1).tolist())
    return places[index] if inside else None


def _worth(graph: Graph, asked: _Lengths | None) -> np.ndarray | None:
    """The numbers themselves, where all are known."""
    shape = None if asked is None else graph.shape(asked.of)
    if asked is None or shape is None:
        return None
    lengths = [shape[place] for place in asked.places.reshape(-1).tolist()]
    return None if None in lengths else np.array(lengths, asked.kind).reshape(asked.places.shape)


def _shape(graph: Graph, node: Node, elementwise: Collection[str]) -> Shape | None:
    given = [graph.shape(name) for name in node.inputs if name]
    first = given[0] if given else None
    if first is None or len(node.outputs) != 1:
        return None
    if node.op in elementwise:
        return _broadcast(given)
    if node.op == "Transpose" and "perm" in node.attributes:
        perm = node.attributes["perm"]
        return tuple(first[axis] for axis in perm) if len(perm) == len(first) else None
    if node.op == "Pad" and "pads" in node.attributes and "axes" not in node.attributes:
        pads, rank = node.attributes["pads"], len(first)
        if len(pads) != 2 * rank:
            return None
        return tuple(
            None if n is None else n + pads[i] + pads[rank + i] for i, n in enumerate(first)
        )
    if node.op in ("Conv", "MaxPool", "AveragePool"):
        return _windows(graph, node, first)
    if node.op == "Concat":
        return _joined(given, node.attributes["axis"])
    if node.op == "Unsqueeze" and "axes" in node.attributes:
        return _with_new_axes(first, node.attributes["axes"])
    if node.op == "Slice" and {"starts", "ends"} <= node.attributes.keys():
        return _cut(first, node)
    wanted = graph.static(node, 1) if node.op == "Expand" else None
    if wanted is not None and wanted.ndim == 1 and len(wanted) == len(first):
        return _broadcast([first, tuple(wanted.tolist())])
    return None


def _joined(shapes: Sequence[Shape | None], axis: int) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    rank = len(known[0])
    alike = len(known) == len(shapes) and {len(shape) for shape in known} == {rank}
    if not alike or not -rank <= axis < rank:
        return None
    sides = [[shape[place] for shape in known] for place in range(rank)]
    whole: list[int | None] = [next((n for n in each if n is not None), None) for each in sides]
    lengths = [n for n in sides[axis] if n is not None]
    whole[axis] = sum(lengths) if len(lengths) == len(known) else None
    return tuple(whole)


def _with_new_axes(first: Shape, axes: Sequence[int]) -> Shape | None:
    rank = len(first) + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter(first)
    if len(places) != len(axes):
        return None
    return tuple(1 if axis in places else next(rest) for axis in range(rank))


def _cut(first: Shape, node: Node) -> Shape | None:
    a, sides = node.attributes, list(first)
    count = len(a["starts"])
    axes, steps = a.get("axes", list(range(count))), a.get("steps", [1] * count)
    if not count == len(a["ends"]) == len(axes) == len(steps) or 0 in steps:
        return None
    for axis, start, end, step in zip(axes, a["starts"], a["ends"], steps, strict=True):
        if not -len(first) <= axis < len(first) or step < 0:
            return None
        side = sides[axis]
        sides[axis] = None if side is None else len(range(side)[start:end:step])
    return tuple(sides)


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return None
    rank = max(map(len, known))
    result: list[int | None] = []
    for axis in range(-rank, 0):
        sides = [shape[axis] for shape in known if len(shape) >= -axis]
        long = {side for side in sides if side != 1}
        result.append(1 if not long else long.pop() if len(long) == 1 else None)
    return tuple(result)


def _windows(graph: Graph, node: Node, first: Shape) -> Shape | None:
    kernel = graph.static(node, 1) if node.op == "Conv" else None
    if node.op == "Conv" and kernel is None:
        return None
    size = list(kernel.shape[2:]) if kernel is not None else node.attributes.get("kernel_shape")
    a = node.attributes
    if not size or len(first) != len(size) + 2 or a.get("ceil_mode"):
        return None
    if a.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    ones, rank = [1] * len(size), len(size)
    strides, dilations = a.get("strides", ones), a.get("dilations", ones)
    pads = a.get("pads", [0] * 2 * rank)
    sides: list[int | None] = []
    for i, n in enumerate(first[2:]):
        reach = (size[i] - 1) * dilations[i] + 1
        sides.append(
            None if n is None else (n + pads[i] + pads[rank + i] - reach) // strides[i] + 1
        )
    return (first[0], first[1] if kernel is None else kernel.shape[0], *sides)
