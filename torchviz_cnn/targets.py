"""What is explained: a class by index or name, one per image, several per image, or any callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.head import Output, is_single
from torchviz_cnn.words import counted, were_given

ScoreKind = Literal["logit", "probability"]
OneTarget = int | str
Target = (
    OneTarget
    | Sequence[OneTarget]
    | Sequence[Sequence[OneTarget]]
    | Tensor
    | np.ndarray
    | Callable[[Tensor], Tensor]
    | None
)
ClassNames = Sequence[str] | Mapping[int, str] | Mapping[str, str]


def class_index(name: str, classes: Sequence[str] | None) -> int:
    """The index of a class given by name; a name of digits is an index.

    Raises:
        InputError: for a name no class or several classes have, or when no names are known.

    Example:
        >>> class_index("Tabby", ["tabby", "lynx"])
        0
    """
    if re.fullmatch(r"\s*-?[0-9]+\s*", name):
        return int(name)
    if not classes:
        fault = (
            f"the class {name!r} is given by name, but the class names of this network are not "
            "known; give its index, or class names"
        )
        raise InputError(
            f"{fault} (classes=; a Model from models.load has them)",
            typed=f"{fault} (--classes FILE)",
        )
    wanted = name.strip().lower().replace("_", " ")
    hits = [i for i, known in enumerate(classes) if known.lower().replace("_", " ") == wanted]
    if len(hits) > 1:
        raise InputError(f"{len(hits)} classes are called {name!r}; give one of the indexes {hits}")
    if not hits:
        offer = closest(name, classes)
        if not offer and len(classes) <= 10:
            offer = "; they are called " + ", ".join(classes)
        raise InputError(f"no class is called {name!r}{offer}")
    return hits[0]


def class_names(given: ClassNames) -> tuple[str, ...]:
    """Class names in the order of their indexes.

    Args:
        given: one after the other, or by index, which may be spelled in digits, as in a JSON file.

    Raises:
        InputError: for names of which not every index from 0 on has one, or that are no text.

    Example:
        >>> class_names({1: "dog", 0: "cat"})
        ('cat', 'dog')
    """
    if isinstance(given, Mapping):
        names = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in given.items()}
        if set(names) != set(range(len(given))):
            raise InputError(
                "class names by index are {0: name, 1: name, …}, one for every index from 0 on, "
                f"not for {list(given)[:3]}"
            )
        given = [names[index] for index in range(len(names))]
    names_in_order = tuple(given) if isinstance(given, Iterable) else ()
    texts = all(isinstance(name, str) for name in names_in_order)
    if isinstance(given, str) or not isinstance(given, Iterable) or not texts:
        raise InputError(f"class names are a list of texts, one a class, not {given!r:.60}")
    return names_in_order


def class_label(index: int, classes: Sequence[str] | None) -> str:
    """A class's index, and its name where that says more.

    Example:
        >>> class_label(1, ["cat", "dog"]), class_label(1, ["0", "1"]), class_label(1, None)
        ('1 dog', '1', '1')
    """
    name = classes[index] if classes else str(index)
    return name if name == str(index) else f"{index} {name}"


@dataclass(frozen=True)
class Explained:
    """The scores to explain and the classes they belong to.

    Attributes:
        score: ``(N,)``, or ``(N, K)`` for K targets an image; part of the graph where there is one.
        target: class indexes of the same shape; ``None`` for a callable.
    """

    score: Tensor
    target: Tensor | None

    def detached(self) -> Explained:
        """The same without its graph."""
        return Explained(self.score.detach(), self.target)


def joined(answers: Sequence[Explained]) -> Explained:
    """The answers for several batches as one."""
    score = torch.cat([each.score for each in answers])
    targets = [each.target for each in answers if each.target is not None]
    return Explained(score, torch.cat(targets) if targets else None)


class Question:
    """A target that has been checked against the number of images, ready to be put to an output.

    Args:
        target: ``None`` for each image's top class; an index or a name for all images; a list of N
            of them, one an image; a list of N lists of K of them, K an image; or a callable that
            takes the scores, one tensor, and returns one score an image. For a two-class network with
            one output, 1 is its score and 0 the negative of it.
        images: N.
        score: ``"logit"`` for the score before the final softmax or sigmoid, ``"probability"`` for
            after it.
        classes: class names by index, where known.

    Raises:
        InputError: for a list whose length is not N, an index out of range, an unknown name.
    """

    def __init__(
        self,
        target: Target,
        images: int,
        *,
        score: ScoreKind = "logit",
        classes: Sequence[str] | None = None,
    ) -> None:
        if score not in ("logit", "probability"):
            raise InputError.about("score", f"must be 'logit' or 'probability', not {score!r}")
        self.score_kind = score
        self.images = images
        self.settled = False
        self.names = None if classes is None else len(classes)
        self.callable = target if callable(target) else None
        self.indexes = None if callable(target) else self._indexes(target, classes)
        if classes is not None and self.indexes is not None:
            self._check_range(self.indexes, len(classes), "there are names of")

    def _indexes(self, target: object, classes: Sequence[str] | None) -> Tensor | None:
        """``(N,)`` or ``(N, K)`` class indexes; ``None`` for the top class."""
        if target is None:
            return None
        if isinstance(target, Tensor | np.ndarray):
            target = target.tolist()
        if isinstance(target, int | np.integer | str):
            return torch.full((self.images,), _one(target, classes), device="cpu")
        if not isinstance(target, Sequence):
            raise InputError(
                f"a target is a class index, a class name, a list of them, or a callable, "
                f"not {type(target).__name__}"
            )
        if len(target) != self.images:
            raise InputError(
                f"{were_given(len(target), 'target')} for {counted(self.images, 'image')}; give "
                "one target for all, or exactly one (or one list) an image"
            )
        rows = [
            [_one(each, classes) for each in row]
            if isinstance(row, Sequence) and not isinstance(row, str)
            else _one(row, classes)
            for row in target
        ]
        widths = [len(row) if isinstance(row, list) else 1 for row in rows]
        if len(set(widths)) > 1 or 0 in widths:
            raise InputError(
                f"every image needs the same number of targets, at least one, not {widths}"
            )
        if len({type(row) for row in rows}) > 1:
            raise InputError(
                "targets are one class for every image or one list of classes for every image, not "
                f"some of each: {target!r:.60}"
            )
        return torch.tensor(rows, device="cpu")

    def _check_range(self, indexes: Tensor, count: int, there_are: str = "the network has") -> None:
        if self.settled:
            return
        count = max(count, 2)  # one output: the classes 0 and 1
        low, high = int(indexes.min()), int(indexes.max())
        wrong = low if low < 0 else high
        if low < 0 or high >= count:
            raise InputError(
                f"class {wrong} is out of range: {there_are} {count} classes, 0 to {count - 1}"
            )

    def part(self, start: int, stop: int) -> Question:
        """The same question about some of the images."""
        question = Question(self.callable, stop - start, score=self.score_kind)
        question.indexes = None if self.indexes is None else self.indexes[start:stop]
        question.names = self.names
        return question

    def again(self, chosen: Tensor, images: int) -> Question:
        """The same question with its classes settled, for ``images`` variants of the pictures.

        Args:
            chosen: the classes, ``(images,)`` or ``(images, K)``.
            images: how many variants.
        """
        question = Question(None, images, score=self.score_kind)
        question.indexes = chosen
        question.settled = True  # by an output of this network: in range, and on its device
        return question

    def put(self, output: Output) -> Explained:
        """Pick the scores out of a network's output.

        Raises:
            InputError: for a class out of range, an output that is not ``(N, classes)``, a
                callable that does not return one score an image, or no finite number.
        """
        values = output.logits if self.score_kind == "logit" else output.probabilities()
        explained = self._picked(output, values)
        # Asked for once: a GPU is waited for every time that Python asks.
        if bool(values.isnan().any() | ~explained.score.isfinite().all()):
            raise self._not_finite(values)
        return explained

    def _not_finite(self, values: Tensor) -> InputError:
        if self.callable is not None and bool(values.isfinite().all()):
            return InputError(
                "the callable target gives NaN or an infinite score for these inputs, of which every "
                "map would be made"
            )
        what = "NaN" if bool(values.isnan().any()) else "infinite scores"
        half = "; torch.float16 ends at 65504" if values.dtype is torch.float16 else ""
        return InputError(
            f"the network puts out {what} for these inputs, of which every map would be made; "
            f"look at its weights and at how the pictures were scaled{half}"
        )

    def _picked(self, output: Output, values: Tensor) -> Explained:
        if self.callable is not None:
            score = self._called(values)
            if isinstance(score, Tensor) and score.ndim == 0 and self.images == 1:
                score = score[None]
            if not isinstance(score, Tensor) or score.shape != (self.images,):
                shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
                raise InputError(
                    f"a callable target must return one score an image, shape ({self.images},), "
                    f"but gave {shape} for an output of shape {tuple(values.shape)}"
                )
            return Explained(score, None)
        count = 2 if is_single(values) else values.shape[1] if values.ndim == 2 else None
        if self.names is not None and count is not None and self.names != count:
            raise InputError(
                f"{self.names} class names are known for a network of {count} classes; give one "
                "name a class"
            )
        if is_single(values):
            return self._two_classes(output.logits.reshape(-1), values.reshape(-1))
        if values.ndim != 2:
            fault = f"the network's output has shape {tuple(values.shape)}, not (N, classes)"
            raise InputError(
                f"{fault}; pass a callable target, such as lambda out: out[:, 5].mean((1, 2)) for "
                "the mean score of class 5 in a map of scores",
                typed=f"{fault}; name a package.module:factory whose network returns one score a "
                "class",
            )
        if self.indexes is None:
            chosen = values.detach().argmax(1)
        else:
            self._check_range(self.indexes, values.shape[1])
            chosen = self.indexes.to(values.device)
        rows = torch.arange(self.images, device=values.device)
        score = values[rows, chosen] if chosen.ndim == 1 else values[rows[:, None], chosen]
        return Explained(score, chosen)

    def _called(self, values: Tensor) -> Tensor:
        assert self.callable is not None
        try:
            return self.callable(values)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InputError(
                f"the callable target failed ({type(error).__name__}: {error}); it is given one "
                f"tensor of scores, here {tuple(values.shape)}, and returns one score an image; of "
                "a network with several outputs, explain a module that returns one of them"
            ) from error

    def _two_classes(self, logits: Tensor, values: Tensor) -> Explained:
        """One output a picture: class 1 is its score; class 0 the negative, or 1 − probability."""
        if self.indexes is None:
            chosen = (logits.detach() > 0).long()
        else:
            self._check_range(self.indexes, 2)
            chosen = self.indexes.to(values.device)
        values = values if chosen.ndim == 1 else values[:, None]
        other = -values if self.score_kind == "logit" else 1 - values
        return Explained(torch.where(chosen == 1, values, other), chosen)


def _one(target: object, classes: Sequence[str] | None) -> int:
    if isinstance(target, str):
        target = class_index(target, classes)
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise InputError(f"a class is an index or a name, not {target!r}")
    if abs(int(target)) >= 2**31:
        raise InputError(f"class {target} is out of range: no network has so many classes")
    return int(target)
