"""Parity with arrays made by the authors' code: head, density and smoothness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from softgate.losses import FourierDensity, FourierHead, pmf_smoothness
from softgate.losses.fourier.series import autocorrelation, normalized_coefficients


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / name) as data:
        return dict(data)


def close_in_size(actual: torch.Tensor, expected: np.ndarray, relative: float) -> None:
    truth = torch.tensor(expected)
    assert float((actual.detach() - truth).abs().max()) <= relative * float(truth.abs().max())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", ["head_16to18_f5", "head_reg_3d_input"])
def test_head(golden, monkeypatch, name, kernels) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    data = arrays(golden("fourier-head"), f"{name}.npz")
    sizes = data["x"].shape[-1], int(data["dim_output"]), int(data["num_frequencies"])
    head = FourierHead(*sizes, gamma=float(data["gamma"]), eps=float(data["const"]))
    head.load_state_dict({f"linear.{part}": torch.tensor(data[part]) for part in ("weight", "bias")})
    x = torch.tensor(data["x"]).requires_grad_()
    output = head(x)
    c_real, c_imag = autocorrelation(*(part.flatten(0, -2) for part in head.coefficients(x)))
    close_in_size(c_real, data["coef_real"], 1e-5)
    close_in_size(c_imag, data["coef_imag"], 1e-5)
    expected = torch.tensor(data["log_probs"])
    torch.testing.assert_close(output.exp(), expected.exp(), rtol=0, atol=1e-6)
    # bins of probability near 0 carry the rounding of the authors' float32 sum
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-3)
    penalty = head.regularization()
    torch.testing.assert_close(penalty, torch.tensor(data["loss_regularization"]), rtol=1e-5, atol=0)
    loss = cross_entropy(output.flatten(0, -2), torch.tensor(data["targets"]).flatten()) + penalty
    torch.testing.assert_close(loss, torch.tensor(data["loss"]), rtol=1e-6, atol=0)
    loss.backward()
    close_in_size(x.grad, data["grad_x"], 1e-4)
    close_in_size(head.linear.weight.grad, data["grad_weight"], 1e-4)
    close_in_size(head.linear.bias.grad, data["grad_bias"], 1e-4)


def test_density(golden) -> None:
    data = arrays(golden("fourier-head"), "continuous_f7.npz")
    coef = torch.tensor(data["x"]) @ torch.tensor(data["weight"]).T + torch.tensor(data["bias"])
    c_real, c_imag = normalized_coefficients(*coef.tensor_split(2, -1))
    torch.testing.assert_close(c_real[:, 1:], torch.tensor(data["coefn_real"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(c_imag[:, 1:], torch.tensor(data["coefn_imag"]), rtol=0, atol=1e-5)
    density = FourierDensity(coef[:, None])
    points = torch.tensor(data["grid"])
    torch.testing.assert_close(density.log_prob(points).exp(), torch.tensor(data["pdf"]), rtol=0, atol=5e-6)
    torch.testing.assert_close(density.cdf(points), torch.tensor(data["cdf"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("bins", [18, 50])
def test_smoothness(golden, bins) -> None:
    data = arrays(golden("fourier-head"), "smoothness.npz")
    found = pmf_smoothness(torch.tensor(data[f"pmf_{bins}"]))
    torch.testing.assert_close(found, torch.tensor(data[f"smoothness_{bins}"]), rtol=1e-12, atol=1e-14)
