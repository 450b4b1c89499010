"""The page of one paper: its claims beside what was measured, how to use it, and how to measure it again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from softgate.lab.page.html import Markup, link, tag
from softgate.lab.page.paper import cells_table, claims_table, environment_list, verdict_line
from softgate.lab.paper import Paper
from softgate.lab.site.catalogue import NO_RECORD, NOT_IMPLEMENTED, Entry
from softgate.lab.site.names import Name, example_for, names_for
from softgate.lab.site.pages import arxiv_link, code_block, document, front_matter, labels, marked
from softgate.lab.site.records import Record


def paper_markdown(entry: Entry, names: list[Name]) -> str:
    """Markdown of the page; everything from a record is escaped HTML in it."""
    about = entry.about
    byline: list[object] = [arxiv_link(about.arxiv), f" · {about.date}", f" · {about.venue}" if about.venue else ""]
    parts: list[str] = [
        front_matter(about.title, about.summary, hide=("navigation",)),
        tag("h1", about.title),
        tag("p", *byline, cls="soft"),
        labels(entry.sites),
        "## What it claims",
        tag("p", about.summary),
    ]
    if entry.paper is None:
        parts += [_notice(NOT_IMPLEMENTED, "softgate has no code for this paper yet, and nothing was measured.")]
    else:
        parts += [*_use(entry.paper, names), *_results(entry), *_run(entry.paper), *_notes(entry.paper)]
        parts += [part for record in entry.records for part in _machine(record)]
    return document(parts)


def _notice(title: str, text: str) -> Markup:
    return tag("div", tag("p", tag("strong", title.capitalize()), f": {text}"), cls="notice")


def _use(paper: Paper, names: list[Name]) -> list[str]:
    """Where to import it from, and a program that runs."""
    found = names_for(paper, names)
    rows = [
        tag("li", link(f"../{name.page}#{name.path}", tag("code", name.path)), " ", marked(name.summary))
        for name in found
    ]
    parts = ["## Use it", tag("ul", *rows, cls="names")]
    example = example_for(paper, names)
    return [*parts, code_block(example.example)] if example else parts


def _results(entry: Entry) -> list[str]:
    paper = entry.paper
    assert paper is not None
    if not entry.records:
        text = "the claims below have been written down, but no reproduction of them is published here."
        claims = [tag("li", f"{c.statement} ", tag("span", f"{c.paper_figure} ({c.source})", cls="soft"))
                  for c in paper.claims]  # fmt: skip
        return ["## Claims", _notice(NO_RECORD, text), tag("ul", *claims)]
    return [part for record in entry.records for part in _record(record, paper)]


def _record(record: Record, paper: Paper) -> list[str]:
    scale = record.scale
    parts: list[str] = [
        f"## Measured at scale {scale}",
        verdict_line(record.data),
        tag("div", claims_table(record.data), cls="stack", **{"data-record": f"{record.slug}-{scale}"}),
    ]
    if record.pictures:
        parts += [f"### Plots at scale {scale}", tag("div", *_figures(record, paper), cls="plots")]
    cells = tag("div", cells_table(record.data), **{"data-record": f"{record.slug}-{scale}"})
    return [*parts, tag("details", tag("summary", f"Every figure of every run at scale {scale}"), cells)]


def _figures(record: Record, paper: Paper) -> Iterable[Markup]:
    plots = {plot.name: plot for plot in paper.plots}
    for path in record.pictures:
        plot = plots.get(path.stem)
        title = plot.title if plot else path.stem.replace("_", " ")
        axes = f": {plot.ylabel}" + (f" over {plot.xlabel}" if plot.xlabel else "") if plot and plot.ylabel else ""
        image = tag("img", src=picture_address(record, path), alt=f"{title}{axes}", loading="lazy", **_size(path))
        yield tag("figure", image, tag("figcaption", title))


def picture_address(record: Record, path: Path) -> str:
    """Address of a picture, relative to the page of its paper."""
    return f"{record.slug}/{record.scale}/{path.name}"


def _size(path: Path) -> dict[str, str]:
    """Width and height of a picture, so that the page does not jump when it arrives."""
    with path.open(encoding="utf-8") as stream:
        head = stream.read(2000)
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    return {"width": str(round(float(found[1]))), "height": str(round(float(found[2])))} if found else {}


def _run(paper: Paper) -> list[str]:
    rows = []
    for name, scale in paper.scales.items():
        needs = f"needs {scale.hardware}" if scale.hardware else "runs on a laptop"
        rows.append(tag("li", tag("strong", name), f": {needs}. {scale.note}"))
    commands = "\n".join(f"softgate reproduce {paper.slug} --scale {name}" for name in paper.scales)
    return ["## Run it again", tag("pre", tag("code", commands)), tag("ul", *rows)]


def _notes(paper: Paper) -> list[str]:
    code = [tag("p", f"Code of the authors: {paper.code}.")] if paper.code else []
    notes = [tag("ul", *[tag("li", note) for note in paper.notes])] if paper.notes else [tag("p", "None are known.")]
    return ["## Known deviations", *code, *notes]


def _machine(record: Record) -> list[str]:
    seeds = sorted({cell["seed"] for cell in record.data["cells"]})
    facts = {
        "command": record.data["command"],
        "seconds": record.data["seconds"],
        "seeds": ", ".join(map(str, seeds)),
        **record.data["environment"],
    }
    return [
        f"## Machine and versions, scale {record.scale}",
        tag("div", environment_list(facts), cls="facts", **{"data-record": f"{record.slug}-{record.scale}"}),
    ]
