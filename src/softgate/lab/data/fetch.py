"""Downloads: https only, pinned SHA-256, exact size, continued where they broke off."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from softgate.errors import StateError
from softgate.lab.data.store import DamagedDataError, MissingDataError, Resource
from softgate.lab.files import sync_folder

_CHUNK = 1 << 16
_ATTEMPTS = 5
_TIMEOUT_SECONDS = 30.0

#: Called with the bytes so far and the bytes in all.
Progress = Callable[[int, int], None]


class Response(Protocol):
    """What a transport returns."""

    status: int
    headers: HTTPMessage

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, empty at the end."""

    def close(self) -> None:
        """Give back the connection."""


#: Opens an address with extra request headers.
Transport = Callable[[str, dict[str, str]], Response]


def is_https(url: str) -> bool:
    """Whether ``url`` is an https address with a host and without credentials."""
    parts = urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname) and parts.username is None


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not self._allowed(newurl):
            fp.close()
            raise StateError(f"{req.full_url} redirects to {newurl}, which is not https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def url_transport(allowed: Callable[[str], bool] = is_https) -> Transport:
    """A transport that opens and follows only addresses for which ``allowed`` is true."""
    opener = urllib.request.OpenerDirector()  # build_opener would add file: and ftp:
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _CheckedRedirects(allowed),
    ):
        opener.add_handler(handler)

    def open_url(url: str, headers: dict[str, str]) -> Response:
        if not allowed(url):
            raise StateError(f"{url} is not an https address; refused")
        request = urllib.request.Request(url, headers={"User-Agent": "softgate", **headers})
        response: Response = opener.open(request, timeout=_TIMEOUT_SECONDS)
        return response

    return open_url


def fetch(
    resource: Resource,
    folder: Path,
    *,
    transport: Transport | None = None,
    progress: Progress | None = None,
    pause_seconds: float = 1.0,
) -> Path:
    """Download ``resource`` into ``folder``, unless it is there already.

    Args:
        resource: what to fetch; its size and SHA-256 decide whether the result is kept.
        folder: receives the file, and ``NAME.part`` while it is incomplete.
        transport: opens addresses; https only if omitted.
        progress: shows progress; a bar on a terminal if omitted.
        pause_seconds: wait after the first broken connection, doubled after each further one.

    Returns:
        Path of the complete, verified file.

    Raises:
        MissingDataError: the server or the network does not deliver it; the part fetched so far is kept.
        DamagedDataError: what was delivered is not the file that was pinned; it is deleted.
    """
    path = folder / resource.name
    try:
        with _exclusive(folder, resource.name):
            if not path.is_file():  # a process that waited finds the file of the one that went first
                with nullcontext(progress) if progress else progress_bar(resource.name) as show:
                    _download(resource, folder, transport or url_transport(), show, pause_seconds)
    except OSError as error:
        raise StateError(f"cannot write {resource.name} into {folder}: {error.strerror or error}") from None
    return path


def _download(resource: Resource, folder: Path, transport: Transport, progress: Progress, pause: float) -> None:
    part = folder / f"{resource.name}.part"
    failures: list[str] = []
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _continue(resource, part, transport, progress)
        except _Broken as error:
            failures.append(str(error))
            if error.final:
                break
            continue
        _verify(resource, part)
        os.replace(part, folder / resource.name)
        sync_folder(folder)
        return
    raise MissingDataError(f"could not download {resource.name} from {resource.url}: {failures[-1]}")


class _Broken(Exception):
    """A transfer that stopped; ``final`` if trying again cannot help."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def _continue(resource: Resource, part: Path, transport: Transport, progress: Progress) -> None:
    """Fetch what ``part`` still lacks."""
    have = part.stat().st_size if part.is_file() else 0
    if have == resource.size:
        return
    if have > resource.size:
        part.unlink()
        have = 0
    response = _open(resource, have, transport)
    try:
        if have and not _continues_at(response, have):  # the server ignored the range
            have = 0
        with open(part, "ab" if have else "wb") as stream:
            while True:
                chunk = _read(response)
                if not chunk:
                    break
                have += len(chunk)
                if have > resource.size:
                    stream.close()
                    part.unlink()
                    raise DamagedDataError(f"{resource.url} delivers more than the {resource.size:,} bytes of "
                                           f"{resource.name}; deleted")  # fmt: skip
                stream.write(chunk)
                progress(have, resource.size)
    finally:
        response.close()
    if have < resource.size:
        raise _Broken(f"the connection broke off after {have:,} of {resource.size:,} bytes")


def _open(resource: Resource, have: int, transport: Transport) -> Response:
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        return transport(resource.url, {"Accept-Encoding": "identity", **headers})
    except urllib.error.HTTPError as error:
        error.close()
        raise _Broken(f"the server answered {error.code} {error.reason}", final=error.code < 500) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no connection ({getattr(error, 'reason', None) or error})") from None


def _read(response: Response) -> bytes:
    try:
        return response.read(_CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke off ({error})") from None


def _continues_at(response: Response, have: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == http.client.PARTIAL_CONTENT and found is not None and int(found[1]) == have


def _verify(resource: Resource, part: Path) -> None:
    with open(part, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != resource.sha256:
        part.unlink()
        raise DamagedDataError(f"{resource.url} delivered a file with SHA-256 {digest}, expected {resource.sha256} for "
                               f"{resource.name}; deleted")  # fmt: skip


@contextmanager
def _exclusive(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time download ``name``; the others wait, since they want the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A bar on standard error while the block runs; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
