"""FactoredSphericalLinear against arrays made by the authors' C++ layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.losses import FactoredSphericalLinear, z_loss, z_loss_from_stats

FILES = (
    "spherical_step_K1",
    "spherical_step_K3",
    "spherical_5steps",
    "zloss_train_20steps",
    "zloss_train_20steps_a0.5_b3",
)
# The authors' class computes in float32.
TOLERANCE = {"rtol": 3e-4, "atol": 3e-5}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def build(arrays: dict[str, Tensor], inverse: str) -> FactoredSphericalLinear:
    """A layer in the state of the file: U is not the identity, omega is not zero."""
    classes, features = arrays["V0"].shape
    head = FactoredSphericalLinear(
        features, classes, lr=float(arrays["eta"]), inverse=inverse, refactor_every=None, dtype=torch.float64
    )
    v, u, omega = (arrays[name].double() for name in ("V0", "U0", "omega0"))
    w = v @ u + omega
    state = {**head.state_dict(), "V": v, "U": u, "omega": omega, "Q": w.T @ w, "w_bar": w.sum(0)}
    if inverse == "woodbury":
        state["U_inverse"] = torch.linalg.inv(u)
    head.load_state_dict(state)
    return head


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inverse", ["woodbury", "solve"])
def test_every_step(name: str, inverse: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden("z-loss") / f"{name}.npz")
    head = build(arrays, inverse)
    for step, rows in enumerate(arrays["H"].double()):
        h = rows.clone().requires_grad_()
        a, q, s = head(h, arrays["targets"][step].long())
        for got, expected in ((a, "A"), (q, "q"), (s, "s")):
            torch.testing.assert_close(got.float(), arrays[expected][step], **TOLERANCE)
        grads = [arrays[f"grad_{which}"][step].double() for which in ("A", "q", "s")]
        torch.autograd.backward((a, q, s), grads)
        assert h.grad is not None
        torch.testing.assert_close(h.grad.float(), arrays["grad_H"][step], **TOLERANCE)
        if "W_steps" in arrays:
            torch.testing.assert_close(head.weight.float(), arrays["W_steps"][step], **TOLERANCE)
    for got, expected in ((head.weight, "W_final"), (head.Q, "Q_final"), (head.w_bar, "w_bar_final")):
        scale = float(arrays[expected].abs().max())
        torch.testing.assert_close(got.float(), arrays[expected], rtol=3e-4, atol=3e-5 * scale)


@pytest.mark.parametrize(("name", "alpha", "b"), [(FILES[3], 1.0, 0.0), (FILES[4], 0.5, 3.0)])
def test_gradients_of_the_z_loss(name: str, alpha: float, b: float, golden: Callable[[str], Path]) -> None:
    """The stored upstream gradients are those of the loss summed over the batch, and so are those of the dense form."""
    arrays = load(golden("z-loss") / f"{name}.npz")
    classes = len(arrays["V0"])
    stats = [arrays[which][0].double().reshape(-1).requires_grad_() for which in ("A", "q", "s")]
    z_loss_from_stats(*stats, classes, reduction="sum", alpha=alpha, b=b).backward()
    for stat, which in zip(stats, ("A", "q", "s"), strict=True):
        torch.testing.assert_close(stat.grad.float(), arrays[f"grad_{which}"][0].reshape(-1), rtol=1e-4, atol=1e-7)
    logits = (arrays["H"][0].double() @ arrays["W0"].double().T).requires_grad_()
    z_loss(logits, arrays["targets"][0, :, 0].long(), reduction="sum", alpha=alpha, b=b).backward()
    rows = logits.grad @ arrays["W0"].double()
    torch.testing.assert_close(rows.float(), arrays["grad_H"][0], **TOLERANCE)


@pytest.mark.parametrize(("name", "alpha", "b"), [(FILES[3], 1.0, 0.0), (FILES[4], 0.5, 3.0)])
def test_training_on_our_own_gradients(name: str, alpha: float, b: float, golden: Callable[[str], Path]) -> None:
    arrays = load(golden("z-loss") / f"{name}.npz")
    head = build(arrays, "woodbury")
    for rows, target in zip(arrays["H"].double(), arrays["targets"].long(), strict=True):
        a, q, s = head(rows, target[:, 0])
        z_loss_from_stats(a, q, s, len(arrays["V0"]), reduction="sum", alpha=alpha, b=b).backward()
    torch.testing.assert_close(head.weight.float(), arrays["W_final"], **TOLERANCE)
