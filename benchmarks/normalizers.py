"""Softmax of long and short rows against torch, oneDNN and scipy, against the memory bandwidth, and its accuracy.

    python benchmarks/normalizers.py [SECTION ...] [--seconds S] [--out DIR]

Sections: grid, algorithms, threads, gradients, peers, accuracy (all if none is named). All with preallocated outputs,
one thread unless stated, candidates in turns. Figures go to DIR/benchmark-normalizers.json, the accuracy table to
DIR/accuracy-two-pass-softmax.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _timing import CONSOLE, nanoseconds, table, touched, write_record
from softgate import native
from softgate.lab.timing import bandwidth_candidates, interleaved, load_per_core
from softgate.normalizers import log_softmax, softmax
from softgate.normalizers.two_pass.kernel import LOG_SOFTMAX, SOFTMAX, launch, native_gradient
from softgate.papers.two_pass_softmax import ALGORITHMS, rivals
from softgate.testing.budgets import ulp_error

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
LARGEST = 2**27
ROWS = (1, 4, 64, 512, 4096)


def grid(seconds: float) -> list[dict[str, Any]]:
    """Ours over torch for every row length from 16 to 2^26 and 1 to 4096 rows."""
    found = []
    for log2 in range(4, 27):
        for rows in ROWS:
            if rows << log2 > LARGEST:
                continue
            x, y = touched(rows, 2**log2)
            pair = {"ours": lambda x=x, y=y: softmax(x, out=y), "torch": lambda x=x, y=y: torch.softmax(x, -1, out=y)}
            times = interleaved(pair, turns=9, seconds=seconds, most=400)
            ours, theirs = (nanoseconds(times[name], x.numel()) for name in ("ours", "torch"))
            median = times["torch"].median / times["ours"].median
            found.append({"n": 2**log2, "rows": rows, "ours_ns": ours, "torch_ns": theirs, "speedup": theirs / ours,
                          "median_speedup": median})  # fmt: skip
        CONSOLE.print(
            f"n = 2^{log2}: " + "  ".join(f"{f['rows']}: {f['speedup']:.2f}x" for f in found if f["n"] == 2**log2)
        )
    worst = min(found, key=lambda f: f["speedup"])
    CONSOLE.print(f"slowest against torch: {worst['speedup']:.2f}x at {worst['rows']} rows of {worst['n']}")
    return found


def algorithms(seconds: float) -> list[dict[str, Any]]:
    """Every algorithm on one row, beside torch and the bandwidth of the same moment."""
    found = []
    for isa in [isa for isa in native.info()["isas"] if isa != "scalar"]:
        for log2 in (13, 15, 17, 18, 20, 22, 24, 25, 26):
            x, y = touched(2**log2)
            candidates: dict[str, Callable[[], object]] = {
                name: lambda plan=native.ALGORITHMS[a], x=x, y=y: launch(SOFTMAX, x, -1, plan, False, 1, y)
                for name, a in ALGORITHMS.items()
            }
            candidates["auto"] = lambda x=x, y=y: softmax(x, out=y)
            candidates["torch"] = lambda x=x, y=y: torch.softmax(x, -1, out=y)
            candidates |= bandwidth_candidates(x.data_ptr(), y.data_ptr(), x.numel())
            with native.use_isa(isa):
                times = interleaved(candidates, turns=9, seconds=seconds, most=400)
            ns = {name: nanoseconds(timing, x.numel()) for name, timing in times.items()}
            floor = ns["read"] + ns["nt_copy"]
            found.append({"isa": isa, "n": 2**log2, **ns, "speedup_over_torch": ns["torch"] / ns["auto"],
                          "two_pass_over_recompute": ns["recompute"] / ns["two_pass"],
                          "two_pass_over_floor": ns["two_pass"] / floor})  # fmt: skip
    header = ["isa", "n", *ALGORITHMS, "auto", "torch", "read", "copy", "nt_copy", "speedup_over_torch",
              "two_pass_over_recompute", "two_pass_over_floor"]  # fmt: skip
    table("one row, ns per element", header, [[row[name] for name in header] for row in found])
    return found


def threads(seconds: float) -> list[dict[str, Any]]:
    """Two threads against one, on many rows and on one huge row."""
    found = []
    for rows, n in ((4096, 16384), (64, 2**20), (1, 2**24), (1, 2**26)):
        x, y = touched(rows, n)
        candidates = {str(t): lambda t=t, x=x, y=y: softmax(x, out=y, num_threads=t) for t in (1, 2)}
        times = interleaved(candidates, turns=9, seconds=seconds, most=200)
        found.append({"rows": rows, "n": n, "one_ns": nanoseconds(times["1"], x.numel()),
                      "two_ns": nanoseconds(times["2"], x.numel()),
                      "speedup": times["1"].best / times["2"].best})  # fmt: skip
    table("two threads over one", list(found[0]), [list(row.values()) for row in found])
    return found


def gradients(seconds: float) -> list[dict[str, Any]]:
    """log_softmax, and the backward passes of both, against torch's."""
    found = []
    softmax_backward = torch.ops.aten._softmax_backward_data.out
    log_softmax_backward = torch.ops.aten._log_softmax_backward_data.out
    for rows, n in ((4096, 128), (512, 4096), (64, 50257), (8, 2**20), (1, 2**24)):
        x, y = touched(rows, n)
        p, log_p, dy = x.softmax(-1), x.log_softmax(-1), torch.randn_like(x)
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "log_softmax": (lambda x=x, y=y: log_softmax(x, out=y), lambda x=x, y=y: torch.log_softmax(x, -1, out=y)),
            "softmax backward": (
                lambda p=p, dy=dy, y=y: native_gradient(SOFTMAX, p, dy, 1, 1, y),
                lambda p=p, dy=dy, y=y: softmax_backward(dy, p, -1, torch.float32, grad_input=y),
            ),
            "log_softmax backward": (
                lambda log_p=log_p, dy=dy, y=y: native_gradient(LOG_SOFTMAX, log_p, dy, 1, 1, y),
                lambda log_p=log_p, dy=dy, y=y: log_softmax_backward(dy, log_p, -1, torch.float32, out=y),
            ),
        }
        for name, (ours, theirs) in pairs.items():
            times = interleaved({"ours": ours, "torch": theirs}, turns=9, seconds=seconds, most=400)
            a, b = (nanoseconds(times[which], x.numel()) for which in ("ours", "torch"))
            found.append({"op": name, "rows": rows, "n": n, "ours_ns": a, "torch_ns": b, "speedup": b / a})
    table("logarithm and gradients", list(found[0]), [list(r.values()) for r in found])
    return found


