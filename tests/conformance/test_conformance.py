"""Every recorded method, every variant, every generated check: one test each.

A new method is covered as soon as it is recorded; nothing here is edited for it. ``SOFTGATE_TEST_EXAMPLES`` sets the
examples per law.
"""

from __future__ import annotations

import pytest

import softgate
from softgate.testing import Check, generate_checks


def _items() -> list[object]:
    return [
        pytest.param(check, id=f"{record.qualified_name}-{check.title}")
        for record in softgate.methods()
        for check in generate_checks(record)
    ]


@pytest.mark.parametrize("check", _items())
def test_conformance(check: Check) -> None:
    check.run()


@pytest.mark.parametrize("record", softgate.methods(), ids=lambda record: record.qualified_name)
def test_every_method_gets_at_least_sixty_checks(record: softgate.registry.Method) -> None:
    if record.family == "custom":
        pytest.skip("a custom family brings its own samples; their number is the record's affair")
    assert len(generate_checks(record)) >= 60
