"""Channels first: transposes are moved until they meet, or the weights take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from converters.graph import Array, Graph, Node, Shape, Wires, known_length
from converters.passes.vocabulary import BINARY, REDUCTIONS, UNARY
from torchviz_cnn.errors import InputError

TO_CHANNELS_FIRST = [0, 3, 1, 2]
TO_CHANNELS_LAST = [0, 2, 3, 1]


def transposing_reshapes(graph: Graph) -> None:
    """The exporter turns maps of one channel, or one cell, around by a Reshape: make it a Transpose."""
    for node in graph.nodes:
        if node.op != "Reshape" or node.owner or not node.attributes.get("keeps_batch"):
            continue
        source = graph.shapes.get(node.inputs[0])
        target = node.attributes["shape"]
        if source is None or len(source) != 4 or len(target) != 4:
            continue
        for perm in (TO_CHANNELS_FIRST, TO_CHANNELS_LAST):
            channel = 3 if perm is TO_CHANNELS_FIRST else 1
            cells = [source[axis] for axis in (1, 2, 3) if axis != channel]
            turned = [source[axis] for axis in perm[1:]] == target[1:] != list(source[1:])
            if turned and (source[channel] == 1 or cells == [1, 1]):
                node.op, node.attributes = "Transpose", {"perm": perm}
                break


def _is_free_transpose(node: Node) -> bool:
    """A transpose of the exporter's own, not a layer of the network (Keras' Permute)."""
    return node.op == "Transpose" and node.owner is None and "perm" in node.attributes


def cancel_transposes(graph: Graph) -> None:
    """Two transposes in a row are one, or none."""
    wires = Wires(graph)
    for node in graph.nodes:
        if wires.is_there(node):
            _cancel(wires, node)
    wires.settle()
    graph.prune()


def _cancel(wires: Wires, node: Node) -> Node | None:
    """Join a transpose with the one before it, if there is one.

    Returns:
        The transpose whose readers may have become others: the node, the one before both where
        they have cancelled, or none.
    """
    before = wires.makers.get(node.inputs[0]) if _is_free_transpose(node) else None
    if before is None or not _is_free_transpose(before):
        return node if _is_free_transpose(node) else None
    turned: list[int] = before.attributes["perm"]
    if len(turned) != len(node.attributes["perm"]):
        raise InputError(
            f"this file contradicts itself: a tensor of {len(turned)} axes is turned "
            f"{node.attributes['perm']}"
        )
    perm = [turned[axis] for axis in node.attributes["perm"]]
    source = before.inputs[0]
    wires.feed(node, [source])
    node.attributes = {"perm": perm}
    if not wires.is_read(before.output):
        wires.take_out(before)
    if perm != sorted(perm) or node.output in wires.graph.outputs:
        return node
    for user in wires.readers(node.output):
        wires.feed(user, [source if name == node.output else name for name in user.inputs])
    wires.take_out(node)
    earlier = wires.makers.get(source)
    return earlier if earlier is not None and _is_free_transpose(earlier) else None


def is_channels_last(graph: Graph, name: str, *, keras: bool) -> bool:
    """Whether an input holds pictures as Keras has them, channels last.

    The exporter turns them around before the first convolution; a convolution or pooling that takes
    the input as it is shows that they are channels first already.
    """
    shape = graph.inputs[name]
    if len(shape) != 4:
        return False
    consumers = graph.consumers()
    waiting, seen = [name], {name}
    while waiting:
        for node in consumers.get(waiting.pop(), []):
            if node.op == "Transpose" and node.attributes.get("perm") == TO_CHANNELS_FIRST:
                return True
            if node.op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization"):
                return False
            if node.op in UNARY | BINARY | {"Pad", "Concat"} and node.output not in seen:
                seen.add(node.output)
                waiting.append(node.output)
    return keras


def channels_first(graph: Graph, *, keras: bool) -> None:
    """Let the network take (N, C, H, W), and keep feature maps so as far as it goes.

    A transpose back to what the file expects is put behind each input and pushed through the
    network until it meets its inverse. Where it meets the flattening before a dense layer, the
    layer's kernel is permuted instead, and where the features lie is noted in ``graph.permuted``.
    """
    as_they_are = False
    for name, shape in list(graph.inputs.items()):
        if not is_channels_last(graph, name, keras=keras):
            as_they_are = as_they_are or len(shape) == 4
            continue
        turned = graph.fresh(name)
        graph.rename_uses(name, turned)
        graph.nodes.insert(0, Node("Transpose", [name], [turned], {"perm": TO_CHANNELS_LAST}))
        graph.shapes[turned] = shape
        graph.inputs[name] = graph.shapes[name] = _permute(shape, TO_CHANNELS_FIRST)
    push_transposes(graph)
    if keras:
        turn_remaining_maps(graph, made_first=as_they_are)
        push_transposes(graph)
    absorb_into_dense(graph)
    graph.sort()
    _drop_transposes_before_outputs(graph)


def _permute(shape: Shape, perm: Sequence[int]) -> Shape:
    if sorted(perm) != list(range(len(shape))):
        raise InputError(
            f"this file contradicts itself: a tensor of shape {shape} is turned {perm}"
        )
    return tuple(shape[axis] for axis in perm)


def _inverse(perm: Sequence[int]) -> list[int]:
    return [perm.index(axis) for axis in range(len(perm))]


def push_transposes(graph: Graph) -> None:
    """Move transposes towards the output, through everything that allows it."""
    graph.prune()
    wires = Wires(graph)
    waiting = deque(node for node in graph.nodes if _is_free_transpose(node))
    while waiting:
        node = waiting.popleft()
        if not wires.is_there(node):
            continue
        moved = _cancel(wires, node)
        if moved is None or moved.inputs[0] in graph.constants:
            continue
        for user in wires.readers(moved.output):
            if _is_free_transpose(user):
                waiting.append(user)
            elif _push(wires, moved, user):
                waiting += [each for each in wires.readers(user.output) if _is_free_transpose(each)]
        if not wires.is_read(moved.output):
            wires.take_out(moved)
    wires.settle()
    graph.sort()
    graph.prune()


def _push(wires: Wires, node: Node, user: Node) -> bool:
    """Let ``user`` work before the transpose rather than behind it, where it can."""
    graph, makers = wires.graph, wires.makers
    perm: list[int] = node.attributes["perm"]
    if user.op in UNARY:
        inputs = [node.inputs[0], *user.inputs[1:]]
    elif user.op in BINARY:
        turned = [_before(graph, name, perm, makers) for name in user.inputs]
        if any(name is None for name in turned):
            return False
        inputs = [name for name in turned if name is not None]
    elif user.op in ("Concat", "Softmax", "LogSoftmax"):
        turned = [_before(graph, name, perm, makers) for name in user.inputs]
        if any(name is None for name in turned) or (user.op != "Concat" and graph.opset < 13):
            return False
        inputs = [name for name in turned if name is not None]
        axis = user.attributes.get("axis", -1)
        user.attributes = {**user.attributes, "axis": perm[axis % len(perm)]}
    elif user.op == "Pad" and "axes" not in user.attributes and len(user.inputs) == 1:
        pads, rank = user.attributes["pads"], len(perm)
        begin, end = pads[:rank], pads[rank:]
        where = _inverse(perm)
        user.attributes = {
            **user.attributes,
            "pads": [begin[i] for i in where] + [end[i] for i in where],
        }
        inputs = [node.inputs[0]]
    elif user.op == "Linear" and perm == TO_CHANNELS_LAST:
        # A dense layer on maps is a convolution with a window of one cell.
        kernel = f"{user.inputs[1]}//1x1"
        graph.constants[kernel] = graph.constants[user.inputs[1]][:, :, None, None]
        user.op = "Conv"
        inputs = [node.inputs[0], kernel, *user.inputs[2:]]
    elif user.op == "Repeat":
        user.attributes = {**user.attributes, "axis": perm[user.attributes["axis"]]}
        inputs = [node.inputs[0]]
    elif user.op in REDUCTIONS and user.attributes.get("axes"):
        return _push_reduction(wires, node, user)
    else:
        return False
    wires.feed(user, inputs)
    _transpose_after(wires, user, perm)
    return True


def _before(graph: Graph, name: str, perm: list[int], makers: dict[str, Node]) -> str | None:
    """What stands in for an operand once the operator works before the transpose."""
    if name in graph.constants:
        constant = graph.constants[name]
        if constant.ndim == 0:
            return name
        if constant.ndim > len(perm):
            return None
        full = constant.reshape((1,) * (len(perm) - constant.ndim) + constant.shape)
        new = f"{name}//{''.join(map(str, perm))}"
        graph.constants[new] = np.ascontiguousarray(full.transpose(_inverse(perm)))
        return new
    maker = makers.get(name)
    if maker is not None and _is_free_transpose(maker) and maker.attributes["perm"] == perm:
        return maker.inputs[0]
    return None


def _push_reduction(wires: Wires, node: Node, user: Node) -> bool:
    perm: list[int] = node.attributes["perm"]
    rank = len(perm)
    axes = [perm[axis % rank] for axis in user.attributes["axes"]]
    kept = [axis for axis in perm if axis not in axes]
    keeps = user.attributes.get("keepdims", 1)
    if not keeps and kept != sorted(kept):
        return False
    user.attributes = {**user.attributes, "axes": sorted(axes)}
    wires.feed(user, [node.inputs[0]])
    if keeps:
        _transpose_after(wires, user, perm)
    return True


def _transpose_after(wires: Wires, node: Node, perm: list[int]) -> None:
    """Turn around what a node now puts out the other way, for whoever reads it."""
    graph = wires.graph
    old, inner = node.output, graph.fresh(node.output.split("//")[0])
    node.outputs = [inner]
    graph.stands_for(inner, old, perm)
    shape = graph.shapes.get(old)
    if shape is not None:
        graph.shapes[inner] = _permute(shape, _inverse(perm))
    wires.put_behind(node, Node("Transpose", [inner], [old], {"perm": perm}))


_ALWAYS_FIRST = frozenset(
    "Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool Resize".split()  # noqa: SIM905
)


def turn_remaining_maps(graph: Graph, *, made_first: bool = False) -> None:
    """Let layers that the exporter left channels last put their maps out channels first.

    Keras' maps are channels last, so a layer's output is unless it comes from what was turned, or
    goes as it is into a convolution. It is turned inside the layer, and back for whoever reads it,
    where that may cancel again.

    Args:
        graph: changed in place.
        made_first: whether the network is given pictures with the channels first, as Keras has them
            too where it is told to: so are the maps that are made out of something else.
    """
    last = _channels_last_maps(graph, made_first=made_first)
    consumers = graph.consumers()
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(node)
        name = node.output
        users = consumers.get(name, [])
        inside = name not in graph.outputs and all(user.owner == node.owner for user in users)
        if name not in last or node.owner is None or inside:
            continue
        inner, first = graph.fresh(name), graph.fresh(name)
        node.outputs[0] = inner
        graph.stands_for(inner, name)
        graph.stands_for(first, name, TO_CHANNELS_LAST)
        shape = graph.shapes[inner] = graph.shapes[name]
        graph.shapes[first] = _permute(shape, TO_CHANNELS_FIRST)
        turn = Node("Transpose", [inner], [first], {"perm": TO_CHANNELS_FIRST}, owner=node.owner)
        back = Node("Transpose", [first], [name], {"perm": TO_CHANNELS_LAST})
        for user in users:
            if user.owner == node.owner:
                user.inputs = [inner if given == name else given for given in user.inputs]
        nodes += [turn, back]
    graph.nodes = nodes


def _channels_last_maps(graph: Graph, *, made_first: bool) -> set[str]:
    """Tensors of four axes that nothing has turned channels first."""
    first = {name for name, shape in graph.inputs.items() if len(shape) == 4}
    first |= _read_channels_first(graph)
    last: set[str] = set()
    makers = graph.makers()
    for node in graph.nodes:
        if len(graph.shapes.get(node.output, ())) != 4:
            continue
        turned = _is_free_transpose(node) and node.attributes["perm"] == TO_CHANNELS_FIRST
        keeps = node.op not in ("Reshape", "Transpose") and first.intersection(node.inputs)
        made = made_first and _made_first(graph, makers, node, first)
        if turned or keeps or made or node.op in _ALWAYS_FIRST:
            first.add(node.output)
        elif node.output not in first and not _is_free_transpose(node):
            last.add(node.output)
    return last


def _made_first(
    graph: Graph, makers: Mapping[str, Node], node: Node, first: Collection[str]
) -> bool:
    """Whether what changes the shape or the order of axes makes maps with the channels first.

    Of maps that have them first, as long as they stay there, or of nothing like maps; or back to
    that order, as layers do that TensorFlow has for channels last alone.
    """
    name, perm = node.inputs[0], node.attributes.get("perm")
    if perm == TO_CHANNELS_FIRST and name not in first:
        return True
    if node.op != "Reshape" and (perm is None or perm[1] != 1):
        return False
    while len(graph.shapes.get(name, ())) > 4 and name in makers:
        maker = makers[name]
        if maker.attributes.get("perm") in ([0, 2, 3, 4, 1], [0, 4, 1, 2, 3]):
            return bool(maker.attributes["perm"][1] == 4)
        name = maker.inputs[0]  # with an axis more for a while
    return name in first or len(graph.shapes.get(name, ())) < 4


def _read_channels_first(graph: Graph) -> set[str]:
    """What convolutions and poolings read as it is, or after nothing but element-wise operators."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in _ALWAYS_FIRST:
            found.add(node.inputs[0])
        elif node.op in UNARY | BINARY and node.output in found:
            found.update(name for name in node.inputs if len(graph.shapes.get(name, ())) == 4)
    return found


