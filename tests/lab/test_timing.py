"""Candidates take turns, in an order that changes, and the summary holds what was measured."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from softgate.errors import ArgumentValueError
from softgate.lab.timing import MEASURABLE, interleaved, step_seconds


def test_every_round_runs_every_candidate_and_no_candidate_keeps_its_predecessor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("softgate.lab.timing._repeats", lambda *about: 1)
    found = interleaved({name: lambda name=name: calls.append(name) for name in "abcd"}, turns=12, most=12)
    assert list(found) == list("abcd")
    rounds = [calls[i : i + 4] for i in range(0, len(calls), 4)]
    assert len(rounds) == 12
    assert all(sorted(order) == list("abcd") for order in rounds)
    before = Counter(first for order in rounds for first, second in pairwise(order) if second == "a")
    assert len(before) == 3


def test_the_summary_is_of_the_turns_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([5.0, 1.0, 4.0, 2.0, 3.0])
    monkeypatch.setattr("softgate.lab.timing._repeats", lambda *about: 1)
    monkeypatch.setattr("softgate.lab.timing._measure", lambda *about, **clock: next(taken))
    found = interleaved({"only": lambda: None}, turns=5, most=5)["only"]
    assert (found.best, found.median, found.p20, found.p80, found.turns) == (1.0, 3.0, 2.0, 4.0, 5)


@pytest.mark.parametrize(("candidates", "turns"), [({}, 3), ({"only": lambda: None}, 0)], ids=["none", "no-turns"])
def test_nothing_to_time_is_refused(candidates: dict, turns: int) -> None:
    with pytest.raises(ArgumentValueError, match="candidates must hold"):
        interleaved(candidates, turns=turns)
    with pytest.raises(ArgumentValueError, match="turns"):
        step_seconds(lambda: None, turns=0)


def test_a_turn_on_a_gpu_ends_when_the_gpu_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: events.append("finished"))
    monkeypatch.setitem(MEASURABLE, "cuda", 0.0)
    interleaved({"only": lambda: events.append("run")}, turns=2, most=2, device="cuda")
    turns = [events[i : i + 3] for i in range(0, len(events), 3)]
    assert len(turns) >= 4  # one or two to find out how long it takes, and two that count
    assert all(turn == ["finished", "run", "finished"] for turn in turns)
