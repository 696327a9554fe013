"""The score before the final softmax or sigmoid, however the network spells it.

A probability saturates: its gradient vanishes where the network is sure. The class score of the
papers is what goes *into* the softmax. Here the function itself is watched during the forward pass
(module, ``F.softmax``, ``tensor.softmax``, ``torch.sigmoid``, an imported network's own operator),
so looking for a last ``nn.Softmax`` is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.overrides import TorchFunctionMode

from torchviz_cnn.errors import InputError

Kind = Literal["softmax", "log_softmax", "sigmoid"]

_KINDS: dict[Callable[..., Any], Kind] = {
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
}
_IN_PLACE = {torch.sigmoid_, Tensor.sigmoid_}


class _Watch(TorchFunctionMode):
    """Remembers what the last softmax or sigmoid of a forward pass was given, and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[Tensor, Tensor, Kind] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        kind = _KINDS.get(func)
        if kind is None:
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        if func in _IN_PLACE:
            given = given.clone()
        result = func(*args, **kwargs)
        self.last = (given, result, kind)
        return result


@dataclass(frozen=True)
class Output:
    """What a network put out.

    Attributes:
        raw: the tensor it returned, ``(N, classes)`` for a classifier.
        logits: the same before the final softmax or sigmoid; ``raw`` itself where there is none.
        kind: which of them there was.
    """

    raw: Tensor
    logits: Tensor
    kind: Kind | None

    def probabilities(self) -> Tensor:
        """The network's own final softmax or sigmoid, else the one its output calls for."""
        if self.kind in ("softmax", "sigmoid"):
            return self.raw
        return probabilities(self.logits, self.kind)


def probabilities(logits: Tensor, kind: Kind | None) -> Tensor:
    """Class probabilities ``(N, classes)`` from scores; of one output, that of class 1."""
    if kind == "sigmoid" or is_single(logits):
        return logits.sigmoid()
    return logits.softmax(1)


def is_single(output: Tensor) -> bool:
    """Whether a classifier's output is one number an image: two classes, one sigmoid."""
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


# Whether the last run of a network ended in a softmax or sigmoid. Watching costs some microseconds
# an operator, so it is left out where it is known to find nothing; a wrong memory only costs time.
_ENDS_IN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

_VIEWS = ("View", "Squeeze", "Unsqueeze", "Reshape", "UnsafeView", "Select", "Alias", "Slice")


def _graph_ends_in_activation(output: Tensor) -> bool:
    node = output.grad_fn
    while node is not None and node.name().startswith(_VIEWS) and node.next_functions:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(("Softmax", "LogSoftmax", "Sigmoid"))


def run(module: nn.Module, inputs: Tensor, *, sure: bool = False) -> Output:
    """One forward pass, and the scores before its final softmax or sigmoid.

    Args:
        module: an unwrapped network, inside :func:`~torchviz_cnn.guard.undisturbed`.
        inputs: ``(N, C, H, W)`` or ``(N, H, W)``.
        sure: always watch. Needed where no graph is recorded, from which it could be seen
            afterwards that watching was left out wrongly.

    Raises:
        InputError: when the network returns no tensor, or not one row an image.
    """
    watching = sure or _ENDS_IN.get(module, True)
    watch = _Watch()
    with watch if watching else nullcontext():
        raw = _tensor(module(inputs))
    if raw.ndim == 0 or raw.shape[0] != inputs.shape[0]:
        raise InputError(
            f"the network returned {_described(raw)} for {inputs.shape[0]} images given as "
            f"{_described(inputs)}; it must return one row an image, and inputs must have a batch "
            "axis: (N, C, H, W)"
        )
    if not watching and raw.grad_fn is not None and _graph_ends_in_activation(raw):
        _ENDS_IN[module] = True
        return run(module, inputs)
    output = Output(raw, raw, None)
    if watch.last is not None:
        given, result, kind = watch.last
        # The same numbers, at most reshaped: sigmoid(x).squeeze(1) still ends in the sigmoid.
        same = result is raw or (
            result.numel() == raw.numel()
            and result.data_ptr() == raw.data_ptr()
            and result.is_contiguous()
            and raw.is_contiguous()
        )
        if same:
            output = Output(raw, given.reshape(raw.shape), kind)
    if watching:
        _ENDS_IN[module] = output.kind is not None
    return output


def _described(tensor: Tensor) -> str:
    return "a tensor of shape (" + ", ".join(map(str, tensor.shape)) + ")"


def _tensor(output: object) -> Tensor:
    """The class scores in whatever a network returns: a tensor, a tuple, ``.logits``, a dict."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        f"the network returned a {type(output).__name__} without a tensor of class scores in it; "
        "wrap it in a module that returns (N, classes)"
    )
