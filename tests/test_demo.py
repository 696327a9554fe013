"""The demo: real digits, a trained network, a page; and Grad-CAM that lies on the strokes."""

import re
import subprocess
import sys
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

import torchviz_cnn as tvc
from tests.networks import pictures, plain, randomised
from torchviz_cnn import demo
from torchviz_cnn.data import digits
from torchviz_cnn.methods import METHODS
from torchviz_cnn.report import Plate, Section, write_page
from torchviz_cnn.training import accuracy, digits_model, train_digits


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own, shared by these tests: one training for all."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TORCHVIZ_CNN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(cache):
    return digits_model()[0]


def test_the_digits_are_framed_and_split_without_overlap():
    data = digits()
    assert len(data.train) + len(data.test) == 1797
    assert data.train.min() == 0
    assert data.train.max() == 1
    assert (data.train[:, :, :4] == 0).all()
    assert (data.train[..., -4:] == 0).all()
    train = {tuple(image.flatten().tolist()) for image in data.train}
    shared = [image for image in data.test if tuple(image.flatten().tolist()) in train]
    assert not shared
    assert data.test_labels.bincount(minlength=10).min() > 20


def test_at_least_97_of_100_held_out_digits_are_read(model):
    data = digits()
    assert accuracy(model.module, data.test, data.test_labels) >= 0.97


def test_training_is_the_same_every_time_and_leaves_the_random_state_alone():
    data = digits()
    few = type(data)(data.train[:128], data.train_labels[:128], data.test, data.test_labels)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_digits(few, epochs=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    second = train_digits(few, epochs=2).state_dict()
    other = train_digits(few, epochs=2, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv_1.conv.weight"], other["conv_1.conv.weight"])


def test_grad_cam_of_a_digit_lies_on_its_strokes(model):
    """Almost all of it within the two pixels a unit sees around the ink."""
    data = digits()
    result = tvc.grad_cam(model, data.test, target=data.test_labels.tolist())
    assert result.layer == "conv_1"
    heat = result.heatmap("receptive_field")
    ink = max_pool2d((data.test > 0.2).float(), 5, 1, 2)[:, 0]
    share = (heat * ink).sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-9)
    assert share.median() > 0.95
    assert ink.mean() < 0.6  # so that lying on the ink means something
    assert (share > ink.mean((1, 2))).float().mean() > 0.98


def test_occlusion_says_nothing_about_empty_paper(model):
    data = digits()
    result = tvc.occlusion(model, data.test[:20], window=6, stride=2)
    empty = max_pool2d(data.test[:20], 13, 1, 6)[:, 0] == 0
    assert empty.any()
    assert (result.maps().abs()[empty]).max() <= 1e-6


def test_the_page_shows_every_layer_and_every_method(model, tmp_path):
    said = []
    page = demo.digits_demo(tmp_path / "out", tell=said.append)
    html = page.read_text(encoding="utf-8")
    shown = set(re.findall(r'src="([^"]+)"', html))
    written = {path.name for path in page.parent.iterdir()}
    assert shown | {"index.html"} == written
    assert {f"{name}.png" for name in METHODS} <= shown
    for row in tvc.layers(model):
        assert any(name.endswith(f"_{row.name}.png") for name in shown)
    assert "a small price on what the last convolution puts out" in html
    assert "% of 360 held-out digits" in said[0]
    assert said[0].startswith("loaded from the cache")
    captions = re.findall(r"<figcaption>([^<]+)</figcaption>", html)
    assert len(captions) == len(shown)
    assert all(caption.strip().endswith((".", "?")) for caption in captions)
    alternatives = dict(re.findall(r'src="([^"]+)" alt="([^"]+)"', html))
    for name in METHODS:
        assert alternatives[f"{name}.png"].startswith(f"{name}: ")
    assert not re.search(r"https?://|<script", html)


def test_a_damaged_cache_is_replaced(cache, model, monkeypatch, tmp_path):
    import torchviz_cnn.training.digits as training

    (tmp_path / "c").mkdir()
    monkeypatch.setenv("TORCHVIZ_CNN_CACHE", str(tmp_path / "c"))
    name = next(cache.glob("*.pt")).name
    (tmp_path / "c" / name).write_bytes(b"damaged")
    monkeypatch.setattr(
        training, "train_digits", lambda progress: training.MnistConvNet()
    )  # training itself is tested above
    again, trained = digits_model()
    assert trained
    loaded, trained = digits_model()
    assert not trained
    x = torch.rand(1, 1, 28, 28)
    assert torch.equal(again(x), loaded(x))


@pytest.mark.parametrize("there", [None, b"", b"damaged", "of another shape", "pickled"])
def test_the_digits_are_scikit_learns_whatever_lies_in_the_cache(monkeypatch, tmp_path, there):
    from sklearn.datasets import load_digits

    monkeypatch.setenv("TORCHVIZ_CNN_CACHE", str(tmp_path))
    file = tmp_path / "digits.npz"
    if isinstance(there, bytes):
        file.write_bytes(there)
    elif there is not None:
        kind = object if there == "pickled" else float
        np.savez(file, originals=np.zeros((7, 8, 8), kind), numbers=np.zeros(7, kind))
    first = digits()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    again = digits()  # out of the cache: scikit-learn cannot be imported now
    bundle = load_digits()
    for data in (first, again):
        assert torch.cat([data.train_labels, data.test_labels]).bincount().tolist() == list(
            np.bincount(bundle.target)
        )
        # enlarged by 2.5, the mean of a digit stays within a few percent of the original's
        ink = torch.cat([data.train, data.test]).mean() * 28 * 28 / (20 * 20)
        assert float(ink) == pytest.approx(bundle.images.mean() / 16, rel=0.03)
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.test_labels, again.test_labels)


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TORCHVIZ_CNN_CACHE", str(tmp_path / "file" / "cache"))
    assert len(digits().train) == 1437


