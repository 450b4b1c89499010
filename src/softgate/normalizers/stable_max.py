"""StableMax: a normaliser that grows linearly instead of exponentially, so that it cannot saturate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgate._checks import check_dim, check_float_tensor
from softgate._math.compress import compressed_scores, compute_dtype, exclusive_log_softmax
from softgate.registry import method

__all__ = ["StableMax", "log_stablemax", "stablemax"]

_PAPER = "stablemax"


@method(
    site="normalizers",
    family="row_map",
    paper=_PAPER,
    source="sec. 4, eq. 6-7: s(x) = x + 1 for x >= 0, 1 / (1 - x) for x < 0",
    laws=("sums_to_one", "permutation_equivariant", "order_preserving", "masked_equals_removed"),
    output_range=(0.0, 1.0),
    masked_rows="nan",
    deviations=("+inf takes its limit (that class gets 1, ties share) where the authors' code gives NaN",),
)
def stablemax(x: Tensor, dim: int = -1) -> Tensor:
    r"""StableMax along ``dim``: weights that grow linearly in the score, not exponentially.

    .. math:: \mathrm{StableMax}(x)_i = \frac{s(x_i)}{\sum_j s(x_j)}, \qquad
              s(x) = x + 1 \;(x \ge 0), \quad \frac{1}{1 - x} \;(x < 0)

    It equals ``softmax(sign(x) * log1p(abs(x)))``. It is **not** shift invariant: adding a constant to a row changes
    the result, so do not subtract the maximum first.

    Args:
        x: scores, real floating-point tensor of any shape; 16-bit types are computed in float32.
        dim: axis to normalise.

    Returns:
        Tensor of the same shape and dtype; every row is positive and sums to 1. ``-inf`` gets exactly 0, ``+inf`` gets
        1 (several share it), a row of only ``-inf`` or with a NaN is NaN.

    Raises:
        ArgumentTypeError: ``x`` is not a dense real floating-point tensor, or ``dim`` is not an int.
        ArgumentValueError: ``dim`` is out of range.

    Example:
        >>> stablemax(torch.tensor([3.0, 0.0, -1.0]))
        tensor([0.7273, 0.1818, 0.0909])

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 4.
    """
    axis = check_dim(dim, check_float_tensor("x", x).ndim)
    wide = x.to(compute_dtype(x.dtype))
    if x.ndim == 0:
        return stablemax(x.reshape(1), 0).reshape(())
    return torch.softmax(compressed_scores(wide, axis), axis).to(x.dtype)


@method(
    site="normalizers",
    family="row_map",
    paper=_PAPER,
    source="sec. 4: log StableMax(x)_i = g(x_i) - logsumexp_j g(x_j), g(x) = sign(x) log(1 + |x|)",
    laws=("permutation_equivariant", "order_preserving"),
    output_range=(float("-inf"), 0.0),
    masked_rows="nan",
    deviations=("computed in the dtype of x (float32 for 16-bit types); the authors' code casts to float64",),
)
def log_stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of :func:`stablemax` along ``dim``, with full relative precision for the largest entry as well.

    Args:
        x: scores, real floating-point tensor of any shape; 16-bit types are computed in float32.
        dim: axis to normalise.

    Returns:
        Log-probabilities of the same shape and dtype; ``-inf`` where the probability is 0.

    Raises:
        ArgumentTypeError: ``x`` is not a dense real floating-point tensor, or ``dim`` is not an int.
        ArgumentValueError: ``dim`` is out of range.

    Example:
        >>> log_stablemax(torch.tensor([3.0, 0.0, -1.0])).exp()
        tensor([0.7273, 0.1818, 0.0909])

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 4.
    """
    axis = check_dim(dim, check_float_tensor("x", x).ndim)
    wide = x.to(compute_dtype(x.dtype))
    if x.ndim == 0:
        return log_stablemax(x.reshape(1), 0).reshape(())
    return exclusive_log_softmax(compressed_scores(wide, axis), axis).to(x.dtype)


class StableMax(nn.Module):
    """Module form of :func:`stablemax`.

    Args:
        dim: axis to normalise.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            check_dim(dim, 1)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Weights of the same shape as ``x``."""
        return stablemax(x, self.dim)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"dim={self.dim}"
