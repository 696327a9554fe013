"""Seeing each operator of a pass as it runs."""

from __future__ import annotations

from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


def is_watched() -> bool:
    """Whether something watches or changes what this thread computes."""
    return bool(_get_current_function_mode_stack() or _get_current_dispatch_mode_stack())


class OperatorMode(TorchDispatchMode):
    """A mode whose ``__torch_dispatch__`` is called as it is written.

    Newer versions of torch wrap it, so that ``torch.compile`` does not look into it; the first
    operator then imports the compiler, which takes three seconds, and each goes through the
    wrapper. What is watched here runs uncompiled, see :func:`torchviz_cnn.guard.eager`.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
