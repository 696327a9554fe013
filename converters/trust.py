"""The gate for files: an ONNX file that nobody vouches for is read, judged, and let in or refused.

A file of a few hundred bytes can name other files on the disk, ask for terabytes, or hold programs
inside programs; and onnx loads most such files without a word, for it leaves the judging to whoever
runs them. Nothing behind this gate has to ask again: every tensor has the bytes that its shape
needs, every node takes what an earlier one gave, and no node makes more than a stated number of
elements.

Three steps, each cheap enough for the next to be safe: the bytes are surveyed before protobuf
unpacks them; the unpacked model is checked part by part; then the shapes are worked out node by
node, in running order, so that growth is stopped where it starts.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.descriptor import (  # type: ignore[import-untyped]
    Descriptor,
    FieldDescriptor,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, checker, defs
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.helper import make_opsetid, make_tensor_type_proto
from onnx.numpy_helper import from_array, to_array
from onnx.shape_inference import InferenceError, infer_node_outputs

from torchviz_cnn.errors import InputError

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int | None, ...]

STANDARD_DOMAINS = ("", "ai.onnx")
MOST_AXES = 64  # neither torch nor NumPy has tensors of more axes
KNOWN_VALUES = 64  # a shape has no more numbers than a tensor has axes
EXPORT_FIRST = 'export it to ONNX first; in Keras 3: model.export("model.onnx", format="onnx")'


@dataclass(frozen=True)
class Limits:
    """How much a file may ask for before it is refused. Raise one for a file that you trust.

    Attributes:
        file_bytes: the size of the file; protobuf itself ends at 2 GiB.
        weight_bytes: all tensors stored in the file together.
        external_bytes: all tensors together where external data was asked for.
        nodes: the nodes, and the tensors that they put out.
        inputs: the inputs that are not weights.
        elements: the elements of any one tensor that a node makes, for one picture.
        fields: the single fields and messages in the file, which protobuf turns into objects.

    >>> Limits(nodes=50).nodes
    50
    """

    file_bytes: int = 2**31 - 1
    weight_bytes: int = 2**31
    external_bytes: int = 2**34
    nodes: int = 10_000
    inputs: int = 64
    elements: int = 2**28
    fields: int = 500_000


def read_model(
    path: str | Path, *, external_data: bool = False, limits: Limits = Limits()
) -> ModelProto:
    """Read an ONNX file without trusting it.

    Operators that the standard does not know are let through, for a reader of Keras files can say
    more about them than that they are unknown: ask `unknown_operators`.

    Args:
        path: the file.
        external_data: whether weights may lie in other files; never outside the model's folder,
            and never behind a link (CVE-2026-27489 and CVE-2026-34446 are what onnx before 1.21
            allowed).
        limits: how much the file may ask for.

    Returns:
        The model with all its weights inside; the domain ``ai.onnx`` is written as ``""``, its
        other name.

    Raises:
        InputError: in one sentence, what is wrong with the file, where, and what would be right.

    >>> read_model("no such file.onnx")
    Traceback (most recent call last):
    ...
    torchviz_cnn.errors.InputError: cannot read 'no such file.onnx': there is no such file
    """
    try:
        data = _bytes_of(Path(path), limits)
        model = _parse(data, limits)
        del data
        _check_model(model, limits)
        _settle_weights(model, Path(path).parent, external_data, limits)
        _check_known_nodes(model)
        _check_sizes(model, limits)
    except InputError as problem:
        raise InputError(f"cannot read {_quoted(str(path))}: {problem}") from problem.__cause__
    return model


def opset(model: ModelProto) -> int:
    """The version of the standard operators that a model is written in.

    Raises:
        InputError: when it names none, two, or one that does not exist.

    >>> opset(onnx.helper.make_model(onnx.GraphProto(), opset_imports=[make_opsetid("", 15)]))
    15
    """
    found = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if len(found) != 1:
        raise InputError(
            f"it names {len(found) or 'no'} versions of the standard operators (its opset) where "
            "exactly one is needed; export it again"
        )
    newest = defs.onnx_opset_version()
    if not 1 <= found[0] <= newest:
        raise InputError(
            f"its opset is {found[0]}, and onnx {onnx.__version__} knows 1 to {newest}; "
            "export it with one of these, 15 for example"
        )
    return found[0]


def unknown_operators(model: ModelProto) -> list[NodeProto]:
    """The nodes whose operator is not in the model's opset, or was withdrawn before it.

    >>> erfc = onnx.helper.make_node("Erfc", ["x"], ["y"])
    >>> graph = onnx.GraphProto(node=[erfc])
    >>> model = onnx.helper.make_model(graph, opset_imports=[make_opsetid("", 15)])
    >>> [node.op_type for node in unknown_operators(model)]
    ['Erfc']
    """
    version = opset(model)
    return [node for node in model.graph.node if _schema(node.op_type, version) is None]


# --- the file ------------------------------------------------------------------------------------


def _bytes_of(path: Path, limits: Limits) -> bytes:
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
                f"it has {_count(status.st_size, 'byte')}; the limit is {limits.file_bytes:,} "
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


def _parse(data: bytes, limits: Limits) -> ModelProto:
    """Unpack the bytes, or say what they look like instead."""
    other = _other_format(data)
    if other is not None:
        raise InputError(other)
    model = ModelProto()
    try:
        _survey(data, limits)
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


# --- the survey: protobuf's wire format, before anything is unpacked -------------------------------

VARINT, BYTES = 0, 2
FIXED = {1: 8, 5: 4}
MOST_NESTING = 40  # a tensor in a node of a plain graph lies five deep
PACKED_INTEGERS = {
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
}


@dataclass(frozen=True)
class _Message:
    """Of one kind of message, the numbers of the fields that the survey looks into."""

    messages: dict[int, Descriptor]
    texts: frozenset[int]
    integers: frozenset[int]


@cache
def _layout(descriptor: Descriptor) -> _Message:
    fields = descriptor.fields
    return _Message(
        {f.number: f.message_type for f in fields if f.message_type is not None},
        frozenset(f.number for f in fields if f.type == FieldDescriptor.TYPE_STRING),
        frozenset(f.number for f in fields if f.type in PACKED_INTEGERS),
    )


def _survey(data: bytes, limits: Limits) -> None:
    """Count what protobuf would unpack, and check that all text is text.

    Two bytes of a file become a node of a hundred bytes in memory, so the number has to be known
    first. Names that are not UTF-8 would come out as bytes and break whoever expects a string.

    Raises:
        DecodeError: when the bytes are no protobuf message.
        InputError: when there are too many fields, or too deep.
    """
    position = fields = integer_bytes = 0
    open_messages = [(_layout(ModelProto.DESCRIPTOR), len(data))]
    while open_messages:
        layout, end = open_messages[-1]
        if position == end:
            open_messages.pop()
            continue
        fields += 1
        if fields > limits.fields:
            raise InputError(
                f"it consists of more than {_count(limits.fields, 'field')} (Limits.fields), "
                "far more than a network of the size allowed needs"
            )
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, position = _varint(data, position, end)
            continue
        length = FIXED.get(wire)
        if wire == BYTES:
            length, position = _varint(data, position, end)
        if length is None or position + length > end or number == 0:
            raise DecodeError("a field that ends behind its message, or of no known kind")
        if wire == BYTES and number in layout.messages:
            _check_nesting(len(open_messages))
            open_messages.append((_layout(layout.messages[number]), position + length))
            continue
        if wire == BYTES and number in layout.texts:
            _check_text(data[position : position + length])
        if wire == BYTES and number in layout.integers:
            integer_bytes += length
        position += length
    # Each byte of a packed list of integers may become one of eight bytes.
    if 8 * integer_bytes > limits.weight_bytes:
        raise InputError(
            f"its lists of integers unpack to {_count(8 * integer_bytes, 'byte')}; the limit is "
            f"{limits.weight_bytes:,} (Limits.weight_bytes)"
        )


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("a number without an end")


def _check_nesting(depth: int) -> None:
    if depth > MOST_NESTING:
        raise InputError(
            f"it is nested more than {MOST_NESTING} deep, as only graphs within graphs are; "
            "export a network without conditions and loops"
        )


def _check_text(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as problem:
        raise InputError(
            f"it holds a name that is not text ({text[:20]!r}); it is damaged, export it again"
        ) from problem


# --- the model, part by part -----------------------------------------------------------------------


def _check_model(model: ModelProto, limits: Limits) -> None:
    """Everything that can be said without looking at weights or shapes."""
    _check_versions(model)
    _check_counts(model, limits)
    graph = model.graph
    if model.functions:
        raise InputError(
            f"it defines operators of its own, {_quoted(model.functions[0].name)} for one; inline "
            "them first with onnx.inliner.inline_local_functions"
        )
    if model.training_info:
        raise InputError("it holds a program for training; export the network for inference")
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise InputError(f"its tensor {_quoted(name)} is sparse; store all weights dense")
    for index, node in enumerate(graph.node):
        _check_node(node, _title(node, index))
    _check_inputs(model, limits)
    _check_order(model)
    _use_one_domain(model)


def _check_counts(model: ModelProto, limits: Limits) -> None:
    nodes = len(model.graph.node)
    outputs = sum(len(node.output) for node in model.graph.node)
    if max(nodes, outputs) > limits.nodes:
        raise InputError(
            f"it has {_count(nodes, 'node')} that put out {_count(outputs, 'tensor')}; the limit "
            f"is {limits.nodes:,} (Limits.nodes)"
        )


def _check_versions(model: ModelProto) -> None:
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise InputError(
            f"its format version is {model.ir_version}, and onnx {onnx.__version__} reads 3 to "
            f"{onnx.IR_VERSION}; export it again, or install a newer onnx"
        )
    opset(model)


def _check_node(node: NodeProto, title: str) -> None:
    """That a node is one plain operator of the standard."""
    if node.domain not in STANDARD_DOMAINS:
        raise InputError(
            f"{title} is of the domain {_quoted(node.domain)}; only the standard ONNX operators "
            "are read, so export without custom operators and without runtime optimisations"
        )
    if not node.op_type:
        raise InputError(f"{title} names no operator; it is damaged, export it again")
    names = set()
    for attribute in node.attribute:
        where = f"{title}, attribute {_quoted(attribute.name)},"
        if attribute.HasField("g") or attribute.graphs:
            raise InputError(
                f"{where} holds a graph within the graph; conditions and loops (If, Loop, Scan) "
                "are not read, so export a network without them"
            )
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise InputError(f"{where} is a sparse tensor; store it dense")
        if attribute.ref_attr_name:
            raise InputError(f"{where} takes its value from a function, and there is none")
        if attribute.name in names:
            raise InputError(f"{where} is there twice; it is damaged, export it again")
        names.add(attribute.name)


def _check_inputs(model: ModelProto, limits: Limits) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) > limits.inputs:
        raise InputError(
            f"it has {_count(len(inputs), 'input')}; the limit is {limits.inputs:,} (Limits.inputs)"
        )
    for entry in model.graph.input:
        where = f"the input {_quoted(entry.name)}"
        if not entry.type.HasField("tensor_type"):
            raise InputError(f"{where} is not a tensor; a picture is one")
        if entry.type.tensor_type.elem_type not in BITS:
            raise InputError(f"{where} has no known data type; export it again")
        dims = [1 if dim is None else dim for dim in _shape_of(entry.type) or ()]
        _check_extent(dims, where, limits)


def _check_order(model: ModelProto) -> None:
    """That every tensor is made once, and before it is used."""
    graph = model.graph
    inputs = [entry.name for entry in graph.input]
    weights = [tensor.name for tensor in graph.initializer]
    _check_distinct(inputs, "input")
    _check_distinct(weights, "weight")
    _check_distinct([entry.name for entry in graph.output], "output")
    known = {*inputs, *weights}
    made_somewhere = {name for node in graph.node for name in node.output}
    for index, node in enumerate(graph.node):
        title = _title(node, index)
        for name in filter(None, node.input):
            if name not in known:
                raise InputError(_unmade(title, name, name in made_somewhere))
        for name in filter(None, node.output):
            if name in known:
                raise InputError(
                    f"{title} makes the tensor {_quoted(name)}, which is there already; each "
                    "tensor is made once, so export it again"
                )
            known.add(name)
    if not graph.output:
        raise InputError("the network has no output; export it again")
    for entry in graph.output:
        if entry.name not in known:
            raise InputError(f"no node makes the output {_quoted(entry.name)}; export it again")


def _check_distinct(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise InputError(
                f"the {what} {_quoted(name)} is there twice; export it again"
                if name
                else f"one {what} has no name; export it again"
            )
        seen.add(name)


def _unmade(title: str, name: str, later: bool) -> str:
    if later:
        return (
            f"{title} uses the tensor {_quoted(name)} before it is made; nodes stand in the order "
            "in which they run, and never in a circle"
        )
    return f"{title} uses the tensor {_quoted(name)}, which nothing makes; export it again"


def _use_one_domain(model: ModelProto) -> None:
    """Write ``ai.onnx`` as ``""``: onnx2torch and the checker know the standard by that name."""
    for entry in (*model.graph.node, *model.opset_import):
        if entry.domain == "ai.onnx":
            entry.ClearField("domain")


# The names come from files, so that there may be any number of them.
@lru_cache(1024)
def _schema(op_type: str, version: int) -> defs.OpSchema | None:
    try:
        schema = defs.get_schema(op_type, version, "")
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _check_known_nodes(model: ModelProto) -> None:
    """Inputs, outputs and attributes of each known operator, by onnx's own rules."""
    version = opset(model)
    context = checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {"": version}
    for index, node in enumerate(model.graph.node):
        if _schema(node.op_type, version) is None:
            continue
        title = _title(node, index)
        for attribute in node.attribute:
            _check_integers(node, attribute, title)
        try:
            checker.check_node(node, context)
        except checker.ValidationError as problem:
            raise InputError(f"{title} breaks the rules of ONNX: {_words(problem)}") from problem
        for attribute in node.attribute:
            _check_attribute_text(attribute, title)


