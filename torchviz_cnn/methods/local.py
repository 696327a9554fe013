"""What local operations of a network see.

An operation is local when a number of its output depends on a window of its input: a change in a
window of the picture then changes a window of the map only. Three kinds are known here: those that
slide (convolution, pooling, padding), those that keep every number in its place (activations, batch
norm, adding, concatenating channels), and everything else, which may look at the whole map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, fx

Pair = tuple[int, int]


@dataclass(frozen=True)
class Reach:
    """What an output row sees on one axis.

    Output row ``o`` reads the input rows ``o·stride − before + dilation·i`` for ``i < kernel``.

    Attributes:
        before: rows of padding in front; less than 0 where the first rows are never read.
        rows: how many rows the whole output has.
    """

    kernel: int
    stride: int
    before: int
    dilation: int
    rows: int

    @property
    def extent(self) -> int:
        """From the first to the last input row one output row sees."""
        return self.dilation * (self.kernel - 1) + 1

    def seen(self, count: int) -> int:
        """How many input rows ``count`` output rows in a row see."""
        return (count - 1) * self.stride + self.extent

    def after(self, rows: int) -> int:
        """How much padding behind ``rows`` input rows the last output row needs."""
        return max(0, self.seen(self.rows) - self.before - rows)

    def changed(self, low: int, high: int) -> Pair:
        """The output rows that see any of the input rows ``low … high − 1``."""
        if high <= low:
            return 0, 0
        first = -(-(low + self.before - self.extent + 1) // self.stride)
        last = (high - 1 + self.before) // self.stride
        first, last = max(0, first), min(self.rows - 1, last)
        return (first, last + 1) if first <= last else (0, 0)


@dataclass(frozen=True)
class Sliding:
    """An operation that slides over its input.

    Attributes:
        source: the node that it reads.
        reaches: what it sees, for rows and columns.
        padding: the value that it takes for what is outside of the map.
        apply: computes it on a crop that holds all that is seen.
        keeps_place: whether every output number sees only the input number in its place.
        divisors: what each row and column of the result is divided by.
        costs: multiply-adds an output position.
    """

    source: fx.Node
    reaches: tuple[Reach, Reach]
    padding: float
    apply: Callable[[Tensor], Tensor]
    keeps_place: bool = False
    divisors: tuple[Tensor, Tensor] | None = None
    costs: int = 0


@dataclass(frozen=True)
class InPlace:
    """An operation whose output number depends on the numbers in the same place only.

    Attributes:
        sources: the nodes with maps that it reads.
    """

    sources: tuple[fx.Node, ...]


Local = Sliding | InPlace
