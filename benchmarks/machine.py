"""Where something was measured: hardware, versions, and whether the machine was idle."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import LOAD

PACKAGES = (
    *("torch", "torchvision", "numpy", "matplotlib", "onnx", "onnxruntime"),
    *("captum", "grad-cam", "torchcam", "zennit"),
)
_PROCESSORS = Path("/proc/cpuinfo")


def about(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, as plain data."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "device": _device(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
        "load": LOAD,
        "commit": commit_of(Path(__file__).parent),
    }


def in_full_precision() -> None:
    """No TF32 on a GPU: rounded to ten bits, maps of two sides could not be compared."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def version(package: str) -> str | None:
    """The installed version of a package; ``None`` where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    packages = machine["packages"]
    return (
        f"{where(machine)}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {packages.get('torch')}, torchvision {packages.get('torchvision')}, "
        f"Python {machine['python']}"
    )


def where(machine: dict[str, Any]) -> str:
    """The name of the processor, or of the GPU."""
    name: str = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    return name


def _processor() -> str:
    if _PROCESSORS.is_file():
        for text in _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )


def commit_of(here: Path) -> str | None:
    """What was measured, and what measured it, where this is a checkout; with a mark where either
    has been changed since.

    Args:
        here: the folder of the benchmarks.
    """
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        # Results are written while measuring, and are not what is measured.
        code = ("../torchviz_cnn", "../converters", ".", ":(exclude)results")
        changed = _git(here, "status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} with changes" if changed else head


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()
