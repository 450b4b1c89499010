"""The loss that teaches predictors which filters fire, alone and beside the loss of the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.dynamic.dynamic_conv import DynamicConv2d
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, bad_value
from softgate.registry import method

__all__ = ["FTWTLoss", "mask_prediction_loss"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for shape in ((5, 7), (1, 1), (0, 3)):
        logits = (2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        yield (logits.requires_grad_(), torch.rand(shape, generator=generator) < 0.5), {}


def _bad() -> Iterator[_Bad]:
    logits, target = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    yield (logits[0], target[0]), {}, ArgumentValueError, "logits"
    yield (logits.long(), target), {}, ArgumentTypeError, "logits"
    yield (logits, target.float()), {}, ArgumentTypeError, "target"
    yield (logits, [[True] * 3] * 2), {}, ArgumentTypeError, "target"
    yield (logits, target[:, :2]), {}, ArgumentValueError, "target"


@method(
    site="dynamic",
    family="custom",
    paper="fire-together-wire-together",
    source="mask loss of a layer: binary cross-entropy, summed over filters, mean over the batch",
    samples=_samples,
    bad_inputs=_bad,
    output_range=(0.0, float("inf")),
)
def mask_prediction_loss(logits: Tensor, target: Tensor) -> Tensor:
    """How far a predictor is from the filters that fired: binary cross-entropy, summed over filters, mean over samples.

    Args:
        logits: (B, C), one logit a filter.
        target: (B, C) bool, such as of :func:`softgate.dynamic.topk_mass_mask`.

    Returns:
        0-d tensor, float32 for 16-bit inputs; 0 for an empty batch.

    Raises:
        ArgumentTypeError: not real floating-point logits, or a target that is not bool.
        ArgumentValueError: shapes that differ, or not of two dimensions.

    Example:
        >>> mask_prediction_loss(torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool))
        tensor(2.0794)

    Paper: Fire Together Wire Together, arXiv 2110.08232, loss of the mask prediction.
    """
    check_float_tensor("logits", logits)
    if logits.ndim != 2:
        bad_value("logits", tuple(logits.shape), "of shape (B, C)")
    if not isinstance(target, Tensor):
        bad_type("target", target, "a bool tensor")
    if target.dtype is not torch.bool:
        raise ArgumentTypeError(f"target must be a bool tensor, got {target.dtype}")
    if target.shape != logits.shape:
        bad_value("target", tuple(target.shape), f"of the shape of logits, {tuple(logits.shape)}")
    check_same_device(logits=logits, target=target)
    wide = logits.to(compute_dtype(logits.dtype))
    each = F.binary_cross_entropy_with_logits(wide, target.to(wide.dtype), reduction="none")
    return each.sum() / max(1, logits.shape[0])


class FTWTLoss(nn.Module):
    r"""Cross-entropy of the task plus ``w`` times the mean of :func:`mask_prediction_loss` over dynamic layers.

    Args:
        w: weight of the mask loss; 0 leaves the predictors alone.

    Raises:
        ArgumentTypeError: ``w`` is no number.
        ArgumentValueError: ``w`` is negative or not finite.

    Example:
        >>> from softgate.dynamic import prune_dynamic
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        >>> model = prune_dynamic(net, r=0.9, example=torch.zeros(1, 3, 8, 8))
        >>> FTWTLoss()(model(torch.randn(2, 3, 8, 8)), torch.tensor([0, 3]), model).ndim
        0

    Paper: Fire Together Wire Together, arXiv 2110.08232, total loss.
    """

    def __init__(self, w: float = 1.0) -> None:
        super().__init__()
        self.w = check_number("w", w, low=0.0, high_open=True)

    def forward(self, logits: Tensor, target: Tensor, model: nn.Module) -> Tensor:
        """Loss of a batch that has just gone through ``model``.

        Args:
            logits: (B, K), class logits that ``model`` gave.
            target: (B,) int64, the true classes.
            model: network with dynamic convolutions, which remember what they predicted.

        Returns:
            0-d tensor.

        Raises:
            StateError: ``model`` has no dynamic convolution that has run.
        """
        loss = F.cross_entropy(logits, target)
        return loss if self.w == 0.0 else loss + self.w * self.masks(model)

    def masks(self, model: nn.Module) -> Tensor:
        """The mask loss alone, mean over the layers that ran last."""
        seen = [m.last for m in model.modules() if isinstance(m, DynamicConv2d) and m.last is not None]
        if not seen:
            raise StateError("model must hold dynamic convolutions and have run once; it remembers no prediction")
        return torch.stack([mask_prediction_loss(last.logits, last.target) for last in seen]).mean()

    def extra_repr(self) -> str:
        """The setting, for ``repr``."""
        return f"w={self.w}"
