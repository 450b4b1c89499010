"""Which implementation runs a call: the plain-torch reference or one of the kernels, and why.

``SOFTGATE_KERNELS`` steers it: ``auto`` (default) takes the first kernel that accepts the call, ``reference`` turns all
kernels off, and a kernel's name forces that kernel (an error if it cannot run the call).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate.errors import StateError
from softgate.registry import Method, record_of

ENVIRONMENT_VARIABLE = "SOFTGATE_KERNELS"


@dataclass(frozen=True)
class Choice:
    """The outcome of dispatch for one call.

    Attributes:
        op: qualified name of the method.
        chosen: ``"reference"`` or the kernel's name.
        refused: why each kernel that was considered did not run.
        run: the implementation itself.
    """

    op: str
    chosen: str
    refused: dict[str, str]
    run: Callable[..., Any]

    def __str__(self) -> str:
        lines = [f"{self.op}: runs '{self.chosen}'"]
        lines += [f"  not '{name}': {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def mode() -> str:
    """Value of ``SOFTGATE_KERNELS``, ``"auto"`` if unset."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "").strip() or "auto"


def choose(record: Method, *args: Any, **kwargs: Any) -> Choice:
    """Decide which implementation runs ``record`` on these arguments."""
    wanted = mode()
    refused: dict[str, str] = {}
    general = None if wanted != "reference" else f"{ENVIRONMENT_VARIABLE}=reference"
    general = general or transform_reason(*args, *kwargs.values())
    for kernel in record.kernels:
        if wanted not in ("auto", "reference", kernel.name):
            refused[kernel.name] = f"{ENVIRONMENT_VARIABLE}={wanted}"
            continue
        reason = general or kernel.refuses(*args, **kwargs)
        if reason is None:
            return Choice(record.qualified_name, kernel.name, refused, kernel.run)
        refused[kernel.name] = reason
    if wanted not in ("auto", "reference") and wanted in refused and general is None:
        raise StateError(
            f"{ENVIRONMENT_VARIABLE}={wanted} forces a kernel that cannot run this call of "
            f"{record.qualified_name}: {refused[wanted]}"
        )
    return Choice(record.qualified_name, "reference", refused, record.reference)


def call(record: Method, *args: Any, **kwargs: Any) -> Any:
    """Run the chosen implementation of ``record``; under ``torch.compile`` always the reference: no graph break."""
    if torch.compiler.is_compiling():
        return record.reference(*args, **kwargs)
    return choose(record, *args, **kwargs).run(*args, **kwargs)


def explain(op: Any, *args: Any, **kwargs: Any) -> Choice:
    """Say which implementation a call would run, and why not the others; nothing is computed.

    Args:
        op: a softgate function, its record or its name.
        *args: arguments of the call.
        **kwargs: keyword arguments of the call.

    Returns:
        A :class:`Choice`; ``print`` it for the sentence, read ``.chosen`` and ``.refused`` in code.
    """
    return choose(record_of(op), *args, **kwargs)


def transform_reason(*values: Any) -> str | None:
    """Why no opaque kernel may run here at all: compilation, a functorch or forward-AD level, a tensor subclass.

    ``torch.library.custom_op`` and raw kernels give silent zeros for ``jvp`` and errors for ``vmap(grad)``; the
    references are ordinary torch operations and survive every transform.
    """
    if torch.compiler.is_compiling():
        return "torch.compile is tracing; the reference is fused by the compiler"
    if torch._C._functorch.maybe_current_level() is not None:
        return "inside a torch.func transform"
    if torch.autograd.forward_ad._current_level >= 0:
        return "inside a forward-mode AD level"
    if torch._C._len_torch_dispatch_stack() > 0:
        return "inside a TorchDispatchMode (fake tensors or tracing)"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording"
    for tensor in _tensors(values):
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{type(tensor).__name__} is a tensor subclass"
        if tensor.is_meta:
            return "a meta tensor has no data"
    return None


def is_batched_gradient(grad: Tensor) -> bool:
    """True under ``torch.autograd.grad(is_grads_batched=True)``, whose dispatch key has no name in Python."""
    return "Batched" in repr(torch._C._dispatch_keys(grad))


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(tuple(value))
