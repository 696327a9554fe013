"""The benchmark's command line: what is wrong is told before any work, and what was found is kept."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from benchmarks import __main__ as command_line
from benchmarks import plots, speed
from benchmarks.effort import Effort
from benchmarks.goals import GOALS, Goal, unmeasured, with_goals
from benchmarks.machine import about
from benchmarks.record import OURS, Record, Row, read
from benchmarks.subjects import takes

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
FILE = str(Path(__file__).parent / "data" / "catdog.k3export.onnx")
DAY = "2026-01-02T03:04:05+00:00"


def row(**changes):
    where = ("peers", "grad_cam", "vgg16", "batch 1, 224×224", "time", "captum", OURS)
    return replace(Row(*where, 1, 2, 3, 4, 2), **changes)


def typed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    command_line.main()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["peers", "--model", "mnist_convnet"],
            "the suite peers shows networks colour pictures of",
        ),
        (["peers", "--quick", "--model", "vit_b_16"], "without --quick they are larger"),
        (["maximize", "--model", "cat_dog"], "128×128, which cat_dog does not take"),
        (["scaling", "--model", "vit_b_16"], "112×112, which vit_b_16 does not take"),
        (["convert", "--file", FILE, "--model", "resnet18"], "name one of the two"),
        (["convert", "--file", FILE, "--against", "resnet81"], "did you mean 'resnet18'"),
        (["convert", "--file", FILE, "--against", "cat_dog", "--quick"], "pictures of 3×20×20"),
        (["keras", "--app", "VGG61"], "not 'VGG61'"),
        (["keras", "--device", "tpu"], "there is no device 'tpu'"),
    ],
)
def test_a_bad_wish_is_one_sentence_and_nothing_is_measured(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(Effort, "ratios", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        typed(monkeypatch, *words)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert "|" not in told.out  # no head of a table that has no lines


def test_keras_that_is_not_installed_is_told_with_how_to_have_it(monkeypatch, capsys):
    from benchmarks import keras_apps

    monkeypatch.setattr(keras_apps, "_NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit) as ended:
        typed(monkeypatch, "keras", "--app", "VGG16")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("Keras' applications need no_such_package, not installed here: python")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "side", "can"),
    [("cat_dog", 150, True), ("cat_dog", 128, False), ("resnet18", 112, True)],
)
def test_whether_a_network_takes_a_size_is_known_beforehand(name, side, can):
    assert takes(name, side) is can


def test_what_is_named_twice_is_measured_once(monkeypatch):
    found = command_line._effort(
        "peers", ["cat_dog"] * 2, ["saliency"] * 2, [3, 1, 3], False, 5, "cpu"
    )
    assert (found.models, found.methods, found.batches) == (("cat_dog",), ("saliency",), (3, 1))


def test_the_command_that_is_kept_can_be_typed_again(monkeypatch, tmp_path):
    words = ["maximize", "--method", "class, fourier", "--out", str(tmp_path / "a b")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    found = command_line._run("maximize", lambda _: iter(()), Effort(CPU), None).command
    assert found.startswith("python -m benchmarks maximize --method 'class, fourier' --out '")


class TestWhatIsThere:
    def put(self, folder, *rows, quick=False, machine=None):
        Record("peers", machine or about(CPU), DAY, quick, rows, (), "before").write(
            folder / "peers.json"
        )

    def stopped(self, folder, *, quick=False):
        def measure(_):
            yield row(median=9.0)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            command_line._run("peers", measure, Effort(CPU, quick), folder)
        return read(folder / "peers.json")

    def test_a_stopped_run_keeps_what_it_did_not_come_to(self, tmp_path, capsys):
        self.put(tmp_path, row(), row(side="zennit"))
        found = self.stopped(tmp_path)
        assert [(each.side, each.median, each.run) for each in found.rows] == [
            ("zennit", 2.0, 1), ("captum", 9.0, 0),
        ]  # fmt: skip
        assert found.runs[1].command == "before"
        assert "stopped early (KeyboardInterrupt)" in found.remarks[0]
        assert f"stopped; what was measured so far is in {tmp_path}" in capsys.readouterr().err

    @pytest.mark.parametrize("change", [{"threads": 64}, {"processor": "Abacus"}])
    def test_another_machine_s_results_are_not_mixed_with_them(self, tmp_path, change):
        self.put(tmp_path, row(), row(side="zennit"), machine={**about(CPU), **change})
        assert [each.side for each in self.stopped(tmp_path).rows] == ["captum"]

    def test_a_run_that_ends_well_begins_anew(self, tmp_path):
        self.put(tmp_path, row(side="zennit"))
        command_line._run("peers", lambda _: iter([row()]), Effort(CPU), tmp_path)
        assert [each.side for each in read(tmp_path / "peers.json").rows] == ["captum"]

    def test_a_quick_run_does_not_take_the_place_of_what_is_for_keeping(
        self, tmp_path, monkeypatch, capsys
    ):
        self.put(tmp_path, row())
        monkeypatch.setattr(Effort, "ratios", lambda *_, **__: pytest.fail("measured"))
        with pytest.raises(SystemExit) as ended:
            typed(monkeypatch, "peers", "--quick", "--out", str(tmp_path))
        assert ended.value.code == 2
        assert "name another folder" in capsys.readouterr().err
        assert read(tmp_path / "peers.json").rows == (row(),)
        self.put(tmp_path, row(side="zennit"), quick=True)
        command_line._run("peers", lambda _: iter([row()]), Effort(CPU, quick=True), tmp_path)
        assert [each.side for each in read(tmp_path / "peers.json").rows] == ["captum"]


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise there")
def test_an_interrupt_leaves_whole_files(tmp_path):
    words = "limit --model cat_dog_small --method grad_cam --method saliency --device cpu --out"
    # A process that a shell has put into the background is born deaf to interrupts.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)"
    )
    run = subprocess.Popen(
        [sys.executable, "-u", "-c", program, *words.split(), str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    next(line for line in run.stdout if line.startswith("grad_cam"))
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=300)
    assert run.returncode not in (0, 1, 2)
    assert "Traceback" not in error
    assert str(tmp_path) in error
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        f"limit.{kind}" for kind in ("json", "md", "png")
    ]
    rows = json.loads((tmp_path / "limit.json").read_text(encoding="utf-8"))["rows"]
    assert rows[0]["method"] == "grad_cam"
    assert "stopped early (KeyboardInterrupt)" in (tmp_path / "limit.md").read_text("utf-8")
    assert imread(tmp_path / "limit.png").shape[2] == 4


class TestPlots:
    def test_networks_have_lines_of_their_own(self):
        shared = {"suite": "scaling", "against": "forward", "side": OURS, "setting": "batch"}
        rows = [
            row(model=model, at=at, value=value, base=1.0, **shared)
            for model, value in (("resnet18", 3.0), ("cat_dog", 5.0))
            for at in (1.0, 4.0)
        ]
        assert plots.grown(rows) == {
            "resnet18, grad_cam": {1: 3, 4: 3}, "resnet18, forward": {1: 1, 4: 1},
            "cat_dog, grad_cam": {1: 5, 4: 5}, "cat_dog, forward": {1: 1, 4: 1},
        }  # fmt: skip
        assert set(plots.grown(rows[:2])) == {"grad_cam", "forward"}

    @pytest.mark.parametrize("ends", [(0.97, 1.4), (0.5, 2.2), (0.8, 60), (0.05, 6), (0.99, 1.36)])
    def test_an_axis_has_figures_to_read_it_by(self, ends):
        found = plots.ticks(*ends)
        assert 3 <= len(found) <= 9
        assert found == sorted(found)
        assert 1 in found
        assert ends[0] <= found[0] < found[-1] <= ends[1]

    def test_memory_is_shown_beside_time_and_which_way_is_better(self):
        rows = (row(), row(measure="memory", low=0.1, median=0.1, high=0.1), row(method="x"))
        figure = plots._bars(Record("peers", about(CPU), DAY, False, rows))
        seen = [axes for axes in figure.axes if axes.get_visible()]
        assert [axes.get_title(loc="left") for axes in seen] == [
            "grad_cam, time", "grad_cam, memory", "x, time",
        ]  # fmt: skip
        assert seen[1].get_xlabel() == (
            f"times the memory that {OURS} needs; right of 1: {OURS} does better"
        )
        low, high = seen[1].get_xlim()
        assert low < 0.1 < 1 < high
        assert seen[1].texts[0].get_text() == "0.10"
        limits = plots._bars(Record("limit", about(CPU), DAY, False, rows))
        assert f"left of 1: {OURS} does better" in limits.axes[0].get_xlabel()


class TestReadme:
    def section(self, folder, *rows):
        for name in speed.SUITES:
            kept = rows if name == "peers" else ()
            Record(name, about(CPU), DAY, False, kept).write(folder / f"{name}.json")
        return speed.section(folder)

    def test_memory_that_others_need_less_of_is_quoted(self, tmp_path):
        text = self.section(tmp_path, row(), row(measure="memory", median=0.21))
        time, memory = text.split("Peak memory")
        assert "| `grad_cam`, captum | 2.00 |" in time
        assert "| `grad_cam`, captum | 0.21 |" in memory

    def test_times_of_some_windows_are_told_to_be_of_some(self, tmp_path):
        whole = row(method="occlusion", setting="224×224, window 16, stride 8")
        told = "timed on a coarse grid of at least 64 windows"
        assert told not in self.section(tmp_path, row(), whole)
        part = replace(whole, note="perturbations_per_eval=8, from 64 of 729 windows")
        assert told in self.section(tmp_path, row(), part)

    def test_goals_of_what_is_not_measured_are_told(self, tmp_path):
        text = self.section(tmp_path, *with_goals([row()]))
        assert "Of 1 goals set beforehand 1 are reached. Goals of what is not measured" in text
        assert "forward, vgg16, time of torchvision / imported" in text
        goal = Goal("peers", "grad_cam", "time", "captum", OURS, 1.0, models=("vgg16", "resnet50"))
        assert unmeasured([row()], (goal,)) == [(goal, "resnet50")]

    @pytest.mark.parametrize("folder", speed.folders(speed.RESULTS), ids=lambda each: each.name)
    def test_goals_in_the_results_are_those_that_are_set(self, folder):
        for file in folder.glob("*.json"):
            rows = read(file).rows
            assert [each.goal for each in rows] == [each.goal for each in with_goals(rows)]

    def test_more_is_better_beside_others_and_less_beside_the_limit(self):
        for goal in GOALS:
            beside = goal.against == OURS or goal.against == "imported"
            assert (goal.least is not None, goal.most is None) == (beside, beside), goal