# These may say "to the end" with the largest integer, or hold any number at all.
UNBOUNDED_INTEGERS = {"Slice", "Constant"}


def _check_integers(node: NodeProto, attribute: AttributeProto, title: str) -> None:
    """Strides, pads and sizes near 2**63 would overflow where shapes are worked out."""
    if node.op_type in UNBOUNDED_INTEGERS:
        return
    for value in (attribute.i, *attribute.ints):
        if abs(value) >= 2**31:
            raise InputError(
                f"{title}, attribute {_quoted(attribute.name)}, has the absurd value {value}; "
                "export it again"
            )


def _check_attribute_text(attribute: AttributeProto, title: str) -> None:
    """Words such as ``auto_pad`` are bytes to protobuf, and text to every reader."""
    for text in (attribute.s, *attribute.strings):
        try:
            text.decode()
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{title}, attribute {_quoted(attribute.name)}, is not text; export it again"
            ) from problem


# --- tensors: dims against bytes ---------------------------------------------------------------------

T = TensorProto

_BITS_BY_NAME = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("BOOL", "UINT8", "INT8", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 8),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("UINT32", "INT32", "FLOAT"), 32),
    **dict.fromkeys(("UINT64", "INT64", "DOUBLE", "COMPLEX64"), 64),
    "COMPLEX128": 128,
    "STRING": 0,
}
# Older releases of onnx do not know the narrowest types.
BITS: dict[int, int] = {
    getattr(T, name): bits for name, bits in _BITS_BY_NAME.items() if hasattr(T, name)
}
LISTS: dict[int, str] = dict.fromkeys(BITS, "int32_data") | {
    T.FLOAT: "float_data",
    T.COMPLEX64: "float_data",
    T.DOUBLE: "double_data",
    T.COMPLEX128: "double_data",
    T.INT64: "int64_data",
    T.UINT32: "uint64_data",
    T.UINT64: "uint64_data",
    T.STRING: "string_data",
}
ALL_LISTS = sorted(set(LISTS.values()))


