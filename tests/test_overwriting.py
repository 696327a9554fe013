"""A layer's ReLU writes over its maps where nobody can tell; here somebody tries to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchviz_cnn as tvc
from converters import load_onnx
from converters.modules.arithmetic import Add, Affine
from converters.wiring import Step, Wired
from tests.onnx_files import evaluate, node, save
from torchviz_cnn.networks import CatDog, Conv2D, MnistConvNet
from torchviz_cnn.overwriting import Layer

_WRITING = {"relu_", "hardtanh_", "clamp_min_"}


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def written(run: Callable[[], object], *, grad: bool = False) -> int:
    """How many times a ReLU writes over what it is given."""
    with Operators() as operators, torch.set_grad_enabled(grad):
        run()
    return sum(name in _WRITING for name in operators.names)


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def layer(activation: nn.Module | None = None, operation: nn.Module | None = None) -> Layer:
    torch.manual_seed(0)
    parts = [operation or nn.Conv2d(2, 3, 3), activation or nn.ReLU()]
    return Layer(*parts).eval()


X = pictures(2, 2, 7, 7)


@pytest.mark.parametrize(
    "operation",
    [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 3, 3), nn.Linear(7, 4), None],
)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True)])
def test_is_written_over_and_right(operation: nn.Module | None, activation: nn.Module) -> None:
    net = layer(activation, operation)
    top = 6 if isinstance(activation, nn.ReLU6) else torch.inf
    x = 9 * X
    expected = net[0](x).double().clamp(0, top)
    assert written(lambda: net(x)) == 1
    with torch.no_grad():
        assert torch.equal(net(x).double(), expected)
    with torch.inference_mode():
        assert torch.equal(net(x).double(), expected)


class Noted(nn.Conv2d):
    """A convolution of a class that is not known to keep its maps to itself."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        made = super().forward(input)
        self.place = made.data_ptr()
        return made


def test_needs_no_memory_of_its_own() -> None:
    net = layer(operation=Noted(2, 3, 3))
    assert written(lambda: net(X)) == 0
    net[0].puts_out_its_own = True
    with torch.no_grad():
        assert net(X).data_ptr() == net[0].place


def test_what_a_class_says_of_itself_is_not_said_of_another_forward() -> None:
    class Own(Noted):
        puts_out_its_own = True

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input)

    class Alike(Own):
        pass

    class Keeping(Own):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            self.kept = super().forward(input)
            return self.kept

    class Refusing(Own):
        puts_out_its_own = False

    class Saying(nn.Conv2d):
        puts_out_its_own = True

    for kind, own in ((Own, True), (Alike, True), (Keeping, False), (Refusing, False)):
        net = layer(operation=kind(2, 3, 3))
        with torch.no_grad():
            assert (net(X).data_ptr() == net[0].place) is own
    net = layer(operation=Own(2, 3, 3))
    net[0].puts_out_its_own = False
    assert written(lambda: net(X)) == 0
    assert written(lambda: layer(operation=Saying(2, 3, 3))(X)) == 1


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("made_of", [torch.jit.script, lambda part: torch.jit.trace(part, X)])
def test_a_part_of_torchscript_is_not_written_over(made_of) -> None:
    net = layer()
    expected = net(X)
    net[0] = made_of(net[0])
    assert written(lambda: net(X)) == 0
    with torch.no_grad():
        assert torch.equal(net(X), expected)


def test_not_where_gradients_are_recorded() -> None:
    net, twin = layer().double(), nn.Sequential(*layer()).double()
    x, y = (X.double().requires_grad_() for _ in range(2))
    assert written(lambda: net(x), grad=True) == 0
    net(x).square().sum().backward()
    twin(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)


def hook_that_keeps(kept: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        kept.append(args[0] if output is None else output)

    return hook


@pytest.mark.parametrize(
    "where", ["operation", "before", "given", "inner", "pre", "all", "all pre"]
)
def test_what_a_hook_is_shown_stays_as_it_was(where: str) -> None:
    conv, activation = layer()
    expected = conv(X)
    net = Layer(Layer(conv) if where in ("inner", "before") else conv, activation)
    kept: list[Tensor] = []
    hook = hook_that_keeps(kept)
    if where in ("operation", "before"):
        handle = net[0].register_forward_hook(hook)
    elif where == "inner":
        handle = conv.register_forward_hook(hook)
    elif where == "all":
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, *shown: hook(module, *shown) if module is conv else None
        )
    elif where == "all pre":
        handle = nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: hook(module, args) if module is activation else None
        )
    elif where == "pre":
        handle = activation.register_forward_pre_hook(hook)
    else:
        handle = activation.register_forward_hook(lambda module, args, _: hook(module, args))
    with torch.no_grad():
        made = net(X)
    handle.remove()
    assert torch.equal(kept[0], expected)
    assert torch.equal(made, expected.relu())
    assert written(lambda: net(X)) == 1  # again, once the hook is gone


