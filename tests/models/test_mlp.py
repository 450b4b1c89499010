"""The plain perceptron."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgate.models import MLP


def test_shapes_and_layers() -> None:
    model = MLP((6, 5, 4, 3), activation=nn.Tanh)
    assert model(torch.randn(2, 7, 6)).shape == (2, 7, 3)
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert len(list(MLP((6, 5, 3), bias=False).parameters())) == 2


def test_homogeneous_without_biases() -> None:
    model = MLP((6, 8, 3), bias=False)
    x = torch.randn(4, 6)
    before = model(x)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    torch.testing.assert_close(model(x), 4.0 * before)


@pytest.mark.parametrize("widths", [(), (3,), (3, 0), (3, -1, 2), (3, 2.0), (True, 2)])
def test_bad_widths(widths) -> None:
    with pytest.raises(ValueError, match="widths"):
        MLP(widths)


@pytest.mark.parametrize("widths", [None, 3, "32"])
def test_bad_types(widths) -> None:
    with pytest.raises(TypeError, match="widths"):
        MLP(widths)
