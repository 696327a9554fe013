"""What a file and its network are both given, and what the network makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from converters.file_tensors import FileTensor, output_tensors
from converters.graph import Array
from converters.verdicts import HALF, SINGLE, Bounds
from converters.wiring import ImportedNetwork
from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.inputs import place_and_kind
from torchviz_cnn.observe import capture


def network_inputs(
    network: ImportedNetwork, inputs: Tensor | Sequence[Tensor] | None, seed: int
) -> list[Tensor]:
    """What both sides are given, float32 on the CPU; noise as many as the network takes."""
    source = network.source
    if inputs is not None:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if len(given) != len(source.inputs) or not all(isinstance(x, Tensor) for x in given):
            raise InputError(f"the network takes {len(source.inputs)} tensors, not {len(given)}")
        if any(x.ndim and not len(x) for x in given):
            raise InputError("there is nothing to compare on: give at least one picture")
        plain = [x.detach().float().cpu() for x in given]
        _check_whole(network, plain)
        return plain
    if len(source.inputs) != 1:
        raise InputError(
            f"the network takes {len(source.inputs)} inputs ({', '.join(source.inputs)}): give a "
            "tensor for each"
        )
    if _takes_no_pictures(source):
        raise InputError(
            "the network takes whole numbers and no pictures (an Embedding's, say), and noise may be "
            "none of those it knows: give inputs="
        )
    last = source.input_layout == "as_exported"
    size = [
        _side(n, axis, len(source.input_size), last) for axis, n in enumerate(source.input_size)
    ]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((network.fixed_batch or 2, *size), generator=generator)
    return [(noise * 255).round() if source.whole else noise]


def _takes_no_pictures(source: Any) -> bool:
    """Whether a network is given whole numbers in a row, as an Embedding is."""
    return len(source.inputs) == 1 and bool(source.whole) and len(source.input_size) < 2


def _check_whole(network: ImportedNetwork, given: Sequence[Tensor]) -> None:
    """Refuse fractions for a file that takes whole numbers: it would be given others."""
    for name, x in zip(network.source.inputs, given, strict=True):
        if name in network.source.whole and not torch.equal(x, x.round()):
            fault = (
                f"the file takes whole numbers for {name!r}, 0 to 255 for a picture: prepare it "
            )
            raise InputError(
                f"{fault}with preprocess='none'", typed=f"{fault}with --preprocess none"
            )


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


def places_of(model: onnx.ModelProto, network: ImportedNetwork) -> dict[str, list[FileTensor]]:
    """For each layer the tensors that it puts out in the file, one for each call.

    A file without names has the importer's word for where its layers end, and for what was turned
    there, as far as their outputs have a name in the file.
    """
    places = output_tensors(model, inputs_left(network))
    if places:
        return places
    made = {name for node in model.graph.node for name in node.output}
    return {
        record.name: [
            FileTensor(record.tensor, "channels last" if record.turned else "channels first")
        ]
        for record in network.source.layers
        if record.tensor in made
    }


def calls_of(network: ImportedNetwork, module: str) -> int:
    """How often a module runs, by its dotted name, in one run of the network."""
    count = 1
    around: nn.Module = network
    for part in module.split("."):
        count *= sum(step.part == part for step in around.steps)  # type: ignore[union-attr]
        around = around.get_submodule(part)
    return count


def as_in_file(network: ImportedNetwork, given: Sequence[Tensor]) -> dict[str, Array]:
    """What the network is given, with the axes where the file has them."""
    source = network.source
    arrays = {name: x.numpy() for name, x in zip(source.inputs, given, strict=True)}
    for name in source.turned:
        if arrays[name].ndim == 4:  # else onnxruntime says what is wrong
            arrays[name] = np.moveaxis(arrays[name], 1, -1)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def as_in_network(network: ImportedNetwork, found: Mapping[str, Array], place: FileTensor) -> Array:
    """A tensor of the file with its channels where the network has them."""
    array = found[place.tensor]
    turned = place.axes == "channels last" and array.ndim == 4
    turned = turned and network.source.input_layout == "NCHW"
    return np.moveaxis(array, -1, 1) if turned else array


def bounds_for(network: ImportedNetwork, found: Iterable[Array] = ()) -> Bounds:
    """What counts as the same where a network, or what it is compared with, reckons so roughly."""
    kinds = {array.dtype for array in found}
    rough = place_and_kind(network).get("dtype") in (torch.float16, torch.bfloat16)
    return HALF if rough or np.dtype(np.float16) in kinds else SINGLE


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
    if _takes_no_pictures(network.source):
        placed = [x.long() for x in placed]  # rows of a table are told by whole numbers alone
    with undisturbed(network, placed[0] if placed else None), capture(network, there) as seen:
        results = network(*placed)
    results = results if isinstance(results, tuple) else (results,)
    return (
        {name: tensor.float().cpu() for name, tensor in seen.items()},
        tuple(result.float().cpu() for result in results),
    )
