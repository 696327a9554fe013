"""Stored tensors: what their shapes ask for against the bytes that are there."""

from __future__ import annotations

import math

from onnx import TensorProto

from converters.trust.limits import MOST_AXES
from converters.trust.words import by, counted
from torchviz_cnn.errors import InputError

T = TensorProto

BITS_BY_NAME = {
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
    getattr(T, name): bits for name, bits in BITS_BY_NAME.items() if hasattr(T, name)
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


def check_dims(tensor: TensorProto, where: str) -> int:
    """The bytes that a tensor's shape and type ask for."""
    if tensor.data_type not in BITS:
        raise InputError(f"{where} has no data type that is known ({tensor.data_type})")
    if tensor.HasField("segment"):
        raise InputError(f"{where} is stored in segments; store it whole")
    dims = list(tensor.dims)
    if len(dims) > MOST_AXES or any(dim < 0 for dim in dims):
        raise InputError(f"{where} has the impossible shape {by(dims)}")
    # A zero among the dims makes no size harmless: NumPy multiplies the others.
    if math.prod(max(dim, 1) for dim in dims) >= 2**59:
        raise InputError(f"{where} has the shape {by(dims)}, larger than any memory")
    return bytes_needed(tensor)


def bytes_needed(tensor: TensorProto) -> int:
    return (math.prod(tensor.dims) * BITS[tensor.data_type] + 7) // 8


def check_content(tensor: TensorProto, where: str) -> None:
    """That exactly the elements are there that the shape says, in the one right place."""
    needed = bytes_needed(tensor)
    lists = {name: len(getattr(tensor, name)) for name in ALL_LISTS}
    shape = by(list(tensor.dims))
    if tensor.HasField("raw_data"):
        if tensor.data_type == T.STRING or any(lists.values()):
            raise InputError(f"{where} is stored twice or as the wrong type; export it again")
        if len(tensor.raw_data) != needed:
            raise InputError(
                f"{where} has the shape {shape}, which needs {counted(needed, 'byte')}, and holds "
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
            f"{where} has the shape {shape}, which needs {counted(entries, 'number')}, and holds "
            f"{found:,}; it is damaged, export it again"
        )


def _entries_needed(tensor: TensorProto) -> int:
    elements = math.prod(tensor.dims)
    if tensor.data_type in (T.COMPLEX64, T.COMPLEX128):
        return 2 * elements
    bits = BITS[tensor.data_type]
    # Elements of 2 or 4 bits share an entry, those of 6 bits do not (onnx.proto, int32_data).
    return (elements * bits + 7) // 8 if bits in (2, 4) else elements
