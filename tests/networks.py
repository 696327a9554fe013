"""Small networks, one for each habit a real network may have.

All of them are in eval mode and in double precision, so that numbers can be compared exactly, and
randomised throughout: a fresh batch norm is the identity and a fresh bias may be zero, which would
let a method that forgets either pass its tests.

Unless said otherwise they take ``(N, 3, H, W)`` with H and W of at least 8 and tell 4 classes
apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

CLASSES = 4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with every weight, bias and running statistic drawn anew, double and in eval mode.

    Weights keep the size of the activations; no bias is zero and no batch norm the identity.
    """
    draw = generator(seed)

    def normal(tensor: Tensor, spread: float) -> None:
        values = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * spread
        tensor.copy_(values)

    def between(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
        tensor.copy_(low + (high - low) * values)

    module.double().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                between(part.weight, 0.5, 1.5)
                normal(part.bias, 0.3)
                normal(part.running_mean, 0.3)
                between(part.running_var, 0.5, 2.0)
                continue
            for parameter in part.parameters(recurse=False):
                if parameter.ndim > 1:
                    normal(parameter, (2 / parameter[0].numel()) ** 0.5)
                else:
                    normal(parameter, 0.3)
    return module


def pictures(
    count: int = 2, channels: int = 3, height: int = 14, width: int = 10, seed: int = 7
) -> Tensor:
    """``(N, C, H, W)`` of normal numbers, H ≠ W."""
    shape = (count, channels, height, width)
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def plain(channels: int = 3, classes: int = CLASSES) -> nn.Sequential:
    """Convolutions, in-place ReLUs, max pooling, global average pooling, one linear layer."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 3, padding=1),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 8, 3, padding=1),
            relu2=nn.ReLU(inplace=True),
            gap=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(8, classes),
        )
    )


class Residual(nn.Module):
    """Batch norm, an in-place skip, and one ReLU module for every activation; optional dropout.

    With ``in_place=False`` the same function without a single in-place operation.
    """

    def __init__(self, in_place: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_place = in_place
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=in_place)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        if self.in_place:
            out += x
        else:
            out = out + x
        x = self.dropout(self.relu(out))
        x = self.relu(self.conv3(x))
        return self.fc(torch.flatten(self.gap(x), 1))


class Functional(nn.Module):
    """``F.relu`` and ``F.max_pool2d`` only: no activation module to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x), inplace=True)
        return self.fc(x.mean((2, 3)))


class Repeated(nn.Module):
    """One convolution and one ReLU that run three times in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.relu(self.conv(x))
        return self.fc(x.mean((2, 3)))


class ChannelsLast(nn.Module):
    """Maps ``(N, h, w, C)`` between its patches and its scores, as Swin transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.norm = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch(x).permute(0, 2, 3, 1))
        return self.fc(F.gelu(self.mix(x)).mean((1, 2)))


class Gray(nn.Module):
    """Takes ``(N, H, W)`` and puts the channel axis in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain(channels=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.unsqueeze(1))


class Normalising(nn.Module):
    """Normalises its input, in place or not, as some published networks do."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            return self.net(x.sub_(0.4).mul_(1.7))
        return self.net((x - 0.4) * 1.7)


class Headed(nn.Module):
    """A body that puts out logits, and any function or module as its head."""

    def __init__(self, head: Callable[[Tensor], Tensor], classes: int = CLASSES) -> None:
        super().__init__()
        self.body = plain(classes=classes)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def identity(x: Tensor) -> Tensor:
    return x


# Every usual way to spell the last activation -> (head, how many outputs). The explained score is
# the same as without it.
HEADS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "nn.Softmax": (nn.Softmax(dim=1), CLASSES),
    "F.softmax": (lambda x: F.softmax(x, dim=1), CLASSES),
    "torch.softmax": (lambda x: torch.softmax(x, 1), CLASSES),
    "x.softmax": (lambda x: x.softmax(-1), CLASSES),
    "nn.LogSoftmax": (nn.LogSoftmax(dim=1), CLASSES),
    "F.log_softmax": (lambda x: F.log_softmax(x, dim=1), CLASSES),
    "multi-label sigmoid": (torch.sigmoid, CLASSES),
    "nn.Sigmoid": (nn.Sigmoid(), 1),
    "torch.sigmoid": (torch.sigmoid, 1),
    "sigmoid_": (lambda x: x.sigmoid_(), 1),
    "sigmoid().squeeze(1)": (lambda x: x.sigmoid().squeeze(1), 1),
    "sigmoid().flatten()": (lambda x: F.sigmoid(x).flatten(), 1),
}


class Drawing(nn.Module):
    """Draws random numbers in eval mode too, and ignores them: only the random state shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand_like(x) + torch.rand(1, dtype=x.dtype).to(x.device)
        return self.net(x + 0 * noise)


class Bookkeeper(nn.Module):
    """Hands its input on and writes something down at every run, in any mode.

    ``habit`` is the way it writes: ``in_place``, ``replaced``, ``through_data``, ``first_value``
    (of a buffer that was ``None``) or ``new_buffer`` (registered by the first run).
    """

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.habit = habit
        self.register_buffer("mean", torch.full((), 0.25))
        self.register_buffer("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        value = x.detach().mean()
        if self.habit == "in_place":
            self.mean.add_(value)
        elif self.habit == "replaced":
            self.mean = self.mean + value
        elif self.habit == "through_data":
            self.mean.data.add_(value)
        elif self.habit == "first_value":
            self.empty = value
        elif self.habit == "new_buffer" and not hasattr(self, "seen"):
            self.register_buffer("seen", value)
        return x


class BatchStatistics(nn.Module):
    """Runs its child's batch norm by hand, always in training mode: ``running_mean`` moves."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)
        return self.bn(x)


class TrippedError(Exception):
    """What a :class:`Tripwire` raises."""


class Tripwire(nn.Module):
    """Hands its input on, counts its runs, and raises at the run number ``at`` (never for 0)."""

    def __init__(self, at: int = 0, error: type[BaseException] = TrippedError) -> None:
        super().__init__()
        self.at = at
        self.error = error
        self.runs: list[None] = []  # a list, so that the attribute itself never changes

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(None)
        if len(self.runs) == self.at:
            raise self.error("in the middle of a forward pass")
        return x


class _BackwardTripwire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise TrippedError("in the middle of a backward pass")


class BackwardTripwire(nn.Module):
    """Raises when a gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        return _BackwardTripwire.apply(x)


def with_part(part: nn.Module, after: str = "relu1") -> nn.Sequential:
    """The plain network with one more module, called ``part``, after the one named."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in plain().named_children():
        parts[name] = child
        if name == after:
            parts["part"] = part
    return nn.Sequential(parts)


class Through(nn.Module):
    """One function in a module's place."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
