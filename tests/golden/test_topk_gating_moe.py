"""Parity with arrays made by the authors' group: gates, E-step, M-step and Voronoi losses."""

from __future__ import annotations

import numpy as np
import pytest

from softgate.routing import MixingMeasure, voronoi_cells, voronoi_loss
from softgate.routing._gaussian.em import solve_experts
from softgate.routing._gaussian.likelihood import Likelihood
from softgate.routing._gaussian.state import Frame

E_STEPS = [(slug, name) for slug in ("topk-gating-moe", "temperature-gating-moe") for name in ("k2_n40", "k3_n60")]


def measure_in(data, row=slice(None), prefix=""):
    arrays = {name: data[prefix + name][row] for name in ("beta0", "beta1", "a", "b", "var")}
    return MixingMeasure(**arrays, temperature=float(data["tau"]) if "tau" in data else 1.0)


@pytest.mark.parametrize(("slug", "name"), E_STEPS)
def test_gate_likelihood_and_responsibilities(golden, slug, name):
    data = np.load(golden(slug) / f"estep_{name}.npz")
    measure, x, y = measure_in(data), data["X"][:, None], data["Y"]
    np.testing.assert_allclose(measure.gate(x), data["gate"], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(measure.responsibilities(x, y), data["resp"], rtol=1e-9, atol=1e-14)
    assert measure.log_prob(x, y).sum() == pytest.approx(float(data["loglik"]), rel=1e-10)


@pytest.mark.parametrize(("slug", "name"), E_STEPS)
def test_m_step_of_the_experts(golden, slug, name):
    data = np.load(golden(slug) / f"estep_{name}.npz")
    measure, x, y = measure_in(data), data["X"][:, None], data["Y"]
    frame = Frame.of(x, y, np.ones(len(y)), centred=True)
    state = frame.enter(measure)
    sums = Likelihood(x, y, None, frame).sums(state)
    assert sums.log_likelihood == pytest.approx(float(data["loglik"]), rel=1e-10)
    solved = frame.leave(solve_experts(state, sums, 1e-12), measure)
    # theirs is an iterative solver that stops early; ours must be at least as good
    for ours, theirs in ((solved.a[:, 0], "mstep_a"), (solved.b, "mstep_b"), (solved.var, "mstep_var")):
        np.testing.assert_allclose(ours, data[theirs], atol=1.5e-2)

    def weighted_residual(a, b):
        return (data["resp"] * (y[:, None] - x * a - b) ** 2).sum(0)

    ours = weighted_residual(solved.a[:, 0], solved.b)
    assert (ours <= weighted_residual(data["mstep_a"], data["mstep_b"]) * (1 + 1e-9)).all()


@pytest.mark.parametrize("k", [2, 3, 4])
def test_voronoi_losses(golden, k):
    data = np.load(golden("topk-gating-moe") / f"voronoi_loss_k{k}.npz")
    truth = measure_in(data, prefix="true_")
    for row, expected in enumerate(data["loss"]):
        fitted = measure_in(data, row)
        np.testing.assert_array_equal(voronoi_cells(fitted, truth, pin="as_given"), data["cell"][row])
        if np.isnan(expected):
            with pytest.raises(NotImplementedError, match="r_bar"):
                voronoi_loss(fitted, truth, "over", pin="as_given")
            continue
        kind = "exact" if k == 2 else "over"
        assert voronoi_loss(fitted, truth, kind, pin="as_given") == pytest.approx(float(expected), rel=1e-10)
