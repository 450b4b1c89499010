"""Image classification data sets in the folders and with the splits of CoOp, on which prompt learning is measured.

The files are the user's to get: images from the data sets' own pages, ``split_zhou_….json`` from CoOp's instructions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from softgate.errors import check_choice
from softgate.lab.data.store import MissingDataError, damaged, data_folders

__all__ = ["COOP_DATASETS", "CoopSplit", "load_coop_split"]

#: Name -> folder, split file, folder of the images below it.
COOP_DATASETS: dict[str, tuple[str, str, str]] = {
    "caltech101": ("caltech-101", "split_zhou_Caltech101.json", "101_ObjectCategories"),
    "dtd": ("dtd", "split_zhou_DescribableTextures.json", "images"),
    "eurosat": ("eurosat", "split_zhou_EuroSAT.json", "2750"),
    "food101": ("food-101", "split_zhou_Food101.json", "images"),
    "oxford_flowers": ("oxford_flowers", "split_zhou_OxfordFlowers.json", "jpg"),
    "oxford_pets": ("oxford_pets", "split_zhou_OxfordPets.json", "images"),
    "stanford_cars": ("stanford_cars", "split_zhou_StanfordCars.json", ""),
    "sun397": ("sun397", "split_zhou_SUN397.json", "SUN397"),
    "ucf101": ("ucf101", "split_zhou_UCF101.json", "UCF-101-midframes"),
}


@dataclass(frozen=True)
class CoopSplit:
    """Files and labels.

    Attributes:
        train: (path, label) of the training images.
        test: (path, label) of the test images.
        classes: name of every label.
    """

    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]


def load_coop_split(name: str) -> CoopSplit:
    """The split of a data set called ``name``, one of :data:`COOP_DATASETS`; images are not opened.

    Raises:
        MissingDataError: not in ``$SOFTGATE_DATA`` or the user's cache, with the folders searched.
        DamagedDataError: the split file is not one.
    """
    check_choice("name", name, tuple(COOP_DATASETS))
    folder, split, images = COOP_DATASETS[name]
    places = [root / folder for root in data_folders()]
    for place in places:
        if (place / split).is_file():
            return _read(place / split, place / images)
    raise MissingDataError(
        f"{name} was not found: no {split}. Looked in: {', '.join(map(str, places))}. Put the images and the split "
        "file there as CoOp's instructions for data sets say; they are not downloaded."
    )


def _read(path: Path, images: Path) -> CoopSplit:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: [_entry(entry, images) for entry in content[part]] for part in ("train", "test")}
    except (ValueError, KeyError, TypeError) as error:
        damaged(path, f"not a split file ({type(error).__name__}: {error})")
    names: dict[int, str] = {}
    for _, label, name in (*parts["train"], *parts["test"]):
        if names.setdefault(label, name) != name:
            damaged(path, f"label {label} is {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))) or not parts["train"] or not parts["test"]:
        damaged(path, f"labels must be 0, 1, …, got {sorted(names)[:5]}…")
    train, test = (tuple((file, label) for file, label, _ in parts[part]) for part in ("train", "test"))
    return CoopSplit(train, test, tuple(names[label] for label in range(len(names))))


def _entry(entry: Any, images: Path) -> tuple[Path, int, str]:
    file, label, name = entry
    relative = PurePosixPath(file)
    if relative.is_absolute() or ".." in relative.parts or not isinstance(label, int) or not isinstance(name, str):
        raise ValueError(f"{entry!r} must be a path below the images, a label and a name")
    return images / relative, label, name
