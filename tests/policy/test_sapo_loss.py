"""SAPO: limits, bounds, the link to sequence ratios, and what it does at ratios that no float can hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import softgate
from softgate.policy import (
    GATES,
    SAPOLoss,
    grpo_loss,
    gspo_loss,
    reinforce_loss,
    sapo_gate,
    sapo_loss,
)


def _batch(rows: int = 6, length: int = 9, scale: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64) - 3
    logp = old + scale * torch.randn(rows, length, generator=generator, dtype=torch.float64).clamp(-2, 2)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    return logp, old, advantages, torch.arange(length) < lengths[:, None]


def _gradient(loss, logp: Tensor, *args, **options) -> Tensor:
    leaf = logp.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, *args, **options), leaf)
    return found


def test_figures_of_the_gate() -> None:
    ratio = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        sapo_gate(ratio, 1.0)[1], torch.tensor([0.786448, 1.0, 0.786448, 0.419974], dtype=torch.float64),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    assert abs(sapo_gate(1 + torch.tensor([1.7627]), 1.0)[1].item() - 0.5) < 1e-4
    fine = torch.linspace(0, 8, 800_001, dtype=torch.float64)
    for tau, peak, place in ((1.0, 1.575, 2.06), (1.05, 1.536, 1.99), (5.0, 1.038, 1.075)):
        effective = fine * sapo_gate(fine, tau)[1]
        assert abs(effective.max().item() - peak) < 1e-3
        assert abs(fine[effective.argmax()].item() - place) < 0.01


@pytest.mark.parametrize("name", GATES)
def test_gates_are_admissible(name: str) -> None:
    ratio = torch.linspace(0, 30, 3001, dtype=torch.float64).requires_grad_()
    for tau in (0.5, 1.0, 4.0):
        value, weight = GATES[name](ratio, torch.tensor(tau, dtype=torch.float64))
        (slope,) = torch.autograd.grad(value.sum(), ratio)
        torch.testing.assert_close(slope, weight)
        assert (weight >= 0).all() and weight.argmax() == 100 and weight[100] == 1
        assert (weight.diff()[:100] >= 0).all() and (weight.diff()[100:] <= 0).all()
        assert (value.diff() >= 0).all() and ratio[-1] * weight[-1] < 1e-4
        torch.testing.assert_close(weight[:200], weight[:201].flip(0)[:200])  # symmetric around 1


def test_on_policy_every_objective_is_reinforce() -> None:
    _, old, advantages, mask = _batch()
    expected = -advantages[:, None] * mask / mask.sum(1, keepdim=True) / len(mask)
    for loss, options in (
        (sapo_loss, {"tau_pos": 0.3, "tau_neg": 7.0}),
        (sapo_loss, {"level": "sequence"}),
        (sapo_loss, {"gate": "gaussian"}),
        (grpo_loss, {"dual_clip": 3.0, "delta": 2.0}),
        (gspo_loss, {}),
        (gspo_loss, {"level": "token"}),
        (reinforce_loss, {}),
    ):
        torch.testing.assert_close(_gradient(loss, old, old, advantages, mask, **options), expected)


def test_small_and_large_temperatures() -> None:
    logp, old, advantages, mask = _batch()
    soft = _gradient(sapo_loss, logp, old, advantages, mask, tau_pos=1e-5, tau_neg=1e-5)
    torch.testing.assert_close(soft, _gradient(reinforce_loss, logp, old, advantages, mask), rtol=1e-8, atol=1e-10)
    ratio = torch.tensor([0.5, 2.0], dtype=torch.float64)
    value, _ = sapo_gate(ratio, 1e-6)
    torch.testing.assert_close(value - 2e6, ratio - 1, rtol=1e-6, atol=1e-6)
    sharp = sapo_gate(torch.tensor([0.9, 1.0, 1.1]), 1e6)[1]
    assert sharp.tolist() == [0.0, 1.0, 0.0]


def test_gradient_is_the_closed_form_and_bounded() -> None:
    logp, old, advantages, mask = _batch(scale=2.0)
    ratio = (logp - old).exp()
    tau = torch.where(advantages > 0, 1.0, 1.05).double()[:, None]
    weight = 1 / torch.cosh(tau * (ratio - 1) / 2) ** 2
    scale = mask / mask.sum(1, keepdim=True) / len(mask)
    found = _gradient(sapo_loss, logp, old, advantages, mask)
    torch.testing.assert_close(found, -advantages[:, None] * weight * ratio * scale, rtol=1e-6, atol=1e-9)
    assert (found.abs() <= 1.576 * advantages.abs()[:, None] * scale).all()


def test_finite_differences() -> None:
    logp, old, advantages, mask = _batch(scale=1.0)

    def loss(x: Tensor) -> Tensor:
        return sapo_loss(x, old, advantages, mask, tau_neg=torch.full((9,), 1.3, dtype=torch.float64))

    assert softgate.explain(sapo_loss, logp, old, advantages, mask).chosen == "closed_form"
    assert torch.autograd.gradcheck(loss, logp.requires_grad_())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, -21.0, 21.0, 50.0, 89.0, 100.0, 1e4])
def test_no_gradient_and_no_nan_at_extreme_ratios(monkeypatch, kernels, dtype, log_ratio) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    old = torch.tensor([[-2.0, -2.0]], dtype=dtype)
    logp = (old + torch.tensor([[log_ratio, 0.0]], dtype=dtype)).requires_grad_()
    for sign in (1.0, -1.0):
        value = sapo_loss(logp, old, torch.tensor([sign], dtype=dtype), torch.ones(1, 2))
        (grad,) = torch.autograd.grad(value, logp)
        assert value.isfinite() and grad[0, 0] == 0 and abs(grad[0, 1].item() + sign / 2) < 1e-6


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_masked_positions_may_hold_anything(monkeypatch, kernels) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    logp, old, advantages, mask = _batch()
    expected = sapo_loss(logp, old, advantages, mask), _gradient(sapo_loss, logp, old, advantages, mask)
    wide = advantages[:, None].expand_as(mask)
    for junk in (math.nan, math.inf, -math.inf):
        spoiled = [torch.where(mask, x, junk) for x in (logp, old, wide)]
        torch.testing.assert_close(sapo_loss(*spoiled, mask), expected[0], rtol=0, atol=0)
        torch.testing.assert_close(_gradient(sapo_loss, *spoiled, mask), expected[1], rtol=0, atol=0)


def test_one_wild_token() -> None:
    """It changes no other token's gradient at token level; the whole sequence of GSPO is cut off."""
    old = torch.full((1, 64), -2.0, dtype=torch.float64)
    advantage, mask = torch.tensor([1.0], dtype=torch.float64), torch.ones(1, 64)
    wild = old.clone()
    wild[0, 10] += 5.0
    others = torch.arange(64) != 10
    calm, after = (_gradient(sapo_loss, x, old, advantage, mask) for x in (old, wild))
    assert torch.equal(calm[:, others], after[:, others]) and after[0, 10].abs() < 1e-6
    assert (_gradient(gspo_loss, wild, old, advantage, mask, eps_low=0.03, eps_high=0.04) == 0).all()
    rescaled = _gradient(gspo_loss, wild, old, advantage, mask, eps_low=0.03, eps_high=0.5)
    torch.testing.assert_close(rescaled, calm * math.exp(5 / 64))


