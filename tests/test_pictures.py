"""Every kind of picture file becomes 8-bit RGB, the right way up; every kind of rubbish a sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from torchviz_cnn import InputError
from torchviz_cnn.pictures import read_picture, read_with_remarks, to_image


def pixels(path):
    image = read_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def gradient():
    """64 gray values from 0 to 252 in an 8×8 picture."""
    return (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)


def test_8_bit_palette_gives_the_colours_of_the_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_16_bits_are_scaled_and_not_clipped(tmp_path):
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert pixels(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_dark_16_bit_picture_stays_dark(tmp_path):
    Image.fromarray(np.full((2, 2), 1000, np.uint16)).save(tmp_path / "dark.png")
    assert pixels(tmp_path / "dark.png").max() == round(1000 * 255 / 65535)


def test_a_16_bit_picture_of_small_numbers_is_still_16_bits(tmp_path):
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(tmp_path / "black.png")
    assert pixels(tmp_path / "black.png").max() == 1


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    red, green, blue = pixels(tmp_path / "red.tif")[0, 0]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize(
    ("name", "options", "remark"),
    [
        ("phone.jpg", {"format": "MPO"}, "several pictures in one file: the first is used"),
        ("pages.tiff", {}, "several pictures in one file: the first is used"),
        ("film.gif", {}, "an animation: its first frame is used"),
        ("film.png", {}, "an animation: its first frame is used"),
    ],
)
def test_of_several_pictures_in_a_file_the_first_is_read_and_it_is_said(
    tmp_path, name, options, remark
):
    """A phone's JPEG holds the photograph first, and smaller ones or a depth map after it."""
    first, second = (Image.new("RGB", (16, 8), shade) for shade in ("red", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    image, remarks = read_with_remarks(tmp_path / name)
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() < 4
    assert remark in remarks


def test_transparent_parts_become_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    image.save(tmp_path / "glass.png")
    assert pixels(tmp_path / "glass.png")[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_transparency_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "p.png")[0].tolist() == [[255, 255, 255], [200, 0, 0]]


def test_exif_rotation_is_applied(tmp_path, gradient):
    image = Image.fromarray(gradient[:4])  # 8 wide, 4 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(gradient[:4], -1)
    assert np.array_equal(pixels(tmp_path / "turned.png")[:, :, 0], expected)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_what_pillow_makes_of_it(tmp_path, gradient, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(gradient[:4]).save(path, exif=exif)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    found, remarks = read_with_remarks(path)
    assert np.array_equal(np.asarray(found)[:, :, 0], wanted)
    assert ("turned upright, as its EXIF data says" in remarks) == (2 <= orientation <= 8)


def exif_bytes(*entries):
    """EXIF data of the given tags: (tag, type, count, four bytes)."""
    table = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(80)


@pytest.mark.parametrize(
    "broken",
    [
        (0x010F, 5, 1, struct.pack("<I", 20)),  # the camera's maker as a fraction
        (0x010E, 11, 1, struct.pack("<f", 0.5)),  # a description as a number
        (0x011A, 2, 4, b"abc\0"),  # a resolution in letters
        (0x0128, 6, 1, b"\xff\0\0\0"),  # a unit below 0
        (0x8769, 4, 1, struct.pack("<I", 2**31)),  # more data before the file's beginning
    ],
)
def test_a_photograph_with_broken_exif_data_is_a_photograph(tmp_path, broken):
    upright = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (16, 8), "red").save(path, exif=exif_bytes(upright, broken))
    assert read_picture(path).size == (8, 16)


def test_what_the_system_says_is_not_called_damage(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png/b\.png' cannot be read: Not a directory"):
        read_picture(tmp_path / "a.png" / "b.png")


def test_gray_one_bit_and_animated(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "gray.png")
    assert np.array_equal(pixels(tmp_path / "gray.png")[:, :, 1], gradient)
    Image.new("1", (3, 3), 1).save(tmp_path / "bit.png")
    assert pixels(tmp_path / "bit.png").min() == 255
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "moves.gif")[0, 0].tolist() == [255, 0, 0]


def broken_png() -> bytes:
    """A header that promises 100×100 pixels, and a stream that ends early."""
    buffer = io.BytesIO()
    Image.effect_noise((100, 100), 50).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


def png_with_bad_stream() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", b"nonsense")
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"just some text", "not a picture"),
        (b"", "not a picture"),
        (broken_png(), "damaged"),
        (png_with_bad_stream(), "damaged"),
    ],
    ids=["text", "empty", "truncated", "bad stream"],
)
def test_a_file_that_is_no_picture_is_a_sentence(tmp_path, content, words):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_picture(path)
    assert "bad.png" in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_picture(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)


def test_arrays_in_every_order_and_range(gradient):
    expected = np.stack([gradient] * 3, 2)
    for array in (gradient, gradient[:, :, None], gradient[None], gradient / 255, expected):
        assert np.array_equal(np.asarray(to_image(array)), expected)
    channels_first = np.moveaxis(expected, 2, 0)
    assert np.array_equal(np.asarray(to_image(channels_first)), expected)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 4, 5)), np.full((4, 4), -1.0), np.full((4, 4), np.nan)]
)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(InputError):
        to_image(array)
