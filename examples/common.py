"""What the examples share: two photographs that need no download, and a network that tells them apart.

The photographs, a temple and a flower, come with scikit-learn (CC BY, credited there). Crops of
their left two thirds are for training, of the right third for testing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from torchviz_cnn import networks


def arguments(text: str, out: str, *takes: str) -> argparse.Namespace:
    """The options of an example: ``--out``, and of ``picture`` and ``weights`` those it takes.

    ``text`` is its docstring.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for the pictures")
    if "picture" in takes:
        parser.add_argument("--picture", help="your own, instead of the flower")
    if "weights" in takes:
        parser.add_argument(
            "--weights", default="none", help="a file, or default for published ones"
        )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


@lru_cache
def photograph(name: str = "flower") -> Image.Image:
    """``flower`` or ``china``, the temple: 640×427."""
    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def crops(
    model: tvc.Model, count: int, generator: torch.Generator, *, held_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Random crops of both photographs as the network takes them, and 1 for the flower."""
    pictures = [photograph("china"), photograph("flower")]
    labels = torch.randint(0, 2, (count,), generator=generator)
    first, last = (427, 640) if held_out else (0, 427)
    found = []
    for label in labels.tolist():
        side = int(torch.randint(100, 213, (1,), generator=generator))
        left = int(torch.randint(first, last - side + 1, (1,), generator=generator))
        top = int(torch.randint(0, 427 - side + 1, (1,), generator=generator))
        found.append(pictures[label].crop((left, top, left + side, top + side)))
    return model.prepare(list(found)), labels.float()


def trained(name: str, steps: int, learning_rate: float, seed: int = 0) -> tuple[tvc.Model, float]:
    """``cat_dog`` or ``cat_dog_small`` taught to tell flower from temple, and its test accuracy.

    Batches of 20, RMSprop and binary cross-entropy, as in the tutorials.
    """
    model = replace(tvc.models.load(name), classes=("temple", "flower"), notes=())
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.module.load_state_dict(getattr(networks, name)().state_dict())
    optimizer = torch.optim.RMSprop(model.module.parameters(), lr=learning_rate)
    for step in range(steps):
        images, labels = crops(model, 20, generator)
        loss = F.binary_cross_entropy(model(images)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    images, labels = crops(model, 60, generator, held_out=True)
    with torch.no_grad():
        right = ((model(images)[:, 0] > 0.5) == labels.bool()).float().mean()
    return model, float(right)
