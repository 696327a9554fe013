"""``python -m benchmarks``: the suites, ``all`` of those that the README quotes, ``keras`` and ``loading``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import (
    classes,
    convert,
    limit,
    machine,
    maximization,
    peers,
    plots,
    precision,
    scaling,
    speed,
    tables,
)
from benchmarks.effort import Effort
from benchmarks.goals import with_goals
from benchmarks.record import Record, Row, read
from benchmarks.subjects import takes, usual_side
from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.files import CannotWrite, check_folder, write_atomically
from torchviz_cnn.models import choose_device, names

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Suite = Callable[[Effort], Iterator[Row | str]]
SUITES: dict[str, Suite] = {
    peers.SUITE: peers.measure,
    limit.SUITE: limit.measure,
    scaling.SUITE: scaling.measure,
    convert.SUITE: convert.measure,
}  # what ``all`` measures, and the README quotes
METHODS = {
    peers.SUITE: peers.METHODS,
    limit.SUITE: limit.METHODS,
    scaling.SUITE: scaling.METHODS,
    convert.SUITE: convert.METHODS,
    classes.SUITE: classes.METHODS,
    maximization.SUITE: maximization.METHODS,
    precision.SUITE: precision.METHODS,
}

Models = Annotated[list[str] | None, typer.Option("--model", help="May be repeated.")]
Methods = Annotated[list[str] | None, typer.Option("--method", help="May be repeated.")]
Batches = Annotated[list[int] | None, typer.Option("--batch", min=1, help="May be repeated.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="A little of everything within three minutes on two cores.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Ratios taken of each pair, at most.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for SUITE.json, SUITE.md and SUITE.png.", file_okay=False),
]
Add = Annotated[
    bool,
    typer.Option("--add", help="Keep the results that are in --out, of the same machine."),
]


@app.callback()
def _root() -> None:
    """Benchmarks: every figure is a ratio taken within one run, the sides in turn."""


def _effort(
    suite: str | None,
    models: list[str] | None,
    methods: list[str] | None,
    batches: list[int] | None,
    quick: bool,
    rounds: int,
    device: str,
) -> Effort:
    """What was asked for, checked before anything is measured."""
    for name in models or ():
        if name not in names():
            offer = closest(name, names())
            raise InputError(f"there is no network {name!r} in torchviz-cnn or torchvision{offer}")
    known = METHODS[suite] if suite else ()
    for method in methods or ():
        if method not in known:
            raise InputError(f"the suite {suite} measures {', '.join(known)}, not {method!r}")
    for name in models or ():
        for side in _sides(suite, name, quick):
            if not takes(name, side):
                larger = "; without --quick they are larger" if quick else ""
                raise InputError(
                    f"the suite {suite} shows networks colour pictures of {side}×{side}, which "
                    f"{name} does not take{larger}; choose another --model"
                )
    if batches and suite == maximization.SUITE:
        raise InputError("maximize starts from noise, a batch for every class: it takes no --batch")
    return Effort(
        choose_device(device),
        quick,
        tuple(dict.fromkeys(models or ())),
        tuple(dict.fromkeys(methods or ())),
        tuple(dict.fromkeys(batches or ())),
        min(rounds, 3) if quick else rounds,
        0.0 if quick else Effort.budget,
    )


def _sides(suite: str | None, name: str, quick: bool) -> tuple[int, ...]:
    """The sizes of picture on which a suite measures a network."""
    if suite == maximization.SUITE:
        return (maximization.SIDE,)
    usual = usual_side(name, quick=quick)
    return (usual, *scaling.sides(name, quick=quick)) if suite == scaling.SUITE else (usual,)


def _run(
    name: str, measure: Suite, effort: Effort, out: Path | None, *, add: bool = False
) -> Record:
    """Measure one suite, tell while doing so, and keep what was found even when interrupted."""
    machine.in_full_precision()
    record = Record(
        name,
        machine.about(effort.device),
        datetime.now(UTC).isoformat(timespec="seconds"),
        effort.quick,
        command=f"python -m benchmarks {shlex.join(sys.argv[1:])}",
    )
    if out is not None:
        check_folder(out)
    earlier = _earlier(record, out, add=add)
    print(f"\n{name}: {machine.line(record.machine)}")
    print(tables.EXPLAINED[name] + "\n")
    rows: list[Row] = []
    remarks: list[str] = []
    stopped = False
    try:
        for found in measure(effort):
            if isinstance(found, str):
                remarks.append(found)
                print(found, flush=True)
            else:
                rows += with_goals([found]) if effort.has_goals else [found]
                print(tables.terminal(rows[-1]), flush=True)
    except BaseException as error:
        stopped = True
        why = type(error).__name__
        remarks.append(f"The run of {record.started} was stopped early ({why}): not all is here.")
        raise
    finally:
        record = record.with_rows(rows, dict.fromkeys(remarks))
        if out is not None and rows:
            # What a run that was stopped did not come to is kept as it was.
            adds = earlier is not None and (add or (stopped and record.may_add_to(earlier)))
            _write(record.added_to(earlier) if earlier and adds else record, out)
            if stopped:
                print(f"\nstopped; what was measured so far is in {out}", file=sys.stderr)
    if words := tables.verdict(rows):
        print(f"\n{words}")
    return record


def _earlier(record: Record, out: Path | None, *, add: bool) -> Record | None:
    """What is there already, seen to fit what was asked for before anything is measured."""
    if out is None:
        if add:
            raise InputError("--add needs the folder to add to: --out FOLDER")
        return None
    path = out / f"{record.suite}.json"
    if add:
        earlier = read(path)
        record.added_to(earlier)
        return earlier
    try:
        earlier = read(path)
    except InputError:  # none, or of another version: it is replaced
        return None
    if record.quick and not earlier.quick:
        raise InputError(
            f"{path} holds results that are for keeping, and those of a quick run are not; "
            "name another folder"
        )
    return earlier


def _write(record: Record, out: Path) -> None:
    """The page and the plot are made of what is kept, to its last digit."""
    record.write(out / f"{record.suite}.json")
    record = read(out / f"{record.suite}.json")
    page = tables.markdown(record)
    write_atomically(out / f"{record.suite}.md", lambda file: file.write(page.encode()))
    plots.draw(record, out / f"{record.suite}.png")


_OF_NETWORKS: dict[str, tuple[str, Suite]] = {
    "peers": (
        "Beside captum, pytorch-grad-cam, torchcam and zennit: time and memory of the same maps.",
        peers.measure,
    ),
    "limit": (
        "Beside a plain forward pass, a bare gradient, and the multiply-adds there are.",
        limit.measure,
    ),
    "scaling": (
        "Larger batches and pictures, more windows and targets: time and memory.",
        scaling.measure,
    ),
    "classes": (
        "Maps of 1, 10 and 100 classes from one call, beside a plain forward pass.",
        classes.measure,
    ),
    "maximize": (
        "A step of activation maximisation beside a plain forward pass, and a whole ascent.",
        maximization.measure,
    ),
    "precision": (
        "Occlusion and Score-CAM in bfloat16 beside single precision: time, and the maps' ranks.",
        precision.measure,
    ),
}


def _add(name: str, about: str, measure: Suite) -> None:
    """A command for a suite that measures networks by name."""

    @app.command(name, help=about)
    def command(
        model: Models = None,
        method: Methods = None,
        batch: Batches = None,
        quick: Quick = False,
        rounds: Rounds = Effort.rounds,
        device: Device = "auto",
        out: Out = None,
        add: Add = False,
    ) -> None:
        effort = _effort(name, model, method, batch, quick, rounds, device)
        _run(name, measure, effort, out, add=add)


for _name, (_about, _measure) in _OF_NETWORKS.items():
    _add(_name, _about, _measure)


@app.command("convert")
def convert_command(
    file: Annotated[
        Path | None, typer.Option(help="An ONNX file, in place of torchvision's networks.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="torchvision's network of the file's kind.")
    ] = None,
    model: Models = None,
    method: Methods = None,
    batch: Batches = None,
    quick: Quick = False,
    rounds: Rounds = Effort.rounds,
    device: Device = "auto",
    out: Out = None,
    add: Add = False,
) -> None:
    """An imported network beside onnxruntime and beside torchvision's own."""
    if file is not None and not file.is_file():
        raise InputError(f"there is no file {str(file)!r}")
    if file is not None and model:
        raise InputError(
            "--model chooses torchvision's own networks, and --file is measured in their place; "
            "name one of the two"
        )
    if file is not None and "grad_cam" in (method or ()):
        raise InputError(
            "grad_cam is compared of torchvision's own networks only, whose layers are known on both "
            "sides; of a --file the methods are forward and occlusion"
        )
    if against is not None and file is None:
        raise InputError(
            "--against names torchvision's network of a file's kind, and there is no --file; "
            "torchvision's own networks are chosen by --model"
        )
    if against is not None and against not in names():
        offer = closest(against, names())
        raise InputError(f"there is no network {against!r} to put it beside{offer}")
    effort = _effort("convert", model, method, batch, quick, rounds, device)
    _run("convert", lambda asked: convert.measure(asked, file, against), effort, out, add=add)


