"""Giving every operator to a layer, also those whose names do not tell.

What the exporter added for itself goes to whoever uses it; batch norms that it fused into a
convolution, and layers that left no operator at all, get a place of their own in the graph.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from converters.graph import Graph, Node, Wires
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


def name_nameless(graph: Graph, *, helpers: bool = True, reserved: Iterable[str] = ()) -> list[str]:
    """``conv_1``, ``relu_1``, … for operators nobody named; transposes go to their users.

    Args:
        graph: changed in place.
        helpers: also borders and changes of shape, which otherwise go to their users as well.
        reserved: names of layers, wherever in the network they are or were.

    Returns:
        The names given, in running order.
    """
    taken = _taken(graph) | set(reserved)
    counts: dict[str, int] = {}
    left = ("Transpose", "Cast", "SamePad") if helpers else (*_HELPERS, "Pad")
    return [
        _number(node, counts, taken)
        for node in graph.nodes
        if node.owner is None and node.op not in left
    ]


def _taken(graph: Graph) -> set[str]:
    """What layers of the network itself are called already."""
    owners = [each for node in graph.nodes for each in (node.owner, node.alias, node.near)]
    return {owner.path[0] for owner in owners if owner is not None and owner.path}


def _number(node: Node, counts: dict[str, int], taken: Container[str]) -> str:
    stem = readable(node.op)
    counts[stem] = counts.get(stem, 0) + 1
    while (name := f"{stem}_{counts[stem]}") in taken:
        counts[stem] += 1
    node.owner = Owner((name,), (name,))
    return name


def give_owners(graph: Graph, reserved: Iterable[str] = ()) -> None:
    """Every operator that has no layer yet is given to one; no layer gets a reserved name."""
    counts: dict[str, int] = {}
    taken = _taken(graph) | set(reserved)
    for node in graph.nodes:
        if node.owner is None and node.op in _HEAVY and node.near is None:
            name = _number(node, counts, taken)
            graph.notes.append(
                f"the file does not say which layer a {node.op} belongs to: it is called "
                f"{name!r} here"
            )
    _stay_with_maker(graph)
    _give_to_users(graph)
    makers = graph.makers()
    for node in graph.nodes:
        if node.owner is None and node.op == "Transpose":
            node.owner = Owner((), ())  # turned for whoever runs the network: no layer does that
        elif node.owner is None:
            before = [makers[name].owner for name in node.inputs if name in makers]
            node.owner = next((owner for owner in before if owner is not None), None)
    name_nameless(graph, reserved=taken)
    taken |= _taken(graph)
    for node in graph.nodes:
        if node.owner is None:
            _number(node, counts, taken)


def _stay_with_maker(graph: Graph) -> None:
    """``pool/Mean_Squeeze__12`` ends the layer ``pool``: it does not begin the next.

    So does ``steps/stack_Concat__70``, which puts together what the layer made step by step.
    """
    makers, readers = graph.makers(), Wires(graph).readers
    for node in graph.nodes:
        if node.owner is None and node.op in _RESHAPING | {"Concat"} and node.near is not None:
            before = makers.get(node.inputs[0])
            turns = []
            while before is not None and _is_free_turn(before) and len(readers(before.output)) == 1:
                turns.append(before)  # our own, back to the order of axes that the file has
                before = makers.get(before.inputs[0])
            depth = len(node.near.path)
            if before is not None and before.owner and before.owner.path[:depth] == node.near.path:
                for each in (node, *turns):
                    each.owner = Owner(node.near.path, before.owner.scope[:depth])


def _is_free_turn(node: Node) -> bool:
    return node.op == "Transpose" and node.owner is None


def _give_to_users(graph: Graph) -> None:
    """To the layer that reads it; a copy to each where several do."""
    wires, calls = Wires(graph), _calls(graph)
    for node in reversed(graph.nodes):
        if node.owner is not None:
            continue
        users = wires.readers(node.output)
        owners = list(dict.fromkeys(user.owner for user in users if user.owner is not None))
        if not owners:
            continue
        node.owner, *others = owners
        is_helper = node.op in _HELPERS
        if is_helper and not others and len(calls[node.owner.path]) > 1:
            # What stands before one of a layer's calls is no part of the layer.
            node.owner = Owner(node.owner.path[:-1], node.owner.scope[:-1])
            calls.setdefault(node.owner.path, set()).add(node.owner)
        elif is_helper and node.output not in graph.outputs:
            for owner in others:
                _copy_for(wires, node, owner, users)
    wires.settle()


def _calls(graph: Graph) -> dict[tuple[str, ...], set[Owner]]:
    """The calls of each layer."""
    found: dict[tuple[str, ...], set[Owner]] = {}
    for node in graph.nodes:
        if node.owner is not None:
            found.setdefault(node.owner.path, set()).add(node.owner)
    return found


def _copy_for(wires: Wires, node: Node, owner: Owner, users: Iterable[Node]) -> None:
    """A copy of a node that the users of one layer read in its place."""
    graph = wires.graph
    copy = replace(node, inputs=[*node.inputs], outputs=[graph.fresh(node.output)], owner=owner)
    if (shape := graph.shapes.get(node.output)) is not None:
        graph.shapes[copy.output] = shape
    wires.put_behind(node, copy)
    for user in users:
        if user.owner == owner:
            wires.feed(user, [copy.output if n == node.output else n for n in user.inputs])


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


def _insert_alias(graph: Graph, node: Node, owner: Owner, index: int = 0) -> Node:
    """Something that does nothing, behind one output of ``node``, under a name of its own."""
    outer = node.outputs[index]
    inner = graph.fresh(outer.split("//")[0])
    graph.stands_for(inner, outer)
    alias = Node("Alias", [inner], [outer], owner=owner)
    node.outputs[index] = inner
    if outer in graph.shapes:
        graph.shapes[inner] = graph.shapes[outer]
    if outer in graph.permuted:
        graph.permuted[inner] = graph.permuted[outer]
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
        idle: those known to do nothing, through which all that read what they hand on read it ->
            the layer whose output that is, ``None`` for the input. Where it is not given, it is told from the class, and only a layer is put back
            through whose place in the list everything goes.
        sure: the names in the file were given from this very list, and some may be others.
        called: what to call the list in a sentence.

    Raises:
        InputError: when the list lacks a layer of the file, or has it elsewhere.
    """
    present = list(dict.fromkeys(n.owner.path[0] for n in graph.nodes if n.owner and n.owner.path))
    if not sure:
        _check_list(graph, names, present, called)
    known = {name: kinds.get(name) or kind_by_name(name) for name in names}
    spelled = {clean(given) for given in graph.inputs}
    known |= {name: "InputLayer" for name in names if known[name] is None and name in spelled}
    absent: dict[str, str] = {}
    doubtful: list[str] = []
    for index, name in enumerate(names):
        if name in present:
            continue
        if known[name] == "InputLayer":
            back = _put_back_input(graph, name)
        elif idle is not None:
            back = name in idle and _put_back(
                graph, name, _handed_on(graph, idle[name], names, known), sure=True
            )
        else:
            rest = [(n in present, known[n] or "") for n in names[index + 1 :]]
            # Whatever else left nothing may be merged into what stands before.
            rest = [each for each in rest if each[0] or not _goes_with_the_next(each[1])]
            through = _only_way_past(graph, names, index) if not rest or rest[0][0] else None
            back = known[name] in IDLE and _put_back(graph, name, through)
            doubtful += [name] if known[name] in IDLE and not back else []
        if not back:
            absent[name] = (
                f"the Keras layer {name!r} has left nothing in the file that could be looked at: "
                "the exporter merged it into its neighbours, or it does nothing outside training"
            )
    if doubtful:
        few = ", ".join(doubtful[:3]) + (", …" if len(doubtful) > 3 else "")
        graph.notes.append(
            f"the list of layers alone does not tell beyond doubt whose output these hand on: {few}; "
            "they cannot be looked at. The Keras file the network was exported from may tell "
            "(keras=, --keras)"
        )
    return Listed(tuple(names), absent)


