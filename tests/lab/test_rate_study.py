"""Studies of convergence rates: which data, which starts, which figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softgate.errors import ArgumentValueError
from softgate.lab.cell import CellRun
from softgate.lab.paper import Plot
from softgate.lab.plots import draw
from softgate.lab.rate_study import log_sizes, rate_figures, study
from softgate.lab.tasks.expert_mixture import ExpertMixture
from softgate.routing import MixingMeasure, voronoi_cells

TASK = ExpertMixture(MixingMeasure([-8, 0], [25, 0], [-20, 20], [15, -5], [0.09, 0.16]))


def test_a_study_gathers_by_size_and_replicate(tmp_path: Path) -> None:
    run = CellRun("paper", "smoke", "cell", {}, 2, tmp_path)
    found = study(run, [10, 20], 3, lambda n, seed: {"n": n, "seed": seed})
    assert found["n"].tolist() == [[10] * 3, [20] * 3]
    seeds = found["seed"].ravel().tolist()
    assert len(set(seeds)) == 6 and seeds[1] - seeds[0] == 1000 and seeds[0] == 2 * 10**9 + 10
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 2


def test_sizes_are_spaced_evenly_in_the_logarithm() -> None:
    assert log_sizes(100, 100_000, 4) == [100, 1000, 10_000, 100_000]


def test_figures_of_a_rate_have_an_interval_that_plots_draw() -> None:
    ns = [100, 1000, 10_000]
    losses = np.random.default_rng(0).gamma(4, 0.25, (3, 20)) / np.sqrt(ns)[:, None]
    figures = rate_figures("d1", ns, losses) | {"n": ns}
    assert figures["slope_d1_low"] < figures["slope_d1"] < figures["slope_d1_high"]
    assert np.diff(np.log(figures["line_d1"]))[0] == pytest.approx(figures["slope_d1"] * np.log(10))
    bare = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
    for plot in (Plot("p", "lines", "d1", "t", x="n", log="xy"), Plot("p", "bars", "slope_d1", "t")):
        assert draw(plot, {"a": [figures]}) != draw(plot, {"a": [bare]})


def test_starts_cover_every_true_expert() -> None:
    for seed in range(20):
        for start in (TASK.near_start(4, 1000, seed), TASK.noisy_start(4, seed, 0.01)):
            assert set(voronoi_cells(start, TASK.truth).tolist()) == {0, 1}
            assert start.beta0[-1] == 0 and start.beta1[-1, 0] == 0
    with pytest.raises(ArgumentValueError, match="k must be"):
        TASK.near_start(1, 100, 0)


def test_noise_of_the_start_shrinks_with_n_only_where_it_says_so() -> None:
    def distance(start: MixingMeasure) -> float:
        return float(np.abs(start.a - TASK.truth.a).mean())

    near = [np.mean([distance(TASK.near_start(2, n, seed)) for seed in range(200)]) for n in (100, 100_000)]
    assert near[1] / near[0] == pytest.approx(1000**-0.083, rel=1e-6)
    spread = np.std([TASK.noisy_start(2, seed).a[0, 0] for seed in range(400)])
    assert spread == pytest.approx(0.1, rel=0.15)


def test_data_depends_on_the_seed_alone() -> None:
    (x, y), (again, _), (other, _) = TASK.draw(50, 1), TASK.draw(50, 1), TASK.draw(50, 2)
    assert (x == again).all() and not (x == other).any() and y.shape == (50,)
    assert TASK.grid(4).ravel().tolist() == [0.125, 0.375, 0.625, 0.875]
