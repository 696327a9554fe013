"""Score-CAM beside its formula; variants of pictures in lower precision and another layout."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from tests.networks import Gray, Headed, Repeated, pictures, plain, randomised
from tests.test_promises import nothing_changes, residual


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


class Sizes:
    """The pictures that went through a network, and how many at once."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: list[Tensor] = []
        net.register_forward_pre_hook(lambda module, args: self.seen.append(args[0].detach()))


def twin(net: nn.Module, maps: Tensor, x: Tensor, score: Any) -> Tensor:
    """The formula, one picture and one channel at a time."""
    out = torch.zeros(len(x), *maps.shape[2:], dtype=x.dtype)
    for n in range(len(x)):
        scores = []
        for k in range(maps.shape[1]):
            up = F.interpolate(
                maps[n : n + 1, k : k + 1], x.shape[2:], mode="bilinear", align_corners=False
            )
            span = up.max() - up.min()
            mask = (up - up.min()) / span if span else torch.zeros_like(up)
            with torch.no_grad():
                scores.append(score(net(x[n : n + 1] * mask))[0])
        top = max(scores)
        powers = [(each - top).exp() for each in scores]
        for k, power in enumerate(powers):
            out[n] += power / sum(powers) * maps[n, k]
    return out


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool1", "relu2"])
def test_score_cam_is_its_formula(layer):
    net, x = randomised(plain(), seed=2), pictures(2)
    maps = tvc.activations(net, x, layer)[layer]
    for c in range(4):
        wanted = twin(net, maps, x, lambda scores, c=c: scores[:, c])
        close(tvc.score_cam(net, x, c, layer=layer, relu=False).values, wanted)
        close(tvc.score_cam(net, x, c, layer=layer).values, wanted.clamp(min=0))


def test_of_probabilities_score_cam_is_its_formula():
    net, x = randomised(Headed(nn.Softmax(1)), seed=2), pictures(2)
    maps = tvc.activations(net, x, "body.relu2")["body.relu2"]
    wanted = twin(net, maps, x, lambda scores: scores[:, 3])
    found = tvc.score_cam(net, x, 3, layer="body.relu2", score="probability")
    close(found.values, wanted)


def test_every_target_of_every_image_comes_from_the_same_passes():
    net, x = residual(), pictures(3)
    sizes = Sizes(net)
    targets = [[0, 1, 2], [3, 3, 0], [2, 1, 0]]
    found = tvc.score_cam(net, x, targets, layer="conv3", relu=False)
    assert sum(map(len, sizes.seen)) == 3 + 3 * 8
    for n in range(3):
        for k in range(3):
            one = tvc.score_cam(net, x[n : n + 1], targets[n][k], layer="conv3", relu=False)
            close(found.values[n, k], one.values[0])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("kind", ["top", "several", "callable"])
def test_any_batch_size_gives_the_same_and_is_kept_to(batch_size, kind):
    net, x = residual(), pictures(3)
    rows = torch.arange(3)
    target: Any = {
        "top": None,
        "several": [[0, 1], [2, 3], [3, 1]],
        "callable": lambda out: out[rows, rows],
    }[kind]
    wanted = tvc.score_cam(net, x, target, relu=False)
    sizes = Sizes(net)
    found = tvc.score_cam(net, x, target, relu=False, batch_size=batch_size)
    assert max(map(len, sizes.seen)) <= (max(3, batch_size) if kind == "callable" else batch_size)
    close(found.values, wanted.values)


def test_a_constant_map_shows_an_empty_picture_and_no_nan():
    net, x = randomised(plain(), seed=2), pictures(2)
    with torch.no_grad():
        net.conv2.bias[:3] = -100
    sizes = Sizes(net)
    found = tvc.score_cam(net, x, 1, layer="relu2", relu=False)
    variants = torch.cat(sizes.seen[1:])
    assert not variants[:6].any()
    assert variants[6:].flatten(1).abs().amax(1).min() > 0
    maps = tvc.activations(net, x, "relu2")["relu2"]
    close(found.values, twin(net, maps, x, lambda scores: scores[:, 1]))


def test_the_run_of_a_layer_may_be_named():
    net, x = randomised(Repeated()), pictures(2)
    maps = tvc.activations(net, x, ["relu@1", "relu@2"])
    for name, layer in (("relu@1", "relu@1"), ("relu@2", "relu")):
        wanted = twin(net, maps[name], x, lambda scores: scores[:, 1])
        close(tvc.score_cam(net, x, 1, layer=layer).values, wanted)