def peers(seconds: float) -> list[dict[str, Any]]:
    """Every rival on one row."""
    found = []
    for log2 in (10, 17, 20, 24):
        x, y = touched(2**log2)
        candidates = {"ours": lambda x=x, y=y: softmax(x, out=y), **rivals(x, y)}
        times = interleaved(candidates, turns=9, seconds=seconds, most=400)
        found.append({"n": 2**log2, **{name: nanoseconds(t, x.numel()) for name, t in times.items()}})
    table(
        "peers, one row, ns per element (oneDNN and scipy allocate)", list(found[0]), [list(r.values()) for r in found]
    )
    return found


def accuracy(_: float) -> list[dict[str, Any]]:
    """Largest error in ULP against float64, and the error of the row sums, ours and torch's."""
    found = []
    generator = torch.Generator().manual_seed(0)
    for n in (1, 16, 100, 1000, 10_000, 100_000, 1_000_000, 2**24):
        x = 3 * torch.randn(max(1, min(64, 10**6 // n)), n, generator=generator)
        truth = x.double().softmax(-1)
        results = {"torch": torch.softmax(x, -1)}
        for isa in native.info()["isas"]:
            with native.use_isa(isa):
                results |= {f"{isa} {name}": softmax(x, algorithm=a) for name, a in ALGORITHMS.items()}
        for name, y in results.items():
            found.append({"n": n, "what": name, "max_ulp": float(ulp_error(y, truth).max()),
                          "sum_error": float((y.double().sum(-1) - 1).abs().max())})  # fmt: skip
    shown = [row for row in found if row["what"] in ("torch", "avx512 two_pass", "avx512 reload", "avx2 two_pass")]
    table("accuracy against float64", list(found[0]), [list(row.values()) for row in shown])
    return found


SECTIONS = {f.__name__: f for f in (grid, algorithms, threads, gradients, peers, accuracy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--seconds", type=float, default=0.5, help="at least this long per set of candidates")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    if load_per_core() > 0.5:
        CONSOLE.print(f"[yellow]load per core is {load_per_core():.2f}: times will be noisy[/]")
    for name in options.sections or SECTIONS:
        figures = SECTIONS[name](options.seconds)
        file = "accuracy-two-pass-softmax.json" if name == "accuracy" else "benchmark-normalizers.json"
        write_record(options.out / file, {name: figures})


if __name__ == "__main__":
    main()
