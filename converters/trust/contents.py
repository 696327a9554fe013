"""The bytes of a file as a model, or what they are instead."""

from __future__ import annotations

import stat
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from converters.trust.limits import Limits
from converters.trust.survey import survey_bytes
from converters.trust.words import counted
from torchviz_cnn.errors import InputError

EXPORT_FIRST = 'export it to ONNX first; in Keras 3: model.export("model.onnx", format="onnx")'


def bytes_of(path: Path, limits: Limits) -> bytes:
    """The file's bytes, if it is a plain file of a size that is allowed."""
    if "\0" in str(path):
        raise InputError("a path cannot hold a NUL character")
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(_folder_hint(path))
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(status.st_mode):
            raise InputError("it is not a plain file")
        if status.st_size > limits.file_bytes:
            raise InputError(
                f"it has {counted(status.st_size, 'byte')}; the limit is {limits.file_bytes:,} "
                "(Limits.file_bytes)"
            )
        with path.open("rb") as file:
            data = file.read(status.st_size)
    except FileNotFoundError:
        raise InputError("there is no such file") from None
    except OSError as problem:
        raise InputError(f"the system says: {problem.strerror}") from problem
    if not data:
        raise InputError("it is empty; export the network again")
    return data


def _folder_hint(path: Path) -> str:
    if (path / "saved_model.pb").exists():
        return f"it is a TensorFlow SavedModel folder; {EXPORT_FIRST}"
    return "it is a folder; name the .onnx file in it"


SIGNATURES: dict[bytes, str] = {
    b"\x89HDF\r\n\x1a\n": f"it is an HDF5 file, as Keras saves .h5; {EXPORT_FIRST}",
    b"\x89PNG\r\n\x1a\n": "it is a PNG picture, not an ONNX file",
    b"\xff\xd8\xff": "it is a JPEG picture, not an ONNX file",
    b"GIF8": "it is a GIF picture, not an ONNX file",
    b"%PDF": "it is a PDF document, not an ONNX file",
    b"\x1f\x8b": "it is packed with gzip; unpack it first",
    b"\x80\x02": "it is a Python pickle, which could run any program; export the network to ONNX",
    b"\x80\x04": "it is a Python pickle, which could run any program; export the network to ONNX",
    b"\x93NUMPY": "it is a NumPy array, not an ONNX file",
    b"version https://git-lfs": "it is only a pointer of Git LFS; fetch the file with git lfs pull",
}


def _other_format(data: bytes) -> str | None:
    """What a file is that is certainly not ONNX."""
    for signature, sentence in SIGNATURES.items():
        if data.startswith(signature):
            return sentence
    if data.startswith(b"PK\x03\x04"):
        if b"model.weights.h5" in data:
            return f"it is a .keras file; {EXPORT_FIRST}"
        if b"data.pkl" in data:
            return "it is a PyTorch file; export the network to ONNX with torch.onnx.export"
        return f"it is a zip archive; unpack it, or if Keras saved it, {EXPORT_FIRST}"
    if data[4:8] == b"TFL3":
        return "it is a TensorFlow Lite file; export the Keras model to ONNX instead"
    return None


def parse(data: bytes, limits: Limits) -> ModelProto:
    """Unpack the bytes, or say what they look like instead."""
    other = _other_format(data)
    if other is not None:
        raise InputError(other)
    model = ModelProto()
    try:
        survey_bytes(data, limits)
        model.ParseFromString(data)
    except DecodeError as problem:
        if _is_text(data):
            raise InputError("it is text, not an ONNX file") from problem
        raise InputError(
            "it is not ONNX, or it is cut short or damaged; export or fetch it again"
        ) from problem
    if not model.HasField("graph") or not model.graph.node:
        what = "text" if _is_text(data) else "a file without a network (an ONNX graph with nodes)"
        raise InputError(f"it is {what}; export the network to ONNX")
    return model


def _is_text(data: bytes) -> bool:
    # A cut in the middle of a letter would make the sample's last bytes undecodable.
    sample = data[:1000].decode("utf-8", errors="ignore")
    printable = sum(letter.isprintable() or letter in "\r\n\t" for letter in sample)
    return printable == len(sample) and len(sample.encode()) > 0.99 * len(data[:1000])
