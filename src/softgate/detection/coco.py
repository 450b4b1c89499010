"""Detections in the format in which COCO takes results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["coco_results"]


def coco_results(
    detections: Sequence[Mapping[str, Tensor]],
    image_ids: Iterable[int],
    category_ids: Mapping[int, int] | Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """The list of dictionaries that COCO's results file holds and ``COCO.loadRes`` takes.

    Args:
        detections: of each image ``boxes`` (K, 4), corners, ``scores`` (K,) and ``labels`` (K,), as detectors of
            torchvision and the post-processing of transformers return them.
        image_ids: COCO's id of each image.
        category_ids: label -> COCO's id of the category; None if labels are these ids.

    Returns:
        One dictionary per detection: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``; ready
        for ``json.dump``.

    Raises:
        ArgumentTypeError: an entry of ``detections`` lacks a tensor.
        ArgumentValueError: lengths do not match, or a label has no category.

    Example:
        >>> found = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]]), "scores": torch.tensor([0.5]),
        ...          "labels": torch.tensor([3])}
        >>> coco_results([found], [42])
        [{'image_id': 42, 'category_id': 3, 'bbox': [1.0, 2.0, 3.0, 4.0], 'score': 0.5}]

    Paper: how arXiv 1704.04503 evaluates, section 5.
    """
    ids = [int(image) for image in image_ids]
    if len(ids) != len(detections):
        raise ArgumentValueError(f"image_ids must have one id for each of {len(detections)} images, got {len(ids)}")
    return [line for image, found in zip(ids, detections, strict=True) for line in _lines(image, found, category_ids)]


def _lines(image: int, found: Mapping[str, Tensor], category_ids: Any) -> list[dict[str, Any]]:
    parts = [found.get(name) for name in ("boxes", "scores", "labels")]
    if not all(isinstance(part, Tensor) for part in parts):
        raise ArgumentTypeError(
            f"detections must have tensors 'boxes', 'scores' and 'labels', got {', '.join(map(repr, found))}"
        )
    boxes, scores, labels = (part.detach().tolist() for part in parts if part is not None)
    if not len(boxes) == len(scores) == len(labels):
        raise ArgumentValueError(
            f"detections must have equally many boxes, scores and labels, got {len(boxes)}, {len(scores)} and "
            f"{len(labels)}"
        )
    return [
        {
            "image_id": image,
            "category_id": _category(label, category_ids),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True)
    ]


def _category(label: int, category_ids: Any) -> int:
    if category_ids is None:
        return label
    try:
        return int(category_ids[label])
    except (KeyError, IndexError):
        raise ArgumentValueError(f"category_ids must have an entry for every label, got none for {label}") from None
