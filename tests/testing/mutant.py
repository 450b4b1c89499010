"""Seeded faults: for each, a function that has it and the check that must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """A faulty function in place of ``base``'s, and the check that catches it.

    ``alone=True`` makes the faulty function its own reference, so that nothing but the law (or the policy) can object.
    """

    fault: str
    base: Any
    function: Callable[..., Any]
    caught_by: str
    alone: bool = False


MUTANTS: list[Mutant] = []


def mutant(base: Any, fault: str, caught_by: str, *, alone: bool = False) -> Callable[[Any], Any]:
    """Collect the decorated function as a faulty form of ``base``."""

    def collect(function: Any) -> Any:
        MUTANTS.append(Mutant(fault, base, function, caught_by, alone))
        return function

    return collect
