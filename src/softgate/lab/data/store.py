"""Where data sets lie: the official files with their checksums, the folders searched, and the errors that say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from softgate.errors import StateError

#: Names the folder that is searched before the user's cache.
ENVIRONMENT_VARIABLE = "SOFTGATE_DATA"


class MissingDataError(StateError):
    """A data set was not found and may not (or cannot) be downloaded."""


class DamagedDataError(StateError):
    """A data file is there and is not what it should be."""


def damaged(path: Path, what: str, *, hint: str = "delete the file and fetch it again") -> NoReturn:
    """Raise :class:`DamagedDataError` for the file ``path``."""
    raise DamagedDataError(f"{path}: {what}" + (f"; {hint}" if hint else ""))


@dataclass(frozen=True)
class Resource:
    """One official file.

    Attributes:
        name: file name.
        url: official address, https.
        sha256: of the whole file, lower-case hexadecimal.
        size: in bytes.
        alternatives: other names under which people keep the same content, packed or unpacked.
    """

    name: str
    url: str
    sha256: str
    size: int
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set as it is published.

    Attributes:
        name: what messages call it.
        folders: where its files may lie below a data folder; the first one receives downloads.
        resources: its official files.
        origin: who made it, and its licence.
    """

    name: str
    folders: tuple[str, ...]
    resources: tuple[Resource, ...]
    origin: str


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/softgate`` or ``~/.cache/softgate``; None for a user without a home folder."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    home = configured if os.path.isabs(configured) else os.path.expanduser("~/.cache")
    return Path(home) / "softgate" if os.path.isabs(home) else None


def data_folders() -> Iterator[Path]:
    """The folders that may hold data sets, in the order they are searched."""
    configured = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if configured:
        yield Path(configured).expanduser()
    cache = cache_folder()
    if cache is not None:
        yield cache / "data"


def candidates(source: Source) -> Iterator[Path]:
    """The existing folders that may hold ``source``, in the order they are searched."""
    for root in data_folders():
        for name in source.folders:
            if (root / name).is_dir():
                yield root / name


def find_file(source: Source, resource: Resource) -> Path | None:
    """The first existing copy of ``resource`` in a folder of ``source``."""
    for folder in candidates(source):
        for name in (resource.name, *resource.alternatives):
            if (folder / name).is_file():
                return folder / name
    return None


def download_folder(source: Source) -> Path:
    """Where downloads of ``source`` go: always the cache, since ``$SOFTGATE_DATA`` may be shared or read-only."""
    cache = cache_folder()
    if cache is None:
        raise MissingDataError(f"cannot download {source.name}: this user has no home folder; set XDG_CACHE_HOME")
    return cache / "data" / source.folders[0]


def missing(source: Source, wanted: str = "") -> NoReturn:
    """Raise :class:`MissingDataError`: where ``source`` was looked for, and how to get it."""
    places = [str(root / name) for root in data_folders() for name in source.folders]
    configured = "" if os.environ.get(ENVIRONMENT_VARIABLE) else f" (${ENVIRONMENT_VARIABLE} is not set)"
    megabytes = sum(resource.size for resource in source.resources) / 1e6
    raise MissingDataError(
        f"{source.name} was not found{f': no {wanted}' if wanted else ''}. Looked in: {', '.join(places)}{configured}. "
        f"Pass download=True (--download on the command line) to fetch it from {_addresses(source)} "
        f"({megabytes:.3g} MB), or put {', '.join(resource.name for resource in source.resources)} into "
        f"{places[0] if places else f'a folder {source.folders[0]}/ below ${ENVIRONMENT_VARIABLE}'} yourself."
    )


def _addresses(source: Source) -> str:
    """The official addresses; only the folder where all files of ``source`` lie in one under their names."""
    folders = {resource.url.removesuffix(resource.name) for resource in source.resources}
    same = len(folders) == 1 and all(folder.endswith("/") for folder in folders)
    return folders.pop() if same else ", ".join(resource.url for resource in source.resources)


def obtain(source: Source, resource: Resource, *, download: bool) -> Path:
    """Path of ``resource``: found on this machine, or else downloaded and verified."""
    found = find_file(source, resource)
    if found is not None:
        return found
    if not download:
        missing(source, resource.name)
    from softgate.lab.data.fetch import fetch

    return fetch(resource, download_folder(source))
