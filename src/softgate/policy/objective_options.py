"""What all policy objectives have in common: their options, and the way from per-token losses to the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.policy._inputs import PolicyInputs, check_max_log_ratio, check_tensors, prepare_inputs
from softgate.policy.aggregation import Aggregation, Empty, check_aggregation, reduce_tokens
from softgate.policy.kl import KL_KINDS, KLKind, kl_of
from softgate.policy.stats import policy_stats

__all__ = ["LossOptions"]


class LossOptions(TypedDict, total=False):
    """Keyword options that every policy objective takes.

    Attributes:
        aggregation: how per-token losses become one number, see :func:`softgate.policy.aggregate`.
        empty: whether rows without tokens count, ``"keep"`` (default) or ``"drop"``.
        max_length: divisor of ``"token_sum_norm"``.
        num_tokens: divisor of ``"token_mean_global"``.
        ref_logp: log-probabilities under a reference policy, ``(B, T)``.
        beta: weight of the KL estimate to it, which is added to every token's loss; 0 by default.
        kl: which estimate, see :func:`softgate.policy.kl_estimate`; ``"k3"`` by default.
        correct_kl: multiply the estimate by the ratio (importance correction); False by default.
        max_log_ratio: log-ratios are cut there, in (0, 80]; 20 by default. Beyond, the gradient is 0.
        entropy: entropy of the policy at every token, ``(B, T)``, for the statistics only.
        return_stats: also return :class:`softgate.policy.PolicyStats`; False by default.
        check: look at the values too, see the errors; False by default, True in the modules.
    """

    aggregation: Aggregation
    empty: Empty
    max_length: int | None
    num_tokens: float | Tensor | None
    ref_logp: Tensor | None
    beta: float
    kl: KLKind
    correct_kl: bool
    max_log_ratio: float
    entropy: Tensor | None
    return_stats: bool
    check: bool


DEFAULTS: LossOptions = {
    "aggregation": "seq_mean_token_mean",
    "empty": "keep",
    "max_length": None,
    "num_tokens": None,
    "ref_logp": None,
    "beta": 0.0,
    "kl": "k3",
    "correct_kl": False,
    "max_log_ratio": 20.0,
    "entropy": None,
    "return_stats": False,
    "check": False,
}


class TokenLoss(NamedTuple):
    """What an objective says about each token, ``(B, T)`` or ``(B, 1)``: loss, gate and log-ratio that it used."""

    loss: Tensor
    gate: Tensor
    log_weight: Tensor


def check_options(
    logp: Any, old_logp: Any, advantages: Any, mask: Any, options: Mapping[str, Any], **defaults: Any
) -> dict[str, Any]:
    """Check tensors and options of an objective; returns the options, completed with the defaults."""
    unknown = set(options) - set(DEFAULTS)
    if unknown:
        raise ArgumentTypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}; known: {', '.join(DEFAULTS)}")
    full: dict[str, Any] = {**DEFAULTS, **defaults, **options}
    for name in ("return_stats", "check", "correct_kl"):
        if not isinstance(full[name], bool):
            bad_type(name, full[name], "a bool")
    check_aggregation(full["aggregation"], full["empty"], full["max_length"], full["num_tokens"])
    check_choice("kl", full["kl"], KL_KINDS)
    full["beta"] = check_number("beta", full["beta"], low=0.0, high_open=True)
    full["max_log_ratio"] = check_max_log_ratio(full["max_log_ratio"])
    if full["beta"] and full["ref_logp"] is None:
        raise ArgumentValueError("ref_logp must be given where beta is not 0, got None")
    check_tensors(logp, old_logp, advantages, mask, full["ref_logp"], check=full["check"])
    if full["entropy"] is not None and check_float_tensor("entropy", full["entropy"]).shape != logp.shape:
        bad_value("entropy", tuple(full["entropy"].shape), f"of the shape of logp {tuple(logp.shape)}")
    return full


def inputs_of(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, options: LossOptions) -> PolicyInputs:
    """The tensors of a checked call, ready to compute with."""
    return prepare_inputs(logp, old_logp, advantages, mask, options["ref_logp"] if options["beta"] else None)


def reduce_losses(losses: Tensor, mask: Tensor, options: LossOptions) -> Tensor:
    """The aggregate that the options ask for."""
    return reduce_tokens(losses, mask, **how_to_reduce(options))


def how_to_reduce(options: LossOptions) -> dict[str, Any]:
    """The options of the aggregation under the names of :func:`softgate.policy.aggregate`."""
    names = ("empty", "max_length", "num_tokens")
    return {"how": options["aggregation"], **{name: options[name] for name in names}}  # type: ignore[literal-required]


def kl_penalty(inputs: PolicyInputs, log_weight: Tensor, options: LossOptions) -> Tensor:
    """The KL term of every token, ``(B, T)``."""
    assert inputs.ref_logp is not None
    limit = options["max_log_ratio"]
    estimate = kl_of((inputs.ref_logp - inputs.logp).clamp(-limit, limit), options["kl"])
    if options["correct_kl"]:
        estimate = estimate * log_weight.exp()
    return options["beta"] * estimate


def finish(tokens: TokenLoss, inputs: PolicyInputs, options: LossOptions) -> Any:
    """Loss, or loss and statistics, from what the objective says about each token."""
    losses = tokens.loss
    if options["beta"]:
        losses = losses + kl_penalty(inputs, tokens.log_weight, options)
    loss = reduce_losses(losses, inputs.mask, options)
    if not options["return_stats"]:
        return loss
    log_ratio = inputs.log_ratio(options["max_log_ratio"])
    stats = policy_stats(tokens.gate, tokens.log_weight, log_ratio, inputs.advantages, inputs.mask, options["entropy"])
    return loss, stats


def sequence_log_ratio(inputs: PolicyInputs, limit: float) -> Tensor:
    """Mean log-ratio of the tokens of each sequence, ``(B, 1)``: the logarithm of a geometric mean."""
    return inputs.log_ratio(limit).sum(-1, keepdim=True) / inputs.mask.sum(-1, keepdim=True).clamp(min=1)


def check_level(level: Any) -> None:
    """Raise unless ratios are those of tokens or of sequences."""
    check_choice("level", level, ("token", "sequence"))


def policy_samples(dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Inputs for the conformance suite: ratios away from the kinks of the clips, some positions masked."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    for levels in ([0.8, -0.1, 0.5], [1.5, 0.4, -0.7]):
        old = -torch.rand(3, 4, generator=generator, dtype=torch.float64) - 2.0
        steps = torch.tensor([-0.6, -0.05, 0.1, 0.7], dtype=torch.float64)
        logp = old + steps[torch.randint(4, (3, 4), generator=generator)]
        advantages = torch.tensor(levels, dtype=torch.float64)
        yield (logp.to(dtype).requires_grad_(), old.to(dtype), advantages.to(dtype), mask), {}


def policy_bad_inputs() -> Any:
    """Invalid calls that every objective must refuse."""
    logp, row, mask = -torch.ones(2, 3), torch.ones(2), torch.ones(2, 3)
    good = (logp, logp, row, mask)
    yield (logp[0], logp, row, mask), {}, ValueError, "logp"
    yield (logp, logp[:1], row, mask), {}, ValueError, "old_logp"
    yield (logp, logp, torch.ones(3), mask), {}, ValueError, "advantages"
    yield (logp, logp, torch.ones(2, 2), mask), {}, ValueError, "advantages"
    yield (logp, logp, row, mask[:1]), {}, ValueError, "mask"
    yield (logp, logp, row, [[1]]), {}, TypeError, "mask"
    for name, value in (("aggregation", "mean"), ("empty", "no"), ("max_length", 0), ("num_tokens", 0.0),
                        ("beta", -1.0), ("beta", 0.1), ("kl", "k4"), ("max_log_ratio", 100.0)):  # fmt: skip
        yield good, {name: value}, ValueError, "ref_logp" if value == 0.1 else name
    yield good, {"aggregation": "token_sum_norm", "max_length": None}, ValueError, "max_length"
    yield good, {"aggregation": "token_mean_global"}, ValueError, "num_tokens"
    yield good, {"ref_logp": logp[:, :2]}, ValueError, "ref_logp"
    yield good, {"entropy": logp[:, :2]}, ValueError, "entropy"
    yield good, {"return_stats": "yes"}, TypeError, "return_stats"
    nan = torch.full_like(logp, float("nan"))
    for place, name in ((0, "logp"), (1, "old_logp")):
        yield (*good[:place], nan, *good[place + 1 :]), {"check": True}, ValueError, name
        yield (*good[:place], -logp, *good[place + 1 :]), {"check": True}, ValueError, name
    yield (logp, logp, nan[:, 0], mask), {"check": True}, ValueError, "advantages"
    yield (logp, logp, row, 2 * mask), {"check": True}, ValueError, "mask"
