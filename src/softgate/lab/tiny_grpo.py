"""GRPO with TRL: a model and a run that fit into a second without a hub, or a model of the hub on GSM8K."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from softgate.integrations import torchvision_cpu
from softgate.lab.cell import CellRun
from softgate.lab.policy_study import objective_of

WORDS = ["<pad>", "<eos>", *"abcdefgh"]


def tokenizer() -> Any:
    """One token per letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


def model() -> Any:
    """A Llama with a few thousand weights, the same in every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def dataset(rows: int = 32) -> Any:
    """Prompts of two letters."""
    from datasets import Dataset  # type: ignore[import-untyped]

    return Dataset.from_dict({"prompt": [f"{WORDS[2 + i % 8]} {WORDS[2 + i // 8]}" for i in range(rows)]})


def reward(completions: list[str], **_: Any) -> list[float]:
    """More of the letter a is better; shorter is a little better."""
    return [text.count("a") - 0.01 * len(text) for text in completions]


def config(folder: Path, **options: Any) -> Any:
    """A configuration of six updates, four of them off policy."""
    from trl import GRPOConfig  # type: ignore[attr-defined]

    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6,
        "max_steps": 6, "steps_per_generation": 2, "num_iterations": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "seed": 3, "disable_tqdm": True, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return GRPOConfig(**{**settings, **options})


def train(trainer_class: Any, args: Any, **options: Any) -> Any:
    """A trainer of the tiny model, after its run."""
    trainer = trainer_class(
        model=model(), reward_funcs=reward, args=args, train_dataset=dataset(), processing_class=tokenizer(), **options
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    """The loss of every update."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def measure_agreement(run: CellRun) -> dict[str, float | list[float]]:
    """Train the tiny model with TRL's SAPO and with ours.

    Returns:
        ``loss_gap`` and ``weight_gap``, largest absolute differences, and ``gate_mean`` over ``step``.
    """
    torchvision_cpu.repair()  # before the imports of trl
    from trl import GRPOTrainer  # type: ignore[attr-defined]

    from softgate.integrations.trl import SoftGateGRPOTrainer

    theirs = train(GRPOTrainer, config(run.folder / "trl", loss_type="sapo"))
    ours = train(SoftGateGRPOTrainer, config(run.folder / "softgate"))
    pairs = list(zip(theirs.model.parameters(), ours.model.parameters(), strict=True))
    gates = [e["softgate/gate_mean"] for e in ours.state.log_history if "softgate/gate_mean" in e]
    return {
        "loss_gap": max(abs(a - b) for a, b in zip(losses(theirs), losses(ours), strict=True)),
        "weight_gap": max(float((a - b).detach().abs().max()) for a, b in pairs),
        "gate_mean": gates,
        "step": [float(step + 1) for step in range(len(gates))],
    }


def measure_gsm8k(run: CellRun) -> dict[str, float | list[float]]:
    """Reinforce a model of the hub on grade-school mathematics with one objective.

    The configuration holds ``model``, ``objective`` (see :func:`softgate.lab.policy_study.objective_of`) and
    ``training``, arguments of ``trl.GRPOConfig``.

    Returns:
        ``best_reward``, ``final_reward`` (mean of the last tenth), ``reward`` over ``step``.
    """
    torchvision_cpu.repair()  # before the imports of trl
    from datasets import load_dataset  # type: ignore[import-untyped]
    from trl import GRPOConfig  # type: ignore[attr-defined]

    from softgate.integrations.trl import SoftGateGRPOTrainer

    data = load_dataset("openai/gsm8k", "main", split="train")
    data = data.map(lambda row: {"prompt": f"{row['question']}\nAnswer with a number after ####.\n"})
    args = GRPOConfig(output_dir=str(run.folder / "trl"), seed=run.seed, logging_steps=1, report_to="none",
                      **run.config["training"])  # fmt: skip
    trainer = SoftGateGRPOTrainer(
        model=run.config["model"], reward_funcs=_right_number, args=args, train_dataset=data,
        policy_loss=objective_of(run.config["objective"]),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=run.resume or None)
    rewards = [float(entry["reward"]) for entry in trainer.state.log_history if "reward" in entry]
    last = rewards[-max(1, len(rewards) // 10) :]
    return {
        "best_reward": max(rewards),
        "final_reward": sum(last) / len(last),
        "reward": rewards,
        "step": [float(i + 1) for i in range(len(rewards))],
    }


def _right_number(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(_last_number(text) == _last_number(right)) for text, right in zip(completions, answer, strict=True)]


def _last_number(text: str) -> str | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text.split("####")[-1])
    return found[-1].replace(",", "").rstrip(".") if found else None
