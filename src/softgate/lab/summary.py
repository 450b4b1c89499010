"""The table that a reproduction ends with on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softgate.lab.page import PAGE
from softgate.lab.reproduce import Outcome

_STYLE = {
    "reproduced": "bold green",
    "not reproduced": "bold red",
    "reproduced in direction": "yellow",
    "inconclusive": "yellow",
}


def print_summary(console: Console, outcome: Outcome) -> None:
    """Print claim · paper's figure · measured · verdict, then where everything lies (the relations: on the page)."""
    if outcome.interrupted:
        _continue_with(console, "Interrupted", outcome)
        return
    table = Table(
        title=f"{outcome.paper.title} · scale {outcome.results['scale']}",
        title_justify="left",
        show_lines=True,
    )
    for heading, ratio in (("Claim", 3), ("Paper's figure", 2), ("Measured", 3), ("Verdict", 2)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    elsewhere = []
    for claim, judgement in zip(outcome.paper.claims, outcome.judgements, strict=True):
        if outcome.results["scale"] not in claim.scales:
            elsewhere.append(claim.id)
            continue
        measured = "\n".join(map(str, judgement.measured))
        seeds = f"\n{judgement.seeds_held[0]} of {judgement.seeds_held[1]} seeds" if judgement.seeds_held else ""
        verdict = Text(judgement.verdict, style=_STYLE.get(judgement.verdict, "dim"))
        verdict.append(seeds + (f"\n{judgement.reason}" if judgement.reason else ""), style="dim")
        table.add_row(Text(claim.statement), Text(f"{claim.paper_figure}\n{claim.source}"), Text(measured), verdict)
    console.print(table)
    if elsewhere:
        console.print(Text(f"not measured at this scale: {', '.join(elsewhere)}", style="dim"))
    for cell in outcome.results["cells"]:
        if cell["status"] != "done":
            reason = (cell["error"] or "no reason given").strip().splitlines()[-1]
            console.print(Text(f"{cell['name']} seed {cell['seed']} {cell['status']}: {reason}", style="red"))
    if outcome.environment:
        _continue_with(console, "Something is missing on this machine: mend it", outcome)
    console.print(f"{outcome.results['seconds']:.0f} s · page: {outcome.folder / PAGE}", highlight=False)


def _continue_with(console: Console, what: str, outcome: Outcome) -> None:
    """Say how to go on, on a line of its own and unwrapped, to be copied."""
    console.print(Text(f"{what}; what is finished is kept. Continue with:"))
    console.print(Text(f"  {outcome.resume_command}", style="bold"), soft_wrap=True)
