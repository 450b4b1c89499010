"""What comp-sum losses estimate and guarantee: the read-out of probabilities, best risks, H-consistency bounds."""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from softgate._checks import check_dim, check_float_tensor, check_number
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.losses._comp_sum_phi import phi
from softgate.losses.comp_sum import check_tau
from softgate.registry import method

__all__ = [
    "HConsistencyBound",
    "comp_sum_conditional_risk",
    "comp_sum_probabilities",
    "h_consistency_bound",
    "minimizability_gap",
    "minimizability_gap_bound",
]

Numbers = TypeVar("Numbers", float, "np.ndarray[Any, Any]", Tensor)
#: Halvings of [0, 1]: more than the 53 bits of float64 would change nothing.
_HALVINGS = 60


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, tau, dim in (((4, 7), 0.0, -1), ((3, 5, 2), 1.5, 1), ((6,), 1.0, 0)):
        yield (3 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), tau, dim), {}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.zeros(2, 3)
    for value in (-0.1, 2.0, 3.0, float("nan"), float("inf")):
        yield (x, value), {}, ValueError, "tau"
    for wrong in (None, "1", True):
        yield (x, wrong), {}, TypeError, "tau"
    for bad in (None, [[1.0]], x.long()):
        yield (bad, 1.5), {}, TypeError, "logits"
    yield (x, 1.5, 2), {}, ValueError, "dim"


@method(
    site="losses",
    family="custom",
    paper="comp-sum-losses",
    source="best conditional risk, attained at s_y proportional to p_y^(1 / (2 - tau)); inverted",
    samples=_samples,
    bad_inputs=_bad_inputs,
    output_range=(0.0, 1.0),
)
def comp_sum_probabilities(logits: Tensor, tau: float, dim: int = -1) -> Tensor:
    """Label distribution that a model trained with ``comp_sum_loss(tau=tau)`` estimates, ``softmax((2 - tau) z)``.

    The loss of order ``tau`` is smallest where softmax is proportional to ``p^(1 / (2 - tau))``: for ``tau > 1`` the
    model is over-confident by design, for ``tau < 1`` under-confident. The order of the classes is not changed.

    Args:
        logits: scores of a model (already divided by the loss's ``temperature``), any shape.
        tau: order of the loss, in [0, 2). From 2 on only the most probable class is learned, not its probability.
        dim: axis of the classes.

    Returns:
        Probabilities of the shape and dtype of ``logits``; a row of only ``-inf``, with ``+inf`` or NaN is NaN.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: ``tau`` or ``dim`` is out of range.

    Example:
        >>> true = torch.tensor([0.7, 0.2, 0.1])
        >>> comp_sum_probabilities(true.log() / (2 - 1.5), tau=1.5)  # the best scores for these labels
        tensor([0.7000, 0.2000, 0.1000])

    Paper: arXiv 2304.07288; the minimiser is derived here from the conditional risk of sec. 2 and checked numerically.
    """
    check_float_tensor("logits", logits)
    power = 2.0 - check_tau(tau, 2.0, high_open=True)
    axis = check_dim(dim, logits.ndim)
    return torch.softmax(power * logits.to(compute_dtype(logits.dtype)), axis).to(logits.dtype)


def comp_sum_conditional_risk(probabilities: Tensor, tau: float = 1.0, dim: int = -1) -> Tensor:
    r"""Smallest expected comp-sum loss that any scores reach for labels drawn from ``probabilities``.

    .. math:: C^*_\tau(p) = \frac{(\sum_y p_y^{1 / (2 - \tau)})^{2 - \tau} - 1}{1 - \tau}

    It is the entropy in nats at ``tau = 1`` and ``(1 - max p) / (tau - 1)`` from ``tau = 2`` on.

    Args:
        probabilities: label distributions along ``dim``, not negative; each is taken to sum to one.
        tau: order of the loss.
        dim: axis of the classes.

    Returns:
        Risks, the shape of ``probabilities`` without ``dim``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a probability is negative or NaN, or ``tau`` or ``dim`` is out of range.

    Example:
        >>> comp_sum_conditional_risk(torch.tensor([0.5, 0.5]), tau=0.0)
        tensor(1.)

    Paper: arXiv 2304.07288, sec. 4; derived again and checked numerically.
    """
    check_float_tensor("probabilities", probabilities)
    tau, axis = check_tau(tau), check_dim(dim, probabilities.ndim)
    if not bool((probabilities >= 0.0).all()):
        raise ArgumentValueError("probabilities must not be negative or NaN")
    if tau == 1.0:
        return torch.special.entr(probabilities).sum(axis)
    if tau >= 2.0:
        return (1.0 - probabilities.amax(axis)) / (tau - 1.0)
    log_sum = torch.logsumexp(probabilities.log() / (2.0 - tau), axis)
    return torch.expm1((2.0 - tau) * log_sum) / (1.0 - tau)


