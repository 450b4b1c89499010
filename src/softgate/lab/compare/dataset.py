"""The data of a comparison as plain arrays: made once, read by every cell from one file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from softgate.errors import ArgumentValueError, StateError
from softgate.lab.files import write_atomic

__all__ = ["FILE", "TEST", "TRAIN", "VALIDATION", "Dataset", "Kind", "check_classes", "divided", "spread"]

Kind = Literal["text", "images", "table"]

#: Name of the file in the folder of the comparison.
FILE = "data.npz"
#: Values of the array ``part``.
TRAIN, VALIDATION, TEST = 0, 1, 2
#: Fewer test rows than this cannot tell methods apart.
_FEWEST_TESTED = 5


@dataclass(frozen=True)
class Dataset:
    """Data of one kind.

    Attributes:
        kind: ``"text"``, ``"images"`` or ``"table"``.
        name: what to call it.
        arrays: text: ``bytes`` (N,) uint8. Images: ``images`` (N, C, H, W) uint8, ``labels`` (N,), ``part`` (N,).
            Tables: ``features`` (N, F) float32, ``numeric`` (F,) bool, ``labels``, ``part``.
        classes: names of the labels.
        source: where it comes from, in words.
        notes: what was left out or changed.
    """

    kind: Kind
    name: str
    arrays: Mapping[str, NDArray[Any]]
    classes: tuple[str, ...] = ()
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def digest(self) -> str:
        """Hash of the content: figures of one digest are figures of the same data."""
        found = hashlib.sha256(self.kind.encode())
        for name in sorted(self.arrays):
            array = self.arrays[name]
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def described(self) -> dict[str, Any]:
        """What a record says about the data."""
        sizes = {name: list(array.shape) for name, array in self.arrays.items()}
        parts: dict[str, int] = {}
        if "part" in self.arrays:
            counts = np.bincount(self.arrays["part"], minlength=3).tolist()
            parts = dict(zip(("train", "validation", "test"), counts, strict=True))
        return {
            "name": self.name,
            "kind": self.kind,
            "source": self.source,
            "sha256": self.digest,
            "sizes": sizes,
            "rows": parts,
            "classes": list(self.classes),
            "notes": list(self.notes),
        }

    def save(self, folder: Path) -> None:
        """Write the arrays into ``folder``, atomically."""
        about = {"kind": self.kind, "name": self.name, "classes": self.classes, "source": self.source}
        buffer = io.BytesIO()
        header = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez(buffer, allow_pickle=False, **{**self.arrays, "_about": header})
        write_atomic(folder / FILE, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Dataset:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(folder / FILE, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            about = json.loads(arrays.pop("_about").tobytes())
        except (OSError, ValueError, KeyError) as error:
            raise StateError(
                f"cannot read {FILE} in the folder of the comparison ({error}); every worker must see that folder"
            ) from None
        return cls(about["kind"], about["name"], arrays, tuple(about["classes"]), about["source"])


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` of the indices below ``count``, evenly spread."""
    wanted = min(count, wanted)
    return np.arange(wanted, dtype=np.int64) * count // max(wanted, 1)


def divided(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """The part of every row: of ten rows of a class, in a fixed order, one is for validation and one for test."""
    order = np.random.default_rng(0).permutation(len(labels))
    part = np.full(len(labels), TRAIN, np.uint8)
    for value in np.unique(labels):
        rows = order[labels[order] == value]
        part[rows[4::10]] = VALIDATION
        part[rows[9::10]] = TEST
    return part


def check_classes(where: str, labels: NDArray[Any], part: NDArray[Any], hint: str) -> None:
    """Raise unless there are two classes and enough rows to test on; ``hint`` says what to do about it."""
    found = np.unique(labels)
    if len(found) < 2:
        raise ArgumentValueError(f"{where} holds one class only: there is nothing to tell apart; {hint}")
    if len(found) > len(labels) // 5:
        raise ArgumentValueError(
            f"{where} holds {len(found)} classes in {len(labels)} rows, at least 5 rows a class are needed; {hint}"
        )
    if int((part == TEST).sum()) < _FEWEST_TESTED:
        raise ArgumentValueError(
            f"{where} holds {len(labels)} rows: a tenth of them is tested on, and that must be at least "
            f"{_FEWEST_TESTED}; give more rows"
        )
