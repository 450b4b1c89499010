"""What an error of the operating system means for a run, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = "free space there, or choose a folder on another disk (--out)"
_READ_ONLY = "choose a folder that you may write to (--out)"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "files of this size are not allowed here: raise `ulimit -f`, or choose another folder (--out)",
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.ENOTDIR: "a file is in the place of a folder: choose another folder (--out)",
    errno.EEXIST: "a file is in the place of a folder: choose another folder (--out)",
    errno.EISDIR: "a folder is in the place of a file: remove it, or choose another folder (--out)",
    errno.ENOENT: "choose a folder that exists or can be made (--out)",
    errno.ENAMETOOLONG: "choose a folder with a shorter path (--out)",
    errno.EMFILE: "raise `ulimit -n`, or use fewer --workers",
    errno.ENOMEM: "close other programs, or use fewer --workers",
}


def explain_os_error(error: OSError, place: str | Path = "") -> str:
    """One sentence: where, what, and what to do; ``place`` is named if the error names no file."""
    if error.errno is None:
        return str(error)
    where = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else str(place)
    what = (error.strerror or os.strerror(error.errno)).lower()
    advice = _ADVICE.get(error.errno, "")
    return f"{where}: {what}".removeprefix(": ") + (f"; {advice}" if advice else "")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the block name ``path``: a full disk is reported without a name, a temporary file by its own."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
