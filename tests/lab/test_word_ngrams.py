"""Words before and next words, and the clock that times single steps."""

from __future__ import annotations

import time

import pytest
import torch

from softgate.lab.tasks.word_ngrams import WordNgrams
from softgate.lab.timing import step_seconds


def numbered(words: int) -> str:
    letters = "abcdefghij"
    return " ".join("".join(letters[int(digit)] for digit in f"{i:04d}") for i in range(words))


def test_contexts_stand_before_their_targets() -> None:
    task = WordNgrams(numbered(400), seed=1, context=3)
    assert task.vocabulary == 400
    words, target = task.batch("train", 0, size=64)
    # words are numbered in the order of the text
    assert torch.equal(torch.cat((words, target[:, None]), 1).diff(dim=1), torch.ones(64, 3, dtype=torch.int64))
    assert torch.equal(words, task.batch("train", 0, size=64)[0])
    assert not torch.equal(words, task.batch("train", 1, size=64)[0])


def test_validation_is_the_unseen_end_of_the_text() -> None:
    task = WordNgrams(numbered(400), seed=1, context=3)
    words, target = task.validation(10**6)
    seen = torch.cat([task.batch("train", step, size=500)[1] for step in range(20)])
    assert int(words.min()) == 360 > int(seen.max()) and int(target.max()) == 399 and len(target) == 37
    assert len(task.validation(5)[0]) == 5


def test_punctuation_is_words_and_short_texts_are_refused() -> None:
    task = WordNgrams("To be, or not to be: that's the question. " * 20, seed=0, context=2, words=120)
    assert task.vocabulary == len({"To", "be", ",", "or", "not", "to", ":", "that's", "the", "question", "."})
    with pytest.raises(ValueError, match="words"):
        WordNgrams("too short", seed=0)


def test_step_seconds_counts_turns_and_processor_time() -> None:
    calls = []
    timing = step_seconds(lambda: calls.append(sum(range(20_000))), turns=5, warm=2)
    assert len(calls) == 7 and timing.turns == 5 and 0.0 < timing.best <= timing.median
    assert step_seconds(lambda: time.sleep(0.05), turns=1).median < 0.04  # waiting is not processor time
    with pytest.raises(ValueError, match="turns"):
        step_seconds(lambda: None, turns=0)
