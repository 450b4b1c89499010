"""New names for known operations: the task, LoRA, and one small run of every kind of adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from softgate.lab.cell import CellRun
from softgate.lab.low_rank import add_low_rank
from softgate.lab.tasks.renamed_operations import OPERATIONS, RenamedOperations


def test_answers_are_the_operation_that_the_word_stands_for() -> None:
    task = RenamedOperations(1, operations=16, length=4)
    for renamed in (False, True):
        tokens, labels = task.batch("a", size=200, renamed=renamed)
        assert torch.equal(labels[:, task.prompt :], tokens[:, task.prompt :])
        assert (labels[:, : task.prompt] == -100).all() and (tokens[:, task.prompt - 1] == 10).all()
        assert torch.equal(tokens[:, 4], tokens[:, 5]) and int(tokens.max()) < task.vocabulary
        for row in tokens:
            word = int(row[4]) - 11
            operation = int(task.permutation[word - 16]) if renamed else word
            assert torch.equal(OPERATIONS[operation](row[None, :4])[0], row[task.prompt :])
    assert sorted(task.permutation.tolist()) == list(range(16))
    perfect = nn.functional.one_hot(tokens.roll(-1, 1), task.vocabulary).float()
    assert task.exact(perfect, tokens) == 1.0
    perfect[:100, task.prompt - 1] = 0.0
    assert task.exact(perfect, tokens) < 0.6


def test_operations_differ_and_bad_sizes_are_refused() -> None:
    digits = torch.randint(10, (200, 4))
    answers = torch.stack([operation(digits) for operation in OPERATIONS])
    same = (answers[:, None] == answers[None]).all(-1).float().mean(-1)
    assert float((same - torch.eye(len(OPERATIONS))).max()) < 0.2
    for bad in ({"operations": 17}, {"operations": 1}, {"length": 1}):
        with pytest.raises(ValueError, match=r"operations|length"):
            RenamedOperations(0, **bad)


def test_low_rank_starts_as_the_model_and_alone_learns() -> None:
    model = nn.Sequential()
    model.add_module("q", nn.Linear(4, 6))
    model.add_module("o", nn.Linear(6, 2))
    x = torch.randn(3, 4)
    before = model(x)
    add_low_rank(model, 2, ("q",))
    assert torch.equal(model(x), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (4 + 6)
    with torch.no_grad():
        model.q.b.fill_(1.0)
    assert torch.allclose(model(x), model.o(model.q.layer(x) + (x @ model.q.a.T).sum(-1, keepdim=True)))


def test_every_kind_of_adapter_in_miniature(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from softgate.lab.renaming_training import measure_decoding, measure_renaming

    methods = {
        "rational": {"bottleneck": 4}, "bilevel": {"bottleneck": 4, "activation_training": "bilevel"},
        "static": {"prompt": "static", "num_tokens": 3}, "lora": {"lora": 1},
    }  # fmt: skip
    config = {
        "operations": 2, "length": 2, "width": 16, "layers": 1, "heads": 2, "pretraining": 30, "pretraining_lr": 5e-3,
        "lr": 5e-3, "batch": 16, "steps": 6, "replicates": 1, "methods": methods,
    }  # fmt: skip
    figures = measure_renaming(CellRun("iapt", "smoke", "c", config, 0, tmp_path))
    assert figures["parameters_rational"] == 2 * 16 * 4 + 4 + 16 + 4 * 4 + 10 == figures["parameters_bilevel"]
    assert figures["parameters_static"] == 3 * 16 and figures["parameters_lora"] == 2 * 2 * 16
    for name in methods:
        assert 0.0 <= figures[f"worst_{name}"] <= figures[f"accuracy_{name}"] <= 1.0
        assert len(figures[f"loss_{name}"]) == len(figures["step"]) == 6
    sizes = {"width": 16, "layers": 1, "heads": 2, "vocabulary": 20, "batch": 2, "context": 6, "rank": 2}
    run = CellRun("iapt", "paper", "d", {**sizes, "bottleneck": 4, "turns": 2}, 0, tmp_path)
    assert min(measure_decoding(run).values()) > 0
