"""CIFAR-10 from the official binary files, their archive, or a zip of JPEG copies."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgate.errors import MissingExtraError
from softgate.lab.data.archives import CheckedZip, read_bounded, reading, tar_members
from softgate.lab.data.images import ImageSet, Split
from softgate.lab.data.store import (
    DamagedDataError,
    Resource,
    Source,
    cache_folder,
    candidates,
    damaged,
    download_folder,
    missing,
)
from softgate.lab.files import write_atomic

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Size and SHA-256 of the official archive as in the checksum list of TensorFlow Datasets.
CIFAR10 = Source(
    name="CIFAR-10",
    folders=("cifar10", "cifar-10"),
    resources=(
        Resource(
            name="cifar-10-binary.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            size=170_052_171,
        ),
    ),
    origin="CIFAR-10, Krizhevsky 2009",
)

JPEG_ZIP = "cifar10-jpeg.zip"
JPEG_NOTE = "images come from JPEG copies, so pixels differ slightly from the original arrays; sorted by class"
_BATCHES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_PER_BATCH = 10_000
_PER_CLASS = {"train": 5_000, "test": 1_000}
_RECORD = 1 + 3 * 32 * 32
_LARGEST_JPEG = 1 << 16
_MEMBER = re.compile(rf"(?:[\w.-]+/)?(train|test)/({'|'.join(CLASSES)})/\d+\.jpe?g")


def find(split: Split) -> Path | None:
    """The folder of batches, the archive or the JPEG zip that the first data folder with CIFAR-10 holds."""
    for folder in candidates(CIFAR10):
        for place in (folder / "cifar-10-batches-bin", folder):
            if all((place / name).is_file() for name in _BATCHES[split]):
                return place
        for archive in (CIFAR10.resources[0].name, JPEG_ZIP):
            if (folder / archive).is_file():
                return folder / archive
        if (folder / "cifar-10-python.tar.gz").exists() or (folder / "cifar-10-batches-py").exists():
            raise DamagedDataError(
                f"{folder} holds the Python version of CIFAR-10, which is a pickle: loading it could run code, so "
                f"softgate does not. Get the binary version, {CIFAR10.resources[0].url}"
            )
    return None


def load(split: Split, *, download: bool) -> ImageSet:
    """Load ``split`` in whichever form :func:`find` meets first, or download the official archive."""
    path = find(split)
    if path is None:
        if not download:
            missing(CIFAR10, f"cifar-10-batches-bin, {CIFAR10.resources[0].name} or {JPEG_ZIP}")
        from softgate.lab.data.fetch import fetch

        path = fetch(CIFAR10.resources[0], download_folder(CIFAR10))
    if path.is_dir():
        return _from_batches(path, split)
    return _from_jpeg(path, split) if path.name == JPEG_ZIP else _from_tar(path, split)


def _from_batches(folder: Path, split: Split) -> ImageSet:
    size = _PER_BATCH * _RECORD
    return _binary_set((folder / name, read_bounded(folder / name, size)) for name in _BATCHES[split])


def _from_tar(path: Path, split: Split) -> ImageSet:
    wanted = {f"cifar-10-batches-bin/{name}": name for name in _BATCHES[split]}
    found: dict[str, bytes] = {}
    for member, raw in tar_members(path, limit=6 * _PER_BATCH * _RECORD + (1 << 20)):
        if member.removeprefix("./") in wanted:
            found[wanted[member.removeprefix("./")]] = raw
    if len(found) != len(wanted):
        damaged(path, f"lacks {', '.join(sorted(set(wanted.values()) - set(found)))}")
    return _binary_set((path / name, found[name]) for name in _BATCHES[split])


def _binary_set(batches: Iterable[tuple[Path, bytes]]) -> ImageSet:
    images, labels = zip(*(read_batch(path, raw, _PER_BATCH) for path, raw in batches), strict=True)
    return ImageSet(torch.cat(images), torch.cat(labels), CLASSES, CIFAR10.origin)


def read_batch(path: Path, raw: bytes, count: int) -> tuple[Tensor, Tensor]:
    """Split ``count`` binary records, a label byte and 3×32×32 values each, into images and labels."""
    if len(raw) != count * _RECORD:
        damaged(path, f"{len(raw):,} bytes where {count:,} images take {count * _RECORD:,}")
    records = np.frombuffer(raw, np.uint8).reshape(count, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        damaged(path, f"label {labels.max()} where 0 to {len(CLASSES) - 1} are allowed")
    return torch.from_numpy(records[:, 1:].reshape(count, 3, 32, 32).copy()), torch.from_numpy(labels)


def _from_jpeg(path: Path, split: Split) -> ImageSet:
    images, labels = cached_decode(path, split, _PER_CLASS[split])
    return ImageSet(images, labels, CLASSES, CIFAR10.origin, JPEG_NOTE)


def cached_decode(path: Path, split: Split, per_class: int) -> tuple[Tensor, Tensor]:
    """Decoded arrays of the zip ``path``, kept in the user's cache under the hash of the zip.

    Decoding 60,000 JPEG files takes long enough to be worth 180 MB; an absent, damaged or unwritable cache only costs
    that time.
    """
    from safetensors.torch import save

    with reading(path), open(path, "rb") as stream:
        key = hashlib.file_digest(stream, "sha256").hexdigest()
    cache = cache_folder()
    kept = cache / "decoded" / f"cifar10-{split}-{per_class}-{key[:32]}.decoded" if cache else None
    arrays = _read_cache(kept, 10 * per_class) if kept else None
    if arrays is None:
        arrays = decode_jpeg_zip(path, split, per_class)
        if kept is not None:
            raw = save({"images": arrays[0], "labels": arrays[1]})
            with suppress(OSError):
                write_atomic(kept, hashlib.sha256(raw).digest() + raw)
    return arrays


def _read_cache(path: Path, count: int) -> tuple[Tensor, Tensor] | None:
    """The cached arrays if the file is exactly what was written (a 32-byte digest and safetensors), else None."""
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    with suppress(OSError, SafetensorError, KeyError):
        raw = path.read_bytes()
        if hashlib.sha256(memoryview(raw)[32:]).digest() == raw[:32]:
            arrays = parse(raw[32:])
            if arrays["images"].shape == (count, 3, 32, 32) and arrays["labels"].shape == (count,):
                return arrays["images"], arrays["labels"]
    return None


def decode_jpeg_zip(path: Path, split: Split, per_class: int) -> tuple[Tensor, Tensor]:
    """Decode ``SPLIT/CLASS/NNNN.jpg`` in the zip ``path``, which must hold ``per_class`` images of every class."""
    pillow = _pillow()
    archive = CheckedZip(path, members=60_000 + 64, member_bytes=_LARGEST_JPEG)
    try:
        matches = [(name, _MEMBER.fullmatch(name)) for name in archive.names()]
        chosen = [(name, CLASSES.index(m[2])) for name, m in matches if m is not None and m[1] == split]
        chosen.sort(key=lambda pair: (pair[1], pair[0]))
        counts = [sum(label == index for _, label in chosen) for index in range(len(CLASSES))]
        if set(counts) != {per_class}:
            listed = ", ".join(f"{name} {count}" for name, count in zip(CLASSES, counts, strict=True))
            damaged(path, f"{split} has other than {per_class:,} images of every class ({listed})")
        images = np.empty((len(chosen), 3, 32, 32), np.uint8)
        for index, (name, _) in enumerate(chosen):
            images[index] = _pixels(path, name, archive.read(name), pillow)
    finally:
        archive.close()
    return torch.from_numpy(images), torch.tensor([label for _, label in chosen])


def _pixels(path: Path, name: str, raw: bytes, pillow: Any) -> np.ndarray[Any, Any]:
    try:
        with reading(path / name), pillow.open(io.BytesIO(raw), formats=("JPEG",)) as image:
            if image.size != (32, 32) or image.mode != "RGB":  # known before anything is decoded
                damaged(path, f"{name} is a {image.mode} image of {image.size}, expected RGB of (32, 32)")
            return np.asarray(image).transpose(2, 0, 1)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        damaged(path, f"{name} claims to be an enormous image", hint="do not use this archive")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "data", "reading the JPEG copies of CIFAR-10") from None
    return Image
