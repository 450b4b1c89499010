"""Choosing between the quadratic form and the one with a state, as ``backend`` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from softgate.dispatch import call
from softgate.errors import StateError, check_choice
from softgate.registry import record_of


def run(
    function: Callable[..., Tensor], arguments: tuple[Any, ...], options: Mapping[str, Any], backend: str
) -> Tensor:
    """Run the checked call of ``function`` by the form that ``backend`` names, or the better one."""
    check_choice("backend", backend, ("auto", "reference", "chunked"))
    record = record_of(function)
    kernel = record.kernels[0]
    named = {**options, "backend": backend}
    if backend == "chunked":
        reason = kernel.refuses(*arguments, **named)
        if reason is not None:
            raise StateError(f"backend='chunked' cannot run this call: {reason}")
        return kernel.run(*arguments, **named)
    # Traceable, and unlike the reference it needs no T x S memory.
    if backend == "auto" and torch.compiler.is_compiling() and kernel.refuses(*arguments, **named) is None:
        return kernel.run(*arguments, **named)
    result = record.reference(*arguments, **named) if backend == "reference" else call(record, *arguments, **named)
    return result
