"""Log-probability of responses in which soft and ordinary tokens alternate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate._math.compress import compute_dtype
from softgate.dispatch import transform_reason
from softgate.errors import bad_type, bad_value
from softgate.losses import selective_log_softmax_fused
from softgate.policy.soft_log_prob import Reduce, check_score_options, soft_token_log_prob
from softgate.policy.soft_tokens import NoiseName, SoftToken, check_soft_token

__all__ = ["mixed_log_prob"]

#: A target that the fused head passes over.
_IGNORED = -100


def mixed_log_prob(
    hidden: Tensor,
    lm_head: Tensor | None,
    token: SoftToken,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    noise: NoiseName = "gumbel",
    noise_scale: float = 1.0,
    tau: float = 0.1,
    reduce: Reduce = "mean",
    threshold: float | None = None,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """Log-probability of every step: the density of a soft token, the log-softmax of an ordinary one.

    With the output matrix, a soft step multiplies K of its rows, and ordinary steps go through it in chunks: logits of
    shape (B, T, V) never exist.

    Args:
        hidden: ``(..., D)``, what the output layer sees before each step; or, with ``lm_head=None``, logits
            ``(..., V)``.
        lm_head: output matrix ``(V, D)`` in the dtype of ``hidden``, or None.
        token: the stored steps, of shape ``(..., K)``.
        labels: ``(...)`` int64, the ordinary tokens; ``token.ids[..., 0]`` if None. -100 counts as 0, without gradient.
        bias: ``(V,)`` of the output layer, or None.
        temperature: divides the logits of both kinds of steps.
        noise: as in :func:`softgate.policy.soft_token_log_prob`, as are ``noise_scale``, ``tau``, ``reduce``,
            ``threshold`` and ``clamp``.
        noise_scale: as sampled.
        tau: temperature of the Gumbel-softmax.
        reduce: ``"mean"``, ``"sum"`` or ``"concrete"``.
        threshold: candidates of at most this probability do not count.
        clamp: bounds of the residual.

    Returns:
        ``(...)`` in nats, float32 (float64 for float64). Gradients flow into ``hidden``, ``lm_head`` and ``bias``.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes do not match, or an option is not allowed.

    Example:
        >>> token = SoftToken.discrete(torch.tensor([2, 0]), k=2)
        >>> mixed_log_prob(torch.zeros(2, 4), None, token)
        tensor([-1.3863, -1.3863])

    Paper: SofT-GRPO, arXiv 2511.06411.
    """
    check_float_tensor("hidden", hidden)
    if hidden.ndim == 0:
        bad_value("hidden", "a 0-d tensor", "of shape (..., D)")
    check_soft_token(token, hidden.shape[:-1])
    if labels is None:
        labels = token.ids[..., 0]
    elif not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        bad_type("labels", labels, "None or an int64 tensor")
    elif labels.shape != hidden.shape[:-1]:
        bad_value("labels", tuple(labels.shape), f"of shape {tuple(hidden.shape[:-1])}")
    options = check_score_options(
        noise=noise, noise_scale=noise_scale, tau=tau, temperature=temperature, reduce=reduce, threshold=threshold,
        clamp=clamp, eps=1e-6,
    )  # fmt: skip
    if lm_head is None:
        if bias is not None:
            bad_type("bias", bias, "None beside logits")
        soft = soft_token_log_prob(hidden, token.ids, token.g, kept=token.kept, **options)
        return torch.where(token.is_soft, soft, _label_log_prob(hidden, labels, temperature))
    hard = ~token.is_soft
    if transform_reason(hidden, lm_head) is None and hidden.is_cpu and not bool(hard.any()):
        return _soft_rows(hidden, lm_head, bias, token, options).view(labels.shape)
    hard_rows = selective_log_softmax_fused(hidden[hard], lm_head, labels[hard], bias=bias, temperature=temperature)
    soft_rows = _soft_rows(hidden, lm_head, bias, token, options).to(hard_rows.dtype)
    none = torch.zeros_like(labels, dtype=hard_rows.dtype)
    return none.masked_scatter(hard, hard_rows).masked_scatter(token.is_soft, soft_rows)


def _label_log_prob(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    log_p = (logits.to(compute_dtype(logits.dtype)) / temperature).log_softmax(-1)
    counted = labels != _IGNORED
    chosen = log_p.gather(-1, torch.where(counted, labels, 0)[..., None]).squeeze(-1)
    return torch.where(counted, chosen, 0.0)


def _soft_rows(
    hidden: Tensor, lm_head: Tensor, bias: Tensor | None, token: SoftToken, options: dict[str, Any]
) -> Tensor:
    """Log-probabilities of the soft steps only, from the K rows of the output matrix that each of them needs."""
    where = token.is_soft
    x_ND, ids_NK = hidden[where], token.ids[where]
    dtype = compute_dtype(hidden.dtype)
    # an embedding: its gradient is added up much faster than that of an index
    rows_NKD = nn.functional.embedding(ids_NK, lm_head)
    logits_NK = torch.einsum("nkd,nd->nk", rows_NKD.to(dtype), x_ND.to(dtype))
    if bias is not None:
        logits_NK = logits_NK + bias[ids_NK].to(dtype)
    return soft_token_log_prob(logits_NK, None, token.g[where], kept=token.kept[where], **options)
