"""The index over every reproduction found below a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softgate.lab.files import write_atomic
from softgate.lab.page.html import document, link, table, tag, verdict_mark

RESULTS = "results.json"
PAGE = "index.html"


def write_index(out: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """Write ``out/index.html`` over every ``out/PAPER/SCALE/results.json``.

    Returns:
        The page, and the records that could not be read with the reason; they are left out.
    """
    found, unreadable = [], []
    for path in sorted(out.glob(f"*/*/{RESULTS}")):
        address = path.with_name(PAGE).relative_to(out).as_posix()
        try:
            found.append((address, _row_of(json.loads(path.read_text(encoding="utf-8")))))
        except OSError as error:
            unreadable.append((path, error.strerror or str(error)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"not a record of a reproduction that this softgate reads ({type(error).__name__}: {error})"
            unreadable.append((path, f"{reason}; delete its folder, or repeat `softgate reproduce`"))
    write_atomic(out / PAGE, index_page(found))
    return out / PAGE, unreadable


def _row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the index shows of one record; raises if it is not there."""
    return {
        "title": str(record["paper"]["title"]),
        "scale": str(record["scale"]),
        "verdicts": [str(claim["verdict"]) for claim in record["claims"]],
        "minutes": float(record["seconds"]) / 60,
        "date": str(record["environment"]["date"])[:10],
    }


def index_page(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """HTML that lists reproductions: relative address of the page, and what :func:`write_index` read of the record."""
    rows = []
    for address, row in found:
        marks = [tag("div", verdict_mark(v), f" × {row['verdicts'].count(v)}") for v in dict.fromkeys(row["verdicts"])]
        title = link(address, row["title"])
        rows.append([title, row["scale"], tag("div", *marks), f"{row['minutes']:.1f} min", row["date"]])
    empty = tag("p", "Nothing has been reproduced here yet: run ", tag("code", "softgate reproduce PAPER"), ".")
    body = table(["Paper", "Scale", "Verdicts", "Time", "Date"], rows) if rows else empty
    return document("softgate: reproductions", tag("h1", "Reproductions"), body)
