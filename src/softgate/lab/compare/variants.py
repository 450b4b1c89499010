"""What stands between the commas of ``--variants``: a method's name and its options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from softgate.errors import ArgumentValueError

__all__ = ["Variant", "parse_variants"]

_LABEL = re.compile(r"[a-z][a-z0-9_]*(:[a-z_][a-z0-9_]*=[A-Za-z0-9_.+-]+)*", re.IGNORECASE)
_WORDS: dict[str, Any] = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Variant:
    """One method with its options.

    Attributes:
        label: as the user typed it, e.g. ``"comp_sum:tau=1.5"``; names rows, curves and folders.
        name: the method.
        options: its keyword arguments.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Read ``"softmax,gated:granularity=headwise"``: at least two different variants, the first is the baseline.

    Raises:
        ArgumentValueError: fewer than two, one of them twice, or something that is not ``name:option=value``.
    """
    labels = [label.strip() for label in text.split(",") if label.strip()]
    if len(labels) < 2:
        raise ArgumentValueError(
            f"--variants needs at least two names between commas, the first is the baseline, got {text!r}"
        )
    variants = [_parse(label) for label in labels]
    _refuse_twins(variants)
    return tuple(variants)


def _parse(label: str) -> Variant:
    if not _LABEL.fullmatch(label):
        raise ArgumentValueError(
            f"--variants: {label!r} is not a name or name:option=value, such as gated:granularity=headwise"
        )
    name, *pairs = label.split(":")
    options = dict(pair.split("=", 1) for pair in pairs)
    return Variant(label, name, {key: _value(text) for key, text in options.items()})


def _refuse_twins(variants: Sequence[Variant]) -> None:
    for index, variant in enumerate(variants):
        if any((v.name, v.options) == (variant.name, variant.options) for v in variants[:index]):
            raise ArgumentValueError(f"--variants names {variant.label!r} twice")


def _value(text: str) -> Any:
    """An int, a float, None, a bool or the word itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
