"""Reinforcing a language model on questions with a checkable number, by ADPO or GRPO, in TRL's trainer."""

from __future__ import annotations

import importlib
import re
from typing import Any

from softgate.errors import check_choice
from softgate.lab.cell import CellRun
from softgate.policy import AdaptiveTau, ADPOLoss

__all__ = ["correct_number", "measure_llm"]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_INSTRUCTION = "\nThink step by step and end with the answer as a number after ####."


def correct_number(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 where the last number of a completion is that of the answer, else 0.

    Args:
        completions: texts, or chats whose last message is the answer.
        answer: texts that end with the right number.
    """
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    pairs = zip(texts, answer, strict=True)
    return [float((found := _last_number(text)) is not None and found == _last_number(right)) for text, right in pairs]


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def measure_llm(run: CellRun) -> dict[str, Any]:
    """Train ``run.config["model"]`` with ``method`` ``"adpo"`` or ``"grpo"``.

    The configuration holds moreover ``data`` (name of a data set of the hub, or a JSON Lines file, with ``question``
    and ``answer``), ``answers`` to a question, ``tokens`` of an answer, ``batch`` and ``accumulation``, ``lr``,
    ``steps``, and for ADPO ``tau``, ``beta`` and ``alpha`` (what entropy adds to tau).

    Returns:
        ``peak_reward`` (of the mean over ten logged steps), ``mean_reward`` and the curve ``reward_curve``.
    """
    config = run.config
    check_choice("method", config["method"], ("adpo", "grpo"))
    # before trl is imported: it says which extra is missing, and mends torchvision where that stops transformers
    adapters = importlib.import_module("softgate.integrations.trl.listwise")
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(run.folder / "trainer"), per_device_train_batch_size=config["batch"],
        gradient_accumulation_steps=config["accumulation"], num_generations=config["answers"],
        max_completion_length=config["tokens"], max_steps=config["steps"], learning_rate=config["lr"],
        lr_scheduler_type="cosine", beta=0.0, logging_steps=1, save_strategy="no", report_to="none", seed=run.seed,
        use_cpu=run.device == "cpu", bf16=run.device != "cpu", gradient_checkpointing=run.device != "cpu",
        disable_tqdm=True,
    )  # fmt: skip
    common: dict[str, Any] = {
        "model": config["model"], "args": arguments, "reward_funcs": correct_number,
        "train_dataset": _questions(config["data"]),
    }  # fmt: skip
    if config["method"] == "grpo":
        trainer: Any = GRPOTrainer(**common)
    else:
        rule = AdaptiveTau(tau=config["tau"], alpha=config["alpha"])
        trainer = adapters.ADPOTrainer(objective=ADPOLoss(beta=config["beta"], adaptive=rule), **common)
    trainer.train()
    rewards = [float(entry["reward"]) for entry in trainer.state.log_history if "reward" in entry]
    width = min(10, len(rewards))
    smooth = [sum(rewards[i : i + width]) / width for i in range(len(rewards) - width + 1)]
    return {
        "peak_reward": max(smooth),
        "mean_reward": sum(rewards) / len(rewards),
        "reward_curve": rewards,
        "step": [float(i + 1) for i in range(len(rewards))],
    }


def _questions(name: str) -> Any:
    """Prompts and answers of a data set of the hub, or of a JSON Lines file."""
    load_dataset: Any = importlib.import_module("datasets").load_dataset
    if name.endswith(".jsonl"):
        rows = load_dataset("json", data_files=name, split="train")
    else:
        rows = load_dataset(name, "main", split="train")
    return rows.map(lambda row: {"prompt": row["question"] + _INSTRUCTION})
