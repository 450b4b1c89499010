"""A minimal HTML writer: everything that is not :class:`Markup` is escaped, so data can never become code."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_CSS = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--paper:#fff;--tint:#f6f8fa;--good:#1a7f37;--fair:#9a6700;--bad:#cf222e;--none:#57606a}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--paper:#0d1117;--tint:#151b23;--good:#3fb950;
--fair:#d29922;--bad:#f85149;--none:#9198a1}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:2rem 1.2rem 4rem}h1{font-size:1.7rem;line-height:1.25;margin:.2rem 0}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}p{margin:.5rem 0}a{color:inherit}
.soft{color:var(--soft)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.45rem .6rem;border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:600}
td.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}code{font:.86em ui-monospace,monospace;background:var(--tint);
padding:.1em .3em;border-radius:4px;overflow-wrap:anywhere}pre{background:var(--tint);padding:.8rem;border-radius:6px;overflow-x:auto}
pre code{padding:0}.verdict{font-weight:700;white-space:nowrap}.good{color:var(--good)}.fair{color:var(--fair)}.bad{color:var(--bad)}
.none{color:var(--none)}figure{margin:1rem 0;background:#fff;border:1px solid var(--line);border-radius:6px;padding:.6rem;
display:inline-block;max-width:100%}figure svg{max-width:100%;height:auto;display:block}.plots{display:flex;flex-wrap:wrap;gap:1rem}
.plots figure{margin:0}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.9rem}dt{color:var(--soft)}dd{margin:0}
"""


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


def link(url: str, text: object) -> Markup:
    """A link to ``url``; only https and relative addresses are written as links."""
    safe = url.startswith("https://") or ":" not in url.split("/", 1)[0]
    return tag("a", text, href=url) if safe else escape(text)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Markup:
    """A table; columns in ``numeric`` are right-aligned."""
    head = tag("tr", *[tag("th", cell) for cell in header])
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
