"""Which of two ways is faster, found out by trying."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.clock import busy
from torchviz_cnn.methods.trials import are_allowed, is_clearly_faster


@pytest.mark.parametrize(("share", "found"), [(0.6, True), (0.9, False), (1.5, False)])
def test_a_quarter_of_the_time_has_to_be_saved(share: float, found: bool) -> None:
    assert is_clearly_faster(partial(busy, 0.02 * share), partial(busy, 0.02), rounds=3) is found


def test_time_in_which_others_are_at_work_does_not_count() -> None:
    """As a core that another process has taken: the clock on the wall goes on."""
    assert is_clearly_faster(partial(time.sleep, 0.05), partial(busy, 0.01), rounds=2)


def test_the_best_round_counts() -> None:
    calls = []

    def disturbed_at_first() -> None:
        calls.append(torch.get_num_threads())
        busy(0.05 if len(calls) == 1 else 0.001)

    threads = torch.get_num_threads()
    usual: Callable[[], None] = partial(busy, 0.01)
    assert is_clearly_faster(disturbed_at_first, usual, rounds=2)
    assert calls == [1, 1]  # on one core
    assert torch.get_num_threads() == threads


def test_trials_are_not_made_where_all_has_to_be_deterministic() -> None:
    assert are_allowed()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert not are_allowed()
    finally:
        torch.use_deterministic_algorithms(before)
    with torch.device("meta"):
        assert not are_allowed()
