"""One BLAS thread while a fit runs: its matrix products are too small to share, and idle threads spin."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

__all__: list[str] = []


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # comes with scikit-learn

    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[Any]:
    """A context in which numpy's matrix products use the calling thread only."""
    return _controller().limit(limits=1, user_api="blas")
