"""CRReLU by name in the models of transformers and timm."""

from __future__ import annotations

import pytest
import torch

from softgate.activations import CRReLU
from softgate.integrations.activation_names import register_activations


def test_transformers_configs() -> None:
    transformers = pytest.importorskip("transformers")
    assert "transformers" in register_activations()
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_channels=1, hidden_act="crrelu",
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    found = [m for m in model.modules() if isinstance(m, CRReLU)]
    assert len(found) == 2 and found[0].eps is not found[1].eps
    model(torch.randn(2, 1, 8, 8)).logits.sum().backward()
    assert all(bool(m.eps.grad.abs() > 0) for m in found)
    again = transformers.ViTForImageClassification(transformers.ViTConfig(**config.to_dict()))
    again.load_state_dict(model.state_dict())


def test_timm_models() -> None:
    pytest.importorskip("timm")
    assert "timm" in register_activations()
    from timm.layers import create_act_layer
    from timm.models.vision_transformer import VisionTransformer

    assert isinstance(create_act_layer("crrelu", inplace=True), CRReLU)
    model = VisionTransformer(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3,
                              act_layer="crrelu")  # fmt: skip
    assert sum(isinstance(m, CRReLU) for m in model.modules()) == 2
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
