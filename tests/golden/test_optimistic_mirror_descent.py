"""Parity with arrays made by a library of the authors' group: mirror descent on a ball, Hedge, three ensembles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.optim import Ball, OptimisticHedge, OptimisticOMD, SwordPP

SLUG = "optimistic-mirror-descent"
HINTS = {"last_grad": "last", "middle_grad": "middle", "None": "zero"}


def assert_close(ours, theirs):
    np.testing.assert_allclose(np.stack(ours), theirs, rtol=0, atol=1e-10)


def play(learner, data, lam=0.0):
    """Points and centres on the square losses of the data, plus ``lam ‖x‖²/2``."""
    points, centers, steps = [], [], []
    for row, target in zip(torch.tensor(data["X"]), torch.tensor(data["y"]), strict=True):
        centers.append(learner.center.numpy())
        steps.append(float(learner.step_size))
        points.append(learner.predict().numpy())
        learner.update(lambda x, a=row, b=target: (x @ a - b) * a + lam * x)
    return points, centers, steps


@pytest.mark.parametrize("name", ["ball_a", "ball_b"])
@pytest.mark.parametrize("step", ["const", "big"])
@pytest.mark.parametrize("hint", HINTS)
def test_constant_steps_on_a_ball(golden, name, step, hint):
    data = np.load(golden(SLUG) / f"{name}.npz")
    domain, dim = Ball(float(data["radius"])), data["X"].shape[1]
    learner = OptimisticOMD(dim, domain, eta=float(data[f"eta_{step}"]), hint=HINTS[hint], start=data["prior"])
    points, centers, _ = play(learner, data)
    assert_close(points, data[f"oogd_{step}_{hint}_x"])
    assert_close(centers, data[f"oogd_{step}_{hint}_xhat"])


@pytest.mark.parametrize("name", ["ball_a", "ball_b"])
def test_adaptive_steps_on_a_ball(golden, name):
    data = np.load(golden(SLUG) / f"{name}.npz")
    domain, dim = Ball(float(data["radius"])), data["X"].shape[1]
    options = {key: float(data[f"sea_{key}"]) for key in ("D", "G", "delta")}
    points, _, steps = play(OptimisticOMD(dim, domain, start=data["prior"], **options), data)
    assert_close(points, data["sea_x"])
    assert_close(steps, data["sea_eta"])
    lam = float(data["sc_lambda"])
    points, _, _ = play(OptimisticOMD(dim, domain, "strongly_convex", lam=lam, start=data["prior"]), data, lam)
    assert_close(points, data["sc_x"])


@pytest.mark.parametrize("name", ["simplex_a", "simplex_b"])
@pytest.mark.parametrize("eta", ["0.5", "5.0"])
@pytest.mark.parametrize("hint", ["last_grad", "None"])
@pytest.mark.parametrize("correction", [0, 1])
def test_hedge(golden, name, eta, hint, correction):
    data = np.load(golden(SLUG) / f"{name}.npz")
    n, key = data["costs"].shape[1], f"hedge_eta{eta}_{hint}_corr{correction}"
    hedge = OptimisticHedge(n, float(eta), hint=HINTS[hint], correction=bool(correction))
    points, centers = [], []
    for costs in data["costs"]:
        centers.append(hedge.center.numpy())
        points.append(hedge.predict().numpy())
        hedge.update(costs)
    assert_close(points, data[f"{key}_x"])
    assert_close(centers, data[f"{key}_xhat"])


@pytest.mark.parametrize("name", ["sword_a", "sword_b"])
@pytest.mark.parametrize("kind", ["swordpp", "swordvar", "swordbest"])
def test_ensembles(golden, name, kind):
    data = np.load(golden(SLUG) / f"{name}.npz")
    method = {"swordpp": "sword++", "swordvar": "sword", "swordbest": "sword_best"}[kind]
    learner = SwordPP(
        Ball(float(data["radius"])), int(data["T"]), float(data["G"]), float(data["L"]),
        eta_min=0.01 if name == "sword_b" else None, method=method, start=data["prior"],
    )  # fmt: skip
    assert_close(learner.pool.numpy(), data[f"{kind}_steps"])
    points, weights, losses = [], [], []
    for row, target in zip(torch.tensor(data["X"]), torch.tensor(data["y"]), strict=True):
        x = learner.predict()
        points.append(x.numpy())
        weights.append(learner.weights.numpy())
        losses.append(0.5 * float(x @ row - target) ** 2)
        learner.update(lambda x, a=row, b=target: (x @ a - b) * a)
    assert_close(points, data[f"{kind}_x"])
    assert_close(weights, data[f"{kind}_p"])
    assert_close(losses, data[f"{kind}_loss"])
