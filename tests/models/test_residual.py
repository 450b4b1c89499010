"""The residual network for small images."""

from __future__ import annotations

import pytest
import torch

from softgate.models import ResNet, ResNetConfig


def test_shapes_and_sizes() -> None:
    model = ResNet(ResNetConfig(channels=1, num_classes=7, stages=((4, 1), (8, 2)), stem_stride=2))
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 7)
    assert model.blocks(model.stem(torch.zeros(1, 1, 28, 28))).shape == (1, 8, 7, 7)
    wide = ResNet(ResNetConfig(stages=((160, 4), (320, 4), (640, 4))))
    assert sum(p.numel() for p in wide.parameters()) == pytest.approx(36.5e6, rel=0.01)  # WRN-28-10


def test_a_block_adds_to_what_it_gets() -> None:
    model = ResNet(ResNetConfig(stages=((4, 2),))).eval()
    torch.nn.init.zeros_(model.blocks[1].conv2.weight)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(model.blocks[1](x), x)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"channels": 0}, ValueError, "channels"),
        ({"num_classes": 2.0}, TypeError, "num_classes"),
        ({"stages": [(4, 1)]}, TypeError, "stages"),
        ({"stages": ()}, ValueError, "stages"),
        ({"stages": ((4, 0),)}, ValueError, "stages"),
    ],
)
def test_bad_sizes(options, error, word) -> None:
    with pytest.raises(error, match=word):
        ResNetConfig(**options)
