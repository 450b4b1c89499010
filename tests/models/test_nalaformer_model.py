"""NaLaFormer: published sizes, parts, training of the small one, what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from softgate.models import NaLaFormer, NaLaFormerConfig

#: Parameters in millions, from the table of the released models; for "xt" (8M there) the released sizes give 6.1M.
PUBLISHED = {"t": 15, "s": 26, "b": 52, "l": 95}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_about_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = NaLaFormer(name)
        logits = model(torch.empty(2, 3, 224, 224))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(millions / PUBLISHED[name] - 1) < 0.12, millions
    assert logits.shape == (2, 1000)


def test_the_small_one_learns_to_tell_two_images() -> None:
    model = NaLaFormer(dataclasses.replace(NaLaFormer("small_images").config, drop_path=0.2))
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.2 * losses[0]


def test_left_out_branches_only_while_training_and_maps_of_any_shape() -> None:
    model = NaLaFormer(dataclasses.replace(NaLaFormer("small_images").config, depths=(3, 3), drop_path=0.5)).eval()
    x = torch.randn(2, 3, 12, 20)
    assert torch.equal(model(x), model(x))
    batch_norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    model.train()
    for norm in batch_norms:
        norm.eval()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dims": [32, 64]}, "dims"),
        ({"dims": (32,)}, "depths"),
        ({"dims": (30, 64)}, "dims"),
        ({"depths": (1, 0)}, "depths"),
        ({"num_heads": (1, 2.0)}, "num_heads"),
        ({"attention": ("linear", "relu")}, "attention"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_bad_configurations_are_named(change: dict[str, Any], word: str) -> None:
    good: dict[str, Any] = {"dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "attention": ("linear", "softmax")}
    with pytest.raises((ValueError, TypeError), match=word):
        NaLaFormerConfig(**{**good, **change})


def test_bad_names_and_images_are_named() -> None:
    with pytest.raises(ValueError, match="config"):
        NaLaFormer("xl")
    with pytest.raises(TypeError, match="config"):
        NaLaFormer(3)  # type: ignore[arg-type]
    model = NaLaFormer("small_images")
    for shape in ((1, 1, 32, 32), (3, 32, 32), (1, 3, 2, 32)):
        with pytest.raises(ValueError, match="images"):
            model(torch.zeros(shape))
