"""Soft-NMS of many classes and images at once, each a group of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate.detection import _backends, _native_picks, _ragged, _triton_picks
from softgate.detection._inputs import check_boxes, check_ids, check_rows, check_values, wide
from softgate.detection._ordered import order_of, wants_derivative
from softgate.detection._rules import Decay, Method, make_rule
from softgate.detection._samples import scattered
from softgate.detection.suppression import SoftNMSResult
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.registry import Kernel, method

__all__ = ["batched_soft_nms"]


def _run(
    boxes: Tensor, scores: Tensor, class_ids: Tensor, image_ids: Tensor | None, picker: _ragged.FlatPicker,
    *, class_agnostic: bool, max_per_image: int | None, box_format: str, **options: Any,
) -> SoftNMSResult:  # fmt: skip
    rule = make_rule(**options)
    corners, wide_scores = wide(boxes, scores, box_format)
    images = torch.zeros_like(class_ids, dtype=torch.int64) if image_ids is None else image_ids.long()
    order, sizes = _ragged.groups_of(images if class_agnostic else _pairs(images, class_ids.long()))
    ranked = order_of(wide_scores[None])[0] if rule.ranks_only else wide_scores
    keep, final, count = picker(corners.detach(), ranked.detach(), order, sizes, rule)
    if rule.ranks_only:
        final = wide_scores[keep]
    elif wants_derivative(corners, wide_scores):
        final = _ragged.final_scores_flat(corners[keep], wide_scores[keep], count, rule)
    ties = options.get("convention") == "official"
    chosen = _best_of_images(keep, final.detach(), images[keep], max_per_image, ties)
    return SoftNMSResult(keep[chosen], final[chosen].to(scores.dtype))


def _pairs(images: Tensor, classes: Tensor) -> Tensor:
    """One number for every pair of image and class, in the order of images."""
    if not len(classes):
        return classes
    low, high = classes.aminmax()
    return images * (high - low + 1) + (classes - low)


def _best_of_images(keep: Tensor, final: Tensor, images: Tensor, most: int | None, ties: bool) -> Tensor:
    """Places of the picks to return: by image, best first, the lower index first among equals."""
    order = keep.argsort()
    order = order[final[order].argsort(descending=True, stable=True)]
    order = order[images[order].argsort(stable=True)]
    if most is None or not len(keep):
        return order
    sizes = images[order].unique_consecutive(return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(len(keep), device=keep.device) - starts.repeat_interleave(sizes)
    if not ties:
        return order[within < most]
    last = final[order[starts + sizes.clamp(max=most) - 1]]
    return order[final[order] >= last.repeat_interleave(sizes)]


def _reference(
    boxes: Tensor, scores: Tensor, class_ids: Tensor, image_ids: Tensor | None = None, *,
    class_agnostic: bool = False, max_per_image: int | None = None, box_format: str = "xyxy", **options: Any,
) -> SoftNMSResult:  # fmt: skip
    """The loop of the paper in lockstep over groups, then the best of each image."""
    options = {name: value for name, value in options.items() if name not in ("nan", "validate", "backend")}
    return _run(
        boxes, scores, class_ids, image_ids, _ragged.pick_flat, class_agnostic=class_agnostic,
        max_per_image=max_per_image, box_format=box_format, **options,
    )  # fmt: skip


def _native(
    boxes: Tensor, scores: Tensor, class_ids: Tensor, image_ids: Tensor | None = None, **options: Any
) -> SoftNMSResult:
    return _run(boxes, scores, class_ids, image_ids, _native_picks.pick_flat, **options)


def _triton(
    boxes: Tensor, scores: Tensor, class_ids: Tensor, image_ids: Tensor | None = None, **options: Any
) -> SoftNMSResult:
    return _run(boxes, scores, class_ids, image_ids, _triton_picks.pick_flat, **options)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for count, images, options in (
        (8, None, {}),
        (30, 3, {"max_per_image": 4}),
        (30, 3, {"class_agnostic": True, "method": "linear"}),
        (0, 2, {}),
    ):
        boxes, scores = scattered(count, generator)
        classes = torch.randint(3, (count,), generator=generator)
        ids = None if images is None else torch.randint(images, (count,), generator=generator)
        yield (boxes.to(dtype), scores.to(dtype), classes, ids), dict(options)


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]), torch.tensor([0.9, 0.8])
    classes = torch.tensor([0, 1])
    yield (boxes, scores, classes[:1]), {}, ArgumentValueError, "class_ids"
    yield (boxes, scores, scores), {}, ArgumentTypeError, "class_ids"
    yield (boxes, scores, [0, 1]), {}, ArgumentTypeError, "class_ids"
    yield (boxes, scores, classes, classes[:, None]), {}, ArgumentValueError, "image_ids"
    yield (boxes, scores, classes, 0), {}, ArgumentTypeError, "image_ids"
    yield (boxes, -scores, classes), {}, ArgumentValueError, "scores"
    for value in (0, -1):
        yield (boxes, scores, classes), {"max_per_image": value}, ArgumentValueError, "max_per_image"
    yield (boxes, scores, classes), {"max_per_image": 1.5}, ArgumentTypeError, "max_per_image"


@method(
    site="detection",
    family="custom",
    paper="soft-nms",
    source="fig. 2 (the loop) for every class of every image; the cut to the best boxes of the authors' test loop",
    reference=_reference,
    kernels=(Kernel("native", _native, _native_picks.refuses), Kernel("triton", _triton, _triton_picks.refuses)),
    samples=_samples,
    bad_inputs=_bad_inputs,
    integers=("boxes",),
    shapes="data",
)
def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    class_ids: Tensor,
    image_ids: Tensor | None = None,
    *,
    class_agnostic: bool = False,
    max_per_image: int | None = None,
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
    """:func:`softgate.detection.soft_nms` where only boxes of one class and one image compete.

    Groups are kept apart as such: no offset is added to coordinates, which would cost precision and fail for negative
    ones. The C++ kernel gives groups to threads.

    Args:
        boxes: (N, 4).
        scores: (N,), not negative.
        class_ids: (N,), integers.
        image_ids: (N,), integers; None if all boxes are of one image.
        class_agnostic: boxes of different classes compete too.
        max_per_image: at most so many boxes of every image, by final score over all its classes; with
            ``convention="official"`` ties at the cut are kept, as in the authors' test loop (400 there).
        method: as of :func:`softgate.detection.soft_nms`, like all options below.
        sigma: of the Gaussian.
        iou_threshold: of hard and linear decay.
        score_threshold: boxes below it are dropped.
        max_output: most boxes to return of each group.
        convention: whose habits to follow.
        box_format: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.
        nan: ``"raise"``, or ``"drop"`` for boxes with NaN in them or their score.
        validate: read the values and refuse bad ones.
        backend: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``keep``, indices sorted by image and then by final score, and ``scores``, the final scores.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentValueError: a shape, value or option is not allowed.
        StateError: the kernel that ``backend`` names cannot run this call.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 9.0]])
        >>> keep, scores = batched_soft_nms(boxes, torch.tensor([0.9, 0.8, 0.6]), torch.tensor([0, 1, 1]))
        >>> keep, scores
        (tensor([0, 1, 2]), tensor([0.9000, 0.8000, 0.1236]))

    Paper: Soft-NMS, arXiv 1704.04503, section 3.
    """
    check_boxes(boxes, scores, box_format, nan, validate)
    check_rows(boxes, scores)
    check_ids("class_ids", class_ids, boxes)
    if image_ids is not None:
        check_ids("image_ids", image_ids, boxes)
    if not isinstance(class_agnostic, bool):
        bad_type("class_agnostic", class_agnostic, "a bool")
    if max_per_image is not None:
        if isinstance(max_per_image, bool) or not isinstance(max_per_image, int):
            bad_type("max_per_image", max_per_image, "a positive int or None")
        if max_per_image < 1:
            bad_value("max_per_image", max_per_image, "a positive int or None")
    options = {
        "method": method, "sigma": sigma, "iou_threshold": iou_threshold, "score_threshold": score_threshold,
        "max_output": max_output, "convention": convention,
    }  # fmt: skip
    rule = make_rule(**options)
    if validate:
        check_values(*wide(boxes, scores, box_format), None, nan, any_score=rule.ranks_only)
    return _backends.run(
        batched_soft_nms, backend, boxes, scores, class_ids, image_ids, class_agnostic=class_agnostic,
        max_per_image=max_per_image, box_format=box_format, **options,
    )  # fmt: skip
