"""The photographs that come with scikit-learn and matplotlib, and folders of degraded and clean photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgate.errors import MissingExtraError
from softgate.lab.data.store import MissingDataError, damaged

__all__ = ["PhotographPairs", "sample_photograph"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def sample_photograph(name: str) -> Tensor:
    """A photograph that comes with scikit-learn, ``"china"`` (a temple) or ``"flower"``, or matplotlib, ``"portrait"``.

    Returns:
        (3, H, W), uint8.

    Raises:
        MissingExtraError: scikit-learn or pillow is not installed.
        MissingDataError: there is no photograph of this name.
    """
    if name == "portrait":
        from matplotlib import get_data_path

        return _read(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg")
    try:
        from sklearn.datasets import load_sample_image

        found: Any = load_sample_image(f"{name}.jpg")
    except ImportError as error:
        raise MissingExtraError("scikit-learn and pillow", "data", "sample photographs") from error
    except AttributeError as error:
        raise MissingDataError(f"scikit-learn comes with no photograph {name!r}") from error
    return torch.from_numpy(np.array(found)).permute(2, 0, 1).contiguous()


class PhotographPairs:
    """Pairs of a degraded and a clean photograph, from files of the same name in two folders.

    Args:
        folder: holds ``input`` and ``target``.

    Raises:
        MissingDataError: a folder is absent or holds no pair.
        MissingExtraError: pillow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.inputs, self.targets = folder / "input", folder / "target"
        for part in (self.inputs, self.targets):
            if not part.is_dir():
                raise MissingDataError(f"{part} was not found: pairs lie in the folders input and target of {folder}")
        names = {path.name for path in self.inputs.iterdir() if path.suffix.lower() in _SUFFIXES}
        self.names = sorted(names & {path.name for path in self.targets.iterdir()})
        if not self.names:
            raise MissingDataError(f"{folder} holds no file that is in both input and target")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The degraded and the clean photograph, (3, H, W) uint8."""
        name = self.names[index]
        found = tuple(_read(part / name) for part in (self.inputs, self.targets))
        if found[0].shape != found[1].shape:
            damaged(self.targets / name, f"has the shape {tuple(found[1].shape)}, its input {tuple(found[0].shape)}")
        return found[0], found[1]


def _read(path: Path) -> Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pillow", "vision", "reading photographs") from error
    try:
        with Image.open(path) as picture:
            array = np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        damaged(path, f"cannot be read as an image ({error})")
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