def test_mean_token_gate_is_near_the_gate_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    closest = 0.0
    for tau in (0.5, 1.0, 3.0):
        z = torch.randn(2000, 16, generator=generator, dtype=torch.float64)
        z = z * torch.rand(2000, 1, generator=generator, dtype=torch.float64) * 0.5
        z = z - z.mean(1, keepdim=True) + torch.linspace(-1, 1, 2000, dtype=torch.float64)[:, None]

        def gate(x: Tensor, tau: float = tau) -> Tensor:
            return 1 / torch.cosh(tau * x / 2) ** 2

        gap = (gate(z).mean(1) - gate(z.mean(1))).abs()
        bound = tau**2 / 4 * z.var(1, correction=0)
        assert (gap <= bound * (1 + 1e-9) + 1e-15).all()
        closest = max(closest, (gap / bound).max().item())
    assert closest > 0.99  # the bound is attained


def test_rows_padding_and_scale() -> None:
    logp, old, advantages, mask = _batch()
    value = sapo_loss(logp, old, advantages, mask)
    order = torch.randperm(len(mask))
    torch.testing.assert_close(sapo_loss(logp[order], old[order], advantages[order], mask[order]), value)
    padded = [torch.nn.functional.pad(x, (0, 5)) for x in (logp, old, mask)]
    torch.testing.assert_close(sapo_loss(padded[0], padded[1], advantages, padded[2]), value)
    torch.testing.assert_close(sapo_loss(logp, old, 3 * advantages, mask), 3 * value)


def test_centred_values_are_zero_on_policy_with_the_same_gradient() -> None:
    logp, old, advantages, mask = _batch()
    assert sapo_loss(old, old, advantages, mask, centered=True).abs() < 1e-15
    assert sapo_loss(old, old, advantages, mask).abs() > 1e-3
    plain, centred = (_gradient(sapo_loss, logp, old, advantages, mask, centered=c) for c in (False, True))
    torch.testing.assert_close(plain, centred, rtol=0, atol=0)
    options = {"centered": True, "return_stats": True}
    torch.testing.assert_close(
        sapo_loss(logp, old, advantages, mask, centered=True), sapo_loss(logp, old, advantages, mask, **options)[0]
    )


