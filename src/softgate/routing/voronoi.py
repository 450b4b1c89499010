"""Distances between a fitted and a true mixing measure: Voronoi cells and the losses in which the rates are stated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.routing.mixing_measure import MixingMeasure

__all__ = ["pin_like", "voronoi_cells", "voronoi_loss"]

Array = NDArray[np.float64]

KINDS = ("exact", "over", "dense_to_sparse", "activation_exact", "activation_over")
PINS = ("nearest", "as_given")
#: r̄(m): smallest order at which the polynomial system of a cell with m fitted experts has no non-trivial solution.
R_BAR = {1: 1.0, 2: 4.0, 3: 6.0}
_BLOCKS = ("beta1", "a", "b", "var")


def pin_like(fitted: Any, true: Any) -> MixingMeasure:
    """``fitted`` with that expert pinned which is nearest to the true measure's last one.

    A gate determines (β0, β1) up to a common shift only. Before β can be compared, both measures must have β0 = 0 (and
    β1 = 0, for an affine gate) at corresponding experts. The nearest is meant by |Δa| + |Δb| + |Δvar|, which the shift
    does not touch.

    Args:
        fitted: a :class:`MixingMeasure` or a fitted :class:`GaussianMoE`.
        true: the same.

    Returns:
        The fitted measure, shifted so that its reference expert has the gate parameters of the true last expert.

    Example:
        >>> truth = MixingMeasure([0.5, 0], [2, 0], [1, -1], [0, 0], [1, 1])
        >>> pin_like(truth.permute([1, 0]).normalise(), truth).beta1.ravel()
        array([0., 2.])
    """
    fit, truth = _measures(fitted, true)
    truth = truth.normalise()
    distance = _norm(fit.a - truth.a[-1]) + np.abs(fit.b - truth.b[-1]) + np.abs(fit.var - truth.var[-1])
    return fit.normalise(int(distance.argmin()))


def voronoi_cells(fitted: Any, true: Any, *, pin: str = "nearest") -> Tensor:
    """For every fitted expert, the index of the true expert whose cell it is in.

    The nearest is meant by |Δβ1| + |Δa| + |Δb| + |Δvar|, Euclidean norms of the blocks; ties go to the lowest index.

    Args:
        fitted: a :class:`MixingMeasure` or a fitted :class:`GaussianMoE` with k experts.
        true: the same, with k* experts.
        pin: ``"nearest"`` shifts both gates to a common reference expert first (:func:`pin_like`); ``"as_given"``
            compares the parameters as they are.

    Returns:
        int64 (k,) with entries in 0 … k* - 1.

    Raises:
        ArgumentTypeError: not measures.
        ArgumentValueError: measures of different dimension.

    Example:
        >>> truth = MixingMeasure([0.5, 0], [2, 0], [1, -1], [0, 0], [1, 1])
        >>> voronoi_cells(truth.permute([1, 0]), truth)
        tensor([1, 0])

    Paper: Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts, arXiv 2309.13850, section 3.
    """
    fit, truth = _pinned(fitted, true, pin)
    return torch.from_numpy(_cells(fit, truth))


def voronoi_loss(
    fitted: Any,
    true: Any,
    kind: str = "exact",
    *,
    k_selected: int | None = None,
    r_bar: float | Mapping[int, float] | None = None,
    order: float = 1.0,
    pin: str = "nearest",
) -> float:
    """How far ``fitted`` is from ``true``, in the loss in which a theorem states its rate.

    - ``"exact"`` (D1): as many fitted as true experts. Σ_j [Σ_{i in cell j} mass_i (|Δβ1| + |Δa| + |Δb| + |Δvar|)
      + |Σ_{i in cell j} mass_i - mass_j|], the largest such sum over as many cells as the true gate selects.
    - ``"over"`` (D2): more fitted experts. In cells of m > 1 the differences have powers r̄(m) (β1, b) and r̄(m)/2 (a,
      var); the largest sum over selections of cells that hold ``k_selected`` fitted experts together.
    - ``"dense_to_sparse"``: over all cells, every difference and that of the temperature to the power ``order``.
    - ``"activation_exact"``: the same with power 1. ``"activation_over"``: in cells of m > 1 powers 2 (β1, temperature,
      a), r̄(m) (b) and r̄(m)/2 (var).

    Masses are exp(β0 / temperature).

    Args:
        fitted: a :class:`MixingMeasure` or a fitted :class:`GaussianMoE`.
        true: the same.
        kind: see above.
        k_selected: K̄, how many fitted experts the selected cells hold; ``fitted.top_k`` (or all) if None. Only
            ``"over"`` with a sparse true gate looks at it.
        r_bar: r̄ of cells with more than three experts, which is not known: a number for all, or a mapping m -> r̄
            (which may also replace the known ones).
        order: r of ``"dense_to_sparse"``, at least 1.
        pin: as in :func:`voronoi_cells`.

    Returns:
        The loss, non-negative; NaN if no selection of cells holds ``k_selected`` fitted experts.

    Raises:
        ArgumentTypeError: not measures.
        ArgumentValueError: an unknown kind, different dimensions, or ``"exact"`` with different numbers of experts.
        NotImplementedError: a cell holds more than three experts and ``r_bar`` does not say what to do.

    Example:
        >>> truth = MixingMeasure([0.5, 0], [2, 0], [1, -1], [0, 0], [1, 1])
        >>> voronoi_loss(truth.permute([1, 0]).normalise(), truth)
        0.0

    Paper: arXiv 2309.13850, eq. 5 and 9; arXiv 2401.13875, the losses of theorems 1 to 3.
    """
    check_choice("kind", kind, KINDS)
    check_number("order", order, low=1.0, high_open=True)
    fit, truth = _pinned(fitted, true, pin)
    if kind in ("exact", "activation_exact") and fit.n_experts != truth.n_experts:
        raise ArgumentValueError(
            f"kind={kind!r} needs as many fitted as true experts, got {fit.n_experts} and {truth.n_experts}"
        )
    cells = _cells(fit, truth)
    sizes = np.bincount(cells, minlength=truth.n_experts)
    losses = np.zeros(truth.n_experts)
    for j, size in enumerate(sizes):
        members = np.flatnonzero(cells == j)
        powers = _powers(kind, int(size), r_bar, float(order))
        differences = _differences(fit, truth, members, j)
        spread = sum((np.abs(differences[name]) ** power for name, power in powers.items()), np.zeros(len(members)))
        masses = fit.masses[members]
        losses[j] = masses @ spread + abs(masses.sum() - truth.masses[j])
    return _largest_selection(losses, sizes, kind, fit, truth, k_selected)


def _largest_selection(
    losses: Array, sizes: NDArray[np.int64], kind: str, fit: MixingMeasure, truth: MixingMeasure, k_selected: int | None
) -> float:
    count = truth.n_experts if truth.top_k is None else truth.top_k
    if count == truth.n_experts or kind not in ("exact", "over"):
        return float(losses.sum())
    if kind == "exact":
        return float(np.sort(losses)[-count:].sum())
    wanted = k_selected if k_selected is not None else fit.top_k or fit.n_experts
    sums = [losses[list(s)].sum() for s in combinations(range(len(losses)), count) if sizes[list(s)].sum() == wanted]
    return float(max(sums, default=math.nan))


def _powers(kind: str, size: int, r_bar: float | Mapping[int, float] | None, order: float) -> dict[str, float]:
    """Power of each block's difference in a cell of ``size`` fitted experts."""
    names = _BLOCKS if kind in ("exact", "over") else (*_BLOCKS, "temperature")
    if kind == "dense_to_sparse":
        return dict.fromkeys(names, order)
    if size <= 1 or kind in ("exact", "activation_exact"):
        return dict.fromkeys(names, 1.0)
    r = _order_of(size, r_bar)
    if kind == "over":
        return {"beta1": r, "b": r, "a": r / 2, "var": r / 2}
    return {"beta1": 2.0, "temperature": 2.0, "a": 2.0, "b": r, "var": r / 2}


