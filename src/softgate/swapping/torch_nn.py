"""torch.nn.MultiheadAttention, alone or inside nn.Transformer layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from softgate.errors import ArgumentTypeError, StateError
from softgate.swapping.attention_methods import AttentionChoice
from softgate.swapping.modules import add_gate, gated, prove_module, swap_module
from softgate.swapping.undo import Undo


class SwappedMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention with another attention between its projections; same parameters, arguments and results.

    A query that sees no key gives 0 before the output projection, where torch's gives NaN.
    """

    softgate_choice: AttentionChoice
    softgate_length: int | None

    # The encoder layer's inference path in C++ reads the weights past this module; it asks this flag first.
    @property
    def _qkv_same_embed_dim(self) -> bool:  # type: ignore[override]
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward; masks are torch.nn's: True means "not allowed"."""
        if query.is_nested or key.is_nested:
            raise ArgumentTypeError(
                "a swapped nn.MultiheadAttention takes padded tensors and a mask, no nested tensors"
            )
        if is_causal and attn_mask is None:
            raise StateError("is_causal is a hint about attn_mask, as in torch.nn: pass attn_mask with it")
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        q_BHTD, k_BHSD, v_BHSD, x_TBE = self._project(query, key, value, batch_first=self.batch_first and batched)
        masked: dict[str, Any] = {
            "attn_mask": merge_masks(attn_mask, key_padding_mask, x_TBE.shape[1], self.num_heads),
            "dropout_p": self.dropout if self.training else 0.0,
        }
        if self.softgate_choice.kind == "gated":
            masked["is_causal"] = is_causal and key_padding_mask is None and not need_weights
            masked["attn_mask"] = None if masked["is_causal"] else masked["attn_mask"]
            y_BHTD = scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, **masked)
            y_BHTD = gated(self, y_BHTD, x_TBE.transpose(0, 1))
        else:
            y_BHTD = self.softgate_choice.attend(q_BHTD, k_BHSD, v_BHSD, length=self.softgate_length, **masked)
        out = self.out_proj(y_BHTD.permute(2, 0, 1, 3).flatten(2))
        weights = self._weights(q_BHTD, k_BHSD, masked, average_attn_weights) if need_weights else None
        if not batched:
            return out.squeeze(1), None if weights is None else weights[0]
        return out.transpose(0, 1) if self.batch_first else out, weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, *, batch_first: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values, (B, H, length, D) each, and the queries' hidden states (T, B, E).

        The products are taken in the order and the shapes in which torch takes them, so that not a bit differs.
        """
        is_self, is_shared = query is key is value, key is value
        if batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        packed, width = self.in_proj_weight, self.embed_dim
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if packed is not None and is_self:
            projected = linear(query, packed, self.in_proj_bias).chunk(3, -1)
        elif packed is not None and is_shared:
            bias = None if self.in_proj_bias is None else self.in_proj_bias[width:]
            projected = (linear(query, packed[:width], biases[0]), *linear(key, packed[width:], bias).chunk(2, -1))
        else:
            apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            weights = apart if packed is None else packed.chunk(3)
            inputs = (query, key, value)
            projected = tuple(linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3) for x in projected)
        return q, k, v, query

    def _weights(self, query: Tensor, key: Tensor, masked: dict[str, Any], average: bool) -> Tensor:
        """Weights (B, T, S), or (B, H, T, S) without averaging; a gate is no part of them."""
        weights = self.softgate_choice.weights(query, key, length=self.softgate_length, **masked)
        return weights.mean(1) if average else weights


def merge_masks(attn_mask: Tensor | None, key_padding_mask: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """One mask for attention functions (bool: True = attend; float: added) from torch.nn's two (bool: True = not)."""
    if attn_mask is not None and attn_mask.ndim == 3:  # one mask per sample and head
        attn_mask = attn_mask.unflatten(0, (batch, heads))
    padding = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
    given = [mask for mask in (attn_mask, padding) if mask is not None]
    if not given:
        return None
    if all(mask.dtype is torch.bool for mask in given):
        return ~given[0] if len(given) == 1 else ~(given[0] | given[1])
    dtype = next(mask.dtype for mask in given if mask.dtype is not torch.bool)
    added = [
        torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
        if mask.dtype is torch.bool
        else mask
        for mask in given
    ]
    return added[0] if len(added) == 1 else added[0] + added[1]


def leave_nested_tensors(model: nn.Module, undo: Undo) -> None:
    """Let no nn.TransformerEncoder pack padded batches into nested tensors, which only torch's own layers take."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            undo.set(module, "use_nested_tensor", False)


def swap_attention(name: str, module: Any, choice: AttentionChoice, length: int | None, undo: Undo) -> None:
    """Give one nn.MultiheadAttention the method ``choice``, after a self-test."""
    if module.bias_k is not None or module.add_zero_attn:
        raise StateError(
            f"{name or 'the module'} has add_bias_kv or add_zero_attn: an extra key that other attentions give no "
            "meaning to, refused"
        )

    def change() -> None:
        swap_module(name, module, SwappedMultiheadAttention, choice, length, undo)
        if choice.kind == "gated":
            add_gate(module, module.embed_dim, module.num_heads, module.head_dim, choice, undo)

    prove_module(name, module, module.kdim, _call, change, f"attention={choice.name!r}")


def _call(module: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of hidden states (B, T, kdim) to themselves; queries and values are cut or repeated to their width."""

    def fit(width: int) -> Tensor:
        return x if x.shape[-1] == width else x.repeat(1, 1, -(-width // x.shape[-1]))[..., :width]

    blocked = None if mask is None else ~mask.expand(-1, module.num_heads, -1, -1).flatten(0, 1)
    query, key, value = fit(module.embed_dim), x, fit(module.vdim)
    if not module.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    out, _ = module(query, key, value, attn_mask=blocked, need_weights=False)
    return out if module.batch_first else out.transpose(0, 1)
