"""ADPO: anchored cross-entropy towards the ranking of several answers to a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.policy import anchored, plackett_luce, preference_targets
from softgate.policy._candidates import REDUCTIONS, as_mask, can_read
from softgate.policy._groups import Groups, check_group_id, grouped
from softgate.policy._listwise_runs import run_runs, runs_refuse
from softgate.policy.adaptive import AdaptiveTau
from softgate.policy.sequences import LENGTH_NORMS, sequence_logp
from softgate.registry import Kernel, method, record_of

__all__ = ["ADPOLoss", "adpo_loss"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

TARGETS = (*preference_targets.KINDS, "plackett_luce")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    ids = torch.tensor([3, 3, 1, 7, 1, 3])
    yield (draw(6, 2).requires_grad_(), draw(6, 2), torch.randperm(6, generator=generator).to(dtype), ids), {}
    keep = torch.rand(8, 5, generator=generator) > 0.3
    dirty = draw(8, 5).masked_fill(~keep, float("nan"))
    yield (dirty.requires_grad_(), draw(8, 5), draw(8), 4, keep), {"length_norm": "sum"}
    yield (draw(6).requires_grad_(), draw(6), draw(6), ids.roll(1)), {"reduction": "sum"}
    yield (draw(0, 3).requires_grad_(), draw(0, 3), draw(0), ids[:0]), {}


def _bad() -> Iterator[_Bad]:
    p, s, ids = torch.zeros(4, 3), torch.arange(4.0), torch.tensor([0, 0, 1, 1])
    yield (torch.zeros(4, 3, 1), p, s, ids), {}, ArgumentValueError, "logp"
    yield (p, p[:3], s, ids), {}, ArgumentValueError, "anchor_logp"
    yield (p, p - float("inf"), s, ids), {}, ArgumentValueError, "anchor_logp"
    yield (p, p, s[:3], ids), {}, ArgumentValueError, "scores"
    yield (p, p, s * float("nan"), ids), {}, ArgumentValueError, "scores"
    yield (p, p, s, ids[:3]), {}, ArgumentValueError, "group_id"
    yield (p, p, s, ids.float()), {}, ArgumentTypeError, "group_id"
    yield (p, p, s, None), {}, ArgumentTypeError, "group_id"
    yield (p, p, s, 3), {}, ArgumentValueError, "group_id"
    yield (p, p, s, ids, torch.ones(4, 2)), {}, ArgumentValueError, "token_mask"
    yield (p[:, 0], s, s, ids, torch.ones(4)), {}, ArgumentValueError, "token_mask"
    yield (p, p, s, ids), {"tau": 0.0}, ArgumentValueError, "tau"
    yield (p, p, s, ids), {"tau": torch.ones(3)}, ArgumentValueError, "tau"
    yield (p, p, s, ids), {"beta": -1.0}, ArgumentValueError, "beta"
    yield (p, p, s, ids), {"target": "pairs"}, ArgumentValueError, "target"
    yield (p, p, s, ids), {"adaptive": True}, ArgumentTypeError, "adaptive"
    yield (p, p, s, ids), {"adaptive": AdaptiveTau()}, ArgumentTypeError, "entropy"
    yield (p, p, s, ids), {"adaptive": AdaptiveTau(), "entropy": s[:2]}, ArgumentValueError, "entropy"
    yield (p, p, s, ids), {"clamp_ratio": 0.0}, ArgumentValueError, "clamp_ratio"


def _reference(
    logp: Tensor, anchor_logp: Tensor, scores: Tensor, group_id: Tensor | int, token_mask: Tensor | None = None, *,
    tau: float | Tensor = 1.0, target: str = "raw", beta: float = 0.5, length_norm: str = "mean",
    adaptive: AdaptiveTau | None = None, entropy: Tensor | None = None, clamp_ratio: float | None = None,
    clamp_score: float | None = None, nan: str = "raise", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Sequence log-probabilities in lists by group, then the anchored cross-entropy to the target of their scores."""
    groups = grouped(group_id, logp.shape[0])
    policy, anchor = (
        groups.lists(p if p.ndim == 1 else sequence_logp(p, token_mask, length_norm))
        for p in (logp, anchor_logp.detach())
    )
    ranked = groups.lists(scores.detach())
    kept = preference_targets.kept_scores(ranked, groups.kept, nan)
    if adaptive is not None and entropy is not None:
        tau = _temperatures(adaptive, entropy, token_mask, groups, ranked, kept)
    if target == "plackett_luce":
        u = anchored.scores_of(policy, anchor, tau, clamp_ratio, clamp_score)
        loss = plackett_luce.reference(u, ranked, mask=kept, reduction=reduction)
    else:
        wide = ranked.to(compute_dtype(ranked.dtype))  # a target rounded to 16 bits would not sum to 1
        q = preference_targets.reference(wide, target, beta, kept)
        loss = anchored.reference(
            policy, anchor, q, tau=tau, mask=kept, reduction=reduction, clamp_ratio=clamp_ratio, clamp_score=clamp_score
        )
    return loss.to(logp.dtype)


