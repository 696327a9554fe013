"""Is the imported network the one that torch has? Layer by layer, beside another ``nn.Module``.

Two programs that agree on a file can both be fed the wrong file: whether Keras' VGG16 *is*
torchvision's is told by their weights. Layers are taken for the same where their weights are equal,
laid out as torch has them; of several that are equal, the first in running order. Nothing is
permuted until it fits, and nothing is sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from converters.importer import InputLayout, LayerRecord, load_onnx
from converters.modules.arithmetic import Affine
from converters.sides import network_inputs
from converters.verdicts import Comparison, LayerComparison, beside
from converters.wiring import ImportedNetwork
from torchviz_cnn import head
from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.inputs import misfits_explained, place_and_kind
from torchviz_cnn.naming import display_name, module_of
from torchviz_cnn.observe import capture

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

# Float32 that was folded once more (a batch norm into a kernel) keeps about six digits.
EQUAL_WEIGHTS = 1e-5

NO_COUNTERPART = "not in the torch network"


@dataclass(frozen=True)
class Weighted:
    """A layer with weights, or a convolution with the batch norm behind it.

    Attributes:
        name: in the table.
        type: its class.
        watched: the module whose output it is.
        parts: the modules whose weights these are.
        kind: what weights may be compared with.
        weights: the kernel, then what is added, laid out as torch has them, float32 on the CPU.
        merged: whether a batch norm is in the kernel.
    """

    name: str
    type: str
    watched: str
    parts: tuple[str, ...]
    kind: str
    weights: tuple[Tensor, ...]
    merged: bool = False


def compare_with_torch(
    path: str | Path,
    model_or_name: str | nn.Module | Model,
    *,
    inputs: Tensor | None = None,
    network: ImportedNetwork | None = None,
    input_layout: InputLayout = "NCHW",
    external_data: bool = False,
    seed: int = 0,
) -> Comparison:
    """Run an imported network and a torch network on the same numbers, and compare their layers.

    Compared are the layers that have weights, each at what it puts out before its activation. Which
    belong together is told by their weights: an imported layer's counterpart is the first, in
    running order, that is not taken yet and has equal weights (within 1e-5 of the largest), a
    convolution that a batch norm was merged into beside convolution and batch norm. What is left is
    paired in running order where the shapes of the weights are the same, and said to have other
    weights; what is left then has no counterpart.

    Both are given the same tensor. Keras' and torchvision's networks of one name are mostly trained
    apart, on pictures prepared otherwise (Keras' VGG16 on BGR minus a mean, torchvision's on scaled
    and normalised RGB): they differ from the first kernel on, and that is what is then said. The
    imported network must take (N, C, H, W); its first dense layer's kernel is then in torch's order
    of features.

    Args:
        path: the ONNX file.
        model_or_name: a network, or whatever ``torchviz_cnn.models.load`` makes one of: a name of
            torchvision's (with its published weights), ``package.module:factory``, another file.
        inputs: as the networks take them, ``(N, C, H, W)``; two pictures of uniform noise from 0 to
            1 by default.
        network: the imported network, where it is not to be imported anew.
        input_layout, external_data: as for :func:`~converters.load_onnx`.
        seed: of the noise.

    Returns:
        A row for each layer with weights of the imported network, ``.beside`` naming the torch
        layer and ``.weights`` how far its weights are off; and one for the outputs, before the
        final softmax or sigmoid of either.

    Raises:
        InputError: where the torch network cannot be had, or does not take the imported one's
            pictures.

    Example:
        >>> result = compare_with_torch("vgg16.onnx", my_vgg16)  # doctest: +SKIP
        >>> result.layers[0].name, result.layers[0].beside  # doctest: +SKIP
        ('block1_conv1', 'features.0')
    """
    name, other = _torch_network(model_or_name)
    if network is None:
        network = load_onnx(path, input_layout=input_layout, external_data=external_data)
    if len(network.source.inputs) != 1:
        raise InputError("a network of one input can be compared with torch, not one of several")
    if network.source.input_layout != "NCHW":
        raise InputError("to be compared with torch, a network must be imported as NCHW")
    (given,) = network_inputs(network, inputs, seed)
    theirs = _watch(other, given)
    ours = _watch(network, given)
    pairs = _pairs(ours.layers, theirs.with_merged())
    rows = [row for one in ours.layers for row in _rows(one, pairs.get(one.name), ours, theirs)]
    return Comparison(
        file=Path(path).name,
        reference=name,
        images=len(given),
        layers=tuple(rows),
        outputs=(_output_row(ours.output, theirs.output),),
        notes=(*network.source.notes, *_notes(ours.layers, theirs.layers, pairs, rows, name)),
    )


def _torch_network(model_or_name: Any) -> tuple[str, nn.Module]:
    """What to call it, and the network."""
    if isinstance(model_or_name, str):
        from torchviz_cnn import models

        return model_or_name, module_of(models.load(model_or_name))
    module = module_of(model_or_name)
    if isinstance(model_or_name, nn.Module):
        if isinstance(module, ImportedNetwork):
            return module.source.file, module
        return type(module).__name__, module
    return model_or_name.source, module


# ---------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class _Watched:
    """One run of a network: its layers with weights in running order, and what they put out."""

    layers: list[Weighted]
    seen: Mapping[str, Tensor]
    output: head.Output

    def calls(self, layer: Weighted) -> list[Tensor]:
        """What a layer put out, call by call."""
        found, number = [], 0
        while (key := f"{layer.watched}@{number}" if number else layer.watched) in self.seen:
            found.append(self.seen[key])
            number += 1
        return found

    def with_merged(self) -> list[Weighted]:
        """The layers, and each convolution as one with the batch norm that runs next."""
        found = list(self.layers)
        for conv, norm in zip(self.layers, self.layers[1:], strict=False):
            if (both := _merged(conv, norm)) is not None:
                found.insert(found.index(conv) + 1, both)
        return found


def _watch(module: nn.Module, given: Tensor) -> _Watched:
    records: dict[str, LayerRecord] = {}
    if isinstance(module, ImportedNetwork):
        records = {record.name: record for record in module.source.layers}
    numbers = dict(_weights_of(module))
    places = {name: _imported(name, records) for name in numbers}
    watched = {place[1] for place in places.values()}
    inputs = given.to(**place_and_kind(module))
    with undisturbed(module, inputs), misfits_explained(module, inputs), torch.no_grad():
        with capture(module, [f"{name}@*" for name in watched]) as seen:
            output = head.run(module, inputs, sure=True)
    internal = {display_name(module, name): name for name in watched}
    outputs = {}
    for key, tensor in seen.items():
        base, mark, call = key.rpartition("@")
        shown = base if mark and base in internal else key
        outputs[internal[shown] + (f"@{call}" if shown != key else "")] = tensor.float().cpu()
    order = list(outputs)
    layers = []
    for name, (kind, weights) in numbers.items():
        shown, place, merged = places[name]
        if place in order:
            type_ = type(module.get_submodule(name)).__name__
            record = _record_of(name, records)
            type_ = type_ if record is None else record.type
            layers.append(Weighted(shown, type_, place, (name,), kind, weights, merged))
    layers.sort(key=lambda layer: order.index(layer.watched))
    return _Watched(layers, outputs, output)


def _record_of(name: str, records: Mapping[str, LayerRecord]) -> LayerRecord | None:
    """The Keras layer a module is, or is part of."""
    around = [
        record
        for record in records.values()
        if record.module is not None and f"{name}.".startswith(f"{record.module}.")
    ]
    return max(around, key=lambda record: len(record.module or ""), default=None)


def _imported(name: str, records: Mapping[str, LayerRecord]) -> tuple[str, str, bool]:
    """What a module with weights is called, where to watch it, and whether a norm is in it."""
    record = _record_of(name, records)
    if record is None:
        return name, name, False
    assert record.module is not None
    if record.status.startswith("fused into "):
        norm = record.status.removeprefix("fused into ")
        place = records[norm].module if norm in records else None
        if place is not None:
            return f"{record.name} + {norm}", place, True
    part = name.removeprefix(record.module).removeprefix(".")
    shown = record.name if part in ("", "conv", "dense", "norm") else f"{record.name}.{part}"
    return shown, name, False


def _weights_of(module: nn.Module) -> Iterator[tuple[str, tuple[str, tuple[Tensor, ...]]]]:
    """Modules with weights of their own, and these as they can be compared."""
    for name, child in module.named_modules():
        if name and (found := _numbers(child)) is not None:
            kind, tensors = found
            yield name, (kind, tuple(tensor.detach().float().cpu() for tensor in tensors))


def _numbers(module: nn.Module) -> tuple[str, list[Tensor]] | None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        axis = 1 if module.transposed else 0
        return _kernel(module, f"convolution {axis}", module.out_channels)
    if isinstance(module, nn.Linear):
        return _kernel(module, "dense", module.out_features)
    variance = getattr(module, "running_var", None)
    if isinstance(variance, Tensor):
        mean, bias = module.running_mean, getattr(module, "bias", None)
        scale = (variance.double() + module.eps).rsqrt()  # type: ignore[operator]
        scale = scale * weight.double() if isinstance(weight, Tensor) else scale
        shift = -mean.double() * scale  # type: ignore[operator]
        shift = shift + bias.double() if isinstance(bias, Tensor) else shift
        return "norm", [scale, shift]
    if isinstance(module, Affine):
        return "norm", [module.weight, module.bias]
    own = list(module.parameters(recurse=False))
    return (type(module).__name__, [p for p in own if p is not None]) if own else None


def _kernel(module: Any, kind: str, outputs: int) -> tuple[str, list[Tensor]]:
    """Kernel and bias; no bias is one of zeros, and exporters leave one of zeros out."""
    bias = module.bias if module.bias is not None else module.weight.new_zeros(outputs)
    return kind, [module.weight, bias]


def _merged(conv: Weighted, norm: Weighted) -> Weighted | None:
    """A convolution with the batch norm behind it, as exporters merge the two."""
    if conv.kind != "convolution 0" or norm.kind != "norm":
        return None
    kernel, bias = (tensor.double() for tensor in conv.weights)
    scale, shift = (tensor.double() for tensor in norm.weights)
    if len(scale) != len(kernel):
        return None
    wide = scale.reshape(-1, *[1] * (kernel.ndim - 1))
    weights = ((kernel * wide).float(), (bias * scale + shift).float())
    return replace(
        conv,
        name=f"{conv.name} + {norm.name}",
        watched=norm.watched,
        parts=(*conv.parts, *norm.parts),
        weights=weights,
        merged=True,
    )


# ---------------------------------------------------------------------------- which is which


def _pairs(ours: Sequence[Weighted], theirs: Sequence[Weighted]) -> dict[str, Weighted]:
    """Our layers' names -> their counterparts: by weights first, then by running order."""
    pairs: dict[str, Weighted] = {}
    taken: set[str] = set()
    for equal in (True, False):
        for one in ours:
            if one.name in pairs:
                continue
            fitting = (
                other
                for other in theirs
                if not taken.intersection(other.parts) and _fit(one, other, equal=equal)
            )
            other = next(fitting, None)
            if other is not None:
                pairs[one.name] = other
                taken.update(other.parts)
    return pairs


