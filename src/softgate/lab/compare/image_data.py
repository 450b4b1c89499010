"""Images: a folder with one subfolder per class, or a built-in set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgate.errors import ArgumentValueError, MissingExtraError
from softgate.lab import data
from softgate.lab.compare.dataset import TEST, TRAIN, VALIDATION, Dataset, check_classes, divided, spread

__all__ = ["IMAGE_SETS", "image_folder", "image_set"]

IMAGE_SETS = {"mnist": data.mnist, "fashion-mnist": data.fashion_mnist, "cifar10": data.cifar10}
#: Rows to train on, and to validate and test on: what a comparison of minutes can make use of.
_MOST, _MOST_HELD_OUT = 20_000, 10_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_LAYOUT = "put one subfolder per class into it, each with its images"


def image_folder(folder: Path, side: int) -> Dataset:
    """The images of ``folder/CLASS/…``, squeezed to ``side`` × ``side``; grey where all of them are grey.

    Raises:
        ArgumentValueError: no folder, no subfolders, no images, one that cannot be read, too few.
        MissingExtraError: pillow is not installed.
    """
    if not folder.is_dir():
        raise ArgumentValueError(f"--images: {folder} is no folder")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise ArgumentValueError(f"--images: {folder} has no subfolders; {_LAYOUT}")
    listed = [(path, index) for index, name in enumerate(names) for path in _images(folder / name)]
    empty = [name for index, name in enumerate(names) if not any(label == index for _, label in listed)]
    if not listed:
        raise ArgumentValueError(f"--images: {folder} holds no image ({', '.join(_SUFFIXES)}); {_LAYOUT}")
    if empty:
        raise ArgumentValueError(f"--images: the class {empty[0]!r} in {folder} holds no image; add some or remove it")
    chosen = [listed[index] for index in spread(len(listed), _MOST)]
    notes = [f"{len(chosen)} of {len(listed)} images are used, evenly spread"] if len(chosen) < len(listed) else []
    labels = np.array([label for _, label in chosen], np.int64)
    part = divided(labels)
    check_classes(f"--images: {folder}", labels, part, _LAYOUT)
    pixels = np.stack([_pixels(path, side) for path, _ in chosen])
    if bool((pixels == pixels[:, :1]).all()):
        pixels = pixels[:, :1]
    arrays: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(pixels), "labels": labels, "part": part}
    notes.append(f"every image is squeezed to {side} × {side} pixels")
    return Dataset("images", folder.name, arrays, tuple(names), f"the user's folder {folder.name}", tuple(notes))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def _pixels(path: Path, side: int) -> NDArray[np.uint8]:
    """(3, side, side)."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "data", "reading images") from None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((side, side)), np.uint8).transpose(2, 0, 1)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ArgumentValueError(f"--images: {path} is no readable image ({error}); repair or remove it") from None


def image_set(name: str, *, download: bool) -> Dataset:
    """A built-in set: training images for training and validation, the official test images for the table."""
    sets = {split: IMAGE_SETS[name](split, download=download) for split in ("train", "test")}
    rest = np.arange(len(sets["train"]))
    train = rest[spread(len(rest), _MOST)]
    rest = np.setdiff1d(rest, train)
    validation = rest[spread(len(rest), _MOST_HELD_OUT)]
    test = spread(len(sets["test"]), _MOST_HELD_OUT)
    chosen: list[tuple[Any, NDArray[np.int64], int]] = [
        (sets["train"], train, TRAIN),
        (sets["train"], validation, VALIDATION),
        (sets["test"], test, TEST),
    ]
    images = np.concatenate([each.images.numpy()[index] for each, index, _ in chosen])
    arrays = {
        "images": images[:, None] if images.ndim == 3 else images,
        "labels": np.concatenate([each.labels.numpy()[index] for each, index, _ in chosen]),
        "part": np.concatenate([np.full(len(index), part, np.uint8) for _, index, part in chosen]),
    }
    notes = [f"{len(train)} of {len(sets['train'])} training images are used, evenly spread"]
    notes += [sets["train"].note] if sets["train"].note else []
    return Dataset("images", name, arrays, sets["train"].classes, sets["train"].source, tuple(notes))
