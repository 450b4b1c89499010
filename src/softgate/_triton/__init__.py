"""GPU kernels in Triton. Nothing here is imported, and Triton need not be installed, until a call may run on one.

Each kernel is checked against the plain-torch reference in Triton's interpreter (``TRITON_INTERPRET=1``, set before
the first import of triton), which runs on the CPU.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from softgate import dispatch

__all__ = ["attention_refuses", "interpreting", "refuses"]

#: Features per head from which on a tile no longer fits.
LARGEST_HEAD = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreting() -> bool:
    """Whether Triton runs its kernels in the interpreter of this process."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def refuses(tensor: Tensor, backend: str) -> str | None:
    """Say why no Triton kernel can run a call with this tensor, None if one may.

    Args:
        tensor: the query, whose device and dtype decide.
        backend: the caller's ``backend`` argument.
    """
    asked = "triton" in (backend, dispatch.mode())
    if not asked and backend != "auto":
        return f"backend={backend!r} was asked for"
    if tensor.dtype not in DTYPES:
        return f"no Triton kernel for {tensor.dtype}"
    if not _installed():
        return "triton is not installed"
    if tensor.device.type == "cuda":
        return None
    if tensor.device.type != "cpu":
        return f"no Triton kernel for {tensor.device}"
    if not interpreting():
        return "the tensors are on the CPU and Triton's interpreter (TRITON_INTERPRET=1) is off"
    return None if asked else "the interpreter is for tests; ask for backend='triton'"


def attention_refuses(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, backend: str
) -> str | None:
    """Say why the attention kernels cannot run a call with these arguments, None if they can."""
    reason = refuses(query, backend)
    if reason is not None:
        return reason
    if query.ndim != 4 or 0 in query.shape or 0 in key.shape or 0 in value.shape:
        return "it needs four dimensions, none of them empty"
    if max(query.shape[-1], value.shape[-1]) > LARGEST_HEAD:
        return f"it takes at most {LARGEST_HEAD} features per head"
    if dropout_p > 0.0:
        return "it has no dropout"
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for attn_mask"
    return None
