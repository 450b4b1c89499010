"""Derivatives of gradients that a kernel computed, by way of the plain-torch reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    reference: Callable[..., Tensor], arguments: Sequence[Tensor | None], wanted: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``reference(*arguments)`` that can themselves be differentiated; None where not ``wanted``.

    The reference sees aliases of the arguments: where one was computed from another (a gate from the query, say), the
    gradient of the second would otherwise contain the way through the first, which autograd adds on its own.
    """
    with torch.enable_grad():
        aliases = [x if x is None else x.view_as(x) for x in arguments]
        output = reference(*aliases)
    needed = [x for x, need in zip(aliases, wanted, strict=True) if x is not None and need]
    found = iter(torch.autograd.grad(output, needed, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if need else None for need in wanted)
