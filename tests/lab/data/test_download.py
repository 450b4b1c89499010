from __future__ import annotations

import hashlib
import io
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from softgate.errors import StateError
from softgate.lab.data import cifar, fetch, images, tables, text
from softgate.lab.data.fetch import fetch as download
from softgate.lab.data.fetch import is_https, url_transport
from softgate.lab.data.store import DamagedDataError, MissingDataError, Resource

CONTENT = bytes(range(256)) * 4000  # 1 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class _Server(BaseHTTPRequestHandler):
    """Serves ``CONTENT`` under names that say how the server misbehaves."""

    requests: ClassVar[list[tuple[str, str | None]]]
    cuts: ClassVar[int]

    def do_GET(self) -> None:
        kind, wanted = self.path.strip("/"), self.headers.get("Range")
        self.requests.append((kind, wanted))
        if kind == "gone":
            return self.send_error(404)
        if kind == "busy":
            return self.send_error(503)
        if kind.startswith("to-"):
            targets = {"to-file": "file:///etc/passwd", "to-http": f"http://127.0.0.1:{self.server.server_port}/plain"}
            self.send_response(302)
            self.send_header("Location", targets.get(kind, "/good"))
            return self.end_headers()
        body = CONTENT + b"x" * 70_000 if kind == "large" else CONTENT[::-1] if kind == "other" else CONTENT
        self._send(body, self._start(kind, wanted), cut=kind.startswith("cut") and len(self.requests) <= self.cuts)

    def _start(self, kind: str, wanted: str | None) -> int:
        ranged = wanted is not None and kind != "cut-without-ranges"
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and ranged else 0
        self.send_response(206 if ranged else 200)
        if ranged:
            claimed = 0 if kind == "cut-wrong-range" else start
            self.send_header("Content-Range", f"bytes {claimed}-{len(CONTENT) - 1}/{len(CONTENT)}")
        return 0 if kind == "cut-wrong-range" else start

    def _send(self, body: bytes, start: int, *, cut: bool) -> None:
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + 300_000] if cut else body[start:])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Server.requests, _Server.cuts = [], 2
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def _fetch(base: str, kind: str, folder: Path, *, size: int = len(CONTENT), sha256: str = DIGEST) -> Path:
    resource = Resource("content.bin", f"{base}/{kind}", sha256, size)
    transport = url_transport(lambda url: url.startswith(base) and not url.endswith("/plain"))
    return download(resource, folder, transport=transport, pause_seconds=0.01)


def test_a_file_is_fetched_verified_and_not_fetched_again(server: str, tmp_path: Path) -> None:
    path = _fetch(server, "good", tmp_path)
    assert path.read_bytes() == CONTENT
    assert _fetch(server, "good", tmp_path) == path
    assert len(_Server.requests) == 1
    assert [item.name for item in tmp_path.iterdir() if not item.name.startswith(".")] == ["content.bin"]


def test_a_cut_connection_is_continued_where_it_broke(server: str, tmp_path: Path) -> None:
    assert _fetch(server, "cut", tmp_path).read_bytes() == CONTENT
    assert _Server.requests == [("cut", None), ("cut", "bytes=300000-"), ("cut", "bytes=600000-")]


def test_a_later_run_continues_the_part_of_an_earlier_one(server: str, tmp_path: Path) -> None:
    _Server.cuts = 100
    with pytest.raises(MissingDataError, match="broke off after"):
        _fetch(server, "cut", tmp_path / "a", size=len(CONTENT) * 3)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "content.bin.part").write_bytes(CONTENT[:123_456])
    assert _fetch(server, "good", tmp_path / "b").read_bytes() == CONTENT
    assert _Server.requests[-1] == ("good", "bytes=123456-")


@pytest.mark.parametrize("kind", ["cut-without-ranges", "cut-wrong-range"])
def test_a_server_that_cannot_continue_sends_it_all_again(server: str, tmp_path: Path, kind: str) -> None:
    assert _fetch(server, kind, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("kind", "words"), [("other", "SHA-256"), ("large", "more than the 1,024,000 bytes")])
