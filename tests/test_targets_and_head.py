"""What is explained: the score before the final softmax or sigmoid, and every way to name a class."""

from __future__ import annotations

import gc
import math
import pickle
import weakref
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from torchviz_cnn.inputs import check_inputs
from torchviz_cnn.preprocess import preprocess_by_name

ATEN = torch.ops.aten
EXACT = {"rtol": 1e-10, "atol": 1e-12}
SHAPE = (2, 3, 8, 7)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, **EXACT)


class End(nn.Module):
    """Whatever a network does with its scores."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)

    def become(self, function: Callable[[Tensor], Any]) -> None:
        del self.function  # a module cannot be overwritten by a plain function
        self.function = function


class Net(nn.Module):
    """A small classifier; what it does with its scores is ``end``, which may be exchanged."""

    def __init__(self, end: Callable[[Tensor], Any] | None = None, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, padding=1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(8, classes)
        self.end = End(end or nn.Identity())
        self.runs = 0
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        return self.end(self.logits(x))


def pictures(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(shape or SHAPE, generator=generator, dtype=torch.float64)


def explain(name: str, net: Any, x: Tensor, target: Any = None, **options: Any) -> Any:
    """One method with the options that keep most of what it knows."""
    if name == "occlusion":
        options = {"window": (4, 3), "stride": (4, 2), **options}
    if name == "grad_cam":
        options = {"relu": False, **options}
    return tvc.METHODS[name](net, x, target, **options)


METHODS = sorted(tvc.METHODS)
DIFFERENTIABLE = ["grad_cam", "input_x_gradient", "saliency"]  # linear in the score, with a sign


def autograd_saliency(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(score(leaf).sum(), leaf)[0]


# ---- the score before the final softmax or sigmoid -----------------------------------------------

SOFTMAX: dict[str, Callable[[Tensor], Any]] = {
    "nn.Softmax": nn.Softmax(1),
    "nn.Softmax(-1)": nn.Softmax(dim=-1),
    "modules in modules": nn.Sequential(nn.Identity(), nn.Sequential(nn.Softmax(1))),
    "nn.Softmax, then dropout": nn.Sequential(nn.Softmax(1), nn.Dropout(0.5)).eval(),
    "nn.Softmax, then flatten": nn.Sequential(nn.Softmax(1), nn.Flatten()),
    "F.softmax": lambda x: F.softmax(x, 1),
    "F.softmax(input=)": lambda x: F.softmax(input=x, dim=1),
    "F.softmax(dtype=)": lambda x: F.softmax(x, dim=1, dtype=torch.float64),
    "tensor.softmax": lambda x: x.softmax(-1),
    "torch.softmax": lambda x: torch.softmax(x, 1),
    "torch.special.softmax": lambda x: torch.special.softmax(x, 1),
    "of a 1×1 map": lambda x: x[:, :, None, None].softmax(1).flatten(1),
    "squeezed twice": lambda x: x[:, :, None, None].softmax(1).squeeze(-1).squeeze(-1),
    "viewed": lambda x: x.softmax(1).view(len(x), -1),
    "cloned": lambda x: x.softmax(1).clone(),
    "cast": lambda x: x.softmax(1).float().to(torch.float64),
    "cast by name": lambda x: x.softmax(1).half().double(),
    "moved": lambda x: x.softmax(1).cpu(),
    "clamped": lambda x: x.softmax(1).clamp(1e-7, 1 - 1e-7),
    "clamped in place": lambda x: x.softmax(1).clamp_(1e-7, 1),
    "turned over twice": lambda x: x.softmax(1).flip(1).flip(1),
    "clipped below": lambda x: torch.clamp_min(x.softmax(1), 1e-9).contiguous(),
    "transposed": lambda x: x.t().softmax(0).t(),
    ".T": lambda x: x.T.softmax(0).T,
    ".mT": lambda x: x.t().softmax(0).mT,
    "axes swapped": lambda x: x.t().softmax(0).swapaxes(0, 1),
    "dimensions swapped": lambda x: torch.swapdims(x.t().softmax(0), 0, 1),
    "axis moved": lambda x: x.t().softmax(0).moveaxis(0, 1),
    "dimension moved": lambda x: torch.movedim(x.t().softmax(0), 0, 1),
    "one axis more, by index": lambda x: x[:, :, None].softmax(1)[:, :, 0],
    "permuted and back": lambda x: x.softmax(1).permute(1, 0).permute(1, 0),
    "nn.LogSoftmax": nn.LogSoftmax(1),
    "F.log_softmax": lambda x: F.log_softmax(x, 1),
    "tensor.log_softmax": lambda x: x.log_softmax(1),
    "torch.log_softmax": lambda x: torch.log_softmax(x, 1),
    "torch.special.log_softmax": lambda x: torch.special.log_softmax(x, 1),
    "aten.softmax": lambda x: ATEN.softmax.int(x, 1),
    "aten._softmax, viewed": lambda x: ATEN.view.default(ATEN._softmax(x, 1, False), [len(x), 5]),
    "aten._log_softmax, cast": lambda x: ATEN.to.dtype(
        ATEN._log_softmax.default(x, 1, False), torch.float64
    ),
}
SIGMOID: dict[str, Callable[[Tensor], Any]] = {
    "nn.Sigmoid": nn.Sigmoid(),
    "torch.sigmoid": torch.sigmoid,
    "torch.sigmoid(input=)": lambda x: torch.sigmoid(input=x),
    "torch.sigmoid_": torch.sigmoid_,
    "F.sigmoid": F.sigmoid,
    "x.sigmoid": lambda x: x.sigmoid(),
    "x.sigmoid_, result": lambda x: x.sigmoid_(),
    "x.sigmoid_, x": lambda x: (x.sigmoid_(), x)[1],
    "x.sigmoid, .mT": lambda x: x.t().sigmoid().mT,
    "torch.special.expit": torch.special.expit,
    "aten.sigmoid": ATEN.sigmoid.default,
    "aten.sigmoid_, clamped": lambda x: ATEN.clamp.default(ATEN.sigmoid_.default(x), 0.0, 1.0),
}
Pair = namedtuple("Pair", ["logits", "extra"])
WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda x: (x.softmax(1), x),
    "list": lambda x: [x.softmax(1)],
    "named tuple": lambda x: Pair(x.softmax(1), None),
    "dict with logits": lambda x: {"aux": x, "logits": x.softmax(1)},
    "dict with out": lambda x: {"aux": x, "out": x.softmax(1)},
    "object with .logits": lambda x: SimpleNamespace(loss=None, logits=x.softmax(1)),
    "object with .out": lambda x: SimpleNamespace(out=torch.sigmoid(x)),
    "tuple, auxiliary softmax first": lambda x: (lambda aux: (x.softmax(1), aux))(
        (x * x).softmax(1)
    ),
    "tuple, auxiliary softmax last": lambda x: (x.softmax(1), (x * x).softmax(1)),
    "dict, auxiliary softmax last": lambda x: {"out": x.softmax(1), "aux": (x * x).softmax(1)},
}
ENDS = SOFTMAX | SIGMOID | WRAPPED

ONE: dict[str, Callable[[Tensor], Any]] = {
    "sigmoid": torch.sigmoid,
    "in-place sigmoid": lambda x: x.sigmoid_(),
    "module": nn.Sigmoid(),
    "squeeze(1)": lambda x: torch.sigmoid(x).squeeze(1),
    "squeeze(-1) of a module": lambda x: nn.Sigmoid()(x).squeeze(-1),
    "squeeze before": lambda x: torch.sigmoid(x.squeeze(1)),
    "view(-1)": lambda x: x.sigmoid().view(-1),
    "reshape(-1)": lambda x: x.sigmoid().reshape(-1),
    "flatten()": lambda x: x.sigmoid().flatten(),
    "[:, 0]": lambda x: x.sigmoid()[:, 0],
    "expit in a tuple": lambda x: (torch.special.expit(x), x),
    "aten.sigmoid, squeezed": lambda x: ATEN.squeeze.dim(ATEN.sigmoid.default(x), 1),
    "no sigmoid": lambda x: x,
    "no sigmoid, squeezed": lambda x: x.squeeze(1),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "grad_cam", "occlusion"])
def test_logit_is_the_score_before_the_final_activation_however_spelled(
    method: str, end: str
) -> None:
    x, bare = pictures(), Net()
    targets = [3, 1]
    wanted = explain(method, bare, x, targets)
    assert wanted.values.abs().max() > 1e-4
    net = Net(ENDS[end])
    for _ in range(3):  # what the first call learns of a network must not change the next
        found = explain(method, net, x, targets)
        close(found.values, wanted.values)
        close(found.score, bare.logits(x)[[0, 1], targets].detach())


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("end", ["F.softmax", "F.log_softmax", "torch.sigmoid", "one sigmoid"])
def test_a_network_that_torch_exported_is_explained_like_the_one_it_was_made_of(
    end: str, decomposed: bool
) -> None:
    x = pictures()
    net = Net(ONE["squeeze(1)"], 1) if end == "one sigmoid" else Net(ENDS[end])
    program = torch.export.export(net, (x,))
    exported = (program.run_decompositions() if decomposed else program).module()
    for target in (None, 0):
        found, wanted = (explain("saliency", each, x, target) for each in (exported, net))
        assert found.target.tolist() == wanted.target.tolist()
        close(found.score, wanted.score)
        close(found.values, wanted.values)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_an_activation_that_appears_and_goes_between_calls_is_noticed(
    method: str, end: str
) -> None:
    x, net, targets = pictures(), Net(), [3, 1]
    wanted = explain(method, Net(), x, targets)
    for current in (nn.Identity(), ENDS[end], ENDS[end], nn.Identity(), ENDS[end]):
        net.end.become(current)
        found = explain(method, net, x, targets)
        close(found.values, wanted.values)
        close(found.score, wanted.score)


@pytest.mark.parametrize("end", ["nn.Softmax", "nn.LogSoftmax", "torch.sigmoid"])
def test_what_one_method_learnt_about_a_network_does_not_mislead_another(end: str) -> None:
    x, net = pictures(), Net()
    wanted = {method: explain(method, Net(), x, [3, 1]).values for method in METHODS}
    for learner in METHODS:
        for method in METHODS:
            net.end.become(nn.Identity())
            explain(learner, net, x)
            net.end.become(ENDS[end])
            close(explain(method, net, x, [3, 1]).values, wanted[method])


@pytest.mark.parametrize("end", ONE)
@pytest.mark.parametrize("method", [*DIFFERENTIABLE, "occlusion"])
def test_of_one_output_class_1_is_the_logit_and_class_0_its_negative(method: str, end: str) -> None:
    x, bare = pictures(), Net(classes=1)
    whole = explain(method, bare, x, lambda out: out[:, 0])
    logit = bare.logits(x)[:, 0].detach()
    close(whole.score, logit)
    for _ in range(2):
        net = Net(ONE[end], classes=1)
        one, zero = explain(method, net, x, 1), explain(method, net, x, 0)
        close(one.values, whole.values)
        close(zero.values, -whole.values)
        close(one.score, logit)
        close(zero.score, -logit)
        both = explain(method, net, x, [[0, 1], [1, 0]])
        sign = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double()
        close(both.score, sign * logit[:, None])
        shape = (2, 2, *[1] * (whole.values.ndim - 1))
        close(both.values, sign.reshape(shape) * whole.values[:, None])


@pytest.mark.parametrize("end", ONE)
def test_of_one_output_the_probability_is_p_and_one_minus_p(end: str) -> None:
    x, bare = pictures(), Net(classes=1)
    p = 1 / (1 + torch.exp(-bare.logits(x)[:, 0].detach()))
    gradient = autograd_saliency(lambda leaf: torch.sigmoid(bare.logits(leaf)), x)
    for _ in range(2):
        net = Net(ONE[end], classes=1)
        one = tvc.saliency(net, x, 1, score="probability")
        zero = tvc.saliency(net, x, 0, score="probability")
        close(one.score, p)
        close(zero.score, 1 - p)
        close(one.values, gradient)
        close(zero.values, -gradient)


@pytest.mark.parametrize("end", ["sigmoid", "squeeze(1)", "no sigmoid", "no sigmoid, squeezed"])
def test_of_one_output_the_top_class_is_the_likelier_one(end: str) -> None:
    x = pictures(6, *SHAPE[1:])
    bare = Net(classes=1)
    with torch.no_grad():
        bare.fc.bias -= bare.logits(x).median()
    net = Net(ONE[end], classes=1)
    net.load_state_dict(bare.state_dict())
    logit = bare.logits(x)[:, 0].detach()
    assert (logit > 0).any()
    assert (logit < 0).any()
    found = tvc.saliency(net, x)
    assert found.target.tolist() == [int(z > 0) for z in logit]
    close(found.score, logit.abs())


@pytest.mark.parametrize("method", [*DIFFERENTIABLE, "occlusion"])
@pytest.mark.parametrize("end", ["none", "nn.Softmax", "F.softmax", "F.log_softmax"])
def test_probability_explains_the_probability_itself(method: str, end: str) -> None:
    x, bare, targets = pictures(), Net(), [3, 1]
    wanted = (
        explain(method, bare, x, lambda out: out.softmax(1)[[0, 1], targets])
        if (method != "occlusion")
        else None
    )
    chance = torch.exp(bare.logits(x)) / torch.exp(bare.logits(x)).sum(1, keepdim=True)
    for _ in range(2):
        net = Net(ENDS.get(end))
        found = explain(method, net, x, targets, score="probability")
        close(found.score, chance[[0, 1], targets].detach())
        if wanted is not None:
            close(found.values, wanted.values)
        else:
            close(found.hidden_score(), found.hidden_probability())


@pytest.mark.parametrize("end", ["none", "nn.Softmax", "torch.softmax", "F.log_softmax"])
def test_the_gradient_of_the_probability_is_autograds(end: str) -> None:
    x, net = pictures(), Net(ENDS.get(end))
    wanted = autograd_saliency(lambda leaf: net.logits(leaf).softmax(1)[[0, 1], [3, 1]], x)
    logit = autograd_saliency(lambda leaf: net.logits(leaf)[[0, 1], [3, 1]], x)
    found = tvc.saliency(net, x, [3, 1], score="probability").values
    close(found, wanted)
    assert (found - logit).abs().max() > 1e-3


def test_independent_sigmoids_have_independent_probabilities() -> None:
    x, net = pictures(), Net(torch.sigmoid)
    found = tvc.saliency(net, x, [3, 1], score="probability")
    close(found.score, torch.sigmoid(net.logits(x))[[0, 1], [3, 1]].detach())
    wanted = autograd_saliency(lambda leaf: torch.sigmoid(net.logits(leaf))[[0, 1], [3, 1]], x)
    close(found.values, wanted)


def test_a_saturated_softmax_still_has_a_map() -> None:
    x, net = pictures(), Net(nn.Softmax(1))
    with torch.no_grad():
        net.fc.weight *= 1e4
    found = tvc.saliency(net, x)
    assert (net(x).max(1).values == 1).all()
    wanted = autograd_saliency(lambda leaf: net.logits(leaf).max(1).values, x)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-9)
    assert found.values.abs().max() > 1
    assert tvc.saliency(net, x, score="probability").values.abs().max() < 1e-9


# ---- a softmax or sigmoid that is not the final one ----------------------------------------------


class Inner(Net):
    """Softmax or sigmoid inside; the scores come after it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gate = nn.Linear(8, 8).double()
        self.last = nn.Linear(8, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        if self.kind == "spatial attention":
            attention = F.softmax(maps.sum(1).flatten(1), dim=1).reshape(len(x), 1, *maps.shape[2:])
            return self.fc((maps * attention).sum((2, 3)))
        pooled = maps.mean((2, 3))
        if self.kind == "squeeze and excite":
            return self.fc((maps * torch.sigmoid(self.gate(pooled))[:, :, None, None]).mean((2, 3)))
        if self.kind == "gated scores":
            return self.fc(pooled) * torch.sigmoid(self.last(pooled))
        if self.kind == "scores gated in place":
            return torch.sigmoid(self.last(pooled)).mul_(self.fc(pooled))
        if self.kind == "scaled probabilities":
            return self.fc(pooled).softmax(1) * 3
        if self.kind == "probabilities scaled in place":
            return self.fc(pooled).softmax(1).mul_(3).sub_(self.last(pooled))
        if self.kind == "scores beside a gate":
            return self.fc(pooled), torch.sigmoid(self.last(pooled))
        if self.kind == "gate before scores":
            torch.sigmoid(self.last(pooled))
            return self.fc(pooled)
        assert self.kind == "attention inside, softmax at the end"
        return self.fc(pooled * self.gate(pooled).softmax(1)).softmax(1)


@pytest.mark.parametrize(
    "kind",
    [
        "spatial attention",
        "squeeze and excite",
        "gated scores",
        "scaled probabilities",
        "scores beside a gate",
        "gate before scores",
    ],
)
def test_an_inner_softmax_or_sigmoid_is_not_taken_for_the_final_one(kind: str) -> None:
    torch.manual_seed(0)
    x, net = pictures(), Inner(kind)

    def score(leaf: Tensor) -> Tensor:
        out = net(leaf)
        return (out[0] if isinstance(out, tuple) else out)[[0, 1], [3, 1]]

    wanted, value = autograd_saliency(score, x), score(x).detach()
    for _ in range(2):
        found = tvc.saliency(net, x, [3, 1])
        close(found.score, value)
        close(found.values, wanted)
        close(tvc.grad_cam(net, x, [3, 1]).score, value)
        close(tvc.occlusion(net, x, [3, 1], window=4).score, value)


@pytest.mark.parametrize("kind", ["scores gated in place", "probabilities scaled in place"])
def test_an_activation_written_over_is_not_taken_for_the_final_one(kind: str) -> None:
    """Autograd refuses such a network, but occlusion needs no gradient."""
    torch.manual_seed(0)
    x, net = pictures(), Inner(kind)
    value = net(x)[[0, 1], [3, 1]].detach()
    for _ in range(2):
        found = tvc.occlusion(net, x, [3, 1], window=x.shape[2:], stride=1)
        close(found.score, value)
        close(found.hidden_score()[:, 0, 0], net(0 * x)[[0, 1], [3, 1]].detach())


def test_with_attention_inside_and_softmax_at_the_end_the_end_is_meant() -> None:
    torch.manual_seed(0)
    x, net = pictures(), Inner("attention inside, softmax at the end")

    def logits(leaf: Tensor) -> Tensor:
        pooled = net.relu2(net.conv2(net.relu1(net.conv1(leaf)))).mean((2, 3))
        return net.fc(pooled * net.gate(pooled).softmax(1))[[0, 1], [3, 1]]

    for _ in range(2):
        found = tvc.saliency(net, x, [3, 1])
        close(found.score, logits(x).detach())
        close(found.values, autograd_saliency(logits, x))
        close(tvc.occlusion(net, x, [3, 1], window=4).score, logits(x).detach())


# ---- naming what is explained --------------------------------------------------------------------

NAMES = ["Tabby Cat", "tiger_cat", "lynx", "crane", "crane"]

ONE_FOR_ALL: dict[str, tuple[Any, int]] = {
    "index": (2, 2),
    "numpy integer": (np.int64(2), 2),
    "tensor without axes": (torch.tensor(2), 2),
    "array without axes": (np.array(2), 2),
    "name": ("lynx", 2),
    "name in capitals": ("LYNX", 2),
    "space for underscore": ("Tiger Cat", 1),
    "underscore for space": ("tabby_cat", 0),
    "blanks around": ("  lynx ", 2),
    "digits": ("4", 4),
}


@pytest.mark.parametrize("spelling", ONE_FOR_ALL)
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_one_target_for_all_images(method: str, spelling: str) -> None:
    target, index = ONE_FOR_ALL[spelling]
    x, net = pictures(), Net()
    found = explain(method, net, x, target, classes=NAMES)
    assert found.target.tolist() == [index, index]
    close(found.score, net.logits(x)[:, index].detach())
    close(found.values, explain(method, net, x, lambda out: out[:, index]).values)


EACH: dict[str, tuple[Any, list[Any]]] = {
    "list": ([3, 1], [3, 1]),
    "tuple": ((3, 1), [3, 1]),
    "range": (range(2, 4), [2, 3]),
    "tensor": (torch.tensor([3, 1]), [3, 1]),
    "int32 tensor": (torch.tensor([3, 1], dtype=torch.int32), [3, 1]),
    "array": (np.array([3, 1]), [3, 1]),
    "array of names": (np.array(["lynx", "tiger_cat"]), [2, 1]),
    "numpy integers": ([np.int32(3), np.uint8(1)], [3, 1]),
    "names": (["lynx", "tiger cat"], [2, 1]),
    "names and indexes": (["lynx", 4], [2, 4]),
    "lists": ([[0, 3, 1], [2, 2, 4]], [[0, 3, 1], [2, 2, 4]]),
    "lists of one": ([[0], [2]], [[0], [2]]),
    "tensor of lists": (torch.tensor([[0, 3], [2, 4]]), [[0, 3], [2, 4]]),
    "array of lists": (np.array([[0, 3], [2, 4]]), [[0, 3], [2, 4]]),
    "lists of names": ([["lynx", 0], ["3", "tabby cat"]], [[2, 0], [3, 0]]),
}


@pytest.mark.parametrize("spelling", EACH)
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_every_image_has_its_own_targets(method: str, spelling: str) -> None:
    target, indexes = EACH[spelling]
    x, net = pictures(), Net()
    found = explain(method, net, x, target, classes=NAMES)
    assert found.target.tolist() == indexes
    logits = net.logits(x).detach()
    close(found.score, torch.stack([logits[n][row] for n, row in enumerate(indexes)]))
    for n, row in enumerate(indexes):
        for k, index in enumerate(row if isinstance(row, list) else [row]):
            one = explain(method, net, x[n : n + 1], index).values[0]
            close(found.values[n, k] if isinstance(row, list) else found.values[n], one)


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
@pytest.mark.parametrize("end", [None, nn.Softmax(1)])
def test_without_a_target_each_images_top_class_is_explained(method: str, end: Any) -> None:
    x, net = pictures(8, *SHAPE[1:]), Net(end)
    top = net.logits(x).detach().max(1)
    assert len(set(top.indices.tolist())) > 1
    found = explain(method, net, x)
    assert found.target.tolist() == top.indices.tolist()
    close(found.score, top.values)


@pytest.mark.parametrize("method", METHODS)
def test_a_callable_is_given_the_scores_before_the_final_activation(method: str) -> None:
    x = pictures()
    found = explain(method, Net(nn.Softmax(1)), x, lambda out: 2 * out[:, 3] - out[:, 1])
    assert found.target is None
    bare = Net()
    score = 2 * bare.logits(x)[:, 3] - bare.logits(x)[:, 1]
    close(found.score, score.detach())
    if method in (*DIFFERENTIABLE, "occlusion"):
        both = explain(method, bare, x, [[3, 1]] * 2).values
        close(found.values, 2 * both[:, 0] - both[:, 1])


def test_a_callable_may_ask_for_the_probabilities() -> None:
    x, net = pictures(), Net()
    found = tvc.saliency(net, x, lambda out: out[:, 3], score="probability")
    close(found.score, net.logits(x).softmax(1)[:, 3].detach())


def test_of_one_image_a_callable_may_return_a_number() -> None:
    x, net = pictures(1, *SHAPE[1:]), Net()
    found = tvc.saliency(net, x, lambda out: out[0, 3])
    close(found.values, tvc.saliency(net, x, 3).values)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda out: out, r"\(2,\).*gave \(2, 5\).*\(2, 5\)"),
        (lambda out: out.sum(), r"\(2,\).*gave \(\)"),
        (lambda out: out[:1, 3], r"\(2,\).*gave \(1,\)"),
        (lambda out: out[:, 3].tolist(), "list"),
        (lambda out: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_a_callable_must_return_one_score_an_image(
    method: str, wrong: Callable[[Tensor], Any], told: str
) -> None:
    with pytest.raises(tvc.InputError, match=told):
        explain(method, Net(), pictures(), wrong)


def _two_heads(scores: Tensor) -> dict[str, Tensor]:
    return {"colour": scores[:, :2], "shape": scores[:, 2:]}


@pytest.mark.parametrize(
    ("end", "target", "told"),
    [
        (_two_heads, lambda out: out["shape"][:, 1], r"dict .*\(colour, shape\); wrap it in a mod"),
        (lambda s: (s, s), lambda out: out[1][:, 0], r"IndexError.*one tensor.*\(2, 5\).*module"),
        (lambda s: {"logits": s}, lambda out: out["logits"], r"Error.*one tensor.*\(2, 5\)"),
        (nn.Identity(), lambda out: out.sorted(1)[:, 0], r"AttributeError.*no attribute 'sorted'"),
    ],
)
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
def test_what_a_callable_is_given_is_told_where_it_fails(method, end, target, told):
    with pytest.raises(tvc.InputError, match=told):
        explain(method, Net(end), pictures(), target)


NAMED: dict[str, Any] = {
    "a list": ["a", "b", "c", "d", "e"],
    "a tuple": ("a", "b", "c", "d", "e"),
    "by index": {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"},
    "in another order": {4: "e", 2: "c", 0: "a", 3: "d", 1: "b"},
    "by digits": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"},
}


@pytest.mark.parametrize("names", NAMED)
def test_class_names_may_be_given_by_index(names):
    found = tvc.grad_cam(Net(), pictures(), "d", classes=NAMED[names])
    assert found.target is not None
    assert found.target.tolist() == [3, 3]
    assert found.classes == ("a", "b", "c", "d", "e")
    assert "class 3 d" in found.title()
    loaded = tvc.models.load("mnist_convnet", classes={str(i): f"digit {i}" for i in range(10)})
    assert loaded.classes is not None
    assert loaded.classes[7] == "digit 7"


def test_class_names_are_read_once():
    names = tvc.saliency(Net(), pictures(), "b", classes=iter("abcde")).classes  # type: ignore[arg-type]
    assert names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({1: "a", 2: "b"}, r"every index from 0 on, not for \[1, 2\]"),
        ({"a": 0, "b": 1}, r"every index from 0 on, not for \['a', 'b'\]"),
        ({0: "a", 1: 7}, r"list of texts, one a class, not \['a', 7\]"),
        ("abcde", "list of texts, one a class, not 'abcde'"),
        (5, "list of texts, one a class, not 5"),
    ],
)
def test_class_names_that_are_none_are_refused(names, told):
    with pytest.raises(tvc.InputError, match=told):
        tvc.saliency(Net(), pictures(), 0, classes=names)


