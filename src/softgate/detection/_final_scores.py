"""The second pass: final scores of boxes whose order is known, as one differentiable expression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softgate.detection import _overlap
from softgate.detection._rules import Rule

#: Columns of the matrix of overlaps that are held at once; beyond it they are computed again in the backward.
COLUMNS = 4096


def final_scores(boxes_GK4: Tensor, scores_GK: Tensor, rule: Rule) -> Tensor:
    """``s_k Π_{j<k} f(IoU(b_j, b_k))`` for boxes in the order of their picks.

    Args:
        boxes_GK4: corners.
        scores_GK: raw scores.
        rule: decay and convention.

    Returns:
        (G, K), differentiable by boxes and scores.
    """
    size = scores_GK.shape[1]
    if size <= COLUMNS:
        return _columns(boxes_GK4, scores_GK, 0, rule)
    parts = [
        checkpoint(_columns, boxes_GK4[:, : start + COLUMNS], scores_GK[:, start : start + COLUMNS], start, rule,
                   use_reentrant=False, preserve_rng_state=False)
        for start in range(0, size, COLUMNS)
    ]  # fmt: skip
    return torch.cat(parts, 1)


def _columns(boxes: Tensor, scores: Tensor, start: int, rule: Rule) -> Tensor:
    """Columns from ``start`` to the last box."""
    offset = rule.convention.offset
    mine = boxes[:, start:]
    areas = _overlap.area(boxes, offset)
    common = _overlap.intersection(boxes[:, :, None], mine[:, None], offset)
    overlap = _overlap.iou(common, areas[:, :, None], areas[:, None, start:])
    rows = torch.arange(boxes.shape[1], device=boxes.device)
    earlier = rows[:, None] < rows[start:]
    if rule.method == "gaussian":  # one exponential a column, and no product that could lose a gradient
        factors = torch.exp(-torch.where(earlier, overlap * overlap, 0.0).sum(1) / rule.sigma)
    else:
        factors = _product(torch.where(earlier, _overlap.factor(overlap, rule), 1.0))
    return _overlap.weakened(scores, factors)


def _product(factors: Tensor) -> Tensor:
    """Product over dimension 1 by halves: unlike ``prod`` its derivative asks nobody whether a factor is zero."""
    while factors.shape[1] > 1:
        half = factors.shape[1] // 2
        pairs = factors[:, :half] * factors[:, half : 2 * half]
        factors = torch.cat((pairs, factors[:, 2 * half :]), 1)
    return factors[:, 0] if factors.shape[1] else factors.sum(1)
