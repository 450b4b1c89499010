"""How much of features is at high spatial frequencies, and which frequencies spiking neurons let pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate._math import masks
from softgate.errors import bad_value
from softgate.registry import method

__all__ = ["high_frequency_ratio", "lif_transfer", "relative_log_amplitude"]


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return (0.5 + torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)

    yield (draw(2, 4, 5),), {}
    yield (draw(3, 2, 6, 6),), {}
    yield (draw(7, 3).t(),), {}
    yield (draw(8, 12).expand(2, 8, 12),), {}


def _bad_maps() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    feat = torch.ones(2, 4, 4)
    for wrong in (feat.long(), feat.tolist(), feat.to(torch.complex64)):
        yield (wrong,), {}, TypeError, "feat"
    for shape in ((), (4,), (0, 4, 4), (2, 0, 4)):
        yield (torch.ones(shape),), {}, ValueError, "feat"


def _bad_cutoffs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    yield from _bad_maps()
    feat = torch.ones(2, 4, 4)
    for cutoff in (-0.1, 0.8, float("nan")):
        yield (feat, cutoff), {}, ValueError, "cutoff"
    yield (feat, "0.25"), {}, TypeError, "cutoff"


def _spectrum(feat: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes (maps, H, W), and the distance of each place from frequency 0 in cycles per pixel (H, W)."""
    check_float_tensor("feat", feat)
    if feat.ndim < 2 or feat.numel() == 0:
        bad_value("feat", tuple(feat.shape), "of shape (…, height, width) with at least one map")
    maps = feat.to(masks.accumulation_dtype(feat.dtype)).reshape(-1, *feat.shape[-2:])
    rows, columns = (torch.fft.fftfreq(n, dtype=maps.dtype, device=maps.device) for n in maps.shape[-2:])
    return torch.fft.fft2(maps), torch.hypot(rows.unsqueeze(1), columns)


@method(
    site="diagnostics",
    family="custom",
    paper="max-former",
    source="frequency analysis of features: share of the power beyond a radius of the centred spectrum",
    samples=_samples,
    bad_inputs=_bad_cutoffs,
    output_range=(0.0, 1.0),
    error_scale="tensor",
)
def high_frequency_ratio(feat: Tensor, cutoff: float = 0.25) -> Tensor:
    r"""Share of the power of maps that lies at spatial frequencies beyond ``cutoff``.

    With the 2-D discrete Fourier transform F of a map, :math:`\sum_{|f| > c} |F(f)|^2 / \sum_f |F(f)|^2`, the mean of
    the map (frequency 0) included. It is differentiable. White noise has about 0.8 at the default; a map without any
    power counts as 0. Compare features of equal size: the same picture on more pixels has lower frequencies.

    Args:
        feat: maps (…, H, W), one per channel, image and step, say; real floating point.
        cutoff: radius in cycles per pixel; along an axis the finest pattern has 0.5, diagonally 0.707.

    Returns:
        Mean over all maps, a scalar in [0, 1] of the dtype of ``feat``; 16-bit inputs are computed in float32.

    Raises:
        ArgumentTypeError: ``feat`` is not a real floating-point tensor, ``cutoff`` no number.
        ArgumentValueError: no map, or a ``cutoff`` beyond [0, 0.708].

    Example:
        >>> import torch
        >>> stripes = torch.tensor([1.0, -1.0]).repeat(8, 4)  # they change at every pixel
        >>> high_frequency_ratio(torch.stack((stripes, torch.ones(8, 8))))
        tensor(0.5000)

    Paper: Spiking Neural Networks Need High Frequency Information, arXiv 2505.18608, frequency analysis.
    """
    check_number("cutoff", cutoff, low=0.0, high=0.708)
    spectrum, radius = _spectrum(feat)
    power = spectrum.real.square() + spectrum.imag.square()
    total = power.sum((-2, -1))
    high = (power * (radius > cutoff)).sum((-2, -1))
    return (high / torch.where(total > 0, total, 1.0)).mean().to(feat.dtype)


