"""The reference: one page per room, made from docstrings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from softgate.lab.page.html import link, tag
from softgate.lab.site.names import MODULES, Name, names_of, rooms
from softgate.lab.site.pages import document, front_matter, marked

#: What mkdocstrings shows of an object.
OPTIONS: Mapping[str, Any] = {
    # what every torch module has, and private names; calling an object is part of its interface
    "filters": ["!^_(?!_call__)", "!^extra_repr$"],
    "docstring_style": "google",
    "docstring_options": {"returns_multiple_items": False, "returns_named_value": False},
    "docstring_section_style": "list",
    "heading_level": 2,
    "line_length": 100,
    "merge_init_into_class": True,
    "annotations_path": "brief",
    "separate_signature": True,
    "show_bases": False,
    "show_if_no_docstring": False,
    "show_labels": False,
    "show_root_full_path": False,
    "show_root_heading": True,
    "show_root_members_full_path": False,
    "show_signature_annotations": True,
    "show_source": False,
    "warn_unknown_params": False,
}


def modules() -> list[str]:
    """Modules that have a page, the rooms first."""
    return [*(f"softgate.{room}" for room in rooms()), *MODULES]


def reference_pages(names: Iterable[Name]) -> dict[str, str]:
    """Markdown of every page: path below the documents -> text."""
    by_module: dict[str, list[Name]] = {}
    for name in names:
        by_module.setdefault(name.module, []).append(name)
    pages = {
        found[0].page.replace(".html", ".md"): _page(module, found) for module, found in by_module.items() if found
    }
    return pages


def reference_names() -> list[Name]:
    """Every name that the reference describes."""
    return [name for module in modules() for name in names_of(module)]


def _page(module: str, names: list[Name]) -> str:
    about = (inspect.getdoc(importlib.import_module(module)) or "").split("\n\n", 1)[0].replace("\n", " ")
    rows = [tag("li", link(f"#{name.path}", tag("code", name.name)), " ", marked(name.summary)) for name in names]
    parts = [
        front_matter(module, f"Reference of {module}: {about}"),
        tag("h1", module),
        tag("p", marked(about)),
        tag("pre", tag("code", f"from {module} import …")),
        tag("ul", *rows, cls="names"),
        *(f"::: {name.path}" for name in names),
    ]
    return document(parts)
