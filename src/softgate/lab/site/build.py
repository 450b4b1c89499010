"""Build the site: write Markdown into a temporary folder, run MkDocs there, and put the result in place at once."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softgate.errors import ArgumentValueError, MissingExtraError, StateError
from softgate.lab.site.catalogue import Entry, catalogue
from softgate.lab.site.config import configuration
from softgate.lab.site.feed import atom_feed
from softgate.lab.site.front import front_markdown, name_index, planned_markdown
from softgate.lab.site.guide import guide_pages
from softgate.lab.site.names import all_names
from softgate.lab.site.paper_page import paper_markdown, picture_address
from softgate.lab.site.policy import restrict
from softgate.lab.site.records import Record, find_records
from softgate.lab.site.reference import reference_names, reference_pages

_HERE = Path(__file__).parent
#: A folder with this file is one of ours and may be replaced.
MARK = ".softgate-site"
#: What MkDocs writes for a site whose address it knows, and what the theme brings for a search that is not used.
_UNUSED = (
    "404.html",
    "sitemap.xml*",
    "assets/javascripts/*.map",
    "assets/javascripts/*/**/*.js*",
    "assets/stylesheets/*.map",
)
#: Environment variable that keeps the theme from announcing its successor on every run.
_NO_ADVERTISEMENT = "NO_MKDOCS_2_WARNING"


@dataclass(frozen=True)
class Built:
    """What a build left behind.

    Attributes:
        front: the front page.
        papers: number of papers listed.
        records: number of records shown.
        left_out: files that look like records and could not be used, with the reason.
    """

    front: Path
    papers: int
    records: int
    left_out: tuple[tuple[Path, str], ...]


def build_site(out: Path, results: Path | None = None) -> Built:
    """Build the site into ``out``, which is replaced as a whole when everything is ready.

    Args:
        out: a folder that does not exist, is empty, or holds an earlier site.
        results: folder with records; by default those that come with softgate (``docs/results`` of a checkout).

    Returns:
        What was built.

    Raises:
        MissingExtraError: MkDocs, its theme or mkdocstrings is not installed.
        ArgumentValueError: ``out`` holds something else, or ``results`` is not a folder.
        StateError: the generator failed.
    """
    for module, package in (("mkdocs", "mkdocs"), ("material", "mkdocs-material"), ("mkdocstrings", "mkdocstrings")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "docs", "softgate report")
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and ((out / MARK).is_file() or not any(out.iterdir()))):
        raise ArgumentValueError(f"out must be a new folder, an empty one or an earlier site, got {str(out)!r}")
    results = results or content_folder() / "results"
    if not results.is_dir():
        raise ArgumentValueError(f"results must be a folder with records, got {str(results)!r}")
    found, left_out = find_records(results)
    entries = catalogue(found)
    known = {entry.slug: entry for entry in entries if entry.paper}
    left_out += [(results, f"a record of the unknown paper {r.slug!r}") for r in found if r.slug not in known]
    records = [record for record in found if record.slug in known]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        work = Path(folder)
        nav, paths = _write_documents(work / "docs", entries)
        shutil.copytree(_HERE / "theme", work / "theme")
        _run_generator(work, configuration(work, nav, paths, _HERE.parents[2]))
        titles = {slug: entry.about.title for slug, entry in known.items()}
        _finish(work / "site", records, titles)
        _put_in_place(work, out)
    return Built(out / "index.html", len(entries), len(records), tuple(left_out))


def content_folder() -> Path:
    """Guide, records and pictures: part of an installed package, or ``docs/`` of a checkout."""
    installed = _HERE / "docs"
    return installed if installed.is_dir() else _HERE.parents[3] / "docs"


def _write_documents(docs: Path, entries: list[Entry]) -> tuple[list[Any], list[str]]:
    """Write every source file; returns the navigation and the dotted paths that the reference has."""
    names = all_names()
    described = reference_names()
    reference = reference_pages(described)
    guide = guide_pages(content_folder())
    papers = {f"papers/{entry.slug}.md": paper_markdown(entry, names) for entry in entries}
    pages = {
        "index.md": front_markdown(entries, names),
        "planned.md": planned_markdown(entries),
        **papers,
        **guide,
        **reference,
    }
    for path, text in pages.items():
        (docs / path).parent.mkdir(parents=True, exist_ok=True)
        (docs / path).write_text(text, encoding="utf-8")
    shutil.copytree(_HERE / "assets", docs / "assets")
    (docs / "assets" / "names.js").write_text(name_index(described), encoding="utf-8")
    for record in (record for entry in entries for record in entry.records):
        for picture in record.pictures:
            target = docs / "papers" / picture_address(record, picture)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, target)
    listed = [{Path(path).stem: path} for path in papers]
    nav: list[Any] = [
        {"Papers": [{"All papers": "index.md"}, *listed, {"Not implemented yet": "planned.md"}]},
        {"Guide": list(guide)},
        {"Reference": list(reference)},
    ]
    return nav, [name.path for name in described]


def _run_generator(work: Path, settings: dict[str, Any]) -> None:
    """Run MkDocs in a process of its own; a warning (a link that leads nowhere) is an error."""
    file = work / "mkdocs.yml"
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")  # YAML reads JSON
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, _NO_ADVERTISEMENT: "1"})
    if done.returncode != 0:
        raise StateError(f"mkdocs failed:\n{(done.stderr or done.stdout).strip()[-4000:]}")


def _finish(site: Path, records: Iterable[Record], titles: dict[str, str]) -> None:
    """What MkDocs does not do: the feed, and a policy in every page that allows nothing from elsewhere."""
    for pattern in _UNUSED:
        for file in site.glob(pattern):
            file.unlink()
    (site / "feed.xml").write_bytes(atom_feed(list(records), titles))
    for page in site.rglob("*.html"):
        page.write_text(restrict(page.read_text(encoding="utf-8")), encoding="utf-8")
    (site / MARK).write_text("written by softgate report\n", encoding="utf-8")


def _put_in_place(work: Path, out: Path) -> None:
    """Two renames: at no time is half a site there, and the earlier one comes back if the second fails."""
    earlier = work / "earlier"
    if out.exists():
        out.rename(earlier)
    try:
        (work / "site").rename(out)
    except OSError:
        if earlier.exists():
            earlier.rename(out)
        raise
