"""The score before the final softmax or sigmoid, however the network spells it.

A probability saturates: its gradient vanishes where the network is sure. The class score of the
papers is what goes *into* the softmax. Here the function itself is watched during the forward pass
(module, ``F.softmax``, ``tensor.softmax``, ``torch.sigmoid``, an imported network's own operator),
so looking for a last ``nn.Softmax`` is not needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from torchviz_cnn.endings import CARRIED, IN_PLACE, KINDS, PASSED, Kind, known_as
from torchviz_cnn.errors import InputError, levels_to_the_caller
from torchviz_cnn.guard import every_module
from torchviz_cnn.pooling import without_indices
from torchviz_cnn.words import a, counted


class NoScores(InputError):  # noqa: N818 - nothing is wrong with a network that is no classifier
    """What a network puts out are no scores of classes."""


@dataclass(frozen=True)
class _Seen:
    """What one softmax or sigmoid was given, and gave; or what was made of that since.

    Attributes:
        given: its input, the scores.
        reference: what it gave, as long as somebody holds it.
        version: of that, to see whether something was written into it.
        kind: which function it was.
        carried: what has been done to the result since and is to be done to the scores.
    """

    given: Tensor
    reference: ReferenceType[Tensor]
    version: int
    kind: Kind
    carried: tuple[Callable[[Tensor], Tensor], ...] = ()

    def logits(self) -> Tensor:
        return self._carry(self.given)

    def _carry(self, scores: Tensor) -> Tensor:
        for step in self.carried:
            scores = step(scores)
        return scores

    def output(self, raw: Tensor, logits: Tensor) -> Output | None:
        if self.kind != "sigmoid" and raw.numel() != self.given.numel():
            # Some classes of a softmax: each one's score is its odds against all others.
            if self.given.ndim != 2 or len(self.given) != len(raw):
                return None
            chances = raw.exp() if self.kind == "log_softmax" else raw
            return Output(chances, self._carry(_log_odds(self.given)).to(raw), "sigmoid")
        return Output(raw, logits.to(raw), self.kind)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Watch(TorchFunctionMode):
    """Remembers what the softmaxes and sigmoids of a forward pass were given, and gave.

    The last result is held; of earlier ones only those which something else still holds, such
    as the tuple the network is about to return. Attention maps go as the network lets them go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[_Seen] = []
        self.last: Tensor | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = known_as(func)
        kind = KINDS.get(name)
        if kind is not None:
            given = args[0] if args else kwargs["input"]
            if name in IN_PLACE:
                given = given.clone()
            result = func(*args, **kwargs)
            self._remember(_Seen(given, ref(result), _version(result), kind), result)
            return result
        if self.seen and (name in CARRIED or name in PASSED):
            source = self._found(args[0] if args else kwargs.get("input"))
            result = func(*args, **kwargs)
            if source is not None:
                self._follow(source, func, args[1:], kwargs, result)
            return result
        return func(*args, **kwargs)

    def _follow(
        self, source: _Seen, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Remember what was made of a watched result, and how the scores follow it."""
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        made = [result] if isinstance(result, Tensor) else result
        for index, tensor in enumerate(made):

            def step(scores: Tensor, index: int = index) -> Tensor:
                parts = func(scores, *args, **rest)
                return parts if isinstance(parts, Tensor) else parts[index]

            carried = (*source.carried, step) if known_as(func) in CARRIED else source.carried
            self._remember(
                _Seen(source.given, ref(tensor), _version(tensor), source.kind, carried), tensor
            )

    def _remember(self, seen: _Seen, result: Tensor) -> None:
        self.last = result
        self.seen = [each for each in self.seen if each.reference() is not None]
        self.seen.append(seen)

    def _found(self, tensor: object) -> _Seen | None:
        for each in reversed(self.seen):
            if each.reference() is tensor and each.version == _version(tensor):  # type: ignore[arg-type]
                return each
        return None

    def output(self, raw: Tensor) -> Output | None:
        """``raw`` with the scores it was made of, if it is a softmax's or sigmoid's result."""
        found = self._found(raw)
        if found is None:  # the same numbers in another shape, by a way that could not be watched
            found = next((each for each in reversed(self.seen) if _same_numbers(each, raw)), None)
            return None if found is None else found.output(raw, found.logits().reshape(raw.shape))
        return found.output(raw, found.logits())


def _same_numbers(seen: _Seen, raw: Tensor) -> bool:
    result = seen.reference()
    return (
        result is not None
        and seen.version == _version(result)
        and result.numel() == raw.numel()
        and result.data_ptr() == raw.data_ptr()
        and result.is_contiguous()
        and raw.is_contiguous()
    )


def _log_odds(scores: Tensor) -> Tensor:
    """``log p/(1 − p)`` of each class against all others, from scores ``(N, classes)``."""
    classes = scores.shape[1]
    itself = torch.eye(classes, dtype=torch.bool, device=scores.device)
    others = scores[:, None, :].expand(-1, classes, -1).masked_fill(itself, -torch.inf)
    return scores - others.logsumexp(2)


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

    def contiguous(self) -> Output:
        """The same, laid out as if it had been computed channels first."""
        if self.raw.is_contiguous() and self.logits.is_contiguous():
            return self
        return Output(self.raw.contiguous(), self.logits.contiguous(), self.kind)

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


def of_both_classes(chances: Tensor) -> Tensor:
    """``(N, 2)`` from the probabilities of class 1; those of several classes as they are.

    Example:
        >>> of_both_classes(torch.tensor([0.25, 1.0])).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    if not is_single(chances):
        return chances
    chances = chances.reshape(-1)
    return torch.stack([1 - chances, chances], 1)


# How the last run of a network ended. Watching costs some microseconds an operator, so it is left
# out where it is known to find nothing; a wrong memory is noticed, and costs one run more.
_Ending = Literal["watched", "plain", "looks watched"]
_ENDS: WeakKeyDictionary[nn.Module, _Ending] = WeakKeyDictionary()
_TOLD: WeakSet[nn.Module] = WeakSet()  # whose users know that no softmax was seen
_LOOKED_AT: WeakSet[nn.Module] = WeakSet()  # for batch norms that look at the whole batch

_PASSING = (
    *("Alias", "Clamp", "Clone", "Flip", "IndexSelect", "Permute", "Reshape", "Select", "Slice"),
    *("Split", "Squeeze", "ToCopy", "TBackward", "Transpose", "Unbind", "UnsafeView"),
    *("Unsqueeze", "View"),
)


def _graph_ends_in_activation(output: Tensor) -> bool:
    node = output.grad_fn
    while node is not None and node.name().startswith(_PASSING) and node.next_functions:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(("Softmax", "LogSoftmax", "Sigmoid"))


def run(
    module: nn.Module,
    inputs: Tensor,
    *,
    sure: bool = False,
    variants_of: Tensor | None = None,
    through: Callable[[Tensor], object] | None = None,
    layout: torch.memory_format = torch.preserve_format,
) -> Output:
    """One forward pass, and the scores before its final softmax or sigmoid.

    Args:
        module: an unwrapped network, inside :func:`~torchviz_cnn.guard.undisturbed`.
        inputs: ``(N, C, H, W)`` or ``(N, H, W)``.
        sure: always watch. Needed where no graph is recorded, from which it could be seen
            afterwards that watching was left out wrongly.
        variants_of: the user's images, where ``inputs`` are variants made of them. Those the
            network may have; otherwise it gets a copy, as some networks write into their input.
        through: computes what the network would, in another way.
        layout: in which the network gets them, see :mod:`~torchviz_cnn.layout`.

    Raises:
        NoScores: when the network returns no tensor, or not one row an image.

    Warns:
        UserWarning: once a network, where its outputs are probabilities of which it cannot be seen
            what they were made of, whose logarithm is then taken for the scores; and where pictures
            that are shown together change each other's.
    """
    _tell_of_statistics(module, len(inputs))
    ending = _ENDS.get(module)
    watching = sure or ending in (None, "watched")
    watch = _Watch()
    pools = without_indices(module) if through is None else nullcontext()
    with pools, watch if watching else nullcontext():
        raw = tensor_in((through or module)(_given(inputs, variants_of, layout)))
    _check_rows(raw, inputs, variants_of)
    found = watch.output(raw) if watching else None
    likely = found is None and _are_probabilities(raw)
    if not watching and (likely or (ending == "plain" and _graph_ends_in_activation(raw))):
        output = run(
            module, inputs, sure=True, variants_of=variants_of, through=through, layout=layout
        )
        if _ENDS[module] == "plain" and not likely:
            _ENDS[module] = "looks watched"  # and is not: do not look again
        return output
    # Where probabilities come from nowhere, keep watching: the next may come from a softmax.
    _ENDS[module] = "watched" if found is not None or likely else _plain(ending)
    if likely:
        found = _from_nowhere(module, raw)
    output = found or Output(raw, raw, None)
    if raw.ndim == 0 or (
        len(inputs) == 1 and raw.ndim == 1 and len(raw) > 1
    ):  # squeeze() took the batch's axis
        output = Output(output.raw[None], output.logits.reshape(1, *raw.shape), output.kind)
    return output


def _tell_of_statistics(module: nn.Module, pictures: int) -> None:
    """Warn where what a picture is answered depends on those that are shown with it."""
    if pictures == 1 or module in _LOOKED_AT:
        return
    _LOOKED_AT.add(module)
    if any(isinstance(m, _BatchNorm) and m.running_mean is None for m in every_module(module)):
        warnings.warn(
            "a batch norm of this network keeps no running statistics and normalises by the "
            "pictures at hand, so those that go through it together, hidden or noisy copies too, "
            "change each other's scores; a batch size of 1 explains each by itself",
            stacklevel=levels_to_the_caller(),
        )


def _given(inputs: Tensor, variants_of: Tensor | None, layout: torch.memory_format) -> Tensor:
    """What the network gets: a copy, unless it may have, and write into, the inputs themselves."""
    leaf = inputs.requires_grad and inputs.is_leaf
    if variants_of is None or leaf or layout is not torch.preserve_format:
        return inputs.clone(memory_format=layout)
    return inputs


def _plain(ending: _Ending | None) -> _Ending:
    return "looks watched" if ending == "looks watched" else "plain"


def _from_nowhere(module: nn.Module, raw: Tensor) -> Output:
    """Probabilities whose softmax was not seen: their logarithm is a score as well."""
    if module not in _TOLD:
        _TOLD.add(module)
        warnings.warn(
            "this network puts out probabilities, and what they were made of could not be "
            "seen (the softmax is spelled out, or something follows it); the logarithm of the "
            "probability is explained in place of the score before the softmax",
            stacklevel=levels_to_the_caller(),
        )
    return Output(raw, raw.clamp_min(torch.finfo(raw.dtype).tiny).log(), "softmax")


def _are_probabilities(raw: Tensor) -> bool:
    values = raw.detach()
    if values.ndim != 2 or values.shape[1] < 2 or not values.is_floating_point():
        return False
    if values.device.type == "cpu" and bool(values[0].amin() < 0):
        return False  # as of almost all scores; of a GPU one answer is waited for, not two
    off = (values.sum(1, dtype=torch.float32) - 1).abs().amax()
    room = 0.02 if values.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return bool((values >= 0).all() & (off < room))


def _check_rows(raw: Tensor, inputs: Tensor, variants_of: Tensor | None) -> None:
    """Refuse an output that has not one row an image, or is not made of real numbers."""
    if not raw.is_floating_point():
        raise NoScores(
            f"the network puts out {raw.dtype} numbers; scores are floating-point numbers"
        )
    if raw.ndim and raw.shape[0] == inputs.shape[0]:
        return
    if len(inputs) == 1 and raw.ndim < 2:
        return  # squeeze() of a batch of one took its axis, too
    images = inputs if variants_of is None else variants_of
    variants = "" if variants_of is None else f"{inputs.shape[0]} variants of "
    raise NoScores(
        f"the network returned {_described(raw)} for {variants}{counted(len(images), 'image')} given "
        f"as {_described(images)}; it must return one row an image, and inputs must have a batch "
        "axis: (N, C, H, W)"
    )


def _described(tensor: Tensor) -> str:
    return "a tensor of shape (" + ", ".join(map(str, tensor.shape)) + ")"


def tensor_in(output: object) -> Tensor:
    """The class scores in whatever a network returns: a tensor, a tuple, ``.logits``, a dict."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    holds = f" ({', '.join(map(str, output))})" if isinstance(output, Mapping) else ""
    raise NoScores(
        f"the network returned {a(type(output).__name__)} without a tensor of class scores in it"
        f"{holds}; wrap it in a module that returns one tensor, (N, classes)"
    )
