"""What the benchmark files share: ratio tables, JSON records, and the peak memory of a step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from softgate import native
from softgate.lab.environment import environment
from softgate.lab.files import write_json
from softgate.lab.memory import peak_bytes as peak_bytes
from softgate.lab.timing import Timing, load_per_core

CONSOLE = Console(width=140)


def touched(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random input and an output whose pages have been written once."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x, torch.zeros_like(x)


def nanoseconds(timing: Timing, elements: int) -> float:
    return 1e9 * timing.best / elements


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    shown = Table(title=title)
    for name in header:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    CONSOLE.print(shown)


def write_record(path: Path, sections: Mapping[str, Any]) -> None:
    """Figures with what they were measured on; sections of an earlier record that were not measured again stay."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = {"environment": environment(), "native": native.info(), "load_per_core": round(load_per_core(), 2)}
    stamped = {name: {**about, "figures": figures} for name, figures in sections.items()}
    write_json(path, {**earlier, **stamped})
    CONSOLE.print(f"wrote {path}")
