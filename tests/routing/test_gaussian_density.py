"""The density: normalisation, limits, invariances, the interactions that the rates come from."""

import numpy as np
import pytest
import torch
from gaussian_cases import CROSSING, PLANE, draw
from scipy import integrate, stats

from softgate.errors import ArgumentValueError
from softgate.routing import MixingMeasure, gaussian_moe_log_prob

X = np.random.default_rng(1).normal(size=(50, 2))


def test_all_experts_selected_is_softmax_to_the_bit():
    logits = torch.from_numpy(X) @ torch.from_numpy(PLANE.beta1).mT + torch.from_numpy(PLANE.beta0)
    expected = torch.log_softmax(logits, -1).numpy()
    assert (PLANE.log_gate(X) == expected).all()
    assert (PLANE.with_options(top_k=3).log_gate(X) == expected).all()


@pytest.mark.parametrize("select", ["logit", "score"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_exactly_k_experts_have_weight(top_k, select):
    measure = PLANE.with_options(top_k=top_k, select=select)
    gate = measure.gate(X)
    assert (np.count_nonzero(gate, axis=1) == top_k).all()
    np.testing.assert_allclose(gate.sum(1), 1, rtol=1e-14)
    scores = X @ PLANE.beta1.T + (PLANE.beta0 if select == "logit" else 0)
    best = np.argsort(-scores, 1)[:, :top_k]
    assert (np.take_along_axis(gate, best, 1) > 0).all()


def test_ties_go_to_the_lowest_index():
    even = MixingMeasure([0, 0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 0], [1, 1, 1], top_k=2)
    assert even.gate([[0.3]]).tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 2, "select": "score"}, {"temperature": 0.3}])
def test_a_common_shift_of_the_gate_changes_nothing(options):
    measure = PLANE.with_options(**options)
    shifted = measure.with_options(beta0=PLANE.beta0 + 3, beta1=PLANE.beta1 + np.array([1.0, -2.0]))
    np.testing.assert_allclose(shifted.gate(X), measure.gate(X), atol=1e-13)
    for reference in (0, -1):
        np.testing.assert_allclose(measure.normalise(reference).gate(X), measure.gate(X), atol=1e-13)


def test_scaling_the_gate_changes_nothing_only_with_one_selected_expert():
    def scaled(measure):
        return measure.with_options(beta0=3 * measure.beta0, beta1=3 * measure.beta1)

    hard = PLANE.with_options(top_k=1)
    assert (scaled(hard).gate(X) == hard.gate(X)).all()
    assert np.abs(scaled(PLANE).gate(X) - PLANE.gate(X)).max() > 0.05


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "abs", "sigmoid", "tanh", "gelu"])
def test_scaling_with_the_temperature_changes_nothing_with_homogeneous_activations(activation):
    measure = PLANE.with_options(activation=activation, temperature=0.7)
    c = 2.5
    scaled = measure.with_options(beta0=c * measure.beta0, beta1=c * measure.beta1, temperature=0.7 * c)
    change = np.abs(scaled.log_gate(X) - measure.log_gate(X)).max()
    assert change < 1e-12 if activation in (None, "relu", "leaky_relu", "abs") else change > 1e-3


def test_temperature_limits():
    for temperature in (1e-6, 1e-3):
        cold = PLANE.with_options(temperature=temperature).gate(X)
        assert np.isfinite(cold).all()
    assert (PLANE.with_options(temperature=1e-6).gate(X) == PLANE.with_options(top_k=1).gate(X)).all()
    np.testing.assert_allclose(PLANE.with_options(temperature=1e9).gate(X), 1 / 3, atol=1e-8)


@pytest.mark.parametrize("top_k", [None, 1])
def test_the_density_integrates_to_one(top_k):
    measure = CROSSING.with_options(top_k=top_k)
    for x in (0.1, 0.31, 0.9):
        centres = measure.means([[x]])[0].tolist()
        low, high = min(centres) - 5, max(centres) + 5
        mass = integrate.quad(
            lambda y, x=x: np.exp(measure.log_prob([[x]], [y]))[0], low, high, points=centres, epsabs=1e-12, limit=200
        )[0]
        assert mass == pytest.approx(1, abs=1e-10)


def test_samples_have_the_density():
    x, y = draw(PLANE, 4000)
    gate, means = PLANE.gate(x), PLANE.means(x)
    pit = (gate * stats.norm.cdf((y[:, None] - means) / np.sqrt(PLANE.var))).sum(1)
    assert stats.kstest(pit, "uniform").pvalue > 0.01


def test_the_interactions_of_gate_and_expert():
    """∂²u/∂β1∂b = ∂u/∂a / τ, ∂²u/∂b² = 2 ∂u/∂var, and ∂u/∂τ = -(β1/τ) ∂u/∂β1 for the linear gate."""
    x, y, temperature = 0.7, 0.4, 0.6

    def u(beta1, tau, a, b, var, sigma=lambda s: s):
        density = torch.exp(-((y - a * x - b) ** 2) / (2 * var)) / torch.sqrt(2 * torch.pi * var)
        return torch.exp(sigma(beta1 * x) / tau) * density

    point = torch.tensor([0.8, temperature, -0.5, 0.3, 0.9], dtype=torch.float64)
    first = torch.func.jacrev(lambda p: u(*p))(point)
    second = torch.func.hessian(lambda p: u(*p))(point)
    beta1, tau, a, b, var = range(5)
    torch.testing.assert_close(second[beta1, b], first[a] / temperature)
    torch.testing.assert_close(second[b, b], 2 * first[var])
    torch.testing.assert_close(first[tau], -point[beta1] / temperature * first[beta1])
    bent = torch.func.jacrev(lambda p: u(*p, sigma=torch.tanh))(point)
    assert abs(float(bent[tau] + point[beta1] / temperature * bent[beta1])) > 1e-2


def test_measure_and_torch_function_agree():
    x, y = draw(PLANE, 20)
    tensors = [torch.from_numpy(v) for v in (x, y, PLANE.beta0, PLANE.beta1, PLANE.a, PLANE.b, PLANE.var)]
    for options in ({}, {"top_k": 2}, {"activation": "tanh", "temperature": 0.4}):
        expected = PLANE.with_options(**options).log_prob(x, y)
        np.testing.assert_allclose(gaussian_moe_log_prob(*tensors, **options).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"beta0": [0, 1, 2, 3]}, "beta1"),
        ({"var": [1, 0, 1]}, "var"),
        ({"a": [[1, 2]]}, "a"),
        ({"b": [0, np.nan, 0]}, "b"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 4}, "top_k"),
        ({"activation": "step"}, "activation"),
        ({"colour": 1}, "changes"),
    ],
)
def test_a_measure_refuses_what_is_none(changes, name):
    with pytest.raises(ArgumentValueError, match=name):
        PLANE.with_options(**changes)


def test_a_measure_refuses_other_data():
    with pytest.raises(ArgumentValueError, match="X must have shape"):
        PLANE.gate(np.ones((3, 1)))
    with pytest.raises(ArgumentValueError, match="y must have shape"):
        PLANE.log_prob(np.ones((3, 2)), np.ones(2))
    with pytest.raises(ArgumentValueError, match="order"):
        PLANE.permute([0, 0, 1])
    with pytest.raises(ArgumentValueError, match="reference"):
        PLANE.normalise(3)
