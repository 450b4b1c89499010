"""The live view of a comparison: one row per variant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from softgate.lab.grid import CellState
from softgate.lab.verdicts import format_number

__all__ = ["CompareView"]

_OPEN = ("waiting", "running")
_PHASES = {"tuning": "learning rates", "seed": "seeds"}


@dataclass
class _Row:
    """What the view says about one variant."""

    state: str = "waiting"
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    figures: str = ""


class CompareView:
    """Context manager whose :meth:`update` is given to ``compare`` as ``poll``.

    On a terminal it draws a live table; elsewhere it prints one line when a cell ends.
    """

    def __init__(self, console: Console, title: str, labels: Iterable[str], metric: str) -> None:
        """Draw on ``console`` under ``title``; ``labels`` are the variants, ``metric`` the figure that decides."""
        self.console, self.title, self.metric = console, title, metric
        self.rows = {label: _Row() for label in labels}
        self._ended: set[tuple[str, int]] = set()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> CompareView:
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
        """Show ``states``, the cells of one phase."""
        groups: dict[str, list[CellState]] = {}
        for state in states:
            config = state.task.config or {}
            labels = [config["variant"]["label"]] if "variant" in config else list(self.rows)
            for label in labels:
                groups.setdefault(label, []).append(state)
            self._announce(state)
        for label, group in groups.items():
            self._set_row(self.rows[label], group)
        if self._live:
            self._live.update(self.table())

    def _announce(self, state: CellState) -> None:
        """One line for a cell that has ended, where there is no live table (a failed one in any case)."""
        key = (state.task.cell, state.task.seed)
        if state.status in _OPEN or key in self._ended:
            return
        self._ended.add(key)
        if self._live is None or state.status != "done":
            line = Text(f"{state.task.cell} seed {state.task.seed} ")
            line.append(state.status, style={"done": "green", "failed": "red"}.get(state.status, "yellow"))
            self.console.print(line.append(f" {state.seconds:.0f} s  {self._figures(state)}", style="dim"))

    def _set_row(self, row: _Row, group: Sequence[CellState]) -> None:
        """A row shows its running cell, else the one that ended last."""
        ended = [state for state in group if state.status not in _OPEN]
        running = [state for state in group if state.status == "running"]
        role = (group[0].task.config or {}).get("role", "")
        failed = sum(state.status == "failed" for state in ended)
        if role in _PHASES:
            row.state = f"{_PHASES[role]} {len(ended)}/{len(group)}" + (f", {failed} failed" if failed else "")
        else:
            row.state = "done" if ended else "time and memory"
        if role not in _PHASES or not (running or ended):
            return
        shown = (running or ended)[-1]
        event = shown.event or {}
        row.step, row.total, row.seconds = event.get("step") or 0, event.get("total") or 0, shown.seconds
        row.figures = self._figures(shown)

    def _figures(self, state: CellState) -> str:
        """Learning rate of the run, and the newest figure of the validation part."""
        lr, value = (state.task.config or {}).get("lr"), (state.event or {}).get(self.metric)
        shown = "" if value is None else f"  {self.metric.replace('_', ' ')} {format_number(value)}"
        return ("" if lr is None else f"lr {lr:g}") + shown

    def table(self) -> Table:
        """One row per variant: state, bar, step, seconds of the run, newest figures."""
        table = Table.grid(padding=(0, 2))
        for label, row in self.rows.items():
            bar = ProgressBar(total=row.total or 1, completed=row.step, width=20)
            position = f"{row.step}/{row.total}" if row.total else ""
            seconds = f"{row.seconds:.0f} s" if row.total else ""
            table.add_row(Text(label, style="bold"), row.state, bar, position, seconds, Text(row.figures))
        return table
