"""The README's section on speed, made of a folder of results; losses are in it like the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import machine, tables
from benchmarks.goals import unmeasured as unmeasured_goals
from benchmarks.limit import GRADIENT
from benchmarks.record import OURS, Record, Row, differences, pick, read
from benchmarks.tables import number
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
SUITES = ("peers", "limit", "scaling", "convert")
_IF_MEASURED = ("classes",)


def rewrite(readme: Path, results: Path) -> None:
    """Put the section made of ``results`` between the marks of ``readme``.

    Raises:
        InputError: without marks, or results.
    """
    before, _, after = parts(readme.read_text(encoding="utf-8"))
    text = f"{before}{BEGIN}\n{quoted(results)}{END}{after}"
    write_atomically(readme, lambda file: file.write(text.encode()))


def parts(readme: str) -> tuple[str, str, str]:
    """What stands before the marks, between and after them.

    Raises:
        InputError: unless each mark is there once.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise InputError(f"the README must hold {BEGIN} and {END} once each")
    before, _, rest = readme.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside.removeprefix("\n"), after


def folders(results: Path) -> list[Path]:
    """Results, and in folders of their own those of other machines."""
    return [results, *sorted(each for each in results.glob("*") if each.is_dir())]


def quoted(results: Path) -> str:
    """The section as Markdown; other machines' results are folded up.

    Raises:
        InputError: where a suite's results are missing.
    """
    first, *others = folders(results)
    text = section(first)
    machines = {folder: read(folder / f"{SUITES[0]}.json").machine for folder in (first, *others)}
    if all(each["device"] == "cpu" for each in machines.values()):
        text += "\nNothing has been measured on a GPU yet.\n"
    for folder in others:
        where = machine.where(machines[folder])
        summary = f"<details><summary>The same on another machine: {where}</summary>"
        text += f"\n{summary}\n\n{section(folder)}\n</details>\n"
    return text


def section(results: Path) -> str:
    """What was measured on one machine, as Markdown.

    Raises:
        InputError: where a suite's results are missing, or of another machine than the others.
    """
    names = [*SUITES, *(n for n in _IF_MEASURED if (results / f"{n}.json").exists())]
    found = {name: read(results / f"{name}.json") for name in names}
    for name, record in found.items():
        if differ := differences(found[SUITES[0]].machine, record.machine):
            raise InputError(
                f"the results of {SUITES[0]} and {name} in {str(results)!r} differ in "
                f"{', '.join(differ)}: measure one of them again, or keep them in two folders"
            )
    peers, limit = found["peers"], found["limit"]
    blocks = [
        _where(found.values(), results),
        _commands(found.values()),
        "Times that other libraries take for the same map, as multiples of ours (median; above 1 this "
        f"library is faster); {_batches(peers.rows)}. “≠”: it computes another map here, so it "
        "was not timed; “–”: not measured. Weights ask for gradients, as they do when torchvision hands "
        "out a network; pytorch-grad-cam computes those too, and guided backprop picture by picture.",
        *_wide(_peer_lines(peers.rows, "time"), peers.rows),
        *_memory(peers.rows),
        "Ours as multiples of the limits: a plain `no_grad` forward pass, or a forward pass and the "
        f"bare gradient at the picture; {_batches(limit.rows)}.",
        *_wide(_limit_lines(limit.rows), limit.rows),
        'Occlusion: how many times as long as `occlusion(engine="incremental")` others take, '
        "captum at its fastest `perturbations_per_eval`, ours without the engine as the network is "
        "and with batch norms folded and channels last; how many times the multiply-adds; and "
        f"ours beside the fewest there can be.{_sampled([*peers.rows, *limit.rows])}",
        *_occlusion(peers.rows, limit.rows),
        *_grid(peers.rows),
        *(_classes(found["classes"].rows) if "classes" in found else ()),
        "A network imported from ONNX: what others take for the same, as multiples of the imported "
        f"one; {_batches(found['convert'].rows)}.",
        *_wide(_convert_lines(found["convert"].rows), found["convert"].rows),
        _goals(found.values()),
    ]
    return "\n".join(f"{block}\n" for block in blocks if block)


