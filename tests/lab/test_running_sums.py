"""The task on which soft and ordinary thoughts are compared."""

from __future__ import annotations

import pytest
import torch

from softgate.lab.running_sums import EQUALS, SEPARATOR, RunningSums
from softgate.lab.seeds import generator


def test_problems_hold_running_sums() -> None:
    prompt, right = RunningSums(4).problems(50, generator(0, "a"))
    for row, answer in zip(prompt.tolist(), right.tolist(), strict=True):
        a, b, c, d = row[:4]
        assert row[4:] == [EQUALS]
        assert answer == [(a + b) % 10, (a + b + c) % 10, SEPARATOR, (a + b + c + d) % 10]


@pytest.mark.parametrize("thoughts", ["ordinary", "soft", "label"])
def test_scores_are_those_of_the_steps_as_they_were_drawn(thoughts: str) -> None:
    torch.manual_seed(0)
    task = RunningSums(5, thoughts=thoughts, prompts=6, group=3)
    model = task.model(width=16, layers=1).double()
    rollout = task.sample(model, generator(0, "b"))
    prompt, token = rollout.actions
    soft = thoughts != "ordinary"
    assert token.is_soft.tolist() == [[soft] * 3 + [False] * 2] * 18
    assert rollout.mask.tolist() == [[True] * 3 + [False, True]] * 18
    assert bool((token.ids[:, 3, 0] == SEPARATOR).all())
    # the decoding cache and the whole sequence agree: the noise lies within its clamps again
    torch.testing.assert_close(task.log_prob(model, rollout), rollout.old_logp)
    inputs = torch.cat((model.tokens(prompt), (token.weights[..., None] * model.tokens(token.ids)).sum(-2)[:, :-1]), 1)
    logits = model.decode(inputs)[:, -5:]
    if thoughts != "soft":
        expected = logits.log_softmax(-1).gather(-1, token.ids[..., :1])[..., 0]
        torch.testing.assert_close(rollout.old_logp[rollout.mask], expected[rollout.mask])
    else:
        p = logits.softmax(-1).gather(-1, token.ids) * token.kept
        noise = token.g - torch.log(p / p.sum(-1, keepdim=True) + 1e-6)
        noise = noise.detach()[token.is_soft]
        assert -1.5 - 1e-6 < float(noise.min()) < float(noise.max()) < 3 + 1e-6


def test_pass_at_k() -> None:
    task = RunningSums(4)
    curve = task.pass_at(task.model(width=16, layers=1), generator(1, "c"), 400, 4)
    assert len(curve) == 4 and 0.02 < curve[0] < 0.25  # a fresh model guesses among 12 symbols
    assert curve[1] < curve[2] < curve[3] < 4 * 0.25
