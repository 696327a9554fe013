"""Training the MNIST ConvNet on the bundled digits, and keeping what was learnt."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from tqdm import tqdm

from torchviz_cnn.beside_tensorflow import leave_triton_out
from torchviz_cnn.cache import cache_folder
from torchviz_cnn.data import Digits, digits
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import write_atomically
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.models import Model, load, load_state, read_state
from torchviz_cnn.networks import MnistConvNet

# Part of the cached file's name: change it whenever training gives other weights.
RECIPE = "1"


def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose highest output is their label; the network is left as it was."""
    with undisturbed(module, images):
        guesses = torch.cat([module(batch).argmax(1) for batch in images.split(256)])
    return float((guesses == labels).float().mean())


def _shifted(images: Tensor, reach: int) -> Tensor:
    """Each image moved by up to ``reach`` pixels either way; the border is continued."""
    count, _, height, width = images.shape
    down, right = torch.randint(-reach, reach + 1, (2, count, 1))
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    image = torch.arange(count)[:, None, None]
    return images[image, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train_digits(
    data: Digits | None = None,
    *,
    epochs: int = 12,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> MnistConvNet:
    """Train the MNIST ConvNet on the bundled digits, the same every time on one machine.

    Adam, learning rate 1e-3 falling to zero along a cosine; pictures are shifted by up to two
    pixels. The loss is cross-entropy and a small price on what the last convolution puts out:
    without it some of its channels answer to empty paper, and maps of them show paper.

    Args:
        data: the digits, read when left out.
        epochs, batch_size: how long, and how many pictures a step.
        seed: of the weights, the order and the dropout.
        progress: show a progress bar in a terminal.

    Returns:
        The network in eval mode. Torch's random state is left as it was.
    """
    data = data or digits()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # manual_seed() would reseed GPUs as well
        module = MnistConvNet().train()
        # Cross-entropy wants what goes into the softmax; the last layer's parts are named.
        first, second, *middle, last = module.children()
        convolutions = nn.Sequential(first, second)
        logits = nn.Sequential(*middle, last.get_submodule("dense"))
        leave_triton_out()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        steps = epochs * -(-len(data.train) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        bar = tqdm(
            total=steps, desc="training on digits", unit="step", disable=None if progress else True
        )
        for _ in range(epochs):
            order = torch.randperm(len(data.train))
            for batch in order.split(batch_size):
                images = _shifted(data.train[batch], 2)
                maps = convolutions(images)
                loss = F.cross_entropy(logits(maps), data.train_labels[batch]) + 3 * maps.mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
        bar.close()
    for parameter in module.parameters():
        parameter.grad = None
    return module.eval()


def digits_model(*, progress: bool = False) -> tuple[Model, bool]:
    """The MNIST ConvNet trained on the bundled digits; trained once, then kept in the cache.

    Args:
        progress: show a progress bar while training.

    Returns:
        The model, and whether it had to be trained. A damaged cache is replaced; a cache that
        cannot be written is done without.
    """
    model = load("mnist_convnet", "none")
    path = cache_folder() / f"mnist_convnet-digits-{RECIPE}.pt"
    trained = False
    try:
        load_state(model.module, read_state(str(path)), str(path))
    except InputError:
        trained = True
        module = train_digits(progress=progress)
        model.module.load_state_dict(module.state_dict())
        with suppress(OSError):
            write_atomically(path, lambda file: torch.save(module.state_dict(), file))
    return (
        Model(
            model.module,
            model.preprocess,
            model.input_size,
            model.classes,
            "mnist_convnet trained on scikit-learn's digits",
        ),
        trained,
    )
