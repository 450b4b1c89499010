"""Kyoto University's honeypot traffic of 2013: read where a user has it; it may not be redistributed."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from softgate.errors import check_choice
from softgate.lab.data.images import SPLITS, Split
from softgate.lab.data.store import MissingDataError, Source, candidates, damaged, data_folders
from softgate.lab.data.tables import TableSet

__all__ = ["KYOTO_COLUMNS", "kyoto2013"]

KYOTO = Source(
    name="Kyoto 2013",
    folders=("kyoto2013", "kyoto"),
    resources=(),
    origin="Traffic Data from Kyoto University's Honeypots, Song et al. 2011; not redistributable",
)

_HEADER = """
duration service source_bytes destination_bytes count same_srv_rate serror_rate srv_serror_rate dst_host_count
dst_host_srv_count dst_host_same_src_port_rate dst_host_serror_rate dst_host_srv_serror_rate flag ids_detection
malware_detection ashula_detection label source_ip_address source_port_number destination_ip_address
destination_port_number start_time protocol
"""
#: Columns of the tab-separated daily files.
KYOTO_COLUMNS = tuple(_HEADER.split())
_NAMES = ("service", "flag", "protocol")
_DETECTIONS = ("ids_detection", "malware_detection", "ashula_detection")
_DROPPED = ("label", "source_ip_address", "destination_ip_address")
#: Every fifth row is a test row; the authors' division is not published.
_EVERY = 5


def kyoto2013(split: Split = "train") -> TableSet:
    """Kyoto 2013 connections, normal (0) or attack (1, known or unknown), from the daily files ``*.txt``.

    The 21 features are those of the GRU-SVM paper: detections as 0 or 1, the start as the hour of the day, names as
    numbers in alphabetical order of the training rows (NaN for a name that only test rows have), everything else as it
    is. Nothing is scaled or binned. There is no download: ask for the data at takakura.com/Kyoto_data.

    Args:
        split: ``"train"`` or ``"test"`` (every fifth row).

    Raises:
        MissingDataError: no daily file is on this machine.
        DamagedDataError: a file is there and is not of this form.
    """
    check_choice("split", split, SPLITS)
    rows = [row for path in _files() for row in _read(path)]
    train = [row for number, row in enumerate(rows) if number % _EVERY != _EVERY - 1]
    chosen = train if split == "train" else rows[_EVERY - 1 :: _EVERY]
    names = [name for name in KYOTO_COLUMNS if name not in _DROPPED]
    columns = [_column(name, train, chosen) for name in names]
    label = KYOTO_COLUMNS.index("label")
    labels = torch.tensor([int(row[label] in ("-1", "-2")) for row in chosen], dtype=torch.int64)
    return TableSet(torch.stack(columns, 1), labels, ("normal", "attack"), tuple(names), KYOTO.origin)


def _files() -> list[Path]:
    for folder in candidates(KYOTO):
        found = sorted(folder.rglob("*.txt"))
        if found:
            return found
    places = ", ".join(str(root / name) for root in data_folders() for name in KYOTO.folders)
    raise MissingDataError(f"{KYOTO.name} was not found. Looked for daily files *.txt in: {places}. It may not be "
                           "redistributed and cannot be downloaded from here.")  # fmt: skip


def _read(path: Path) -> list[list[str]]:
    rows = []
    with open(path, encoding="ascii", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            row = line.rstrip("\n").split("\t")
            if len(row) != len(KYOTO_COLUMNS):
                damaged(path, f"line {number} has {len(row)} columns, expected {len(KYOTO_COLUMNS)}: "
                              f"{', '.join(KYOTO_COLUMNS)}")  # fmt: skip
            for name, value in zip(KYOTO_COLUMNS, row, strict=True):
                if name not in (*_NAMES, *_DETECTIONS, *_DROPPED) and not _is_number(name, value):
                    damaged(path, f"line {number}: {name} is {value[:40]!r}")
            if row[KYOTO_COLUMNS.index("label")] not in ("1", "-1", "-2"):
                damaged(path, f"line {number}: label is {row[KYOTO_COLUMNS.index('label')][:40]!r}")
            rows.append(row)
    return rows


def _is_number(name: str, value: str) -> bool:
    if name == "start_time":
        return len(value) == 8 and value[:2].isdecimal() and int(value[:2]) < 24
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _column(name: str, train: list[list[str]], rows: list[list[str]]) -> Tensor:
    place = KYOTO_COLUMNS.index(name)
    values = [row[place] for row in rows]
    if name in _NAMES:
        codes = {word: float(code) for code, word in enumerate(sorted({row[place] for row in train}))}
        return torch.tensor([codes.get(word, math.nan) for word in values], dtype=torch.float64)
    if name in _DETECTIONS:
        return torch.tensor([float(word != "0") for word in values], dtype=torch.float64)
    if name == "start_time":
        return torch.tensor([float(word[:2]) for word in values], dtype=torch.float64)
    return torch.tensor([float(word) for word in values], dtype=torch.float64)
