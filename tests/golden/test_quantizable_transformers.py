"""Clipped softmax, head gates and kurtosis against arrays made by the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate._math.masks import key_padding_mask
from softgate.attention import HeadGatedAttention, MultiHeadAttention
from softgate.diagnostics import kurtosis
from softgate.normalizers import clipped_softmax

SLUG = "quantizable-transformers"
HEADS, WIDTH = 4, 32
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # the arrays are stored in float32
NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out_proj": "o_proj"}
GATES: dict[str, tuple[str, dict[str, object]]] = {
    "bert_gate_mlp": ("mlp", {}),
    "bert_gate_per_head": ("per_head", {}),
    "bert_gate_unconditional": ("unconditional", {}),
    "opt_gate_all_features": ("all_features", {}),
    "opt_gate_linear": ("linear", {}),
    "opt_gate_finetune": ("linear", {"init": 0.5, "fine_tune": True}),
}
CLIPPED = {
    "bert_clipped_gamma": {"gamma": -0.03},
    "opt_clipped_alpha": {"alpha": 2.0, "max_seq_len": 11},
}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def our_names(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The authors' parameters (one gate module per head, ``alpha.HEAD.LAYER``) under the names of our module."""
    theirs = {name.removeprefix(prefix): a.double() for name, a in arrays.items() if name.startswith(prefix)}
    ours = {}
    for name, tensor in theirs.items():
        module, _, end = name.rpartition(".")
        if module in NAMES or module in NAMES.values():
            ours[f"{NAMES.get(module, module)}.{end}"] = tensor
        elif name == "alpha":
            ours["gate.logit"] = tensor
        elif module == "alpha":
            ours[f"gate.layers.0.{end}"] = tensor
        elif module.startswith("alpha.0"):
            tail = name.removeprefix("alpha.0")
            layer = {".0": 0, ".2": 1}[module[-2:]] if module.count(".") == 2 else 0
            ours[f"gate.layers.{layer}.{end}"] = torch.stack([theirs[f"alpha.{h}{tail}"] for h in range(HEADS)])
    return ours


def build(name: str, arrays: dict[str, Tensor]) -> MultiHeadAttention | HeadGatedAttention:
    layer: MultiHeadAttention | HeadGatedAttention
    if name in GATES:
        kind, options = GATES[name]
        layer = HeadGatedAttention(WIDTH, HEADS, gate=kind, gate_options=options, bias=True)  # type: ignore[arg-type]
    else:
        layer = MultiHeadAttention(
            WIDTH, HEADS, attention="clipped_softmax", attention_options=CLIPPED[name], bias=True
        )
    layer.double().load_state_dict(layer.state_dict() | our_names(arrays, "p__"))
    if name.startswith("bert"):  # their module ends before the output projection
        layer.o_proj = torch.nn.Identity()  # type: ignore[assignment]
    return layer


@pytest.mark.parametrize("name", [*CLIPPED, *GATES])
@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
def test_outputs_weights_gates_and_gradients(
    name: str, backend: str, golden: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "tiled" and name in GATES:
        pytest.skip("softmax attention has no tiles")
    monkeypatch.setenv("SOFTGATE_KERNELS", backend)
    arrays = load(golden(SLUG) / f"{name}.npz")
    layer = build(name, arrays)
    x = arrays["x"].double().requires_grad_()
    masked = {"is_causal": True}
    if name.startswith("bert"):
        masked = {"is_causal": False, "attn_mask": key_padding_mask(arrays["keep"])}
    output = layer(x, **masked)
    output.backward(arrays["grad_out"].double())

    torch.testing.assert_close(output.float(), arrays["out"], **TOLERANCE)
    torch.testing.assert_close(layer.attention_weights(x.detach(), **masked).float(), arrays["attn_probs"], **TOLERANCE)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), arrays["grad_x"], **TOLERANCE)
    stored = our_names(arrays, "g__")
    found = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    assert found.keys() == stored.keys()
    for key, expected in stored.items():
        got = found[key].reshape(expected.shape).float()
        torch.testing.assert_close(got, expected.float(), **TOLERANCE, msg=lambda m, key=key: f"{key}: {m}")
    if "gate" in arrays and isinstance(layer, HeadGatedAttention):
        scores = layer.gate_scores(x.detach()).float()
        scores = scores * layer.gate.init if layer.gate.fine_tune else scores  # theirs was stored before the factor
        torch.testing.assert_close(scores, arrays["gate"].expand_as(scores), **TOLERANCE)


@pytest.mark.parametrize("case", range(4))
def test_the_bare_function(case: int, golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "functional.npz")
    x = arrays[f"x{case}"].requires_grad_()
    y = clipped_softmax(x, gamma=float(arrays[f"gamma{case}"]), eta=float(arrays[f"eta{case}"]))
    torch.testing.assert_close(y, arrays[f"y{case}"], rtol=1e-13, atol=1e-15)
    (slope,) = torch.autograd.grad(y, x, arrays[f"grad_out{case}"])
    torch.testing.assert_close(slope, arrays[f"grad_x{case}"], rtol=1e-12, atol=1e-14)


def test_kurtosis(golden: Callable[[str], Path]) -> None:
    arrays = load(golden(SLUG) / "functional.npz")
    torch.testing.assert_close(kurtosis(arrays["kurt_x"]), arrays["kurt"], rtol=1e-12, atol=0.0)