def _goes_with_the_next(kind: str) -> bool:
    return kind in IDLE or kind.startswith("ZeroPadding")


def _handed_on(
    graph: Graph, after: str | None, names: Sequence[str], kinds: Mapping[str, str | None]
) -> str | None:
    """The one tensor that a layer behind ``after`` hands on; ``None`` stands for the input."""
    if after is None:
        inputs = [name for name in names if kinds[name] == "InputLayer"]
        if not inputs:
            return next(iter(graph.inputs)) if len(graph.inputs) == 1 else None
        after = inputs[-1]
    tensors = _outputs_of(graph, after)
    return tensors[0] if len(tensors) == 1 else None


def _only_way_past(graph: Graph, names: Sequence[str], index: int) -> str | None:
    """The one tensor that layers listed from ``index`` on take from those listed before.

    Where there is no other, a layer that stood in this place can only have handed on that one. A
    layer listed before may be called again behind this place, so what later calls take counts too.
    """
    place = {name: number for number, name in enumerate(names)}
    made: dict[str, int] = {}
    taken: set[str] = set()
    first: dict[str, str] = {}
    for node in graph.nodes:
        path = _path_of(node)
        before = max((made[name] for name in node.inputs if name in made), default=-1)
        number = place[path[0]] if path else before
        again = (
            node.owner is not None
            and bool(path)
            and (first.setdefault(path[0], node.owner.scope[0]) != node.owner.scope[0])
        )
        if number >= index or again:
            taken.update(name for name in node.inputs if made.get(name, number) < index)
            taken.update(name for name in node.inputs if name in graph.inputs)
        made.update(dict.fromkeys(node.outputs, number))
    taken.update(name for name in graph.outputs if made.get(name, -1) < index)
    taken = {name for name in taken if name in made or name in graph.inputs}
    return taken.pop() if len(taken) == 1 else None