class Choosy(nn.Module):
    """Takes one picture at a time, says so in its own way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1, "only one at a time"
        scores: Tensor = self.inner(x)
        return scores


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "smooth_grad"])
def test_a_network_for_batches_of_one_size_is_given_them_by_batch_size(method):
    net, x = Choosy(Net()), pictures()[:1]
    with pytest.raises(tvc.InputError, match=r"take \d+ pictures of shape .*once.*batch_size"):
        explain(method, net, x, 3)
    options = {"batch_size": 1, **({"engine": "dense"} if method == "occlusion" else {})}
    options |= {"seed": 1} if method == "smooth_grad" else {}
    close(
        explain(method, net, x, 3, **options).values,
        explain(method, net.inner, x, 3, **options).values,
    )
    with pytest.raises(
        tvc.InputError, match=r"inputs of shape \(N, 3, 8, 7\).*channels and the si"
    ):
        explain("saliency", net, pictures(), 3, batch_size=2)


BAD: dict[str, tuple[Any, str]] = {
    "too many": ([0, 1, 2], "3 targets.*2 images"),
    "too few": ([0], "1 target was.*2 images"),
    "none": ([], "0 targets.*2 images"),
    "tensor too long": (torch.tensor([0, 1, 2, 3]), "4 targets.*2 images"),
    "too many lists": ([[0, 1], [1, 2], [2, 3]], "3 targets.*2 images"),
    "ragged": ([[0, 1], [2]], r"\[2, 1\]"),
    "ragged with a bare one": ([[0, 1], 2], r"\[2, 1\]"),
    "empty lists": ([[], []], r"\[0, 0\]"),
    "out of range": (5, "class 5 .*5 classes, 0 to 4"),
    "one out of range": ([4, 17], "class 17 .*5 classes, 0 to 4"),
    "one of several out of range": ([[0, 1], [2, 9]], "class 9 .*5 classes, 0 to 4"),
    "negative": (-1, "class -1 .*5 classes, 0 to 4"),
    "digits out of range": ("5", "class 5 .*5 classes, 0 to 4"),
    "negative digits": ("-2", "class -2 .*5 classes, 0 to 4"),
    "bool": (True, "True"),
    "bools": ([True, False], "True"),
    "float": (1.5, "float"),
    "floats": ([1.0, 2.0], r"1\.0"),
    "float tensor": (torch.tensor([1.5, 2.0]), r"1\.5"),
    "bool array": (np.array([True, False]), "True"),
    "numpy float": (np.float64(3.0), "float64"),
    "None in a list": ([None, 1], "None"),
    "dict": ({0: 1}, "dict"),
    "three axes": ([[[0], [1]], [[0], [1]]], r"\[0\]"),
    "unknown name": ("lnyx", "'lnyx'.*did you mean 'lynx'"),
    "unknown name among others": (["lynx", "tigercat"], "'tigercat'.*'tiger_cat'"),
    "ambiguous name": ("Crane", r"2 classes.*'Crane'.*\[3, 4\]"),
    "not quite digits": ("--5", "'--5'"),
    "a digit that is no number": ("²", "'²'"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("method", METHODS)
def test_a_target_that_cannot_be_meant_is_refused_before_anything_is_computed(
    method: str, case: str
) -> None:
    target, told = BAD[case]
    net = Net()
    with pytest.raises(tvc.InputError, match=told):
        explain(method, net, pictures(), target, classes=NAMES)
    assert net.runs == 0


@pytest.mark.parametrize("target", [5, -1, [4, 17], [[0, 1], [2, 9]], "5"])
@pytest.mark.parametrize("method", METHODS)
def test_without_class_names_the_range_is_the_outputs(method: str, target: Any) -> None:
    with pytest.raises(tvc.InputError, match=r"class (5|-1|17|9) .*5 classes, 0 to 4"):
        explain(method, Net(nn.Softmax(1)), pictures(), target)


def test_of_one_output_there_are_two_classes() -> None:
    with pytest.raises(tvc.InputError, match=r"class 2 .*2 classes, 0 to 1"):
        tvc.saliency(Net(torch.sigmoid, classes=1), pictures(), 2)


def test_one_image_is_spoken_of_in_the_singular() -> None:
    with pytest.raises(tvc.InputError, match=r"2 targets were given for 1 image;"):
        tvc.saliency(Net(), pictures(1, *SHAPE[1:]), [0, 1])


def test_a_name_needs_class_names() -> None:
    with pytest.raises(tvc.InputError, match=r"'lynx'.*not known"):
        tvc.saliency(Net(), pictures(), "lynx")


def test_a_model_knows_its_class_names_and_classes_overrides_them() -> None:
    model = tvc.Model(Net(), preprocess_by_name("rescale", SHAPE[1:]), SHAPE[1:], tuple(NAMES))
    x = pictures()
    assert tvc.saliency(model, x, "lynx").target.tolist() == [2, 2]
    other = ["a", "b", "c", "lynx", "e"]
    assert tvc.saliency(model, x, "lynx", classes=other).target.tolist() == [3, 3]
    assert tvc.saliency(model, x, "lynx").labels() == ["2 lynx", "2 lynx"]


@pytest.mark.parametrize("score", ["logits", "prob", None, 1])
def test_an_unknown_kind_of_score_is_refused(score: Any) -> None:
    with pytest.raises(tvc.InputError, match=r"'logit' or 'probability'"):
        tvc.saliency(Net(), pictures(), 0, score=score)


# ---- what a network may put out, and take --------------------------------------------------------


class Segmenter(nn.Module):
    """``(N, 4, H, W)`` scores, as a segmentation network gives them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.out = nn.Conv2d(3, 5, 3, padding=1).double(), nn.Conv2d(5, 4, 1).double()
        self.form = form

    def scores(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu())

    def forward(self, x: Tensor) -> Any:
        scores = self.scores(x)
        scores = scores.softmax(1) if "softmax" in self.form else scores
        return {"out": scores, "aux": scores.detach()} if "dict" in self.form else scores


