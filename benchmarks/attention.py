"""Attention functions against torch's scaled_dot_product_attention and the eager T × T composite.

    python benchmarks/attention.py [SECTION …] [--lengths 512 2048 8192] [--turns N] [--threads N] [--out DIR]
    python benchmarks/attention.py [SECTION …] --device cuda [--dtype bfloat16] [--batch 4] [--heads 16] [--width 128]

float32, one sequence, 8 heads of 64 features, candidates in turns, medians; fewer turns where a run takes seconds, so
that all sections together take about eight minutes. ``limit`` is the time of the matrix products alone at the rate of a
large product measured in the same turns: no attention on this machine can be faster. Figures go to
DIR/benchmark-attention.json, those of a GPU to DIR/benchmark-attention-cuda.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.attention import (
    clipped_softmax_attention,
    gated_attention,
    norm_aware_linear_attention,
    sigmoid_attention,
    softmax_free_attention,
    softplus_attention,
)
from softgate.lab.timing import Timing, interleaved, load_per_core
from softgate.registry import record_of

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
LANDMARKS = 49
#: The eager composites hold several T × T matrices per head; beyond this they no longer fit beside each other.
LONGEST_EAGER = 2048
#: From this length on a run of any method takes seconds on a CPU: one or two turns tell as much as many short ones.
LONG = 8192
#: Turns of the composites, which are several times slower than what they are beside.
EAGER_TURNS = 2

Attention = Callable[..., Tensor]


def methods(length: int) -> Mapping[str, Attention]:
    """Every tiled method as ``f(q, k, v, gate, is_causal=…)``."""
    return {name: adapted(name, function, fixed) for name, (function, fixed) in calls(length).items()}


def eager(name: str, length: int) -> Attention:
    """The plain-torch reference of a method: what one writes without a kernel."""
    function, fixed = calls(length)[name]
    return adapted(name, record_of(function).reference, fixed)


def calls(length: int) -> Mapping[str, tuple[Attention, Mapping[str, Any]]]:
    """The public function of every tiled method, and the arguments that it is timed with."""
    return {
        "gated": (gated_attention, {}),
        "sigmoid": (sigmoid_attention, {"bias": -math.log(length)}),
        "lssa": (softplus_attention, {"reweight_power": None}),
        "lssar": (softplus_attention, {"reweight_power": 15}),
        "clipped": (clipped_softmax_attention, {"alpha": 4.0, "max_seq_len": length}),
    }


def adapted(name: str, function: Attention, fixed: Mapping[str, Any]) -> Attention:
    """``function`` with its arguments fixed; only gated attention takes the gate."""
    if name == "gated":
        return function
    return lambda q, k, v, gate, **options: function(q, k, v, **fixed, **options)


def draw(options: argparse.Namespace, *shape: int) -> Tensor:
    """Random numbers where, and as what, the attention computes."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(options.device, options.dtype)


def inputs(options: argparse.Namespace, length: int, training: bool) -> list[Tensor]:
    """q, k, v and a headwise gate as projections give them: (B, T, H, D) transposed."""
    both = draw(options, 3, options.batch, length, options.heads, options.width)
    gate = draw(options, options.batch, length, options.heads, 1)
    return [x.transpose(1, 2).requires_grad_(training) for x in (*both.unbind(), gate)]


def product(options: argparse.Namespace) -> tuple[Callable[[], object], float]:
    """A matrix product large enough to run at the machine's rate, and its floating-point operations."""
    size = 1024 if options.device == "cpu" else 8192
    a, b = draw(options, 2, size, size).unbind()
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def operations(options: argparse.Namespace, length: int, causal: bool, products: int) -> float:
    """Floating-point operations of ``products`` T × T × D matrix products over all heads."""
    pairs = length * (length + 1) / 2 if causal else length**2
    return 2.0 * products * options.batch * options.heads * options.width * pairs


def call(function: Attention, tensors: list[Tensor], causal: bool, upstream: Tensor | None) -> Callable[[], object]:
    """One forward pass, or forward and backward, without arguments."""

    def run() -> object:
        if upstream is None:
            with torch.no_grad():
                return function(*tensors, is_causal=causal)
        return torch.autograd.grad(function(*tensors, is_causal=causal), tensors, upstream, allow_unused=True)

    return run


def sdpa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **options)


def compare(options: argparse.Namespace, training: bool) -> list[dict[str, Any]]:
    rows = []
    for length in options.lengths:
        long = length >= LONG and options.device == "cpu"
        turns = options.turns if not long else (1 if training else 2)
        for causal in (False, True):
            tensors = inputs(options, length, training)
            upstream = torch.randn_like(tensors[0]) if training else None
            gemm, gemm_operations = product(options)
            names = [name for name in methods(length) if name != "lssa" or not (training and long)]
            candidates = {"sdpa": call(sdpa, tensors, causal, upstream), "gemm": gemm}
            candidates |= {name: call(methods(length)[name], tensors, causal, upstream) for name in names}
            times = interleaved(candidates, turns=turns, device=options.device)
            if length <= LONGEST_EAGER:
                composites = {f"{name} eager": call(eager(name, length), tensors, causal, upstream) for name in names}
                times |= interleaved(composites, turns=EAGER_TURNS, device=options.device)
            # Queries and keys, weights and values; backward has the scores again and four more.
            limit = operations(options, length, causal, 7 if training else 2) * times["gemm"].median / gemm_operations
            rows += [_row(name, length, causal, times, limit) for name in names]
    title = "forward and backward" if training else "forward"
    table(f"{title}, milliseconds (medians)", list(rows[0]), [list(r.values()) for r in rows])
    return rows