@app.command("all")
def all_command(
    quick: Quick = False,
    rounds: Rounds = Effort.rounds,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Every suite, one after the other."""
    effort = _effort(None, None, None, None, quick, rounds, device)
    for name, measure in SUITES.items():
        _run(name, measure, effort, out)


@app.command("readme")
def readme_command(
    results: Annotated[
        Path, typer.Argument(help="A folder that --out has filled.")
    ] = speed.RESULTS,
) -> None:
    """Write the README's section on speed anew, from results."""
    speed.rewrite(speed.README, results)
    print(f"{speed.README} now quotes {results}")


@app.command("keras")
def keras_command(
    app_name: Annotated[
        list[str] | None, typer.Option("--app", help="Of keras.applications; may be repeated.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Batch norms merged into convolutions.")
    ] = False,
    device: Annotated[str, typer.Option(help="For Grad-CAM: auto, cpu or cuda.")] = "auto",
) -> None:
    """Keras applications exported, imported and compared layer by layer with Keras itself."""
    from benchmarks import keras_apps

    applications = tuple(dict.fromkeys(app_name or keras_apps.APPLICATIONS))
    keras_apps.check(applications, device)
    print(keras_apps.HEAD)
    print("|" + " --- |" * (keras_apps.HEAD.count("|") - 1))
    rows = []
    for row in keras_apps.measure(applications, every_layer=not merged, device=device):
        rows.append(row)
        print(keras_apps.line(row), flush=True)
    failed = [row.name for row in rows if not row.passed]
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    raise typer.Exit(1 if failed else 0)


@app.command("loading")
def loading_command(
    model: Annotated[str, typer.Option(help="A network that ends in a sigmoid.")] = "cat_dog",
    batch: Annotated[int, typer.Option(min=1)] = 20,
    steps: Annotated[int, typer.Option(help="Of an epoch.", min=1)] = 10,
    workers: Annotated[int, typer.Option(min=0)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    device: Device = "auto",
) -> None:
    """Training from 150×150 JPEGs beside the same steps on tensors in memory: images a second."""
    from benchmarks import loading

    chosen = choose_device(device)
    print(machine.line(machine.about(chosen)))
    print(f"{model}, batches of {batch}; ratios within a round, medians\n")
    rows = loading.measure(
        model, device=chosen, rounds=rounds, steps=steps, workers=workers, batch_size=batch
    )
    print(loading.table(rows))


def main() -> None:
    """Run a command; what was asked for wrongly is told in a sentence."""
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except CannotWrite as error:
        _fail(f"cannot write {error.filename}: {error.strerror or error}")


def _fail(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
