"""From the scores of a softmax network, read as utilities, back to probabilities: a reconstruction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_dim, check_float_tensor, check_number
from softgate._math.compress import compute_dtype
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentValueError, check_choice
from softgate.losses import _utility_maps as maps
from softgate.registry import method as record_method

__all__ = ["utility_to_log_probability", "utility_to_probability"]

METHODS = ("power", "noise_inverse", "rank", "isotonic")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, dim in (((4, 7), -1), ((3, 5, 2), 1), ((6,), 0), ((0, 3), -1)):
        x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        yield (x.to(dtype),), {"dim": dim}
    table = {"knots": torch.tensor([0.0, 0.2, 0.6, 1.0]), "values": torch.tensor([0.0, 0.05, 0.7, 1.0])}
    yield (torch.randn(4, 7, generator=generator).to(dtype),), {"method": "isotonic", **table}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, nan, inf = torch.zeros(2, 3), float("nan"), float("inf")
    yield (x,), {"method": "temperature"}, ValueError, "method"
    yield (x,), {"method": None}, TypeError, "method"
    for value in (-1.0, nan):
        yield (x,), {"beta": value}, ValueError, "beta"
    for value in (-0.1, 1.0, nan):
        yield (x,), {"method": "noise_inverse", "eps": value}, ValueError, "eps"
    for value in (-1.0, nan, inf):
        yield (x,), {"method": "rank", "exponent": value}, ValueError, "exponent"
    for knots in (None, torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.zeros(2, 2)):
        yield (x,), {"method": "isotonic", "knots": knots, "values": torch.tensor([0.0, 1.0])}, ValueError, "knots"
    yield (
        (x,),
        {"method": "isotonic", "knots": torch.tensor([0.0, 1.0]), "values": torch.tensor([1.0, 0.0])},
        ValueError,
        "values",
    )
    yield (x,), {"dim": 2}, ValueError, "dim"
    yield (x,), {"beta": "1"}, TypeError, "beta"


@record_method(
    site="losses",
    family="custom",
    paper="utility-probability-duality",
    source="a reconstruction of the idea of the abstract; the paper's own equation was not available",
    variants={
        "default": {},
        "power": {"beta": 2.5},
        "noise_inverse": {"method": "noise_inverse", "eps": 0.05},
    },
    samples=_samples,
    bad_inputs=_bad_inputs,
    output_range=(0.0, 1.0),
    deviations=("a reconstruction: chosen to fit the abstract, not the paper's formula",),
)
def utility_to_probability(
    logits: Tensor,
    method: str = "power",
    *,
    beta: float = 1.0,
    eps: float = 0.0,
    exponent: float = 1.0,
    knots: Tensor | None = None,
    values: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Turn scores that are trusted for their order only into probabilities (a reconstruction).

    A network trained by maximum likelihood ranks what it saw chosen above the rest; its softmax need not be a good
    probability. Rules that use only the order (argmax, greedy, top-k) do not care; sampling and expectations do, and
    should use one of these order-preserving maps, fitted by :func:`softgate.losses.fit_utility_transform`:

    - ``"power"``: ``softmax(beta z)``. This **is** temperature scaling with temperature ``1 / beta``; what is added is
      the criterion it is fitted by, a decision metric instead of the likelihood.
    - ``"noise_inverse"``: ``max(0, P - eps / V)``, normalised; the exact inverse of labels that a share ``eps`` of the
      time are drawn uniformly from all V.
    - ``"rank"``: ``1 / rank^exponent``, normalised: the order and nothing else.
    - ``"isotonic"``: ``g(P)``, normalised, with an increasing piecewise linear g through ``knots`` and ``values``.

    In an autoregressive model it is applied to every step. The product of the steps is then **not** the normalised
    power (or other map) of the probability of the whole sequence.

    Args:
        logits: scores; one context along ``dim``. ``-inf`` keeps probability 0 under every map.
        method: ``"power"``, ``"noise_inverse"``, ``"rank"`` or ``"isotonic"``.
        beta: for power, at least 0; 0 gives the uniform distribution, ``inf`` the largest (ties share).
        eps: for noise_inverse, in [0, 1); 0 is softmax.
        exponent: for rank, at least 0.
        knots: for isotonic, increasing probabilities from 0 to 1, ``(K,)``.
        values: for isotonic, g at the knots: non-decreasing, from 0 or more.
        dim: axis of the alternatives.

    Returns:
        Probabilities of the shape and dtype of ``logits`` (16-bit types are computed in float32). A row of only
        ``-inf`` or with NaN is NaN. The gradient of rank is 0.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> scores = torch.tensor([2.0, 1.0, 0.0])
        >>> utility_to_probability(scores, beta=3.0)
        tensor([0.9503, 0.0473, 0.0024])
        >>> utility_to_probability(scores, "rank")
        tensor([0.5455, 0.2727, 0.1818])

    Paper: idea of arXiv 2305.14859 (abstract); **the maps are this project's reconstruction, not the paper's formula**.
    """
    options = {"beta": beta, "eps": eps, "exponent": exponent, "knots": knots, "values": values}
    return _transformed(logits, method, dim, options, logarithm=False)