def _fit(one: Weighted, other: Weighted, *, equal: bool) -> bool:
    shapes = [tensor.shape for tensor in one.weights] == [tensor.shape for tensor in other.weights]
    if one.kind != other.kind or not shapes:
        return False
    return _off(one, other) <= EQUAL_WEIGHTS if equal else one.merged == other.merged


def _off(one: Weighted, other: Weighted) -> float:
    """How far weights are from the others, relative to the largest; what is added beside the
    kernel, too, for it may well be nothing but rounding.
    """
    kernel = float(other.weights[0].abs().max())
    worst = 0.0
    for a, b in zip(one.weights, other.weights, strict=True):
        largest = max(float(b.abs().max()) if b.numel() else 0.0, kernel)
        gap = float((a - b).abs().max()) if b.numel() else 0.0
        worst = max(worst, gap / largest if largest else (0.0 if gap == 0 else float("inf")))
    return worst if worst == worst else float("inf")


# ---------------------------------------------------------------------------- the table


def _rows(
    one: Weighted, other: Weighted | None, ours: _Watched, theirs: _Watched
) -> Iterator[LayerComparison]:
    if other is None:
        yield LayerComparison(one.name, one.type, None, NO_COUNTERPART)
        return
    off = _off(one, other)
    calls = zip(ours.calls(one), theirs.calls(other), strict=False)
    for number, (a, b) in enumerate(calls):
        mark = f"@{number}" if number else ""
        row = beside(one.name + mark, one.type, a.numpy(), b.numpy())
        yield replace(row, beside=other.name + mark, weights=off)


