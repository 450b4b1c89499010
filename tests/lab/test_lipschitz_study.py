"""What the cells of the Lipschitz reproduction measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softgate.lab import lipschitz_study
from softgate.lab.cell import CellRun


def _run(folder: Path, **config: object) -> CellRun:
    return CellRun("lipsdp-quadratic-constraints", "smoke", "cell", config, 0, folder)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in the place of the authors'."""
    widths = {"feedforward": [5, 6, 6, 9], "residual": [5, 6, 6, 6, 9]}

    def load(name: str, download: bool) -> list[torch.Tensor]:
        pairs = zip(widths[name][1:], widths[name], strict=False)
        return [torch.randn(shape, dtype=torch.float64) / 3 for shape in pairs]

    monkeypatch.setattr(lipschitz_study, "maxmin_network", load)


def test_bounds_are_in_order(networks: None, tmp_path: Path) -> None:
    figures = lipschitz_study.measure_network(_run(tmp_path, network="feedforward", every_row=True))
    assert figures["lower"] <= figures["full"] <= figures["diagonal"] <= figures["product"]
    assert figures["linf_lower"] <= figures["linf_diagonal"] == figures["linf_product"] / figures["linf_ratio"]


def test_ends_inside_the_inequality_help_residual_networks(networks: None, tmp_path: Path) -> None:
    figures = lipschitz_study.measure_residual(_run(tmp_path, network="residual"))
    assert figures["lower"] <= figures["inner"] <= figures["full"] <= figures["diagonal"] <= figures["product"]


def test_a_bound_without_a_proof_is_no_figure(networks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipschitz_study.LipschitzCertificate, "verify", lambda self: False)
    figures = lipschitz_study.measure_network(_run(tmp_path, network="feedforward"))
    assert all(figures[name] != figures[name] for name in ("full", "diagonal", "linf_diagonal"))


@pytest.mark.parametrize("activation", ["maxmin", "groupsort4", "householder", "relu"])
def test_networks_are_trained(activation: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = {"data": "digits", "activation": activation, "hidden": [8], "steps": 60, "batch": 50, "lr": 1e-2}
    figures = lipschitz_study.measure_trained(_run(tmp_path, **config))
    assert figures["accuracy"] > 0.5 and 0 < figures["radius_product"] <= figures["radius_full"]
