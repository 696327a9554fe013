"""Rows as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from benchmarks.record import OURS, Record, Row, pick
from benchmarks.tables import number
from torchviz_cnn.files import write_atomically

# Told apart by colour-blind readers too (Okabe, Ito 2008).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# What a ratio of 2 means, and which way is the better one for this library.
_MORE, _LESS = f"right of 1: {OURS} does better", f"left of 1: {OURS} does better"
_BASES = {
    "peers": (OURS, _MORE),
    "limit": ("the limit", _LESS),
    "classes": ("a plain forward pass", _LESS),
    "maximize": ("one plain forward pass a step", _LESS),
    "precision": ("bfloat16", "right of 1: bfloat16 does better"),
    "convert": ("the imported network", "right of 1: the imported network does better"),
}
_VERBS = {"time": "times as long as {} takes", "memory": "times the memory that {} needs"}
# Between powers of ten; on short axes more of them.
_TICKS = (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 3, 4, 5, 6, 7, 8, 9)
_AXES = {
    "batch": "pictures in one call",
    "side": "side of the picture, pixels",
    "targets": "targets of one picture",
    "positions": "windows of occlusion",
}


def draw(record: Record, path: Path) -> None:
    """A record's times and memory as one PNG; never half-written."""
    figure = _sweeps(record) if any(row.at is not None for row in record.rows) else _bars(record)
    if figure is not None:
        FigureCanvasAgg(figure)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


# ---- ratios ----------------------------------------------------------------------------------


def _bars(record: Record) -> Figure | None:
    """A line of panels for each method, a point with its quartiles for each side: time, memory."""
    rows = [row for row in record.rows if row.measure in _VERBS and math.isfinite(row.high)]
    methods = list(dict.fromkeys(row.method for row in rows))
    if not methods:
        return None
    groups = {m: [row for row in rows if row.method == m] for m in methods}
    heights = [1.1 + 0.36 * len(_labels(groups[m])) for m in methods]
    measures = [m for m in _VERBS if pick(rows, measure=m)]
    figure = Figure(figsize=(3 + 5.5 * len(measures), sum(heights) + 1.2), layout="constrained")
    figure.suptitle(_title(record), fontsize=11, x=0.02, ha="left")
    sides = list(dict.fromkeys(_side(row) for row in rows))
    colors = {side: _COLORS[i % len(_COLORS)] for i, side in enumerate(sides)}
    panels = figure.subplots(len(methods), len(measures), squeeze=False, height_ratios=heights)
    for line, method in zip(panels, methods, strict=True):
        labels = _labels(groups[method])
        for axes, measure in zip(line, measures, strict=True):
            found = pick(groups[method], measure=measure)
            axes.set_visible(bool(found))
            if found:
                _panel(axes, found, labels, colors)
                axes.set_title(f"{method}, {measure}", fontsize=10, loc="left", fontweight="bold")
                axes.set_xlabel(_unit(record.suite, method, measure), fontsize=8)
                axes.tick_params(labelleft=axes is line[0] or not line[0].get_visible())
    return figure


def _unit(suite: str, method: str, measure: str) -> str:
    base, better = _BASES.get(suite, ("the other side", ""))
    if suite == "limit" and method == "occlusion":
        base, better = "the incremental engine", _MORE
    return "; ".join(each for each in (_VERBS[measure].format(base), better) if each)


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
    axes.xaxis.set_major_locator(FixedLocator(ticks(low / 1.15, high * 1.35)))
    axes.xaxis.set_minor_locator(NullLocator())
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


def ticks(low: float, high: float) -> list[float]:
    """Round figures from ``low`` to ``high`` for an axis of ratios: at least three, few enough to read."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for digits in _TICKS:
        found = [float(f"{digit}e{power}") for power in powers for digit in digits]
        found = [each for each in found if low <= each <= high]
        if len(found) >= 3:
            break
    return found


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
    lines = grown(rows)
    for index, (label, points) in enumerate(sorted(lines.items())):
        places = sorted(points)
        style = "--" if label.endswith(("forward", "a call each")) else "-"
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
    if len(lines) > 3:  # they would hide the lines
        axes.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2
        )
    elif lines:
        axes.legend(fontsize=8, frameon=False)


def grown(rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """The lines of a panel: by name, each side's own figure at each place of the axis."""
    several = len({row.model for row in rows}) > 1
    lines: dict[str, dict[float, float]] = {}
    for row in rows:
        assert row.at is not None
        of = f"{row.model}, " if several else ""
        if row.against.endswith(", one"):  # the base is one point, and not a line
            lines.setdefault(f"{of}{row.method}, all in one call", {})[row.at] = row.value
            lines.setdefault(f"{of}{row.method}, a call each", {})[row.at] = (
                row.base * row.at if row.measure == "time" else row.base
            )
        else:
            lines.setdefault(of + _line(row.method, row.side), {})[row.at] = row.value
            lines.setdefault(of + _line(row.method, row.against), {})[row.at] = row.base
    return lines


def _line(method: str, side: str) -> str:
    if side == "forward":
        return side
    if method == "occlusion":
        return "occlusion, incremental" if side == OURS else f"occlusion, {side}"
    return method


def _title(record: Record) -> str:
    machine = record.machine
    started = [run.started[:10] for run in record.runs]
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    quick = " · quick run" if record.quick else ""
    days = " to ".join(dict.fromkeys((min(started), max(started))))
    return (
        f"{record.suite} · {where}, {machine['threads']} threads · "
        f"torch {machine['packages'].get('torch')} · {days}{quick}"
    )
