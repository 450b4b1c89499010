"""Bigram-Backcopy and the character language model: what the sequences must look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.errors import SoftgateError
from softgate.lab.tasks.bigram_backcopy import BigramBackcopy
from softgate.lab.tasks.character_lm import CharacterLM


def test_backcopy_sequences() -> None:
    task = BigramBackcopy(0)
    tokens, targets, on_trigger = task.batch("train", 0, size=200, length=40)
    assert (tokens[:, 0] == 32).all() and (tokens[:, 1:] < 32).all()
    assert torch.equal(targets[:, :-1], tokens[:, 1:])
    assert torch.equal(on_trigger, tokens < 3)
    rows, columns = on_trigger.nonzero(as_tuple=True)
    assert len(rows) > 100 and columns.min() >= 2
    assert torch.equal(targets[rows, columns], tokens[rows, columns - 1])
    assert (targets[rows, columns] >= 3).all()  # a trigger never follows a trigger


def test_backcopy_follows_its_transitions() -> None:
    task = BigramBackcopy(1, symbols=6, triggers=1)
    tokens, targets, on_trigger = task.batch("x", size=2000, length=64)
    ordinary = ~on_trigger & (tokens < 6)
    counts = torch.zeros(6, 6, dtype=torch.float64)
    counts.index_put_((tokens[ordinary], targets[ordinary]), torch.ones((), dtype=torch.float64), accumulate=True)
    observed = counts[1:] / counts[1:].sum(-1, keepdim=True)
    torch.testing.assert_close(observed, task.transitions()[1:], atol=0.02, rtol=0)


def test_batches_are_functions_of_seed_and_stream() -> None:
    task = BigramBackcopy(3)
    again = BigramBackcopy(3)
    assert torch.equal(task.batch("train", 5).tokens, again.batch("train", 5).tokens)
    assert not torch.equal(task.batch("train", 5).tokens, task.batch("train", 6).tokens)
    assert not torch.equal(task.batch("train", 5).tokens, BigramBackcopy(4).batch("train", 5).tokens)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    task.batch("train", 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_best_loss_is_that_of_the_true_process() -> None:
    task = BigramBackcopy(0)
    batch = task.batch("eval", size=16)
    logits = torch.full((16, 64, 33), float("-inf"), dtype=torch.float64)
    logits[..., :32] = task.transitions().log()[batch.tokens.clamp_max(31)]
    logits[:, 0, :32] = torch.where(torch.arange(32) < 3, float("-inf"), 0.0).double()
    rows, columns = batch.on_trigger.nonzero(as_tuple=True)
    logits[rows, columns] = float("-inf")
    logits[rows, columns, batch.tokens[rows, columns - 1]] = 0.0
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert task.best_loss(batch) == pytest.approx(float(loss), rel=1e-9)


@pytest.mark.parametrize("options", [{"triggers": 0}, {"triggers": 32}, {"triggers": -1}])
def test_bad_task(options: dict[str, Any]) -> None:
    with pytest.raises(SoftgateError, match="triggers"):
        BigramBackcopy(0, **options)


@pytest.mark.parametrize("options", [{"size": 0}, {"length": 1}])
def test_bad_batch(options: dict[str, Any]) -> None:
    with pytest.raises(SoftgateError, match="size"):
        BigramBackcopy(0).batch("x", **options)


TEXT = "".join(chr(97 + (i * i) % 23) for i in range(1000)) + "z" * 200


def test_character_windows() -> None:
    task = CharacterLM(TEXT, seed=0, length=16)
    tokens, targets = task.batch("train", 0, size=8)
    assert tokens.shape == targets.shape == (8, 16)
    assert (tokens[:, 0] == task.vocabulary - 1).all()
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    for row in targets:
        assert "".join(task.characters[i] for i in row) in TEXT[:1080]
    validation = task.validation(8)[1]
    assert torch.equal(validation, task.validation(8)[1])
    for row in validation:
        assert "".join(task.characters[i] for i in row) in TEXT[1080:]
    assert torch.equal(task.batch("train", 0, size=8)[0], tokens)
    assert not torch.equal(task.batch("train", 1, size=8)[0], tokens)


def test_every_place_can_be_drawn() -> None:
    task = CharacterLM("abcdefghij" * 4, seed=0, length=4)
    ends = {int(row[-1]) for row in task.batch("x", size=400)[1]}
    assert ends == set(range(10))


def test_text_must_be_long_enough() -> None:
    with pytest.raises(SoftgateError, match="text"):
        CharacterLM("short", seed=0, length=16)