class HConsistencyBound:
    """The bound of one ``tau`` and number of classes; see :func:`h_consistency_bound`.

    Args:
        tau: order of the loss.
        n: number of classes.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> HConsistencyBound(1.0, 2).transform(0.5)
        0.13081203594113697

    Paper: arXiv 2304.07288, theorem 3.1.
    """

    def __init__(self, tau: float, n: int) -> None:
        self.tau = check_tau(tau)
        if isinstance(n, bool) or not isinstance(n, int):
            bad_type("n", n, "an int of at least 2")
        if n < 2:
            bad_value("n", n, "an int of at least 2")
        self.n = n

    def __repr__(self) -> str:
        return f"HConsistencyBound(tau={self.tau}, n={self.n})"

    def transform(self, regret: Numbers) -> Numbers:
        """``T_tau``: the excess surrogate loss that a zero-one regret in [0, 1] costs at least."""
        return _as_given(regret, "regret", self._transform)

    def __call__(self, excess: Numbers) -> Numbers:
        """``Gamma_tau``: the largest zero-one regret at an excess surrogate loss (>= 0); 1 if it says nothing."""
        return _as_given(excess, "excess", self._inverse)

    def simple(self, excess: Numbers) -> Numbers:
        """A closed form that is never below ``Gamma_tau``; it grows with the square root, from ``tau = 2`` linearly."""
        return _as_given(excess, "excess", self._simple)

    def _transform(self, t: Tensor) -> Tensor:
        if bool((t > 1.0).any()):
            raise ArgumentValueError("regret must be in [0, 1]")
        tau = self.tau
        scale = (tau - 1.0) * self.n ** (tau - 1.0)
        if tau == 1.0:
            return (torch.special.xlog1py(1.0 + t, t) + torch.special.xlog1py(1.0 - t, -t)) / 2.0
        if tau >= 2.0:
            return t / scale
        # the power mean of 1 + t and 1 - t in logarithms: the exponent 1 / (2 - tau) has no bound as tau nears 2
        a = 1.0 / (2.0 - tau)
        mean = (torch.logaddexp(a * torch.log1p(t), a * torch.log1p(-t)) - log(2.0)) / a
        return torch.expm1(mean) * (2.0 ** (1.0 - tau) / (tau - 1.0) if tau < 1.0 else 1.0 / scale)

    def _inverse(self, excess: Tensor) -> Tensor:
        low, high = torch.zeros_like(excess), torch.ones_like(excess)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            inside = self._transform(middle) <= excess
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return torch.where(self._transform(torch.ones_like(excess)) <= excess, 1.0, high)

    def _simple(self, excess: Tensor) -> Tensor:
        tau = self.tau
        if tau < 1.0:
            return torch.sqrt(2.0**tau * (2.0 - tau) * excess)
        spread = self.n ** (tau - 1.0)
        return torch.sqrt(2.0 * spread * excess) if tau < 2.0 else (tau - 1.0) * spread * excess


