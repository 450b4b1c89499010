"""The written-down gradients of all objectives are those of the references, whatever stands in the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import softgate
from softgate.policy import _row_sums, cispo_loss, grpo_loss, gspo_loss, reinforce_loss, sapo_loss

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "reinforce": (reinforce_loss, {}),
    "grpo": (grpo_loss, {}),
    "grpo-delta": (grpo_loss, {"delta": 1.5}),
    "grpo-capped": (grpo_loss, {"eps_high": 0.28, "delta": 1.5, "dual_clip": 1.4, "aggregation": "token_mean"}),
    "gspo": (gspo_loss, {"eps_low": 0.05, "eps_high": 0.03}),
    "gspo-penalty": (gspo_loss, {"beta": 0.1, "correct_kl": True, "aggregation": "seq_mean_token_sum"}),
    "cispo": (cispo_loss, {"eps_max": 1.3}),
    "cispo-penalty": (cispo_loss, {"beta": 0.1, "empty": "drop"}),
    "sapo": (sapo_loss, {"tau_neg": 1.3}),
    "sapo-centered": (sapo_loss, {"centered": True, "aggregation": "token_mean_global", "num_tokens": 17.0}),
}


def _batch(rows: int = 7, length: int = 9, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64) - 3
    logp = old + 0.4 * torch.randn(rows, length, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, length + 1, (rows, 1), generator=generator)
    lengths[0] = 0
    return [logp.to(dtype), old.to(dtype), advantages.to(dtype), (torch.arange(length) < lengths).long()]


def _outcome(loss: Any, tensors: list[Tensor], options: dict[str, Any], passes: int = 1) -> list[Tensor]:
    """Loss and gradient; with several passes, that of the last one."""
    leaf = tensors[0].clone().requires_grad_()
    if options.get("beta"):
        options = {**options, "ref_logp": tensors[1] - 0.2}
    value = loss(leaf, *tensors[1:], **options)
    for _ in range(passes):
        (grad,) = torch.autograd.grad(value * 3, leaf, retain_graph=True)
    return [value.detach(), grad]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [1, 20, 1 << 15])
def test_blocks_and_repeated_passes_change_nothing(monkeypatch, case, block) -> None:
    loss, options = CASES[case]
    tensors = _batch()
    monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
    expected = _outcome(loss, tensors, options)
    monkeypatch.setenv("SOFTGATE_KERNELS", "auto")
    monkeypatch.setattr(_row_sums, "_BLOCK", block)
    for passes in (1, 3):
        for found, wanted in zip(_outcome(loss, tensors, options, passes), expected, strict=True):
            torch.testing.assert_close(found, wanted)
            assert wanted.abs().max() > 1e-4


@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_the_gradient_and_finite_differences(case) -> None:
    loss, options = CASES[case]
    logp, *others = _batch(3, 4)
    options = {**options, "ref_logp": others[0] - 0.2}

    def value(x: Tensor) -> Tensor:
        return loss(x, *others, **options)

    if loss is not reinforce_loss:
        assert softgate.explain(loss, logp, *others, **options).chosen == "closed_form"
    assert case.startswith("cispo") or torch.autograd.gradcheck(value, logp.requires_grad_())
    assert case.startswith("cispo") or torch.autograd.gradgradcheck(value, logp.requires_grad_())
    x = logp.detach()
    torch.testing.assert_close(torch.func.grad(value)(x), torch.autograd.grad(value(logp.requires_grad_()), logp)[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_junk_and_extreme_ratios_give_what_the_reference_gives(monkeypatch, case, dtype) -> None:
    loss, options = CASES[case]
    logp, old, advantages, mask = _batch(dtype=dtype)
    logp[1, :2] = torch.tensor([90.0, -90.0], dtype=dtype)
    keep = mask != 0
    advantages = advantages[:, None].expand_as(keep) if not loss.__name__.startswith("gspo") else advantages
    for junk in (0.0, math.nan, math.inf, -math.inf):
        tensors = [torch.where(keep, x, junk) if x.shape == keep.shape else x for x in (logp, old, advantages)]
        tensors = [x.to(dtype) for x in tensors]
        monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
        expected = _outcome(loss, [*tensors, mask], options)
        monkeypatch.setenv("SOFTGATE_KERNELS", "auto")
        found = _outcome(loss, [*tensors, mask], options)
        torch.testing.assert_close(found, expected)
        assert expected[0].isfinite() and expected[1].isfinite().all()


@pytest.mark.parametrize("loss", [reinforce_loss, grpo_loss, gspo_loss, cispo_loss, sapo_loss])
def test_nan_that_counts_is_not_hidden(loss) -> None:
    logp, old, advantages, mask = _batch(dtype=torch.float32)
    row = int(mask.sum(1).argmax())
    logp[row, 0] = math.nan
    assert loss(logp, old, advantages, mask).isnan()


@pytest.mark.parametrize("case", CASES)
def test_statistics_come_with_the_same_loss_and_gradient(monkeypatch, case) -> None:
    loss, options = CASES[case]
    tensors = _batch()
    full = {**options, "return_stats": True, **({"ref_logp": tensors[1]} if "beta" in options else {})}
    leaf = tensors[0].clone().requires_grad_()
    value, stats = loss(leaf, *tensors[1:], **full)
    monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
    other = tensors[0].clone().requires_grad_()
    expected, expected_stats = loss(other, *tensors[1:], **full)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, leaf), torch.autograd.grad(expected, other))
    assert stats.as_dict() == pytest.approx(expected_stats.as_dict())


@pytest.mark.parametrize("loss", [grpo_loss, gspo_loss, cispo_loss, sapo_loss])
def test_one_array_of_the_size_of_the_batch_is_all_it_needs(loss) -> None:
    logp, old, advantages, mask = (x.repeat(256, *(1 for _ in x.shape[1:])) for x in _batch(8, 1024, torch.float32))
    leaf = logp.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(loss(leaf, old, advantages, mask), leaf)
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert logp.nbytes <= peak <= 1.4 * logp.nbytes