def _where(records: Iterable[Record], results: Path) -> str:
    records = list(records)
    folder = results.relative_to(ROOT) if results.is_relative_to(ROOT) else results.name
    last = max(records, key=lambda each: each.started)
    quick = any(each.quick for each in records)
    return (
        f"{machine.line(last.machine)}; {tables.versions(last)}. {tables.idleness(records)}"
        f"{tables.commits(records)}"
        f"{' **A quick run, figures not for keeping.**' if quick else ''} Sides take turns in one "
        f"process; quartiles, seconds, memory and growth with batch and size: [{folder}]({folder})."
    )


def _commands(records: Iterable[Record]) -> str:
    """Folded up: they are many lines, and few want to read them."""
    found = [call for record in records for call in tables.calls(record)]
    lines = ['python -m pip install -e ".[bench,compare]"', *dict.fromkeys(found)]
    summary = "<details><summary>The commands that measured it</summary>"
    return "\n".join([summary, "", "```bash", *lines, "```", "", "</details>"])


def _batches(rows: Iterable[Row]) -> str:
    found = _numbers(rows)
    return "batches of " + " / ".join(found) if found else "one picture"


def _numbers(rows: Iterable[Row]) -> list[str]:
    batches = {row.setting.split(",")[0] for row in rows if row.setting.startswith("batch ")}
    return sorted((each.removeprefix("batch ") for each in batches), key=int)


# ---- a column for each network ---------------------------------------------------------------


def _wide(lines: list[tuple[str, list[Row]]], rows: Sequence[Row]) -> list[str]:
    """A table with a line for each comparison, a column for each network."""
    networks = list(dict.fromkeys(row.model for _, group in lines for row in group))
    batches = _numbers(rows)
    table = [["", *networks], ["---"] * (len(networks) + 1)]
    for label, group in lines:
        cells = [
            " / ".join(
                _cell([r for r in group if r.model == name and _is_of(r, b)]) for b in batches
            )
            for name in networks
        ]
        table.append([label, *cells])
    return ["\n".join("| " + " | ".join(cells) + " |" for cells in table)]


def _is_of(row: Row, batch: str) -> bool:
    """Whether a row is of so many pictures; what has no batch, as occlusion, is of one."""
    return f"{row.setting},".startswith(f"batch {batch},") or (
        batch == "1" and not row.setting.startswith("batch ")
    )


def _cell(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.measure != "map"]
    if timed:
        return number(timed[0].median)
    return "≠" if any(row.note.startswith("different") for row in rows) else "–"


def _peer_lines(rows: Sequence[Row], measure: str) -> list[tuple[str, list[Row]]]:
    lines = []
    methods = [row.method for row in rows if row.setting.startswith("batch ")]
    for method in dict.fromkeys(methods):
        of_method = pick(rows, method=method)
        for side in dict.fromkeys(row.side for row in of_method):
            group = [r for r in pick(of_method, side=side) if r.measure in (measure, "map")]
            lines.append((f"`{method}`, {side}", group))
    return lines


def _memory(rows: Sequence[Row]) -> list[str]:
    if not pick(rows, measure="memory"):
        return []
    return [
        "Peak memory that torch sets aside for them beyond network and pictures, as multiples of ours "
        "(above 1 this library needs less); the same batches.",
        *_wide(_peer_lines(rows, "memory"), rows),
    ]


