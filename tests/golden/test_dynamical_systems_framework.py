"""The mixers against arrays made by the authors' code: outputs and all gradients, and every execution form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softgate.attention import QLSTM, LinearAttention, NormalizedAttention, SoftmaxMixer, selective_scan, ssd_scan
from softgate.attention.mixers.base import CausalMixer
from softgate.diagnostics import dsf

SLUG = "dynamical-systems-framework"
ATTENTION: dict[str, Callable[[], CausalMixer]] = {
    "softmax_attention": lambda: SoftmaxMixer(24, 12, 2),
    "linear_attention_elu": lambda: LinearAttention(24, 12, 2),
    "normalized_attention_exp": lambda: NormalizedAttention(24, 12, 2),
    "normalized_attention_softplus": lambda: NormalizedAttention(24, 12, 2, norm="softplus"),
    "normalized_attention_sigmoid": lambda: NormalizedAttention(24, 12, 2, norm="sigmoid"),
}
QLSTMS: dict[str, Callable[[], CausalMixer]] = {
    "qlstm": lambda: QLSTM(16, reversed=False),
    "qlstm_reversed": lambda: QLSTM(16),
}
LAYERS = {**ATTENTION, **QLSTMS}
#: Their names of parameters -> ours; Wqk is cut in two separately.
NAMES = {
    "Wv": "v_proj", "out_proj": "o_proj", "Wn": "eta_proj",
    "input": "in_proj", "conv": "conv.conv", "gates": "gates", "output": "out_proj",
}  # fmt: skip


def near(actual: Tensor | None, expected: Tensor) -> None:
    """Equal but for the rounding of the stored parameters to float32, relative to the largest entry."""
    assert actual is not None and actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= 5e-6 * float(expected.abs().max().clamp_min(0.1))


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]).double() for name in arrays.files}


def ours(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Their parameters (or gradients) under our names."""
    found = {}
    for name, value in arrays.items():
        if not name.startswith(prefix):
            continue
        module, _, kind = name.removeprefix(prefix).rpartition(".")
        if module == "Wqk":
            found[f"q_proj.{kind}"], found[f"k_proj.{kind}"] = value.chunk(2)
        else:
            found[f"{NAMES[module]}.{kind}" if module else kind] = value
    return found


def build(name: str, arrays: dict[str, Tensor]) -> CausalMixer:
    layer = LAYERS[name]().double()
    parameters = ours(arrays, "p__")
    if name == "qlstm":
        del parameters["alpha"]
    layer.load_state_dict(parameters)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_of_layers(name: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / f"{name}.npz")
    layer = build(name, arrays)
    x = arrays["x"].requires_grad_()
    out = layer(x)
    out.backward(arrays["grad_out"])
    near(out, arrays["out"])
    near(x.grad, arrays["grad_x"])
    expected = ours(arrays, "g__")
    got = {key: p.grad for key, p in layer.named_parameters()}
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        near(got[key], gradient)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_decoding_token_by_token(name: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / f"{name}.npz")
    layer, state, outputs = build(name, arrays), None, []
    for token in arrays["x"].split(1, dim=1):
        out, state = layer(token, state, return_state=True)
        outputs.append(out)
    near(torch.cat(outputs, 1), arrays["out"])


@pytest.mark.parametrize("name", ["linear_attention_elu", "normalized_attention_exp"])
@torch.no_grad()
def test_the_system_of_a_layer_gives_its_output_in_every_form(name: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / f"{name}.npz")
    layer = build(name, arrays)
    assert isinstance(layer, LinearAttention | NormalizedAttention)
    q, k, v = layer._project(arrays["x"])
    if isinstance(layer, NormalizedAttention):
        system = dsf.from_normalized_attention(q, k, v, layer.eta_proj(arrays["x"]).mT[..., None])
    else:
        system = dsf.from_linear_attention(q, k, v)
    for y in (system.scan(), system.quadratic(), system.chunked(chunk=5)):
        out = layer.o_proj(y.transpose(1, 2).flatten(2))
        near(out, arrays["out"])


def s6_arguments(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    return {name: arrays[name].clone().requires_grad_() for name in names}


@pytest.mark.parametrize("name", ["s6_selective_scan", "ssd_scalar_decay"])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_selective_scan(
    name: str, kernels: str, golden: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    arrays = load(golden(SLUG) / f"{name}.npz")
    given = s6_arguments(arrays)
    # Their A is negative (A = -exp(…)) and stands in e^{ΔA}; here it is positive.
    delta = F.softplus(given["delta"] + given["delta_bias"][:, None]).mT
    u, B, C = (given[key].mT for key in ("u", "B", "C"))
    out = selective_scan(u, delta, -given["A"], B, C, given["D"]).output
    out.mT.backward(arrays["grad_out"])
    near(out.mT, arrays["out"])
    for key, tensor in given.items():
        near(tensor.grad, arrays[f"g__{key}"])
    system = dsf.from_s6(u.detach(), delta.detach(), -arrays["A"], B.detach(), C.detach(), arrays["D"])
    for y in (system.scan(), system.quadratic(), system.chunked(chunk=5)):
        near(y.mT, arrays["out"])


def test_ssd_scan_is_the_scalar_case(golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "ssd_scalar_decay.npz")
    u, B, C = (arrays[key].mT for key in ("u", "B", "C"))
    delta = F.softplus(arrays["delta"] + arrays["delta_bias"][:, None])
    # Each channel is a head of its own with one feature.
    for chunk in (3, 64):
        y = ssd_scan(u.mT[..., None], delta, -arrays["A"][:, 0], B[:, None], C[:, None], arrays["D"], chunk=chunk)
        near(y.output[..., 0], arrays["out"])
