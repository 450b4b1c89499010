"""Replacing activations in models."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import softgate
from softgate.activations import CRReLU, replace_activations


def _model() -> nn.Sequential:
    shared = nn.ReLU()
    block = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), shared)
    return nn.Sequential(nn.Linear(3, 4), shared, block, nn.Tanh(), nn.Linear(4, 2))


def test_every_place_gets_its_own_eps() -> None:
    model = _model().double().eval()
    assert replace_activations(model, to=partial(CRReLU, init=-0.02)) == ["1", "2.1", "2.3"]
    found = [m for m in model.modules() if isinstance(m, CRReLU)]
    assert len(found) == 3 and len({id(m.eps) for m in found}) == 3
    assert all(m.eps.dtype is torch.float64 and not m.training for m in found)
    assert isinstance(model[3], nn.Tanh) and len([n for n, _ in model.named_parameters() if n.endswith("eps")]) == 3
    model(torch.randn(5, 3, dtype=torch.float64)).sum().backward()
    assert all(m.eps.grad is not None for m in found)


def test_classes_can_be_chosen() -> None:
    model = _model()
    assert replace_activations(model, nn.Tanh, nn.SiLU) == ["3"]
    assert isinstance(model[3], nn.SiLU)


def test_swap_knows_it_by_name() -> None:
    model = _model()
    softgate.swap(model, activation="crrelu", activation_options={"init": 0.1})
    assert sum(isinstance(m, CRReLU) and m.init == 0.1 for m in model.modules()) == 3
    softgate.unswap(model)
    assert not any(isinstance(m, CRReLU) for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (("model",), TypeError, "model"),
        ((_model(), "relu"), TypeError, "from_"),
        ((_model(), ()), TypeError, "from_"),
        ((_model(), (nn.ReLU, torch.relu)), TypeError, "from_"),
        ((_model(), nn.ReLU, "crrelu"), TypeError, "to"),
        ((_model(), nn.ReLU, dict), TypeError, "to"),
        ((_model(), nn.Mish), RuntimeError, "Mish"),
        ((nn.GELU(),), RuntimeError, "GELU"),
    ],
    ids=["model", "name", "empty", "function", "to", "not a module", "none", "itself"],
)
def test_bad_input(arguments, error, word) -> None:
    with pytest.raises(error, match=word):
        replace_activations(*arguments)
