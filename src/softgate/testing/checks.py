"""All generated checks of an op, and the function that runs them."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from softgate.registry import Method, record_of
from softgate.testing.agreement import agreement_checks
from softgate.testing.bad_calls import bad_call_checks
from softgate.testing.devices import device_checks
from softgate.testing.hygiene import hygiene_checks
from softgate.testing.laws import law_checks
from softgate.testing.report import Check, Report, fail
from softgate.testing.strategies import default_examples
from softgate.testing.subject import Subject
from softgate.testing.transforms import transform_checks

__all__ = ["check_op", "generate_checks"]


def generate_checks(
    op: Any, *, quick: bool = False, only: str | Sequence[str] | None = None, examples: int | None = None
) -> list[Check]:
    """All checks of all variants of ``op``; nothing is computed yet.

    Args:
        op: a recorded function, its record or its name.
        quick: leave out the slow checks and try 25 examples per law.
        only: names of checks or groups to keep; ``*`` stands for anything (``"reference"``, ``"law[*"``, ``"*gqa*"``).
        examples: examples per law; if None ``SOFTGATE_TEST_EXAMPLES``, or 100 for the first variant and 25 for others.

    Returns:
        The checks. ``check.run()`` raises if the op fails it.
    """
    record = record_of(op)
    first, further = (examples, examples) if examples is not None else default_examples(quick=quick)
    wanted = (only,) if isinstance(only, str) else only
    checks = [
        check
        for position, variant in enumerate(record.variants)
        for check in _checks_of(record, variant, further if position else first)
    ]
    return [c for c in checks if (c.quick or not quick) and (wanted is None or _is_wanted(c, wanted))]


def _checks_of(record: Method, variant: str, examples: int) -> Iterator[Check]:
    subject = Subject(record, variant)
    yield Check("record", variant, partial(_check_record, subject))
    if record.family == "custom" and record.samples is None:  # nothing to call it with
        return
    yield from agreement_checks(subject)
    yield from device_checks(subject)
    yield from transform_checks(subject)
    yield from hygiene_checks(subject)
    yield from law_checks(subject, examples)
    yield from bad_call_checks(subject)


def _is_wanted(check: Check, wanted: Sequence[str]) -> bool:
    names = (check.name, check.group, check.title)
    # brackets are part of names, not character classes
    patterns = [pattern.replace("[", "[[]") for pattern in wanted]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_record(subject: Subject) -> None:
    """The record is complete: a documented function, a source, samples where the family does not make inputs."""
    record = subject.record
    if not record.summary.endswith("."):
        fail("the docstring's first line must be a sentence", summary=record.summary)
    if not record.source.strip():
        fail("source must say which equations or sections are implemented")
    if record.family == "custom" and record.samples is None:
        fail("family 'custom' needs samples: nothing else knows how to call the op")
    unknown = [name for name in subject.fixed if not subject.accepts(name) and not _takes_any(subject)]
    if unknown:
        fail(f"variant {subject.variant!r} passes unknown arguments", arguments=unknown)
    low, high = record.output_range
    if not low <= high:
        fail("output_range is empty", output_range=record.output_range)


def _takes_any(subject: Subject) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in subject.parameters.parameters.values())


def check_op(
    op: Any, *, quick: bool = False, only: str | Sequence[str] | None = None, examples: int | None = None
) -> Report:
    """Run the generated checks on ``op``.

    Args:
        op: a recorded function (``@softgate.registry.method``), its record, or a name such as ``"losses.z_loss"``.
        quick: leave out the slow checks and try 25 examples per law.
        only: names of checks or groups to run, with ``*`` as a wildcard.
        examples: examples per law; if None ``SOFTGATE_TEST_EXAMPLES``, or 100 for the first variant and 25 for others.

    Returns:
        The report, if every check passed.

    Raises:
        ConformanceError: lists every check that failed, with inputs that reproduce it.
    """
    record = record_of(op)
    report = Report(record.qualified_name).run(generate_checks(record, quick=quick, only=only, examples=examples))
    report.raise_failures()
    return report