def _output_row(ours: head.Output, theirs: head.Output) -> LayerComparison:
    kinds = {output.kind for output in (ours, theirs)} - {None}
    name = f"output before the {'/'.join(sorted(filter(None, kinds)))}" if kinds else "output"
    a, b = (output.logits.float().cpu().numpy() for output in (ours, theirs))
    return beside(name, "output", a, b)


def _notes(
    ours: Sequence[Weighted],
    theirs: Sequence[Weighted],
    pairs: Mapping[str, Weighted],
    rows: Sequence[LayerComparison],
    name: str,
) -> Iterator[str]:
    """Whose weights these are, in a sentence; and where equal weights give other numbers."""
    off = {one.name: _off(one, pairs[one.name]) for one in ours if one.name in pairs}
    same = [layer for layer, gap in off.items() if gap <= EQUAL_WEIGHTS]
    if len(same) == len(ours):
        yield f"all {len(ours)} layers with weights have the weights of {name}"
    else:
        first = next(one for one in ours if one.name not in same)
        how = f"is {first.name!r}, which has no counterpart of its shape"
        if first.name in pairs:
            how = (
                f"is {first.name!r} beside {pairs[first.name].name!r}, by {off[first.name]:.1e} of "
                "its largest weight"
            )
        foreign = len(off) > len(same) or not same
        begin = f"the weights are not those of {name}: " if foreign else ""
        yield (
            f"{begin}{len(same)} of {len(ours)} layers with weights have those of {name}; the "
            f"first that does not {how}"
        )
    taken = {part for other in pairs.values() for part in other.parts}
    left = [layer.name for layer in theirs if not taken.intersection(layer.parts)]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        yield f"layers of {name} without a counterpart: {', '.join(left[:3])}{more}"
    odd = next((row for row in rows if row.status == "differs" and row.weights is not None), None)
    if odd is not None and odd.weights is not None and odd.weights <= EQUAL_WEIGHTS:
        yield (
            f"{odd.name!r} has the weights of {odd.beside!r} and puts out other numbers: the two "
            "differ in a setting (stride, padding, epsilon), or in what stands before them "
            "(pooling, activation, padding)"
        )
