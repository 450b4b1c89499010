"""Train a language model without its logits: the last layer and the loss in one, whatever the vocabulary.

    python examples/fused_loss.py
    python examples/fused_loss.py --loss comp_sum --tau 1.5 --vocabulary 128000

Any model of transformers whose loss is ForCausalLMLoss does as well: softgate.integrations.fused_head.use_fused_loss.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from softgate.integrations.fused_head import use_fused_loss
from softgate.models import GPT, GPTConfig


def batch(options: argparse.Namespace, step: int) -> Tensor:
    """Rows that count up by a step of their own: easy to learn."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(options.vocabulary, (options.batch, 1), generator=generator)
    stride = torch.randint(1, 4, (options.batch, 1), generator=generator)
    return (start + stride * torch.arange(options.length + 1)) % options.vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="ce", help="ce, comp_sum, focal, stablemax, svm or zloss")
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--vocabulary", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = GPT(GPTConfig(options.vocabulary, num_layers=1, num_heads=2, embed_dim=options.width, tied_head=True))
    tokens = batch(options, 0)
    before = model(tokens[:, :-1], tokens[:, 1:])[1]

    arguments: dict[str, Any] = {"loss": options.loss, "tau": options.tau}
    handle = use_fused_loss(model, **arguments)
    logits, loss = model(tokens[:, :-1], tokens[:, 1:])
    print(
        f"cross-entropy {float(before.detach()):.6f}, fused {options.loss} {float(loss.detach()):.6f}, logits {logits}"
    )

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(options.steps):
        tokens = batch(options, step)
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {options.steps} steps")
    with handle.logits():
        print(f"logits when asked for: {tuple(model(tokens[:, :-1], tokens[:, 1:])[0].shape)}")
    handle.remove()


if __name__ == "__main__":
    main()
