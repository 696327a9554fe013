"""Giving every operator to a layer, also those whose names do not tell.

What the exporter added for itself goes to whoever uses it; batch norms that it fused into a
convolution, and layers that left no operator at all, get a place of their own in the graph.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from converters.graph import Graph, Node
from converters.kinds import IDLE, kind_by_name, readable
from converters.names import Owner, clean
from torchviz_cnn.errors import InputError, closest

_RESHAPING = frozenset(["Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity"])
_HELPERS = frozenset(["Transpose", "Cast", "SamePad"]) | _RESHAPING
_HEAVY = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Linear",
        "MatMul",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "BatchNormalization",
        "Affine",
    ]
)


def name_nameless(graph: Graph, *, helpers: bool = True) -> list[str]:
    """``conv_1``, ``relu_1``, … for operators nobody named; transposes go to their users.

    Args:
        graph: changed in place.
        helpers: also borders and changes of shape, which otherwise go to their users as well.

    Returns:
        The names given, in running order.
    """
    taken = {_path_of(node)[0] for node in graph.nodes if _path_of(node)}
    counts: dict[str, int] = {}
    left = ("Transpose", "Cast", "SamePad") if helpers else (*_HELPERS, "Pad")
    return [
        _number(node, counts, taken)
        for node in graph.nodes
        if node.owner is None and node.op not in left
    ]


def _number(node: Node, counts: dict[str, int], taken: Container[str] = ()) -> str:
    stem = readable(node.op)
    counts[stem] = counts.get(stem, 0) + 1
    while (name := f"{stem}_{counts[stem]}") in taken:
        counts[stem] += 1
    node.owner = Owner((name,), (name,))
    return name


def give_owners(graph: Graph) -> None:
    """Every operator that has no layer yet is given to one."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.owner is None and node.op in _HEAVY and node.near is None:
            name = _number(node, counts)
            graph.notes.append(
                f"the file does not say which layer a {node.op} belongs to: it is called "
                f"{name!r} here"
            )
    _stay_with_maker(graph)
    _give_to_users(graph)
    makers = graph.makers()
    for node in graph.nodes:
        if node.owner is None:
            before = [makers[name].owner for name in node.inputs if name in makers]
            node.owner = next((owner for owner in before if owner is not None), None)
    name_nameless(graph)
    for node in graph.nodes:
        if node.owner is None:
            _number(node, counts)


def _stay_with_maker(graph: Graph) -> None:
    """``pool/Mean_Squeeze__12`` ends the layer ``pool``: it does not begin the next."""
    makers = graph.makers()
    for node in graph.nodes:
        if node.owner is None and node.op in _RESHAPING and node.near is not None:
            before = makers.get(node.inputs[0])
            if before is not None and _path_of(before) == node.near.path:
                node.owner = before.owner


def _give_to_users(graph: Graph) -> None:
    """To the layer that reads it; a copy to each where several do."""
    for node in reversed(list(graph.nodes)):
        if node.owner is not None:
            continue
        users = graph.consumers().get(node.output, [])
        owners = list(dict.fromkeys(user.owner for user in users if user.owner is not None))
        if not owners:
            continue
        node.owner = owners[0]
        if node.op in _HELPERS and len(owners) == 1 and _is_called_again(graph, owners[0]):
            node.owner = Owner(owners[0].path[:-1], owners[0].scope[:-1])
            continue
        if node.op not in _HELPERS or node.output in graph.outputs:
            continue
        for owner in owners[1:]:
            copy = replace(node, outputs=[graph.fresh(node.output)], owner=owner)
            if (shape := graph.shapes.get(node.output)) is not None:
                graph.shapes[copy.output] = shape
            graph.nodes.insert(graph.nodes.index(node) + 1, copy)
            for user in users:
                if user.owner == owner:
                    user.inputs = [copy.output if n == node.output else n for n in user.inputs]


def _is_called_again(graph: Graph, owner: Owner) -> bool:
    """Whether a layer has several calls: then what stands before one of them is no part of it."""
    owners = {node.owner for node in graph.nodes if node.owner is not None}
    return any(each.path == owner.path and each != owner for each in owners)


