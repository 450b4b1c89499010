"""The continuous distribution of a Fourier head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentValueError, bad_type
from softgate.losses.fourier.series import normalized_coefficients, split_coefficients, unit_scale_or_uniform

__all__: list[str] = []

#: Halvings of the interval before Newton's steps: the bracket is then 2^-24 of the period.
_BISECTIONS = 25
_NEWTON_STEPS = 3


class FourierDensity(Distribution):
    r"""A density on an interval whose amplitude is a truncated Fourier series.

    .. math:: p(x) = \frac{|A(x)|^2}{2 c_0}, \quad A(x) = \sum_{k=0}^N a_k e^{i\pi k x}, \quad
              c_0 = \sum_k |a_k|^2, \quad x \in [-1, 1]

    It is never negative, integrates to one, is periodic (``p(-1) = p(1)``) and has at most N modes.
    Scaling or turning all coefficients by one complex number does not change it.

    Args:
        coef: a_0 … a_N, (…, 2(N + 1)): the real parts, then the imaginary parts, real floating point. Coefficients that
            are all 0 give the uniform density. 16-bit coefficients are computed in float32.
        support: the interval; everything (points, moments, densities per unit) is then in its units.
        validate_args: as in ``torch.distributions.Distribution``.

    Raises:
        ArgumentTypeError: ``coef`` is not a real floating-point tensor, or ``support`` no pair of numbers.
        ArgumentValueError: ``coef`` has an odd length, or ``support`` is empty.

    Example:
        >>> import torch
        >>> density = FourierDensity(torch.tensor([1.0, 0.5, 0.0, 0.0]))  # a_0 = 1, a_1 = 1/2
        >>> density.log_prob(torch.tensor([-1.0, 0.0, 1.0])).exp()
        tensor([0.1000, 0.9000, 0.1000])
        >>> density.cdf(torch.tensor(0.0))
        tensor(0.5000)

    Paper: Gillman et al., Fourier Head, arXiv 2410.22269, sec. 2.
    """

    arg_constraints = {"coef": constraints.real_vector}  # noqa: RUF012 (the attribute's type is torch's)
    has_rsample = True

    def __init__(
        self, coef: Tensor, support: tuple[float, float] = (-1.0, 1.0), validate_args: bool | None = None
    ) -> None:
        check_float_tensor("coef", coef)
        split_coefficients(coef)
        if not isinstance(support, tuple | list) or len(support) != 2:
            bad_type("support", support, "a pair (low, high)")
        self._low, self._high = (check_number("support", bound) for bound in support)
        if not -math.inf < self._low < self._high < math.inf:
            raise ArgumentValueError(f"support must be an interval (low, high) with low < high, got {support!r}")
        self.coef = coef
        self._real, self._imag = unit_scale_or_uniform(
            *split_coefficients(coef.float() if coef.dtype.itemsize < 4 else coef)
        )
        super().__init__(coef.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The interval, as a constraint."""
        return constraints.interval(self._low, self._high)

    @property
    def num_frequencies(self) -> int:
        """N."""
        return self._real.shape[-1] - 1

    def expand(self, batch_shape: Any, _instance: Any = None) -> FourierDensity:
        """The same densities for a larger batch, without copying coefficients."""
        new = self._get_checked_instance(FourierDensity, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in ("coef", "_real", "_imag"):
            tensor = getattr(self, name)
            setattr(new, name, tensor.expand(batch_shape + tensor.shape[-1:]))
        new._low, new._high = self._low, self._high
        super(FourierDensity, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """``log p(value)`` in nats per unit of the support; -inf where the density vanishes."""
        self._check(value)
        return self._density(self._to_unit(value)).log() - math.log(self._half_width)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of a value at most ``value``, in [0, 1]."""
        self._check(value)
        return self._cdf(self._to_unit(value)).clamp(0.0, 1.0)

    def icdf(self, value: Tensor) -> Tensor:
        """The point with probability ``value`` to its left, by bisection and Newton's steps.

        Its derivatives, first order, are those of the implicit function: ``dx = (du - dF) / p(x)``.
        """
        if self._validate_args and not bool(((value >= 0.0) & (value <= 1.0)).all()):
            raise ArgumentValueError("value must be probabilities in [0, 1]")
        value = value.to(self._real.dtype)
        with torch.no_grad():
            point = self._solve(value)
            slope = self._density(point).clamp_min(torch.finfo(point.dtype).eps)
        # one more Newton step, in which the coefficients and the probability have gradients
        step = (self._cdf(point) - value) / slope
        return self._from_unit((point - (step - step.detach())).clamp(-1.0, 1.0))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradients of the coefficients (implicit reparametrisation through :meth:`icdf`)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self._real.dtype, device=self._real.device)
        return self.icdf(uniform)

    @property
    def mean(self) -> Tensor:
        """Expectation, in closed form: ``Σ_k 2 (-1)^k Im(c_k / c_0) / (π k)`` on [-1, 1]."""
        k, sign = self._orders()
        _, c_imag = self._series()
        return self._from_unit((2.0 * sign / (math.pi * k) * c_imag).sum(-1))

    @property
    def variance(self) -> Tensor:
        """Variance, in closed form."""
        k, sign = self._orders()
        c_real, c_imag = self._series()
        first = (2.0 * sign / (math.pi * k) * c_imag).sum(-1)
        second = 1.0 / 3.0 + (4.0 * sign / (math.pi * k).square() * c_real).sum(-1)
        return (second - first.square()).clamp_min(0.0) * self._half_width**2

    def entropy(self) -> Tensor:
        """Differential entropy in nats, by the trapezoidal rule on 64 (N + 1) points of the period."""
        count = 64 * (self.num_frequencies + 1)
        grid = torch.arange(count, dtype=self._real.dtype, device=self._real.device) * (2.0 / count) - 1.0
        values = self._density(grid.reshape(-1, *(1,) * len(self.batch_shape)))
        return -torch.special.xlogy(values, values).sum(0) * (2.0 / count) + math.log(self._half_width)

    @property
    def _half_width(self) -> float:
        return 0.5 * (self._high - self._low)

    def _to_unit(self, value: Tensor) -> Tensor:
        return (value.to(self._real.dtype) - 0.5 * (self._low + self._high)) / self._half_width

    def _from_unit(self, point: Tensor) -> Tensor:
        return 0.5 * (self._low + self._high) + self._half_width * point

    def _check(self, value: Tensor) -> None:
        check_float_tensor("value", value)
        if self._validate_args:
            self._validate_sample(value)

    def _orders(self) -> tuple[Tensor, Tensor]:
        """K = 1 … N and (-1)^k."""
        k = torch.arange(1, self.num_frequencies + 1, dtype=self._real.dtype, device=self._real.device)
        return k, 1.0 - 2.0 * (k % 2)

    def _series(self) -> tuple[Tensor, Tensor]:
        """``c_k / c_0`` for k = 1 … N."""
        c_real, c_imag = normalized_coefficients(self._real, self._imag)
        return c_real[..., 1:], c_imag[..., 1:]

    def _density(self, point: Tensor) -> Tensor:
        """P on [-1, 1]; ``point`` broadcasts against the batch."""
        k = torch.arange(self.num_frequencies + 1, dtype=self._real.dtype, device=self._real.device)
        angles = math.pi * point.unsqueeze(-1) * k
        cos, sin = angles.cos(), angles.sin()
        real = (self._real * cos - self._imag * sin).sum(-1)
        imag = (self._real * sin + self._imag * cos).sum(-1)
        total = (self._real.square() + self._imag.square()).sum(-1)
        return 0.5 * (real.square() + imag.square()) / total

    def _cdf(self, point: Tensor) -> Tensor:
        """``(x + 1)/2 + Re Σ_k c_k/c_0 (e^{iπkx} - (-1)^k) / (iπk)`` on [-1, 1]."""
        k, sign = self._orders()
        c_real, c_imag = self._series()
        angles = math.pi * point.unsqueeze(-1) * k
        waves = c_real * angles.sin() - c_imag * (sign - angles.cos())
        return 0.5 * (point + 1.0) + (waves / (math.pi * k)).sum(-1)

    def _solve(self, value: Tensor) -> Tensor:
        """F(x) = value on [-1, 1] to the last digits, without gradients."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        low, high = -torch.ones_like(value), torch.ones_like(value)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            below = self._cdf(middle) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        point = 0.5 * (low + high)
        for _ in range(_NEWTON_STEPS):
            step = (self._cdf(point) - value) / self._density(point)
            better = point - step
            inside = (better > low) & (better < high)  # also false for NaN: the density may vanish
            point = torch.where(inside, better, point)
        # the ends exactly; NaN stays NaN
        point = torch.where(value <= 0.0, -1.0, torch.where(value >= 1.0, 1.0, point))
        return torch.where(value.isnan(), value, point)
