"""SOFTViT: the paper's sizes, maps and blocks, other image sizes, training, timm's registry."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from softgate.attention import SoftmaxFreeAttention
from softgate.models import SOFTViT, SOFTViTConfig, soft_cifar, soft_huge, soft_medium, soft_tiny


def test_tiny_has_as_many_parameters_as_in_the_paper():
    with torch.device("meta"):
        model = soft_tiny()
    assert round(model.num_parameters() / 1e6) == 13


@pytest.mark.parametrize("build", [soft_tiny, soft_medium, soft_huge])
def test_stages_at_224(build: Any):
    """49 landmarks in every softmax-free stage, filters of 9, 5 and 3, heads of 32 features."""
    with torch.device("meta"):
        model = build(depths=(1, 1, 1, 1))
    layers = [m for m in model.modules() if isinstance(m, SoftmaxFreeAttention)]
    assert [stage.side for stage in model.stages] == [56, 28, 14, 7]
    assert [(stage.side // layer.ratio) ** 2 for stage, layer in zip(model.stages, layers, strict=False)] == [49] * 3
    assert [layer.conv_size for layer in layers] == [9, 5, 3]
    assert {layer.head_dim for layer in layers} == {32}
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_normalized_chooses_the_paper():
    for normalized in (True, False):
        layers = [m for m in soft_cifar(normalized=normalized).modules() if isinstance(m, SoftmaxFreeAttention)]
        assert {layer.normalized for layer in layers} == {normalized}


def test_softmax_free_blocks_are_post_norm():
    """The output of a softmax-free stage is a layer norm's: every token has mean 0 and standard deviation 1."""
    model = soft_cifar().eval()
    tokens = model.stages[0](torch.randn(2, 3, 32, 32)).flatten(2).mT
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 256), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.std(-1, unbiased=False), torch.ones(2, 256), atol=1e-3, rtol=0)


def test_other_image_sizes_resize_the_positions():
    model = soft_cifar().eval()
    with torch.no_grad():
        for stage in model.stages:
            stage.positions.fill_(0.3)  # a constant table stays constant
            torch.testing.assert_close(
                stage._positions(9, 5)[:, -45:], torch.full((1, 45, stage.positions.shape[-1]), 0.3)
            )
    assert model(torch.randn(1, 3, 48, 40)).shape == (1, 10)


def test_it_learns():
    torch.manual_seed(0)
    model = soft_cifar(embed_dims=(16, 32, 32), num_heads=(1, 2, 2), depths=(1, 1, 1))
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_drop_rates_grow_with_depth():
    model = SOFTViT(SOFTViTConfig(image_size=32, stem_strides=(1, 1, 1), ratios=(4, 4, 2), drop_rate=0.35))
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert rates == pytest.approx([0.05 * i for i in range(8)])


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"embed_dims": (64,)}, "embed_dims"),
        ({"num_heads": (2, 4)}, "num_heads"),
        ({"depths": (1, 2, 0, 2)}, "depths"),
        ({"ratios": (8, 4, 2, 1)}, "ratios"),
        ({"conv_sizes": (9, 5, -1)}, "conv_sizes"),
        ({"conv_sizes": (9, 5, 4)}, "conv_size"),
        ({"stem_strides": (2, 2)}, "stem_strides"),
        ({"num_heads": (3, 4, 10, 16)}, "embed_dim"),
        ({"image_size": 0}, "image_size"),
        ({"num_classes": "10"}, "num_classes"),
        ({"drop_rate": 1.0}, "drop_rate"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, Any], word: str):
    with pytest.raises((ValueError, TypeError), match=word):
        soft_tiny(**sizes)


def test_images_that_do_not_fit_are_named():
    model = soft_cifar()
    for images, word in ((torch.ones(2, 1, 32, 32), "images"), (torch.ones(3, 32, 32), "images")):
        with pytest.raises(ValueError, match=word):
            model(images)
    with pytest.raises(ValueError, match="ratio"):
        model(torch.ones(2, 3, 4, 4))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_timm_finds_the_models_once_they_are_registered():
    from softgate.integrations.timm_soft import register_soft_models

    names = register_soft_models()
    import timm

    assert set(names) <= set(timm.list_models("softgate_soft_*")) and len(names) == 10
    model = timm.create_model("softgate_soft_norm_tiny", num_classes=7, in_chans=1, img_size=32)
    assert model.config.normalized and model.head.out_features == 7 and model.config.channels == 1
    with pytest.raises(ValueError, match="pretrained"):
        timm.create_model("softgate_soft_tiny", pretrained=True)