@pytest.mark.parametrize("form", ["map", "map, softmax", "dict", "dict, softmax"])
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_a_map_of_scores_needs_a_callable(method: str, form: str) -> None:
    x, net = pictures(), Segmenter(form)
    for target in (None, 1, [0, 1]):
        with pytest.raises(tvc.InputError, match=r"\(2, 4, 8, 7\).*callable"):
            explain(method, net, x, target)

    def mean_of_class_2(out: Tensor) -> Tensor:
        return out[:, 2].mean((1, 2))

    found = explain(method, net, x, mean_of_class_2)
    close(found.score, mean_of_class_2(net.scores(x)).detach())
    if method == "saliency":
        close(found.values, autograd_saliency(lambda leaf: mean_of_class_2(net.scores(leaf)), x))


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one number for all": (lambda x: x.sum(), r"shape \(\) for 2 images"),
    "no batch axis": (lambda x: x.mean(0), r"shape \(5\) for 2 images"),
    "another number of rows": (lambda x: x.repeat(2, 1), r"shape \(4, 5\) for 2 images"),
    "nothing": (lambda x: None, "NoneType"),
    "a word": (lambda x: "cat", "str"),
    "a dict without scores": (lambda x: {"boxes": x}, "dict"),
    "an empty tuple": (lambda x: (), "tuple"),
}


