"""A ranking loss on the counts of the hardest regions: who holds more must be predicted to hold more."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_sizes
from softgate._math.compress import compute_dtype
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value, check_choice
from softgate.losses.local_counts import check_maps, local_count
from softgate.registry import method

__all__ = ["relative_local_counting_loss"]

HardError = Literal["none", "detached"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def maps(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        pred, target = (
            torch.rand(batch, 1, height, width, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)
        )
        return pred.requires_grad_(), target

    yield (*maps(2, 6, 8),), {"patch": 2}
    yield (*maps(2, 8, 8),), {"patch": 2, "hard_error": "detached", "reduction": "none"}
    yield (*maps(3, 4, 4),), {"patch": 2, "reduction": "mean"}
    yield (*maps(1, 8, 12),), {"patch": 4, "hard": 4, "groups": 2}
    yield (*maps(0, 8, 8),), {"patch": 2}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.ones(2, 1, 48, 48)
    yield (x[0], x[0]), {}, ArgumentValueError, "pred"
    yield (x, x[:1]), {}, ArgumentValueError, "target"
    yield (x.long(), x), {}, ArgumentTypeError, "pred"
    yield (x, x.double()), {}, ArgumentTypeError, "target"
    yield (x, x), {"patch": 10}, ArgumentValueError, "patch"
    yield (x, x), {"patch": 48}, ArgumentValueError, "patch"
    yield (x, x), {"hard": 8}, ArgumentValueError, "hard"
    yield (x, x), {"hard": 3}, ArgumentValueError, "hard"
    yield (x, x), {"groups": 0}, ArgumentValueError, "groups"
    yield (x, x), {"reduction": "max"}, ArgumentValueError, "reduction"
    yield (x, x), {"hard_error": "kept"}, ArgumentValueError, "hard_error"


@method(
    site="losses",
    family="custom",
    paper="density-experts-crowd-counting",
    source="section 3, relative local counting loss (its definition taken from the authors' code)",
    samples=_samples,
    bad_inputs=_bad_inputs,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
    deviations=("the squared errors of the hard regions, a constant in the authors' code, are left out by default",),
)
def relative_local_counting_loss(
    pred: Tensor,
    target: Tensor,
    patch: int = 16,
    hard: int = 9,
    groups: int = 3,
    reduction: Literal["sum", "mean", "none"] = "sum",
    hard_error: HardError = "none",
) -> Tensor:
    r"""Hinge loss on the order of the predicted counts in the regions with the largest errors.

    Of each image, the ``hard`` patches with the largest squared error are sorted by their true counts, the largest
    first, and dealt out to ``groups``. With q₀, q₁, q₂, … the predicted counts of a group and Δⱼ = q₀ - qⱼ,

    .. math:: \ell = \sum_{j \ge 1} [-\Delta_j]_+ + \sum_{j \ge 1} [\Delta_j - \Delta_{j+1}]_+ :

    the first patch must hold most, and the gap to it must grow down the order. Zero where the predicted counts fall as
    the true ones do. Which patches are hard is not differentiated; all others get no gradient.

    Args:
        pred: (B, 1, H, W), predicted density on the scale of the target.
        target: (B, 1, H, W), true density.
        patch: side of a region; H and W must be multiples of it.
        hard: number of regions; where an image has fewer patches, the largest number that fills whole groups.
        groups: into how many interleaved groups the regions are dealt; ``hard / groups`` regions each, at least two.
        reduction: over the images, ``"sum"``, ``"mean"`` or ``"none"``.
        hard_error: ``"detached"`` adds the squared errors of the hard regions as a constant without a gradient, as the
            authors' code does; ``"none"`` leaves them out.

    Returns:
        Scalar, or (B,) with ``reduction="none"``; float32 for 16-bit maps. 0 for an empty batch.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or options that do not fit, or fewer patches than a group needs.

    Warns:
        UserWarning: some target is negative (looked at on the CPU only, and not under transforms).

    Example:
        >>> target = torch.tensor([3.0, 2.0, 0.0]).view(1, 1, 1, 3)
        >>> pred = torch.tensor([1.0, 2.0, 0.0]).view(1, 1, 1, 3)
        >>> relative_local_counting_loss(pred, target, patch=1, hard=3, groups=1)
        tensor(1.)

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """
    check_maps(pred, target)
    check_sizes(patch=patch, hard=hard, groups=groups)
    check_choice("reduction", reduction, ("sum", "mean", "none"))
    check_choice("hard_error", hard_error, ("none", "detached"))
    if hard % groups or hard == groups:
        bad_value("hard", hard, f"a multiple of groups={groups} with at least two regions for each group")
    if target.device.type == "cpu" and transform_reason(pred, target) is None and bool((target < 0).any()):
        warnings.warn("target has negative entries, which no density has", stacklevel=2)
    wide = compute_dtype(pred.dtype)
    pred, target = pred.to(wide), target.to(wide)
    error_BP, predicted_BP, true_BP = (
        local_count(x, patch).flatten(1) for x in ((pred - target).detach().square(), pred, target)
    )
    members = hard // groups
    groups = min(groups, error_BP.shape[1] // members)
    if groups == 0:
        raise ArgumentValueError(
            f"patch must leave at least {members} patches of the map {tuple(pred.shape[-2:])}, got {patch}"
        )
    hardest_BR = error_BP.argsort(dim=1, descending=True, stable=True)[:, : groups * members]
    by_truth_BR = hardest_BR.gather(
        1, true_BP.detach().gather(1, hardest_BR).argsort(dim=1, descending=True, stable=True)
    )
    q_BMG = predicted_BP.gather(1, by_truth_BR).unflatten(1, (members, groups))
    gap_BMG = q_BMG[:, :1] - q_BMG[:, 1:]
    loss_B = (-gap_BMG).relu().sum((1, 2)) + (gap_BMG[:, :-1] - gap_BMG[:, 1:]).relu().sum((1, 2))
    if hard_error == "detached":
        loss_B = loss_B + error_BP.gather(1, hardest_BR).sum(1)
    return _reduced(loss_B, reduction)


def _reduced(loss_B: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss_B
    return loss_B.sum() / (max(loss_B.shape[0], 1) if reduction == "mean" else 1)
