"""``python -m benchmarks cost`` and ``python -m benchmarks occlusion``."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks import cost, occlusion
from torchviz_cnn.models import choose_device

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Benchmarks: every figure is a ratio taken within one run."""


@app.command("cost")
def cost_command(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="May be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Explanations beside a plain forward pass: time (median and quartiles) and peak memory."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print("ratios to a plain no_grad forward pass of the same batch, alternating\n")
    rows = cost.measure(
        model or ["vgg16", "resnet50"], batch or [1, 8], device=chosen, rounds=rounds
    )
    print(cost.table(rows))


@app.command("occlusion")
def occlusion_command(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    size: Annotated[int, typer.Option(help="Side of the picture, in pixels.", min=32)] = 224,
    window: Annotated[int, typer.Option(min=1)] = 16,
    stride: Annotated[int, typer.Option(min=1)] = 8,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Occlusion: the dense engine's time and multiply-adds beside the incremental one's."""
    chosen = choose_device(device)
    print(cost.machine(chosen))
    print(f"window {window}, stride {stride}, a picture of {size}×{size}; ratios to incremental\n")
    rows = occlusion.measure(
        model or ["vgg16", "resnet50"],
        size=size,
        window=window,
        stride=stride,
        device=chosen,
        rounds=rounds,
    )
    print(occlusion.table(rows))


app()
