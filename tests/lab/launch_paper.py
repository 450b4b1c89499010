"""A paper whose cells train a tiny model with ``fit``, for several processes."""

from __future__ import annotations

import torch
from tiny_training import batches, config, loss, make

from softgate.lab.cell import CellRun
from softgate.lab.distributed import full
from softgate.lab.paper import Cell, Claim, Figures, Paper, Scale
from softgate.lab.training import fit


def measure(run: CellRun) -> Figures:
    """Loss and weights after a few steps."""
    model = make()
    model[2].p = 0.0  # dropout differs between processes
    curves = fit(model, loss, config(steps=6, strategy=run.config["strategy"]), run=run, batches=batches)
    whole = full(dict(model.named_parameters()))
    return {"loss": curves["loss"], "weights": torch.cat([p.detach().flatten() for p in whole.values()]).tolist()}


SCALE = Scale(tuple(Cell(name, {"strategy": name}) for name in ("ddp", "fsdp")))
PAPER = Paper(
    slug="launch-paper",
    title="A paper for several processes",
    arxiv="0000.00000",
    date="2026-01",
    summary="Made for tests. Nothing else.",
    claims=(Claim("learns", "It learns", "–", "–", 'loss["ddp"] > 0'),),
    scales={"smoke": SCALE, "laptop": SCALE, "paper": SCALE},
    measure=measure,
)
