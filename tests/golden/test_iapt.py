"""Parity with arrays made by the rational activations library: values and gradients of the four versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.activations import RationalActivation, rational


@pytest.mark.parametrize("file", ["rational_pretrained", "rational_perturbed"])
def test_values_and_gradients(golden, file) -> None:
    with np.load(golden("iapt") / f"{file}.npz") as data:
        arrays = {key: torch.tensor(value) for key, value in data.items()}
    names = [key.removesuffix("_numerator") for key in arrays if key.endswith("_numerator") and "_grad_num" not in key]
    assert {name[0] for name in names} == set("ABCN") and len(names) >= 8
    for name in names:
        inputs = [arrays[f"{name}_{part}"].requires_grad_() for part in ("x", "numerator", "denominator")]
        y = rational(*inputs, name[0])
        torch.testing.assert_close(y.detach(), arrays[f"{name}_y"], rtol=1e-10, atol=1e-10)
        grads = torch.autograd.grad((arrays[f"{name}_w"] * y).sum(), inputs)
        for part, grad in zip(("x", "numerator", "denominator"), grads, strict=True):
            torch.testing.assert_close(grad, arrays[f"{name}_grad_{part}"], rtol=1e-10, atol=1e-10)


def test_the_default_start_is_theirs(golden) -> None:
    with np.load(golden("iapt") / "rational_pretrained.npz") as data:
        a, b = (torch.tensor(data[f"B_gelu_{part}"]) for part in ("numerator", "denominator"))
    start = RationalActivation()
    torch.testing.assert_close(start.numerator.detach().double(), a, rtol=1e-7, atol=0)
    torch.testing.assert_close(start.denominator.detach().double(), b, rtol=1e-7, atol=0)
