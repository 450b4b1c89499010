"""Which filters of a convolution fired: their scores for a sample, and the masks that keep the strongest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.registry import method

__all__ = ["filter_scores", "topk_mass_mask", "uniform_mask"]

# B samples, C filters.
_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

#: A filter that fires less than this, as a share of all firing, is dead; also the tolerance of sums of shares.
TOLERANCE = 1e-5


def _check_score(score: Any) -> Tensor:
    check_float_tensor("score", score)
    if score.ndim == 0 or score.shape[-1] == 0:
        bad_value("score", tuple(score.shape), "of shape (..., C) with at least one filter")
    wide: Tensor = score.detach().to(compute_dtype(score.dtype))
    return wide


def _descending(score: Tensor) -> Tensor:
    """Places from the highest score to the lowest; of equal ones the first comes first."""
    return torch.sort(score, dim=-1, descending=True, stable=True).indices


def _at(order: Tensor, kept: Tensor) -> Tensor:
    """Mask of filters, for ``kept`` in their ``order``."""
    return torch.zeros_like(kept).scatter(-1, order, kept)


def filter_scores(x: Tensor) -> Tensor:
    """How strongly each filter fired: the largest magnitude over all places.

    Args:
        x: (B, C, H, W), outputs of a layer.

    Returns:
        (B, C), float32 for 16-bit inputs, without gradient; NaN where a place is NaN.

    Raises:
        ArgumentTypeError: not a real floating-point tensor.
        ArgumentValueError: not of four dimensions, or no places.

    Example:
        >>> filter_scores(torch.tensor([[[[0.5, -2.0]], [[0.0, 1.0]]]]))
        tensor([[2., 1.]])

    Paper: Fire Together Wire Together, arXiv 2110.08232, criterion of the ground-truth mask.
    """
    check_float_tensor("x", x)
    if x.ndim != 4 or 0 in x.shape[2:]:
        bad_value("x", tuple(x.shape), "of shape (B, C, H, W) with at least one place")
    return x.detach().to(compute_dtype(x.dtype)).abs().amax((-2, -1))


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for shape in ((4, 12), (2, 3, 5), (7,), (3, 1), (0, 4)):
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield (draw.relu().to(dtype),), {}


def _mass_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    # masses that no sum of a few draws meets by accident
    for place, (args, _) in enumerate(_samples(dtype, generator)):
        yield args, {"r": (0.837, 0.9131, 1.0, 0.5117, 0.7)[place]}


def _uniform_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for place, (args, _) in enumerate(_samples(dtype, generator)):
        yield args, {"prune": (0.5, 0.25, 0.0, 0.99, 0.3)[place]}


def _common_bad(name: str) -> Iterator[_Bad]:
    kept: dict[str, Any] = {name: 0.5}
    yield (torch.zeros(3, 0),), kept, ArgumentValueError, "score"
    yield (torch.zeros(()),), kept, ArgumentValueError, "score"
    yield (torch.zeros(2, 3, dtype=torch.int64),), kept, ArgumentTypeError, "score"
    yield ([0.0, 1.0],), kept, ArgumentTypeError, "score"
    yield (torch.zeros(2, 3),), {name: "half"}, ArgumentTypeError, name
    yield (torch.zeros(2, 3),), {name: -0.1}, ArgumentValueError, name
    yield (torch.zeros(2, 3),), {name: float("nan")}, ArgumentValueError, name
    yield (torch.zeros(2, 3),), {name: 1.5}, ArgumentValueError, name


def _mass_bad() -> Iterator[_Bad]:
    yield from _common_bad("r")
    yield (torch.zeros(2, 3),), {"r": 0.0}, ArgumentValueError, "r must"
    yield (torch.zeros(2, 3),), {"r": 0.5, "min_keep": -1}, ArgumentValueError, "min_keep"
    yield (torch.zeros(2, 3),), {"r": 0.5, "min_keep": 1.5}, ArgumentTypeError, "min_keep"


def _uniform_bad() -> Iterator[_Bad]:
    yield from _common_bad("prune")
    yield (torch.zeros(2, 3),), {"prune": 1.0}, ArgumentValueError, "prune"


def check_mass(r: Any) -> float:
    """Return ``r`` if it is a share of mass, in (0, 1]."""
    return check_number("r", r, low=0.0, low_open=True, high=1.0)


def check_min_keep(min_keep: Any) -> int:
    """Return ``min_keep`` if it is a count."""
    if isinstance(min_keep, bool) or not isinstance(min_keep, int):
        bad_type("min_keep", min_keep, "an int")
    if min_keep < 0:
        bad_value("min_keep", min_keep, "an int of at least 0")
    return min_keep


@method(
    site="dynamic",
    family="custom",
    paper="fire-together-wire-together",
    source="ground-truth mask: filters in order of firing, as long as their shares sum to at most r",
    samples=_mass_samples,
    bad_inputs=_mass_bad,
    deviations=(
        "Keeps at least min_keep filters, where the authors' code may keep none (min_keep=0 allows that).",
        "A dead filter is dropped at every r; in the authors' code one can slip in within the tolerance of the sum.",
        "A negative r, with which the authors' code keeps all, is refused.",
        "A sample in which no filter fired has shares of 0, not 0/0; a score that is not finite keeps its filter.",
    ),
)
def topk_mass_mask(score: Tensor, r: float, min_keep: int = 1) -> Tensor:
    r"""The filters that fire most and together make up at most the share ``r`` of all firing.

    With shares :math:`q = s / \sum_c s` in descending order and their running sums :math:`S_j`, those with
    :math:`S_j \le r` (within 1e-5) and :math:`q_j > 10^{-5}` are kept: the filter at which the sum crosses ``r`` goes.
    At ``r = 1`` only dead filters go. A larger ``r`` keeps all that a smaller one keeps.

    Args:
        score: (..., C), how strongly each filter fired, as of :func:`softgate.dynamic.filter_scores`; not negative
            (what is counts as 0).
        r: share of the firing to keep, in (0, 1].
        min_keep: so many of the strongest stay in any case.

    Returns:
        (..., C) bool, True for filters to keep, without gradient. Of equal scores the first ranks highest. Where a
        score is not finite the filter is kept and does not count for the others.

    Raises:
        ArgumentTypeError: not a real floating-point tensor, or an option of the wrong type.
        ArgumentValueError: no filter, ``r`` outside (0, 1], ``min_keep`` negative.

    Example:
        >>> topk_mass_mask(torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1, 0.03, 0.01]), r=0.95).int()
        tensor([1, 1, 1, 1, 0, 0, 0], dtype=torch.int32)

    Paper: Fire Together Wire Together, arXiv 2110.08232, self-supervised ground-truth mask.
    """
    s = _check_score(score)
    check_mass(r)
    check_min_keep(min_keep)
    order, mass = mass_order(s)
    return mass_mask(order, mass, r, min_keep) | ~s.isfinite()


def mass_order(s: Tensor) -> tuple[Tensor, Tensor]:
    """Filters from the strongest to the weakest, and their shares of the firing in this order, both (..., C)."""
    s = torch.where(s.isfinite(), s, 0.0).clamp_min(0.0)
    top = s.amax(-1, keepdim=True)
    q = s / torch.where(top > 0.0, top, 1.0)  # the sum of huge scores would overflow
    total = q.sum(-1, keepdim=True)
    q = q / torch.where(total > 0.0, total, 1.0)
    order = _descending(s)
    return order, q.gather(-1, order)


def mass_mask(order: Tensor, mass: Tensor, r: float, min_keep: int) -> Tensor:
    """Mask for what :func:`mass_order` gave."""
    alive = mass > TOLERANCE
    kept = alive if r == 1.0 else alive & (mass.cumsum(-1) - r <= TOLERANCE)
    first = torch.arange(mass.shape[-1], device=mass.device) < min_keep
    return _at(order, kept | first)


@method(
    site="dynamic",
    family="custom",
    paper="fire-together-wire-together",
    source="uniform mode: the same share of filters is dropped for every sample, those that fire least, and dead ones",
    samples=_uniform_samples,
    bad_inputs=_uniform_bad,
    deviations=("A negative share, with which the authors' code keeps all, is refused; 0 drops dead filters only.",),
)
def uniform_mask(score: Tensor, prune: float) -> Tensor:
    r"""All filters but the ``floor(prune * C)`` that fire least and those that do not fire at all.

    Args:
        score: (..., C), how strongly each filter fired; at most 1e-5 is dead.
        prune: share of the filters to drop, in [0, 1).

    Returns:
        (..., C) bool, True for filters to keep, without gradient. Of equal scores the first ranks highest. Where a
        score is not finite the filter is kept.

    Raises:
        ArgumentTypeError: not a real floating-point tensor, or ``prune`` no number.
        ArgumentValueError: no filter, or ``prune`` outside [0, 1).

    Example:
        >>> uniform_mask(torch.tensor([3.0, 0.0, 1.0, 2.0]), prune=0.25).int()
        tensor([1, 0, 1, 1], dtype=torch.int32)
        >>> uniform_mask(torch.tensor([3.0, 0.0, 1.0, 2.0]), prune=0.5).int()
        tensor([1, 0, 0, 1], dtype=torch.int32)

    Paper: Fire Together Wire Together, arXiv 2110.08232, uniform pruning.
    """
    s = _check_score(score)
    check_number("prune", prune, low=0.0, high=1.0, high_open=True)
    firm = s.isfinite()
    s = torch.where(firm, s, float("inf"))
    filters = s.shape[-1]
    kept = filters - math.floor(prune * filters + 1e-9)
    first = torch.arange(filters, device=s.device) < kept
    return (_at(_descending(s), first.expand(s.shape)) & (s > TOLERANCE)) | ~firm
