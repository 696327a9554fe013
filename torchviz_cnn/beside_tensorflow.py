"""Being imported after TensorFlow without bringing the process down.

TensorFlow and Triton, which torchvision's import pulls in through ``torch._dynamo``, each carry an
LLVM that registers the same command-line options; where TensorFlow came first, the second one
aborts the whole process (``LLVM ERROR: inconsistency in registered CommandLine options``), and a
notebook's kernel dies without a sentence. Importing this room, before torchvision, prevents it.
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
