"""Is the imported network the one in the file? Layer by layer, against onnxruntime.

Which tensor of the file is a layer's output is worked out here a second time, from the file alone:
a comparison that took the importer's word for it would not notice its mistakes. Axes are moved by a
fixed rule, never searched for, and nothing is sorted.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from converters.graph import Shape, infer_shapes
from converters.importer import InputLayout, LayerRecord, load_onnx, without_dead_nodes
from converters.kinds import kind_by_name
from converters.names import Owner, read_names
from converters.network import ImportedNetwork, call_number
from converters.trust import Limits, read_model
from converters.trust.limits import USUAL
from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.inputs import place_and_kind
from torchviz_cnn.observe import capture

Array = NDArray[Any]

# Relative to a layer's largest value. Float32 on two engines was seen to differ by up to 4e-6; what
# is wrong (a transposed kernel, a forgotten epsilon) differs by far more than a thousandth.
SAME = 1e-4
FAILS = 1e-3

Verdict = Literal["same", "nearly the same", "differs"]
NOT_RUN = "not run by the network"
LOST = "not in the network"
_FAILING = ("differs", NOT_RUN, LOST)


@dataclass(frozen=True)
class LayerComparison:
    """How far one layer's output is from the file's.

    Attributes:
        name: Keras' name; of later calls with ``@1``, ``@2``.
        type: Keras' class.
        shape: of the output for one image; ``None`` where there is none.
        status: ``"same"``, ``"nearly the same"``, ``"differs"``, ``"fused into X"``,
            ``"not in the file"``; ``"not in the network"`` for a layer of the file that the import
            lost, ``"not run by the network"`` for one, or a call of one, that never ran.
        max_abs: largest difference; ``None`` where there was nothing to compare, as the two below.
        relative: the same over the reference's largest magnitude.
        cosine: of the angle between the two outputs as vectors.
        beside: the layer of another torch network it was compared with.
        weights: how far its weights are from that one's, relative to the largest.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    status: str
    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    beside: str | None = None
    weights: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The layers of an imported network beside those of its file.

    Attributes:
        file: its name.
        reference: what computed the other side.
        images: how many inputs were compared.
        layers: one row for each layer and call.
        outputs: one row for each output of the whole network.
    """

    file: str
    reference: str
    images: int
    layers: tuple[LayerComparison, ...]
    outputs: tuple[LayerComparison, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def first_difference(self) -> LayerComparison | None:
        """The first layer, in running order, that is not the same, or not there."""
        rows = (*self.layers, *self.outputs)
        wrong = ("nearly the same", *_FAILING)
        return next((row for row in rows if row.status in wrong), None)

    @property
    def passed(self) -> bool:
        """Whether no layer and no output differs by a thousandth of its largest value, and none of
        the file's layers is missing in the network.
        """
        return all(row.status not in _FAILING for row in (*self.layers, *self.outputs))

    @property
    def worst(self) -> float:
        """The largest relative difference of all."""
        found = [row.relative for row in (*self.layers, *self.outputs) if row.relative is not None]
        return max(found, default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON, which knows no infinity: such a difference is ``None``."""
        return {
            "file": self.file,
            "reference": self.reference,
            "images": self.images,
            "passed": self.passed,
            "worst_relative": _finite(self.worst),
            "first_difference": getattr(self.first_difference, "name", None),
            "layers": [_plain(row) for row in self.layers],
            "outputs": [_plain(row) for row in self.outputs],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        return self.format()

    def format(self, width: int | None = None) -> str:
        """The comparison as text: what differs first, then a line for each layer."""
        width = width or shutil.get_terminal_size((100, 24)).columns
        compared = [row for row in self.layers if row.relative is not None]
        first = self.first_difference
        if first is None:
            head = (
                f"{self.file}: {len(compared)} of {len(self.layers)} layers compared with "
                f"{self.reference}, all the same; the largest difference is {self.worst:.1e} of a "
                "layer's largest value"
            )
        elif first.relative is None:
            head = f"{self.file}: the layer {first.name!r} ({first.type}) is {first.status}"
        else:
            head = (
                f"{self.file}: the first layer that differs is {first.name!r} ({first.type}), by "
                f"{first.relative:.1e} of its largest value"
            )
        titles = _TITLES
        rows = [_cells(row) for row in (*self.layers, *self.outputs)]
        if all(row.beside is None for row in self.layers):
            titles, *rows = (row[:-2] for row in (titles, *rows))
        widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
        over = sum(widths) + 2 * (len(widths) - 1) - width
        widths[0] = max(16 if len(titles) < 7 else 28, widths[0] - max(0, over))
        lines = [head, *self.notes, ""]
        for number, row in enumerate([titles, *rows]):
            name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
            cells = [name.ljust(widths[0]), row[1].ljust(widths[1]), row[2].ljust(widths[2])]
            cells += [text.rjust(widths[i]) for i, text in enumerate(row) if 2 < i < 7]
            cells += row[7:]
            lines.append("  ".join(cells).rstrip())
            if number in (0, len(self.layers)):
                lines.append("─" * min(width, sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join(lines)


def _plain(row: LayerComparison) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(row).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_TITLES: tuple[str, ...] = (
    *("Layer (type)", "Shape", "Status", "Max abs", "Relative", "Cosine"),
    *("Weights", "Beside"),
)


def _cells(row: LayerComparison) -> tuple[str, ...]:
    numbers = [
        "" if value is None else form.format(value)
        for value, form in (
            (row.max_abs, "{:.1e}"),
            (row.relative, "{:.1e}"),
            (row.cosine, "{:.6f}"),
            (row.weights, "{:.1e}"),
        )
    ]
    shape = "" if row.shape is None else "×".join(map(str, row.shape))
    return (f"{row.name} ({row.type})", shape, row.status, *numbers, row.beside or "")


def compare(
    path: str | Path,
    *,
    inputs: Tensor | Sequence[Tensor] | None = None,
    network: ImportedNetwork | None = None,
    layer_names: Sequence[str] | Mapping[str, str] | None = None,
    input_layout: InputLayout = "NCHW",
    external_data: bool = False,
    seed: int = 0,
    torch: Any = None,
    limits: Limits = USUAL,
) -> Comparison:
    """Run the file in onnxruntime and the imported network in torch, and compare every layer.

    onnxruntime runs with all of its optimisations off, as they were seen to cost a ten-thousandth;
    every layer's tensor is made an output.

    Args:
        path: the ONNX file.
        inputs: what both are given, as the network takes it: ``(N, C, H, W)``, or ``(N, H, W)``
            without a channel axis; one for each input of a network with several. Two pictures of
            uniform noise from 0 to 1 by default.
        network: the imported network, where it is not to be imported anew; on any device.
        layer_names, input_layout, external_data, limits: as for :func:`~converters.load_onnx`.
        seed: of the noise.
        torch: compare with this torch network rather than with the file: a name of
            ``torchviz_cnn.models.load``, a ``Model`` or an ``nn.Module``; see
            :func:`~converters.compare_with_torch` for how their layers are put side by side.

    Raises:
        InputError: for a file that cannot be imported, inputs that do not fit, or where onnxruntime
            is not installed or cannot run the file.

    Example:
        >>> result = compare("model.onnx")  # doctest: +SKIP
        >>> result.passed, result.first_difference  # doctest: +SKIP
        (True, None)
    """
    if network is None:
        network = load_onnx(
            path,
            input_layout=input_layout,
            layer_names=layer_names,
            external_data=external_data,
            limits=limits,
        )
    if torch is not None:
        from converters.beside_torch import compare_with_torch

        single = None if inputs is None else network_inputs(network, inputs, seed)[0]
        return compare_with_torch(path, torch, inputs=single, network=network, seed=seed)
    model = without_dead_nodes(read_model(path, external_data=external_data, limits=limits))
    given = network_inputs(network, inputs, seed)
    places = output_tensors(model, inputs_left(network))
    if not places:  # a file without names: take the importer's word for where its layers end
        places = _places_by_tensor(model, network)
    source = network.source
    names = [value.name for value in model.graph.output]
    wanted = [place.tensor for calls in places.values() for place in calls]
    found = _run_reference(model, as_in_file(network, given), [*names, *wanted])
    seen, results = run_network(network, given)
    position = {name: n for n, node in enumerate(model.graph.node) for name in node.output}
    lost = _lost_layers(model, source.layers, places)
    missing = set(lost)
    lost.sort(key=lambda name: position[places[name][0].tensor])
    rows: list[LayerComparison] = []
    for record in source.layers:
        own = places.get(record.name, [])
        while own and lost and position[places[lost[0]][0].tensor] < position[own[0].tensor]:
            rows.append(_lost_row(lost.pop(0)))
        if record.name not in missing:
            rows += _compare_layer(network, record, own, seen, found)
    rows += map(_lost_row, lost)
    return Comparison(
        file=Path(path).name,
        reference=f"onnxruntime {_runtime().__version__}",
        images=len(given[0]),
        layers=tuple(rows),
        outputs=tuple(_compare_outputs(network, model, results, found)),
        notes=tuple(source.notes),
    )


# ---------------------------------------------------------------------------- the file's side

Axes = Literal["channels first", "channels last"]
_FIRST: Axes = "channels first"

# They know no other order of axes than batch, channels, rows, columns.
_SPATIAL = frozenset(
    [
        *("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool"),
        *("GlobalMaxPool", "LpPool", "MaxPool", "SpaceToDepth"),
    ]
)
_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


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
    members = _members(model, [claim.owner for claim in claims], [c.near for c in claims])
    outputs: dict[Owner, str] = {}
    readers = _readers(model)
    for owner, nodes in members.items():
        outside = [
            name
            for index in nodes
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


_NO_OPERATION = frozenset(["Cast", "Dropout", "Identity"])


def _lost_layers(
    model: onnx.ModelProto, records: Sequence[LayerRecord], places: Mapping[str, object]
) -> list[str]:
    """Layers that compute something in the file, and that the network does not have."""
    known = {record.name for record in records if record.status != "not in the file"}
    claims = read_names(model).claims
    members = _members(model, [claim.owner for claim in claims], [c.near for c in claims])
    fixed = _constants(model)
    at_work = {
        index
        for index, node in enumerate(model.graph.node)
        if node.op_type not in _NO_OPERATION and not fixed.issuperset(node.output)
    }
    computing = {".".join(owner.path) for owner, nodes in members.items() if nodes & at_work}
    return [name for name in places if name in computing and name not in known]


def _lost_row(name: str) -> LayerComparison:
    kind = kind_by_name(name.rpartition(".")[2]) or "unknown"
    return LayerComparison(name, kind, None, LOST)


def _places_by_tensor(
    model: onnx.ModelProto, network: ImportedNetwork
) -> dict[str, list[FileTensor]]:
    """Layers of a file that names none, as far as their outputs still bear the file's names."""
    axes = tensor_axes(model, inputs_left(network))
    made = {name for node in model.graph.node for name in node.output}
    return {
        record.name: [FileTensor(record.tensor, axes[record.tensor])]
        for record in network.source.layers
        if record.tensor in made
    }


def _members(
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
            made_by = whose[before]
            if made_by is not None and made_by.path == beside.path:
                whose[index] = made_by  # the exporter's own squeeze at a layer's end
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
    pictures that the file is given channels first, like the network (:func:`inputs_left`).
    """
    known: dict[str, Axes] = {}
    shapes = infer_shapes(model)
    constants = _constants(model)
    nodes = list(model.graph.node)
    for node in nodes:
        if node.op_type in _SPATIAL:
            known[node.input[0]] = "channels first"
            known[node.output[0]] = "channels first"
    for node in reversed(nodes):  # back from what a convolution reads
        after = known.get(node.output[0]) if node.output else None
        if after is not None and node.op_type not in _SPATIAL:
            for name in node.input[: None if _is_pointwise(node) else 1]:
                known.setdefault(name, _turned(node, after, shapes))
    known = dict.fromkeys((n for n in first if len(shapes.get(n, ())) == 4), _FIRST) | known
    for node in nodes:  # and on from what is known
        sources = [known[name] for name in node.input if name in known and name not in constants]
        for name in node.output:
            before: Axes = sources[0] if sources else "channels last"
            known.setdefault(name, _turned(node, before, shapes))
    for value in (*model.graph.input, *model.graph.output):
        known.setdefault(value.name, "channels last")
    return known


def _constants(model: onnx.ModelProto) -> set[str]:
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
        return perm in (_TO_FIRST, _TO_LAST)
    if node.op_type != "Reshape":
        return False
    # A picture of one channel is reshaped instead: H×W×1 and 1×H×W are the same numbers.
    before, after = (shapes.get(name, ())[1:] for name in (node.input[0], node.output[0]))
    if len(before) != 3 or len(after) != 3 or before == after:
        return False
    return before == (*after[1:], after[0]) or after == (*before[1:], before[0])


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "comparing needs onnxruntime, which runs the file itself: "
            'python -m pip install "torchviz-cnn[compare]"'
        ) from None
    return onnxruntime


def start_session(model: onnx.ModelProto) -> Any:
    """Onnxruntime ready to run a model, nothing fused and nothing reordered.

    Raises:
        InputError: where it is not installed, or cannot run the model.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it cannot do is raised; what it deems odd is no news
    with refusals_told():
        return runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


@contextmanager
def refusals_told() -> Iterator[None]:
    """What onnxruntime refuses, as a sentence."""
    state = _runtime().capi.onnxruntime_pybind11_state
    refusals = tuple(
        getattr(state, name)
        for name in (
            *("Fail", "InvalidArgument", "InvalidGraph"),
            *("InvalidProtobuf", "NotImplemented", "RuntimeException"),
        )
    )
    try:
        yield
    except refusals as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"onnxruntime cannot run the file: {reason}") from None


def _run_reference(
    model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Tensors of the file as onnxruntime computes them."""
    there = {value.name for value in model.graph.output}
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in there:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = start_session(model)
    with refusals_told():
        return dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))


# ---------------------------------------------------------------------------- the network's side


def network_inputs(
    network: ImportedNetwork, inputs: Tensor | Sequence[Tensor] | None, seed: int
) -> list[Tensor]:
    """What both sides are given, float32 on the CPU."""
    source = network.source
    if inputs is not None:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if len(given) != len(source.inputs) or not all(isinstance(x, Tensor) for x in given):
            raise InputError(f"the network takes {len(source.inputs)} tensors, not {len(given)}")
        return [x.detach().float().cpu() for x in given]
    if len(source.inputs) != 1:
        raise InputError(
            f"the network takes {len(source.inputs)} inputs ({', '.join(source.inputs)}): give a "
            "tensor for each"
        )
    last = source.input_layout == "as_exported"
    size = [
        _side(n, axis, len(source.input_size), last) for axis, n in enumerate(source.input_size)
    ]
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand((2, *size), generator=generator)]


def _side(known: int | None, axis: int, rank: int, last: bool) -> int:
    """The length of an axis of any length: 3 channels, 64 rows and columns."""
    is_channels = rank == 3 and axis == (2 if last else 0)
    return known or (3 if is_channels else 64)


def inputs_left(network: ImportedNetwork) -> tuple[str, ...]:
    """The inputs that a network which takes (N, C, H, W) takes as the file does."""
    source = network.source
    if source.input_layout != "NCHW":
        return ()
    return tuple(name for name in source.inputs if name not in source.turned)


def as_in_file(network: ImportedNetwork, given: Sequence[Tensor]) -> dict[str, Array]:
    """What the network is given, with the axes where the file has them."""
    source = network.source
    arrays = {name: x.numpy() for name, x in zip(source.inputs, given, strict=True)}
    for name in source.turned:
        if arrays[name].ndim == 4:  # else onnxruntime says what is wrong
            arrays[name] = np.moveaxis(arrays[name], 1, -1)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def run_network(
    network: ImportedNetwork, given: Sequence[Tensor]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """What every layer puts out at each of its calls, and the network itself; outside training.

    The network comes back as it was, whatever mode its parts are in.
    """
    there = [
        f"{record.module}@*"
        for record in network.source.layers
        if record.module is not None and record.status == "in the file"
    ]
    placed = [x.to(**place_and_kind(network)) for x in given]
    with undisturbed(network, placed[0] if placed else None), capture(network, there) as seen:
        results = network(*placed)
    results = results if isinstance(results, tuple) else (results,)
    return (
        {name: tensor.float().cpu() for name, tensor in seen.items()},
        tuple(result.float().cpu() for result in results),
    )


# ---------------------------------------------------------------------------- side by side


def _compare_layer(
    network: ImportedNetwork,
    record: LayerRecord,
    places: Sequence[FileTensor],
    seen: Mapping[str, Tensor],
    found: Mapping[str, Array],
) -> list[LayerComparison]:
    if record.status != "in the file" or record.module is None:
        return [LayerComparison(record.name, record.type, None, record.status)]
    rows = []
    for call, place in enumerate(places):
        name = record.name if call == 0 else f"{record.name}@{call}"
        if name not in seen:
            rows.append(LayerComparison(name, record.type, None, NOT_RUN))
            continue
        ours = seen[name].numpy()
        if record.permutation is not None:
            ours = ours[:, list(record.permutation)]
        rows.append(beside(name, record.type, ours, as_in_network(network, found, place)))
    return rows or [LayerComparison(record.name, record.type, None, "not in the file")]


def as_in_network(network: ImportedNetwork, found: Mapping[str, Array], place: FileTensor) -> Array:
    """A tensor of the file with its channels where the network has them."""
    array = found[place.tensor]
    turned = place.axes == "channels last" and array.ndim == 4
    turned = turned and network.source.input_layout == "NCHW"
    return np.moveaxis(array, -1, 1) if turned else array


def beside(name: str, kind: str, ours: Array, theirs: Array) -> LayerComparison:
    """One row: how far ``ours`` is from ``theirs``, in double precision."""
    if ours.shape != theirs.shape:
        return LayerComparison(name, kind, ours.shape[1:], "differs", np.inf, np.inf, 0.0)
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    gap = float(np.abs(a - b).max(initial=0.0))
    largest = float(np.abs(b).max(initial=0.0))
    relative = gap / largest if largest else (0.0 if gap == 0 else np.inf)
    if not np.isfinite([gap, largest]).all():
        relative = 0.0 if np.array_equal(a, b, equal_nan=True) else np.inf
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else 1.0
    status: Verdict = "differs"
    if relative < FAILS:
        status = "same" if relative <= SAME else "nearly the same"
    return LayerComparison(name, kind, ours.shape[1:], status, gap, relative, cosine)


def _compare_outputs(
    network: ImportedNetwork,
    model: onnx.ModelProto,
    results: Sequence[Tensor],
    found: Mapping[str, Array],
) -> list[LayerComparison]:
    axes = tensor_axes(model, inputs_left(network))
    rows = []
    for name, result in zip(network.source.outputs, results, strict=True):
        theirs = as_in_network(network, found, FileTensor(name, axes[name]))
        rows.append(beside(f"output {name}", "output", result.numpy(), theirs))
    return rows
