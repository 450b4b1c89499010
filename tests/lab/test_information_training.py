"""The symmetric patterns, the ensemble, and a cell of the information plane at the smallest size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from softgate.diagnostics import mutual_information
from softgate.lab import information_training
from softgate.lab.cell import CellRun
from softgate.lab.information_training import measure_plane, rank_correlation
from softgate.lab.mlp_ensemble import ACTIVATIONS, MLPEnsemble
from softgate.lab.tasks.icosahedron import ADJACENT, ANTIPODES, icosahedron_symmetry


def test_the_labels_are_those_of_the_data_set(golden) -> None:
    with np.load(golden("adaptive-information-estimators") / "tishby_var_u_labels.npz") as arrays:
        expected = np.unpackbits(arrays["y_packed"])[: int(arrays["n"])]
    np.testing.assert_array_equal(icosahedron_symmetry()[1].numpy(), expected)


def test_the_symmetries_of_the_icosahedron_leave_the_label_alone() -> None:
    patterns, labels = icosahedron_symmetry()
    assert patterns.shape == (4096, 12) and int(labels.sum()) == 2118
    assert mutual_information(labels).i_tx == pytest.approx(0.999157, abs=1e-6)
    weights = 1 << torch.arange(11, -1, -1)
    assert torch.equal(patterns.long() @ weights, torch.arange(4096))
    # a turn by a fifth about the axis through 0: its neighbours in a ring, and their antipodes with them
    opposite = {a: b for pair in ANTIPODES for a, b in (pair, pair[::-1])}
    ring = [ADJACENT[0][0]]
    while len(ring) < 5:
        ring.append(next(v for v in ADJACENT[0] if v in ADJACENT[ring[-1]] and v not in ring))
    turn = {0: 0, opposite[0]: opposite[0]}
    for here, there in zip(ring, ring[1:] + ring[:1], strict=True):
        turn |= {here: there, opposite[here]: opposite[there]}
    assert all({turn[b] for b in ADJACENT[a]} == set(ADJACENT[turn[a]]) for a in range(12))
    moved = patterns[:, [turn[v] for v in range(12)]].long() @ weights
    assert torch.equal(labels[moved], labels)
    mirrored = patterns[:, [opposite[v] for v in range(12)]].long() @ weights
    assert torch.equal(labels[mirrored], labels)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_ensemble_is_many_networks(activation: str) -> None:
    model, few = (MLPEnsemble((6, 5, 4, 3), activation, nets, seed=1) for nets in (3, 2))
    x = torch.randn(20, 6)
    found = model(x)
    assert torch.equal(model.weights[1][:2], few.weights[1]) and found.shape == (3, 3, 20)
    for k in range(3):
        h = x
        for i, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
            h = h @ weight[k].T + bias[k].T
            if i < 2:
                h = h.relu() if activation == "prelu" else ACTIVATIONS[activation][0](h)  # its slope starts at zero
        torch.testing.assert_close(found[k].T, h)
    sd = ACTIVATIONS[activation][1] / 5**0.5
    largest = max(abs(w) for w in model.weights[1].flatten().tolist())
    assert sd < largest <= 2 * sd
    expected = sum(w.square().sum().item() for w in list(model.weights)[:2]) / 2
    assert model.penalty().item() == pytest.approx(expected, rel=1e-5)
    loss = F.cross_entropy(found, torch.zeros(3, 20, dtype=torch.long))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


_CONFIG = {
    "data": "icosahedron", "split": "random", "sizes": [12, 6, 3, 2], "activation": "relu", "nets": 3, "epochs": 5,
    "batch": 256, "lr": 4e-3, "l2": 0.0, "points": 3, "estimator": "ebab", "followed": 2,
}  # fmt: skip


def _run(folder: Path, **changes: object) -> dict[str, object]:
    return measure_plane(CellRun("adaptive-information-estimators", "smoke", "cell", {**_CONFIG, **changes}, 0, folder))


def test_a_cell(tmp_path: Path) -> None:
    found = _run(tmp_path / "a")
    assert found["epoch"] == [0.0, 1.0, 2.0, 5.0] and found["akde_epoch"] == [0.0, 5.0] and len(found["akde"]) == 2
    assert found["largest"] <= 12 and found["lowest_1"] <= found["first_1"]
    assert found["train_accuracy"] > 0.6 and {"final_3", "spearman_3", "fixed_final_3"} <= set(found)
    assert found["curve_2"][-1] == pytest.approx(found["final_2"]) and found["drop_2"] >= 0.0
    assert found["gap_2"] <= found["final_2"] - found["fixed_final_2"] + 1e-6
    penalised = _run(tmp_path / "b", l2=1.0, split="file")
    assert penalised["final_2"] != found["final_2"] and penalised["first_2"] == found["first_2"]
    for name, value in (("split", "sorted"), ("data", "iris"), ("activation", "selu")):
        with pytest.raises(ValueError, match=name):
            _run(tmp_path / name, **{name: value})


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mnist(split: str, download: bool) -> SimpleNamespace:
        return SimpleNamespace(images=torch.randint(256, (64, 3, 3), dtype=torch.uint8), labels=torch.arange(64) % 3)

    monkeypatch.setattr(information_training.data, "mnist", mnist)
    found = _run(tmp_path, data="mnist", sizes=[9, 4, 3], estimator="akde", followed=1, activation="tanh", batch=30)
    assert 0 < found["final_1"] <= 6.0 and found["akde"][-1] == pytest.approx(found["final_1"])


def test_rank_correlation() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 400.0]) == pytest.approx(1.0)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert rank_correlation([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.9486833)  # scipy's value
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) == 0.0