def _order_of(size: int, r_bar: float | Mapping[int, float] | None) -> float:
    if isinstance(r_bar, Mapping):
        if size in r_bar:
            return float(r_bar[size])
    elif r_bar is not None and size not in R_BAR:
        return check_number("r_bar", r_bar, low=0.0, low_open=True)
    if size not in R_BAR:
        raise NotImplementedError(f"r̄({size}) is only known to be at least 7: pass r_bar for cells of {size} experts")
    return R_BAR[size]


def _differences(fit: MixingMeasure, truth: MixingMeasure, members: NDArray[np.intp], j: int) -> dict[str, Array]:
    return {
        "beta1": _norm(fit.beta1[members] - truth.beta1[j]),
        "a": _norm(fit.a[members] - truth.a[j]),
        "b": fit.b[members] - truth.b[j],
        "var": fit.var[members] - truth.var[j],
        "temperature": np.full(len(members), fit.temperature - truth.temperature),
    }


def _cells(fit: MixingMeasure, truth: MixingMeasure) -> NDArray[np.int64]:
    distance = (
        _norm(fit.beta1[:, None] - truth.beta1)
        + _norm(fit.a[:, None] - truth.a)
        + np.abs(fit.b[:, None] - truth.b)
        + np.abs(fit.var[:, None] - truth.var)
    )
    return np.asarray(distance.argmin(1), dtype=np.int64)


def _norm(vectors: Array) -> Array:
    return np.asarray(np.sqrt((vectors * vectors).sum(-1)))


def _pinned(fitted: Any, true: Any, pin: str) -> tuple[MixingMeasure, MixingMeasure]:
    check_choice("pin", pin, PINS)
    fit, truth = _measures(fitted, true)
    return (pin_like(fit, truth), truth.normalise()) if pin == "nearest" else (fit, truth)


def _measures(fitted: Any, true: Any) -> tuple[MixingMeasure, MixingMeasure]:
    found = []
    for name, value in (("fitted", fitted), ("true", true)):
        measure = getattr(value, "measure_", value)
        if not isinstance(measure, MixingMeasure):
            raise ArgumentTypeError(
                f"{name} must be a MixingMeasure or a fitted GaussianMoE, got {type(value).__name__}"
            )
        found.append(measure)
    if found[0].n_features != found[1].n_features:
        raise ArgumentValueError(
            f"fitted must have as many features as true, got {found[0].n_features} and {found[1].n_features}"
        )
    return found[0], found[1]
