"""softgate's experts behind the experts interface of transformers: ``experts_implementation="softgate"``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softgate.routing import moe_ffn
from softgate.swapping.attention_interface import load_transformers

NAME = "softgate"
#: Classes of activations (torch's and transformers') and what they are with a gate and without.
_ACTIVATIONS = {
    "SiLU": ("swiglu", "silu"),
    "SiLUActivation": ("swiglu", "silu"),
    "GELU": ("geglu", "gelu"),
    "GELUActivation": ("geglu", "gelu"),
    "NewGELUActivation": ("geglu_tanh", "gelu_tanh"),
    "GELUTanh": ("geglu_tanh", "gelu_tanh"),
    "ReLU": ("reglu", "relu"),
    "ReLUSquaredActivation": (None, "relu2"),
}


def register_experts() -> str:
    """Make ``from_pretrained(..., experts_implementation="softgate")`` and ``set_experts_implementation`` work.

    Returns:
        The name, ``"softgate"``.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    load_transformers()
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    return NAME


def activation_name(experts: Any) -> str | None:
    """What :func:`softgate.routing.moe_ffn` calls the nonlinearity of these experts; None: nothing."""
    from transformers.integrations.moe import _default_apply_gate

    kind = type(experts.act_fn) if isinstance(experts.act_fn, nn.Module) else None
    gated, plain = _ACTIVATIONS.get(kind.__name__ if kind else "", (None, None))
    if getattr(experts.act_fn, "approximate", "none") != "none" or experts.has_post_expert_norm:
        return None
    if not experts.has_gate:
        return plain
    own_gate = getattr(type(experts), "_apply_gate", None) is not _default_apply_gate
    return None if own_gate or not experts.is_concatenated else gated


def experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts of a transformers model; (T, D), (T, K), (T, K) -> (T, D).

    Experts that compute something of their own (another gate, a norm behind) run with transformers' ``grouped_mm``.
    """
    name = activation_name(experts)
    if name is None:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](experts, hidden_states, top_k_index, top_k_weights)
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    matrices = [getattr(experts, up), experts.down_proj]
    if experts.is_transposed:
        matrices = [matrix.transpose(1, 2) for matrix in matrices]
    biases = [getattr(experts, f"{which}_bias") if experts.has_bias else None for which in (up, "down_proj")]
    return moe_ffn(hidden_states, matrices[0], matrices[1], top_k_index, top_k_weights, *biases, activation=name)
