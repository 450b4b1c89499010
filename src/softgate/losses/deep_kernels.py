"""Kernels of infinitely wide fully connected networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math import masks
from softgate.activations.dual import DualActivation, dual_activation
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type
from softgate.registry import method

__all__ = ["nngp_kernel", "ntk_kernel"]

#: The networks are those of unit inputs, the recursion one of correlations.
_Recursion = Callable[[Tensor, DualActivation, int], Tensor]


def nngp(xi: Tensor, dual: DualActivation, depth: int) -> Tensor:
    """``S_0 = ξ, S_l = dual(S_{l-1})``."""
    for _ in range(depth):
        xi = dual(xi).clamp(-1.0, 1.0)
    return xi


def ntk(xi: Tensor, dual: DualActivation, depth: int) -> Tensor:
    """``K_0 = ξ, K_l = S_l + K_{l-1} dual'(S_{l-1})``."""
    kernel = xi
    for _ in range(depth):
        following = dual(xi).clamp(-1.0, 1.0)
        kernel, xi = following + kernel * dual.derivative(xi), following
    return kernel


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    yield (draw(3, 3), draw(2, 3)), {}
    yield (draw(4, 5), draw(7, 5)), {"activation": (0.0, 0.5, 0.5), "depth": 6}
    yield (draw(4, 2), draw(3, 2)), {"activation": "sine_2.676", "depth": 1}
    yield (draw(5, 3), draw(4, 3)), {"activation": "relu", "depth": 3}
    yield (draw(5, 3), draw(4, 3)), {"activation": "erf", "depth": 0}
    yield (draw(0, 3), draw(4, 3)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    a, b = torch.ones(2, 3), torch.ones(4, 3)
    yield (torch.ones(3), b), {}, ValueError, "x1"
    yield (torch.ones(2, 0), torch.ones(4, 0)), {}, ValueError, "x1"
    yield (torch.zeros(2, 3), b), {}, ValueError, "x1"
    yield (a, torch.ones(4, 2)), {}, ValueError, "x2"
    yield (a, b.double()), {}, TypeError, "x2"
    yield (a, torch.tensor([[0.0, 0.0, 0.0]])), {}, ValueError, "x2"
    yield (a, torch.tensor([[1.0, float("nan"), 0.0]])), {}, ValueError, "x2"
    for name in ("tanh", "hermite_0", "sine_0", "sine_x", ""):
        yield (a, b, name), {}, ValueError, "activation"
    yield (a, b), {"activation": (1.0,)}, ValueError, "activation"
    yield (a, b), {"depth": -1}, ValueError, "depth"


_FIELDS: dict[str, Any] = {
    "site": "losses",
    "family": "custom",
    "paper": "optimal-classifiers",
    "samples": _samples,
    "bad_inputs": _bad_inputs,
}


@method(source="arXiv 2204.14126, covariance recursion S_l = dual(S_{l-1})", output_range=(-1.0, 1.0), **_FIELDS)
def nngp_kernel(x1: Tensor, x2: Tensor, activation: Any = "3d_opt", depth: int = 3) -> Tensor:
    r"""Covariance of the outputs of an infinitely wide network, ``S_0 = ⟨x, x'⟩, S_l = dual(S_{l-1})``.

    Inputs are scaled to the unit sphere. With depth the kernel of distinct points falls like ``a^depth``: for very deep
    networks take :class:`DeepKernelClassifier`, which keeps logarithms.

    Args:
        x1: points (n, D), real floating point.
        x2: points (m, D) in the same dtype.
        activation: what :func:`softgate.activations.dual_activation` takes.
        depth: number of hidden layers; 0 gives the cosine of the points.

    Returns:
        (n, m), in [-1, 1], in the dtype of ``x1``; computed in float64.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, points at 0 or with NaN or infinities, an unknown activation or a
            negative depth.

    Example:
        >>> import torch
        >>> nngp_kernel(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "erf", depth=2)
        tensor([[1., 0.]])

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126.
    """
    return _kernel(nngp, x1, x2, activation, depth)


@method(source="arXiv 2204.14126, K_l = S_l + K_{l-1} dual'(S_{l-1})", **_FIELDS)
def ntk_kernel(x1: Tensor, x2: Tensor, activation: Any = "3d_opt", depth: int = 3) -> Tensor:
    r"""Neural tangent kernel, ``K_0 = ⟨x, x'⟩, K_l = S_l + K_{l-1} dual'(S_{l-1})`` with S as in :func:`nngp_kernel`.

    Inputs are scaled to the unit sphere. The diagonal grows like ``b^depth``, the rest falls like ``a^depth``.

    Args:
        x1: points (n, D), real floating point.
        x2: points (m, D) in the same dtype.
        activation: what :func:`softgate.activations.dual_activation` takes.
        depth: number of hidden layers; 0 gives the cosine of the points.

    Returns:
        (n, m) in the dtype of ``x1``; computed in float64.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: as for :func:`nngp_kernel`.

    Example:
        >>> import torch
        >>> ntk_kernel(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "3d_opt", depth=1)
        tensor([[3., 0.]])

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126.
    """
    return _kernel(ntk, x1, x2, activation, depth)


def _kernel(recursion: _Recursion, x1: Tensor, x2: Tensor, activation: Any, depth: Any) -> Tensor:
    for name, points in (("x1", x1), ("x2", x2)):
        check_float_tensor(name, points)
        if points.ndim != 2 or points.shape[1] == 0:
            raise ArgumentValueError(f"{name} must have shape (points, features), got {tuple(points.shape)}")
    check_same_device(x1=x1, x2=x2)
    if x2.shape[1] != x1.shape[1]:
        raise ArgumentValueError(f"x2 must have the {x1.shape[1]} features of x1, got {x2.shape[1]}")
    if x1.dtype != x2.dtype:
        raise ArgumentTypeError(f"x2 must have the dtype of x1 ({x1.dtype}), got {x2.dtype}")
    dual = dual_activation(activation)
    if isinstance(depth, bool) or not isinstance(depth, int):
        bad_type("depth", depth, "an int")
    if depth < 0:
        raise ArgumentValueError(f"depth must not be negative, got {depth}")
    with masks.without_autocast(x1):
        xi = (_unit("x1", x1.double()) @ _unit("x2", x2.double()).mT).clamp(-1.0, 1.0)
        return recursion(xi, dual, depth).to(x1.dtype)


def _unit(name: str, points: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    if _has_values(points) and not bool(((lengths > 0.0) & lengths.isfinite()).all()):
        raise ArgumentValueError(f"{name} must be finite points other than 0: only their direction counts")
    return points / lengths


def _has_values(points: Tensor) -> bool:
    """Whether the values can be looked at: not while compiling or transforming, nor of tensors without data."""
    return transform_reason(points) is None
