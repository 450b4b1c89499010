"""How much the activity of a layer says about the input and about the label, in bits, by four estimators.

Shape suffixes: N samples, D units.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate._math.compress import compute_dtype
from softgate.diagnostics import _row_symbols
from softgate.diagnostics._row_symbols import Symbols
from softgate.diagnostics.adaptive_bins import adaptive_edges, bin_index
from softgate.diagnostics.density_entropy import BOUNDS, similarity_sums
from softgate.diagnostics.monitor import DiagnosisWarning
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice

__all__ = ["InformationBound", "MIResult", "information_sensitivity", "mutual_information"]

ESTIMATORS = ("ebab", "fixed", "kde", "akde")
#: Variance of the noise for ``kde``, and for ``akde`` its ratio to the layer's largest activity.
NOISE = {"kde": 1e-2, "akde": 1e-3}
#: Bits below the logarithm of the number of inputs within which an estimate says nothing.
_CLOSE = 0.01


class Settings(NamedTuple):
    """How to estimate; see :func:`mutual_information`."""

    estimator: str = "ebab"
    bins: int = 30
    low: float | None = None
    range: tuple[float, float] | None = None
    noise: float | None = None
    bound: str = "both"


class InformationBound(NamedTuple):
    """One bound of both quantities, in bits.

    Attributes:
        i_tx: of the information about the input.
        i_ty: of that about the label; None without labels. The difference of two bounds, and no bound itself.
    """

    i_tx: float
    i_ty: float | None


class MIResult(NamedTuple):
    """What :func:`mutual_information` found, in bits.

    Attributes:
        i_tx: information of the activity about the input; of a density the upper bound where both were asked for.
        i_ty: about the label; None without labels.
        h_t: entropy of the activity: of its symbols for bins; differential, with the noise, for a density.
        upper: the upper bounds of a density estimate; None for bins, or where only the lower were asked for.
        lower: the lower bounds likewise.
        saturated: every input has an activity that the estimator tells apart from all others: ``i_tx`` is the limit.
        limit: log2 of the number of distinct inputs, which ``i_tx`` cannot exceed.
        setting: estimator and resolution in words, such as ``"ebab, 30 bins"``.
        assumption: what must be kept in mind when the number is read.
    """

    i_tx: float
    i_ty: float | None
    h_t: float
    upper: InformationBound | None
    lower: InformationBound | None
    saturated: bool
    limit: float
    setting: str
    assumption: str


def mutual_information(
    T: Tensor,
    X: Tensor | None = None,
    y: Tensor | None = None,
    estimator: str = "ebab",
    *,
    bins: int = 30,
    low: float | None = None,
    range: tuple[float, float] | None = None,
    noise: float | None = None,
    bound: str = "both",
) -> MIResult:
    r"""Estimate how many bits the activity ``T`` of a layer carries about the input and about the label.

    A deterministic network that is injective carries everything: the true I(T; X) of continuous activity is infinite
    or, on N different inputs, log2 N. Every smaller number comes from the bins or from the noise that the estimator
    adds, so compare layers and epochs under one estimator, run a second one, and see
    :func:`information_sensitivity`.

    ``"ebab"`` cuts the activity at :func:`adaptive_edges` of this layer, ``"fixed"`` at equal distances between
    two values; each row is then one symbol, ``I(T; X) = H(T) - H(T|X)`` and ``I(T; Y) = H(T) - H(T|Y)`` with the
    frequencies for probabilities. ``"kde"`` and ``"akde"`` add Gaussian noise of one variance and use bounds of the
    entropy of the mixture (:func:`kde_entropy`); for ``"akde"`` the variance follows the layer.

    Args:
        T: activity, (N, …) with N at least 2; further dimensions are flattened. Integers and booleans (the choices of
            a router) are taken as they are, 16-bit floats are computed in float32.
        X: which samples are the same input: integers (N,), or the inputs themselves (N, …), equal rows being equal
            inputs. None: all inputs differ. Equal inputs lower I(T; X) only where the network is not deterministic.
        y: labels: integers or booleans (N,), or one-hot rows (N, C).
        estimator: ``"ebab"``, ``"fixed"``, ``"kde"`` or ``"akde"``.
        bins: bins between the smallest and largest value for ``"ebab"``, edges for ``"fixed"``.
        low: for ``"ebab"``, see :func:`adaptive_edges`.
        range: first and last edge for ``"fixed"``; values outside have bins of their own. None takes (-1, 1) for
            values of both signs within it, otherwise 0 or the smallest value and the largest of *this* ``T``: give
            the range of all layers and epochs where these are compared.
        noise: for ``"kde"`` the variance, in squared units of ``T``, 0.01 if None; for ``"akde"`` the variance over
            the largest absolute activity, 0.001 if None.
        bound: for densities ``"upper"``, ``"lower"`` or ``"both"``.

    Returns:
        The estimate with both bounds, its limit and its assumption.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: fewer than two samples, values that are not finite, lengths that differ, labels that are
            negative or neither a vector nor one-hot, ``bins`` below 1, negative noise, or an unknown name.

    Warns:
        DiagnosisWarning: the estimate is saturated: it says only how many inputs there are.

    Example:
        >>> import torch
        >>> inputs = torch.arange(8.0).repeat_interleave(2)  # 16 inputs on 8 levels of activity
        >>> found = mutual_information(inputs.floor(), y=inputs > 3.5)
        >>> found.i_tx, found.i_ty, found.limit
        (3.0, 1.0, 4.0)

    Paper: Adaptive Estimators, arXiv 1902.09037, mutual information, EBAB and adaptive KDE.
    """
    settings = Settings(estimator, bins, low, range, noise, bound)
    found = estimate(T, input_symbols(X, T), label_symbols(y, T), settings)
    if found.saturated:
        warnings.warn(
            f"I(T; X) is at its limit, the logarithm of the number of inputs ({found.limit:.2f} bits), by "
            f"{found.setting}: it says nothing about the layer",
            DiagnosisWarning,
            stacklevel=2,
        )
    return found


def information_sensitivity(
    T: Tensor,
    X: Tensor | None = None,
    y: Tensor | None = None,
    *,
    bins: Sequence[int] = (15, 30, 60),
    noise: Sequence[float] = (1e-4, 1e-3, 1e-2),
) -> dict[str, MIResult]:
    """Estimates under several numbers of adaptive bins and several variances of adaptive noise.

    A statement about a layer (more bits than another, fewer than before) that does not hold for all of them is one
    about the estimator.

    Args:
        T: activity, as :func:`mutual_information` takes it, and so the next two.
        X: inputs.
        y: labels.
        bins: numbers of bins for ``"ebab"``.
        noise: variances over the largest activity for ``"akde"``.

    Returns:
        Setting in words -> estimate; saturation is not warned of.

    Raises:
        ArgumentTypeError: as :func:`mutual_information`.
        ArgumentValueError: likewise.

    Example:
        >>> import torch
        >>> T = torch.linspace(-1, 1, 200)[:, None] ** 3
        >>> for setting, found in information_sensitivity(T, bins=(10, 20), noise=(1e-3,)).items():
        ...     print(f"{setting}: {found.i_tx:.2f}")
        ebab, 10 bins: 3.35
        ebab, 20 bins: 4.35
        akde, variance 0.001 of the largest activity: 3.81
    """
    inputs, labels = input_symbols(X, T), label_symbols(y, T)
    tried = [*(Settings("ebab", bins=count) for count in bins), *(Settings("akde", noise=ratio) for ratio in noise)]
    return {found.setting: found for found in (estimate(T, inputs, labels, settings) for settings in tried)}


def estimate(
    T: Tensor, inputs: Symbols | None, labels: Symbols | None, settings: Settings, name: str = "T"
) -> MIResult:
    """The estimate for symbols of inputs (None: all differ) and labels; ``name`` is what errors call the activity."""
    T_ND, (estimator, bins, low, ends, noise, bound) = _matrix(T, name), settings
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("bound", bound, (*BOUNDS, "both"))
    check_sizes(bins=bins)
    limit = math.log2(len(T_ND) if inputs is None else inputs.size)
    if estimator in NOISE:
        amount = NOISE[estimator] if noise is None else check_number("noise", noise, low=0.0, high_open=True)
        return _by_density(T_ND, inputs, labels, estimator, amount, bound, limit)
    if estimator == "ebab":
        edges, setting = adaptive_edges(T_ND, bins, low), f"ebab, {bins} bins"
        assumption = "bins with equally many distinct values of this layer; every finite I(T; X) is made by the bins"
    else:
        first, last = _range(T_ND, ends)
        edges = torch.linspace(first, last, bins, dtype=torch.float64, device=T_ND.device).to(T_ND.dtype)
        setting = f"fixed, {bins} edges from {first:.4g} to {last:.4g}"
        assumption = "bins of one width; layers with small activity are resolved less, and I(T; X) is made by the bins"
    symbols = _row_symbols.of_rows(bin_index(T_ND, edges) + 1, len(edges) + 1)
    i_tx = _row_symbols.entropy(symbols) if inputs is None else _row_symbols.shared(symbols, inputs)
    i_ty = None if labels is None else _row_symbols.shared(symbols, labels)
    # on N different inputs, N different rows
    saturated = len(T_ND) > 1 and i_tx >= limit - 1e-9 and limit > 0
    return MIResult(i_tx, i_ty, _row_symbols.entropy(symbols), None, None, saturated, limit, setting, assumption)


def _by_density(
    T_ND: Tensor,
    inputs: Symbols | None,
    labels: Symbols | None,
    estimator: str,
    amount: float,
    bound: str,
    limit: float,
) -> MIResult:
    largest = float(T_ND.abs().max())
    tiny = torch.finfo(torch.float32).tiny
    variance = max(amount * largest if estimator == "akde" else amount, tiny)
    whole = _spread(T_ND, variance)
    within_x = (0.0, 0.0) if inputs is None else _within(T_ND, inputs, variance)
    within_y = None if labels is None else _within(T_ND, labels, variance)
    limits = [
        InformationBound(
            max(whole[i] - within_x[i], 0.0), None if within_y is None else max(whole[i] - within_y[i], 0.0)
        )
        for i in (0, 1)
    ]
    upper, lower = (limits[i] if bound in (name, "both") else None for i, name in enumerate(BOUNDS))
    chosen = limits[1] if upper is None else upper
    dims = T_ND.shape[1]
    h_t = whole[upper is None] + 0.5 * dims * math.log2(2.0 * math.pi * math.e * variance)
    said = f"variance {amount:g}" + (" of the largest activity" if estimator == "akde" else "")
    return MIResult(
        chosen.i_tx, chosen.i_ty, h_t, upper, lower, chosen.i_tx >= limit - _CLOSE and limit > 0, limit,
        f"{estimator}, {said}", f"Gaussian noise of variance {variance:.3g} is added; I(T; X) is made by the noise",
    )  # fmt: skip


def _spread(T_ND: Tensor, variance: float) -> tuple[float, float]:
    """Upper and lower bound of the entropy beyond that of the noise, in bits."""
    upper, lower = (float(-(sums / len(T_ND)).log2().mean()) for sums in similarity_sums(T_ND.contiguous(), variance))
    return max(upper, 0.0), max(lower, 0.0)


def _within(T_ND: Tensor, groups: Symbols, variance: float) -> tuple[float, float]:
    """The mean of :func:`_spread` over groups, by their share; a group of one has only the noise."""
    upper = lower = 0.0
    counts = torch.bincount(groups.codes, minlength=groups.size)
    parts = groups.codes.argsort(stable=True).split(counts.tolist())
    for rows in parts:
        if len(rows) > 1:
            found = _spread(T_ND[rows], variance)
            share = len(rows) / len(T_ND)
            upper, lower = upper + share * found[0], lower + share * found[1]
    return upper, lower


def _matrix(T: Tensor, name: str) -> Tensor:
    """Activity as a matrix of finite floating-point numbers."""
    if not isinstance(T, Tensor):
        bad_type(name, T, "a torch.Tensor")
    if T.is_complex() or T.layout is not torch.strided or (T.is_floating_point() and T.dtype.itemsize == 1):
        raise ArgumentTypeError(f"{name} must be a dense tensor of real numbers, got {T.dtype}, {T.layout}")
    if T.ndim < 1 or len(T) < 2 or not T.numel():
        raise ArgumentValueError(f"{name} must have shape (N, ...) with N at least 2, got {tuple(T.shape)}")
    T_ND = T.detach().reshape(len(T), -1)
    T_ND = T_ND.to(compute_dtype(T.dtype)) if T.is_floating_point() else T_ND.double()
    if not bool(T_ND.isfinite().all()):
        raise ArgumentValueError(f"{name} must be finite, got NaN or infinity")
    return T_ND


def _range(T_ND: Tensor, given: tuple[float, float] | None) -> tuple[float, float]:
    if given is not None:
        if not isinstance(given, tuple | list) or len(given) != 2:
            bad_type("range", given, "two numbers")
        low, high = (check_number("range", end, low_open=True, high_open=True) for end in given)
        if low >= high:
            raise ArgumentValueError(f"range must be ascending, got {given!r}")
        return low, high
    low, high = float(T_ND.min()), float(T_ND.max())
    if low < 0 and max(-low, high) <= 1.0:
        return -1.0, 1.0
    low = min(low, 0.0)
    return low, max(high, low + 1e-30)


def _rows(T: Tensor, name: str, given: Tensor) -> None:
    if not isinstance(given, Tensor):
        bad_type(name, given, "a torch.Tensor or None")
    if isinstance(T, Tensor) and T.ndim and (given.ndim < 1 or len(given) != len(T)):
        raise ArgumentValueError(f"{name} must have as many rows as T, {len(T)}, got shape {tuple(given.shape)}")


def input_symbols(X: Tensor | None, T: Tensor) -> Symbols | None:
    """Inputs as symbols, None if all differ."""
    if X is None:
        return None
    _rows(T, "X", X)
    symbols = _row_symbols.of_values(X.detach().reshape(len(X), -1))
    return None if symbols.size == len(X) else symbols


def label_symbols(y: Tensor | None, T: Tensor) -> Symbols | None:
    """Labels as symbols."""
    if y is None:
        return None
    _rows(T, "y", y)
    if y.ndim == 2 and y.shape[1] > 1:
        if not bool(((y == 0) | (y == 1)).all()) or not bool((y.sum(1) == 1).all()):
            raise ArgumentValueError("y of two dimensions must hold one-hot rows; labels are a vector")
        return _row_symbols.ranked(y.to(torch.uint8).argmax(1))
    if y.ndim != 1:
        raise ArgumentValueError(f"y must have shape (N,) or, one-hot, (N, C), got {tuple(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise ArgumentTypeError(f"y must hold integer or boolean labels, got {y.dtype}")
    if bool((y < 0).any()):
        raise ArgumentValueError("y must not be negative")
    return _row_symbols.ranked(y.to(torch.int64))
