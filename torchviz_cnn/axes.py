"""Which axis of a layer's output holds its channels: some networks have it last."""

from __future__ import annotations

from torch import Tensor, nn


def widths_of(module: nn.Module) -> set[int]:
    """How many features the layers of a network work on that work along the last axis."""
    found = set()
    for part in module.modules():
        if type(part) is nn.LayerNorm:
            found.add(part.normalized_shape[-1])
        elif type(part) is nn.Linear:
            found.update((part.in_features, part.out_features))
    return found


def channels_last(shape: tuple[int, ...], size: tuple[int, ...], widths: set[int]) -> bool:
    """Whether an output is ``(h, w, C)``: its first two axes have the picture's shape, its last two
    have not, and some layer works along its last axis.

    Args:
        shape: of the output for one picture.
        size: of the picture, ``(H, W)``.
        widths: of the layers that work along a last axis, see :func:`widths_of`.

    Example:
        >>> channels_last((56, 56, 96), (224, 224), {96})
        True
    """

    def like_the_picture(height: int, width: int) -> bool:
        expected = height * size[1] / size[0]
        return abs(width - expected) <= max(1.0, 0.1 * expected)

    return (
        len(shape) == 3
        and shape[2] in widths
        and like_the_picture(shape[0], shape[1])
        and not like_the_picture(shape[1], shape[2])
    )


def channels_first(output: Tensor, size: tuple[int, ...], widths: set[int]) -> Tensor:
    """A layer's output ``(N, …)``, turned to ``(N, C, h, w)`` where it is ``(N, h, w, C)``."""
    if channels_last(tuple(output.shape[1:]), size, widths):
        return output.movedim(-1, 1)
    return output
