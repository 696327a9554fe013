"""Networks by name, with the preprocessing they were trained with."""

import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

import torchviz_cnn as tvc
from torchviz_cnn.models import choose_device, read_classes
from torchviz_cnn.preprocess import Preprocess, preprocess_by_name
from torchviz_cnn.walking import layers_to_walk


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 200), Image.Resampling.BICUBIC)


def test_cat_dog_is_the_tutorials_network():
    table = tvc.layers(tvc.models.load("cat_dog"))
    assert table.parameters == table.trainable == 3_453_121
    # As the tutorial's summary prints them, channels first.
    assert [(row.name, row.output_shape, row.parameters) for row in table] == [
        ("conv2d_1", (32, 148, 148), 896),
        ("max_pooling2d_1", (32, 74, 74), 0),
        ("conv2d_2", (64, 72, 72), 18496),
        ("max_pooling2d_2", (64, 36, 36), 0),
        ("conv2d_3", (128, 34, 34), 73856),
        ("max_pooling2d_3", (128, 17, 17), 0),
        ("conv2d_4", (128, 15, 15), 147584),
        ("max_pooling2d_4", (128, 7, 7), 0),
        ("flatten_1", (6272,), 0),
        ("dense_1", (512,), 3211776),
        ("dense_2", (1,), 513),
    ]
    assert [row.type for row in table][:2] == ["Conv2D", "MaxPooling2D"]


def test_mnist_convnet_is_the_tutorials_network():
    table = tvc.layers(tvc.models.load("mnist_convnet"))
    assert table.parameters == 1_199_882
    assert table.names == [
        "input_layer",
        "conv_1",
        "pool_1",
        "dropout_1",
        "flate_1",
        "dense_1",
        "dropout_2",
        "output_layer",
    ]
    assert table["input_layer"].output_shape == (32, 26, 26)
    assert table["conv_1"].output_shape == (64, 24, 24)
    module = tvc.models.load("mnist_convnet").module
    assert (module.dropout_1.p, module.dropout_2.p) == (0.25, 0.5)


def test_cat_dog_small_has_about_66000_parameters():
    assert tvc.layers(tvc.models.load("cat_dog_small")).parameters == pytest.approx(
        66_000, rel=0.01
    )


def test_a_layer_gives_its_output_after_its_activation_and_its_parts_what_came_before():
    model = tvc.models.load("cat_dog_small")
    x = torch.randn(2, 3, 150, 150)
    seen = tvc.activations(model, x, ["conv2d_1", "conv2d_1.conv", "conv2d_1.act"])
    assert seen["conv2d_1.conv"].min() < 0
    assert torch.equal(seen["conv2d_1"], seen["conv2d_1.conv"].clamp(min=0))
    assert torch.equal(seen["conv2d_1"], seen["conv2d_1.act"])


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "inception_v3", "efficientnet_b3"])
def test_preprocessing_equals_torchvisions_own(name, picture):
    model = tvc.models.load(name, "none")
    own = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    expected = own(picture)[None]
    assert model.preprocess(picture).shape == expected.shape
    assert torch.allclose(model.preprocess(picture), expected, atol=1e-6)
    assert tuple(expected.shape[1:]) == model.input_size
    assert len(model.classes) == 1000
    assert model.classes[630] == "Loafer"


def test_the_view_is_what_the_network_sees(picture):
    """Scaled down to the input's size, the view is the network's input."""
    model = tvc.models.load("resnet50", "none")
    view = model.view(picture.resize((1200, 800), Image.Resampling.BICUBIC))
    seen = model.preprocess(picture.resize((1200, 800), Image.Resampling.BICUBIC))
    from_view = (
        torch.from_numpy(
            np.asarray(view.resize((224, 224), Image.Resampling.BICUBIC)).copy()
        ).permute(2, 0, 1)
        / 255
    )
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (model.preprocess.mean, model.preprocess.std)
    )
    assert view.size[0] > 224
    assert ((seen[0] * std + mean) - from_view).abs().mean() < 0.01


