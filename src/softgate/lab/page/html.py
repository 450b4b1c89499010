"""A minimal HTML writer: everything that is not :class:`Markup` is escaped, so data can never become code."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

_CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


class Markup(str):
    """Text that is already HTML."""


def escape(value: object) -> Markup:
    """``value`` as HTML text; :class:`Markup` passes unchanged."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def tag(name: str, /, *children: object, cls: str = "", **attributes: str) -> Markup:
    """One element; children and attribute values are escaped."""
    fields = {**({"class": cls} if cls else {}), **attributes}
    head = "".join(f' {key}="{html.escape(value, quote=True)}"' for key, value in fields.items())
    if name in _WITHOUT_CONTENT:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{''.join(map(escape, children))}</{name}>")


_WITHOUT_CONTENT = frozenset({"br", "img", "input"})
BREAK = tag("br")


def link(url: str, text: object) -> Markup:
    """A link to ``url``; only https and relative addresses are written as links."""
    safe = url.startswith("https://") or ":" not in url.split("/", 1)[0]
    return tag("a", text, href=url) if safe else escape(text)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Markup:
    """A table; columns in ``numeric`` are right-aligned.

    What is too wide scrolls, by keyboard too; every cell knows its heading, for a style that stacks them.
    """
    classes = ["num" if index in numeric else "" for index in range(len(header))]
    head = [tag("th", cell, cls=cls, scope="col") for cell, cls in zip(header, classes, strict=True)]
    body = [
        tag("tr", *[
            tag("td", cell, cls=cls, **{"data-label": str(name)})
            for cell, cls, name in zip(row, classes, header, strict=True)
        ])
        for row in rows
    ]  # fmt: skip
    inside = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), cls="data")
    return tag("div", inside, cls="scroll", tabindex="0", role="group", **{"aria-label": "table"})


def document(title: str, *body: object) -> str:
    """A whole page without scripts or anything from outside; the policy in its head forbids both."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{tag("main", *body)}</body></html>\n'


def verdict_mark(verdict: str, count: int | None = None) -> Markup:
    """A verdict in its colour, readable without colour too; ``count`` says how many claims have it."""
    kind = {
        "reproduced": "good",
        "reproduced in direction": "fair",
        "inconclusive": "fair",
        "not reproduced": "bad",
    }.get(verdict, "none")
    sign = {"good": "✓", "fair": "≈", "bad": "✗", "none": "–"}[kind]
    number = "" if count is None else f"{count} "
    return tag("span", f"{sign} {number}{verdict}", cls=f"verdict {kind}")