def name_fused_norms(graph: Graph) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Give each fused batch norm its place behind the convolution.

    Returns:
        The path of each convolution that lost its own output -> that of the batch norm.
    """
    fused: dict[tuple[str, ...], tuple[str, ...]] = {}
    for node in list(graph.nodes):
        if node.alias is None or node.owner is None:
            continue
        fused[node.owner.path] = node.alias.path
        _insert_alias(graph, node, node.alias)
    return fused


def _insert_alias(graph: Graph, node: Node, owner: Owner) -> Node:
    """Something that does nothing, behind ``node``, under a name of its own."""
    inner = graph.fresh(node.output.split("//")[0])
    alias = Node("Alias", [inner], [node.outputs[0]], owner=owner)
    node.outputs[0] = inner
    if alias.output in graph.shapes:
        graph.shapes[inner] = graph.shapes[alias.output]
    if alias.output in graph.permuted:
        graph.permuted[inner] = graph.permuted[alias.output]
    graph.nodes.insert(graph.nodes.index(node) + 1, alias)
    return alias


@dataclass(frozen=True)
class Listed:
    """The layers a user listed, against those of the file.

    Attributes:
        order: Keras names in order.
        absent: those that left nothing in the file -> why they cannot be looked into; those that
            could be put back as identities are not among them.
    """

    order: tuple[str, ...]
    absent: dict[str, str]


def add_listed(
    graph: Graph,
    names: Sequence[str],
    kinds: Mapping[str, str],
    idle: Mapping[str, str | None] | None = None,
    *,
    sure: bool = False,
    called: str = "layer_names",
) -> Listed:
    """Check a list of Keras' layers against the file and put back those that do nothing.

    Args:
        graph: the file's.
        names: Keras' layers in order.
        kinds: their classes, as far as they are known.
        idle: those known to do nothing -> the layer whose output they hand on, ``None`` for the
            input; where it is not given, it is told from the class, and is the one listed before.
        sure: the names in the file were given from this very list, and some may be others.
        called: what to call the list in a sentence.

    Raises:
        InputError: when the list lacks a layer of the file, or has it elsewhere.
    """
    present = list(dict.fromkeys(n.owner.path[0] for n in graph.nodes if n.owner and n.owner.path))
    if not sure:
        _check_list(graph, names, present, called)
    absent: dict[str, str] = {}
    for index, name in enumerate(names):
        if name in present:
            continue
        kind = kinds.get(name) or kind_by_name(name)
        if kind is None and name in {clean(given) for given in graph.inputs}:
            kind = "InputLayer"
        before = names[:index]
        if idle is not None and name in idle:
            before, kind = _place_of(idle[name], names, kinds)
        elif idle is not None and kind != "InputLayer":
            kind = None
        if (kind in IDLE) and _put_back(graph, name, kind, before, sure=sure):
            continue
        absent[name] = (
            f"the Keras layer {name!r} has left nothing in the file that could be looked at: the "
            "exporter merged it into its neighbours, or it does nothing outside training"
        )
    return Listed(tuple(names), absent)


def _place_of(
    after: str | None, names: Sequence[str], kinds: Mapping[str, str]
) -> tuple[Sequence[str], str]:
    """What stands before a layer that hands on the output of ``after``, and what to take it for."""
    if after is None:
        inputs = [name for name in names if kinds.get(name) == "InputLayer"]
        return inputs, "Identity" if inputs else "InputLayer"
    return [after], "Identity"


def _check_list(graph: Graph, names: Sequence[str], present: Sequence[str], called: str) -> None:
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise InputError(f"{called} lists {repeated!r} twice; Keras' names are unique")
    missing = [name for name in present if name not in names]
    if missing:
        offer = closest(missing[0], [name for name in names if name not in present])
        raise InputError(
            f"{called} does not fit this file, which has a layer {missing[0]!r} that is not "
            f"listed{offer}; give [layer.name for layer in model.layers] of the exported model"
        )
    place = {name: index for index, name in enumerate(names)}
    makers = graph.makers()
    edges = [
        (makers[given], node) for node in graph.nodes for given in node.inputs if given in makers
    ]
    for before, node in edges:
        if not _path_of(before) or not _path_of(node):
            continue
        first, second = _path_of(before)[0], _path_of(node)[0]
        if place[first] > place[second] and not _is_shared(graph, second):
            raise InputError(
                f"{called} does not fit this file, in which {first!r} comes before {second!r}; "
                "give [layer.name for layer in model.layers] of the exported model"
            )


def _path_of(node: Node) -> tuple[str, ...]:
    return node.owner.path if node.owner is not None else ()


def _is_shared(graph: Graph, name: str) -> bool:
    scopes = {n.owner.scope[0] for n in graph.nodes if n.owner and _path_of(n)[:1] == (name,)}
    return len(scopes) > 1


def _put_back(
    graph: Graph, name: str, kind: str, before: Sequence[str], *, sure: bool = False
) -> bool:
    """An identity where the layer stood: behind the layer listed before it, or behind the input.

    Only where that is beyond doubt: what stood before puts out one tensor, and the layers between,
    if any, are identities as well; and where it is not ``sure`` that all that read it read it
    through the layer, no more than one does.
    """
    owner = Owner((name,), (name,))
    if kind == "InputLayer":
        free = [given for given in graph.inputs if not _reads_alias(graph, given)]
        if len(graph.inputs) == 1 and len(free) == 1:
            _alias_behind_input(graph, free[0], owner)
            return True
        return False
    if not before:
        return False
    tensors = _outputs_of(graph, before[-1])
    if len(tensors) != 1:
        return False
    users = {_path_of(user)[:1] for user in graph.consumers().get(tensors[0], [])}
    if len(users) > 1 and not sure:
        return False
    node = graph.makers()[tensors[0]]
    _insert_alias(graph, node, owner)
    return True


def _reads_alias(graph: Graph, name: str) -> bool:
    return any(node.op == "Alias" for node in graph.consumers().get(name, []))


def _alias_behind_input(graph: Graph, name: str, owner: Owner) -> None:
    inner = graph.fresh(name)
    graph.rename_uses(name, inner)
    graph.nodes.insert(0, Node("Alias", [name], [inner], owner=owner))
    graph.shapes[inner] = graph.inputs[name]


def _outputs_of(graph: Graph, name: str) -> list[str]:
    """The tensors a layer hands on; none where it is called several times."""
    if _is_shared(graph, name):
        return []
    own = [node for node in graph.nodes if _path_of(node)[:1] == (name,)]
    made = [tensor for node in own for tensor in node.outputs]
    consumers = graph.consumers()
    return [
        tensor
        for tensor in made
        if tensor in graph.outputs or any(user not in own for user in consumers.get(tensor, []))
    ]
