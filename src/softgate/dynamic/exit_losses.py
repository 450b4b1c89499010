"""Two losses of jointly learned exits: of the classifiers under fixed gates, of the gates under fixed classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.dispatch import transform_reason
from softgate.dynamic.exit_rule import check_gate_logits
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method

__all__ = ["best_exit", "exit_gate_loss", "exit_inference_loss"]

# L gates, E = L + 1 exits (the last is the network's own head), N samples, C classes.
_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

WEIGHTINGS = ("probability", "normalized", "uniform", "hard")
OBJECTIVES = ("ce", "prob", "zero_one")


def check_exit_logits(logits: Any, target: Any) -> None:
    """Raise unless ``logits`` are (E, N, C) with E, C >= 2 and ``target`` (N,) class indices below C."""
    check_float_tensor("logits", logits)
    if logits.ndim != 3 or logits.shape[0] < 2 or logits.shape[2] < 2:
        bad_value("logits", tuple(logits.shape), "of shape (L + 1, N, C) with L >= 1 and C >= 2")
    if not isinstance(target, Tensor):
        bad_type("target", target, "an int64 tensor")
    if target.dtype is not torch.int64:
        raise ArgumentTypeError(f"target must be an int64 tensor of class indices, got {target.dtype}")
    if target.shape != logits.shape[1:2]:
        bad_value("target", tuple(target.shape), f"of shape ({logits.shape[1]},)")
    check_same_device(logits=logits, target=target)
    # elsewhere the values are unknown (tracing) or reading them would stall the device; the indexing checks them there
    if target.is_cpu and target.numel() and transform_reason(target) is None:
        low, high = (int(value) for value in target.aminmax())
        if low < 0 or high >= logits.shape[2]:
            bad_value("target", low if low < 0 else high, f"class indices in [0, {logits.shape[2] - 1}]")


def check_costs(costs: Any, exits: int) -> Tensor:
    """Return ``costs`` as a tensor if it rises to 1 over ``exits`` exits, from above 0."""
    found = costs.detach() if isinstance(costs, Tensor) else torch.tensor(costs, dtype=torch.float64)
    if found.shape != (exits,):
        bad_value("costs", tuple(found.shape), f"one number for each of the {exits} exits")
    if transform_reason(found) is None:
        values = found.tolist()
        rising = all(a < b for a, b in zip([0.0, *values], values, strict=False))
        if not rising or abs(values[-1] - 1.0) > 1e-6:
            bad_value("costs", values, "increasing, above 0, and 1 at the last exit")
    return found


def exit_cross_entropies(logits_ENC: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy of every sample at every exit, (N, E), at least float32."""
    exits = logits_ENC.shape[0]
    wide = logits_ENC.to(compute_dtype(logits_ENC.dtype)).flatten(0, 1)
    return functional.cross_entropy(wide, target_N.repeat(exits), reduction="none").view(exits, -1).T


def _hard_weights(probabilities_NE: Tensor) -> Tensor:
    """1 at the exit where a sample leaves by its conditional probability, 0 elsewhere."""
    before = probabilities_NE.cumsum(-1) - probabilities_NE
    leaves = (probabilities_NE >= 0.5 * (1.0 - before)) & (before < 1.0)
    leaves = torch.cat((leaves[:, :-1], torch.ones_like(leaves[:, :1])), -1)
    return (leaves & (leaves.cumsum(-1) == 1)).to(probabilities_NE.dtype)