def _temperatures(
    adaptive: AdaptiveTau, entropy: Tensor, token_mask: Tensor | None, groups: Groups, ranked: Tensor,
    kept: Tensor | None,
) -> Tensor:  # fmt: skip
    """Tau of every context from the means of its candidates' entropies and scores."""
    h = groups.lists(entropy if entropy.ndim == 1 else sequence_logp(entropy, token_mask))
    if kept is None:
        return adaptive(h.mean(-1), ranked.mean(-1))
    count = kept.sum(-1).clamp_min(1)
    h, level = (torch.where(kept, x, 0.0).sum(-1) / count for x in (h, ranked))
    return adaptive(h, level, kept.any(-1))


@method(
    site="policy",
    family="custom",
    paper="adpo",
    source="the anchored listwise loss on sequence log-probabilities, with its targets and adaptive temperature",
    reference=_reference,
    kernels=(Kernel("runs", run_runs, runs_refuse),),
    samples=_samples,
    bad_inputs=_bad,
    variants={"default": {}, "ranking": {"target": "plackett_luce", "tau": 0.5}},
    output_range=(0.0, float("inf")),
    error_scale="tensor",
    deviations=(
        "neither the log-ratio nor u is clamped unless asked for: the verl fork has ±5 and ±10 on",
        "the adaptive temperature is the paper's, not that of the verl fork",
    ),
)
def adpo_loss(
    logp: Tensor, anchor_logp: Tensor, scores: Tensor, group_id: Tensor | int, token_mask: Tensor | None = None, *,
    tau: float | Tensor = 1.0, target: str = "raw", beta: float = 0.5, length_norm: str = "mean",
    adaptive: AdaptiveTau | None = None, entropy: Tensor | None = None, clamp_ratio: float | None = None,
    clamp_score: float | None = None, nan: str = "raise", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Anchored listwise loss of B answers to several prompts: how the policy, relative to its anchor, ranks them.

    The log-probability of an answer is the mean over its tokens; answers with the same ``group_id`` form a list, in
    whatever order they stand; :func:`preference_target` turns their scores into q, and
    :func:`anchored_cross_entropy` (or :func:`plackett_luce_loss`) is averaged over the lists. Nothing is clipped.
    On the first step after sampling, with the sampling policy as the anchor, the gradient is that of REINFORCE with
    advantages (q - 1 / n) / tau.

    Args:
        logp: (B, T) log-probabilities of the tokens, or (B,) of whole answers.
        anchor_logp: the same under the anchor, no gradient; for online use those of the policy that sampled.
        scores: (B,) rewards, ratings or advantages, finite.
        group_id: (B,) integers, equal for answers to one prompt, in any order; or the size of contiguous groups.
            Groups may differ in size; a group of one has loss 0.
        token_mask: (B, T), True (or not 0) at the tokens that count; None for all. What is masked may hold anything.
        tau: positive number, or a tensor with one for each group in the order of their ids.
        target: ``"raw"``, ``"zscore"``, ``"kde"`` or ``"top1"`` of :func:`preference_target`, or
            ``"plackett_luce"``.
        beta: temperature of the target.
        length_norm: ``"mean"`` or ``"sum"`` over tokens. The sum divides the effective tau by the length.
        adaptive: sets tau for each group, in place of ``tau``; needs ``entropy``.
        entropy: (B,) or (B, T), entropy of the policy over log V, in [0, 1].
        clamp_ratio: bound of the absolute log-ratio of an answer, None for none.
        clamp_score: bound of ``|u|``, None for none.
        nan: ``"raise"``, or ``"drop"`` to leave out answers whose score is NaN.
        reduction: ``"mean"`` over groups, ``"sum"``, or ``"none"``: one loss for each group in the order of their ids.

    Returns:
        0-d tensor (or (P,)) in the dtype of ``logp``; 16-bit types are computed in float32. While ``torch.compile``
        traces, the number of groups is unknown, and ``reduction="none"`` gives (B,) with zeros at the end.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes do not fit, an option is not allowed, or a score is not finite (CPU only).

    Example:
        >>> import torch
        >>> logp = torch.tensor([[-1.0, -1.0], [-2.0, -2.0], [-1.0, -3.0], [-1.0, -1.0]])
        >>> scores, prompt = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([5, 2, 5, 2])
        >>> adpo_loss(logp, torch.zeros_like(logp), scores, prompt)
        tensor(0.4325)

    Paper: ADPO, arXiv 2510.18913.
    """
    _check_rows(logp, anchor_logp, scores, group_id, token_mask)
    check_choice("target", target, TARGETS)
    check_choice("length_norm", length_norm, LENGTH_NORMS)
    check_choice("nan", nan, preference_targets.NAN)
    check_choice("reduction", reduction, REDUCTIONS)
    number = check_number("beta", beta, low=0.0, low_open=True, high_open=True)
    _check_adaptive(adaptive, entropy, logp)
    contexts = None
    if isinstance(tau, Tensor):
        contexts = torch.Size([grouped(group_id, logp.shape[0]).shape[0]])
    options = anchored.check_score_options(logp, tau, clamp_ratio, clamp_score, contexts)
    preference_targets.check_scores(scores, preference_targets.kept_scores(scores, None, nan))
    return call(
        record_of(adpo_loss), logp, anchor_logp, scores, group_id, token_mask, target=target, beta=number,
        length_norm=length_norm, adaptive=adaptive, entropy=entropy, nan=nan, reduction=reduction, **options,
    )  # fmt: skip


def _check_rows(logp: Any, anchor_logp: Any, scores: Any, group_id: Any, token_mask: Any) -> None:
    for name, tensor in (("logp", logp), ("anchor_logp", anchor_logp), ("scores", scores)):
        check_float_tensor(name, tensor)
    if logp.ndim not in (1, 2):
        bad_value("logp", tuple(logp.shape), "of shape (B, T) or (B,)")
    for name, tensor, shape in (("anchor_logp", anchor_logp, logp.shape), ("scores", scores, logp.shape[:1])):
        if tensor.shape != shape:
            raise ArgumentValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    check_same_device(logp=logp, anchor_logp=anchor_logp, scores=scores)
    check_group_id(group_id, logp)
    if token_mask is not None and logp.ndim == 1:
        raise ArgumentValueError("token_mask must be None where logp has one number for each answer")
    kept = as_mask("token_mask", token_mask, logp)
    if can_read(anchor_logp, kept):
        impossible = anchor_logp.detach() == float("-inf")
        if bool((impossible if kept is None else impossible & kept).any()):
            raise ArgumentValueError(
                "anchor_logp must be above -inf: a target outside the anchor's support has no loss"
            )


def _check_adaptive(adaptive: Any, entropy: Any, logp: Tensor) -> None:
    if adaptive is None:
        return
    if not isinstance(adaptive, AdaptiveTau):
        bad_type("adaptive", adaptive, "an AdaptiveTau or None")
    if entropy is None:
        raise ArgumentTypeError("entropy must be a tensor with adaptive, got None")
    if check_float_tensor("entropy", entropy).shape not in (logp.shape, logp.shape[:1]):
        bad_value("entropy", tuple(entropy.shape), f"of shape {tuple(logp.shape)} or {tuple(logp.shape[:1])}")


class ADPOLoss(nn.Module):
    """Module form of :func:`adpo_loss`, which also refuses log-probabilities that are not finite.

    Args:
        tau: temperature of the anchored scores.
        target: ``"raw"``, ``"zscore"``, ``"kde"``, ``"top1"`` or ``"plackett_luce"``.
        beta: temperature of the target.
        length_norm: ``"mean"`` or ``"sum"`` over tokens.
        adaptive: sets tau for each group; the call then needs ``entropy``.
        clamp_ratio: bound of the absolute log-ratio of an answer, None for none.
        clamp_score: bound of ``|u|``, None for none.
        nan: ``"raise"``, or ``"drop"`` to leave out answers whose score is NaN.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        check: raise at NaN or infinity among the unmasked log-probabilities (looked at on CPU only).

    Shapes: as :func:`adpo_loss`.

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: an option is not allowed.

    Example:
        >>> import torch
        >>> loss = ADPOLoss(tau=0.8, target="zscore")
        >>> logp = torch.zeros(8, 5, requires_grad=True)
        >>> loss(logp, torch.zeros(8, 5), torch.randn(8), torch.arange(8) % 2).shape
        torch.Size([])

    Paper: ADPO, arXiv 2510.18913.
    """

    def __init__(
        self, tau: float = 1.0, target: str = "raw", beta: float = 0.5, length_norm: str = "mean",
        adaptive: AdaptiveTau | None = None, *, clamp_ratio: float | None = None, clamp_score: float | None = None,
        nan: str = "raise", reduction: str = "mean", check: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options: dict[str, Any] = {
            "tau": tau, "target": target, "beta": beta, "length_norm": length_norm, "adaptive": adaptive,
            "clamp_ratio": clamp_ratio, "clamp_score": clamp_score, "nan": nan, "reduction": reduction,
        }  # fmt: skip
        nothing = torch.zeros(1)
        adpo_loss(nothing, nothing, nothing, 1, **self.options, entropy=None if adaptive is None else nothing)
        if not isinstance(check, bool):
            bad_type("check", check, "a bool")
        self.check = check

    def forward(
        self,
        logp: Tensor,
        anchor_logp: Tensor,
        scores: Tensor,
        group_id: Tensor | int,
        token_mask: Tensor | None = None,
        entropy: Tensor | None = None,
    ) -> Tensor:
        """Loss of answers with their scores, see :func:`adpo_loss`."""
        if self.check:
            for name, tensor in (("logp", logp), ("anchor_logp", anchor_logp)):
                _check_finite(name, tensor, token_mask)
        return adpo_loss(logp, anchor_logp, scores, group_id, token_mask, entropy=entropy, **self.options)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


def _check_finite(name: str, values: Any, token_mask: Any) -> None:
    kept = as_mask("token_mask", token_mask, check_float_tensor(name, values))
    if can_read(values, kept):
        wrong = ~values.isfinite() if kept is None else kept & ~values.isfinite()
        if bool(wrong.any()):
            raise ArgumentValueError(f"{name} must be finite where a token counts, got {values[wrong][0].item()}")
