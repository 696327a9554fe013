"""What the figures ought to be, on two cores of a CPU. A goal that is missed stays in the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.record import OURS, Measure, Row


@dataclass(frozen=True)
class Goal:
    """Bounds of the median ratio of ``side`` to ``against``, for the rows it fits.

    Attributes:
        models, settings: which; any where there are none. A setting fits by its beginning.
    """

    suite: str
    method: str
    measure: Measure
    side: str
    against: str
    least: float | None = None
    most: float | None = None
    models: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        same = all(
            getattr(row, name) == getattr(self, name)
            for name in ("suite", "method", "measure", "side", "against")
        )
        return (
            same
            and (not self.models or row.model in self.models)
            and (not self.settings or row.setting.startswith(self.settings))
        )


_SMALL = ("batch 1,", "batch 8,")
_AT_224 = ("224×224, window 16, stride 8",)
_AT_150 = ("150×150, window 16, stride 8",)
_AT_448 = ("448×448, window 16, stride 16",)


def _peer(
    method: str, side: str, least: float, measure: Measure = "time", settings: tuple[str, ...] = ()
) -> Goal:
    return Goal("peers", method, measure, side, OURS, least, settings=settings or _SMALL)


def _occlusion(side: str, least: float, models: tuple[str, ...], settings: tuple[str, ...]) -> Goal:
    suite = "peers" if side == "captum" else "limit"
    return Goal(suite, "occlusion", "time", side, OURS, least, models=models, settings=settings)


_RESNETS = ("resnet18", "resnet50")
_FOLDED = "dense, folded"

# The first that fits counts.
GOALS = (
    _peer("grad_cam", "pytorch-grad-cam", 2.7),
    _peer("grad_cam", "captum", 0.97),
    _peer("grad_cam", "torchcam", 0.97),
    _peer("grad_cam", "captum", 2.0, "memory"),
    _peer("guided_backprop", "pytorch-grad-cam", 1.5),
    _peer("guided_backprop", "captum", 0.95),
    _occlusion("captum", 8.0, ("vgg16", "mobilenet_v2"), _AT_224),
    _occlusion("captum", 3.5, _RESNETS, _AT_224),
    _occlusion("captum", 8.0, ("cat_dog",), _AT_150),
    _occlusion("captum", 15.0, ("vgg16",), _AT_448),
    _occlusion("captum", 8.0, ("resnet50",), _AT_448),
    Goal("peers", "occlusion", "memory", "captum", OURS, 1.0),
    _occlusion(_FOLDED, 5.0, ("vgg16",), _AT_224),
    _occlusion(_FOLDED, 2.2, _RESNETS, _AT_224),
    _occlusion(_FOLDED, 2.0, ("mobilenet_v2", "googlenet", "squeezenet1_1"), _AT_224),
    _occlusion(_FOLDED, 5.0, ("resnet50",), _AT_448),
    Goal("limit", "occlusion", "multiply-adds", OURS, "exact ceiling", most=1.25),
    Goal(
        *("limit", "grad_cam", "time", OURS, "forward"),
        most=1.15,
        models=("vgg16",),
        settings=("batch 1,",),
    ),
    Goal("limit", "grad_cam", "time", OURS, "forward", most=1.10, settings=_SMALL),
    Goal("limit", "saliency", "time", OURS, "forward", most=2.5, settings=_SMALL),
    Goal(
        *("classes", "grad_cam", "time", OURS, "forward"),
        most=1.3,
        models=("resnet50",),
        settings=("100 classes,",),
    ),
    Goal(  # an imported network takes at most 1.15 times as long
        *("convert", "forward", "time", "torchvision", "imported"),
        least=0.87,
        models=("vgg16", "resnet50"),
    ),
    Goal("peers", "feature_maps", "time", "matplotlib", OURS, least=1.0),
)


def unmeasured(rows: Sequence[Row], goals: tuple[Goal, ...] = GOALS) -> list[tuple[Goal, str]]:
    """Goals of networks named in them that no row is about, each with the network."""
    return [
        (goal, name)
        for goal in goals
        for name in goal.models
        if not any(goal.fits(row) and row.model == name for row in rows)
    ]


def with_goals(rows: Iterable[Row], goals: tuple[Goal, ...] = GOALS) -> list[Row]:
    """The rows, each with what it ought to be."""
    found = []
    for row in rows:
        goal = next((each for each in goals if each.fits(row)), None)
        found.append(row if goal is None else replace(row, goal=(goal.least, goal.most)))
    return found
