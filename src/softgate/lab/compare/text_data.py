"""Text as bytes: a user's file, or one that is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softgate.errors import ArgumentValueError
from softgate.lab.compare.dataset import Dataset

__all__ = ["synthetic_text", "text_dataset", "text_file"]

#: What a comparison of minutes can make use of.
_LARGEST = 16 * 2**20
_SYNTHETIC_WORDS = 60_000


def text_file(path: Path) -> Dataset:
    """The bytes of any file that is there, whatever its encoding; beyond 16 MiB the beginning only.

    Raises:
        ArgumentValueError: no such file, not readable, or empty.
    """
    if not path.is_file():
        raise ArgumentValueError(f"--text: {path} is no file")
    try:
        with path.open("rb") as stream:
            content, more = stream.read(_LARGEST), bool(stream.read(1))
    except OSError as error:
        raise ArgumentValueError(f"--text: cannot read {path}: {error.strerror}") from None
    if not content.strip():
        raise ArgumentValueError(f"--text: {path} is empty")
    notes = (f"only the first {_LARGEST // 2**20} MiB of {path.name} are used",) if more else ()
    return text_dataset(content, path.name, f"the user's file {path.name}", notes)


def text_dataset(content: bytes, name: str, source: str, notes: tuple[str, ...] = ()) -> Dataset:
    """``content`` as a data set."""
    return Dataset("text", name, {"bytes": np.frombuffer(content, np.uint8)}, source=source, notes=notes)


def synthetic_text() -> Dataset:
    """Sentences of made-up words, frequent ones and rare ones: the same on every machine."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    weights = 1.0 / np.arange(2, len(letters) + 2)
    lexicon = ["".join(random.choice(letters, size, p=weights / weights.sum())) for size in random.integers(2, 9, 400)]
    shares = 1.0 / np.arange(1, len(lexicon) + 1)
    words = random.choice(len(lexicon), _SYNTHETIC_WORDS, p=shares / shares.sum())
    ends = np.where(random.random(_SYNTHETIC_WORDS) < 0.12, ".\n", " ")
    text = "".join(lexicon[word] + end for word, end in zip(words, ends, strict=True))
    return text_dataset(text.encode(), "synthetic", "sentences of 400 made-up words, drawn by a fixed seed")
