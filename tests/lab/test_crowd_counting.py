"""Tasks and counters of the crowd-counting reproduction."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from softgate.lab.crowd_counting import MERGES, make_counter
from softgate.lab.crowd_counting import test_figures as figures_of
from softgate.lab.data import MissingDataError, density_map
from softgate.lab.tasks.crowd_counting import CrowdPhotographs, SyntheticCrowds

CONFIG = {"width": 4, "head_width": 4, "density_scale": 10.0}


def test_synthetic_batches_walk_through_epochs() -> None:
    task = SyntheticCrowds(0, training=6, testing=3, size=16)
    images = torch.cat([task.batch(step, 2)[0] for step in range(3)])
    assert len({float(x.sum()) for x in images}) == 6
    assert torch.equal(task.batch(4, 2)[0], task.batch(4, 2)[0])
    tests = torch.cat([x for x, _ in task.test()])
    assert tests.shape == (3, 1, 16, 16) and not any(torch.equal(x, y) for x in tests for y in images)


@pytest.mark.parametrize("merge", MERGES)
def test_every_counter_trains_all_it_has(merge) -> None:
    model = make_counter({**CONFIG, "merge": merge, "relative": 1.0}, 1)
    images, density = torch.rand(2, 1, 48, 48), torch.rand(2, 1, 48, 48) / 100
    output = model(images)
    model.loss(output, density).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    # single and concat read no coarse maps
    assert all("heads" in name for name in idle) and bool(idle) == (merge in ("single", "concat"))
    final = output.final if merge == "hmode" else output[-1]
    torch.testing.assert_close(model.count(output), final.sum((1, 2, 3)) / 10)


def test_merges_are_what_they_are_called() -> None:
    images = torch.rand(2, 1, 32, 32)
    for merge in ("average", "flat_gate"):
        *maps, final = make_counter({**CONFIG, "merge": merge}, 1)(images)
        stacked = torch.cat(maps, 1)
        assert len(maps) == 3 and bool((final <= stacked.amax(1, keepdim=True) + 1e-6).all())
        if merge == "average":
            torch.testing.assert_close(final, stacked.mean(1, keepdim=True))


def test_figures_of_a_counter_that_knows() -> None:
    class Oracle(torch.nn.Module):
        density_scale = 2.0

        def __init__(self, task):
            super().__init__()
            self.known = torch.nn.Parameter(torch.cat([density for _, density in task.test()]))

        def forward(self, images):
            return (2.0 * self.known,)

        def count(self, output):
            return output[-1].sum((1, 2, 3)) / 2.0

    task = SyntheticCrowds(0, training=1, testing=4, size=16)
    found = figures_of(Oracle(task), task)
    assert max(found["mae"], found["rmse"], found["game2"]) < 1e-5 and found["correlation"] == pytest.approx(1.0)


def test_photographs_are_cropped_with_their_density(tmp_path, monkeypatch) -> None:
    Image = pytest.importorskip("PIL.Image")
    savemat = pytest.importorskip("scipy.io").savemat
    points = np.array([[5.0, 6.0], [30.0, 20.0], [40.0, 33.0]])
    for split in ("train_data", "test_data"):
        root = tmp_path / "part" / split
        (root / "images").mkdir(parents=True)
        (root / "ground_truth").mkdir()
        Image.fromarray(np.full((37, 50, 3), 255, np.uint8)).save(root / "images" / "IMG_1.jpg")
        cell, record = np.empty((1, 1), dtype=object), np.zeros((1, 1), dtype=[("location", object)])
        record["location"][0, 0], cell[0, 0] = points, record
        savemat(root / "ground_truth" / "GT_IMG_1.mat", {"image_info": cell})
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    whole = CrowdPhotographs("part", 0, crop=None)
    images, density = whole.batch(0, 1)
    assert images.shape == (1, 3, 32, 48) and density.shape == (1, 1, 32, 48)
    torch.testing.assert_close(
        images.amax((0, 2, 3)), (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    full = density_map(torch.from_numpy(points), (37, 50)).float()
    patches = [full[i : i + 16, j : j + 16] for i in range(22) for j in range(35)]
    for step in range(4):
        _, piece = CrowdPhotographs("part", 0, crop=16).batch(step, 1)
        assert any(torch.equal(piece[0, 0], p) or torch.equal(piece[0, 0], p.flip(-1)) for p in patches)
    ((image, target),) = whole.test()
    assert image.shape == (1, 3, 37, 50) and float(target.sum()) == pytest.approx(3.0, abs=1e-4)
    with pytest.raises(MissingDataError, match="absent"):
        CrowdPhotographs("absent", 0)


def test_the_paper_scale_says_that_photographs_are_missing(tmp_path, monkeypatch) -> None:
    from softgate.lab.cell import CellRun
    from softgate.papers.density_experts_crowd_counting import PAPER, measure

    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cell = PAPER.scale("paper").cells[0]
    assert measure(CellRun(PAPER.slug, "paper", cell.name, cell.config, 0, tmp_path)) == {"data_was_missing": 1.0}
    assert "missing" in json.loads((tmp_path / "events.jsonl").read_text())