def h_consistency_bound(tau: float, n: int) -> HConsistencyBound:
    r"""Bound of the zero-one regret by the excess comp-sum loss, for symmetric and complete hypothesis sets.

    .. math:: R_{01}(h) - R^*_{01} + M_{01} \le \Gamma_\tau\big(R_\tau(h) - R^*_\tau + M_\tau\big)

    Args:
        tau: order of the loss.
        n: number of classes, at least 2; the bound does not depend on it up to ``tau = 1`` and grows like
            ``n^(tau - 1)`` above.

    Returns:
        A callable: ``bound(excess)`` is ``Gamma_tau``, ``bound.transform(regret)`` its inverse ``T_tau``,
        ``bound.simple(excess)`` a closed form above it. Each takes a float, a NumPy array or a tensor and gives back
        the same kind (computed in float64).

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> bound = h_consistency_bound(tau=1.0, n=10)
        >>> round(bound(0.02), 4), round(bound.simple(0.02), 4)
        (0.1993, 0.2)

    Paper: arXiv 2304.07288, theorem 3.1; the transform is from memory of the paper and was checked as a valid (and
    for ``tau <= 1`` tight) bound numerically.
    """
    return HConsistencyBound(tau, n)


def minimizability_gap(best_risk: float | Tensor, probabilities: Tensor, tau: float = 1.0, dim: int = -1) -> Tensor:
    """Minimizability gap ``R*_tau(H) - E_x[inf_h C_tau(h, x)]``: the part of the risk that no training removes.

    Args:
        best_risk: ``R*_tau(H)``, the smallest expected loss within the hypothesis set (in practice: of the best model
            found, which gives an upper bound).
        probabilities: label distribution of every input of the sample, classes along ``dim``; one-hot for
            deterministic labels.
        tau: order of the loss.
        dim: axis of the classes.

    Returns:
        0-d tensor, at least 0 up to rounding and sampling; the infimum at each x is over all scores
        (:func:`comp_sum_conditional_risk`).

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a probability is negative or NaN, or ``tau`` or ``dim`` is out of range.

    Example:
        >>> labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # two inputs, which a constant model cannot tell apart
        >>> minimizability_gap(0.6931, labels)
        tensor(0.6931)

    Paper: arXiv 2304.07288, sec. 3 and 5.
    """
    return best_risk - comp_sum_conditional_risk(probabilities, tau, dim).mean()


def minimizability_gap_bound(best_sum_exponential_risk: float, tau: float, *, n: int, score_bound: float) -> float:
    """Bound of the minimizability gap of every ``tau`` from the best sum-exponential risk, for deterministic labels.

    ``Phi_tau(R*_0(H)) - Phi_tau((n - 1) exp(-2 score_bound))``: it falls as ``tau`` grows, where the constant of
    :func:`h_consistency_bound` rises like ``n^(tau - 1)``.

    Args:
        best_sum_exponential_risk: ``R*_0(H)``, the smallest expected ``sum_exponential_loss`` within H.
        tau: order of the loss whose gap is bounded.
        n: number of classes.
        score_bound: largest absolute score in H, positive (``inf`` allowed).

    Returns:
        The bound, at least 0.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed; the risk cannot be below ``(n - 1) exp(-2 score_bound)``.

    Example:
        >>> [round(minimizability_gap_bound(1.0, tau, n=2, score_bound=3.0), 3) for tau in (0.0, 1.0, 2.0)]
        [0.998, 0.691, 0.498]

    Paper: arXiv 2304.07288, sec. 5 (stated from memory; proved here by Jensen's inequality, and tried numerically).
    """
    n = HConsistencyBound(tau, n).n
    bound = check_number("score_bound", score_bound, low=0.0, low_open=True)
    least = (n - 1) * float(np.exp(-2.0 * bound))
    risk = check_number("best_sum_exponential_risk", best_sum_exponential_risk, low=least, high_open=True)
    values = phi(-torch.log1p(torch.tensor([risk, least], dtype=torch.float64)), tau)
    return float(values[0] - values[1])


def _as_given(value: Any, name: str, compute: Any) -> Any:
    """Apply ``compute`` in float64 to a float, an array or a tensor, and return the same kind."""
    if isinstance(value, Tensor):
        check_float_tensor(name, value)
        wide = value.double()
    elif isinstance(value, np.ndarray):
        wide = torch.from_numpy(np.asarray(value, dtype=np.float64))
    else:
        wide = torch.tensor(check_number(name, value), dtype=torch.float64)
    if not bool((wide >= 0.0).all()):
        raise ArgumentValueError(f"{name} must not be negative or NaN")
    result = compute(wide)
    if isinstance(value, Tensor):
        return result.to(value.dtype)
    return result.numpy() if isinstance(value, np.ndarray) else float(result)
