"""MQAR and one-layer recall: what a label may be, and where."""

import pytest
import torch

from softgate.attention import SoftmaxMixer
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.lab.tasks.mqar import IGNORED, MQAR, mqar
from softgate.lab.tasks.pair_recall import PairRecall, RecallNetwork


@pytest.mark.parametrize(("length", "pairs", "vocabulary"), [(64, 4, 8192), (32, 8, 64), (16, 4, 10)])
def test_labels_are_the_values_of_keys_seen_before(length, pairs, vocabulary):
    inputs, labels = mqar(50, length, pairs, vocabulary, seed=1)
    assert inputs.shape == labels.shape == (50, length)
    for tokens, answers in zip(inputs.tolist(), labels.tolist(), strict=True):
        keys, values = tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < vocabulary // 2 for key in keys)
        assert all(vocabulary // 2 <= value < vocabulary for value in values)
        asked = [i for i, answer in enumerate(answers) if answer != IGNORED]
        assert len(asked) == pairs and all(i >= 2 * pairs and i % 2 == 0 for i in asked)
        assert sorted(tokens[i] for i in asked) == sorted(keys)
        table = dict(zip(keys, values, strict=True))
        assert all(table[tokens[i]] == answers[i] for i in asked)
        assert all(tokens[i] == 0 for i in range(2 * pairs, length) if i not in asked)


def test_questions_come_early_by_the_stated_law():
    """With one pair, slot s has probability s^(a-1) over the sum."""
    labels = mqar(20_000, 20, 1, 16, power_a=0.5).labels
    slots = ((labels != IGNORED).float().argmax(1) - 2) // 2
    expected = torch.arange(1.0, 10.0) ** -0.5
    found = torch.bincount(slots, minlength=9) / len(slots)
    torch.testing.assert_close(found, expected / expected.sum(), atol=0.015, rtol=0.0)


def test_random_tokens_replace_the_filler_only():
    plain, noisy = (mqar(200, 32, 4, 64, random_non_queries=flag, seed=2) for flag in (False, True))
    assert torch.equal(plain.labels, noisy.labels)
    filler = plain.inputs == 0
    assert torch.equal(plain.inputs[~filler], noisy.inputs[~filler])
    assert (noisy.inputs[filler] != 0).float().mean() > 0.9


def test_seeds_decide():
    assert torch.equal(mqar(5, 32, 4, 64).inputs, mqar(5, 32, 4, 64).inputs)
    assert not torch.equal(mqar(5, 32, 4, 64).inputs, mqar(5, 32, 4, 64, seed=1).inputs)
    task = MQAR(0, 32, 4, 64, examples=128)
    assert torch.equal(task.batch(0, size=64).inputs, task.batch(2, size=64).inputs)
    assert not torch.equal(task.batch(0, size=64).inputs, task.batch(1, size=64).inputs)
    assert not torch.equal(task.batch(0, size=64).inputs, task.draw("test", size=64).inputs)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((5, 31, 4, 64), "seq_len"),
        ((5, 32, 9, 64), "num_kv_pairs"),
        ((5, 32, 0, 64), "num_kv_pairs"),
        ((5, 32, 4, 8), "num_kv_pairs"),
        ((5, 32, 4, 63), "vocab_size"),
        ((-1, 32, 4, 64), "num_examples"),
        ((5, 32, 4, 64, 0.0), "power_a"),
    ],
)
def test_bad_values(arguments, word):
    with pytest.raises(ArgumentValueError, match=word):
        mqar(*arguments)


def test_bad_types():
    with pytest.raises(ArgumentTypeError, match="seq_len"):
        mqar(5, 32.0, 4)
    with pytest.raises(ArgumentTypeError, match="random_non_queries"):
        mqar(5, 32, 4, random_non_queries=1)


def test_pair_recall_asks_for_what_it_showed():
    task = PairRecall(0, pairs=5)
    keys, values, answers = task.batch("train", 0, size=20)
    for row in range(20):
        table = dict(zip(keys[row, :5].tolist(), values[row, :5].tolist(), strict=True))
        assert len(table) == 5
        assert [table[key] for key in keys[row, 5:].tolist()] == answers[row].tolist()
        assert set(values[row, 5:].tolist()) == {task.values}
    assert torch.equal(task.batch("train", 0).keys, task.batch("train", 0).keys)
    assert not torch.equal(task.batch("train", 0).keys, task.batch("train", 1).keys)
    with pytest.raises(ArgumentValueError, match="pairs"):
        PairRecall(0, pairs=65)


def test_the_recall_network_answers_questions_only():
    task = PairRecall(0, pairs=3)
    model, batch = RecallNetwork(task, 8, lambda dim: SoftmaxMixer(dim, 4)), task.batch("train", 0, size=2)
    assert model(batch).shape == (2, 3, 32)
    assert model.loss(batch).item() > 0 and 0 <= model.accuracy(batch) <= 1
