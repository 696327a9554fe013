"""What every method starts with: a checked question, and the network held still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError, NotApplicable, check_counts
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.inputs import batch_axis_required, check_inputs, misfits_explained
from torchviz_cnn.naming import known, module_of
from torchviz_cnn.targets import ClassNames, Explained, Question, ScoreKind, Target, class_names

if TYPE_CHECKING:
    from PIL import Image

    from torchviz_cnn.models import Model


@dataclass(frozen=True)
class Examination:
    """A network held still, the pictures it is shown and what is asked about them."""

    module: nn.Module
    inputs: Tensor
    question: Question
    classes: Sequence[str] | None
    view: Callable[[Image.Image], Image.Image] | None

    def about(
        self, explained: Explained, method: str, parameters: dict[str, Any]
    ) -> dict[str, Any]:
        """What every result tells of how it was made: arguments of an ``Attribution``."""
        return {
            # A network spread over several devices answers on another one than it was asked on.
            "score": explained.score.to(self.inputs.device),
            "target": None if explained.target is None else explained.target.to(self.inputs.device),
            "method": method,
            "input_size": self.size,
            "classes": self.classes,
            "parameters": {"score": self.question.score_kind, **parameters},
            "view": self.view,
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.inputs.shape[-2], self.inputs.shape[-1]


@contextmanager
def examine(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target,
    score: ScoreKind,
    classes: ClassNames | None = None,
) -> Iterator[Examination]:
    """Check everything that can be checked without running, then hold the network still.

    Raises:
        InputError: for anything wrong with network, inputs or target.
    """
    module = module_of(model)
    images = check_inputs(model, module, inputs)
    classes = known(model, "classes") if classes is None else class_names(classes)
    with torch.inference_mode(False):
        question = Question(target, images.shape[0], score=score, classes=classes)
    view = getattr(known(model, "preprocess"), "view", None)  # of the preparation, not the network
    with (
        misfits_explained(module, images),
        undisturbed(module, images),
        batch_axis_required(module, images),
    ):
        yield Examination(module, images, question, classes, view)


def batch_of(images: Tensor, wish: int | None, cpu: int, cuda: int = 64) -> int:
    """How many pictures go through the network at once.

    Args:
        images: ``(N, C, H, W)`` or ``(N, H, W)``.
        wish: the user's word; without it as many as have the pixels of ``cpu`` or ``cuda`` pictures
            of 224×224, at most 256.

    Raises:
        InputError: for a wish below 1.
    """
    if wish is None:
        pixels = (cuda if images.is_cuda else cpu) * 224 * 224
        return min(256, max(1, pixels // (images.shape[-2] * images.shape[-1])))
    check_counts(batch_size=wish)
    return wish


def light(module: nn.Module, images: Tensor) -> int:
    """By how many times a network's early maps are smaller than VGG16's; a whole number from 1 to 4.

    They are what a forward pass needs memory for, and their size can be told without running it:
    from the first convolution's channels and stride. It decides only how many pictures go together.
    """
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return 1
    numbers = first.out_channels
    for side, stride in zip(images.shape[-2:], first.stride, strict=True):
        numbers *= -(-side // stride)
    return min(4, max(1, 64 * images.shape[-2:].numel() // numbers))


def parts(examination: Examination, batch_size: int | None, cpu: int) -> Iterator[Examination]:
    """The examination in batches of about equal size; whole for a callable, which expects all."""
    count = len(examination.inputs)
    size = batch_of(examination.inputs, batch_size, cpu)
    size = count if examination.question.callable else -(-count // -(-count // size))
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield replace(
            examination,
            inputs=examination.inputs[start:stop],
            question=examination.question.part(start, stop),
        )


def gradients(
    explained: Explained,
    at: Tensor,
    *,
    of: str,
    keep_graph: bool = False,
    fault: type[InputError] = NotApplicable,
) -> Tensor:
    """The gradient of each image's score at a tensor of the graph.

    Scores of different images do not depend on each other in eval mode, so one backward pass over
    their sum gives every image its own gradient.

    Args:
        explained: scores ``(N,)`` or ``(N, K)``.
        at: a tensor ``(N, …)`` the scores depend on.
        of: what ``at`` is, for the error message.
        keep_graph: whether another backward pass will follow.
        fault: what to raise; a layer the user named is the user's fault, not the network's.

    Returns:
        ``(N, …)``, or ``(N, K, …)`` for K targets an image, from K backward passes.

    Raises:
        NotApplicable: when the scores do not depend on ``at`` differentiably, or ``fault``.
    """
    score = explained.score
    found: Tensor | None = None
    results = []
    if score.requires_grad:
        count = 1 if score.ndim == 1 else score.shape[1]
        for index in range(count):
            weights = torch.ones_like(score) if score.ndim == 1 else torch.zeros_like(score)
            weights.select(-1, index).fill_(1)
            more = keep_graph or index + 1 < count
            (found,) = differentiated(score, [at], weights, more=more)
            if found is None:
                break
            results.append(found)
    if found is None:
        raise no_gradient(of, fault)
    return results[0] if score.ndim == 1 else torch.stack(results, 1)


def no_gradient(of: str, fault: type[InputError]) -> InputError:
    """What to raise where a score has no gradient at something."""
    return fault(
        f"the score does not depend on {of} in a way that can be differentiated: nothing of it "
        "reaches the score, or the network detaches it, runs that part under no_grad, or computes it "
        "in whole numbers, as quantised networks do"
    )


def differentiated(
    score: Tensor, at: Sequence[Tensor], weights: Tensor, *, more: bool, batched: bool = False
) -> list[Tensor | None]:
    """One backward pass from scores to tensors; ``None`` for one that they do not depend on.

    Args:
        score: of a graph.
        at: where the gradient is wanted.
        weights: of the scores in the sum that is differentiated; with ``batched`` several sums'.
        more: keep the graph.
        batched: differentiate several sums together, which puts an axis in front.

    Raises:
        NotApplicable: when the network has written into what its gradient needs, or runs a part so
            that only ``backward()`` leads through it.
    """
    open_ends = [each for each in at if each.requires_grad]
    if not open_ends:
        return [None for _ in at]
    whole, outer = score, weights if batched else None
    if not batched:  # without grad_outputs, whose check imports sympy, which takes a second
        with torch.enable_grad():
            whole = (score * weights).sum()
    try:
        slopes = torch.autograd.grad(
            whole,
            open_ends,
            grad_outputs=outer,
            retain_graph=more,
            allow_unused=True,
            is_grads_batched=batched,
        )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise NotApplicable(
                "the network runs a part under torch.utils.checkpoint(…, use_reentrant=True), which "
                "gives gradients to backward() only; give it use_reentrant=False there, or use "
                "occlusion"
            ) from error
        if "modified by an inplace operation" not in str(error):
            raise
        raise NotApplicable(
            "the network writes into a tensor that its own gradient needs, so it cannot be "
            "differentiated; let it compute out of place there, or use occlusion"
        ) from error
    found = iter(slopes)
    return [next(found) if each.requires_grad else None for each in at]
