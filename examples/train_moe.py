"""Train a small GPT whose feed-forward layers are mixtures of experts, with the experts spread over processes.

    python examples/train_moe.py --steps 100
    torchrun --nproc-per-node 2 examples/train_moe.py --ep 2

``--ep N`` gives each of N processes a part of the experts; the others hold copies of these parts. Every process
reads its own rows. The router is balanced by a bias that follows the load (no balance loss).
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from softgate.lab import seeds
from softgate.models import GPT, GPTConfig
from softgate.routing import MoE, SigmoidBias, aux_losses, average_gradients, parallelize, update_gates


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path(__file__), help="what to learn (default: this file)")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--length", type=int, default=48, help="tokens per row")
    parser.add_argument("--batch", type=int, default=8, help="rows per update, over all processes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--ep", type=int, default=1, help="processes that share the experts of a layer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build(options: argparse.Namespace) -> GPT:
    """The lab's GPT with a mixture of experts in the place of every feed-forward layer."""
    width = options.width
    model = GPT(GPTConfig(vocab_size=256, num_layers=options.layers, num_heads=4, embed_dim=width))
    for block in model.blocks:
        gate = SigmoidBias(width, options.experts, options.top_k, bias_update=1e-2)
        block.ffn = MoE(width, width, options.experts, gate=gate, n_shared=1, aux={"z": 1e-3}, n_layers=options.layers)
    return model.to(options.device)


def rows(text: Tensor, options: argparse.Namespace, step: int) -> tuple[Tensor, Tensor]:
    """The tokens and targets of this process."""
    starts = torch.randint(
        0, len(text) - options.length - 1, (options.batch, 1), generator=seeds.generator(options.seed, "rows", step)
    )
    window = text[starts + torch.arange(options.length + 1)].to(options.device)
    window = window[dist.get_rank() :: dist.get_world_size()]
    return window[:, :-1], window[:, 1:]


def main() -> None:
    options = parse()
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)  # without torchrun: a world of one
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    try:
        train(options)
    finally:
        dist.destroy_process_group()


def train(options: argparse.Namespace) -> None:
    world = dist.get_world_size()
    mesh = init_device_mesh(
        options.device.split(":")[0], (world // options.ep, options.ep), mesh_dim_names=("dp", "ep")
    )
    seeds.seed_everything(options.seed)
    model = build(options)
    parallelize(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.1, foreach=False)
    text = torch.tensor(list(options.text.read_bytes()))
    for step in range(options.steps):
        _, loss = model(*rows(text, options, step))
        optimizer.zero_grad()
        (loss + sum(aux_losses(model).values())).backward()
        average_gradients(model, mesh)
        optimizer.step()
        update_gates(model)
        if step % max(1, options.steps // 5) == 0 or step == options.steps - 1:
            report(model, step, loss.detach())


def report(model: GPT, step: int, loss: Tensor) -> None:
    """Mean loss over the processes; the busiest expert of the first layer, over all tokens."""
    layer = model.blocks[0].ffn
    assert isinstance(layer, MoE)
    load = layer.stats["load"]
    for tensor in (loss, load):
        dist.all_reduce(tensor)
    if dist.get_rank() == 0:
        bits = float(loss) / dist.get_world_size() / math.log(2)
        busiest = float(load.max() / load.float().mean())
        print(f"step {step:4d}: {bits:.3f} bits per byte, the busiest expert has {busiest:.2f} times its share")


if __name__ == "__main__":
    main()
