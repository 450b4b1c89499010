"""What all Markdown pages of the site share."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable

from softgate.lab.page.html import Markup, escape, link, tag


def front_matter(title: str, description: str = "", hide: Iterable[str] = (), template: str = "") -> str:
    """Head of a page; YAML reads JSON, and the theme writes titles as they are, so they are escaped here."""
    fields = {
        "title": html.escape(title, quote=True),
        "description": html.escape(" ".join(description.split())[:300], quote=True),
        "hide": list(hide),
    }
    if template:
        fields["template"] = template
    return (
        "---\n"
        + "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
        + "\n---"
    )


def document(parts: Iterable[str]) -> str:
    """One page. HTML goes into one line each, so that nothing within it can begin a block of Markdown."""
    return "\n\n".join(p.replace("\n", "&#10;") if isinstance(p, Markup) else p for p in parts) + "\n"


def arxiv_link(identifier: str) -> Markup:
    """The paper itself."""
    return link(f"https://arxiv.org/abs/{identifier}", f"arXiv {identifier}")


def marked(text: str) -> Markup:
    """One line of a docstring, with its code marked."""
    pieces = text.replace("``", "`").split("`")
    return Markup("".join(tag("code", piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces)))


def code_block(code: str, language: str = "python") -> str:
    """A fenced block of text of our own; whatever comes from a record goes through ``tag`` instead."""
    return f"```{language}\n{code.rstrip()}\n```"


def labels(sites: Iterable[str]) -> Markup:
    """Rooms as small labels."""
    return tag("p", *[tag("span", site, cls="site") for site in sites], cls="sites")
