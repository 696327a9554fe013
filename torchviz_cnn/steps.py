"""What a walk through a network found: its steps, how sparse they are, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from torchviz_cnn.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


Kind = Literal[
    "convolution",
    "activation",
    "pooling",
    "normalisation",
    "dropout",
    "flatten",
    "dense",
    "other",
]

Answer = Literal["score", "probability"]


@dataclass(frozen=True, eq=False)
class Step:
    """One layer on the way: what it was given, where that is of interest, and what it put out.

    Attributes:
        name: dotted name or alias, ``@1`` for a later run; for a function in the network's own
            code what it is and where (``relu after conv1``).
        type: class of the layer, or name of the function.
        kind: what it does.
        output: what it put out for the picture, without the batch axis, as the network has it; of a
            quantised network the numbers that are meant.
        before: what reached it, likewise, of activations, poolings, normalisations, dropout and
            flattening; ``None`` of the others.
        channels_last: the output is ``(h, w, C)``, as in Swin transformers.
        weights: how much each channel speaks for the class asked for, where one was.
        answer: these numbers are what the network says of its classes, their scores or their
            probabilities; ``None`` of every other step.
    """

    name: str
    type: str
    kind: Kind
    output: Tensor
    before: Tensor | None = None
    channels_last: bool = False
    weights: Tensor | None = None
    answer: Answer | None = None

    def __repr__(self) -> str:
        return f"Step({self.name}, {self.type}, {'×'.join(map(str, self.output.shape))})"

    @property
    def maps(self) -> Tensor | None:
        """The output as feature maps ``(C, h, w)``; ``None`` where it has no places."""
        return as_maps(self.output, last=self.channels_last)

    @property
    def maps_before(self) -> Tensor | None:
        """What reached the layer, likewise."""
        return None if self.before is None else as_maps(self.before, last=self.channels_last)

    @property
    def units(self) -> Tensor | None:
        """The output as a row of numbers, ``(units,)``; ``None`` where it has places."""
        return _as_units(self.output)

    @property
    def units_before(self) -> Tensor | None:
        """What reached the layer, likewise."""
        return None if self.before is None else _as_units(self.before)

    @property
    def zeros(self) -> float:
        """The share of its numbers that are exactly 0."""
        return float((self.output == 0).double().mean())

    @property
    def silenced(self) -> float | None:
        """The share of units an activation silenced: not 0 before, 0 after."""
        share = self.silenced_by_channel
        return None if share is None else float(share.mean())

    @property
    def silenced_by_channel(self) -> Tensor | None:
        """The same for each channel, or unit: ``(C,)``."""
        if self.kind != "activation" or self.before is None:
            return None
        if self.before.shape != self.output.shape:
            return None
        gone = ((self.output == 0) & (self.before != 0)).double()
        if self.maps is None:
            return gone.flatten()
        return gone.mean((0, 1)) if self.channels_last else gone.mean((1, 2))

    @property
    def identity(self) -> bool:
        """Whether exactly what reached it went on, as through dropout in eval mode."""
        return self.before is not None and same(self.before, self.output)

    def words(self) -> str:
        """A sentence or two about what happened here."""
        from torchviz_cnn import plates

        return plates.words(self)

    def picture(self, **options: Any) -> Image.Image | None:
        """The step drawn, see :meth:`Walk.pictures`; ``None`` for neither maps nor units."""
        from torchviz_cnn import plates

        return plates.drawn(self, plates.Drawing(**options))


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, of which NaN is one here, in one shape."""
    if a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    # Only where there is NaN this takes another look.
    return a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def as_maps(tensor: Tensor, *, last: bool = False) -> Tensor | None:
    """An output without its batch axis as maps ``(C, h, w)``; ``None`` where it has no places."""
    if tensor.ndim != 3 or _as_units(tensor) is not None:
        return None
    return tensor.movedim(-1, 0) if last else tensor


def _as_units(tensor: Tensor) -> Tensor | None:
    if tensor.ndim == 1 or (tensor.ndim == 3 and tensor.shape[1:] == (1, 1)):
        return tensor.flatten()  # a map of one cell is a number
    return tensor.flatten() if tensor.ndim == 0 else None


@dataclass(frozen=True)
class Sparsity:
    """How much of what an activation puts out for a picture is exactly 0.

    Attributes:
        name: of the layer, or the function and where it is.
        zeros: the share of all its numbers.
        dead: the share of its channels that are 0 everywhere; ``None`` where it has no places.
    """

    name: str
    zeros: float
    dead: float | None


