"""What an explanation costs beside a plain forward pass, in time and in memory."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.clock import peak_bytes, ratios


def plain(module: nn.Module, inputs: Tensor) -> Tensor:
    """A forward pass without a graph."""
    with torch.no_grad():
        return module(inputs)


def _captum_grad_cam(module: nn.Module, layer: nn.Module, inputs: Tensor) -> Any:
    from captum.attr import LayerGradCam

    return LayerGradCam(module, layer).attribute(inputs, target=5)


def measure(
    models: Sequence[str], batches: Sequence[int], *, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """A row a model and batch size: ratios to a plain ``no_grad`` forward pass in the same run."""
    rows = []
    for name in models:
        torch.manual_seed(0)
        module = torchvision.models.get_model(name).eval().to(device)
        for batch in batches:
            inputs = torch.randn(batch, 3, 224, 224, device=device)
            layer = tvc.default_layer(module, inputs)
            forward = partial(plain, module, inputs)
            methods: dict[str, Callable[[], object]] = {
                "grad_cam": partial(tvc.grad_cam, module, inputs, 5),
                "saliency": partial(tvc.saliency, module, inputs, 5),
                "guided_backprop": partial(tvc.guided_backprop, module, inputs, 5),
                "guided_grad_cam": partial(tvc.guided_grad_cam, module, inputs, 5),
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                timed = ratios(forward, methods, device=device, rounds=rounds)
                memory = {"plain": peak_bytes(forward, device)}
                memory["grad_cam"] = peak_bytes(methods["grad_cam"], device)
                memory["saliency"] = peak_bytes(methods["saliency"], device)
                try:
                    captum = partial(_captum_grad_cam, module, module.get_submodule(layer), inputs)
                    memory["captum"] = peak_bytes(captum, device)
                except ImportError:
                    pass
            rows.append(
                {"model": name, "batch": batch, "layer": layer, "time": timed, "memory": memory}
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    methods = list(rows[0]["time"])
    head = ["model", "batch", "layer", *(f"{m}, time" for m in methods)]
    head += ["grad_cam, memory", "of captum's", "saliency, memory"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        memory, times = row["memory"], row["time"]
        cells = [row["model"], str(row["batch"]), row["layer"]]
        cells += [str(times[m]) for m in methods]
        cells.append(f"{memory['grad_cam'] / memory['plain']:.2f}")
        captum = memory.get("captum")
        cells.append("-" if captum is None else f"{memory['grad_cam'] / captum:.2f}")
        cells.append(f"{memory['saliency'] / memory['plain']:.2f}")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def machine(device: torch.device) -> str:
    """Where it was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Python {platform.python_version()}"
    )
