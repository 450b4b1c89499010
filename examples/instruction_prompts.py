"""Fine-tune soft prompts for two tasks on one frozen model, save them, and answer a batch of both tasks at once.

    python examples/instruction_prompts.py
    python examples/instruction_prompts.py --model-dir my-llama --steps 500

Task "up" counts on from the last letter of the instruction, task "down" counts back. Without --model-dir the model is
a tiny Llama that has seen the alphabet both ways.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from softgate.models import IAPTConfig, IAPTModel, get_iapt_model
from softgate.swapping.attention_interface import load_transformers

LETTERS, PROMPT, ANSWER = 26, 4, 3
TASKS = {"up": 1, "down": -1}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", help="folder of a causal language model of transformers")
    parser.add_argument("--steps", type=int, default=80, help="updates per task")
    parser.add_argument("--lr", type=float, default=3e-2)
    parser.add_argument("--out", default="prompts", help="folder for the prompts")
    return parser.parse_args()


def examples(direction: int, rows: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels: letters drawn at random, then the answer; labels are -100 in the instruction."""
    letters = torch.randint(LETTERS, (rows, PROMPT))
    answer = (letters[:, -1:] + direction * torch.arange(1, ANSWER + 1)) % LETTERS
    tokens = torch.cat((letters, answer), 1)
    return tokens, torch.cat((torch.full_like(letters, -100), answer), 1)


def train(model: Any, steps: int, lr: float, direction: int | None) -> float:
    """Train what learns; without a direction each row has one of its own. Returns the last loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        pairs = [examples(d, 16) for d in ((direction, direction) if direction else (1, -1))]
        tokens, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        optimizer.zero_grad()
        loss = model(tokens, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    hf = load_transformers()
    if options.model_dir:
        model = hf.AutoModelForCausalLM.from_pretrained(options.model_dir)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        tokens: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=LETTERS, initializer_range=0.2, **sizes, **tokens))
        print(f"the model alone, which cannot know the task: loss {train(model, 150, 5e-3, None):.3f}")

    prompts = get_iapt_model(model, IAPTConfig(bottleneck=8), adapter_name="up")
    prompts.add_adapter("down", IAPTConfig(bottleneck=8))
    print(f"{prompts.num_parameters()} parameters per task, the model is frozen")
    for task, direction in TASKS.items():
        prompts.set_adapter(task)
        print(f"{task}: loss {train(prompts, options.steps, options.lr, direction):.3f}")
    prompts.save_pretrained(options.out)

    again = IAPTModel.from_pretrained(prompts.unload(), options.out).eval()
    asked = examples(1, 1)[0][:, :PROMPT].repeat(2, 1)
    written = again.generate(asked, adapter_names=list(TASKS), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0)
    for task, row in zip(TASKS, written.tolist(), strict=True):
        text = "".join(chr(ord("a") + token % LETTERS) for token in row)
        print(f"{task}: {text[:PROMPT]} -> {text[PROMPT:]}")


if __name__ == "__main__":
    main()
