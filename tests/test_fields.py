"""What a unit sees, against published numbers and the support of its gradient."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

import torchviz_cnn as tvc
from tests.test_geometry import NETS, Residual, positive
from torchviz_cnn import fields as fields_room
from torchviz_cnn.fields import fields_table, receptive_fields

# Araujo, Norris, Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", and
# counted by hand for torchvision's ResNets, whose stride is in the 3×3 convolution.
PUBLISHED = [
    ("vgg16", "features.28", 196),
    ("vgg16", "features.30", 212),
    ("alexnet", "features.12", 195),
    ("resnet18", "layer4", 435),
    ("resnet50", "layer4", 427),
    ("densenet121", "features", 2071),
]


@pytest.mark.parametrize(("name", "layer", "side"), PUBLISHED)
def test_known_receptive_fields(name, layer, side):
    with torch.device("meta"):
        module = torchvision.models.get_model(name, weights=None)
    module = module.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()  # what was in the memory may be slow to compute with
    field = tvc.receptive_field(module, layer, (3, 96, 128))
    assert field.size == (side, side)


def support(module, layer, size, cell):
    """Rows and columns of the pixels that one unit's gradient reaches, ``(top, left, …)``.

    Of many pictures, because max pooling passes on one pixel of each only.
    """
    x = torch.rand(300, *size, dtype=torch.float64, requires_grad=True)
    with tvc.capture(module, layer, gradients=True) as seen:
        module(x)
    (gradient,) = torch.autograd.grad(seen[layer][:, :, cell[0], cell[1]].sum(), x)
    ys, xs = torch.nonzero(gradient.abs().sum((0, 1)), as_tuple=True)
    return ys.min().item(), xs.min().item(), ys.max().item() + 1, xs.max().item() + 1


@pytest.mark.parametrize("name", [name for name in NETS if name != "transposed convolution"])
@pytest.mark.parametrize("cell", [(0, 1), (3, 4)])
def test_the_box_is_the_support_of_the_gradient(name, cell):
    module, layer = NETS[name]
    module = positive(module)
    field = tvc.receptive_field(module, layer, (1, 40, 46))
    assert field.box(cell) == support(module, layer, (1, 40, 46), cell)
    corner = (field.cells[0] - 1, field.cells[1] - 1)
    assert field.box(corner) == support(module, layer, (1, 40, 46), corner)


def test_a_unit_that_sees_padding_only_keeps_the_nearest_pixel():
    module = nn.Sequential(nn.Conv2d(1, 1, 3, padding=4))
    field = tvc.receptive_field(module, "0", (1, 9, 12))
    assert field.box((0, 0), clip=False) == (-4, -4, -1, -1)
    assert field.box((0, 0)) == (0, 0, 1, 1)
    last = (field.cells[0] - 1, field.cells[1] - 1)
    assert field.box(last) == (8, 11, 9, 12)


def test_a_box_may_reach_beyond_the_picture():
    module = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2))
    field = tvc.receptive_field(module, "0", (1, 9, 12))
    assert field.box((0, 0)) == (0, 0, 3, 3)
    assert field.box((0, 0), clip=False) == (-2, -2, 3, 3)


def test_a_transposed_convolution_sees_at_least_its_gradient():
    module, layer = NETS["transposed convolution"]
    module = positive(module)
    field = tvc.receptive_field(module, layer, (1, 40, 46))
    for cell in [(4, 4), (5, 7), (3, 3)]:
        top, left, bottom, right = support(module, layer, (1, 40, 46), cell)
        box = field.box(cell)
        assert box[0] <= top
        assert box[1] <= left
        assert box[2] >= bottom
        assert box[3] >= right


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 3, 0), (2, 6, 0), (4, 5, 1)])
def test_the_edges_of_a_field_are_exact_where_its_step_is_a_part_of_a_pixel(
    kernel, stride, padding
):
    """A transposed convolution's cell i reads from pixel (i + p − k + 1) / s to pixel (i + p) / s."""
    module = nn.Sequential(nn.ConvTranspose2d(1, 1, kernel, stride=stride, padding=padding))
    field = tvc.receptive_field(module, "0", (1, 9, 12))
    for axis in (0, 1):
        for number in range(field.cells[axis]):
            cell = (number, 0) if axis == 0 else (0, number)
            box = field.box(cell, clip=False)
            first = Fraction(number + padding - kernel + 1, stride)
            last = Fraction(number + padding, stride)
            assert (box[axis], box[axis + 2]) == (math.floor(first), math.ceil(last + 1))


