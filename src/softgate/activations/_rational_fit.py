"""Coefficients with which a rational function starts as a known activation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate.activations._rational_parts import evaluate
from softgate.errors import ArgumentValueError, bad_type, check_choice

#: The interval of the fit is [-WIDTH, WIDTH].
WIDTH = 3.0
#: Largest root of the mean squared error of a fit.
TOLERANCE = 1e-2
_POINTS = 601
_ROUNDS = 60
#: Relative gain, and damping, at which no further step is worth its time.
_GAIN, _HOPELESS = 1e-6, 1e6
#: A sum of squared errors that is rounding alone.
_EXACT = 1e-24

NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "identity": lambda x: x,
}

#: Published coefficients, taken instead of a fit.
_PUBLISHED: dict[tuple[str, tuple[int, int], str], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("gelu", (5, 4), "B"): (
        (
            -0.0004221071456647063,
            0.49999955516606254,
            0.40270535451115536,
            0.07366976895222031,
            -0.012954788054484537,
            -0.0037414002583076983,
        ),
        (4.9585381197087913e-05, 0.1472977407631199, 1.1645825701440633e-05, -0.007483871514842074),
    ),
}


def fit_rational(
    init: str | Callable[[Tensor], Tensor], degrees: tuple[int, int], version: str
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator, float64, of the rational function nearest to ``init`` on [-3, 3].

    Raises:
        ArgumentTypeError: ``init`` is neither a name nor a function of one tensor.
        ArgumentValueError: an unknown name, or no function of these degrees is near.
    """
    if isinstance(init, str):
        check_choice("init", init, tuple(NAMED))
        numerator, denominator = _named(init, degrees, version)
        return numerator.clone(), denominator.clone()
    if not callable(init):
        bad_type("init", init, f"one of {', '.join(map(repr, NAMED))} or a function of one tensor")
    return _fit(init, degrees, version, getattr(init, "__name__", "the function"))


@functools.cache
def _named(name: str, degrees: tuple[int, int], version: str) -> tuple[Tensor, Tensor]:
    published = _PUBLISHED.get((name, degrees, version))
    if published is not None:
        numerator, denominator = (torch.tensor(values, dtype=torch.float64) for values in published)
        return numerator, denominator
    return _fit(NAMED[name], degrees, version, repr(name))


def _fit(target: Callable[[Tensor], Tensor], degrees: tuple[int, int], version: str, name: str) -> Any:
    with torch.no_grad():
        t = torch.linspace(-1.0, 1.0, _POINTS, dtype=torch.float64)
        y = target(WIDTH * t)
        if not isinstance(y, Tensor) or y.shape != t.shape or not y.isfinite().all():
            raise ArgumentValueError(f"init must be finite on [-{WIDTH:g}, {WIDTH:g}], entry by entry; {name} is not")
        y = y.to(torch.float64)
        a, b = _linearised(t, y, degrees)
        # the same function, as long as its denominator stays above 1; version C has 0.1 + |0.9 + ...|
        start = torch.cat((a, b.new_tensor([0.9]), b) if version == "C" else (a, b))
    split = degrees[0] + 1

    def value(parameters: Tensor) -> Tensor:
        return evaluate(t, parameters[:split], parameters[split:], version)

    parameters = _levenberg_marquardt(value, y, start)
    error = float((value(parameters) - y).square().mean().sqrt())
    if not error <= TOLERANCE:
        raise ArgumentValueError(
            f"degrees {degrees} in version {version} are too few for init={name}: the best fit on "
            f"[-{WIDTH:g}, {WIDTH:g}] misses it by {error:.2g} (root of the mean squared error; at most {TOLERANCE:g})"
        )
    a, b = parameters[:split], parameters[split:]
    first = 0 if version == "C" else 1
    # from t = x / WIDTH back to x
    return a / WIDTH ** torch.arange(len(a)), b / WIDTH ** torch.arange(first, first + len(b))


def _linearised(t: Tensor, y: Tensor, degrees: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Solve ``P(t) = y (1 + S(t))`` by least squares, weighted again and again by the denominator found last."""
    p, q = degrees
    powers = torch.stack([t**k for k in range(max(p, q) + 1)], 1)
    columns = torch.cat((powers[:, : p + 1], -y[:, None] * powers[:, 1 : q + 1]), 1)
    weight = torch.ones_like(t)
    solution = torch.zeros(columns.shape[1], dtype=t.dtype)
    for _ in range(10):
        solution = torch.linalg.lstsq(columns * weight[:, None], (y * weight)[:, None], driver="gelsd").solution[:, 0]
        bottom = 1 + powers[:, 1 : q + 1] @ solution[p + 1 :]
        weight = 1 / bottom.abs().clamp(min=0.1)
    return solution[: p + 1], solution[p + 1 :]


def _levenberg_marquardt(value: Callable[[Tensor], Tensor], y: Tensor, parameters: Tensor) -> Tensor:
    """Least squares from ``parameters``; the best point met."""
    damping, best = 1e-3, float((value(parameters) - y).square().sum())
    for _ in range(_ROUNDS):
        if best < _EXACT:
            break
        rest = value(parameters) - y
        slopes = torch.func.jacfwd(value)(parameters)
        square = slopes.T @ slopes
        step = torch.linalg.lstsq(
            square + damping * torch.diag(square.diagonal() + 1e-12), (slopes.T @ rest)[:, None], driver="gelsd"
        ).solution[:, 0]
        found = float((value(parameters - step) - y).square().sum())
        if found < best:
            done = best - found < _GAIN * best
            parameters, best, damping = parameters - step, found, damping / 4
        else:
            damping *= 8
            done = damping > _HOPELESS
        if done:
            break
    return parameters
