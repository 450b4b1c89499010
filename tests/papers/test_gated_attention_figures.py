"""The measuring functions of gated-attention give every figure that its claims and pictures name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell
from softgate.lab.relation import figures_in
from softgate.papers.gated_attention import PAPER, VARIANTS, build

TINY = {
    "backcopy": {"steps": 20, "embed_dim": 16},
    "text": {"steps": 20, "embed_dim": 16, "hidden_dim": 16, "length": 16, "batch": 2, "validation": 8},
}


def tiny(cell: Cell) -> dict[str, Any]:
    kind = "text" if "length" in cell.config else "backcopy"
    return {**cell.config, **TINY[kind]}


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    assert cell.measure is not None
    return dict(cell.measure(CellRun(PAPER.slug, "laptop", cell.name, tiny(cell), 0, folder / cell.name)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cells")
    return {cell.name: run(cell, folder) for cell in PAPER.scale("laptop").cells}


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_figure_of_a_relation_is_measured(scale: str, measured: dict[str, dict[str, Any]]) -> None:
    names = {cell.name for cell in PAPER.scale(scale).cells}
    checked = 0
    for claim in PAPER.claims:
        if scale not in claim.scales:
            continue
        relations = [claim.per_scale.get(scale, claim.relation), *filter(None, [claim.direction])]
        for figure, cell in (pair for relation in relations for pair in figures_in(relation)):
            assert cell in names, f"{claim.id}: {cell} does not run at scale {scale}"
            assert isinstance(measured[cell][figure], float), f"{claim.id}: {figure}[{cell}]"
            checked += 1
    assert checked >= 5


def test_every_picture_has_its_figure(measured: dict[str, dict[str, Any]]) -> None:
    for plot in PAPER.plots:
        prefix = plot.y.rstrip("*")
        cells = plot.cells or tuple(measured)
        found = [cell for cell in cells if any(name.startswith(prefix) for name in measured[cell])]
        assert found, plot.name


def test_figures_are_sane(measured: dict[str, dict[str, Any]]) -> None:
    for name, figures in measured.items():
        assert 0.0 < figures["share"] < 1.0 and figures["max_activation"] > 0.0, name
        assert len(figures["curve_share"]) == len(figures["step"]) == 20, name
        rows = figures["map_layer1"]
        assert sum(rows[-1]) == pytest.approx(1.0, abs=1e-4), name
    assert "gate_mean" not in measured["softmax"]
    assert 0.4 < measured["headwise"]["gate_mean"] < 0.6
    assert 0.7 < measured["ns_sigmoid"]["gate_mean"] < 0.8


def test_gated_and_plain_text_models_have_equally_many_parameters() -> None:
    cells = {cell.name: cell.config for cell in PAPER.scale("laptop").cells if "length" in cell.config}
    plain, gated = (build(66, cells[f"text_{name}"]).num_parameters() for name in ("softmax", "elementwise"))
    assert gated == pytest.approx(plain, rel=2e-3)
    cells = {cell.name: cell.config for cell in PAPER.scale("paper").cells}
    with torch.device("meta"):
        plain, gated = (build(66, cells[f"dense_{name}"]).num_parameters() for name in ("softmax", "elementwise"))
    assert gated == pytest.approx(plain, rel=2e-3) and 1.3e9 < plain < 1.8e9


def test_learning_rates_differ_by_four() -> None:
    cells = {cell.name: cell.config for cell in PAPER.scale("laptop").cells}
    for variant in ("softmax", "elementwise"):
        assert cells[f"text_{variant}_lr_x4"]["lr"] == 4 * cells[f"text_{variant}"]["lr"]


def test_variants_differ_from_the_baseline_in_the_gate_alone() -> None:
    config = PAPER.scale("laptop").cells[0].config
    plain = dict(build(33, {**config, "variant": "softmax"}).named_parameters())
    for variant in VARIANTS:
        gated = dict(build(33, {**config, "variant": variant}).named_parameters())
        assert all("gate" in name for name in gated.keys() - plain.keys()), variant
        assert plain.keys() <= gated.keys(), variant
