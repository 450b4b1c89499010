"""Time attention functions: ``python benchmarks/attention.py [--lengths 512 2048] [--rounds 20] [--out rows.json]``.

Each row: median time of ours and of its peers, interleaved round by round (so that a busy machine slows all alike),
their ratios, and the limit: plain scaled_dot_product_attention, which a gate cannot beat. One thread unless --threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate.attention import gated_attention

HEADS, HEAD_DIM = 8, 64


def inputs(length: int, granularity: str, training: bool, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, gate as projections give them: (B, T, H, D) transposed."""
    widths = (HEAD_DIM, HEAD_DIM, HEAD_DIM, HEAD_DIM if granularity == "elementwise" else 1)
    return [
        torch.randn(1, length, HEADS, width, dtype=dtype).transpose(1, 2).requires_grad_(training) for width in widths
    ]


def variants() -> Mapping[str, Callable[..., Tensor]]:
    """Ours, the eager composition that others use, and the limit."""

    def limit(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def eager(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True) * torch.sigmoid(gate)

    def ours(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return gated_attention(q, k, v, gate, is_causal=True)

    return {"ours": ours, "sdpa*sigmoid": eager, "sdpa (limit)": limit}


def once(op: Callable[..., Tensor], arguments: list[Tensor], upstream: Tensor | None) -> float:
    """Seconds of one forward pass, or forward and backward."""
    start = time.perf_counter()
    output = op(*arguments)
    if upstream is not None:
        torch.autograd.grad(output, arguments, upstream, allow_unused=True)
    return time.perf_counter() - start


def saved_bytes(op: Callable[..., Tensor], arguments: list[Tensor]) -> int:
    """Bytes that autograd keeps for backward, each storage once, the inputs themselves left out."""
    own = {x.untyped_storage().data_ptr() for x in arguments}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = op(*arguments)
        output.square()  # the next layer keeps this output in any case
    return sum(kept.values())


def measure(length: int, granularity: str, training: bool, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    arguments = inputs(length, granularity, training, dtype)
    upstream = torch.randn(1, length, HEADS, HEAD_DIM, dtype=dtype).transpose(1, 2) if training else None
    ops = variants()
    times: dict[str, list[float]] = {name: [] for name in ops}
    for _ in range(rounds + 1):  # the first round warms up
        for name, op in ops.items():
            times[name].append(once(op, arguments, upstream))
    quantiles = {name: statistics.quantiles(values[1:], n=10) for name, values in times.items()}
    # Ratios round by round: neighbours in time share the machine's mood, medians over a run do not.
    ratio = {
        name: statistics.median(a / b for a, b in zip(times["ours"][1:], times[name][1:], strict=True))
        for name in ops
        if name != "ours"
    }
    row: dict[str, Any] = {
        "op": "gated_attention",
        "length": length,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "gate": granularity,
        "pass": "forward+backward" if training else "forward",
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: {"p20": 1e3 * q[1], "p50": 1e3 * q[4], "p80": 1e3 * q[7]} for name, q in quantiles.items()},
        "ours / peer": ratio,
    }
    if training:
        row["saved MiB"] = {name: saved_bytes(op, arguments) / 2**20 for name, op in ops.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", help="write the rows as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = {
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": options.threads,
    }
    rows = []
    print(
        f"{'T':>6} {'gate':12} {'pass':17} {'ours':>9} {'eager':>9} {'sdpa':>9}  /eager  /sdpa  saved MiB ours, eager"
    )
    for length in options.lengths:
        for granularity in ("elementwise", "headwise"):
            for training in (False, True):
                rounds = max(3, min(options.rounds, options.rounds * 2048 // length))
                row = measure(length, granularity, training, getattr(torch, options.dtype), rounds)
                rows.append({**row, "rounds": rounds, "load": os.getloadavg()[0], **machine})
                ms, ratio, saved = row["ms"], row["ours / peer"], row.get("saved MiB")
                kept = f"{saved['ours']:9.2f} {saved['sdpa*sigmoid']:9.2f}" if saved else ""
                times = " ".join(f"{ms[name]['p50']:9.2f}" for name in ms)
                print(f"{length:6} {granularity:12} {row['pass']:17} {times}  {ratio['sdpa*sigmoid']:6.3f} "
                      f"{ratio['sdpa (limit)']:6.3f} {kept}")  # fmt: skip
    print(f"ms, median; {machine}; load average {os.getloadavg()[0]:.1f}")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as stream:
            json.dump(rows, stream, indent=1)


if __name__ == "__main__":
    main()
