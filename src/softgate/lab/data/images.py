"""MNIST, Fashion-MNIST and CIFAR-10 as uint8 tensors, read from their official files without torchvision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from softgate.errors import check_choice
from softgate.lab.data.archives import read_bounded
from softgate.lab.data.store import Resource, Source, damaged, obtain

Split = Literal["train", "test"]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        images: uint8, ``(N, 28, 28)`` for grey and ``(N, 3, 32, 32)`` for colour images.
        labels: int64, ``(N,)``.
        classes: name of every label.
        source: who made the data, under which licence.
        note: what must be said beside a figure measured on these files; empty if nothing.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels)


def _idx_resources(base: str, *files: tuple[str, int, str]) -> tuple[Resource, ...]:
    resources = []
    for name, size, sha256 in files:
        unpacked = name.removesuffix(".gz")  # some mirrors write "images.idx3" for "images-idx3"
        names = (unpacked, unpacked.replace("-idx", ".idx"))
        resources.append(Resource(name, base + name, sha256, size, names))
    return tuple(resources)


# Sizes and SHA-256 of the official files as in the checksum list of TensorFlow Datasets.
MNIST = Source(
    name="MNIST",
    folders=("mnist", "MNIST/raw"),
    resources=_idx_resources(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ("train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    origin="MNIST, LeCun, Cortes and Burges; CC BY-SA 3.0",
)

# The same files lie on the authors' bucket, which speaks plain http only; hence their repository.
FASHION_MNIST = Source(
    name="Fashion-MNIST",
    folders=("fashion-mnist", "FashionMNIST/raw"),
    resources=_idx_resources(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    origin="Fashion-MNIST, Xiao, Rasul and Vollgraf 2017; MIT licence",
)

_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_COUNTS = {"train": 60_000, "test": 10_000}


def mnist(split: Split = "train", *, download: bool = False) -> ImageSet:
    """The MNIST digits: 60,000 training or 10,000 test images of 28×28 grey values.

    Args:
        split: ``"train"`` or ``"test"``.
        download: fetch the official files (11.6 MB) if they are not on this machine.

    Raises:
        MissingDataError: not on this machine, with the folders searched and how to get it.
        DamagedDataError: a file is there and is not MNIST.
    """
    return _idx_set(MNIST, split, tuple("0123456789"), download)


def fashion_mnist(split: Split = "train", *, download: bool = False) -> ImageSet:
    """Fashion-MNIST: the shape of MNIST with ten kinds of clothing; arguments and errors as for :func:`mnist`."""
    return _idx_set(FASHION_MNIST, split, _FASHION_CLASSES, download)


def cifar10(split: Split = "train", *, download: bool = False) -> ImageSet:
    """CIFAR-10: 50,000 training or 10,000 test colour images, ``(N, 3, 32, 32)``.

    Read from the official binary version (folder or ``.tar.gz``) or from ``cifar10-jpeg.zip``, whichever a data folder
    has; the ``note`` of the result tells which. The official Python version is pickled and therefore refused.

    Args:
        split: ``"train"`` or ``"test"``.
        download: fetch the official binary version (170 MB) if nothing is on this machine.

    Raises:
        MissingDataError: not on this machine, with the folders searched and how to get it.
        DamagedDataError: a file is there and is not CIFAR-10.
    """
    from softgate.lab.data.cifar import load

    check_choice("split", split, SPLITS)
    return load(split, download=download)


def _idx_set(source: Source, split: Split, classes: tuple[str, ...], download: bool) -> ImageSet:
    check_choice("split", split, SPLITS)
    count = _COUNTS[split]
    resources = source.resources[:2] if split == "train" else source.resources[2:]
    paths = [obtain(source, resource, download=download) for resource in resources]
    images, labels = read_idx(paths[0], (count, 28, 28)), read_idx(paths[1], (count,)).long()
    if int(labels.max()) >= len(classes):
        damaged(paths[1], f"label {int(labels.max())} where 0 to {len(classes) - 1} are allowed")
    return ImageSet(images, labels, classes, source.origin)


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read an idx file (plain or gzip) of bytes that must have exactly ``shape``.

    The format is two zero bytes, the type code 8 for unsigned bytes, the number of axes, the axes as big-endian 32-bit
    integers, and the values.
    """
    header = 4 + 4 * len(shape)
    raw = read_bounded(path, header + math.prod(shape))
    if len(raw) < header:
        damaged(path, f"truncated: {len(raw)} bytes are too few for an idx header")
    if raw[:3] != b"\x00\x00\x08":
        damaged(path, f"not an idx file of bytes (it begins with {raw[:4].hex(' ')})")
    axes = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, 4 + 4 * min(raw[3], len(shape)), 4))
    if raw[3] != len(shape) or axes != shape:
        damaged(path, f"holds {raw[3]} axes {axes}, expected {shape}")
    if len(raw) != header + math.prod(shape):
        damaged(path, f"truncated: {len(raw) - header:,} values of {math.prod(shape):,}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
