"""Find the records that ``reproduce`` wrote, and the pictures that belong to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from softgate.lab.page.index import RESULTS
from softgate.lab.paper import SCALES
from softgate.lab.verdicts import Verdict

#: Verdicts in the order in which they are shown.
VERDICTS: tuple[str, ...] = get_args(Verdict)

#: The scale that speaks for a paper comes first.
ORDER = ("paper", "laptop", "smoke")


@dataclass(frozen=True)
class Record:
    """One reproduction.

    Attributes:
        slug: the paper.
        scale: the scale that ran.
        data: content of ``results.json``.
        pictures: SVG files, by name.
    """

    slug: str
    scale: str
    data: Mapping[str, Any]
    pictures: tuple[Path, ...]

    @property
    def date(self) -> str:
        """When it was measured, in UTC, as RFC 3339."""
        return str(self.data["environment"]["date"])

    @property
    def verdicts(self) -> dict[str, str]:
        """Claim id -> verdict."""
        return {claim["id"]: claim["verdict"] for claim in self.data["claims"]}


def find_records(folder: Path) -> tuple[list[Record], list[tuple[Path, str]]]:
    """Every record in ``folder``, newest first.

    Two layouts are read: ``SLUG/SCALE/results.json`` with the pictures beside it, as ``softgate reproduce --out``
    writes them, and published ``SLUG-SCALE.json`` with the pictures in ``../gallery/SLUG``.

    Returns:
        The records, and files that should be records and are not, with the reason.
    """
    found, unreadable = [], []
    for path, pictures in [*_runs(folder), *_published(folder)]:
        try:
            found.append(_read(path, pictures))
        except OSError as error:
            unreadable.append((path, error.strerror or str(error)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            unreadable.append((path, f"not a record of a reproduction ({type(error).__name__}: {error})"))
    return sorted(found, key=lambda record: (record.date, record.slug), reverse=True), unreadable


def _runs(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in sorted(folder.glob(f"*/*/{RESULTS}")):
        yield path, path.parent


def _published(folder: Path) -> Iterator[tuple[Path, Path]]:
    for scale in SCALES:
        for path in sorted(folder.glob(f"*-{scale}.json")):
            pictures = folder.parent / "gallery" / path.stem.removesuffix(f"-{scale}")
            yield path, pictures


def _read(path: Path, pictures: Path) -> Record:
    """Load one record, and touch what the pages show of it; raises if it is not there."""
    data = json.loads(path.read_text(encoding="utf-8"))
    texts: Sequence[Any] = (data["paper"]["slug"], data["scale"], data["command"], data["environment"]["date"])
    if not all(isinstance(text, str) for text in texts) or data["scale"] not in SCALES:
        raise ValueError("slug, scale, command and date must be text")
    datetime.fromisoformat(data["environment"]["date"])
    for claim in data["claims"]:
        for key in ("id", "statement", "paper_figure", "source", "verdict", "relation", "note", "reason"):
            if not isinstance(claim[key], str):
                raise ValueError(f"{key} of a claim must be text")
        if claim["verdict"] not in VERDICTS:
            raise ValueError(f"unknown verdict {claim['verdict']!r}")
    return Record(data["paper"]["slug"], data["scale"], data, tuple(sorted(pictures.glob("*.svg"))))
