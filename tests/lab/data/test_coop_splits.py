"""Splits in the folders of CoOp, and the task of going from base to new classes made of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from softgate.errors import ArgumentValueError
from softgate.lab.cell import CellRun
from softgate.lab.data import DamagedDataError, MissingDataError
from softgate.lab.data.coop_splits import load_coop_split
from softgate.lab.prompt_benchmarks import FolderShots, measure_benchmark, read_image

Image = pytest.importorskip("PIL.Image")
NAMES = ("annual crop", "forest", "river")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = tmp_path / "eurosat" / "2750"
    images.mkdir(parents=True)
    entries = {"train": [], "val": [], "test": []}
    for label, name in enumerate(NAMES):
        for place in range(4):
            Image.new("RGB", (20, 10), (80 * label, 10 * place, 0)).save(images / f"{label}-{place}.png")
            entries["train" if place < 3 else "test"].append([f"{label}-{place}.png", label, name])
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(entries))
    return tmp_path / "eurosat"


def test_a_split_is_read(folder) -> None:
    split = load_coop_split("eurosat")
    assert split.classes == NAMES and len(split.train) == 9
    assert split.test[1] == (folder / "2750" / "1-3.png", 1)


def test_what_is_missing_or_damaged_is_named(folder) -> None:
    with pytest.raises(MissingDataError, match=r"dtd.*split_zhou_DescribableTextures"):
        load_coop_split("dtd")
    with pytest.raises(ArgumentValueError, match="name"):
        load_coop_split("cifar")
    path = folder / "split_zhou_EuroSAT.json"
    good = json.loads(path.read_text())
    for change in (
        {"train": [["../../secret.png", 0, "forest"]]},
        {"train": [["/etc/secret.png", 0, "forest"]]},
        {"train": [["a.png", 0]]},
        {"train": []},
        {"test": [["a.png", 0, "other"]]},
        {"test": [["a.png", 7, "other"]]},
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(DamagedDataError, match="split_zhou"):
            load_coop_split("eurosat")
    path.write_text("[")
    with pytest.raises(DamagedDataError, match="split file"):
        load_coop_split("eurosat")


def test_base_classes_have_shots_and_new_ones_tests(folder) -> None:
    shots = FolderShots(load_coop_split("eurosat"), seed=0, shots=2, size=8)
    assert shots.names("base") == NAMES[:2] and shots.names("new") == NAMES[2:]
    assert shots.batches(3) == 2
    first, second = shots.batch(0, 3), shots.batch(1, 3)
    assert first[0].shape == (3, 3, 8, 8) and second[0].shape == (1, 3, 8, 8)
    assert sorted([*first[1].tolist(), *second[1].tolist()]) == [0, 0, 1, 1]
    assert torch.equal(first[0], shots.batch(0, 3)[0])
    images, labels, groups = next(shots.test("new"))
    assert images.shape == (1, 3, 8, 8) and labels.tolist() == [0] and groups is None


def test_an_image_is_scaled_as_clip_expects(folder) -> None:
    pixels = read_image(folder / "2750" / "1-0.png", 8)
    means, deviations = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    wanted = (torch.tensor([80 / 255, 0.0, 0.0]) - means) / deviations
    torch.testing.assert_close(pixels, wanted[:, None, None].expand(3, 8, 8))


def test_crops_move_and_flip(folder) -> None:
    slope = torch.arange(20, dtype=torch.uint8).mul(12).expand(10, 20)
    Image.fromarray(slope.numpy(), "L").save(folder / "slope.png")
    crops = [read_image(folder / "slope.png", 8, torch.Generator().manual_seed(s))[0] for s in range(20)]
    rising = [bool(crop[0, -1] > crop[0, 0]) for crop in crops]
    assert 0 < sum(rising) < 20 and len({float(crop.mean()) for crop in crops}) == 20


def test_a_cell_of_the_paper_scale(folder, tmp_path) -> None:
    pytest.importorskip("transformers")
    sys.path.append(str(Path(__file__).resolve().parents[2] / "routing"))
    from clip_cases import TEMPLATES, make_clip, make_tokenizer

    make_clip().save_pretrained(tmp_path / "clip")
    make_tokenizer().save_pretrained(tmp_path / "clip")
    config = {"clip": str(tmp_path / "clip"), "dataset": "eurosat", "options": {"templates": TEMPLATES}, "shots": 2}
    config |= {"epochs": 2, "batch": 2, "lr": 0.01, "warmup": 1}
    found = measure_benchmark(CellRun("mixture-of-prompts", "paper", "eurosat", config, 0, tmp_path / "run"))
    assert found["new"] == 1.0 and 0 <= found["base"] <= 1 and len(found["curve_gate"]) == 4  # one new class
    assert "routed" not in found
