"""The command ``softgate compare``; heavy imports happen inside it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

__all__ = ["compare"]


def compare(
    site: Annotated[str, typer.Argument(help="attention, loss, activation or router.")],
    variants: Annotated[
        str, typer.Option(help="Methods between commas, the first is the baseline; options as name:option=value.")
    ],
    text: Annotated[Path | None, typer.Option(help="A text file: next-byte prediction.")] = None,
    images: Annotated[Path | None, typer.Option(help="A folder with one subfolder of images per class.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="A table whose first line names its columns.")] = None,
    target: Annotated[str | None, typer.Option(help="Label column of --csv; the last one by default.")] = None,
    data: Annotated[str | None, typer.Option(help="A built-in set: tinyshakespeare, mnist, synthetic, ….")] = None,
    size: Annotated[
        Literal["tiny", "small"], typer.Option(help="tiny: hundreds of updates, minutes; small: thousands.")
    ] = "tiny",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of every training; by default the size's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    lr_grid: Annotated[str | None, typer.Option(help="Learning rates that every variant tries.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results; runs/compare-SITE by default.")] = None,
    on: Annotated[Literal["local", "ray"], typer.Option(help="Local processes, or a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at a time; one per core by default.")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where they compute.")] = "cpu",
    download: Annotated[bool, typer.Option("--download", help="A missing built-in set may be downloaded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare methods of SITE on your own data: one learning-rate grid, the same order, budget and start for all."""
    from softgate.lab.compare.plan import make_plan
    from softgate.lab.compare.run import compare as run
    from softgate.lab.compare.sources import Source
    from softgate.lab.compare.summary import print_comparison
    from softgate.lab.compare.view import CompareView

    console = Console(stderr=as_json)
    source = Source(text, images, csv, target, data, download)
    plan = make_plan(site, variants, source, size=size, steps=steps, seeds=seeds, lr_grid=lr_grid)
    folder = out or Path("runs") / f"compare-{site}"
    given = {"--text": text, "--images": images, "--csv": csv, "--target": target, "--data": data}
    chosen = {"--size": size, "--steps": steps, "--seeds": seeds, "--lr-grid": lr_grid, "--out": out}
    command = _command(site, {**given, "--variants": variants, **chosen})
    title = f"compare {site} on {plan.data.name} · size {size} · {plan.steps} steps · {seeds} seed(s)"
    with CompareView(console, title, [variant.label for variant in plan.variants], plan.metric.name) as view:
        outcome = run(
            plan, folder, resume=resume, on=on, workers=workers, device=device, command=command, poll=view.update
        )
    if outcome.interrupted:
        console.print(f"Interrupted. Continue with: [bold]{command} --resume[/bold]", highlight=False)
    elif as_json:
        print(json.dumps(_plain(outcome.folder), indent=1, ensure_ascii=False))
    else:
        print_comparison(console, outcome.record, outcome.folder)
    raise typer.Exit(outcome.exit_code)


def _command(site: str, options: dict[str, Any]) -> str:
    """The command without what does not change the figures."""
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["softgate", "compare", site, *words])


def _plain(folder: Path) -> Any:
    """The record as it was written: JSON has no NaN."""
    from softgate.lab.compare.run import RECORD

    return json.loads((folder / RECORD).read_text(encoding="utf-8"))
