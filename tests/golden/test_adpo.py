"""Anchored listwise and pairwise losses against arrays made by the author's code and by TRL."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.policy import (
    ADPOLoss,
    anchored_scores,
    dpo_loss,
    exo_pair_loss,
    group_z_scores,
    hinge_pair_loss,
    ipo_loss,
    plackett_luce_loss,
    preference_target,
    robust_dpo_loss,
)


def load(folder, name):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(folder / f"{name}.npz").items()}


@pytest.fixture(params=["verl_adpo_a", "verl_adpo_b"])
def arrays(request, golden):
    return load(golden("adpo"), request.param)


def by_group(arrays, values):
    """Rows sorted by group, in lists."""
    order = torch.sort(arrays["group"], stable=True).indices
    return values[order].view(-1, int(arrays["num_generations"]))


def test_advantages_and_targets(arrays):
    rewards = by_group(arrays, arrays["rewards"])
    torch.testing.assert_close(group_z_scores(rewards), by_group(arrays, arrays["advantages"]), rtol=1e-10, atol=1e-10)
    target = preference_target(rewards, "zscore", beta=float(arrays["beta_reward"]))
    torch.testing.assert_close(target, by_group(arrays, arrays["q_target"]), rtol=1e-10, atol=1e-12)


OPTIONS = {
    "softmax_lenmean": {},
    "softmax_lensum": {"length_norm": "sum"},
    "softmax_nocenter": {},  # subtracting sum q u from u changes nothing
    "softmax_clipped": {"clamp_ratio": 0.2, "clamp_score": 0.3},
    "sft": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_anchored_loss(arrays, name):
    logp = arrays["logp"].clone().requires_grad_()
    anchor = torch.zeros_like(logp) if name == "sft" else arrays["old_logp"]
    loss_of = ADPOLoss(tau=float(arrays["tau"]), target="zscore", beta=float(arrays["beta_reward"]), **OPTIONS[name])
    loss = loss_of(logp, anchor, arrays["rewards"], arrays["group"], arrays["mask"])
    torch.testing.assert_close(loss, arrays[f"{name}_loss"], rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(gradient, arrays[f"{name}_grad"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pl", {}),
        ("pl_top2", {"top_k": 2}),
        ("pl_smooth", {"label_smoothing": 0.1}),
        ("pl_temp", {"temperature": 2.0}),
        ("pl_poly", {"poly": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_plackett_luce(arrays, name, options):
    u = arrays["pl_u"].clone().requires_grad_()
    loss = plackett_luce_loss(u, arrays["pl_adv"], **options)
    torch.testing.assert_close(loss, arrays[f"{name}_loss"], rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(loss, u)
    torch.testing.assert_close(gradient, arrays[f"{name}_grad"], rtol=1e-10, atol=1e-10)


def test_scores_of_the_ranking_are_those_of_the_anchored_loss(arrays):
    mask = arrays["mask"]
    means = [(arrays[name] * mask).sum(1) / mask.sum(1) for name in ("logp", "old_logp")]
    u = anchored_scores(*(by_group(arrays, mean) for mean in means), tau=float(arrays["tau"]))
    torch.testing.assert_close(u, arrays["pl_u"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "loss_of"),
    [
        ("sigmoid", lambda *p, beta, eps, lengths: dpo_loss(*p, beta=beta)),
        ("hinge", lambda *p, beta, eps, lengths: hinge_pair_loss(*p, beta=beta)),
        ("ipo", lambda *p, beta, eps, lengths: ipo_loss(*p, *lengths, beta=beta)),
        ("exo_pair", lambda *p, beta, eps, lengths: exo_pair_loss(*p, beta=beta, label_smoothing=eps)),
        ("robust", lambda *p, beta, eps, lengths: robust_dpo_loss(*p, beta=beta, label_smoothing=eps)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pairs(golden, name, loss_of):
    arrays = load(golden("adpo"), "trl_dpo_a")
    logp, mask = arrays["logp"].clone().requires_grad_(), arrays["mask"]
    chosen, rejected = (logp * mask).sum(1).chunk(2)
    lengths = mask.sum(1).chunk(2)
    loss = loss_of(
        chosen, rejected, arrays["ref_chosen"], arrays["ref_rejected"],
        beta=float(arrays["beta"]), eps=float(arrays["label_smoothing"]), lengths=lengths,
    )  # fmt: skip
    # TRL builds the logarithms of eps in float32
    tolerance = 1e-7 if name == "exo_pair" else 1e-10
    torch.testing.assert_close(loss, arrays[f"{name}_loss"], rtol=tolerance, atol=1e-10)
    (gradient,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(
        gradient, arrays[f"{name}_grad"], rtol=tolerance, atol=1e-8 if tolerance > 1e-9 else 1e-10
    )
