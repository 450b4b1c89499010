"""Tables: NSL-KDD network records, and the small sets that come with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from softgate.errors import MissingExtraError, check_choice
from softgate.lab.data.archives import read_bounded, reading
from softgate.lab.data.images import SPLITS, Split
from softgate.lab.data.store import Resource, Source, damaged, obtain

_KDD_BASE = "https://raw.githubusercontent.com/defcom17/NSL_KDD/27bbbdf5c5cccf9970b8b6037a0f19dc09c5a0a9/"

# The University of New Brunswick publishes the set behind a form and without checksums. Sizes and SHA-256 are those of
# the files in the public repository at the commit named in the address.
NSL_KDD = Source(
    name="NSL-KDD",
    folders=("nsl-kdd", "NSL_KDD"),
    resources=(
        Resource(
            name="KDDTrain+_20Percent.txt",
            url=_KDD_BASE + "KDDTrain%2B_20Percent.txt",
            sha256="7ea86479faab5ca2190b7f18b4982fb058ce5bf2b46e0e1017d0d9ef90f9c16e",
            size=3_822_033,
            alternatives=("KDDTrain+_20Percent.txt.gz",),
        ),
        Resource(
            name="KDDTest+.txt",
            url=_KDD_BASE + "KDDTest%2B.txt",
            sha256="fa46b0935342616aa83b7c2578db355b6a7aaabbc492248172c7a1e8b7ab8f84",
            size=3_441_513,
            alternatives=("KDDTest+.txt.gz",),
        ),
    ),
    origin="NSL-KDD, Tavallaee et al. 2009; free for research",
)

_KDD_HEADER = """
duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent hot num_failed_logins logged_in
num_compromised root_shell su_attempted num_root num_file_creations num_shells num_access_files num_outbound_cmds
is_host_login is_guest_login count srv_count serror_rate srv_serror_rate rerror_rate srv_rerror_rate same_srv_rate
diff_srv_rate srv_diff_host_rate dst_host_count dst_host_srv_count dst_host_same_srv_rate dst_host_diff_srv_rate
dst_host_same_src_port_rate dst_host_srv_diff_host_rate dst_host_serror_rate dst_host_srv_serror_rate
dst_host_rerror_rate dst_host_srv_rerror_rate label difficulty
"""
#: Columns of the file; the last two are the label and a difficulty that is no feature.
KDD_COLUMNS = tuple(_KDD_HEADER.split())
KDD_SYMBOLIC = ("protocol_type", "service", "flag")
_SYMBOLIC_INDEX = tuple(KDD_COLUMNS.index(name) for name in KDD_SYMBOLIC)
_KDD_ROWS = {"train": 25_192, "test": 22_544}
BUNDLED = ("iris", "digits", "wine", "breast_cancer")


@dataclass(frozen=True)
class TableSet:
    """Rows of features with a label each.

    Attributes:
        features: float64, ``(N, D)``.
        labels: int64, ``(N,)``.
        classes: name of every label.
        columns: name of every feature.
        source: who made the data, under which licence.
        note: what must be said beside a figure measured on it; empty if nothing.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    source: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels)


def nsl_kdd(
    split: Split = "train", *, download: bool = False, names: Literal["one_hot", "numbers"] = "one_hot"
) -> TableSet:
    """NSL-KDD: 25,192 training (the official 20 % subset) or 22,544 test connections, normal (0) or attack (1).

    The three symbolic columns become one-hot columns over the values of the *training* file, so both splits have the
    same columns; a value that only the test file has gives zeros. Nothing is scaled.

    Args:
        split: ``"train"`` or ``"test"``.
        download: fetch the files (7.3 MB) if they are not on this machine.
        names: ``"numbers"`` keeps the 41 columns of the file in their order, with a symbolic value's place in the
            alphabet of the training file, NaN where only the test file has it.

    Raises:
        MissingDataError: not on this machine, with the folders searched and how to get it.
        DamagedDataError: a file is there and is not NSL-KDD.
    """
    check_choice("split", split, SPLITS)
    check_choice("names", names, ("one_hot", "numbers"))
    rows = {name: _kdd_rows(name, download) for name in dict.fromkeys(("train", split))}
    values = [sorted({row[index] for row in rows["train"]}) for index in _SYMBOLIC_INDEX]
    numeric = [i for i, name in enumerate(KDD_COLUMNS[:-2]) if name not in KDD_SYMBOLIC]
    numbers = np.array([[float(row[i]) for i in numeric] for row in rows[split]])
    parts, columns = [numbers], [KDD_COLUMNS[i] for i in numeric]
    if names == "numbers":
        columns = list(KDD_COLUMNS[:-2])
        parts = [np.full((len(numbers), len(columns)), np.nan)]
        parts[0][:, numeric] = numbers
    for name, index, known in zip(KDD_SYMBOLIC, _SYMBOLIC_INDEX, values, strict=True):
        column = np.array([row[index] for row in rows[split]])
        is_known = column[:, None] == np.array(known)
        if names == "numbers":
            parts[0][:, index] = np.where(is_known.any(1), is_known.argmax(1), np.nan)
            continue
        parts.append(is_known.astype(np.float64))
        columns += [f"{name}={value}" for value in known]
    labels = torch.tensor([int(row[-2] != "normal") for row in rows[split]])
    features = torch.from_numpy(np.concatenate(parts, axis=1))
    note = "the 20 % training file" if split == "train" else ""
    return TableSet(features, labels, ("normal", "attack"), tuple(columns), NSL_KDD.origin, note)


def _kdd_rows(split: str, download: bool) -> list[list[str]]:
    resource = NSL_KDD.resources[0 if split == "train" else 1]
    return read_kdd(obtain(NSL_KDD, resource, download=download), _KDD_ROWS[split])


def read_kdd(path: Path, count: int) -> list[list[str]]:
    """Read a file (plain or gzip) of exactly ``count`` rows and check every field."""
    raw = read_bounded(path, 256 * count + 256)
    with reading(path):
        lines = raw.decode("ascii").splitlines()
    if len(lines) != count:
        damaged(path, f"{len(lines):,} rows where {count:,} belong")
    rows = []
    for number, line in enumerate(lines, 1):
        row = line.split(",")
        if len(row) != len(KDD_COLUMNS):
            damaged(path, f"line {number} has {len(row)} columns, expected {len(KDD_COLUMNS)}")
        for name, value in zip(KDD_COLUMNS, row, strict=True):
            if not _is_word(value) if name in (*KDD_SYMBOLIC, "label") else not _is_number(value):
                damaged(path, f"line {number}: {name} is {value[:40]!r}")
        rows.append(row)
    return rows


def _is_word(value: str) -> bool:
    return 0 < len(value) < 32 and value.isprintable() and not value[0].isdigit()


def _is_number(value: str) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return math.isfinite(number) and number >= 0


def bundled(name: str) -> TableSet:
    """One of the sets that scikit-learn brings along: ``iris``, ``digits``, ``wine`` or ``breast_cancer``.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    check_choice("name", name, BUNDLED)
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingExtraError("scikit-learn", "data", f"the {name} data set") from None
    loader: Callable[[], Any] = getattr(datasets, f"load_{name}")
    data = loader()
    return TableSet(
        features=torch.from_numpy(np.array(data.data, dtype=np.float64)),
        labels=torch.from_numpy(np.array(data.target, dtype=np.int64)),
        classes=tuple(map(str, data.target_names)),
        columns=tuple(map(str, data.feature_names)),
        source=f"{name} as bundled with scikit-learn",
    )
