"""What a law is, the decorator that collects them, and the checks made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from softgate.errors import ArgumentValueError
from softgate.testing.report import Check, ConformanceError
from softgate.testing.strategies import DRAWS, try_on_examples
from softgate.testing.subject import Subject

__all__ = ["LAWS", "Law", "law", "law_checks"]

LawFunction = Callable[[Subject, Any], None]


@dataclass(frozen=True)
class Law:
    """A statement about ops of some families.

    Attributes:
        name: what a record lists in ``laws``.
        statement: the law in one sentence.
        families: signature families it is about.
        draws: name of the inputs it is tried on, a key of ``softgate.testing.strategies.DRAWS``.
        always: whether it holds for every op of its families, claimed or not.
        applies: whether it says anything about this variant.
        holds: raises if it does not hold for a draw.
    """

    name: str
    statement: str
    families: tuple[str, ...]
    draws: str
    always: bool
    applies: Callable[[Subject], bool]
    holds: LawFunction


#: Every law, by its name and a signature family it is about.
LAWS: dict[tuple[str, str], Law] = {}


def law(
    *families: str,
    draws: str,
    always: bool = False,
    applies: Callable[[Subject], bool] = lambda op: True,
    name: str | None = None,
) -> Callable[[LawFunction], LawFunction]:
    """Collect the decorated function as a law.

    Args:
        *families: signature families it is about.
        draws: name of the inputs it is tried on.
        always: whether it is a policy, run for every op of its families.
        applies: whether it says anything about a variant (``mean`` reduction needs a ``reduction`` argument).
        name: what records call it, where several families share a name; the function's name if None.
    """

    def decorate(function: LawFunction) -> LawFunction:
        statement = (function.__doc__ or "").strip().splitlines()[0]
        found = Law(name or function.__name__, statement, families, draws, always, applies, function)
        for family in families:
            if (found.name, family) in LAWS:
                raise ArgumentValueError(f"two laws about {family} are called {found.name}")
            LAWS[found.name, family] = found
        return function

    return decorate


def law_checks(subject: Subject, examples: int) -> Iterator[Check]:
    """``law[name]`` for the policies of the family and for every law that the record claims.

    A policy that the record is exempt from becomes ``exempt[name]``, which fails if the policy holds after all.
    """
    record = subject.record
    for name in (*record.laws, *record.exempt):
        if (name, record.family) not in LAWS:
            yield Check(f"law[{name}]", subject.variant, partial(_unknown, name, record.family))
    for (name, family), known in LAWS.items():
        wanted = known.always or name in record.laws
        if wanted and family == record.family and known.applies(subject):
            if name in record.exempt:
                yield Check(f"exempt[{name}]", subject.variant, partial(_must_not_hold, subject, known, examples))
            else:
                yield Check(f"law[{name}]", subject.variant, partial(_try, subject, known, examples))


def _try(subject: Subject, known: Law, examples: int) -> None:
    try_on_examples(DRAWS[known.draws](subject), partial(known.holds, subject), examples)


def _must_not_hold(subject: Subject, known: Law, examples: int) -> None:
    """An exemption is for what an op cannot keep; one that is not needed would hide a later fault."""
    broken = False

    def try_one(draw: Any) -> None:
        nonlocal broken
        try:
            known.holds(subject, draw)
        except ConformanceError:
            broken = True

    try_on_examples(DRAWS[known.draws](subject), try_one, examples)
    if not broken:
        raise ConformanceError(f"the record is exempt from law {known.name}, which holds: {known.statement}")


def _unknown(name: str, family: str) -> None:
    known = ", ".join(sorted(law_name for law_name, about in LAWS if about == family)) or "none"
    raise ArgumentValueError(f"laws must be known laws about family {family!r} ({known}), got {name!r}")
