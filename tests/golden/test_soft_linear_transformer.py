"""Softmax-free attention against arrays made by the authors' code: inverses, gradients, both layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.attention import SoftmaxFreeAttention, gaussian_kernel, newton_schulz_pinv

SLUG = "soft-linear-transformer"
#: Names in the authors' layer -> here.
NAMES = {
    "W_q": "q_proj",
    "W_v": "v_proj",
    "ff": "o_proj",
    "attn.Qlandmark_op": "landmark_conv",
    "attn.Qnorm_act.0": "landmark_norm",
    "attn.conv": "value_conv",
}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]).double() for name in arrays.files}


def renamed(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for key, value in arrays.items():
        if key.startswith(prefix):
            module, parameter = key.removeprefix(prefix).rsplit(".", 1)
            found[f"{NAMES[module]}.{parameter}"] = value
    return found


def build(name: str, arrays: dict[str, Tensor]) -> SoftmaxFreeAttention:
    dim, heads, ratio, _, _, conv_size, iters = (int(v) for v in arrays["meta"])
    normalized = name.startswith("softnorm")
    # SOFT++'s code adds no ridge, takes one step size for the whole batch and differentiates the steps.
    options = {"ridge": 0.0, "alpha": "global", "implicit_grad": False} if normalized else {}
    layer = SoftmaxFreeAttention(dim, heads, ratio, conv_size, normalized, iters, **options)
    layer.load_state_dict(renamed(arrays, "p__"))
    return layer.double()


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(
    "name", ["soft_attention_r2", "soft_attention_r4_noconv", "softnorm_attention_r2", "softnorm_attention_r4_noconv"]
)
def test_layer_and_gradients(
    name: str, kernels: str, golden: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    arrays = load(golden(SLUG) / f"{name}.npz")
    layer, (height, width) = build(name, arrays), (int(v) for v in arrays["meta"][3:5])
    x = arrays["x"].requires_grad_()
    out = layer(x, height, width)
    out.backward(arrays["grad_out"])
    torch.testing.assert_close(out, arrays["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, arrays["grad_x"], rtol=1e-4, atol=1e-4)
    stored = renamed(arrays, "g__")
    assert stored.keys() == dict(layer.named_parameters()).keys()
    for key, parameter in layer.named_parameters():
        size = float(stored[key].abs().max())
        torch.testing.assert_close(
            parameter.grad, stored[key], rtol=0.0, atol=1e-5 * size, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_one_layer_takes_a_map_as_well(golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "soft_attention_r2.npz")
    out = build("soft", arrays)(arrays["x"].mT.unflatten(-1, (6, 6)))
    torch.testing.assert_close(out.flatten(2).mT, arrays["out"], rtol=1e-4, atol=1e-5)


def test_newton_inverses_of_both_papers(golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "newton_and_gaussian.npz")
    torch.testing.assert_close(newton_schulz_pinv(arrays["A"], ridge=0.01), arrays["newton_soft_20"], rtol=1e-6, atol=0)
    torch.testing.assert_close(newton_schulz_pinv(arrays["A"], alpha="global"), arrays["newton_norm_20"])


def test_the_implicit_gradient(golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "newton_and_gaussian.npz")
    matrix = arrays["A"].requires_grad_()
    newton_schulz_pinv(matrix, ridge=0.01).backward(arrays["grad_out"])
    torch.testing.assert_close(matrix.grad, arrays["grad_A_implicit"], rtol=1e-6, atol=1e-6)


def test_the_gaussian_kernel(golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "newton_and_gaussian.npz")
    kernel = gaussian_kernel(arrays["points"], arrays["points"])
    torch.testing.assert_close(kernel, torch.exp(-0.5 * arrays["sqdist"]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(kernel, arrays["A"], rtol=1e-5, atol=1e-7)
