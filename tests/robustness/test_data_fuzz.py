"""Damaged data files: every mutation gives a valid load or a softgate error, never anything else."""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softgate.errors import SoftgateError
from softgate.lab.data import cifar, images, tables, text
from softgate.lab.data.images import cifar10, mnist
from softgate.lab.data.tables import nsl_kdd
from softgate.lab.data.text import corpus_from_file, load_corpus

sys.path.insert(0, str(Path(__file__).parent.parent / "lab" / "data"))

from builders import cifar_batch, idx, jpeg_zip, kdd, tar_gz

MUTATIONS = 300


def mutations(raw: bytes, seed: int) -> Any:
    """Truncations, flipped bits, overwritten, removed, repeated and inserted stretches of ``raw``."""
    rng = random.Random(seed)
    for _ in range(MUTATIONS):
        at, length = rng.randrange(len(raw)), min(rng.choice((1, 4, 64)), len(raw))
        flipped = bytearray(raw)
        for _ in range(rng.choice((1, 1, 8))):
            flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        header = bytearray(raw)  # the first bytes decide most
        header[rng.randrange(min(64, len(raw)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        footer = bytearray(raw)  # and in a zip the last
        footer[-1 - rng.randrange(min(64, len(raw)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        yield rng.choice(
            (
                raw[:at],
                bytes(flipped),
                bytes(header),
                bytes(footer),
                raw[:at] + rng.randbytes(length) + raw[at + length :],
                raw[:at] + raw[at + length :],
                raw[:at] + raw[at : at + length] * 3 + raw[at + length :],
            )
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(images, "_COUNTS", {"train": 6, "test": 6})
    monkeypatch.setattr(cifar, "_PER_BATCH", 10)
    monkeypatch.setattr(cifar, "_PER_CLASS", {"train": 1, "test": 1})
    monkeypatch.setattr(tables, "_KDD_ROWS", {"train": 6, "test": 6})
    return tmp_path / "data"


def _write(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def _mnist(home: Path, packed: bool) -> Path:
    labels, pixels = idx(np.arange(6)), idx(np.random.default_rng(0).integers(0, 256, (6, 28, 28)))
    _write(home / "mnist" / "train-labels-idx1-ubyte.gz", labels)
    return _write(home / "mnist" / "train-images-idx3-ubyte.gz", gzip.compress(pixels) if packed else pixels)


def _tar(home: Path) -> Path:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    members: dict[str, Any] = {f"cifar-10-batches-bin/{name}": cifar_batch(10) for name in names}
    (home / "cifar10").mkdir(parents=True)
    return tar_gz(home / "cifar10" / "cifar-10-binary.tar.gz", members)


def _zip(home: Path) -> Path:
    (home / "cifar10").mkdir(parents=True)
    return jpeg_zip(home / "cifar10" / "cifar10-jpeg.zip", 1)


def _kdd(home: Path) -> Path:
    return _write(home / "nsl-kdd" / "KDDTrain+_20Percent.txt", kdd(6))


def _user_text(home: Path) -> Path:
    return _write(home / "mine.txt", "Füße und Gänse, 你好\n".encode() * 20)


FORMATS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "idx": (lambda home: _mnist(home, packed=False), lambda path: mnist("train")),
    "idx.gz": (lambda home: _mnist(home, packed=True), lambda path: mnist("train")),
    "tar.gz": (_tar, lambda path: cifar10("test")),
    "zip": (_zip, lambda path: cifar10("train")),
    "csv": (_kdd, lambda path: nsl_kdd("train")),
    "text": (_user_text, corpus_from_file),
}


def _valid(loaded: Any) -> bool:
    if isinstance(loaded, text.Corpus):
        return bool(loaded.text)
    if isinstance(loaded, tables.TableSet):
        return loaded.features.shape[0] == 6 and bool(torch.isfinite(loaded.features).all())
    return loaded.images.dtype == torch.uint8 and int(loaded.labels.max()) < 10


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_load_or_raise_a_softgate_error(home: Path, kind: str) -> None:
    build, load = FORMATS[kind]
    path = build(home)
    raw = path.read_bytes()
    outcomes = {"loaded": 0, "refused": 0}
    for mutant in mutations(raw, seed=7):
        path.write_bytes(mutant)
        try:
            assert _valid(load(path))
            outcomes["loaded"] += 1
        except SoftgateError as error:
            assert str(path) in str(error), error
            outcomes["refused"] += 1
    assert outcomes["refused"] > MUTATIONS // 5, outcomes


@pytest.mark.parametrize("seed", range(3))
def test_deflate_streams_with_a_valid_checksum_of_garbage(home: Path, seed: int) -> None:
    """The gzip layer is intact here, so the readers behind it meet the garbage."""
    path = _tar(home)
    unpacked = gzip.decompress(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(60):
        garbage = bytearray(unpacked)
        for _ in range(12):  # mostly in the first tar header, where names, sizes and types stand
            garbage[rng.randrange(512)] = rng.choice((*b"0123456789xgLKSVX\x00\xff/", rng.randrange(256)))
        garbage[148:156] = b"%06o\x00 " % (sum(garbage[:148]) + 8 * 32 + sum(garbage[156:512]))
        path.write_bytes(gzip.compress(garbage, compresslevel=1))
        try:
            assert _valid(cifar10("test"))
        except SoftgateError as error:
            assert str(path) in str(error), error


def test_no_mutant_of_tiny_shakespeare_is_used(home: Path) -> None:
    content = bytes(range(32, 127)) * 10
    path = _write(home / "text" / "tinyshakespeare.txt", content)
    for mutant in mutations(content, seed=3):
        path.write_bytes(mutant)
        with pytest.raises(SoftgateError, match="tiny Shakespeare"):
            load_corpus()
