"""Every stored tensor of a model, checked; and fetched where it lies in another file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from converters.trust.elsewhere import fetch, location_of
from converters.trust.limits import Limits
from converters.trust.tensors import check_content, check_dims
from converters.trust.words import counted, quoted, title_of
from torchviz_cnn.errors import InputError


def settle_weights(model: ModelProto, folder: Path, external: bool, limits: Limits) -> None:
    """Check every stored tensor, and fetch those that lie in other files where that was asked."""
    found = list(_tensors(model))
    for tensor, where in found:
        if not external and (uses_external_data(tensor) or tensor.external_data):
            fault = f"{where} lies in another file, {quoted(location_of(tensor))}"
            raise InputError(
                f"{fault}; allow that with external_data=True, or save the model as one file",
                typed=f"{fault}; save the model as one file, in Python by "
                "onnx.save(onnx.load(FILE), NEW_FILE)",
            )
    limit, name = (
        (limits.external_bytes, "external_bytes")
        if external
        else (limits.weight_bytes, "weight_bytes")
    )
    total = 0
    for tensor, where in found:
        total += check_dims(tensor, where)
        if total > limit:
            raise InputError(
                f"with {where} its weights take {counted(total, 'byte')}; the limit is {limit:,} "
                f"(Limits.{name})"
            )
    for tensor, where in found:
        if uses_external_data(tensor):
            fetch(tensor, folder, where)
        check_content(tensor, where)


def _tensors(model: ModelProto) -> Iterator[tuple[TensorProto, str]]:
    for tensor in model.graph.initializer:
        yield tensor, f"the weight {quoted(tensor.name)}"
    for index, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                yield tensor, f"{title_of(node, index)}, attribute {quoted(attribute.name)},"
