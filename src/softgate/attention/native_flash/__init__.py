"""Attention by the C++ kernels of softgate: float32 on the CPU, tile by tile, in memory that grows with T and S alone.

:func:`attend` is softmax, sigmoid, clipped or softplus attention with gradients; the public functions reach it through
kernels called ``"native"``. :func:`refusal` says what they cannot do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softgate import native
from softgate._math import masks
from softgate.attention.native_flash.function import Reference as Reference
from softgate.attention.native_flash.function import attend as attend
from softgate.attention.native_flash.launch import Inputs as Inputs
from softgate.attention.native_flash.launch import Plan as Plan
from softgate.attention.native_flash.launch import count_keys as count_keys
from softgate.dispatch import mode

__all__: list[str] = []  # for the kernels of this room, not for users

#: So few queries against more keys than this are a matter of reading the keys: packing them first does not pay.
_FEW_QUERIES, _MANY_KEYS = 8, 64


def refusal(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, backend: str
) -> str | None:
    """Why the kernels cannot, or with ``backend="auto"`` should not, run this call; None if they run it."""
    if backend not in ("auto", "native"):
        return f"backend={backend!r} was asked for"
    if query.device.type != "cpu":
        return f"it runs on the CPU only, the tensors are on {query.device}"
    if not native.available():
        return native.unavailable_reason()
    if not query.dtype == key.dtype == value.dtype == torch.float32:
        return f"no kernel for {query.dtype}, only for float32"
    if masks.autocast_dtype(query) not in (None, torch.float32):
        return "autocast asks for another dtype than float32"
    if 0 in query.shape or 0 in value.shape:
        return "a dimension is empty"
    if dropout_p > 0.0:
        return "it has no dropout"
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for attn_mask"
    if backend == "auto" and mode() != "native":
        if native.kernels().isa() == "scalar":
            return "without AVX2 torch is faster; name the backend to run the portable kernel"
        if query.shape[-2] < _FEW_QUERIES and key.shape[-2] > _MANY_KEYS:
            return f"with fewer than {_FEW_QUERIES} queries packing the keys does not pay"
    return None


def flat(tensor: Tensor) -> Tensor:
    """(…, H, T, D) with any number of leading dimensions as (B, H, T, D)."""
    return tensor if tensor.ndim == 4 else tensor.reshape(-1, *tensor.shape[-3:])


def flat_mask(attn_mask: Tensor | None, query: Tensor, keys: int) -> Tensor | None:
    """``attn_mask`` as bool or float32 that broadcasts to (B, H, T, S), None if there is none."""
    if attn_mask is None:
        return None
    mask = attn_mask if attn_mask.dtype is torch.bool else attn_mask.detach().to(torch.float32)
    if query.ndim == 4:
        return mask
    return flat(mask.expand(*query.shape[:-1], keys))


def flat_heads(values: Tensor | float, query: Tensor) -> Tensor:
    """Values broadcastable to (…, H) as float32 (B, H)."""
    heads = query.shape[:-2]
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    return tensor.to(torch.float32).expand(heads).reshape(-1, heads[-1])
