"""The patches that excite a channel most, against looking at every picture at once."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from tests.networks import Repeated, randomised
from torchviz_cnn import render
from torchviz_cnn.preprocess import Preprocess


def detector():
    """Channel 0 answers to bright squares of 4×4, channel 1 to dark ones; then a dense layer."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 2, 4, stride=2))
    net.add_module("relu", nn.ReLU())
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(2, 3))
    with torch.no_grad():
        net.conv.weight[0], net.conv.weight[1] = 1 / 48, -1 / 48
        net.conv.bias[:] = torch.tensor([0.0, 1.0])
    return tvc.Model(net.eval(), Preprocess((24, 36)), (3, 24, 36))


@pytest.fixture
def folder(tmp_path):
    """Seven gray pictures of the network's size, each with one square of its own brightness."""
    place = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for number, shade in enumerate([180, 255, 140, 200, 160, 230, 150]):
        pixels = place.integers(90, 110, (24, 36, 3)).astype(np.uint8)
        top, left = 2 * place.integers(0, 10), 2 * place.integers(0, 16)
        pixels[top : top + 4, left : left + 4] = shade
        home = tmp_path / "more" if number == 3 else tmp_path
        Image.fromarray(pixels).save(home / f"{number}.png")
    (tmp_path / "words.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    return tmp_path


def slow(model, folder, channel, count, layer="conv"):
    """All pictures in one batch, every unit in turn: (value, file, row, column), best first."""
    files = sorted([*folder.glob("[0-9].png"), *(folder / "more").glob("*.png")])
    x = torch.cat([model.prepare(file) for file in files])
    with tvc.capture(model.module, layer) as seen:
        model(x)
    best = []
    for file, maps in zip(files, seen[layer].detach(), strict=True):
        units = [
            (float(maps[channel, r, c]), file, r, c)
            for r in range(maps.shape[1])
            for c in range(maps.shape[2])
        ]
        best.append(max(units, key=lambda unit: unit[0]))
    return sorted(best, key=lambda unit: -unit[0])[:count]


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_they_are_the_strongest_units_of_all_pictures(folder, channel, batch_size):
    model = detector()
    found = tvc.patches(model, folder, "conv", channel, count=4, batch_size=batch_size)
    wanted = slow(model, folder, channel, 4)
    assert [(p.file, *p.cell) for p in found.found] == [unit[1:] for unit in wanted]
    assert found.values == pytest.approx([unit[0] for unit in wanted], rel=1e-6)
    assert found.pictures == 7
    for patch in found.found:  # four pixels from twice the cell on
        row, column = patch.cell
        assert patch.box == (2 * row, 2 * column, 2 * row + 4, 2 * column + 4)


def test_several_channels_are_found_in_one_reading_of_the_pictures(folder, monkeypatch):
    model, read = detector(), []
    prepare = tvc.Model.prepare

    def counted(self, picture):
        read.append(picture)
        return prepare(self, picture)

    monkeypatch.setattr(tvc.Model, "prepare", counted)
    both = tvc.patches(model, folder, "conv", [1, 0], count=4, batch_size=3)
    assert len(read) == 7
    for channel, found in zip((1, 0), both, strict=True):
        assert found.channel == channel
        wanted = slow(model, folder, channel, 4)
        assert [(p.file, *p.cell) for p in found.found] == [unit[1:] for unit in wanted]


@pytest.mark.parametrize(
    "several", [(1, 0), range(1, -1, -1), np.array([1, 0]), torch.tensor([1, 0])]
)
def test_channels_are_numbers_of_any_kind_and_in_any_row(folder, several):
    model = detector()
    both = tvc.patches(model, folder, "conv", several, count=2)
    assert [found.channel for found in both] == [1, 0]
    for one in (1, np.int64(1), torch.tensor(1)):
        found = tvc.patches(model, folder, "conv", one, count=2)
        assert (type(found.channel), found.values) == (int, both[0].values)


@pytest.mark.parametrize("channel", [1.5, "1", True, None, {1}, [0, 0.5]])
def test_what_is_no_channel_is_said(folder, channel):
    with pytest.raises(tvc.InputError, match="a channel is a whole number, and several") as told:
        tvc.patches(detector(), folder, "conv", channel)
    assert str(told.value).endswith(f"not {channel!r}")


def test_a_patch_shows_what_excited_the_unit(folder):
    found = tvc.patches(detector(), folder, "conv", 0, count=3)
    for crop, shade in zip(found.crops(), (255, 230, 200), strict=True):
        assert crop.size == (4, 4)
        assert (np.asarray(crop) == shade).all()


def test_larger_pictures_are_cut_at_their_own_resolution(folder):
    for path in folder.glob("1.png"):
        with Image.open(path) as image:
            image.resize((360, 240), Image.Resampling.NEAREST).save(path)
    (crop,) = tvc.patches(detector(), folder, "conv", 0, count=1).crops()
    assert crop.size == (40, 40)
    assert np.asarray(crop).min() > 240


def test_of_a_dense_layer_the_whole_picture_is_shown(folder):
    found = tvc.patches(detector(), folder, "fc", 2, count=2)
    assert found.found[0].box == (0, 0, 24, 36)
    assert found.crops()[0].size == (36, 24)


@pytest.mark.parametrize(("layer", "reach"), [("conv", 2), ("conv@0", 2), ("conv@2", 4)])
def test_of_a_layer_that_runs_several_times_the_box_is_that_of_the_run_asked_for(
    folder, layer, reach
):
    """Every convolution of 3×3 lets a unit see one pixel further to each side."""
    net = randomised(Repeated()).float()
    model = tvc.Model(net, Preprocess((24, 36)), (3, 24, 36))
    (patch,) = tvc.patches(model, [folder / "1.png"], layer, 3, count=1).found
    with torch.no_grad(), tvc.capture(net, layer) as seen:
        model(model.prepare(folder / "1.png"))
    row, column = divmod(int(seen[layer][0, 3].argmax()), 36)
    assert patch.cell == (row, column)
    assert patch.box == (
        max(0, row - reach),
        max(0, column - reach),
        min(24, row + reach + 1),
        min(36, column + reach + 1),
    )


def test_of_equal_ones_the_first_stays(tmp_path):
    for name in "abc":
        Image.new("RGB", (36, 24), (200, 200, 200)).save(tmp_path / f"{name}.png")
    found = tvc.patches(detector(), tmp_path, "conv", 0, count=2, batch_size=2)
    assert [patch.file.name for patch in found.found] == ["a.png", "b.png"]
    assert found.found[0].cell == (0, 0)


def test_pictures_are_read_a_batch_at_a_time(folder, monkeypatch):
    """However many there are: never more prepared at once than a batch holds."""
    model = detector()
    alive, most = [], []
    prepare = tvc.Model.prepare

    def counted(self, picture):
        import weakref

        made = prepare(self, picture)
        alive.append(weakref.ref(made))
        most.append(sum(each() is not None for each in alive))
        return made

    monkeypatch.setattr(tvc.Model, "prepare", counted)
    tvc.patches(model, folder, "conv", 0, count=1, batch_size=2)
    assert len(most) == 7
    assert max(most) <= 4  # the batch that is being made, and the last one


def test_a_damaged_file_of_a_folder_is_left_out_and_told(folder):
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:60])
    found = tvc.patches(detector(), folder, "conv", 0, count=9)
    assert len(found) == 7
    ((file, reason),) = found.skipped
    assert file.name == "broken.png"
    assert "broken.png" in reason
    with pytest.raises(tvc.InputError, match=r"broken.png"):
        tvc.patches(detector(), [folder / "1.png", folder / "broken.png"], "conv", 0)