def absorb_into_dense(graph: Graph) -> None:
    """Flatten channels-first maps as they lie and permute the rows of the dense kernels after.

    Left as it is where anything but dense layers and element-wise operators would see the features
    in another order: the network's own output, above all.
    """
    makers, consumers = graph.makers(), graph.consumers()
    for node in list(graph.nodes):
        before = makers.get(node.inputs[0]) if node.op == "Flatten" else None
        if before is None or not _is_free_transpose(before) or node.attributes.get("axis", 1) != 1:
            continue
        source = graph.shapes.get(before.inputs[0])
        perm = before.attributes["perm"]
        if source is None or perm[0] != 0 or known_length(source[1:]) is None:
            continue
        chain = _features_end_in_dense(graph, node.output, consumers)
        if chain is None:
            continue
        lengths = [int(n or 0) for n in source[1:]]
        order = np.arange(int(np.prod(lengths))).reshape(lengths)
        order = order.transpose([axis - 1 for axis in perm[1:]]).reshape(-1)
        node.inputs = [before.inputs[0]]
        _permute_features(graph, node.output, chain, order)
    graph.prune()


def _features_end_in_dense(
    graph: Graph, name: str, consumers: Mapping[str, list[Node]]
) -> list[Node] | None:
    """Everything that reads a vector of features, as long as all of it can be permuted."""
    found: list[Node] = []
    waiting = [name]
    while waiting:
        name = waiting.pop()
        users = consumers.get(name, [])
        if name in graph.outputs or not users:
            return None
        for user in users:
            found.append(user)
            if user.op == "Linear" and name == user.inputs[0]:
                continue
            if user.op not in UNARY | {"Affine"} and not _with_constant(graph, user):
                return None
            waiting.append(user.output)
    return found


