"""Figures of the reproduction stay finite where single fits miss an expert of the truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from softgate.papers import topk_gating_moe


def test_fits_that_miss_an_expert_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    d2 = np.array([[0.4, np.inf, 0.6], [0.2, 0.2, 0.2], [0.1, 0.1, np.inf]])
    found = {"gain": np.ones((3, 3)), "d2": d2, "converged": np.ones((3, 3))}
    found["hellinger"] = np.array([[0.4] * 3, [0.2] * 3, [0.1] * 3])
    monkeypatch.setattr(topk_gating_moe, "study", lambda *_: found)
    run = SimpleNamespace(config={"sizes": [100, 400, 1600], "replicates": 3})
    figures = topk_gating_moe.measure_over(run)
    np.testing.assert_allclose(figures["d2"], [0.5, 0.2, 0.1])
    assert figures["d2_infinite"] == pytest.approx(2 / 9)
    assert np.isfinite(figures["slope_d2"])
