"""The small verifiable-reward task: what is sampled is what is scored, and what is rewarded is right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softgate.lab.policy_task import ReversedAddition, RLConfig, Rollout, TabularTask, mismatch, pretrain, train_policy
from softgate.lab.policy_task.loop import _minibatches
from softgate.policy import reinforce_loss, sapo_loss


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_problems_are_additions() -> None:
    prompt, answer = ReversedAddition(3).problems(50, _generator())
    powers = 10 ** torch.arange(4)
    a, b = (prompt[:, i : i + 3] @ powers[:3] for i in (0, 4))
    assert torch.equal(answer[:, :4] @ powers, a + b)
    assert (prompt[:, 3] == 10).all() and (prompt[:, 7] == 11).all() and (answer[:, 4] == 12).all()


def test_sampled_log_probabilities_are_those_of_scoring() -> None:
    task = ReversedAddition(2, prompts=8, group=4)
    model = task.model()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    rollout = task.sample(model, _generator())
    scored = task.log_prob(model, rollout)
    torch.testing.assert_close(scored.detach(), rollout.old_logp, rtol=1e-4, atol=1e-5)
    assert scored.requires_grad and rollout.group_id.tolist() == [i // 4 for i in range(32)]
    _, given = rollout.actions
    for row, keep in zip(given.tolist(), rollout.mask.tolist(), strict=True):
        end = row.index(12) + 1 if 12 in row else len(row)
        assert keep == [True] * end + [False] * (len(row) - end)
    assert any(12 in row[:-1] for row in given.tolist())


def test_decoding_from_vectors_is_decoding_from_tokens() -> None:
    model = ReversedAddition(1).model()
    tokens = torch.randint(14, (3, 5), generator=_generator())
    torch.testing.assert_close(model.decode(model.tokens.weight[tokens]), model(tokens))


def test_reward_is_for_the_whole_answer() -> None:
    task = ReversedAddition(1)
    prompt, answer = task.problems(20, _generator())
    model = task.model()
    rollout = task.answers(model, prompt, answer, torch.arange(20), _generator(1))
    _, given = rollout.actions
    assert torch.equal(rollout.rewards, (given == answer).all(1).float())
    right = task.answers(model, prompt, given, torch.arange(20), _generator(1))
    assert (right.rewards == 1).all()


def test_tabular_rewards_and_learning() -> None:
    task = TabularTask(0, prompts=4, group=8)
    policy = task.policy()
    rollout = task.sample(policy, _generator())
    prompt, answer = rollout.actions
    right = (answer == task.words[prompt]).sum(1)
    assert torch.equal(rollout.rewards, (right >= 6).float())
    torch.testing.assert_close(task.log_prob(policy, rollout).detach(), rollout.old_logp)
    curves = train_policy(policy, task, reinforce_loss, RLConfig(rounds=30, betas=(0.9, 0.999), clip=None), 0)
    assert sum(curves["reward"][-5:]) / 5 > curves["reward"][0] + 0.3


def test_runs_repeat_and_share_their_prompts() -> None:
    def run(objective) -> list[float]:
        task = TabularTask(1, prompts=4, group=4)
        return train_policy(task.policy(), task, objective, RLConfig(rounds=3, mismatch=(0.2, 2.0)), 7)["reward"]

    assert run(sapo_loss) == run(sapo_loss)
    assert run(sapo_loss)[0] == run(reinforce_loss)[0]


def test_mismatch_hits_a_share() -> None:
    logp = torch.zeros(200, 200)
    spoiled = mismatch(logp, 0.1, 4.0, _generator())
    hit = spoiled != 0
    assert abs(hit.float().mean().item() - 0.1) < 0.01 and abs(spoiled[hit].std().item() - 4.0) < 0.2
    assert torch.equal(mismatch(logp, 0.0, 4.0, _generator()), logp)


def test_whole_groups_stay_together() -> None:
    group_id = torch.arange(12) // 3
    parts = _minibatches(group_id, RLConfig(minibatches=2, shuffle="groups"), _generator(2))
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    for rows in parts:
        labels = group_id[rows].view(-1, 3)
        assert len(rows) == 6 and (labels == labels[:, :1]).all()


def test_rows_of_structured_actions() -> None:
    class Soft(NamedTuple):
        ids: Tensor
        weights: Tensor

    ids = torch.arange(6).view(3, 2)
    rollout = Rollout(Soft(ids, ids.float()), ids.float(), ids > 0, torch.zeros(3), torch.arange(3))
    part = rollout.select(torch.tensor([2, 0]))
    assert isinstance(part.actions, Soft) and part.actions.ids.tolist() == [[4, 5], [0, 1]]
    assert part.group_id.tolist() == [2, 0] and part.old_logp.tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_pretraining_ends_at_its_target() -> None:
    task = ReversedAddition(1, prompts=8)
    _, curves = pretrain(task, 0, target=0.05, max_steps=400, check_every=20, width=32, layers=1)
    assert curves["accuracy"][-1] > 0.05 and all(a <= 0.05 for a in curves["accuracy"][:-1])
