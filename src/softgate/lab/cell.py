"""One cell of a grid while it runs: its configuration, seed, folder and the channel on which it reports."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: File in a cell's folder that receives one JSON object per reported step; the parent's progress display reads it.
EVENTS = "events.jsonl"


@dataclass
class CellRun:
    """What a measuring function receives.

    Attributes:
        paper: slug of the paper.
        scale: ``smoke``, ``laptop`` or ``paper``.
        cell: name of the variant.
        config: the cell's configuration.
        seed: 0, 1, …; every source of randomness must be derived from it.
        folder: folder of this cell's own files: events, checkpoints.
        resume: continue from the checkpoint in ``folder`` if there is one.
        threads: torch threads that this cell may use.
        device: ``"cpu"`` or ``"cuda"``.
        download: data may be downloaded.
    """

    paper: str
    scale: str
    cell: str
    config: Mapping[str, Any]
    seed: int
    folder: Path
    resume: bool = False
    threads: int = 1
    device: str = "cpu"
    download: bool = False
    _started: float = field(default_factory=time.monotonic, repr=False)

    def log(self, step: int, total: int | None = None, **figures: float | str) -> None:
        """Report live figures: a line in ``events.jsonl``, shown beside the progress bar.

        Args:
            step: progress so far.
            total: number of steps, where known.
            **figures: what to show, e.g. ``loss=2.1, share=0.4``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        event = {
            "step": step,
            "total": total,
            "seconds": round(time.monotonic() - self._started, 3),
            **figures,
        }
        with open(self.folder / EVENTS, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")
