"""What every test starts from: fixed seeds, few threads, and a device where one is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The networks of the tests are tiny: a second thread would only be waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _computes_lazily() -> bool:
    """Turn torch's lazy device on, where there is one."""
    try:
        import torch._lazy.ts_backend

        torch._lazy.ts_backend.init()
        return bool(torch.ones(1, device="lazy").cpu() == 1)
    except (ImportError, AttributeError, RuntimeError):
        return False


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "lazy",
            marks=pytest.mark.skipif(not _computes_lazily(), reason="torch has no lazy device"),
        ),
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, a CUDA device where there is one, and what stands in for it where there is none.

    The lazy device computes on the CPU, but is another device: like a GPU it refuses tensors that
    were left behind on the CPU.
    """
    return torch.device(request.param)