def _settle_weights(model: ModelProto, folder: Path, external: bool, limits: Limits) -> None:
    """Check every stored tensor, and fetch those that lie in other files where that was asked."""
    found = list(_tensors(model))
    for tensor, where in found:
        if not external and (uses_external_data(tensor) or tensor.external_data):
            raise InputError(
                f"{where} lies in another file, {_quoted(_location(tensor))}; allow that with "
                "external_data=True, or save the model as one file"
            )
    limit, name = (
        (limits.external_bytes, "external_bytes")
        if external
        else (limits.weight_bytes, "weight_bytes")
    )
    total = 0
    for tensor, where in found:
        total += _check_dims(tensor, where)
        if total > limit:
            raise InputError(
                f"with {where} its weights take {_count(total, 'byte')}; the limit is {limit:,} "
                f"(Limits.{name})"
            )
    for tensor, where in found:
        if uses_external_data(tensor):
            _fetch(tensor, folder, where)
        _check_content(tensor, where)


def _tensors(model: ModelProto) -> Iterator[tuple[TensorProto, str]]:
    for tensor in model.graph.initializer:
        yield tensor, f"the weight {_quoted(tensor.name)}"
    for index, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                yield tensor, f"{_title(node, index)}, attribute {_quoted(attribute.name)},"


