"""A progress bar counts all there is to do, is shown to who asks for it, and leaves no trace."""

from __future__ import annotations

import io
from typing import Any

import pytest
from tqdm import tqdm

import torchviz_cnn as tvc
from tests.networks import pictures, plain, randomised
from torchviz_cnn.methods import masking, maximization, perturbation

WINDOWS = {"window": 5, "stride": 5}  # of pictures of 14×10: 3 rows and 2 columns
WORK: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "all maps of two pictures": ("score_cam", {"layer": "conv1"}, [2 * 6]),
    "a few maps at a time": ("score_cam", {"layer": "conv1", "batch_size": 5}, [2 * 6]),
    "one picture after the other": ("score_cam", {"layer": "conv1", "batch_size": 1}, [6, 6]),
    "the pictures and their variants": (
        *("occlusion", {**WINDOWS, "engine": "dense", "batch_size": 4}),
        [2 * (1 + 3 * 2)],
    ),
    "variants in part": (
        *("occlusion", {**WINDOWS, "engine": "incremental", "batch_size": 4}),
        [2 * 3 * 2],
    ),
}


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every bar from now on, counting whether or not there is a terminal."""
    made: list[Any] = []

    class Counting(tqdm):
        monitor_interval = 0

        def __init__(self, **options: Any) -> None:
            self.options = options
            self.closed = False
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            made.append(self)

        def close(self) -> None:
            self.closed = True
            super().close()

    for module in (masking, maximization, perturbation):
        monkeypatch.setattr(module, "tqdm", Counting)
    return made


def check(bars: list[Any], totals: list[int], *, progress: bool) -> None:
    assert [bar.total for bar in bars] == totals
    assert [bar.n for bar in bars] == totals
    assert all(bar.closed for bar in bars)
    for bar in bars:
        assert bar.options["disable"] is (None if progress else True)  # None: only in a terminal
        assert bar.options["leave"] is False
        assert bar.options["delay"] == 2


@pytest.mark.parametrize("options", [{}, {"progress": False}, {"progress": True}])
@pytest.mark.parametrize("work", WORK)
def test_a_bar_counts_every_variant_of_the_pictures(work, options, bars):
    method, settings, totals = WORK[work]
    tvc.METHODS[method](randomised(plain()), pictures(2), 1, **settings, **options)
    check(bars, totals, progress=options.get("progress", False))


@pytest.mark.parametrize("options", [{}, {"progress": False}, {"progress": True}])
@pytest.mark.parametrize(("batch_size", "total"), [(None, 4), (2, 8), (1, 12)])
def test_a_bar_counts_every_step_of_every_batch(batch_size, total, options, bars):
    wish = {"layer": "conv1", "channel": [0, 3, 5], "input_size": (3, 14, 10), "steps": 4}
    tvc.maximize(randomised(plain()), batch_size=batch_size, **wish, **options)
    check(bars, [total], progress=options.get("progress", False))
