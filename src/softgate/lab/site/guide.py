"""The guide: the Markdown pages of docs/, with their links turned to the pages of the site."""

from __future__ import annotations

import re
from pathlib import Path

_GALLERY = re.compile(r"\]\(gallery/([\w-]+)/index\.html\)")


def guide_pages(folder: Path) -> dict[str, str]:
    """Path below the documents -> Markdown, in the order of the navigation: what to choose first, claims last."""
    order = {"choosing": 0, "claims": 2}
    files = sorted(folder.glob("*.md"), key=lambda path: (order.get(path.stem, 1), path.stem))
    return {f"guide/{path.name}": _turned(path.read_text(encoding="utf-8")) for path in files}


def _turned(text: str) -> str:
    text = _GALLERY.sub(r"](../papers/\1.md)", text)
    return text.replace("](gallery)", "](../index.md)")
