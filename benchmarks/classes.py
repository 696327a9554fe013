"""What the maps of many classes cost, from one call, beside a plain forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torchviz_cnn as tvc
from benchmarks.clock import Run, peak_bytes
from benchmarks.effort import Effort
from benchmarks.record import OURS, About, Row

SUITE = "classes"
METHODS = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus")
COUNTS = (1, 10, 100)


def measure(effort: Effort) -> Iterator[Row | str]:
    """Rows for 1, 10 and 100 classes of each picture; of Grad-CAM unless others are asked for."""
    for name in effort.networks(("resnet50", "vgg16"), ("resnet18",)):
        for batch in effort.batches or (1,):
            asked = effort.subject(name, batch=batch, frozen=True)
            classes = asked.forward().shape[1]
            for method in effort.methods or ("grad_cam",):
                calls: dict[str, Run] = {
                    str(count): partial(
                        tvc.METHODS[method],
                        *(asked.module, asked.inputs, [list(range(count))] * batch),
                        layer=asked.layer,
                    )
                    for count in COUNTS
                    if count <= classes
                }
                timed = effort.ratios(asked.forward, calls)
                base = peak_bytes(asked.forward, effort.device)
                for count, run in calls.items():
                    about = About(SUITE, method, name, f"{count} classes, {asked.setting}")
                    yield about.time(OURS, "forward", timed[count])
                    memory = peak_bytes(run, effort.device)
                    yield about.once("memory", OURS, "forward", memory, base)
