"""Objectives with hard clips, or none: REINFORCE, GRPO, GSPO and CISPO."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.dispatch import call
from softgate.policy._clipped import Clips, check_clips, clipped
from softgate.policy._closed_form import gspo_refuses, never_refuses, run_cispo, run_grpo, run_gspo, with_stats
from softgate.policy.objective_options import (
    DEFAULTS,
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
from softgate.registry import Kernel, method, record_of

__all__ = ["cispo_loss", "grpo_loss", "gspo_loss", "reinforce_loss"]

#: verl's limit of the log-ratio in the token form of GSPO.
_LARGEST_TOKEN_LOG = 10.0
#: Ratios are bounded, by the limit of the log-ratio, far below the upper one: nothing is cut.
_NO_CLIPS: dict[str, Any] = {"eps_low": 1.0, "eps_high": 1e38, "delta": None, "dual_clip": None}


def reinforce_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, **options: Unpack[LossOptions]
) -> Any:
    r"""The unclipped surrogate ``-r A`` with ``r = exp(log π - log π_old)``.

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
    full = check_options(logp, old_logp, advantages, mask, options)
    return call(record_of(grpo_loss), logp, old_logp, advantages, mask, **_NO_CLIPS, **full)


def _grpo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    delta: float | None = None,
    dual_clip: float | None = None,
    **options: Any,
) -> Any:
    """``-min(r A, clip(r) A)``, aggregated."""
    full: Any = {**DEFAULTS, **options}
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    clips = Clips(eps_low, eps_high, delta, dual_clip)
    return finish(clipped(inputs.log_ratio(full["max_log_ratio"]), inputs.advantages, clips), inputs, full)


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
    reference=_grpo,
    kernels=(Kernel("closed_form", with_stats(run_grpo, _grpo), never_refuses),),
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
    r"""The clipped surrogate of PPO and GRPO, ``-min(r A, clip(r, 1 - ε_l, 1 + ε_h) A)``.

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
    clips = check_clips(eps_low, eps_high, delta, dual_clip)
    full = check_options(logp, old_logp, advantages, mask, options)
    return call(
        record_of(grpo_loss), logp, old_logp, advantages, mask,
        eps_low=clips.low, eps_high=clips.high, delta=clips.delta, dual_clip=clips.dual_clip, **full,
    )  # fmt: skip


def _gspo_bad_inputs() -> Any:
    yield from policy_bad_inputs()
    logp = -torch.ones(2, 3)
    for name, value in (("eps_low", 1.5), ("eps_high", -0.1), ("level", "word")):
        yield (logp, logp, torch.ones(2), torch.ones(2, 3)), {name: value}, ValueError, name


def _gspo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 3e-4,
    eps_high: float = 4e-4,
    level: str = "sequence",
    **options: Any,
) -> Any:
    """The clipped surrogate of the sequence's ratio, aggregated."""
    full: Any = {**DEFAULTS, **options}
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    log_weight = sequence_log_ratio(inputs, full["max_log_ratio"])
    if level == "token":
        log_weight = log_weight.detach() + inputs.logp - inputs.logp.detach()
        log_weight = log_weight.clamp(max=_LARGEST_TOKEN_LOG)
    return finish(clipped(log_weight, inputs.advantages, Clips(eps_low, eps_high)), inputs, full)


@method(
    site="policy",
    family="custom",
    paper="sapo",
    source="the clipped surrogate of s_i = exp(mean_t(logp - old_logp))",
    reference=_gspo,
    kernels=(Kernel("closed_form", with_stats(run_gspo, _gspo), gspo_refuses),),
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
    clips = check_clips(eps_low, eps_high)
    check_level(level)
    full = check_options(logp, old_logp, advantages, mask, options)
    return call(
        record_of(gspo_loss), logp, old_logp, advantages, mask,
        eps_low=clips.low, eps_high=clips.high, level=level, **full,
    )  # fmt: skip


def _cispo(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, eps_max: float = 5.0, **options: Any
) -> Any:
    """``-sg(min(r, eps_max)) A log pi``, aggregated."""
    full: Any = {**DEFAULTS, "aggregation": "token_mean", **options}
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    log_ratio = inputs.log_ratio(full["max_log_ratio"])
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(max=eps_max)
    return finish(TokenLoss(-weight * inputs.advantages * inputs.logp, weight / ratio, log_ratio), inputs, full)


@method(
    site="policy",
    family="custom",
    paper="sapo",
    source="-sg(min(r, eps_max)) A log pi",
    reference=_cispo,
    kernels=(Kernel("closed_form", with_stats(run_cispo, _cispo), never_refuses),),
    register=False,  # its gradient is by intention not that of its value
    deviations=("log-ratios are cut at 20, as in verl; TRL has no limit", "the loss of 16-bit inputs is float32"),
)
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
    full = check_options(logp, old_logp, advantages, mask, options, aggregation="token_mean")
    return call(record_of(cispo_loss), logp, old_logp, advantages, mask, eps_max=cap, **full)
