"""The score before the final softmax or sigmoid, however the network spells it.

A probability saturates: its gradient vanishes where the network is sure. The class score of the
papers is what goes *into* the softmax. Here the function itself is watched during the forward pass
(module, ``F.softmax``, ``tensor.softmax``, ``torch.sigmoid``, an imported network's own operator),
so looking for a last ``nn.Softmax`` is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ReferenceType, WeakKeyDictionary, ref

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


@dataclass
class _Seen:
    """What one softmax or sigmoid was given, and gave."""

    given: Tensor
    result: Tensor | None
    reference: ReferenceType[Tensor]
    version: int
    kind: Kind


class _Watch(TorchFunctionMode):
    """Remembers what the softmaxes and sigmoids of a forward pass were given, and gave.

    The last one is held; of earlier ones only those whose result something else still holds, such
    as the tuple the network is about to return. Attention maps go as the network lets them go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[_Seen] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        kind = _KINDS.get(func)
        if kind is None:
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        if func in _IN_PLACE:
            given = given.clone()
        result = func(*args, **kwargs)
        if self.seen:
            self.seen[-1].result = None
        self.seen = [each for each in self.seen if each.reference() is not None]
        version = 0 if result.is_inference() else result._version
        self.seen.append(_Seen(given, result, ref(result), version, kind))
        return result

    def final(self, raw: Tensor) -> _Seen | None:
        """The softmax or sigmoid that made ``raw``, if one did and nothing was done to it since.

        The same numbers, at most reshaped: ``sigmoid(x).squeeze(1)`` still ends in the sigmoid.
        """
        for each in reversed(self.seen):
            result = each.reference()
            if result is None or (not result.is_inference() and result._version != each.version):
                continue
            if result is raw or (
                result.numel() == raw.numel()
                and result.data_ptr() == raw.data_ptr()
                and result.is_contiguous()
                and raw.is_contiguous()
            ):
                return each
        return None


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

    def rows(self, start: int, stop: int) -> Output:
        """The same for some of the images."""
        return Output(self.raw[start:stop], self.logits[start:stop], self.kind)

    def probabilities(self) -> Tensor:
        """The network's own final softmax or sigmoid, else the one its output calls for."""
        if self.kind in ("softmax", "sigmoid"):
            return self.raw
        return probabilities(self.logits, self.kind)


def joined(outputs: Sequence[Output]) -> Output:
    """Outputs for several batches as one."""
    return Output(
        torch.cat([each.raw for each in outputs]),
        torch.cat([each.logits for each in outputs]),
        outputs[0].kind,
    )


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


def run(
    module: nn.Module, inputs: Tensor, *, sure: bool = False, variants_of: Tensor | None = None
) -> Output:
    """One forward pass, and the scores before its final softmax or sigmoid.

    Args:
        module: an unwrapped network, inside :func:`~torchviz_cnn.guard.undisturbed`.
        inputs: ``(N, C, H, W)`` or ``(N, H, W)``.
        sure: always watch. Needed where no graph is recorded, from which it could be seen
            afterwards that watching was left out wrongly.
        variants_of: the user's images, where ``inputs`` are variants made of them. Those the
            network may have; otherwise it gets a copy, as some networks write into their input.

    Raises:
        InputError: when the network returns no tensor, or not one row an image.
    """
    watching = sure or _ENDS_IN.get(module, True)
    watch = _Watch()
    with watch if watching else nullcontext():
        raw = _tensor(module(inputs.clone() if variants_of is None else inputs))
    if raw.ndim == 0 or raw.shape[0] != inputs.shape[0]:
        images = inputs if variants_of is None else variants_of
        variants = "" if variants_of is None else f"{inputs.shape[0]} variants of "
        raise InputError(
            f"the network returned {_described(raw)} for {variants}{len(images)} images given as "
            f"{_described(images)}; it must return one row an image, and inputs must have a batch "
            "axis: (N, C, H, W)"
        )
    if not watching and raw.grad_fn is not None and _graph_ends_in_activation(raw):
        _ENDS_IN[module] = True
        return run(module, inputs)
    final = watch.final(raw)
    if final is None:
        output = Output(raw, raw, None)
    else:
        output = Output(raw, final.given.reshape(raw.shape), final.kind)
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
