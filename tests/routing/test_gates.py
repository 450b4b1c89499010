"""Gates: what they choose, what they weigh, what their buffers do."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.routing import (
    TOP_K_ROUTERS,
    ActivationGate,
    DenseToSparse,
    Gate,
    SigmoidBias,
    TopKSoftmax,
    balance_after,
    balanced_bias,
    dense_to_sparse_gate,
    max_violation,
    simulate_balancing,
    topk_sigmoid,
    topk_softmax,
    update_gates,
)


def test_both_orders_are_one_function_in_value_and_gradient() -> None:
    logits = torch.randn(50, 9, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(50, 3, dtype=torch.float64)
    found = []
    for order in ("softmax_first", "topk_first"):
        weights, indices = topk_softmax(logits, 3, order=order)
        found.append((weights, indices, torch.autograd.grad(weights, logits, seed)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_all_experts_are_softmax_to_the_bit_and_one_is_one() -> None:
    logits = torch.randn(20, 6)
    weights, indices = topk_softmax(logits, 6)
    assert torch.equal(torch.zeros(20, 6).scatter(1, indices, weights), logits.softmax(-1))
    assert torch.equal(topk_softmax(logits, 1)[0], torch.ones(20, 1))
    assert torch.equal(topk_softmax(logits, 1)[1][:, 0], logits.argmax(-1))


@pytest.mark.parametrize("k", [1, 3, 8, 9, 40])  # by passes and by sorting
def test_ties_fall_to_the_lowest_index_and_no_expert_comes_twice(k) -> None:
    logits = torch.randint(0, 3, (200, 40)).float()
    logits[::7, 5:] = float("-inf")
    logits[3] = float("-inf")
    indices = topk_softmax(logits, k)[1]
    assert torch.equal(indices, torch.sort(logits, dim=-1, descending=True, stable=True)[1][:, :k])
    assert (indices.sort(-1).values.diff(dim=-1) > 0).all()


def test_scores_choose_and_logits_weigh() -> None:
    logits, scores = torch.tensor([0.0, 1.0, 2.0, -900.0]), torch.tensor([0.0, 1.0, 0.5, 2.0])
    weights, indices = topk_softmax(logits, 2, scores)
    assert indices.tolist() == [3, 1] and torch.equal(weights, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(topk_softmax(logits, 2, scores, renorm="none")[0], logits.softmax(-1)[indices])


def test_sixteen_bits_make_no_ties_in_the_softmax() -> None:
    logits = torch.tensor([8.0, 8.0625, 0.0], dtype=torch.bfloat16)
    weights, indices = topk_softmax(logits, 2, renorm="none")
    assert weights.dtype is torch.float32 and weights[0] > weights[1] and indices.tolist() == [1, 0]


@pytest.mark.parametrize("name", sorted(TOP_K_ROUTERS))
def test_routers_keep_the_contract_of_swap(name) -> None:
    logits = torch.randn(30, 8, requires_grad=True)
    scores, indices = TOP_K_ROUTERS[name](logits, 3)
    assert scores.shape == indices.shape == (30, 3) and indices.dtype is torch.int64
    assert (indices.sort(-1).values.diff(dim=-1) > 0).all() and scores.isfinite().all()
    (scores * torch.randn(30, 3)).sum().backward()
    assert logits.grad.abs().max() > 0


# Gates with parameters.


def test_logits_are_float32_under_autocast_and_in_sixteen_bits() -> None:
    gate, x = TopKSoftmax(16, 8), torch.randn(5, 16)
    plain = gate(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gate(x)
    assert torch.equal(plain.logits, inside.logits) and inside.weights.dtype is torch.float32
    assert TopKSoftmax(16, 8, dtype=torch.bfloat16)(x.bfloat16()).logits.dtype is torch.float32


def test_one_expert_with_weight_one_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="no gradient from the task"):
        gate = TopKSoftmax(4, 8, k=1)
    x = torch.randn(6, 4)
    gradient = torch.autograd.grad(gate(x).weights.sum(), gate.weight, allow_unused=True)[0]
    assert gradient is None or gradient.abs().max() < 1e-6
    switch = TopKSoftmax(4, 8, k=1, renorm="none")
    assert torch.autograd.grad(switch(x).weights.sum(), switch.weight)[0].abs().max() > 0


def test_noise_is_for_training_only() -> None:
    x = torch.randn(200, 8)
    for noise in ("shazeer", "jitter"):
        gate = TopKSoftmax(8, 4, noise=noise, jitter=0.5)
        nn.init.normal_(gate.weight)
        first, second = gate(x).logits, gate(x).logits
        assert (first - second).abs().max() > 0.1
        quiet = gate.eval()(x).logits
        assert torch.equal(quiet, gate(x).logits)
        assert torch.equal(quiet, x @ gate.weight.t()) or torch.allclose(quiet, x @ gate.weight.t(), atol=1e-6)
    # softplus(0) = ln 2 is the spread that the untrained noise has
    gate = TopKSoftmax(8, 50, noise="shazeer")
    spread = (gate(x).logits - x @ gate.weight.t()).detach().std()
    assert math.isclose(float(spread), math.log(2), rel_tol=0.05)
    gate(x).weights.sum().backward()


def test_activation_gate_is_its_formula() -> None:
    gate = ActivationGate(8, 4, k=4, activation="tanh", temperature=0.5)
    nn.init.normal_(gate.bias)
    x = torch.randn(6, 8)
    routed = gate(x)
    expected = dense_to_sparse_gate(x @ gate.weight.t(), gate.bias, 0.5, "tanh")
    torch.testing.assert_close(torch.zeros(6, 4).scatter(1, routed.indices, routed.weights), expected)


def test_a_learned_temperature_starts_where_it_was_told_and_learns() -> None:
    for start in (0.01, 1.0, 30.0):
        gate = ActivationGate(8, 4, learn_temperature=True, temperature=start)
        assert math.isclose(float(gate.temperature.detach()), start, rel_tol=1e-3)
    gate = ActivationGate(8, 4, learn_temperature=True)
    nn.init.normal_(gate.weight)
    gate(torch.randn(5, 8)).weights.square().sum().backward()
    assert gate.rho.grad.abs() > 0
    with pytest.warns(UserWarning, match="only rescales"):
        ActivationGate(8, 4, activation="relu", learn_temperature=True)


def test_scaling_slopes_bias_and_temperature_changes_nothing_with_a_linear_score() -> None:
    scores, bias = torch.randn(5, 4), torch.randn(4)
    torch.testing.assert_close(dense_to_sparse_gate(3 * scores, 3 * bias, 1.5), dense_to_sparse_gate(scores, bias, 0.5))
    for homogeneous, same in (("relu", True), ("tanh", False)):
        a = dense_to_sparse_gate(3 * scores, 3 * bias, 1.5, homogeneous)
        assert torch.allclose(a, dense_to_sparse_gate(scores, bias, 0.5, homogeneous), atol=1e-6) == same


@pytest.mark.parametrize("schedule", ["exp", "linear", "cosine"])
def test_the_temperature_falls_on_schedule_and_resumes(schedule) -> None:
    gate = DenseToSparse(4, 8, steps=10, schedule=schedule)
    seen = [float(gate.temperature)]
    for _ in range(12):
        assert update_gates(gate) == 1
        seen.append(float(gate.temperature))
    halfway = {"exp": math.sqrt(2.0 * 0.3), "linear": 1.15, "cosine": 1.15}
    assert math.isclose(seen[5], halfway[schedule], rel_tol=1e-6)
    assert seen[0] == 2.0 and math.isclose(seen[-1], 0.3, rel_tol=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(seen))
    again = DenseToSparse(4, 8, steps=10, schedule=schedule)
    again.load_state_dict(gate.state_dict())
    assert again.temperature == gate.temperature


def test_dense_to_sparse_leaves_out_small_shares() -> None:
    gate = DenseToSparse(4, 8, steps=10, k_max=3).eval()
    nn.init.normal_(gate.weight)
    routed = gate(torch.randn(100, 4))
    p = (routed.logits / 2.0).softmax(-1)
    torch.testing.assert_close(routed.probs, p)
    active = routed.indices < 8
    assert active[:, 0].all() and not active.all() and active[:, 1].any()
    assert (routed.weights[~active] == 0).all() and (routed.weights[active[:, 0], 0] >= 1 / 8).all()
    expected = (p >= 1 / 8).sum(-1).clamp(1, 3)
    assert torch.equal(active.sum(-1), expected)
    gate.train()
    assert (gate(torch.zeros(50, 4)).probs.std(0) > 0).all()  # Gumbel noise


# The balancing bias.


def test_the_bias_changes_the_choice_and_never_the_weight() -> None:
    logits, bias = torch.randn(300, 8), torch.randn(8) / 5
    plain, biased = topk_sigmoid(logits, 2, renorm=False), topk_sigmoid(logits, 2, bias, renorm=False)
    changed = (plain[1] != biased[1]).any(-1)
    assert changed.any() and not changed.all()
    torch.testing.assert_close(biased[0], logits.sigmoid().gather(-1, biased[1]))
    assert torch.equal(plain[0][~changed], biased[0][~changed])


def test_groups_limit_the_choice() -> None:
    logits = torch.randn(200, 8)
    indices = topk_sigmoid(logits, 3, n_groups=4, topk_groups=2)[1]
    share = logits.sigmoid().view(200, 4, 2).sum(-1).topk(2).indices
    assert ((indices // 2)[..., None] == share[:, None]).any(-1).all()


def test_the_update_is_its_formula_and_its_sum_stays() -> None:
    bias, load = torch.randn(6), torch.tensor([9, 0, 3, 3, 3, 0])
    torch.testing.assert_close(
        balanced_bias(bias, load, 0.1, centre=False) - bias, 0.1 * torch.tensor([-1.0, 1, 0, 0, 0, 1])
    )
    assert torch.isclose(balanced_bias(bias, load, 0.1).sum(), bias.sum(), atol=1e-6)
    assert torch.equal(balanced_bias(bias, torch.full((6,), 4), 0.1), bias)


def test_one_update_per_optimiser_step_over_all_micro_batches() -> None:
    gate = SigmoidBias(4, 8)
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.0)
    handle = balance_after(optimizer, gate)
    for _ in range(3):
        gate(torch.randn(10, 4)).weights.sum().backward()
    assert int(gate.load.sum()) == 60 and not gate.bias.any()
    expected = balanced_bias(gate.bias, gate.load, 1e-3)
    optimizer.step()
    assert torch.equal(gate.bias, expected) and gate.bias.any() and not gate.load.any()
    gate.eval()(torch.randn(10, 4))
    assert not gate.load.any()
    handle.remove()
    optimizer.step()
    assert torch.equal(gate.bias, expected)


def test_the_bias_stays_float32_and_is_saved() -> None:
    gate = SigmoidBias(4, 8)
    gate.bias.fill_(1 / 3)
    gate.to(torch.bfloat16)
    assert gate.bias.dtype is torch.float32 and float(gate.bias[0]) == float(torch.tensor(1 / 3))
    assert gate.weight.dtype is torch.bfloat16 and not gate.bias.requires_grad
    other = SigmoidBias(4, 8)
    other.load_state_dict(copy.deepcopy(gate).state_dict())
    assert torch.equal(other.bias, gate.bias) and "load" not in gate.state_dict()


def test_simulated_balancing() -> None:
    violation, bias = simulate_balancing(steps=600)
    assert violation[0] > 1.5 and violation[-1] < 0.25 and violation[-50:].mean() < 0.25
    assert abs(float(bias.sum())) < 1e-5
    assert simulate_balancing(steps=20, rate=0.0)[0].min() > 1.0
    assert abs(float(simulate_balancing(steps=200, centre=False)[1].sum())) > 1e-3


def test_max_violation() -> None:
    assert max_violation(torch.full((4,), 3)) == 0 and max_violation(torch.zeros(4)) == 0
    assert max_violation(torch.tensor([[4, 0], [1, 1]])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: TopKSoftmax(4, 8, k=0), ArgumentValueError, "k"),
        (lambda: TopKSoftmax(4, 8, k=9), ArgumentValueError, "n_experts"),
        (lambda: TopKSoftmax(4.0, 8), ArgumentTypeError, "d_model"),
        (lambda: TopKSoftmax(4, 8, noise="gauss"), ArgumentValueError, "noise"),
        (lambda: TopKSoftmax(4, 8, jitter=1.0), ArgumentValueError, "jitter"),
        (lambda: TopKSoftmax(4, 8, renorm="none", order="topk_first"), ArgumentValueError, "renorm"),
        (lambda: ActivationGate(4, 8, activation="softmax"), ArgumentValueError, "activation"),
        (lambda: ActivationGate(4, 8, temperature=0.0), ArgumentValueError, "temperature"),
        (lambda: DenseToSparse(4, 8, steps=0), ArgumentValueError, "steps"),
        (lambda: DenseToSparse(4, 8, steps=5, tau0=0.1), ArgumentValueError, "tau0"),
        (lambda: DenseToSparse(4, 8, steps=5, threshold=1.5), ArgumentValueError, "threshold"),
        (lambda: DenseToSparse(4, 8, steps=5, schedule="step"), ArgumentValueError, "schedule"),
        (lambda: SigmoidBias(4, 8, n_groups=3, topk_groups=1), ArgumentValueError, "n_groups"),
        (lambda: SigmoidBias(4, 8, bias_update=-1.0), ArgumentValueError, "bias_update"),
        (lambda: SigmoidBias(4, 8, renorm=1), ArgumentTypeError, "renorm"),
        (lambda: TopKSoftmax(4, 8)(torch.ones(3, 5)), ArgumentValueError, "x"),
        (lambda: TopKSoftmax(4, 8)(torch.ones(3, 4, dtype=torch.int64)), ArgumentTypeError, "x"),
        (lambda: TopKSoftmax(4, 8)(torch.ones(2, 3, 4)), ArgumentValueError, "x"),
    ],
)
def test_bad_arguments(make, error, word) -> None:
    with pytest.raises(error, match=word):
        make()


def test_a_gate_without_a_choice() -> None:
    with pytest.raises(NotImplementedError):
        Gate(4, 8)(torch.ones(2, 4))