def _check_dims(tensor: TensorProto, where: str) -> int:
    """The bytes that a tensor's shape and type ask for."""
    if tensor.data_type not in BITS:
        raise InputError(f"{where} has no data type that is known ({tensor.data_type})")
    if tensor.HasField("segment"):
        raise InputError(f"{where} is stored in segments; store it whole")
    dims = list(tensor.dims)
    if len(dims) > MOST_AXES or any(dim < 0 for dim in dims):
        raise InputError(f"{where} has the impossible shape {_by(dims)}")
    # A zero among the dims makes no size harmless: NumPy multiplies the others.
    if math.prod(max(dim, 1) for dim in dims) >= 2**59:
        raise InputError(f"{where} has the shape {_by(dims)}, larger than any memory")
    return _bytes_needed(tensor)


def _bytes_needed(tensor: TensorProto) -> int:
    return (math.prod(tensor.dims) * BITS[tensor.data_type] + 7) // 8


def _check_content(tensor: TensorProto, where: str) -> None:
    """That exactly the elements are there that the shape says, in the one right place."""
    needed = _bytes_needed(tensor)
    lists = {name: len(getattr(tensor, name)) for name in ALL_LISTS}
    shape = _by(list(tensor.dims))
    if tensor.HasField("raw_data"):
        if tensor.data_type == T.STRING or any(lists.values()):
            raise InputError(f"{where} is stored twice or as the wrong type; export it again")
        if len(tensor.raw_data) != needed:
            raise InputError(
                f"{where} has the shape {shape}, which needs {_count(needed, 'byte')}, and holds "
                f"{len(tensor.raw_data):,}; it is damaged, export it again"
            )
        return
    right = LISTS[tensor.data_type]
    found = lists.pop(right)
    if any(lists.values()):
        raise InputError(f"{where} is stored as the wrong type; export it again")
    entries = _entries_needed(tensor)
    if found != entries:
        raise InputError(
            f"{where} has the shape {shape}, which needs {_count(entries, 'number')}, and holds "
            f"{found:,}; it is damaged, export it again"
        )


