"""The gradients of many classes at a layer's maps, from one forward pass.

One after the other they would cost a backward pass each. Behind global average pooling and a linear
layer they are known without any (:mod:`~torchviz_cnn.methods.closed`); behind other heads without
convolutions many go through one backward pass together, which reads a large weight matrix once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from torchviz_cnn.methods.closed import slopes
from torchviz_cnn.methods.examine import differentiated, no_gradient
from torchviz_cnn.methods.passes import Chosen, Pass

Gradients = dict[str, Tensor]

# Backward passes of these operators have been seen to be faster for many classes together, and are
# the same; those of convolutions are not faster, and of others, nothing is known.
_TOGETHER = re.compile(
    r"(AccumulateGrad|AdaptiveAvgPool2D|Add|Addmm|Alias|AsStrided|AvgPool2D|Clone|Div|Expand|Gelu|"
    r"Hardsigmoid|Hardswish|Hardtanh|Index|MaxPool2DWithIndices|Mean|Mm|Mul|NativeLayerNorm|Neg|"
    r"Permute|Relu|ReshapeAlias|Select|Sigmoid|Silu|Slice|Softmax|LogSoftmax|Squeeze|Stack|Sub|Sum|T|"
    r"Tanh|Threshold|Transpose|UnsafeView|Unsqueeze|View|Where)(Backward\d*)?"
)


# Numbers of a block of gradients at most.
ROOM = {"cpu": 2**23, "cuda": 2**26}


def gradients_at_maps(
    seen: Pass, layers: Sequence[Chosen], *, keep_graph: bool = False
) -> Iterator[Gradients]:
    """The scores' gradients at the maps of layers, for some of the K targets at a time.

    Args:
        seen: the pass.
        layers: those whose maps are differentiated at, all in one backward pass.
        keep_graph: whether the graph will be used again.

    Yields:
        Layer name -> ``(N, k, C, h, w)``, or ``(N, k, C, 1, 1)`` where all cells have the same;
        together K targets in their order (one, where there is no axis of targets).

    Raises:
        NotApplicable: when the scores do not depend on the maps differentiably; ``InputError`` for
            a layer that the user named.
    """
    with torch.enable_grad():
        score = seen.explained.score.reshape(len(seen.explained.score), -1)
    at = [seen.maps[layer.name] for layer in layers]
    names = [layer.name for layer in layers]
    count = score.shape[1]

    def block(start: int, stop: int) -> Gradients:
        more = keep_graph or stop < count
        with torch.enable_grad():
            some = score[:, start:stop]
        found = _differentiated(some, at, more=more)
        for layer, gradient in zip(layers, found, strict=True):
            if gradient is None:
                raise no_gradient(f"the layer {layer.name!r}", layer.fault)
        return dict(zip(names, cast("list[Tensor]", found), strict=True))

    first = block(0, 1)
    if count == 1:
        yield first
        return
    room = ROOM["cuda" if score.is_cuda else "cpu"]
    known = {name: _closed(seen, name, first[name]) for name in names}
    if all(each is not None for each in known.values()):
        size = max(1, room // max(len(score) * maps.shape[1] for maps in at))
        for start in range(0, count, size):
            yield {
                name: cast("_Closed", known[name]).gradient(start, start + size) for name in names
            }
        return
    yield first
    size = max(1, room // max(maps.numel() for maps in at)) if _go_together(score, at) else 1
    for start in range(1, count, size):
        yield block(start, min(start + size, count))


def _differentiated(score: Tensor, at: list[Tensor], *, more: bool) -> list[Tensor | None]:
    """The gradients of k scores an image, ``(N, k)``, at each of the tensors: ``(N, k, …)``."""
    count = score.shape[1]
    if not score.requires_grad:
        return [None for _ in at]
    if count == 1:
        found = differentiated(score, at, torch.ones_like(score), more=more)
        return [None if each is None else each[:, None] for each in found]
    one_hot = torch.eye(count, dtype=score.dtype, device=score.device)[:, None]
    weights = one_hot.expand(count, *score.shape)
    found = differentiated(score, at, weights, more=more, batched=True)
    return [None if each is None else each.movedim(0, 1) for each in found]


def _go_together(score: Tensor, at: list[Tensor]) -> bool:
    """Whether the graph from the maps to the scores is made of operators known to be suitable.

    Not where torch looks for NaN in each gradient: it cannot look into several at once.
    """
    if torch.is_anomaly_enabled():
        return False
    ends = [maps.grad_fn for maps in at]
    seen: set[Any] = set(ends)
    waiting = [score.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().removeprefix("torch::autograd::")
        if not _TOGETHER.fullmatch(name):
            return False
        waiting.extend(before for before, _ in node.next_functions)
    return True


class _Closed:
    """The gradients of a network that ends in global average pooling and a linear layer."""

    def __init__(self, weight: Tensor, target: Tensor) -> None:
        self.weight = weight
        self.target = target if target.ndim == 2 else target[:, None]

    def gradient(self, start: int, stop: int) -> Tensor:
        """Of some of the targets, ``(N, k, C, 1, 1)``."""
        target = self.target[:, start:stop]
        if len(self.weight) == 1:  # two classes, one output: of class 0 it is the negative
            sign = (2 * target - 1).to(self.weight)
            return (sign[..., None] * self.weight[0])[..., None, None]
        return self.weight[target][..., None, None]


def _closed(seen: Pass, name: str, first: Tensor) -> _Closed | None:
    """The gradients without a backward pass, where they are certain.

    What the graph proves is confirmed by the gradient of the first target: a hook on a tensor,
    which can alter gradients, does not stand in the graph.
    """
    target = seen.explained.target
    if target is None or seen.question.score_kind != "logit":
        return None
    maps = seen.maps[name]
    weight = slopes(seen.output.logits, maps)
    if weight is None or weight.dtype != maps.dtype:
        return None
    closed = _Closed(weight.detach().to(maps.device), target.to(maps.device))
    own = closed.gradient(0, 1)
    room = 64 * torch.finfo(own.dtype).eps * own.abs().amax()
    return closed if bool(((first - own).abs() <= room).all()) else None
