"""How much a file may ask for, and what a size is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from onnx import TypeProto

from converters.trust.words import by, counted
from torchviz_cnn.errors import InputError

Shape: TypeAlias = tuple[int | None, ...]

MOST_AXES = 64  # neither torch nor NumPy has tensors of more axes


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


USUAL = Limits()


def shape_of(kind: TypeProto) -> Shape | None:
    """A tensor's shape with None for what is open; None where nothing is said."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim
    )


def check_extent(dims: Sequence[int], what: str, limits: Limits) -> None:
    if len(dims) > MOST_AXES:
        raise InputError(f"{what} has {len(dims)} axes; {MOST_AXES} are possible")
    # A zero among the dims makes no size harmless: it may be one for this picture only.
    elements = math.prod(max(dim, 1) for dim in dims)
    if elements > limits.elements:
        raise InputError(
            f"{what} has {counted(elements, 'element')} ({by(dims)}); the limit is "
            f"{limits.elements:,} (Limits.elements)"
        )
