"""Networks that ask how large their maps are, or do what no graph can hold, are computed in part too.

What they answer is compared with running the whole of them, in double precision.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from tests.networks import CLASSES, Through, pictures, plain, randomised
from torchviz_cnn.errors import InputError
from torchviz_cnn.methods.graphs import Network
from torchviz_cnn.methods.incremental import Engine
from torchviz_cnn.methods.shapes import asks_shape
from torchviz_cnn.methods.symbolic import Unsuited, read

WINDOWS = {"window": 4, "stride": 4, "fill": 0.3}


class Two(nn.Module):
    """Two convolutions with a step after each, and a linear layer."""

    def __init__(
        self, between: Callable[[Tensor], Tensor] | nn.Module, end: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.between, self.end = between, end
        self.fc = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.end(self.conv2(self.between(self.conv1(x)))))


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def of_any_rank(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)))


def even(x: Tensor) -> Tensor:
    """A border where the rows are odd in number."""
    if x.size(2) % 2:
        x = F.pad(x, (0, 0, 0, 1))
    return F.max_pool2d(x, 2)


def same(x: Tensor) -> Tensor:
    """As many rows as TensorFlow's "same" gives for a step of two, from the size."""
    rows, columns = x.shape[-2:]
    border = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (columns, rows)]
    across, down = border
    return F.avg_pool2d(
        F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2)), 3, 2
    )


def by_columns(x: Tensor) -> Tensor:
    n, channels, _, columns = x.shape
    assert channels == 5
    return x.view(n, channels, -1).sum(2) / columns


def by_pictures(x: Tensor) -> Tensor:
    return x.reshape(len(x.shape) and x.shape[0] * x.shape[1], -1).mean(1).view(x.size(0), -1)


def by_length(x: Tensor) -> Tensor:
    return x.reshape(len(x), len(x.shape) + 1, -1).mean(2)


def by_kind(x: Tensor) -> Tensor:
    if x.dtype is torch.float64 and x.device.type == "cpu" and x.dim() == 4:
        return x.mean((2, 3))
    raise TypeError("double precision on a CPU only")


def turned(x: Tensor) -> Tensor:
    """An attribute that holds the numbers, not how many there are."""
    return x.mT.amax((2, 3))


ASKING = {
    "rank": (torch.relu, of_any_rank),
    "odd or even": (even, mean),
    "same": (same, mean),
    "rows and columns": (even, by_columns),
    "pictures": (even, by_pictures),
    "length": (even, by_length),
    "kind": (even, by_kind),
    "numbers": (even, turned),
}


def compared(net: nn.Module, x: Tensor) -> None:
    dense = tvc.occlusion(net, x, 1, engine="dense", **WINDOWS)
    found = tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    assert dense.values.abs().max() > 0
    assert (found.values - dense.values).abs().max() < 1e-12 * dense.values.abs().max()


def in_part(net: nn.Module, x: Tensor) -> set[str]:
    """The names of the nodes that are local."""
    with torch.inference_mode():
        return {node.name for node in Network(net, x[:1]).local}


@pytest.mark.parametrize("name", ASKING)
def test_sizes_may_be_asked_for(name: str) -> None:
    net, x = randomised(Two(*ASKING[name])), pictures(3, 3, 23, 18)
    compared(net, x)
    found = in_part(net, x)
    assert {"conv1", "conv2"} <= found
    assert "avg_pool2d" in found if name == "same" else "max_pool2d" in found or name == "rank"


def test_what_asks_for_a_size_is_told_from_what_reads_numbers() -> None:
    def both(x: Tensor) -> tuple[object, object]:
        sizes = (x.shape, x.ndim, x.dtype, x.device, x.is_cuda, x.size(1), x.dim(), x.numel())
        return sizes, (x.mT, x.data, x.real, x.relu(), x.sum(), x[0])

    sizes, numbers = fx.symbolic_trace(both).graph.output_node().args[0]
    assert all(map(asks_shape, sizes))
    assert not any(map(asks_shape, numbers))


