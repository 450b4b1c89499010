"""Stretch and clip, the step that clipped softmax adds to softmax, and its three parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, bad_type, bad_value


def stretch_and_clip(weights: Tensor, gamma: float, zeta: float) -> Tensor:
    """``clip((zeta - gamma) · weights + gamma, 0, 1)``; where it clips, no gradient passes."""
    return (weights * (zeta - gamma) + gamma).clamp(0.0, 1.0)


def check_stretch(gamma: Any, zeta: Any, upper: str = "zeta") -> tuple[float, float]:
    """Return gamma and zeta as floats, after checking that they are finite, ``gamma <= 0`` and ``zeta >= 1``."""
    return (
        check_number("gamma", gamma, high=0.0, low_open=True),
        check_number(upper, zeta, low=1.0, high_open=True),
    )


def resolve_gamma(gamma: Any, alpha: Any, max_seq_len: Any) -> float:
    """The lower end of the stretch: ``gamma`` itself, or ``-alpha / max_seq_len``; exactly one way must be given."""
    if (gamma is None) == (alpha is None):
        found = "neither" if gamma is None else f"gamma={gamma!r} and alpha={alpha!r}"
        raise ArgumentValueError(
            f"gamma or alpha must be given, exactly one of them (alpha with max_seq_len), got {found}"
        )
    if gamma is not None:
        if max_seq_len is not None:
            raise ArgumentValueError(f"max_seq_len must be None with gamma: it scales alpha, got {max_seq_len!r}")
        return check_stretch(gamma, 1.0)[0]
    check_number("alpha", alpha, low=0.0, high_open=True)
    if max_seq_len is None:
        raise ArgumentValueError("max_seq_len must be given with alpha: the length that the model is trained at")
    if isinstance(max_seq_len, bool) or not isinstance(max_seq_len, int):
        bad_type("max_seq_len", max_seq_len, "a positive int")
    if max_seq_len < 1:
        bad_value("max_seq_len", max_seq_len, "a positive int")
    return -float(alpha) / max_seq_len
