"""The suite must be able to fail: every seeded fault is caught by the check that is there to catch it."""

from __future__ import annotations

from typing import Any

import honest_ops as honest
import mutant_others  # noqa: F401 (fills MUTANTS)
import mutant_rows  # noqa: F401
import numpy as np
import pytest
from hypothesis import Phase, settings
from mutant import MUTANTS, Mutant

from softgate.testing import ConformanceError, check_op, generate_checks

EXAMPLES = 60


@pytest.fixture(autouse=True)
def _restore_numpy_errors() -> Any:
    with np.errstate():
        yield


@pytest.fixture(autouse=True, scope="module")
def _first_counterexample_will_do() -> Any:
    """Looking for the simplest one takes most of the time, and here only its existence matters."""
    before = settings.default
    settings.register_profile("seeded_faults", before, phases=[Phase.generate])
    settings.load_profile("seeded_faults")
    yield
    settings.register_profile("before_seeded_faults", before)
    settings.load_profile("before_seeded_faults")


def _title(mutant: Mutant) -> str:
    return f"{mutant.base.__name__}: {mutant.fault} -> {mutant.caught_by}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=_title)
def test_fault_is_caught(mutant: Mutant) -> None:
    reference = mutant.function if mutant.alone else None
    faulty = honest.with_function(mutant.base, mutant.function, reference=reference)
    with pytest.raises(ConformanceError) as caught:
        check_op(faulty, only=mutant.caught_by, examples=EXAMPLES)
    assert mutant.caught_by in str(caught.value)


_CAUGHT_BY = {f"{m.base.__name__}-{m.caught_by}": (m.base, m.caught_by) for m in MUTANTS}


@pytest.mark.parametrize(("base", "check"), _CAUGHT_BY.values(), ids=_CAUGHT_BY)
def test_the_op_without_the_fault_passes_the_check(base: Any, check: str) -> None:
    assert check_op(base, only=check, examples=EXAMPLES).passed


def test_an_honest_op_passes_every_check() -> None:
    report = check_op(honest.softmax, examples=EXAMPLES)
    assert len(report.passed) == len(generate_checks(honest.softmax)) >= 100
