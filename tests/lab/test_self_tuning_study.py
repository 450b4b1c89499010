"""The cells of the study of self-tuning networks at the smallest sizes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from softgate.lab import self_tuning_study as study
from softgate.lab.cell import CellRun
from softgate.papers.self_tuning_networks import PAPER


def _run(folder: Path, cell: str, **changes: object) -> CellRun:
    config = next(c.config for c in PAPER.scales["laptop"].cells if c.name == cell)
    return CellRun("self-tuning-networks", "laptop", cell, {**config, **changes}, 0, folder)


def test_the_exact_response_and_what_is_learned(tmp_path: Path) -> None:
    found = study.measure_ridge_response(_run(tmp_path, "response", steps=300))
    assert found["exact_error"] < 1e-12 and found["learned_error"] < 0.5
    assert found["norm_exact"] == sorted(found["norm_exact"], reverse=True)


def test_the_penalty_moves(tmp_path: Path) -> None:
    run = _run(tmp_path, "penalty-from-3", steps=40, warmup=10)
    found = study.measure_ridge_tuning(run)
    assert found["found"] != -3.0 == pytest.approx(found["curve"][0]) and found["loss_ratio"] >= 1.0
    assert found["distance"] == pytest.approx(abs(found["found"] - found["best"])) and -5 < found["best"] < 5


@pytest.mark.parametrize("cell", ["start-0.3", "fixed-0.2"])
def test_digits(cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mnist(split: str, download: bool) -> SimpleNamespace:
        labels = torch.arange(90) % 10
        return SimpleNamespace(images=(25 * labels[:, None, None]).expand(-1, 28, 28).to(torch.uint8), labels=labels)

    monkeypatch.setattr(study.data, "mnist", mnist)
    found = study.measure_digits(_run(tmp_path, cell, steps=30, warmup=4, rows=50, valid_rows=20, tested=20, batch=10))
    assert found["step"][-1] == 30 and found["valid_loss"] == min(found["curve_valid_loss"])
    assert ("mean_rate" in found) == (cell == "start-0.3") and 0 <= found["accuracy"] <= 1
    if cell == "start-0.3":
        assert len(set(found["curve_rate_input"])) > 5 and 0.0 < found["mean_rate"] < 0.9


def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "to be or not to be, that is the question. " * 60
    monkeypatch.setattr(study.data, "load_corpus", lambda name, download, characters: SimpleNamespace(text=text))
    found = study.measure_characters(_run(tmp_path, "text-0.7", steps=8, warmup=2, units=8, length=10, batch=4))
    assert found["rate"] != 0.7 and found["step"][-1] == 8 and found["valid_loss"] < 4.0