@pytest.mark.parametrize("side", [50, 100, 150, 224, 500])
@pytest.mark.parametrize("length", [11, 15, 18, 19, 22])
def test_on_a_picture_of_another_size_a_field_ends_where_its_pixels_do(length, side):
    field = tvc.receptive_field(nn.Sequential(nn.MaxPool2d(1)), "0", (1, length, length))
    for number in range(length):
        begin = math.floor(Fraction(number * side, length))
        end = math.ceil(Fraction((number + 1) * side, length))
        turned = length - 1 - number
        other = math.floor(Fraction(turned * side, length))
        far = math.ceil(Fraction((turned + 1) * side, length))
        assert field.on((side, side), (number, turned)) == (begin, other, end, far)


class Gray(nn.Module):
    """Pictures without a channel axis, which it gets only after the first layer."""

    def __init__(self):
        super().__init__()
        self.ink = nn.Softplus()
        self.conv = nn.Conv2d(1, 1, 3, stride=2)

    def forward(self, x):
        return self.conv(self.ink(x)[:, None]).mean((2, 3))


def test_maps_without_a_channel_axis_have_their_cells():
    fields = receptive_fields(Gray(), "*", (9, 12))
    assert [fields[name].cells for name in ("ink", "conv")] == [(9, 12), (4, 5)]
    assert fields["ink"].box((8, 11)) == (8, 11, 9, 12)
    assert fields["conv"].box((3, 4)) == (6, 8, 9, 11)


