"""A small convolutional network whose softmax says, pixel by pixel, how much each expert counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softgate._checks import check_sizes
from softgate.errors import StateError, bad_type, bad_value
from softgate.routing._choice import widened
from softgate.routing._pixel_logits import PixelLogits

__all__ = ["PixelwiseGate"]


class PixelwiseGate(PixelLogits):
    """Softmax weights over experts at every pixel of a feature map, in one or several groups of experts.

    3×3 convolutions with ReLU, a 1×1 convolution to one logit per expert, and a softmax within each group. Feed the
    weights of a group to :func:`softgate.routing.pixelwise_mixture`.

    Args:
        in_channels: channels of the features.
        n_experts: number of logits, of all groups together.
        hidden: channels of the 3×3 convolutions; none for a linear gate.
        groups: into how many groups the experts are cut; each group's weights sum to one.
        relu_logits: a ReLU on the logits too, as in the authors' code. A pixel whose logits are all negative then has
            equal weights and no gradient, so leave it off but for parity.
        strict: raise where a logit is NaN or infinite (waits for an accelerator); otherwise such pixels get NaN.
        device: where the parameters live.
        dtype: of the parameters.

    Shapes: features (B, in_channels, h, w) -> weights (B, groups, n_experts / groups, h, w), float32 for 16-bit
    features and under autocast: the softmax is never taken in 16 bits.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size is not allowed, or ``n_experts`` is no multiple of ``groups``.
        StateError: with ``strict``, logits that are not finite.

    Example:
        >>> import torch
        >>> weights = PixelwiseGate(8, 6, hidden=(4,), groups=3)(torch.randn(2, 8, 5, 5))
        >>> weights.shape, bool((weights.sum(2) - 1).abs().max() < 1e-6)
        (torch.Size([2, 3, 2, 5, 5]), True)

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        n_experts: int,
        hidden: Sequence[int] = (256,),
        groups: int = 1,
        relu_logits: bool = False,
        *,
        strict: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(n_experts=n_experts, groups=groups)
        for flag, value in (("relu_logits", relu_logits), ("strict", strict)):
            if not isinstance(value, bool):
                bad_type(flag, value, "a bool")
        if n_experts % groups:
            bad_value("n_experts", n_experts, f"a multiple of groups={groups}")
        super().__init__(in_channels, n_experts, hidden, device, dtype)
        self.n_experts, self.groups = n_experts, groups
        self.relu_logits, self.strict = relu_logits, strict

    def forward(self, features: Tensor) -> Tensor:
        """Weights of all experts at every pixel of ``features``."""
        logits = widened(super().forward(features))
        if self.relu_logits:
            logits = torch.relu(logits)
        if self.strict and not bool(logits.isfinite().all()):
            raise StateError("gate logits are NaN or infinite (strict=True): look at features and at the weights")
        return logits.unflatten(1, (self.groups, -1)).softmax(2)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_channels={self.in_channels}, n_experts={self.n_experts}, groups={self.groups}"
