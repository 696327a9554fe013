"""The benchmark measures what it says: clocks, goals, counts, comparisons, and the README's figures."""

import dataclasses
import gc
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks import __main__ as command_line
from benchmarks import convert, occluded, peers, plots, scaling, speed, tables
from benchmarks.clock import ratios, settled
from benchmarks.convert import measure, session_of
from benchmarks.effort import Effort, as_far_as_it_fits
from benchmarks.goals import GOALS, Goal, with_goals
from benchmarks.libraries import PEERS
from benchmarks.machine import about, commit_of
from benchmarks.occluded import Task
from benchmarks.peers import compare, compared
from benchmarks.precision import rank_correlation
from benchmarks.record import OURS, About, Record, Row, Run, pick, read
from benchmarks.subjects import Subject, network, subject
from torchviz_cnn.errors import InputError

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def row(**changes):
    made = Row(
        "peers", "grad_cam", "vgg16", "batch 1, 224×224", "time", "captum", OURS, 1, 2, 3, 4, 2
    )
    return dataclasses.replace(made, **changes)


def small(module: nn.Module, size=(3, 12, 16), layer="0", batch=2) -> Subject:
    module = module.double().eval()
    inputs = torch.randn(batch, *size, dtype=torch.float64)
    return Subject("small", module, inputs, layer, 1, 1, "logit")


