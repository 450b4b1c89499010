"""What the examples with transformers share: a model (yours or a tiny one) and rows of tokens from a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softgate.integrations import torchvision_cpu

torchvision_cpu.repair()  # lets transformers load where a CUDA torchvision lies beside a CPU torch

import transformers  # noqa: E402


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, help="a local folder of transformers (default: a tiny random Llama)")
    parser.add_argument("--text", type=Path, default=Path(__file__), help="what to learn (default: this file)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=48, help="tokens per row")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/swap"))
    return parser


def load(options: argparse.Namespace) -> tuple[Any, Tensor, Any]:
    """The model, the text as token ids, and the tokenizer (None: bytes)."""
    transformers.set_seed(options.seed)
    if options.model_dir is None:
        config = transformers.LlamaConfig(
            vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=options.length, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config), torch.tensor(list(options.text.read_bytes())), None
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model_dir, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model_dir, local_files_only=True)
    text = options.text.read_text(encoding="utf-8")
    return model, tokenizer(text, return_tensors="pt").input_ids[0], tokenizer


def rows(text: Tensor, options: argparse.Namespace, step: int) -> Tensor:
    """Random rows (batch, length) of the text; the same for the same seed and step."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    starts = torch.randint(0, len(text) - options.length, (options.batch, 1), generator=generator)
    return text[starts + torch.arange(options.length)]


def train(model: Any, text: Tensor, options: argparse.Namespace) -> list[float]:
    """A plain loop of AdamW; returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    losses = []
    model.train()
    for step in range(options.steps):
        batch = rows(text, options, step)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses
