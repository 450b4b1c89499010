"""Parity with TRL and verl: values and gradients of their objectives, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.policy import cispo_loss, group_advantages, grpo_loss, gspo_loss, kl_estimate, sapo_loss

VERL = ("verl_small", "verl_offpolicy", "verl_sharp_tau")
TRL = ("trl_small", "trl_offpolicy")


def _read(golden: Any, name: str) -> dict[str, Any]:
    data = np.load(golden("sapo") / f"{name}.npz")
    return {key: torch.tensor(data[key]) if data[key].ndim else float(data[key]) for key in data.files}


def _compare(data: dict[str, Any], name: str, loss: Callable[..., Tensor], rtol: float, **options: Any) -> None:
    logp = data["logp"].clone().requires_grad_()
    value = loss(logp, data["old_logp"], data["advantages"], data["mask"], **options)
    (grad,) = torch.autograd.grad(value, logp)
    np.testing.assert_allclose(value.item(), data[f"{name}_loss"], rtol=rtol, atol=rtol)
    torch.testing.assert_close(grad, data[f"{name}_grad"], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", VERL)
def test_verl_objectives(golden, monkeypatch, name, kernels) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    data = _read(golden, name)
    clips = {"eps_low": data["clip_low"], "eps_high": data["clip_high"]}
    _compare(data, "sapo", sapo_loss, 1e-7, tau_pos=data["tau_pos"], tau_neg=data["tau_neg"])
    narrow = {"eps_low": data["gspo_clip_low"], "eps_high": data["gspo_clip_high"]}
    _compare(data, "gspo_token", gspo_loss, 1e-7, level="token", **narrow)
    for how in ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean"):
        _compare(data, f"grpo_dualclip_{how}", grpo_loss, 1e-7, dual_clip=3.0, aggregation=how, **clips)
    _compare(data, "grpo_nodual_seq_mean_token_mean", grpo_loss, 1e-7, **clips)


@pytest.mark.parametrize("name", VERL)
def test_verl_divides_by_the_length_alone(golden, name) -> None:
    data = _read(golden, name)
    rows, length = data["mask"].shape
    options = {"aggregation": "token_sum_norm", "max_length": length, "dual_clip": 3.0}
    logp = data["logp"].clone().requires_grad_()
    clips = {"eps_low": data["clip_low"], "eps_high": data["clip_high"]}
    value = rows * grpo_loss(logp, data["old_logp"], data["advantages"], data["mask"], **options, **clips)
    np.testing.assert_allclose(value.item(), data["grpo_dualclip_seq_mean_token_sum_norm_loss"], rtol=1e-10)


@pytest.mark.parametrize("name", VERL)
def test_verl_advantages_and_penalties(golden, name) -> None:
    data = _read(golden, name)
    group = data["group"].long()
    for scale, key in (("group", "advantages"), ("none", "advantages_nostd")):
        found = group_advantages(data["rewards"], group, scale=scale, eps=1e-6, convention="verl")
        torch.testing.assert_close(found[:, None] * data["mask"], data[key], rtol=1e-12, atol=1e-12)
    for kind, key in (("k1", "kl_kl"), ("abs", "kl_abs"), ("k2", "kl_mse"), ("k3", "kl_low_var_kl")):
        found = kl_estimate(data["logp"], data["ref_logp"], kind)
        if kind == "k3":
            found = found.clamp(max=10.0)
        keep = data["mask"].bool()
        torch.testing.assert_close(found[keep], data[key][keep], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", TRL)
def test_trl_objectives(golden, monkeypatch, name, kernels) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    data = _read(golden, name)
    clips = {"eps_low": data["clip_low"], "eps_high": data["clip_high"]}
    narrow = {"eps_low": data["gspo_clip_low"], "eps_high": data["gspo_clip_high"]}
    # TRL picks the temperature with torch.where on two Python numbers, which rounds it to float32
    taus = {name: torch.tensor(data[name], dtype=torch.float32).item() for name in ("tau_pos", "tau_neg")}
    reference = {"ref_logp": data["ref_logp"], "beta": data["beta"]}
    tokens = float(data["mask"].sum())
    length = int(data["max_completion_length"])
    _compare(data, "grpo", grpo_loss, 1e-12, **clips)
    _compare(data, "bnpo", grpo_loss, 1e-12, aggregation="token_mean", **clips)
    _compare(data, "dr_grpo", grpo_loss, 1e-12, aggregation="token_sum_norm", max_length=length, **clips)
    _compare(data, "dapo", grpo_loss, 1e-12, aggregation="token_mean_global", num_tokens=tokens, **clips)
    _compare(data, "grpo_delta", grpo_loss, 1e-12, delta=data["delta"], **clips)
    _compare(data, "grpo_beta", grpo_loss, 1e-12, **reference, **clips)
    _compare(data, "gspo", gspo_loss, 1e-12, **narrow)
    _compare(data, "sapo", sapo_loss, 1e-12, **taus)
    _compare(data, "sapo_beta", sapo_loss, 1e-12, **taus, **reference)
    _compare(data, "cispo", cispo_loss, 1e-12, eps_max=data["cispo_eps_high"])


@pytest.mark.parametrize("name", TRL)
def test_trl_advantages(golden, name) -> None:
    data = _read(golden, name)
    found = group_advantages(data["rewards"], data["group"].long())
    torch.testing.assert_close(found, data["advantages"], rtol=1e-12, atol=1e-12)