def _entries_needed(tensor: TensorProto) -> int:
    elements = math.prod(tensor.dims)
    if tensor.data_type in (T.COMPLEX64, T.COMPLEX128):
        return 2 * elements
    bits = BITS[tensor.data_type]
    # Elements of 2 or 4 bits share an entry, those of 6 bits do not (onnx.proto, int32_data).
    return (elements * bits + 7) // 8 if bits in (2, 4) else elements


# --- weights in other files ----------------------------------------------------------------------------


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _fetch(tensor: TensorProto, folder: Path, where: str) -> None:
    """Read a tensor's bytes from a plain file in the model's own folder."""
    if _release(onnx.__version__) < (1, 21):
        raise InputError(
            f"weights in other files need onnx 1.21 or newer, and this is {onnx.__version__}: "
            "older ones follow links out of the folder; update onnx"
        )
    if any(getattr(tensor, name) for name in (*ALL_LISTS, "raw_data")):
        raise InputError(f"{where} is stored in the file and outside it; export it again")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise InputError(f"{where} says twice where its bytes lie; export it again")
    location = entries.get("location", "")
    _check_location(location, where)
    file = folder / location
    needed = _bytes_needed(tensor)
    offset = _whole_number(entries.get("offset", "0"), "offset", where)
    length = _whole_number(entries.get("length", str(needed)), "length", where)
    if length != needed:
        raise InputError(
            f"{where} has the shape {_by(list(tensor.dims))}, which needs "
            f"{_count(needed, 'byte')}, and names {length:,} in {_quoted(location)}"
        )
    size = _plain_size(folder, file, where)
    if offset + length > size:
        raise InputError(
            f"{where} ends at byte {offset + length:,} of {_quoted(location)}, which has "
            f"{_count(size, 'byte')}; fetch that file again"
        )
    del tensor.external_data[:]
    # With no length given, onnx would read the rest of the file, whatever its size.
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    try:
        # onnx looks at the links again while it opens the file, so that none can be slipped in.
        load_external_data_for_tensor(tensor, str(folder))
    except (checker.ValidationError, ValueError, OSError) as problem:
        raise InputError(
            f"{where} cannot be read from {_quoted(location)}: {_words(problem)}"
        ) from problem


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _check_location(location: str, where: str) -> None:
    place = PurePosixPath(location)
    odd = any(letter in location for letter in "\\:\0")
    if not place.parts or place.is_absolute() or ".." in place.parts or odd:
        raise InputError(
            f"{where} points to {_quoted(location)}; weights may only lie in the model's own "
            "folder, named by a plain relative path"
        )