def test_pictures_without_a_channel_axis():
    net, x = randomised(Gray()), pictures(2, channels=1)
    maps = tvc.activations(net, x[:, 0], "net.relu2")["net.relu2"]
    wanted = twin(net.net, maps, x, lambda scores: scores[:, 1])
    close(tvc.score_cam(net, x[:, 0], 1, layer="net.relu2").values, wanted)


# ---- how variants are run -------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {"occlusion": {"window": 5, "stride": 3}, "score_cam": {}}
every_method = pytest.mark.parametrize("method", VARIANTS)


def ranks(values: Tensor) -> Tensor:
    return values.flatten().argsort().argsort().double()


@every_method
def test_a_lower_precision_is_used_and_the_answer_stays_in_single(method):
    net, x = randomised(plain(), seed=2).float(), pictures(2).float()
    seen: list[torch.dtype] = []
    net.conv2.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    wanted = tvc.METHODS[method](net, x, [[0, 1], [2, 3]], **VARIANTS[method])
    assert set(seen) == {torch.float32}
    seen.clear()
    with nothing_changes(net, x):
        found = tvc.METHODS[method](
            net, x, [[0, 1], [2, 3]], dtype=torch.bfloat16, **VARIANTS[method]
        )
    assert torch.bfloat16 in seen
    assert found.values.dtype == found.score.dtype == torch.float32
    assert not torch.equal(found.values, wanted.values)
    assert torch.corrcoef(torch.stack([ranks(found.values), ranks(wanted.values)]))[0, 1] > 0.95
    assert found.manifest()["parameters"]["dtype"] == "bfloat16"
    assert "dtype" not in wanted.manifest()["parameters"]


@every_method
@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.float64, "bfloat16, torch.float16 or None"), ("bfloat16", "must be torch.bfloat16")],
)
def test_other_precisions_are_refused(method, dtype, words):
    with pytest.raises(tvc.InputError, match=words):
        tvc.METHODS[method](residual().float(), pictures().float(), 1, dtype=dtype)


@every_method
def test_a_double_network_is_not_run_in_less(method):
    with pytest.raises(tvc.InputError, match=r"torch.float32, not torch.float64"):
        tvc.METHODS[method](residual(), pictures(), 1, dtype=torch.bfloat16)


def test_the_incremental_engine_has_no_lower_precision():
    with pytest.raises(tvc.InputError, match="engine='dense'"):
        tvc.occlusion(
            residual().float(), pictures().float(), 1, engine="incremental", dtype=torch.bfloat16
        )


class Viewing(nn.Module):
    """Flattens by ``view``, which channels-last maps refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6 * 12 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.fc(x.view(x.shape[0], -1))


@every_method
def test_a_network_that_views_its_maps_is_run_channels_first(method):
    net, x = randomised(Viewing()), pictures(2)
    options = VARIANTS[method]
    wanted = tvc.METHODS[method](net, x, 1, **options)
    with pytest.raises(RuntimeError, match="view size"), torch.no_grad():
        net.float()(x.float().contiguous(memory_format=torch.channels_last))
    for _ in range(2):
        found = tvc.METHODS[method](net, x.float(), 1, **options)
        torch.testing.assert_close(found.values.double(), wanted.values, rtol=1e-4, atol=1e-5)


@every_method
def test_another_error_of_the_network_is_its_own(method):
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) <= 2:
                return x
            raise RuntimeError("out of luck")

    net = randomised(nn.Sequential(OrderedDict(own=Failing(), net=plain()))).float()
    with pytest.raises(RuntimeError, match="out of luck"):
        tvc.METHODS[method](net, pictures(2).float(), 1, **VARIANTS[method])


@every_method
def test_variants_run_without_a_graph_and_a_callable_may_write_into_their_scores(method):
    net, x = residual(), pictures(2)
    modes: list[bool] = []
    net.fc.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))

    def changing(scores: Tensor) -> Tensor:
        return scores.mul_(2)[:, 1]  # refused by inference tensors

    found = tvc.METHODS[method](net, x, 1, **VARIANTS[method])
    assert not modes[-1]
    assert not found.values.is_inference()
    assert not found.values.requires_grad
    doubled = tvc.METHODS[method](net, x, changing, **VARIANTS[method])
    assert doubled.score.tolist() == (2 * found.score).tolist()
