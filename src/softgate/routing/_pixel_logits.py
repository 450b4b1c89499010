"""Numbers for every pixel of a feature map: 3×3 convolutions with ReLU, then a 1×1 convolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import bad_type, bad_value

__all__: list[str] = []


class PixelLogits(nn.Module):
    """``outputs`` logits per pixel: features (B, in_channels, h, w) -> (B, outputs, h, w)."""

    def __init__(
        self,
        in_channels: int,
        outputs: int,
        hidden: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels)
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            bad_type("hidden", hidden, "a sequence of positive ints")
        check_sizes(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        self.in_channels = in_channels
        widths = (in_channels, *hidden)
        self.hidden = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, device=device, dtype=dtype) for a, b in pairwise(widths)
        )
        self.output = nn.Conv2d(widths[-1], outputs, 1, device=device, dtype=dtype)

    def forward(self, features: Tensor) -> Tensor:
        """Logits at every pixel."""
        check_float_tensor("features", features)
        if features.ndim != 4 or features.shape[1] != self.in_channels:
            bad_value("features", tuple(features.shape), f"of shape (B, {self.in_channels}, h, w)")
        for layer in self.hidden:
            features = F.relu(layer(features))
        found: Tensor = self.output(features)
        return found
