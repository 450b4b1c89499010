"""How large the models are and how long they train, by the kind of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from softgate.lab.compare.dataset import Kind

__all__ = ["GRID", "SIZES", "Size"]

#: Learning rates that every variant is tried with.
GRID = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Size:
    """Sizes of one model and its training.

    Attributes:
        model: what ``networks`` builds from.
        batch: rows per update.
        steps: updates, unless the user says otherwise.
        curve: rows of the validation part that the curves and the choice of the learning rate are measured on.
        tested: rows of the test part that the table is measured on.
        side: height and width in pixels that a folder's images are squeezed to.
    """

    model: dict[str, Any]
    batch: int
    steps: int
    curve: int
    tested: int
    side: int = 0


#: size -> kind of data -> sizes. Texts count rows of ``length`` bytes.
SIZES: dict[str, dict[Kind, Size]] = {
    "tiny": {
        "text": Size(
            {"num_layers": 2, "num_heads": 4, "embed_dim": 64, "length": 64, "n_experts": 8, "d_ff": 64},
            batch=16, steps=300, curve=64, tested=256,
        ),
        "images": Size({"depth": 2, "embed_dim": 48, "num_heads": 4, "patches": 7}, batch=32, steps=300, curve=500,
                       tested=2000, side=28),
        "table": Size({"hidden": (64, 64)}, batch=64, steps=400, curve=1000, tested=5000),
    },
    "small": {
        "text": Size(
            {"num_layers": 4, "num_heads": 4, "embed_dim": 128, "length": 128, "n_experts": 8, "d_ff": 128},
            batch=32, steps=2000, curve=64, tested=512,
        ),
        "images": Size({"depth": 4, "embed_dim": 96, "num_heads": 4, "patches": 8}, batch=64, steps=2000, curve=1000,
                       tested=10_000, side=64),
        "table": Size({"hidden": (256, 256, 256)}, batch=128, steps=3000, curve=2000, tested=10_000),
    },
}  # fmt: skip
