"""The experts' layer against dense products of equal FLOPs and against transformers' experts implementations.

    python benchmarks/routing.py [--seconds S] [--out DIR]

One thread, candidates in turns. ``dense`` is two matrix products of the same FLOPs with one matrix each, written to
memory that exists already: what the layer would cost if routing were free. Memory is the peak of what one forward and
backward pass allocates, in rows of the size 2F + F + 2D that the layer promises to stay below, results not counted.
Figures go to DIR/benchmark-routing.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.routing import moe_ffn
from softgate.swapping.attention_interface import load_transformers

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: Tokens, D, F, E, K. The first three have 512, 256 and 128 rows per expert.
CASES = ((2048, 256, 512, 8, 2), (1024, 256, 512, 8, 2), (2048, 256, 128, 64, 4), (16, 256, 128, 64, 4))
DTYPES = (torch.float32, torch.bfloat16)


def foreign_experts(gate_up: Tensor, down: Tensor) -> Any:
    """What transformers' experts functions need of a module."""
    from transformers.integrations.moe import _default_apply_gate

    experts = SimpleNamespace(gate_up_proj=gate_up, down_proj=down, num_experts=len(down), act_fn=nn.SiLU())
    vars(experts).update(has_gate=True, has_bias=False, is_transposed=False, has_post_expert_norm=False)
    vars(experts).update(_is_expert_parallel=False, _apply_gate=lambda h: _default_apply_gate(experts, h))
    return experts


def candidates(gate_up: Tensor, down: Tensor) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """name -> f(x, indices, weights)."""
    load_transformers()
    from transformers.integrations.moe import grouped_mm_experts_forward
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    experts = foreign_experts(gate_up, down)
    eager = MixtralExperts.forward.__wrapped__
    return {
        "softgate": lambda x, indices, weights: moe_ffn(x, gate_up, down, indices, weights),
        "recompute": lambda x, indices, weights: moe_ffn(x, gate_up, down, indices, weights, recompute=True),
        "grouped_mm": lambda x, indices, weights: grouped_mm_experts_forward(experts, x, indices, weights),
        "eager": lambda x, indices, weights: eager(experts, x, indices, weights),
    }


def dense_products(rows: int, width: int, hidden: int, dtype: torch.dtype) -> Callable[[], None]:
    x, up = torch.randn(rows, width).to(dtype), torch.randn(2 * hidden, width).to(dtype)
    a, down = torch.randn(rows, hidden).to(dtype), torch.randn(width, hidden).to(dtype)
    h, y = torch.empty(rows, 2 * hidden, dtype=dtype), torch.empty(rows, width, dtype=dtype)

    def run() -> None:
        torch.mm(x, up.t(), out=h)
        torch.mm(a, down.t(), out=y)

    return run


def measure(
    tokens: int, width: int, hidden: int, experts: int, k: int, dtype: torch.dtype, seconds: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(tokens, width).to(dtype).requires_grad_()
    gate_up = (torch.randn(experts, 2 * hidden, width) / 16).to(dtype).requires_grad_()
    down = (torch.randn(experts, width, hidden) / 16).to(dtype).requires_grad_()
    indices, weights = torch.rand(tokens, experts).argsort(-1)[:, :k], torch.rand(tokens, k).requires_grad_()
    seed, leaves = torch.randn(tokens, width).to(dtype), [x, gate_up, down, weights]
    steps: dict[str, Callable[[], object]] = {"dense": dense_products(tokens * k, width, hidden, dtype)}
    both: dict[str, Callable[[], object]] = {}
    for name, run in candidates(gate_up, down).items():
        steps[f"{name} fwd"] = lambda run=run: run(x, indices, weights)
        both[name] = lambda run=run: torch.autograd.grad(run(x, indices, weights), leaves, seed)
    steps |= {f"{name} fwd+bwd": step for name, step in both.items()}
    times = interleaved(steps, turns=5, seconds=seconds, most=200)
    best = {name: timing.best for name, timing in times.items()}
    promised = tokens * k * (3 * hidden + 2 * width) * dtype.itemsize
    results = dtype.itemsize * (tokens * width + sum(leaf.numel() for leaf in leaves))
    return {
        "tokens": tokens,
        "width": width,
        "hidden": hidden,
        "experts": experts,
        "k": k,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: 1e3 * seconds for name, seconds in best.items()},
        "rate of dense": best["dense"] / best["softgate fwd"],
        "fwd+bwd / fwd": best["softgate fwd+bwd"] / best["softgate fwd"],
        "fwd / grouped_mm": best["softgate fwd"] / best["grouped_mm fwd"],
        "fwd+bwd / grouped_mm": best["softgate fwd+bwd"] / best["grouped_mm fwd+bwd"],
        "speedup over eager": best["eager fwd+bwd"] / best["softgate fwd+bwd"],
        "memory / promised": {name: (peak_bytes(step) - results) / promised for name, step in both.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="per row of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(*case, dtype, options.seconds) for dtype in DTYPES for case in CASES]
    ratios = [name for name in found[0] if "/" in name or " of " in name or "over" in name]
    ratios.remove("memory / promised")
    header = ["dtype", "T, D, F, E, K", "dense ms", "fwd ms", "fwd+bwd ms", *ratios, "memory", "grouped_mm's"]
    lines = [
        [
            f["dtype"],
            ", ".join(str(f[size]) for size in ("tokens", "width", "hidden", "experts", "k")),
            *(f["ms"][name] for name in ("dense", "softgate fwd", "softgate fwd+bwd")),
            *(f[ratio] for ratio in ratios),
            *(f["memory / promised"][name] for name in ("softgate", "grouped_mm")),
        ]
        for f in found
    ]
    table("experts' layer, fastest turn", header, lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-routing.json", {"experts": found})


if __name__ == "__main__":
    main()
