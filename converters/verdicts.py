"""How far a layer's output is from another's, and what that comes to for a network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from converters.graph import Array


@dataclass(frozen=True)
class Bounds:
    """What counts as the same, and from where on two layers differ: of a layer's largest value."""

    same: float
    fails: float


# Float32 on two engines was seen to differ by up to 4e-6, float16 by up to 2.4e-3 at the end of a
# deep network; what is wrong (a transposed kernel, a forgotten epsilon) differs by far more.
SINGLE = Bounds(1e-4, 1e-3)
HALF = Bounds(1e-2, 5e-2)
# A sigmoid is rounded as numbers beside 1 are, whatever it comes to: onnxruntime's is 0 from -18 on.
# Smaller ones are measured against this, of which that rounding is just the same.
LEAST_OF_SIGMOID = float(np.finfo(np.float32).eps) / SINGLE.same
Verdict = Literal["same", "nearly the same", "differs"]
NOT_RUN = "not run by the network"
LOST = "not in the network"
NAN = "NaN on both sides"
_FAILING = ("differs", NOT_RUN, LOST, NAN)


@dataclass(frozen=True)
class LayerComparison:
    """How far one layer's output is from the file's.

    Attributes:
        name: Keras' name; of later calls with ``@1``, ``@2``.
        type: Keras' class.
        shape: of the output for one image; ``None`` where there is none.
        status: ``"same"``, ``"nearly the same"``, ``"differs"``, ``"fused into X"``,
            ``"not in the file"``; ``"not in the network"`` for a layer of the file that the import
            lost, ``"not run by the network"`` for one, or a call of one, that never ran;
            ``"NaN on both sides"`` where there are no numbers to compare.
        max_abs: largest difference; ``None`` where there was nothing to compare, as the two below.
        relative: the same over the reference's largest magnitude; over 0.0012 where a sigmoid's is
            smaller, for it is rounded as numbers beside 1 are.
        cosine: of the angle between the two outputs as vectors.
        beside: the layer of another torch network it was compared with.
        weights: how far its weights are from that one's, relative to the largest.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    status: str
    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    beside: str | None = None
    weights: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The layers of an imported network beside those of its file.

    Attributes:
        file: its name.
        reference: what computed the other side.
        images: how many inputs were compared.
        layers: one row for each layer and call.
        outputs: one row for each output of the whole network.
        notes: sentences a user should be told.
        bounds: what counted as the same.
    """

    file: str
    reference: str
    images: int
    layers: tuple[LayerComparison, ...]
    outputs: tuple[LayerComparison, ...]
    notes: tuple[str, ...] = field(default=())
    bounds: Bounds = SINGLE

    @property
    def first_difference(self) -> LayerComparison | None:
        """The first layer, in running order, that is not the same, or not there."""
        rows = (*self.layers, *self.outputs)
        wrong = ("nearly the same", *_FAILING)
        return next((row for row in rows if row.status in wrong), None)

    @property
    def passed(self) -> bool:
        """Whether no layer and no output differs by a thousandth of its largest value (in half
        precision, a twentieth) or is NaN, and none of the file's layers is missing in the network.
        """
        return all(row.status not in _FAILING for row in (*self.layers, *self.outputs))

    @property
    def worst(self) -> float:
        """The largest relative difference of all."""
        found = [row.relative for row in (*self.layers, *self.outputs) if row.relative is not None]
        return max(found, default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON, which knows no infinity: such a difference is ``None``."""
        return {
            "file": self.file,
            "reference": self.reference,
            "images": self.images,
            "passed": self.passed,
            "worst_relative": _finite(self.worst),
            "first_difference": getattr(self.first_difference, "name", None),
            "layers": [_plain(row) for row in self.layers],
            "outputs": [_plain(row) for row in self.outputs],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        return self.format()

    def __repr__(self) -> str:
        return str(self)  # what an interpreter and a notebook show

    def format(self, width: int | None = None) -> str:
        """The comparison as text: what differs first, then a line for each layer."""
        width = width or shutil.get_terminal_size((100, 24)).columns
        compared = [row for row in self.layers if row.relative is not None]
        first = self.first_difference
        if first is None:
            head = (
                f"{self.file}: {len(compared)} of {len(self.layers)} layers compared with "
                f"{self.reference}, all the same; the largest difference is {self.worst:.1e} of a "
                "layer's largest value"
            )
        elif first.relative is None:
            head = f"{self.file}: the layer {first.name!r} ({first.type}) is {first.status}"
        else:
            what = "differs" if first.status == "differs" else f"is only {first.status}"
            head = (
                f"{self.file}: the first layer that {what} is {first.name!r} ({first.type}), by "
                f"{first.relative:.1e} of its largest value{self._what_fails(first)}"
            )
        titles = _TITLES
        rows = [_cells(row) for row in (*self.layers, *self.outputs)]
        if all(row.beside is None for row in self.layers):
            titles, *rows = (row[:-2] for row in (titles, *rows))
        widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
        over = sum(widths) + 2 * (len(widths) - 1) - width
        widths[0] = max(16 if len(titles) < 7 else 28, widths[0] - max(0, over))
        lines = [head, *self.notes, *self._of_bounds(), ""]
        for number, row in enumerate([titles, *rows]):
            name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
            cells = [name.ljust(widths[0]), row[1].ljust(widths[1]), row[2].ljust(widths[2])]
            cells += [text.rjust(widths[i]) for i, text in enumerate(row) if 2 < i < 7]
            cells += row[7:]
            lines.append("  ".join(cells).rstrip())
            if number in (0, len(self.layers)):
                lines.append("─" * min(width, sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join(lines)

    def _what_fails(self, first: LayerComparison) -> str:
        """Behind a layer that is nearly the same: whether one differs, and which."""
        rows = (*self.layers, *self.outputs)
        failing = next((row for row in rows if row.status in _FAILING), None)
        if failing is first:
            return ""
        if failing is None:
            return "; none differs"
        return f"; {failing.name!r} {'' if failing.status == 'differs' else 'is '}{failing.status}"

    def _of_bounds(self) -> Iterator[str]:
        if self.bounds != SINGLE:
            yield (
                f"in half precision, up to {self.bounds.same:g} of a layer's largest value is the "
                f"same; from {self.bounds.fails:g} on it differs"
            )


def _plain(row: LayerComparison) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(row).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_TITLES: tuple[str, ...] = (
    *("Layer (type)", "Shape", "Status", "Max abs", "Relative", "Cosine"),
    *("Weights", "Beside"),
)


def _cells(row: LayerComparison) -> tuple[str, ...]:
    numbers = [
        "" if value is None else form.format(value)
        for value, form in (
            (row.max_abs, "{:.1e}"),
            (row.relative, "{:.1e}"),
            (row.cosine, "{:.6f}"),
            (row.weights, "{:.1e}"),
        )
    ]
    shape = "" if row.shape is None else "×".join(map(str, row.shape))
    return (f"{row.name} ({row.type})", shape, row.status, *numbers, row.beside or "")


def beside(
    name: str,
    kind: str,
    ours: Array,
    theirs: Array,
    bounds: Bounds = SINGLE,
    *,
    sigmoid: bool = False,
) -> LayerComparison:
    """One row: how far ``ours`` is from ``theirs``, in double precision.

    ``sigmoid`` says that they are what a sigmoid put out.
    """
    if ours.shape != theirs.shape:
        return LayerComparison(name, kind, ours.shape[1:], "differs", np.inf, np.inf, 0.0)
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    if np.isnan(b).any() and np.array_equal(np.isnan(a), np.isnan(b)):
        return LayerComparison(name, kind, ours.shape[1:], NAN)
    with np.errstate(invalid="ignore"):  # of infinite numbers; it is looked at below
        gap = float(np.abs(a - b).max(initial=0.0))
    largest = float(np.abs(b).max(initial=0.0))
    measure = max(largest, LEAST_OF_SIGMOID) if sigmoid else largest
    relative = gap / measure if measure else (0.0 if gap == 0 else np.inf)
    if not np.isfinite([gap, largest]).all():
        relative = 0.0 if np.array_equal(a, b, equal_nan=True) else np.inf
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else 1.0
    status: Verdict = "differs"
    if relative < bounds.fails:
        status = "same" if relative <= bounds.same else "nearly the same"
    return LayerComparison(name, kind, ours.shape[1:], status, gap, relative, cosine)
