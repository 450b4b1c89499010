"""softgate's attention functions behind the attention and mask interfaces of transformers.

Both interfaces are always registered under the same name: an attention function without a mask function gets no mask at
all, and a causal model then sees the future without any error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate.errors import MissingExtraError, StateError
from softgate.integrations import torchvision_cpu
from softgate.swapping.attention_methods import (
    AttentionChoice,
    attention_names,
    choose_attention,
    choose_normalizer,
    gate_factor,
    normalizer_methods,
)

#: Keyword arguments that models pass on and that say nothing about the weights, or say what the mask already says.
_HARMLESS = frozenset(
    {"cache_position", "encoder_hidden_states", "encoder_attention_mask", "num_items_in_batch", "output_hidden_states",
     "output_router_logits", "past_key_values", "position_embeddings", "position_ids", "return_dict", "sliding_window",
     "use_cache"}
)  # fmt: skip
GATE_ARGUMENT = "softgate_gate"


def load_transformers() -> Any:
    """Import transformers, with torchvision repaired first where it would break every model."""
    torchvision_cpu.repair()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "swapping into transformers models") from error
    return transformers


def register_all() -> list[str]:
    """Register every attention method under ``softgate:NAME`` and ``softgate_NAME``, and every normalizer likewise.

    Afterwards ``from_pretrained(..., attn_implementation="softgate:sigmoid")`` and ``set_attn_implementation`` know
    them, with default options. Gated attention needs parameters: use ``softgate.swap``.

    Returns:
        The registered names.
    """
    names = [name for name in attention_names() if name != "gated"]
    choices = {name: choose_attention(name, {}) for name in names}
    choices.update({name: choose_normalizer(name, {}) for name in normalizer_methods() if name not in choices})
    registered = []
    for name, choice in choices.items():
        for key in (f"softgate:{name}", f"softgate_{name}"):
            _register(key, interface_function(choice), boolean_mask)
            registered.append(key)
    return sorted(registered)


def register(choice: AttentionChoice, base: str) -> str:
    """Register ``choice`` under its own key and return the key; ``base`` is what a gated softmax computes with."""
    if choice.kind == "gated":
        key = f"{choice.implementation}+{base}"
        _register(key, gated_function(base, float(choice.options.get("scale", 2.0))), mask_function(base))
    else:
        key = choice.implementation
        _register(key, interface_function(choice), boolean_mask)
    return key


def _register(key: str, function: Callable[..., Any], mask: Callable[..., Any]) -> None:
    load_transformers()
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(key, function)
    AttentionMaskInterface.register(key, mask)


def boolean_mask(**options: Any) -> Tensor | None:
    """The bool mask, True = attend: (B, 1, T, S), or (B, 1, 1, S) where it only hides padding.

    None is given for a bidirectional model without padding only. Linear attentions take the second shape and no other.
    """
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    if options.get("mask_function") is bidirectional_mask_function:
        options["q_length"] = 1
    return sdpa_mask(**{**options, "allow_is_causal_skip": False})


def mask_function(implementation: str) -> Callable[..., Any]:
    """The mask function registered for ``implementation``."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise StateError(f"attention implementation {implementation!r} has no mask function: nothing would be masked")
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation]


def base_function(implementation: str, module: torch.nn.Module) -> Callable[..., Any]:
    """The attention function of ``implementation``; "eager" is a function in the file that defines ``module``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation != "eager":
        return ALL_ATTENTION_FUNCTIONS[implementation]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise StateError(f"{type(module).__module__} has no eager_attention_forward; use attn_implementation='sdpa'")
    return eager


def interface_function(choice: AttentionChoice) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """``choice`` with the signature that models of transformers call; (B, T, H, D) out, weights only if asked for."""

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        refuse_unknown(others)
        masked: dict[str, Any] = {
            "attn_mask": merge_bias(attention_mask, position_bias),
            "dropout_p": dropout,
            "is_causal": _flag(module, is_causal, attention_mask, query.shape[-2], key.shape[-2]),
            "scale": scaling,
            "enable_gqa": query.shape[1] != key.shape[1],
            "length": context_length(module),
        }
        out = choice.attend(query, key, value, **masked)
        weights = choice.weights(query, key, **masked) if wants_weights(output_attentions) else None
        return out.transpose(1, 2).contiguous(), weights

    return attend


def gated_function(base: str, scale: float) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The model's own attention, its output (B, T, H, D) multiplied by the gate that a hook passes in.

    The softmax is left to the implementation the model had: with a gate of exactly 1 not a bit of the output changes.
    """

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        logits = options.pop(GATE_ARGUMENT, None)
        if logits is None:
            raise StateError("this model has no gates: put them in with softgate.swap(model, attention='gated')")
        out, weights = base_function(base, module)(module, query, key, value, attention_mask, **options)
        if weights is None and wants_weights(output_attentions):
            plain = {k: v for k, v in options.items() if k != "dropout"}
            _, weights = _softmax(module, query, key, value, attention_mask, output_attentions=True, **plain)
        factor = gate_factor(logits.unflatten(-1, (query.shape[1], -1)), scale)
        return (out * factor).to(out.dtype), weights

    return attend


def _softmax(*args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    return interface_function(choose_attention("softmax", {}))(*args, **options)


def refuse_unknown(others: dict[str, Any]) -> None:
    """Raise for any argument that would change the attention of this model and that nobody handles.

    Dropping one silently (T5's ``position_bias``, a soft cap, attention sinks) changes the model without an error.
    """
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    if unknown:
        raise StateError(
            f"this model passes {', '.join(unknown)} to its attention, which softgate's functions do not handle; "
            "dropping it would change the model silently"
        )


def merge_bias(attention_mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    """One mask argument from the model's mask and T5's additive position bias."""
    if attention_mask is not None and attention_mask.dtype is not torch.bool:
        # Masks of floats hold the most negative number where nothing may be seen; what is added to scores stays.
        hidden = attention_mask <= torch.finfo(attention_mask.dtype).min / 2
        attention_mask = attention_mask.masked_fill(hidden, float("-inf"))
    if position_bias is None or attention_mask is None:
        return position_bias if attention_mask is None else attention_mask
    if attention_mask.dtype is torch.bool:
        return position_bias.masked_fill(~attention_mask, float("-inf"))
    return position_bias + attention_mask


def _flag(
    module: torch.nn.Module, is_causal: bool | None, attention_mask: Tensor | None, queries: int, keys: int
) -> bool:
    """Whether causality is still to be applied: only without a mask, as the mask function writes it into every mask."""
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if attention_mask is not None or not causal or queries == 1:
        return False
    if queries != keys:
        raise StateError(
            f"{type(module).__name__} is causal and came without a mask for {queries} queries and {keys} keys: which "
            "keys are the past is not known"
        )
    return True


def context_length(module: torch.nn.Module) -> int | None:
    """The longest input the model is made for, None if its configuration does not say."""
    config = getattr(module, "config", None)
    if config is None:
        return None
    for name in ("max_position_embeddings", "n_positions"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if isinstance(image, int) and isinstance(patch, int):
        return (image // patch) ** 2 + 1
    return None


def wants_weights(output_attentions: bool | None) -> bool:
    """Whether somebody asked for the weights, by argument or (models that keep the argument) by recording them."""
    if output_attentions:
        return True
    if torch.compiler.is_compiling():
        return False
    from transformers.utils import output_capturing

    active = getattr(output_capturing, "_active_collector", None)
    collected = None if active is None else active.get()
    return any("attentions" in name for name in collected or ())
