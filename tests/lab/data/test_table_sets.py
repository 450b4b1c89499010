from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
import torch
from builders import kdd

from softgate.errors import ArgumentValueError, MissingExtraError
from softgate.lab.data import tables
from softgate.lab.data.store import DamagedDataError, MissingDataError
from softgate.lab.data.tables import bundled, nsl_kdd


def test_nsl_kdd_is_nsl_kdd(real_data: Path) -> None:
    train, test = nsl_kdd("train"), nsl_kdd("test")
    assert train.features.shape == (25_192, 118) and test.features.shape == (22_544, 118)
    assert train.columns == test.columns and len(set(train.columns)) == 118
    assert train.labels.bincount().tolist() == [13_449, 11_743]
    assert test.labels.bincount().tolist() == [9_711, 12_833]
    assert train.features.dtype == torch.float64 and train.labels.dtype == torch.int64
    first = dict(zip(train.columns, train.features[0].tolist(), strict=True))
    assert first["src_bytes"] == 491 and first["dst_host_count"] == 150
    assert first["protocol_type=tcp"] == first["service=ftp_data"] == first["flag=SF"] == 1
    one_hot = train.features[:, [column.startswith("service=") for column in train.columns]]
    assert torch.equal(one_hot.sum(1), torch.ones(len(train), dtype=torch.float64))
    assert "difficulty" not in train.columns


@pytest.fixture
def small_kdd(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tables, "_KDD_ROWS", {"train": 6, "test": 4})
    folder = data_home / "nsl-kdd"
    folder.mkdir()
    (folder / "KDDTrain+_20Percent.txt.gz").write_bytes(gzip.compress(kdd(6)))
    (folder / "KDDTest+.txt").write_bytes(kdd(4).replace(b"http", b"unseen", 1))
    return folder


def test_a_value_that_only_the_test_file_has_gives_zeros(small_kdd: Path) -> None:
    test = nsl_kdd("test")
    assert test.features[:, test.columns.index("service=http")].tolist() == [0, 1, 1, 1]
    assert test.labels.tolist() == [1, 0, 1, 0] and test.classes == ("normal", "attack")


def test_names_as_numbers_keep_the_columns_of_the_file(small_kdd: Path) -> None:
    train, test = nsl_kdd("train", names="numbers"), nsl_kdd("test", names="numbers")
    assert train.columns == test.columns == tables.KDD_COLUMNS[:-2] and train.features.shape == (6, 41)
    assert train.features[:, :5].tolist() == [[float(n), 0.0, 0.0, 0.0, 0.5] for n in range(6)]
    assert test.features[0, 2].isnan() and int(test.features.isnan().sum()) == 1
    with pytest.raises(ArgumentValueError, match="names"):
        nsl_kdd(names="words")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"0.50", b"nan", "line 1: src_bytes is 'nan'"),
        (b"0.50", b"-1", "line 1: src_bytes is '-1'"),
        (b"0.50", b"", "line 1: src_bytes is ''"),
        (b"tcp", b"7", "line 1: protocol_type is '7'"),
        (b"tcp,", b"", "line 1 has 42 columns"),
        (b"neptune", b"\xff", "damaged"),
        (b"\n", b"\n\n", "7 rows where 6 belong"),
    ],
)
def test_a_wrong_line_is_named(small_kdd: Path, old: bytes, new: bytes, words: str) -> None:
    path = small_kdd / "KDDTrain+_20Percent.txt.gz"
    path.write_bytes(kdd(6).replace(old, new, 1))
    with pytest.raises(DamagedDataError, match=words) as caught:
        nsl_kdd("train")
    assert str(path) in str(caught.value)


def test_missing_rows_bombs_and_absence(small_kdd: Path) -> None:
    path = small_kdd / "KDDTrain+_20Percent.txt.gz"
    path.write_bytes(gzip.compress(kdd(5)))
    with pytest.raises(DamagedDataError, match="5 rows where 6"):
        nsl_kdd("train")
    path.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(DamagedDataError, match="holds more than"):
        nsl_kdd("train")
    path.unlink()
    with pytest.raises(MissingDataError, match="NSL-KDD was not found") as caught:
        nsl_kdd("test")
    assert "7.26 MB" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("iris", (150, 4), 3), ("digits", (1797, 64), 10), ("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2)],
)
def test_the_bundled_sets(name: str, shape: tuple[int, int], classes: int) -> None:
    table = bundled(name)
    assert table.features.shape == shape and len(table.columns) == shape[1] and len(table) == shape[0]
    assert table.features.dtype == torch.float64 and table.labels.dtype == torch.int64
    assert table.labels.unique().tolist() == list(range(classes)) == list(range(len(table.classes)))


def test_bad_names_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentValueError, match="'iris', 'digits'"):
        bundled("boston")
    with pytest.raises(ArgumentValueError, match="split"):
        nsl_kdd("all")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"softgate\[data\]"):
        bundled("iris")
