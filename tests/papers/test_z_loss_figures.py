"""Every kind of cell of the Z-loss paper at a tiny size: it runs, and its figures are what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell
from softgate.papers.z_loss import PAPER


def figures(cell: Cell, folder: Path, **smaller: Any) -> Any:
    measure = cell.measure or PAPER.measure
    return measure(CellRun("z-loss", "laptop", cell.name, {**cell.config, **smaller}, 0, folder))


def cells() -> dict[str, Cell]:
    return {cell.name: cell for cell in PAPER.scales["laptop"].cells}


def test_times_of_heads(tmp_path: Path) -> None:
    turns = {"factored": 2, "log_softmax": 1, "hierarchical": 1, "adaptive": 1}
    found = figures(cells()["heads"], tmp_path, classes=300, features=64, rows=5, turns=turns)
    assert found["log_softmax_over_factored"] == found["log_softmax"] / found["factored"]
    assert found["factored_with_refactoring"] == pytest.approx(found["factored"] + found["refactor"] / 2000)


def test_times_of_the_network(tmp_path: Path) -> None:
    turns = dict.fromkeys(("body", "factored", "hierarchical", "log_softmax"), 1)
    sizes = {"classes": 300, "vocabulary": 50, "rows": 5, "context": 2, "embedding": 4, "hidden": [6, 7], "batches": 2}
    found = figures(cells()["network"], tmp_path, turns=turns, **sizes)
    assert found["bound"] == found["log_softmax"] / found["body"] and found["classes"] == 300


def test_times_by_size(tmp_path: Path) -> None:
    found = figures(cells()["sizes"], tmp_path, classes=[100, 300], dense_up_to=100, features=8, rows=5, turns=2)
    assert len(found["factored"]) == 2 and found["dense_classes"] == [100]
    assert found["growth"] >= 1.0


@pytest.mark.parametrize("name", ["z-0.1-28", "log-softmax", "squared", "taylor", "spherical"])
def test_quality(name: str, tmp_path: Path) -> None:
    sizes = {"words": 3000, "embedding": 4, "hidden": [8, 6], "batch": 64, "epochs": 1, "validation": 200}
    found = figures(cells()[name], tmp_path, **sizes)
    assert found["errors"] == sorted(found["errors"], reverse=True) and found["err1"] <= 1.0
    assert 0.0 < found["mrr"] <= 1.0 and 1.0 - found["err1"] <= found["mrr"]


def test_billion_words_are_counted_and_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softgate.lab.data import MissingDataError
    from softgate.lab.data.billion_words import FOLDER, TRAINING, billion_words

    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MissingDataError, match="One Billion Word"):
        billion_words()
    folder = tmp_path / FOLDER / TRAINING
    folder.mkdir(parents=True)
    (folder / "news.en-00001-of-00100").write_text("the cat the\n", encoding="utf-8")
    (folder / "news.en-00002-of-00100").write_text("the cat sat cat\n" * 2, encoding="utf-8")
    ids, words = billion_words(shards=1)
    assert words == 5 and ids.tolist() == [0, 4, 3, 4, 1]  # cat is the more frequent of the two, sat occurs twice
    found = figures(
        {cell.name: cell for cell in PAPER.scales["paper"].cells}["network"],
        tmp_path,
        **{"turns": dict.fromkeys(("body", "factored", "log_softmax"), 1), "rows": 3, "context": 2, "embedding": 4},
        hidden=[6, 7],
        batches=2,
    )
    assert found["classes"] == 5
