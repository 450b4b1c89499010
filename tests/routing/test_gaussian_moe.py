"""The estimator: scikit-learn's own checks, EM's guarantees, recovery of known parameters, odd data."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from gaussian_cases import CROSSING, PLANE, draw
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.routing import GaussianMoE, gaussian_moe_log_prob, voronoi_loss
from softgate.routing._gaussian.likelihood import BLOCK, Likelihood, top_k_mask
from softgate.routing._gaussian.state import Frame, State

TEMPERED = CROSSING.with_options(beta0=[-0.3, 0], beta1=[2, 0], a=[-2, 1.5], b=[1, -1], var=[0.25, 0.16])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "check", [c for _, c in estimator_checks_generator(GaussianMoE())], ids=lambda c: c.func.__name__
)
def test_it_is_an_estimator_of_scikit_learn(check):
    check(GaussianMoE())


FITS = [
    {"n_experts": 2},
    {"n_experts": 3},
    {"n_experts": 3, "top_k": 2},
    {"n_experts": 3, "top_k": 2, "select": "score"},
    {"n_experts": 2, "top_k": 1, "gate_update": "profile"},
    {"n_experts": 3, "top_k": 1, "gate_update": "profile"},
    {"n_experts": 2, "gate": "activation", "activation": "tanh", "learn_temperature": True},
    {"n_experts": 2, "gate": "activation", "activation": torch.sigmoid, "temperature": 0.5},
    {"n_experts": 2, "gate": "dense_to_sparse", "temperature": 0.1},
    {"n_experts": 1},
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options", FITS, ids=lambda options: "-".join(f"{v}" for v in options.values() if not callable(v))
)
def test_the_likelihood_never_falls_and_is_that_of_the_parameters(options, weighted):
    x, y = draw(CROSSING, 300)
    weight = np.random.default_rng(2).integers(0, 4, 300) if weighted else None
    model = GaussianMoE(**options, max_iter=60).fit(x, y, weight)
    assert (np.diff(model.history_) >= 0).all() and model.history_[-1] == model.log_likelihood_
    each = model.log_prob(x, y)
    total = each.sum() if weight is None else weight @ each
    assert model.log_likelihood_ == pytest.approx(total, rel=1e-12)
    gate = model.predict_gate(x)
    assert (np.count_nonzero(gate, axis=1) <= (options.get("top_k") or options["n_experts"])).all()
    expected = (gate * (x @ model.a_.T + model.b_)).sum(1)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-12)
    np.testing.assert_allclose(model.responsibilities(x, y).sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("solver", ["em", "lbfgs"])
def test_at_the_end_the_gradient_is_zero(solver):
    x, y = draw(PLANE, 800, low=-2, high=2)
    model = GaussianMoE(3, init=PLANE, solver=solver).fit(x, y)
    parameters = [torch.tensor(v, requires_grad=True) for v in (model.beta0_, model.beta1_, model.a_, model.b_)]
    var = torch.tensor(model.var_, requires_grad=True)
    total = gaussian_moe_log_prob(torch.from_numpy(x), torch.from_numpy(y), *parameters, var).sum()
    assert float(total.detach()) == pytest.approx(model.log_likelihood_, rel=1e-12)
    for gradient in torch.autograd.grad(total, [*parameters, var]):
        assert float(gradient.abs().max()) < 1e-4 * len(y)
    again = GaussianMoE(3, init=model).fit(x, y)
    assert again.n_iter_ <= 2 and voronoi_loss(again, model) < 0.01


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_sums_are_those_of_autograd(activation):
    """Gradient and information of the gate, over several blocks, with weights and a learned temperature."""
    measure = PLANE.with_options(activation=activation, temperature=0.7)
    x, y = draw(measure, BLOCK + 37, low=-2, high=2)
    weight = np.random.default_rng(3).uniform(0, 2, len(y))
    frame = Frame.of(x, y, weight, centred=activation is None)
    likelihood = Likelihood(x, y, weight, frame, activation=activation, learn_temperature=True)
    state = frame.enter(measure)
    sums = likelihood.sums(state, information=True)
    assert sums.log_likelihood == pytest.approx(weight @ measure.log_prob(x, y), rel=1e-12)
    z = torch.from_numpy(likelihood.rows[:-1].T.copy())
    sigma = torch.tanh if activation else lambda s: s

    def logits(free):
        gate = torch.cat([free[:-1].reshape(2, 3), torch.from_numpy(state.gate[-1:])])
        return (sigma(z[:, 1:] @ gate[:, 1:].mT) if activation else z[:, 1:] @ gate[:, 1:].mT) / free[-1].exp() + gate[
            :, 0
        ] / free[-1].exp()

    def weighted_log_likelihood(free):
        residual = torch.from_numpy(likelihood.rows[-1])[:, None] - z @ torch.from_numpy(state.experts).mT
        var = torch.from_numpy(state.var)
        joint = torch.log_softmax(logits(free), -1) - 0.5 * (residual**2 / var + var.log())
        return torch.from_numpy(weight) @ torch.logsumexp(joint, -1)

    free = torch.from_numpy(np.append(state.gate[:-1].ravel(), state.log_temperature))
    gradient = torch.func.grad(weighted_log_likelihood)(free)
    np.testing.assert_allclose(sums.gradient, gradient.numpy(), rtol=1e-9, atol=1e-8)
    jacobian = torch.func.jacfwd(logits)(free)
    w = torch.softmax(logits(free), -1)
    covariance = torch.diag_embed(w) - w[:, :, None] * w[:, None, :]
    expected = torch.einsum("n,nip,nij,njq->pq", torch.from_numpy(weight), jacobian, covariance, jacobian)
    np.testing.assert_allclose(sums.information, expected.numpy(), rtol=1e-9, atol=1e-8)


def test_known_parameters_are_found_without_a_start():
    x, y = draw(CROSSING, 3000)
    model = GaussianMoE(2).fit(x, y)
    assert voronoi_loss(model, CROSSING) < 0.3
    assert model.score(x, y) > 0.8 and model.converged_
    x, y = draw(PLANE, 4000, low=-2, high=2)
    model = GaussianMoE(3, n_init=4, random_state=0).fit(x, y)
    assert model.log_likelihood_ > PLANE.log_prob(x, y).sum()


def test_the_temperature_is_learned_with_an_activation():
    truth = TEMPERED.with_options(activation="tanh", temperature=0.5)
    x, y = draw(truth, 20_000, low=-3, high=3)
    start = truth.with_options(beta1=[2.3, 0], temperature=0.8)
    options = {"gate": "activation", "activation": "tanh", "learn_temperature": True, "temperature": 0.8}
    by_em = GaussianMoE(2, init=start, **options).fit(x, y)
    by_lbfgs = GaussianMoE(2, init=start, solver="lbfgs", **options).fit(x, y)
    assert by_em.temperature_ == pytest.approx(0.5, abs=0.05) and by_em.beta1_[0, 0] == pytest.approx(2, abs=0.2)
    assert by_lbfgs.log_likelihood_ == pytest.approx(by_em.log_likelihood_, abs=1e-4)
    assert by_lbfgs.temperature_ == pytest.approx(by_em.temperature_, abs=1e-3)


def test_a_learned_temperature_of_a_linear_gate_warns():
    x, y = draw(TEMPERED, 100, low=-3, high=3)
    with pytest.warns(UserWarning, match="every c > 0"):
        GaussianMoE(2, gate="dense_to_sparse", learn_temperature=True).fit(x, y)
    with pytest.warns(UserWarning, match="every c > 0"):
        GaussianMoE(2, gate="activation", activation=torch.relu, learn_temperature=True).fit(x, y)


def test_em_cannot_move_a_hard_gate_and_says_so():
    x, y = draw(CROSSING.with_options(top_k=1), 400)
    start = CROSSING.with_options(beta0=[-9, 0], top_k=1)
    with pytest.warns(ConvergenceWarning, match="profile"):
        model = GaussianMoE(2, top_k=1, init=start).fit(x, y)
    np.testing.assert_allclose(model.beta0_, start.beta0)
    np.testing.assert_allclose(model.beta1_, start.beta1)


def test_profile_search_finds_the_best_boundary():
    x, y = draw(CROSSING.with_options(top_k=1), 60, seed=4)
    model = GaussianMoE(2, top_k=1, gate_update="profile").fit(x, y)
    order = np.argsort(x[:, 0])
    xs, ys = x[order, 0], y[order]

    def segment(x, y):
        slope, intercept = np.polyfit(x, y, 1)
        var = max(np.mean((y - slope * x - intercept) ** 2), 1e-4)
        residual = y - slope * x - intercept
        return -0.5 * np.sum(np.log(2 * np.pi * var) + residual**2 / var)

    best = max(segment(xs[:s], ys[:s]) + segment(xs[s:], ys[s:]) for s in range(3, 58))
    assert model.log_likelihood_ == pytest.approx(best, rel=1e-9)


def test_profile_search_of_three_segments():
    """The bend is at 0.3 and 0.7; the start has it elsewhere."""
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(300, 1))
    y = np.interp(x[:, 0], [0, 0.3, 0.7, 1], [0, 3, -1, 2]) + 0.02 * rng.normal(size=300)
    model = GaussianMoE(3, top_k=1, gate_update="profile").fit(x, y)
    assert model.score(x, y) > 0.99
    hard = model.predict_gate(np.linspace(0.01, 0.99, 99)[:, None]).argmax(1)
    assert np.count_nonzero(np.diff(hard)) == 2


def test_masks_of_the_largest():
    rng = np.random.default_rng(6)
    scores = rng.integers(0, 4, (5, 200)).astype(float)
    for top_k in (1, 2, 4):
        order = np.argsort(-scores, axis=0, kind="stable")[:top_k]
        expected = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(expected, order, True, 0)
        assert (top_k_mask(scores, top_k) == expected).all()


def test_weights_act_as_repetitions_and_units_do_not_matter():
    x, y = draw(PLANE, 300, low=-2, high=2)
    weight = np.random.default_rng(7).integers(0, 4, 300)
    weighted = GaussianMoE(3).fit(x, y, weight)
    repeated = GaussianMoE(3).fit(np.repeat(x, weight, 0), np.repeat(y, weight))
    np.testing.assert_allclose(weighted.predict(x), repeated.predict(x), rtol=1e-6)
    plain = GaussianMoE(3, variance_floor=1e-9).fit(x, y)
    moved = GaussianMoE(3, variance_floor=1e-7).fit(1e3 * x - 5e4, 10 * y + 1e4)
    np.testing.assert_allclose((moved.predict(1e3 * x - 5e4) - 1e4) / 10, plain.predict(x), atol=1e-5)
    assert moved.log_likelihood_ == pytest.approx(plain.log_likelihood_ - 300 * np.log(10), abs=1e-4)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "data",
    [
        (np.ones((20, 1)), np.arange(20.0)),
        (np.arange(20.0)[:, None], np.ones(20)),
        (np.ones((1, 3)), np.ones(1)),
        (np.random.default_rng(0).normal(size=(4, 6)), np.arange(4)),
        (np.repeat([[0.0], [1.0]], 8, 0), np.arange(16.0)),
        (np.arange(40)[:, None].astype(np.float32)[::2], np.arange(20, dtype=np.int32)),
    ],
    ids=["constant x", "constant y", "one sample", "more features", "two places", "float32, strided, int"],
)
def test_odd_data(data):
    model = GaussianMoE(2).fit(*data)
    assert np.isfinite(model.predict(data[0])).all() and np.isfinite(model.log_prob(*data)).all()
    assert model.predict(data[0]).dtype == np.float64


def test_a_constant_feature_gets_no_slope():
    model = GaussianMoE(1).fit(np.full((20, 1), 7.0), np.arange(20.0))
    assert model.a_.tolist() == [[0.0]] and model.b_[0] == pytest.approx(9.5)


def test_huge_logits_and_empty_experts():
    x, y = draw(CROSSING, 100)
    start = CROSSING.with_options(beta0=[-1e4, 0], beta1=[0, 0])
    with pytest.warns(ConvergenceWarning, match=r"experts \[0\] have no samples"):
        model = GaussianMoE(2, init=start).fit(x, y)
    assert np.isfinite(model.log_likelihood_)


def test_it_warns_when_iterations_run_out():
    x, y = draw(CROSSING, 200)
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        model = GaussianMoE(2, max_iter=1).fit(x, y)
    assert not model.converged_ and model.n_iter_ == 1


def test_an_activation_that_overflows_is_an_error():
    x, y = draw(CROSSING, 50)
    with pytest.raises(FloatingPointError, match="activation"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        GaussianMoE(2, gate="activation", activation=lambda u: u / 0).fit(x, y)


BAD = [
    ({"n_experts": 0}, "n_experts"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": 3}, "top_k"),
    ({"gate": "hard"}, "gate"),
    ({"activation": "tanh"}, "activation"),
    ({"gate": "activation"}, "activation"),
    ({"gate": "activation", "activation": "step"}, "activation"),
    ({"temperature": 2.0}, "temperature"),
    ({"gate": "dense_to_sparse", "temperature": -1.0}, "temperature"),
    ({"gate": "dense_to_sparse", "temperature": float("nan")}, "temperature"),
    ({"select": "bias"}, "select"),
    ({"solver": "sgd"}, "solver"),
    ({"solver": "lbfgs", "top_k": 1}, "solver"),
    ({"gate_update": "profile"}, "gate_update"),
    ({"init": "random"}, "init"),
    ({"init": PLANE}, "init"),
    ({"init": CROSSING.with_options(temperature=2.0)}, "init"),
    ({"max_iter": 0}, "max_iter"),
    ({"tol": 0.0}, "tol"),
    ({"variance_floor": 0.0}, "variance_floor"),
    ({"n_init": 0}, "n_init"),
]


@pytest.mark.parametrize(("options", "name"), BAD)
def test_bad_options_are_refused_by_fit(options, name):
    x, y = draw(CROSSING, 30)
    with pytest.raises(ArgumentValueError, match=name):
        GaussianMoE(**options).fit(x, y)


@pytest.mark.parametrize(("options", "name"), [({"init": 3}, "init"), ({"n_experts": 2.5}, "n_experts")])
def test_bad_types_are_refused_by_fit(options, name):
    with pytest.raises(ArgumentTypeError, match=name):
        GaussianMoE(**options).fit(*draw(CROSSING, 30))


def test_bad_data_is_refused():
    x, y = draw(CROSSING, 30)
    infinite = np.where(y == y[3], np.inf, y)
    for bad_x, bad_y in ((x * np.nan, y), (x, infinite), (x[:0], y[:0]), (x[:, 0], y), (x, y[:-1])):
        with pytest.raises(ValueError, match=r"NaN|infinity|sample|array|inconsistent"):
            GaussianMoE().fit(bad_x, bad_y)
    for weight in (np.zeros(30), -np.ones(30)):
        with pytest.raises(ValueError, match=r"sample_weight|[Ss]ample weights"):
            GaussianMoE().fit(x, y, weight)
    with pytest.raises(NotFittedError):
        GaussianMoE().predict(x)


def test_it_lives_in_pipelines_and_samples():
    x, y = draw(CROSSING, 400)
    pipeline = make_pipeline(StandardScaler(), clone(GaussianMoE(2))).fit(x, y)
    assert pipeline.score(x, y) > 0.8
    model = GaussianMoE(2).fit(x, y)
    assert (model.sample(x, 3) == model.sample(x, 3)).all() and model.sample(x).shape == (400,)


def test_without_scikit_learn_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.base'] = None\n"
        "from softgate.routing import GaussianMoE, MixingMeasure\n"
        "MixingMeasure([0], [0], [0], [0], [1]).gate([[1.0]])\n"
        "try:\n    GaussianMoE(3)\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "GaussianMoE" in done.stdout and "softgate[data]" in done.stdout


def test_a_state_survives_its_frame():
    x, y = draw(PLANE, 50)
    frame = Frame.of(5 + 3 * x, 7 * y - 1, np.ones(50), centred=True)
    state = frame.enter(PLANE)
    assert isinstance(state, State)
    back = frame.leave(state, PLANE)
    for name in ("beta0", "beta1", "a", "b", "var"):
        np.testing.assert_allclose(getattr(back, name), getattr(PLANE, name), atol=1e-12)