@dataclass(frozen=True, eq=False)
class Walk(Sequence[Step]):
    """The steps of a picture through a network, in the order they ran; reads like a list.

    ``walk[0]`` is the first step, ``walk["conv_1"]`` the step of that name; printed it is a table.

    Attributes:
        network: what was walked through, in words.
        input: the picture as the network got it, ``(C, H, W)`` or ``(H, W)``.
        steps: the layers.
        sparsity: of every activation that can put out zeros, drawn or not, over depth; empty
            where the walk ended before the network did.
        classes: class names by index, where known.
        picture: what the network saw, as a picture, where one was given.
        target: the class the steps' ``weights`` are about.
        notes: what should be known of the network, such as that its weights are random.
        to_the_end: whether the network ran to its end, and not only to the last layer asked for.
    """

    network: str
    input: Tensor
    steps: tuple[Step, ...]
    sparsity: tuple[Sparsity, ...]
    classes: Sequence[str] | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False)
    target: str | None = None
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = field(default=(), repr=False)
    to_the_end: bool = True

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @overload
    def __getitem__(self, key: int | str) -> Step: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Step | tuple[Step, ...]:
        if not isinstance(key, str):
            return self.steps[key]
        for step in self.steps:
            if step.name == key:
                return step
        raise InputError(f"the walk has no step {key!r}; its steps are {', '.join(self.names)}")

    def __contains__(self, key: object) -> bool:
        return key in self.names or any(step is key for step in self.steps)

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]

    def __str__(self) -> str:
        from torchviz_cnn import plates

        return plates.as_table(self)

    def __repr__(self) -> str:
        return str(self)  # what an interpreter and a notebook show

    def sparsity_trend(self) -> float | None:
        """Does sparsity increase with depth? Spearman's rank correlation of share and depth.

        1 where every activation is sparser than the one before, −1 where each is denser; ``None``
        for fewer than three activations, or where all are alike.
        """
        zeros = torch.tensor([each.zeros for each in self.sparsity], dtype=torch.float64)
        if len(zeros) < 3:
            return None
        # Equal shares have the mean of their ranks.
        below, equal = zeros[:, None] > zeros[None, :], zeros[:, None] == zeros[None, :]
        ranks = below.double().sum(1) + (equal.double().sum(1) - 1) / 2
        depth = torch.arange(len(zeros), dtype=torch.float64)
        if ranks.max() == ranks.min():
            return None
        return float(torch.corrcoef(torch.stack([ranks, depth]))[0, 1])

    def pictures(self, **options: Any) -> Iterator[tuple[str, Image.Image, str]]:
        """Every step drawn: a name for a file, the picture, and the step's name with a sentence.

        Steps with neither maps nor units are left out, see :meth:`left_out`.

        Args:
            options: ``colormap``, ``scale`` and ``columns`` as for
                :func:`torchviz_cnn.render.feature_maps`; ``top``: only so many channels, and
                ``by``: those with the highest ``"mean"``, ``"max"``, ``"variance"`` or
                ``"weight"`` for the class given to :func:`walk`, channels with NaN last by
                whichever; ``channels``: draw these alone, large, and with ``over=True`` over the
                picture.

        Raises:
            InputError: for a bad option, before anything is drawn.
        """
        from torchviz_cnn import plates

        return plates.of_walk(self, plates.Drawing(**options))

    def left_out(self) -> list[str]:
        """A sentence for each layer that cannot be drawn."""
        return [
            *self.unseen,
            *(
                f"{step.name} is not drawn: it puts out {'×'.join(map(str, step.output.shape))}, "
                "which is neither maps nor a row of units"
                for step in self.steps
                if step.maps is None and step.units is None
            ),
        ]

    def sparsity_picture(self) -> Image.Image | None:
        """Sparsity over depth as a plot; ``None`` for a network whose activations give no zeros."""
        from torchviz_cnn import plates

        return plates.sparsity_picture(self)

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write every picture and a page of them, ``index.html``.

        Args:
            folder: made where it is missing.
            options: as for :meth:`pictures`.

        Returns:
            The page's path.

        Raises:
            InputError: for a bad option.
            OSError: when it cannot be written.
        """
        from torchviz_cnn import plates

        return plates.save(self, folder, plates.Drawing(**options))
