"""A swapped model under the Trainer of transformers: trains, stops, resumes, loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build, tokens

import softgate

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def _trainer(model: Any, folder: Path, steps: int) -> Any:
    rows = [{"input_ids": row, "labels": row} for row in tokens(16, 8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=2,
        lr_scheduler_type="constant", report_to=[], use_cpu=True, seed=3, logging_steps=1, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows)


@pytest.mark.filterwarnings("ignore")  # what the Trainer warns about is not ours
@pytest.mark.parametrize("places", [{"attention": "gated", "loss": "stablemax"}, {"attention": "sigmoid"}], ids=str)
def test_resuming_is_going_on(places: dict[str, Any], tmp_path: Path) -> None:
    whole = softgate.swap(build("llama"), **places)
    losses = [entry["loss"] for entry in _run(_trainer(whole, tmp_path / "whole", 8))]
    assert losses[-1] < losses[0]

    _run(_trainer(softgate.swap(build("llama"), **places), tmp_path / "parts", 4))
    resumed = softgate.swap(build("llama"), **places)
    _run(_trainer(resumed, tmp_path / "parts", 8), resume=True)
    for (key, tensor), expected in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), f"{key} differs after resuming"
    if places["attention"] == "gated":
        assert resumed.model.layers[0].self_attn.softgate_gate.weight.abs().max() > 0

    loaded = softgate.from_pretrained(tmp_path / "parts" / "checkpoint-8")
    assert torch.equal(loaded(tokens()).logits, resumed.eval()(tokens()).logits)


def _run(trainer: Any, *, resume: bool = False) -> list[dict[str, float]]:
    trainer.train(resume_from_checkpoint=resume)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
