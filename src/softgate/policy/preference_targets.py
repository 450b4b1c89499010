"""From scores of candidates to the distribution that a listwise loss aims at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate._math.masks import masked_softmax
from softgate.dispatch import call
from softgate.errors import ArgumentValueError, check_choice
from softgate.policy._candidates import as_mask, can_read, check_lists
from softgate.registry import method, record_of

__all__ = ["group_z_scores", "preference_target", "smoothed_cdf"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

KINDS = ("raw", "zscore", "kde", "top1")
NAN = ("raise", "drop")
#: The smoothed CDF stays this far from 0 and 1, so that its log-odds stay within ±6.9.
CLIP = 1e-3
#: Entries of one block of the (scores × scores) table behind the smoothed CDF.
_BLOCK = 1 << 22


def kept_scores(scores: Tensor, mask: Tensor | None, nan: str) -> Tensor | None:
    """Which candidates have a score: those of the mask and, with ``nan="drop"``, not those at NaN."""
    allowed = as_mask("mask", mask, scores)
    if nan != "drop":
        return allowed
    present = ~scores.isnan()
    return present if allowed is None else allowed & present


def check_scores(scores: Tensor, kept: Tensor | None) -> None:
    """Raise unless every kept score is finite, where values can be looked at."""
    if can_read(scores, kept):
        wrong = ~scores.isfinite() if kept is None else kept & ~scores.isfinite()
        if bool(wrong.any()):
            hint = "; nan='drop' leaves candidates without a score out" if bool(scores[wrong].isnan().any()) else ""
            raise ArgumentValueError(f"scores must be finite, got {float(scores[wrong][0])}{hint}")


def group_z_scores(scores: Tensor, kept: Tensor | None = None) -> Tensor:
    """Scores minus their mean, over their standard deviation (n - 1), along the last dimension.

    Args:
        scores: (…, n), floating point.
        kept: (…, n) bool, which entries count; the others come out as 0. None for all.

    Returns:
        (…, n) in float32 or wider. Rows with a deviation below 1e-8 are 0 throughout, single candidates too.

    Raises:
        ArgumentTypeError: ``scores`` is no floating-point tensor, or ``kept`` no tensor.
        ArgumentValueError: the shapes differ.

    Example:
        >>> import torch
        >>> group_z_scores(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
        tensor([[-1.,  0.,  1.],
                [ 0.,  0.,  0.]])

    Paper: ADPO, arXiv 2510.18913 (rewards of the online recipe).
    """
    check_lists("scores", scores=scores)
    allowed = as_mask("kept", kept, scores)
    wide = scores.to(compute_dtype(scores.dtype))
    count: Any = wide.shape[-1]
    if allowed is not None:
        wide, count = torch.where(allowed, wide, 0.0), allowed.sum(-1, keepdim=True).clamp_min(1)
    centred = wide - wide.sum(-1, keepdim=True) / count
    if allowed is not None:
        centred = torch.where(allowed, centred, 0.0)
    freedom = count.sub(1).clamp_min(1) if isinstance(count, Tensor) else max(count - 1, 1)
    deviation = (centred.square().sum(-1, keepdim=True) / freedom).sqrt()
    spread = deviation >= 1e-8
    return torch.where(spread, centred / torch.where(spread, deviation, 1.0), 0.0)


def smoothed_cdf(scores: Tensor, kept: Tensor | None = None) -> Tensor:
    """Share of all scores below each score, smoothed by a Gaussian kernel: ``mean_k Phi((r - R_k) / h)``.

    The bandwidth is Silverman's, ``h = 0.9 min(std, IQR / 1.349) n^(-1/5)``, over all kept scores, not over one list.
    With h = 0 (most scores equal) it is the share below plus half the share of equals.

    Args:
        scores: (…, n), floating point.
        kept: (…, n) bool, which entries count; the others come out as ½. None for all.

    Returns:
        (…, n) in [0, 1], in float32 or wider, monotone in the score. The time grows with the square of the number of
        scores; the memory does not.

    Raises:
        ArgumentTypeError: ``scores`` is no floating-point tensor, or ``kept`` no tensor.
        ArgumentValueError: the shapes differ.

    Example:
        >>> import torch
        >>> smoothed_cdf(torch.tensor([[-1.0, 0.0, 1.0]]))
        tensor([[0.1770, 0.5000, 0.8230]])

    Paper: ADPO, arXiv 2510.18913, targets for heavy-tailed rewards; the bandwidth is this project's choice.
    """
    check_lists("scores", scores=scores)
    allowed = as_mask("kept", kept, scores)
    flat = scores.to(compute_dtype(scores.dtype)).flatten()
    weight = torch.ones_like(flat) if allowed is None else allowed.flatten().to(flat.dtype)
    if allowed is not None:
        flat = torch.where(allowed.flatten(), flat, 0.0)
    bandwidth = _bandwidth(flat, weight).clamp_min(torch.finfo(flat.dtype).tiny)
    total = torch.zeros_like(flat)
    step = max(1, _BLOCK // max(flat.numel(), 1))
    for rows, weights in zip(flat.split(step), weight.split(step), strict=True):
        total = total + (torch.special.ndtr((flat[:, None] - rows) / bandwidth) * weights).sum(1)
    share = total / weight.sum().clamp_min(1)
    return torch.where(weight > 0, share, 0.5).reshape(scores.shape)


def _bandwidth(flat: Tensor, weight: Tensor) -> Tensor:
    """Silverman's rule over the scores of weight 1; 0-d."""
    count = weight.sum().clamp_min(1)
    mean = flat.sum() / count
    deviation = ((flat - mean).square() * weight).sum().div((count - 1).clamp_min(1)).sqrt()
    if flat.numel() == 0:
        return deviation
    quarter, three_quarters = _quantile(flat, weight, 0.25), _quantile(flat, weight, 0.75)
    return 0.9 * torch.minimum(deviation, (three_quarters - quarter) / 1.349) * count ** (-0.2)


def _quantile(flat: Tensor, weight: Tensor, share: float) -> Tensor:
    """Linear interpolation between the order statistics of the scores of weight 1 (any number of them)."""
    ordered = flat.masked_fill(weight == 0, float("inf")).sort().values
    place = share * (weight.sum() - 1).clamp_min(0)
    low = place.floor()
    below, above = ordered.gather(0, torch.stack((low, place.ceil())).long()).unbind()
    return below + torch.where(above == below, 0.0, (above - below) * (place - low))


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(3, 4),), {}
    keep = torch.rand(2, 3, 5, generator=generator) > 0.4
    keep[1, 1] = False
    yield (draw(2, 3, 5).masked_fill(~keep, float("nan")),), {"mask": keep}
    yield (draw(4, 3).masked_fill(torch.eye(4, 3) > 0, float("nan")),), {"nan": "drop"}
    yield (torch.ones(4, 3, dtype=dtype),), {}
    yield (draw(5, 1),), {}
    yield (draw(0, 4),), {}


