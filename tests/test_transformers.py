"""Networks that compute on tokens, or on maps whose channels come last."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import pictures, randomised
from torchviz_cnn.errors import NotApplicable


class Mixing(nn.Module):
    """Maps with the channels last between two convolutions, as in Swin and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, stride=4)
        self.mix = nn.Linear(24, 24)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(24, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.mix(self.stem(x).permute(0, 2, 3, 1)))
        return self.last(maps.permute(0, 3, 1, 2)).square().mean((2, 3))


METHODS = {
    "grad_cam": lambda maps, slopes: maps * slopes.mean((1, 2), keepdim=True),
    "hires_cam": lambda maps, slopes: maps * slopes,
    "layer_cam": lambda maps, slopes: maps * slopes.relu(),
}


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (24, 32)])
@pytest.mark.parametrize("method", METHODS)
def test_maps_with_the_channels_last_are_weighed_by_channel(method, size):
    net, x = randomised(Mixing()), pictures(2, 3, *size)
    seen: list[Tensor] = []

    def watched(_module: nn.Module, _inputs: object, maps: Tensor) -> Tensor:
        seen.append(maps)
        return maps.clone()  # a ReLU in place follows

    handle = net.mix.register_forward_hook(watched)
    score = net(x)[[0, 1], [4, 2]].sum()
    handle.remove()
    (slopes,) = torch.autograd.grad(score, seen[0])
    wanted = METHODS[method](seen[0], slopes).sum(3).detach()
    kinds = {"one": getattr(tvc, method)(net, x, [4, 2], layer="mix", relu=False)}
    kinds["shared"] = tvc.explain(net, x, [4, 2], methods=[method, "saliency"], layer="mix")[method]
    torch.testing.assert_close(kinds["one"].values, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kinds["shared"].values, wanted.relu(), rtol=1e-10, atol=1e-12)
    assert kinds["one"].heatmap().shape == (2, *size)


def test_maps_that_no_layer_works_along_have_their_channels_first():
    """Shaped as 16 channels in the last place would be, but no layer works on 16 features."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, (4, 2), (4, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 16, 5)),
    )
    x = pictures(1, 3, 32, 32)
    assert tvc.grad_cam(randomised(net), x, 1, layer="1").values.shape == (1, 8, 16)


def test_a_transformers_patches_are_no_default_layer():
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
    with pytest.raises(NotApplicable, match=r"'conv_proj', says .* do; use saliency"):
        tvc.grad_cam(vit, torch.rand(1, 3, 32, 32))
    swin = torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 2], [4, 4], num_classes=4)
    with pytest.raises(NotApplicable, match=r"name a later layer, such as 'permute', or use sal"):
        tvc.default_layer(swin, torch.rand(1, 3, 64, 64))
    assert tvc.grad_cam(swin, torch.rand(1, 3, 64, 64), layer="permute").values.shape == (1, 8, 8)


def test_the_keys_of_an_attention_are_no_maps_to_name_instead():
    """They have four axes as well: pictures, heads, tokens and the numbers of each."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, stride=4)
            self.mix = nn.Sequential(*(nn.Linear(16, 16) for _ in range(12)))
            self.keys = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.mix(self.patches(x).flatten(2).transpose(1, 2))
            heads = self.keys(tokens.unflatten(2, (4, 4)).transpose(1, 2))
            return heads.transpose(1, 2).flatten(2).mean(1)

    with pytest.raises(NotApplicable, match=r"'patches', says .* do; use saliency or occlusion$"):
        tvc.default_layer(randomised(Attention()).float(), torch.rand(1, 3, 32, 48))


def test_a_large_classifier_or_a_head_over_time_is_none():
    """Most multiply-adds follow the convolutions, but of one row an image."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(4 * 14 * 14, 512), nn.ReLU(), nn.Linear(512, 3)),
    )
    assert tvc.default_layer(net, torch.rand(1, 3, 16, 16)) == "1"
    over_time = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1), nn.Flatten(1, 2)),
        *(nn.Linear(16, 16), nn.Flatten(), nn.Linear(8 * 16 * 16, 3)),
    )
    assert tvc.default_layer(over_time, torch.rand(1, 3, 16, 16)) == "1"
