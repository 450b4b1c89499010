"""The inverse of a Gram matrix by Newton's iteration, which needs nothing but matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math import masks
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method

Alpha = Literal["per_matrix", "global"]
ALPHAS = ("per_matrix", "global")
#: Safety factor of SOFT's start: alpha = 0.9 · 2 / |A|².
_DAMPING = 0.9
#: SOFT++ halves alpha while |I - A V| exceeds this, at most so many times.
_START_RESIDUAL = 1.01
_HALVINGS = 10


def add_ridge(matrix_BMM: Tensor, ridge: float) -> Tensor:
    """A + ridge · I."""
    if ridge == 0.0:
        return matrix_BMM
    size = matrix_BMM.shape[-1]
    return matrix_BMM + ridge * torch.eye(size, dtype=matrix_BMM.dtype, device=matrix_BMM.device)


def start(matrix_BMM: Tensor, alpha: Alpha) -> Tensor:
    """V_0 = alpha · Aᵀ with a factor that makes the iteration converge: I - V_0 A is a contraction off the kernel.

    ``"per_matrix"``: alpha = 1.8 / (|A|_1 |A|_∞), as SOFT does (for a symmetric matrix both norms are the largest row
    sum). ``"global"``: SOFT++'s alpha, one for the whole tensor, halved while the residual is large.
    """
    sizes_B = matrix_BMM.abs()
    rows_B, columns_B = sizes_B.sum(-1).amax(-1), sizes_B.sum(-2).amax(-1)
    if alpha == "per_matrix":
        product_B = rows_B * columns_B
        alpha_B = 2.0 * _DAMPING / torch.where(product_B > 0.0, product_B, 1.0)  # the zero matrix: V = 0
        return alpha_B[..., None, None] * matrix_BMM.mT.contiguous()
    largest = rows_B.amax() * columns_B.amax()
    factor = 2.0 / torch.where(largest > 0.0, largest, 1.0)
    square_BMM = matrix_BMM @ matrix_BMM.mT
    identity_MM = torch.eye(matrix_BMM.shape[-1], dtype=matrix_BMM.dtype, device=matrix_BMM.device)
    for _ in range(_HALVINGS):
        residual = (identity_MM - factor * square_BMM).abs().sum(-2).amax()
        factor = torch.where(residual > _START_RESIDUAL, 0.5 * factor, factor)
    return factor * matrix_BMM.mT.contiguous()


def iterate(matrix_BMM: Tensor, iters: int, alpha: Alpha) -> Tensor:
    """V <- 2 V - V A V, ``iters`` times; for (B, M, M)."""
    inverse_BMM = start(matrix_BMM, alpha)
    for _ in range(iters):
        inverse_BMM = torch.baddbmm(inverse_BMM, inverse_BMM @ matrix_BMM, inverse_BMM, beta=2.0, alpha=-1.0)
    return inverse_BMM


def with_implicit_gradient(inverse_BMM: Tensor, matrix_BMM: Tensor) -> Tensor:
    """The value ``inverse``, with the derivatives that it would have if it were the exact inverse of ``matrix``.

    (A + E)⁻¹ = V - V E V + V E V E V - …, with E = 0 in value and dE = dA. Autograd differentiates these terms: the
    first gives dA = -Vᵀ G Vᵀ, the next makes second derivatives right. Ordinary operations only, so that forward mode,
    vmap and the compiler need nothing special.
    """
    inverse_BMM = inverse_BMM.detach()
    step_BMM = (matrix_BMM - matrix_BMM.detach()) @ inverse_BMM
    return inverse_BMM - inverse_BMM @ (step_BMM - step_BMM @ step_BMM)


def newton_inverse(
    matrix_BMM: Tensor, iters: int = 20, ridge: float = 0.0, alpha: Alpha = "per_matrix", implicit_grad: bool = True
) -> Tensor:
    """(A + ridge I)⁻¹ of (…, M, M) in its own dtype; see :func:`newton_schulz_pinv`."""
    if matrix_BMM.numel() == 0:
        return matrix_BMM.clone()
    shape = matrix_BMM.shape
    matrix_BMM = add_ridge(matrix_BMM.reshape(-1, *shape[-2:]), ridge)
    if not implicit_grad:
        return iterate(matrix_BMM, iters, alpha).reshape(shape)
    with torch.no_grad():
        inverse_BMM = iterate(matrix_BMM.detach(), iters, alpha)
    return with_implicit_gradient(inverse_BMM, matrix_BMM).reshape(shape)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def gram(*shape: int) -> Tensor:
        """Diagonally dominant, so that 20 iterations converge and derivatives are those of the inverse."""
        points = torch.rand(shape, dtype=torch.float64, generator=generator)
        return (0.2 * points @ points.mT + torch.eye(shape[-2], dtype=torch.float64)).to(dtype)

    yield (gram(2, 3, 2),), {}
    yield (gram(4, 4),), {"ridge": 0.1, "implicit_grad": False}
    yield (gram(2, 2, 5, 3),), {"iters": 12, "alpha": "global"}
    yield (gram(1, 1, 1),), {"iters": 8}
    yield (gram(0, 3, 3),), {}
    yield (torch.zeros(2, 3, 3, dtype=dtype),), {"implicit_grad": False}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    matrix = torch.eye(3)
    yield (torch.ones(2, 3),), {}, ValueError, "matrix"
    yield (torch.ones(3),), {}, ValueError, "matrix"
    yield (matrix,), {"iters": 0}, ValueError, "iters"
    yield (matrix,), {"iters": True}, TypeError, "iters"
    yield (matrix,), {"ridge": -0.1}, ValueError, "ridge"
    yield (matrix,), {"ridge": float("nan")}, ValueError, "ridge"
    yield (matrix,), {"alpha": "best"}, ValueError, "alpha"


@method(
    site="attention",
    family="custom",
    paper="soft-linear-transformer",
    source="SOFT, arXiv 2110.11945, section 3.3, algorithm 2 and proposition 2 (gradient)",
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "SOFT++'s code takes one step size for the whole batch, so that samples depend on each other: alpha='global'; "
        "here every matrix has its own",
        "the start is alpha times the transpose, the same for a symmetric matrix, which makes any matrix converge",
    ),
)
def newton_schulz_pinv(
    matrix: Tensor, iters: int = 20, ridge: float = 0.0, alpha: Alpha = "per_matrix", implicit_grad: bool = True
) -> Tensor:
    """Inverse of ``matrix + ridge I`` by Newton's iteration ``V <- 2 V - V A V`` from ``V = alpha Aᵀ``.

    Every step doubles the number of correct digits, once log2(condition number²) or so steps have passed: well
    separated landmarks (condition number below 2) need 6 to 8 steps, clustered ones 25 to 40. **After too few steps the
    result is not an inverse**; :func:`newton_residual` tells.

    Args:
        matrix: (…, M, M), symmetric positive semi-definite (a Gram matrix); others converge to their pseudo-inverse.
        iters: number of steps, at least 1.
        ridge: added to the diagonal first, not negative. What is inverted is then A + ridge I, not A.
        alpha: ``"per_matrix"``, or ``"global"`` for one step size for the whole tensor, as in SOFT++'s code: entries of
            a batch then influence each other unless all have converged.
        implicit_grad: take the result for the exact inverse in derivatives, ``dA = -Vᵀ G Vᵀ``, first and second order;
            nothing but V is kept. False differentiates the steps.

    Returns:
        (…, M, M) in the dtype of ``matrix``; 16-bit matrices are inverted in float32. NaN reaches the whole matrix it
        stands in, with ``"global"`` all.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: not square, or numbers out of range.

    Example:
        >>> import torch
        >>> newton_schulz_pinv(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])

    Paper: SOFT, arXiv 2110.11945, section 3.3.
    """
    _check_matrix("matrix", matrix)
    check_newton(iters, ridge, alpha, implicit_grad)
    with masks.without_autocast(matrix):  # as torch.linalg.inv, which autocast keeps in float32
        wide = matrix.to(masks.accumulation_dtype(matrix.dtype))
        return newton_inverse(wide, iters, ridge, alpha, implicit_grad).to(matrix.dtype)


def newton_residual(matrix: Tensor, inverse: Tensor, *, ridge: float = 0.0) -> Tensor:
    """How far ``inverse`` is from one: ``|I - V (A + ridge I)|_∞``, the largest absolute row sum.

    Args:
        matrix: A, (…, M, M).
        inverse: V, of the same shape and dtype, for example from :func:`newton_schulz_pinv`.
        ridge: as it was given there.

    Returns:
        (…), not negative. Below 1 every further step squares the spectral norm of the error; a converged float32
        inverse has about 1e-6 times the condition number; 1 or more means that V is no inverse (``residual < 1e-3``
        is a sensible flag).

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> close_by = torch.tensor([[1.0, 0.999], [0.999, 1.0]])  # two landmarks that nearly coincide
        >>> bool(newton_residual(close_by, newton_schulz_pinv(close_by, iters=5)) < 1e-3)
        False
        >>> bool(newton_residual(close_by, newton_schulz_pinv(close_by, iters=30)) < 1e-3)
        True

    Paper: SOFT, arXiv 2110.11945, section 3.3.
    """
    _check_matrix("matrix", matrix)
    _check_matrix("inverse", inverse)
    check_number("ridge", ridge, low=0.0, high_open=True)
    check_same_device(matrix=matrix, inverse=inverse)
    if matrix.shape != inverse.shape:
        raise ArgumentValueError(
            f"inverse must have the shape of matrix {tuple(matrix.shape)}, got {tuple(inverse.shape)}"
        )
    if matrix.dtype != inverse.dtype:
        raise ArgumentTypeError(f"inverse must have the dtype of matrix ({matrix.dtype}), got {inverse.dtype}")
    with masks.without_autocast(matrix):
        dtype = masks.accumulation_dtype(matrix.dtype)
        identity_MM = torch.eye(matrix.shape[-1], dtype=dtype, device=matrix.device)
        left_BMM = identity_MM - inverse.to(dtype) @ add_ridge(matrix.to(dtype), ridge)
        return left_BMM.abs().sum(-1).amax(-1)


def check_newton(iters: Any, ridge: Any, alpha: Any, implicit_grad: Any, iters_name: str = "iters") -> None:
    """Raise unless the options of Newton's iteration are of the right type and in range."""
    if isinstance(iters, bool) or not isinstance(iters, int):
        bad_type(iters_name, iters, "a positive int")
    if iters < 1:
        bad_value(iters_name, iters, "a positive int")
    check_number("ridge", ridge, low=0.0, high_open=True)
    check_choice("alpha", alpha, ALPHAS)
    if not isinstance(implicit_grad, bool):
        bad_type("implicit_grad", implicit_grad, "a bool")


def _check_matrix(name: str, matrix: Any) -> None:
    check_float_tensor(name, matrix)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ArgumentValueError(f"{name} must have shape (..., M, M), got {tuple(matrix.shape)}")
