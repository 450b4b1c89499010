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


# The honest loss and attention leave validation to torch, so bad calls are no test of them.
_CAUGHT_BY = sorted({(m.base.__name__, m.caught_by) for m in MUTANTS if "bad_input" not in m.caught_by})


@pytest.mark.parametrize(("base", "check"), _CAUGHT_BY, ids="-".join)
def test_the_honest_op_passes_the_check(base: str, check: str) -> None:
    report = check_op(getattr(honest, base), only=check, examples=EXAMPLES)
    assert len(report.passed) == 1


def test_an_honest_op_passes_every_check() -> None:
    report = check_op(honest.softmax, examples=EXAMPLES)
    assert len(report.passed) == len(generate_checks(honest.softmax)) >= 100
