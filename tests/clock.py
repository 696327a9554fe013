"""Time that passes."""

from __future__ import annotations

import time


def busy(seconds: float) -> None:
    """Take so much of the processor's time; time that passes while others are at work does not count."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
