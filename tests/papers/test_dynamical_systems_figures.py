"""The measuring functions that smoke does not run, with one or two steps: every cell of the larger scales builds."""

import pytest
import torch

from softgate.lab.cell import CellRun
from softgate.papers.dynamical_systems_framework import PAPER, _mqar_model

TINY = {"dim": 16, "batch": 4, "steps": 2, "test": 8, "vocabulary": 64, "length": 32, "pairs": 4, "state_dim": 8}


def run(cell, tmp_path, **changed):
    config = {**cell.config, **changed}
    return CellRun(PAPER.slug, "laptop", cell.name, config, seed=0, folder=tmp_path)


@pytest.mark.parametrize("name", [c.name for c in PAPER.scale("laptop").cells if c.name.startswith("mqar")])
def test_mqar_cells(name, tmp_path):
    cell = next(c for c in PAPER.scale("laptop").cells if c.name == name)
    figures = cell.measure(run(cell, tmp_path, **TINY, lrs=(1e-3, 2e-3)))
    assert 0 <= figures["accuracy"] == figures["accuracy_curve"][-1] <= 1
    assert figures["guess"] == 0.25 and figures["lr"] in (1e-3, 2e-3) and figures["step"][-1] == 2


@pytest.mark.parametrize("name", [c.name for c in PAPER.scale("laptop").cells if c.name.startswith("recall")])
def test_recall_cells(name, tmp_path):
    cell = next(c for c in PAPER.scale("laptop").cells if c.name == name)
    figures = cell.measure(run(cell, tmp_path, dim=8, batch=4, steps=1, state_dims=(8,), repeats={"default": 3}))
    assert figures["state_dim"] == [8.0]
    assert figures["accuracy_8"] == sorted(figures["each_accuracy_8"])[1]


def test_cells_of_the_paper_scale_are_those_of_the_official_sweep():
    cells = {cell.name: cell.config for cell in PAPER.scale("paper").cells}
    assert len(cells) == 4 * 4 * (7 * 4 + 2)
    config = cells["mqar-512-64-d512-linear-n128"]
    assert config["steps"] * config["batch"] == 64 * 100_000 and config["test"] == 3000
    assert config["lrs"] == pytest.approx((1e-4, 10 ** (-10 / 3), 10 ** (-8 / 3), 1e-2))
    small = {**config, "vocabulary": 64, "dim": 16, "state_dim": 8}
    with_positions, without = (_mqar_model({**small, "variant": v}) for v in ("linear", "ssd"))
    assert with_positions.positions is not None and without.positions is None
    assert with_positions.config.dropout == 0.1
    assert with_positions(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 64)
