"""Boxes as corners, their overlaps, and what an overlap leaves of a score."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.detection._rules import Rule


def corners(boxes: Tensor, box_format: str) -> Tensor:
    """(…, 4) in ``box_format`` as (x1, y1, x2, y2)."""
    if box_format == "xyxy":
        return boxes
    position, size = boxes[..., :2], boxes[..., 2:]
    first = position if box_format == "xywh" else position - size / 2
    return torch.cat((first, first + size), -1)


def area(boxes: Tensor, offset: float) -> Tensor:
    """Area of corners (…, 4); 0 where a side is negative."""
    return _product_of_sides(boxes[..., 2:] - boxes[..., :2] + offset)


def intersection(a: Tensor, b: Tensor, offset: float) -> Tensor:
    """Common area of corners (…, 4) and (…, 4), broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return _product_of_sides(high - low + offset)


def _product_of_sides(sides: Tensor) -> Tensor:
    width, height = sides.clamp(min=0).unbind(-1)
    return width * height


def iou(common: Tensor, area_a: Tensor, area_b: Tensor) -> Tensor:
    """Intersection over union; 0 where the union has no area."""
    union = area_a + area_b - common
    some = union > 0
    return torch.where(some, common / torch.where(some, union, 1.0), 0.0)


def factor(overlap: Tensor, rule: Rule) -> Tensor:
    """``f(o)``: what is left of a score beside a pick that overlaps by ``o``."""
    if callable(rule.method):
        return rule.method(overlap)
    if rule.method == "gaussian":
        return torch.exp(-(overlap * overlap) / rule.sigma)
    above = overlap >= rule.iou_threshold if rule.convention.inclusive else overlap > rule.iou_threshold
    return torch.where(above, 1.0 - overlap if rule.method == "linear" else torch.zeros_like(overlap), 1.0)


def weakened(scores: Tensor, factors: Tensor) -> Tensor:
    """``scores * factors``, with 0 for a factor of 0 also where the score is infinite."""
    return torch.where(factors == 0, 0.0, scores * factors)


def passes(scores: Tensor, rule: Rule) -> Tensor:
    """Which scores are high enough to stay."""
    return scores >= rule.score_threshold if rule.convention.keep_equal else scores > rule.score_threshold
