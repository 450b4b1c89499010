"""What the reproduction of the comp-sum losses is made of: noisy tables, checks of theorems, training under attack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softgate.lab import robust_training
from softgate.lab.cell import CellRun
from softgate.lab.comp_sum_checks import measure_theory
from softgate.lab.comp_sum_training import measure_images, measure_table
from softgate.lab.data import ImageSet
from softgate.lab.robust_training import measure_robust
from softgate.lab.tasks import image_patches
from softgate.lab.tasks.noisy_labels import digits, gaussian_classes, with_label_noise


def cell(folder: Path, **config: object) -> CellRun:
    return CellRun("comp-sum-losses", "smoke", "cell", config, 0, folder)


def toy_images(split: str = "train", *, download: bool = False) -> ImageSet:
    """A bright upper or lower half, with noise."""
    stream = torch.Generator().manual_seed(1 if split == "train" else 2)
    count = 200 if split == "train" else 40
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 28, 28), generator=stream, dtype=torch.uint8)
    for half in range(2):
        images[labels == half, 14 * half : 14 * half + 14] += 150
    return ImageSet(images, labels, ("up", "down"), "drawn here")


def test_label_noise_redraws_a_share_of_the_training_labels() -> None:
    clean = gaussian_classes(0, classes=20, dim=5, rows=300)
    noisy = with_label_noise(clean, 0.4, seed=1)
    wrong = (noisy.train[1] != clean.train[1]).float().mean()
    assert float(wrong) == pytest.approx(0.4 * 19 / 20, abs=0.03)
    assert torch.equal(noisy.test[1], clean.test[1]) and torch.equal(noisy.train[0], clean.train[0])
    assert torch.equal(with_label_noise(clean, 0.4, seed=1).train[1], noisy.train[1])
    assert torch.equal(with_label_noise(clean, 0.0, seed=1).train[1], clean.train[1])
    with pytest.raises(ValueError, match="rate"):
        with_label_noise(clean, 1.5, seed=1)


def test_tables_are_what_they_say() -> None:
    split = gaussian_classes(3, classes=50, dim=30, rows=12, spread=0.1)
    assert len(split.train[1]) == 400 and len(split.test[1]) == 200
    centres = torch.stack([split.train[0][split.train[1] == c].mean(0) for c in range(50)])
    nearest = torch.cdist(split.test[0], centres).argmin(1)
    assert bool((nearest == split.test[1]).all())
    train, test = digits(0)
    assert (
        len(train[1]) == 1200 and len(test[1]) == 597 and 0.0 <= float(train[0].min()) <= float(train[0].max()) == 1.0
    )


def test_training_on_a_noisy_table(tmp_path: Path) -> None:
    config = {"table": "digits", "hidden": 32, "batch": 100, "lr": 5e-3, "epochs": 6, "tau": 1.5}
    noisy = measure_table(cell(tmp_path / "a", **config, noise=0.4))
    assert noisy["accuracy"] > 0.8 and 0.0 < noisy["fitted_noise"] < 0.5
    clean = measure_table(cell(tmp_path / "b", **config, noise=0.0))
    assert clean["fitted_noise"] == 0.0 and clean["train_accuracy"] > 0.9 and len(clean["curve_accuracy"]) == 6
    slow = measure_table(cell(tmp_path / "c", **{**config, "lr": 1e-9, "momentum": 0.9, "epochs": 1}, noise=0.0))
    assert slow["accuracy"] < 0.3  # SGD took the place of Adam, with its rate


def test_theory_holds_and_would_show_a_wrong_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"taus": [0.5, 1.0], "classes": [2, 4], "draws": 300}
    figures = measure_theory(cell(tmp_path, **config))
    assert figures["risk_error"] < 1e-6 and figures["violation"] < 1e-12 and abs(figures["slack"]) < 1e-4
    from softgate.losses import HConsistencyBound

    right = HConsistencyBound.transform
    monkeypatch.setattr(HConsistencyBound, "transform", lambda self, t: 1.1 * right(self, t))
    assert measure_theory(cell(tmp_path, **config))["violation"] > 1e-3


def test_image_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(image_patches._LOADERS, "mnist", toy_images)
    config = {"dataset": "mnist", "stages": [[4, 1]], "stem_stride": 2, "tau": 1.5, "steps": 30, "batch": 16,
              "lr": 0.02, "warmup": 2, "tested": 40}  # fmt: skip
    assert measure_images(cell(tmp_path, **config))["accuracy"] > 0.8


@pytest.mark.parametrize(
    "method",
    [{"method": "clean"}, {"method": "pgd"}, {"method": "trades", "beta": 2.0},
     {"method": "adv-comp-sum", "tau": 1.0, "rho": 1.0, "nu": 0.5}],
    ids=lambda m: m["method"],
)  # fmt: skip
def test_robust_cells(method: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_training.data, "mnist", toy_images)
    config = {"dataset": "mnist", "width": 2, "eps": 0.1, "attack_steps": 2, "step_size": 0.1, "ramp": 10, "steps": 40,
              "batch": 16, "lr": 0.01, "tested": 40, "tested_steps": 3, **method}  # fmt: skip
    figures = measure_robust(cell(tmp_path, **config))
    assert figures["accuracy"] > 0.9 and 0.0 <= figures["robust_accuracy"] <= figures["accuracy"]
    again = measure_robust(cell(tmp_path / "again", **config))
    assert again["loss_curve"] == figures["loss_curve"]
