"""What a lower precision saves in methods that run variants of the picture, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import torchviz_cnn as tvc
from benchmarks.effort import Effort
from benchmarks.record import About, Row

SUITE = "precision"
METHODS = ("occlusion", "score_cam")
LOWER = torch.bfloat16


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, over all values; equal ones, as the zeros of a ReLU, have the mean of their ranks."""
    return float(torch.corrcoef(torch.stack([_ranks(one), _ranks(other)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts - 1) / 2
    return ranks[places]


def measure(effort: Effort) -> Iterator[Row | str]:
    """Rows of single precision's time by bfloat16's, with both maps' rank correlation."""
    for name in effort.networks(("resnet50", "vgg16"), ("resnet18",)):
        for batch in effort.batches or (1,):
            asked = effort.subject(name, batch=batch, frozen=True)
            for method in effort.methods or METHODS:
                single = partial(tvc.METHODS[method], asked.module, asked.inputs)
                lower = partial(single, dtype=LOWER)
                # The same class for both, however close the first two are.
                target = single().target
                single, lower = partial(single, target), partial(lower, target)
                exact, rough = single().values, lower().values
                ranks = f"rank correlation {rank_correlation(rough, exact):.4f}"
                about = About(SUITE, method, name, asked.setting)
                timed = effort.ratios(lower, {"single": single}, warm_up=0)
                yield about.time("float32", "bfloat16", timed["single"], ranks)
                gap = float((rough - exact).abs().max())
                yield about.once("map", "bfloat16", "float32", gap, float(exact.abs().max()))
