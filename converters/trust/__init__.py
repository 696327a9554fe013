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

from pathlib import Path

from onnx import ModelProto

from converters.trust.contents import bytes_of, parse
from converters.trust.limits import USUAL, Limits
from converters.trust.sizes import check_sizes
from converters.trust.standard import opset, spell_out, unknown_operators
from converters.trust.structure import check_known_nodes, check_model, leave_open
from converters.trust.weights import settle_weights
from converters.trust.words import quoted
from torchviz_cnn.errors import InputError


def read_model(
    path: str | Path, *, external_data: bool = False, limits: Limits = USUAL
) -> ModelProto:
    """Read an ONNX file without trusting it.

    ``Erfc``, which TensorFlow's exporter writes into files, is read as ``1 − Erf``, and a length of 0
    or −1, which some exporters write for one that is open, as open. Other operators
    that the standard does not know are let through, for a reader of Keras files can say
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
        data = bytes_of(Path(path), limits)
        model = parse(data, limits)
        del data
        check_model(model, limits)
        leave_open(model)
        spell_out(model)
        settle_weights(model, Path(path).parent, external_data, limits)
        check_known_nodes(model)
        check_sizes(model, limits)
    except InputError as problem:
        raise problem.within(f"cannot read {quoted(str(path))}: ") from problem.__cause__
    return model


__all__ = ["Limits", "opset", "read_model", "unknown_operators"]
