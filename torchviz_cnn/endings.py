"""What networks end with: softmaxes and sigmoids, and what is done to their results on the way out.

Each function under every name that a network may call it by: torch's, the tensor's own method, and
the operator, which graphs are made of that ``torch.export`` wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

Kind = Literal["softmax", "log_softmax", "sigmoid"]

_ATEN = torch.ops.aten


def _operators(names: str) -> list[Callable[..., Any]]:
    return [getattr(_ATEN, name) for name in names.split()]


def known_as(function: Any) -> Any:
    """How a function stands in these tables: of an operator, all its overloads as one."""
    return getattr(function, "_overloadpacket", function)


KINDS: dict[Callable[..., Any], Kind] = {
    F.softmax: "softmax",
    torch.softmax: "softmax",
    Tensor.softmax: "softmax",
    torch.special.softmax: "softmax",
    F.log_softmax: "log_softmax",
    torch.log_softmax: "log_softmax",
    Tensor.log_softmax: "log_softmax",
    torch.special.log_softmax: "log_softmax",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    Tensor.sigmoid_: "sigmoid",
    torch.special.expit: "sigmoid",
    _ATEN.softmax: "softmax",
    _ATEN._softmax: "softmax",
    _ATEN.log_softmax: "log_softmax",
    _ATEN._log_softmax: "log_softmax",
    _ATEN.sigmoid: "sigmoid",
    _ATEN.sigmoid_: "sigmoid",
}
IN_PLACE = {torch.sigmoid_, Tensor.sigmoid_, _ATEN.sigmoid_}

# What may be done to probabilities on their way out, and is then done to the scores as well …
CARRIED: set[Callable[..., Any]] = {
    *_operators(
        "chunk clone flatten flip index_select narrow permute reshape select slice split "
        "split_with_sizes squeeze t transpose unbind unsqueeze view _unsafe_view"
    ),
    torch.chunk,
    torch.clone,
    torch.flatten,
    torch.flip,
    torch.hsplit,
    torch.index_select,
    torch.moveaxis,
    torch.movedim,
    torch.narrow,
    torch.permute,
    torch.reshape,
    torch.select,
    torch.split,
    torch.squeeze,
    torch.swapaxes,
    torch.swapdims,
    torch.t,
    torch.tensor_split,
    torch.transpose,
    torch.unbind,
    torch.unsqueeze,
    Tensor.__getitem__,
    Tensor.chunk,
    Tensor.clone,
    Tensor.contiguous,
    Tensor.flatten,
    Tensor.flip,
    Tensor.hsplit,
    Tensor.index_select,
    Tensor.mT.__get__,  # type: ignore[attr-defined]
    Tensor.moveaxis,
    Tensor.movedim,
    Tensor.narrow,
    Tensor.permute,
    Tensor.reshape,
    Tensor.select,
    Tensor.split,
    Tensor.squeeze,
    Tensor.swapaxes,
    Tensor.swapdims,
    Tensor.t,
    Tensor.T.__get__,  # type: ignore[attr-defined]
    Tensor.tensor_split,
    Tensor.transpose,
    Tensor.unbind,
    Tensor.unsqueeze,
    Tensor.view,
}
# … and what leaves the scores as they are: another precision or device, the ends cut off.
PASSED: set[Callable[..., Any]] = {
    *_operators("clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip clip_ to _to_copy"),
    torch.clamp,
    torch.clamp_max,
    torch.clamp_min,
    torch.clip,
    torch.clamp_,
    torch.clip_,
    Tensor.bfloat16,
    Tensor.clamp,
    Tensor.clamp_,
    Tensor.clamp_max,
    Tensor.clamp_max_,
    Tensor.clamp_min,
    Tensor.clamp_min_,
    Tensor.clip,
    Tensor.clip_,
    Tensor.cpu,
    Tensor.cuda,
    Tensor.double,
    Tensor.float,
    Tensor.half,
    Tensor.to,
    Tensor.type,
    Tensor.type_as,
}
