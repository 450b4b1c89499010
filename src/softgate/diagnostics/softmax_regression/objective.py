"""Squared error of a softmax, with its gradients and Hessian in closed form.

Shape suffixes: n rows, d features, any number of leading batch dimensions. Nothing of size n × n is formed: the
Jacobian of softmax, J = diag f - f fᵀ, is diagonal plus rank one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type
from softgate.registry import method

__all__ = [
    "ABSENT",
    "check_problem",
    "grad",
    "grad_A",
    "hessian",
    "softmax_jacobian_product",
    "softmax_regression_loss",
]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


class _Problem(NamedTuple):
    """The arguments in the dtype of the computation, and what all formulas share: z = A x, f = softmax z."""

    A: Tensor
    x: Tensor
    b: Tensor
    w: Tensor | None
    z: Tensor
    f: Tensor


#: Stands for an argument that the caller does not have; None is a wrong value of one that it has.
ABSENT: Any = object()


def check_problem(
    A: Any, x: Any = ABSENT, b: Any = ABSENT, w: Any = None, *, names: tuple[str, ...] = ("A", "x", "b", "w")
) -> None:
    """Raise unless the tensors fit together: A (…, n, d), x (…, d), b and w (…, n); w may be None.

    ``names`` are what the caller calls them.
    """
    check_float_tensor(names[0], A)
    if A.ndim < 2 or 0 in A.shape[-2:]:
        raise ArgumentValueError(
            f"{names[0]} must have shape (..., n, d) with n and d at least 1, got {tuple(A.shape)}"
        )
    batch = A.shape[:-2]
    others = ((x, A.shape[-1]), (b, A.shape[-2]), (w, A.shape[-2]))
    for name, (tensor, size) in zip(names[1:], others, strict=True):
        if tensor is ABSENT or (tensor is None and name == names[3]):
            continue
        check_float_tensor(name, tensor)
        if tensor.dtype != A.dtype:
            raise ArgumentTypeError(f"{name} must have the dtype of {names[0]}, {A.dtype}, got {tensor.dtype}")
        try:
            batch = torch.broadcast_shapes(batch, tensor.shape[:-1])
            fits = tensor.ndim >= 1 and tensor.shape[-1] == size
        except RuntimeError:
            fits = False
        if not fits:
            beside = f"{names[0]} of shape {tuple(A.shape)}"
            raise ArgumentValueError(f"{name} must have shape (..., {size}) beside {beside}, got {tuple(tensor.shape)}")
    given = dict(zip(names, (A, x, b, w), strict=True))
    check_same_device(**{name: tensor for name, tensor in given.items() if isinstance(tensor, Tensor)})


def softmax_jacobian_product(f: Tensor, v: Tensor) -> Tensor:
    """J v = f ∘ (v - ⟨f, v⟩) over the last dimension; the entries sum to zero."""
    return f * (v - (f * v).sum(-1, keepdim=True))


def _problem(A: Tensor, x: Tensor, b: Tensor, w: Tensor | None) -> _Problem:
    check_problem(A, x, b, w)
    dtype = compute_dtype(A.dtype)
    A, x, b = A.to(dtype), x.to(dtype), b.to(dtype)
    z = (A @ x.unsqueeze(-1)).squeeze(-1)
    return _Problem(A, x, b, None if w is None else w.to(dtype), z, z.softmax(-1))


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    yield (normal(2, 5, 3).to(dtype), normal(2, 3).to(dtype), normal(2, 5).softmax(-1).to(dtype)), {}
    yield (normal(7, 4).to(dtype), normal(4).to(dtype), normal(7).softmax(-1).to(dtype), normal(7).abs().to(dtype)), {}
    yield (normal(3, 2).to(dtype), normal(6, 2).to(dtype), normal(6, 3).to(dtype)), {}  # one A, six problems
    yield (normal(1, 3).to(dtype), normal(3).to(dtype), torch.ones(1, dtype=dtype)), {}  # one row: f = 1


def _bad() -> Iterator[_Bad]:
    A, x, b = torch.ones(4, 3), torch.ones(3), torch.ones(4) / 4
    yield (A[0], x, b), {}, ArgumentValueError, "A"
    yield (A[:0], x, b[:0]), {}, ArgumentValueError, "A"
    yield (A[:, :0], x[:0], b), {}, ArgumentValueError, "A"
    yield (A, b, b), {}, ArgumentValueError, "x"
    yield (A, x, x), {}, ArgumentValueError, "b"
    yield (A, x.double(), b), {}, ArgumentTypeError, "x"
    yield (A, x, b, x), {}, ArgumentValueError, "w"
    yield (A, torch.ones(2, 3), torch.ones(3, 4)), {}, ArgumentValueError, "b"


@method(
    site="diagnostics",
    family="custom",
    paper="softmax-regression",
    source="sec. 3: L(A, x) = ½‖f - b‖², f = exp(Ax) / ⟨exp(Ax), 1⟩",
    samples=_samples,
    bad_inputs=_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def softmax_regression_loss(A: Tensor, x: Tensor, b: Tensor, w: Tensor | None = None) -> Tensor:
    r"""Squared distance of a softmax from a target, ``½‖softmax(A x) - b‖² + ½‖w ∘ A x‖²``.

    In the sub-package :mod:`softgate.diagnostics.softmax_regression` it is also called ``loss``. It is not convex, and
    not cross-entropy: its gradient vanishes where the softmax is confidently wrong.

    Args:
        A: rows (keys), (…, n, d).
        x: weight (query), (…, d).
        b: target, (…, n): a distribution, or any vector.
        w: weights of the regulariser, (…, n), or None; large ones make the Hessian positive definite.

    Returns:
        Loss of each problem, (…), not negative; leading dimensions broadcast. 16-bit inputs are computed in float32.
        NaN where an input is NaN or infinite.

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: shapes that do not fit, or n or d of 0.

    Example:
        >>> import torch
        >>> A, b = torch.eye(2), torch.tensor([0.5, 0.5])
        >>> softmax_regression_loss(A, torch.zeros(2), b), softmax_regression_loss(A, torch.tensor([20.0, 0.0]), b)
        (tensor(0.), tensor(0.2500))

    Paper: The Closeness of In-Context Learning and Weight Shifting for Softmax Regression, arXiv 2304.13276, sec. 3;
    the regulariser is that of arXiv 2304.10411.
    """
    p = _problem(A, x, b, w)
    value = 0.5 * (p.f - p.b).square().sum(-1)
    if p.w is not None:
        value = value + 0.5 * (p.w * p.z).square().sum(-1)
    return value.to(A.dtype)


def grad(A: Tensor, x: Tensor, b: Tensor, w: Tensor | None = None) -> Tensor:
    """Gradient of :func:`softmax_regression_loss` by ``x``: Aᵀ (J (f - b) + w² ∘ A x), (…, d).

    Takes the arguments of :func:`softmax_regression_loss` and raises as it does.

    Example:
        >>> import torch
        >>> grad(torch.eye(2), torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor([-0.2500,  0.2500])

    Paper: arXiv 2304.13276, sec. 4.
    """
    p = _problem(A, x, b, w)
    return (p.A.mT @ _slope(p).unsqueeze(-1)).squeeze(-1).to(A.dtype)


def grad_A(A: Tensor, x: Tensor, b: Tensor, w: Tensor | None = None) -> Tensor:
    """Gradient of :func:`softmax_regression_loss` by ``A``: (J (f - b) + w² ∘ A x) xᵀ, (…, n, d).

    Takes the arguments of :func:`softmax_regression_loss` and raises as it does. Where one ``A`` serves several
    problems, each has its own gradient here.

    Example:
        >>> import torch
        >>> grad_A(torch.zeros(2, 1), torch.ones(1), torch.tensor([1.0, 0.0]))
        tensor([[-0.2500],
                [ 0.2500]])

    Paper: arXiv 2304.13276, sec. 4.
    """
    p = _problem(A, x, b, w)
    return (_slope(p).unsqueeze(-1) * p.x.unsqueeze(-2)).to(A.dtype)


def _slope(p: _Problem) -> Tensor:
    """Gradient by z = A x."""
    slope = softmax_jacobian_product(p.f, p.f - p.b)
    return slope if p.w is None else slope + p.w.square() * p.z


def hessian(A: Tensor, x: Tensor, b: Tensor, w: Tensor | None = None, *, gauss_newton: bool = False) -> Tensor:
    r"""Second derivative of :func:`softmax_regression_loss` by ``x``, (…, d, d).

    .. math:: A^\top (J J + D) A = \tilde A^\top \mathrm{diag}(f \circ f + J c) \tilde A, \qquad
              \tilde A = A - 1 (f^\top A), \quad c = f - b

    with D = diag(f∘c) - (f∘c)fᵀ - f(f∘c)ᵀ - ⟨f,c⟩ diag f + 2⟨f,c⟩ ffᵀ. The right-hand form costs O(n d²): every term
    of D with a factor f drops out on columns whose f-weighted mean is zero. The matrix may be indefinite.

    Args:
        A: (…, n, d).
        x: (…, d).
        b: (…, n).
        w: (…, n) or None; adds Aᵀ diag(w²) A.
        gauss_newton: leaves out D: the curvature of the linearised residual, positive semi-definite.

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: shapes that do not fit, or n or d of 0.

    Example:
        >>> import torch
        >>> hessian(torch.eye(2), torch.zeros(2), torch.tensor([0.5, 0.5]))
        tensor([[ 0.1250, -0.1250],
                [-0.1250,  0.1250]])

    Paper: arXiv 2304.13276, sec. 4; the regulariser is that of arXiv 2304.10411.
    """
    if not isinstance(gauss_newton, bool):
        bad_type("gauss_newton", gauss_newton, "a bool")
    p = _problem(A, x, b, w)
    weight = p.f.square()
    if not gauss_newton:
        weight = weight + softmax_jacobian_product(p.f, p.f - p.b)
    centred = p.A - p.f.unsqueeze(-2) @ p.A
    value = centred.mT @ (weight.unsqueeze(-1) * centred)
    if p.w is not None:
        value = value + p.A.mT @ (p.w.square().unsqueeze(-1) * p.A)
    return value.to(A.dtype)
