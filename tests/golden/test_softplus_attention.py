"""softplus_attention against arrays of a third party's implementation with its stabiliser eps set to 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.attention import lssa_weights, softplus_attention

FILES = ("lssa", "lssar_p3", "lssar_p15", "lssar_p15_long")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def load(path: Path) -> tuple[dict[str, Tensor], int | None]:
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    power = int(arrays["p"])
    return arrays, None if power < 0 else power


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_output_and_gradients(name: str, backend: str, golden: Callable[[str], Path]) -> None:
    arrays, power = load(golden("softplus-attention") / f"{name}.npz")
    inputs = [arrays[letter].double().requires_grad_() for letter in "qkv"]
    out = softplus_attention(*inputs, is_causal=True, reweight_power=power, backend=backend)
    torch.testing.assert_close(out.float(), arrays["out"], **TOLERANCE)
    grads = torch.autograd.grad(out, inputs, arrays["grad_out"].double())
    for letter, grad in zip("qkv", grads, strict=True):
        torch.testing.assert_close(grad.float(), arrays[f"d{letter}"], **TOLERANCE)


@pytest.mark.parametrize("name", FILES)
def test_weights(name: str, golden: Callable[[str], Path]) -> None:
    arrays, power = load(golden("softplus-attention") / f"{name}.npz")
    weights = lssa_weights(arrays["q"].double(), arrays["k"].double(), is_causal=True, reweight_power=power)
    torch.testing.assert_close(weights.float(), arrays["attn"], **TOLERANCE)


def test_no_stabiliser_hides_in_the_denominators(golden: Callable[[str], Path]) -> None:
    """With eps = 1e-8 in both sums, nearly uniform rows no longer sum to one: stored beside the exact output."""
    arrays, power = load(golden("softplus-attention") / "lssar_p15_long.npz")
    out = softplus_attention(*(arrays[letter] for letter in "qkv"), is_causal=True, reweight_power=power)
    exact, stabilised = (out - arrays["out"]).abs().max(), (out - arrays["out_eps1e8"]).abs().max()
    assert exact < 1e-5 < stabilised
