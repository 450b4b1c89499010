"""The authors' MaxMin networks, on files made here in their format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softgate.lab.data import DamagedDataError, MissingDataError
from softgate.lab.data.maxmin_networks import MAXMIN_NETWORKS, maxmin_network

savemat = pytest.importorskip("scipy.io").savemat


def _write(home: Path, file: str, shapes: list[tuple[int, int]], fill: float = 0.5) -> None:
    cells = np.empty((1, len(shapes)), dtype=object)
    for i, shape in enumerate(shapes):
        cells[0, i] = np.full(shape, fill + i)
    (home / "qcs-maxmin").mkdir(exist_ok=True)
    savemat(home / "qcs-maxmin" / f"{file}.mat", {"W": cells})


def test_weights_come_in_order(data_home: Path) -> None:
    _write(data_home, "weights_l2_2fc_16", [(16, 784), (10, 16)])
    first, second = maxmin_network("2fc-16")
    assert first.shape == (16, 784) and second.shape == (10, 16) and float(second[0, 0]) == 1.5
    _write(data_home, "resweights_5_32", [(32, 784), *[(32, 32)] * 3, (10, 32)])
    assert len(maxmin_network("residual-5-32")) == 5


def test_other_shapes_and_numbers_are_refused(data_home: Path) -> None:
    _write(data_home, "weights_l2_2fc_16", [(10, 16), (16, 784)])
    with pytest.raises(DamagedDataError, match="shapes"):
        maxmin_network("2fc-16")
    _write(data_home, "weights_l2_2fc_16", [(16, 784), (10, 16)], fill=float("nan"))
    with pytest.raises(DamagedDataError, match="finite"):
        maxmin_network("2fc-16")
    (data_home / "qcs-maxmin" / "weights_l2_2fc_16.mat").write_bytes(b"no file of weights")
    with pytest.raises(DamagedDataError, match="readable"):
        maxmin_network("2fc-16")


def test_what_is_missing_is_named(data_home: Path) -> None:
    with pytest.raises(MissingDataError, match=r"weights_l2_18fc_32\.mat"):
        maxmin_network("18fc-32")
    with pytest.raises(ValueError, match="name"):
        maxmin_network("3fc-16")
    assert len(MAXMIN_NETWORKS) == 15
