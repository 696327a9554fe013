"""What is said of a file that is refused: names, numbers and places, short and harmless."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from torchviz_cnn.words import counted

__all__ = ["by", "counted", "quoted", "title_of", "words_of"]


def quoted(name: str) -> str:
    r"""A name from a file: short, and without characters that would steer a terminal.

    >>> quoted("conv" + chr(27) + "[31m")
    "'conv\\x1b[31m'"
    """
    return repr(name if len(name) <= 80 else name[:77] + "...")


def title_of(node: NodeProto, index: int) -> str:
    operator = quoted(node.op_type)[1:-1]
    if node.name:
        return f"the node {quoted(node.name)} ({operator})"
    return f"node {index} ({operator})"


def words_of(problem: BaseException) -> str:
    """What onnx says, on one line and without its stack."""
    line = next((line for line in str(problem).splitlines() if line.strip()), "no reason given")
    return quoted(line.strip()[:200])[1:-1]


def by(dims: Sequence[int | None]) -> str:
    if len(dims) > 8:
        return f"{by(dims[:8])} × … ({len(dims)} axes)"
    return " × ".join("?" if dim is None else str(dim) for dim in dims) or "()"