def test_arguments_that_nobody_gives() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Two(even, mean)

        def forward(self, x: Tensor, twice: bool = True, more: Tensor | None = None) -> Tensor:
            y = self.net(x)
            return (y * 2 if twice else y) if more is None else y + more

    compared(randomised(Optional()), pictures(2, 3, 23, 18))


def test_len_means_what_it_did_afterwards() -> None:
    read(randomised(Two(even, by_length)), pictures(1, 3, 23, 18))
    assert "len" not in globals()
    assert len("ab") == 2


class Judging(nn.Module):
    """Goes on by what it sees, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().amax()) > -1e9 else x


class JudgingLast(Judging):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.fc(x.mean((2, 3))))


def test_what_cannot_be_read_is_run_as_it_is() -> None:
    net, x = randomised(Two(torch.relu, JudgingLast())), pictures(2, 3, 23, 18)
    compared(net, x)
    assert {"conv1", "conv2"} <= in_part(net, x)
    graph, _ = read(net, x[:1])
    modules = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert modules == ["conv1", "conv2", "end", "fc"]
    # Nothing is left of the attempt to read it.
    assert len(graph.graph.nodes) == len(modules) + len(["x", "relu", "output"])


def test_what_comes_before_may_be_computed_in_part() -> None:
    net, x = randomised(Two(Judging(), mean)), pictures(2, 3, 23, 18)
    compared(net, x)
    found = in_part(net, x)
    assert "conv1" in found
    assert "between" not in found, "a judge looks at all of it"


class WritesOver(nn.Module):
    """Writes into what it is given, and cannot be read."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return x if float(x.detach().amax()) > -1e9 else -x


class Around(nn.Module):
    """Reads again what was written over."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = WritesOver()

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return self.inner(y) + y


def test_a_module_that_writes_over_what_it_is_given_stays_in_the_one_around_it() -> None:
    net, x = randomised(Two(torch.relu, nn.Sequential(Around(), nn.AdaptiveAvgPool2d(1)))), None
    net.end.append(nn.Flatten())
    x = pictures(2, 3, 23, 18)
    compared(net, x)
    graph, _ = read(net, x[:1])
    assert "end.0" in {str(n.target) for n in graph.graph.nodes}
    assert not any("inner" in str(n.target) for n in graph.graph.nodes)
    alone = randomised(Two(WritesOver(), mean))
    with pytest.raises(InputError, match="a WritesOver of it writes into what"):
        tvc.occlusion(alone, x, 1, engine="incremental", **WINDOWS)


def turned(x: Tensor) -> Tensor:
    """Takes the number of pictures, which has moved, for a size."""
    x = x.transpose(0, 1)
    assert x.ndim == 4
    return x.reshape(x.shape[0], x.shape[1], -1).mean(2).t()


def test_the_number_of_pictures_is_never_taken_for_a_size() -> None:
    """Read on one picture it answers for one: another number of them would not fit."""
    net, x = (
        randomised(Two(lambda x: x[..., : x.shape[-1] // 2 * 2], turned)),
        pictures(2, 3, 23, 18),
    )
    with pytest.raises(InputError, match="traces it"):
        tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)
    auto = tvc.occlusion(net, x, 1, **WINDOWS)
    dense = tvc.occlusion(net, x, 1, engine="dense", **WINDOWS)
    assert torch.equal(auto.values, dense.values)


def test_networks_that_can_be_read_as_they_are_are_for_all_sizes() -> None:
    x = pictures(1, 3, 21, 16)
    assert not read(randomised(plain()), x)[1]
    assert read(randomised(Two(*ASKING["odd or even"])), x)[1]


def test_the_picture_is_left_as_it_was() -> None:
    """It is run on while it is read, by a network that writes into what it is given."""

    def standardise(x: Tensor) -> Tensor:
        assert x.ndim == 4
        return x.sub_(0.5).div_(x.shape[1])

    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Two(even, mean)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(standardise(x))

    x = pictures(1, 3, 23, 18)
    before = x.clone()
    with torch.inference_mode():
        graph, sized = read(randomised(Prepared()), x)
    assert sized
    assert torch.equal(x, before)
    assert "sub_" in {str(n.target) for n in graph.graph.nodes}


def test_another_thread_may_run_the_network_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch shows a tracer every module and weight that any thread uses while it reads."""
    found: list[object] = []

    class Meeting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(x, Tensor):
                thread = threading.Thread(target=lambda: found.append(other(net, pictures(1))))
                thread.start()
                thread.join()
            return torch.relu(x)

    def other(net: nn.Module, x: Tensor) -> object:
        with torch.no_grad():
            return net(x)

    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), Meeting(), nn.AdaptiveAvgPool2d(1)))
    with torch.no_grad():
        wanted = net(pictures(1))
    graph, _ = read(net, pictures(1))
    assert len(found) == 1
    assert isinstance(found[0], Tensor)
    assert torch.equal(found[0], wanted)
    assert graph is not None


