"""The One Billion Word benchmark, where its files are present: sentences as word numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from softgate.lab.data.store import MissingDataError, damaged, data_folders

FOLDER = "1-billion-word-language-modeling-benchmark-r13output"
TRAINING = "training-monolingual.tokenized.shuffled"
#: Words that occur less often are one unknown word; this gives the benchmark's 793,471 words with the three below.
LEAST_OFTEN = 3
SPECIAL = ("<S>", "</S>", "<UNK>")


def billion_words_folder() -> Path:
    """Folder of the training shards, as the archive unpacks; raises where it is not on this machine."""
    looked_in = [root / FOLDER / TRAINING for root in data_folders()]
    for folder in looked_in:
        if folder.is_dir():
            return folder
    raise MissingDataError(
        f"the One Billion Word benchmark was not found. Looked in: {', '.join(map(str, looked_in))}. Unpack "
        "1-billion-word-language-modeling-benchmark-r13output.tar.gz (1.8 GB) there."
    )


def billion_words(shards: int | None = None) -> tuple[Tensor, int]:
    """Word numbers of the first ``shards`` training files in one row, and the size of the vocabulary of **all** files.

    Every sentence is opened by ``<S>`` and closed by ``</S>``; numbers go from the most frequent word down.

    Args:
        shards: files to return the words of; all if None. The vocabulary is always counted over all of them.

    Returns:
        int32 numbers ``(words,)`` and the number of words.
    """
    files = sorted(billion_words_folder().glob("news.en-*"))
    if not files:
        raise MissingDataError(f"{billion_words_folder()} holds no file news.en-*")
    counts: Counter[str] = Counter()
    for path in files:
        for words in _sentences(path):
            counts.update(words)
    kept = [word for word, count in counts.most_common() if count >= LEAST_OFTEN]
    number = {word: index for index, word in enumerate((*SPECIAL, *kept))}
    unknown = number["<UNK>"]
    ids: list[int] = []
    for path in files[:shards]:
        for words in _sentences(path):
            ids += [0, *(number.get(word, unknown) for word in words), 1]
    return torch.tensor(ids, dtype=torch.int32), len(number)


def _sentences(path: Path) -> Iterator[list[str]]:
    with open(path, encoding="utf-8") as stream:
        try:
            for line in stream:
                yield line.split()
        except UnicodeDecodeError as error:
            damaged(path, f"not UTF-8 text (byte {error.start})")
