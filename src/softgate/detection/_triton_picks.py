"""The greedy loop on a GPU: a program per group instead of a dozen launches per pick."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate import _triton
from softgate.detection import _ragged
from softgate.detection._picks import Picks
from softgate.detection._rules import FIRST, METHODS, Rule

#: Boxes of a group that the registers of one program hold.
_LARGEST_GROUP = 8192


def refuses(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> str | None:
    """Why the kernel cannot run a call with these arguments; None if it can."""
    reason = _triton.refuses(scores, options.get("backend", "auto"))
    if reason is not None:
        return reason
    if boxes.ndim == 3 and boxes.shape[1] > _LARGEST_GROUP:
        return f"more than {_LARGEST_GROUP:,} boxes in one group"
    return "a decay that is a function of tensors" if callable(options.get("method")) else None


def pick(boxes_BN4: Tensor, scores_GN: Tensor, valid_GN: Tensor | None, rule: Rule) -> Picks:
    """As :func:`softgate.detection._picks.pick`."""
    groups, size = scores_GN.shape
    scores = scores_GN.detach() if valid_GN is None else torch.where(valid_GN, scores_GN.detach(), -1.0)
    keep = scores.new_full((groups, size), -1, dtype=torch.int64)
    final, count = torch.zeros_like(scores), scores.new_zeros(groups, dtype=torch.int64)
    shared = max(1, groups // max(1, len(boxes_BN4)))
    if groups and size:
        _launch(boxes_BN4, scores, rule, keep, final, count, largest=size, size=size, shared=shared)
    steps = rule.steps(size)
    return Picks(keep[:, :steps], final[:, :steps], count)


def pick_flat(
    boxes_N4: Tensor, scores_N: Tensor, order_N: Tensor, sizes_G: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`softgate.detection._ragged.pick_flat`, which runs where a group is too large for the kernel."""
    largest = int(sizes_G.max()) if len(sizes_G) else 0
    if largest > _LARGEST_GROUP:
        return _ragged.pick_flat(boxes_N4, scores_N, order_N, sizes_G, rule)
    offsets = torch.cat((sizes_G.new_zeros(1), sizes_G.cumsum(0)))
    keep, final = torch.empty_like(order_N), torch.empty_like(scores_N)
    count = torch.empty_like(sizes_G)
    if largest:
        _launch(
            boxes_N4, scores_N, rule, keep, final, count, largest=largest, size=len(scores_N), shared=1,
            order=order_N.contiguous(), offsets=offsets,
        )  # fmt: skip
    return _ragged.written(keep, final, count, offsets)


def _launch(boxes: Tensor, scores: Tensor, rule: Rule, *found: Tensor, **sizes: Any) -> None:
    from softgate._triton import suppression

    convention = rule.convention
    suppression.launch(
        boxes.detach().contiguous(), scores.detach().contiguous(), *found,
        most=rule.steps(sizes["size"]),
        numbers=(rule.sigma, rule.iou_threshold, rule.score_threshold, convention.offset),
        kind=(
            METHODS.index(str(rule.method)),
            FIRST.index(convention.first),
            convention.inclusive,
            convention.keep_equal,
        ),
        **sizes,
    )  # fmt: skip
