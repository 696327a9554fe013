"""Pictures from files, whatever kind of file: to 8-bit RGB, the right way up."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from torchviz_cnn.errors import InputError

Picture = str | Path | Image.Image | np.ndarray | Tensor

# What Pillow's decoders raise on files that begin well and go wrong.
_DECODING = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture file as 8-bit RGB.

    Rotated as its EXIF data says; palettes, gray, CMYK and 16-bit pictures are converted (16 bits
    are scaled, not clipped); transparent parts become white; of an animation the first frame.

    Args:
        path: a file of any format Pillow reads.

    Raises:
        InputError: when the file is missing, is no picture, or is damaged.
    """
    return read_with_remarks(path)[0]


def read_with_remarks(path: str | Path) -> tuple[Image.Image, tuple[str, ...]]:
    """As :func:`read_picture`, and what was done to the picture to make it 8-bit RGB, upright.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 4)).save(f"{folder}/a.png")
        ...     read_with_remarks(f"{folder}/a.png")[1]
        ('gray: used as red, green and blue alike',)
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.format == "PNG":  # its EXIF data may stand behind its pixels
                image.load()
            remarks = _remarks(image)
            image.load()
            # Pillow has called a PNG of 16 bits "I", and "I;16" since version 11.
            sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
            turned = _upright(image)
            return _from_16_bits(turned) if sixteen else _to_rgb(turned), remarks
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise InputError(f"{str(path)!r} is a folder, not a picture") from None
    except PermissionError:
        raise InputError(f"{str(path)!r} may not be read") from None
    except UnidentifiedImageError:
        raise InputError(f"{str(path)!r} is not a picture of a format that can be read") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{str(path)!r} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; "
            "scale it down first"
        ) from None
    except _DECODING as error:
        if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
            raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
        raise InputError(f"{str(path)!r} is damaged and cannot be read: {error}") from None


_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # phones' photographs and TIFF hold several that stand
_ORIENTATION = 0x0112  # the tag of EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> object:
    """How an opened picture lies by its EXIF data; 1, upright, where these cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _DECODING:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """A loaded picture the right way up.

    Pillow's own ``exif_transpose`` writes all other EXIF data anew as well, and stumbles over
    damaged ones, of which the picture knows nothing.
    """
    how = _UPRIGHT.get(_orientation(image))  # type: ignore[call-overload]
    return image if how is None else image.transpose(how)


def _remarks(image: Image.Image) -> tuple[str, ...]:
    """What an opened picture is besides plain RGB, and what is done about it."""
    several = getattr(image, "n_frames", 1) > 1
    found = {
        "an animation: its first frame is used": several and image.format in _MOVING,
        "several pictures in one file: the first is used": several and image.format not in _MOVING,
        "CMYK: converted to RGB": image.mode == "CMYK",
        "gray: used as red, green and blue alike": image.mode in ("L", "LA", "La", "1"),
        "more than 8 bits deep: scaled to 8": image.mode.startswith(("I", "F")),
        "partly transparent: laid on white": image.mode in _TRANSPARENT
        or "transparency" in image.info,
        "turned upright, as its EXIF data says": _orientation(image) in _UPRIGHT,
    }
    return tuple(words for words, so in found.items() if so)


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values * (255 / 65535)).astype(np.uint8)).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Integers are taken as 16 bits when they exceed 8; floats as 0…1 unless they exceed it."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("the picture holds NaN or infinite numbers")
    top = values.max(initial=0)
    scale = 255.0 if top <= 1 and values.size and (values % 1).any() else 1.0
    if top > 255:
        scale = 255 / max(65535.0, top)
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def to_image(picture: Picture) -> Image.Image:
    """A picture given in any form as an 8-bit RGB image.

    Args:
        picture: a path, a PIL image, or an array or tensor ``(H, W)``, ``(H, W, 1 or 3)`` or
            ``(1 or 3, H, W)``: bytes, or floats from 0 to 1.

    Raises:
        InputError: for anything else.

    Example:
        >>> import numpy as np
        >>> to_image(np.zeros((4, 6, 3), np.uint8)).size
        (6, 4)
    """
    if isinstance(picture, str | Path):
        return read_picture(picture)
    if isinstance(picture, Image.Image):
        return _to_rgb(picture)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().float().numpy()
    if not isinstance(picture, np.ndarray):
        raise InputError(f"a picture is a file, a PIL image or an array, not {type(picture)}")
    array = picture
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise InputError(f"an array of shape {picture.shape} is not a picture (H, W) or (H, W, 3)")
    if array.dtype != np.uint8:
        array = array.astype(np.float64)
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
            raise InputError("a picture's numbers must lie in 0…1 or 0…255")
        array = np.rint(array * (255 if array.max() <= 1 else 1)).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")
