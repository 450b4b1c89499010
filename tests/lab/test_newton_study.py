"""Problems with known minima, and what the measurements of Newton steps report."""

from __future__ import annotations

import pytest
import torch

from softgate.lab import newton_study as study
from softgate.lab.cell import CellRun
from softgate.lab.tasks import smooth_problems as problems

F64 = torch.float64


@pytest.fixture
def run(tmp_path):
    return lambda measure, seed=0, **config: measure(CellRun("paper", "smoke", "cell", config, seed, tmp_path))


def test_smooth_maxima_have_their_minimum_at_zero():
    f, metric, f_star = problems.log_sum_exp_at_zero(4, 12, 0.2, 3)
    value, grad = f.value_and_grad(torch.zeros(4, dtype=F64))
    assert float(value) == f_star and float(grad.abs().max()) < 1e-14
    assert float(f(0.1 * torch.ones(4, dtype=F64))) > f_star
    torch.linalg.cholesky(metric)
    again, _, _ = problems.log_sum_exp_at_zero(4, 12, 0.2, 3)
    assert torch.equal(again.A, f.A) and not torch.equal(problems.log_sum_exp_at_zero(4, 12, 0.2, 4)[0].A, f.A)


def test_a_run_ends_at_the_gap_or_at_its_limit(run):
    config = {"n": 4, "m": 12, "mu": 0.5, "most": 200}
    exact = run(study.measure_log_sum_exp, method="exact", **config)
    assert exact["gap"] <= study.GAP and exact["gap_curve"][-1] == exact["gap"]
    assert exact["steps"][-1] == exact["iterations"] < 30
    stopped = run(study.measure_log_sum_exp, method="descent", **{**config, "most": 2})
    assert stopped["iterations"] == 2 and stopped["gap"] > study.GAP
    pytest.importorskip("scipy")
    assert run(study.measure_log_sum_exp, method="l-bfgs", **config)["gap"] <= study.GAP


def test_the_sweep_reports_slope_and_radii(run):
    found = run(study.measure_sweep, n=4, m=12, mus=[1.0, 0.1], most=200)
    steps = found["steps_curve"]
    expected = torch.tensor(steps[1] / steps[0]).log() / torch.tensor(10.0).log()
    assert found["slope"] == pytest.approx(float(expected), rel=1e-5)
    assert found["radius_spread"] == max(found["radius_curve"]) / min(found["radius_curve"])


def test_structures_solve_what_they_should(run):
    assert run(study.measure_solvers, m=3, n=6, p=4.0)["difference"] < 1e-6
    assert run(study.measure_rosenbrock, p=5.0, most=60)["value"] < 1e-9
    assert run(study.measure_banded, n=40, p=4.0, most=60)["gap"] <= study.GAP
    fisher = run(study.measure_rank_one, m=3, n=20, p=4.0, most=60)
    assert fisher["gap"] <= study.GAP and fisher["speed_up"] > 0


def test_tables_are_fitted_to_the_minimum(run):
    pytest.importorskip("sklearn")
    found = run(study.measure_table, table="breast_cancer", l2=1e-2, method="exact", most=60)
    assert found["gap"] <= study.GAP and found["iterations"] < 20
    f = problems.table_regression("iris", 0.1)
    assert f.dim == 3 * 5
