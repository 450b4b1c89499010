"""Soft-NMS: lower the scores of boxes that overlap a better one instead of deleting them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate.detection import _backends, _native_picks, _triton_picks
from softgate.detection._inputs import check_boxes, check_rows, check_values, wide
from softgate.detection._ordered import Picker, suppress
from softgate.detection._picks import pick
from softgate.detection._rules import Decay, Method, make_rule
from softgate.detection._samples import scattered
from softgate.errors import ArgumentValueError
from softgate.registry import Kernel, method

__all__ = ["SoftNMSResult", "nms", "soft_nms"]


class SoftNMSResult(NamedTuple):
    """What :func:`soft_nms` and :func:`batched_soft_nms` return.

    Attributes:
        keep: (K,) int64, indices of the boxes that are left.
        scores: (K,), their final scores.
    """

    keep: Tensor
    scores: Tensor


def _run(boxes: Tensor, scores: Tensor, picker: Picker, box_format: str, **options: Any) -> SoftNMSResult:
    corners, wide_scores = wide(boxes, scores, box_format)
    keep, final, count = suppress(corners[None], wide_scores[None], None, make_rule(**options), picker)
    kept = int(count)
    return SoftNMSResult(keep[0, :kept], final[0, :kept].to(scores.dtype))


def _reference(boxes: Tensor, scores: Tensor, *, box_format: str = "xyxy", **options: Any) -> SoftNMSResult:
    """The loop of the paper, then the closed form of the scores where gradients flow."""
    options = {name: value for name, value in options.items() if name not in ("nan", "validate", "backend")}
    return _run(boxes, scores, pick, box_format, **options)


def _native(boxes: Tensor, scores: Tensor, *, box_format: str = "xyxy", **options: Any) -> SoftNMSResult:
    return _run(boxes, scores, _native_picks.pick, box_format, **options)


def _triton(boxes: Tensor, scores: Tensor, *, box_format: str = "xyxy", **options: Any) -> SoftNMSResult:
    return _run(boxes, scores, _triton_picks.pick, box_format, **options)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for count, options in (
        (6, {}),
        (1, {}),
        (0, {}),
        (40, {"score_threshold": 0.1}),
        (17, {"max_output": 5}),
        (12, {"score_threshold": 0.0}),
    ):
        boxes, scores = scattered(count, generator)
        yield (boxes.to(dtype), scores.to(dtype)), dict(options)
    boxes, scores = scattered(8, generator)
    yield (boxes.to(dtype).t().contiguous().t(), torch.stack((scores, scores), 1).to(dtype)[:, 0]), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]), torch.tensor([0.9, 0.8])
    nan = float("nan")
    yield (boxes[0], scores), {}, ArgumentValueError, "boxes"
    yield (boxes[:, :3], scores), {}, ArgumentValueError, "boxes"
    yield (boxes, scores[:1]), {}, ArgumentValueError, "scores"
    yield (boxes, scores[:, None]), {}, ArgumentValueError, "scores"
    yield (boxes, torch.tensor([0.9, nan])), {}, ArgumentValueError, "scores"
    yield (boxes, torch.tensor([0.9, -0.8])), {}, ArgumentValueError, "scores"
    yield (boxes * torch.tensor([1.0, nan, 1.0, 1.0]), scores), {}, ArgumentValueError, "boxes"
    yield (boxes.flip(1), scores), {}, ArgumentValueError, "boxes"
    yield (boxes * float("inf"), scores), {}, ArgumentValueError, "boxes"
    for name, values in (
        ("sigma", (0.0, -1.0, nan)),
        ("iou_threshold", (-0.1, 1.1, nan)),
        ("score_threshold", (nan,)),
        ("max_output", (0, -1)),
        ("convention", ("detectron", "Official")),
        ("method", ("soft", "")),
    ):
        for value in values:
            yield (boxes, scores), {name: value}, ArgumentValueError, name
    yield (boxes, scores), {"convention": "torchvision", "method": "linear"}, ArgumentValueError, "convention"


@method(
    site="detection",
    family="custom",
    paper="soft-nms",
    source="fig. 2 (the loop) and section 3, linear and Gaussian decay",
    reference=_reference,
    kernels=(Kernel("native", _native, _native_picks.refuses), Kernel("triton", _triton, _triton_picks.refuses)),
    variants={"default": {}, "official": {"method": "linear", "convention": "official"}},
    samples=_samples,
    bad_inputs=_bad_inputs,
    integers=("boxes",),
    shapes="data",
    deviations=(
        "the authors' loop lets the history of its array decide between exactly equal scores; here the lowest index "
        "wins",
        "boxes below the score threshold are dropped before the first pick; convention='official' drops only boxes "
        "that overlap a pick",
    ),
)
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: Method | Decay = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 1e-3,
    max_output: int | None = None,
    convention: str = "default",
    box_format: str = "xyxy",
    nan: str = "raise",
    validate: bool = True,
    backend: str = "auto",
) -> SoftNMSResult:
    r"""Greedy suppression that lowers scores instead of deleting boxes.

    The best box is picked and final. Every box that is left is multiplied by :math:`f(o)`, with :math:`o` its overlap
    (intersection over union) with the pick, and so on until none is left:

    .. math:: s_i \leftarrow s_i f(o_i), \qquad f(o) = e^{-o^2 / \sigma}, \quad
              f(o) = 1 - o \text{ if } o > N_t \text{ else } 1, \quad f(o) = 0 \text{ if } o > N_t \text{ else } 1

    for the methods ``"gaussian"``, ``"linear"`` and ``"hard"`` (classical NMS). Among equal scores the lowest index is
    picked. A display threshold tuned for hard NMS must be tuned again: the scores of true neighbours are lower.

    The final scores are differentiable by ``scores`` and ``boxes``, exact wherever the order does not change: a final
    score is the raw one times the factors of all earlier picks. That pass needs memory for the overlaps of K × K boxes
    (K × 4096 above 4096 of them); without gradients memory grows with N only.

    Args:
        boxes: (N, 4), floating point or integer.
        scores: (N,), not negative: probabilities, not logits. +inf is allowed and picked first.
        method: ``"gaussian"``, ``"linear"``, ``"hard"``, or a function of a tensor of overlaps that gives factors.
        sigma: of the Gaussian, positive. The larger, the milder.
        iou_threshold: ``N_t`` in [0, 1] of linear and hard decay.
        score_threshold: boxes whose score is or falls below it are dropped; 0 or less keeps all.
        max_output: stop after so many picks.
        convention: whose habits to follow where codes differ: ``"default"``; ``"official"`` (the authors: widths
            x2 - x1 + 1, only boxes that overlap a pick are dropped); ``"mmcv"`` and ``"mmcv_offset1"`` (overlaps equal
            to the threshold count, the best box is always kept); ``"effdet"`` (a score equal to the threshold is
            dropped, the best box always kept); ``"torchvision"`` (``method="hard"``, no threshold on scores).
        box_format: ``"xyxy"`` (two corners), ``"xywh"`` (first corner and size) or ``"cxcywh"`` (centre and size).
        nan: ``"raise"``, or ``"drop"`` for boxes with NaN in them or their score.
        validate: read the values and refuse bad ones. False: boxes with NaN are dropped, negative sides count as 0.
        backend: ``"auto"``, ``"native"`` (C++, float32 on a CPU), ``"triton"`` (float32 on a GPU, groups of up to 8,192
            boxes) or ``"reference"`` (plain torch).

    Returns:
        ``keep``, indices in the order of the picks, and ``scores``, not increasing, in the dtype of ``scores`` (16-bit
        scores are lowered in float32).

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentValueError: a shape, value or option is not allowed; the message names the first bad box.
        StateError: the kernel that ``backend`` names cannot run this call.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 10.0]])
        >>> keep, scores = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]))
        >>> keep, scores
        (tensor([0, 2, 1]), tensor([0.9000, 0.7000, 0.2224]))

    Paper: Bodla, Singh, Chellappa and Davis, Soft-NMS: Improving Object Detection With One Line of Code, arXiv
    1704.04503, section 3.
    """
    check_boxes(boxes, scores, box_format, nan, validate)
    check_rows(boxes, scores)
    options = {
        "method": method, "sigma": sigma, "iou_threshold": iou_threshold, "score_threshold": score_threshold,
        "max_output": max_output, "convention": convention,
    }  # fmt: skip
    rule = make_rule(**options)
    if validate:
        corners, wide_scores = wide(boxes, scores, box_format)
        check_values(corners, wide_scores, None, nan, any_score=rule.ranks_only)
    return _backends.run(soft_nms, backend, boxes, scores, box_format=box_format, **options)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Classical NMS with the arguments, order and dtype of ``torchvision.ops.nms``.

    Args:
        boxes: (N, 4), corners.
        scores: (N,), any numbers.
        iou_threshold: boxes that overlap a better one by more are deleted.

    Returns:
        Indices (K,) int64 of the boxes that are left, best first, the lower index first among equals.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype.
        ArgumentValueError: a shape, a box or ``iou_threshold`` is not allowed.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 10.0]])
        >>> nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        tensor([0, 2])

    Paper: what arXiv 1704.04503 starts from, section 3.
    """
    return soft_nms(boxes, scores, method="hard", iou_threshold=iou_threshold, convention="torchvision").keep
