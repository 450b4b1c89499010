"""Parity with arrays of the authors' code: edges, and mutual information by bins and by densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.diagnostics import adaptive_edges, mutual_information

FILES = ("tanh_bins8", "tanh_bins30", "relu_bins8", "relu_bins30", "relu_few_unique_bins30", "elu_bins8", "elu_bins30")
pytestmark = pytest.mark.filterwarnings("ignore::softgate.diagnostics.DiagnosisWarning")


@pytest.mark.parametrize("name", FILES)
def test_every_layer(golden, name: str) -> None:
    with np.load(golden("adaptive-information-estimators") / f"{name}.npz") as data:
        arrays = dict(data)
    bins, code = int(arrays["nbins"]), int(arrays["activation"])
    y, low = torch.tensor(arrays["labels"]), 0.0 if code == 1 else -1.000001
    layers = [torch.tensor(arrays[f"T{i}"]) for i in range(6) if f"T{i}" in arrays]
    ends = (-1.0 if code == 0 else 0.0, max(float(T.max()) for T in layers))
    assert len(layers) >= 2
    for i, T in enumerate(layers):
        np.testing.assert_array_equal(adaptive_edges(T, bins, low).numpy(), arrays[f"bins{i}"])
        found = mutual_information(T, y=y, bins=bins, low=low)
        assert found.i_tx == pytest.approx(float(arrays[f"ebab_IXT{i}"]), abs=1e-9)
        assert found.i_ty == pytest.approx(float(arrays[f"ebab_ITY{i}"]), abs=1e-9)
        assert mutual_information(T, y=y, bins=bins).i_tx == found.i_tx  # the value with a bin of its own is found out
        # their index -1 of values below the range is the last edge in Python; ours have a bin of their own
        wrapped = T.where(ends[0] <= T, ends[1])
        found = mutual_information(wrapped, y=y, estimator="fixed", bins=bins, range=ends)
        assert found.i_tx == pytest.approx(float(arrays[f"fixed_IXT{i}"]), abs=1e-9)
        assert found.i_ty == pytest.approx(float(arrays[f"fixed_ITY{i}"]), abs=1e-9)
        for variance in ("0.001", "0.01", "0.1", "1.0"):
            found = mutual_information(T, y=y, estimator="kde", noise=float(variance))
            for bound, ours in (("upper", found.upper), ("lower", found.lower)):
                assert ours is not None
                for key, value in (("IXT", ours.i_tx), ("ITY", ours.i_ty)):
                    theirs = float(arrays[f"kde_{bound}_{key}{i}_v{variance}"])
                    assert value == pytest.approx(theirs, abs=2e-5), (i, variance, bound, key)
