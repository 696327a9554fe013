"""Maps resized to the nearest cell by factors that are not whole, as Keras' ``Resizing`` may be."""

from __future__ import annotations

import math

import numpy as np

from converters.graph import Graph, Node


def nearest_cells(graph: Graph) -> None:
    """Resizes that take the old cell in which the middle of the new one lies: ``NearestCells``.

    Where maps are enlarged by whole factors, every rule comes to the same, and the Resize stays.
    """
    for node in graph.nodes:
        sides = _sides(graph, node) if _by_middles(graph, node) else None
        source = graph.shapes.get(node.inputs[0]) if sides else None
        if sides is None or source is None:
            continue
        if not all(n and side % n == 0 for n, side in zip(source[2:], sides, strict=True)):
            node.op, node.inputs, node.attributes = (
                "NearestCells",
                node.inputs[:1],
                {"sides": sides},
            )


def _by_middles(graph: Graph, node: Node) -> bool:
    a = node.attributes
    if node.op != "Resize" or graph.opset < 11 or a.get("mode", "nearest") != "nearest":
        return False
    rule = a.get("coordinate_transformation_mode"), a.get("nearest_mode")
    return rule == ("tf_half_pixel_for_nn", "floor")


def _sides(graph: Graph, node: Node) -> list[int] | None:
    """Rows and columns of what a Resize puts out, where they are known."""
    source = graph.shapes.get(node.inputs[0])
    scales, sizes = graph.static(node, 2), graph.static(node, 3)
    if source is None or len(source) != 4:
        return None
    if sizes is not None and sizes.shape == (4,):
        return sizes[2:].tolist() if sizes[1] == source[1] else None
    if scales is None or scales.shape != (4,) or scales[:2].tolist() != [1, 1]:
        return None
    sides = zip(source[2:], scales[2:].astype(np.float32), strict=True)
    found = [math.floor(np.float32(n) * factor) for n, factor in sides if n is not None]
    return found if len(found) == 2 else None
