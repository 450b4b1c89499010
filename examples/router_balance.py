"""Watch the load of the experts while a mixture of experts trains on skewed tokens, balanced in three ways.

    python examples/router_balance.py
    python examples/router_balance.py --steps 600 --experts 16 --plot balance.svg

``none`` leaves the router alone. ``loss`` adds a load-balancing loss, whose gradient also pulls on what the router
learns from the task. ``bias`` moves a bias per expert against its load after every step, which decides who is chosen
and changes no gradient (its gate scores experts by sigmoids, as in DeepSeek-V3). Printed is how far the busiest expert
is above the mean load (0: equal; E / K - 1 at worst), and the error of the task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from softgate.lab import seeds
from softgate.lab.paper import Plot
from softgate.lab.plots import draw
from softgate.routing import MoE, SigmoidBias, aux_losses, update_gates

BALANCES = ("none", "loss", "bias")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balance", nargs="+", choices=BALANCES, default=list(BALANCES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=512, help="per step")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--skew", type=float, default=0.6, help="size of the mean that all tokens share")
    parser.add_argument("--coefficient", type=float, default=0.1, help="of the load-balancing loss")
    parser.add_argument("--rate", type=float, default=1e-2, help="size of one update of the bias")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="svg file to draw the curves to")
    return parser.parse_args()


class Tokens:
    """Tokens around one mean, and targets by one of several linear maps, told apart by a direction of the token."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        generator, width = seeds.generator(options.seed, "task"), options.width
        self.mean = options.skew * torch.randn(width, generator=generator)
        self.directions = torch.randn(4, width, generator=generator)
        self.maps = torch.randn(4, width, width, generator=generator) / width**0.5

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = seeds.generator(self.options.seed, "tokens", step)
        x = self.mean + torch.randn(self.options.tokens, self.options.width, generator=generator)
        kind = (x @ self.directions.t()).argmax(1)
        return x, torch.einsum("td,tde->te", x, self.maps[kind])


def build(balance: str, options: argparse.Namespace) -> MoE:
    torch.manual_seed(options.seed)
    width, experts = options.width, options.experts
    aux = {"load_balance": options.coefficient} if balance == "loss" else None
    if balance == "bias":
        gate = SigmoidBias(width, experts, options.top_k, bias_update=options.rate)
        return MoE(width, 2 * width, experts, gate=gate, aux=aux)
    return MoE(width, 2 * width, experts, options.top_k, aux=aux)


def train(balance: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Curves over the steps, and the last loads of the experts, the busiest first."""
    layer, tokens = build(balance, options), Tokens(options)
    optimizer = torch.optim.Adam(layer.parameters(), lr=options.lr)
    curves: dict[str, list[float]] = {"step": [], "violation": [], "error": []}
    for step in range(options.steps):
        x, y = tokens.batch(step)
        error = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        (error + sum(aux_losses(layer).values())).backward()
        optimizer.step()
        curves["step"].append(step)
        curves["violation"].append(float(layer.stats["max_violation"]))
        curves["error"].append(error.item())
        update_gates(layer)
    load = layer.stats["load"].double()
    return {**curves, "load": (load / load.sum()).sort(descending=True).values.tolist()}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # the tensors are small
    found = {balance: train(balance, options) for balance in options.balance}
    span = max(1, options.steps // 10)
    shown = range(0, options.steps, max(span, options.steps // 5))
    print("busiest expert above the mean load")
    print("step " + "".join(f"{balance:>8}" for balance in found))
    for step in shown:
        print(
            f"{step:4d} "
            + "".join(f"{mean(curves['violation'][step : step + span]):8.2f}" for curves in found.values())
        )
    for balance, curves in found.items():
        load = " ".join(f"{100 * share:.0f}" for share in curves["load"])
        last = mean(curves["violation"][-span:])
        print(f"{balance}: at the end {last:.2f}, error {mean(curves['error'][-span:]):.3f}, loads in per cent {load}")
    if options.plot is not None:
        plot = Plot("balance", "lines", "violation", "The busiest expert while training", x="step", xlabel="update",
                    ylabel="load above the mean, as a share of it")  # fmt: skip
        picture = draw(plot, {balance: [curves] for balance, curves in found.items()})
        options.plot.write_text(picture or "", encoding="utf-8")
        print(f"wrote {options.plot}")


if __name__ == "__main__":
    main()
