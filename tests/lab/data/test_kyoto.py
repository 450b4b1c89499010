"""Kyoto 2013 in its published layout, on made-up files: the data may not be redistributed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from softgate.lab.data import DamagedDataError, MissingDataError, kyoto2013
from softgate.lab.data.kyoto import KYOTO_COLUMNS


def line(**changes: str) -> str:
    row = {name: "0.5" for name in KYOTO_COLUMNS}
    row |= {"service": "http", "flag": "SF", "protocol": "tcp", "start_time": "13:45:10", "label": "1"}
    row |= {"ids_detection": "0", "malware_detection": "0", "ashula_detection": "0"}
    row |= {"source_ip_address": "fd00::1", "destination_ip_address": "fd00::2"}
    return "\t".join((row | changes).values()) + "\n"


@pytest.fixture
def folder(data_home: Path) -> Path:
    path = data_home / "kyoto2013" / "201301"
    path.mkdir(parents=True)
    lines = [line(), line(label="-1", service="dns"), line(label="-2", malware_detection="Trojan(1)"), line()]
    (path / "20130101.txt").write_text("".join(lines) + line(service="unseen"))
    (path / "20130102.txt").write_text("".join(lines) + line(label="-1", start_time="00:00:01"))
    return path


def test_columns_labels_and_splits(folder: Path) -> None:
    train, test = kyoto2013("train"), kyoto2013("test")
    assert train.features.shape == (8, 21) and test.features.shape == (2, 21)
    assert train.columns == test.columns and "label" not in train.columns
    assert train.labels.tolist() == [0, 1, 1, 0] * 2 and test.labels.tolist() == [0, 1]
    row = dict(zip(train.columns, train.features[2].tolist(), strict=True))
    assert row["malware_detection"] == 1 and row["ids_detection"] == 0 and row["start_time"] == 13
    assert train.features[:2, train.columns.index("service")].tolist() == [1, 0]
    service = test.features[:, test.columns.index("service")].tolist()
    assert math.isnan(service[0]) and service[1] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": "2"}, "label is '2'"),
        ({"duration": "x"}, "duration is 'x'"),
        ({"count": "nan"}, "count is 'nan'"),
        ({"start_time": "25:00:00"}, "start_time"),
        ({"service": "a\tb"}, "25 columns, expected 24: duration"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, changes: dict[str, str], words: str) -> None:
    (folder / "20130102.txt").write_text(line() + line(**changes))
    with pytest.raises(DamagedDataError, match=words) as caught:
        kyoto2013()
    assert "20130102.txt" in str(caught.value) and "line 2" in str(caught.value)


def test_absence_says_where_it_was_looked_for(data_home: Path) -> None:
    with pytest.raises(MissingDataError, match="may not be redistributed") as caught:
        kyoto2013()
    assert str(data_home / "kyoto2013") in str(caught.value)
