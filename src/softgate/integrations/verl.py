"""SAPO with softgate's gates in verl: ``actor.policy_loss.loss_mode=softgate_sapo``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.errors import StateError
from softgate.policy._inputs import prepare_inputs
from softgate.policy.gates import Gate, find_gate, tau_of

__all__ = ["register"]


def register(name: str = "softgate_sapo", *, gate: str | Gate = "sapo", max_log_ratio: float = 20.0) -> str:
    """Register SAPO as a policy loss of verl.

    Call it in a module that the workers import (``actor_rollout_ref.model.external_lib``). Temperatures are
    ``tau_pos`` and ``tau_neg`` of the actor's ``policy_loss`` configuration, or of the actor's, 1.0 and 1.05 without
    them. The aggregation is verl's own, with ``loss_agg_mode`` and the sizes of the global batch: take
    ``"seq-mean-token-mean"``.

    Args:
        name: under which it is found, ``policy_loss.loss_mode``.
        gate: of :func:`softgate.policy.sapo_loss`.
        max_log_ratio: log-ratios are cut there.

    Returns:
        ``name``.

    Raises:
        ArgumentValueError: the gate is unknown.
        StateError: verl is not installed.

    Paper: SAPO, arXiv 2511.20347, sec. 3.
    """
    gate_of = find_gate(gate)
    try:
        from verl.trainer.ppo.core_algos import (  # type: ignore[import-not-found]
            agg_loss,
            register_policy_loss,
        )
    except ModuleNotFoundError as error:
        raise StateError("a policy loss of verl needs verl, which is not installed") from error

    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "seq-mean-token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        inputs = prepare_inputs(log_prob, old_log_prob, advantages, response_mask)
        log_ratio = inputs.log_ratio(max_log_ratio)
        tau = tau_of(inputs.advantages, _setting(config, "tau_pos", 1.0), _setting(config, "tau_neg", 1.05))
        value, weight = gate_of(log_ratio.exp(), tau)
        losses = -value * inputs.advantages
        if rollout_is_weights is not None:
            losses = losses * torch.where(inputs.mask, rollout_is_weights, 0.0)
        sizes = getattr(config, "global_batch_info", None) or {}
        loss = agg_loss(loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **sizes)
        return loss, _metrics(log_ratio.detach(), weight.detach(), inputs.mask)

    register_policy_loss(name)(policy_loss)
    return name


def _setting(config: Any, name: str, default: float) -> float:
    """A temperature of ``config.policy_loss`` or ``config``, whichever has it."""
    for place in (getattr(config, "policy_loss", None), config):
        value = getattr(place, name, None)
        if value is not None:
            return float(value)
    return default


def _metrics(log_ratio: Tensor, weight: Tensor, mask: Tensor) -> dict[str, float]:
    count = mask.sum().clamp(min=1)

    def mean(values: Tensor) -> float:
        return (torch.where(mask, values, 0.0).sum() / count).item()

    return {
        "actor/ppo_kl": mean(-log_ratio),
        "actor/pg_clipfrac": mean((weight == 0).to(weight.dtype)),
        "actor/pg_clipfrac_lower": 0.0,
        "actor/softgate_gate_mean": mean(weight),
    }
