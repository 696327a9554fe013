"""Opening a ``.keras`` or ``.h5`` file that nobody vouches for.

Such a file is a description of layers and an HDF5 container of numbers. The description can name
code to be run (a ``Lambda``, a class of the user's), the container can point at other files. Both
are read here, without Keras, before Keras is given the file.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torchviz_cnn.errors import InputError

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
OLDEST_KERAS = (3, 13, 2)  # earlier ones can be made to read other files (CVE-2026-1669)
OF_KERAS_2 = (
    "it is of Keras 2, and Keras 3 cannot read it; load it with tf_keras "
    "(tf_keras.models.load_model) and pass the model to export_keras, or save it there as .h5"
)
_RUN_CODE = frozenset(
    ["FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__"]
)
_MOST_BYTES = 2**31  # protocol buffers, and so ONNX files, end there
_LONGEST_DESCRIPTION = 64 * 2**20


# What zipfile and zlib raise for archives that are not what they say.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


def check_keras_file(path: Path) -> None:
    """Refuse a file that would run code, or point at other files, when Keras loads it.

    Raises:
        InputError: in one sentence, what is wrong with the file.
    """
    if not path.is_file():
        raise InputError(f"cannot read {str(path)!r}: there is no such file")
    suffix = path.suffix.lower()
    if suffix not in KERAS_SUFFIXES:
        raise InputError(
            f"{path.name!r} is no file of a Keras model: give one that ends in .keras or .h5"
        )
    try:
        if suffix == ".keras":
            _check_archive(path)
        else:
            _check_old_file(path)
    except InputError as problem:
        raise InputError(f"cannot read {str(path)!r}: {problem}") from None


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            missing = {"config.json", "model.weights.h5"} - members.keys()
            if missing:
                raise InputError(f"it lacks {sorted(missing)[0]}, which every .keras file has")
            check_sizes(members.values())
            _check_description(archive.read("config.json"))
            with archive.open("model.weights.h5") as weights:
                check_container(weights)
    except DAMAGED_ARCHIVE as error:
        raise InputError(f"it is no .keras file, or a damaged one ({error})") from None


def is_of_keras_2(path: Path) -> bool:
    """Whether a ``.keras`` file says that Keras 2 wrote it."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("metadata.json") as metadata:
            said = json.loads(metadata.read(2**16))
    except (*DAMAGED_ARCHIVE, KeyError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("keras_version")).startswith("2.")


def check_sizes(members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse parts of a ``.keras`` file that unpack to more than they can be.

    Raises:
        InputError: without the file's name.
    """
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"its part {member.filename!r} is packed in a way Keras does not use")
        if member.filename == "config.json" and member.file_size > _LONGEST_DESCRIPTION:
            raise InputError("its description of the network is too long to be one")
        if member.filename == "model.weights.h5":
            if member.file_size > 4 * _MOST_BYTES:
                raise InputError("its weights are more than an ONNX file can hold")
            # Keras does not pack them, and numbers that were learnt hardly can be.
            if member.file_size > max(2**26, 20 * member.compress_size):
                raise InputError("its weights unpack to more than twenty times what is stored")


def _check_old_file(path: Path) -> None:
    with path.open("rb") as file:
        description = check_container(file)
    if description is None:
        raise InputError(
            "it holds weights alone, no network; save the whole model with model.save(...)"
        )
    _check_description(description)


# ---------------------------------------------------------------------------- the description


def parse_description(text: object) -> dict[str, Any]:
    """A model's description as data.

    Raises:
        InputError: without the file's name, which the caller knows.
    """
    if not isinstance(text, (bytes, str)):
        raise InputError("its description of the network is no text")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("its description of the network is no JSON") from None
    if not isinstance(description, dict):
        raise InputError("its description of the network is no JSON object")
    return description


def _check_description(text: object) -> None:
    description = parse_description(text)
    # How the network was trained (its losses, its optimizer) is not loaded.
    network = {
        key: description.get(key) for key in ("module", "class_name", "registered_name", "config")
    }
    for entry in _objects(network):
        _check_object(entry)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every description of an object in a description."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if "class_name" in each:
                yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _check_object(entry: dict[str, Any]) -> None:
    kind = entry.get("class_name")
    config = entry.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    called = f" {name!r}" if isinstance(name, str) else ""
    if kind in _RUN_CODE:
        raise InputError(
            f"its layer{called} is a {kind}, which runs code stored in the file; replace it by a "
            "layer of Keras (Rescaling, Activation, …) and save the model again, or build the "
            "model yourself and pass it to export_keras"
        )
    module, registered = entry.get("module"), entry.get("registered_name")
    if isinstance(module, str) and module.split(".")[0] == "tf_keras":
        raise InputError(OF_KERAS_2)
    foreign = isinstance(registered, str) and ">" in registered
    if isinstance(module, str) and not re.fullmatch(r"(builtins|keras(\..*)?)", module):
        foreign = True
    if isinstance(kind, str) and ">" in kind:
        foreign = True
    if foreign:
        raise InputError(
            f"its layer{called} is a {registered or kind}, a class that is not Keras' own; build "
            "the model yourself and pass it to export_keras"
        )


# ---------------------------------------------------------------------------- the container


# What h5py raises for containers that are not what they say; TypeError is for unknown kinds of
# numbers, ValueError for sizes that NumPy does not have.
DAMAGED_CONTAINER = (OSError, RuntimeError, KeyError, TypeError, ValueError, zlib.error)


def h5py_module() -> Any:
    """The package h5py.

    Raises:
        InputError: where it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(
            "reading Keras' weights needs h5py, which comes with the extra keras: "
            'python -m pip install "torchviz-cnn[keras]"'
        ) from None
    return h5py


def check_container(file: Any) -> Any:
    """Refuse links to other files and sizes that lie; return the description where it is inside.

    Raises:
        InputError: without the file's name, which the caller knows; or that h5py is not installed.
    """
    h5py = h5py_module()
    seekable = file if file.seekable() else io.BytesIO(file.read())
    try:
        with h5py.File(seekable, "r") as container:
            stored = _check_group(h5py, container)
            if stored > _MOST_BYTES:
                raise InputError(
                    f"its weights take {stored / 2**30:.1f} GiB, and an ONNX file holds 2 GiB"
                )
            return container.attrs.get("model_config")
    except InputError:
        raise
    except DAMAGED_CONTAINER as error:
        raise InputError(f"it is no HDF5 file, or a damaged one ({error})") from None


def _check_group(h5py: Any, container: Any) -> int:
    """Bytes of all weights; what the optimizer has stored beside them does not count."""
    total = 0
    waiting = [container]
    seen = set()
    while waiting:
        group = waiting.pop()
        for name in group:
            place = f"{group.name.rstrip('/')}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
                raise InputError(f"{place!r} is a link to another place, which may be any file")
            item = group[name]
            if item.id in seen:  # a hard link, possibly to a group above
                raise InputError(f"{place!r} stands in the file twice")
            seen.add(item.id)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                _check_dataset(place, item)
                total += 0 if place.startswith(("/optimizer", "/_optimizer")) else item.nbytes
    return total


def _check_dataset(place: str, item: Any) -> None:
    if item.external or item.is_virtual:
        raise InputError(f"the numbers of {place!r} lie in another file")
    if item.nbytes > _MOST_BYTES:
        raise InputError(f"{place!r} claims {item.nbytes / 2**30:.1f} GiB")
    if item.nbytes > 2**20 and item.chunks is None and item.id.get_storage_size() < item.nbytes:
        raise InputError(f"{place!r} claims more numbers than the file holds")
