"""The live view of a running grid: one line per cell with its bar and its newest figures."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from softgate.lab.grid import CellState
from softgate.lab.verdicts import format_number

_SHOWN = 24  # rows: more than a terminal holds would make the view flicker


class GridView:
    """Context manager whose :meth:`update` is given to ``run_grid`` as ``poll``.

    On a terminal it draws a live table; elsewhere (a log file, CI) it prints one line when a cell ends.
    """

    def __init__(self, console: Console, title: str) -> None:
        """Draw on ``console`` under ``title``."""
        self.console, self.title = console, title
        self._ended: set[tuple[str, int]] = set()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> GridView:
        self.console.print(Text(self.title, style="bold"))
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, states: Sequence[CellState]) -> None:
        """Show ``states``."""
        for state in states:
            key = (state.task.cell, state.task.seed)
            if state.status not in ("waiting", "running") and key not in self._ended:
                self._ended.add(key)
                self.console.print(self._end_line(state, len(self._ended), len(states)))
        if self._live:
            self._live.update(self._table(states))

    def _end_line(self, state: CellState, count: int, total: int) -> Text:
        style = {"done": "green", "failed": "red"}.get(state.status, "yellow")
        line = Text(f"[{count}/{total}] ", style="dim")
        line.append(f"{state.task.cell} seed {state.task.seed} ")
        line.append(state.status, style=style)
        line.append(f" {state.seconds:.0f} s  {_figures(state.event)}", style="dim")
        return line

    def _table(self, states: Sequence[CellState]) -> RenderableType:
        open_states = [s for s in states if s.status in ("running", "waiting")]
        running = [s for s in open_states if s.status == "running"]
        table = Table.grid(padding=(0, 2))
        for state in running[:_SHOWN]:
            event = state.event or {}
            total, step = event.get("total"), event.get("step") or 0
            bar = (
                ProgressBar(total=total, completed=step, width=24)
                if total
                else ProgressBar(total=None, width=24, pulse=True)
            )
            position = f"{step}/{total}" if total else (str(step) if step else "starting")
            table.add_row(
                f"{state.task.cell} s{state.task.seed}",
                bar,
                position,
                f"{state.seconds:.0f} s",
                _figures(event),
            )
        waiting = len(open_states) - len(running)
        ended = len(states) - len(open_states)
        return Group(table, Text(f"{ended} of {len(states)} cells ended, {waiting} waiting", style="dim"))


def _figures(event: Any) -> str:
    skipped = ("step", "total", "seconds")
    items = [(k, v) for k, v in (event or {}).items() if k not in skipped]
    return "  ".join(f"{k} {format_number(v) if isinstance(v, int | float) else v}" for k, v in items)
