"""The measuring functions of quantizable-transformers give every figure that its claims and pictures name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softgate.attention import HeadGatedAttention
from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell
from softgate.lab.relation import figures_in
from softgate.papers.quantizable_transformers import BITS, PAPER, build

TINY = {"steps": 20, "embed_dim": 16, "length": 16, "batch": 4, "micro_batch": 2, "validation": 4, "precision": "fp32"}
TINY |= {"num_layers": 2, "num_heads": 2, "learned_positions": 16}


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    config = {name: TINY.get(name, value) for name, value in cell.config.items()}
    assert cell.measure is not None
    return dict(cell.measure(CellRun(PAPER.slug, "laptop", cell.name, config, 0, folder / cell.name)))


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_figure_of_a_relation_or_picture_is_measured(scale: str, tmp_path: Path) -> None:
    """At the paper's scale with its own cells, too, cut down to a size that a test can train."""
    measured = {cell.name: run(cell, tmp_path) for cell in PAPER.scale(scale).cells}
    for claim in PAPER.claims:
        if scale in claim.scales:
            for figure, cell in figures_in(claim.per_scale.get(scale, claim.relation)):
                assert isinstance(measured[cell][figure], float), f"{claim.id}: {figure}"
    drawn = [plot.y for plot in PAPER.plots if scale != "paper" or plot.name != "sink"]
    for name, figures in measured.items():
        if name != "function":
            assert set(drawn) <= figures.keys()
            assert len(figures["curve_increase"]) == len(BITS) and len(figures["curve_kurtosis"]) == len(
                figures["step"]
            )


def test_the_variants_differ_in_the_attention_alone() -> None:
    models = {cell.name: build(33, cell.config) for cell in PAPER.scale("laptop").cells}
    shapes = {name: {k: v.shape for k, v in m.state_dict().items()} for name, m in models.items()}
    gate = {k for k in shapes["gated"] if ".gate." in k}
    assert len(gate) == 4 and isinstance(models["gated"].blocks[0].attention, HeadGatedAttention)
    for name in ("softmax", "clipped_2", "clipped_4"):
        assert shapes[name] == {k: v for k, v in shapes["gated"].items() if k not in gate}
    attention: Any = models["clipped_4"].blocks[0].attention
    assert attention.attention_options == {"alpha": 4.0, "max_seq_len": 64}
    tokens = torch.randint(33, (2, 64))
    assert not torch.equal(models["clipped_2"](tokens), models["softmax"](tokens))
