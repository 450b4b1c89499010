"""Verdicts of ``softgate compare`` against scipy, and where they must stay silent."""

import math

import numpy as np
import pytest

from softgate.lab.compare.significance import compare_with_baseline, holm, student_quantile, student_tails


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 31])
def test_students_distribution_is_that_of_scipy(freedom):
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert student_tails(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)
    for tails in (0.5, 0.05, 0.05 / 7):
        assert student_quantile(tails, freedom) == pytest.approx(stats.t.isf(tails / 2, freedom), rel=1e-9)


def test_the_comparison_is_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(3)
    base = random.normal(2.0, 0.5, 6)
    values = {"base": base.tolist(), "near": (base + random.normal(0.0, 0.1, 6)).tolist(),
              "low": (base - 0.4 + random.normal(0.0, 0.05, 6)).tolist()}  # fmt: skip
    found = compare_with_baseline(values, better="lower")
    for label in ("near", "low"):
        test = stats.ttest_rel(values[label], values["base"])
        interval = test.confidence_interval(0.95)
        assert found[label].p == pytest.approx(test.pvalue, rel=1e-9)
        assert (found[label].low, found[label].high) == pytest.approx((interval.low, interval.high), rel=1e-7)
    assert (found["base"].verdict, found["low"].verdict, found["near"].verdict) == (
        "baseline", "better", "no difference seen",
    )  # fmt: skip
    assert compare_with_baseline(values, better="higher")["low"].verdict == "worse"


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: 3 * 0.01, then 2 * 0.03, then max(0.06, 0.04)
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_more_variants_make_the_same_difference_harder_to_claim():
    base, shifted = [1.0, 2.0, 3.0], [1.5, 2.62, 3.4]
    assert compare_with_baseline({"base": base, "a": shifted}, better="higher")["a"].verdict == "better"
    noise = {f"noise{i}": [1.0 + i, 2.0 - i, 3.0] for i in range(1, 6)}
    crowded = compare_with_baseline({"base": base, "a": shifted, **noise}, better="higher")["a"]
    assert crowded.verdict == "no difference seen" and crowded.p < 0.05 < crowded.adjusted
    assert "cannot tell below" in crowded.reason


def test_a_difference_of_the_detectable_size_is_on_the_edge_of_significance():
    spread = np.array([-0.1, 0.0, 0.1])
    size = compare_with_baseline({"b": [0.0] * 3, "v": spread.tolist()}, better="higher")["v"].detectable
    for factor, verdict in ((0.99, "no difference seen"), (1.01, "better")):
        values = {"b": [0.0] * 3, "v": (spread + factor * size).tolist()}
        assert compare_with_baseline(values, better="higher")["v"].verdict == verdict


def test_one_seed_gives_a_difference_and_nothing_else():
    found = compare_with_baseline({"b": [1.0], "v": [1.5]}, better="higher")["v"]
    assert found.verdict == "one seed" and found.difference == 0.5
    assert found.p is found.low is found.high is found.detectable is None


def test_a_diverged_run_is_not_dropped_from_the_mean():
    values = {"b": [1.0, 1.1, 1.2], "v": [9.0, math.nan, 9.2], "w": [1.0, 1.1, 1.2]}
    found = compare_with_baseline(values, better="higher")
    assert found["v"].verdict == "diverged" and "1 of 3" in found["v"].reason
    assert found["w"].verdict == "no difference seen"
    of_base = compare_with_baseline({"b": [math.nan, 1.0], "v": [1.0, 1.0]}, better="higher")
    assert of_base["b"].verdict == of_base["v"].verdict == "diverged" and "of the baseline" in of_base["v"].reason


def test_accuracies_that_agree_to_the_last_row_are_not_taken_as_exact():
    values = {"b": [0.5, 0.6], "v": [0.51, 0.61]}
    assert compare_with_baseline(values, better="higher", resolution=0.01)["v"].verdict == "no difference seen"
    equal = compare_with_baseline({"b": [0.5, 0.6], "v": [0.5, 0.6]}, better="higher")["v"]
    assert equal.verdict == "no difference seen" and equal.p == 1.0
