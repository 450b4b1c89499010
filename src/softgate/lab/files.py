"""Files that survive a crash: atomic writes, and a lock so that two runs never share a folder."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from softgate.errors import StateError
from softgate.lab.os_errors import naming


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one, whatever happens in between.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with naming(path):
        _replace(path, raw)


def _replace(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; JSON has no NaN and no infinities, they become null."""
    write_atomic(path, json.dumps(_finite(value), indent=1, sort_keys=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0.0:
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; a second run in the same folder raises :class:`StateError`.

    The lock is the kernel's (``flock``), so it vanishes with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            raise StateError(f"another run (process {owner}) is using {folder}; wait or choose another") from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