def _draw(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _loss_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for exits, rows, classes in ((4, 5, 3), (2, 3, 2), (3, 0, 4)):
        target = torch.randint(classes, (rows,), generator=generator)
        weights = _draw(torch.float64, generator, rows, exits).softmax(-1).to(dtype)
        for weighting in WEIGHTINGS if rows == 5 else ("probability",):
            logits = _draw(dtype, generator, exits, rows, classes).requires_grad_()  # the weights have no gradient
            yield (logits, target, weights), {"weighting": weighting}


def _loss_bad() -> Iterator[_Bad]:
    logits, target, weights = torch.zeros(3, 2, 4), torch.zeros(2, dtype=torch.int64), torch.full((2, 3), 1 / 3)
    yield (logits[0], target, weights), {}, ArgumentValueError, "logits"
    yield (logits[:, :, :1], target, weights), {}, ArgumentValueError, "logits"
    yield (logits.long(), target, weights), {}, ArgumentTypeError, "logits"
    yield (logits, target.float(), weights), {}, ArgumentTypeError, "target"
    yield (logits, target[:1], weights), {}, ArgumentValueError, "target"
    yield (logits, target + 4, weights), {}, ArgumentValueError, "target"
    yield (logits, target, weights[:, :2]), {}, ArgumentValueError, "probabilities"
    yield (logits, target, weights), {"weighting": "boosted"}, ArgumentValueError, "weighting"


@method(
    site="dynamic",
    family="custom",
    paper="jei-dnn",
    source="objective of the inference modules: mean over samples of sum_l P_l CE_l, the gates fixed",
    samples=_loss_samples,
    bad_inputs=_loss_bad,
    output_range=(0.0, float("inf")),
    deviations=(
        "The authors' code divides the weights away again: value and gradient of its default are those of 'uniform'.",
    ),
)
def exit_inference_loss(
    logits: Tensor, target: Tensor, probabilities: Tensor, weighting: str = "probability"
) -> Tensor:
    """Loss of the classifiers at all exits while the gates stand still.

    Args:
        logits: (L + 1, N, C), class logits of every exit, the final head last.
        target: (N,) int64, the true classes.
        probabilities: (N, L + 1), exit probabilities (:func:`softgate.dynamic.exit_probabilities`); they get no
            gradient.
        weighting: ``"probability"``, mean over samples of ``Σ_l P_l CE_l``; ``"uniform"``, the mean of the
            cross-entropies of the L learned exits, which is what the authors' code computes; ``"normalized"``, the
            weighted sum over the learned exits, rescaled by a detached factor to the value of ``"uniform"``;
            ``"hard"``, the cross-entropy at the exit where the sample would leave.

    Returns:
        0-d tensor, float32 for 16-bit inputs; 0 for no samples.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype.
        ArgumentValueError: shapes that do not fit, a class out of range, or an unknown weighting.

    Example:
        >>> logits, target = torch.tensor([[[0.0, 0.0]], [[9.0, 0.0]]]), torch.tensor([0])
        >>> exit_inference_loss(logits, target, torch.tensor([[0.5, 0.5]]))
        tensor(0.3466)

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, the lower-level problem.
    """
    check_exit_logits(logits, target)
    check_float_tensor("probabilities", probabilities)
    check_choice("weighting", weighting, WEIGHTINGS)
    if probabilities.shape != (logits.shape[1], logits.shape[0]):
        bad_value("probabilities", tuple(probabilities.shape), f"of shape {(logits.shape[1], logits.shape[0])}")
    ce_NE = exit_cross_entropies(logits, target)
    p_NE = probabilities.detach().to(ce_NE.dtype)
    rows, learned = max(1, len(target)), logits.shape[0] - 1
    if weighting == "uniform":
        return ce_NE[:, :-1].sum() / (rows * learned)
    if weighting == "hard":
        return (_hard_weights(p_NE) * ce_NE).sum() / rows
    if weighting == "probability":
        return (p_NE * ce_NE).sum() / rows
    weighted = (p_NE * ce_NE)[:, :-1].sum()
    whole = ce_NE.detach()[:, :-1].sum()
    ratio = whole / weighted.detach().clamp_min(torch.finfo(weighted.dtype).tiny)
    return ratio * weighted / (rows * learned)


@torch.no_grad()
def best_exit(logits: Tensor, target: Tensor, costs: Tensor, lam: float, objective: str = "ce") -> Tensor:
    """The exit that would have been best for each sample: the least of loss plus ``lam`` times cost.

    Args:
        logits: (L + 1, N, C), class logits of every exit, the final head last.
        target: (N,) int64, the true classes.
        costs: (L + 1,), relative costs of leaving at each exit, increasing, the last one 1.
        lam: price of the whole network, not negative.
        objective: the loss, ``"ce"`` cross-entropy, ``"prob"`` minus the largest probability where it is that of the
            true class, ``"zero_one"`` minus one where the prediction is right.

    Returns:
        (N,) int64 in [0, L]; of equal exits the first, and never one whose logits are NaN while another's are not.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype.
        ArgumentValueError: shapes that do not fit, costs that do not rise to 1, a negative ``lam``, an unknown
            objective.

    Example:
        >>> logits, target = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]]), torch.tensor([0])
        >>> [int(best_exit(logits, target, torch.tensor([0.5, 1.0]), lam)) for lam in (0.1, 1.0)]
        [1, 0]

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, the upper-level problem.
    """
    check_exit_logits(logits, target)
    check_choice("objective", objective, OBJECTIVES)
    check_number("lam", lam, low=0.0, high_open=True)
    found = check_costs(costs, logits.shape[0])
    if objective == "ce":
        loss_NE = exit_cross_entropies(logits, target)
    else:
        top = logits.to(compute_dtype(logits.dtype)).softmax(-1).max(-1)
        right_EN = (top.indices == target).to(top.values.dtype)
        loss_NE = -(right_EN * top.values if objective == "prob" else right_EN).T
    total_NE = loss_NE + lam * found.to(loss_NE)
    return total_NE.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(-1)


def _gate_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for gates, rows in ((3, 5), (1, 3), (2, 0)):
        best = torch.randint(gates + 1, (rows,), generator=generator)
        yield (_draw(dtype, generator, rows, gates), best), {}
    best = torch.randint(4, (5,), generator=generator)
    yield (_draw(dtype, generator, 5, 3), best), {"pos_weight": torch.tensor([0.5, 1.0, 5.0])}


def _gate_bad() -> Iterator[_Bad]:
    gate, best = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    yield (gate[0], best), {}, ArgumentValueError, "gate_logits"
    yield (gate.long(), best), {}, ArgumentTypeError, "gate_logits"
    yield (gate, best[:1]), {}, ArgumentValueError, "best"
    yield (gate, best.float()), {}, ArgumentTypeError, "best"
    yield (gate, best), {"pos_weight": torch.ones(2)}, ArgumentValueError, "pos_weight"
    yield (gate, best), {"pos_weight": 2.0}, ArgumentTypeError, "pos_weight"


@method(
    site="dynamic",
    family="custom",
    paper="jei-dnn",
    source="objective of the gates: binary cross-entropy against 1[l >= best exit], for every gate",
    samples=_gate_samples,
    bad_inputs=_gate_bad,
    output_range=(0.0, float("inf")),
)
def exit_gate_loss(gate_logits: Tensor, best: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Loss of the gates while the classifiers stand still: each is told to open at the best exit and after it.

    Args:
        gate_logits: (N, L), one logit a gate.
        best: (N,) int64 in [0, L], the best exit of each sample (:func:`softgate.dynamic.best_exit`).
        pos_weight: (L,), weight of the samples that gate l should let out; 1 if None.

    Returns:
        0-d tensor, the mean over samples and gates; float32 for 16-bit inputs, 0 for no samples.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype.
        ArgumentValueError: shapes that do not fit.

    Example:
        >>> exit_gate_loss(torch.tensor([[-9.0, 9.0, 9.0]]), torch.tensor([1])).round(decimals=3)
        tensor(0.)

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, the upper-level problem.
    """
    check_gate_logits(gate_logits)
    if gate_logits.ndim != 2:
        bad_value("gate_logits", tuple(gate_logits.shape), "of shape (N, L)")
    if not isinstance(best, Tensor) or best.dtype is not torch.int64:
        bad_type("best", best if not isinstance(best, Tensor) else best.dtype, "an int64 tensor")
    if best.shape != gate_logits.shape[:1]:
        bad_value("best", tuple(best.shape), f"of shape ({len(gate_logits)},)")
    if pos_weight is not None:
        check_float_tensor("pos_weight", pos_weight)
        if pos_weight.shape != gate_logits.shape[1:]:
            bad_value("pos_weight", tuple(pos_weight.shape), f"of shape ({gate_logits.shape[1]},)")
    check_same_device(gate_logits=gate_logits, best=best, pos_weight=pos_weight)
    wide = gate_logits.to(compute_dtype(gate_logits.dtype))
    places = torch.arange(gate_logits.shape[1], device=best.device)
    target_NL = (places >= best.unsqueeze(-1)).to(wide.dtype)
    weight = None if pos_weight is None else pos_weight.to(wide.dtype)
    losses = functional.binary_cross_entropy_with_logits(wide, target_NL, pos_weight=weight, reduction="sum")
    return losses / max(1, wide.numel())
