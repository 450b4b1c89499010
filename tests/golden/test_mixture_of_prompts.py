"""Against one training step and one evaluation of the authors' code, with the encoders' outputs given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from softgate.routing import hard_prompt_gate_target, mix_text_features, mixture_logits
from softgate.routing.prompt_mixing import text_supervision_loss


def _load(path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-6 + 1e-6 * float(b.abs().max()))


@pytest.fixture
def step(golden) -> dict[str, Tensor]:
    arrays = _load(golden("mixture-of-prompts") / "moco_step.npz")
    for name in ("gate_weight", "gate_bias", "correction_w", "base_text_raw", "all_text_raw"):
        arrays[name].requires_grad_()
    return arrays


def test_a_training_step(step) -> None:
    g = step
    image = functional.normalize(g["image_features_raw"], dim=-1)
    base, everything = (functional.normalize(g[f"{n}_text_raw"] + g["correction_w"], dim=-1) for n in ("base", "all"))
    gate_logits = functional.linear(image, g["gate_weight"], g["gate_bias"])
    _close(gate_logits, g["gate_logits"])
    _close(mix_text_features(gate_logits, base), g["mixed_text"])
    logits = mixture_logits(image, base, gate_logits, scale=float(g["logit_scale_log"].exp()))
    _close(logits, g["class_logits"])
    target = hard_prompt_gate_target(g["image_features_raw"], g["prototypes"], g["label"])
    _close(target, g["gate_target"])
    losses = {
        "cls": functional.cross_entropy(logits, g["label"]),
        "text": text_supervision_loss(everything, g["prototypes"]),
        "gate": functional.cross_entropy(gate_logits, target),
    }
    for name, loss in losses.items():
        _close(loss, g[f"loss_{name}"])
    total = losses["cls"] + g["text_loss_weight"] * losses["text"] + g["gate_loss_weight"] * losses["gate"]
    _close(total, g["loss_total"])
    total.backward()
    for name in ("gate_weight", "gate_bias", "correction_w", "base_text_raw", "all_text_raw"):
        _close(g[name].grad, g[f"grad_{name}"])


def test_an_evaluation(golden) -> None:
    g = _load(golden("mixture-of-prompts") / "moco_eval.npz")
    image = functional.normalize(g["image_features_raw"], dim=-1)
    text = functional.normalize(g["base_text_raw"] + g["correction_w"], dim=-1)
    gate_logits = functional.linear(image, g["gate_weight"], g["gate_bias"])
    _close(mixture_logits(image, text, gate_logits, scale=g["logit_scale_log"].exp()), g["logits"])