def test_the_view_of_a_small_picture_is_as_large_as_the_networks_input():
    """A short side of 20 becomes 40; of the 20×30 pixels there are too few for a heat map."""
    assert Preprocess((32, 24), resize=40).view(Image.new("RGB", (20, 30))).size == (24, 32)
    assert Preprocess((32, 24), resize=40).view(Image.new("RGB", (30, 20))).size == (24, 32)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # keras.applications' preprocess_input, written out for the pixel (R, G, B) = (10, 100, 200)
        ("rescale", [10 / 255, 100 / 255, 200 / 255]),
        ("tf", [10 / 127.5 - 1, 100 / 127.5 - 1, 200 / 127.5 - 1]),
        (
            "torch",
            [(10 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (200 / 255 - 0.406) / 0.225],
        ),
        ("caffe", [200 - 103.939, 100 - 116.779, 10 - 123.68]),
        ("none", [10.0, 100.0, 200.0]),
    ],
)
def test_keras_modes_exactly(mode, expected):
    flat = Image.new("RGB", (7, 5), (10, 100, 200))
    x = preprocess_by_name(mode, (3, 4, 6))(flat)
    assert x.shape == (1, 3, 4, 6)
    assert torch.allclose(x[0, :, 2, 3], torch.tensor(expected), atol=1e-5)


def test_gray_networks_get_gray_pictures_and_lists_become_batches():
    model = tvc.models.load("mnist_convnet")
    x = model.preprocess([Image.new("RGB", (40, 40), "white"), Image.new("L", (28, 28), 0)])
    assert x.shape == (2, 1, 28, 28)
    assert x[0].unique().tolist() == [1.0]
    assert x[1].unique().tolist() == [0.0]


def test_weights_from_a_file_are_used(tmp_path):
    original = tvc.models.load("resnet18", "none")
    torch.save({"state_dict": original.module.state_dict()}, tmp_path / "w.pt")
    again = tvc.models.load("resnet18", tmp_path / "w.pt")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(original.module(x), again.module(x))
    assert not again.notes
    assert original.notes  # random weights are said


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]
)
def test_what_wrappers_put_before_the_names_is_taken_off(tmp_path, prefix):
    state = {"module.weight": torch.ones(1), "fc.weight": torch.zeros(1)}
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    assert tvc.models.read_state(str(tmp_path / "w.pt")) == state
    torch.save(state, tmp_path / "w.pt")  # a network's own part may be called so, too
    assert tvc.models.read_state(str(tmp_path / "w.pt")) == state


