"""The Lipschitz constant of a network, from above with a proof and from below by sampling."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from softgate._checks import check_number, check_sizes
from softgate.diagnostics.lipschitz.certificate import LipschitzCertificate
from softgate.diagnostics.lipschitz.networks import Network, product_bound
from softgate.diagnostics.lipschitz.reading import ImplicitModel, checked_options, read
from softgate.diagnostics.lipschitz.sampling import sampled_constant
from softgate.diagnostics.lipschitz.solving import METHODS, chosen_method, contracting, prove, unknowns
from softgate.errors import ArgumentValueError, bad_type, check_choice

__all__ = ["lipschitz_bound"]

#: Unknowns of one matrix inequality from which a network is split.
_LARGEST = 2000


@torch.no_grad()
def lipschitz_bound(
    model: nn.Module | ImplicitModel | Iterable[Any],
    norm: str = "l2",
    activation: str = "maxmin",
    group_size: int = 2,
    v: Any = None,
    multiplier: str = "full",
    method: str = "auto",
    residual: Any = None,
    output_row: int | None = None,
    split: int | None = None,
    tol: float = 1e-4,
    *,
    slope: tuple[float, float] = (0.0, 1.0),
    input_shape: Sequence[int] | None = None,
) -> LipschitzCertificate:
    """Bound how much a network can lengthen a change of its input, with a certificate.

    ``norm="l2"``: |f(x) - f(y)|₂ ≤ value |x - y|₂. ``norm="linf"``: no output changes by more than value times the
    largest change of an input. Biases do not matter. The bound is LipSDP with the constraints of the paper: GroupSort
    and MaxMin keep the sum of every group, Householder activations what is orthogonal to their vector, and neither
    lengthens a group.

    ``multiplier="diagonal"`` sets the paper's S and P to zero, as its experiments do; ``"full"`` also uses what is
    kept, and is tighter. For ReLU and other slopes both are LipSDP with one multiplier per neuron.

    Args:
        model: matrices (out, in) of layers with an activation between each two; an ``nn.Sequential`` of linear layers,
            small convolutions and activations, from which everything else is read; or an :class:`ImplicitModel`.
        norm: ``"l2"`` or ``"linf"``.
        activation: of a list of matrices: ``"maxmin"``, ``"groupsort"``, ``"householder"``, ``"relu"``, ``"slope"``;
            ``"maxmin_rr"`` is MaxMin rewritten with ReLU, the weaker baseline of the paper.
        group_size: of ``"groupsort"``.
        v: of ``"householder"``: (groups, group_size) or (group_size,), for all layers or in a list for each;
            normalised.
        multiplier: ``"full"`` or ``"diagonal"``.
        method: ``"barrier"`` (an interior-point method), ``"scaling"`` (descent on the layers' scaled norms, for
            feed-forward networks and ``"diagonal"``), ``"cvxpy"`` (a solver of yours) or ``"auto"``.
        residual: None for layers in a row. True: every matrix is a block x + φ(W x). A list of matrices G: blocks
            x + G φ(W x). ``"inner"``: the first and the last matrix are linear maps around blocks.
        output_row: only this output; None for all, which with ``"linf"`` takes one problem each.
        split: cut into blocks of so many layers and multiply their bounds, which is looser; None cuts networks with
            more than about 2000 unknowns. For layers in a row and ``"l2"``.
        tol: relative accuracy asked of the solver, in (0, 1).
        slope: least and largest slope of ``"slope"``.
        input_shape: of one input of a module that does not begin with ``nn.Linear``, without the batch.

    Returns:
        A :class:`LipschitzCertificate`. Its ``value`` holds also where the solver did not converge. All computation is
        in float64 on the CPU; time grows with the cube of the number of unknowns.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or a module is not one of the known kinds.
        ArgumentValueError: shapes that do not fit, weights that are not finite, options that are not allowed together.
        StateError: an implicit model for which no proof was found that its equation has one solution.
        MissingExtraError: ``method="cvxpy"`` without cvxpy.

    Example:
        >>> import numpy as np
        >>> eye = np.eye(2)
        >>> found = lipschitz_bound([eye, eye])  # one MaxMin
        >>> round(found.value, 6), found.verify()
        (1.0, True)
        >>> round(lipschitz_bound([eye, eye], activation="maxmin_rr").value, 4)  # as a network of ReLU
        1.4142

    Paper: Novel Quadratic Constraints for Extending LipSDP beyond Slope-Restricted Activations, arXiv 2401.14033,
    Lemmas 1 and 2; that the full multipliers are tighter for feed-forward networks is this library's observation.
    """
    started = time.perf_counter()
    check_choice("norm", norm, ("l2", "linf"))
    check_choice("multiplier", multiplier, ("full", "diagonal"))
    check_choice("method", method, METHODS)
    check_number("tol", tol, low=0.0, high=1.0, low_open=True, high_open=True)
    network = read(model, checked_options(activation, group_size, v, slope), residual, input_shape)
    if network.kind == "implicit":
        contracting(network)
    rows = _rows(network, norm, output_row)
    method = chosen_method(network, multiplier, norm, method)
    blocks, factor = _blocks(network, norm, split, 0 if method == "scaling" else unknowns(network, multiplier))
    found = [
        prove(block, multiplier, norm, row if block is blocks[-1] else None, method, tol)
        for block in blocks
        for row in rows
    ]
    bounds = [proof.bound() for proof, _ in found]
    value = max(bounds) if factor is None else factor * math.prod(bounds)
    assert network.function is not None
    lower = sampled_constant(network.function, _inputs(network), norm, output_row)
    return LipschitzCertificate(
        value=value,
        lower_bound=lower,
        product=product_bound(network, norm, output_row),
        rho=value**2 if norm == "l2" else value,
        gap=value / lower - 1.0 if lower else (math.inf if value else 0.0),
        norm=norm,
        multiplier=multiplier,
        method=method,
        converged=all(converged for _, converged in found),
        seconds=time.perf_counter() - started,
        proofs=tuple(proof for proof, _ in found),
        factor=factor,
    )


def _inputs(network: Network) -> int:
    first = network.first if network.first is not None else network.weights[1 if network.kind == "implicit" else 0]
    return first.shape[1]


def _rows(network: Network, norm: str, output_row: int | None) -> list[int | None]:
    if output_row is None:
        return [None] if norm == "l2" else list(range(network.outputs))
    if isinstance(output_row, bool) or not isinstance(output_row, int):
        bad_type("output_row", output_row, "an int or None")
    if not 0 <= output_row < network.outputs:
        raise ArgumentValueError(f"output_row must be in [0, {network.outputs - 1}], got {output_row}")
    return [output_row]


def _blocks(network: Network, norm: str, split: int | None, size: int) -> tuple[list[Network], float | None]:
    """The networks to bound, with ``size`` unknowns in all, and the factor of their product; None for a single one."""
    can = network.kind == "feedforward" and norm == "l2"
    if split is None:
        if not can or size <= _LARGEST:
            return [network], None
        split = max(1, len(network.weights) * _LARGEST // size)
    check_sizes(split=split)
    if not can:
        raise ArgumentValueError("split must be None for norm='linf', residual and implicit models")
    if split >= len(network.weights):
        return [network], None
    starts = range(0, len(network.weights), split)
    blocks = [
        replace(network, weights=network.weights[i : i + split], activations=network.activations[i : i + split - 1])
        for i in starts
    ]
    between = [network.activations[i - 1].stretch for i in starts if i]
    return blocks, math.prod(between)
