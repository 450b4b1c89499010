"""Connections as symbols, decisions by scores and signs, and what papers say of data that are not there."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from softgate.lab.cell import CellRun
from softgate.lab.data import tables
from softgate.lab.margin_heads import decisions, scores_of, train_head
from softgate.lab.paper import load_paper
from softgate.lab.tasks.flow_records import FlowRecords
from softgate.lab.verdicts import judge
from softgate.models import GRUSVM


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FlowRecords:
    """A small file in the layout of NSL-KDD in which the first number tells attacks from normal connections."""
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(tables, "_KDD_ROWS", {"train": 40, "test": 10})
    folder = tmp_path / "nsl-kdd"
    folder.mkdir()

    def rows(count: int, service: str) -> bytes:
        lines = []
        for n in range(count):
            numbers = ",".join(["0"] * 37)
            kind = "normal" if n % 2 else "neptune"
            lines.append(f"{n if n % 2 else n + 100},tcp,{service if n == 0 else 'http'},SF,{numbers},{kind},20")
        return ("\n".join(lines) + "\n").encode()

    (folder / "KDDTrain+_20Percent.txt.gz").write_bytes(gzip.compress(rows(40, "ftp")))
    (folder / "KDDTest+.txt").write_bytes(rows(10, "unseen"))
    return FlowRecords("nsl-kdd", seed=0)


def test_symbols_of_connections(records) -> None:
    (train, labels), (test, truth) = records.rows("train"), records.rows("test")
    assert train.shape == (40, 41) and train.dtype == torch.uint8 and records.columns[0] == "duration"
    assert train[:, 0].bincount().tolist() == [4] * 10
    assert bool((train[labels == 1, 0] >= 5).all()) and bool((train[labels == 0, 0] < 5).all())
    assert int(train.max()) == 9 and test[:, 2].tolist() == [10, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert truth.tolist() == [1, 0] * 5


def test_epochs_are_shuffles(records) -> None:
    seen = torch.cat([records.batch(step, 8)[0][:, 0] for step in range(5)])
    assert seen.sort().values.tolist() == records.rows("train")[0][:, 0].sort().values.tolist()
    assert torch.equal(records.batch(3, 8)[0], FlowRecords("nsl-kdd", seed=0).batch(3, 8)[0])
    assert not torch.equal(records.batch(0, 8)[1], records.batch(5, 8)[1])


def test_decisions_by_hand() -> None:
    scores = torch.tensor([[0.1, 2.0, -1.0], [-1.0, -0.5, -2.0], [-1.0, 0.2, 3.0], [-1.0, -2.0, 1.0]])
    figures = decisions(scores, torch.tensor([1, 1, 1, 2]), signs=True, prefix="x_")
    assert figures == {
        "x_accuracy": 0.75, "x_sign_accuracy": 0.5, "x_sign_accuracy_last": 0.5,
        "x_none_positive": 0.25, "x_several_positive": 0.5,
    }  # fmt: skip
    assert decisions(scores, torch.tensor([1, 1, 2, 2]), signs=False) == {"accuracy": 1.0}


@pytest.mark.parametrize("head", ["svm", "softmax"])
def test_training_learns_and_keeps_the_mode(records, tmp_path, head) -> None:
    run = CellRun("gru-svm", "smoke", head, {}, 0, tmp_path)
    options = {"C": 0.5 * 20, "reduction": "mean"} if head == "svm" else {}
    model = GRUSVM(10, 8, head=head, dropout=0.0, unknown="zeros", **options)
    symbols, labels = records.rows("train")
    curves = train_head(
        run, model, lambda step: records.batch(step, 20), (symbols, labels), steps=60, lr=0.03, signs=head == "svm"
    )
    assert curves["loss"][-1] < 0.5 * curves["loss"][0] and len(curves["accuracy"]) == 10
    assert ("sign_accuracy" in curves) == (head == "svm")
    model.train()
    assert float((scores_of(model, symbols, chunk=7).argmax(1) == labels).double().mean()) > 0.8
    assert model.training


@pytest.mark.parametrize(
    ("slug", "scale", "prefix", "claim"),
    [("cnn-svm", "laptop", "fashion_", "fashion"), ("gru-svm", "paper", "kyoto_", "published-ordering")],
)
def test_absent_data_give_no_figure_and_the_claim_is_not_measured(
    tmp_path, monkeypatch, slug, scale, prefix, claim
) -> None:
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    paper = load_paper(slug)
    rows = {}
    for cell in paper.scales[scale].cells:
        if cell.name.startswith(prefix):
            run = CellRun(slug, scale, cell.name, cell.config, 0, tmp_path / cell.name)
            rows[cell.name] = [cell.measure(run)]
    assert len(rows) == 2 and all(row == [{"data_was_missing": 1.0}] for row in rows.values())
    (wanted,) = [c for c in paper.claims if c.id == claim]
    judgement = judge(wanted, scale, paper.scales[scale], rows, loaded=False)
    assert judgement.verdict == "not measured" and "was not measured" in judgement.reason
