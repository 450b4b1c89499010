"""timm.layers.Attention: ViT, DeiT and what is built from the same block."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from torch import Tensor, nn

from softgate.errors import StateError
from softgate.swapping.attention_methods import AttentionChoice
from softgate.swapping.modules import add_gate, gated, prove_module, swap_module
from softgate.swapping.undo import Undo


def is_timm_attention(module: nn.Module) -> bool:
    """Whether ``module`` is exactly timm.layers.Attention; subclasses compute something of their own."""
    layers = sys.modules.get("timm.layers")
    return layers is not None and type(module) is layers.Attention


@functools.cache
def swapped_class() -> type[nn.Module]:
    """timm.layers.Attention with an exchangeable attention between its projections."""
    attention: Any = importlib.import_module("timm.layers").Attention

    class SwappedTimmAttention(attention):
        """timm.layers.Attention with another attention between its projections."""

        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q_BHTD, k_BHTD, v_BHTD = qkv.unbind(0)
            y_BHTD = self.softgate_choice.attend(
                self.q_norm(q_BHTD),
                self.k_norm(k_BHTD),
                v_BHTD,
                length=self.softgate_length,
                attn_mask=attn_mask,
                dropout_p=self.attn_drop.p if self.training else 0.0,
                is_causal=is_causal,
            )
            if self.softgate_choice.kind == "gated":
                y_BHTD = gated(self, y_BHTD, x)
            y = self.norm(y_BHTD.transpose(1, 2).flatten(2))
            if self.gate is not None:
                y = y * self.gate(x).sigmoid()
            return self.proj_drop(self.proj(y))

    return SwappedTimmAttention


def swap_attention(name: str, module: Any, choice: AttentionChoice, length: int | None, undo: Undo) -> None:
    """Give one timm.layers.Attention the method ``choice``, after a self-test."""
    if choice.kind == "gated" and module.gate is not None:
        raise StateError(f"{name or 'the module'} has a gate already (gated=True)")

    def change() -> None:
        swap_module(name, module, swapped_class(), choice, length, undo)
        if choice.kind == "gated":
            add_gate(module, module.qkv.in_features, module.num_heads, module.head_dim, choice, undo)

    prove_module(name, module, module.qkv.in_features, _call, change, f"attention={choice.name!r}", masks=False)


def context_length(model: nn.Module) -> int | None:
    """Tokens of an image of the size the model is made for, None if it does not say."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return patches + int(getattr(model, "num_prefix_tokens", 0)) if isinstance(patches, int) else None


def _call(module: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    return module(x, attn_mask=mask)
