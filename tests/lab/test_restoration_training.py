"""Restoration in the laboratory: metrics, degradations that are what they say, data that repeat, one short training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from softgate.lab.cell import CellRun
from softgate.lab.data import MissingDataError, PhotographPairs
from softgate.lab.image_metrics import psnr, ssim
from softgate.lab.restoration import PlainUNet, make_restorer, size_figures, train_restorer
from softgate.lab.tasks.restoration import DEGRADATIONS, PairedRestoration, SyntheticRestoration
from softgate.models import restore
from softgate.papers.maxim import NETWORKS


def test_metrics_of_known_errors() -> None:
    target = torch.full((2, 3, 32, 32), 0.5)
    noisy = target + 0.05 * torch.randn(2, 3, 32, 32)
    assert float((psnr(noisy, target) - 26.02).abs().max()) < 0.3
    assert float(psnr(255 * target + 1, 255 * target, 255.0)[0]) == pytest.approx(48.13, abs=0.01)
    assert float(psnr(target - 2, target)[0]) == pytest.approx(6.02, abs=0.01)  # cut off at 0
    x = torch.rand(1, 1, 20, 24)
    assert float(ssim(x, x)) == pytest.approx(1.0) and float(ssim(x, x.flip(2))) < 0.3
    # between two constants only the luminance differs
    found = ssim(torch.full((1, 1, 16, 16), 0.4), torch.full((1, 1, 16, 16), 0.8))
    assert float(found) == pytest.approx((2 * 0.4 * 0.8 + 1e-4) / (0.4**2 + 0.8**2 + 1e-4), rel=1e-6)
    for bad in (x[0], torch.rand(1, 1, 20, 23)):
        with pytest.raises(ValueError, match="image"):
            psnr(bad, x)
    with pytest.raises(ValueError, match="11"):
        ssim(x[..., :8], x[..., :8])


def test_degradations_are_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 32, 32, generator=generator)
    assert float((DEGRADATIONS["noise"](x, generator) - x).std()) == pytest.approx(50 / 255, rel=0.02)
    ghost = DEGRADATIONS["ghost"](x, generator) - 0.55 * x
    assert float((ghost[:, :, 8:, 16:] - 0.45 * x[:, :, :-8, :-16]).std()) == pytest.approx(3 / 255, rel=0.05)
    blurred = DEGRADATIONS["blur"](x, generator)
    expected = torch.stack([x[..., i : i + 24] for i in range(9)]).mean(0)
    assert float((blurred[..., 4:-4] - expected).std()) == pytest.approx(1 / 255, rel=0.05)
    assert bool((DEGRADATIONS["rain"](0.5 * x, generator) >= 0.5 * x).all())
    dark = DEGRADATIONS["low_light"](torch.ones(50, 1, 8, 8), generator).mean((1, 2, 3))
    assert float(dark.min()) > 0.19 and float(dark.max()) < 0.61 and float(dark.std()) > 0.08


def test_batches_are_functions_of_seed_and_step() -> None:
    pytest.importorskip("sklearn")
    tasks = [SyntheticRestoration("ghost", seed) for seed in (0, 0, 1)]
    first, again, other = (task.batch(3, 2) for task in tasks)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1]) and not torch.equal(first[1], tasks[0].batch(4, 2)[1])
    ((degraded, clean),), ((same, _),) = tasks[0].test(), tasks[2].test()
    assert degraded.shape == (160, 3, 32, 32) and torch.equal(degraded, same) and not torch.equal(degraded, clean)
    with pytest.raises(ValueError, match="task"):
        SyntheticRestoration("snow", 0)
    with pytest.raises(ValueError, match="size"):
        SyntheticRestoration("rain", 0, size=500)


def test_networks_of_equal_size() -> None:
    found = {name: size_figures(make_restorer(config), torch.rand(1, 3, 32, 32)) for name, config in NETWORKS.items()}
    assert {name: f["parameters"] for name, f in found.items()} == {"unet": 107_524, "rcab": 100_789, "maxim": 106_867}
    convolution = 2 * 9 * 3 * 19 * 32 * 32 / 1e6
    assert found["unet"]["mflops"] > convolution
    network = PlainUNet(4)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    image = torch.rand(1, 3, 9, 14)
    torch.testing.assert_close(restore(network, image), image)


def test_a_short_training_gives_all_figures(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = {"steps": 12, "batch": 4, "lr": 2e-3, "network": "unet", "options": {"base": 4, "depth": 1}}
    run = CellRun("maxim", "smoke", "unet", config, 0, tmp_path)
    figures = train_restorer(run, make_restorer(config), SyntheticRestoration("noise", 0))
    assert figures["last_loss"] < figures["first_loss"] and figures["psnr"] > figures["input_psnr"]
    assert len(figures["step"]) == len(figures["curve_psnr"]) == 6 and -1 < figures["ssim"] < 1


def test_pairs_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for part, value in (("input", 0), ("target", 255)):
            folder = tmp_path / "pairs" / split / part
            folder.mkdir(parents=True)
            image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(folder / "a.png")
    (tmp_path / "pairs/train/input/alone.png").write_bytes(b"")
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    task = PairedRestoration("pairs", 0, size=16)
    degraded, clean = task.batch(0, 2)
    assert degraded.shape == (2, 3, 16, 16) and not degraded.any() and bool((clean == 1).all())
    assert [tuple(x.shape) for pair in task.test() for x in pair] == [(1, 3, 20, 24)] * 2
    with pytest.raises(ValueError, match="size"):
        PairedRestoration("pairs", 0, size=32).batch(0, 1)
    with pytest.raises(MissingDataError, match="absent"):
        PairedRestoration("absent", 0)
    with pytest.raises(MissingDataError, match="input"):
        PhotographPairs(tmp_path)
    (tmp_path / "pairs/test/input/a.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"a\.png"):
        next(PairedRestoration("pairs", 0).test())