def test_weights_without_names_are_none(tmp_path):
    torch.save({0: torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(tvc.InputError, match="not a state dict"):
        tvc.models.load("resnet18", tmp_path / "w.pt")


def test_weights_with_another_number_of_classes_build_that_network(tmp_path):
    for name in ("resnet18", "squeezenet1_1", "densenet121", "mobilenet_v2"):
        module = torchvision.models.get_model(name, num_classes=7)
        torch.save(module.state_dict(), tmp_path / "w.pt")
        model = tvc.models.load(name, tmp_path / "w.pt")
        assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
        assert model.classes is None


def test_googlenets_auxiliary_heads_follow_the_file(tmp_path):
    module = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    assert tvc.models.load("googlenet", tmp_path / "w.pt").module.aux1 is not None


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("touch owned",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Evil()}, "evil.pt")
    with pytest.raises(tvc.InputError, match="loaded safely"):
        tvc.models.load("resnet18", "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_weights_that_do_not_fit_name_the_layers(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pt")
    with pytest.raises(tvc.InputError, match=r"do not fit this VGG: it lacks features\.0\.weight"):
        tvc.models.load("vgg11", tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken zip"])
def test_files_that_are_no_weights(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(tvc.InputError, match=r"w\.pt"):
        tvc.models.load("resnet18", tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["model.h5", "cats.HDF5", "model.keras", "model.weights.h5"])
def test_weights_that_keras_wrote_are_told_as_such(tmp_path, name):
    """A tutorial's ``model.h5`` beside the network of the same tutorial."""
    file = tmp_path / name
    with pytest.raises(tvc.InputError, match="there is no weights file"):
        tvc.models.load("cat_dog", weights=str(file))
    if name.endswith(".keras"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("metadata.json", "{}")
    else:
        file.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        tvc.InputError, match=r"is a Keras file.*'torchviz-cnn export-keras .*onnx'"
    ):
        tvc.models.load("cat_dog", weights=str(file))


def test_missing_weights_unknown_names_and_devices():
    with pytest.raises(tvc.InputError, match="there is no weights file"):
        tvc.models.load("resnet18", "nowhere.pt")
    with pytest.raises(tvc.InputError, match="did you mean 'resnet50'"):
        tvc.models.load("resnet5O")
    with pytest.raises(tvc.InputError, match="no published weights"):
        tvc.models.load("cat_dog", "default")
    with pytest.raises(tvc.InputError, match="choose auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(tvc.InputError, match="no CUDA device can be used here; choose cpu"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"


def test_weights_that_cannot_be_downloaded_say_which_file_and_where(monkeypatch, tmp_path):
    """A proxy that refuses every connection stands for the machine without a network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(tvc.InputError) as caught:
        tvc.models.load("resnet50")
    sentence = str(caught.value)
    file = torchvision.models.ResNet50_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    assert file in sentence
    assert str(tmp_path) in sentence
    assert "--weights PATH" in sentence


def test_weights_already_in_the_hub_folder_need_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    module = torchvision.models.squeezenet1_1()
    torch.save(module.state_dict(), folder / file)
    model = tvc.models.load("squeezenet1_1")
    assert torch.equal(model.module.classifier[1].weight, module.classifier[1].weight)


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def gray():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    return "my_nets:gray"


def test_a_factory_of_ones_own(factory):
    model = tvc.models.load(factory, input_size=(1, 8, 8), classes=["a", "b", "c"])
    assert isinstance(model.module, nn.Sequential)
    result = tvc.saliency(model, model.preprocess(Image.new("L", (20, 20), 99)), target="b")
    assert result.target.tolist() == [1]
    assert "assumed" in model.notes[0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("my_nets:missing", "missing"),
        ("no_such_module:x", "no_such_module"),
        ("my_nets:number", "gave an int"),
    ],
)
def test_factories_that_are_none(factory, spec, words):
    with pytest.raises(tvc.InputError, match=words):
        tvc.models.load(spec)


def test_class_names_from_every_kind_of_file(tmp_path):
    (tmp_path / "lines.txt").write_text("cat\ndog\n\n")
    (tmp_path / "list.json").write_text('["cat", "dog"]')
    (tmp_path / "keras.json").write_text('{"1": ["n2", "dog"], "0": ["n1", "cat"]}')
    for file in tmp_path.iterdir():
        assert read_classes(file) == ["cat", "dog"]
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(tvc.InputError, match="broken JSON"):
        read_classes(tmp_path / "bad.json")
    with pytest.raises(tvc.InputError, match="cannot read class names"):
        read_classes(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "text",
    [
        '{"dog": 1, "cat": 0}',  # class_indices of a Keras generator
        '{"cat": 0, "dog": 1}',
        '{"1": "dog", "0": "cat"}',
        "\ufeffcat\r\ndog\r\n",  # as Windows' editor writes it
        '\ufeff["cat", "dog"]',
    ],
)
def test_class_names_stand_at_their_indexes_however_the_file_tells_them(tmp_path, text):
    (tmp_path / "classes").write_bytes(text.encode())
    assert read_classes(tmp_path / "classes") == ["cat", "dog"]


def test_folders_called_after_digits_are_numbered_by_keras(tmp_path):
    (tmp_path / "digits.json").write_text('{"7": 1, "3": 0, "9": 2}')
    assert read_classes(tmp_path / "digits.json") == ["3", "7", "9"]


@pytest.mark.parametrize(
    "table",
    ['{"0": "cat", "2": "dog"}', '{"1": "cat", "2": "dog"}', '{"classes": ["cat", "dog"]}',
     '{"cat": 1, "dog": 2}', '{"cat": 0, "dog": 0}', '{"²": "cat"}'],
)  # fmt: skip
def test_a_table_that_does_not_number_all_classes_is_refused(tmp_path, table):
    (tmp_path / "table.json").write_text(table)
    with pytest.raises(tvc.InputError, match=r"table\.json.*must number all of them from 0 on"):
        read_classes(tmp_path / "table.json")


def test_onnx_without_an_importer_is_a_sentence_and_a_foreign_package_is_named(
    tmp_path, monkeypatch
):
    import sys

    (tmp_path / "converters").mkdir()
    (tmp_path / "converters" / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "converters", raising=False)
    with pytest.raises(tvc.InputError, match="is not this library's") as caught:
        tvc.models.load("model.onnx")
    assert str(tmp_path) in str(caught.value)
    sys.modules.pop("converters", None)  # else the foreign one would be put back


WALKED = {
    "mnist_convnet": (8, "input_layer", "output_layer"),
    "cat_dog": (11, "conv2d_1", "dense_2"),
    "alexnet": (21, "features.0", "classifier.6"),
    "vgg16": (39, "features.0", "classifier.6"),
    "vgg19": (39, "features.0", "classifier"),
    "resnet50": (10, "conv1", "fc"),
    "densenet121": (13, "features.conv0", "classifier"),
    "googlenet": (19, "conv1", "fc"),
    "mobilenet_v2": (20, "features.0", "classifier"),
    "squeezenet1_1": (14, "features.0", "classifier"),
    "efficientnet_b0": (11, "features.0", "classifier"),
    "convnext_tiny": (10, "features.0", "classifier"),
}


@pytest.mark.parametrize("name", WALKED)
def test_a_walk_shows_every_layer_of_a_small_network_and_the_stages_of_a_deep_one(name):
    count, first, last = WALKED[name]
    walked = layers_to_walk(tvc.models.load(name, "none"))
    assert (len(walked), walked[0], walked[-1]) == (count, first, last)


def test_a_wrapped_network_is_walked_by_the_stages_of_what_it_wraps():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torchvision.models.resnet18()
            self.backbone.fc = nn.Identity()
            self.head = nn.Linear(512, 3)

        def forward(self, x):
            return self.head(self.backbone(x))

    size = (3, 64, 64)
    model = tvc.Model(Wrapper(), preprocess_by_name("torch", size), size)
    walked = layers_to_walk(model)
    assert walked[:2] == ["backbone.conv1", "backbone.bn1"]
    assert walked[-1] == "head"
    assert "backbone.layer4" in walked


@pytest.mark.parametrize(("held", "opened"), [(17, False), (18, True), (19, True)])
def test_a_part_with_nine_tenths_of_the_convolutions_is_walked_by_its_parts(held, opened):
    def blocks(count):
        return [
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(count)
        ]

    net = nn.Sequential()
    net.add_module("trunk", nn.Sequential(*blocks(held)))
    net.add_module("rest", nn.Sequential(*blocks(20 - held)))
    parts = [f"trunk.{n}" for n in range(held)] if opened else ["trunk"]
    assert layers_to_walk(net, (4, 8, 8)) == [*parts, "rest"]


def test_lists_of_modules_are_walked_by_what_is_in_them():
    """A list is no module that runs, and its convolutions are half of the network's."""

    def block(channels):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU())
        )

    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList([block(3), *(block(4) for _ in range(7))])
            self.decoder = nn.ModuleDict({str(n): block(4) for n in range(7)})
            self.unused = nn.ModuleList([block(4)])
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            for each in (*self.encoder, *self.decoder.values()):
                x = each(x)
            return self.last(x).mean((2, 3))

    encoder, decoder = [f"encoder.{n}" for n in range(8)], [f"decoder.{n}" for n in range(7)]
    assert layers_to_walk(Lists(), (3, 16, 16)) == [*encoder, *decoder, "last"]


def test_only_published_weights_of_googlenet_bring_their_scaling(tmp_path):
    """A user who trained googlenet on other classes fed it pictures as every torchvision net."""
    for classes in (1000, 7):
        net = torchvision.models.googlenet(
            num_classes=classes, aux_logits=False, init_weights=False
        )
        torch.save(net.state_dict(), tmp_path / f"{classes}.pth")
    published = tvc.models.load("googlenet", tmp_path / "1000.pth")
    own = tvc.models.load("googlenet", tmp_path / "7.pth")
    assert published.module.transform_input is True
    assert "transform_input=True" in published.notes[0]
    assert own.module.transform_input is False
    assert own.notes == ()


def test_keras_modes_take_the_nearest_pixel_as_keras_does(picture):
    """load_img(target_size=…) resizes with Pillow's nearest neighbour unless told otherwise."""
    found = preprocess_by_name("none", (3, 50, 40))(picture)[0]
    wanted = np.asarray(picture.resize((40, 50), Image.Resampling.NEAREST)).astype(np.float32)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), wanted)
    kinder = preprocess_by_name("none", (3, 50, 40), nearest=False)(picture)[0]
    assert not np.array_equal(kinder.permute(1, 2, 0).numpy(), wanted)


