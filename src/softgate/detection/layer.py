"""Soft-NMS as a module, for the end of a detector."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softgate.detection._rules import Decay, Method, make_rule
from softgate.detection.batches import batched_soft_nms
from softgate.detection.suppression import SoftNMSResult, soft_nms

__all__ = ["SoftNMS"]


class SoftNMS(nn.Module):
    """Module form of :func:`softgate.detection.soft_nms` and :func:`softgate.detection.batched_soft_nms`.

    Args:
        method: ``"gaussian"``, ``"linear"``, ``"hard"`` or a function of overlaps.
        sigma: of the Gaussian.
        iou_threshold: of hard and linear decay.
        score_threshold: boxes below it are dropped.
        max_per_image: at most so many boxes of every image.
        convention: whose habits to follow.
        box_format: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.

    Shapes: boxes (N, 4), scores (N,), class_ids (N,), image_ids (N,) -> keep (K,), scores (K,).

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: an option is not allowed.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
        >>> SoftNMS(sigma=0.3)(boxes, torch.tensor([0.9, 0.8])).scores
        tensor([0.9000, 0.0948])

    Paper: Soft-NMS, arXiv 1704.04503, section 3.
    """

    def __init__(
        self,
        method: Method | Decay = "gaussian",
        *,
        sigma: float = 0.5,
        iou_threshold: float = 0.3,
        score_threshold: float = 1e-3,
        max_per_image: int | None = None,
        convention: str = "default",
        box_format: str = "xyxy",
    ) -> None:
        super().__init__()
        make_rule(method, sigma, iou_threshold, score_threshold, max_per_image, convention)
        self.max_per_image = max_per_image
        self.options: dict[str, Any] = {
            "method": method, "sigma": sigma, "iou_threshold": iou_threshold, "score_threshold": score_threshold,
            "convention": convention, "box_format": box_format,
        }  # fmt: skip

    def forward(
        self, boxes: Tensor, scores: Tensor, class_ids: Tensor | None = None, image_ids: Tensor | None = None
    ) -> SoftNMSResult:
        """Picked boxes and their final scores; without ``class_ids`` all boxes of an image compete."""
        if class_ids is None and image_ids is None:
            return soft_nms(boxes, scores, max_output=self.max_per_image, **self.options)
        agnostic = class_ids is None
        ids = image_ids if class_ids is None else class_ids
        assert ids is not None
        return batched_soft_nms(
            boxes, scores, ids, image_ids, class_agnostic=agnostic, max_per_image=self.max_per_image, **self.options
        )

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        named = {**self.options, "max_per_image": self.max_per_image}
        return ", ".join(f"{name}={value!r}" for name, value in named.items())
