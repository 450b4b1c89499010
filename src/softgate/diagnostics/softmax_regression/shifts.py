"""How far a change of the weight or of the data moves the target of softmax regression, and bounds on that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.diagnostics.softmax_regression.objective import check_problem
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice

__all__ = ["shift_bound", "target_shift"]

KINDS = ("sharp", "local", "paper")


def target_shift(A: Tensor, x: Tensor, x_new: Tensor | None = None, A_new: Tensor | None = None) -> Tensor:
    """The change of target that is equivalent to a change of weight or data: f(A, x) - f(A_new, x_new).

    The residual of the changed problem with target b is the residual of the original one with target b + shift. In an
    attention row it is how far the weights move (with the sign turned).

    Args:
        A: rows (keys), (…, n, d).
        x: weight (query), (…, d).
        x_new: weight after the change, or None.
        A_new: rows after the change, or None.

    Returns:
        (…, n), entries sum to zero; leading dimensions broadcast.

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: neither change is given, or shapes do not fit.

    Example:
        >>> import torch
        >>> target_shift(torch.eye(2), torch.zeros(2), x_new=torch.tensor([20.0, 0.0]))
        tensor([-0.5000,  0.5000])

    Paper: arXiv 2304.13276, sec. 5 (shift of the weight) and 6 (shift of the data).
    """
    check_problem(A, x)
    _check_change("x_new", x_new, "A_new", A_new)
    after_x, after_A = x if x_new is None else x_new, A if A_new is None else A_new
    _check_like("x_new", after_x, x, 1)
    _check_like("A_new", after_A, A, 2)
    return (_softmax(A, x) - _softmax(after_A, after_x)).to(A.dtype)


def shift_bound(
    A: Tensor, x: Tensor, dx: Tensor | None = None, dA: Tensor | None = None, kind: str = "sharp"
) -> Tensor:
    r"""Upper bound of ‖:func:`target_shift`‖₂ for a change ``dx`` of the weight, ``dA`` of the data, or both.

    - ``"sharp"``: ½‖A‖₂‖dx‖₂ + ½‖x + dx‖₂‖dA‖₂, as the Jacobian of softmax has spectral norm at most ½. No smaller
      constant serves all problems: two equal entries of ½ attain it.
    - ``"local"``: min(½, largest f_i on the way)·‖change of A x without its mean‖₂, never above ``"sharp"``. How large
      an f_i becomes on the way is bounded from both ends, where log f_i, which is concave, lies below its tangents.
    - ``"paper"``: M (‖dx‖₂ + ‖dA‖₂) with M = n·exp(R²), R the largest norm of A, x and their changed values. The paper
      states exp(O(R² + log n)); its constants are taken as 1.

    Args:
        A: rows (keys), (…, n, d).
        x: weight (query), (…, d).
        dx: change of the weight, (…, d), or None.
        dA: change of the rows, (…, n, d), or None.
        kind: ``"sharp"``, ``"local"`` or ``"paper"``.

    Returns:
        (…), not negative, in the dtype of ``A`` (16-bit types are computed in float32).

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: neither change is given, shapes do not fit, or ``kind`` is unknown.

    Example:
        >>> import torch
        >>> A, x, dx = torch.eye(4), torch.zeros(4), torch.tensor([0.1, 0.0, 0.0, 0.0])
        >>> [round(float(shift_bound(A, x, dx=dx, kind=kind)), 3) for kind in ("local", "sharp", "paper")]
        [0.023, 0.05, 1.087]

    Paper: arXiv 2304.13276, main theorem (``"paper"``); the other two are this library's.
    """
    check_choice("kind", kind, KINDS)
    check_problem(A, x)
    _check_change("dx", dx, "dA", dA)
    dtype = compute_dtype(A.dtype)
    dx = torch.zeros_like(x) if dx is None else _check_like("dx", dx, x, 1)
    dA = torch.zeros_like(A) if dA is None else _check_like("dA", dA, A, 2)
    wide_A, wide_x, wide_dx, wide_dA = (t.to(dtype) for t in (A, x, dx, dA))
    bound = {"sharp": _sharp, "local": _local, "paper": _published}[kind]
    return bound(wide_A, wide_x, wide_dx, wide_dA).to(A.dtype)


def _sharp(A: Tensor, x: Tensor, dx: Tensor, dA: Tensor) -> Tensor:
    """Along (A, x) -> (A, x + dx) -> (A + dA, x + dx)."""
    return 0.5 * (_spectral(A) * dx.norm(dim=-1) + (x + dx).norm(dim=-1) * _spectral(dA))


def _local(A: Tensor, x: Tensor, dx: Tensor, dA: Tensor) -> Tensor:
    """Along the straight line from z = A x to z' = (A + dA)(x + dx)."""
    before, after = _scores(A, x), _scores(A + dA, x + dx)
    change = after - before
    largest = _largest_on_the_way(before, after)
    return largest.clamp(max=0.5) * (change - change.mean(-1, keepdim=True)).norm(dim=-1)


def _largest_on_the_way(before: Tensor, after: Tensor) -> Tensor:
    """Bound of max_i f_i on the segment between two score vectors: log f_i is below its tangents at both ends."""
    change = after - before
    start, end = before.log_softmax(-1), after.log_softmax(-1)
    slope = change - (start.exp() * change).sum(-1, keepdim=True)
    end_slope = change - (end.exp() * change).sum(-1, keepdim=True)
    # start + t·slope and end - (1 - t)·end_slope meet at t; concavity gives slope >= end_slope
    gap = slope - end_slope
    t = torch.where(gap > 0, (end - end_slope - start) / gap.clamp(min=torch.finfo(gap.dtype).tiny), 0.0).clamp(0, 1)
    crossing = torch.minimum(start + t * slope, end - (1 - t) * end_slope)
    ends = torch.maximum(start, end)
    return torch.maximum(crossing, ends).amax(-1).exp()


def _published(A: Tensor, x: Tensor, dx: Tensor, dA: Tensor) -> Tensor:
    norms = (_spectral(A), _spectral(A + dA), x.norm(dim=-1), (x + dx).norm(dim=-1))
    largest = torch.stack(torch.broadcast_tensors(*norms)).amax(0)
    return A.shape[-2] * largest.square().exp() * (dx.norm(dim=-1) + _spectral(dA))


def _spectral(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, 2)


def _scores(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def _softmax(A: Tensor, x: Tensor) -> Tensor:
    dtype = compute_dtype(A.dtype)
    return _scores(A.to(dtype), x.to(dtype)).softmax(-1)


def _check_change(first: str, x: Any, second: str, A: Any) -> None:
    if x is None and A is None:
        raise ArgumentValueError(f"{first} or {second} must be given, got None for both")


def _check_like(name: str, value: Any, like: Tensor, trailing: int) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != like.dtype:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentTypeError(f"{name} must be a tensor of dtype {like.dtype}, got {kind}")
    if value.ndim < trailing or value.shape[-trailing:] != like.shape[-trailing:]:
        raise ArgumentValueError(f"{name} must have shape (..., {', '.join(map(str, like.shape[-trailing:]))}), "
                                 f"got {tuple(value.shape)}")  # fmt: skip
    return value
