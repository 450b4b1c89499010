"""The configuration of the generator, MkDocs with the Material theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softgate.lab.site.reference import OPTIONS

_FEATURES = ["navigation.tabs", "navigation.prune", "navigation.top", "toc.follow", "content.code.copy"]


def configuration(work: Path, nav: Sequence[Any], known: Sequence[str], sources: Path) -> dict[str, Any]:
    """Settings for ``mkdocs build``: no fonts, scripts or anything else from another host; works from a folder too.

    Args:
        work: folder with ``docs/`` and ``theme/``; receives ``site/``.
        nav: the navigation.
        known: dotted paths that the reference has.
        sources: folder that contains the package, read for docstrings.
    """
    return {
        "site_name": "softgate",
        "docs_dir": str(work / "docs"),
        "site_dir": str(work / "site"),
        "use_directory_urls": False,
        "theme": _theme(work / "theme"),
        "extra": {"generator": False, "homepage": "index.html"},
        "extra_css": ["assets/site.css"],
        "plugins": [_mkdocstrings(known, sources)],
        "markdown_extensions": [
            "tables",
            {"toc": {"permalink": True}},
            {"pymdownx.highlight": {"anchor_linenums": False}},
            "pymdownx.superfences",
        ],
        "nav": nav,
        "validation": {"links": {"anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"}},
    }


def _theme(custom: Path) -> dict[str, Any]:
    def scheme(media: str, name: str, icon: str, then: str) -> dict[str, Any]:
        colours = {"scheme": name, "primary": "custom", "accent": "custom"}
        return {"media": media, **colours, "toggle": {"icon": icon, "name": then}}

    return {
        "name": "material",
        "language": "en",
        "font": False,
        "custom_dir": str(custom),
        "favicon": "assets/mark.svg",
        "logo": "assets/mark.svg",
        "features": _FEATURES,
        "palette": [
            scheme("(prefers-color-scheme)", "default", "material/brightness-auto", "Change to light colours"),
            scheme("(prefers-color-scheme: light)", "default", "material/weather-sunny", "Change to dark colours"),
            scheme("(prefers-color-scheme: dark)", "slate", "material/weather-night", "Follow the system's colours"),
        ],
    }


def _mkdocstrings(known: Sequence[str], sources: Path) -> Mapping[str, Any]:
    extension = {"softgate.lab.site.docstrings": {"known": list(known)}}
    handler = {
        "paths": [str(sources)],
        "inventories": [],
        "options": {**OPTIONS, "extensions": [extension]},
    }
    return {"mkdocstrings": {"handlers": {"python": handler}}}
