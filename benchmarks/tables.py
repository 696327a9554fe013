"""Rows as text: a line while measuring, a Markdown table afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks import machine
from benchmarks.record import Record, Row

_UNITS = {"time": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))}
_BYTES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_MACS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))

EXPLAINED = {
    "peers": "How many times what this library takes, the others take: above 1 it is the faster "
    "one, or the one that needs less. Maps: the largest difference over the largest value; up to "
    "1e-3 they are the same but for rounding. Above that, two maps that both lie near the one in "
    "double precision differ where rounding turns a ReLU or a pooling, which is noted. Nothing else "
    "is timed. Networks are as torchvision hands them out: their weights ask for gradients, and a "
    "library that computes these too (pytorch-grad-cam) is timed with them, as its users are. Memory: "
    "the most that torch sets aside at one time beyond network and pictures.",
    "limit": "How many times as long as a plain forward pass of the network as it is, or that and a "
    "bare backward pass to the picture, it takes; below 1 where this library runs the same network "
    "in a faster way (channels last, max pooling without indices). Occlusion: how many times what "
    "the incremental engine takes, running the whole network for every window takes.",
    "scaling": "Along an axis: the batch, the picture's side in pixels, the targets of one picture, "
    "the windows of occlusion.",
    "classes": "How many times a plain forward pass the maps of so many classes take, in one call.",
    "maximize": "How many times as many plain forward passes the steps of an ascent take.",
    "precision": "How many times what bfloat16 takes, single precision takes; and how far the maps "
    "are apart.",
    "convert": "How many times what the imported network takes, the other side takes.",
}


def number(value: float) -> str:
    """A ratio, as precise as it matters."""
    if value == float("inf"):
        return "∞"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio(row: Row) -> str:
    """Median and quartiles; the difference of maps as what it is."""
    if row.measure == "map":
        return "–" if row.median == float("inf") else f"{row.median:.0e}"
    if row.rounds == 1:
        return number(row.median)
    return f"{number(row.median)} [{number(row.low)}–{number(row.high)}]"


def amount(row: Row, value: float) -> str:
    """Seconds, bytes or multiply-adds."""
    if row.measure == "map":
        return ""
    scales = {"memory": _BYTES, "multiply-adds": _MACS}.get(row.measure, _UNITS["time"])
    for scale, unit in scales:
        if abs(value) >= scale or (scale, unit) == scales[-1]:
            return f"{value / scale:.3g} {unit}".rstrip()
    return f"{value:.3g}"


def goal(row: Row) -> str:
    """What it ought to be, and whether it is."""
    if row.goal is None:
        return ""
    least, most = row.goal
    words = " and ".join(
        f"{sign} {number(bound)}"
        for sign, bound in (("≥", least), ("≤", most))
        if bound is not None
    )
    return f"{words} {'✓' if row.met else 'missed'}"


def terminal(row: Row) -> str:
    """One line for a terminal."""
    where = row.setting if row.at is None else f"{row.setting} {row.at:g}"
    name = f"{row.method:<16} {row.model:<13} {where:<32}"
    sides = f"{row.side} / {row.against}"
    figures = f"{row.measure:<13} {ratio(row):<20} {sides:<40}"
    rest = " ".join(each for each in (amount(row, row.value), goal(row), row.note) if each)
    return f"{name} {figures} {rest}".rstrip()


def markdown(record: Record) -> str:
    """A record as a Markdown page: a table for each method."""
    lines = [
        f"# {record.suite}",
        "",
        EXPLAINED.get(record.suite, ""),
        "",
        f"{machine.line(record.machine)}; {versions(record)}. {idleness([record])}"
        f"{commits([record])} A ratio is the median [quartiles] of its rounds, without those in which "
        "other work disturbed a side.",
    ]
    if found := calls(record):
        lines += ["", "```bash", *found, "```"]
    if record.quick:
        lines += ["", "**A quick run: few repetitions, figures not for keeping.**"]
    for method in dict.fromkeys(row.method for row in record.rows):
        rows = [row for row in record.rows if row.method == method]
        lines += ["", f"## {method}", "", *_table(rows)]
    if record.remarks:
        lines += ["", *(f"- {remark}" for remark in record.remarks)]
    return "\n".join(lines) + "\n"


def versions(record: Record) -> str:
    """The peers' versions."""
    names = ("captum", "grad-cam", "torchcam", "zennit", "onnxruntime")
    packages = record.machine["packages"]
    return ", ".join(f"{name} {packages[name]}" for name in names if name in packages) or "no peers"


def idleness(records: Iterable[Record]) -> str:
    """Whether other work went on, as the operating system saw it."""
    runs = [run for record in records for run in record.runs]
    days = sorted({run.started[:10] for run in runs})
    when = "Measured " + " to ".join(dict.fromkeys((days[0], days[-1])))
    start = max((run.load for run in runs if run.load is not None), default=None)
    if start is None:
        return f"{when}."
    state = "idle" if start < 0.5 else "**not idle: times are not to be relied on**"
    return f"{when}, load before the start {start:g} ({state})."


def commits(records: Iterable[Record]) -> str:
    """Which code was measured, as a sentence; nothing where that is not known."""
    found = dict.fromkeys(run.commit for record in records for run in record.runs if run.commit)
    return f" Code of {', '.join(found)}." if found else ""


def calls(record: Record) -> list[str]:
    """How the record's runs were called, the first one first."""
    return list(dict.fromkeys(run.command for run in record.runs[::-1] if run.command))


def _table(rows: Sequence[Row]) -> list[str]:
    swept = any(row.at is not None for row in rows)
    head = ["network", "setting", *(["at"] if swept else []), "measure", "side", "against"]
    head += ["ratio", "rounds", "side's own", "base", "goal", "note"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row.model, row.setting]
        cells += ["" if row.at is None else f"{row.at:g}"] if swept else []
        cells += [row.measure, row.side, row.against, ratio(row), _rounds(row)]
        cells += [amount(row, row.value), amount(row, row.base), goal(row), row.note]
        lines.append(cells)
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _rounds(row: Row) -> str:
    """How many ratios the median is of; what is counted needs one."""
    if row.measure != "time":
        return ""
    return f"{row.rounds} of {row.rounds + row.left_out}" if row.left_out else str(row.rounds)


def verdict(rows: Sequence[Row]) -> str:
    """How many goals were reached, and which were not."""
    asked = [row for row in rows if row.met is not None]
    if not asked:
        return ""
    missed = [row for row in asked if not row.met]
    words = f"{len(asked) - len(missed)} of {len(asked)} goals reached"
    if missed:
        words += "; missed:\n" + "\n".join(f"  {terminal(row)}" for row in missed)
    return words