def _whole_number(text: str, what: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(
            f"{where} has the {what} {_quoted(text)} in another file, which is no number of bytes"
        )
    return int(text)


def _plain_size(folder: Path, file: Path, where: str) -> int:
    """The size of a file that no link leads to."""
    relative = file.relative_to(folder)
    try:
        for part in (relative, *list(relative.parents)[:-1]):
            if (folder / part).is_symlink():
                raise InputError(
                    f"{where} points through the symbolic link {_quoted(str(part))}; put the "
                    "file itself there"
                )
        status = file.lstat()
    except FileNotFoundError:
        raise InputError(
            f"{where} lies in {_quoted(str(relative))}, which is not beside the model; put it there"
        ) from None
    except OSError as problem:
        raise InputError(
            f"{where} cannot be read from {_quoted(str(relative))}: {problem.strerror}"
        ) from problem
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{where} points to {_quoted(str(relative))}, which is not a plain file")
    if status.st_nlink > 1:
        raise InputError(
            f"{where} points to {_quoted(str(relative))}, a hard link to a file that may be "
            "somebody else's; copy the file itself there"
        )
    return status.st_size


# --- sizes: shapes and small values, node by node ------------------------------------------------------

# What these make depends on numbers that they are given, not on the size of what they are given.
SIZED_BY_NUMBERS = {
    "AffineGrid",
    "BlackmanWindow",
    "CenterCropPad",
    "Col2Im",
    "ConstantOfShape",
    "DFT",
    "Expand",
    "HammingWindow",
    "HannWindow",
    "MaxUnpool",
    "MelWeightMatrix",
    "OneHot",
    "Pad",
    "Range",
    "Resize",
    "STFT",
    "Tile",
    "Upsample",
}
# Of these, the inputs whose values are no sizes: pictures, fill values, regions of interest.
NOT_SIZES = {"Pad": (0, 2), "OneHot": (0, 2), "Resize": (0, 1), "Tile": (0,), "Expand": (0,)}


def _check_sizes(model: ModelProto, limits: Limits) -> None:
    """Refuse a network that makes too large a tensor, or whose shapes cannot fit.

    Where a picture may have any size, shapes are worked out twice: once with the size left open,
    where a misfit is one for every picture, and once for a single picture of an ordinary size,
    where everything has a number that can be compared with the limit.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    entries = [entry for entry in model.graph.input if entry.name not in weights]
    shapes = [_shape_of(_picture(entry.type, ordinary=False)) for entry in entries]
    is_open = any(shape is None or None in shape for shape in shapes)
    # Nothing can be said of what an unknown operator puts out; the importer refuses it anyway.
    complete = not unknown_operators(model)
    if is_open:
        _Walk(model, limits, ordinary=False, refuse_misfits=True, refuse_open=False).run(entries)
    _Walk(model, limits, ordinary=True, refuse_misfits=not is_open, refuse_open=complete).run(
        entries
    )


@dataclass
class _Walk:
    """One pass over the nodes in running order: the shape of every tensor, the values of small ones.

    onnx infers shapes of whole models too, but with values carried along it can be made to build
    gigantic ones, and without them it does not see what ``Shape``, ``Mul`` and ``Expand`` do
    together.
    """

    model: ModelProto
    limits: Limits
    ordinary: bool
    refuse_misfits: bool
    refuse_open: bool
    types: dict[str, TypeProto] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = opset(self.model)

    def run(self, inputs: Sequence[onnx.ValueInfoProto]) -> None:
        for entry in inputs:
            self.types[entry.name] = _picture(entry.type, self.ordinary)
        for tensor in self.model.graph.initializer:
            self._store(tensor.name, tensor)
        for index, node in enumerate(self.model.graph.node):
            self._visit(node, _title(node, index))

    def _store(self, name: str, tensor: TensorProto) -> None:
        self.types[name] = make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if tensor.data_type in CASTS and math.prod(tensor.dims) <= KNOWN_VALUES:
            self.values[name] = to_array(tensor)

    def _visit(self, node: NodeProto, title: str) -> None:
        if node.op_type == "Constant":
            tensor = _constant(node)
            if tensor is not None:
                self._store(node.output[0], tensor)
            return
        self._check_numbers(node, title)
        self.types.update(self._infer(node, title))
        if node.op_type in SIZED_BY_NUMBERS and self.refuse_open:
            self._check_settled(node, title)
        self._remember(node)

    def _remember(self, node: NodeProto) -> None:
        """Keep the value of a node's output, where it is small and follows from known ones."""
        name = node.output[0] if node.output else ""
        shape = self._shape(name)
        if shape is None or None in shape or math.prod(dim or 0 for dim in shape) > KNOWN_VALUES:
            return
        kind = CASTS.get(self.types[name].tensor_type.elem_type)
        value = None if kind is None else self._fold(node)
        if value is not None and value.shape == shape:
            self.values[name] = value.astype(kind)

    def _shape(self, name: str) -> Shape | None:
        return _shape_of(self.types[name]) if name in self.types else None

    def _check_numbers(self, node: NodeProto, title: str) -> None:
        """Sizes beyond the limit are refused before they are multiplied, and could overflow."""
        if node.op_type not in SIZED_BY_NUMBERS:
            return
        if node.op_type == "Range":
            self._check_range(node, title)
        for place, name in enumerate(node.input):
            if place in NOT_SIZES.get(node.op_type, ()) or name not in self.values:
                continue
            for number in self.values[name].ravel().tolist():
                if not abs(number) <= self.limits.elements:  # NaN is refused too
                    raise InputError(
                        f"{title} is given the size {number}; the limit is "
                        f"{self.limits.elements:,} elements (Limits.elements)"
                    )

    def _check_range(self, node: NodeProto, title: str) -> None:
        if not all(name in self.values and self.values[name].size == 1 for name in node.input):
            return
        start, stop, step = (self.values[name].item() for name in node.input)
        if step == 0:
            raise InputError(f"{title} counts in steps of 0; export it again")
        if not abs((stop - start) / step) <= self.limits.elements:
            raise InputError(
                f"{title} counts from {start} to {stop} in steps of {step}; the limit is "
                f"{self.limits.elements:,} elements (Limits.elements)"
            )

    def _infer(self, node: NodeProto, title: str) -> dict[str, TypeProto]:
        """What onnx says about the shapes of a node's outputs; nothing where it cannot know."""
        schema = _schema(node.op_type, self.version)
        inputs = [name for name in node.input if name]
        if schema is None or any(name not in self.types for name in inputs):
            return {}
        try:
            found = infer_node_outputs(
                schema,
                node,
                {name: self.types[name] for name in inputs},
                {name: from_array(self.values[name]) for name in inputs if name in self.values},
                opset_imports=[make_opsetid("", self.version)],
                ir_version=self.model.ir_version,
            )
        except (InferenceError, checker.ValidationError) as problem:
            if self.refuse_misfits:
                raise InputError(f"{title} does not fit its inputs: {_words(problem)}") from problem
            return {}
        for shape in map(_shape_of, found.values()):
            if shape is None:
                continue
            if any(dim is not None and dim < 0 for dim in shape):
                if self.refuse_misfits:
                    raise InputError(
                        f"{title} would make a tensor of the shape {_by(shape)}; its window is "
                        "larger than its input, or its sizes are damaged"
                    )
                return {}
            _check_extent(
                [1 if dim is None else dim for dim in shape],
                f"{title} makes a tensor that",
                self.limits,
            )
        return found

    def _check_settled(self, node: NodeProto, title: str) -> None:
        shape = self._shape(node.output[0])
        if shape is None or None in shape:
            raise InputError(
                f"{title} makes a tensor whose size is settled only when the network runs, so "
                "that nothing bounds it; export with fixed sizes"
            )

    def _fold(self, node: NodeProto) -> Array | None:
        """The value of a small tensor, where it follows from shapes and constants."""
        if node.op_type in ("Shape", "Size"):
            shape = self._shape(node.input[0])
            if shape is None or None in shape:
                return None
            if node.op_type == "Size":
                return np.array(math.prod(dim or 0 for dim in shape), np.int64)
            first, last = _attribute(node, "start", 0), _attribute(node, "end", len(shape))
            return np.array(shape[first:last], np.int64)
        compute = FOLDED.get(node.op_type)
        if compute is None or any(name and name not in self.values for name in node.input):
            return None
        operands = [self.values[name] if name else None for name in node.input]
        try:
            with np.errstate(all="ignore"):
                return np.asarray(compute(node, operands))
        # What NumPy says where numbers make no sense; the value is then as good as unknown.
        except (ValueError, TypeError, LookupError, OverflowError):
            return None


CASTS: dict[int, type] = {
    T.FLOAT: np.float32,
    T.DOUBLE: np.float64,
    T.INT32: np.int32,
    T.INT64: np.int64,
    T.BOOL: np.bool_,
}


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, in whichever of its spellings."""
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None or attribute.name == "value":
        return attribute.t if attribute is not None else None
    values: dict[str, tuple[Any, type]] = {
        "value_int": (attribute.i, np.int64),
        "value_ints": (list(attribute.ints), np.int64),
        "value_float": (attribute.f, np.float32),
        "value_floats": (list(attribute.floats), np.float32),
    }
    if attribute.name not in values:
        return None
    value, kind = values[attribute.name]
    return from_array(np.array(value, kind))


def _attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _axes(node: NodeProto, operands: list[Any]) -> tuple[int, ...] | None:
    """The axes that a node names: an attribute in older opsets, the second input in newer ones."""
    given = _attribute(node, "axes")
    if given is None and len(operands) > 1 and operands[1] is not None:
        given = operands[1].ravel().tolist()
    return None if given is None else tuple(given)


def _slice(node: NodeProto, operands: list[Any]) -> Array:
    data, *rest = operands
    given = {} if rest else {name: _attribute(node, name) for name in ("starts", "ends", "axes")}
    for name, part in zip(("starts", "ends", "axes", "steps"), rest, strict=False):
        given[name] = None if part is None else part.ravel().tolist()
    starts, ends = given["starts"], given["ends"]
    axes = given.get("axes") or range(len(starts))
    steps = given.get("steps") or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return np.asarray(data[tuple(cut)])


def _divide(node: NodeProto, operands: list[Any]) -> Array:
    first, second = operands
    quotient = first / second
    if np.issubdtype(first.dtype, np.integer):
        return np.trunc(quotient).astype(first.dtype)
    return np.asarray(quotient)


def _squeeze(node: NodeProto, operands: list[Any]) -> Array:
    return np.squeeze(operands[0], _axes(node, operands))


def _reshape(node: NodeProto, operands: list[Any]) -> Array:
    data, target = operands
    kept = not _attribute(node, "allowzero", 0)
    dims = [data.shape[i] if n == 0 and kept else n for i, n in enumerate(target.tolist())]
    return np.asarray(data.reshape(dims))


def _fill(node: NodeProto, operands: list[Any]) -> Array:
    value = _attribute(node, "value")
    filling = np.zeros(1, np.float32) if value is None else to_array(value)
    return np.full(operands[0].tolist(), filling.ravel()[0], filling.dtype)


def _reduce(function: Callable[..., Any]) -> Callable[[NodeProto, list[Any]], Array]:
    def compute(node: NodeProto, operands: list[Any]) -> Array:
        keep = bool(_attribute(node, "keepdims", 1))
        return np.asarray(function(operands[0], axis=_axes(node, operands), keepdims=keep))

    return compute


def _plain(function: Callable[..., Any]) -> Callable[[NodeProto, list[Any]], Array]:
    return lambda node, operands: np.asarray(function(*operands))


# What exporters write to work out a shape while the network runs; floats occur in scales.
FOLDED: dict[str, Callable[[NodeProto, list[Any]], Array]] = {
    "Identity": lambda node, x: x[0],
    "Cast": lambda node, x: x[0].astype(CASTS[_attribute(node, "to")]),
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _divide,
    "Mod": _plain(np.mod),
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
    "Round": _plain(np.round),
    "Equal": _plain(np.equal),
    "Less": _plain(np.less),
    "Greater": _plain(np.greater),
    "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Where": _plain(np.where),
    "Min": lambda node, x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Max": lambda node, x: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Concat": lambda node, x: np.concatenate(x, axis=_attribute(node, "axis", 0)),
    "Gather": lambda node, x: np.take(x[0], x[1], axis=_attribute(node, "axis", 0)),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": lambda node, x: np.expand_dims(x[0], _axes(node, x) or ()),
    "Reshape": _reshape,
    "Transpose": lambda node, x: np.transpose(x[0], _attribute(node, "perm")),
    "Expand": lambda node, x: x[0] * np.ones(x[1].tolist(), x[0].dtype),
    "Tile": lambda node, x: np.tile(x[0], x[1].tolist()),
    "Range": lambda node, x: np.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype),
    "ConstantOfShape": _fill,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}


def _shape_of(kind: TypeProto) -> Shape | None:
    """A tensor's shape with None for what is open; None where nothing is said."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim
    )


