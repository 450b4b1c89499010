"""The index over every reproduction found below a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softgate.lab.page.html import document, link, table, tag, verdict_mark


def index_page(results: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """HTML that lists reproductions: ``(relative address of the page, content of results.json)`` each."""
    rows = []
    for address, record in results:
        verdicts = [claim["verdict"] for claim in record["claims"]]
        marks = [tag("div", verdict_mark(v), f" × {verdicts.count(v)}") for v in dict.fromkeys(verdicts)]
        paper, machine = record["paper"], record["environment"]
        rows.append(
            [
                link(address, paper["title"]),
                record["scale"],
                tag("div", *marks),
                f"{record['seconds'] / 60:.1f} min",
                str(machine.get("date", ""))[:10],
            ]
        )
    empty = tag("p", "Nothing has been reproduced here yet: run ", tag("code", "softgate reproduce PAPER"), ".")
    body = table(["Paper", "Scale", "Verdicts", "Time", "Date"], rows) if rows else empty
    return document("softgate: reproductions", tag("h1", "Reproductions"), body)