def test_the_reason_is_that_of_the_network() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(Unsuited, match="control flow"):
        read(Asking(), pictures(1))


class Keeping(nn.Module):
    """Keeps what it sees for others to read, and cannot be read itself."""

    def __init__(self, keep: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.keep = keep
        self.kept: list[Tensor] = []
        self.register_buffer("top", torch.ones(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.keep(self, x.detach().amax((1, 2, 3), keepdim=True))
        return x if float(x.detach().amax()) > -1e9 else -x


def keep_as_attribute(module: nn.Module, top: Tensor) -> None:
    module.largest = top


def keep_in_a_list(module: nn.Module, top: Tensor) -> None:
    module.kept[:] = [top]


def keep_in_a_buffer(module: nn.Module, top: Tensor) -> None:
    module.top.resize_(top.shape).copy_(top)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (keep_as_attribute, lambda module: module.largest),
        (keep_in_a_list, lambda module: module.kept[0]),
        (keep_in_a_buffer, lambda module: module.top),
    ],
)
def test_what_a_module_keeps_of_one_picture_does_not_stand_for_all(
    keep: Callable[[nn.Module, Tensor], None], kept: Callable[[nn.Module], Tensor]
) -> None:
    """Turned round a picture has the same largest value, so that comparing two tells nothing."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.measured, self.net = Keeping(keep), Two(torch.relu, mean)

        def forward(self, x: Tensor) -> Tensor:
            y = self.measured(x)
            return self.net(y) / kept(self.measured).flatten(1)

    net, x = randomised(Scaled()), pictures(1, 3, 23, 18)
    with pytest.raises(InputError, match="a Keeping of it keeps what it computes"):
        tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)


class Scratch(nn.Module):
    """Notes something for as long as it runs, and cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.doubled: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.doubled = x * 2
        time.sleep(1e-3)
        found = self.doubled if float(x.detach().amax()) > -1e9 else x
        self.doubled = None
        return found


@pytest.fixture
def several_at_a_time() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_at_a_time")
def test_what_a_module_notes_while_it_runs_is_its_own() -> None:
    """Several parts of the work are done at a time, and nothing of the attempt to read it stays."""
    net = randomised(Two(lambda x: F.max_pool2d(x, 4), nn.Sequential(Scratch(), Through(mean))))
    x = pictures(1, 3, 63, 58)
    graph, _ = read(net, x)
    assert "end.0" in {str(n.target) for n in graph.graph.nodes}
    compared(net, x)


RAMPS: dict[int, Tensor] = {}


class Ramped(nn.Module):
    """Keeps what depends on the size for all networks of its kind."""

    ramps: ClassVar[dict[int, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        columns = x.shape[-1]
        assert x.ndim == 4
        for ramps in (self.ramps, RAMPS):
            if columns not in ramps:
                ramps[columns] = torch.linspace(-1, 1, columns).to(x)
            x = x + ramps[columns]
        return x


def test_no_stand_in_stays_in_what_all_networks_share() -> None:
    net, x = randomised(Two(Ramped(), mean)), pictures(2, 3, 23, 18)
    read(net, x[:1])
    assert not RAMPS
    assert not Ramped.ramps
    compared(net, x)
    assert isinstance(RAMPS[16], Tensor)


@pytest.mark.parametrize("out", ["set", "out"])
def test_what_is_written_into_a_constant_is_not_that_of_the_first_picture(out: str) -> None:
    """A tensor made while it is read is a constant of the graph."""

    def bordered(x: Tensor) -> Tensor:
        border = torch.zeros(1, 1, *x.shape[2:], dtype=x.dtype)
        if out == "set":
            border[:, :, 3:5] = x[:1, :1, 3:5]
        else:
            torch.mul(x[:1, :1], 2, out=border)
        return x + border

    class Bordered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.ndim == 4
            return bordered(x)

    net, x = randomised(Two(Bordered(), mean)), pictures(1, 3, 23, 18)
    with pytest.raises(InputError, match="it writes in"):
        tvc.occlusion(net, x, 1, engine="incremental", batch_size=1, **WINDOWS)


class OnlyOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert len(x.shape) == 4
        if x.shape[0] != 1:
            raise ValueError("one picture at a time")
        return x


def by_turned(x: Tensor) -> Tensor:
    """Of two pictures the graph cannot even be run."""
    assert x.ndim == 4
    return x.reshape(x.transpose(0, 1).shape[1], *x.shape[1:]).mean((2, 3))


@pytest.fixture
def always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "pays", True)


@pytest.mark.usefixtures("always_pays")
def test_networks_for_one_picture_at_a_time() -> None:
    net, x = randomised(Two(OnlyOne(), mean)), pictures(2, 3, 23, 18)
    dense = tvc.occlusion(net, x, 1, engine="dense", batch_size=1, **WINDOWS)
    found = tvc.occlusion(net, x, 1, batch_size=1, **WINDOWS)
    assert (found.values - dense.values).abs().max() < 1e-12 * dense.values.abs().max()
    with pytest.raises(InputError, match=r"it fails for two pictures at a time \(one picture"):
        tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)


@pytest.mark.usefixtures("always_pays")
def test_a_graph_that_cannot_be_run_is_left() -> None:
    net, x = randomised(Two(torch.relu, by_turned)), pictures(2, 3, 23, 18)
    dense = tvc.occlusion(net, x, 1, engine="dense", **WINDOWS)
    assert torch.equal(tvc.occlusion(net, x, 1, **WINDOWS).values, dense.values)
    with pytest.raises(InputError, match="traces it, it fails"):
        tvc.occlusion(net, x, 1, engine="incremental", **WINDOWS)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(1, dtype=x.dtype)


class Following(nn.Module):
    """Subtracts a mean that moves with every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.mean((0, 2, 3), keepdim=True))
        assert x.ndim == 4
        return x - self.mean


@pytest.mark.usefixtures("always_pays")
@pytest.mark.parametrize("kind", [Noisy, Following])
def test_looking_whether_it_can_be_computed_in_part_changes_nothing(kind: type[nn.Module]) -> None:
    net, x = randomised(Two(kind(), mean)), pictures(1, 3, 23, 18)
    found = []
    for engine in ("dense", "auto"):
        torch.manual_seed(3)
        found.append(tvc.occlusion(net, x, 1, engine=engine, **WINDOWS).values)
    assert torch.equal(*found)


class Trying(nn.Module):
    """Does without an answer where it gets none."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            dark = bool(x.mean() < 0.1)
        except Exception:
            dark = True
        return x.mean((2, 3)) if dark else x.amax((2, 3))


def test_what_does_without_an_answer_is_run_as_it_is() -> None:
    """The first picture is dark, so that the graph of a dark one answers for it as it should."""
    net, x = randomised(Two(torch.relu, Trying())), pictures(1, 3, 23, 18)
    net.conv2.bias.data.sub_(net.conv2(net.conv1(x).relu()).mean().detach() - 0.099)
    dense = tvc.occlusion(net, x, 1, engine="dense", batch_size=1, **WINDOWS)
    found = tvc.occlusion(net, x, 1, engine="incremental", batch_size=1, **WINDOWS)
    assert (found.values - dense.values).abs().max() < 1e-12 * dense.values.abs().max()
    with pytest.raises(Unsuited, match="it goes on where it is not told"):
        read(Trying(), x)
