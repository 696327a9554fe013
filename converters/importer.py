"""A Keras network from its ONNX file, as an ordinary ``nn.Module`` with Keras' layer names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import version_converter

from converters import passes
from converters.broken import refuse_broken, refuse_unbuildable
from converters.by_onnx2torch import NEWEST_OPSET, Unsupported
from converters.calls import idle_layers
from converters.graph import Graph, is_whole, opset_of, read_graph
from converters.keras_models import KerasModel, read_keras
from converters.matching import Matched, match_layers
from converters.metadata import LayerTable, check_distinct, read_table
from converters.names import Names, read_names
from converters.network import Builder, Made
from converters.ordered import name_by_order
from converters.owners import Listed, add_listed, give_owners, name_fused_norms, name_nameless
from converters.passes.layout import is_channels_last
from converters.trust import Limits, read_model
from converters.trust.limits import USUAL
from converters.wiring import ImportedNetwork
from torchviz_cnn.errors import InputError

InputLayout = Literal["NCHW", "as_exported"]

_TO_LAST = ((0, 2, 3, 1), (0, 2, 1))  # of maps, and of a row of cells


@dataclass(frozen=True)
class LayerRecord:
    """What one Keras layer has become.

    Attributes:
        name: Keras' name, after those of the models it is nested in: ``vggish.conv2d``.
        module: the module's dotted name; ``None`` where there is none.
        type: Keras' class, as far as it can be told.
        output_shape: for one image, as the module puts it out; ``None`` for what is not known.
        status: ``"in the file"``, ``"fused into X"`` or ``"not in the file"``.
        permutation: where the features stand in another order than in Keras (a flattened map is
            channels first here): Keras' output is ``output[:, permutation]``.
        tensor: what the file calls that, at the first call; no name of its where it was rewritten.
        turned: whether the file has that channels last, and the module puts it out channels first.
    """

    name: str
    module: str | None
    type: str
    output_shape: tuple[int | None, ...] | None
    status: str
    permutation: tuple[int, ...] | None = None
    tensor: str | None = None
    turned: bool = False


@dataclass(frozen=True)
class Source:
    """Where an imported network came from.

    Attributes:
        file: the file's name.
        exporter: the program that wrote it.
        opset: version of ONNX' operators in it.
        inputs: names of what the network is given, as the file has them.
        outputs: names of what it puts out.
        input_layout: ``"NCHW"``, or ``"as_exported"``.
        input_size: of one image, as the module takes it; ``None`` for axes of any length.
        layers: one record for each Keras layer.
        notes: what was assumed or changed, each a sentence a user should be told.
        names_in_file: whether the file itself names its layers.
        turned: those of the inputs that the file is given as ``(N, H, W, C)`` and the network as
            ``(N, C, H, W)``.
        turned_outputs: likewise, of the outputs.
        whole: those of the inputs that the file takes as whole numbers, 0 to 255 for pictures.
    """

    file: str
    exporter: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_layout: InputLayout
    input_size: tuple[int | None, ...]
    layers: tuple[LayerRecord, ...]
    notes: tuple[str, ...]
    names_in_file: bool = True
    turned: tuple[str, ...] = ()
    turned_outputs: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


def load_onnx(
    path: str | Path,
    *,
    input_layout: InputLayout = "NCHW",
    layer_names: Sequence[str] | Mapping[str, str] | None = None,
    external_data: bool = False,
    keras: Any = None,
    limits: Limits = USUAL,
) -> ImportedNetwork:
    """A network exported by Keras as an ``nn.Module`` whose named modules are Keras' layers.

    ``conv2d_1`` puts out what Keras calls the layer's output, after its activation; ``conv2d_1.conv``
    (``.dense``) what comes before, ``conv2d_1.act`` is the activation. A layer called twice is one
    module called twice. A batch norm that the exporter merged into a convolution stands behind it as
    an identity; the convolution's own output is not in the file and is refused by name.

    Args:
        path: the file.
        input_layout: ``"NCHW"``: the network takes ``(N, C, H, W)`` like every network of torch,
            and every layer puts out its maps so; ``"as_exported"``: it takes ``(N, H, W, C)`` like
            Keras, and maps lie as the exporter left them, mostly ``(N, C, H, W)``.
        layer_names: Keras' names in order, ``[layer.name for layer in model.layers]``, or name ->
            class name. They are checked against the file, and layers that do nothing outside
            training, which the file does not have, are put back as identities where their place is
            beyond doubt. Of a file without names, the operators are given to the layers in order,
            as far as their classes are known and fit.
        external_data: allow weights in files of their own beside this one.
        keras: the Keras model the file was exported from, or its ``.keras`` or ``.h5`` file (which
            is read as data: neither Keras nor anything in the file is run). For files that carry no
            names, as Keras' torch back end writes them: layers are told by their weights, those
            without weights by their place between the others; what cannot be told beyond doubt
            keeps a readable name, and a note says so. Other files have Keras' list of layers
            checked, as by ``layer_names``; its connections tell where idle layers stand.
        limits: how much the file may ask for before it is refused; raise one of
            ``converters.Limits(elements=…)`` for a file that you trust.

    Returns:
        The network in eval mode; ``.source`` says where it came from and lists the layers.

    Raises:
        InputError: for a file that cannot be read or trusted, or that the exporter broke; says
            which layer, why, and how to export again.

    Example:
        >>> import tempfile, onnx, torch, torchviz_cnn as tvc
        >>> from onnx import helper
        >>> size = [1, 4, 4, 3]
        >>> graph = helper.make_graph(
        ...     [
        ...         helper.make_node("Transpose", ["img"], ["t"], perm=[0, 3, 1, 2]),
        ...         helper.make_node("MaxPool", ["t"], ["p"], "net_1/pool_1/P", kernel_shape=[2, 2]),
        ...         helper.make_node("Relu", ["p"], ["out"], "net_1/re_lu_1_2/Relu"),
        ...     ],
        ...     "tf2onnx",
        ...     [helper.make_tensor_value_info("img", onnx.TensorProto.FLOAT, size)],
        ...     [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        ... )
        >>> opset = helper.make_opsetid("", 15)
        >>> model = helper.make_model(graph, producer_name="tf2onnx", opset_imports=[opset])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     onnx.save(model, f"{folder}/net.onnx")
        ...     net = load_onnx(f"{folder}/net.onnx")
        >>> seen = tvc.activations(net, torch.ones(1, 3, 4, 4))
        >>> {name: tuple(maps.shape) for name, maps in seen.items()}
        {'pool': (1, 3, 3, 3), 're_lu_1': (1, 3, 3, 3)}
    """
    if input_layout not in ("NCHW", "as_exported"):
        raise InputError(f"input_layout is 'NCHW' or 'as_exported', not {input_layout!r}")
    model = without_dead_nodes(read_model(path, external_data=external_data, limits=limits))
    opset = opset_of(model)
    names = read_names(model)
    refuse_broken(model, names.claims, opset)
    if opset > NEWEST_OPSET:
        model = _older(model)
        names = read_names(model)
    table = read_table(model) if layer_names is None else None
    described = None if keras is None else read_keras(keras)
    unused = None if described is None else _not_used(described, table, names, layer_names)
    listed_names = _names_of(layer_names, table, described)
    graph, matched, turned = _simplified(
        model, names, input_layout, described, listed_names, layer_names
    )
    fused = name_fused_norms(graph)
    kinds = _kinds_of(layer_names) or (table.kinds if table else {})
    if described is not None and layer_names is None and table is None:
        kinds = described.kinds
        listed = _listed_by_keras(graph, described, matched)
    else:
        listed = _listed(graph, layer_names, table)
    builder = Builder(graph, kinds)
    try:
        network = builder.network()
    except Unsupported as error:
        raise error.with_advice(names.style) from error.__cause__
    check_distinct(builder.made)
    _describe(network, builder, fused, listed)
    network.fixed_batch = graph.batch
    network.source = Source(
        file=Path(path).name,
        exporter=f"{model.producer_name} {model.producer_version}".removesuffix(" None").strip(),
        opset=opset,
        inputs=tuple(graph.inputs),
        outputs=tuple(value.name for value in model.graph.output),
        input_layout=input_layout,
        input_size=next(iter(graph.inputs.values()), ())[1:],
        layers=_records(graph, builder, fused, listed, kinds),
        notes=(*graph.notes, *([unused] if unused else [])),
        names_in_file=names.style != "nameless",
        turned=turned,
        turned_outputs=tuple(model.graph.output[place].name for place in graph.turned),
        whole=tuple(name for name in graph.inputs if is_whole(graph.types.get(name, 0))),
    )
    return network.eval()


def _not_used(
    keras: KerasModel,
    table: LayerTable | None,
    names: Names,
    layer_names: Sequence[str] | Mapping[str, str] | None,
) -> str | None:
    """A note where a Keras model has nothing to tell; refused where it is not this file's."""
    if layer_names is not None and names.style != "nameless":
        return f"layer_names was given: what {keras.source} says of the layers is not used"
    if table is None:
        return None
    if not keras.described:
        return (
            f"the file has a table of its layers: {keras.source}, which holds weights alone, is "
            "not used"
        )
    ours = {name for name in table.names if table.kinds[name] != "InputLayer"}
    theirs = {name for name in keras.names if keras.kinds[name] != "InputLayer"}
    if ours != theirs:
        raise InputError(
            f"{keras.source} does not fit this file: only one of the two has a layer "
            f"{min(ours ^ theirs)!r}; is this the model it was exported from?"
        )
    return None


def without_dead_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Operators no output depends on, and inputs nobody reads, are left behind."""
    wanted = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    if len(kept) < len(model.graph.node):
        kept.reverse()
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    for position in reversed(range(len(model.graph.input))):
        if model.graph.input[position].name not in wanted:
            del model.graph.input[position]
    return model


def _older(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with older operators; as it is where onnx has no way back.

    Whether each operator is known is found out when its module is built.
    """
    for version in range(NEWEST_OPSET, opset_of(model)):
        try:
            return version_converter.convert_version(model, version)
        except (RuntimeError, ValueError):
            continue  # one operator of it may have no way back as far as this
    return model


def _names_of(
    layer_names: Sequence[str] | Mapping[str, str] | None,
    table: LayerTable | None,
    keras: KerasModel | None,
) -> list[str]:
    """What the layers are said to be called, by whoever says so."""
    if layer_names is not None:
        if isinstance(layer_names, str) or not all(isinstance(name, str) for name in layer_names):
            raise InputError("layer_names must be a list of names: [l.name for l in model.layers]")
        return list(layer_names)
    return table.names if table is not None else keras.names if keras is not None else []


def _simplified(
    model: onnx.ModelProto,
    names: Names,
    layout: InputLayout,
    keras: KerasModel | None,
    listed: Sequence[str],
    layer_names: Sequence[str] | Mapping[str, str] | None,
) -> tuple[Graph, Matched | None, tuple[str, ...]]:
    graph = read_graph(model, names.claims)
    passes.simplify(graph)
    matched = None
    if names.style == "nameless" and keras is not None:
        matched = _matched(graph, keras)
    by_order = names.style == "nameless" and keras is None and layer_names is not None
    if by_order:
        name_by_order(graph, listed, _kinds_of(layer_names))
    turned: tuple[str, ...] = ()
    if layout == "NCHW":
        keras_file = names.style != "nameless" or matched is not None or by_order
        turned = tuple(n for n in graph.inputs if is_channels_last(graph, n, keras=keras_file))
        passes.channels_first(graph, keras=keras_file)
    refuse_unbuildable(graph)
    passes.merge(graph)
    if matched is not None and keras is not None:
        _name_the_rest(graph, matched, keras, listed)
    elif names.style == "nameless" and not by_order:
        graph.notes.append(
            f"the file, written by {names.exporter or 'an unknown program'}, does not carry the "
            "layers' names: they are called after what they do (conv_1, relu_1, …); the Keras file "
            "it was exported from tells them (keras=, --keras)"
        )
        name_nameless(graph, reserved=listed)
    give_owners(graph, listed)
    graph.sort()
    return graph, matched, tuple(name for name in turned if name in graph.inputs)


def _matched(graph: Graph, keras: KerasModel) -> Matched:
    matched = match_layers(graph, keras)
    if not matched.related:
        raise InputError(
            f"none of the kernels of {keras.source} is in the file; is this the model it was "
            "exported from?"
        )
    return matched


def _name_the_rest(
    graph: Graph, matched: Matched, keras: KerasModel, listed: Sequence[str]
) -> None:
    """What no layer could be told for is called after what it does, and that is said."""
    rest = name_nameless(graph, helpers=False, reserved=[*listed, *keras.names])
    few = ", ".join(matched.missing[:3]) + (", …" if len(matched.missing) > 3 else "")
    if matched.missing:
        instead = f" ({', '.join(rest[:3])}, …)" if rest else ""
        graph.notes.append(
            f"layers of {keras.source} that could not be told beyond doubt: "
            f"{len(matched.missing)} ({few}); what the file has in their place is called after "
            f"what it does{instead}"
        )
    elif rest:
        graph.notes.append(
            f"{keras.source} holds weights without a description: only layers with kernels have "
            "their names, and put out what comes before their activations; all else is called "
            f"after what it does ({', '.join(rest[:3])}, …)"
            if not keras.described
            else f"{keras.source} has no layer for some of the file's operators: they are called "
            f"after what they do ({', '.join(rest[:3])}, …)"
        )


def _listed_by_keras(graph: Graph, keras: KerasModel, matched: Matched | None) -> Listed | None:
    """The description's layers in order; behind each, what stands there without a name."""
    if not keras.described:
        return None
    idle = idle_layers(keras.model)
    if matched is None:
        return add_listed(graph, keras.names, keras.kinds, idle, called=keras.source)
    names, at = list(keras.names), 0
    for node in graph.nodes:
        name = node.owner.path[0] if node.owner is not None and node.owner.path else names[at]
        if name not in names:
            names.insert(at + 1, name)
        at = names.index(name)
    return add_listed(graph, names, keras.kinds, idle, sure=True)


def _listed(
    graph: Graph,
    layer_names: Sequence[str] | Mapping[str, str] | None,
    table: LayerTable | None,
) -> Listed | None:
    if table is not None:
        return add_listed(graph, table.names, table.kinds, table.idle)
    if layer_names is None:
        return None
    return add_listed(graph, list(layer_names), _kinds_of(layer_names))


def _kinds_of(layer_names: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    return dict(layer_names) if isinstance(layer_names, Mapping) else {}


def _describe(
    network: ImportedNetwork,
    builder: Builder,
    fused: Mapping[tuple[str, ...], tuple[str, ...]],
    listed: Listed | None,
) -> None:
    """What the library must know to find layers by Keras' names, and to refuse some."""
    network.layer_names = {
        ".".join(made.path): made.module
        for made in builder.made.values()
        if ".".join(made.path) != made.module
    }
    modules = {
        conv: builder.made[conv].module if conv in builder.made else ".".join(conv)
        for conv in fused
    }
    network.merged_norms = {modules[conv]: ".".join(norm) for conv, norm in fused.items()}
    network.unavailable_layers = {
        modules[conv]: (
            f"the output of {'.'.join(conv)!r} is not in the file: the exporter merged the layer "
            f"with the batch norm {'.'.join(norm)!r} after it; look at {'.'.join(norm)!r}"
        )
        for conv, norm in fused.items()
    }
    network.unavailable_layers |= listed.absent if listed is not None else {}


def _records(
    graph: Graph,
    builder: Builder,
    fused: Mapping[tuple[str, ...], tuple[str, ...]],
    listed: Listed | None,
    kinds: Mapping[str, str],
) -> tuple[LayerRecord, ...]:
    records = {".".join(path): _record(graph, made, fused) for path, made in builder.made.items()}
    if listed is None:
        return tuple(records.values())
    ordered: list[LayerRecord] = []
    for name in listed.order:
        if name not in records:
            kind = kinds.get(name, "unknown")
            ordered.append(LayerRecord(name, None, kind, None, "not in the file"))
        ordered += [
            each for key, each in records.items() if key == name or key.startswith(name + ".")
        ]
    return tuple(ordered)


def _record(
    graph: Graph, made: Made, fused: Mapping[tuple[str, ...], tuple[str, ...]]
) -> LayerRecord:
    shape = graph.shapes.get(made.output)
    tensor, perm = graph.in_file.get(made.output, (made.output, ()))
    status = "in the file"
    if made.path in fused:
        status = f"fused into {'.'.join(fused[made.path])}"
    return LayerRecord(
        ".".join(made.path),
        made.module,
        made.kind,
        None if shape is None else shape[1:],
        status,
        graph.permuted.get(made.output),
        tensor if perm in (*_TO_LAST, tuple(range(len(perm)))) else made.output,
        perm in _TO_LAST,
    )