def test_pictures_without_a_channel_axis(picture):
    found = preprocess_by_name("rescale", (28, 30))([picture, picture])
    assert found.shape == (2, 28, 30)
    gray = np.asarray(picture.resize((30, 28), Image.Resampling.NEAREST).convert("L")) / 255
    assert found[1].numpy() == pytest.approx(gray, abs=1e-6)


def test_a_network_for_pictures_of_another_size():
    usual = tvc.models.load("resnet18", "none")
    larger = tvc.models.load("resnet18", "none", input_size=(3, 448, 448))
    assert larger.input_size == (3, 448, 448)
    # Twice the size of the same part of the picture.
    assert (usual.preprocess.resize, larger.preprocess.resize) == (256, 512)
    wide = tvc.models.load("resnet18", "none", input_size=(3, 96, 160))
    image = Image.effect_noise((640, 400), 60)
    assert wide.prepare(image).shape == (1, 3, 96, 160)
    assert wide.view(image).size == (640, 400)  # the whole picture, squashed
    with pytest.raises(tvc.InputError, match="takes 1×28×28, not 1×32×32"):
        tvc.models.load("mnist_convnet", input_size=(1, 32, 32))


@pytest.mark.parametrize("shape", [(40, 40), (31, 57), (57, 31), (20, 23), (3, 90)])
@pytest.mark.parametrize(("resize", "size"), [(20, (33, 30)), (33, (20, 21)), (21, (20, 20))])
@pytest.mark.parametrize("how", ["nearest", "bilinear", "bicubic"])
def test_pictures_are_resized_and_cut_as_torchvision_does_it(shape, resize, size, how):
    """Also where the cut reaches over the border, and where the margins are odd."""
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    )
    mode = InterpolationMode(how)
    wanted = vision.center_crop(vision.resize(picture, [resize], interpolation=mode), list(size))
    given = Preprocess(size, resize=resize, interpolation=how).pixels(picture)
    assert torch.equal(given, vision.pil_to_tensor(wanted))
    whole = vision.resize(picture, list(size), interpolation=mode)
    assert torch.equal(
        Preprocess(size, interpolation=how).pixels(picture), vision.pil_to_tensor(whole)
    )


