"""The noisy transduction task, its network, and the rules that read the network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from softgate.lab import utility_training
from softgate.lab.cell import CellRun
from softgate.lab.tasks.noisy_transduction import NoisyTransduction, Transducer
from softgate.lab.utility_training import measure_characters, measure_transduction
from softgate.losses import UtilityTransform


def test_targets_are_the_reversed_input_in_other_symbols() -> None:
    task = NoisyTransduction(3, vocabulary=5, length=4, noise=0.3)
    x, y = task.batch("a", size=4000)
    clean_x, clean = task.batch("a", size=4000, clean=True)
    assert torch.equal(x, clean_x) and torch.equal(clean, task.permutation[x.flip(1)])
    assert sorted(task.permutation.tolist()) == list(range(5))
    assert float((y != clean).float().mean()) == pytest.approx(0.3 * 4 / 5, abs=0.02)
    assert torch.equal(task.batch("a", size=8)[1], task.batch("a", size=8)[1])
    for bad in ({"vocabulary": 1}, {"length": 0}, {"noise": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            NoisyTransduction(0, **bad)


def test_decoding_step_by_step_is_teacher_forcing_on_the_own_output() -> None:
    task = NoisyTransduction(0, vocabulary=7, length=5)
    model = Transducer(task, width=8).eval()
    x, y = task.batch("b", size=6)
    with torch.no_grad():
        greedy = utility_training._decode(model, x, UtilityTransform("power", float("inf")), None)
        assert torch.equal(model(x, greedy).argmax(-1), greedy)
        later = y.clone()
        later[:, 3] = (later[:, 3] + 1) % 7
        torch.testing.assert_close(model(x, later)[:, :4], model(x, y)[:, :4])  # no look ahead
        assert not torch.allclose(model(x, later)[:, 4], model(x, y)[:, 4])


def test_sampling_is_repaired_in_miniature(tmp_path: Path) -> None:
    config = {"vocabulary": 4, "length": 2, "noise": 0.4, "width": 16, "steps": 250, "batch": 64, "lr": 0.02,
              "tested": 200}  # fmt: skip
    figures = measure_transduction(CellRun("utility-probability-duality", "smoke", "c", config, 0, tmp_path))
    assert figures["greedy"] > 0.95 and figures["sample"] < 0.75
    assert figures["greedy_power"] == figures["greedy_noise_inverse"] == figures["greedy"]
    assert figures["sample_power"] > 0.9 and figures["sample_noise_inverse"] > 0.9
    assert figures["mbr_power"] >= figures["mbr"] > figures["sample"]
    assert figures["beta_nll"] < 1.3 < figures["beta"]


def test_two_optima_of_a_character_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.Generator().manual_seed(0)
    text = "".join("ab" if flip else "ac" for flip in (torch.rand(1500, generator=stream) < 0.8).tolist())
    monkeypatch.setattr(utility_training.data, "load_corpus", lambda *_, **__: SimpleNamespace(text=text))
    config = {"layers": 1, "heads": 2, "embed": 16, "length": 16, "steps": 80, "batch": 16, "lr": 0.02}
    figures = measure_characters(CellRun("utility-probability-duality", "smoke", "c", config, 0, tmp_path))
    assert figures["beta_nll"] == pytest.approx(1.0, abs=0.3)
    assert figures["smallest_rise"] > 0 and figures["argmax_accuracy"] == pytest.approx(0.9, abs=0.03)
