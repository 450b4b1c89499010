"""Soft-NMS of padded batches: every shape is known in advance, as compilers and exported programs want it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_same_device
from softgate.detection import _backends, _native_picks, _triton_picks
from softgate.detection._inputs import check_boxes, check_values, wide
from softgate.detection._ordered import Picker, suppress
from softgate.detection._picks import pick
from softgate.detection._rules import Decay, Method, make_rule
from softgate.detection._samples import scattered
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value
from softgate.registry import Kernel, method

__all__ = ["PaddedSoftNMSResult", "soft_nms_padded"]


class PaddedSoftNMSResult(NamedTuple):
    """What :func:`soft_nms_padded` returns.

    Attributes:
        keep: (B, K) or (B, C, K) int64, indices of the picks in order, -1 beyond ``counts``.
        scores: of the same shape, their final scores, 0 beyond ``counts``.
        counts: (B,) or (B, C) int64, number of picks.
    """

    keep: Tensor
    scores: Tensor
    counts: Tensor


def _run(boxes: Tensor, scores: Tensor, valid: Tensor | None, picker: Picker, box_format: str, **options: Any) -> Any:
    corners, wide_scores = wide(boxes, scores, box_format)
    shape, size = scores.shape[:-1], scores.shape[-1]
    if valid is not None:
        valid = valid.unsqueeze(1) if valid.ndim < scores.ndim else valid
        valid = valid.expand(scores.shape).reshape(-1, size) if scores.numel() else None
    rule = make_rule(**options)
    found = suppress(corners, wide_scores.reshape(shape.numel(), size), valid, rule, picker)
    keep, final = (part.reshape(*shape, rule.steps(size)) for part in (found.keep, found.scores))
    return PaddedSoftNMSResult(keep, final.to(scores.dtype), found.counts.reshape(shape))


def _reference(
    boxes: Tensor, scores: Tensor, valid: Tensor | None = None, *, box_format: str = "xyxy", **options: Any
) -> PaddedSoftNMSResult:
    """The loop of the paper in lockstep over all groups, then the closed form of the scores where gradients flow."""
    options = {name: value for name, value in options.items() if name not in ("nan", "validate", "backend")}
    return _run(boxes, scores, valid, pick, box_format, **options)


def _native(
    boxes: Tensor, scores: Tensor, valid: Tensor | None = None, *, box_format: str = "xyxy", **options: Any
) -> PaddedSoftNMSResult:
    return _run(boxes, scores, valid, _native_picks.pick, box_format, **options)


def _triton(
    boxes: Tensor, scores: Tensor, valid: Tensor | None = None, *, box_format: str = "xyxy", **options: Any
) -> PaddedSoftNMSResult:
    return _run(boxes, scores, valid, _triton_picks.pick, box_format, **options)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int, size: int) -> tuple[Tensor, Tensor]:
        boxes, scores = scattered(size, generator)
        more = [scattered(size, generator) for _ in range(shape[0] - 1)]
        together = torch.stack([boxes, *(b for b, _ in more)])
        scored = torch.stack([scores, *(s for _, s in more)])
        return together.to(dtype), scored.to(dtype)

    yield draw(2, size=6), {}
    boxes, scores = draw(3, size=9)
    valid = torch.arange(9) < torch.tensor([[9], [4], [0]])
    yield (boxes, scores, valid), {"max_output": 4}
    classes = torch.stack((scores, scores.flip(1)), 1)
    yield (boxes, classes), {"score_threshold": 0.3}
    yield (boxes[:, :0], scores[:, :0]), {}
    yield (boxes[:0], classes[:0]), {}
    yield (boxes.transpose(0, 1).contiguous().transpose(0, 1), scores.t().contiguous().t()), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    boxes, scores = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]]), torch.tensor([[0.9, 0.8]])
    yield (boxes[0], scores), {}, ArgumentValueError, "boxes"
    yield (boxes[..., :3], scores), {}, ArgumentValueError, "boxes"
    yield (boxes, scores[0]), {}, ArgumentValueError, "scores"
    yield (boxes, scores[:, :1]), {}, ArgumentValueError, "scores"
    yield (boxes, scores, torch.ones(1, 2)), {}, ArgumentTypeError, "valid"
    yield (boxes, scores, torch.ones(1, 3, dtype=torch.bool)), {}, ArgumentValueError, "valid"
    yield (boxes, -scores), {}, ArgumentValueError, "scores"
    yield (boxes * float("nan"), scores), {}, ArgumentValueError, "boxes"
    yield (boxes, scores), {"backend": "cuda"}, ArgumentValueError, "backend"
    yield (boxes, scores), {"max_output": 0}, ArgumentValueError, "max_output"


@method(
    site="detection",
    family="custom",
    paper="soft-nms",
    source="fig. 2 (the loop) and section 3, linear and Gaussian decay, in lockstep over groups",
    reference=_reference,
    kernels=(Kernel("native", _native, _native_picks.refuses), Kernel("triton", _triton, _triton_picks.refuses)),
    variants={"default": {}, "linear": {"method": "linear", "convention": "mmcv", "box_format": "xywh"}},
    samples=_samples,
    bad_inputs=_bad_inputs,
    integers=("boxes",),
)
def soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor | None = None,
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
) -> PaddedSoftNMSResult:
    """:func:`softgate.detection.soft_nms` of B images, or of C classes in each, in tensors of fixed shapes.

    Every image (and class) is a group of its own. All groups take a step together: N steps of a few operations each,
    fewer once no group has a box left. Works under ``torch.compile(fullgraph=True)``, ``torch.export`` and ``vmap``.

    Args:
        boxes: (B, N, 4), floating point or integer.
        scores: (B, N), or (B, C, N) for classes that share the boxes; not negative.
        valid: (B, N) or of the shape of ``scores``, bool; False where there is no box. None: all are there.
        method: as of :func:`softgate.detection.soft_nms`, like all options below.
        sigma: of the Gaussian.
        iou_threshold: of hard and linear decay.
        score_threshold: boxes below it are dropped.
        max_output: most boxes to return of each group; K below is this number, or N.
        convention: whose habits to follow.
        box_format: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.
        nan: ``"raise"``, or ``"drop"`` for boxes with NaN in them or their score.
        validate: read the values and refuse bad ones; not done while a transform or compiler runs.
        backend: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``keep`` (…, K), ``scores`` (…, K) and ``counts`` (…).

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentValueError: a shape, value or option is not allowed.
        StateError: the kernel that ``backend`` names cannot run this call.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 10.0]]])
        >>> found = soft_nms_padded(boxes, torch.tensor([[0.9, 0.8, 0.7]]), max_output=2)
        >>> found.keep, found.scores, found.counts
        (tensor([[0, 2]]), tensor([[0.9000, 0.7000]]), tensor([2]))

    Paper: Soft-NMS, arXiv 1704.04503, section 3.
    """
    check_boxes(boxes, scores, box_format, nan, validate)
    _check_shapes(boxes, scores, valid)
    options = {
        "method": method, "sigma": sigma, "iou_threshold": iou_threshold, "score_threshold": score_threshold,
        "max_output": max_output, "convention": convention,
    }  # fmt: skip
    rule = make_rule(**options)
    if validate:
        corners, wide_scores = wide(boxes, scores, box_format)
        held = None if valid is None else (valid.unsqueeze(1) if valid.ndim < scores.ndim else valid)
        check_values(corners, wide_scores, held, nan, any_score=rule.ranks_only)
    return _backends.run(soft_nms_padded, backend, boxes, scores, valid, box_format=box_format, **options)


def _check_shapes(boxes: Tensor, scores: Tensor, valid: Any) -> None:
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        bad_value("boxes", tuple(boxes.shape), "of shape (B, N, 4)")
    batch, size = boxes.shape[:2]
    if scores.ndim not in (2, 3) or scores.shape[0] != batch or scores.shape[-1] != size:
        bad_value("scores", tuple(scores.shape), f"of shape ({batch}, {size}) or ({batch}, C, {size})")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        what = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise ArgumentTypeError(f"valid must be a bool tensor or None, got {what}")
    if valid.shape not in (scores.shape, boxes.shape[:2]):
        bad_value("valid", tuple(valid.shape), f"of shape {tuple(boxes.shape[:2])} or {tuple(scores.shape)}")
    check_same_device(boxes=boxes, valid=valid)
