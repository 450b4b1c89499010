"""Minimum Bayes risk decoding: of several candidates the one that agrees best with all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice

__all__ = ["MBRChoice", "mbr_decode"]

Gain = Callable[[Any, Any], float]


class MBRChoice(NamedTuple):
    """What :func:`mbr_decode` chose.

    Attributes:
        candidate: the candidate, as it was given.
        position: its place among the candidates, the first of equals.
        gains: expected gain of every candidate.
    """

    candidate: Any
    position: int
    gains: list[float]


def mbr_decode(
    candidates: Sequence[Any] | Tensor,
    gain: str | Gain = "overlap",
    probs: Sequence[float] | Tensor | None = None,
) -> MBRChoice:
    """Choose ``argmax_c sum_y P(y) gain(c, y)`` over the candidates themselves (minimum Bayes risk).

    Args:
        candidates: samples of a model: sequences of tokens (lists, tuples, strings) or a tensor ``(K, T)``.
        gain: ``"overlap"`` (F1 of the tokens, whatever their order; characters of a string), ``"exact"`` (1 for equal
            sequences: the choice is the mode), or a function ``(candidate, reference) -> number``, such as
            ``lambda c, r: sacrebleu.sentence_chrf(c, [r]).score``.
        probs: weight of every candidate as a reference, not negative; None for samples, which count alike. From
            :func:`softgate.losses.utility_to_probability`, for instance.

    Returns:
        The choice with its position and all expected gains.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: there is no candidate, or ``probs`` do not fit.

    Example:
        >>> mbr_decode(["cat", "cart", "dog"]).candidate
        'cat'

    Paper: the rule that arXiv 2305.14859 calls probability-compatible; the rule itself is standard.
    """
    if not isinstance(candidates, Sequence | Tensor):
        raise ArgumentTypeError(f"candidates must be a sequence or a tensor, got {type(candidates).__name__}")
    if isinstance(candidates, Tensor) and candidates.ndim != 2:
        raise ArgumentValueError(f"candidates must have shape (K, T), got {tuple(candidates.shape)}")
    items = [tuple(row) for row in candidates.tolist()] if isinstance(candidates, Tensor) else list(candidates)
    if not items:
        raise ArgumentValueError("candidates must hold at least one sequence")
    weights = _weights(probs, len(items))
    if isinstance(gain, str):
        check_choice("gain", gain, ("overlap", "exact"))
        keyed, function = _builtin(gain, items)
    elif callable(gain):
        keyed, function = items, gain
    else:
        raise ArgumentTypeError(f"gain must be a name or a function, got {type(gain).__name__}")
    gains = [sum(w * float(function(c, y)) for y, w in zip(keyed, weights, strict=True) if w > 0.0) for c in keyed]
    best = max(range(len(gains)), key=lambda i: gains[i])
    return MBRChoice(candidates[best], best, gains)


def _weights(probs: Any, count: int) -> list[float]:
    if probs is None:
        return [1.0 / count] * count
    values = probs.tolist() if isinstance(probs, Tensor) else probs
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        raise ArgumentValueError(f"probs must hold one weight for each of {count} candidates, got {probs!r:.200}")
    weights = [check_number("probs", value, low=0.0, high_open=True) for value in values]
    total = sum(weights)
    if total <= 0.0:
        raise ArgumentValueError("probs must not all be 0")
    return [weight / total for weight in weights]


def _builtin(gain: str, items: list[Any]) -> tuple[list[Any], Gain]:
    try:
        tokens = [tuple(item) for item in items]
        if gain == "exact":
            return tokens, lambda c, y: float(c == y)
        return [(Counter(t), len(t)) for t in tokens], _overlap
    except TypeError:
        raise ArgumentTypeError(f"candidates must be sequences of hashable tokens for gain={gain!r}") from None


def _overlap(candidate: tuple[Counter[Any], int], reference: tuple[Counter[Any], int]) -> float:
    """F1 of two bags of tokens; two empty ones are equal."""
    (a, n), (b, m) = candidate, reference
    return 2.0 * (a & b).total() / (n + m) if n + m else 1.0
