"""Is the imported network the one in the file? Layer by layer, against onnxruntime.

Which tensor of the file is a layer's output is worked out a second time, from the file alone:
a comparison that took the importer's word for it would not notice its mistakes. Axes are moved by a
fixed rule, never searched for, and nothing is sorted.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from converters.file_tensors import Axes, FileTensor, fixed_tensors, members_of, sigmoids
from converters.graph import Array
from converters.importer import InputLayout, LayerRecord, load_onnx, without_dead_nodes
from converters.kinds import kind_by_name
from converters.names import read_names
from converters.reference import run_reference, runtime
from converters.sides import (
    as_in_file,
    as_in_network,
    bounds_for,
    network_inputs,
    places_of,
    run_network,
)
from converters.trust import Limits, read_model
from converters.trust.limits import USUAL
from converters.verdicts import LOST, NOT_RUN, Bounds, Comparison, LayerComparison, beside
from converters.wiring import ImportedNetwork


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
            uniform noise from 0 to 1 by default. A file of a fixed batch is run as often as it
            takes.
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
    places = places_of(model, network)
    source = network.source
    names = [value.name for value in model.graph.output]
    wanted = [place.tensor for calls in places.values() for place in calls]
    found = run_reference(model, as_in_file(network, given), [*names, *wanted])
    bounds = bounds_for(network, found.values())
    seen, results = run_network(network, given)
    saturating = sigmoids(model)
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
            rows += _compare_layer(network, record, own, seen, found, bounds, saturating)
    rows += map(_lost_row, lost)
    return Comparison(
        file=Path(path).name,
        reference=f"onnxruntime {runtime().__version__}",
        images=len(given[0]),
        layers=tuple(rows),
        outputs=tuple(_compare_outputs(network, results, found, bounds, saturating)),
        notes=tuple(source.notes),
        bounds=bounds,
    )


def _compare_layer(
    network: ImportedNetwork,
    record: LayerRecord,
    places: Sequence[FileTensor],
    seen: Mapping[str, Tensor],
    found: Mapping[str, Array],
    bounds: Bounds,
    saturating: Container[str],
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
        theirs = as_in_network(network, found, place)
        if record.turned and theirs.ndim == 3:  # rows of cells, which no rule for maps is about
            theirs = np.moveaxis(theirs, -1, 1)
        sigmoid = place.tensor in saturating
        rows.append(beside(name, record.type, ours, theirs, bounds, sigmoid=sigmoid))
    return rows or [LayerComparison(record.name, record.type, None, "not in the file")]


def _compare_outputs(
    network: ImportedNetwork,
    results: Sequence[Tensor],
    found: Mapping[str, Array],
    bounds: Bounds,
    saturating: Container[str],
) -> list[LayerComparison]:
    turned = network.source.turned_outputs
    rows = []
    for name, result in zip(network.source.outputs, results, strict=True):
        axes: Axes = "channels last" if name in turned else "channels first"
        theirs = as_in_network(network, found, FileTensor(name, axes))
        ours = result.numpy()
        rows.append(
            beside(f"output {name}", "output", ours, theirs, bounds, sigmoid=name in saturating)
        )
    return rows


_NO_OPERATION = frozenset(["Cast", "Dropout", "Identity"])


def _lost_layers(
    model: onnx.ModelProto, records: Sequence[LayerRecord], places: Mapping[str, object]
) -> list[str]:
    """Layers that compute something in the file, and that the network does not have."""
    known = {record.name for record in records if record.status != "not in the file"}
    claims = read_names(model).claims
    members = members_of(model, [claim.owner for claim in claims], [c.near for c in claims])
    fixed = fixed_tensors(model)
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
