"""Models of transformers whose attention calls nothing of torch's that can be seen.

Methods of this library stand behind transformers' attention interface under names that begin with ``softgate``. Each is
linear in the values, so values I give its weights, for some queries only. Flash and flex attention show nothing at all;
for an observed pass the model computes the same through ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softgate.diagnostics._observe.attention import LARGEST_WEIGHTS, query_rows
from softgate.errors import SoftgateError

if TYPE_CHECKING:
    from softgate.diagnostics._observe.observer import Observer

__all__: list[str] = []

_OPAQUE = ("flash_attention", "flex_attention")
_OURS, _GATED = "softgate", "softgate:gated"


def is_transformers_model(model: nn.Module) -> bool:
    """Whether ``model`` is a PreTrainedModel; transformers is not imported to find out."""
    if "transformers" not in sys.modules:
        return False
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def route_attention(observer: Observer, stack: ExitStack) -> None:
    """Let attention that cannot be seen from outside pass by ``observer`` until ``stack`` is closed."""
    if not is_transformers_model(observer.model):
        return
    for module in observer.model.modules():
        config = getattr(module, "config", None)
        base = getattr(config, "_attn_implementation_internal", None)
        if config is None or not isinstance(base, str):
            continue
        if base.startswith(_OPAQUE):
            instead = "sdpa"
        elif base.startswith(_OURS) and not base.startswith((_GATED, _WATCHED)):
            instead = _watched(observer, base)
        else:
            continue
        stack.callback(setattr, config, "_attn_implementation_internal", base)
        config._attn_implementation_internal = instead


_WATCHED = "softgate:observed+"


def _watched(observer: Observer, base: str) -> str:
    """Register ``base`` under another name, with a look at the weights; the output stays what it is."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    compute = ALL_ATTENTION_FUNCTIONS[base]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
        _look(observer, compute, module, query, key, mask, rest)
        return compute(module, query, key, value, mask, **rest)

    name = f"{_WATCHED}{base}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


@torch.no_grad()
def _look(
    observer: Observer,
    compute: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    rest: dict[str, Any],
) -> None:
    name = observer.here[0]
    count, keys = min(len(query), observer.sampling.sequences), key.shape[-2]
    if count * key.shape[1] * keys**2 > LARGEST_WEIGHTS:
        observer.unseen[name] = f"its {keys} × {keys} weights are too many to hold"
        return
    rows = query_rows(query.shape[-2], observer.sampling.rows)
    some = {key: _of_rows(value, count, rows) if key == "position_bias" else value for key, value in rest.items()}
    eye = torch.eye(keys, dtype=key.dtype, device=key.device).expand(count, key.shape[1], keys, keys)
    picked, seen = query[:count, :, rows], _of_rows(mask, count, rows)
    try:
        out, _ = compute(module, picked, key[:count], eye, seen, **{**some, "dropout": 0.0})
    except SoftgateError as error:
        observer.unseen[name] = str(error)
        return
    observer.see_weights(name, out.transpose(1, 2), query.shape[-2] == keys, rows, seen)


def _of_rows(mask: Any, count: int, rows: list[int]) -> Any:
    """The part of a mask (B or 1, H or 1, T or 1, S) for some sequences and queries."""
    if not isinstance(mask, Tensor):
        return mask
    mask = mask[:count] if mask.shape[0] > 1 else mask
    return mask[:, :, rows] if mask.shape[2] > 1 else mask
