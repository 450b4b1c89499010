"""Probabilities of the bins under a Fourier series density, and their logarithms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math import masks
from softgate.dispatch import call
from softgate.errors import ArgumentValueError
from softgate.losses.fourier.rows import refuses, run
from softgate.losses.fourier.series import bin_tables, normalize, power, unit_scale
from softgate.registry import Kernel, method, record_of

__all__ = ["fourier_log_pmf", "fourier_pmf"]


def _probabilities(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """y_j = |A(b_j)|² / Σ_j' |A(b_j')|², in the accumulation dtype."""
    dtype = masks.accumulation_dtype(real.dtype)
    wide = unit_scale(real.to(dtype), imag.to(dtype))
    return normalize(power(*wide, cos.to(dtype), sin.to(dtype)))


def _log_reference(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-5) -> Tensor:
    """log(y + eps)."""
    return (_probabilities(real, imag, cos, sin) + eps).log().to(real.dtype)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    def pair(*batch: int, order: int, bins: int) -> tuple[Tensor, ...]:
        table = bin_tables(bins, order, torch.float64, torch.device("cpu"))
        return draw(*batch, order + 1), draw(*batch, order + 1), *(t.to(dtype) for t in table)

    yield pair(2, order=2, bins=5), {}
    yield pair(order=3, bins=8), {}
    yield pair(2, 3, order=7, bins=16), {}
    yield pair(2, 50, order=9, bins=101), {}
    yield pair(130, order=4, bins=128), {}
    yield pair(0, order=2, bins=4), {}
    grid = torch.linspace(-1.0, 0.7, 6, dtype=torch.float64)  # points that are not symmetric
    angles = torch.pi * torch.arange(4)[:, None] * grid
    yield (draw(5, 4), draw(5, 4), angles.cos().to(dtype), angles.sin().to(dtype)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    a, table = torch.ones(2, 3), torch.ones(3, 5)
    yield (torch.tensor(1.0), a, table, table), {}, ValueError, "real"
    yield (torch.ones(2, 0), torch.ones(2, 0), torch.ones(0, 5), torch.ones(0, 5)), {}, ValueError, "real"
    yield (a, torch.ones(2, 4), table, table), {}, ValueError, "imag"
    yield (a, torch.ones(3), table, table), {}, ValueError, "imag"
    yield (a, a.double(), table, table), {}, ValueError, "imag"
    yield (a, a, torch.ones(4, 5), table), {}, ValueError, "cos"
    yield (a, a, torch.ones(3), table), {}, ValueError, "cos"
    yield (a, a, torch.ones(3, 0), torch.ones(3, 0)), {}, ValueError, "cos"
    yield (a, a, table, torch.ones(3, 4)), {}, ValueError, "sin"


def _bad_eps() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    a, table = torch.ones(2, 3), torch.ones(3, 5)
    yield from _bad_inputs()
    for value in (-1e-5, float("inf"), float("nan")):
        yield (a, a, table, table), {"eps": value}, ValueError, "eps"


_SOURCE = "arXiv 2410.22269, sec. 2, steps 1-4 of the head; |A|² in place of the autocorrelation, the same number"
_EXACT = "sums |A|², which rounding cannot make negative, where the authors sum the autocorrelation in float32"


@method(
    site="losses",
    family="custom",
    paper="fourier-head",
    source=_SOURCE,
    output_range=(0.0, 1.0),
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(_EXACT,),
)
def fourier_pmf(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r"""Probabilities of bins under the density whose complex amplitude is a truncated Fourier series.

    .. math:: A(x) = \sum_{k=0}^N a_k e^{i\pi k x}, \qquad y_j = \frac{|A(b_j)|^2}{\sum_{j'} |A(b_{j'})|^2}

    For equal bins and N < m the sum is ``m c_0``, so that ``y_j = 2 p(b_j) / m`` with the density
    ``p(x) = |A(x)|² / (2 c_0)`` on [-1, 1]. Scaling or turning all coefficients by one complex number changes nothing.

    Args:
        real: real parts of a_0 … a_N, (…, N + 1), real floating point.
        imag: imaginary parts, of the shape and dtype of ``real``.
        cos: ``cos(π k b_j)`` at the bin centres, (N + 1, m).
        sin: ``sin(π k b_j)``, of the same shape.

    Returns:
        (…, m) in the dtype of ``real`` (16-bit types are computed in float32), in [0, 1], rows sum to 1. Coefficients
        that are all 0 give the uniform distribution with gradient 0; NaN or inf in a row makes the row NaN.

    Raises:
        ArgumentTypeError: not real floating-point tensors.
        ArgumentValueError: shapes, dtypes or devices that do not fit.

    Example:
        >>> import torch
        >>> centres = torch.tensor([-0.75, -0.25, 0.25, 0.75])
        >>> angles = torch.pi * torch.arange(2.0)[:, None] * centres
        >>> fourier_pmf(torch.tensor([1.0, 0.5]), torch.zeros(2), angles.cos(), angles.sin())
        tensor([0.1086, 0.3914, 0.3914, 0.1086])

    Paper: Gillman et al., Fourier Head, arXiv 2410.22269, sec. 2.
    """
    _check(real, imag, cos, sin)
    with masks.without_autocast(real):
        return _probabilities(real, imag, cos, sin).to(real.dtype)


@method(
    site="losses",
    family="custom",
    paper="fourier-head",
    source=_SOURCE + "; log(y + 1e-5) as in the authors' code",
    reference=_log_reference,
    kernels=(Kernel("mirrored", run, refuses),),
    variants={"default": {}, "high_floor": {"eps": 1e-3}},
    output_range=(float("-inf"), 1.0),
    samples=_samples,
    bad_inputs=_bad_eps,
    deviations=(_EXACT,),
)
def fourier_log_pmf(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-5) -> Tensor:
    r"""``log(y + eps)`` of the probabilities of :func:`fourier_pmf`: logits for any cross-entropy.

    ``softmax`` of the result gives ``(y + eps) / (1 + m eps)``: ``eps`` is a floor under the probabilities. With many
    bins choose it well below 1/m.

    Args:
        real: real parts of a_0 … a_N, (…, N + 1), real floating point.
        imag: imaginary parts, of the shape and dtype of ``real``.
        cos: ``cos(π k b_j)`` at the bin centres, (N + 1, m).
        sin: ``sin(π k b_j)``, of the same shape.
        eps: floor under the probabilities, not negative. With 0 a bin of probability 0 gives -inf.

    Returns:
        (…, m) in nats and in the dtype of ``real``, in ``[log eps, log(1 + eps)]``; see :func:`fourier_pmf` for zeros
        and NaN.

    Raises:
        ArgumentTypeError: not real floating-point tensors, or ``eps`` is no number.
        ArgumentValueError: shapes, dtypes or devices that do not fit, or ``eps`` out of range.

    Example:
        >>> import torch
        >>> table = torch.ones(1, 4)  # one frequency, k = 0: the uniform distribution
        >>> fourier_log_pmf(torch.tensor([3.0]), torch.tensor([0.0]), table, 0 * table).exp()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])

    Paper: Gillman et al., Fourier Head, arXiv 2410.22269, sec. 2.
    """
    _check(real, imag, cos, sin)
    check_number("eps", eps, low=0.0, high_open=True)
    with masks.without_autocast(real):
        return call(record_of(fourier_log_pmf), real, imag, cos, sin, eps=float(eps))


def _check(real: Any, imag: Any, cos: Any, sin: Any) -> None:
    for name, tensor in (("real", real), ("imag", imag), ("cos", cos), ("sin", sin)):
        check_float_tensor(name, tensor)
    if real.ndim == 0 or real.shape[-1] == 0:
        raise ArgumentValueError(f"real must have shape (..., N + 1) with N >= 0, got {tuple(real.shape)}")
    if imag.shape != real.shape or imag.dtype != real.dtype:
        raise ArgumentValueError(
            f"imag must be like real {tuple(real.shape)} {real.dtype}, got {tuple(imag.shape)} {imag.dtype}"
        )
    if cos.ndim != 2 or cos.shape[0] != real.shape[-1] or cos.shape[1] == 0:
        raise ArgumentValueError(f"cos must have shape ({real.shape[-1]}, m) with m >= 1, got {tuple(cos.shape)}")
    if sin.shape != cos.shape:
        raise ArgumentValueError(f"sin must have the shape of cos {tuple(cos.shape)}, got {tuple(sin.shape)}")
    check_same_device(real=real, imag=imag, cos=cos, sin=sin)
