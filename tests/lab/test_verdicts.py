import math

import pytest

from softgate.lab.paper import Cell, Claim, Scale
from softgate.lab.verdicts import judge, mean_table

SCALE = Scale(cells=(Cell("a"), Cell("b")), seeds=3)
ROWS = {"a": [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}], "b": [{"x": 2.5}]}


def claim(relation, **fields):
    return Claim(id="c", statement="s", paper_figure="1", source="Table 1", relation=relation, **fields)


def test_verdict_uses_the_mean_and_counts_seeds():
    outcome = judge(claim('x["a"] < x["b"]'), "smoke", SCALE, ROWS, loaded=False)
    assert outcome.verdict == "reproduced"
    assert outcome.seeds_held == (2, 3)
    assert [(s.cell, s.mean, s.spread) for s in outcome.measured] == [("a", 2.0, 1.0), ("b", 2.5, None)]


def test_a_relation_that_fails_is_not_reproduced():
    assert judge(claim('x["a"] > x["b"]'), "smoke", SCALE, ROWS, loaded=False).verdict == "not reproduced"


def test_direction_is_weaker_than_reproduced():
    outcome = judge(claim('x["a"] < 0.5 * x["b"]', direction='x["a"] < x["b"]'), "smoke", SCALE, ROWS, loaded=False)
    assert outcome.verdict == "reproduced in direction"


@pytest.mark.parametrize(("loaded", "verdict"), [(True, "inconclusive"), (False, "not reproduced")])
def test_load_excuses_only_timing(loaded, verdict):
    assert judge(claim('x["a"] > 9', timing=True), "smoke", SCALE, ROWS, loaded=loaded).verdict == verdict
    assert judge(claim('x["a"] > 9'), "smoke", SCALE, ROWS, loaded=loaded).verdict == "not reproduced"
    assert judge(claim('x["a"] < 9', timing=True), "smoke", SCALE, ROWS, loaded=loaded).verdict == "reproduced"


def test_scales_and_missing_cells_are_said_not_hidden():
    assert judge(claim('x["a"] < 1', scales=("paper",)), "smoke", SCALE, ROWS, loaded=False).verdict == "needs hardware"
    assert (
        judge(claim('x["a"] < 1', scales=("laptop", "paper")), "smoke", SCALE, ROWS, loaded=False).verdict
        == "not measured"
    )
    lost = judge(claim('x["a"] < x["gone"]'), "smoke", SCALE, ROWS, loaded=False)
    assert lost.verdict == "not measured" and "gone" in lost.reason


def test_per_scale_relation_replaces_the_general_one():
    outcome = judge(claim('x["a"] > 9', per_scale={"smoke": 'x["a"] > 1'}), "smoke", SCALE, ROWS, loaded=False)
    assert outcome.verdict == "reproduced" and outcome.relation == 'x["a"] > 1'


def test_a_nan_seed_spoils_the_mean_and_the_claim():
    rows = {"a": [{"x": 1.0}, {"x": None}]}
    assert math.isnan(mean_table(rows)["a"]["x"])
    assert judge(claim('x["a"] < 9'), "smoke", SCALE, rows, loaded=False).verdict == "not reproduced"