def utility_to_log_probability(
    logits: Tensor,
    method: str = "power",
    *,
    beta: float = 1.0,
    eps: float = 0.0,
    exponent: float = 1.0,
    knots: Tensor | None = None,
    values: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """Logarithm of :func:`utility_to_probability`, without underflow for ``"power"`` (a reconstruction).

    Args:
        logits: scores; one context along ``dim``.
        method: as there.
        beta: as there.
        eps: as there.
        exponent: as there.
        knots: as there.
        values: as there.
        dim: axis of the alternatives.

    Returns:
        Log-probabilities of the shape and dtype of ``logits``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> utility_to_log_probability(torch.tensor([0.0, -1000.0]), beta=2.0)
        tensor([    0., -2000.])

    Paper: idea of arXiv 2305.14859 (abstract); a reconstruction, not the paper's formula.
    """
    options = {"beta": beta, "eps": eps, "exponent": exponent, "knots": knots, "values": values}
    return _transformed(logits, method, dim, options, logarithm=True)


def _transformed(logits: Tensor, method: str, dim: int, options: dict[str, Any], *, logarithm: bool) -> Tensor:
    check_float_tensor("logits", logits)
    check_choice("method", method, METHODS)
    axis = check_dim(dim, logits.ndim)
    beta = check_number("beta", options["beta"], low=0.0)
    eps = check_number("eps", options["eps"], low=0.0, high=1.0, high_open=True)
    exponent = check_number("exponent", options["exponent"], low=0.0, high_open=True)
    wide = logits.to(compute_dtype(logits.dtype))
    knots = check_knots(options["knots"], options["values"], wide) if method == "isotonic" else ()
    if wide.numel() == 0 or wide.ndim == 0:
        return (torch.log_softmax if logarithm else torch.softmax)(wide, axis).to(logits.dtype)
    last = wide.movedim(axis, -1)
    if method == "power":
        log_p = maps.power(last, beta)
        result = log_p if logarithm else log_p.exp()
    else:
        p = (
            maps.noise_inverse(last, eps)
            if method == "noise_inverse"
            else (maps.rank(last, exponent) if method == "rank" else maps.isotonic(last, *knots))
        )
        result = p.log() if logarithm else p
    return result.movedim(-1, axis).to(logits.dtype)


def check_knots(knots: Any, values: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the knots of an isotonic map in the dtype and on the device of ``like``."""
    for name, tensor in (("knots", knots), ("values", values)):
        if tensor is None:
            raise ArgumentValueError(f"{name} must be given for method='isotonic', got None")
        check_float_tensor(name, tensor)
    if knots.ndim != 1 or len(knots) < 2 or values.shape != knots.shape:
        raise ArgumentValueError(
            f"knots and values must have one shape (K,) with K >= 2, got {tuple(knots.shape)}, {tuple(values.shape)}"
        )
    if transform_reason(knots, values, like) is None:  # else the values are unknown
        if float(knots[0]) != 0.0 or float(knots[-1]) != 1.0 or not bool((knots.diff() > 0).all()):
            raise ArgumentValueError("knots must increase from 0 to 1")
        if float(values[0]) < 0.0 or float(values[-1]) <= 0.0 or not bool((values.diff() >= 0).all()):
            raise ArgumentValueError("values must not be negative, must not decrease, and must end above 0")
    return knots.to(like), values.to(like)
