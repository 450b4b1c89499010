"""Module form of the fused linear losses: the last layer of a network together with its loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.losses.fused_linear import Loss, fused_linear_loss
from softgate.losses.fused_linear.settings import Phi

__all__ = ["FusedLinearLoss"]


class FusedLinearLoss(nn.Module):
    """A linear layer and the loss of its outputs, which are never held as a whole.

    Args:
        in_features: d.
        num_classes: V.
        bias: whether the layer has a bias.
        loss: as in :func:`fused_linear_loss`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: a parameter ``(V, d)`` to share with another layer, such as an embedding; a new one, drawn as that of
            ``torch.nn.Linear``, if None.
        class_weight: how much rows of each class count, ``(V,)``; kept as a buffer.
        device: of new parameters.
        dtype: of new parameters.
        **options: further keyword arguments of :func:`fused_linear_loss`, such as ``tau``, ``softcap`` or ``shift``.

    Shapes: input (..., d), target (...) -> () or the shape of the target.

    Raises:
        ArgumentValueError: ``weight`` does not have the shape ``(V, d)``, or a size is not positive.
        ArgumentTypeError: an option is not known.

    Example:
        >>> head = FusedLinearLoss(8, 1000, loss="comp_sum", tau=1.5)
        >>> head(torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.long)).shape
        torch.Size([])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = False,
        loss: Loss | Phi = "ce",
        reduction: str = "mean",
        *,
        weight: nn.Parameter | None = None,
        class_weight: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("num_classes", num_classes)):
            if isinstance(size, bool) or not isinstance(size, int):
                bad_type(name, size, "a positive int")
            if size < 1:
                bad_value(name, size, "a positive int")
        known = set(fused_linear_loss.__kwdefaults__ or ()) - {"bias", "class_weight"}
        for name in options:
            if name not in known:
                bad_value("options", name, "one of " + ", ".join(sorted(known)))
        shape = (num_classes, in_features)
        if weight is not None and tuple(weight.shape) != shape:
            raise ArgumentValueError(f"weight must have shape {shape}, got {tuple(weight.shape)}")
        self.in_features, self.num_classes = in_features, num_classes
        self.loss, self.reduction, self.options = loss, reduction, options
        shared = weight is not None
        self.weight = weight if weight is not None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype)) if bias else None
        self.register_buffer("class_weight", class_weight)
        self.reset_parameters(weight=not shared)

    def reset_parameters(self, weight: bool = True) -> None:
        """Draw the parameters anew, as ``torch.nn.Linear`` does; a shared ``weight`` may be left alone."""
        bound = 1.0 / math.sqrt(self.in_features)
        if weight:
            nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """Loss of features and class indices, see :func:`fused_linear_loss`."""
        return fused_linear_loss(
            input,
            self.weight,
            target,
            bias=self.bias,
            loss=self.loss,
            reduction=self.reduction,
            class_weight=self.class_weight,
            **self.options,
        )

    def logits(self, input: Tensor) -> Tensor:
        """The layer's outputs ``(..., V)``, for evaluation and generation."""
        return nn.functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        name = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", "function")
        further = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return (f"in_features={self.in_features}, num_classes={self.num_classes}, bias={self.bias is not None}, "
                f"loss={name!r}, reduction={self.reduction!r}{further}")  # fmt: skip