def test_the_second_run_imports_nothing_that_it_does_without(cache, model, tmp_path):
    """scikit-learn, torchvision and torch's compiler take as long to import as all the rest."""
    code = (
        "import sys\n"
        "from torchviz_cnn.demo import digits_demo\n"
        f"digits_demo({str(tmp_path)!r})\n"
        "print([n for n in ('sklearn', 'torchvision', 'torch._dynamo') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_without_scikit_learn_the_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHVIZ_CNN_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    start = time.monotonic()
    with pytest.raises(tvc.InputError, match=r"torchviz-cnn\[demo\]"):
        digits()
    assert time.monotonic() - start < 10


def test_pictures_of_any_name_are_found_from_the_page(tmp_path):
    """What a browser asks for, having read the page, is the file."""
    names = ["cat #1.png", "50 % off.png", "a?b.png", "ü&ö.png", "relu@1.png", 'say "x".png']
    plates = [Plate(name, Image.new("RGB", (4, 4)), name) for name in names]
    page = write_page(tmp_path / "o", "t", "", [Section("s", "", plates)]).read_text()
    for attribute in ("src", "href"):
        found = re.findall(rf'<[^>]*{attribute}="([^"#][^"]*)"', page)
        asked = [urljoin(f"{(tmp_path / 'o').as_uri()}/index.html", unescape(each)) for each in found]  # fmt: skip
        assert [Path(url2pathname(urlsplit(each).path)).name for each in asked] == names
        assert not any(urlsplit(each).fragment or urlsplit(each).query for each in asked)


def test_what_a_page_shows_is_escaped(tmp_path):
    """A class may be called anything, and a file may have any name."""
    nasty = "<b>\"cat\" & 'dog'</b>"
    plate = Plate("a&b.png", Image.new("RGB", (4, 4)), nasty)
    page = write_page(tmp_path, nasty, nasty, [Section(nasty, nasty, [plate], nasty)])
    html = page.read_text(encoding="utf-8")
    assert "<b>" not in html

    class Reader(HTMLParser):
        """What a browser would show."""

        def __init__(self):
            super().__init__()
            self.words, self.attributes = [], []

        def handle_data(self, data):
            self.words.append(data)

        def handle_starttag(self, tag, attrs):
            self.attributes += [value for _, value in attrs]

    reader = Reader()
    reader.feed(html)
    assert reader.words.count(nasty) >= 6  # title, heading, lead, link, section, text, listing
    assert nasty in reader.attributes  # the picture's alternative text
    assert "a%26b.png" in reader.attributes


def test_the_lowest_probability_is_told_as_the_picture_shows_it_and_as_it_was_found():
    """Windows overlap, and a pixel of the picture is the mean over those that hid it."""
    given, window, stride = pictures(1, 3, 12, 12), 4, 2
    result = tvc.occlusion(randomised(plain()), given, 1, window=window, stride=stride)
    chances = result.scores[0].softmax(-1)[..., 1].numpy()
    total, count = np.zeros((12, 12)), np.zeros((12, 12))
    for row, column in np.ndindex(chances.shape):
        y, x = row * stride, column * stride
        total[y : y + window, x : x + window] += chances[row, column]
        count[y : y + window, x : x + window] += 1
    assert f"{100 * chances.min():.1f}" != f"{100 * (total / count).min():.1f}"
    section = demo._explanations(Image.new("RGB", (12, 12)), {"occlusion": result}, "1", "stretch")
    caption = next(p.caption for p in section.plates if p.file == "occlusion_probability.png")
    assert re.findall(r"([\d.]+) %", caption) == [
        f"{100 * (total / count).min():.1f}",
        f"{100 * chances.min():.1f}",
    ]