def _limit_lines(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    timed = pick(rows, measure="time", side=OURS)
    against = {"forward": "forward", GRADIENT: "gradient"}
    return [
        (f"`{method}` / {words}", group)
        for method in dict.fromkeys(row.method for row in timed)
        for limit, words in against.items()
        if (group := pick(timed, method=method, against=limit))
    ]


def _convert_lines(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    found = [row for row in rows if row.measure in ("time", "map")]
    keys = dict.fromkeys((row.method, row.side) for row in found)
    return [(f"{m}, {s}", pick(found, method=m, side=s)) for m, s in keys]


# ---- occlusion and drawing -------------------------------------------------------------------

_Column = tuple[str, Callable[[str, str], list[Row]]]


def _occlusion(peers: Sequence[Row], limit: Sequence[Row]) -> list[str]:
    def of(rows: Sequence[Row], **wanted: str) -> Callable[[str, str], list[Row]]:
        return lambda model, setting: pick(
            rows, method="occlusion", model=model, setting=setting, **wanted
        )

    columns: list[_Column] = [
        ("captum", of(peers, measure="time", side="captum")),
        ("captum's memory", of(peers, measure="memory", side="captum")),
        ("dense", of(limit, measure="time", side="dense")),
        ("dense, folded", of(limit, measure="time", side="dense, folded")),
        ("multiply-adds", of(limit, measure="multiply-adds", side="dense")),
        ("beside the fewest", of(limit, measure="multiply-adds", side=OURS)),
    ]
    places = [(r.model, r.setting) for r in [*limit, *peers] if r.method == "occlusion"]
    table = [["network", "picture", *(name for name, _ in columns), "ours"]]
    table.append(["---"] * len(table[0]))
    for model, setting in sorted(dict.fromkeys(places), key=lambda place: place[1]):
        groups = [find(model, setting) for _, find in columns]
        cells = [number(rows[0].median) if rows else "–" for rows in groups]
        timed = [row for rows in groups for row in rows if row.measure == "time"]
        own = f"{timed[0].base:.1f} s" if timed else "–"
        table.append([model, setting, *cells, own])
    return ["\n".join("| " + " | ".join(cells) + " |" for cells in table)]


def _sampled(rows: Sequence[Row]) -> str:
    """That not all windows were timed, where that is so."""
    if not any(row.note.endswith(" windows") for row in pick(rows, measure="time")):
        return ""
    return (
        " Captum and the dense runs were timed on a coarse grid of at least 64 windows, which cost "
        "them the same wherever they are, and the time of all is reckoned from it."
    )


def _grid(rows: Sequence[Row]) -> list[str]:
    found = pick(rows, method="feature_maps", measure="time")
    return [
        f"A grid of {row.model} of {row.setting}: {row.base:.2f} s; {row.side} with {row.note} "
        f"takes {row.value:.1f} s, {number(row.median)} times as long."
        for row in found
    ]


def _classes(rows: Sequence[Row]) -> list[str]:
    """What the maps of many classes from one call cost, a sentence each network."""
    sentences = []
    for model in dict.fromkeys(row.model for row in rows):
        timed = pick(rows, method="grad_cam", model=model, measure="time")
        numbers = [row.setting.split(" ")[0] for row in timed]
        costs = [number(row.median) for row in timed]
        sentences.append(
            f"Grad-CAM of {' / '.join(numbers)} classes of {model} in one call takes "
            f"{' / '.join(costs)} times as long as a plain forward pass of one picture."
        )
    return sentences


def _goals(records: Iterable[Record]) -> str:
    """What the figures ought to be, and which are not."""
    asked = [row for record in records for row in record.rows if row.met is not None]
    if not asked:
        return ""
    missed = [row for row in asked if not row.met]
    words = f"Of {len(asked)} goals set beforehand {len(asked) - len(missed)} are reached"
    unmeasured = "; ".join(
        ", ".join(
            (
                *(goal.method, name, *(each.rstrip(",") for each in goal.settings)),
                f"{goal.measure} of {goal.side} / {goal.against}",
            )
        )
        for goal, name in unmeasured_goals(asked)
    )
    open_ones = f" Goals of what is not measured here: {unmeasured}." if unmeasured else ""
    if not missed:
        return f"{words}.{open_ones}"
    listed = "; ".join(
        f"{row.method}, {row.model}, {row.setting}, {row.measure} of {row.side} / {row.against} "
        f"{number(row.median)} ({tables.goal(row).removesuffix(' missed')})"
        for row in missed
    )
    return f"{words}. Missed: {listed}.{open_ones}"
