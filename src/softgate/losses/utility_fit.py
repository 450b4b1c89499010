"""Fitting the map from utilities to probabilities on held-out data: by a decision metric or by likelihood."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.losses.utility import METHODS, utility_to_log_probability, utility_to_probability

__all__ = ["UtilityTransform", "estimate_uniform_noise", "fit_utility_transform"]

Metric = Callable[[Tensor, Tensor], "Tensor | float"]
_METRICS = ("nll", "accuracy", "exact_match")
#: Intervals in which the number of every method is sought; power and rank in logarithmic scale.
_BETA, _EXPONENT, _EPS = (1e-2, 1e2), (1e-2, 1e2), (0.0, 0.999)
_GOLDEN = (5**0.5 - 1) / 2
#: Rows at a time in the Newton steps: a few hundred kilobytes stay in the cache.
_CHUNK = 1024
_BINS = 512


class UtilityTransform(nn.Module):
    """A fitted :func:`softgate.losses.utility_to_probability`, with a state dict (a reconstruction).

    Args:
        method: ``"power"``, ``"noise_inverse"``, ``"rank"`` or ``"isotonic"``.
        value: ``beta``, ``eps`` or ``exponent`` of the method; ignored by isotonic.
        knots: of isotonic.
        values: of isotonic.

    Shapes: logits (..., V) -> probabilities (..., V).

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> UtilityTransform("power", 2.0)(torch.tensor([1.0, 0.0]))
        tensor([0.8808, 0.1192])

    Paper: idea of arXiv 2305.14859 (abstract); a reconstruction, not the paper's formula.
    """

    value: Tensor
    knots: Tensor
    values: Tensor

    def __init__(
        self, method: str = "power", value: float = 1.0, knots: Tensor | None = None, values: Tensor | None = None
    ) -> None:
        super().__init__()
        check_choice("method", method, METHODS)
        self.method = method
        self.register_buffer("value", torch.tensor(float(value), dtype=torch.float64))
        self.register_buffer("knots", torch.tensor([0.0, 1.0]) if knots is None else knots)
        self.register_buffer("values", torch.tensor([0.0, 1.0]) if values is None else values)
        utility_to_probability(torch.zeros(2), method, **self._options())

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities along the last dimension of ``logits``."""
        return utility_to_probability(logits, self.method, **self._options())

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Log-probabilities along the last dimension of ``logits``: scores whose softmax is :meth:`forward`."""
        return utility_to_log_probability(logits, self.method, **self._options())

    def _options(self) -> dict[str, Any]:
        if self.method == "isotonic":
            return {"knots": self.knots, "values": self.values}
        return {{"power": "beta", "noise_inverse": "eps", "rank": "exponent"}[self.method]: float(self.value)}

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("knots", "values"):  # their number is part of the fit
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state, prefix, *args)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"method={self.method!r}, value={float(self.value):.4g}"


def estimate_uniform_noise(logits: Tensor) -> float:
    """Share of labels that were replaced by uniform ones, as a model's floor of probability shows it.

    ``V min_y median_x P(y | x)``: where a label y is not the true one, a model of the corrupted data gives it
    ``eps / V``. Exact for a model that has learned the corrupted distribution and classes that are each rarely true.

    Args:
        logits: scores (..., V) on held-out inputs.

    Returns:
        The estimate, in [0, 1).

    Raises:
        ArgumentTypeError: ``logits`` is no floating-point tensor.
        ArgumentValueError: ``logits`` has no rows.

    Example:
        >>> p = 0.6 * torch.eye(4) + 0.1
        >>> round(estimate_uniform_noise(p.log()), 4)
        0.4

    Paper: a reconstruction around arXiv 2305.14859, not the paper's formula.
    """
    check_float_tensor("logits", logits)
    if logits.ndim == 0 or logits.numel() == 0:
        raise ArgumentValueError(f"logits must hold at least one row, got shape {tuple(logits.shape)}")
    p = torch.softmax(logits.double(), -1).reshape(-1, logits.shape[-1])
    floor = float(p.median(0).values.min()) * logits.shape[-1]
    return min(max(floor, 0.0), _EPS[1])


def fit_utility_transform(
    logits: Tensor, targets: Tensor, metric: str | Metric = "nll", method: str = "power"
) -> UtilityTransform:
    """Fit one map from utilities to probabilities on held-out scores and right answers (a reconstruction).

    Fitted by likelihood on data like the training data, a well-trained model gets ``beta`` near 1: nothing changes.
    Fitted by a decision metric on answers that are known to be good, it usually gets a larger one. The distance of the
    two optima is what the duality is about.

    Args:
        logits: held-out scores, (N, V) or (N, T, V) for sequences.
        targets: right answers, int64 (N,) or (N, T).
        metric: ``"nll"`` (mean negative log-likelihood, minimised), ``"accuracy"`` (expected share of right answers
            when sampling), ``"exact_match"`` (expected share of rows that are right as a whole when every position is
            sampled), or a function ``(probabilities, targets) -> number`` to maximise.
        method: ``"power"``, ``"noise_inverse"``, ``"rank"`` or ``"isotonic"`` (calibrates ``P(y)`` as the probability
            that y is right; its ``metric`` must be ``"nll"``).

    Returns:
        The fitted :class:`UtilityTransform`. Where the metric keeps growing (accuracy in ``beta``, say) the end of the
        interval: ``beta`` and ``exponent`` in [0.01, 100], ``eps`` in [0, 0.999].

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a shape does not fit, a target is out of range, there are fewer than two classes, or all
            targets are the same class, from which nothing can be fitted.

    Example:
        >>> scores = 3.0 * torch.randn(2000, 5, generator=torch.Generator().manual_seed(0))
        >>> answers = torch.multinomial((scores / 3.0).softmax(-1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
        >>> fitted = fit_utility_transform(scores, answers)  # the scores are three times too large
        >>> abs(float(fitted.value) - 1 / 3) < 0.03
        True

    Paper: idea of arXiv 2305.14859 (abstract); a reconstruction, not the paper's procedure.
    """
    _check(logits, targets, metric, method)
    wide = logits.detach().to(compute_dtype(logits.dtype))
    if method == "isotonic":
        return UtilityTransform(method, 1.0, *_isotonic_fit(wide.flatten(0, -2), targets.flatten()))
    if method == "power" and metric == "nll":
        return UtilityTransform(method, _newton(wide.flatten(0, -2), targets.flatten()))
    low, high = {"power": _BETA, "rank": _EXPONENT, "noise_inverse": _EPS}[method]
    if method == "noise_inverse":
        return UtilityTransform(method, _golden(lambda eps: _score(wide, targets, metric, method, eps), low, high))
    found = _golden(lambda x: _score(wide, targets, metric, method, exp(x)), log(low), log(high))
    return UtilityTransform(method, exp(found))


def _check(logits: Any, targets: Any, metric: Any, method: Any) -> None:
    check_float_tensor("logits", logits)
    check_choice("method", method, METHODS)
    if isinstance(metric, str):
        check_choice("metric", metric, _METRICS)
    elif not callable(metric):
        raise ArgumentTypeError(f"metric must be a name or a function, got {type(metric).__name__}")
    if method == "isotonic" and metric != "nll":
        raise ArgumentValueError(f"metric must be 'nll' for method='isotonic', which calibrates, got {metric!r}")
    if not isinstance(targets, Tensor) or targets.dtype not in (torch.int64, torch.int32, torch.uint8):
        raise ArgumentTypeError("targets must be a tensor of class indices")
    if logits.ndim < 2 or targets.shape != logits.shape[:-1]:
        raise ArgumentValueError(
            f"targets must have the shape of logits (N, ..., V) without its last dimension, got {tuple(targets.shape)} "
            f"for {tuple(logits.shape)}"
        )
    if logits.shape[-1] < 2 or targets.numel() == 0:
        raise ArgumentValueError(f"logits must hold rows of at least two classes, got shape {tuple(logits.shape)}")
    low, high = (int(value) for value in targets.aminmax())
    if low < 0 or high >= logits.shape[-1]:
        raise ArgumentValueError(f"targets must be in [0, {logits.shape[-1]}), got {low if low < 0 else high}")
    if low == high:
        raise ArgumentValueError(f"targets must hold at least two classes to fit anything, all are {low}")


def _score(logits: Tensor, targets: Tensor, metric: str | Metric, method: str, value: float) -> float:
    """What is maximised."""
    transform = UtilityTransform(method, value)
    if not isinstance(metric, str):
        return float(metric(transform(logits), targets))
    log_q = transform.log_probabilities(logits).gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)
    if metric == "nll":
        return float(log_q.mean(dtype=torch.float64))
    if metric == "exact_match":
        log_q = log_q.reshape(len(log_q), -1).sum(1)
    return float(log_q.exp().mean(dtype=torch.float64))


def _golden(score: Callable[[float], float], low: float, high: float) -> float:
    """Place of the largest score of a unimodal function; the ends of the interval are tried too."""
    ends = {low: score(low), high: score(high)}
    a, b = low, high
    x, y = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    at_x, at_y = score(x), score(y)
    while b - a > 1e-3 * (high - low):
        if at_x > at_y:
            b, y, at_y = y, x, at_x
            x = b - _GOLDEN * (b - a)
            at_x = score(x)
        else:
            a, x, at_x = x, y, at_y
            y = a + _GOLDEN * (b - a)
            at_y = score(y)
    inside = (x, at_x) if at_x >= at_y else (y, at_y)
    return max((*ends.items(), inside), key=lambda pair: pair[1])[0]


def _newton(logits: Tensor, targets: Tensor) -> float:
    """The ``beta`` of least negative log-likelihood, a convex function: Newton's method, kept in its interval."""
    low, high = _BETA
    beta = 1.0
    wanted = float(logits.gather(1, targets.long().unsqueeze(1)).mean(dtype=torch.float64))
    for _ in range(50):
        mean, variance = _moments(logits, beta)
        slope = mean - wanted
        low, high = (beta, high) if slope < 0.0 else (low, beta)
        step = beta - slope / variance if variance > 0.0 else low
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - beta) <= 1e-5 * beta:
            return following
        beta = following
    return beta


def _moments(logits: Tensor, beta: float) -> tuple[float, float]:
    """Mean score under ``softmax(beta z)`` and its mean variance, over all rows."""
    mean = square = torch.zeros((), dtype=torch.float64, device=logits.device)
    for rows in logits.split(_CHUNK):
        q = torch.softmax(beta * rows, -1)
        finite = torch.where(q > 0.0, rows, 0.0)  # 0 times -inf
        first = (q * finite).sum(-1)
        mean = mean + first.sum(dtype=torch.float64)
        square = square + (q * (finite - first.unsqueeze(-1)).square_()).sum(dtype=torch.float64)
    return float(mean) / len(logits), float(square) / len(logits)


def _isotonic_fit(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Knots of the increasing map that makes ``P(y)`` the frequency with which y is right: pooled adjacent violators.

    Probabilities are collected in bins of equal width in ``log P`` first. A thousandth of the identity is mixed in, so
    that no two scores become equal.
    """
    edges = torch.logspace(-10, 0, _BINS, dtype=torch.float64)[:-1]
    count, total, right = (torch.zeros(_BINS, dtype=torch.float64) for _ in range(3))
    for rows, answers in zip(logits.split(_CHUNK), targets.split(_CHUNK), strict=True):
        p = torch.softmax(rows.double().cpu(), -1)
        place = torch.bucketize(p, edges)
        hit = torch.zeros_like(p).scatter_(1, answers.long().cpu().unsqueeze(1), 1.0)
        for sums, weight in ((count, torch.ones_like(p)), (total, p), (right, hit)):
            sums.index_add_(0, place.flatten(), weight.flatten())
    blocks: list[list[float]] = []
    for n, p_sum, r_sum in zip(count.tolist(), total.tolist(), right.tolist(), strict=True):
        if n == 0.0:
            continue
        blocks.append([n, p_sum, r_sum])
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][0] >= blocks[-1][2] / blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    knots = [0.0, *(p / n for n, p, _ in blocks if 0.0 < p / n < 1.0), 1.0]
    values = [0.0, *(r / n for n, p, r in blocks if 0.0 < p / n < 1.0)]
    values.append(max(values[-1], blocks[-1][2] / blocks[-1][0]) or 1.0)
    x = torch.tensor(knots, dtype=torch.float64)
    return x, 0.999 * torch.tensor(values, dtype=torch.float64) + 0.001 * x