def test_the_sheet_has_names_and_values(folder):
    found = tvc.patches(detector(), folder, "conv", 0, count=5)
    sheet = found.sheet(columns=3, cell=100)
    assert sheet.width == 3 * 112 + 12
    assert sheet.height > 2 * 130
    lines = found.table().splitlines()
    assert len(lines) == 5
    assert "1.png" in lines[0]
    assert "unit" in lines[0]
    shown = Image.open(io.BytesIO(found._repr_png_()))  # in a notebook
    assert np.array_equal(np.asarray(shown), np.asarray(found.sheet()))


def test_values_of_thousands_are_written_out(folder, monkeypatch):
    model = detector()
    with torch.no_grad():
        model.module.conv.weight.mul_(98765.4)
    found = tvc.patches(model, folder, "conv", 0, count=2)
    assert found.table().split()[0] == f"{float(f'{found.values[0]:.4g}'):.0f}"
    written = []
    monkeypatch.setattr(render, "contact_sheet", lambda _, words, **__: written.extend(words))
    found.sheet()
    assert [words.split("\n")[0] for words in written] == [
        line.split()[0] for line in found.table().splitlines()
    ]
    assert not any("e+" in words for words in written)


def test_files_of_one_name_are_told_apart_by_their_folders(folder, monkeypatch):
    """Pictures are often numbered anew in the folder of every class."""
    for name in ("2", "4"):
        (folder / "cats" / name).mkdir(parents=True)
        shutil.copy(folder / f"{name}.png", folder / "cats" / name / "1.png")
    found = tvc.patches(detector(), folder, "conv", 0, count=9)
    files = [patch.file.relative_to(folder).as_posix() for patch in found.found]
    assert "cats/2/1.png" in files
    assert [line.split()[1] for line in found.table().splitlines()] == files
    written = []
    monkeypatch.setattr(render, "contact_sheet", lambda _, words, **__: written.extend(words))
    found.sheet()
    assert [words.split("\n")[1] for words in written] == files
    few = [folder / "cats" / "2" / "1.png", folder / "cats" / "4" / "1.png"]
    assert sorted(tvc.patches(detector(), few, "conv", 0).names()) == ["2/1.png", "4/1.png"]
    assert tvc.patches(detector(), [*few[:1]] * 2, "conv", 0).names() == ["1.png", "1.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "con"}, "did you mean 'conv'"),
        ({"channel": 2}, "there is no channel 2: the layer 'conv' has 2"),
        ({"count": 0}, "count must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_bad_input_is_said(folder, options, words):
    usual = {"layer": "conv", "channel": 0}
    with pytest.raises(tvc.InputError, match=words):
        tvc.patches(detector(), folder, **(usual | options))


def test_pictures_are_files_by_any_spelling_of_their_ending_and_hidden_only_below(tmp_path):
    """A folder called like a picture is none; where the folder itself lies does not matter."""
    folder = tmp_path / ".cache" / "pictures"
    (folder / "called.png").mkdir(parents=True)
    (folder / ".trash").mkdir()
    for name in ("b.PNG", "a.Jpg", "called.png/inside.png", ".trash/gone.png"):
        Image.new("RGB", (36, 24)).save(folder / name)
    found = tvc.patches(detector(), folder, "conv", 0)
    assert {patch.file.relative_to(folder).as_posix() for patch in found.found} == {
        "a.Jpg", "b.PNG", "called.png/inside.png"
    }  # fmt: skip
    assert (found.pictures, found.skipped) == (3, ())


def test_bad_folders_and_bare_networks_are_said(folder, tmp_path):
    with pytest.raises(tvc.InputError, match=r"1\.png' is a file; name its folder, or give a list"):
        tvc.patches(detector(), folder / "1.png", "conv", 0)
    with pytest.raises(tvc.InputError, match="there is no folder"):
        tvc.patches(detector(), tmp_path / "nowhere", "conv", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(tvc.InputError, match="no picture in the folder"):
        tvc.patches(detector(), tmp_path / "empty", "conv", 0)
    with pytest.raises(tvc.InputError, match="needs a Model"):
        tvc.patches(detector().module, folder, "conv", 0)
    with pytest.raises(tvc.InputError, match="no pictures were given"):
        tvc.patches(detector(), [], "conv", 0)
    with pytest.raises(tvc.InputError, match="no channels"):
        tvc.patches(detector(), folder, "conv", [])
