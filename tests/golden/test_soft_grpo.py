"""Soft-thinking tokens against arrays of the authors' code: values, gradients and mixture weights of three noises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.policy import SoftToken, mixed_log_prob, soft_embedding, soft_token_log_prob
from softgate.policy._soft_noise import noise_named

FILES = ("soft_token_a", "soft_token_b")
NOISES = ("gumbel", "gaussian", "dirichlet")
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(params=FILES)
def arrays(request: pytest.FixtureRequest, golden: Callable[[str], Path]) -> dict[str, Tensor]:
    return load(golden("soft-grpo") / f"{request.param}.npz")


def token_of(arrays: dict[str, Tensor], noise: str) -> SoftToken:
    """The stored steps; the arrays mark an ordinary token by zeros in all ids but the first."""
    ids, g, count = arrays[f"{noise}_ids"], arrays[f"{noise}_stored"], int(arrays["n_discrete"])
    is_soft = torch.arange(len(ids)) < len(ids) - count
    soft = SoftToken(ids, g, noise_named(noise).weights(g, float(arrays["tau"])), is_soft, torch.ones_like(ids).bool())
    return soft.where(is_soft, SoftToken.discrete(arrays[f"labels_{noise}"], ids.shape[1], torch.float64))


@pytest.mark.parametrize("noise", NOISES)
def test_log_probabilities_and_gradients(arrays: dict[str, Tensor], noise: str) -> None:
    token = token_of(arrays, noise)
    torch.testing.assert_close(
        mixed_log_prob(arrays["logits_old"], None, token, noise=noise), arrays[f"{noise}_logp_old"], **EXACT
    )
    logits = arrays["logits_new"].clone().requires_grad_()
    log_p = mixed_log_prob(logits, None, token, noise=noise)
    torch.testing.assert_close(log_p, arrays[f"{noise}_logp_new"], **EXACT)
    (log_p * torch.arange(1.0, len(log_p) + 1)).sum().backward()
    torch.testing.assert_close(logits.grad, arrays[f"{noise}_grad_new_weighted"], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_the_sampler_scores_its_own_noise_alike(arrays: dict[str, Tensor], noise: str) -> None:
    soft = int(len(arrays["topk_ids"]) - arrays["n_discrete"])
    ids, g = arrays[f"{noise}_ids"][:soft], arrays[f"{noise}_stored"][:soft]
    log_p = soft_token_log_prob(arrays["logits_old"][:soft], ids, g, noise=noise)
    torch.testing.assert_close(log_p, arrays[f"{noise}_rollout_logp"][:soft], **EXACT)


@pytest.mark.parametrize("noise", NOISES)
def test_weights(arrays: dict[str, Tensor], noise: str) -> None:
    g = arrays[f"{noise}_stored"]
    weights = noise_named(noise).weights(g, float(arrays["tau"]))
    torch.testing.assert_close(weights, arrays[f"{noise}_weights_sampler"], **EXACT)


def test_weights_of_the_update_are_one_hot_for_ordinary_tokens(arrays: dict[str, Tensor]) -> None:
    token = token_of(arrays, "gumbel")
    torch.testing.assert_close(token.weights, arrays["gumbel_weights_actor"], **EXACT)
    table = torch.randn(arrays["logits_old"].shape[1], 6, dtype=torch.float64)
    mixture = soft_embedding(token, table)
    expected = (arrays["gumbel_weights_actor"][..., None] * table[token.ids]).sum(-2)
    torch.testing.assert_close(mixture, expected, **EXACT)
    torch.testing.assert_close(soft_embedding(token, table, tau=float(arrays["tau"])), expected, **EXACT)


def test_the_noise_is_the_clamped_residual(arrays: dict[str, Tensor]) -> None:
    p = torch.zeros_like(arrays["logits_old"]).scatter(1, arrays["topk_ids"], arrays["topk_probs"])
    soft = int(len(p) - arrays["n_discrete"])
    noise = (arrays["gumbel_stored"] - torch.log(p.gather(1, arrays["gumbel_ids"]) + 1e-6))[:soft]
    assert -1.5 - 1e-12 < noise.min() < noise.max() < 3 + 1e-12