@method(
    site="diagnostics",
    family="custom",
    paper="max-former",
    source="frequency analysis of features: relative log amplitudes of their Fourier transforms",
    samples=_samples,
    bad_inputs=_bad_maps,
    error_scale="logarithm",
)
@torch.no_grad()
def relative_log_amplitude(feat: Tensor) -> Tensor:
    r"""How the amplitudes of maps fall with spatial frequency, in powers of ten, as compared with the lowest frequency.

    Mean amplitudes :math:`|F(f)|` over all maps and over the frequencies of a ring, entry k that nearest to the radius
    k / n cycles per pixel with n = min(H, W); ``log10`` of them, minus entry 0. Corners of the spectrum beyond the last
    ring are left out. Amplitudes below the smallest number that the precision can tell from the largest one count as
    that number, so that flat maps give large negative values instead of -inf.

    Args:
        feat: maps (…, H, W); real floating point.

    Returns:
        ``(n // 2 + 1,)``, the first entry 0, of the dtype of ``feat``; no gradient.

    Raises:
        ArgumentTypeError: ``feat`` is not a real floating-point tensor.
        ArgumentValueError: no map.

    Example:
        >>> import torch
        >>> spot = torch.zeros(8, 8)
        >>> spot[3, 3] = 1.0  # a single spot has all frequencies alike
        >>> relative_log_amplitude(spot).abs().max() < 1e-6
        tensor(True)

    Paper: arXiv 2505.18608, figures of relative log amplitude; Park and Kim, arXiv 2202.06709.
    """
    spectrum, radius = _spectrum(feat)
    count = min(feat.shape[-2:])
    ring = (radius * count).round().long()
    rings = count // 2 + 1
    amplitude = spectrum.abs().mean(0)
    kept = ring < rings
    sums = amplitude.new_zeros(rings).index_add(0, ring[kept], amplitude[kept])
    sizes = amplitude.new_zeros(rings).index_add(0, ring[kept], torch.ones_like(amplitude[kept]))
    mean = sums / sizes
    floor = (mean.max() * torch.finfo(mean.dtype).eps).clamp_min(torch.finfo(mean.dtype).tiny)
    logarithm = mean.clamp_min(floor).log10()
    return (logarithm - logarithm[0]).to(feat.dtype)


def lif_transfer(beta: float, w: Tensor, layers: int = 1) -> Tensor:
    r"""Transfer function of the membranes below threshold: which frequencies in time pass through ``layers`` layers.

    .. math:: H(\omega) = \Big(\frac{1 - \beta}{1 - \beta e^{-i \omega}}\Big)^L

    A low-pass: ``(1 - β) / (1 + β)`` of the amplitude is left at the highest frequency, to the power of the layers. At
    β = 1 the neuron does not leak and sums its input, :math:`1 / (1 - e^{-i \omega})`, infinite at ω = 0.

    Args:
        beta: what a step keeps of the membrane, ``1 - 1 / tau`` in [0, 1].
        w: angular frequencies ω in radians per step, any shape, real floating point; π is the highest.
        layers: L.

    Returns:
        Complex, of the shape of ``w``; ``.abs()`` is the gain.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: ``beta`` beyond [0, 1] or no layer.

    Example:
        >>> import math, torch
        >>> lif_transfer(0.5, torch.tensor([0.0, math.pi]), layers=2).abs()
        tensor([1.0000, 0.1111])

    Paper: arXiv 2505.18608, sec. 3, theorem on low-pass filtering.
    """
    check_number("beta", beta, low=0.0, high=1.0)
    check_float_tensor("w", w)
    check_sizes(layers=layers)
    wide = w.to(masks.accumulation_dtype(w.dtype))
    below = 1.0 - beta * torch.exp(-1j * wide)
    if beta < 1.0:
        return ((1.0 - beta) / below) ** layers
    zero = below == 0
    transfer = 1.0 / torch.where(zero, 1.0, below) ** layers
    return torch.where(zero, torch.complex(torch.full_like(wide, torch.inf), torch.zeros_like(wide)), transfer)