def _with_constant(graph: Graph, node: Node) -> bool:
    others = [name for name in node.inputs if name not in graph.constants]
    return node.op in BINARY and len(others) == 1


def _permute_features(graph: Graph, start: str, chain: list[Node], order: Array) -> None:
    """``order[k]`` is where Keras' k-th feature lies from now on."""
    inverse = np.argsort(order)
    graph.permuted[start] = tuple(order.tolist())
    for node in chain:
        for position, name in enumerate(node.inputs):
            constant = graph.constants.get(name)
            if (
                constant is None
                or constant.shape[-1:] != (len(order),)
                or (node.op == "Linear" and position != 1)
            ):
                continue
            new = f"{name}//rows{_fingerprint(order)}"
            if new not in graph.constants:
                # Along the axis that comes first once turned, whole rows are moved.
                graph.constants[new] = np.take(constant.T, inverse, axis=0).T
            node.inputs[position] = new
        if node.op != "Linear":
            graph.permuted[node.output] = tuple(order.tolist())


def _fingerprint(order: Array) -> int:
    return hash(order.tobytes())


def _drop_transposes_before_outputs(graph: Graph) -> None:
    """A network that puts out maps puts them out channels first, like all others inside."""
    makers = graph.makers()
    for position, name in enumerate(graph.outputs):
        node = makers.get(name)
        if node is None or not _is_free_transpose(node):
            continue
        if node.attributes["perm"] == TO_CHANNELS_LAST:
            graph.outputs[position] = node.inputs[0]
            graph.turned.append(position)
            graph.notes.append(
                "the network puts out maps: they come as (N, C, H, W), not (N, H, W, C) as in Keras"
            )
    graph.prune()
