"""Being imported after TensorFlow without bringing the process down.

TensorFlow and Triton each carry an LLVM that registers the same command-line options; where
TensorFlow came first, the second one aborts the whole process (``LLVM ERROR: inconsistency in
registered CommandLine options``), and a notebook's kernel dies without a sentence.

Triton is pulled in by torch's counter of operations and by ``torch._dynamo``, which torchvision's
import pulls in, Lightning's, and the first of torch's optimisers. Importing this room before the
first keeps Triton out where TensorFlow is there already; versions of torch whose counter does
without Triton need :func:`leave_triton_out` before the others as well.
"""

from __future__ import annotations

import logging
import sys

_log = logging.getLogger("torchviz_cnn")


def leave_triton_out() -> None:
    """Where TensorFlow is loaded and Triton is not: importing Triton fails from now on.

    torch then does without it, as it does where Triton is not installed: ``torch.compile`` for a
    GPU is not to be had in this process. With Triton there would be no process.
    """
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        _log.info("TensorFlow was imported first: torch does without Triton in this process")
        sys.modules["triton"] = None  # type: ignore[assignment]


leave_triton_out()
