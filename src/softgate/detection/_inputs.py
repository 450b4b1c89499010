"""Checks of boxes and scores; those that read their values are made where there are values to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math.masks import accumulation_dtype
from softgate.detection import _overlap
from softgate.detection._rules import FORMATS, NAN
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice


def check_boxes(boxes: Any, scores: Any, box_format: Any, nan: Any, validate: Any) -> None:
    """Raise unless types, dtypes, devices and options are fine; shapes are the business of the caller."""
    if isinstance(boxes, Tensor) and _is_integer(boxes) and boxes.layout is torch.strided and not boxes.is_nested:
        pass  # pixels are often counted in integers
    else:
        check_float_tensor("boxes", boxes)
    check_float_tensor("scores", scores)
    check_same_device(boxes=boxes, scores=scores)
    check_choice("box_format", box_format, FORMATS)
    check_choice("nan", nan, NAN)
    if not isinstance(validate, bool):
        bad_type("validate", validate, "a bool")


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.bool


def check_rows(boxes: Tensor, scores: Tensor) -> None:
    """Raise unless there are N boxes (N, 4) and N scores (N,)."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        bad_value("boxes", tuple(boxes.shape), "of shape (N, 4)")
    if scores.ndim != 1 or len(scores) != len(boxes):
        bad_value("scores", tuple(scores.shape), f"of shape ({len(boxes)},), one for every box")


def check_ids(name: str, ids: Any, boxes: Tensor) -> None:
    """Raise unless ``ids`` is an integer tensor with one entry for every box."""
    if not isinstance(ids, Tensor):
        bad_type(name, ids, "an integer tensor")
    if not _is_integer(ids):
        raise ArgumentTypeError(f"{name} must be an integer tensor, got {ids.dtype}")
    if ids.shape != boxes.shape[:1]:
        bad_value(name, tuple(ids.shape), f"of shape ({len(boxes)},), one for every box")
    check_same_device(boxes=boxes, **{name: ids})


def wide(boxes: Tensor, scores: Tensor, box_format: str) -> tuple[Tensor, Tensor]:
    """Corners and scores in the dtype that they are computed in."""
    dtype = accumulation_dtype(scores.dtype)
    if boxes.dtype == torch.float64 and dtype == torch.float32:
        return _overlap.corners(boxes, box_format).to(dtype), scores.to(dtype)
    return _overlap.corners(boxes.to(dtype), box_format), scores.to(dtype)


def check_values(corners: Tensor, scores: Tensor, valid: Tensor | None, nan: str, *, any_score: bool = False) -> None:
    """Raise if a valid box is not finite or has a negative side, or its score is NaN or negative.

    Args:
        corners: (…, N, 4).
        scores: (…, N), with the leading dimensions of ``corners`` or one more.
        valid: (…, N) bool, of the shape of ``scores``, or None.
        nan: ``"raise"`` or ``"drop"``.
        any_score: negative scores are fine.
    """
    if transform_reason(corners, scores) is not None:
        return
    corners, scores = corners.detach(), scores.detach()
    sides = corners[..., 2:] - corners[..., :2]
    if _all_fine(sides, scores, any_score):
        return
    bad_box = ~((sides >= 0) & (sides < float("inf"))).all(-1)
    bad_score = scores.isnan() if any_score else ~(scores >= 0)
    if scores.ndim > bad_box.ndim:
        corners, bad_box = corners.unsqueeze(-3).expand(*scores.shape, 4), bad_box.unsqueeze(-2).expand_as(scores)
    if valid is not None:
        bad_box, bad_score = bad_box & valid, bad_score & valid
    if nan == "drop":
        has_nan = corners.isnan().any(-1) | scores.isnan()
        bad_box, bad_score = bad_box & ~has_nan, bad_score & ~has_nan
    _refuse(corners, scores, bad_box, bad_score)


def _all_fine(sides: Tensor, scores: Tensor, any_score: bool) -> bool:
    """The usual case in three reductions, which hand NaN on."""
    if not scores.numel():
        return not sides.numel()
    low, high, worst = float(sides.amin()), float(sides.amax()), float(scores.amin())
    return low >= 0 and high < float("inf") and (worst == worst if any_score else worst >= 0)


def _refuse(corners: Tensor, scores: Tensor, bad_box: Tensor, bad_score: Tensor) -> None:
    for name, values, bad in (("boxes", corners, bad_box), ("scores", scores, bad_score)):
        places = bad.nonzero()
        if not len(places):
            continue
        place = tuple(places[0].tolist())
        where, value = "][".join(map(str, place)), values[place].tolist()
        if name == "boxes":
            what = "finite with x1 <= x2 and y1 <= y2 (nan='drop' leaves boxes with NaN out, validate=False takes "
            what += "negative sides for 0)"
        elif value == value:
            what = "not negative, for a factor below 1 would raise them; apply a sigmoid or softmax to logits first"
        else:
            what = "numbers (nan='drop' leaves NaN out)"
        raise ArgumentValueError(f"{name} must be {what}, got {name}[{where}] = {value}")
