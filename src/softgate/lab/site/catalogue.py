"""What the site lists: every paper, implemented or not, with the records that were published of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from softgate.lab.paper import Paper, PlannedPaper, load_paper, paper_slugs
from softgate.lab.site.records import ORDER, VERDICTS, Record
from softgate.papers._planned import PLANNED

#: What stands in the place of a verdict where there is none.
NO_RECORD, NOT_IMPLEMENTED = "no record yet", "not implemented"


@dataclass(frozen=True)
class Entry:
    """One paper of the site.

    Attributes:
        about: the paper's own record, or that of a paper that is only planned.
        records: reproductions, the scale that speaks for the paper first.
    """

    about: Paper | PlannedPaper
    records: tuple[Record, ...] = ()

    @property
    def slug(self) -> str:
        """Name of the paper and of its page."""
        return self.about.slug

    @property
    def paper(self) -> Paper | None:
        """The paper's record; None if it is only planned."""
        return self.about if isinstance(self.about, Paper) else None

    @property
    def sites(self) -> tuple[str, ...]:
        """Rooms in which its methods stand."""
        if isinstance(self.about, PlannedPaper):
            return self.about.sites
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.about.methods))

    @property
    def tally(self) -> dict[str, int]:
        """Verdict -> number of claims, each claim judged by the largest scale that measured it."""
        if not self.records:
            return {NO_RECORD if self.paper else NOT_IMPLEMENTED: 0}
        verdicts: dict[str, str] = {}
        for record in self.records:
            for claim, verdict in record.verdicts.items():
                if verdicts.get(claim, "not measured") in ("not measured", "needs hardware"):
                    verdicts[claim] = verdict
        counted = Counter(verdicts.values())
        return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


def catalogue(records: Iterable[Record]) -> list[Entry]:
    """Every paper, newest first."""
    by_slug: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: ORDER.index(record.scale)):
        by_slug.setdefault(record.slug, []).append(record)
    about: list[Paper | PlannedPaper] = [load_paper(slug) for slug in paper_slugs()]
    known = {paper.slug for paper in about}
    about += [paper for paper in PLANNED if paper.slug not in known]
    entries = [Entry(paper, tuple(by_slug.get(paper.slug, ()))) for paper in about]
    return sorted(entries, key=lambda entry: (entry.about.date, entry.about.arxiv), reverse=True)
