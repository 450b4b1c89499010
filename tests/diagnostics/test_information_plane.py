"""The recorder of the information plane: which layers, when, what it keeps, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from softgate.diagnostics import InformationPlane, log2_epochs, mutual_information
from softgate.routing import MoE, TopKSoftmax


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))


def _data(rows: int = 200) -> tuple[Tensor, Tensor]:
    X = torch.randn(rows, 4)
    return X, (X[:, 0] > 0).long()


def test_the_figures_are_those_of_the_layers() -> None:
    net, (X, y) = _net(), _data()
    plane = InformationPlane(net, X, y, bins=5, batch_size=64)
    assert plane.layers == ("1", "4", "output")
    found = plane.record(0)
    net.eval()  # dropout off, as in the recording
    with torch.no_grad():
        hidden, last = net[:2](X), net(X).softmax(-1)
    assert found["1"] == mutual_information(hidden, y=y, bins=5)
    assert found["output"].i_tx == pytest.approx(mutual_information(last, y=y, bins=5).i_tx)
    logits = InformationPlane(net, X, y, ["output"], output=lambda z: z, estimator="akde")
    assert logits.record(0)["output"].i_tx == pytest.approx(mutual_information(net(X), estimator="akde").i_tx, abs=1e-6)


def test_the_model_stays_as_it_was() -> None:
    net, (X, _) = _net(), _data()
    net[2].eval()
    before = [m.training for m in net.modules()]
    InformationPlane(net, X, bins=4).record(0)
    assert [m.training for m in net.modules()] == before
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_epochs() -> None:
    net, (X, y) = _net(), _data(50)
    plane = InformationPlane(net, X, y, ["1"], bins=3)
    taken = [epoch for epoch in range(70) if plane.record(epoch) is not None]
    assert taken[:12] == list(range(12)) and taken[-3:] == [54, 59, 64] and 50 not in taken
    assert plane.curve()["1"].epochs == tuple(taken)
    chosen = InformationPlane(net, X, y, ["1"], log2_epochs(8000, 5), bins=3)
    assert [epoch for epoch in range(1, 1000) if chosen.record(epoch)] == [1, 9, 89, 845]
    every = InformationPlane(net, X, y, ["1"], "every", bins=3)
    assert every.record(12345)
    many = log2_epochs(8000)
    assert many[:5] == [1, 2, 3, 4, 5] and many[-1] == 8000 and len(many) == len(set(many)) < 400
    assert log2_epochs(1, 1) == [1]


def test_compression_and_curves() -> None:
    net, (X, _) = _net(), _data()
    plane = InformationPlane(net, X, None, ["1"], bins=30)
    for epoch, scale in enumerate((0.3, 1.0, 50.0)):  # a tanh that saturates ends with two values
        with torch.no_grad():
            net[0].weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(scale)
        plane.record(epoch)
    curve, fallen = plane.curve()["1"], plane.compression()["1"]
    assert all(map(math.isnan, curve.i_ty)) and curve.saturated == (True, True, False)
    assert fallen.drop == curve.i_tx[0] - curve.i_tx[2] > 1.0 and fallen.peak == 0
    assert fallen.share == fallen.drop / curve.i_tx[0]
    axes = plane.plot()
    assert "ebab" in axes.get_title() and "made by the bins" in axes.get_title() and "no labels" in axes.get_ylabel()
    styles = {line.get_fillstyle() for line in axes.lines if line.get_marker() == "o"}
    assert styles == {"none", "full"}
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(math.log2(200))


def test_sensitivity_looks_at_the_model_as_it_is() -> None:
    net, (X, y) = _net(), _data()
    plane = InformationPlane(net, X, y, ["4"])
    found = plane.sensitivity(bins=(3, 30), noise=())
    assert list(found["4"]) == ["ebab, 3 bins", "ebab, 30 bins"]
    assert found["4"]["ebab, 30 bins"].i_tx == pytest.approx(plane.record(0)["4"].i_tx)


def test_equal_inputs_count_once() -> None:
    X = torch.randn(10, 4).repeat(3, 1)
    found = InformationPlane(_net(), X, layers=["1"]).record(0)["1"]
    assert found.limit == math.log2(10) and found.i_tx == pytest.approx(math.log2(10))


def test_routers_and_attention() -> None:
    net, X = nn.Sequential(nn.Linear(4, 4), MoE(4, 8, 3)), torch.randn(60, 4)
    gate = next(name for name, m in net.named_modules() if isinstance(m, TopKSoftmax))
    found = InformationPlane(net, X, layers=[gate, "output"], bins=4).record(0)
    assert 0 < found[gate].i_tx <= math.log2(60)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.weights = attention, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            mixed, weights = self.attention(x, x, x)
            self.weights(weights)
            return mixed[:, 0]

    rows = InformationPlane(Net(), torch.randn(30, 3, 4), layers=["weights"], estimator="akde").record(0)
    assert 0 < rows["weights"].i_tx <= math.log2(30)


def test_bad_input() -> None:
    net, (X, y) = _net(), _data(20)
    for arguments, options, error, word in (
        ((net, X[:1]), {}, ValueError, "X"),
        ((torch.relu, X), {}, TypeError, "model"),
        ((net, X, y[:3]), {}, ValueError, "y"),
        ((net, X, y, ["11"]), {}, ValueError, "layers"),
        ((net, X, y, "1"), {}, ValueError, "layers"),
        ((net, X, y), {"schedule": "often"}, ValueError, "schedule"),
        ((net, X, y), {"estimator": "knn"}, ValueError, "estimator"),
        ((net, X, y), {"bin": 3}, ValueError, "bins"),
        ((net, X, y), {"bins": 0}, ValueError, "bins"),
        ((net, X, y), {"batch_size": 0}, ValueError, "batch_size"),
    ):
        with pytest.raises(error, match=word):
            InformationPlane(*arguments, **options)  # type: ignore[arg-type]
    plane = InformationPlane(net, X, y)
    with pytest.raises(RuntimeError, match="recorded"):
        plane.compression()
    with pytest.raises(RuntimeError, match="recorded"):
        plane.plot()
    for epoch, error in ((-1, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="epoch"):
            plane.record(epoch)  # type: ignore[arg-type]
    with torch.no_grad():
        net[3].weight.fill_(math.nan)
    with pytest.raises(ValueError, match="activity of '4'"):
        plane.record(0)


def test_layers_that_do_not_fit() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.twice = nn.ReLU(), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(x))

    X = torch.randn(9, 2)
    for name in ("unused", "twice"):
        with pytest.raises(RuntimeError, match=name):
            InformationPlane(Odd(), X, layers=[name]).record(0)