class Deep(nn.Module):
    """Colours taken for depth: windows over three axes, of which the last two are the picture's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, (2, 5, 3), stride=(1, 3, 2), padding=(0, 2, 0))

    def forward(self, x):
        return self.conv(x[:, None]).amax(2)


def test_windows_over_depth_too_have_their_rows_and_columns():
    net, size = positive(Deep()), (3, 20, 23)
    field = tvc.receptive_field(net, "conv", size)
    assert (field.size, field.stride) == ((5, 3), (3, 2))
    for cell in ((0, 1), (3, 4)):
        x = torch.rand(1, *size, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(net(x)[:, :, cell[0], cell[1]].sum(), x)
        ys, xs = torch.nonzero(gradient.sum((0, 1)), as_tuple=True)
        wanted = ys.min().item(), xs.min().item(), ys.max().item() + 1, xs.max().item() + 1
        assert field.box(cell) == wanted


def test_rows_that_a_layer_takes_for_channels_are_seen_whole():
    """One number of a one-dimensional convolution is made of all rows of the picture."""
    net = nn.Sequential(nn.Conv1d(9, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3))
    field = tvc.receptive_field(net, "2", (9, 12))
    x = torch.rand(1, 9, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, 0, 0].abs(), x)
    seen = torch.nonzero(gradient[0])
    top, left, bottom, right = field.box((0, 0))
    assert top <= seen[:, 0].min()
    assert left <= seen[:, 1].min()
    assert bottom > seen[:, 0].max()
    assert right > seen[:, 1].max()


class Gated(nn.Module):
    """Squeeze and excitation: every cell depends on the mean over all of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.gate = nn.Conv2d(2, 2, 1)
        self.after = nn.Conv2d(2, 2, 3)

    def forward(self, x):
        x = self.conv(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.after(x).mean((2, 3))


def test_a_gate_lets_every_unit_see_everything():
    net = positive(Gated())
    assert tvc.receptive_field(net, "conv", (1, 12, 16)).size == (3, 3)
    field = tvc.receptive_field(net, "after", (1, 12, 16))
    assert field.size == (math.inf, math.inf)
    assert field.box((0, 0)) == (0, 0, 12, 16)


def test_branches_of_other_sizes_join_to_what_both_see():
    class Split(nn.Module):
        """The second half of the channels takes the longer way, as in ShuffleNet."""

        def __init__(self):
            super().__init__()
            self.long = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
            self.end = nn.Conv2d(2, 1, 1)

        def forward(self, x):
            near, far = torch.cat([x, x], 1).chunk(2, 1)
            return self.end(torch.cat([near, self.long(far)], 1))

    assert tvc.receptive_field(Split(), "end", (1, 12, 12)).size == (5, 5)


def test_a_dense_layer_and_a_global_pool_see_everything():
    module = torchvision.models.resnet18()
    for layer in ("fc", "avgpool"):
        field = tvc.receptive_field(module, layer, (3, 64, 96))
        assert (field.cells, field.box()) == ((1, 1), (0, 0, 64, 96))


class Between(nn.Module):
    """Something between a convolution and what is looked at, on maps as high as wide."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.end = nn.Conv2d(1, 4, 3, padding=1), nn.Identity()
        self.between = between

    def forward(self, x):
        return self.end(self.between(self.conv(x)))


def grouped(x):
    return x.reshape(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


KEEP = {
    "hardswish": nn.Hardswish(),
    "prelu": nn.PReLU(),
    "softplus": nn.Softplus(),
    "relu6": nn.ReLU6(inplace=True),
    "gated linear unit": nn.GLU(1),
    "log sigmoid": nn.LogSigmoid(),
    "batch norm": nn.BatchNorm2d(4),
    "dropout": nn.Dropout(),
    "local response norm": nn.LocalResponseNorm(2),
    "softmax over channels": nn.Softmax2d(),
    "unit length over channels": lambda x: F.normalize(x, dim=1),
    "channel shuffle": nn.ChannelShuffle(2),
    "channels grouped": grouped,
    "channels picked": lambda x: x[:, [2, 0]],
    "every second channel": lambda x: x[:, ::2],
    "channels split and joined": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "channels stacked": lambda x: torch.stack(x.unbind(1), 1),
    "channels turned round": lambda x: x.flip(1).roll(1, 1),
    "largest over channels": lambda x: x.amax(1, keepdim=True),
    "sums of channels": lambda x: x.cumsum(1),
    "pooled to the same size": nn.AdaptiveAvgPool2d(12),
    "resized to the same size": lambda x: F.interpolate(x, size=(12, 12), mode="bilinear"),
    "nothing added": lambda x: x + torch.zeros_like(x),
    "copied": lambda x: torch.empty_like(x).copy_(x).contiguous(memory_format=torch.channels_last),
}
_ATEN = torch.ops.aten


def _filled(x, where, number):
    x = x.clone()
    x[where(x)] = number
    return x


def _halves(x):
    """The second half of the channels is written anew, into the map itself."""
    x = x.clone()
    x[:, 2:] = x[:, :2] * 2
    return x


# What works number by number without saying so to torch's tags, in place and into ``out=``.
NUMBER_BY_NUMBER = {
    "masked_fill": lambda x: x.masked_fill(x < 0.1, 0.0),
    "masked_fill by a tensor": lambda x: x.masked_fill(x < 0.1, x.new_zeros(())),
    "masked_fill_": lambda x: x.clone().masked_fill_(x < 0.1, 0.0),
    "masked_fill_ by a tensor": lambda x: x.clone().masked_fill_(x < 0.1, x.new_zeros(())),
    "a masked assignment": lambda x: _filled(x, lambda y: y < 0.1, 0.0),
    "threshold_": lambda x: F.threshold_(x.clone(), 0.1, 0.0),
    "gelu_": lambda x: _ATEN.gelu_(x.clone()),
    "mish_": lambda x: F.mish(x.clone(), inplace=True),
    "abs_": lambda x: x.clone().abs_(),
    "copysign_": lambda x: x.clone().copysign_(torch.ones_like(x)),
    "clamp_": lambda x: x.clone().clamp_(min=0),
    "hardswish_": lambda x: F.hardswish(x.clone(), inplace=True),
    "hardsigmoid_": lambda x: F.hardsigmoid(x * 0.01, inplace=True),
    "relu6_": lambda x: F.relu6(x * 0.01, inplace=True),
    "celu_": lambda x: F.celu_(x.clone()),
    "selu_": lambda x: F.selu_(x.clone()),
    "leaky_relu_": lambda x: F.leaky_relu_(x.clone()),
    "rrelu_": lambda x: F.rrelu_(x.clone()),
    "xlogy_": lambda x: x.clone().xlogy_(2.5),
    "rsub": lambda x: torch.rsub(x, torch.ones_like(x)),
    "special_expit": lambda x: torch.special.expit(x * 0.01),
    "special_log1p": torch.special.log1p,
    "special_erf": lambda x: torch.special.erf(x * 0.01),
    "arctan_": lambda x: x.clone().arctan_(),
    "true_divide_": lambda x: x.clone().true_divide_(2),
    "a fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.01, 0, 0, 10**6),
    "a fake quantisation of channels": lambda x: torch.fake_quantize_per_channel_affine(
        x,
        x.new_full((4,), 0.01, dtype=torch.float32),
        torch.zeros(4, dtype=torch.int32),
        1,
        0,
        10**6,
    ),
    "one is asked for": lambda x: torch.where(x > 0.1, x, 0.0),
    "gates by comparison": lambda x: x * x.gt(0.1),
    "gates by comparison in place": lambda x: x * x.detach().clone().gt_(0.1),
    "batch norm of an update, not updating": lambda x: _ATEN._batch_norm_no_update(
        x, *(x.new_ones(4) for _ in range(4)), 0.1, 1e-5
    )[0],
    "batch norm, legit": lambda x: _ATEN._native_batch_norm_legit(
        x, *(x.new_ones(4) for _ in range(4)), False, 0.1, 1e-5
    )[0],
    "second half of the channels written": _halves,
}


# Only what is not followed by autograd may be written into ``out=``.
OUT = {
    "gelu": lambda x: _ATEN.gelu.out(x, out=torch.empty_like(x)),
    "where": lambda x: torch.where(x > 0, x, x.new_zeros(()), out=torch.empty_like(x)),
    "isnan": lambda x: x + _ATEN.isnan.out(x, out=torch.empty_like(x, dtype=torch.bool)),
    "masked_fill": lambda x: _ATEN.masked_fill.Scalar_out(x, x < 0, 0.0, out=torch.empty_like(x)),
    "clamp_min": lambda x: torch.clamp_min(x, 0, out=torch.empty_like(x)),
}
MIX = {
    "batch norm with an update": lambda x: _ATEN._batch_norm_with_update(
        x, *(x.new_ones(4) for _ in range(4)), 0.1, 1e-5
    )[0],
    "batch norm, legit, of its own statistics": lambda x: _ATEN._native_batch_norm_legit(
        x, *(x.new_ones(4) for _ in range(4)), True, 0.1, 1e-5
    )[0],
    "batch norm, legit, without statistics": lambda x: _ATEN._native_batch_norm_legit.no_stats(
        x, x.new_ones(4), x.new_ones(4), True, 0.1, 1e-5
    )[0],
    "products of rows": lambda x: (x * 0.01 + 1).cumprod(2),
    "logarithms of sums of columns": lambda x: (x * 0.01).logcumsumexp(3),
    "largest so far": lambda x: x.cummax(3)[0],
    "group norm": nn.GroupNorm(2, 4),
    "instance norm": nn.InstanceNorm2d(4),
    "layer norm": nn.LayerNorm([4, 12, 12]),
    "batch norm without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "softmax over rows": lambda x: x.softmax(2),
    "sums of rows": lambda x: x.cumsum(2),
}
MOVE = {
    "transposed": lambda x: x.transpose(2, 3),
    "axes permuted": lambda x: x.permute(0, 1, 3, 2),
    "mirrored": lambda x: x.flip(3),
    "rolled": lambda x: x.roll(2, 2),
    "turned": lambda x: x.rot90(1, (2, 3)),
    "sorted": lambda x: x.sort(3)[0],
    "sorted along the last axis, unnamed": lambda x: x.sort()[0],
    "sorted stably": lambda x: x.sort(stable=True)[0],
    "the largest of all": lambda x: x.topk(12)[0],
    "rolled through all axes": lambda x: x.roll(5),
    "rows picked by a mask": lambda x: x[torch.arange(48).reshape(1, 4, 12) % 4 == 1][None, None],
    "rows written": lambda x: _written(x, (slice(None), slice(None), slice(2, None)), x[:, :, :-2]),
    "rows picked": lambda x: x[:, :, torch.arange(11, -1, -1)],
    "sampled": lambda x: F.grid_sample(
        x, torch.zeros(len(x), 12, 12, 2, dtype=x.dtype), align_corners=False
    ),
}


def _written(x, where, what):
    x = x.clone()
    x[where] = what
    return x


@pytest.mark.parametrize("name", NUMBER_BY_NUMBER)
def test_what_works_number_by_number_without_saying_so_leaves_the_field(name):
    net = positive(Between(NUMBER_BY_NUMBER[name]))
    field = tvc.receptive_field(net, "end", (1, 12, 12))
    assert field.box((2, 3)) == support(net, "end", (1, 12, 12), (2, 3)) == (1, 2, 4, 5)


@pytest.mark.parametrize("name", OUT)
def test_what_is_written_into_out_is_where_it_came_from(name):
    """Without gradients there: the pixels that a change of which changes one unit."""
    net = positive(Between(OUT[name]))
    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    changed = x + torch.eye(144, dtype=torch.float64).reshape(144, 1, 12, 12)
    with torch.no_grad():
        differs = (net(changed) - net(x))[:, :, 2, 3].abs().sum(1).reshape(12, 12) > 0
    ys, xs = differs.nonzero(as_tuple=True)
    seen = (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1)
    assert tvc.receptive_field(net, "end", (1, 12, 12)).box((2, 3)) == seen == (1, 2, 4, 5)


def test_what_is_written_into_a_part_of_a_map_is_seen_by_the_whole():
    """One of the channels is replaced by what sees more."""

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.wider = nn.Conv2d(4, 1, 3, padding=1)
            self.end = nn.Identity()

        def forward(self, x):
            y = self.conv(x)
            z = self.place(y)
            z[:, 1:2] = self.wider(y)
            return self.end(z)

    for place in (torch.clone, torch.zeros_like):
        net = positive(Written())
        net.place = place
        assert tvc.receptive_field(net, "end", (1, 12, 12)).box((4, 5)) == (2, 3, 7, 8)
        assert support(net, "end", (1, 12, 12), (4, 5)) == (2, 3, 7, 8)


@pytest.mark.parametrize("name", KEEP)
def test_what_works_cell_by_cell_leaves_the_field_as_it_was(name):
    net = positive(Between(KEEP[name]))
    field = tvc.receptive_field(net, "end", (1, 12, 12))
    assert field.box((2, 3)) == support(net, "end", (1, 12, 12), (2, 3)) == (1, 2, 4, 5)


@pytest.mark.parametrize("name", MIX)
def test_what_mixes_the_cells_lets_every_unit_see_everything(name):
    net = positive(Between(MIX[name]))
    field = tvc.receptive_field(net, "end", (1, 12, 12))
    assert field.box((2, 3)) == (0, 0, 12, 12)
    top, left, bottom, right = support(net, "end", (1, 12, 12), (2, 3))
    assert (bottom - top) * (right - left) > 9


@pytest.mark.parametrize("name", MOVE)
def test_of_what_changes_places_nothing_is_claimed(name):
    net = positive(Between(MOVE[name]))
    with pytest.raises(tvc.InputError, match="is not known"):
        tvc.receptive_field(net, "end", (1, 12, 12))


def test_what_is_not_known_is_said():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.after = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.after(self.conv(x).transpose(2, 3)).mean((2, 3))

    with pytest.raises(tvc.InputError, match="reorders the map"):
        tvc.receptive_field(Turned(), "after", (1, 9, 12))
    with pytest.raises(tvc.InputError, match="give input_size"):
        tvc.receptive_field(Turned(), "conv")
    with pytest.raises(tvc.InputError, match="no layer 'con'"):
        tvc.receptive_field(Turned(), "con", (1, 9, 12))
    field = tvc.receptive_field(Turned(), "conv", (1, 9, 12))
    with pytest.raises(tvc.InputError, match="7×10, from"):
        field.box((7, 0))


def test_it_is_drawn_where_it_lies():
    """A picture twice the network's size: the field is light and framed, the rest darkened."""
    field = tvc.receptive_field(nn.Sequential(nn.Conv2d(3, 1, 21)), "0", (3, 200, 300))
    picture = Image.new("RGB", (600, 400), (200, 200, 200))
    drawn = np.asarray(field.draw(picture, (50, 100)))
    assert drawn.shape == (400, 600, 3)
    top, left, bottom, right = (2 * n for n in field.box((50, 100)))
    assert (drawn[top + 8 : bottom - 8, left + 8 : right - 8] == 200).all()
    outside = drawn.copy()
    outside[top:bottom, left:right] = 0
    assert outside.max() < 110
    assert (drawn[top, left : right - 1] != 200).any()
    assert field.crop(picture, (50, 100)).size == (42, 42)


def test_a_model_cuts_the_picture_as_it_sees_it():
    """The middle 224 of 256: the field lies on what the network sees, not on the whole picture."""
    model = tvc.models.load("resnet18", "none")
    picture = Image.new("RGB", (512, 512))
    field = tvc.receptive_field(model, "conv1")
    assert field.crop(picture, (56, 56)).size == (14, 14)  # 7 pixels at twice the size
    assert field.draw(picture, (56, 56)).size == model.view(picture).size


def test_every_layer_s_field_is_that_layer_s():
    """Of one that sees a resized map nothing is said; the others stay."""

    class Enlarged(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3)

        def forward(self, x):
            return self.after(nn.functional.interpolate(self.before(x), scale_factor=1.7))

    fields = receptive_fields(Enlarged(), input_size=(1, 9, 12))
    assert fields == {
        "before": tvc.receptive_field(Enlarged(), "before", (1, 9, 12)),
        "after": None,
    }
    lines = fields_table(fields).splitlines()
    assert lines[1].split() == ["before", "7×10", "3×3", "1×1", "1.5,", "1.5"]
    assert lines[2].split() == ["after", "not", "known"]


def test_repeated_layers_are_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    assert tvc.receptive_field(Twice(), "conv@0", (1, 9, 9)).size == (3, 3)
    assert tvc.receptive_field(Twice(), "conv@1", (1, 9, 9)).size == (5, 5)
    assert tvc.receptive_field(Twice(), "conv", (1, 9, 9)).size == (5, 5)


def test_a_layer_that_runs_on_smaller_and_smaller_maps_has_the_cells_of_its_last_run():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    field = tvc.receptive_field(Twice(), "conv", (1, 9, 12))
    assert field.cells == (5, 8)
    assert field.box((4, 7)) == (4, 7, 9, 12)
    assert tvc.receptive_field(Twice(), "conv@0", (1, 9, 12)).cells == (7, 10)


def test_heat_maps_over_branches_of_other_reach_lie_in_the_middle_of_both():
    module = positive(Residual())
    place = tvc.receptive_field(module, "pool", (1, 40, 46))
    top, left, bottom, right = support(module, "pool", (1, 40, 46), (3, 4))
    assert place.centre[0] + 3 * place.stride[0] == (top + bottom) / 2
    assert place.centre[1] + 4 * place.stride[1] == (left + right) / 2


def test_of_several_layers_each_run_asked_for_is_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    def sides(layers):
        found = receptive_fields(Twice(), layers, (1, 9, 9))
        return {name: field.size[0] for name, field in found.items()}

    assert sides(["conv@0"]) == {"conv@0": 3}
    assert sides(["conv@1", "conv@0"]) == {"conv@1": 5, "conv@0": 3}
    assert sides("conv@*") == {"conv@0": 3, "conv@1": 5}
    assert sides("conv") == sides("c*") == sides(None) == {"conv": 5}
    assert list(receptive_fields(Gray(), ["conv@*", "ink"], (9, 12))) == ["conv", "ink"]
    assert next(iter(receptive_fields(Twice(), ["conv@0"], (1, 9, 9)).values())).layer == "conv@0"
    with pytest.raises(tvc.InputError, match="does not run"):
        sides(["conv@2"])


def test_the_fields_of_many_layers_are_found_in_one_look_at_the_network(monkeypatch):
    """Of each layer once more would be quadratic in their number."""
    looks = []
    real = fields_room.remembered
    monkeypatch.setattr(fields_room, "remembered", lambda *a: looks.append(1) or real(*a))
    net = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(20)))
    found = receptive_fields(net, input_size=(1, 9, 12))
    assert [field.size[0] for field in found.values()] == [2 * n + 3 for n in range(20)]
    assert len(looks) <= 1


@pytest.mark.parametrize("cell", [(1.5, 2), (True, 1), ("a", 1), 5, None, (1, 2, 3), "centre"])
def test_what_is_no_cell_is_said(cell):
    field = tvc.receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3)), "0", (1, 9, 12))
    with pytest.raises(tvc.InputError, match=r"a cell is \(row, column\), or 'middle', not"):
        field.box(cell)
    assert field.box((np.int64(1), 2)) == field.box((1, 2)) == field.box([1, 2])
