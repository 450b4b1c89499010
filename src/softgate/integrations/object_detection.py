"""Soft-NMS for detections as transformers and torchvision hand them out: a dictionary of tensors for each image.

Paper: Soft-NMS, arXiv 1704.04503.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softgate.errors import ArgumentTypeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["soften_detections"]


def soften_detections(
    detections: Sequence[Mapping[str, Tensor]], *, max_per_image: int | None = None, **options: Any
) -> list[dict[str, Tensor]]:
    """Lower the scores of boxes that overlap a better one of their class, and sort by what is left.

    For detectors of transformers call ``processor.post_process_object_detection(outputs, threshold=0.001, …)`` first,
    with a threshold that lets weak boxes through; final scores are lower than raw ones.

    Args:
        detections: of each image ``scores`` (K,), ``labels`` (K,) and ``boxes`` (K, 4), corners; further tensors of K
            rows (masks, keypoints) follow their boxes.
        max_per_image: at most so many detections of every image.
        **options: of :func:`softgate.detection.batched_soft_nms`.

    Returns:
        New dictionaries with the same keys.

    Raises:
        ArgumentTypeError: an entry lacks ``scores``, ``labels`` or ``boxes``, or an option has the wrong type.
        ArgumentValueError: a shape, value or option is not allowed.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
        >>> raw = {"scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 1]), "boxes": boxes}
        >>> soften_detections([raw])[0]["scores"]
        tensor([0.9000, 0.2224])

    Paper: Soft-NMS, arXiv 1704.04503, section 3.
    """
    return [_soften(one, {"max_per_image": max_per_image, **options}) for one in detections]


def _soften(one: Mapping[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    from torch import Tensor

    from softgate.detection import batched_soft_nms

    missing = [name for name in ("scores", "labels", "boxes") if not isinstance(one.get(name), Tensor)]
    if missing:
        raise ArgumentTypeError(f"detections must have tensors 'scores', 'labels' and 'boxes'; missing: {missing}")
    keep, scores = batched_soft_nms(one["boxes"], one["scores"], one["labels"].long(), **options)
    count = len(one["scores"])
    followed = {
        name: value[keep] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
        for name, value in one.items()
    }
    return {**followed, "scores": scores}
