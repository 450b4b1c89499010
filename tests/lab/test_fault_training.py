"""The cell of ProAct's reproduction at the smallest size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from softgate.lab import fault_training
from softgate.lab.cell import CellRun


def test_every_method_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mnist(split: str, download: bool) -> SimpleNamespace:
        count = 2100 if split == "train" else 20
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
        return SimpleNamespace(images=images, labels=torch.arange(count) % 10)

    monkeypatch.setattr(fault_training.data, "mnist", mnist)
    config = {
        "rows": 100, "epochs": 1, "tested": 20, "methods": list(fault_training.METHODS), "fmt": "q15.16",
        "rates": {"1e4": 1e-4}, "trials": 1, "learn_epochs": 1, "decays": 1,
    }  # fmt: skip
    figures = fault_training.measure_faults(CellRun("proact", "smoke", "fixed", config, 0, tmp_path))
    for name in ("plain", *fault_training.METHODS):
        assert 0.0 <= figures[f"{name}_1e4"] <= 1.0 and figures[f"curve_{name}"] == [figures[f"{name}_1e4"]]
    assert figures["bounds_layer"] == 3 and figures["bounds_hybrid"] == 130 and figures["bounds_plain"] == 0
    assert figures["bounds_neuron"] == 16 * 14 * 14 + 32 * 7 * 7 + 128
    assert {key for key in figures if key.startswith("shrunk")} == {
        f"shrunk_{name}" for name in ("fitact", "proact_layer", "proact_neuron", "proact")
    }
    with pytest.raises(ValueError, match="methods"):
        fault_training.measure_faults(
            CellRun("proact", "smoke", "fixed", {**config, "methods": ["ranger"]}, 0, tmp_path)
        )
