"""Group advantages: each reward against those of the other answers to the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["group_advantages"]


def group_advantages(
    rewards: Tensor,
    group_id: Tensor,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    eps: float = 1e-4,
    convention: Literal["trl", "verl"] = "trl",
    allow_singletons: bool = False,
) -> Tensor:
    r"""Advantages ``A_i = (R_i - mean_g) / (σ_g + ε)`` of rewards in groups, in any order of rows.

    Args:
        rewards: one reward per sequence, ``(B,)``. NaN means that no reward applies: the row is left out of mean and
            deviation and gets 0.
        group_id: integer label of the prompt, ``(B,)``; the labels need not be consecutive nor sorted.
        scale: divide by the standard deviation of the ``"group"``, of the whole ``"batch"``, or by nothing (Dr. GRPO).
            Deviations have Bessel's correction.
        eps: added to the deviation, at least 0. TRL has 1e-4, verl 1e-6.
        convention: what a group of one gets: 0 (``"trl"``), or its own reward, as if mean were 0 and deviation 1
            (``"verl"``).
        allow_singletons: accept groups of one.

    Returns:
        ``(B,)``, in float32 or wider, without gradient. Exactly 0 where all rewards of a group are equal.

    Raises:
        ArgumentTypeError: ``rewards`` is not floating point, ``group_id`` not integer, or an option has another type.
        ArgumentValueError: shapes do not match, a group has one row, or an option is not allowed.

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 5.0]), torch.tensor([7, 3, 7, 3]), scale="none")
        tensor([ 0.5000, -2.5000, -0.5000,  2.5000])

    Paper: GRPO as used by SAPO, arXiv 2511.20347, sec. 2.
    """
    check_choice("scale", scale, ("group", "batch", "none"))
    check_choice("convention", convention, ("trl", "verl"))
    eps = check_number("eps", eps, low=0.0, high_open=True)
    if not isinstance(allow_singletons, bool):
        bad_type("allow_singletons", allow_singletons, "a bool")
    wide = check_float_tensor("rewards", rewards).detach().to(compute_dtype(rewards.dtype))
    labels, index = check_groups(wide, group_id)
    sizes = torch.bincount(index, minlength=len(labels))
    if not allow_singletons and bool((sizes < 2).any()):
        raise ArgumentValueError(
            f"group_id must give groups of at least 2 rows (or allow_singletons=True), got group sizes {sizes.tolist()}"
        )
    return _advantages(wide, index, len(labels), scale, eps, convention)


def check_groups(rows: Tensor, group_id: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted labels ``(P,)`` and the position of every row's label among them ``(B,)``."""
    if not isinstance(group_id, Tensor):
        bad_type("group_id", group_id, "a torch.Tensor")
    if group_id.is_floating_point() or group_id.is_complex() or group_id.dtype == torch.bool:
        raise ArgumentTypeError(f"group_id must have an integer dtype, got {group_id.dtype}")
    if rows.ndim != 1:
        bad_value("rewards", tuple(rows.shape), "of shape (B,)")
    if group_id.shape != rows.shape:
        bad_value("group_id", tuple(group_id.shape), f"of the shape of the rewards {tuple(rows.shape)}")
    labels, index = torch.unique(group_id, return_inverse=True)
    return labels, index


def _advantages(rewards: Tensor, index: Tensor, groups: int, scale: str, eps: float, convention: str) -> Tensor:
    valid = ~rewards.isnan()
    known = torch.where(valid, rewards, 0.0)
    count = _sums(valid.to(known.dtype), index, groups)
    mean = _sums(known, index, groups) / count.clamp(min=1)
    centred = torch.where(valid, known - mean[index], 0.0)
    if scale == "group":
        deviation = (_sums(centred.square(), index, groups) / (count - 1).clamp(min=1)).sqrt()[index]
    elif scale == "batch":
        rows = valid.sum()
        away = torch.where(valid, known - known.sum() / rows.clamp(min=1), 0.0)
        deviation = (away.square().sum() / (rows - 1).clamp(min=1)).sqrt().expand_as(known)
    result = centred if scale == "none" else centred / (deviation + eps)
    # the mean of equal numbers need not be that number in floating point: what is constant gets 0, not noise / eps
    result = torch.where(_constant(rewards, valid, index, groups)[index], 0.0, result)
    if convention == "verl":
        alone = (count == 1)[index] & valid
        result = torch.where(alone, known if scale == "none" else known / (1.0 + eps), result)
    return result


def _sums(values: Tensor, index: Tensor, groups: int) -> Tensor:
    return values.new_zeros(groups).index_add(0, index, values)


def _constant(rewards: Tensor, valid: Tensor, index: Tensor, groups: int) -> Tensor:
    """Which groups have one reward only: smallest and largest are equal."""
    low = rewards.new_full((groups,), float("inf"))
    high = torch.full_like(low, float("-inf"))
    low = low.scatter_reduce(0, index, torch.where(valid, rewards, float("inf")), "amin")
    high = high.scatter_reduce(0, index, torch.where(valid, rewards, float("-inf")), "amax")
    return low >= high
