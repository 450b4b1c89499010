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


def tag(name: str, *children: object, cls: str = "", **attributes: str) -> Markup:
    """One element; children and attribute values are escaped."""
    fields = {**({"class": cls} if cls else {}), **attributes}
    head = "".join(f' {key}="{html.escape(value, quote=True)}"' for key, value in fields.items())
    return Markup(f"<{name}{head}>{''.join(map(escape, children))}</{name}>")


#: A line break, the one element here without content.
BREAK = Markup("<br>")


def link(url: str, text: object) -> Markup:
    """A link to ``url``; only https and relative addresses are written as links."""
    safe = url.startswith("https://") or ":" not in url.split("/", 1)[0]
    return tag("a", text, href=url) if safe else escape(text)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Markup:
    """A table; columns in ``numeric`` are right-aligned."""
    head = tag("tr", *[tag("th", cell, cls="num" if i in numeric else "") for i, cell in enumerate(header)])
    body = [
        tag("tr", *[tag("td", cell, cls="num" if i in numeric else "") for i, cell in enumerate(row)]) for row in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), cls="scroll")


def document(title: str, *body: object) -> str:
    """A whole page without scripts or anything from outside; the policy in its head forbids both."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{tag("main", *body)}</body></html>\n'


def verdict_mark(verdict: str) -> Markup:
    """A verdict in its colour, readable without colour too."""
    kind = {
        "reproduced": "good",
        "reproduced in direction": "fair",
        "inconclusive": "fair",
        "not reproduced": "bad",
    }.get(verdict, "none")
    sign = {"good": "✓", "fair": "≈", "bad": "✗", "none": "–"}[kind]
    return tag("span", f"{sign} {verdict}", cls=f"verdict {kind}")
