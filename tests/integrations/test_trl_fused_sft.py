"""TRL's SFT trainer with fused losses: the loss and gradients of eager ones, without logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("trl")

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from softgate.errors import ArgumentTypeError
from softgate.integrations.trl import FusedLossSFTTrainer
from softgate.lab import tiny_grpo
from softgate.losses import comp_sum_loss, stablemax_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn about is not ours


def _trainer(kind: Any, folder: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 10, (int(n),), generator=generator).tolist() for n in (5, 9, 3, 7, 6, 2, 8, 4)]
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2,
        learning_rate=1e-2, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, seed=3, bf16=False,
        disable_tqdm=True, gradient_checkpointing=False, **(settings or {}),
    )  # fmt: skip
    return kind(
        model=tiny_grpo.model(), args=args, train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tiny_grpo.tokenizer(), **options,
    )  # fmt: skip


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(2, 10, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor([[6], [4], [2]])
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def _eager(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels[:, 1:] != -100
    rows = logits[:, :-1][kept], labels[:, 1:][kept]
    if kind == "ce":
        return nn.functional.cross_entropy(*rows, reduction="sum")
    if kind == "comp_sum":
        return comp_sum_loss(*rows, tau=1.7, reduction="sum")
    return stablemax_cross_entropy(*rows, reduction="sum")


@pytest.mark.parametrize("items", [None, 7])
@pytest.mark.parametrize("kind", ["ce", "comp_sum", "stablemax"])
def test_loss_and_gradients_are_those_of_logits(tmp_path, monkeypatch, batch, kind, items) -> None:
    trainer = _trainer(
        FusedLossSFTTrainer, tmp_path, linear_loss={"loss": kind, **({"tau": 1.7} if kind == "comp_sum" else {})}
    )
    model = trainer.model.train()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = _eager(kind, logits, batch["labels"]) / (9 if items is None else items)
    wanted = torch.autograd.grad(expected, list(model.parameters()))

    def no_logits(*args: Any) -> Tensor:
        raise AssertionError("logits were computed")

    monkeypatch.setattr(model.lm_head, "forward", no_logits)
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), wanted, rtol=1e-5, atol=1e-5)
    right = (logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]).sum().item() / 9
    assert trainer._metrics["train"]["mean_token_accuracy"] == [pytest.approx(right)]


def test_it_trains_like_trl(tmp_path) -> None:
    theirs, ours = _trainer(SFTTrainer, tmp_path), _trainer(FusedLossSFTTrainer, tmp_path)
    for trainer in (theirs, ours):
        trainer.train()
    for expected, found in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for expected, found in zip(theirs.state.log_history[:2], ours.state.log_history[:2], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert found["mean_token_accuracy"] == pytest.approx(expected["mean_token_accuracy"], abs=1e-4)
        assert "entropy" in expected and "entropy" not in found


@pytest.mark.parametrize("name", ["reduction", "taus"])
def test_options_that_are_not_the_users(tmp_path, name) -> None:
    with pytest.raises(ValueError, match="linear_loss"):
        _trainer(FusedLossSFTTrainer, tmp_path, linear_loss={name: "mean"})


def test_other_losses_beside_it_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="loss_type"):
        _trainer(FusedLossSFTTrainer, tmp_path, settings={"loss_type": "dft"})
    with pytest.raises(ArgumentTypeError, match="linear_loss"):
        _trainer(FusedLossSFTTrainer, tmp_path, linear_loss="ce")
    with pytest.raises(ValueError, match="zloss"):
        _trainer(FusedLossSFTTrainer, tmp_path, linear_loss={"loss": "zloss"})


def test_adapters_outside_the_head_are_trained(tmp_path, batch) -> None:
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = _trainer(FusedLossSFTTrainer, tmp_path, peft_config=adapters)
    model = trainer.model.train()
    leaves = [p for p in model.parameters() if p.requires_grad]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.autograd.grad(_eager("ce", logits, batch["labels"]) / 9, leaves)
    found = torch.autograd.grad(trainer.compute_loss(model, dict(batch)), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert leaves and max(g.abs().max() for g in found) > 1e-4
