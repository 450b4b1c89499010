"""Average precision as COCO measures it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softgate.detection import coco_results
from softgate.errors import ArgumentValueError, MissingExtraError

__all__ = ["STATISTICS", "coco_data_set", "coco_statistics", "evaluate_coco"]

#: Names of the twelve numbers of COCOeval: average precision and recall over overlaps, sizes and detections an image.
STATISTICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def coco_statistics(
    detections: Sequence[tuple[Tensor, Tensor]],
    truth: Sequence[Tensor],
    *,
    labels: Sequence[Tensor] | None = None,
    truth_labels: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """The twelve numbers of COCOeval for boxes, at most 100 detections an image.

    Args:
        detections: of each image boxes (K, 4), corners, and scores (K,).
        truth: of each image boxes (Q, 4).
        labels: of each image the classes (K,) of the detections; None if there is one class.
        truth_labels: of each image the classes (Q,) of the objects.

    Returns:
        :data:`STATISTICS` -> number; NaN where no object is of that size.

    Raises:
        ArgumentValueError: not equally many images, or labels for one side only.
        MissingExtraError: pycocotools is not installed.
    """
    if len(detections) != len(truth):
        raise ArgumentValueError(f"detections must be of {len(truth)} images like truth, got {len(detections)}")
    if (labels is None) != (truth_labels is None):
        raise ArgumentValueError("labels and truth_labels must be given together")
    found = [
        {"boxes": boxes, "scores": scores, "labels": _ones(boxes) if labels is None else labels[i]}
        for i, (boxes, scores) in enumerate(detections)
    ]
    coco = _tools()[0]()
    coco.dataset = _data_set(truth, truth_labels)
    with _quiet():
        coco.createIndex()
    return evaluate_coco(coco, coco_results(found, range(len(truth))))


def evaluate_coco(coco: Any, results: list[dict[str, Any]]) -> dict[str, float]:
    """The twelve numbers of COCOeval for the results of :func:`softgate.detection.coco_results`.

    Args:
        coco: ``pycocotools.coco.COCO`` with the truth.
        results: detections of its images.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    evaluator = _tools()[1]
    if not results:
        return dict.fromkeys(STATISTICS, 0.0)
    with _quiet():
        evaluation = evaluator(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCOeval says -1 where there is nothing to average
    return {
        name: float(value) if value > -1.0 else float("nan")
        for name, value in zip(STATISTICS, evaluation.stats.tolist(), strict=True)
    }


def coco_data_set(path: str) -> Any:
    """``pycocotools.coco.COCO`` of an annotation file.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    with _quiet():
        return _tools()[0](path)


def _tools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingExtraError("pycocotools", "vision", "average precision") from error
    return COCO, COCOeval


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """It prints a table at every step."""
    return contextlib.redirect_stdout(io.StringIO())


def _ones(boxes: Tensor) -> Tensor:
    return torch.ones(len(boxes), dtype=torch.int64)


def _data_set(truth: Sequence[Tensor], labels: Sequence[Tensor] | None) -> dict[str, Any]:
    kinds = [_ones(boxes) if labels is None else labels[i] for i, boxes in enumerate(truth)]
    annotations = coco_results(
        [
            {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": k}
            for boxes, k in zip(truth, kinds, strict=True)
        ],
        range(len(truth)),
    )
    for number, annotation in enumerate(annotations, start=1):  # 0 would count as no match
        width, height = annotation["bbox"][2:]
        annotation |= {"id": number, "area": width * height, "iscrowd": 0}
    names = sorted({int(label) for kind in kinds for label in kind})
    return {
        "images": [{"id": i} for i in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": name, "name": str(name)} for name in names],
    }
