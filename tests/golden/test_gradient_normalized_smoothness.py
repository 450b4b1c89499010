"""Parity with arrays made by the authors' code.

That code divides by γ + 1e-8 where the paper divides by γ, so values agree to about 1e-8, radii and counts of solves
exactly.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.optim import ChebyshevChain, LinearPowerResidual, LogSumExp, Rosenbrock, minimize_gns

SLUG = "gradient-normalized-smoothness"


def tensors(data, *names):
    return [torch.tensor(data[name]) for name in names]


def assert_trace(found, data, prefix, scale=1.0, symbol="gamma", tail=None):
    """The first 10 steps to 1e-6, every radius and count exactly; the last value where both end at the same step."""
    func, history = data[f"{prefix}func"], found.history
    count = min(len(func), len(history["fun"]))
    first, mine = min(count, 11), scale * np.array(history["fun"])
    np.testing.assert_allclose(mine[:first], func[:first], rtol=1e-6)
    if tail is not None:
        assert len(func) == len(mine)
        assert abs(mine[-1] - func[-1]) <= tail
    name = {"gamma": "gamma_k", "H": "H", "L": "L"}[symbol]
    if f"{prefix}{name}" in data:
        np.testing.assert_array_equal(history[symbol][:count], data[f"{prefix}{name}"][:count])
    if f"{prefix}matrix_inverses" in data:
        np.testing.assert_array_equal(history["n_solves"][:count], data[f"{prefix}matrix_inverses"][:count])


@pytest.fixture(params=["lse_a", "lse_b"])
def log_sum_exp(golden, request):
    data = np.load(golden(SLUG) / f"{request.param}.npz")
    rows, b, x0, B = tensors(data, "rows", "b", "x0", "B")
    return data, LogSumExp(rows, b, float(data["mu"])), x0, B


def test_log_sum_exp_and_its_hessians(log_sum_exp):
    data, f, _, _ = log_sum_exp
    for x, value, grad, H, W in zip(*tensors(data, "xp", "f_p", "g_p", "H_p", "W_p"), strict=True):
        found, gradient = f.value_and_grad(x)
        torch.testing.assert_close(found, value, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient, grad, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(f.curvature("exact", x).dense(), H, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(f.curvature("wgn", x).dense(), W, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("curvature", ["exact", "wgn"])
@pytest.mark.parametrize("metric", ["B", "I"])
def test_traces_of_log_sum_exp(log_sum_exp, curvature, metric):
    data, f, x0, B = log_sum_exp
    options = {"f_star": float(data["fstar"]), "ftol": 1e-8, "grad_tol": 0.0}
    found = minimize_gns(f, x0, curvature=curvature, metric=B if metric == "B" else None, **options)
    assert found.status == "value"
    assert_trace(found, data, f"{curvature}_" if metric == "B" else f"{curvature}_I_", tail=1e-9)


def test_traces_of_the_other_rules(log_sum_exp):
    data, f, x0, B = log_sum_exp
    known = {"f_star": float(data["fstar"]), "metric": B, "grad_tol": 0.0}
    radius = 0.25 * float(data["mu"])
    fixed = minimize_gns(f, x0, rule="fixed", gamma0=radius, max_iter=10, **known)
    assert_trace(fixed, data, "fixedgamma_")
    np.testing.assert_allclose(fixed.x, data["fixedgamma_x"][-1], atol=1e-6)
    descent = minimize_gns(f, x0, rule="gradient_descent", max_iter=20, **known)
    assert_trace(descent, data, "gm_", symbol="L")
    normalised = minimize_gns(f, x0, curvature="none", max_iter=15, **known)
    np.testing.assert_allclose(normalised.history["fun"], data["ngm_func"][:16], rtol=1e-6)
    np.testing.assert_array_equal(normalised.history["gamma"], data["ngm_gamma"][:16])
    newton = minimize_gns(f, x0, rule="super_newton", ftol=1e-8, **known)
    assert_trace(newton, data, "super_", symbol="H", tail=1e-9)


@pytest.mark.parametrize("name", ["power_residual_a", "power_residual_b"])
def test_power_of_linear_residuals(golden, name):
    data = np.load(golden(SLUG) / f"{name}.npz")
    A, b, x0, B = tensors(data, "A", "b", "x0", "B")
    f = LinearPowerResidual(A, b, float(data["p"]))
    torch.testing.assert_close(f.metric(), B)
    for x, value, grad, H, F in zip(*tensors(data, "xp", "f_p", "g_p", "H_p", "F_p"), strict=True):
        torch.testing.assert_close(f(x), value)
        torch.testing.assert_close(f.value_and_grad(x)[1], grad)
        torch.testing.assert_close(f.curvature("exact", x).dense(), H, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(f.curvature("fisher", x).dense(), F, rtol=1e-10, atol=1e-11)
    assert_trace(minimize_gns(f, x0, metric=B, grad_tol=1e-7), data, "exact_", tail=1e-9)
    for solver, short in (("cholesky", "cho"), ("woodbury", "wsm")):
        found = minimize_gns(f, x0, metric=B, grad_tol=1e-7, curvature="fisher", solver=solver)
        assert_trace(found, data, f"fisher_{short}_", tail=1e-9)
        np.testing.assert_allclose(found.x, data[f"fisher_{short}_xfinal"], atol=1e-8)


def test_chebyshev_chain(golden):
    data = np.load(golden(SLUG) / "chebyshev_a.npz")
    (x0,) = tensors(data, "x0")
    f = ChebyshevChain(int(data["n"]), float(data["p"]))
    value, grad = f.value_and_grad(x0)
    np.testing.assert_allclose(value, data["f0"], rtol=1e-13)
    np.testing.assert_allclose(grad, data["g0"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(f.curvature("exact", x0).dense(), data["H0"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(f.curvature("ggn", x0).dense(), data["GN0"], rtol=1e-12, atol=1e-12)
    assert_trace(minimize_gns(f, x0, curvature="ggn", max_iter=40, grad_tol=0.0), data, "gn_", tail=1e-9)


def test_rosenbrock(golden):
    data = np.load(golden(SLUG) / "rosenbrock_a.npz")
    (x0,) = tensors(data, "x0")
    # their function is twice ours, which changes neither steps nor radii
    assert_trace(minimize_gns(Rosenbrock(), x0, max_iter=60, grad_tol=1e-9), data, "rosen_", scale=2.0)
    f = Rosenbrock(float(data["p"]))
    found = minimize_gns(f, x0, curvature="ggn", max_iter=60, grad_tol=0.0)
    assert_trace(found, data, "rnle_", tail=1e-9)
