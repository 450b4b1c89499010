"""Small files in the formats of the data sets, for tests that damage them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from softgate.lab.data.cifar import CLASSES


def idx(values: np.ndarray) -> bytes:
    """Encode bytes as idx."""
    axes = b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return b"\x00\x00\x08" + bytes([values.ndim]) + axes + values.astype(np.uint8).tobytes()


def cifar_batch(count: int, seed: int = 0) -> bytes:
    """Records of the binary CIFAR-10 format."""
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records.tobytes()


def jpeg(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    """A JPEG of one noisy colour."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(80, 120, (size[1], size[0], bands), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).convert(mode).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def jpeg_zip(path: Path, per_class: int, extra: dict[str, bytes] | None = None) -> Path:
    """A zip laid out as ``cifar10-jpeg.zip``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "test"):
            for label, name in enumerate(CLASSES):
                for index in range(per_class):
                    archive.writestr(f"{split}/{name}/{index:04d}.jpg", jpeg(label * 100 + index))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return path


def tar_gz(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """A ``.tar.gz`` file of the given members; a TarInfo stands for itself, without content."""
    with gzip.open(path, "wb", compresslevel=1) as compressed, tarfile.open(fileobj=compressed, mode="w") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            raw = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def kdd(rows: int) -> bytes:
    """Lines of NSL-KDD."""
    numbers = ",".join(["0.50"] * 37)
    lines = (f"{n},tcp,http,SF,{numbers},{'normal' if n % 2 else 'neptune'},20" for n in range(rows))
    return ("\n".join(lines) + "\n").encode()
