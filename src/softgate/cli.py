"""The command line. Heavy imports happen inside the commands: ``softgate --help`` does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softgate._cli_errors import ENVIRONMENT, errors_as_exit_codes, warn
from softgate.lab.compare.command import compare

app = typer.Typer(
    name="softgate",
    help="Softmax and gating in deep networks: reproduce the papers' claims, look into models and at this machine.",
    epilog="Start with: softgate doctor · softgate papers · softgate reproduce gated-attention --scale smoke",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
OutDir = Annotated[Path, typer.Option("--out", help="Folder that receives PAPER/SCALE/.")]


def main() -> None:
    """Entry point of the ``softgate`` command."""
    with errors_as_exit_codes():
        app(prog_name="softgate")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from softgate import __version__

        print(__version__)
        raise typer.Exit


@app.command(epilog="Example: softgate papers attention")
def papers(
    query: Annotated[str, typer.Argument(help="Show only papers whose text contains this.")] = "",
    as_json: Json = False,
) -> None:
    """List the papers that can be reproduced."""
    from softgate.lab.paper import load_paper, paper_slugs

    found = [load_paper(slug) for slug in paper_slugs()]
    found = [p for p in found if query.lower() in f"{p.slug} {p.title} {p.summary} {p.arxiv}".lower()]
    if as_json:
        keys = ("slug", "title", "arxiv", "date", "summary")
        _print_json([{key: getattr(p, key) for key in keys} | {"scales": list(p.scales)} for p in found])
        return
    table = Table("paper", "title", "date", "claims", "scales")
    for p in found:
        minutes = ", ".join(f"{name} {_minutes(scale.minutes, scale.hardware)}" for name, scale in p.scales.items())
        table.add_row(p.slug, p.title, p.date, str(len(p.claims)), minutes)
    Console().print(table if found else f"no paper matches {query!r}; `softgate papers` lists all")


def _minutes(minutes: float, hardware: str) -> str:
    if hardware:
        return f"({hardware})"
    return f"{minutes:.0f} min" if minutes >= 1 else f"{minutes * 60:.0f} s"


@app.command(epilog="Example: softgate show gated-attention")
def show(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="A paper, as `softgate papers` lists it.")],
    as_json: Json = False,
) -> None:
    """Show what PAPER claims and how each scale measures it."""
    from softgate.lab.paper import load_paper

    record = load_paper(paper)
    if as_json:
        claims = [
            {k: getattr(c, k) for k in ("id", "statement", "paper_figure", "source", "relation", "note")}
            for c in record.claims
        ]
        keys = ("slug", "title", "arxiv", "date", "venue", "summary", "code", "methods", "notes")
        _print_json({key: getattr(record, key) for key in keys} | {"claims": claims, "scales": list(record.scales)})
        return
    console = Console()
    console.print(Text(record.title, style="bold"))
    console.print(Text(f"arXiv {record.arxiv} · {record.date} {record.venue}\n{record.summary}"))
    table = Table("claim", "paper's figure", "relation that must hold", show_lines=True)
    for claim in record.claims:
        table.add_row(Text(claim.statement), Text(f"{claim.paper_figure}\n{claim.source}"), Text(claim.relation))
    console.print(table)
    for name, scale in record.scales.items():
        cells = ", ".join(cell.name for cell in scale.cells)
        console.print(Text(f"{name} ({_minutes(scale.minutes, scale.hardware)}, {scale.seeds} seed(s)): {cells}"))
    console.print(Text(f"methods: {', '.join(record.methods)}"))


@app.command(epilog="Example: softgate reproduce gated-attention --scale smoke --out runs")
def reproduce(
    papers: Annotated[list[str], typer.Argument(metavar="PAPER...", help="Papers, as `softgate papers` lists them.")],
    scale: Annotated[
        str, typer.Option(help="smoke (a minute), laptop (minutes), or paper (its own hardware).")
    ] = "laptop",
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; the scale's own by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; without it, start afresh.")
    ] = False,
    out: OutDir = Path("runs"),
    on: Annotated[Literal["local", "ray"], typer.Option(help="Local processes, or a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at a time; one per core by default.")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where cells compute.")] = "cpu",
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Missing data sets may be downloaded; else they are sought below $SOFTGATE_DATA."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the claims of PAPER on this machine and set them beside the paper's figures.

    Exit code 0: every claim held; 1: one did not; 2: wrong usage; 3: this machine lacks something; 130: interrupted.
    """
    from softgate.lab.paper import load_paper
    from softgate.lab.progress import GridView
    from softgate.lab.reproduce import reproduce as run
    from softgate.lab.summary import print_summary

    for slug in papers:  # a wrong name fails now, not after an hour
        hardware = load_paper(slug).scale(scale).hardware
        if hardware and device == "cpu":
            warn(f"{slug} at scale {scale} is made for {hardware}; here it may take days: try --scale laptop")
    console = Console(stderr=as_json)
    codes = []
    for slug in papers:
        with GridView(console, f"{slug} · scale {scale}") as view:
            outcome = run(
                slug,
                scale=scale,
                seeds=seeds,
                resume=resume,
                out=out,
                on=on,
                workers=workers,
                device=device,
                download=download,
                poll=view.update,
            )
        print_summary(console, outcome)
        if as_json:
            _print_json(outcome.results)
        codes.append(outcome.exit_code)
        if outcome.interrupted:
            break
    _write_index(out)
    raise typer.Exit(max(codes))


