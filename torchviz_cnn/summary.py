"""The table of layers: names, shapes, parameters and costs, found by running the network once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.guard import check_ready
from torchviz_cnn.inputs import blank, checked_size
from torchviz_cnn.naming import display_name, known, module_of, size_of_one
from torchviz_cnn.tracing import Run, watch

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


@dataclass(frozen=True)
class LayerInfo:
    """One row of a :class:`LayerTable`.

    Attributes:
        name: dotted name, or the alias given by ``rename``.
        type: class name.
        output_shape: without the batch axis; ``None`` where it was not run or gives no tensor.
        parameters: how many numbers it learns or keeps as parameters, its children's included.
        trainable: how many of them require a gradient.
        macs: multiply-adds for one image over all its runs; ``None`` where the network was not run.
        calls: how often it runs in one forward pass; ``None`` where the network was not run.
        depth: how deep it is nested, 0 for the network's own children.
    """

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: int
    macs: int | None
    calls: int | None
    depth: int


@dataclass(frozen=True)
class LayerTable(Sequence[LayerInfo]):
    """The layers of a network; prints like a Keras summary and reads like a list.

    ``table[0]`` is the first row, ``table["layer4"]`` any module by name or alias, ``table.names``
    the names of the rows; ``table.parameters``, ``.trainable`` and ``.macs`` are the network's
    totals (shared parameters once). They are more than the rows' sums where modules that hold
    others have parameters or operations of their own, as attention has; a last line tells of it.
    """

    network: str
    rows: tuple[LayerInfo, ...]
    parameters: int
    trainable: int
    macs: int | None
    input_size: tuple[int, ...] | None
    _every: dict[str, LayerInfo] = field(repr=False, default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [row.name for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerInfo]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int | str) -> LayerInfo: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[LayerInfo, ...]: ...
    def __getitem__(self, key: int | str | slice) -> LayerInfo | tuple[LayerInfo, ...]:
        if not isinstance(key, str):
            return self.rows[key]
        for name, row in self._every.items():
            if key in (name, row.name):
                return row
        raise InputError(
            f"the network has no layer {key!r}"
            + closest(key, (row.name for row in self._every.values()))
        )

    def __contains__(self, key: object) -> bool:
        return key in self.rows or any(key in (name, row.name) for name, row in self._every.items())

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries, for ``json`` or ``pandas.DataFrame``."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        return self.format()

    def __repr__(self) -> str:
        return str(self)  # what an interpreter and a notebook show

    def format(self, width: int | None = None) -> str:
        """The table as text of at most ``width`` columns (the terminal's by default).

        Where that is narrow, names are cut in the middle and the last columns left out.
        """
        width = width or shutil.get_terminal_size((100, 24)).columns
        titles = ("Layer (type)", "Output shape", "Params", "MACs", "Calls")
        cells = [
            (
                f"{row.name} ({row.type})",
                "-" if row.output_shape is None else "×".join(map(str, row.output_shape)),
                f"{row.parameters:,}",
                "-" if row.macs is None else human(row.macs),
                "-" if row.calls is None else str(row.calls),
            )
            for row in self.rows
        ]
        widths = [max(len(row[i]) for row in [titles, *cells]) for i in range(len(titles))]
        gap = 2
        while len(widths) > 1 and _NARROWEST + sum(widths[1:]) + gap * (len(widths) - 1) > width:
            widths.pop()
        room = width - sum(widths[1:]) - gap * (len(widths) - 1)
        widths[0] = max(1, min(widths[0], room))  # names give way, numbers do not
        rule_width = sum(widths) + gap * (len(widths) - 1)
        shape_of_input = (
            "" if self.input_size is None else f", input {'×'.join(map(str, self.input_size))}"
        )
        lines = [f"{self.network}{shape_of_input}", "─" * rule_width]
        for index, row in enumerate([titles, *cells]):
            first = row[0].ljust(widths[0]) if len(row[0]) <= widths[0] else _cut(row[0], widths[0])
            rest = [
                cell.ljust(w) if column == 0 else cell.rjust(w)
                for column, (cell, w) in enumerate(zip(row[1:], widths[1:], strict=False))
            ]
            lines.append("  ".join([first, *rest]).rstrip())
            if index == 0:
                lines.append("═" * rule_width)
        lines.append("─" * rule_width)
        lines.append(f"Total params: {self.parameters:,}")
        lines.append(f"Trainable params: {self.trainable:,}")
        lines.append(f"Non-trainable params: {self.parameters - self.trainable:,}")
        if self.macs is not None:
            lines.append(f"Multiply-adds for one image: {human(self.macs)}")
        if self.input_size is None:
            lines.append("Shapes and multiply-adds need input_size=, such as (3, 224, 224)")
        lines += self._beside_the_rows()
        return "\n".join(lines)

    def _beside_the_rows(self) -> list[str]:
        """What belongs to modules that have parts, and so no row: an attention, a layer's scale."""
        parameters = self.parameters - sum(row.parameters for row in self.rows)
        macs = (self.macs or 0) - sum(row.macs or 0 for row in self.rows)
        found = [f"{parameters:,} params"] if parameters > 0 else []
        found += [f"{human(macs)} multiply-adds"] if macs > 0 else []
        if not found:
            return []
        return [f"In none of these rows, but in modules that hold them: {', '.join(found)}"]


_NARROWEST = 12  # columns a name needs to be told from others


def human(count: int) -> str:
    """A count in at most four digits.

    >>> human(15470264320), human(896)
    ('15.47 G', '896')
    """
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            digits = 2 if count < 100 * size else 1
            return f"{count / size:.{digits}f} {letter}"
    return str(count)


def _cut(text: str, width: int) -> str:
    """Shorten in the middle: both ends of a dotted name matter."""
    keep = width - 1
    return text[: keep - keep // 2] + "…" + text[len(text) - keep // 2 :]


def is_row(module: nn.Module) -> bool:
    """A layer of its own in the table: nothing inside it, or declared to be one layer."""
    return getattr(module, "is_layer", False) or not any(True for _ in module.children())


def layers(
    model: nn.Module | Model,
    input_size: Sequence[int] | None = None,
    *,
    nested: bool = False,
) -> LayerTable:
    """The named layers of a network with type, output shape, parameters, multiply-adds and calls.

    Args:
        model: any network; nothing of it is changed.
        input_size: of one image, ``(C, H, W)`` (or ``(H, W)`` for a network without a channel
            axis). A :class:`~torchviz_cnn.models.Model` knows its own, and so do most imported
            networks. Without it the network is not run: shapes, multiply-adds and calls stay
            unknown.
        nested: list containers and the parts of layers as well.

    Returns:
        The table, in the order of the network's definition. Layers that do not run in eval mode
        (auxiliary heads) have ``calls`` 0.

    Raises:
        InputError: for an input size that is not two or three positive numbers.

    Example:
        >>> import torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
        >>> print(tvc.layers(net, input_size=(3, 8, 8)).format(width=60))
        Sequential, input 3×8×8
        ─────────────────────────────────────────────────
        Layer (type)  Output shape  Params    MACs  Calls
        ═════════════════════════════════════════════════
        0 (Conv2d)    8×6×6            224  7.78 k      1
        1 (ReLU)      8×6×6              0       0      1
        2 (Flatten)   288                0       0      1
        3 (Linear)    2                578     576      1
        ─────────────────────────────────────────────────
        Total params: 802
        Trainable params: 802
        Non-trainable params: 0
        Multiply-adds for one image: 8.35 k
    """
    module = module_of(model)
    check_ready(module)
    size = input_size if input_size is not None else size_of_one(model)
    runs: dict[str, list[Run]] = {}
    total_macs = None
    if size is not None:
        size = checked_size(size)
        trace = watch(module, blank(module, size))
        for run in trace.runs:
            runs.setdefault(run.name, []).append(run)
        total_macs = sum(run.macs for run in runs.get("", []))
    every = {
        name: _info(module, name, child, None if size is None else runs.get(name, []))
        for name, child in module.named_modules()
        if name
    }
    inside_row = tuple(
        f"{name}." for name, child in module.named_modules() if name and is_row(child)
    )
    rows = tuple(
        info
        for name, info in every.items()
        if nested or (is_row(module.get_submodule(name)) and not name.startswith(inside_row))
    )
    parameters = list(module.parameters())
    return LayerTable(
        network=known(model, "source") or type(module).__name__,
        rows=rows,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        macs=total_macs,
        input_size=size,
        _every=every,
    )


def _info(root: nn.Module, name: str, module: nn.Module, runs: list[Run] | None) -> LayerInfo:
    parameters = list(module.parameters())
    shape = runs[0].shape if runs else None
    return LayerInfo(
        name=display_name(root, name),
        type=str(getattr(module, "layer_type", type(module).__name__)),
        output_shape=None if shape is None else shape[1:],
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        macs=None if runs is None else sum(run.macs for run in runs),
        calls=None if runs is None else len(runs),
        depth=name.count("."),
    )
