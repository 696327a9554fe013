"""Protobuf's wire format, surveyed before anything is unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import (  # type: ignore[import-untyped]
    Descriptor,
    FieldDescriptor,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from converters.trust.limits import Limits
from converters.trust.words import counted
from torchviz_cnn.errors import InputError

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


def survey_bytes(data: bytes, limits: Limits) -> None:
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
                f"it consists of more than {counted(limits.fields, 'field')} (Limits.fields), "
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
            f"its lists of integers unpack to {counted(8 * integer_bytes, 'byte')}; the limit is "
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
