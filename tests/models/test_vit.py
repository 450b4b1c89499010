"""The small vision transformer: sizes, mixers of every kind, bidirectionality, clear errors."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from softgate.models import ViT, ViTConfig

SMALL = {"image_size": 12, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 2}


class MeanMixer(nn.Module):
    def __init__(self, dim: int, heads: int, scale: float = 1.0) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.scale = scale

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        assert height * width == tokens.shape[1]
        return self.scale * self.project(tokens.mean(1, keepdim=True)).expand_as(tokens)


def own(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
    assert options["is_causal"] is False
    return query.sigmoid() * key.sigmoid() * value


@pytest.mark.parametrize("attention", ["softmax", own, MeanMixer, functools.partial(MeanMixer, scale=2.0)])
def test_every_kind_of_mixer_trains(attention) -> None:
    model = ViT(ViTConfig(attention=attention, **SMALL))
    logits = model(torch.randn(3, 1, 12, 12))
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_patch_changes_the_features_of_every_token() -> None:
    model = ViT(ViTConfig(**SMALL)).double()
    image = torch.randn(1, 1, 12, 12, dtype=torch.float64)
    other = image.clone()
    other[..., 8:, 8:] += 1  # the last patch
    features = []
    model.norm.register_forward_hook(lambda _m, args, _out: features.append(args[0]))
    model(image), model(other)
    assert bool(((features[0] - features[1]).abs() > 1e-9).any(-1).all())


def test_attention_options_reach_the_module() -> None:
    model = ViT(ViTConfig(attention=MeanMixer, attention_options={"scale": 3.0}, **SMALL))
    assert model.blocks[0].mixer.scale == 3.0  # type: ignore[union-attr]


def test_models_that_differ_in_the_mixer_start_from_the_same_law() -> None:
    model = ViT(ViTConfig(attention=MeanMixer, embed_dim=64, num_heads=2))
    weight = model.blocks[0].mixer.project.weight  # type: ignore[union-attr]
    bound = (6 / 128) ** 0.5
    assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"image_size": 13}, "image_size"),
        ({"embed_dim": 9}, "embed_dim"),
        ({"depth": 0}, "depth"),
        ({"depth": 1.5}, "depth"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention": 3}, "attention"),
        ({"attention": "nothing"}, "attention"),
    ],
)
def test_bad_configurations_are_named(bad, word) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        ViT(ViTConfig(**{**SMALL, **bad}))


def test_bad_images_are_named() -> None:
    with pytest.raises(ValueError, match="images must have shape"):
        ViT(ViTConfig(**SMALL))(torch.zeros(1, 3, 12, 12))
