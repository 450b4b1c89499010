"""What ``softgate diagnose`` shows on the terminal: a compact table and the findings, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softgate.diagnostics import Finding, Report
from softgate.diagnostics.figures import mean

#: severity -> (sign, style)
MARKS = {"high": ("✗", "bold red"), "warning": ("!", "bold yellow"), "info": ("·", "cyan")}
_ROWS = 16
T = TypeVar("T")


def print_report(console: Console, found: Report, source: str) -> None:
    """Print tables of the layers (the worst ones of a deep model), then findings and notes."""
    console.print(Text(f"{source} · {found.model} · {found.passes} forward passes", style="bold"))
    hidden = 0
    for table, more in (_attention(found), _activations(found), _routers(found)):
        hidden += more
        if table.row_count:
            console.print(table)
    for line in _lines(found):
        console.print(Text(line))
    if hidden:
        console.print(Text(f"{hidden} more rows: --json or --out FOLDER", style="dim"))
    if not found.findings:
        console.print(Text("✓ everything that was seen is within what is normal", style="green"))
    for finding in found.findings:
        _print_finding(console, found, finding)
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"))


def remedy_lines(found: Report, finding: Finding) -> list[tuple[str, str]]:
    """(heading, text) of what a finding means and what to do, without style."""
    topic = found.topics[finding.topic]
    lines = [("means", topic.meaning), ("normal", f"{topic.normal} ({topic.source})"), ("remedy", topic.remedy)]
    if topic.refused:
        return [*lines, ("not here", f"{topic.line} is refused by this model: {topic.refused}")]
    return [*lines, ("code", topic.line)]


def _print_finding(console: Console, found: Report, finding: Finding) -> None:
    sign, style = MARKS[finding.severity]
    title = Text(f"{sign} {found.topics[finding.topic].title}: ", style=style).append(finding.measured, style="")
    console.print(title, highlight=False)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for heading, text in remedy_lines(found, finding):
        grid.add_row("  ", Text(heading, style="dim"), Text(text, style="bold" if heading == "code" else ""))
    console.print(grid)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _worst(entries: Sequence[T], badness: Callable[[T], float]) -> tuple[list[T], int]:
    """The entries to show, in their own order, and how many are left out."""
    ranked = sorted(range(len(entries)), key=lambda i: badness(entries[i]), reverse=True)[:_ROWS]
    return [entries[i] for i in sorted(ranked)], len(entries) - len(ranked)


def _short(names: Sequence[str]) -> list[str]:
    """The names without the leading parts that all of them share."""
    parts = [name.split(".") for name in names]
    shared = [len(set(level)) == 1 for level in zip(*(each[:-1] for each in parts), strict=False)]
    same = [*shared, False].index(False) if len(parts) > 1 else 0
    return [".".join(each[same:]) or "(model)" for each in parts]


def _attention(found: Report) -> tuple[Table, int]:
    table = _table(
        "attention (mean, and worst head)", "layer", "sink", "worst", "uniform", "entropy", "max score", "collapsed"
    )
    shown, more = _worst(found.attention, lambda a: max(a.sink_share))
    for name, a in zip(_short([a.name for a in shown]), shown, strict=True):
        head = max(range(len(a.sink_share)), key=lambda h: a.sink_share[h])
        table.add_row(
            Text(name),
            f"{mean(a.sink_share):.3f}",
            f"{a.sink_share[head]:.3f} (h{head})",
            f"{a.uniform_share:.3f}",
            f"{mean(a.entropy):.3f}",
            "" if a.max_logit is None else f"{max(a.max_logit):.1f}",
            _percent(a.collapse.get("float32")),
        )
    return table, more


def _activations(found: Report) -> tuple[Table, int]:
    table = _table("activations", "module", "largest", "median", "kurtosis", "worst token")
    shown, more = _worst(found.activations, lambda a: a.kurtosis)
    for name, a in zip(_short([a.name for a in shown]), shown, strict=True):
        table.add_row(
            Text(name), f"{a.max_abs:.3g}", f"{a.median_abs:.3g}", f"{a.kurtosis:.1f}", f"{a.peak_kurtosis:.1f}"
        )
    return table, more


def _routers(found: Report) -> tuple[Table, int]:
    table = _table("routers", "router", "experts", "max violation", "load entropy", "router entropy", "dead")
    shown, more = _worst(found.routers, lambda r: r.max_violation)
    for name, r in zip(_short([r.name for r in shown]), shown, strict=True):
        figures = [f"{value:.2f}" for value in (r.max_violation, r.load_entropy, r.router_entropy)]
        table.add_row(Text(name), str(len(r.load)), *figures, str(len(r.dead)))
    return table, more


def _lines(found: Report) -> list[str]:
    """Logits and heads, one line each."""
    lines = []
    if found.logits is not None:
        shares = ", ".join(f"{name} {_percent(share)}" for name, share in found.logits.collapse.items())
        lines.append(
            f"logits: deviation {found.logits.std:.3g}, largest {found.logits.max_abs:.3g}, median margin "
            f"{found.logits.median_margin:.3g}; collapsed rows: {shares} (loss in {found.logits.loss_dtype})"
        )
    for head in found.heads:
        radius = "" if head.radius is None else f", median decision certain within {head.radius:.3g}"
        lines.append(f"head {head.name}: Lipschitz constant {'' if head.exact else '≤ '}{head.lipschitz:.3g}{radius}")
    return lines


def _percent(share: Any) -> str:
    return "" if share is None else f"{share:.1%}"