def _bad() -> Iterator[_Bad]:
    good = torch.zeros(2, 3)
    yield (torch.tensor(1.0),), {}, ArgumentValueError, "scores"
    yield (torch.zeros(2, 0),), {}, ArgumentValueError, "scores"
    yield (good * float("nan"),), {}, ArgumentValueError, "scores"
    yield (good + float("inf"),), {}, ArgumentValueError, "scores"
    yield (good + float("inf"),), {"nan": "drop"}, ArgumentValueError, "scores"
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        yield (good,), {"beta": beta}, ArgumentValueError, "beta"
    yield (good,), {"mask": torch.ones(3, 3, dtype=torch.bool)}, ArgumentValueError, "mask"
    yield (good,), {"nan": "ignore"}, ArgumentValueError, "nan"


def reference(
    scores: Tensor, kind: str = "raw", beta: float = 1.0, mask: Tensor | None = None, *, nan: str = "raise"
) -> Tensor:
    """``softmax(f(R) / beta)`` with f the identity, the z-scores of the list, or the log-odds of the smoothed CDF."""
    kept = kept_scores(scores, mask, nan)
    wide = scores.detach().to(compute_dtype(scores.dtype))
    if kept is not None:
        wide = torch.where(kept, wide, 0.0)
    if kind == "top1":
        largest = (wide if kept is None else wide.masked_fill(~kept, -math.inf)).amax(-1, keepdim=True)
        best = (wide == largest).to(wide.dtype) if kept is None else ((wide == largest) & kept).to(wide.dtype)
        return (best / best.sum(-1, keepdim=True).clamp_min(1)).to(scores.dtype)
    if kind == "zscore":
        wide = group_z_scores(wide, kept)
    elif kind == "kde":
        wide = torch.logit(smoothed_cdf(wide, kept).clamp(CLIP, 1 - CLIP))
    return masked_softmax(wide / beta, kept).to(scores.dtype)


