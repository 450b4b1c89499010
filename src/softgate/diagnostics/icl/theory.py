"""Risks of in-context linear regression in closed form, for long prompts of Gaussian points.

Everything is in terms of the effective predictor ŷ = Σ_h μ_h Σ_l softmax_l(ω_h x_lᵀx_q) y_l, with x ~ N(0, I_d),
β ~ N(0, I/d), y = βᵀx + N(0, σ²). The formulas are leading orders in 1/L: at L = 40 they are some 10 % too optimistic,
from L = 200 on they may be used as they stand.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.diagnostics.icl.prompts import LinearRegressionPrompts, check_covariance
from softgate.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "BayesRisk",
    "Optimum",
    "bayes_risk_mc",
    "gd_step_size",
    "optimal_multi_head",
    "optimal_preconditioner",
    "optimal_single_head",
    "risk",
]


class Optimum(NamedTuple):
    """The best member of a family of predictors.

    Attributes:
        mu: output weights of the heads.
        omega: key-query scales of the heads.
        eta: Σ μ_h ω_h, the step size of the gradient descent that the heads amount to.
        risk: expected squared error on a noisy label.
    """

    mu: tuple[float, ...]
    omega: tuple[float, ...]
    eta: float
    risk: float


class BayesRisk(NamedTuple):
    """A Monte-Carlo estimate.

    Attributes:
        risk: mean.
        standard_error: of the mean.
    """

    risk: float
    standard_error: float


def risk(mu: Tensor, omega: Tensor, d: int, L: int, sigma2: float) -> Tensor:
    r"""Expected squared error of H softmax heads on a noisy label, to leading order in 1/L.

    .. math:: R = 1 + \sigma^2 - 2\mu^\top\omega
              + \mu^\top\Big[\omega\omega^\top + \tfrac{1+\sigma^2}{L} \exp(d\,\omega\omega^\top)\Big]\mu

    with the exponential entry by entry.

    Args:
        mu: output weights, (…, H).
        omega: key-query scales, (…, H).
        d: number of covariates.
        L: number of labelled points.
        sigma2: variance of the noise.

    Returns:
        (…), differentiable.

    Raises:
        ArgumentTypeError: wrong types, dtypes that differ.
        ArgumentValueError: shapes that do not fit, sizes below 1, negative ``sigma2``.

    Example:
        >>> import torch
        >>> risk(torch.zeros(2), torch.ones(2), d=5, L=40, sigma2=0.1)  # predicts 0
        tensor(1.1000)

    Paper: In-Context Linear Regression Demystified, arXiv 2503.12734, sec. 4 (the form is derived here).
    """
    check_setting(d, L, sigma2)
    check_float_tensor("mu", mu)
    check_float_tensor("omega", omega)
    if mu.dtype != omega.dtype:
        raise ArgumentTypeError(f"omega must have the dtype of mu, {mu.dtype}, got {omega.dtype}")
    if mu.ndim < 1 or mu.shape != omega.shape:
        raise ArgumentValueError(f"omega must have the shape of mu, (..., heads), got {tuple(omega.shape)} beside "
                                 f"{tuple(mu.shape)}")  # fmt: skip
    outer = omega.unsqueeze(-1) * omega.unsqueeze(-2)
    variance = outer + (1.0 + sigma2) / L * torch.exp(d * outer)
    quadratic = (mu.unsqueeze(-2) @ variance @ mu.unsqueeze(-1)).squeeze((-2, -1))
    return 1.0 + sigma2 - 2.0 * (mu * omega).sum(-1) + quadratic


def optimal_single_head(d: int, L: int, sigma2: float) -> Optimum:
    """The best single head: ω = 1/√d, and a risk in which d/L stands with a factor e.

    Example:
        >>> best = optimal_single_head(d=5, L=40, sigma2=0.1)
        >>> round(best.risk, 3), round(best.omega[0] * 5**0.5, 3)
        (0.372, 1.0)

    Raises:
        ArgumentValueError: sizes below 1, negative ``sigma2``.

    Paper: arXiv 2503.12734, sec. 4.
    """
    check_setting(d, L, sigma2)
    omega = d**-0.5
    shrink = 1.0 / (1.0 + (1.0 + sigma2) * math.e * d / L)
    return Optimum((shrink / omega,), (omega,), shrink, 1.0 + sigma2 - shrink)


def optimal_multi_head(d: int, L: int, sigma2: float, omega: float | None = None) -> Optimum:
    """The best pair of heads ±ω, ±μ; more heads do not lower the risk.

    It falls as ω goes to 0, where the pair becomes debiased gradient descent with step η = 1/(1 + (1 + σ²)d/L).

    Args:
        d: number of covariates.
        L: number of labelled points.
        sigma2: variance of the noise.
        omega: positive scale at which μ is chosen, or None for the limit 0, where μ is infinite.

    Raises:
        ArgumentValueError: sizes below 1, negative ``sigma2``, ``omega`` not positive.

    Example:
        >>> best = optimal_multi_head(d=5, L=40, sigma2=0.1)
        >>> round(best.eta, 3), round(best.risk, 4), round(optimal_multi_head(5, 40, 0.1, omega=0.2).mu[0], 1)
        (0.879, 0.2209, 2.2)

    Paper: arXiv 2503.12734, sec. 4.
    """
    check_setting(d, L, sigma2)
    if omega is None:
        eta = 1.0 / (1.0 + (1.0 + sigma2) * d / L)
        return Optimum((math.inf, -math.inf), (0.0, 0.0), eta, 1.0 + sigma2 - eta)
    check_number("omega", omega, low=0.0, low_open=True, high_open=True)
    eta = 1.0 / (1.0 + (1.0 + sigma2) * math.sinh(d * omega**2) / (L * omega**2))
    mu = eta / (2.0 * omega)
    return Optimum((mu, -mu), (omega, -omega), eta, 1.0 + sigma2 - eta)


def gd_step_size(d: int, L: int, sigma2: float) -> float:
    """The best step η of one plain gradient step, ŷ = (η/L) Σ_l y_l x_lᵀx_q: exact for every L.

    Example:
        >>> round(gd_step_size(d=5, L=40, sigma2=0.1), 4)
        0.8602

    Raises:
        ArgumentValueError: sizes below 1, negative ``sigma2``.
    """
    check_setting(d, L, sigma2)
    return 1.0 / (1.0 + (1.0 + d * (1.0 + sigma2)) / L)


def optimal_preconditioner(cov: Tensor, L: int, sigma2: float) -> Tensor:
    """The best A of one preconditioned gradient step for x ~ N(0, Σ): [Σ(1 + 1/L) + ((tr Σ + dσ²)/L) I]⁻¹.

    Exact for every L, with β ~ N(0, I/d).

    Args:
        cov: Σ, (d, d).
        L: number of labelled points.
        sigma2: variance of the noise.

    Returns:
        (d, d), in the dtype of ``cov``.

    Raises:
        ArgumentTypeError: ``cov`` is no floating-point tensor.
        ArgumentValueError: not a covariance matrix, sizes below 1, negative ``sigma2``, a singular bracket.

    Example:
        >>> import torch
        >>> optimal_preconditioner(torch.tensor([[1.0]]), L=10, sigma2=0.0)
        tensor([[0.8333]])

    Paper: arXiv 2503.12734, section on anisotropic covariates (the form is derived here).
    """
    if not isinstance(cov, Tensor) or cov.ndim != 2:
        raise ArgumentTypeError(f"cov must be a tensor of shape (d, d), got {type(cov).__name__}")
    d = cov.shape[0]
    check_setting(d, L, sigma2)
    check_covariance(cov, d)
    bracket = cov.double() * (1.0 + 1.0 / L)
    bracket = bracket + (cov.double().trace() + d * sigma2) / L * torch.eye(d, dtype=torch.float64, device=cov.device)
    if not bool(bracket.any()):
        raise ArgumentValueError("cov must not be zero where sigma2 is 0: nothing can be learned")
    return torch.linalg.inv(bracket).to(cov.dtype)


def bayes_risk_mc(
    d: int,
    L: int,
    sigma2: float,
    *,
    cov: Tensor | None = None,
    samples: int = 4096,
    generator: torch.Generator | None = None,
) -> BayesRisk:
    """The least possible risk, that of ridge regression with λ = dσ²: σ² + σ² E tr[Σ (XᵀX + dσ² I)⁻¹].

    Args:
        d: number of covariates.
        L: number of labelled points.
        sigma2: variance of the noise; without noise the posterior variance in directions that no point shows remains.
        cov: Σ, or None for the identity.
        samples: number of prompts.
        generator: source of randomness; None for torch's global one.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: sizes below 1, negative ``sigma2``, not a covariance matrix.

    Example:
        >>> import torch
        >>> round(bayes_risk_mc(5, 40, 0.1, generator=torch.Generator().manual_seed(0)).risk, 3)
        0.114
    """
    check_setting(d, L, sigma2)
    check_sizes(samples=samples)
    prompts = LinearRegressionPrompts(d, L, sigma2, cov)
    x = prompts(samples, generator, dtype=torch.float64)[0][:, :-1, :d]
    values, vectors = torch.linalg.eigh(x.mT @ x)
    values = values.clamp(min=0.0)
    if sigma2 > 0:
        variance = sigma2 / (values + d * sigma2)
    else:  # what the points show is known, the rest as uncertain as before
        seen = values > d * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
        variance = torch.where(seen, 0.0, 1.0 / d)
    sigma = torch.eye(d, dtype=torch.float64, device=x.device) if cov is None else cov.double().to(x.device)
    spread = ((vectors.mT @ sigma @ vectors).diagonal(dim1=-2, dim2=-1) * variance).sum(-1)
    error = float(spread.std() / samples**0.5) if samples > 1 else math.nan
    return BayesRisk(sigma2 + float(spread.mean()), error)


def check_setting(d: Any, L: Any, sigma2: Any) -> None:
    """Raise unless these are sizes and a variance."""
    check_sizes(d=d, L=L)
    check_number("sigma2", sigma2, low=0.0, high_open=True)
