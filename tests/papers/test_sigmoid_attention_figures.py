"""The measuring functions of sigmoid-attention give every figure that its claims and pictures name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softgate.attention import MultiHeadAttention, SigmoidAttention
from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell
from softgate.lab.relation import figures_in
from softgate.papers.sigmoid_attention import PAPER, STRETCHES, VARIANTS, build

TINY = {"steps": 4, "num_layers": 1, "embed_dim": 16, "length": 8, "batch": 2, "validation": 4, "stretched": 128}


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    assert cell.measure is not None
    config = {**cell.config, **TINY} if "length" in cell.config else cell.config
    return dict(cell.measure(CellRun(PAPER.slug, "laptop", cell.name, config, 0, folder / cell.name)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One cell of each variant, which stands for its cells in the grid, and the smallest one without training."""
    folder = tmp_path_factory.mktemp("cells")
    cells = {cell.name: cell for cell in PAPER.scale("laptop").cells}
    return {name: run(cells[name], folder) for name in (*VARIANTS, "fresh_64")}


def representative(cell: str) -> str:
    return "fresh_64" if cell.startswith("fresh") else max((v for v in VARIANTS if cell.startswith(v)), key=len)


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_figure_of_a_relation_is_measured(scale: str, measured: dict[str, dict[str, Any]]) -> None:
    for claim in PAPER.claims:
        if scale in claim.scales:
            relations = [claim.per_scale.get(scale, claim.relation), *filter(None, [claim.direction])]
            for figure, cell in (pair for relation in relations for pair in figures_in(relation)):
                assert isinstance(measured[representative(cell)][figure], float), f"{claim.id}: {figure}[{cell}]"


def test_every_picture_has_its_figures(measured: dict[str, dict[str, Any]]) -> None:
    names = {cell.name for cell in PAPER.scale("laptop").cells}
    for plot in PAPER.plots:
        assert set(plot.cells) <= names, plot.name
        cells = plot.cells or tuple(measured)
        for figure in plot.y.split("|"):
            assert any(figure in measured[representative(cell)] for cell in cells), plot.name


def test_figures_are_sane(measured: dict[str, dict[str, Any]]) -> None:
    for name in VARIANTS:
        figures = measured[name]
        assert figures["context"] == [8 * stretch for stretch in STRETCHES], name
        assert figures["loss_increase"] == figures["context_loss"][-1] - figures["context_loss"][0], name
        assert len(figures["curve_norm"]) == 4 and figures["early_norm"] > 0, name
    fresh = measured["fresh_64"]
    assert fresh["ratio"] == pytest.approx(1.0, abs=0.1) and fresh["ratio_no_bias"] == pytest.approx(0.5, abs=0.05)


def test_variants_differ_in_attention_alone() -> None:
    config = PAPER.scale("laptop").cells[3].config
    models = {name: build(33, {**config, "variant": name}) for name in VARIANTS}
    kinds = {name: type(model.blocks[0].attention) for name, model in models.items()}
    assert kinds.pop("softmax") is MultiHeadAttention and set(kinds.values()) == {SigmoidAttention}
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in models.values()]
    assert all(shape == shapes[0] for shape in shapes)


def test_grid_is_complete() -> None:
    cells = {
        cell.name: cell.config
        for cell in PAPER.scale("laptop").cells
        if "_norms_" in cell.name or "_plain_" in cell.name
    }
    settings = {(c["variant"], c["qk_norm"], c["lr"]) for c in cells.values()}
    assert len(settings) == len(cells) == 18 and {c["steps"] for c in cells.values()} == {100}


def test_the_paper_scale_has_about_a_billion_parameters() -> None:
    cell = PAPER.scale("paper").cells[1]
    with torch.device("meta"):
        model = build(66, cell.config)
    assert 1.0e9 < model.num_parameters() < 1.5e9
