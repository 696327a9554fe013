"""What was measured, as rows of plain data: one row is one ratio of one measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.clock import Ratio
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically

Measure = Literal["time", "memory", "multiply-adds", "map"]
FORMAT = 1
OURS = "torchviz_cnn"


@dataclass(frozen=True)
class Row:
    """How one side compares with another.

    Attributes:
        suite, method, model, setting: what was done, to what; the setting in words.
        measure: what of it: ``"time"``, peak ``"memory"``, ``"multiply-adds"``, or ``"map"``, the
            largest difference of two maps over the largest value of the second.
        side, against: whose figure is divided by whose.
        low, median, high: the ratio and its quartiles; all the same where it was measured once.
        value, base: the two sides' own figures, in seconds, bytes or multiply-adds.
        rounds: how many ratios the quartiles are of.
        left_out: how many more there were, of rounds in which other work disturbed a side.
        note: what has to be said of it.
        at: the number that a sweep is over, for a plot's axis.
        goal: what the median ought to be, ``(least, most)``; ``None`` leaves an end open.
        run: in which of the record's runs it was measured; 0 is the last.
    """

    suite: str
    method: str
    model: str
    setting: str
    measure: Measure
    side: str
    against: str
    low: float
    median: float
    high: float
    value: float
    base: float
    rounds: int = 1
    note: str = ""
    at: float | None = None
    goal: tuple[float | None, float | None] | None = None
    run: int = 0
    left_out: int = 0

    @property
    def pair(self) -> tuple[object, ...]:
        """Which two sides were measured, where, whatever was found."""
        where = (self.suite, self.method, self.model, self.setting, self.at)
        return (*where, self.side, self.against)

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached, to the precision that is printed; ``None`` without one."""
        if self.goal is None:
            return None
        least, most = self.goal
        shown = round(self.median, 2)
        return (least is None or shown >= least) and (most is None or shown <= most)


@dataclass(frozen=True)
class About:
    """What rows of one kind have in common."""

    suite: str
    method: str
    model: str
    setting: str
    at: float | None = None

    def time(self, side: str, against: str, ratio: Ratio, note: str = "") -> Row:
        """A row of times."""
        return Row(
            **self._shared(),
            measure="time",
            side=side,
            against=against,
            low=ratio.low,
            median=ratio.median,
            high=ratio.high,
            value=ratio.seconds,
            base=ratio.baseline_seconds,
            rounds=ratio.rounds,
            note=note,
            left_out=ratio.left_out,
        )

    def once(
        self, measure: Measure, side: str, against: str, value: float, base: float, note: str = ""
    ) -> Row:
        """A row of what is counted, and needs no repeating."""
        found = value / base if base else float("inf")
        return Row(
            **self._shared(),
            measure=measure,
            side=side,
            against=against,
            low=found,
            median=found,
            high=found,
            value=value,
            base=base,
            note=note,
        )

    def _shared(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """One call of a suite.

    Attributes:
        command: how it was called.
        started: date and time, ISO 8601.
        load: of the machine before the start, if it is known.
        commit: of what was measured, and of what measured it, likewise.
    """

    command: str
    started: str
    load: float | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Record:
    """The rows of one suite, and where they were measured.

    Attributes:
        suite: its name.
        machine: as :func:`benchmarks.machine.about` tells.
        started: date and time, ISO 8601.
        quick: measured with few repetitions, to see that it works.
        command: how it was called.
        rows: in the order they were measured.
        remarks: what could not be measured, and how it could.
        earlier: runs before this one that some of the rows are of, the latest first.
    """

    suite: str
    machine: dict[str, Any]
    started: str
    quick: bool
    rows: tuple[Row, ...] = ()
    remarks: tuple[str, ...] = field(default=())
    command: str = ""
    earlier: tuple[Run, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All that the rows are of; this one first."""
        load, commit = self.machine.get("load"), self.machine.get("commit")
        return Run(self.command, self.started, load, commit), *self.earlier

    def with_rows(self, rows: Iterable[Row], remarks: Iterable[str] = ()) -> Record:
        return replace(self, rows=tuple(rows), remarks=tuple(remarks))

    def may_add_to(self, earlier: Record) -> bool:
        """Whether both are of one machine with one set of packages, and for keeping."""
        return not (differences(self.machine, earlier.machine) or self.quick or earlier.quick)

    def added_to(self, earlier: Record) -> Record:
        """Both, by network; nothing stays of what was found about sides that were measured again.

        Raises:
            InputError: when they are not of one machine with one set of packages, or one of them is
                of a quick run.
        """
        if not self.may_add_to(earlier):
            differ = differences(self.machine, earlier.machine)
            raise InputError(
                f"--add adds to results of the same machine and packages, but these differ: "
                f"{', '.join(differ) or 'one is a quick run'}; without it the suite begins anew"
            )
        again = {row.pair for row in self.rows}
        kept = [row for row in earlier.rows if row.pair not in again]
        used = sorted({row.run for row in kept})
        kept = [replace(row, run=1 + used.index(row.run)) for row in kept]
        # By network, whenever they were measured: these are the lines of tables and plots.
        order = [row.model for row in (*earlier.rows, *self.rows)]
        rows = sorted([*kept, *self.rows], key=lambda row: order.index(row.model))
        return replace(
            self,
            rows=tuple(rows),
            remarks=tuple(dict.fromkeys((*earlier.remarks, *self.remarks))),
            earlier=tuple(earlier.runs[run] for run in used),
        )

    def write(self, path: Path) -> None:
        """As JSON, never half-written."""
        data = {"format": FORMAT, **asdict(self), "rows": [_plain(row) for row in self.rows]}
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What figures depend on and is not the same of two machines."""
    here, there = _place(one), _place(other)
    return [name for name in {**here, **there} if here.get(name) != there.get(name)]


def _place(machine: dict[str, Any]) -> dict[str, Any]:
    """What figures depend on."""
    return {name: value for name, value in machine.items() if name not in ("commit", "load")}


def _plain(row: Row) -> dict[str, Any]:
    """A row without what is at its default, floats to six figures."""
    kept = {}
    for key, value in asdict(row).items():
        if value not in (None, "") and (key, value) not in (("run", 0), ("left_out", 0)):
            kept[key] = float(f"{value:.6g}") if isinstance(value, float) else value
    return kept


def read(path: Path) -> Record:
    """A record that was written before.

    Raises:
        InputError: for a file that is not there, or not one of these.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise InputError(
                f"{path} was written by another version of the benchmark; run it again"
            )
        rows = tuple(_row(each) for each in data.pop("rows"))
        remarks = tuple(data.pop("remarks"))
        earlier = tuple(Run(**each) for each in data.pop("earlier", ()))
        record = Record(**data, rows=rows, remarks=remarks, earlier=earlier)
        if not all(0 <= row.run < len(record.runs) for row in rows):
            raise ValueError("a row is of no run")
        return record
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a result of this benchmark ({error})") from None


def _row(data: dict[str, Any]) -> Row:
    goal = data.get("goal")
    return Row(**{**data, "goal": None if goal is None else (goal[0], goal[1])})


def pick(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows whose attributes are these."""
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]
