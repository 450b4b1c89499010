"""Truncated Fourier series that are densities: ``p(x) = |A(x)|² / (2 c_0)`` with ``A(x) = Σ_k a_k e^{iπkx}``.

Everything is real arithmetic: a complex coefficient is a pair (real, imag), and a complex exponential a row of a table
of cosines and one of sines. Shapes: ``n = N + 1`` coefficients a_0 … a_N, m points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate.errors import bad_value

__all__: list[str] = []


def bin_tables(num_bins: int, num_frequencies: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``π k b_j`` at the centres ``b_j = -1 + (2j + 1) / m`` of equal bins, each (N + 1, m).

    The right half is computed, in float64, and mirrored: the tables are exactly even and odd.
    """
    right = torch.arange(num_bins // 2, num_bins, dtype=torch.float64, device=_float64_device(device))
    cos, sin = tables((2 * right + 1 - num_bins) / num_bins, num_frequencies)
    left = slice(num_bins % 2, None)  # an odd number of bins has one at 0
    cos, sin = torch.cat((cos[:, left].flip(1), cos), 1), torch.cat((-sin[:, left].flip(1), sin), 1)
    return cos.to(device, dtype), sin.to(device, dtype)


def tables(points: Tensor, num_frequencies: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``π k x_j``, each (N + 1, m), in the dtype of ``points`` (m,)."""
    k = torch.arange(num_frequencies + 1, dtype=points.dtype, device=points.device)
    angles = math.pi * k[:, None] * points
    return angles.cos(), angles.sin()


def _float64_device(device: torch.device) -> torch.device:
    """Where float64 can be computed: MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device


def split_coefficients(coef: Tensor, name: str = "coef") -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of ``coef`` (…, 2(N + 1)), which holds the real parts first."""
    if coef.ndim == 0 or coef.shape[-1] == 0 or coef.shape[-1] % 2:
        bad_value(name, tuple(coef.shape), "of shape (..., 2(N + 1)): the real parts, then the imaginary parts")
    real, imag = coef.tensor_split(2, -1)
    return real, imag


def unit_scale(real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """The same density with coefficients of at most 1, so that squares neither overflow nor vanish; 0 stays 0.

    The density does not depend on the scale of the coefficients, so the scale counts as a constant in derivatives.
    """
    peak = torch.maximum(real.abs(), imag.abs()).amax(-1, keepdim=True).detach()
    scale = peak.clamp_min(torch.finfo(peak.dtype).tiny)
    return real / scale, imag / scale


def unit_scale_or_uniform(real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`unit_scale`; coefficients that are all 0 become (1, 0, …), the uniform density, with gradient 0."""
    real, imag = unit_scale(real, imag)
    empty = ((real == 0.0) & (imag == 0.0)).all(-1, keepdim=True)
    first = torch.arange(real.shape[-1], device=real.device) == 0
    return torch.where(empty, first.to(real.dtype), real), torch.where(empty, 0.0, imag)


def normalize(values: Tensor) -> Tensor:
    """``values / Σ values`` along the last dimension; a row of zeros becomes uniform."""
    total = values.sum(-1, keepdim=True)
    empty = (total == 0.0).to(values.dtype)
    return (values + empty) / (total + empty * values.shape[-1])


def power(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``|A(x_j)|²`` (…, m) at the points of the tables (n, m); never negative."""
    real_part = real @ cos - imag @ sin
    imag_part = real @ sin + imag @ cos
    return real_part.square() + imag_part.square()


def autocorrelation(real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of ``c_k = Σ_i a_{i+k} conj(a_i)``, k = 0 … N, each (…, n).

    ``|A|²`` is a trigonometric polynomial with coefficients c_k, so its values at 2N + 1 equidistant points of the
    period give them back exactly: two products with tables instead of N² shifted sums.
    """
    order = real.shape[-1] - 1
    count = 2 * order + 1
    index = torch.arange(count, device=real.device)
    # reduced as integers, so that the angles of high frequencies stay exact
    turns = (index[: order + 1, None] * index) % count
    angles = (turns.to(torch.float64 if real.device.type != "mps" else torch.float32)) * (2.0 * math.pi / count)
    cos, sin = angles.cos().to(real.dtype), angles.sin().to(real.dtype)
    values = power(real, imag, cos, sin) / count
    return values @ cos.mT, -(values @ sin.mT)


def normalized_coefficients(real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """``c_k / c_0`` of coefficients as :func:`unit_scale_or_uniform` returns them."""
    c_real, c_imag = autocorrelation(real, imag)
    total = (real.square() + imag.square()).sum(-1, keepdim=True)
    return c_real / total, c_imag / total


def roughness(c_real: Tensor, c_imag: Tensor) -> Tensor:
    """``2 mean_batch Σ_k 2 π² k² |c_k|²``: the regulariser of the authors' code, without gamma."""
    k = torch.arange(c_real.shape[-1], dtype=c_real.dtype, device=c_real.device)
    rows = ((2.0 * math.pi**2) * k.square() * (c_real.square() + c_imag.square())).sum(-1)
    return 2.0 * rows.mean() if rows.numel() else rows.sum()
