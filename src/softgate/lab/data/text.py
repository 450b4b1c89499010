"""Text corpora for language models: tiny Shakespeare, or the standard library's own source where that is absent."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softgate.errors import bad_value, check_choice
from softgate.lab.data.store import MissingDataError, Resource, Source, damaged, obtain

# Size and SHA-256 as in the checksum list of TensorFlow Datasets.
TINY_SHAKESPEARE = Source(
    name="tiny Shakespeare",
    folders=("text", "tinyshakespeare"),
    resources=(
        Resource(
            name="tinyshakespeare.txt",
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            size=1_115_394,
            alternatives=("input.txt",),
        ),
    ),
    origin="plays by William Shakespeare, collected by Andrej Karpathy for char-rnn; public domain",
)

#: Characters of the standard library's source that make a corpus, unless the caller says otherwise.
STDLIB_CHARACTERS = 4_000_000

# Left out of the corpus: what others installed, test data, and files that are generated on the machine itself.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"})
_SKIPPED_FILES = ("_sysconfigdata", "__phello__")
_LARGEST_USER_FILE = 1 << 30


@dataclass(frozen=True)
class Corpus:
    """A text and where it comes from.

    Attributes:
        text: the characters.
        name: ``"tinyshakespeare"``, ``"stdlib"`` or the name of a user's file.
        sha256: of the text in UTF-8; recorded beside every figure measured on it.
        source: in words.
    """

    text: str
    name: str
    sha256: str
    source: str

    def __len__(self) -> int:
        return len(self.text)


def load_corpus(name: str = "auto", *, download: bool = False, characters: int | None = None) -> Corpus:
    """Load a text corpus.

    Args:
        name: ``"tinyshakespeare"``; ``"stdlib"``, the source of Python's standard library in a fixed order; or
            ``"auto"``, tiny Shakespeare where it can be had and the standard library otherwise.
        download: tiny Shakespeare may be downloaded (1.1 MB).
        characters: keep only so many from the beginning. ``"stdlib"`` stops at 4 million by default.

    Returns:
        The corpus, with the hash of exactly the text returned.

    Raises:
        MissingDataError: the corpus is not on this machine and may not be downloaded.
        DamagedDataError: a file is there and is not the corpus.
    """
    check_choice("name", name, ("auto", "tinyshakespeare", "stdlib"))
    if characters is not None and characters < 1:
        bad_value("characters", characters, "at least 1")
    if name == "stdlib":
        return _stdlib(characters or STDLIB_CHARACTERS)
    try:
        return _tiny_shakespeare(download, characters)
    except MissingDataError:
        if name != "auto":
            raise
        return _stdlib(characters or STDLIB_CHARACTERS)


def corpus_from_file(path: str | Path) -> Corpus:
    """Read a user's own UTF-8 text file (at most 1 GiB) as a corpus."""
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_LARGEST_USER_FILE + 1)
    except OSError as error:
        raise MissingDataError(f"cannot read the text file {path}: {error.strerror}") from None
    if len(raw) > _LARGEST_USER_FILE:
        damaged(path, "larger than 1 GiB", hint="")
    if not raw.strip():
        damaged(path, "the file is empty", hint="")
    return _corpus(_decode(path, raw), path.name, f"the user's file {path.name}")


def _corpus(text: str, name: str, source: str) -> Corpus:
    return Corpus(text, name, hashlib.sha256(text.encode()).hexdigest(), source)


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        damaged(path, f"not UTF-8 text (byte {error.start})", hint="convert it")


def _tiny_shakespeare(download: bool, characters: int | None) -> Corpus:
    official = TINY_SHAKESPEARE.resources[0]
    path = obtain(TINY_SHAKESPEARE, official, download=download)
    with open(path, "rb") as stream:
        raw = stream.read(official.size + 1)
    if len(raw) != official.size:
        size = path.stat().st_size
        damaged(path, f"{size:,} bytes where tiny Shakespeare has {official.size:,}")
    if hashlib.sha256(raw).hexdigest() != official.sha256:
        damaged(path, "the SHA-256 is not that of tiny Shakespeare")
    return _corpus(raw.decode("utf-8")[:characters], "tinyshakespeare", TINY_SHAKESPEARE.origin)


def _stdlib(characters: int) -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    missing = characters
    for path in _stdlib_files(root):
        try:
            text = path.read_text(encoding="utf-8")[:missing]
        except (OSError, UnicodeDecodeError):  # a handful of files declare another encoding
            continue
        parts.append(text)
        missing -= len(text)
        if missing <= 0:
            break
    if not parts:
        raise MissingDataError(f"this Python has no source files of its standard library in {root}")
    source = f"source files of the standard library of Python {platform.python_version()}, folder by folder"
    return _corpus("".join(parts), "stdlib", source)


def _stdlib_files(root: Path) -> Iterator[Path]:
    """The ``.py`` files below ``root`` in an order that depends on their names alone."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES):
                yield Path(folder) / name
