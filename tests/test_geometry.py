"""Where the cells of a map lie on the picture, against the gradient of one unit."""

import numpy as np
import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from torchviz_cnn.tracing import place_of_layer, watch


def seen_from(module, layer, size, cell):
    """The middle of the pixels that one unit depends on: the support of its gradient.

    Over many pictures at once, because max pooling passes on one pixel of each only.
    """
    x = torch.rand(200, *size, dtype=torch.float64, requires_grad=True)
    with tvc.capture(module, layer, gradients=True) as seen:
        module(x)
    unit = seen[layer][:, :, cell[0], cell[1]].sum()
    (gradient,) = torch.autograd.grad(unit, x)
    ys, xs = torch.nonzero(gradient.abs().sum((0, 1)), as_tuple=True)
    return (
        (ys.min().item() + ys.max().item() + 1) / 2,
        (xs.min().item() + xs.max().item() + 1) / 2,
    )


def positive(module):
    """Weights above zero, so that no unit is silent and no contribution cancels."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    return module.double().eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 5, stride=2, padding=1)
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.down = nn.Conv2d(3, 3, 1)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, x):
        x = self.stem(x).relu_()
        x = torch.cat([self.a(x).relu() + self.down(x), x], 1)
        return self.pool(x)


NETS = {
    "valid convolutions and pooling": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3)),
        "3",
    ),
    "stride, dilation and uneven windows": (
        nn.Sequential(
            nn.Conv2d(1, 2, (3, 5), stride=(2, 1), dilation=(1, 2), padding=(0, 2)),
            nn.Conv2d(2, 2, (1, 3), stride=(1, 2)),
        ),
        "1",
    ),
    "average pooling": (nn.Sequential(nn.AvgPool2d(4, stride=3), nn.Conv2d(1, 1, 3)), "1"),
    "padding of its own": (
        nn.Sequential(nn.ZeroPad2d((3, 0, 1, 0)), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        "2",
    ),
    "residual and concatenation": (Residual(), "pool"),
    "transposed convolution": (
        nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.ConvTranspose2d(2, 2, 3, stride=3)),
        "1",
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("cell", [(3, 4), (4, 3)])
def test_a_cell_lies_in_the_middle_of_what_it_sees(name, cell):
    module, layer = NETS[name]
    module = positive(module)
    size = (1, 40, 46)
    place = place_of_layer(module, layer, watch(module, torch.zeros(1, *size, dtype=torch.float64)))
    if name == "transposed convolution":  # takes whole blocks: look at a block's middle cell
        cell = (4, 4)
    centre = tuple(c + s * i for c, s, i in zip(place.centre, place.step, cell, strict=True))
    assert centre == pytest.approx(seen_from(module, layer, size, cell))


def test_an_aligned_heat_map_puts_a_lone_active_cell_where_it_looks():
    """One bright pixel; a 1×1-after-valid network answers in one cell; the map peaks at the pixel."""
    conv = nn.Conv2d(1, 1, 5, bias=False)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 2, 2] = 1.0  # answers exactly where its middle is bright
    module = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1)).double()
    nn.init.ones_(module[3].weight)
    x = torch.zeros(1, 1, 20, 24, dtype=torch.float64)
    x[0, 0, 9, 20] = 1
    result = tvc.grad_cam(module, x, target=1, layer="0")
    aligned = result.heatmap("receptive_field")[0]
    assert aligned[9, 20] == 1
    assert aligned.sum() == pytest.approx(1.0)
    stretched = result.heatmap()[0]
    assert divmod(int(stretched.argmax()), 24) != (9, 20)


def between(values, centre, step, length):
    """Numbers at places along the first axis, at the middle of each pixel; 0 beyond half a step."""
    places = centre + step * np.arange(len(values))
    pixels = np.arange(length) + 0.5
    found = np.stack([np.interp(pixels, places, column) for column in values.T], 1)
    found[(pixels < places[0] - step / 2) | (pixels > places[-1] + step / 2)] = 0
    return found


def test_an_aligned_heat_map_is_interpolated_between_cells_and_ends_half_a_step_beyond():
    """Rows reach to the middle of a pixel, columns to a pixel's edge."""
    module = nn.Sequential(
        nn.Conv2d(1, 3, (5, 7), stride=(2, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    x = torch.randn(2, 1, 20, 24, dtype=torch.float64)
    result = tvc.grad_cam(module, x, target=1, layer="0", relu=False)
    assert result.values.shape == (2, 8, 6)
    for values, found in zip(result.values, result.maps("receptive_field"), strict=True):
        rows = between(values.numpy(), 2.5, 2, 20)
        wanted = between(rows.T, 3.5, 3, 24).T
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-15)
        assert (wanted[1:18, 2:20] != 0).all()
        assert np.count_nonzero(wanted) == 17 * 18


def test_a_layer_whose_place_is_not_known_says_so():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.after = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.after(self.conv(x).transpose(2, 3)).mean((2, 3))

    result = tvc.grad_cam(Turned(), torch.rand(1, 1, 9, 12), layer="after")
    with pytest.raises(tvc.InputError, match="use align='stretch'"):
        result.heatmap("receptive_field")
    with pytest.raises(tvc.InputError, match="align must be"):
        result.heatmap("middle")
    assert result.heatmap().shape == (1, 9, 12)