def _picture(kind: TypeProto, ordinary: bool) -> TypeProto:
    """An input's type; if ordinary, with a batch of one and sides that every common network takes."""
    shape = _shape_of(kind)
    if shape is None:
        return kind
    # Some exporters write 0 or -1 for a size that is open.
    dims = [None if dim is None or dim < 1 else dim for dim in shape]
    if ordinary:
        # A volume of 224 × 224 × 224 is no ordinary one.
        side = 224 if dims[1:].count(None) <= 2 else 64
        dims = [(side if place else 1) if dim is None else dim for place, dim in enumerate(dims)]
    return make_tensor_type_proto(kind.tensor_type.elem_type, dims)


def _check_extent(dims: Sequence[int], what: str, limits: Limits) -> None:
    if len(dims) > MOST_AXES:
        raise InputError(f"{what} has {len(dims)} axes; {MOST_AXES} are possible")
    # A zero among the dims makes no size harmless: it may be one for this picture only.
    elements = math.prod(max(dim, 1) for dim in dims)
    if elements > limits.elements:
        raise InputError(
            f"{what} has {_count(elements, 'element')} ({_by(dims)}); the limit is "
            f"{limits.elements:,} (Limits.elements)"
        )


# --- words ---------------------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    r"""A name from a file: short, and without characters that would steer a terminal.

    >>> _quoted("conv" + chr(27) + "[31m")
    "'conv\\x1b[31m'"
    """
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _title(node: NodeProto, index: int) -> str:
    operator = _quoted(node.op_type)[1:-1]
    if node.name:
        return f"the node {_quoted(node.name)} ({operator})"
    return f"node {index} ({operator})"


def _words(problem: BaseException) -> str:
    """What onnx says, on one line and without its stack."""
    line = next((line for line in str(problem).splitlines() if line.strip()), "no reason given")
    return _quoted(line.strip()[:200])[1:-1]


def _by(dims: Sequence[int | None]) -> str:
    if len(dims) > 8:
        return f"{_by(dims[:8])} × … ({len(dims)} axes)"
    return " × ".join("?" if dim is None else str(dim) for dim in dims) or "()"


def _count(number: int, what: str) -> str:
    """A number of things, as it is said.

    >>> _count(1, "byte"), _count(4096, "byte")
    ('1 byte', '4,096 bytes')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")
