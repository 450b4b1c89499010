"""Log-probabilities of whole responses with soft thoughts under a causal language model."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import bad_type, bad_value
from softgate.policy.soft_generation import SoftSampling
from softgate.policy.soft_log_prob import Reduce
from softgate.policy.soft_tokens import SoftToken, check_soft_token, soft_embedding

__all__ = ["rollout_log_prob"]

#: Whether a model's logits are its output layer's, nothing capped or scaled after it.
_plain_heads: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def rollout_log_prob(
    model: nn.Module,
    input_ids: Tensor,
    token: SoftToken,
    completion_mask: Tensor,
    attention_mask: Tensor | None = None,
    *,
    sampling: SoftSampling | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Score the steps of a rollout again: the same inputs, the logits of the present parameters.

    The inputs of the response are rebuilt from the stored weights with the present embedding table and detached; the
    prompt's embeddings get gradients as usual. Where the model's output layer is a plain ``nn.Linear``, soft steps read
    K rows of it and the logits of ordinary steps are formed in chunks.

    Args:
        model: as for :class:`softgate.policy.SoftThinkingGenerator`; may be wrapped for data parallelism.
        input_ids: prompts ``(B, P)``, padded on the left.
        token: the steps, ``(B, T, K)``.
        completion_mask: ``(B, T)``, 0 at padding.
        attention_mask: of the prompts, ``(B, P)``; None for no padding.
        sampling: how the steps were drawn, :class:`softgate.policy.SoftSampling`.
        reduce: as in :func:`softgate.policy.soft_token_log_prob`.

    Returns:
        ``(B, T)``, in nats; padding holds some number.

    Raises:
        ArgumentTypeError: ``token`` is no :class:`softgate.policy.SoftToken`.
        ArgumentValueError: shapes do not match.

    Paper: SofT-GRPO, arXiv 2511.06411.
    """
    for name, value in (("input_ids", input_ids), ("completion_mask", completion_mask)):
        if not isinstance(value, Tensor):
            bad_type(name, value, "a torch.Tensor")
        if value.ndim != 2:
            bad_value(name, tuple(value.shape), "of shape (rows, length)")
    check_soft_token(token, completion_mask.shape)
    if len(input_ids) != len(completion_mask):
        bad_value("input_ids", tuple(input_ids.shape), f"of {len(completion_mask)} rows, as completion_mask")
    prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
    mask = torch.cat((prompt_mask, completion_mask.to(prompt_mask.dtype)), 1)
    inner: Any = getattr(model, "module", model)
    embedding = inner.get_input_embeddings()
    # the last step is nobody's input
    embeds = torch.cat((embedding(input_ids), soft_embedding(token, embedding)[:, :-1]), 1)
    sampling = SoftSampling() if sampling is None else sampling
    mask, steps, head = mask[:, :-1], token.ids.shape[1], inner.get_output_embeddings()
    if _has_plain_head(inner, embeds):
        _, hidden = _forward(model, inner, embeds, mask, 1)
        return sampling.log_prob(hidden[:, -steps:], head.weight, token, bias=head.bias, reduce=reduce)
    logits, _ = _forward(model, inner, embeds, mask, steps)
    return sampling.log_prob(logits, None, token, reduce=reduce)


def _forward(model: nn.Module, inner: Any, embeds: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The last ``keep`` logits, and all states that the output layer could read."""
    seen: list[Tensor] = []
    handle = inner.get_decoder().register_forward_hook(lambda _module, _args, out: seen.append(out[0]))
    try:
        out = model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            use_cache=False, logits_to_keep=keep,
        )  # fmt: skip
    finally:
        handle.remove()
    return out.logits, seen[0]


def _has_plain_head(inner: Any, embeds: Tensor) -> bool:
    """Whether logits are the output layer of the decoder's states: no adapter, cap or scale; tried on one position."""
    head = inner.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    if inner not in _plain_heads:
        with torch.no_grad():
            one = embeds[:1, :1].detach()
            logits, hidden = _forward(inner, inner, one, torch.ones_like(one[..., 0], dtype=torch.long), 1)
            _plain_heads[inner] = torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-3)
    return _plain_heads[inner]
