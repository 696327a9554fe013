"""Names in any script: in a font that has them, or as boxes and one plain note."""

import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text
from PIL import Image, ImageDraw

from torchviz_cnn import render
from torchviz_cnn.render import glyphs
from torchviz_cnn.render.text import elide, fit, font, text_width, wrap

# Not in DejaVu Sans, but in STIX, which matplotlib brings along too.
CIRCLED = "ⒶⒷⓜ"
NOWHERE = "\U0010fffd"  # for private use, so in no font


@pytest.fixture
def notes(monkeypatch):
    """What is told while a test runs, as if nothing had been told before."""
    glyphs._tell.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    glyphs._tell.cache_clear()


def figures(name):
    """A figure of every kind in which names stand."""
    names = [f"{name} one", f"{name} two"]
    gram = (np.eye(4), np.ones((4, 4)))
    view = Image.new("RGB", (20, 20))
    yield render.confusion_matrix(np.eye(2, dtype=int), names)
    yield render.shares_figure(names, {name: [0.1, 0.2]}, title=name)
    yield render.errors_figure(names, [1e-7, 1e-6], bounds=[(1e-3, name)], title=name)
    yield render.curves_figure(np.zeros((2, 3)), names, x=name, y=name, title=name)
    yield render.attribution_figure(np.eye(20), picture=view, title=name, unit=name)
    yield render.style_figure(
        names, [gram] * 2, np.array([0.1, 0.2]), pictures=(view, view), names=(name, name)
    )


def sheets(name):
    """The same of what is drawn without matplotlib."""
    view = Image.new("RGB", (60, 60))
    yield render.sheet([[view]], [name], [name], title=name)
    yield render.contact_sheet([view], [name], title=name)
    yield render.units(np.arange(3.0), labels=[name] * 3, title=name)
    yield render.feature_maps(np.zeros((2, 9, 9)), title=name)
    yield render.color_scale("jet", 0.0, 1.0, name, 200)


def words_of(figure):
    figure.canvas.draw()
    return [text for text in figure.findobj(Text) if text.get_text()]


def test_what_dejavu_has_not_is_drawn_in_a_font_that_has_it(notes):
    codes = set(get_font(glyphs.DEJAVU).get_charmap())
    assert not codes & set(map(ord, CIRCLED))
    for figure in figures(CIRCLED):
        ours = [text for text in words_of(figure) if CIRCLED[0] in text.get_text()]
        assert ours
        for text in ours:
            families = text.get_fontfamily()
            found = [entry for entry in fontManager.ttflist if entry.name in families[1:]]
            assert found
            assert set(map(ord, CIRCLED)) <= {
                c for e in found for c in get_font(e.fname).get_charmap()
            }
    for _ in sheets(CIRCLED):
        pass
    assert not notes


def test_a_line_of_two_fonts_has_the_ink_of_both_on_one_base_line(notes):
    ((path, other),) = {(path, words) for words, path in glyphs.runs("xⒶ") if path != glyphs.DEJAVU}
    assert other == "Ⓐ"
    sheet = render.contact_sheet([Image.new("RGB", (60, 60))], ["xⒶx"])
    found = np.asarray(sheet)[12 + 192 + 3 :, 12:].min(2)
    wanted = Image.new("RGB", (found.shape[1], found.shape[0]), "white")
    draw = ImageDraw.Draw(wanted)
    base, x = font(12).getmetrics()[0], 0.0
    for words, file in (("x", glyphs.DEJAVU), ("Ⓐ", path), ("x", glyphs.DEJAVU)):
        draw.text((x, base), words, fill=(32, 32, 32), font=font(12, file), anchor="ls")
        x += font(12, file).getlength(words)
    assert np.array_equal(found, np.asarray(wanted).min(2))
    assert text_width("xⒶx") == int(x) + 1


@pytest.mark.parametrize("kind", [figures, sheets])
def test_what_no_font_has_is_a_box_and_is_told_once_in_plain_words(notes, kind):
    for _ in range(2):
        for each in kind(f"cat {NOWHERE}"):
            if kind is figures:
                texts = [text.get_text() for text in words_of(each)]
                assert any(f"cat {glyphs.MISSING}" in text for text in texts)
                assert not any(NOWHERE in text for text in texts)
    (note,) = notes
    assert str(note.message).startswith("no installed font has some characters of these names")


def test_latin_greek_and_cyrillic_names_are_left_as_they_are(notes):
    name = "très grand, Ωmega, кот"
    assert glyphs.legible(name) == name
    assert glyphs.runs(name) == [(name, glyphs.DEJAVU)]
    for figure in figures(name):
        assert {tuple(text.get_fontfamily()) for text in words_of(figure)} == {
            tuple(matplotlib.rcParams["font.family"])
        }
    assert not notes


@pytest.mark.parametrize("name", ["$_$ a", r"$\frac$", "US$ to CA$", "$x$"])
def test_a_dollar_in_a_name_begins_no_formula(notes, name):
    for figure in figures(name):
        ours = [text for text in words_of(figure) if "$" in text.get_text()]
        drawn = [text._preprocess_math(text.get_text()) for text in ours]
        # Powers of ten at an axis are matplotlib's own formulas, and stay such.
        formulas = [words for words, is_formula in drawn if is_formula]
        assert all("mathdefault" in words for words in formulas)
        assert bool(formulas) == (figure.axes[0].get_yscale() == "log")
        assert any(name in words for words, is_formula in drawn if not is_formula)
    assert not notes


@pytest.mark.parametrize("between", ["\n", "\t", "\r\n", "\x07"])
def test_what_has_no_shape_is_a_space_in_a_name(notes, between):
    name = f"two{between}words"
    spaces = " " * len(between)
    assert fit(name, 200) == elide(name, 200) == f"two{spaces}words"
    assert text_width(name) == text_width(f"two{spaces}words")
    for kind in (figures, sheets):
        for each in kind(name):
            if kind is figures:
                assert not any(set(text.get_text()) & set("\t\r\a") for text in words_of(each))
    assert not notes


def test_names_in_two_fonts_are_cut_and_wrapped_to_their_width():
    name = f"{CIRCLED} and more of {CIRCLED * 9}"
    assert text_width(fit(name, 90)) <= 90
    assert text_width(elide(name, 90)) <= 90
    assert elide(name, 90).endswith("ⓜ")
    lines = wrap(name, 90)
    assert all(text_width(line) <= 90 for line in lines)
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")
