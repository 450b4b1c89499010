"""The Atom feed of results: one entry for every record, updated when it is measured again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from xml.etree import ElementTree

from softgate.lab.site.records import VERDICTS, Record

_ATOM = "http://www.w3.org/2005/Atom"
#: Entries are named by what they are, so that a reader knows a result again wherever the site is.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "softgate results")


def atom_feed(records: Sequence[Record], titles: dict[str, str]) -> bytes:
    """The feed; ``records`` come newest first, ``titles`` are those of the papers by slug."""
    feed = ElementTree.Element("feed", xmlns=_ATOM)
    _text(feed, "id", _NAMESPACE.urn)
    _text(feed, "title", "softgate: new results")
    _text(feed, "subtitle", "Claims of papers on softmax and gating, measured again")
    _text(feed, "updated", records[0].date if records else "1970-01-01T00:00:00Z")
    ElementTree.SubElement(feed, "link", rel="self", type="application/atom+xml", href="feed.xml")
    ElementTree.SubElement(feed, "link", rel="alternate", type="text/html", href="index.html")
    _text(ElementTree.SubElement(feed, "author"), "name", "The softgate authors")
    for record in records:
        entry = ElementTree.SubElement(feed, "entry")
        _text(entry, "id", uuid.uuid5(_NAMESPACE, f"{record.slug}/{record.scale}").urn)
        _text(entry, "title", f"{titles[record.slug]}: scale {record.scale}")
        _text(entry, "updated", record.date)
        ElementTree.SubElement(entry, "link", rel="alternate", type="text/html", href=f"papers/{record.slug}.html")
        _text(entry, "summary", _summary(record))
    ElementTree.indent(feed)
    return bytes(ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True))


def _summary(record: Record) -> str:
    found = list(record.verdicts.values())
    counts = [f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found]
    return f"{len(found)} claims: {', '.join(counts)}."


def _text(parent: ElementTree.Element, name: str, text: str) -> None:
    """A child with text that XML allows: control characters are left out."""
    allowed = "".join(c for c in text if c.isprintable() or c in "\t\n")
    ElementTree.SubElement(parent, name).text = allowed
