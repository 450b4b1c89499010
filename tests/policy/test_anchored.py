"""Anchored cross-entropy: gradient, optimum, invariances and the losses that are special cases of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from softgate.errors import ArgumentValueError
from softgate.policy import anchored_cross_entropy, dpo_loss, preference_target


def lists(*shape, seed=0):
    """Log-probabilities of policy and anchor and a target distribution, float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    return drawn[0].requires_grad_(), drawn[1], drawn[2].softmax(-1)


def gradient(loss, logp):
    return torch.autograd.grad(loss, logp)[0]


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_gradient_is_the_difference_of_distributions(tau):
    logp, anchor, q = lists(6, 5)
    p = ((logp - anchor) / tau).softmax(-1)
    got = gradient(anchored_cross_entropy(logp, anchor, q, tau=tau, reduction="sum"), logp)
    torch.testing.assert_close(got, (p - q) / tau, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.sum(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-14)


def test_hessian_has_the_square_of_tau():
    logp, anchor, q = lists(4)
    tau = 0.5
    p = ((logp - anchor) / tau).softmax(-1)
    got = torch.func.hessian(lambda x: anchored_cross_entropy(x, anchor, q, tau=tau))(logp.detach())
    torch.testing.assert_close(got, (p.diag() - p.outer(p)) / tau**2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_free_optimum_is_the_anchor_times_a_power_of_the_target(tau):
    _, anchor, q = lists(5, seed=1)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = anchored_cross_entropy(logits.log_softmax(-1), anchor, q, tau=tau, reduce_entropy=True)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (anchor + tau * q.log()).softmax(-1)
    torch.testing.assert_close(logits.softmax(-1).detach(), expected, rtol=0, atol=1e-6)
    assert closure().item() == pytest.approx(0.0, abs=1e-10)


def test_uniform_target_has_its_optimum_at_the_anchor():
    _, anchor, _ = lists(3, 4)
    logp = anchor.clone().requires_grad_()
    loss = anchored_cross_entropy(logp, anchor, torch.full_like(anchor, 0.25), tau=0.7)
    torch.testing.assert_close(gradient(loss, logp), torch.zeros_like(logp), rtol=0, atol=1e-16)


def test_no_gradient_at_the_target():
    _, anchor, q = lists(3, 4)
    logp = (anchor + 0.7 * q.log()).requires_grad_()
    loss = anchored_cross_entropy(logp, anchor, q, tau=0.7, reduce_entropy=True)
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    torch.testing.assert_close(gradient(loss, logp), torch.zeros_like(logp), rtol=0, atol=1e-15)


def test_adding_a_number_to_a_context_changes_nothing():
    logp, anchor, q = lists(3, 4)
    shift = torch.tensor([[5.0], [-300.0], [0.1]], dtype=torch.float64)
    plain = anchored_cross_entropy(logp, anchor, q, tau=0.7)
    for moved in (anchored_cross_entropy(logp + shift, anchor, q, tau=0.7),
                  anchored_cross_entropy(logp, anchor + shift, q, tau=0.7)):  # fmt: skip
        torch.testing.assert_close(moved, plain, rtol=1e-12, atol=1e-12)


def test_order_of_candidates_does_not_matter():
    logp, anchor, q = lists(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        anchored_cross_entropy(logp[:, order], anchor[:, order], q[:, order]), anchored_cross_entropy(logp, anchor, q)
    )


def test_divergence_is_the_loss_minus_the_entropy():
    logp, anchor, q = lists(3, 4)
    entropy = -(q * q.log()).sum(-1)
    loss = anchored_cross_entropy(logp, anchor, q, reduction="none")
    torch.testing.assert_close(
        anchored_cross_entropy(logp, anchor, q, reduction="none", reduce_entropy=True), loss - entropy
    )


# Special cases


def test_supervised_fine_tuning():
    logits, _, _ = lists(6, 5)
    label = torch.tensor([0, 4, 2, 1, 3, 0])
    one_hot = functional.one_hot(label, 5).double()
    for logp in (logits, logits.log_softmax(-1)):  # normalised or not
        loss = anchored_cross_entropy(logp, torch.zeros_like(logits), one_hot)
        torch.testing.assert_close(loss, functional.cross_entropy(logits, label), rtol=1e-13, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation(temperature):
    student, teacher, _ = lists(6, 5)
    q = (teacher / temperature).softmax(-1)
    loss = anchored_cross_entropy(student, torch.zeros_like(student), q, tau=temperature, reduce_entropy=True)
    # without the usual factor T²
    expected = functional.kl_div((student / temperature).log_softmax(-1), q, reduction="batchmean")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=1e-12, atol=1e-14)


def test_maximum_entropy_reinforcement_learning():
    logits, value, _ = lists(6, 5)
    alpha = 0.4
    q = preference_target(value, beta=alpha)
    # KL(Boltzmann ‖ π) = log Z - E_q[Q]/α ... its gradient in the logits is π - Boltzmann
    loss = anchored_cross_entropy(logits, torch.zeros_like(logits), q, reduction="sum")
    expected = logits.softmax(-1) - (value / alpha).softmax(-1)
    torch.testing.assert_close(gradient(loss, logits), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.05, 0.7, 3.0])
def test_direct_preference_optimisation(beta, smoothing):
    logp, anchor, _ = lists(6, 2)
    q = torch.tensor([1 - smoothing, smoothing], dtype=torch.float64).expand(6, 2)
    ours = anchored_cross_entropy(logp, anchor, q, tau=1 / beta)
    dpo = dpo_loss(*logp.unbind(-1), *anchor.unbind(-1), beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(ours, logp), gradient(dpo, logp), rtol=1e-10, atol=1e-14)


def test_first_step_on_policy_is_reinforce():
    logp, _, q = lists(3, 8)
    tau = 0.8
    loss = anchored_cross_entropy(logp, logp.detach(), q, tau=tau, reduction="sum")
    advantages = (q - 1 / 8) / tau
    torch.testing.assert_close(gradient(loss, logp), gradient(-(advantages * logp).sum(), logp), rtol=0, atol=1e-15)


# Ragged lists, support and bad input


def test_masked_candidates_do_not_exist():
    logp, anchor, _ = lists(2, 3)
    q = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    expected = torch.stack([
        anchored_cross_entropy(logp[0], anchor[0], q[0]), anchored_cross_entropy(logp[1, :2], anchor[1, :2], q[1, :2])
    ]).mean()  # fmt: skip
    for junk in (0.0, float("nan"), float("-inf"), float("inf")):
        dirty = logp.detach().masked_fill(mask == 0, junk).requires_grad_()
        loss = anchored_cross_entropy(dirty, anchor.masked_fill(mask == 0, junk), q, mask=mask)
        torch.testing.assert_close(loss, expected)
        assert gradient(loss, dirty)[1, 2] == 0


def test_contexts_without_candidates_are_not_counted():
    logp, anchor, q = lists(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(
        anchored_cross_entropy(logp, anchor, q, mask=mask), anchored_cross_entropy(logp[kept], anchor[kept], q[kept])
    )
    nothing = anchored_cross_entropy(logp, anchor, q, mask=torch.zeros_like(mask))
    assert nothing.item() == 0.0 and bool((gradient(nothing, logp) == 0).all())


def test_outside_the_support_of_the_anchor():
    logp, anchor, _ = lists(1, 3)
    anchor[0, 2] = float("-inf")
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    loss = anchored_cross_entropy(logp, anchor, q)
    torch.testing.assert_close(loss, anchored_cross_entropy(logp[:, :2], anchor[:, :2], q[:, :2]))
    with pytest.raises(ArgumentValueError, match="outside the anchor's support"):
        anchored_cross_entropy(logp, anchor, q.roll(1, -1))


def test_policy_without_support_costs_infinity_with_a_finite_gradient():
    logp = torch.tensor([[0.0, float("-inf")]], dtype=torch.float64, requires_grad=True)
    zero, q = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    loss = anchored_cross_entropy(logp, zero, q)
    assert loss.item() == float("inf")
    torch.testing.assert_close(gradient(loss, logp), torch.tensor([[0.5, -0.5]], dtype=torch.float64))


def test_one_candidate_has_no_loss():
    logp, anchor, q = lists(3, 1)
    loss = anchored_cross_entropy(logp, anchor, q, tau=0.1)
    assert loss.item() == 0.0 and bool((gradient(loss, logp) == 0).all())


def test_a_tau_for_every_context():
    logp, anchor, q = lists(3, 4)
    tau = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    rows = [anchored_cross_entropy(logp[i], anchor[i], q[i], tau=float(t)) for i, t in enumerate(tau)]
    torch.testing.assert_close(anchored_cross_entropy(logp, anchor, q, tau=tau, reduction="none"), torch.stack(rows))


def test_clamps_take_the_gradient_away():
    logp = torch.tensor([[3.0, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    zero, q = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    for options in ({"clamp_ratio": 1.0}, {"clamp_score": 1.0}):
        assert gradient(anchored_cross_entropy(logp, zero, q, **options), logp)[0, 0] == 0
