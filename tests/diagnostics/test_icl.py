"""In-context linear regression: prompts, the layer, the predictors it becomes, their risks, the circuit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from softgate.diagnostics import icl
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.normalizers import stablemax

D = torch.float64


def prompts(batch: int = 4, *, d: int = 3, L: int = 10, seed: int = 0, **options: object) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return icl.LinearRegressionPrompts(d, L, 0.1, **options)(batch, generator, dtype=D)


def layer(omega: list[float], mu: list[float], d: int = 3, **options: object) -> icl.AttentionICL:
    return icl.AttentionICL(d, len(omega), **options).double().set_circuit(omega, mu)


def smoother_by_loops(tokens: Tensor, omega: list[float], mu: list[float]) -> float:
    *points, query = tokens.tolist()
    total = 0.0
    for w, m in zip(omega, mu, strict=True):
        e = [math.exp(w * sum(a * b for a, b in zip(p[:-1], query[:-1], strict=True))) for p in points]
        total += m * sum(v * p[-1] for v, p in zip(e, points, strict=True)) / sum(e)
    return total


# --- prompts


def test_labels_follow_the_model_that_is_documented() -> None:
    tokens, target = prompts(20_000, d=4, L=6)
    x, y = tokens[:, :-1, :4], tokens[:, :-1, 4]
    assert bool((tokens[:, -1, 4] == 0).all()) and target.shape == (20_000, 1)
    torch.testing.assert_close(x.reshape(-1, 4).T.cov(), torch.eye(4, dtype=D), rtol=0, atol=0.02)
    assert float(y.var()) == pytest.approx(1.1, abs=0.02)  # βᵀx has variance 1
    assert float(target.var()) == pytest.approx(1.1, abs=0.04)
    noiseless = icl.LinearRegressionPrompts(2, 3, 0.0)(5, torch.Generator().manual_seed(0), dtype=D)
    torch.testing.assert_close(icl.predictors.ridge(noiseless[0], 0.0), noiseless[1][:, 0])


def test_covariates_have_the_given_covariance_even_if_it_is_singular() -> None:
    cov = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.25]], dtype=D)  # rank 2
    tokens, _ = prompts(20_000, d=3, L=4, cov=cov)
    torch.testing.assert_close(tokens[..., :3].reshape(-1, 3).T.cov(), cov, rtol=0, atol=0.05)


def test_each_task_lives_on_its_own_coordinates() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, target = icl.LinearRegressionPrompts(4, 8, 0.0, tasks=[range(2), [2, 3]])(6, generator, dtype=D)
    assert tokens.shape == (6, 9, 6) and target.shape == (6, 2)
    for n, support in enumerate(([0, 1], [2, 3])):
        own = tokens[..., [*support, 4 + n]]
        torch.testing.assert_close(icl.predictors.ridge(own, 0.0), target[:, n])


def test_prompts_are_the_same_for_the_same_generator() -> None:
    assert torch.equal(prompts(seed=3)[0], prompts(seed=3)[0]) and not torch.equal(prompts(seed=3)[0], prompts()[0])


# --- the layer


def test_a_layer_with_the_circuit_is_a_sum_of_kernel_smoothers() -> None:
    omega, mu = [0.4, -0.7, 0.1], [1.5, -2.0, 0.3]
    tokens, _ = prompts()
    predicted = layer(omega, mu)(tokens)[:, 0]
    smoothed = icl.predictors.kernel_smoother(tokens, torch.tensor(mu, dtype=D), torch.tensor(omega, dtype=D))
    torch.testing.assert_close(predicted, smoothed)
    for i, prompt in enumerate(tokens):
        assert float(predicted[i].detach()) == pytest.approx(smoother_by_loops(prompt, omega, mu), rel=1e-10)


def test_free_matrices_by_loops() -> None:
    model = icl.AttentionICL(2, 2, n_tasks=2, init_std=0.5).double()
    tokens, _ = prompts(d=2, L=5, tasks=[[0], [1]])
    expected = []
    for z in tokens:
        total = torch.zeros(4, dtype=D)
        for K, Q, V, W in zip(model.key, model.query, model.value, model.output, strict=True):
            scores = torch.stack([(K @ point) @ (Q @ z[-1]) for point in z[:-1]])
            total = total + W @ sum(p * (V @ point) for p, point in zip(scores.softmax(0), z[:-1], strict=True))
        expected.append(total[-2:])
    torch.testing.assert_close(model(tokens), torch.stack(expected))


def test_the_querys_label_slot_is_never_read() -> None:
    model, (tokens, _) = icl.AttentionICL(3, 2, init_std=1.0).double(), prompts()
    leaking = tokens.clone()
    leaking[:, -1, -1] = 100.0
    assert torch.equal(model(leaking), model(tokens))
    model(tokens).sum().backward()
    assert model.query.grad is not None
    assert not torch.autograd.grad(model(tokens).sum(), model.query)[0][:, :, -1].any()  # that column never trains


def test_small_scores_make_the_pair_debiased_gradient_descent_with_an_error_of_second_order() -> None:
    tokens, _ = prompts(64)
    limit = icl.predictors.debiased_gd(tokens, 0.8)
    errors = []
    for w in (0.02, 0.01):
        predicted = layer([w, -w], [0.4 / w, -0.4 / w])(tokens)[:, 0]
        errors.append(float((predicted - limit).abs().max().detach()))
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)


def test_the_order_of_the_points_does_not_matter() -> None:
    tokens, _ = prompts()
    model = icl.AttentionICL(3, 2, init_std=0.7).double()
    order = torch.cat((torch.randperm(10), torch.tensor([10])))
    torch.testing.assert_close(model(tokens[:, order]), model(tokens))


def test_a_common_shift_of_the_points_cancels() -> None:
    tokens, _ = prompts()
    moved = tokens.clone()
    moved[:, :-1, :3] += torch.tensor([3.0, -1.0, 2.0], dtype=D)
    model = layer([0.4, -0.4], [1.0, -1.0])
    torch.testing.assert_close(model(moved), model(tokens))
    debiased = icl.predictors.debiased_gd
    torch.testing.assert_close(debiased(moved, 0.8), debiased(tokens, 0.8))
    assert float((icl.predictors.gd(moved, 0.8) - icl.predictors.gd(tokens, 0.8)).abs().max()) > 0.1


def test_a_repeated_context_changes_linear_attention_alone() -> None:
    tokens, _ = prompts()
    twice = torch.cat((tokens[:, :-1], tokens), 1)
    softmax, linear = layer([0.4], [1.0]), layer([0.4], [1.0], attention="linear", train_length=10)
    torch.testing.assert_close(softmax(twice), softmax(tokens))
    torch.testing.assert_close(linear(twice), 2 * linear(tokens))


def test_linear_attention_is_gradient_descent_at_its_training_length() -> None:
    tokens, _ = prompts()
    linear = layer([0.4], [2.0], attention="linear", train_length=10)
    torch.testing.assert_close(linear(tokens)[:, 0], icl.predictors.gd(tokens, 0.8))


@pytest.mark.parametrize("attention", ["softmax", "linear", stablemax], ids=["softmax", "linear", "callable"])
def test_masked_points_are_absent_points(attention: object) -> None:
    tokens, _ = prompts()
    model = layer([0.4, -0.3], [1.0, 0.5], attention=attention, train_length=10)
    mask = torch.arange(10).expand(4, 10) < 7
    shorter = torch.cat((tokens[:, :7], tokens[:, -1:]), 1)
    torch.testing.assert_close(model(tokens, mask), model(shorter))
    torch.testing.assert_close(model(tokens, torch.ones_like(mask)), model(tokens))


def test_any_normaliser_can_take_the_place_of_softmax() -> None:
    tokens, _ = prompts()
    theirs = (
        icl.AttentionICL(3, 1, attention=lambda scores, dim: scores.softmax(dim)).double().set_circuit([0.4], [1.0])
    )
    assert torch.equal(theirs(tokens), layer([0.4], [1.0])(tokens))
    assert not torch.equal(layer([0.4], [1.0], attention=stablemax)(tokens), theirs(tokens))


def test_negated_labels_negate_the_prediction() -> None:
    tokens, _ = prompts()
    negated = tokens * torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=D)
    model = layer([0.4, -0.2], [1.0, -3.0])
    torch.testing.assert_close(model(negated), -model(tokens))


def test_half_precision_tokens_are_computed_in_float32() -> None:
    tokens, _ = prompts()
    model = layer([0.4, -0.4], [30.0, -30.0])
    half = model.float()(tokens.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), model(tokens.bfloat16().float()), rtol=1e-2, atol=1e-2)


def test_many_layers_run_at_once_under_vmap() -> None:
    models = [icl.AttentionICL(3, 2).double() for _ in range(3)]
    tokens, _ = prompts()
    stacked, _ = torch.func.stack_module_state(models)
    together = torch.vmap(lambda p: torch.func.functional_call(models[0], p, (tokens,)))(stacked)
    torch.testing.assert_close(together, torch.stack([model(tokens) for model in models]))


# --- predictors and risks


def test_predictors_by_loops() -> None:
    tokens, _ = prompts(3)
    A = torch.randn(3, 3, dtype=D)
    for i, z in enumerate(tokens):
        x, y, query = z[:-1, :3], z[:-1, 3], z[-1, :3]
        plain = sum(float(t) * float(v @ query) for v, t in zip(x, y, strict=True)) / 10
        assert float(icl.predictors.gd(tokens, 2.0)[i]) == pytest.approx(2.0 * plain)
        centred = sum(float(t) * float((v - x.mean(0)) @ query) for v, t in zip(x, y, strict=True)) / 10
        assert float(icl.predictors.debiased_gd(tokens, 2.0)[i]) == pytest.approx(2.0 * centred)
        conditioned = sum(float(t) * float(v @ A @ query) for v, t in zip(x, y, strict=True)) / 10
        assert float(icl.predictors.preconditioned_gd(tokens, A)[i]) == pytest.approx(conditioned)
        augmented = torch.cat((x, 0.7**0.5 * torch.eye(3, dtype=D)))
        beta = torch.linalg.lstsq(augmented, torch.cat((y, torch.zeros(3, dtype=D)))[:, None]).solution[:, 0]
        assert float(icl.predictors.ridge(tokens, 0.7)[i]) == pytest.approx(float(beta @ query))


@pytest.mark.parametrize(
    ("mu", "omega"), [([1.3], [0.4]), ([2.0, -2.0], [0.2, -0.2]), ([1.0, -0.5, 0.2], [0.3, -0.4, 0.1])]
)
def test_the_risk_formula_against_monte_carlo(mu: list[float], omega: list[float]) -> None:
    weights = torch.tensor(mu, dtype=D), torch.tensor(omega, dtype=D)
    tokens, target = prompts(6000, d=5, L=400)
    measured = float((icl.predictors.kernel_smoother(tokens, *weights) - target[:, 0]).square().mean())
    assert measured == pytest.approx(float(icl.risk(*weights, 5, 400, 0.1)), rel=0.05)


def test_the_best_single_head_minimises_the_risk() -> None:
    best = icl.optimal_single_head(5, 200, 0.1)
    grid_mu, grid_omega = torch.meshgrid(
        torch.linspace(0.2, 4, 381, dtype=D), torch.linspace(0.05, 1.5, 291, dtype=D), indexing="ij"
    )
    risks = icl.risk(grid_mu[..., None], grid_omega[..., None], 5, 200, 0.1)
    assert best.risk <= float(risks.min()) + 1e-12 and best.risk == pytest.approx(float(risks.min()), abs=1e-4)
    at = icl.risk(torch.tensor(best.mu, dtype=D), torch.tensor(best.omega, dtype=D), 5, 200, 0.1)
    assert float(at) == pytest.approx(best.risk, rel=1e-12)
    assert best.eta == pytest.approx(best.mu[0] * best.omega[0])


def test_the_best_pair_minimises_the_risk_at_its_scale_and_falls_to_its_limit() -> None:
    limit = icl.optimal_multi_head(5, 200, 0.1)
    before = math.inf
    for w in (0.5, 0.2, 0.05):
        best = icl.optimal_multi_head(5, 200, 0.1, omega=w)
        mu = torch.tensor(best.mu, dtype=D).requires_grad_()
        value = icl.risk(mu, torch.tensor(best.omega, dtype=D), 5, 200, 0.1)
        (slope,) = torch.autograd.grad(value, mu)
        assert float(value.detach()) == pytest.approx(best.risk, rel=1e-9)
        assert float((slope * torch.tensor([1.0, -1.0], dtype=D)).sum().abs()) < 1e-9
        assert limit.risk < best.risk < before
        before = best.risk
    assert before == pytest.approx(limit.risk, rel=1e-4)
    assert limit.risk < icl.optimal_single_head(5, 200, 0.1).risk


def test_no_third_head_lowers_the_risk_of_the_pair() -> None:
    torch.manual_seed(0)
    parameters = torch.tensor([[1.0, -1.0, 0.1], [0.3, -0.3, 0.2]], dtype=D, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        icl.risk(parameters[0], parameters[1], 5, 40, 0.1).backward()
        optimizer.step()
    reached = float(icl.risk(*parameters.detach(), 5, 40, 0.1))
    assert icl.optimal_multi_head(5, 40, 0.1).risk <= reached < icl.optimal_multi_head(5, 40, 0.1, omega=0.4).risk


def test_the_best_step_of_plain_gradient_descent() -> None:
    tokens, target = prompts(200_000, d=3, L=8)
    raw = icl.predictors.gd(tokens, 1.0)
    best = float((raw * target[:, 0]).sum() / raw.square().sum())
    assert icl.gd_step_size(3, 8, 0.1) == pytest.approx(best, rel=0.01)


def test_the_best_preconditioner() -> None:
    cov = torch.tensor([2.0, 1.0, 0.25], dtype=D).diag()
    A = icl.optimal_preconditioner(cov, 8, 0.1)
    tokens, target = prompts(200_000, d=3, L=8, cov=cov)
    moments = (tokens[:, :-1, :3] * tokens[:, :-1, 3:]).mean(1)  # ŷ = Σ_i A_ii m_i x_qi is linear in A
    features = moments * tokens[:, -1, :3]
    fitted = torch.linalg.lstsq(features, target).solution[:, 0]
    torch.testing.assert_close(A.diagonal(), fitted, rtol=0.03, atol=0)
    torch.testing.assert_close(A, A.diagonal().diag())


def test_the_bayes_risk_is_what_ridge_attains() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate = icl.bayes_risk_mc(5, 40, 0.1, samples=20_000, generator=generator)
    tokens, target = prompts(60_000, d=5, L=40)
    attained = float((icl.predictors.ridge(tokens, 0.5) - target[:, 0]).square().mean())
    assert estimate.standard_error < 1e-3 and attained == pytest.approx(estimate.risk, rel=0.03)
    cov = torch.tensor([2.0, 0.5], dtype=D).diag()
    estimate = icl.bayes_risk_mc(2, 6, 0.1, cov=cov, samples=20_000, generator=generator)
    tokens, target = prompts(60_000, d=2, L=6, cov=cov)
    attained = float((icl.predictors.ridge(tokens, 0.2) - target[:, 0]).square().mean())
    assert attained == pytest.approx(estimate.risk, rel=0.03)


def test_without_noise_only_unseen_directions_are_uncertain() -> None:
    assert icl.bayes_risk_mc(4, 6, 0.0, samples=50).risk == 0.0
    assert icl.bayes_risk_mc(4, 3, 0.0, samples=50).risk == pytest.approx(0.25)


# --- the circuit


def test_the_report_reads_a_circuit_that_was_written() -> None:
    report = icl.circuit_report(layer([0.2, -0.2, 0.0], [2.0, -1.8, -0.2]))
    torch.testing.assert_close(report.omega[:, 0], torch.tensor([0.2, -0.2, 0.0], dtype=D))
    torch.testing.assert_close(report.mu[:, 0], torch.tensor([2.0, -1.8, -0.2], dtype=D))
    assert report.roles == ("positive", "negative", "dummy") and float(report.eta) == pytest.approx(0.76)
    assert report.zero_sum == pytest.approx(0.0, abs=1e-12)
    assert max(report.off_diagonal, report.homogeneity, report.label_row, report.other_output) < 1e-12
    assert "positive" in str(report) and "0.760" in str(report)
    assert icl.circuit_report(layer([0.2], [-1.0])).roles == ("opposed",)


def test_the_report_sees_every_departure_from_the_pattern() -> None:
    model = layer([0.2, -0.2], [2.0, -1.0])
    with torch.no_grad():
        model.key[0] = torch.eye(4, dtype=D)
        model.query[0, 0, 0], model.query[0, 0, 1], model.query[0, 3, 1] = 0.3, 0.07, 0.05
        model.output[1, 3, 1], model.value[1, 1, 1] = 0.5, 1.0
    report = icl.circuit_report(model)
    assert report.off_diagonal == pytest.approx(0.07) and report.label_row == pytest.approx(0.05)
    assert report.homogeneity == pytest.approx(0.1 / (0.7 / 3)) and report.other_output == pytest.approx(0.5)
    assert report.zero_sum == pytest.approx(1 / 3)


def test_the_report_depends_on_the_merged_matrices_alone() -> None:
    model = icl.AttentionICL(3, 3, init_std=0.5).double()
    before = icl.circuit_report(model)
    M = torch.randn(3, 4, 4, dtype=D)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        model.key.copy_((M @ model.key)[order])
        model.query.copy_((torch.linalg.inv(M).mT @ model.query)[order])
        model.value.copy_(model.value[order])
        model.output.copy_(model.output[order])
    after = icl.circuit_report(model)
    torch.testing.assert_close(after.omega, before.omega[order])
    assert after.roles == tuple(before.roles[i] for i in order.tolist())
    for name in ("off_diagonal", "homogeneity", "zero_sum", "label_row", "other_output"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-6)


def test_heads_of_several_tasks_are_told_apart() -> None:
    omega = torch.tensor([[0.2, 0.2, 0, 0], [-0.2, -0.2, 0, 0], [0, 0, 0.3, 0.3], [0.1, 0.1, -0.3, -0.3]])
    mu = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [1.0, -2.0]])
    model = icl.AttentionICL(4, 4, n_tasks=2).set_circuit(omega, mu)
    report = icl.circuit_report(model, [[0, 1], [2, 3]])
    assert report.roles == ("+0", "-0", "+1", "+0 -1")
    torch.testing.assert_close(report.omega, omega[:, [0, 2]])
    torch.testing.assert_close(report.eta, torch.tensor([0.7, 1.2]))


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"d": 0}, ArgumentValueError, "d"),
        ({"L": 0}, ArgumentValueError, "L"),
        ({"sigma2": -0.1}, ArgumentValueError, "sigma2"),
        ({"cov": -torch.eye(3)}, ArgumentValueError, "cov must be positive"),
        ({"cov": torch.eye(2)}, ArgumentValueError, "cov must have shape"),
        ({"cov": torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])}, ArgumentValueError, "symmetric"),
        ({"cov": 1.0}, ArgumentTypeError, "cov"),
        ({"tasks": [[0, 1], [1, 2]]}, ArgumentValueError, "disjoint"),
        ({"tasks": [[0], [3]]}, ArgumentValueError, "tasks"),
        ({"tasks": [[0], []]}, ArgumentValueError, "tasks"),
        ({"tasks": []}, ArgumentValueError, "tasks"),
        ({"tasks": [0, 1]}, ArgumentTypeError, "tasks"),
        ({"tasks": [[0.5]]}, ArgumentTypeError, "tasks"),
    ],
    ids=str,
)
def test_impossible_prompts_are_refused(options: dict[str, object], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        icl.LinearRegressionPrompts(**{"d": 3, "L": 4, "sigma2": 0.1, **options})


def test_impossible_layers_and_questions_are_refused() -> None:
    tokens, _ = prompts()
    for options in ({"n_heads": 0}, {"init_std": -1.0}, {"attention": "sparse"}, {"attention": "linear"}):
        word = "train_length" if options.get("attention") == "linear" else next(iter(options))
        with pytest.raises(ArgumentValueError, match=word):
            icl.AttentionICL(**{"d": 3, "n_heads": 2, **options})
    model = layer([0.1], [1.0])
    with pytest.raises(ArgumentTypeError, match="attention"):
        icl.AttentionICL(3, 1, attention=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="omega"):
        model.set_circuit([0.1, 0.2], [1.0])
    with pytest.raises(ArgumentValueError, match="labelled point"):
        model(tokens[:, -1:])
    with pytest.raises(ArgumentTypeError, match="kq"):
        model(tokens.float())
    with pytest.raises(ArgumentValueError, match="context_mask"):
        model(tokens, torch.zeros(4, 10, dtype=torch.bool))
    with pytest.raises(ArgumentTypeError, match="model"):
        icl.circuit_report(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="tasks"):
        icl.circuit_report(model, [[0], [1]])


def test_impossible_questions_of_predictors_and_theory_are_refused() -> None:
    tokens, _ = prompts()
    one = torch.ones(1, dtype=D)
    with pytest.raises(ArgumentValueError, match="tokens"):
        icl.predictors.gd(tokens[:, -1:], 1.0)
    with pytest.raises(ArgumentValueError, match="lam"):
        icl.predictors.ridge(tokens, -1.0)
    with pytest.raises(ArgumentValueError, match="preconditioner"):
        icl.predictors.preconditioned_gd(tokens, torch.eye(2))
    with pytest.raises(ArgumentValueError, match="omega"):
        icl.predictors.kernel_smoother(tokens, one, torch.ones(2, dtype=D))
    with pytest.raises(ArgumentValueError, match="omega"):
        icl.risk(one, torch.ones(2, dtype=D), 5, 40, 0.1)
    with pytest.raises(ArgumentTypeError, match="omega"):
        icl.risk(one, one.float(), 5, 40, 0.1)
    with pytest.raises(ArgumentValueError, match="omega"):
        icl.optimal_multi_head(5, 40, 0.1, omega=0.0)
    with pytest.raises(ArgumentValueError, match="sigma2"):
        icl.optimal_single_head(5, 40, -0.1)
    with pytest.raises(ArgumentValueError, match="cov"):
        icl.optimal_preconditioner(torch.zeros(2, 2), 8, 0.0)
    with pytest.raises(ArgumentTypeError, match="cov"):
        icl.optimal_preconditioner(1.0, 8, 0.1)  # type: ignore[arg-type]
