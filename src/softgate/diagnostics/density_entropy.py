"""Bounds of the entropy of samples to which Gaussian noise is added: a kernel density estimate.

Shape suffixes: N samples, D dimensions. ``K_ij = exp(-|x_i - x_j|² / (2 v))`` with v the variance of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["kde_entropy", "similarity_sums"]

BOUNDS = ("upper", "lower")
#: Rows of a block: its matrices in float64 and float32 fit into the cache of a core.
_BLOCK = 256
_FEW = 64
#: From here on the difference of squares over the variance has an error of more than 1e-6 in float64.
_LARGEST = 1e9
_EXACT = "donot_use_mm_for_euclid_dist"
#: Exponents below this add nothing to a sum that holds a 1, and numbers too small for a float's exponent are slow.
_NOTHING = -43.0


def similarity_sums(x_ND: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """``Σ_j K_ij`` for the noise ``variance`` and for four times that, block by block; both (N,) in float64.

    Exponents are formed in float64: they are differences of large squares divided by a small variance. K is symmetric,
    and the first sum needs no exponential of its own: ``K_v = K_4v⁴``.
    """
    x = x_ND.double()
    x = x - x.mean(0)
    exponents = _exponents(x, 4.0 * variance)
    narrow, wide = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    dtype = compute_dtype(x_ND.dtype)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for other in range(start, len(x), _BLOCK):
            columns = slice(other, other + _BLOCK)
            similar = exponents(rows, columns).to(dtype).clamp_(_NOTHING, 0.0).exp_()
            if other == start:
                similar.fill_diagonal_(1.0)
            for total in (wide, narrow):
                total[rows] += similar.sum(1)
                if other != start:
                    total[columns] += similar.sum(0)
                if total is wide:
                    similar.square_().square_()
    return narrow, wide


def _exponents(x_ND: Tensor, variance: float) -> Callable[[slice, slice], Tensor]:
    """``-|x_i - x_j|² / (2 v)`` for blocks of rows i and j."""
    half_N1 = x_ND.square().sum(1, keepdim=True) / (2.0 * variance)
    if float(half_N1.max()) > _LARGEST:  # the differences themselves: equal rows must come out as equal
        return lambda i, j: torch.cdist(x_ND[i], x_ND[j], compute_mode=_EXACT).square_().div_(-2.0 * variance)
    one = torch.ones_like(half_N1)
    left, right = torch.cat((x_ND / variance, -half_N1, one), 1), torch.cat((x_ND, one, -half_N1), 1)
    return lambda i, j: left[i] @ right[j].T


def reference(x: Tensor, variance: float, *, bound: str = "upper") -> Tensor:
    """The formula in plain torch; memory grows as N² D."""
    x_ND = x.to(compute_dtype(x.dtype))
    distance_NN = (x_ND.unsqueeze(-2) - x_ND.unsqueeze(-3)).square().sum(-1)
    used = variance if bound == "upper" else 4.0 * variance
    similar_N = torch.exp(-distance_NN / (2.0 * used)).mean(-1)
    return (_noise_entropy(x.shape[-1], variance) - similar_N.log().mean(-1)).to(x.dtype)


def _noise_entropy(dims: int, variance: float) -> float:
    # in the lower bound the factor 4 of the variance cancels with d/2 log(1/4)
    return 0.5 * dims * (1.0 + math.log(2.0 * math.pi * variance))


def _blocks(x: Tensor, variance: float, *, bound: str = "upper") -> Tensor:
    narrow_or_wide = BOUNDS.index(bound)
    samples = x.reshape(-1, *x.shape[-2:])
    means = [similarity_sums(one, variance)[narrow_or_wide].log().mean() for one in samples]
    entropy = _noise_entropy(x.shape[-1], variance) + math.log(x.shape[-2]) - torch.stack(means)
    return entropy.reshape(x.shape[:-2]).to(x.dtype)


def _refuses(x: Tensor, variance: float, *, bound: str = "upper") -> str | None:
    if torch.is_grad_enabled() and x.requires_grad:
        return "x requires a gradient, which the blocks do not give"
    if x.shape[-2] < _FEW:
        return f"{x.shape[-2]} samples are fewer than {_FEW}: one matrix is faster"
    return None if x.numel() else "there are no numbers"


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (normal(6, 3), 0.5), {}
    yield (normal(2, 5, 1), 0.1), {}
    yield (normal(1, 4), 1.0), {}  # one sample: the entropy of the noise
    yield (normal(80, 3), 0.25), {}


def _bad() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.ones(4, 3)
    yield (x[0], 1.0), {}, ArgumentValueError, "x"
    yield (x[:0], 1.0), {}, ArgumentValueError, "x"
    yield (x.long(), 1.0), {}, ArgumentTypeError, "x"
    yield (x, 0.0), {}, ArgumentValueError, "variance"
    yield (x, float("nan")), {}, ArgumentValueError, "variance"
    yield (x, "small"), {}, ArgumentTypeError, "variance"
    yield (x, 1.0), {"bound": "both"}, ArgumentValueError, "bound"


@method(
    site="diagnostics",
    family="custom",
    paper="adaptive-information-estimators",
    source="entropy of a mixture of Gaussians: upper bound by KL, lower bound by Bhattacharyya distances",
    reference=reference,
    kernels=(Kernel("blocks", _blocks, _refuses),),
    variants={"default": {}, "lower": {"bound": "lower"}},
    samples=_samples,
    bad_inputs=_bad,
    error_scale="tensor",
)
def kde_entropy(x: Tensor, variance: float, *, bound: str = "upper") -> Tensor:
    r"""Bounds of the differential entropy of ``x`` plus independent Gaussian noise, in nats.

    .. math:: H_{upper}(v) = \frac{d}{2} (1 + \log 2 \pi v) - \frac{1}{N} \sum_i \log \frac{1}{N} \sum_j
        e^{-\Vert x_i - x_j\Vert^2 / 2v}, \quad H_{lower}(v) = H_{upper}(4v) + \frac{d}{2} \log \frac{1}{4}

    The N samples are taken for the whole distribution: noisy samples are a mixture of N Gaussians. Differentiable, so
    that it can be a term of a loss; a gradient needs memory for N² d numbers, the value alone goes block by block.

    Args:
        x: samples, (…, N, d), at least one.
        variance: variance of the noise in every dimension, in squared units of ``x``; not a standard deviation.
        bound: ``"upper"`` or ``"lower"``.

    Returns:
        One entropy per matrix, (…), in the dtype of ``x``; 16-bit inputs are computed in float32. NaN where ``x`` has
        NaN.

    Raises:
        ArgumentTypeError: ``x`` is not a real floating-point tensor, or an argument has the wrong type.
        ArgumentValueError: fewer than two dimensions, no samples, a variance that is not positive and finite, or an
            unknown bound.

    Example:
        >>> import torch
        >>> far = torch.tensor([[0.0], [100.0]])  # two clusters: one bit more than the noise alone
        >>> noise = kde_entropy(torch.zeros(1, 1), 1.0)
        >>> round(float((kde_entropy(far, 1.0) - noise) / torch.tensor(2.0).log()), 4)
        1.0

    Paper: Adaptive Estimators, arXiv 1902.09037, kernel density estimation; the bounds are those of arXiv 1706.02419.
    """
    check_float_tensor("x", x)
    if x.ndim < 2 or not x.shape[-2]:
        raise ArgumentValueError(f"x must have shape (..., N, d) with N at least 1, got {tuple(x.shape)}")
    check_number("variance", variance, low=0.0, low_open=True, high_open=True)
    check_choice("bound", bound, BOUNDS)
    return call(record_of(kde_entropy), x, variance, bound=bound)
