"""The greedy loop in C++: float32 on a CPU, memory that grows with the number of boxes, threads over groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate import native
from softgate.detection import _ragged
from softgate.detection._picks import Picks
from softgate.detection._rules import FIRST, METHODS, Rule

#: Places within a group travel as floats.
_LARGEST_GROUP = 2**24


def refuses(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> str | None:
    """Why the kernel cannot run a call with these arguments; None if it can."""
    if not native.available():
        return native.unavailable_reason()
    if boxes.device.type != "cpu":
        return f"the tensors are on {boxes.device.type}; this kernel runs on the CPU"
    if scores.dtype == torch.float64:
        return "float64 scores stay float64, and this kernel computes in float32"
    if boxes.shape[-2] >= _LARGEST_GROUP:
        return f"more than {_LARGEST_GROUP:,} boxes in one group"
    method = options.get("method", "gaussian")
    if callable(method):
        return "a decay that is a function of tensors"
    if method == "hard" and options.get("iou_threshold") == 0 and str(options.get("convention")).startswith("mmcv"):
        return "every box reaches a threshold of 0 that counts as reached, also boxes far from the pick"
    return None


def pick(boxes_BN4: Tensor, scores_GN: Tensor, valid_GN: Tensor | None, rule: Rule) -> Picks:
    """As :func:`softgate.detection._picks.pick`."""
    groups, size = scores_GN.shape
    scores = scores_GN.detach() if valid_GN is None else torch.where(valid_GN, scores_GN.detach(), -1.0)
    keep = torch.empty(groups, size, dtype=torch.int64)
    final, count = torch.empty(groups, size), torch.empty(groups, dtype=torch.int64)
    shared = max(1, groups // max(1, len(boxes_BN4)))
    _launch(boxes_BN4.detach(), scores, rule, keep, final, count, groups=groups, size=size, shared=shared)
    steps = rule.steps(size)
    return Picks(keep[:, :steps], final[:, :steps], count)


def pick_flat(
    boxes_N4: Tensor, scores_N: Tensor, order_N: Tensor, sizes_G: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`softgate.detection._ragged.pick_flat`."""
    offsets = torch.cat((sizes_G.new_zeros(1), sizes_G.cumsum(0)))
    groups, size = len(sizes_G), len(scores_N)
    keep, final = torch.empty(size, dtype=torch.int64), torch.empty(size)
    count = torch.empty(groups, dtype=torch.int64)
    order = order_N.contiguous()
    _launch(
        boxes_N4.detach(), scores_N.detach(), rule, keep, final, count, groups=groups, size=size, shared=1,
        order=order.data_ptr(), offsets=offsets.data_ptr(),
    )  # fmt: skip
    return _ragged.written(keep, final, count, offsets)


def _launch(
    boxes: Tensor, scores: Tensor, rule: Rule, keep: Tensor, final: Tensor, count: Tensor, *, groups: int, size: int,
    shared: int, order: int = 0, offsets: int = 0,
) -> None:  # fmt: skip
    boxes, scores = boxes.contiguous(), scores.contiguous()
    convention = rule.convention
    native.kernels().soft_nms(
        boxes=boxes.data_ptr(), scores=scores.data_ptr(), order=order, offsets=offsets, groups=groups, size=size,
        shared=shared, decay=METHODS.index(str(rule.method)), first=FIRST.index(convention.first), sigma=rule.sigma,
        overlap=rule.iou_threshold, threshold=rule.score_threshold, offset=convention.offset,
        inclusive=convention.inclusive, keep_equal=convention.keep_equal, most=rule.steps(size), keep=keep.data_ptr(),
        final=final.data_ptr(), count=count.data_ptr(), threads=torch.get_num_threads(),
    )  # fmt: skip