def test_a_gate_of_ones_own() -> None:
    logp, old, advantages, mask = _batch()

    def identity(ratio: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        return ratio, torch.ones_like(ratio)

    torch.testing.assert_close(
        sapo_loss(logp, old, advantages, mask, gate=identity), reinforce_loss(logp, old, advantages, mask)
    )
    tanh = sapo_loss(logp, old, advantages, mask, gate="tanh", tau_pos=0.5, tau_neg=0.5)
    same = sapo_loss(logp, old, advantages, mask, tau_pos=1.0, tau_neg=1.0, centered=True)
    torch.testing.assert_close(tanh, same)


def test_zero_advantage_takes_the_negative_temperature_and_vanishes() -> None:
    logp, old, _, mask = _batch()
    assert (_gradient(sapo_loss, logp, old, torch.zeros(6, dtype=torch.float64), mask) == 0).all()


def test_statistics() -> None:
    logp, old, advantages, mask = _batch(scale=1.0)
    _, stats = sapo_loss(logp, old, advantages, mask, return_stats=True, entropy=-logp)
    ratio = (logp - old).exp()[mask]
    tau = torch.where(advantages > 0, 1.0, 1.05).double()[:, None].expand_as(mask)[mask]
    gates = sapo_gate(ratio, tau)[1]
    expected = {
        "gate_mean": gates.mean(),
        "gate_min": gates.min(),
        "ess": ratio.sum() ** 2 / (len(ratio) * ratio.square().sum()),
        "ratio_max": ratio.max(),
        "zero_grad_fraction": 0.0,
        "approx_kl_k1": -ratio.log().mean(),
        "approx_kl_k3": (ratio - 1 - ratio.log()).mean(),
        "entropy": -logp[mask].mean(),
    }
    found = stats.as_dict()
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-6)
    assert stats.as_dict("x/").keys() == {f"x/{name}" for name in expected}
    for loss, options in ((grpo_loss, {}), (gspo_loss, {"eps_low": 0.03, "eps_high": 0.04})):
        assert loss(logp, old, advantages, mask, return_stats=True, **options)[1].zero_grad_fraction > 0


def test_sixteen_bits_and_mixed_types() -> None:
    logp, old, advantages, mask = (x.to(torch.bfloat16) if x.is_floating_point() else x for x in _batch())
    leaf = logp.clone().requires_grad_()
    value = sapo_loss(leaf, old, advantages, mask)
    value.backward()
    assert value.dtype == torch.float32 and leaf.grad is not None and leaf.grad.dtype == torch.bfloat16
    wide = sapo_loss(logp.float(), old.float(), advantages.float(), mask)
    torch.testing.assert_close(value, wide, rtol=1e-6, atol=1e-6)
    mixed = sapo_loss(logp, old.float(), advantages.double(), mask.long())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, wide)
    with pytest.warns(UserWarning, match="16 bits"):
        SAPOLoss()(logp, old, advantages, mask)


def test_empty_batches_give_zero_connected_to_the_graph() -> None:
    for rows, length in ((0, 4), (3, 0), (2, 3)):
        logp = torch.zeros(rows, length, requires_grad=True)
        value = sapo_loss(logp, logp.detach(), torch.ones(rows), torch.zeros(rows, length, dtype=torch.bool))
        (grad,) = torch.autograd.grad(value, logp)
        assert value.item() == 0 and (grad == 0).all()
        _, stats = sapo_loss(logp, logp.detach(), torch.ones(rows), torch.zeros(rows, length), return_stats=True)
        assert all(math.isfinite(x) for x in stats.as_dict().values())


def test_old_policy_with_a_graph_is_detached() -> None:
    logp, old, advantages, mask = _batch()
    old.requires_grad_()
    with pytest.warns(UserWarning, match="old_logp requires grad"):
        value = sapo_loss(logp.requires_grad_(), old, advantages, mask)
    assert torch.autograd.grad(value, old, allow_unused=True) == (None,)


def test_module_settings_are_read_at_every_call() -> None:
    logp, old, advantages, mask = _batch()
    module = SAPOLoss(tau_neg=1.1, aggregation="token_mean")
    expected = sapo_loss(logp, old, advantages, mask, tau_neg=1.1, aggregation="token_mean")
    torch.testing.assert_close(module(logp, old, advantages, mask), expected)
    module.tau_neg = 2.0
    assert not torch.equal(module(logp, old, advantages, mask), expected)
    assert "tau_neg=2.0" in repr(module) and "check=True" in repr(module)
    with pytest.raises(ValueError, match="logp must be finite"):
        module(torch.full_like(logp, math.nan), old, advantages, mask)
    assert sapo_loss(torch.full_like(logp, math.nan), old, advantages, mask).isnan()


def test_one_saved_tensor_per_token() -> None:
    logp, old, advantages, mask = (x.float() if x.is_floating_point() else x for x in _batch(64, 128))
    saved: list[int] = []
    inputs = {logp.data_ptr(), old.data_ptr(), mask.data_ptr(), advantages.data_ptr()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in inputs and tensor.dtype == torch.float32:
            saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sapo_loss(logp.requires_grad_(), old, advantages, mask)
    assert sum(saved) <= 4 * 64 * 128 + 4096
