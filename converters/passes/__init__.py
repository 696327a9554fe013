"""Rewriting a graph until its operators are the layers people know.

The exporters write a dense layer as a matrix product and a sum, flattening as seven operators of
shape arithmetic, a batch norm as a product and a sum, and turn pictures around at the entrance.
Every pass leaves what the network computes as it was; only :func:`~converters.passes.layout.channels_first` changes what it
is given.
"""

from __future__ import annotations

from converters.graph import Graph
from converters.passes.borders import (
    resolve_same_padding,
    resolve_transposed,
    separate_borders,
)
from converters.passes.cells import nearest_cells
from converters.passes.constants import (
    drop_no_ops,
    fold_constants,
    normalise_attributes,
    one_precision,
)
from converters.passes.gelu import merge_gelu
from converters.passes.layers import (
    batch_norms,
    convolution_biases,
    dense_on_maps,
    expanded_numbers,
    linear_layers,
    normalising_weights,
    silu,
)
from converters.passes.layout import cancel_transposes, channels_first, transposing_reshapes
from converters.passes.lengths import known_lengths
from converters.passes.shapes import repeats, shape_arithmetic
from converters.passes.vocabulary import BINARY, UNARY
from converters.passes.windows import pooling_over_more_axes

__all__ = ["channels_first", "merge", "simplify"]

# Each round of folding may settle the size of the maps up to the next border.
_MOST_BORDERS = 100


def simplify(graph: Graph) -> None:
    """Constants, shapes and dense layers; nothing here depends on the layout."""
    normalise_attributes(graph)
    drop_no_ops(graph)
    fold_constants(graph)
    normalise_attributes(graph)  # more of the settings are constants now
    for _ in range(_MOST_BORDERS):
        if not known_lengths(graph, UNARY | BINARY):
            break
        fold_constants(graph)
        normalise_attributes(graph)
    shape_arithmetic(graph)
    graph.prune()
    one_precision(graph)
    repeats(graph)
    pooling_over_more_axes(graph)
    transposing_reshapes(graph)
    cancel_transposes(graph)
    expanded_numbers(graph)
    dense_on_maps(graph)
    linear_layers(graph)
    graph.prune()


def merge(graph: Graph) -> None:
    """Several operators that are one: once the layout is settled, for they look at axes."""
    resolve_same_padding(graph)
    resolve_transposed(graph)
    separate_borders(graph)
    nearest_cells(graph)
    convolution_biases(graph)
    batch_norms(graph)
    silu(graph)
    merge_gelu(graph)
    normalising_weights(graph)
    graph.prune()
