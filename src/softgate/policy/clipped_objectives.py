"""Objectives with hard clips, or none: REINFORCE, GRPO, GSPO and CISPO."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.policy.objective_options import (
    LossOptions,
    TokenLoss,
    check_level,
    check_options,
    finish,
    inputs_of,
    policy_bad_inputs,
    policy_samples,
    sequence_log_ratio,
)
from softgate.registry import method

__all__ = ["cispo_loss", "grpo_loss", "gspo_loss", "reinforce_loss"]

#: verl's limit of the log-ratio in the token form of GSPO.
_LARGEST_TOKEN_LOG = 10.0


def reinforce_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, **options: Unpack[LossOptions]
) -> Any:
    r"""The unclipped surrogate :math:`-r A` with :math:`r = \exp(\log\pi - \log\pi_{old})`.

    Args:
        logp: log-probabilities of the sampled tokens, ``(B, T)``; gets the gradient.
        old_logp: under the policy that sampled them, ``(B, T)``.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``.
        mask: bool or 0/1, ``(B, T)``; masked positions may hold anything.
        **options: those of every objective, :class:`LossOptions`.

    Returns:
        0-d tensor in float32 or wider; with ``return_stats`` also :class:`PolicyStats`.

    Raises:
        ArgumentTypeError: a tensor or an option has the wrong type.
        ArgumentValueError: shapes do not match, an option is not allowed, or, with ``check``, a value is impossible.

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]])
        >>> reinforce_loss(logp, logp, torch.tensor([0.5]), torch.ones(1, 2))
        tensor(-0.5000)

    Paper: the on-policy limit of all objectives in arXiv 2511.20347.
    """
    full: Any = check_options(logp, old_logp, advantages, mask, options)
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    log_ratio = inputs.log_ratio(full["max_log_ratio"])
    ratio = log_ratio.exp()
    return finish(TokenLoss(-ratio * inputs.advantages, torch.ones_like(ratio), log_ratio), inputs, full)


def _clipped(
    log_weight: Tensor, advantages: Tensor, low: float, high: float, delta: float | None, dual_clip: float | None
) -> TokenLoss:
    """The clipped surrogate of ratios ``exp(log_weight)``, and where its gradient passes."""
    ratio = log_weight.exp()
    capped = ratio if delta is None else ratio.clamp(max=delta)
    loss = -torch.min(capped * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    cap = float("inf") if delta is None else delta
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.min(loss, -dual_clip * advantages), loss)
        cap = min(cap, dual_clip)
    cut = torch.where(advantages > 0, ratio > 1 + high, (ratio < 1 - low) | (ratio > cap))
    return TokenLoss(loss, (~cut).to(ratio.dtype), log_weight)


def _check_clips(eps_low: Any, eps_high: Any, delta: Any, dual_clip: Any) -> tuple[float, float, Any, Any]:
    low = check_number("eps_low", eps_low, low=0.0, high=1.0)
    high = check_number("eps_high", eps_high, low=0.0, high_open=True)
    if delta is not None:
        delta = check_number("delta", delta, low=1 + high, low_open=True, high_open=True)
    if dual_clip is not None:
        dual_clip = check_number("dual_clip", dual_clip, low=1.0, low_open=True, high_open=True)
    return low, high, delta, dual_clip


def _grpo_bad_inputs() -> Any:
    yield from policy_bad_inputs()
    logp = -torch.ones(2, 3)
    for name, value in (("eps_low", 1.5), ("eps_high", -0.1), ("delta", 1.1), ("dual_clip", 1.0)):
        yield (logp, logp, torch.ones(2), torch.ones(2, 3)), {name: value}, ValueError, name


@method(
    site="policy",
    family="custom",
    paper="sapo",
    source="-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A); delta: two-sided clipping; dual_clip: -c A for A < 0",
    variants={"default": {}, "capped": {"delta": 1.5, "dual_clip": 1.9, "aggregation": "token_mean"}},
    samples=policy_samples,
    bad_inputs=_grpo_bad_inputs,
    deviations=("log-ratios are cut at 20, as in verl; TRL has no limit", "the loss of 16-bit inputs is float32"),
)
def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    delta: float | None = None,
    dual_clip: float | None = None,
    **options: Unpack[LossOptions],
) -> Any:
    r"""The clipped surrogate of PPO and GRPO, :math:`-\min(r A, \mathrm{clip}(r, 1 - \epsilon_l, 1 + \epsilon_h) A)`.

    No gradient where ``A > 0`` and ``r > 1 + eps_high``, or ``A < 0`` and ``r < 1 - eps_low``. A token with ``A < 0``
    and a huge ratio has a huge gradient, unless ``delta`` or ``dual_clip`` stops it there.

    Args:
        logp: log-probabilities of the sampled tokens, ``(B, T)``; gets the gradient.
        old_logp: under the policy that sampled them, ``(B, T)``.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``.
        mask: bool or 0/1, ``(B, T)``; masked positions may hold anything.
        eps_low: in [0, 1].
        eps_high: at least 0; DAPO has 0.28.
        delta: largest ratio of the unclipped branch, above ``1 + eps_high`` (two-sided clipping of INTELLECT-2), or
            None.
        dual_clip: for ``A < 0`` the loss is at most ``-dual_clip A``, above 1; verl's default is 3. None for none.
        **options: those of every objective, :class:`LossOptions`.

    Returns:
        0-d tensor in float32 or wider; with ``return_stats`` also :class:`PolicyStats`.

    Raises:
        ArgumentTypeError: a tensor or an option has the wrong type.
        ArgumentValueError: shapes do not match, an option is not allowed, or, with ``check``, a value is impossible.

    Example:
        >>> old, logp = torch.full((1, 2), -2.0), torch.tensor([[-2.0, -1.0]])
        >>> grpo_loss(logp, old, torch.tensor([1.0]), torch.ones(1, 2))
        tensor(-1.1000)

    Paper: the baseline of arXiv 2511.20347, sec. 2; GRPO is arXiv 2402.03300.
    """
    clips = _check_clips(eps_low, eps_high, delta, dual_clip)
    full: Any = check_options(logp, old_logp, advantages, mask, options)
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    return finish(_clipped(inputs.log_ratio(full["max_log_ratio"]), inputs.advantages, *clips), inputs, full)


def _gspo_bad_inputs() -> Any:
    yield from policy_bad_inputs()
    logp = -torch.ones(2, 3)
    for name, value in (("eps_low", 1.5), ("eps_high", -0.1), ("level", "word")):
        yield (logp, logp, torch.ones(2), torch.ones(2, 3)), {name: value}, ValueError, name


@method(
    site="policy",
    family="custom",
    paper="sapo",
    source="the clipped surrogate of s_i = exp(mean_t(logp - old_logp))",
    samples=policy_samples,
    bad_inputs=_gspo_bad_inputs,
    deviations=("the log-ratios of tokens are cut at 20 before the mean", "the loss of 16-bit inputs is float32"),
)
def gspo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 3e-4,
    eps_high: float = 4e-4,
    level: Literal["sequence", "token"] = "sequence",
    **options: Unpack[LossOptions],
) -> Any:
    r"""GSPO: the clipped surrogate of one ratio per sequence, the geometric mean of those of its tokens.

    A sequence whose ratio leaves the clips loses its whole gradient. Keep the default aggregation: with sums over
    tokens every sequence would count by its length.

    Args:
        logp: log-probabilities of the sampled tokens, ``(B, T)``; gets the gradient.
        old_logp: under the policy that sampled them, ``(B, T)``.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``.
        mask: bool or 0/1, ``(B, T)``; masked positions may hold anything.
        eps_low: in [0, 1].
        eps_high: at least 0.
        level: ``"sequence"``, or ``"token"`` for GSPO-token: the value of the sequence's ratio at every token with the
            gradient of that token alone. With one advantage per sequence both have the same gradient.
        **options: those of every objective, :class:`LossOptions`.

    Returns:
        0-d tensor in float32 or wider; with ``return_stats`` also :class:`PolicyStats`.

    Raises:
        ArgumentTypeError: a tensor or an option has the wrong type.
        ArgumentValueError: shapes do not match, an option is not allowed, or, with ``check``, a value is impossible.

    Example:
        >>> old, logp = torch.full((1, 2), -2.0), torch.tensor([[-2.1, -1.9]])
        >>> gspo_loss(logp, old, torch.tensor([1.0]), torch.ones(1, 2))
        tensor(-1.)

    Paper: the baseline of arXiv 2511.20347, sec. 2; GSPO is arXiv 2507.18071.
    """
    low, high, _, _ = _check_clips(eps_low, eps_high, None, None)
    check_level(level)
    full: Any = check_options(logp, old_logp, advantages, mask, options)
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    log_weight = sequence_log_ratio(inputs, full["max_log_ratio"])
    if level == "token":
        log_weight = log_weight.detach() + inputs.logp - inputs.logp.detach()
        log_weight = log_weight.clamp(max=_LARGEST_TOKEN_LOG)
    return finish(_clipped(log_weight, inputs.advantages, low, high, None, None), inputs, full)


def cispo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_max: float = 5.0,
    **options: Unpack[LossOptions],
) -> Any:
    r"""CISPO: REINFORCE with the capped ratio as a constant weight; every token keeps a gradient.

    .. math:: \ell = -\mathrm{sg}(\min(r, \epsilon_{max}))\, A \log\pi

    Args:
        logp: log-probabilities of the sampled tokens, ``(B, T)``; gets the gradient.
        old_logp: under the policy that sampled them, ``(B, T)``.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``.
        mask: bool or 0/1, ``(B, T)``; masked positions may hold anything.
        eps_max: the cap itself, not an addition to 1; positive.
        **options: those of every objective, :class:`LossOptions`; ``aggregation`` is ``"token_mean"`` by default.

    Returns:
        0-d tensor in float32 or wider; with ``return_stats`` also :class:`PolicyStats`.

    Raises:
        ArgumentTypeError: a tensor or an option has the wrong type.
        ArgumentValueError: shapes do not match, an option is not allowed, or, with ``check``, a value is impossible.

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]])
        >>> cispo_loss(logp, logp, torch.tensor([0.5]), torch.ones(1, 2))
        tensor(0.7500)

    Paper: a baseline beside arXiv 2511.20347; CISPO is arXiv 2506.13585.
    """
    cap = check_number("eps_max", eps_max, low=0.0, low_open=True, high_open=True)
    full: Any = check_options(logp, old_logp, advantages, mask, options, aggregation="token_mean")
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    log_ratio = inputs.log_ratio(full["max_log_ratio"])
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(max=cap)
    return finish(TokenLoss(-weight * inputs.advantages * inputs.logp, weight / ratio, log_ratio), inputs, full)