def _check_list(graph: Graph, names: Sequence[str], present: Sequence[str], called: str) -> None:
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise InputError(f"{called} lists {repeated!r} twice; Keras' names are unique")
    missing = [name for name in present if name not in names]
    if missing:
        offer = closest(missing[0], [name for name in names if name not in present])
        raise InputError.about(
            called,
            f"does not fit this file, which has a layer {missing[0]!r} that is not listed{offer}; "
            + _right_list(called),
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
            raise InputError.about(
                called,
                f"does not fit this file, in which {first!r} comes before {second!r}; "
                + _right_list(called),
            )


def _right_list(called: str) -> str:
    """What would fit in place of a list that does not."""
    if called == "layer_names":
        return "give [layer.name for layer in model.layers] of the exported model"
    return "it is another network's: give the Keras file that this one was exported from"


def _path_of(node: Node) -> tuple[str, ...]:
    return node.owner.path if node.owner is not None else ()


def _is_shared(graph: Graph, name: str) -> bool:
    scopes = {n.owner.scope[0] for n in graph.nodes if n.owner and _path_of(n)[:1] == (name,)}
    return len(scopes) > 1


def _put_back(graph: Graph, name: str, tensor: str | None, *, sure: bool = False) -> bool:
    """An identity where a layer stood that handed on ``tensor``, if that can be told.

    Not behind a convolution that a batch norm was merged into, whose own output is not in the file;
    and where it is not ``sure`` that all that read the tensor read it through the layer, only where
    no more than one does.
    """
    if tensor is None:
        return False
    if tensor in graph.inputs:
        return _put_back_input(graph, name)
    maker = graph.makers()[tensor]
    users = {_path_of(user)[:1] for user in graph.consumers().get(tensor, [])}
    if maker.alias is not None or (len(users) > 1 and not sure):
        return False
    _insert_alias(graph, maker, Owner((name,), (name,)), maker.outputs.index(tensor))
    return True


def _put_back_input(graph: Graph, name: str) -> bool:
    free = [given for given in graph.inputs if not _reads_alias(graph, given)]
    if len(graph.inputs) != 1 or len(free) != 1:
        return False
    _alias_behind_input(graph, free[0], Owner((name,), (name,)))
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
