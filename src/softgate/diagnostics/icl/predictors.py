"""What a trained layer may amount to: predictors of the query's label from labelled points.

Each takes tokens (…, L + 1, d + 1), points with their labels last and then the query, and returns (…). Of prompts with
several tasks, cut out one label first: ``tokens[..., [*range(d), d + n]]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math.masks import accumulation_dtype
from softgate.errors import ArgumentValueError

__all__ = ["debiased_gd", "gd", "kernel_smoother", "preconditioned_gd", "ridge"]


class _Prompt(NamedTuple):
    """A prompt in the dtype of the computation."""

    x_BLd: Tensor
    y_BL: Tensor
    query_Bd: Tensor


def _split(tokens: Any) -> _Prompt:
    check_float_tensor("tokens", tokens)
    if tokens.ndim < 2 or tokens.shape[-2] < 2 or tokens.shape[-1] < 2:
        raise ArgumentValueError(
            f"tokens must have shape (..., L + 1, d + 1) with L and d at least 1, got {tuple(tokens.shape)}"
        )
    wide = tokens.to(accumulation_dtype(tokens.dtype))
    return _Prompt(wide[..., :-1, :-1], wide[..., :-1, -1], wide[..., -1, :-1])


def _step(y_BL: Tensor, x_BLd: Tensor, query_Bd: Tensor) -> Tensor:
    """(1/L) Σ_l y_l x_lᵀ x_q."""
    return ((y_BL.unsqueeze(-2) @ x_BLd).squeeze(-2) * query_Bd).sum(-1) / y_BL.shape[-1]


def gd(tokens: Tensor, eta: float) -> Tensor:
    """One step of gradient descent from 0: (η/L) Σ_l y_l x_lᵀx_q.

    Args:
        tokens: (…, L + 1, d + 1).
        eta: step size.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: no labelled point, or no covariate.

    Example:
        >>> import torch
        >>> gd(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 0.0]]), eta=1.0)
        tensor(7.)

    Paper: arXiv 2503.12734, sec. 3.
    """
    p = _split(tokens)
    return (check_number("eta", eta) * _step(p.y_BL, p.x_BLd, p.query_Bd)).to(tokens.dtype)


def debiased_gd(tokens: Tensor, eta: float) -> Tensor:
    """One step of gradient descent on centred covariates: (η/L) Σ_l y_l (x_l - x̄)ᵀx_q.

    What softmax heads whose output weights sum to zero compute for small scores.

    Args:
        tokens: (…, L + 1, d + 1).
        eta: step size.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: no labelled point, or no covariate.

    Example:
        >>> import torch
        >>> debiased_gd(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 0.0]]), eta=1.0)
        tensor(1.)

    Paper: arXiv 2503.12734, sec. 3.
    """
    p = _split(tokens)
    centred = p.x_BLd - p.x_BLd.mean(-2, keepdim=True)
    return (check_number("eta", eta) * _step(p.y_BL, centred, p.query_Bd)).to(tokens.dtype)


def preconditioned_gd(tokens: Tensor, preconditioner: Tensor) -> Tensor:
    """One preconditioned step of gradient descent from 0: (1/L) Σ_l y_l x_lᵀ A x_q.

    Args:
        tokens: (…, L + 1, d + 1).
        preconditioner: A, (d, d), e.g. from :func:`softgate.diagnostics.icl.optimal_preconditioner`.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: no labelled point, no covariate, or A of another size.

    Example:
        >>> import torch
        >>> preconditioned_gd(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.5]]))
        tensor(3.5000)

    Paper: arXiv 2503.12734, section on anisotropic covariates.
    """
    p = _split(tokens)
    check_float_tensor("preconditioner", preconditioner)
    d = p.query_Bd.shape[-1]
    if preconditioner.shape != (d, d):
        raise ArgumentValueError(f"preconditioner must have shape ({d}, {d}), got {tuple(preconditioner.shape)}")
    return _step(p.y_BL, p.x_BLd, p.query_Bd @ preconditioner.to(p.x_BLd).mT).to(tokens.dtype)


def ridge(tokens: Tensor, lam: float) -> Tensor:
    """Ridge regression: x_qᵀ (XᵀX + λI)⁻¹ Xᵀy; with λ = dσ² the Bayes predictor for β ~ N(0, I/d).

    Args:
        tokens: (…, L + 1, d + 1).
        lam: λ, not negative; 0 needs at least d points.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: no labelled point, no covariate, negative λ.
        torch.linalg.LinAlgError: λ is 0 and the points do not span the space.

    Example:
        >>> import torch
        >>> ridge(torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.0, 0.0]]), lam=0.0)
        tensor(2.)

    Paper: arXiv 2503.12734, sec. 4 (Bayes risk).
    """
    p = _split(tokens)
    check_number("lam", lam, low=0.0, high_open=True)
    gram = p.x_BLd.mT @ p.x_BLd + lam * torch.eye(p.x_BLd.shape[-1]).to(p.x_BLd)
    moment = p.x_BLd.mT @ p.y_BL.unsqueeze(-1)
    return (torch.linalg.solve(gram, moment).squeeze(-1) * p.query_Bd).sum(-1).to(tokens.dtype)


def kernel_smoother(tokens: Tensor, mu: Tensor, omega: Tensor) -> Tensor:
    """A sum of softmax kernel smoothers: Σ_h μ_h Σ_l softmax_l(ω_h x_lᵀx_q) y_l.

    What the trained layer is exactly, once its matrices have their final pattern.

    Args:
        tokens: (…, L + 1, d + 1).
        mu: output weights, (H,).
        omega: key-query scales, (H,).

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: no labelled point, no covariate, or shapes of ``mu`` and ``omega`` that differ.

    Example:
        >>> import torch
        >>> kernel_smoother(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 0.0]]), torch.ones(1), torch.zeros(1))
        tensor(3.)

    Paper: arXiv 2503.12734, sec. 3.
    """
    p = _split(tokens)
    check_float_tensor("mu", mu)
    check_float_tensor("omega", omega)
    if mu.ndim != 1 or mu.shape != omega.shape:
        raise ArgumentValueError(f"omega must have the shape of mu, (heads,), got {tuple(omega.shape)} beside "
                                 f"{tuple(mu.shape)}")  # fmt: skip
    similarity_BL = (p.x_BLd @ p.query_Bd.unsqueeze(-1)).squeeze(-1)
    weights_BHL = (omega.to(p.x_BLd)[:, None] * similarity_BL.unsqueeze(-2)).softmax(-1)
    smoothed_BH = (weights_BHL @ p.y_BL.unsqueeze(-1)).squeeze(-1)
    return (smoothed_BH @ mu.to(p.x_BLd)).to(tokens.dtype)
