"""Which tensor of a file is which layer's output, and where its channels stand: by fixed rules.

By the names in the file alone: what the importer made of it is measured by this, and not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from converters.graph import Shape, infer_shapes
from converters.names import Owner, read_names
from converters.network import call_number

Axes = Literal["channels first", "channels last"]
FIRST: Axes = "channels first"
# They know no other order of axes than batch, channels, rows, columns.
_SPATIAL = frozenset(
    [
        *("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool"),
        *("GlobalMaxPool", "LpPool", "MaxPool", "SpaceToDepth"),
    ]
)
# They hand on the numbers that they are given.
_PASSING = frozenset(
    ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"]
)


@dataclass(frozen=True)
class FileTensor:
    """A layer's output in the file: its name there, and where its channels stand."""

    tensor: str
    axes: Axes


def output_tensors(
    model: onnx.ModelProto, first: Collection[str] = ()
) -> dict[str, list[FileTensor]]:
    """For each layer the tensors it puts out, one for each call: by the names in the file alone.

    A layer's output is the last of its tensors that anything outside the layer reads. ``first`` are
    inputs known to be channels first, see :func:`tensor_axes`.
    """
    claims = read_names(model).claims
    axes = tensor_axes(model, first)
    members = members_of(model, [claim.owner for claim in claims], [c.near for c in claims])
    outputs: dict[Owner, str] = {}
    readers = _readers(model)
    for owner, nodes in members.items():
        outside = [
            name
            for index in sorted(nodes)
            for name in model.graph.node[index].output
            if any(reader not in nodes for reader in readers.get(name, ()))
        ]
        if outside:
            outputs[owner] = outside[-1]
    for node, claim in zip(model.graph.node, claims, strict=True):
        if claim.alias is not None:
            outputs[claim.alias] = node.output[0]
    found: dict[str, list[FileTensor]] = {}
    for owner in sorted(outputs, key=lambda each: [call_number(scope) for scope in each.scope]):
        place = FileTensor(outputs[owner], axes[outputs[owner]])
        found.setdefault(".".join(owner.path), []).append(place)
    return found


def members_of(
    model: onnx.ModelProto, owners: Sequence[Owner | None], near: Sequence[Owner | None]
) -> dict[Owner, set[int]]:
    """Numbers of the nodes of each layer's call, and of each nested model's."""
    maker = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    whose = list(owners)
    for index, node in enumerate(model.graph.node):
        before = maker.get(node.input[0]) if node.input else None
        beside = near[index]
        if node.op_type == "Transpose":
            continue  # moves axes for whoever comes next: no part of what was computed
        if whose[index] is None and before is not None and beside is not None:
            made_by, depth = whose[before], len(beside.path)
            if made_by is not None and made_by.path[:depth] == beside.path:
                # The exporter's own squeeze at a layer's end, or a model's.
                whose[index] = Owner(beside.path, made_by.scope[:depth])
    members: dict[Owner, set[int]] = {}
    for index, owner in enumerate(whose):
        if owner is not None:
            for depth in range(1, len(owner.path) + 1):
                part = Owner(owner.path[:depth], owner.scope[:depth])
                members.setdefault(part, set()).add(index)
    return members


