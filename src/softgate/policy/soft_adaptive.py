"""Soft Adaptive Policy Optimization: a smooth gate on every token's ratio in place of a clip."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from softgate.dispatch import call
from softgate.errors import bad_type
from softgate.policy._closed_form import run_sapo, sapo_refuses
from softgate.policy.gates import Gate, check_tau, find_gate, tau_of
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

__all__ = ["sapo_loss"]


def _reference(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: float | Tensor = 1.0,
    tau_neg: float | Tensor = 1.05,
    gate: str | Gate = "sapo",
    level: str = "token",
    centered: bool = False,
    **options: Any,
) -> Any:
    """``-f_tau(r) A`` with tau by the sign of A, aggregated."""
    full: Any = {**DEFAULTS, **options}
    inputs = inputs_of(logp, old_logp, advantages, mask, full)
    limit = full["max_log_ratio"]
    log_weight = inputs.log_ratio(limit) if level == "token" else sequence_log_ratio(inputs, limit)
    ratio = log_weight.exp().expand_as(inputs.advantages)
    tau = tau_of(inputs.advantages, tau_pos, tau_neg)
    gate_of = find_gate(gate)
    value, weight = gate_of(ratio, tau)
    if centered:
        value = value - gate_of(torch.ones_like(ratio), tau)[0]
    return finish(TokenLoss(-value * inputs.advantages, weight, log_weight), inputs, full)


def _bad_inputs() -> Any:
    yield from policy_bad_inputs()
    logp = -torch.ones(2, 3)
    good = (logp, logp, torch.ones(2), torch.ones(2, 3))
    for name in ("tau_pos", "tau_neg"):
        values: tuple[Any, ...] = (0.0, -1.0, float("nan"), float("inf"), torch.zeros(3), torch.ones(4))
        for value in values:
            yield good, {name: value}, ValueError, name
    yield good, {"gate": "step"}, ValueError, "gate"
    yield good, {"level": "word"}, ValueError, "level"
    yield good, {"gate": 1.0}, TypeError, "gate"
    yield good, {"centered": 1}, TypeError, "centered"


@method(
    site="policy",
    family="custom",
    paper="sapo",
    source="-f_tau(r) A, f_tau(r) = (4 / tau) sigma(tau (r - 1)); gradient -A r sech^2(tau (r - 1) / 2)",
    reference=_reference,
    kernels=(Kernel("closed_form", run_sapo, sapo_refuses),),
    variants={
        "default": {},
        "sequence": {"level": "sequence", "centered": True},
        "gaussian": {"gate": "gaussian", "tau_pos": 3.0, "aggregation": "token_sum_norm", "max_length": 4},
    },
    samples=policy_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
    deviations=("log-ratios are cut at 20, as in verl; TRL has no limit", "the loss of 16-bit inputs is float32"),
)
def sapo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: float | Tensor = 1.0,
    tau_neg: float | Tensor = 1.05,
    gate: str | Gate = "sapo",
    level: Literal["token", "sequence"] = "token",
    centered: bool = False,
    **options: Unpack[LossOptions],
) -> Any:
    r"""SAPO: the clipped surrogate with a smooth gate on each ratio in place of the clip.

    .. math:: \ell_{it} = -f_\tau(r_{it}) A_{it}, \qquad f_\tau(r) = \frac4\tau \sigma(\tau(r - 1)), \qquad
              \tau = \tau_{pos} \text{ if } A_{it} > 0 \text{ else } \tau_{neg}
    .. math:: \frac{\partial \ell}{\partial \log\pi_{it}} = -A_{it}\, r_{it}\, \operatorname{sech}^2(\tau(r_{it} - 1)/2)
              \cdot \frac{m_{it}}{n_i B}

    On policy it is REINFORCE with a baseline for every tau; away from it each token's gradient fades, on both sides,
    and is bounded. With tau near 1 the gate is wide: it removes outliers. It also damps the gradient that would bring
    a drifted ratio back, which clipping leaves alone. With one update per rollout and equal engines all of this is
    idle: ratios are 1.

    Args:
        logp: log-probabilities of the sampled tokens, ``(B, T)``; gets the gradient.
        old_logp: under the policy that sampled them, ``(B, T)``.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``, usually :func:`group_advantages`.
        mask: bool or 0/1, ``(B, T)``; masked positions may hold anything.
        tau_pos: temperature where ``A > 0``, positive and finite; a number, or a tensor that broadcasts to ``(B, T)``.
        tau_neg: temperature elsewhere; larger than ``tau_pos`` shuts off sooner what pushes tokens down.
        gate: ``"sapo"``; ``"gaussian"`` with weight ``exp(-(tau (r - 1) / 2)^2)``, of the same curvature at 1;
            ``"tanh"``, which is SAPO's at twice the tau; or a function ``(ratio, tau) -> (value, weight)`` with a
            differentiable value and its derivative.
        level: gate the ratio of each ``"token"``, or the geometric mean of a ``"sequence"``.
        centered: subtract the value at ratio 1, so that losses are 0 on policy and comparable; same gradient.
        **options: those of every objective, :class:`LossOptions`.

    Returns:
        0-d tensor in float32 or wider; with ``return_stats`` also :class:`PolicyStats`.

    Raises:
        ArgumentTypeError: a tensor or an option has the wrong type.
        ArgumentValueError: shapes do not match, an option is not allowed, or, with ``check``, a value is impossible.

    Example:
        >>> old, logp = torch.full((1, 2), -2.0), torch.tensor([[-2.0, -1.0]])
        >>> sapo_loss(logp, old, torch.tensor([1.0]), torch.ones(1, 2))
        tensor(-2.6958)

    Paper: Soft Adaptive Policy Optimization, arXiv 2511.20347, sec. 3.
    """
    full = check_options(logp, old_logp, advantages, mask, options)
    check_tau("tau_pos", tau_pos, logp.shape)
    check_tau("tau_neg", tau_neg, logp.shape)
    check_level(level)
    find_gate(gate)
    if not isinstance(centered, bool):
        bad_type("centered", centered, "a bool")
    return call(
        record_of(sapo_loss), logp, old_logp, advantages, mask,
        tau_pos=tau_pos, tau_neg=tau_neg, gate=gate, level=level, centered=centered, **full,
    )  # fmt: skip