def _row(name: str, length: int, causal: bool, times: Mapping[str, Timing], limit: float) -> dict[str, Any]:
    ours, peer = times[name].median, times["sdpa"].median
    composite = times[f"{name} eager"].median if f"{name} eager" in times else None
    return {
        "op": name,
        "T": length,
        "causal": causal,
        "ours_ms": 1e3 * ours,
        "sdpa_ms": 1e3 * peer,
        "ours/sdpa": ours / peer,
        "eager/ours": None if composite is None else composite / ours,
        "limit_ms": 1e3 * limit,
        "ours/limit": ours / limit,
    }


def forward(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every tiled method, forward."""
    return compare(options, training=False)


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every tiled method, forward and backward; LSSA, which is LSSAR without its second stage, not at great length."""
    return compare(options, training=True)


def linear(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Methods that are linear in the length: how the time grows, and where they stand beside SDPA."""
    found = []
    for length in (1024, 4096, 16_384):
        q, k, v, _ = inputs(options, length, training=False)
        landmarks = draw(options, options.batch, options.heads, LANDMARKS, options.width) / options.width**0.25
        scaled = (q / options.width**0.25).contiguous()
        candidates: dict[str, Callable[[], object]] = {
            "nala": lambda q=q, k=k, v=v: norm_aware_linear_attention(q, k, v),
            "nala causal": lambda q=q, k=k, v=v: norm_aware_linear_attention(q, k, v, is_causal=True),
            "soft": lambda q=scaled, v=v, m=landmarks: softmax_free_attention(q, v, m, normalized=False),
            "soft++": lambda q=scaled, v=v, m=landmarks: softmax_free_attention(q, v, m, normalized=True),
            "sdpa": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
            "sdpa causal": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        }
        peers = {name: candidates.pop(name) for name in ("sdpa", "sdpa causal")}
        with torch.no_grad():
            times = interleaved(candidates, turns=options.turns, device=options.device)
            peer_turns = options.turns if length < LONG or options.device != "cpu" else 1
            times |= interleaved(peers, turns=peer_turns, device=options.device)
        found += [{"op": name, "T": length, "ms": 1e3 * t.median} for name, t in times.items()]
    at = {(row["op"], row["T"]): row["ms"] for row in found}
    for row in found:
        peer = "sdpa causal" if row["op"].endswith("causal") else "sdpa"
        row["over sdpa"] = row["ms"] / at[peer, row["T"]]
        row["over a quarter of the length"] = row["ms"] / at[row["op"], row["T"] // 4] if row["T"] > 1024 else None
    table("linear in the length, forward", list(found[0]), [list(r.values()) for r in found])
    return found


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Most memory allocated at a time by one forward and backward pass, beside one T × T matrix of scores."""
    found = []
    for length in (2048, 4096):
        tensors = inputs(options, length, training=True)
        upstream = torch.randn_like(tensors[0])
        scores = options.batch * options.heads * length**2 * 4 / 2**20
        for name, function in {"sdpa": sdpa, **methods(length)}.items():
            mib = peak_bytes(call(function, tensors, True, upstream), options.device) / 2**20
            row = {"op": name, "T": length, "peak_MiB": mib, "all scores_MiB": scores}
            if name != "sdpa" and length <= LONGEST_EAGER:
                composite = call(eager(name, length), tensors, True, upstream)
                row["eager_MiB"] = peak_bytes(composite, options.device) / 2**20
            found.append({"eager_MiB": None, **row})
    table("peak memory, forward and backward, causal", list(found[0]), [list(r.values()) for r in found])
    return found


SECTIONS = {f.__name__: f for f in (forward, training, linear, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="features per head")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    torch.set_num_threads(options.threads)
    if load_per_core() > 0.5:
        CONSOLE.print(f"[yellow]load per core is {load_per_core():.2f}: times will be noisy[/]")
    for name in options.sections or SECTIONS:
        file, section = record_name(options, name)
        write_record(options.out / file, {section: SECTIONS[name](options)})


def record_name(options: argparse.Namespace, section: str) -> tuple[str, str]:
    """The file of a section's figures, and their name in it."""
    if options.device == "cuda":
        kind = str(options.dtype).removeprefix("torch.")
        return "benchmark-attention-cuda.json", f"{section}_{kind}_{options.batch}x{options.heads}x{options.width}"
    return "benchmark-attention.json", section + ("" if options.threads == 1 else f"_{options.threads}_threads")


if __name__ == "__main__":
    main()
