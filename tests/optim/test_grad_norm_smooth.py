"""The optimizer, the method for SciPy and the estimator are the same search; each behaves as its kind does."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.optim import GNSLogisticRegression, GradNormSmooth, minimize_gns, scipy_gns

F64 = torch.float64


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data():
    x = torch.randn(30, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    return x, x.argmax(1)


def closure_of(model, curvature):
    x, y = data()

    def closure():
        logits = model(x)
        losses = nn.functional.cross_entropy(logits, y, reduction="none")
        if curvature == "fisher":
            return losses
        return (losses.mean(), logits) if curvature == "ggn" else losses.mean()

    return closure


@pytest.mark.parametrize("curvature", ["exact", "ggn", "fisher", "none"])
def test_networks_learn_with_every_curvature(curvature):
    model = network()
    optimizer = GradNormSmooth(model.parameters(), curvature)
    closure = closure_of(model, curvature)
    losses = [float(optimizer.step(closure)) for _ in range(25)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < (0.7 if curvature == "none" else 0.2) * losses[0]
    assert optimizer.param_groups[0]["gamma"] > 0 and all(p.grad is None for p in model.parameters())


def test_float32_goes_down_as_far_as_rounding_lets_it():
    X, y = data()
    W = torch.zeros(3, 3, requires_grad=True)
    optimizer = GradNormSmooth([W], test="gradient")

    def closure():
        return nn.functional.cross_entropy(X.float() @ W.mT, y) + 0.05 * W.square().sum()

    losses = [float(optimizer.step(closure)) for _ in range(15)]
    wide = minimize_gns(
        lambda V: nn.functional.cross_entropy(X @ V.mT, y) + 0.05 * V.square().sum(), torch.zeros(3, 3, dtype=F64)
    )
    assert W.isfinite().all() and losses[-1] == pytest.approx(wide.fun, abs=1e-6)
    torch.testing.assert_close(W.detach().double(), wide.x, rtol=0.0, atol=1e-4)


def test_steps_are_those_of_minimize_gns():
    model = network()
    closure = closure_of(model, "exact")
    start = copy.deepcopy(model.state_dict())
    optimizer = GradNormSmooth(model.parameters())
    losses = [float(optimizer.step(closure)) for _ in range(6)]
    x, y = data()
    shapes = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]

    def loss(flat):
        parts = flat.split([size for _, _, size in shapes])
        state = {name: part.reshape(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    found = minimize_gns(loss, torch.cat([start[name].flatten() for name, _, _ in shapes]), max_iter=6)
    torch.testing.assert_close(losses, found.history["fun"][:6], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in model.parameters()]), found.x)


def test_products_with_vectors_serve_as_well():
    ends = []
    for solver in ("cholesky", "lanczos", "cg"):
        model = network()
        optimizer = GradNormSmooth(model.parameters(), "ggn", solver=solver)
        closure = closure_of(model, "ggn")
        losses = [float(optimizer.step(closure)) for _ in range(20)]
        ends.append(losses[-1])
    assert max(ends) < 0.02


def test_state_goes_through_a_checkpoint():
    model = network()
    optimizer = GradNormSmooth(model.parameters(), "exact")
    closure = closure_of(model, "exact")
    for _ in range(4):
        optimizer.step(closure)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = [float(optimizer.step(closure)) for _ in range(3)]
    other = network()
    again = GradNormSmooth(other.parameters(), "exact")
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert [float(again.step(closure_of(other, "exact"))) for _ in range(3)] == expected


def test_unused_and_empty_parameters_stay():
    used, unused, empty = (torch.ones(n, dtype=F64, requires_grad=True) for n in (2, 3, 0))
    optimizer = GradNormSmooth([used, unused, empty])
    for _ in range(20):
        optimizer.step(lambda: (used - 3.0).square().sum())
    torch.testing.assert_close(used.detach(), torch.full((2,), 3.0, dtype=F64))
    assert torch.equal(unused.detach(), torch.ones(3, dtype=F64)) and optimizer.status in ("gradient", "precision")


def test_bad_parameters_and_closures():
    p = torch.ones(2, dtype=F64, requires_grad=True)
    half = torch.ones(2, dtype=torch.float16)
    for params, error in (([], ArgumentValueError), (p, ArgumentTypeError), ([half], ArgumentTypeError),
                          ([p, p.detach().float()], ArgumentTypeError), ([p[:0].detach()], ArgumentValueError),
                          ([{"params": [p]}, {"params": [p.detach().clone()]}], ArgumentValueError)):  # fmt: skip
        with pytest.raises(error, match="params"):
            GradNormSmooth(params)
    for options, word in (({"curvature": "wgn"}, "curvature"), ({"gamma": 0.0}, "gamma"), ({"test": "x"}, "test")):
        with pytest.raises(ArgumentValueError, match=word):
            GradNormSmooth([p], **options)
    optimizer = GradNormSmooth([p])
    for closure, error, word in ((None, ArgumentTypeError, "closure"), (lambda: 3.0, ArgumentTypeError, "closure"),
                                 (lambda: p, ArgumentValueError, "scalar"),
                                 (lambda: p.sum() * float("nan"), StateError, "finite")):  # fmt: skip
        with pytest.raises(error, match=word):
            optimizer.step(closure)

    def with_backward():
        loss = p.square().sum()
        loss.backward()
        return loss

    with pytest.raises(StateError, match="must not call backward"):
        optimizer.step(with_backward)


def test_the_method_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    sparse = pytest.importorskip("scipy.sparse")
    x0 = np.array([-1.2, 1.0, 0.5])
    rosen, jac, hess = optimize.rosen, optimize.rosen_der, optimize.rosen_hess
    seen = []
    found = optimize.minimize(rosen, x0, method=scipy_gns, jac=jac, hess=hess, callback=seen.append, tol=1e-9)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-8)
    assert found.success and found.nit == len(seen) and found.nhev == found.nit and found.grad_norm <= 1e-9
    np.testing.assert_allclose(found.jac, jac(found.x))
    by_products = optimize.minimize(rosen, x0, method=scipy_gns, jac=jac, hessp=optimize.rosen_hess_prod)
    np.testing.assert_allclose(by_products.x, 1.0, atol=1e-6)
    for made in (lambda x: sparse.csr_array(hess(x)), lambda x: sparse.linalg.aslinearoperator(hess(x))):
        assert optimize.minimize(rosen, x0, method=scipy_gns, jac=jac, hess=made).success

    def both(x, scale):
        return scale * np.sum(x**2), 2 * scale * x

    plain = optimize.minimize(both, x0, args=(3.0,), method=scipy_gns, jac=True, options={"maxiter": 200})
    assert plain.success and np.abs(plain.x).max() < 1e-7
    stopped = optimize.minimize(rosen, x0, method=scipy_gns, jac=jac, hess=hess, options={"maxiter": 2})
    assert not stopped.success and "iterations" in stopped.message
    metric = optimize.minimize(rosen, x0, method=scipy_gns, jac=jac, hess=hess, options={"metric": np.eye(3)})
    np.testing.assert_allclose(metric.x, 1.0, atol=1e-6)
    with pytest.raises(ArgumentTypeError, match="jac"):
        optimize.minimize(rosen, x0, method=scipy_gns, jac=None)
    with pytest.raises(ArgumentValueError, match="bounds"):
        scipy_gns(rosen, x0, jac=jac, bounds=[(0, 1)] * 3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_estimator_finds_the_minimum_of_scikit_learn(classes, intercept):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4)) + 0.5
    y = np.array(["a", "b", "c"])[(X[:, 0] + rng.normal(size=80) > 0.5).astype(int) + (classes == 3) * (X[:, 1] > 1)]
    ours = GNSLogisticRegression(C=0.7, fit_intercept=intercept, tol=1e-9).fit(X, y)
    theirs = linear_model.LogisticRegression(C=0.7, fit_intercept=intercept, tol=1e-9, max_iter=2000).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(np.exp(ours.predict_log_proba(X)), ours.predict_proba(X))
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    assert (ours.predict(X) == theirs.predict(X)).all() and ours.coef_.shape == theirs.coef_.shape
    assert ours.n_iter_[0] < 20


def test_the_estimator_is_one_of_scikit_learn():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks.check_estimator(GNSLogisticRegression())


def test_the_estimator_says_when_it_did_not_converge_and_refuses_bad_options():
    exceptions = pytest.importorskip("sklearn.exceptions")
    X = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(exceptions.ConvergenceWarning, match="max_iter"):
        GNSLogisticRegression(max_iter=1, tol=1e-12).fit(X, X[:, 0] > 0)
    for options, error, word in (({"C": 0.0}, ArgumentValueError, "C"), ({"tol": -1.0}, ArgumentValueError, "tol"),
                                 ({"fit_intercept": 1}, ArgumentTypeError, "fit_intercept"),
                                 ({"max_iter": 0}, ArgumentValueError, "max_iter")):  # fmt: skip
        with pytest.raises(error, match=word):
            GNSLogisticRegression(**options).fit(X, X[:, 0] > 0)
    with pytest.raises(ArgumentValueError, match="two classes"):
        GNSLogisticRegression().fit(X, np.zeros(30))
