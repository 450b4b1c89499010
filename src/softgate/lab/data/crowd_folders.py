"""Folders of annotated photographs of crowds: ShanghaiTech, UCF_CC_50, NWPU-Crowd, and a plain layout of one's own.

None of these sets is bundled or downloaded: they are given out by their authors for research.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgate.errors import MissingExtraError, check_choice
from softgate.lab.data.store import MissingDataError, damaged

__all__ = ["LAYOUTS", "CrowdFolder"]

#: Photographs beyond it are refused before they are decoded.
_MOST_PIXELS = 10**8
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class CrowdFolder:
    """Photographs in a folder, with the points of their heads; read one at a time: ``folder[3]``.

    Layouts, below ``path``:

    - ``"shanghaitech"``: ``train_data`` and ``test_data``, each with ``images/IMG_1.jpg`` and
      ``ground_truth/GT_IMG_1.mat`` (``part_A_final`` or ``part_B_final`` is the path);
    - ``"ucf_cc_50"``: ``1.jpg`` and ``1_ann.mat``; split ``"all"``;
    - ``"nwpu"``: ``images/0001.jpg``, ``jsons/0001.json``, and ``train.txt`` or ``val.txt`` with an id at the start of
      each line;
    - ``"plain"``: ``images/NAME.jpg`` (or png) and ``points/NAME.json``, a list of pairs x, y; split ``"all"``.

    Attributes:
        path: the folder.
        layout: one of :data:`LAYOUTS`.
        split: ``"train"``, ``"test"``, ``"val"`` or ``"all"``, as the layout has it.
    """

    path: Path
    layout: str = "plain"
    split: str = "all"

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, tuple(LAYOUTS))
        check_choice("split", self.split, LAYOUTS[self.layout].splits)
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "_files", tuple(LAYOUTS[self.layout].files(self.path, self.split)))
        if not self.files:
            raise MissingDataError(f"no images of a {self.layout} {self.split} set below {self.path}; see CrowdFolder")

    @property
    def files(self) -> tuple[tuple[Path, Path], ...]:
        """Each photograph with the file of its points."""
        return self._files  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Photograph, uint8 (3, H, W), and its points (heads, 2), float64 columns x and y."""
        image, annotation = self.files[index]
        if not annotation.is_file():
            raise MissingDataError(f"{image}: its points are missing, {annotation}")
        points = np.asarray(LAYOUTS[self.layout].points(annotation), dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            damaged(annotation, "holds coordinates that are not finite", hint="get a good copy")
        return _photograph(image), torch.from_numpy(points)


def _photograph(path: Path) -> Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("pillow", "data", "reading photographs") from None
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                damaged(path, f"has {image.width} by {image.height} pixels", hint="shrink it")
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        damaged(path, f"is no readable image ({error})", hint="get a good copy")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _images(folder: Path) -> list[Path]:
    """Images in the order of their names, numbers by value."""
    found = [path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES]
    return sorted(found, key=lambda path: (len(path.stem), path.stem))


def _matlab(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtraError("scipy", "data", "reading annotations in .mat files") from None
    try:
        content: dict[str, Any] = loadmat(path)
    except Exception as error:  # scipy raises whatever the bytes led it to
        damaged(path, f"is no readable .mat file ({error})", hint="get a good copy")
    return content


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        damaged(path, f"is no readable JSON ({error})", hint="get a good copy")


def _pairs(path: Path, find: Callable[[], Any]) -> Any:
    """What ``find`` takes out of a file, if it is a list of pairs."""
    try:
        found = np.asarray(find(), dtype=np.float64)
    except (KeyError, IndexError, TypeError, ValueError):
        damaged(path, "holds no list of points where its layout says", hint="check the layout")
    if found.size and (found.ndim != 2 or found.shape[1] != 2):
        damaged(path, f"holds an array of shape {found.shape} where pairs x, y are expected", hint="check the layout")
    return found


def _shanghai_files(path: Path, split: str) -> Iterator[tuple[Path, Path]]:
    folder = path / f"{split}_data"
    for image in _images(folder / "images"):
        yield image, folder / "ground_truth" / f"GT_{image.stem}.mat"


def _ucf_files(path: Path, split: str) -> Iterator[tuple[Path, Path]]:
    for image in _images(path):
        yield image, path / f"{image.stem}_ann.mat"


def _nwpu_files(path: Path, split: str) -> Iterator[tuple[Path, Path]]:
    listed = path / f"{split}.txt"
    if not listed.is_file():
        raise MissingDataError(f"{listed} is missing; it lists the images of the split, one a line")
    for line in listed.read_text(encoding="utf-8").splitlines():
        if line.strip():
            name = Path(line.split()[0]).name  # an id, never a path out of the folder
            yield path / "images" / f"{name}.jpg", path / "jsons" / f"{name}.json"


def _plain_files(path: Path, split: str) -> Iterator[tuple[Path, Path]]:
    for image in _images(path / "images"):
        yield image, path / "points" / f"{image.stem}.json"


@dataclass(frozen=True)
class _Layout:
    splits: tuple[str, ...]
    files: Callable[[Path, str], Iterator[tuple[Path, Path]]]
    points: Callable[[Path], Any]


#: How a data set lies in its folder.
LAYOUTS: dict[str, _Layout] = {
    "shanghaitech": _Layout(
        ("train", "test"),
        _shanghai_files,
        lambda path: _pairs(path, lambda: _matlab(path)["image_info"][0, 0][0, 0][0]),
    ),
    "ucf_cc_50": _Layout(("all",), _ucf_files, lambda path: _pairs(path, lambda: _matlab(path)["annPoints"])),
    "nwpu": _Layout(("train", "val"), _nwpu_files, lambda path: _pairs(path, lambda: _json(path)["points"])),
    "plain": _Layout(("all",), _plain_files, lambda path: _pairs(path, lambda: _json(path))),
}