def test_the_wrong_content_is_deleted_and_named(server: str, tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(DamagedDataError, match=words) as caught:
        _fetch(server, kind, tmp_path)
    assert "content.bin" in str(caught.value) and server in str(caught.value)
    assert [item.name for item in tmp_path.iterdir() if not item.name.startswith(".")] == []


def test_a_spoiled_part_is_found_out_by_the_hash(server: str, tmp_path: Path) -> None:
    (tmp_path / "content.bin.part").write_bytes(b"?" * 1000)
    with pytest.raises(DamagedDataError, match="SHA-256"):
        _fetch(server, "good", tmp_path)
    assert _fetch(server, "good", tmp_path).read_bytes() == CONTENT


def test_a_part_larger_than_the_file_is_dropped(server: str, tmp_path: Path) -> None:
    (tmp_path / "content.bin.part").write_bytes(b"?" * (len(CONTENT) + 1))
    assert _fetch(server, "good", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("kind", "words", "requests"), [("gone", "404", 1), ("busy", "503", 5)])
def test_only_failures_that_may_pass_are_tried_again(
    server: str, tmp_path: Path, kind: str, words: str, requests: int
) -> None:
    with pytest.raises(MissingDataError, match=words):
        _fetch(server, kind, tmp_path)
    assert len(_Server.requests) == requests


def test_no_server_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no connection \(.*refused"):
        _fetch("http://127.0.0.1:9", "good", tmp_path)


def test_a_redirect_within_what_is_allowed_is_followed(server: str, tmp_path: Path) -> None:
    assert _fetch(server, "to-good", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["to-http", "to-file"])
def test_a_redirect_away_from_https_is_refused(server: str, tmp_path: Path, kind: str) -> None:
    with pytest.raises(StateError, match=r"redirects to .* not https|Redirection to .* not allowed"):
        _fetch(server, kind, tmp_path)
    assert [name for name, _ in _Server.requests] == [kind]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://a/b", "https:///x", "https://u:p@h/x", "data:,x", ""]
)
def test_the_public_path_opens_https_only(tmp_path: Path, url: str) -> None:
    assert not is_https(url)
    with pytest.raises(StateError, match="not an https address"):
        download(Resource("x", url, DIGEST, 1), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=r"cannot write content\.bin"):
        _fetch(server, "good", tmp_path / "file")


def test_progress_counts_to_the_size(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    transport = url_transport(lambda url: True)
    resource = Resource("content.bin", f"{server}/good", DIGEST, len(CONTENT))
    download(resource, tmp_path, transport=transport, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_terminal_gets_a_bar_and_a_log_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda answer=is_terminal: answer  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", stream)
        with fetch.progress_bar("content.bin") as show:
            show(512, 1024)
        assert ("content.bin" in stream.getvalue()) == is_terminal


def test_who_finds_a_download_under_way_waits_for_it(server: str, tmp_path: Path) -> None:
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(_fetch(server, "good", tmp_path)))
    with fetch._exclusive(tmp_path, "content.bin"):  # as another process would hold it
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive() and _Server.requests == []
        (tmp_path / "content.bin").write_bytes(CONTENT)
    waiting.join(30)
    assert found == [tmp_path / "content.bin"] and _Server.requests == []


@pytest.mark.parametrize(
    "source",
    [images.MNIST, images.FASHION_MNIST, cifar.CIFAR10, tables.NSL_KDD, text.TINY_SHAKESPEARE],
    ids=lambda s: s.name,
)
def test_every_official_file_is_pinned(source: Any) -> None:
    for resource in source.resources:
        assert is_https(resource.url)
        assert len(bytes.fromhex(resource.sha256)) == 32 and resource.sha256 == resource.sha256.lower()
        assert 0 < resource.size < 1 << 30
        assert "/" not in resource.name


def test_a_loader_downloads_into_the_cache_only_when_told(
    data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fake(url: str, headers: dict[str, str]) -> Any:
        asked.append(url)
        raise OSError("no network in tests")

    monkeypatch.setattr(fetch, "url_transport", lambda: fake)
    monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
    for load in (images.mnist, images.fashion_mnist, images.cifar10, tables.nsl_kdd):
        with pytest.raises(MissingDataError, match="was not found"):
            load("train")
    assert asked == []
    for load in (images.mnist, images.fashion_mnist, images.cifar10, tables.nsl_kdd):
        with pytest.raises(MissingDataError, match="could not download"):
            load("train", download=True)
    assert len(asked) == 4
    assert list(data_home.iterdir()) == [] and (tmp_path / "xdg" / "softgate" / "data" / "mnist").is_dir()
