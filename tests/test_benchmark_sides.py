"""Every suite divides the right side by the right one, in time and memory, once their maps agree.

Clocks are set by hand: each side takes as long as the test says, on top of doing its real work.
"""

import functools
import itertools
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from benchmarks import (
    classes,
    convert,
    limit,
    maximization,
    occluded,
    peers,
    precision,
    scaling,
    tables,
)
from benchmarks.clock import Ratio, peak_bytes, ratios
from benchmarks.effort import Effort
from benchmarks.libraries import PEERS, Peer
from benchmarks.machine import about
from benchmarks.occluded import Task
from benchmarks.record import OURS, About, Record, pick, read
from benchmarks.subjects import Subject
from torchviz_cnn.attribution import Attribution

CPU = torch.device("cpu")
MIB = 2**18  # numbers of single precision


class Hands:
    """A clock that runs only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def costing(self, amount, run):
        """``run``, taking so long."""

        @functools.wraps(run)
        def costly(*args, **options):
            self.now += amount
            return run(*args, **options)

        return costly


@pytest.fixture
def hands(monkeypatch):
    made = Hands()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


@pytest.fixture
def quick():
    return Effort(CPU, quick=True, rounds=3, budget=1e9)


class Costly(nn.Module):
    """A network whose every pass takes so many seconds."""

    def __init__(self, hands, seconds=1.0):
        super().__init__()
        self.hands, self.seconds = hands, seconds
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        self.hands.now += self.seconds
        return self.head(self.flat(self.pool(self.relu(self.conv(x)))))


def asked_of(module, size=(3, 13, 13), batch=1):
    torch.manual_seed(0)
    inputs = torch.randn(batch, *size)
    return Subject("small", module.eval(), inputs, "conv", 1, 1, "logit")


def still():
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def rows_of(found):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [each for each in found if not isinstance(each, str)]


class TestRounds:
    def run(self, monkeypatch, rounds):
        """As if each round took so long: the baseline, what is beside it, the baseline."""
        now, turns = [0.0], itertools.chain(*rounds)

        def run():
            now[0] += next(turns)

        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        return ratios(run, {"a": run}, device=CPU, rounds=len(rounds), warm_up=0)["a"]

    def test_rounds_in_which_the_other_side_alone_is_held_up_do_not_count_either(self, monkeypatch):
        """Else bad rounds would count on one side only, and the baseline win by them."""
        rounds = [(1, 3, 1), (1, 9, 1), (1, 3.1, 1), (1, 9, 1), (1, 2.9, 1), (1, 9, 1), (1, 3, 1)]
        found = self.run(monkeypatch, rounds)
        assert (found.low, found.median, found.high) == pytest.approx((2.975, 3.0, 3.025))
        assert (found.rounds, found.left_out) == (4, 3)

    def test_a_run_that_is_once_too_short_does_not_count_either(self, monkeypatch):
        found = self.run(monkeypatch, [(1, 3, 1), (1, 1, 1), (1, 3.2, 1), (1, 3.1, 1)])
        assert (found.low, found.median, found.high) == pytest.approx((3.05, 3.1, 3.15))

    def test_quartiles_lie_a_quarter_of_the_way_in(self, monkeypatch):
        found = self.run(monkeypatch, [(1, 1 + i / 40, 1) for i in (4, 0, 3, 1, 2)])
        assert (found.low, found.median, found.high) == pytest.approx((1.025, 1.05, 1.075))
        assert found.seconds == pytest.approx(1.05)
        assert found.baseline_seconds == pytest.approx(1)

    def test_every_side_is_warmed_up_and_the_baseline_stands_around_each(self, monkeypatch):
        seen = []
        runs = {name: functools.partial(seen.append, name) for name in "bxy"}
        baseline = runs.pop("b")
        ratios(baseline, runs, device=CPU, rounds=2, warm_up=1)
        assert "".join(seen) == "bxy" + "bxbyb" * 2

    def test_how_many_were_left_out_is_kept_and_told(self, tmp_path):
        ratio = Ratio(1, 2, 3, 4, 2, rounds=5, left_out=2)
        told = About("peers", "saliency", "vgg16", "batch 1, 224×224").time("captum", OURS, ratio)
        record = Record("peers", about(CPU), "2026-01-02T03:04:05+00:00", False, (told,))
        record.write(tmp_path / "peers.json")
        assert read(tmp_path / "peers.json").rows == (told,)
        assert "| 2.00 [1.00–3.00] | 5 of 7 |" in tables.markdown(record)

    def test_memory_is_the_most_at_one_time(self):
        def run():
            for _ in range(3):
                torch.zeros(4 * MIB)
            return torch.zeros(MIB), torch.zeros(2 * MIB)

        assert peak_bytes(run, CPU) == 4 * 2**20


class TestPeers:
    def peer(self, hands, theirs, ours, amount=3.0, numbers=4):
        def asking(cost, size, tensor):
            def ask(_):
                def run():
                    torch.zeros(size * MIB)
                    return tensor

                return hands.costing(cost, run)

            return ask

        return Peer(
            *("other", "torch", asking(amount, numbers, theirs), asking(1.0, 1, ours)),
            map_of_ours=lambda found: found,
        )

    def measured(self, hands, quick, monkeypatch, theirs, ours):
        monkeypatch.setitem(PEERS, "saliency", (self.peer(hands, theirs, ours),))
        return rows_of(peers._method(quick, "saliency", asked_of(still())))

    def test_theirs_is_divided_by_ours(self, hands, quick, monkeypatch):
        found = self.measured(hands, quick, monkeypatch, torch.ones(4), torch.ones(4))
        [timed], [memory] = pick(found, measure="time"), pick(found, measure="memory")
        assert (timed.side, timed.against) == (memory.side, memory.against) == ("other", OURS)
        assert (timed.low, timed.median, timed.high) == (3, 3, 3)
        assert (timed.value, timed.base) == (3, 1)
        assert (memory.median, memory.value, memory.base) == (4, 4 * 2**20, 2**20)

    def test_gradients_that_a_call_leaves_behind_are_among_what_it_needs(
        self, hands, quick, monkeypatch
    ):
        """Were they there before, the call would be given their room."""
        seen = []

        def ask(asked):
            def run():
                seen.append(any(each.grad is not None for each in asked.module.parameters()))
                asked.module(asked.inputs).sum().backward()
                return torch.ones(4)

            return run

        peer = replace(self.peer(hands, torch.ones(4), torch.ones(4)), ask=ask)
        monkeypatch.setitem(PEERS, "saliency", (peer,))
        rows_of(peers._method(quick, "saliency", asked_of(still())))
        assert seen[1]  # they are left
        assert not seen[-1]

    def test_another_map_is_not_timed(self, hands, quick, monkeypatch):
        found = self.measured(hands, quick, monkeypatch, torch.tensor([1, 2.0]), torch.ones(2))
        assert [(row.measure, row.median) for row in found] == [("map", 1.0)]
        assert found[0].note.startswith("different")

    @pytest.mark.parametrize("wrong", [False, True])
    def test_occlusion_beside_captum(self, hands, monkeypatch, wrong):
        pytest.importorskip("captum")
        effort = Effort(CPU, rounds=3, budget=1e9)
        real = peers.captum_occlusion

        def captum(*question):
            run = real(*question)
            return hands.costing(8.0, lambda: run() * (1.1 if wrong else 1))

        monkeypatch.setattr(peers, "captum_occlusion", captum)
        monkeypatch.setattr(tvc, "occlusion", hands.costing(2.0, tvc.occlusion))
        task = Task(asked_of(still()), 13, 4, 3)
        found = pick(rows_of(peers._occlusion(effort, task)), side="captum")
        if wrong:
            assert [row.measure for row in found] == ["map"]
            return
        assert [row.measure for row in found] == ["map", "time", "memory"]
        assert found[0].note == "same"
        assert (found[1].median, found[1].value, found[1].base) == (4, 8, 2)
        assert found[1].against == OURS

    def test_matplotlib_s_first_figure_is_not_timed(self, hands, quick, monkeypatch):
        costs = iter([100.0, 3.0, 3.0])

        def theirs():
            hands.now += next(costs)

        monkeypatch.setattr(peers, "_drawn", lambda _: hands.costing(1.0, lambda: None))
        monkeypatch.setattr(peers, "_drawn_by_matplotlib", lambda _: theirs)
        [found] = peers._grid(quick)
        assert (found.median, found.value, found.base) == (3, 3, 1)


class TestBesideAForwardPass:
    def fakes(self, hands, monkeypatch, name, amount):
        """A method that takes so long, keeps 8 MiB and does not run the network."""

        def method(*_, **__):
            hands.now += amount
            return torch.zeros(8 * MIB)

        monkeypatch.setattr(tvc, name, method)
        return method

    def check(self, row, median, against):
        assert (row.side, row.against, row.median) == (OURS, against, median)
        assert row.value == median * row.base

    def test_limit(self, hands, monkeypatch):
        effort = Effort(CPU, True, methods=("grad_cam", "saliency"), rounds=3, budget=1e9)
        self.fakes(hands, monkeypatch, "grad_cam", 2.0)
        self.fakes(hands, monkeypatch, "saliency", 5.0)
        asked = asked_of(Costly(hands))
        found = rows_of(limit._gradients(effort, asked))
        cam, bare, whole = pick(found, measure="time")
        assert (cam.method, bare.method, whole.method) == ("grad_cam", "saliency", "saliency")
        self.check(cam, 2, "forward")
        self.check(bare, 5, "forward")
        self.check(whole, 5, limit.GRADIENT)
        for row in pick(found, measure="memory"):
            assert row.value == 8 * 2**20 > row.base
            assert row.median == pytest.approx(row.value / row.base)

    def test_limit_of_occlusion(self, hands, monkeypatch):
        real, costs = tvc.occlusion, {"incremental": 2.0, "dense": 14.0}

        def occlusion(*question, engine, **options):
            hands.now += costs[engine]
            return real(*question, engine=engine, **options)

        monkeypatch.setattr(tvc, "occlusion", occlusion)
        task = Task(asked_of(still()), 13, 4, 3)
        effort = Effort(CPU, rounds=3, budget=1e9)
        found = rows_of(limit._occlusion(effort, task))
        for row in pick(found, measure="time"):
            assert (row.against, row.median, row.value, row.base) == (OURS, 7, 14, 2)
        counted = occluded.count(task)
        assert counted.least <= counted.planned < counted.whole
        whole, least = pick(found, measure="multiply-adds")
        assert (whole.side, whole.against) == ("dense", OURS)
        assert whole.median == pytest.approx(counted.whole / counted.planned)
        assert (least.side, least.against) == (OURS, "exact ceiling")
        assert least.median == pytest.approx(counted.planned / counted.least)

    def test_scaling(self, hands, quick, monkeypatch):
        method = self.fakes(hands, monkeypatch, "grad_cam", 3.0)
        monkeypatch.setattr(scaling, "_CALLS", {"grad_cam": method})
        asked = asked_of(Costly(hands))
        timed, memory = rows_of(scaling._beside_forward(quick, asked, "batch", 4))
        self.check(timed, 3, "forward")
        assert (timed.setting, timed.at) == ("batch", 4)
        assert memory.value == 8 * 2**20 > memory.base

    def test_many_targets_beside_one(self, hands, quick, monkeypatch):
        def method(module, inputs, target, **_):
            several = isinstance(target, list)
            hands.now += 5 if several else 2
            return torch.zeros((6 if several else 2) * MIB)

        monkeypatch.setattr(scaling, "_CALLS", {"grad_cam": method})
        found = rows_of(scaling._targets(quick, asked_of(still())))
        assert {row.at for row in found} == {1, 4}
        assert {row.median for row in pick(found, measure="time")} == {2.5}
        assert {row.median for row in pick(found, measure="memory")} == {3}

    def test_windows(self, hands, quick, monkeypatch):
        real, costs = tvc.occlusion, {"incremental": 2.0, "dense": 8.0}

        def occlusion(*question, engine, **options):
            hands.now += costs[engine]
            return real(*question, engine=engine, **options)

        monkeypatch.setattr(tvc, "occlusion", occlusion)
        found = rows_of(scaling._positions(quick, asked_of(still(), (3, 64, 64))))
        timed = pick(found, measure="time")
        assert [(row.side, row.against, row.at) for row in timed] == [
            ("dense", OURS, 4), ("dense", OURS, 9),
        ]  # fmt: skip
        assert {row.median for row in timed} == {4}

    def test_classes(self, hands, monkeypatch):
        effort = Effort(CPU, True, models=("small",), rounds=3, budget=1e9)
        monkeypatch.setattr(Effort, "subject", lambda *_, **__: asked_of(Costly(hands)))
        asked = []

        def method(module, inputs, target, **options):
            asked.append(target)
            hands.now += 3
            return torch.zeros(8 * MIB)

        monkeypatch.setitem(tvc.METHODS, "grad_cam", method)
        timed, memory = rows_of(classes.measure(effort))
        self.check(timed, 3, "forward")
        assert timed.setting.startswith("1 classes, batch 1")
        assert asked[0] == [[0]]
        assert memory.value == 8 * 2**20 > memory.base

    def test_maximize(self, hands, monkeypatch):
        methods = ("class, fourier",)
        effort = Effort(CPU, True, ("small",), methods, rounds=3, budget=1e9)
        asked = asked_of(Costly(hands))
        monkeypatch.setattr(Effort, "subject", lambda *_, **__: asked)
        self.fakes(hands, monkeypatch, "maximize", 7.0)
        timed, memory = rows_of(maximization.measure(effort))
        assert (timed.side, timed.against, timed.median) == (OURS, "forward", 3.5)
        assert (timed.value, timed.base) == (7, 2)  # two steps, and as many passes
        assert timed.note == "896.0 s for 256 steps"
        assert memory.value == 8 * 2**20 > memory.base

    def test_precision(self, hands, monkeypatch):
        effort = Effort(CPU, True, models=("small",), methods=("occlusion",), rounds=3, budget=1e9)
        monkeypatch.setattr(Effort, "subject", lambda *_, **__: asked_of(still()))
        exact = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])

        def method(module, inputs, target=None, dtype=torch.float32):
            hands.now += 6 if dtype is torch.float32 else 4
            values = exact if dtype is torch.float32 else exact + 0.5
            score = values[:, 0, 0]
            return Attribution(values, score, torch.tensor([1]), "occlusion", (13, 13))

        monkeypatch.setitem(tvc.METHODS, "occlusion", method)
        timed, gap = rows_of(precision.measure(effort))
        assert (timed.side, timed.against) == ("float32", "bfloat16")
        assert (timed.median, timed.value, timed.base) == (1.5, 6, 4)
        assert timed.note == "rank correlation 1.0000"
        assert (gap.value, gap.base, gap.median) == (0.5, 4, 0.125)


class TestConvert:
    def test_the_other_side_is_divided_by_the_imported_network(self, hands, quick):
        about = About("convert", "grad_cam", "small", "batch 1, 13×13")
        ours, theirs = (hands.costing(n, lambda: torch.ones(2)) for n in (4.0, 6.0))
        same, timed = convert._beside(quick, about, ours, "torchvision", theirs)
        assert (same.measure, same.note) == ("map", "same")
        assert (timed.side, timed.against) == ("torchvision", convert.IMPORTED)
        assert (timed.median, timed.value, timed.base) == (1.5, 6, 4)

    def test_what_answers_otherwise_is_not_timed(self, hands, quick):
        about = About("convert", "grad_cam", "small", "batch 1, 13×13")
        ours, theirs = (hands.costing(1.0, lambda n=n: torch.tensor([1, n])) for n in (1.0, 2.0))
        [found] = convert._beside(quick, about, ours, "torchvision", theirs)
        assert found.note.startswith("different")

    @pytest.mark.parametrize("same", [True, False])
    def test_passes_of_all_sides_are_beside_the_imported_network_s(
        self, hands, quick, monkeypatch, same
    ):
        torch.manual_seed(0)
        ours, theirs = Costly(hands, 2.0).eval(), Costly(hands, 5.0).eval()
        theirs.load_state_dict(ours.state_dict())
        if not same:
            theirs.head.bias.data += 1
        inputs = torch.randn(1, 3, 13, 13)
        runtime = hands.costing(
            1.0, lambda: ours.head(ours.flat(ours.pool(ours.relu(ours.conv(inputs)))))
        )
        monkeypatch.setattr(convert, "_onnxruntime", lambda *_: runtime)
        about = About("convert", "forward", "small", "batch 1, 13×13")
        model = SimpleNamespace(module=ours)
        found = rows_of(
            convert._forward(quick, about, Path("a"), model, theirs, inputs, "", same_network=True)
        )
        assert {row.against for row in found} == {convert.IMPORTED}
        notes = {row.side: row.note.startswith("same") for row in pick(found, measure="map")}
        assert notes == {"onnxruntime": True, "torchvision": same}
        timed = {row.side: (row.median, row.value, row.base) for row in pick(found, measure="time")}
        expected = {"onnxruntime": (0.5, 1, 2), "torchvision": (2.5, 5, 2)}
        assert timed == {side: expected[side] for side, good in notes.items() if good}
