"""Parity with arrays made by the authors' code: StableMax cross-entropy and OrthoGrad."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.losses import collapse_free_cross_entropy, stablemax_cross_entropy
from softgate.normalizers import log_stablemax
from softgate.optim import OrthoGrad, project_orthogonal_


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", ["f32", "f64"])
def test_stablemax_cross_entropy(golden, monkeypatch, name, kernels) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    data = np.load(golden("stablemax") / f"stablemax_ce_{name}.npz")
    logits, labels = torch.tensor(data["logits"]), torch.tensor(data["labels"])
    # the authors compute in float64 whatever the logits are
    tolerance = {"rtol": 2e-6, "atol": 1e-7} if name == "f32" else {"rtol": 1e-12, "atol": 1e-14}
    wide = logits.double().requires_grad_()
    torch.testing.assert_close(log_stablemax(wide), torch.tensor(data["log_probs"]), rtol=1e-12, atol=1e-14)
    rows = stablemax_cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(rows, torch.tensor(data["loss_none"]), check_dtype=False, **tolerance)
    loss = stablemax_cross_entropy(logits.requires_grad_(), labels)
    torch.testing.assert_close(loss, torch.tensor(data["loss_mean"]), check_dtype=False, **tolerance)
    (slopes,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slopes, torch.tensor(data["grad_logits"]), **tolerance)


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_collapse_free_cross_entropy(golden, name) -> None:
    data = np.load(golden("stablemax") / f"stablemax_ce_{name}.npz")
    logits, labels = torch.tensor(data["logits"]), torch.tensor(data["labels"])
    loss = collapse_free_cross_entropy(logits.double(), labels)
    # their float64 function returns float32
    assert float(loss) == pytest.approx(float(data["ce_float64"]), rel=6e-8)
    rows = collapse_free_cross_entropy(logits.float(), labels, reduction="none")
    # their float32 loss is 0 where ours is small: an absolute bound of one rounding of 1
    torch.testing.assert_close(rows, torch.tensor(data["ce_float32_none"]), check_dtype=False, rtol=1e-5, atol=2e-7)


RUNS = [
    ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}),
    ("adamw", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
]


@pytest.mark.parametrize(("name", "base", "options"), RUNS)
@pytest.mark.parametrize("foreach", [False, True])
def test_orthograd_trajectory(golden, name, base, options, foreach) -> None:
    data = np.load(golden("stablemax") / f"orthograd_{name}.npz")
    count = sum(key.endswith("_0") for key in data.files)
    weights = [torch.nn.Parameter(torch.tensor(data[f"p{i}_0"])) for i in range(count)]
    optimizer = OrthoGrad(weights, base, foreach=foreach, **options)
    for step in range(len(data["g0"])):
        for i, weight in enumerate(weights):
            weight.grad = torch.tensor(data[f"g{i}"][step])
        optimizer.step()
        for i, weight in enumerate(weights):
            torch.testing.assert_close(weight.grad, torch.tensor(data[f"proj_g{i}"][step]), rtol=2e-6, atol=1e-6)
            torch.testing.assert_close(weight.detach(), torch.tensor(data[f"p{i}"][step]), rtol=2e-6, atol=1e-6)


def test_projection_as_a_function(golden) -> None:
    data = np.load(golden("stablemax") / "orthograd_sgd.npz")
    weight = torch.nn.Parameter(torch.tensor(data["p0_0"]))
    weight.grad = torch.tensor(data["g0"][0])
    project_orthogonal_([weight])
    torch.testing.assert_close(weight.grad, torch.tensor(data["proj_g0"][0]), rtol=2e-6, atol=1e-6)
