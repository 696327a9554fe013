"""What is kept from one run to the next, because making it takes time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where trained networks and prepared data are kept: ``$TORCHVIZ_CNN_CACHE``, else the user's
    cache.
    """
    if own := os.environ.get("TORCHVIZ_CNN_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "torchviz_cnn"
