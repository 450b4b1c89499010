"""Measuring bounds, putting them in, learning them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.activations import ClippedReLU, calibrate_bounds, proact_fit, protect, separate_relus, strip


class _Net(nn.Module):
    """Modules, one of them called twice, registered in another order than they run, and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ReLU()
        self.first = nn.ReLU6()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm(self.a(x)))
        x = self.last(self.b(x))
        return self.c(self.last(self.b(x)) + F.relu(x))


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def _data(rows: int = 256) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(rows, 4)
    return list(zip(x.split(64), x[:, :3].argmax(1).split(64), strict=True))


@pytest.mark.parametrize("mode", ["zero", "saturate"])
@pytest.mark.parametrize("granularity", ["layer", "neuron", "hybrid"])
def test_on_what_was_measured_nothing_changes(granularity: str, mode: str) -> None:
    net, data = _net().train(), _data()
    bounds = calibrate_bounds(net, data, granularity)
    assert [b.ndim for b in bounds.values()] == {"layer": [0, 0], "neuron": [1, 1], "hybrid": [0, 1]}[granularity]
    assert list(bounds) == ["1", "4"] and net.training and net[2].training
    safe = protect(copy.deepcopy(net), bounds, mode).eval()
    for x, _ in data:
        assert torch.equal(safe(x), net.eval()(x))
    huge = data[0][0] * 1e6
    assert bool(safe(huge).abs().max() < 1e3) and bool(net(huge).abs().max() > 1e3)


def test_quantiles_are_smaller() -> None:
    net, data = _net(), _data()
    largest, most = calibrate_bounds(net, data, "neuron"), calibrate_bounds(net, data, "neuron", 0.9)
    assert all(bool((most[n] <= largest[n]).all()) and bool((most[n] < largest[n]).any()) for n in largest)
    same = calibrate_bounds(net, data, "neuron", 1.0)
    assert all(torch.equal(same[n], largest[n]) for n in largest)


def test_calls_and_functions_that_share_are_reported_and_can_be_split() -> None:
    net = _Net().eval()
    data = torch.randn(3, 16, 4)
    with pytest.warns(UserWarning, match="last is called several times"):
        bounds = calibrate_bounds(net, data)
    assert list(bounds) == ["first", "last"] and bounds["last"].shape == (6,)
    with pytest.warns(UserWarning, match="the function relu"):
        protect(copy.deepcopy(net), bounds)
    split = separate_relus(net)
    torch.testing.assert_close(split(data[0]), net(data[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounds = calibrate_bounds(split, data, "layer")
        assert set(bounds) == {"first", "last", "relu_1", "relu_2"}
        protect(split, bounds, "zero")
    torch.testing.assert_close(split(data[0]), net(data[0]))
    assert split.a.weight is net.a.weight


def test_strip_makes_the_clip_hard() -> None:
    net, data = _net().eval(), _data()
    bounds = calibrate_bounds(net, data)
    safe = strip(protect(copy.deepcopy(net), bounds))
    assert torch.equal(safe(data[0][0]), net(data[0][0]))
    with pytest.raises(RuntimeError, match="hyrelu"):
        strip(safe)


def test_learning_shrinks_bounds_and_nothing_else() -> None:
    data = _data(512)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(10):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    safe = protect(copy.deepcopy(net), calibrate_bounds(net, data))
    with torch.no_grad():
        for module in safe.modules():
            if isinstance(module, ClippedReLU):
                module.bound.mul_(4.0)  # far above what is needed
    before = {name: value.clone() for name, value in safe.state_dict().items()}
    report = proact_fit(safe.train(), net, data[:4], data[4:], epochs=4, decays=(1.0, 4e-5), tolerance=0.02, lr=0.1)
    assert [layer.name for layer in report] == ["4", "2"]
    for layer in report:
        assert 0 < layer.kept <= layer.tried <= 8 and layer.after < layer.before
    for name, value in safe.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith("bound"), name
    assert safe.training and all(p.requires_grad for n, p in safe.named_parameters() if not n.endswith("bound"))
    assert not any(p.requires_grad for n, p in safe.named_parameters() if n.endswith("bound"))
    other = proact_fit(safe, net, data[:1], data[4:], order="first_to_last", epochs=1, decays=(0.0,))
    assert [layer.name for layer in other] == ["2", "4"]


def test_what_costs_accuracy_is_taken_back() -> None:
    data, net = _data(), _net().eval()
    labels = [(x, net(x).argmax(1)) for x, _ in data]
    safe = protect(copy.deepcopy(net), calibrate_bounds(net, data))
    before = safe[4].bound.clone()
    (last, _) = proact_fit(safe, net, labels, labels, epochs=1, decays=(1e4,), lr=100.0, tolerance=0.0)
    assert last.kept == 0 and last.after == last.before and torch.equal(safe[4].bound, before)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: calibrate_bounds(nn.Linear(2, 2), [torch.ones(1, 2)]), RuntimeError, "ReLU"),
        (lambda: calibrate_bounds(_net(), []), ValueError, "loader"),
        (lambda: calibrate_bounds(_net(), [torch.ones(1, 4)], "channel"), ValueError, "granularity"),
        (lambda: calibrate_bounds(_net(), [torch.ones(1, 4)], "layer", 1.5), ValueError, "statistic"),
        (lambda: calibrate_bounds(_net(), [torch.ones(1, 4)], "layer", "min"), TypeError, "statistic"),
        (lambda: calibrate_bounds("net", [torch.ones(1, 4)]), TypeError, "model"),
        (
            lambda: calibrate_bounds(nn.Sequential(nn.ReLU()), [torch.ones(2, 3), torch.ones(2, 4)], "neuron"),
            ValueError,
            "shape",
        ),
        (lambda: protect(_net(), {}), ValueError, "bounds"),
        (lambda: protect(_net(), {"0": torch.tensor(1.0)}), ValueError, "0"),
        (lambda: protect(_net(), {"1": torch.tensor(-1.0)}), ValueError, "bound"),
        (lambda: protect(_net(), {"1": torch.tensor(1.0)}, "clip"), ValueError, "mode"),
        (lambda: proact_fit(_net(), _net(), _data(), _data()), RuntimeError, "protect"),
        (lambda: proact_fit(_net(), "net", _data(), _data()), TypeError, "teacher"),
        (lambda: proact_fit(_net(), _net(), _data(), _data(), order="random"), ValueError, "order"),
        (lambda: proact_fit(nn.Sequential(ClippedReLU()), _net(), [], []), ValueError, "loader"),
    ],
    ids=["no relu", "empty", "granularity", "statistic", "text", "no model", "shapes", "no bounds", "no place",
         "negative", "mode", "unprotected", "teacher", "order", "no data"],
)  # fmt: skip
def test_bad_input(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call()
