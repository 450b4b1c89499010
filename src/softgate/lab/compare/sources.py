"""From the command line's ``--text``, ``--images``, ``--csv`` and ``--data`` to a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from softgate.errors import ArgumentValueError
from softgate.lab.compare.dataset import Dataset, Kind
from softgate.lab.compare.image_data import IMAGE_SETS, image_folder, image_set
from softgate.lab.compare.sizes import SIZES
from softgate.lab.compare.table_data import TABLE_SETS, csv_file, synthetic_table, table_set
from softgate.lab.compare.text_data import synthetic_text, text_dataset, text_file
from softgate.lab.data import load_corpus

__all__ = ["Source", "load_source"]

#: Built-in texts, as ``load_corpus`` calls them.
_TEXTS = ("tinyshakespeare", "stdlib")
_OPTIONS: dict[Kind, str] = {"text": "--text FILE", "images": "--images FOLDER", "table": "--csv FILE"}


@dataclass(frozen=True)
class Source:
    """Where the data comes from: exactly one of ``text``, ``images``, ``csv`` and ``data``.

    Attributes:
        text: a file of any text.
        images: a folder with one subfolder per class.
        csv: a table whose first line names its columns.
        target: label column of ``csv``, the last one if None.
        data: name of a built-in set.
        download: a built-in set may be downloaded.
    """

    text: Path | None = None
    images: Path | None = None
    csv: Path | None = None
    target: str | None = None
    data: str | None = None
    download: bool = False


def load_source(source: Source, site: str, kinds: tuple[Kind, ...], size: str) -> Dataset:
    """The data set, if its kind is one that ``site`` can be compared on.

    Raises:
        ArgumentValueError: none or several sources, one that does not fit the site, or bad data.
        MissingDataError: a built-in set is not on this machine.
    """
    given = [name for name in ("text", "images", "csv", "data") if getattr(source, name) is not None]
    choices = f"{', '.join(_OPTIONS[kind] for kind in kinds)} or --data {'|'.join(_built_in(kinds))}"
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given) or "none of them"
        raise ArgumentValueError(f"compare {site} needs one source of data: {choices}; got {got}")
    if source.target is not None and source.csv is None:
        raise ArgumentValueError("--target names the label column of --csv FILE; there is no --csv")
    if source.data is not None:
        built_in = _built_in(kinds)
        if source.data not in built_in:
            raise ArgumentValueError(f"--data must be one of {', '.join(built_in)} for {site}, got {source.data!r}")
        return built_in[source.data](source.download)
    kind: Kind = "text" if source.text else "images" if source.images else "table"
    if kind not in kinds:
        raise ArgumentValueError(f"compare {site} takes {choices}; it cannot be compared on --{given[0]}")
    if source.text is not None:
        return text_file(source.text)
    if source.images is not None:
        return image_folder(source.images, SIZES[size]["images"].side)
    assert source.csv is not None
    return csv_file(source.csv, source.target)


def _built_in(kinds: tuple[Kind, ...]) -> dict[str, Callable[[bool], Dataset]]:
    """Name -> ``download -> data set`` of the built-in sets of these kinds; ``synthetic`` needs no file at all."""
    found: dict[str, Callable[[bool], Dataset]] = {}
    if "text" in kinds:
        found |= {name: lambda download, name=name: _corpus(name, download) for name in _TEXTS}  # type: ignore[misc]
    if "images" in kinds:
        found |= {name: lambda download, name=name: image_set(name, download=download) for name in IMAGE_SETS}  # type: ignore[misc]
    if "table" in kinds:
        found |= {name: lambda download, name=name: table_set(name) for name in TABLE_SETS}  # type: ignore[misc]
    found["synthetic"] = lambda download: synthetic_table() if "table" in kinds else synthetic_text()
    return found


def _corpus(name: str, download: bool) -> Dataset:
    corpus = load_corpus(name, download=download)
    return text_dataset(corpus.text.encode(), corpus.name, corpus.source)