def _readers(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Numbers of the nodes that read each tensor; −1 is whoever runs the network."""
    readers: dict[str, list[int]] = {value.name: [-1] for value in model.graph.output}
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    return readers


def tensor_axes(model: onnx.ModelProto, first: Collection[str] = ()) -> dict[str, Axes]:
    """Where the channels of every tensor stand, by a fixed rule.

    What a convolution or pooling reads and puts out has them first; transposes move them; all else
    keeps them where they were. What none of these reach is as Keras has it: last; but ``first`` are
    pictures that the file is given channels first, like the network (:func:`inputs_left`). Maps made
    of a vector of features, which has no rows and columns, tell nothing of the maps it was made of;
    nor do those that a layer of Keras' has turned, whose last axis is that of its channels again.
    """
    known: dict[str, Axes] = {}
    shapes = infer_shapes(model)
    constants = fixed_tensors(model)
    vectors = {name for name, shape in shapes.items() if len(shape) < 3}
    nodes = list(model.graph.node)
    turning = _turning_layers(model)
    for node in nodes:
        rows = node.op_type.startswith("Global") and len(shapes.get(node.input[0], ())) == 3
        if node.op_type in _SPATIAL and not rows:  # a mean of rows may be over their features
            known[node.input[0]] = "channels first"
            known[node.output[0]] = "channels first"
    for node in reversed(nodes):  # back from what a convolution reads
        after = known.get(node.output[0]) if node.output else None
        if after is not None and node.op_type not in _SPATIAL and node.output[0] not in turning:
            for name in node.input[: None if _is_pointwise(node) else 1]:
                if name not in vectors:
                    known.setdefault(name, _turned(node, after, shapes))
    pictures = [name for name in first if len(shapes.get(name, ())) == 4]
    known = dict.fromkeys(pictures, FIRST) | known
    mute = constants | vectors
    for node in nodes:  # and on from what is known
        sources = [known[name] for name in node.input if name in known and name not in mute]
        for name in node.output:
            before: Axes = sources[0] if sources else FIRST if pictures else "channels last"
            after = _turned(node, before, shapes)
            if name in turning:  # in a network with the channels first, they are where it left them
                after = FIRST if pictures and turning[name][1:2] == [1] else "channels last"
            known.setdefault(name, after)
    for value in (*model.graph.input, *model.graph.output):
        known.setdefault(value.name, "channels last")
    return known


def _turning_layers(model: onnx.ModelProto) -> dict[str, list[int]]:
    """What layers put out that do nothing but turn axes (``Permute``) -> how they turn them."""
    owners = [claim.owner for claim in read_names(model).claims]
    alone = {owner for owner, count in Counter(owners).items() if owner is not None and count == 1}
    return {
        node.output[0]: list(attribute.ints)
        for node, owner in zip(model.graph.node, owners, strict=True)
        if node.op_type == "Transpose" and owner in alone
        for attribute in node.attribute
        if attribute.name == "perm"
    }


def sigmoids(model: onnx.ModelProto) -> set[str]:
    """Tensors that hold what a sigmoid put out."""
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Sigmoid" or (node.op_type in _PASSING and node.input[0] in found):
            found.update(node.output)
    return found


def fixed_tensors(model: onnx.ModelProto) -> set[str]:
    """Tensors that are no maps: weights, sizes, and what follows from these alone."""
    found = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Shape", "Size") or found.issuperset(filter(None, node.input)):
            found.update(node.output)
    return found


def _is_pointwise(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "Sum")


def _turned(node: onnx.NodeProto, axes: Axes, shapes: Mapping[str, Shape]) -> Axes:
    """The other side of a transpose between the two orders; the same of anything else.

    Either of the two turns one order into the other, so there is one answer in both directions.
    """
    if not _turns(node, shapes):
        return axes
    return "channels last" if axes == "channels first" else "channels first"


def _turns(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> bool:
    if node.op_type == "Transpose":
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        # Of rows, of maps, of volumes; and within a repetition maps have an axis more for a while.
        rest = list(range(1, len(perm or ())))
        to_first, to_last = [0, *rest[-1:], *rest[:-1]], [0, *rest[1:], *rest[:1]]
        in_steps = ([0, 1, 4, 2, 3], [0, 1, 3, 4, 2])  # of maps one after another, batch and time
        return 3 <= len(perm or ()) <= 5 and perm in (to_first, to_last, *in_steps)
    if node.op_type != "Reshape":
        return False
    # A picture of one channel is reshaped instead: H×W×1 and 1×H×W are the same numbers.
    before, after = (shapes.get(name, ())[1:] for name in (node.input[0], node.output[0]))
    if len(before) != 3 or len(after) != 3 or before == after:
        return False
    return before == (*after[1:], after[0]) or after == (*before[1:], before[0])
