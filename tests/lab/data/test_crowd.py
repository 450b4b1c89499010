"""Density maps, synthetic crowds, and folders of photographs in the layouts of the public sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from softgate.lab.data import CrowdFolder, DamagedDataError, MissingDataError, density_map, synthetic_crowd

Image = pytest.importorskip("PIL.Image")


def test_a_density_sums_to_the_points_inside() -> None:
    points = torch.tensor([[0.0, 0.0], [31.9, 15.9], [10.3, 4.2], [32.0, 3.0], [5.0, -0.1]], dtype=torch.float64)
    found = density_map(points, (16, 32))
    assert found.shape == (16, 32) and float(found.sum()) == pytest.approx(3.0, abs=1e-12)
    assert float(density_map(points[:0], (4, 4)).sum()) == 0.0


def test_a_density_is_a_truncated_gaussian_around_its_point() -> None:
    found = density_map(torch.tensor([[8.5, 4.5]]), (64, 64), sigma=1.0, truncate=3.0)
    rows, columns = found.nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (1, 7, 5, 11)
    assert float(found[4, 8]) == float(found.max())
    assert float(found[4, 9] / found[4, 8]) == pytest.approx(np.exp(-0.5), rel=1e-5)
    assert float(found[5, 9] / found[4, 8]) == pytest.approx(np.exp(-1.0), rel=1e-5)


@pytest.mark.parametrize(
    ("points", "options", "error", "word"),
    [
        (torch.zeros(2, 3), {}, ValueError, "points"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, TypeError, "points"),
        (torch.full((1, 2), float("nan")), {}, ValueError, "points"),
        (torch.zeros(1, 2), {"sigma": 0.0}, ValueError, "sigma"),
        (torch.zeros(1, 2), {"sigma": 0.1, "truncate": 4.0}, ValueError, "truncate"),
    ],
)
def test_bad_density(points, options, error, word) -> None:
    with pytest.raises(error, match=word):
        density_map(points, (4, 4), **options)


def test_a_synthetic_crowd_is_a_function_of_its_seed() -> None:
    crowd, again, other = synthetic_crowd(6, 32, 3), synthetic_crowd(6, 32, 3), synthetic_crowd(6, 32, 4)
    assert torch.equal(crowd.images, again.images) and not torch.equal(crowd.images, other.images)
    assert torch.equal(synthetic_crowd(2, 32, 3).images, crowd.images[:2])
    assert crowd.images.shape == crowd.density.shape == (6, 1, 32, 32)
    torch.testing.assert_close(crowd.density.sum((1, 2, 3)), crowd.counts, rtol=0, atol=1e-4)
    assert all(4 <= count <= 44 for count in crowd.counts.tolist())


def test_heads_are_bright_and_dense_at_the_top() -> None:
    crowd = synthetic_crowd(60, 64)
    points = torch.cat(crowd.points)
    assert float((points[:, 1] < 32).double().mean()) > 0.6  # 0.5 ** (1 / 1.6) = 0.65
    dense = crowd.density > 0.02
    assert float(crowd.images[dense].mean()) > float(crowd.images[~dense].mean()) + 0.3


@pytest.mark.parametrize(("arguments", "error"), [((0,), ValueError), ((1, 4), ValueError), ((1.0,), TypeError)])
def test_bad_crowds(arguments, error) -> None:
    with pytest.raises(error):
        synthetic_crowd(*arguments)


def photograph(path: Path, width: int = 12, height: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(path)


POINTS = np.array([[1.5, 2.5], [7.0, 3.0]])


def make_shanghai(root: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    for index in (2, 10):
        photograph(root / "train_data" / "images" / f"IMG_{index}.jpg")
        target = root / "train_data" / "ground_truth" / f"GT_IMG_{index}.mat"
        target.parent.mkdir(exist_ok=True)
        cell = np.empty((1, 1), dtype=object)
        record = np.zeros((1, 1), dtype=[("location", object), ("number", object)])
        record["location"][0, 0], record["number"][0, 0] = POINTS, np.array([[len(POINTS)]])
        cell[0, 0] = record
        savemat(target, {"image_info": cell})


def make_ucf(root: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    for index in (2, 10):
        photograph(root / f"{index}.jpg")
        savemat(root / f"{index}_ann.mat", {"annPoints": POINTS})


def make_nwpu(root: Path) -> None:
    for index in ("0002", "0010", "0011"):
        photograph(root / "images" / f"{index}.jpg")
        (root / "jsons").mkdir(exist_ok=True)
        (root / "jsons" / f"{index}.json").write_text(json.dumps({"img_id": index, "points": POINTS.tolist()}))
    (root / "train.txt").write_text("0002 0 0\n0010 1 2\n")


def make_plain(root: Path) -> None:
    for index in (2, 10):
        photograph(root / "images" / f"{index}.png")
        (root / "points").mkdir(exist_ok=True)
        (root / "points" / f"{index}.json").write_text(json.dumps(POINTS.tolist()))


@pytest.mark.parametrize(
    ("layout", "split", "make"),
    [
        ("shanghaitech", "train", make_shanghai),
        ("ucf_cc_50", "all", make_ucf),
        ("nwpu", "train", make_nwpu),
        ("plain", "all", make_plain),
    ],
    ids=["shanghaitech", "ucf_cc_50", "nwpu", "plain"],
)
def test_layouts(layout, split, make, tmp_path) -> None:
    make(tmp_path)
    folder = CrowdFolder(tmp_path, layout, split)
    assert [path.stem.lstrip("IMG_0") for path, _ in folder.files] == ["2", "10"]
    image, points = folder[1]
    assert image.shape == (3, 8, 12) and image.dtype is torch.uint8
    assert torch.equal(points, torch.from_numpy(POINTS))
    assert float(density_map(points, (8, 12)).sum()) == pytest.approx(2.0)


def test_what_is_missing_or_damaged(tmp_path) -> None:
    with pytest.raises(MissingDataError, match="nwpu"):
        (tmp_path / "val.txt").write_text("")
        CrowdFolder(tmp_path, "nwpu", "val")
    with pytest.raises(MissingDataError, match=r"train\.txt"):
        CrowdFolder(tmp_path, "nwpu", "train")
    make_plain(tmp_path)
    folder = CrowdFolder(tmp_path)
    points = tmp_path / "points" / "2.json"
    for content, word in (("{", "JSON"), ('{"a": 1}', "points"), ("[[1, 2, 3]]", "shape"), ("[[1, NaN]]", "finite")):
        points.write_text(content)
        with pytest.raises(DamagedDataError, match=word):
            folder[0]
    points.write_text("[]")
    assert folder[0][1].shape == (0, 2)
    points.unlink()
    with pytest.raises(MissingDataError, match="points"):
        folder[0]
    (tmp_path / "images" / "10.png").write_bytes(b"no image")
    with pytest.raises(DamagedDataError, match="image"):
        folder[1]
    with pytest.raises(ValueError, match="split"):
        CrowdFolder(tmp_path, "plain", "train")


def test_a_list_of_ids_leads_to_no_other_folder(tmp_path) -> None:
    (tmp_path / "train.txt").write_text("../../secret\n")
    ((image, annotation),) = CrowdFolder(tmp_path, "nwpu", "train").files
    assert image == tmp_path / "images" / "secret.jpg" and annotation == tmp_path / "jsons" / "secret.json"
