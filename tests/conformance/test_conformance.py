"""Every recorded method, every variant, every generated check: one test each.

A new method is covered as soon as it is recorded; nothing here is edited for it. ``SOFTGATE_TEST_EXAMPLES`` sets the
examples per law.
"""

from __future__ import annotations

import pytest

import softgate
from softgate.testing import Check, generate_checks

#: Made once: finding out which checks an op gets runs its samples.
CHECKS = {record.qualified_name: generate_checks(record) for record in softgate.methods()}


def _items() -> list[object]:
    return [pytest.param(check, id=f"{name}-{check.title}") for name, checks in CHECKS.items() for check in checks]


@pytest.mark.parametrize("check", _items())
def test_conformance(check: Check) -> None:
    check.run()


@pytest.mark.parametrize("record", softgate.methods(), ids=lambda record: record.qualified_name)
def test_every_method_gets_at_least_sixty_checks(record: softgate.registry.Method) -> None:
    if record.family == "custom":
        pytest.skip("a custom family brings its own samples; their number is the record's affair")
    assert len(CHECKS[record.qualified_name]) >= 60
