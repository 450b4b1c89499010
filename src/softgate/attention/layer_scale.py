"""LayerScale: a learned factor per feature on the output of a residual branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentValueError, bad_type, bad_value

__all__ = ["LayerScale"]


class LayerScale(nn.Module):
    """``y = gamma ⊙ x`` with a learned ``gamma`` per feature that starts small.

    A residual branch then starts near zero, ``x + LayerScale(attention(norm(x)))``, which keeps the norms of attention
    without normalisation small early in training.

    Args:
        dim: number of features.
        init: first value of every ``gamma``, finite.

    Shapes: (…, dim) -> (…, dim), in the dtype of ``x``.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: ``dim`` is not positive, or the last dimension of ``x`` is not ``dim``.

    Example:
        >>> import torch
        >>> LayerScale(2, init=0.5)(torch.tensor([2.0, 4.0])).tolist()
        [1.0, 2.0]

    Paper: Going Deeper with Image Transformers, arXiv 2103.17239, eq. 4; part of the vision recipe of arXiv 2409.04431.
    """

    def __init__(self, dim: int, init: float = 1e-4) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            bad_type("dim", dim, "a positive int")
        if dim < 1:
            bad_value("dim", dim, "a positive int")
        self.init = check_number("init", init, low_open=True, high_open=True)
        self.gamma = nn.Parameter(torch.full((dim,), self.init))

    def reset_parameters(self) -> None:
        """Set every ``gamma`` back to ``init``."""
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the features of ``x`` (…, dim)."""
        check_float_tensor("x", x)
        if x.ndim == 0 or x.shape[-1] != len(self.gamma):
            raise ArgumentValueError(f"x must have shape (..., {len(self.gamma)}), got {tuple(x.shape)}")
        return (x * self.gamma).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the number of features and the first value."""
        return f"{len(self.gamma)}, init={self.init:g}"