def _write_index(out: Path) -> Path:
    from softgate.lab.page import write_index

    page, unreadable = write_index(out)
    for path, reason in unreadable:
        Console(stderr=True).print(Text(f"left out {path}: {reason}", style="yellow"), soft_wrap=True)
    return page


@app.command(epilog="Example: softgate report --out site --open")
def report(
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    out: Annotated[
        Path, typer.Option("--out", help="Folder that receives the site; an earlier one is replaced.")
    ] = Path("site"),
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Folder with records, e.g. runs; those published with softgate if not given."),
    ] = None,
) -> None:
    """Build the static site: papers with what was measured of them, guide and reference (extra `docs`)."""
    from softgate.lab.site import build_site

    built = build_site(out, results)
    for path, reason in built.left_out:
        Console(stderr=True).print(Text(f"left out {path}: {reason}", style="yellow"), soft_wrap=True)
    print(built.front)
    if open_page:
        typer.launch(built.front.as_uri())


app.command(epilog="Example: softgate compare attention --text my.txt --variants softmax,gated,sigmoid")(compare)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: softgate bench losses --seconds 1 --out figures (its options: softgate bench losses -- --help)",
)
def bench(
    site: Annotated[str, typer.Argument(help="Which benchmarks to run; without it, list them.")] = "",
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to the benchmark.")] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print ours, peer, ratio and limit of every record; losses first.")
    ] = False,
) -> None:
    """Run the benchmarks of SITE (needs a checkout: they are not part of the installed package)."""
    from softgate.lab.bench import run, run_summary, sites

    if summary:
        run_summary([part for part in (site, *(arguments or [])) if part])
    elif site:
        run(site, arguments or [])
    else:
        print("\n".join(sites()))


@app.command(epilog="Example: softgate diagnose my-llama --text my.txt --out page")
def diagnose(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of a transformers or timm model.")],
    text: Annotated[Path | None, typer.Option(help="Text for a model of tokens; random tokens without it.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder for a model of images; noise without it.")] = None,
    length: Annotated[int, typer.Option(min=8, help="Tokens per row.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 4,
    batches: Annotated[int, typer.Option(min=1, help="Number of batches.")] = 4,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the model runs.")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Folder that receives a page and the JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Look into MODEL: sinks, outliers, collapse, routers. Exit code 1 if something is not normal."""
    from softgate.integrations.diagnosis import diagnose as look
    from softgate.lab.diagnosis import print_report

    found = look(model, text=text, images=images, length=length, batch=batch, batches=batches, device=device)
    if as_json:
        _print_json(found.to_json())
    else:
        print_report(Console(), found, model)
    if out is not None:
        from softgate.lab.page.diagnosis import write_diagnosis

        page = write_diagnosis(out, found, model)
        Console(stderr=as_json).print(f"page: {page}", highlight=False)
    raise typer.Exit(int(any(finding.severity != "info" for finding in found.findings)))


@app.command(epilog="Example: softgate doctor --json")
def doctor(as_json: Json = False) -> None:
    """Say what works on this machine: kernels, versions and clashes, data, GPU.

    Exit code 3 if something that every command needs is broken, else 0: what is optional may be missing.
    """
    from dataclasses import asdict

    from softgate.lab.doctor import diagnose

    findings = diagnose()
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        marks = {
            "broken": ("✗", "bold red"),
            "ok": ("✓", "green"),
            "warn": ("!", "bold yellow"),
            "missing": ("–", "dim"),
        }
        console = Console()
        for finding in findings:
            sign, style = marks[finding.status]
            line = (
                Text(f"{sign} ", style=style)
                .append(f"{finding.topic}: ", style="bold")
                .append(finding.message, style="")
            )
            console.print(line, highlight=False)
            if finding.fix:
                console.print(Text(f"    {finding.fix}", style="dim"), highlight=False)
    raise typer.Exit(ENVIRONMENT if any(finding.status == "broken" for finding in findings) else 0)


if __name__ == "__main__":
    main()
