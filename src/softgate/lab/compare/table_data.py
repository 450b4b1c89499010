"""Tables: a CSV file with a label column, or a built-in set."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from softgate.errors import ArgumentValueError
from softgate.lab import data
from softgate.lab.compare.dataset import Dataset, check_classes, divided
from softgate.lab.tasks.noisy_labels import gaussian_classes, with_label_noise

__all__ = ["TABLE_SETS", "csv_file", "synthetic_table", "table_set"]

TABLE_SETS = ("digits", "iris", "wine", "breast_cancer")
_LARGEST = 256 * 2**20
_MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
#: A column of words with more different values than this says nothing one-hot.
_MOST_WORDS = 64


def csv_file(path: Path, target: str | None = None) -> Dataset:
    """A CSV file: its first line names the columns, one of them holds the labels.

    Args:
        path: the file; columns are separated by commas, semicolons or tabs.
        target: name of the label column, the last one if None.

    Raises:
        ArgumentValueError: no file, no table, missing values, or labels that are no classes.
    """
    header, rows = _read(path)
    if target is not None and target not in header:
        _refuse(path, f"has no column {target!r}; --target must be one of {', '.join(map(repr, header))}")
    label = header.index(target) if target is not None else len(header) - 1
    _refuse_gaps(path, header, rows)
    words = [row[label].strip() for row in rows]
    classes = sorted(set(words), key=_natural)
    labels = np.array([classes.index(word) for word in words], np.int64) if len(classes) <= len(words) // 5 else None
    hint = "name the label column with --target COLUMN"
    where = f"--csv: column {header[label]!r} of {path.name}"
    if labels is None:
        _refuse(path, f"holds {len(classes)} different labels in {len(words)} rows in column {header[label]!r}, at "
                f"least 5 rows a class are needed: it does not hold classes; {hint}")  # fmt: skip
    part = divided(labels)
    check_classes(where, labels, part, hint)
    columns, notes = _columns(header, rows, label)
    if not columns:
        _refuse(path, "has no usable column beside the labels")
    with np.errstate(over="ignore"):  # refused below
        features = np.concatenate([values for _, values in columns], axis=1).astype(np.float32)
    if not bool(np.isfinite(features).all()):
        _refuse(path, "holds numbers beyond the range of 32-bit floating point; scale them")
    numeric = np.concatenate([np.full(values.shape[1], number) for number, values in columns])
    arrays = {"features": features, "numeric": numeric, "labels": labels, "part": part}
    source = f"the user's file {path.name}, labels in column {header[label]!r}"
    return Dataset("table", path.name, arrays, tuple(classes), source, tuple(notes))


def _refuse(path: Path, what: str) -> NoReturn:
    raise ArgumentValueError(f"--csv: {path} {what}")


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names, and the rows without empty lines."""
    if not path.is_file():
        _refuse(path, "is no file")
    if path.stat().st_size > _LARGEST:
        _refuse(path, f"is larger than {_LARGEST // 2**20} MiB; take a part of it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        _refuse(path, f"is not UTF-8 text (byte {error.start}); convert it")
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if line]
    except csv.Error as error:
        _refuse(path, f"is not a CSV table ({error})")
    if len(lines) < 2 or len(lines[0]) < 2:
        _refuse(path, "is not a table: a first line with column names and at least two columns are needed")
    header = [name.strip() for name in lines[0]]
    if all(_number(name) is not None for name in header):
        _refuse(path, "begins with numbers; its first line must hold the names of the columns")
    if len(set(header)) != len(header):
        _refuse(path, f"names a column twice: {next(name for name in header if header.count(name) > 1)!r}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            _refuse(path, f"has {len(line)} values in row {number} and {len(header)} columns")
    return header, lines[1:]


def _refuse_gaps(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    gaps = [(number, name) for number, row in enumerate(rows, 2) for name, value in zip(header, row, strict=True)
            if value.strip().lower() in _MISSING]  # fmt: skip
    if gaps:
        number, name = gaps[0]
        _refuse(path, f"misses {len(gaps)} value(s), the first in row {number}, column {name!r}; fill them in or "
                "remove these rows")  # fmt: skip


def _columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], label: int
) -> tuple[list[tuple[bool, NDArray[Any]]], list[str]]:
    """(whether it is a number, values (N, 1) or one-hot (N, words)) of each usable column, and what was left out."""
    found: list[tuple[bool, NDArray[Any]]] = []
    notes: list[str] = []
    for index, name in enumerate(header):
        if index == label:
            continue
        words = [row[index].strip() for row in rows]
        numbers = [_number(word) for word in words]
        known = sorted(set(words))
        if None not in numbers:
            found.append((True, np.array(numbers, np.float64)[:, None]))
        elif len(known) <= _MOST_WORDS:
            found.append((False, (np.array(words)[:, None] == np.array(known)).astype(np.float64)))
        else:
            notes.append(f"column {name!r} is left out: {len(known)} different words")
    return found, notes


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _natural(word: str) -> tuple[float, str]:
    """Numbers in their order, then words in theirs."""
    value = _number(word)
    return (math.inf if value is None else value, word)


def table_set(name: str) -> Dataset:
    """One of the sets that scikit-learn brings along."""
    table = data.bundled(name)
    labels = table.labels.numpy()
    return _all_numeric(name, table.features.numpy(), labels, table.classes, table.source)


def synthetic_table() -> Dataset:
    """Twenty Gaussian clouds that overlap, with a tenth of the labels drawn anew: the same on every machine."""
    clouds = gaussian_classes(0, classes=20, dim=20, rows=150, spread=1.0)
    noisy = with_label_noise(clouds, 0.1, 0)
    features = np.concatenate([noisy.train[0].numpy(), noisy.test[0].numpy()])
    labels = np.concatenate([noisy.train[1].numpy(), noisy.test[1].numpy()])
    source = "20 Gaussian clouds in 20 dimensions, drawn by a fixed seed; some of the labels are wrong"
    return _all_numeric("synthetic", features, labels, tuple(map(str, range(20))), source)


def _all_numeric(
    name: str, features: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...], source: str
) -> Dataset:
    arrays = {
        "features": features.astype(np.float32),
        "numeric": np.ones(features.shape[1], bool),
        "labels": labels.astype(np.int64),
        "part": divided(labels),
    }
    return Dataset("table", name, arrays, classes, source)