@pytest.mark.parametrize("case", OUTPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_an_output_without_one_row_an_image_is_refused(method: str, case: str) -> None:
    end, told = OUTPUTS[case]
    if (
        method == "occlusion" and "images" in told
    ):  # which runs many variants of the two images at a time
        shape = told.partition(" for ")[0].replace("4, 5", r"\d+, 5")
        told = shape + r" for \d+ variants of 2 images"
    for target in (0, None, lambda out: out[:, 0]):
        with pytest.raises(tvc.InputError, match=told):
            explain(method, Net(end), pictures(), target)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_without_a_batch_axis_is_refused(method: str) -> None:
    with pytest.raises(tvc.InputError, match=r"\(3, 8, 7\).*batch axis.*\[None\]"):
        explain(method, Net(), pictures()[0], 0)
    model = tvc.Model(Net(), preprocess_by_name("rescale", SHAPE[1:]), SHAPE[1:])
    with pytest.raises(tvc.InputError, match=r"\(N, 3, 8, 7\), not \(3, 8, 7\)"):
        explain(method, model, pictures()[0], 0)


INPUTS: dict[str, tuple[Any, str]] = {
    "float32": (pictures().float(), "float64.*float32"),
    "half": (pictures().half(), "float64.*float16"),
    "bytes": (torch.zeros(SHAPE, dtype=torch.uint8), "floating point.*uint8"),
    "integers": (torch.zeros(SHAPE, dtype=torch.int64), "floating point.*int64"),
    "another device": (pictures().to("meta"), "cpu.*meta"),
    "array": (pictures().numpy(), "ndarray"),
    "list": ([[1.0]], "list"),
    "two axes": (pictures()[0, 0], r"\(8, 7\)"),
    "five axes": (pictures()[None], r"\(1, 2, 3, 8, 7\)"),
    "no image": (pictures()[:0], r"\(0, 3, 8, 7\)"),
    "no pixels": (pictures()[:, :, :0], r"\(2, 3, 0, 7\)"),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_do_not_fit_are_refused_before_anything_is_computed(
    method: str, case: str
) -> None:
    x, told = INPUTS[case]
    net = Net()
    with pytest.raises(tvc.InputError, match=told):
        explain(method, net, x, 0)
    assert net.runs == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_model_refuses_another_number_of_channels(method: str) -> None:
    model = tvc.Model(Net(), preprocess_by_name("rescale", SHAPE[1:]), SHAPE[1:])
    with pytest.raises(tvc.InputError, match=r"\(N, 3, 8, 7\), not \(2, 4, 8, 7\)"):
        explain(method, model, pictures(2, 4, 8, 7), 0)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_network_is_refused(method: str) -> None:
    with pytest.raises(tvc.InputError, match=r"Module.*function"):
        explain(method, lambda x: x, pictures(), 0)


@pytest.mark.parametrize("method", METHODS)
def test_too_few_class_names_are_refused_with_both_numbers(method: str) -> None:
    with pytest.raises(tvc.InputError, match="2 class names are known for a network of 5 classes"):
        tvc.METHODS[method](Net(), pictures(), classes=["a", "b"])
        tvc.METHODS[method](Net(), pictures(), classes=["a", "b"])


@pytest.mark.parametrize("method", METHODS)
def test_too_few_class_names_are_refused_of_pictures_that_are_run_one_by_one(method: str) -> None:
    with pytest.raises(tvc.InputError, match="2 class names are known for a network of 5 classes"):
        tvc.METHODS[method](Net(), pictures(), 1, classes=["a", "b"], batch_size=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_networks_own_attributes_are_not_taken_for_a_models(method: str) -> None:
    plain, own = Net(), Net()
    own.load_state_dict(plain.state_dict())
    own.classes, own.input_size, own.source, own.view = 10, 28, "mine", nn.Flatten()
    expected = tvc.METHODS[method](plain, pictures(), 1)
    result = tvc.METHODS[method](own, pictures(), 1)
    torch.testing.assert_close(result.values, expected.values)
    assert result.view is None
    assert tvc.layers(own).network == "Net"


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_nan_or_infinity_are_refused(method: str) -> None:
    for bad in (float("nan"), float("inf")):
        x = pictures()
        x[1, 2, 3, 4] = bad
        net = Net()
        with pytest.raises(tvc.InputError, match="NaN or infinite"):
            explain(method, net, x, 0)
        assert net.runs == 0


def test_only_numbers_that_are_not_finite_are_refused_whatever_their_sum() -> None:
    module = nn.Identity()
    largest = torch.finfo(torch.float64).max
    for good in (largest, -largest, 0.0):  # sums of the largest overflow
        check_inputs(module, module, torch.full((1, 3, 4, 4), good, dtype=torch.float64))
    cancelling = torch.zeros(1, 3, 4, 4)
    cancelling[0, 0, 0, 0], cancelling[0, 1, 2, 3] = float("inf"), -float("inf")
    hidden = torch.full((1, 3, 4, 4), 3e38)
    hidden[0, 2, 3, 3] = float("nan")
    for bad in (cancelling, hidden):
        with pytest.raises(tvc.InputError, match="NaN or infinite"):
            check_inputs(module, module, bad)


@pytest.mark.parametrize("method", METHODS)
def test_a_bare_networks_wrong_channels_are_told_with_the_layers_name(method: str) -> None:
    for count in (1, 4):
        told = (
            rf"\(N, {count}, 8, 7\): the layer 'conv1' takes 3 channels and is reached by {count}"
        )
        with pytest.raises(tvc.InputError, match=told):
            explain(method, Net(), pictures(2, count, 8, 7), 0)


def test_a_size_a_dense_layer_cannot_take_is_told_with_its_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(60, 4)).double()
    assert tvc.saliency(net, pictures(), 0).values.shape == SHAPE
    with pytest.raises(tvc.InputError, match=r"the layer '2' takes 60 features .* by 70"):
        tvc.saliency(net, pictures(2, 3, 9, 7), 0)
    with pytest.raises(tvc.InputError, match=r"the layer '2' takes 60 features .* by 70"):
        tvc.activations(net, pictures(2, 3, 9, 7))
    with pytest.raises(tvc.InputError, match=r"the layer '2' takes 60 features .* by 70"):
        tvc.layers(net, (3, 9, 7))


def test_a_networks_own_error_stays_what_it_is() -> None:
    class Failing(Net):
        def forward(self, x: Tensor) -> Any:
            self.logits(x)
            raise RuntimeError("out of coffee")

    with pytest.raises(RuntimeError, match="out of coffee") as caught:
        tvc.saliency(Failing(), pictures(), 0)
    assert not isinstance(caught.value, tvc.InputError)


# ---- heads of which one class is taken, or whose softmax cannot be seen ---------------------------

ODDS: dict[str, Callable[[Tensor], Any]] = {
    "softmax, class 1": lambda x: x.softmax(1)[:, 1],
    "softmax, class 1, axis kept": lambda x: F.softmax(x, 1)[:, 1:2],
    "select": lambda x: x.softmax(1).select(1, 1),
    "log softmax, class 1": lambda x: x.log_softmax(1)[:, 1],
    "split": lambda x: x.softmax(1).split([1, x.shape[1] - 1], 1)[1][:, 0],
    "unbind": lambda x: x.softmax(1).unbind(1)[1],
    "hsplit": lambda x: x.softmax(1).hsplit([1, 2])[1],
    "tensor_split": lambda x: torch.tensor_split(x.softmax(1), [1, 2], 1)[1],
    "index_select": lambda x: torch.index_select(x.softmax(1), 1, torch.tensor([1])),
}


@pytest.mark.parametrize("end", ODDS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_of_one_class_of_a_softmax_the_score_is_its_log_odds(
    method: str, classes: int, end: str
) -> None:
    """log p/(1 − p), which for two classes is the difference of their scores."""
    x, net = pictures(), Net(ODDS[end], classes)
    chance = net.logits(x).softmax(1)[:, 1].detach()
    other = Net(None, classes)

    def odds(z: Tensor) -> Tensor:
        if classes == 2:
            return z[:, 1] - z[:, 0]
        return z[:, 1] - z[:, [0, 2]].exp().sum(1).log()

    wanted = explain(method, other, x, odds)
    for target, sign in ((1, 1), (0, -1)):
        found = explain(method, net, x, target)
        close(found.score, sign * wanted.score)
        close(found.values, sign * wanted.values)
    assert explain(method, net, x).target.tolist() == (chance > 0.5).long().tolist()
    likely = explain(method, net, x, 1, score="probability").score
    close(likely, chance)


SPELT_OUT: dict[str, Callable[[Tensor], Any]] = {
    "exponentials over their sum": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "normalised after the softmax": lambda x: (
        x.softmax(1) * 2 / (x.softmax(1) * 2).sum(1, keepdim=True)
    ),
}


@pytest.mark.parametrize("end", SPELT_OUT)
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_of_a_softmax_that_cannot_be_seen_the_log_probability_is_explained_and_said(
    method: str, end: str
) -> None:
    x, net = pictures(), Net(SPELT_OUT[end])
    wanted = explain(method, Net(), x, lambda z: z.log_softmax(1)[:, 3])
    with pytest.warns(UserWarning, match="logarithm of the probability"):
        found = explain(method, net, x, 3)
    close(found.score, wanted.score)
    close(found.values, wanted.values)
    again = explain(method, net, x, 3)  # said once
    close(again.values, wanted.values)
    likely = explain(method, net, x, 3, score="probability")
    close(likely.score, Net().logits(x).softmax(1)[:, 3].detach())


def test_a_probability_that_has_become_0_has_a_logarithm_too() -> None:
    """exp(−150) is 0 in single precision, of which the logarithm would be no number."""
    scores = torch.tensor([[0.0, -150.0]])
    net = End(lambda x: SPELT_OUT["exponentials over their sum"](scores + 0 * x.mean()))
    with pytest.warns(UserWarning, match="logarithm of the probability"):
        found = tvc.saliency(net, pictures(1, *SHAPE[1:]).float(), 1)
    assert float(found.score) == pytest.approx(math.log(torch.finfo(torch.float32).tiny))


# What is done to the results cannot be followed, or what they were made of are no rows of scores.
UNSEEN: dict[str, Callable[[Tensor], Any]] = {
    "softmax, turned": lambda x: x.t().softmax(0).as_strided((2, 5), (1, 2)),
    "sigmoid, turned": lambda x: x.t().sigmoid().as_strided((2, 5), (5, 1)),
    "softmax over maps, some classes": lambda x: x[:, :, None, None].softmax(1)[:, :3, 0, 0],
    "softmax of other pictures, too": lambda x: torch.cat([x, -x]).softmax(1)[:2],
}


@pytest.mark.filterwarnings("ignore:this network puts out probabilities")
@pytest.mark.parametrize("end", UNSEEN)
@pytest.mark.parametrize("method", ["saliency", "grad_cam"])
def test_scores_that_cannot_be_found_are_not_guessed(method: str, end: str) -> None:
    """Of what is put out the logarithm is explained where it sums to 1, else it as it is."""
    x, net = pictures(), Net(UNSEEN[end])
    of_all = bool((net(x).sum(1) - 1).abs().max() < 1e-9)

    def score(z: Tensor) -> Tensor:
        own = UNSEEN[end](z)[:, 1]
        return own.log() if of_all else own

    wanted = explain(method, Net(), x, score)
    found = explain(method, net, x, 1)
    close(found.score, wanted.score)
    close(found.values, wanted.values)


def test_of_one_picture_some_classes_that_could_not_be_followed_are_no_softmax_of_all() -> None:
    x = pictures(1, *SHAPE[1:])
    net = Net(lambda z: z.softmax(1).as_strided((1, 3), (3, 1)))
    close(tvc.saliency(net, x, 2).score, net(x)[:, 2].detach())


@pytest.mark.parametrize("end", [lambda x: x.softmax(1)[:, :3], lambda x: x])
def test_a_network_is_run_once_whatever_follows_its_softmax(end: Any) -> None:
    x, net = pictures(), Net(end)
    tvc.saliency(net, x, 1)
    tvc.saliency(net, x, 1)
    net.runs = 0
    tvc.saliency(net, x, 1)
    assert net.runs == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_single_picture_may_lose_its_batch_axis_to_squeeze(method: str) -> None:
    x = pictures(1, 3, 8, 7)
    squeezed = Net(lambda z: torch.sigmoid(z).squeeze(), 1)
    wanted = explain(method, Net(torch.sigmoid, 1), x, 1)
    found = explain(method, squeezed, x, 1)
    close(found.score, wanted.score)
    close(found.values, wanted.values)


def test_a_class_number_no_network_has_is_out_of_range() -> None:
    with pytest.raises(tvc.InputError, match=r"class 9{20} is out of range"):
        tvc.saliency(Net(), pictures(), int("9" * 20))
    with pytest.raises(tvc.InputError, match=r"class 9{20} is out of range"):
        tvc.saliency(Net(), pictures(), "9" * 20)


def test_class_names_may_come_as_an_array() -> None:
    names = np.array(["a", "b", "c", "d", "e"])
    assert tvc.saliency(Net(), pictures(), "c", classes=names).target.tolist() == [2, 2]
    with pytest.raises(tvc.InputError, match="they are called a, b, c, d, e"):
        tvc.saliency(Net(), pictures(), "zebra", classes=names)


# ---- what a result keeps -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_result_keeps_neither_network_nor_pictures_and_can_be_stored(method: str) -> None:
    preprocess = preprocess_by_name("rescale", SHAPE[1:])
    big = Net()
    big.ballast = nn.Parameter(torch.zeros(2_000_000).double())
    model = tvc.Model(big, preprocess, SHAPE[1:])
    options = {"layer": "conv1"} if "cam" in method else {}
    result = explain(method, model, pictures(), 0, **options)
    stored = pickle.dumps(result)
    assert len(stored) < 100_000
    gone = weakref.ref(big)
    del big, model
    gc.collect()
    assert gone() is None
    loaded = pickle.loads(stored)
    for align in ("stretch", "receptive_field"):
        close(loaded.heatmap(align), result.heatmap(align))
    assert loaded.view(Image.new("RGB", (30, 20))).size == (30, 20)


def test_a_model_may_prepare_its_pictures_by_any_function() -> None:
    model = tvc.Model(Net(), lambda picture: pictures(1, 3, 8, 7), SHAPE[1:])
    picture = Image.effect_noise((21, 24), 50)
    result = tvc.grad_cam(model, model.prepare(picture), 0)
    assert result.overlay(picture).size == (21, 24)
    assert model.view(picture).size == (21, 24)


# ---- networks that cannot be looked into yet -----------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_lazy_network_is_asked_to_run_first(method: str) -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5)).double()
    with pytest.raises(tvc.InputError, match=r"Lazy\w+ of this network is lazy.*run the network"):
        explain(method, lazy, pictures(), 0)
    with pytest.raises(tvc.InputError, match="is lazy"):
        tvc.layers(lazy)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_part_is_refused(method: str) -> None:
    part = torch.jit.script(nn.Conv2d(3, 4, 3))
    net = nn.Sequential(part, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).double()
    net(pictures())
    with pytest.raises(tvc.InputError, match="a part of this network is TorchScript"):
        explain(method, net, pictures(), 0)


def test_the_default_layer_refuses_what_a_method_refuses() -> None:
    for bad, told in [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point"),
        ([[1.0]], "must be a tensor"),
        (pictures(1, 4, 8, 7), "takes 3 channels"),
    ]:
        with pytest.raises(tvc.InputError, match=told):
            tvc.default_layer(Net(), bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["3x8x8", (3,), (3, 0, 8), (3, 8.5, 8), torch.zeros(3), 8])
def test_an_input_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(tvc.InputError, match="input_size must be"):
        tvc.layers(Net(), size)


class Moody(Net):
    """What it does with its scores changes from call to call."""

    MOODS: ClassVar = {
        "plain": lambda x: x,
        "softmax": lambda x: x.softmax(1),
        "spelt out": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        "some classes": lambda x: x.softmax(1)[:, :3],
    }

    def now(self, mood: str) -> None:
        self.end.become(self.MOODS[mood])

    def wanted(self, mood: str, x: Tensor) -> Tensor:
        z = self.logits(x).detach()
        others = z[:, [0, 2, 3, 4]].logsumexp(1)
        return {
            "plain": z[:, 1],
            "softmax": z[:, 1],
            "spelt out": z.log_softmax(1)[:, 1],
            "some classes": z[:, 1] - others,
        }[mood]


@pytest.mark.filterwarnings("ignore:this network puts out probabilities")
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
@pytest.mark.parametrize("first", Moody.MOODS)
def test_what_a_network_did_before_does_not_mislead(method: str, first: str) -> None:
    x = pictures()
    for second in Moody.MOODS:
        net = Moody()
        for mood in (first, second, first):
            net.now(mood)
            close(explain(method, net, x, 1).score, net.wanted(mood, x))


@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_of_some_classes_of_a_softmax_the_probabilities_are_the_networks_own(kind: str) -> None:
    x = pictures()
    net = Net(lambda z: getattr(z, kind)(1)[:, :3])
    chances = net.logits(x).softmax(1).detach()
    close(tvc.saliency(net, x, 2, score="probability").score, chances[:, 2])
    hidden = tvc.occlusion(net, x, 2, window=x.shape[2:], stride=1).hidden_probability()
    close(hidden[:, 0, 0], net.logits(0 * x).softmax(1)[:, 2].detach())


def test_a_softmax_written_over_in_place_is_a_sentence() -> None:
    net = Net(lambda z: z.softmax(1).mul_(0.5))
    with pytest.raises(tvc.InputError, match="writes into a tensor that its own gradient needs"):
        tvc.saliency(net, pictures(), 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_pictures_softmax_may_lose_its_batch_axis(method: str) -> None:
    x = pictures(1, 3, 8, 7)
    found = explain(method, Net(lambda z: z.softmax(1).squeeze()), x, 3)
    wanted = explain(method, Net(nn.Softmax(1)), x, 3)
    close(found.score, wanted.score)
    close(found.values, wanted.values)


class Together(Net):
    """Takes two pictures at once and no other number: it squeezes, then normalises the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8).double()
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        maps = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.norm(maps.mean((2, 3), keepdim=True).squeeze()))


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_grad_cam_runs_a_network_as_it_is_given_pictures(layer: str | None) -> None:
    x, net = pictures(), Together()
    found = tvc.grad_cam(net, x, [1, 4], layer=layer, relu=False)
    same = Net()
    same.norm = net.norm
    same.load_state_dict(net.state_dict())
    same.logits = lambda x: same.fc(  # type: ignore[method-assign]
        same.norm(same.relu2(same.conv2(same.relu1(same.conv1(x)))).mean((2, 3)))
    )
    close(found.values, tvc.grad_cam(same, x, [1, 4], layer=layer, relu=False).values)


@pytest.mark.parametrize("layer", ["conv2", "relu1"])
def test_with_a_named_layer_grad_cam_is_one_forward_pass_from_the_first_call_on(layer: str) -> None:
    net = Net()
    for index, size in enumerate([(8, 7), (9, 7), (9, 9)]):
        result = tvc.grad_cam(net, pictures(2, 3, *size), 1, layer=layer)
        assert net.runs == index + 1
        assert result.heatmap("receptive_field").shape == (2, *size)


@pytest.mark.parametrize(
    ("layer", "error"),
    [
        (nn.Conv2d(3, 3, 1, dtype=torch.float32), "double|Double"),
        (nn.Linear(7, 7, dtype=torch.float32), "dtype|Double|Float"),
    ],
)
def test_errors_that_are_not_about_sizes_are_not_said_to_be(layer: nn.Module, error: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1).double(), layer, nn.Flatten())
    with pytest.raises(RuntimeError, match=error) as caught:
        tvc.saliency(net, pictures(), 0)
    assert not isinstance(caught.value, tvc.InputError)


def test_a_users_hook_that_fails_is_not_said_to_be_about_sizes() -> None:
    def hook(*_: object) -> None:
        raise RuntimeError("no channels in my hook")

    net = Net()
    net.conv1.register_forward_hook(hook)
    with pytest.raises(RuntimeError, match="no channels in my hook") as caught:
        tvc.saliency(net, pictures(), 0)
    assert not isinstance(caught.value, tvc.InputError)
    assert net.runs == 1  # nobody ran it again to find out
