"""What the execution forms of recurrent token mixers cost: chunks against a Python loop and against matrix products.

    python benchmarks/mixers.py [--seconds S] [--out DIR]

One thread, candidates in turns. The limit of the chunked form is two matrix products with as many operations as it has.
Figures go to DIR/benchmark-mixers.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate._math.recurrence import CHUNK
from softgate.attention import linear_attention, selective_scan, ssd_scan
from softgate.lab.timing import Timing, interleaved, load_per_core

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
HEADS, WIDTH = 4, 64
LENGTHS = (64, 128, 256, 2048, 8192)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def loop(value: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """SSD token by token."""
    state = torch.zeros(value.shape[0], HEADS, WIDTH, WIDTH)
    decay, written = (-delta * A[:, None]).exp()[..., None, None], value * delta[..., None]
    outputs = []
    for t in range(value.shape[2]):
        state = decay[:, :, t] * state + B[:, :, t, :, None] * written[:, :, t, None, :]
        outputs.append((C[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(outputs, 2)


def products(length: int) -> Callable[[], object]:
    """Two products with the operations of the chunked form: C (N + D) and 2 N D multiplications per token and head."""
    inner = CHUNK + WIDTH  # (C + N) D + (C + D) N = 2 W (C + W) for N = D = W
    a, b = draw(HEADS, length, WIDTH), draw(HEADS, WIDTH, inner)
    return lambda: a @ b @ b.mT


def measure(length: int, seconds: float) -> dict[str, Any]:
    value, B, C = (draw(1, HEADS, length, WIDTH) for _ in range(3))
    delta, A = torch.rand(1, HEADS, length), torch.rand(HEADS) + 0.5
    u, steps, A_full = draw(1, length, WIDTH), torch.rand(1, length, WIDTH), torch.rand(WIDTH, 16) + 0.5
    b, c = draw(1, length, 16), draw(1, length, 16)
    candidates: dict[str, Callable[[], object]] = {
        "ssd chunked": lambda: ssd_scan(value, delta, A, B, C),
        "linear attention, state": lambda: linear_attention(B, C, value, is_causal=True, backend="chunked"),
        "linear attention, matrix": lambda: linear_attention(B, C, value, is_causal=True, backend="reference"),
        "two products": products(length),
        "selective scan": lambda: selective_scan(u, steps, A_full, b, c),
    }
    times = interleaved(candidates, turns=5, seconds=seconds, most=200)
    times |= interleaved({"loop": lambda: loop(value, delta, A, B, C)}, turns=3, most=5)
    return row(length, times)


def row(length: int, times: dict[str, Timing]) -> dict[str, Any]:
    def ratio(one: str, other: str) -> float:
        return times[one].median / times[other].median

    return {
        "length": length,
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        "loop / ssd": ratio("loop", "ssd chunked"),
        "ssd / products": ratio("ssd chunked", "two products"),
        "matrix / state": ratio("linear attention, matrix", "linear attention, state"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the table")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        found = [measure(length, options.seconds) for length in options.lengths]
    ratios = ["loop / ssd", "ssd / products", "matrix / state"]
    lines = [[f["length"], *f["ms"].values(), *(f[name] for name in ratios)] for f in found]
    title = f"one forward pass, {HEADS} heads, N = D = {WIDTH} (selective scan: {WIDTH} channels, N = 16), ms (median)"
    table(title, ["length", *found[0]["ms"], *ratios], lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-mixers.json", {"mixers": found})


if __name__ == "__main__":
    main()
