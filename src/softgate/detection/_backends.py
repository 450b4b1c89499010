"""Which implementation runs a suppression: the caller's choice, or that of dispatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softgate.dispatch import call, transform_reason
from softgate.errors import StateError, check_choice
from softgate.registry import record_of

BACKENDS = ("auto", "native", "triton", "reference")


def run(function: Callable[..., Any], backend: str, *args: Any, **options: Any) -> Any:
    """Call the implementation of ``function`` that ``backend`` names.

    Raises:
        ArgumentValueError: there is no such backend.
        StateError: it cannot run this call.
    """
    check_choice("backend", backend, BACKENDS)
    record = record_of(function)
    if backend == "auto":
        return call(record, *args, **options)
    if backend == "reference":
        return record.reference(*args, **options)
    kernel = next(kernel for kernel in record.kernels if kernel.name == backend)
    reason = transform_reason(*args) or kernel.refuses(*args, backend=backend, **options)
    if reason is not None:
        raise StateError(f"backend {backend!r} cannot run this call: {reason}")
    return kernel.run(*args, **options)
