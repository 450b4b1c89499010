"""Checks of the options that the softplus functions and their module share."""

from __future__ import annotations

from typing import Any

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice


def check_options(
    features: int,
    scale: float | None,
    reweight_power: Any,
    offset: Any,
    offset_min_keys: Any,
    length_scale: Any,
    normalize_qk: Any,
    phi: Any,
) -> None:
    """Raise unless the options are valid and define something for ``features`` per head."""
    if reweight_power is not None:
        check_number("reweight_power", reweight_power, low=1.0, high_open=True)
    check_number("offset", offset, low=0.0, high_open=True)
    if isinstance(offset_min_keys, bool) or not isinstance(offset_min_keys, int):
        bad_type("offset_min_keys", offset_min_keys, "a non-negative int")
    if offset_min_keys < 0:
        bad_value("offset_min_keys", offset_min_keys, "a non-negative int")
    check_choice("length_scale", length_scale, ("log", "none"))
    check_choice("phi", phi, ("softplus", "sigmoid", "relu", "exp"))
    if not isinstance(normalize_qk, bool):
        bad_type("normalize_qk", normalize_qk, "a bool")
    if features == 1 and scale is None and normalize_qk:
        raise ArgumentValueError(
            "query must have at least 2 features per head, or scale be given: the default scale ln D is 0 for D = 1, "
            "which makes every row uniform"
        )
