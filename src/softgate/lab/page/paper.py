"""The page of one reproduction: the paper's figure beside the measured one, pictures, cells, machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softgate.lab.page.html import BREAK, Markup, document, link, table, tag, verdict_mark
from softgate.lab.verdicts import Stat, format_number


def paper_page(results: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """HTML of one reproduction.

    Args:
        results: content of ``results.json``.
        plots: plot title -> SVG text drawn by ``softgate.lab.plots``.

    Returns:
        A self-contained page; all text of ``results`` is escaped.
    """
    paper = results["paper"]
    return document(
        f"{paper['title']} — softgate",
        tag("p", "softgate reproduction · scale ", tag("strong", results["scale"]), cls="soft"),
        tag("h1", paper["title"]),
        _byline(paper),
        tag("p", paper["summary"]),
        verdict_line(results),
        tag("h2", "Claims"),
        claims_table(results),
        *pictures(plots),
        tag("h2", "What was measured"),
        cells_table(results),
        *_notes(results),
        tag("h2", "Run it yourself"),
        tag("pre", tag("code", results["command"])),
        tag("h2", "Machine and versions"),
        environment_list(results["environment"]),
    )


def _byline(paper: Mapping[str, Any]) -> Markup:
    parts: list[object] = [
        link(f"https://arxiv.org/abs/{paper['arxiv']}", f"arXiv {paper['arxiv']}"),
        f" · {paper['date']}",
    ]
    if paper.get("venue"):
        parts.append(f" · {paper['venue']}")
    if paper.get("code"):
        parts.append(f" · authors' code: {paper['code']}")
    return tag("p", *parts, cls="soft")


def verdict_line(results: Mapping[str, Any]) -> Markup:
    """How many claims have which verdict."""
    verdicts = [claim["verdict"] for claim in results["claims"]]
    counted: list[object] = []
    for verdict in dict.fromkeys(verdicts):
        counted.append(tag("span", verdict_mark(verdict), f" {verdicts.count(verdict)} of {len(verdicts)}"))
    return tag("p", *counted, cls="tally")


def claims_table(results: Mapping[str, Any]) -> Markup:
    """Every claim with its relation, the paper's figure, the measured figures and the verdict."""
    rows = []
    for claim in results["claims"]:
        statement = [tag("strong", claim["statement"]), BREAK, tag("code", claim["relation"])]
        if claim["note"]:
            statement += [BREAK, tag("span", claim["note"], cls="soft")]
        verdict: list[object] = [verdict_mark(claim["verdict"])]
        if claim["seeds_held"]:
            held, count = claim["seeds_held"]
            verdict += [BREAK, tag("span", f"holds on {held} of {count} seeds alone", cls="soft")]
        if claim["reason"]:
            verdict += [BREAK, tag("span", claim["reason"], cls="soft")]
        paper_figure = [claim["paper_figure"], BREAK, tag("span", claim["source"], cls="soft")]
        rows.append([tag("div", *statement), tag("div", *paper_figure), _measured(claim), tag("div", *verdict)])
    return table(["Claim and relation", "Paper's figure", "Measured (mean ± spread over seeds)", "Verdict"], rows)


def _measured(claim: Mapping[str, Any]) -> Markup:
    lines: list[object] = []
    for item in claim["measured"]:
        stat = Stat.from_json(item)
        count = len(item["values"])
        place = {"data-figure": stat.figure, "data-cell": stat.cell}
        lines += [f"{stat.figure}[{stat.cell}] ", tag("span", stat.shown_mean, **place, **{"data-part": "mean"})]
        if stat.shown_spread:
            lines += [" ± ", tag("span", stat.shown_spread, **place, **{"data-part": "spread"})]
        lines += [tag("span", f" ({count} seed{'s' * (count > 1)})", cls="soft"), BREAK]
    return tag("div", *lines)


def pictures(plots: Mapping[str, str]) -> list[Markup]:
    """A section of SVG pictures by their titles; nothing without any."""
    if not plots:
        return []
    figures = [
        tag("figure", Markup(svg.replace("<svg ", '<svg role="img" ', 1)), **{"aria-label": title})
        for title, svg in plots.items()
    ]
    return [tag("h2", "Pictures"), tag("div", *figures, cls="plots")]


def cells_table(results: Mapping[str, Any]) -> Markup:
    """Every figure of every cell and seed, and the errors of cells that failed."""
    names = list(dict.fromkeys(name for cell in results["cells"] for name in _scalars(cell["figures"])))
    rows = []
    for cell in results["cells"]:
        scalars = _scalars(cell["figures"])
        state = cell["status"] if cell["status"] != "done" else f"{cell['seconds']:.0f} s"
        numbers = [_number(cell, name) if name in scalars else "" for name in names]
        rows.append([cell["name"], cell["seed"], state, *numbers])
    errors = [
        tag(
            "p",
            tag("strong", f"{cell['name']}, seed {cell['seed']}: "),
            cell["error"].strip().splitlines()[-1],
            cls="bad",
        )
        for cell in results["cells"]
        if cell.get("error")
    ]
    return tag("div", table(["cell", "seed", "time", *names], rows, range(1, 3 + len(names))), *errors)


def _scalars(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if not isinstance(value, list)}


def _number(cell: Mapping[str, Any], name: str) -> Markup:
    value = cell["figures"][name]
    text = "NaN" if value is None else format_number(float(value))
    place = {"data-figure": name, "data-cell": str(cell["name"]), "data-seed": str(cell["seed"])}
    return tag("span", text, **place)


def _notes(results: Mapping[str, Any]) -> list[Markup]:
    notes = [*results["paper"].get("notes", ()), *results.get("notes", ())]
    return [tag("h2", "Notes"), tag("ul", *[tag("li", note) for note in notes])] if notes else []


def environment_list(environment: Mapping[str, Any]) -> Markup:
    """What is known of the machine, as a list."""
    items: list[Markup] = []
    for key, value in environment.items():
        if value in (None, "", [], {}):
            continue
        items += [tag("dt", key.replace("_", " ")), tag("dd", _plain(value))]
    return tag("dl", *items)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, ""))
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
