"""Make torchvision's ordinary wheel importable beside a CPU-only torch.

That wheel links CUDA libraries, so its extension does not load, and ``import torchvision`` then fails on an operator
that the extension would have defined. With it fail the models of transformers, timm, peft and trl, none of which needs
the operator. :func:`repair` defines the two operators that the import asks for.

Paper: none (a packaging matter; pytorch/vision issues 9077 and 9085).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.library import Library

__all__ = ["repair", "torchvision_needs_cuda"]

_OPERATORS = ("nms", "qnms")
#: Definitions last as long as their library object.
_kept: list[Library] = []


def repair() -> bool:
    """Define ``torchvision::nms`` and ``::qnms`` in plain torch where the import of torchvision would miss them.

    Call it before the first ``import torchvision`` (or transformers models, timm, …). It does nothing when torch has
    CUDA, when torchvision is absent or no CUDA build, or when the operators exist. Afterwards torchvision's transforms,
    data sets and models work; ``torchvision.ops.nms`` itself still refuses, use ``torch.ops.torchvision.nms``.

    Returns:
        True if this call defined an operator.

    Example:
        >>> from softgate.integrations import torchvision_cpu
        >>> _ = torchvision_cpu.repair()
        >>> torchvision_cpu.repair()  # the second call finds nothing to do
        False
    """
    import torch

    if torch.version.cuda is not None or not torchvision_needs_cuda():
        return False
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(name, _nms, "CPU")
    _kept.append(library)
    return True


def torchvision_needs_cuda() -> bool:
    """Whether torchvision's extension links CUDA libraries, read from the file itself; nothing is imported."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    extensions = [path for path in Path(spec.origin).parent.glob("_C*") if path.suffix in (".so", ".pyd")]
    return any(b"torch_cuda" in path.read_bytes() for path in extensions)


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices (kept,) of the boxes (N, 4) that no better-scored kept box overlaps by more than ``iou_threshold``."""
    import torch

    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order].double()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        top_left = boxes[i, :2].maximum(boxes[i:, :2])
        bottom_right = boxes[i, 2:].minimum(boxes[i:, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
        # Compared without a division: boxes without area overlap nothing.
        alive[i:] &= overlap <= iou_threshold * (area[i] + area[i:] - overlap)
    return order[kept]
