"""How jagged a probability mass function is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate._checks import check_float_tensor
from softgate._math import masks
from softgate.errors import ArgumentValueError, bad_type

__all__: list[str] = []


def _filters(bins: int, widths: int, device: torch.device) -> Tensor:
    """What 1 - G_σ passes of every frequency, (widths, bins // 2 + 1), for σ = 1 … widths; float64.

    G_σ is a Gaussian filter of radius ``bins - 1``, normalised over its 2 bins - 1 taps and wrapped around.
    """
    offset = torch.arange(1 - bins, bins, dtype=torch.float64, device=device)
    sigma = torch.arange(1, widths + 1, dtype=torch.float64, device=device)
    taps = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    taps = taps / taps.sum(-1, keepdim=True)
    k = torch.arange(bins // 2 + 1, dtype=torch.float64, device=device)
    # sums of taps times (1 - cos) keep small responses that 1 - Σ taps cos would cancel
    return taps @ (1.0 - (2.0 * math.pi / bins * offset[:, None] * k).cos())


def pmf_smoothness(pmf: Tensor, *, widths: int = 100) -> Tensor:
    r"""How far a probability mass function is from its smoothed copies; lower is smoother, 0 is uniform.

    .. math:: s(y) = \sum_{\sigma=1}^{100} \frac{6}{\pi^2 \sigma^2} \lVert y - G_\sigma * y \rVert_2

    with Gaussian filters G_σ of width σ bins, wrapped around at the ends. The sum is evaluated in the frequency domain
    and in float64.

    Args:
        pmf: (…, m), real floating point, m ≥ 1; not checked to be non-negative or to sum to one.
        widths: largest σ, a positive int.

    Returns:
        (…) in the dtype of ``pmf`` (float32 for 16-bit types), not negative. NaN in a row makes it NaN.

    Raises:
        ArgumentTypeError: not a real floating-point tensor, or ``widths`` no int.
        ArgumentValueError: no bins, or ``widths`` not positive.

    Example:
        >>> import torch
        >>> pmf_smoothness(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])) > 0
        tensor([False,  True])

    Paper: Gillman et al., Fourier Head, arXiv 2410.22269, smoothness metric.
    """
    check_float_tensor("pmf", pmf)
    if pmf.ndim == 0 or pmf.shape[-1] == 0:
        raise ArgumentValueError(f"pmf must have shape (..., m) with m >= 1, got {tuple(pmf.shape)}")
    if isinstance(widths, bool) or not isinstance(widths, int):
        bad_type("widths", widths, "a positive int")
    if widths < 1:
        raise ArgumentValueError(f"widths must be a positive int, got {widths!r}")
    bins = pmf.shape[-1]
    with masks.without_autocast(pmf):
        spectrum = torch.fft.rfft(pmf.double() - pmf.double().mean(-1, keepdim=True))
        # by Parseval; every frequency but 0 and m/2 counts for its mirror image too
        count = torch.full((bins // 2 + 1,), 2.0 / bins, dtype=torch.float64, device=pmf.device)
        count[0] = 0.0
        if bins % 2 == 0:
            count[-1] = 1.0 / bins
        squares = (spectrum.abs().square() * count) @ _filters(bins, widths, pmf.device).square().mT
        nothing = squares == 0.0  # where the norm has no gradient, it gets 0
        norms = torch.where(nothing, 0.0, torch.where(nothing, 1.0, squares).sqrt())
        sigma = torch.arange(1, widths + 1, dtype=torch.float64, device=pmf.device)
        result = (norms * (6.0 / math.pi**2 / sigma.square())).sum(-1)
    return result.to(masks.accumulation_dtype(pmf.dtype))
