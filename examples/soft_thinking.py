"""Teach a language model to think in mixtures of tokens, by reinforcement, with TRL.

    python examples/soft_thinking.py
    python examples/soft_thinking.py --steps 200 --thoughts 4 --reduce sum

The model is random and tiny, and has to learn to answer with the word that it was asked; put your own model, tokenizer,
data and reward in place, and the id of the token that ends its thoughts.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch

from softgate.integrations.trl.soft_thinking import SoftThinkingGRPOTrainer  # before transformers and trl, see its docs
from softgate.policy import SoftSampling, SoftThinkingGenerator

WORDS = ["<pad>", "<eos>", "<answer>", "red", "green", "blue", "white"]


def tiny_model() -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def right(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 where the last word of the response is that of the prompt; thoughts count as their strongest candidates."""
    return [float(text.split()[-1:] == prompt.split()[-1:]) for prompt, text in zip(prompts, completions, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--thoughts", type=int, default=2, help="largest number of soft tokens")
    parser.add_argument("--tau", type=float, default=0.1, help="temperature of the mixture; small: nearly one token")
    parser.add_argument("--reduce", default="mean", help="mean (the paper's), sum or concrete")
    options = parser.parse_args()
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig

    torch.manual_seed(0)
    model, tokenizer = tiny_model()
    sampling, end = SoftSampling(k=4, tau=options.tau), WORDS.index("<answer>")
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=options.steps, learning_rate=1e-2, per_device_train_batch_size=32,
            num_generations=8, max_completion_length=options.thoughts + 2, num_iterations=2, logging_steps=1,
            report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = SoftThinkingGRPOTrainer(
            model=model, reward_funcs=right, args=config, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": WORDS[3:] * 64}),
            end_think_id=end, max_think=options.thoughts, sampling=sampling, reduce=options.reduce,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"right answers: {rewards[0]:.2f} -> {rewards[-1]:.2f}")

    # the same sampling as in training, without the trainer
    thinker = SoftThinkingGenerator(model, end, eos_id=1, pad_id=0, max_think=options.thoughts, max_answer=1,
                                    sampling=sampling)  # fmt: skip
    rollout = thinker.generate(tokenizer(WORDS[3:], return_tensors="pt")["input_ids"])
    for word, row, soft, weights in zip(
        WORDS[3:], rollout.ids, rollout.token.is_soft, rollout.token.weights, strict=True
    ):
        steps = [
            f"{WORDS[token]} ({weight:.0%})" if mixed else WORDS[token]
            for token, mixed, weight in zip(row.tolist(), soft.tolist(), weights[:, 0].tolist(), strict=True)
        ]
        print(f"{word}: {', '.join(steps)}")


if __name__ == "__main__":
    main()
