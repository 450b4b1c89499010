"""The anchored losses inside TRL's DPO and GRPO trainers, on a random model of a thousand weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from trl import DPOConfig, DPOTrainer

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.integrations.trl.anchored_pairs import AnchoredDPOTrainer
from softgate.integrations.trl.listwise import ADPOTrainer, ListwiseObjective
from softgate.lab import tiny_grpo
from softgate.policy import AdaptiveTau, ADPOLoss, adpo_loss, robust_dpo_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn about is not ours


def pairs(rows: int = 16) -> Any:
    from datasets import Dataset

    words = tiny_grpo.WORDS[2:]
    return Dataset.from_dict({
        "prompt": [f"{words[i % 8]} {words[(3 * i) % 8]}" for i in range(rows)],
        "chosen": [" a" * (1 + i % 3) for i in range(rows)],
        "rejected": [f" {words[i % 8]} {words[(i + 1) % 8]}" for i in range(rows)],
    })  # fmt: skip


def dpo_config(folder: Path, **options: Any) -> Any:
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "seed": 3, "bf16": False,
        "disable_tqdm": True, "gradient_checkpointing": False, "beta": 0.3,
    }  # fmt: skip
    return DPOConfig(**{**settings, **options})


def dpo_trainer(kind: type, args: Any, **options: Any) -> Any:
    model = tiny_grpo.model()
    return kind(
        model=model, ref_model=copy.deepcopy(model), args=args, train_dataset=pairs(),
        processing_class=tiny_grpo.tokenizer(), **options,
    )  # fmt: skip


def test_two_candidates_are_dpo(tmp_path: Path) -> None:
    theirs, ours = (dpo_trainer(kind, dpo_config(tmp_path)) for kind in (DPOTrainer, AnchoredDPOTrainer))
    for trainer in (theirs, ours):
        trainer.train()
    assert tiny_grpo.losses(ours) == pytest.approx(tiny_grpo.losses(theirs), abs=1e-6)
    assert tiny_grpo.losses(ours)[-1] < tiny_grpo.losses(ours)[0]
    for expected, found in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    logs = [next(e for e in reversed(t.state.log_history) if "rewards/margins" in e) for t in (theirs, ours)]
    for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected", "num_tokens"):
        assert logs[1][name] == pytest.approx(logs[0][name], abs=1e-4), name


@pytest.fixture(scope="module")
def pair_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return dpo_trainer(AnchoredDPOTrainer, dpo_config(tmp_path_factory.mktemp("run")))


@pytest.fixture
def pair_batch(pair_trainer: Any) -> Any:
    return next(iter(pair_trainer.get_train_dataloader()))


def gradients(trainer: Any, compute: Any, inputs: Any) -> list[torch.Tensor]:
    loss = compute(trainer, trainer.model, inputs, False)
    return [loss.detach(), *torch.autograd.grad(loss, list(trainer.model.parameters()))]


def test_other_losses_of_pairs(pair_trainer: Any, pair_batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():  # away from the reference, where all losses have the same gradient
        pair_trainer.model.lm_head.weight.add_(0.1 * torch.randn_like(pair_trainer.model.lm_head.weight))
    monkeypatch.setattr(pair_trainer, "loss_types", ["robust"])
    monkeypatch.setattr(pair_trainer, "label_smoothing", 0.2)
    monkeypatch.setattr(
        pair_trainer, "pair_loss", lambda *logps: robust_dpo_loss(*logps, beta=0.3, label_smoothing=0.2)
    )
    theirs = gradients(pair_trainer, DPOTrainer._compute_loss, pair_batch)
    ours = gradients(pair_trainer, AnchoredDPOTrainer._compute_loss, pair_batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_means_over_tokens_and_a_reference_from_the_data(pair_trainer: Any, pair_batch: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pair_trainer, "length_norm", "mean")
    monkeypatch.setattr(pair_trainer, "loss_types", ["sigmoid_norm"])
    ours = AnchoredDPOTrainer._compute_loss(pair_trainer, pair_trainer.model, pair_batch, False)
    theirs = DPOTrainer._compute_loss(pair_trainer, pair_trainer.model, pair_batch, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    sums = pair_trainer.compute_ref_log_probs(pair_trainer.ref_model, pair_batch)
    monkeypatch.setattr(pair_trainer, "precompute_ref_logps", True)
    given = {**pair_batch, "ref_chosen_logps": sums[0], "ref_rejected_logps": sums[1]}
    loss, outputs = AnchoredDPOTrainer._compute_loss(pair_trainer, pair_trainer.model, given, True)
    torch.testing.assert_close(loss, ours)
    assert outputs.logits.shape[:2] == pair_batch["input_ids"].shape


@pytest.mark.parametrize(
    ("settings", "options", "word"),
    [
        ({"use_liger_kernel": True}, {}, "use_liger_kernel"),
        ({"loss_type": "ipo"}, {}, "loss_type"),
        ({"f_divergence_type": "js_divergence"}, {}, "f_divergence_type"),
        ({"use_weighting": True}, {}, "use_weighting"),
        ({"ld_alpha": 0.5}, {}, "ld_alpha"),
        ({}, {"tau": 0.0}, "tau"),
        ({}, {"length_norm": "max"}, "length_norm"),
        ({}, {"pair_loss": "dpo"}, "pair_loss"),
    ],
    ids=["liger", "loss_type", "divergence", "weighting", "ld_alpha", "tau", "length_norm", "pair_loss"],
)
def test_what_the_pair_trainer_refuses(tmp_path: Path, settings: Any, options: Any, word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        dpo_trainer(AnchoredDPOTrainer, dpo_config(tmp_path, **settings), **options)


def test_lists_of_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    forward = ADPOLoss.forward

    def watched(self: Any, *args: Any) -> Any:
        loss = forward(self, *args)
        seen.append((loss.detach(), *(a.detach() for a in args)))
        return loss

    monkeypatch.setattr(ADPOLoss, "forward", watched)
    args = tiny_grpo.config(tmp_path, per_device_train_batch_size=8, max_steps=3)
    objective = ADPOLoss(beta=0.5, adaptive=AdaptiveTau(tau=0.8))
    trainer = tiny_grpo.train(ADPOTrainer, args, objective=objective)
    assert len(seen) == 3 and trainer.policy_loss.vocabulary == len(tiny_grpo.WORDS)
    loss, logp, old, advantages, groups, mask, entropy = seen[0]
    assert 0 < float(entropy.mean()) < 1
    assert advantages.view(2, 4).sum(1).abs().max() < 1e-4 and (groups.view(2, 4) == groups.view(2, 4)[:, :1]).all()
    # on policy u is 0 and p uniform, whatever tau: the loss is log 4
    torch.testing.assert_close(loss, torch.tensor(4.0).log())
    torch.testing.assert_close(adpo_loss(logp, old, advantages, groups, mask), loss)
    assert not torch.isclose(seen[-1][0], loss)  # not later


def test_what_the_list_trainer_refuses(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="objective"):
        ListwiseObjective(adpo_loss, 8)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="reduction"):
        ListwiseObjective(ADPOLoss(reduction="sum"), 8)
    args = tiny_grpo.config(tmp_path, per_device_train_batch_size=2)
    with pytest.raises(ArgumentValueError, match="per_device_train_batch_size"):
        tiny_grpo.train(ADPOTrainer, args)
    logp = torch.zeros(4, 3)
    with pytest.raises(StateError, match="score"):
        ListwiseObjective(ADPOLoss(), 8)(logp, logp, logp, torch.ones(4, 3), group_id=torch.zeros(4, dtype=torch.long))


def test_the_paper_scale_trains(tmp_path: Path) -> None:
    from softgate.lab.cell import CellRun
    from softgate.lab.preference_llm import measure_llm
    from softgate.papers.adpo import PAPER

    tiny_grpo.model().save_pretrained(tmp_path / "model")
    tiny_grpo.tokenizer().save_pretrained(tmp_path / "model")
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(f'{{"question": "a b {i}", "answer": "#### {i}"}}\n' for i in range(8)))
    small = {"model": str(tmp_path / "model"), "data": str(data), "answers": 4, "tokens": 4, "batch": 4,
             "accumulation": 2, "steps": 1}  # fmt: skip
    cell = PAPER.scale("paper").cells[0]
    run = CellRun("adpo", "paper", cell.name, {**cell.config, **small}, 0, tmp_path / "run")
    figures = measure_llm(run)
    assert figures["peak_reward"] == figures["mean_reward"] == 0.0 and len(figures["reward_curve"]) == 1
