"""A tokenizer, a model and a GRPO run that fit into a second, without a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["<pad>", "<eos>", *"abcdefgh"]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def dataset(rows: int = 32) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [f"{WORDS[2 + i % 8]} {WORDS[2 + i // 8]}" for i in range(rows)]})


def reward(completions: list[str], **_: Any) -> list[float]:
    """More of the letter a is better; shorter is a little better."""
    return [text.count("a") - 0.01 * len(text) for text in completions]


def config(folder: Path, **options: Any) -> Any:
    from trl import GRPOConfig

    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6,
        "max_steps": 6, "steps_per_generation": 2, "num_iterations": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "seed": 3, "disable_tqdm": True, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return GRPOConfig(**{**settings, **options})


def train(trainer_class: type, args: Any, **options: Any) -> Any:
    trainer = trainer_class(
        model=model(), reward_funcs=reward, args=args, train_dataset=dataset(), processing_class=tokenizer(), **options
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
