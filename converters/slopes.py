"""The scores of an ONNX file, run by onnxruntime: from its inputs, or from a layer's output on.

A file has no gradients; whoever wants some measures slopes between two of these scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from converters.file_tensors import fixed_tensors
from converters.graph import infer_shapes, infer_types
from converters.importer import without_dead_nodes
from converters.reference import Session, batch_of
from converters.sides import as_in_file, calls_of, places_of
from converters.trust import Limits, read_model
from converters.trust.limits import USUAL
from converters.wiring import ImportedNetwork
from torchviz_cnn.errors import NotApplicable

Array = NDArray[Any]

_ENDS = ("Softmax", "LogSoftmax", "Sigmoid")
_HALF = frozenset([TensorProto.FLOAT16, TensorProto.BFLOAT16])
_PASSING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")


class FileScores:
    """Runs the file up to its class scores, those before a final softmax or sigmoid.

    Args:
        path: the file.
        network: what it was imported as: tells the order of its axes.
        external_data, limits: as for :func:`~converters.load_onnx`.

    Raises:
        NotApplicable: for a file with several inputs or outputs, one without scores of classes, one
            that takes whole numbers, or one in half precision.
        InputError: where onnxruntime is not installed or cannot run the file.
    """

    def __init__(
        self,
        path: str | Path,
        network: ImportedNetwork,
        *,
        external_data: bool = False,
        limits: Limits = USUAL,
    ) -> None:
        self.network = network
        model = read_model(path, external_data=external_data, limits=limits)
        self.model = without_dead_nodes(model)
        if len(network.source.inputs) != 1 or len(self.model.graph.output) != 1:
            raise NotApplicable(
                f"{path} has {len(network.source.inputs)} inputs and "
                f"{len(self.model.graph.output)} outputs; slopes need one of each"
            )
        shape = infer_shapes(self.model).get(self.model.graph.output[0].name, (None, None))
        if len(shape) != 2:
            raise NotApplicable(
                f"the file puts out {'×'.join('N' if n is None else str(n) for n in shape)}, no "
                "scores of classes (N×classes)"
            )
        if network.source.whole:
            raise NotApplicable(
                "the file takes whole numbers, between which there are no slopes to measure"
            )
        if _reckons_in_half(self.model):
            raise NotApplicable(
                "the file reckons in half precision, which is too rough to measure slopes in"
            )
        self.score = score_tensor(self.model)
        self.batch = batch_of(self.model)
        self._whole = Session(_ending_in(self.model, self.score), self.batch)

    def scores(self, inputs: Tensor) -> Array:
        """``(N, classes)`` in float64, of inputs as the network takes them."""
        feeds = as_in_file(self.network, [inputs])
        return _rows(self._whole.run([self.score], feeds)[0])

    def beyond(self, layer: str) -> FromLayer:
        """The file from one layer's output on; of several calls the last.

        Raises:
            NotApplicable: when that output is not in the file.
        """
        places = places_of(self.model, self.network).get(layer)
        if not places:
            raise NotApplicable(f"the output of {layer!r} is not in the file by that name")
        modules = {each.name: each.module for each in self.network.source.layers}
        module = modules.get(layer)
        calls = 1 if module is None else calls_of(self.network, module)
        if calls != len(places):
            raise NotApplicable(
                f"{layer!r} is called {calls} times, and which of them is which the file does not say"
            )
        return FromLayer(self, places[-1].tensor, places[-1].axes == "channels last")


class FromLayer:
    """The scores as a function of one layer's feature maps, ``(N, C, h, w)``."""

    def __init__(self, whole: FileScores, tensor: str, channels_last: bool) -> None:
        self.whole = whole
        self.tensor = tensor
        self.channels_last = channels_last
        self._session = Session(_beginning_at(whole.model, tensor, whole.score), whole.batch)
        self._needs_picture = len(self._session.inputs) > 1

    def scores(self, maps: Array, picture: Tensor) -> Array:
        """``(N, classes)`` of N variants of the maps of one picture, ``(1, …)``."""
        given = np.moveaxis(maps, 1, -1) if self.channels_last else maps
        feeds: dict[str, Array] = {self.tensor: np.ascontiguousarray(given, np.float32)}
        if self._needs_picture:  # a connection past the layer
            pictures = picture.expand(len(maps), *picture.shape[1:])
            feeds |= as_in_file(self.whole.network, [pictures])
        return _rows(self._session.run([self.whole.score], feeds)[0])

    def maps(self, found: Mapping[str, Array]) -> Array:
        """The layer's maps among tensors of the file, channels first."""
        array = found[self.tensor]
        return np.moveaxis(array, -1, 1) if self.channels_last else array


def _rows(scores: Array) -> Array:
    return scores.reshape(len(scores), -1).astype(np.float64)


def _reckons_in_half(model: onnx.ModelProto) -> bool:
    """Whether any tensor is of half precision; weights that are stored so need not be used so."""
    stored = fixed_tensors(model)
    return any(kind in _HALF for name, kind in infer_types(model).items() if name not in stored)


def score_tensor(model: onnx.ModelProto) -> str:
    """What the file's final softmax or sigmoid is given; its output where there is none."""
    makers = {name: node for node in model.graph.node for name in node.output}
    output: str = model.graph.output[0].name
    name = output
    while (node := makers.get(name)) is not None:
        if node.op_type in _ENDS:
            return str(node.input[0])
        if node.op_type not in _PASSING:
            break
        name = node.input[0]
    return output


def _ending_in(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    return _part(model, list(model.graph.node), tensor, [])


def _beginning_at(model: onnx.ModelProto, start: str, end: str) -> onnx.ModelProto:
    """The operators between, with ``start`` for an input; and those of connections past it."""
    nodes = [node for node in model.graph.node if start not in node.output]
    given = helper.make_tensor_value_info(start, TensorProto.FLOAT, None)
    return _part(model, nodes, end, [given])


def _part(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    end: str,
    inputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of those of the nodes that ``end`` depends on."""
    wanted, kept = {end}, list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    inputs = [*inputs, *(value for value in model.graph.input if value.name in wanted)]
    weights = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    graph = helper.make_graph(
        kept[::-1], "part", inputs, [helper.make_empty_tensor_value_info(end)], weights
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