def test_an_interpolation_that_is_none_is_refused():
    with pytest.raises(tvc.InputError, match=r"'cubic'.*bicubic"):
        Preprocess((8, 8), interpolation="cubic")


def test_a_strip_of_a_picture_is_cut_before_it_is_enlarged(monkeypatch):
    """20,000 × 2 pixels scaled to a short side of 256 would be 650 million pixels."""
    strip = Image.new("RGB", (20_000, 2), "white")
    strip.paste((255, 0, 0), (9_999, 0, 10_001, 2))  # the middle two pixels
    sizes = []
    resize = Image.Image.resize

    def watched(image, *args, **kwargs):
        resized = resize(image, *args, **kwargs)
        sizes.append(resized.width * resized.height)
        return resized

    monkeypatch.setattr(Image.Image, "resize", watched)
    model = tvc.models.load("resnet18", "none")
    seen = model.preprocess(strip)
    assert max(sizes) < 1_000_000
    redness = seen[0, 0] - seen[0, 1]
    columns = redness.mean(0)
    weight = columns - columns.min()
    middle = float((weight * torch.arange(224.0)).sum() / weight.sum())
    assert middle == pytest.approx(111.5, abs=1.0)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("long", [600, 601])
@pytest.mark.parametrize("size", [(9, 180), (20, 20)])
def test_a_strip_is_cut_where_torchvision_cuts_it(long, size, turned):
    """Also where far more than a square of it is seen, and where it cannot be halved evenly."""
    strip = Image.effect_noise((long, 3), 80).convert("RGB")
    if turned:
        strip, size = strip.transpose(Image.Transpose.ROTATE_90), size[::-1]
    wanted = vision.center_crop(vision.resize(strip, [9]), list(size))
    given = Preprocess(size, resize=9).pixels(strip)
    torch.testing.assert_close(given, vision.pil_to_tensor(wanted), rtol=0, atol=1)


@pytest.mark.parametrize("spec", [None, 3, nn.Conv2d(1, 1, 1)])
def test_what_is_no_name_is_refused(spec):
    with pytest.raises(tvc.InputError, match="a network is named by a string"):
        tvc.models.load(spec)


def test_random_networks_leave_torchs_random_state_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    tvc.models.load("cat_dog_small")
    assert torch.equal(torch.rand(3), wanted)