def convolutions(relu=nn.ReLU) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), relu(), nn.Conv2d(8, 6, 3), relu(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


@contextmanager
def quietly():
    """captum warns of every hook it sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TestClock:
    def test_a_ratio_is_of_neighbouring_times_and_its_quartiles_are_in_order(self, monkeypatch):
        # The machine gets slower by a tenth with every run: the ratio must stay 3 all the same.
        now = [0.0, 1.0]

        def spend(amount):
            def run():
                now[0] += amount * now[1]
                now[1] *= 1.1

            return run

        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        found = ratios(spend(1.0), {"a": spend(3.0)}, device=CPU, rounds=7, warm_up=0)["a"]
        expected = 3 * 1.1 / ((1 + 1.1**2) / 2)
        assert found.low <= found.median <= found.high
        assert found.median == pytest.approx(expected, rel=1e-9)
        assert found.seconds / found.baseline_seconds == pytest.approx(found.median, rel=1e-9)
        assert found.rounds == 7

    def test_rounds_in_which_the_machine_changes_pace_do_not_count(self, monkeypatch):
        """In the third and fifth round the baseline takes twice as long the second time."""
        rounds = [
            (1, 3, 1),
            (1, 3.1, 1),
            (1, 9, 2),
            (2, 6, 2),
            (2, 20, 4),
            (4, 12.2, 4),
            (4, 12, 4),
        ]
        now, turns = [0.0], itertools.chain(*rounds)

        def run():
            now[0] += next(turns)

        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        found = ratios(run, {"a": run}, device=CPU, rounds=7, warm_up=0)["a"]
        assert found.rounds == 5
        assert (found.low, found.median, found.high) == pytest.approx((3, 3, 3.05))

    def test_where_hardly_any_round_is_still_all_count(self, monkeypatch):
        now, turns = [0.0], itertools.chain((1, 3, 2), (2, 3, 1), (1, 3, 1))

        def run():
            now[0] += next(turns)

        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        found = ratios(run, {"a": run}, device=CPU, rounds=3, warm_up=0)["a"]
        assert (found.rounds, found.median) == (3, 2.0)  # 3 of 1.5, twice, and 3 of 1

    def test_what_was_measured_before_is_not_kept_alive(self):
        class Cycle:
            pass

        cycle = Cycle()
        cycle.itself = cycle
        gone = weakref.ref(cycle)
        with settled():
            del cycle
            gc.collect()
            assert gone() is not None  # it was not looked at
        with settled():
            assert gone() is None

    def test_a_budget_ends_the_rounds_but_not_before_there_are_three(self):
        calls = []
        found = ratios(
            lambda: None, {"a": lambda: calls.append(1)}, device=CPU, rounds=50, warm_up=0, budget=0
        )
        assert found["a"].rounds == len(calls) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["peers", "--model", "resnet19"], "there is no network 'resnet19'"),
        (["limit", "--method", "grad_cam_"], "the suite limit measures grad_cam"),
        (["maximize", "--batch", "3"], "it takes no --batch"),
        (["peers", "--model", "resnet19"], "did you mean"),
        (["convert", "--file", "nowhere.onnx"], "there is no file 'nowhere.onnx'"),
        (["convert", "--against", "resnet18"], "of a file's kind, and there is no --file"),
        (
            ["convert", "--file", __file__, "--method", "grad_cam"],
            "grad_cam is compared of torchvision's own networks only",
        ),
        (["limit", "--out", str(Path(__file__) / "x")], "is a file; name a folder to write to"),
    ],
)
def test_a_bad_wish_is_one_sentence(words, sentence, monkeypatch, capsys):
    from benchmarks.__main__ import main

    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("method", ["forward", "grad_cam"])
def test_of_an_imported_network_only_what_was_asked_for_is_measured(method):
    effort = Effort(CPU, quick=True, models=("squeezenet1_1",), methods=(method,), rounds=1)
    found = [each for each in convert.measure(effort) if not isinstance(each, str)]
    assert {each.method for each in found} == {method}
    assert {each.note for each in found if each.measure == "map"} == {"same"}
    assert "time" in {each.measure for each in found}


def test_batches_that_were_asked_for_are_measured_in_a_quick_run_too():
    effort = Effort(CPU, quick=True, models=("cat_dog",), methods=("grad_cam",), batches=(1, 3))
    rows = itertools.takewhile(lambda row: row.setting == "batch", scaling.measure(effort))
    assert {each.at for each in rows} == {1.0, 3.0}


def test_nothing_is_measured_that_cannot_be_kept():
    def measure(effort):
        pytest.fail("measured")
        yield

    with pytest.raises(InputError, match="is a file; name a folder"):
        command_line._run("peers", measure, Effort(CPU), Path(__file__) / "x")


def test_what_cannot_be_written_after_all_is_told_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "limit.json").mkdir()
    words = ["limit", "--model", "cat_dog", "--method", "grad_cam", "--quick", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "grad_cam         cat_dog" in told.out
    assert told.err == f"cannot write {tmp_path / 'limit.json'}: Is a directory\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([3, 1, 2, 5], [30, 10, 25, 2]),
        ([0, 0, 0, 0, 4, 1, 2], [0, 0, 0, 1, 2, 3, 0]),
        ([1, 1, 2, 2], [5, 4, 5, 4]),
    ],
)
def test_equal_values_have_the_mean_of_their_ranks(one, other):
    found = rank_correlation(torch.tensor(one).reshape(1, -1, 1), torch.tensor(other) * 1.0)
    assert found == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


class TestGoals:
    @pytest.mark.parametrize(
        ("changes", "goal"),
        [
            ({}, (0.97, None)),
            ({"setting": "batch 32, 224×224"}, None),
            ({"side": "pytorch-grad-cam"}, (2.7, None)),
            ({"measure": "memory"}, (2.0, None)),
            ({"suite": "limit", "side": OURS, "against": "forward"}, (None, 1.15)),
            (
                {"suite": "limit", "side": OURS, "against": "forward", "model": "resnet50"},
                (None, 1.10),
            ),
            (
                {"suite": "limit", "side": OURS, "against": "forward", "setting": "batch 8, 224"},
                (None, 1.10),
            ),
            ({"method": "occlusion", "setting": "224×224, window 16, stride 8"}, (8.0, None)),
            ({"method": "occlusion", "setting": "448×448, window 16, stride 16"}, (15.0, None)),
        ],
    )
    def test_each_figure_has_its_own_bound(self, changes, goal):
        assert with_goals([row(**changes)])[0].goal == goal

    def test_a_goal_is_met_by_what_is_printed(self):
        assert row(median=0.969, goal=(0.97, None)).met
        assert not row(median=0.96, goal=(0.97, None)).met
        assert row(median=1.1, goal=(None, 1.1)).met
        assert not row(median=1.11, goal=(None, 1.1)).met
        assert row().met is None

    def test_every_goal_fits_a_row_that_the_suites_make(self):
        from benchmarks.__main__ import METHODS

        for goal in GOALS:
            assert isinstance(goal, Goal)
            assert goal.method in METHODS[goal.suite], goal
            assert goal.least is not None or goal.most is not None


class TestComparison:
    def test_maps_that_differ_are_told_apart_from_rounding(self):
        ours = torch.randn(2, 5, 5)
        assert compared(ours * (1 + 1e-6), ours).same
        moved = ours.clone()
        moved[0, 0, 0] += 0.01 * ours.abs().max()
        found = compared(moved, ours)
        assert not found.same
        assert found.difference == pytest.approx(0.01, rel=1e-3)

    def test_nothing_is_like_an_empty_map_and_shapes_must_agree(self):
        assert not compared(torch.zeros(3), torch.zeros(3)).same
        assert not compared(torch.ones(1, 3), torch.ones(3)).same

    @pytest.mark.parametrize("method", list(PEERS))
    def test_captum_s_maps_are_ours(self, method):
        pytest.importorskip("captum")
        asked = small(convolutions(), layer="3")
        peer = next(each for each in PEERS[method] if each.name == "captum")
        with quietly():
            found = compare(peer, asked, peer.ask(asked), peer.ours(asked))
        assert found.same
        assert found.difference < 1e-12

    @pytest.mark.parametrize(("change", "same"), [("one number", True), ("all numbers", False)])
    def test_what_rounding_turns_is_told_from_another_map(self, change, same):
        pytest.importorskip("captum")
        asked = small(convolutions())
        asked = dataclasses.replace(asked, module=asked.module.float(), inputs=asked.inputs.float())
        peer = PEERS["saliency"][0]
        found = peer.map_of(peer.ask(asked)()).clone()
        if change == "one number":
            found.view(-1)[0] += 0.02 * found.abs().max()
        else:
            found *= 1.1
        theirs = dataclasses.replace(peer, map_of=lambda _: found)
        answer = compare(theirs, asked, peer.ask(asked), peer.ours(asked))
        assert answer.difference > 1e-3
        assert (answer.same, "rounding" in answer.verdict) == (same, same)
        assert next(asked.module.parameters()).dtype is torch.float32

    def test_guided_backprop_of_functional_relus_is_reported_with_the_reason(self):
        pytest.importorskip("captum")

        class Functional(nn.Module):
            def forward(self, x):
                return torch.relu(x)

        asked = small(convolutions(Functional))
        peer = PEERS["guided_backprop"][0]
        with quietly():
            found = compare(peer, asked, peer.ask(asked), peer.ours(asked))
        assert not found.same
        assert "F.relu" in found.verdict

    @pytest.mark.parametrize(
        ("method", "name"),
        [(m, p.name) for m, group in PEERS.items() for p in group if p.name != "captum"],
    )
    def test_the_other_peers_maps_are_ours(self, method, name):
        peer = next(each for each in PEERS[method] if each.name == name)
        if peer.missing():
            pytest.skip(str(peer.missing()))
        asked = small(convolutions(), layer="3")
        before = [type(m) for m in asked.module]
        relus = [asked.module[1], asked.module[3]]
        found = compare(peer, asked, peer.ask(asked), peer.ours(asked))
        asked.module.zero_grad(set_to_none=True)
        assert found.same, found
        assert [type(m) for m in asked.module] == before
        assert [asked.module[1], asked.module[3]] == relus
        assert not any(m._forward_hooks or m._backward_hooks for m in asked.module.modules())

    def test_captum_s_occlusion_is_ours_where_the_last_windows_are_clipped(self):
        pytest.importorskip("captum")
        from benchmarks.libraries import captum_occlusion

        asked = small(convolutions(), size=(3, 13, 13), batch=1)
        task = Task(asked, 13, 4, 3)
        theirs = captum_occlusion(asked, 4, 3, 5)()
        for engine in ("dense", "incremental"):
            found = compared(theirs[:, 0], task.ours(engine).maps())
            assert found.difference < 1e-6  # captum adds up in float32


class TestOcclusion:
    def test_a_sample_is_of_fewer_windows_than_there_are(self):
        task = Task(small(convolutions(), (3, 64, 64)), 64, 16, 8)
        assert (task.positions, task.sample() is task) == (49, True)
        assert occluded.taken_from(task.sample(), task) == ""

    def test_on_a_gpu_all_windows_are_measured(self):
        """A call's fixed cost, of a sample's few windows, would be multiplied there."""
        asked = small(convolutions(), (3, 64, 64))
        task = Task(asked, 64, 8, 4)
        assert (task.sample().positions, task.positions) == (64, 225)
        assert occluded.taken_from(task.sample(), task) == "from 64 of 225 windows"
        elsewhere = dataclasses.replace(asked, inputs=asked.inputs.to("meta"))
        task = dataclasses.replace(task, subject=elsewhere)
        assert task.sample() is task
        assert occluded.taken_from(task.sample(), task) == ""

    def test_positions_follow_the_usual_rule(self):
        asked = small(convolutions(), size=(3, 13, 13), batch=1)
        for window, stride in ((4, 3), (4, 4), (5, 2), (13, 1)):
            task = Task(asked, 13, window, stride)
            assert task.positions == task.ours("dense").values[0].numel()

    def test_a_sample_has_at_least_64_windows(self):
        asked = small(convolutions())
        for side in (112, 150, 224, 448):
            assert Task(asked, side, 16, 8).sample().positions >= 64

    def test_the_fewest_multiply_adds_are_those_of_the_numbers_that_change(self):
        """Counted by changing a pixel at a time and looking which outputs move."""
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, stride=2),
            nn.Conv2d(4, 6, 3, padding=1, dilation=2), nn.Flatten(), nn.Linear(6 * 5 * 5, 3),
        )  # fmt: skip
        asked = small(net, size=(3, 15, 15), batch=1)
        task = Task(asked, 15, 4, 3)
        whole = least = 0.0
        for at, macs in ((0, 5 * 27), (1, 4 * 45), (2, 6 * 36)):
            trunk = asked.module[: at + 1]
            reference = trunk(asked.inputs)
            whole += macs * reference[0, 0].numel()
            changed = []
            for y in range(task.across):
                for x in range(task.across):
                    hidden = asked.inputs.clone()
                    hidden[..., y * 3 : y * 3 + 4, x * 3 : x * 3 + 4] += (
                        10 * torch.rand(4, 4)[: 15 - y * 3, : 15 - x * 3]
                    )
                    moved = (trunk(hidden) != reference)[0].any(0)
                    changed.append(moved.sum().item())
            least += macs * sum(changed) / len(changed)
        last = 3 * 6 * 5 * 5
        counted = occluded.count(task)
        assert counted.whole == pytest.approx(whole + last)
        assert counted.least == pytest.approx(least + last)
        assert counted.planned >= counted.least - 1e-6

    def test_a_sample_s_time_is_scaled_by_positions(self):
        from benchmarks.clock import Ratio

        asked = small(convolutions())
        task = Task(asked, 224, 16, 8)
        found = occluded.scaled(Ratio(1, 2, 3, 4, 5), task.sample(), task)
        assert (task.positions, task.sample().positions) == (729, 64)
        assert found.median == pytest.approx(2 * 730 / 65)
        assert found.baseline_seconds == 5

    def test_folding_changes_no_number(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
        asked = small(net)
        ready = occluded.folded(asked.module, asked.inputs)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
        assert torch.allclose(ready(asked.inputs), asked.module(asked.inputs), atol=1e-12)
        assert isinstance(asked.module[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("figures", "ends"),
    [
        ((22, 88), (20, 100)),
        ((0.03, 1), (0.02, 1)),
        ((5, 5), (5, 5)),
        ((9.999999999999999, 11), (5, 20)),
    ],
)
def test_an_axis_ends_where_it_has_labels(figures, ends):
    assert plots.labelled(*figures) == pytest.approx(ends)


class TestRecord:
    def test_what_is_written_is_read_back(self, tmp_path):
        rows = (row(goal=(0.97, None), note="said so"), row(at=4.0, median=1 / 3, side="zennit"))
        record = Record("peers", about(CPU), "2026-01-02T03:04:05+00:00", False, rows, ("no x",))
        record.write(tmp_path / "peers.json")
        found = read(tmp_path / "peers.json")
        assert found.rows[0] == rows[0]
        assert found.rows[1].median == pytest.approx(1 / 3, rel=1e-5)
        assert (found.machine, found.remarks, found.quick) == (record.machine, ("no x",), False)

    def test_what_is_added_takes_the_place_of_what_was_there(self, tmp_path):
        kept, again, new = row(), row(side="zennit"), row(model="resnet18")
        other = dataclasses.replace(new, side="zennit")
        here = {**about(CPU), "load": 0.2, "commit": "aaa"}
        first = Record("peers", here, "2026-01-01", False, (again, other), (), "first")
        earlier = Record("peers", here, "2026-01-02", False, (kept, again), ("no x",), "one")
        earlier = earlier.added_to(first)
        assert [row.run for row in earlier.rows] == [0, 0, 1]
        better = dataclasses.replace(again, median=9.0)
        later = Record(
            *("peers", {**here, "load": 0.0, "commit": "bbb"}, "2026-01-03", False),
            *((better, new), ("no x", "no y"), "two"),
        )
        found = later.added_to(earlier)
        assert [dataclasses.replace(row, run=0) for row in found.rows] == [kept, better, other, new]
        assert [found.runs[row.run].command for row in found.rows] == ["one", "two", "first", "two"]
        assert (found.remarks, found.command) == (("no x", "no y"), "two")
        assert found.runs[1] == Run("one", "2026-01-02", 0.2, "aaa")
        assert [run.load for run in found.runs] == [0.0, 0.2, 0.2]
        found.write(tmp_path / "peers.json")
        assert read(tmp_path / "peers.json") == found
        assert tables.calls(found) == ["first", "one", "two"]
        assert "2026-01-01 to 2026-01-03, load before the start 0.2 (idle)" in tables.idleness(
            [found]
        )
        whole = dataclasses.replace(later, rows=(kept, again, other, new)).added_to(earlier)
        assert [run.command for run in whole.runs] == ["two"]  # of the others nothing is left

    def test_what_was_measured_elsewhere_is_not_added_to(self):
        here = about(CPU)
        later = Record("peers", here, "2026-01-03", False)
        for change in ({"threads": 64}, {"packages": {"torch": "1"}}, {"device": "a GPU"}):
            earlier = dataclasses.replace(later, machine={**here, **change})
            with pytest.raises(InputError, match=next(iter(change))):
                later.added_to(earlier)
        with pytest.raises(InputError, match="quick"):
            later.added_to(dataclasses.replace(later, quick=True))

    def test_other_files_are_refused_in_a_sentence(self, tmp_path):
        path = tmp_path / "x.json"
        for text in ("", "[]", "{}", '{"format": 99, "rows": []}'):
            path.write_text(text)
            with pytest.raises(InputError, match=r"x\.json") as refused:
                read(path)
            assert str(refused.value).count("x.json") == 1
        Record("peers", {}, "", False, (row(run=1),)).write(path)
        with pytest.raises(InputError, match="a row is of no run"):
            read(path)
        with pytest.raises(InputError, match="cannot read"):
            read(tmp_path / "none.json")

    def test_pick_and_about_make_rows_that_are_found_again(self):
        made = About("peers", "saliency", "vgg16", "batch 1").once("memory", "a", "b", 6, 4)
        assert made.median == made.low == made.high == 1.5
        assert pick([made, row()], method="saliency", measure="memory") == [made]


class TestTables:
    def test_a_missed_goal_is_said(self):
        lines = tables.verdict([row(goal=(1, None)), row(goal=(5, None), model="resnet18")])
        assert "1 of 2 goals reached" in lines
        assert "resnet18" in lines
        assert "missed" in tables.terminal(row(goal=(5, None)))

    def test_amounts_have_their_unit(self):
        assert tables.amount(row(), 0.0123) == "12.3 ms"
        assert tables.amount(row(measure="memory"), 3 * 2**20) == "3 MiB"
        assert tables.amount(row(measure="multiply-adds"), 4.1e9) == "4.1 G"
        assert tables.number(math.inf) == "∞"

    def test_every_row_has_as_many_cells_as_the_head(self):
        rows = (row(), row(at=2.0, method="saliency"), row(method="saliency", goal=(1, None)))
        record = Record("peers", about(CPU), "2026-01-02T03:04:05+00:00", True, rows)
        page = tables.markdown(record)
        found = [line.count("|") for line in page.splitlines() if line.startswith("|")]
        assert len(found) == 7
        assert len(set(found[:3])) == len(set(found[3:])) == 1
        assert "quick run" in page


class TestReadme:
    def test_its_figures_are_those_in_the_results(self):
        _, quoted, _ = speed.parts(speed.README.read_text(encoding="utf-8"))
        assert quoted == speed.quoted(speed.RESULTS), "python -m benchmarks readme"

    @pytest.mark.parametrize(
        "file",
        [file for folder in speed.folders(speed.RESULTS) for file in sorted(folder.glob("*.json"))],
        ids=lambda each: f"{each.parent.name}-{each.stem}",
    )
    def test_results_are_kept_whole_and_not_of_a_quick_run(self, file):
        record, folder, name = read(file), file.parent, file.stem
        assert record.suite == name
        assert not record.quick
        assert record.machine["processor"]
        page = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert page == tables.markdown(record)
        assert (folder / f"{name}.png").is_file()

    @pytest.mark.parametrize("folder", speed.folders(speed.RESULTS), ids=lambda each: each.name)
    def test_pages_claim_nothing_that_their_rows_deny(self, folder):
        rows = read(folder / "peers.json").rows
        timed = {each.pair for each in pick(rows, measure="time")}
        off = [r for r in pick(rows, measure="map") if r.pair in timed and r.median > peers.SAME]
        assert all(r.note == peers.TURNED for r in off)
        told = "differ where rounding turns a ReLU" in (folder / "peers.md").read_text("utf-8")
        assert told or not off
        below = [r for r in read(folder / "limit.json").rows if r.against == "forward"]
        told = "below 1 where this library runs" in (folder / "limit.md").read_text("utf-8")
        assert told or min(r.median for r in pick(below, measure="time")) >= 1

    def test_rewriting_changes_the_section_and_nothing_else(self, tmp_path):
        copy = tmp_path / "README.md"
        copy.write_text(f"before\n{speed.BEGIN}\nold\n{speed.END}\nafter\n", encoding="utf-8")
        speed.rewrite(copy, speed.RESULTS)
        before, inside, after = speed.parts(copy.read_text(encoding="utf-8"))
        assert (before, after) == ("before\n", "\nafter\n")
        assert inside == speed.quoted(speed.RESULTS)

    def test_other_machines_are_quoted_too_folded_up(self, tmp_path):
        for folder, processor in ((".", "Abacus"), ("b", "Slide rule"), ("a", "Fingers")):
            for name in speed.SUITES:
                here = {**about(CPU), "processor": processor}
                record = Record(name, here, "2026-01-02T03:04:05+00:00", False, (row(),))
                record.write(tmp_path / folder / f"{name}.json")
        text = speed.quoted(tmp_path)
        assert text.startswith(speed.section(tmp_path))
        first, second = re.findall(r"<summary>The same on another machine: (.*)</summary>", text)
        assert (first, second) == ("Fingers", "Slide rule")
        assert text.count("<details>") == text.count("</details>")
        assert text.endswith(f"{speed.section(tmp_path / 'b')}\n</details>\n")
        assert text.count("Nothing has been measured on a GPU yet") == 1
        graphics = {**about(CPU), "device": "Some GPU, 80 GiB"}
        for name in speed.SUITES:
            record = Record(name, graphics, "2026-01-02T03:04:05+00:00", False, (row(),))
            record.write(tmp_path / "b" / f"{name}.json")
        text = speed.quoted(tmp_path)
        assert "The same on another machine: Some GPU, 80 GiB" in text
        assert "Nothing has been measured on a GPU" not in text

    def test_a_folder_that_is_not_there_is_told_in_a_sentence(self, tmp_path):
        with pytest.raises(InputError, match=r"typo.*peers\.json"):
            speed.quoted(tmp_path / "typo")

    def test_results_of_two_machines_are_not_quoted_as_one_s(self, tmp_path):
        for name in speed.SUITES:
            here = {**about(CPU), "load": 0.1 if name == "limit" else 0.2, "commit": name}
            if name == "convert":
                here |= {"device": "Some GPU, 80 GiB", "cores": 96}
            record = Record(name, here, "2026-01-02T03:04:05+00:00", False, (row(),))
            record.write(tmp_path / f"{name}.json")
        with pytest.raises(InputError, match=r"peers and convert in .* differ in cores, device:"):
            speed.section(tmp_path)

    def test_a_loss_is_quoted_like_a_win(self, tmp_path):
        rows = [
            row(median=0.4, goal=(0.97, None)),
            row(model="resnet18", measure="map", note="different: by a lot"),
        ]
        for name in speed.SUITES:
            kept = tuple(rows) if name == "peers" else ()
            record = Record(name, about(CPU), "2026-01-02T03:04:05+00:00", False, kept)
            record.write(tmp_path / f"{name}.json")
        text = speed.section(tmp_path)
        assert "| `grad_cam`, captum | 0.40 | ≠ |" in text
        assert "0 are reached" in text
        assert "Missed: grad_cam, vgg16" in text

    def test_many_classes_and_what_has_no_batch_are_quoted(self, tmp_path):
        def put(name, *rows):
            when = "2026-01-02T03:04:05+00:00"
            Record(name, about(CPU), when, False, rows).write(tmp_path / f"{name}.json")

        for name in speed.SUITES:
            put(name)
        imported = {"suite": "convert", "side": "torchvision", "against": "imported"}
        put(
            "convert",
            row(method="forward", setting="batch 1, 224×224", median=0.7, **imported),
            row(method="forward", setting="batch 8, 224×224", median=0.8, **imported),
            row(
                method="occlusion", setting="224×224, window 32, stride 16", median=1.3, **imported
            ),
        )
        assert "| occlusion, torchvision | 1.30 / – |" in speed.section(tmp_path)
        assert "in one call" not in speed.section(tmp_path)
        ours = {"suite": "classes", "side": OURS, "against": "forward"}
        one, many = (f"{n} classes, batch 1, 224×224" for n in (1, 100))
        put("classes", row(setting=one, median=1.1, **ours), row(setting=many, median=1.2, **ours))
        told = "Grad-CAM of 1 / 100 classes of vgg16 in one call takes 1.10 / 1.20 times as long"
        assert told in speed.section(tmp_path)

    def test_it_is_told_which_code_was_measured(self, tmp_path):
        machine = {**about(CPU), "commit": "new"}
        earlier = (Run("once", "2026-01-01T03:04:05+00:00", 0.1, "old"),)
        for name in speed.SUITES:
            record = Record(
                name, machine, "2026-01-02T03:04:05+00:00", False, (), (), "now", earlier
            )
            record.write(tmp_path / f"{name}.json")
        assert " Code of new, old. Sides take turns" in speed.section(tmp_path)


class Runtime:
    """onnxruntime on a machine with GPUs, as far as it is asked; ``has`` is what it can start."""

    def __init__(self, has):
        self.has, self.wishes = has, None
        self.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda *_: None)

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path, options, providers):  # noqa: N802 - onnxruntime's name
        self.wishes = providers
        return SimpleNamespace(get_providers=lambda: self.has)


class TestOnnxruntimeOnAGpu:
    def test_it_is_given_the_same_gpu_and_the_same_precision(self):
        runtime = Runtime(["CUDAExecutionProvider", "CPUExecutionProvider"])
        found = session_of(runtime, Path("a.onnx"), torch.device("cuda", 1))
        assert not isinstance(found, str)
        [(provider, wishes)] = runtime.wishes
        assert provider == "CUDAExecutionProvider"
        assert wishes == {"device_id": "1", "use_tf32": "0"}

    def test_what_would_run_on_the_processor_is_left_out(self):
        found = session_of(Runtime(["CPUExecutionProvider"]), Path("a.onnx"), torch.device("cuda"))
        assert "CUDAExecutionProvider could not be started" in found


class TestConvert:
    def test_occlusion_of_a_file_beside_whole_passes(self):
        file = Path(__file__).parent / "data" / "catdog.k3export.onnx"
        asked = Effort(torch.device("cpu"), True, methods=("occlusion",), rounds=1, budget=0.1)
        rows = list(measure(asked, file))
        assert [(r.method, r.measure, r.side, r.against) for r in rows] == [
            ("occlusion", measured, "dense", "imported") for measured in ("map", "time")
        ]
        assert rows[0].note == "same"
        assert 0 <= rows[0].value < 1e-4
        assert rows[1].base > 0


class TestWithoutRoom:
    def test_what_does_not_fit_is_told_and_what_did_is_kept(self):
        def rows():
            yield row()
            raise torch.OutOfMemoryError("CUDA out of memory")

        one, told = as_far_as_it_fits(rows(), "vgg16, batch 128,")
        assert one == row()
        assert told.startswith("vgg16, batch 128, is left out, or in part: there is not enough")

    def test_one_peer_s_want_of_memory_is_not_the_others(self, monkeypatch):
        first = PEERS["saliency"][0]

        def greedy(_):
            def run():
                raise torch.OutOfMemoryError("CUDA out of memory")

            return run

        hungry = dataclasses.replace(first, name="hungry", package="torch", ask=greedy)
        monkeypatch.setitem(PEERS, "saliency", (hungry, first))
        asked = small(convolutions())
        with quietly():
            found = list(peers._method(Effort(CPU, quick=True, rounds=1), "saliency", asked))
        assert "saliency, small, batch 2, 12×16, beside hungry is left out" in found[0]
        assert {each.side for each in found[1:]} == {"captum"}
        assert {each.measure for each in found[1:]} == {"map", "time", "memory"}


@pytest.mark.parametrize(("device", "goal"), [("cpu", (0.97, None)), ("meta", None)])
def test_goals_are_for_the_cpu_they_were_set_for(tmp_path, device, goal):
    def measure(effort):
        yield row(median=0.4)

    record = command_line._run("peers", measure, Effort(torch.device(device)), tmp_path)
    assert [each.goal for each in record.rows] == [goal]
    for name in ("limit", "scaling", "convert"):
        record.with_rows(()).write(tmp_path / f"{name}.json")
    assert ("goals set beforehand" in speed.section(tmp_path)) == (goal is not None)


def test_a_run_that_was_stopped_says_so(tmp_path):
    def measure(effort):
        yield row()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command_line._run("peers", measure, Effort(CPU), tmp_path)
    record = read(tmp_path / "peers.json")
    assert len(record.rows) == 1
    [told] = record.remarks
    assert told == (
        f"The run of {record.started} was stopped early (KeyboardInterrupt): not all is here."
    )
    assert told in (tmp_path / "peers.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize(
    ("changed", "marked"),
    [
        ("torchviz_cnn/a.py", True),
        ("benchmarks/clock.py", True),
        ("benchmarks/results/peers.json", False),
        ("README.md", False),
    ],
)
def test_code_that_was_changed_is_marked_what_measures_included(
    tmp_path, monkeypatch, changed, marked
):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook of git's names its own repository there
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in ("torchviz_cnn/a.py", "converters/b.py", "benchmarks/clock.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = commit_of(tmp_path / "benchmarks")
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / changed).parent.mkdir(exist_ok=True)
    (tmp_path / changed).write_text("new")
    assert commit_of(tmp_path / "benchmarks") == clean + " with changes" * marked


def test_what_has_one_place_only_is_no_growth():
    record = Record("scaling", about(CPU), "2026-01-02T03:04:05+00:00", False)
    several = [row(suite="scaling", setting="batch", at=at) for at in (1.0, 4.0)]
    alone = row(suite="scaling", setting="targets", at=1.0)
    for rows, columns in (
        ([*several, alone], 1),
        ([alone], 1),
        ([*several, alone, row(suite="scaling", setting="targets", at=10.0)], 2),
    ):
        figure = plots._sweeps(record.with_rows(rows))
        assert len(figure.axes) == 2 * columns
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert labels == {"pictures in one call", "targets of one picture"}


class TestCommandLine:
    def run(self, *words):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks", *words],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def test_a_wrong_wish_is_told_in_a_sentence_before_anything_is_measured(self):
        done = self.run("peers", "--model", "resnet5000")
        assert done.returncode == 2
        assert "resnet5000" in done.stderr
        assert "Traceback" not in done.stderr

    def test_there_must_be_something_to_add_to(self, tmp_path):
        for words, said in (
            (["--add"], "--out"),
            (["--add", "--out", str(tmp_path)], "peers.json"),
        ):
            done = self.run("peers", "--quick", *words)
            assert done.returncode == 2
            assert said in done.stderr
            assert "Traceback" not in done.stderr

    def test_a_suite_leaves_rows_a_page_and_a_plot(self, tmp_path):
        words = "limit --quick --model cat_dog_small --method saliency --device cpu --out"
        done = self.run(*words.split(), str(tmp_path))
        assert done.returncode == 0, done.stderr
        record = read(tmp_path / "limit.json")
        assert {r.against for r in record.rows} == {"forward", "forward + input gradient"}
        assert {r.measure for r in record.rows} == {"time", "memory"}
        for found in record.rows:  # how long something takes is no matter of tests
            assert 0 < found.low <= found.median <= found.high < float("inf")
            assert found.value > 0 < found.base
            assert found.measure == "time" or found.median > 1  # a gradient needs what it keeps
        assert record.quick
        assert (tmp_path / "limit.md").read_text(encoding="utf-8") == tables.markdown(record)
        assert (tmp_path / "limit.png").stat().st_size > 5000
        assert "saliency" in done.stdout


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet"])
def test_networks_tell_pictures_apart(name):
    network.cache_clear()
    asked = subject(name, batch=2, side=224, device=torch.device("cpu"))
    one, other = asked.forward()
    assert one.abs().max() > 0.05  # as they are made, mobilenet_v2's are of 1e-9
    assert (one - other).abs().max() > 0.05 * one.abs().max()  # and googlenet's differ by 1e-5
    assert not any(m.training for m in asked.module.modules())
    network.cache_clear()
