"""The front page: every paper as a card, newest first, and the list of what is not implemented."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from softgate.lab.page.html import Markup, link, tag, verdict_mark
from softgate.lab.site.catalogue import NO_RECORD, NOT_IMPLEMENTED, Entry
from softgate.lab.site.names import Name, names_for
from softgate.lab.site.pages import arxiv_link, document, front_matter, labels
from softgate.lab.site.records import VERDICTS


def front_markdown(entries: Sequence[Entry], names: list[Name]) -> str:
    """Markdown of the front page."""
    title = "softgate"
    about = "Softmax and gating in deep networks: use them, swap them, look into them, and see which claims come out."
    parts = [
        front_matter(title, about, hide=("navigation", "toc"), template="front.html"),
        tag("h1", "softgate"),
        tag("p", about, cls="lead"),
        _state(entries),
        _controls(entries),
        tag("p", f"{len(entries)} papers", id="count", role="status"),
        tag("ul", id="also", hidden="hidden"),
        tag("h2", "Papers, newest first", id="papers"),
        tag("ul", *[_card(entry, names) for entry in entries], cls="cards", id="cards"),
    ]
    return document(parts)


def _state(entries: Sequence[Entry]) -> Markup:
    """What there is, in numbers; failures stand beside successes."""
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry.tally)
    measured = sum(bool(entry.records) for entry in entries)
    missing = sum(entry.paper is None for entry in entries)
    marks = [tag("li", verdict_mark(verdict, total[verdict])) for verdict in VERDICTS if total[verdict]]
    sentence = (
        f"{len(entries)} papers: {len(entries) - missing} implemented, {measured} of them measured, "
        f"{missing} not implemented yet. Of {sum(total.values())} claims:"
    )
    feed = tag("p", link("feed.xml", "Atom feed of new results"), " · ", link("planned.html", "Not implemented yet"))
    return tag("div", tag("p", sentence), tag("ul", *marks, cls="tally"), feed, cls="state")


def _controls(entries: Sequence[Entry]) -> Markup:
    """Search and filters; hidden until the script that answers them runs."""
    sites = [site for site, _ in Counter(site for entry in entries for site in entry.sites).most_common()]
    found = {verdict for entry in entries for verdict in entry.tally}
    verdicts = [verdict for verdict in (*VERDICTS, NO_RECORD, NOT_IMPLEMENTED) if verdict in found]
    return tag(
        "form",
        tag("label", "Search papers, methods, rooms", **{"for": "query"}),
        tag("input", id="query", type="search", name="q", autocomplete="off", spellcheck="false"),
        _group("site", "Where it stands", sites),
        _group("verdict", "What came out", verdicts),
        id="find",
        role="search",
        hidden="hidden",
    )


def _group(name: str, legend: str, values: Iterable[str]) -> Markup:
    buttons = [
        tag("button", value, type="button", **{"data-filter": name, "data-value": value, "aria-pressed": "false"})
        for value in values
    ]
    return tag("fieldset", tag("legend", legend), *buttons)


def _card(entry: Entry, names: list[Name]) -> Markup:
    about = entry.about
    methods = [name.name for name in names_for(entry.paper, names)] if entry.paper else []
    text = " ".join([about.title, about.slug, about.arxiv, about.venue, about.summary, *methods, *entry.sites])
    marks = [tag("li", verdict_mark(verdict, count or None)) for verdict, count in entry.tally.items()]
    byline: list[object] = [f"{about.date} · ", arxiv_link(about.arxiv), f" · {about.venue}" if about.venue else ""]
    article = tag(
        "article",
        tag("h3", link(f"papers/{entry.slug}.html", about.title)),
        tag("p", *byline, cls="soft"),
        tag("p", about.summary, cls="summary"),
        labels(entry.sites),
        tag("ul", *marks, cls="tally"),
    )
    fields = {"data-text": text.lower(), "data-sites": " ".join(entry.sites), "data-verdicts": "|".join(entry.tally)}
    return tag("li", article, cls="card", **fields)


def planned_markdown(entries: Sequence[Entry]) -> str:
    """Markdown of the page about what is missing."""
    missing = [entry for entry in entries if entry.paper is None]
    about = f"softgate is made for {len(entries)} papers. For these {len(missing)} there is no code yet:"
    items = [
        tag("li", link(f"papers/{entry.slug}.html", entry.about.title), f" ({entry.about.date}). {entry.about.summary}")
        for entry in missing
    ]
    title = "Papers not implemented yet"
    parts = [front_matter(title, about, hide=("toc",)), tag("h1", title), tag("p", about), tag("ul", *items)]
    return document(parts)


def name_index(names: Iterable[Name]) -> str:
    """A script that tells the search of the front page every public name: path, address, first line."""
    rows = [[name.path, f"{name.page}#{name.path}", name.summary.replace("`", "")] for name in names]
    return f"window.softgateNames = {json.dumps(rows)};\n"
