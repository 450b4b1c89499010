"""One Newton step, regularised by the gradient's norm over the radius in which its linear model is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.registry import method

__all__ = ["gns_step"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, gamma in (((4,), 0.5), ((2, 3), 3.0), ((3, 2, 1), 1.0)):
        g = torch.randn(shape, dtype=dtype, generator=generator)
        rows = torch.randn((*shape, 3), dtype=dtype, generator=generator)
        yield (g, rows @ rows.mT, gamma), {}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    g, H = torch.ones(2, 3), torch.eye(3).expand(2, 3, 3)
    wrong: Any
    for wrong in (None, 1.0, [0.0], torch.ones(2, 3, dtype=torch.int64), g.to_sparse()):
        yield (wrong, H, 1.0), {}, TypeError, "g"
    for wrong in (None, 1.0, torch.ones(2, 3, 3, dtype=torch.int64), H.double()):
        yield (g, wrong, 1.0), {}, TypeError, "H"
    yield (torch.ones(()), H, 1.0), {}, ValueError, "g"
    for wrong in (torch.eye(3), torch.ones(2, 3, 4), torch.ones(2, 4, 4), torch.ones(3)):
        yield (g, wrong, 1.0), {}, ValueError, "H"
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        yield (g, H, wrong), {}, ValueError, "gamma"
    for wrong in (None, "1", True, torch.ones(1)):
        yield (g, H, wrong), {}, TypeError, "gamma"


@method(
    site="optim",
    family="custom",
    paper="gradient-normalized-smoothness",
    source="the regularised step: h = -(H + (‖g‖/γ) I)⁻¹ g",
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
)
def gns_step(g: Tensor, H: Tensor, gamma: float) -> Tensor:
    r"""The step of gradient-normalized smoothness, never longer than ``gamma``.

    .. math:: h = -\Big(H + \frac{\lVert g \rVert}{\gamma} I\Big)^{-1} g, \qquad \lVert h \rVert \le \gamma

    For any positive semidefinite H. This is one step in the Euclidean metric, differentiable and for batches;
    :func:`minimize_gns` searches γ and solves with the structure of H.

    Args:
        g: gradients, (…, d), real floating point.
        H: positive semidefinite matrices, (…, d, d), in the dtype of ``g``; this is not checked.
        gamma: γ > 0, the radius, in the unit of the variable.

    Returns:
        Steps of the shape and dtype of ``g``, 0 where the gradient is; 16-bit types are computed in float32.

    Raises:
        ArgumentTypeError: a tensor is no real floating-point tensor, the dtypes differ, or ``gamma`` is no number.
        ArgumentValueError: the shapes do not fit, or ``gamma`` is not positive and finite.

    Example:
        >>> gns_step(torch.tensor([3.0, 4.0]), torch.zeros(2, 2), 0.5).tolist()
        [-0.30000001192092896, -0.4000000059604645]

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """
    check_float_tensor("g", g)
    check_float_tensor("H", H)
    if H.dtype != g.dtype:
        raise ArgumentTypeError(f"H must have the dtype of g, {g.dtype}, got {H.dtype}")
    if g.ndim == 0 or tuple(H.shape) != (*g.shape, g.shape[-1]):
        raise ArgumentValueError(f"g must have shape (…, d) and H (…, d, d), got {tuple(g.shape)} and {tuple(H.shape)}")
    check_same_device(g=g, H=H)
    check_number("gamma", gamma, low=0.0, low_open=True, high_open=True)
    wide = compute_dtype(g.dtype)
    g_D, H_DD = g.to(wide), H.to(wide)
    lam = torch.linalg.vector_norm(g_D, dim=-1, keepdim=True) / gamma
    lam = lam + (lam == 0).to(wide)  # at g = 0 any λ gives h = 0, and H alone need not be invertible
    eye = torch.eye(g.shape[-1], dtype=wide, device=g.device)
    return -torch.linalg.solve(H_DD + lam[..., None] * eye, g_D[..., None])[..., 0].to(g.dtype)
