"""Train a small GPT on the bytes of a text, with any attention, in one process or many.

    python examples/train_gpt.py --attention gated --text my.txt
    torchrun --nproc-per-node 2 examples/train_gpt.py --strategy fsdp
    accelerate launch --multi_gpu --num_processes 2 examples/train_gpt.py

(``--multi_gpu`` also starts several processes on a CPU; ``accelerate launch --cpu`` starts one.)
Kill it at any moment; the same command with ``--resume`` continues, with any number of processes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from softgate.lab import distributed, seeds
from softgate.lab.cell import CellRun
from softgate.lab.training import TrainConfig, fit
from softgate.models import GPT, GPTConfig


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path(__file__), help="what to learn (default: this file)")
    parser.add_argument("--attention", default="softmax", help="softmax, gated, or another attention of softgate")
    parser.add_argument("--loss", default="cross_entropy")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=64, help="tokens per row")
    parser.add_argument("--batch", type=int, default=16, help="rows per update, over all processes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--strategy", default="ddp", choices=distributed.STRATEGIES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/train_gpt"))
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    text = torch.tensor(list(options.text.read_bytes()))
    cut = int(0.9 * len(text))
    training, held_out = text[:cut], text[cut:]

    def rows(source: Tensor, stream: str, step: int, count: int) -> tuple[Tensor, Tensor]:
        generator = seeds.generator(options.seed, stream, step)
        starts = torch.randint(0, len(source) - options.length - 1, (count, 1), generator=generator)
        window = source[starts + torch.arange(options.length + 1)]
        return window[:, :-1], window[:, 1:]

    def evaluate(model: nn.Module) -> dict[str, float]:
        tokens, targets = (part.to(options.device) for part in rows(held_out, "held out", 0, 32))
        return {"bits_per_byte": float(model(tokens, targets)[1]) / math.log(2)}

    seeds.seed_everything(options.seed)
    config = GPTConfig(
        vocab_size=256,
        num_layers=options.layers,
        num_heads=options.heads,
        embed_dim=options.width,
        attention=options.attention,
        loss=options.loss,
    )
    model = GPT(config)
    history = fit(
        model,
        lambda model, batch: model(*batch)[1],
        TrainConfig(
            steps=options.steps,
            lr=options.lr,
            warmup=options.steps // 10,
            weight_decay=0.1,
            eval_every=max(1, options.steps // 5),
            precision=options.precision,
            strategy=options.strategy,
        ),
        batches=lambda step: rows(training, "training", step, options.batch),
        run=CellRun(
            paper="example",
            scale="laptop",
            cell=options.attention,
            config={"text": options.text.name, "width": options.width},
            seed=options.seed,
            folder=options.folder,
            resume=options.resume,
            threads=options.threads,
            device=options.device,
        ),
        evaluate=evaluate,
    )
    if distributed.join(options.device).is_main:
        for step, bits in zip(history["eval_step"], history["bits_per_byte"], strict=True):
            print(f"step {step:4.0f}: {bits:.3f} bits per byte on held-out text")


if __name__ == "__main__":
    main()
