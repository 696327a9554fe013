"""Rows as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.record import OURS, Record, Row, pick
from benchmarks.tables import number
from torchviz_cnn.files import write_atomically

# Told apart by colour-blind readers too (Okabe, Ito 2008).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_UNITS = {
    "peers": f"times as long as {OURS} takes",
    "limit": "times as long as the limit takes; occlusion: as the incremental engine takes",
    "convert": "times as long as the imported network takes",
}
_AXES = {
    "batch": "pictures in one call",
    "side": "side of the picture, pixels",
    "targets": "targets of one picture",
    "positions": "windows of occlusion",
}


def draw(record: Record, path: Path) -> None:
    """A record's times as one PNG; never half-written."""
    figure = _sweeps(record) if any(row.at is not None for row in record.rows) else _bars(record)
    if figure is not None:
        FigureCanvasAgg(figure)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


# ---- ratios ----------------------------------------------------------------------------------


def _bars(record: Record) -> Figure | None:
    """A panel for each method, a point with its quartiles for each side."""
    rows = pick(record.rows, measure="time")
    methods = list(dict.fromkeys(row.method for row in rows))
    if not methods:
        return None
    labels = {m: _labels([row for row in rows if row.method == m]) for m in methods}
    heights = [0.9 + 0.36 * len(labels[m]) for m in methods]
    figure = Figure(figsize=(9, sum(heights) + 1.2), layout="constrained")
    figure.suptitle(_title(record), fontsize=11, x=0.02, ha="left")
    sides = list(dict.fromkeys(_side(row) for row in rows))
    colors = {side: _COLORS[i % len(_COLORS)] for i, side in enumerate(sides)}
    panels = figure.subplots(len(methods), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, method in zip(panels, methods, strict=True):
        _panel(axes, [row for row in rows if row.method == method], labels[method], colors)
        axes.set_title(method, fontsize=10, loc="left", fontweight="bold")
    panels[-1].set_xlabel(_UNITS.get(record.suite, "times as long"))
    return figure


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(_label(row) for row in rows))


def _label(row: Row) -> str:
    return f"{row.model}, {row.setting}"


def _side(row: Row) -> str:
    return row.side if row.side != OURS else f"beside {row.against}"


def _panel(axes: Any, rows: Sequence[Row], labels: Sequence[str], colors: dict[str, str]) -> None:
    sides = list(dict.fromkeys(_side(row) for row in rows))
    for row in rows:
        offset = (sides.index(_side(row)) - (len(sides) - 1) / 2) * 0.7 / max(len(sides), 2)
        y = labels.index(_label(row)) + offset
        color = colors[_side(row)]
        axes.plot([row.low, row.high], [y, y], color=color, linewidth=2.5, alpha=0.5)
        axes.plot(row.median, y, "o", color=color, markersize=5)
        axes.annotate(
            number(row.median), (row.high, y), (5, 0), textcoords="offset points",
            va="center", fontsize=7, color=color,
        )  # fmt: skip
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log")
    low, high = min(1.0, *(r.low for r in rows)), max(1.0, *(r.high for r in rows))
    axes.set_xlim(low / 1.15, high * 1.35)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if high / low < 20:
        axes.xaxis.set_minor_formatter(FuncFormatter(_few))
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="both", which="both", labelsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", which="both", color="0.92")
    axes.set_axisbelow(True)
    for side in sides:
        axes.plot([], [], "o", color=colors[side], label=side)
    axes.legend(
        fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(sides), frameon=False,
        borderaxespad=0,
    )  # fmt: skip


def _few(value: float, _: int) -> str:
    """Labels for 2 and 5 between the powers of ten."""
    digit = f"{value:e}"[0]
    return f"{value:g}" if digit in "25" else ""


def labelled(low: float, high: float) -> tuple[float, float]:
    """The nearest figures outside of two that an axis has labels for: 1, 2, 5, 10, 20 and so on."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    labels = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return max(each for each in labels if each <= low), min(e for e in labels if e >= high)


# ---- growth ----------------------------------------------------------------------------------


def _sweeps(record: Record) -> Figure:
    """A column for each axis; time above, memory below, each side's own figures."""
    places = {name: {row.at for row in pick(record.rows, setting=name)} for name in _AXES}
    # One place is no growth: a network of one class has targets to choose from nowhere.
    axes_names = [name for name, at in places.items() if len(at) > 1]
    axes_names = axes_names or [name for name, at in places.items() if at]
    figure = Figure(figsize=(4.2 * len(axes_names), 7.2), layout="constrained")
    figure.suptitle(_title(record), fontsize=11, x=0.02, ha="left")
    panels = figure.subplots(2, len(axes_names), squeeze=False)
    for column, name in enumerate(axes_names):
        for line, (measure, unit, scale) in enumerate(
            (("time", "seconds a call", 1.0), ("memory", "peak memory, MiB", 2.0**20))
        ):
            rows = pick(record.rows, setting=name, measure=measure)
            _sweep(panels[line][column], rows, scale)
            panels[line][column].set_xlabel(_AXES[name], fontsize=9)
            panels[line][column].set_ylabel(unit, fontsize=9)
    return figure


def _sweep(axes: Any, rows: Sequence[Row], scale: float) -> None:
    lines: dict[str, dict[float, float]] = {}
    for row in rows:
        assert row.at is not None
        if row.against.endswith(", one"):  # the base is one point, and not a line
            lines.setdefault(f"{row.method}, all in one call", {})[row.at] = row.value
            lines.setdefault(f"{row.method}, a call each", {})[row.at] = (
                row.base * row.at if row.measure == "time" else row.base
            )
        else:
            lines.setdefault(_line(row.method, row.side), {})[row.at] = row.value
            lines.setdefault(_line(row.method, row.against), {})[row.at] = row.base
    for index, (label, points) in enumerate(sorted(lines.items())):
        places = sorted(points)
        style = "--" if label in ("forward",) or label.endswith("a call each") else "-"
        axes.plot(
            places, [points[at] / scale for at in places], style, marker="o", markersize=4,
            color=_COLORS[index % len(_COLORS)], label=label,
        )  # fmt: skip
    places = sorted({row.at for row in rows if row.at is not None})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(places, [f"{at:g}" for at in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(_few))
    figures = [figure / scale for points in lines.values() for figure in points.values()]
    if figures and min(figures) > 0:
        low, high = labelled(min(figures), max(figures))
        axes.set_ylim(low / 1.05, high * 1.05)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(which="both", color="0.92")
    if lines:
        axes.legend(fontsize=8, frameon=False)


def _line(method: str, side: str) -> str:
    if side == "forward":
        return side
    if method == "occlusion":
        return "occlusion, incremental" if side == OURS else f"occlusion, {side}"
    return method


def _title(record: Record) -> str:
    machine = record.machine
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    quick = " · quick run" if record.quick else ""
    return (
        f"{record.suite} · {where}, {machine['threads']} threads · "
        f"torch {machine['packages'].get('torch')} · {record.started[:10]}{quick}"
    )
