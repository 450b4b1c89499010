"""SofT-GRPO: GRPO on responses whose thoughts are soft tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import torch
from torch import Tensor

from softgate.policy.clipped_objectives import grpo_loss
from softgate.policy.modules import PolicyLoss
from softgate.policy.objective_options import LossOptions, policy_bad_inputs, policy_samples
from softgate.registry import method

__all__ = ["SoftGRPOLoss", "soft_grpo_loss"]

#: Weight of the KL estimate where a reference is given.
BETA = 0.001


def _bad_inputs() -> Iterator[Any]:
    yield from policy_bad_inputs()
    logp = -torch.ones(2, 3)
    for name, value in (("eps_low", 1.5), ("eps_high", -0.1), ("dual_clip", 1.0)):
        yield (logp, logp, torch.ones(2), torch.ones(2, 3)), {name: value}, ValueError, name


@method(
    site="policy",
    family="custom",
    paper="soft-grpo",
    source="GRPO with dual clip 3 over thoughts and answer together, token mean, 0.001 k3 to the reference",
    samples=policy_samples,
    bad_inputs=_bad_inputs,
    deviations=("log-ratios are cut at 20", "the loss of 16-bit inputs is float32"),
)
def soft_grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual_clip: float | None = 3.0,
    **options: Unpack[LossOptions],
) -> Any:
    r"""GRPO's clipped surrogate on the log-probabilities of soft thoughts and ordinary tokens together.

    :func:`softgate.policy.grpo_loss` with the settings of SofT-GRPO: ``dual_clip=3``, ``aggregation="token_mean"``,
    and, where ``ref_logp`` is given, ``beta=0.001``. The log-probabilities of soft steps are densities of their noise
    (:func:`softgate.policy.mixed_log_prob`): recompute ``old_logp`` with the model before the first update. The KL
    estimate between such densities is not one of token distributions; keep ``beta`` small.

    Args:
        logp: of every step, ``(B, T)``; gets the gradient.
        old_logp: under the policy that sampled them, ``(B, T)``.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``, for instance of :func:`softgate.policy.group_advantages`.
        mask: bool or 0/1, ``(B, T)``: the steps that the policy chose, neither padding nor forced.
        eps_low: in [0, 1].
        eps_high: at least 0.
        dual_clip: for negative advantages the loss is at most ``-dual_clip A``, above 1; None for none.
        **options: those of every objective, :class:`softgate.policy.LossOptions`. With ``check`` log-probabilities
            above 0 are refused, which densities of Gaussian or Dirichlet noise can be.

    Returns:
        0-d tensor in float32 or wider; with ``return_stats`` also :class:`softgate.policy.PolicyStats`.

    Raises:
        ArgumentTypeError: a tensor or an option has the wrong type.
        ArgumentValueError: shapes do not match, an option is not allowed, or, with ``check``, a value is impossible.

    Example:
        >>> logp, old = torch.full((1, 2), -1.0, requires_grad=True), torch.full((1, 2), -1.0)
        >>> soft_grpo_loss(logp, old, torch.tensor([0.5]), torch.ones(1, 2)).backward()
        >>> logp.grad
        tensor([[-0.2500, -0.2500]])

    Paper: SofT-GRPO, arXiv 2511.06411.
    """
    beta = 0.0 if options.get("ref_logp") is None else BETA
    settings: LossOptions = {"aggregation": "token_mean", "beta": beta, **options}
    return grpo_loss(
        logp, old_logp, advantages, mask, eps_low=eps_low, eps_high=eps_high, dual_clip=dual_clip, **settings
    )


class SoftGRPOLoss(PolicyLoss):
    """Module form of :func:`soft_grpo_loss`.

    Values are not checked unless ``check=True`` is given: a density may be above 1.

    Args:
        eps_low: see the function.
        eps_high: see the function.
        dual_clip: see the function.
        **options: those of every objective, :class:`softgate.policy.LossOptions`.

    Shapes: as :func:`soft_grpo_loss`.

    Raises:
        ArgumentTypeError: at the first call, if a setting has the wrong type.
        ArgumentValueError: at the first call, if a setting is not allowed.

    Paper: SofT-GRPO, arXiv 2511.06411.
    """

    def __init__(
        self,
        eps_low: float = 0.2,
        eps_high: float = 0.2,
        dual_clip: float | None = 3.0,
        **options: Unpack[LossOptions],
    ) -> None:
        settings = {"eps_low": eps_low, "eps_high": eps_high, "dual_clip": dual_clip}
        unchecked: LossOptions = {"check": False, **options}
        super().__init__(soft_grpo_loss, settings, unchecked)