def test_a_layer_of_which_a_part_is_another_layer() -> None:
    net = Layer(Layer(nn.Conv2d(2, 3, 3)), nn.ReLU())
    assert written(lambda: net(X)) == 1
    net[0].forward = lambda x: x  # it puts out what it is given
    before = X.clone()
    assert written(lambda: net(X)) == 0
    assert torch.equal(X, before)
    assert torch.equal(Layer()(X), X)


class Same(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input


@pytest.mark.parametrize("maker", [nn.Identity(), nn.Dropout(), nn.Flatten(1), Same(2, 2, 1)])
def test_what_a_layer_is_given_stays_as_it_was(maker: nn.Module) -> None:
    net, before = layer(nn.ReLU(), maker), X.clone()
    with torch.no_grad():
        assert torch.equal(net(X), maker(X).relu())
    assert torch.equal(X, before)


def test_exchanged_functions_are_called() -> None:
    net = layer()
    net[1].forward = torch.neg
    assert torch.equal(net(X), -net[0](X))
    with torch.no_grad():
        assert torch.equal(net(X), -net[0](X))
    net = layer()
    net[0].forward = lambda x: x
    before = X.clone()
    with torch.no_grad():
        assert torch.equal(net(X), X.relu())
    assert torch.equal(X, before)

    net = layer(nn.ReLU(), nn.Conv2d(2, 2, 1))
    net[0]._conv_forward = lambda x, *_: x
    with torch.no_grad():
        assert torch.equal(net(X), before.relu())
    assert torch.equal(X, before)

    class Other(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return input.neg()

    net = layer(Other())
    with torch.no_grad():
        assert torch.equal(net(X), -net[0](X))


# torch.jit is, and is used all the same.
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_traced_compiled_and_exported() -> None:
    net, x = MnistConvNet().eval(), pictures(1, 1, 28, 28)
    expected = net(x)
    with torch.no_grad():
        graph = fx.symbolic_trace(net)
        targets = [str(n.target) for n in graph.graph.nodes]
        assert {"conv_1.conv", "conv_1.act", "dense_1.act"} <= set(targets)
        for other in (
            graph,
            torch.compile(net, backend="eager", fullgraph=True),
            torch.export.export(net, (x,)).module(),
            torch.jit.trace(net, x),
            torch.jit.script(net),
        ):
            torch.testing.assert_close(other(x), expected)


def test_the_tutorials_network() -> None:
    net, x = CatDog((4, 4, 4, 4), 8).eval(), pictures(1, 3, 150, 150)
    assert written(lambda: net(x)) == 5
    names = [f"conv2d_{i}.conv" for i in (1, 2, 3, 4)]
    wanted = {}
    maps = x
    for number in (1, 2, 3, 4):
        maps = wanted[f"conv2d_{number}.conv"] = getattr(net, f"conv2d_{number}").conv(maps)
        maps = getattr(net, f"max_pooling2d_{number}")(maps.relu())
    seen = tvc.activations(net, x, layers=names)
    assert {name: torch.equal(seen[name], wanted[name]) for name in names} == dict.fromkeys(
        names, True
    )
    found = tvc.activations(net, x, layers=["conv2d_1", "conv2d_1.conv", "conv2d_1.act"])
    assert torch.equal(found["conv2d_1"], wanted["conv2d_1.conv"].relu())
    assert torch.equal(found["conv2d_1.act"], found["conv2d_1"])


# ---------------------------------------------------------------- networks made of steps


def wired(steps: list[Step], results: list[int], **parts: nn.Module) -> Wired:
    return Wired(parts, steps, results).eval()


def test_steps_alone_with_their_value() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    expected = conv(conv(X).relu() + X).relu()
    steps = [
        *(Step("conv", (0,), (1,)), Step("relu", (1,), (2,)), Step("add", (2, 0), (3,))),
        *(Step("conv", (3,), (4,)), Step("relu", (4,), (5,))),
    ]
    net = wired(steps, [5], conv=conv, relu=nn.ReLU(), add=Add())
    before = X.clone()
    assert written(lambda: net(X)) == 2
    with torch.no_grad():
        assert torch.equal(net(X), expected)
    assert torch.equal(X, before)


@pytest.mark.parametrize("reader", ["another", "alias", "result", "twice", "input"])
def test_steps_whose_value_is_needed_elsewhere(reader: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    parts = {"conv": conv, "relu": nn.ReLU(), "add": Add(), "same": nn.Identity()}
    y = conv(X).detach()
    first = Step("conv", (0,), (1,))
    cases = {
        "another": ([first, Step("relu", (1,), (2,)), Step("add", (1, 2), (3,))], [3]),
        "alias": (
            [first, Step("same", (1,), (4,)), Step("relu", (1,), (2,)), Step("add", (4, 2), (3,))],
            [3],
        ),
        "result": ([first, Step("relu", (1,), (2,))], [1]),
        "twice": ([first, Step("relu", (1,), (2,)), Step("relu", (1,), (3,))], [2, 3]),
        "input": ([Step("relu", (0,), (1,))], [1]),
    }
    expected = {
        "another": y + y.relu(),
        "alias": y + y.relu(),
        "result": y,
        "twice": y.relu(),
        "input": X.relu(),
    }[reader]
    before = X.clone()
    net = wired(*cases[reader], **parts)
    assert written(lambda: net(X)) == 0
    with torch.no_grad():
        found = net(X)
    assert torch.equal(found if isinstance(found, Tensor) else found[0], expected)
    assert torch.equal(X, before)


def test_steps_that_were_exchanged() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3)
    net = wired(
        [Step("conv", (0,), (1,)), Step("relu", (1,), (2,)), Step("relu", (2,), (3,))],
        [3],
        conv=conv,
        relu=nn.ReLU(),
    )
    assert written(lambda: net(X)) == 1
    net.results = (1, 3)
    with torch.no_grad():
        assert torch.equal(net(X)[0], conv(X))
    net.steps, net.results = net.steps[:2], (2,)
    assert written(lambda: copy.deepcopy(net)(X)) == 1
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net)(X), conv(X).relu())