@method(
    site="policy",
    family="custom",
    paper="adpo",
    source="targets q: list_raw, list_top1, list_kde and group z-scores; pair_hard and pair_soft for two candidates",
    reference=reference,
    samples=_samples,
    bad_inputs=_bad,
    variants={
        "default": {},
        "zscore": {"kind": "zscore", "beta": 0.5},
        "kde": {"kind": "kde"},
        "top1": {"kind": "top1"},
    },
    output_range=(0.0, 1.0),
    error_scale="tensor",
    deviations=("the paper's kernel density estimate was not seen: the smoothed CDF is a bounded, monotone stand-in",),
)
def preference_target(
    scores: Tensor, kind: str = "raw", beta: float = 1.0, mask: Tensor | None = None, *, nan: str = "raise"
) -> Tensor:
    """Target distribution over the candidates of every list, from their scores.

    ``"raw"``: softmax(R / beta). ``"zscore"``: the same of :func:`group_z_scores`; a list of equal scores becomes
    uniform, which pulls the policy back to its anchor and is not the same as no gradient. ``"kde"``: softmax of the
    log-odds of :func:`smoothed_cdf` over beta, for heavy-tailed scores: an outlier counts as "the best of the batch",
    however far out it lies. ``"top1"``: all mass on the best candidate, shared evenly by equals. With two candidates
    ``"raw"`` is the soft pair σ((R_1 - R_2) / beta) and ``"top1"`` the hard pair 1[R_1 > R_2].

    Args:
        scores: (…, n), finite; no gradient goes there.
        kind: ``"raw"``, ``"zscore"``, ``"kde"`` or ``"top1"``.
        beta: temperature, positive; smaller is sharper. ``"top1"`` does not look at it.
        mask: (…, n), True (or not 0) where a candidate stands; None for all.
        nan: ``"raise"``, or ``"drop"``: candidates whose score is NaN get q = 0. Leave them out of the loss too, by its
            mask.

    Returns:
        (…, n) in the dtype of ``scores``. Rows sum to 1 (to the rounding of the dtype); one without a candidate is 0.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes do not fit, an option is not allowed, or a score is not finite (CPU only).

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 0.0, -1.0]])
        >>> preference_target(scores, beta=0.5)
        tensor([[0.8668, 0.1173, 0.0159]])
        >>> preference_target(scores, "top1")
        tensor([[1., 0., 0.]])

    Paper: ADPO, arXiv 2510.18913, pairwise and listwise targets.
    """
    check_lists("scores", scores=scores)
    check_choice("kind", kind, KINDS)
    check_choice("nan", nan, NAN)
    number = check_number("beta", beta, low=0.0, low_open=True, high_open=True)
    check_scores(scores, kept_scores(scores, mask, nan))
    return call(record_of(preference_target), scores, kind, number, mask, nan=nan)
