"""Reading compressed files that may be broken or hostile: bounded sizes, checked names, one kind of error."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from softgate.errors import SoftgateError
from softgate.lab.data.store import damaged

_GZIP_MAGIC = b"\x1f\x8b"
#: DEFLATE cannot exceed 1032; honest photographs and tables stay far below this, bombs do not.
_LARGEST_RATIO = 200
_LONGEST_NAME = 255

# What the readers of the standard library and Pillow raise for bytes they cannot make sense of.
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    IndexError,
    KeyError,
    SyntaxError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into one clear error about the file ``path``."""
    try:
        yield
    except SoftgateError:
        raise
    except PermissionError:
        damaged(path, "may not be read", hint="change its permissions")
    except _BROKEN as error:
        damaged(path, f"damaged or truncated ({str(error) or type(error).__name__})")


def check_name(path: Path, name: str) -> None:
    """Refuse a member of archive ``path`` whose name could point outside the archive."""
    parts = PurePosixPath(name).parts
    if (
        not name
        or len(name) > _LONGEST_NAME
        or name.startswith("/")
        or ".." in parts
        or re.match(r"[A-Za-z]:", name)
        or re.search(r"[\\\x00-\x1f]", name)
    ):
        damaged(path, f"the archive has a member with the unsafe name {name[:80]!r}", hint="do not use this archive")


def read_bounded(path: Path, limit: int) -> bytes:
    """Content of ``path``, decompressed if it is gzip, refusing more than ``limit`` bytes."""
    with reading(path), open(path, "rb") as stream:
        compressed = stream.read(2) == _GZIP_MAGIC
        stream.seek(0)
        raw = (gzip.GzipFile(fileobj=stream) if compressed else stream).read(limit + 1)
    if len(raw) > limit:
        damaged(path, f"holds more than the {limit:,} bytes that belong there")
    return raw


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than ``limit`` bytes, wherever the reader asks from."""

    def __init__(self, path: Path, stream: gzip.GzipFile, limit: int) -> None:
        self._path, self._stream, self._left = path, stream, limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        raw = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(raw)
        if self._left < 0:
            damaged(self._path, "unpacks to more than the data set holds", hint="do not use this archive")
        return raw


def tar_members(path: Path, *, limit: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of every regular file in the ``.tar.gz`` file ``path``.

    Nothing is written to disk. Links and devices are refused, and so is an archive that unpacks to more than ``limit``
    bytes.
    """
    with (
        reading(path),
        gzip.open(path) as compressed,
        tarfile.open(fileobj=_Bounded(path, compressed, limit), mode="r|") as archive,
    ):
        for member in archive:
            check_name(path, member.name)
            if member.isdir():
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                damaged(path, f"{member.name!r} is not a regular file", hint="do not use this archive")
            yield member.name, stream.read()


class CheckedZip:
    """A zip archive whose directory was found harmless: safe names, no encryption, bounded sizes and ratios."""

    def __init__(self, path: Path, *, members: int, member_bytes: int) -> None:
        """Open ``path``, which may hold ``members`` files of at most ``member_bytes`` each."""
        self.path, self._limit = path, member_bytes
        with reading(path):
            self._archive = zipfile.ZipFile(path)
            infos = self._archive.infolist()
        if len(infos) > members:
            self.close()
            damaged(
                path, f"holds {len(infos):,} members where at most {members:,} belong", hint="do not use this archive"
            )
        try:
            self._infos = {info.filename: info for info in infos if self._is_file(info)}
        except BaseException:
            self.close()
            raise

    def _is_file(self, info: zipfile.ZipInfo) -> bool:
        name = info.orig_filename  # ZipInfo cuts ``filename`` at a NUL byte
        check_name(self.path, name)
        if info.flag_bits & 1:
            damaged(self.path, f"{name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            damaged(self.path, f"{name!r} uses an unknown compression")
        if info.file_size > self._limit or info.file_size > _LARGEST_RATIO * max(info.compress_size, 1):
            damaged(self.path, f"{name!r} claims to unpack to {info.file_size:,} bytes", hint="do not use this archive")
        return not info.is_dir()

    def names(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self._infos)

    def read(self, name: str) -> bytes:
        """Content of the file ``name``; zipfile compares its checksum."""
        with reading(self.path), self._archive.open(self._infos[name]) as stream:
            raw = stream.read(self._limit + 1)
            if len(raw) > self._limit:
                damaged(self.path, f"{name!r} unpacks to more than it claims", hint="do not use this archive")
            return raw

    def close(self) -> None:
        """Close the file."""
        self._archive.close()