def test_a_sum_of_one_is_its_own() -> None:
    net = wired([Step("add", (0,), (1,)), Step("relu", (1,), (2,))], [2], add=Add(), relu=nn.ReLU())
    before = X.clone()
    assert written(lambda: net(X)) == 1
    assert torch.equal(X, before)


def test_hooked_steps() -> None:
    torch.manual_seed(0)
    weight, bias = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    parts = {"norm": Affine(weight, bias, 4), "relu": nn.ReLU6()}
    net = wired([Step("norm", (0,), (1,)), Step("relu", (1,), (2,))], [2], **parts)
    assert written(lambda: net(X)) == 1
    seen = tvc.activations(net, X, layers=["norm", "relu"])
    assert torch.equal(seen["norm"], net.norm(X))
    kept: list[Tensor] = []
    net.norm.register_forward_hook(hook_that_keeps(kept))
    with torch.no_grad():
        net(X)
    assert torch.equal(kept[0], parts["norm"].forward(X))


def test_an_imported_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", "x kernel", "a", "first/Conv2D", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b", "first_relu/Relu"),
        node("Conv", "b second", "c", "second/Conv2D", pads=[1, 1, 1, 1]),
        node("Add", "c a", "d", "sum/add"),
        node("Relu", "d", "y", "last/Relu"),
    ]
    second = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
    path = save(
        tmp_path / "net.onnx",
        nodes,
        {"kernel": kernel, "second": second},
        {"x": ["n", 2, 8, 8]},
        ["y"],
    )
    x = rng.normal(size=(2, 2, 8, 8)).astype(np.float32)
    network = load_onnx(path).eval()
    (expected,) = evaluate(path, {"x": x}, ["y"])
    assert written(lambda: network(torch.from_numpy(x))) == 1  # of "last": "a" is read twice
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_conv2d_of_the_tutorials_keeps_its_names() -> None:
    net = Conv2D(1, 2)
    assert [name for name, _ in net.named_children()] == ["conv", "act"]
    assert (net.is_layer, net.layer_type) == (True, "Conv2D")
