"""Soft-NMS inside torchvision's detectors: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD.

Paper: Soft-NMS, arXiv 1704.04503.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from softgate.errors import ArgumentTypeError, StateError
from softgate.integrations.object_detection import soften_detections

if TYPE_CHECKING:
    from torch import nn

__all__ = ["remove_soft_nms", "use_soft_nms"]

Model = TypeVar("Model", bound="nn.Module")

#: What a part of torchvision's detectors that suppresses boxes has.
_SETTINGS = ("nms_thresh", "detections_per_img", "score_thresh")
_MARK = "_softgate_soft_nms"


def use_soft_nms(model: Model, *, score_thresh: float | None = None, **options: Any) -> Model:
    """Let a detector of torchvision lower the scores of overlapping boxes instead of deleting them, in place.

    The detector's own suppression is switched off (its threshold becomes 1, its cut to the best boxes infinite), and
    what it then returns goes through :func:`softgate.detection.batched_soft_nms`, with the cut it had. Nothing is
    trained and no parameter changes; :func:`remove_soft_nms` undoes it. It is not stored by ``state_dict``.

    Args:
        model: ``fasterrcnn_resnet50_fpn()``, ``retinanet_resnet50_fpn()`` and so on, or anything with such a part.
        score_thresh: raw boxes below it are dropped, in place of the detector's own (0.05 as a rule). Soft-NMS gains
            most from weak boxes: the paper uses 1e-4.
        **options: of :func:`softgate.detection.batched_soft_nms`.

    Returns:
        ``model``.

    Raises:
        ArgumentTypeError: the model has no part that suppresses boxes.
        StateError: it uses Soft-NMS already.

    Example:
        >>> model = torchvision.models.detection.retinanet_resnet50_fpn()  # doctest: +SKIP
        >>> use_soft_nms(model, sigma=0.5, score_thresh=0.001)  # doctest: +SKIP

    Paper: Soft-NMS, arXiv 1704.04503, section 3.
    """
    part = _suppressing_part(model)
    if _MARK in vars(part):
        raise StateError("the model uses Soft-NMS already; call remove_soft_nms(model) first")
    before = {name: getattr(part, name) for name in _SETTINGS}
    soft = _SoftPostprocessing(part.postprocess_detections, {"max_per_image": before["detections_per_img"], **options})
    object.__setattr__(part, _MARK, before)
    part.nms_thresh, part.detections_per_img = 1.0, sys.maxsize
    if score_thresh is not None:
        part.score_thresh = score_thresh
    object.__setattr__(part, "postprocess_detections", soft)
    return model


def remove_soft_nms(model: Model) -> Model:
    """Undo :func:`use_soft_nms`.

    Args:
        model: a model that :func:`use_soft_nms` changed.

    Returns:
        ``model``, as it was.

    Raises:
        StateError: it does not use Soft-NMS.
    """
    part = _suppressing_part(model)
    if _MARK not in vars(part):
        raise StateError("the model does not use Soft-NMS: there is nothing to remove")
    for name, value in vars(part).pop(_MARK).items():
        setattr(part, name, value)
    del vars(part)["postprocess_detections"]
    return model


def _suppressing_part(model: Any) -> Any:
    for part in (getattr(model, "roi_heads", None), model):
        if part is not None and all(hasattr(part, name) for name in (*_SETTINGS, "postprocess_detections")):
            return part
    raise ArgumentTypeError(
        f"model must be a detector of torchvision (with postprocess_detections, {', '.join(_SETTINGS)}), got "
        f"{type(model).__name__}"
    )


class _SoftPostprocessing:
    """The detector's own post-processing, then Soft-NMS of each image."""

    def __init__(self, own: Any, options: dict[str, Any]) -> None:
        self.own, self.options = own, options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.own(*args, **kwargs)
        if not isinstance(found, tuple):
            return soften_detections(found, **self.options)
        names = ("boxes", "scores", "labels")  # R-CNNs return a list of each
        images = [dict(zip(names, image, strict=True)) for image in zip(*found, strict=True)]
        soft = soften_detections(images, **self.options)
        return tuple([image[name] for image in soft] for name in names)
