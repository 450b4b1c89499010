"""Fused linear losses, forward and backward, against eager, torch's own and Liger's, and three matrix products.

    python benchmarks/fused_linear.py [--shapes N,d,V ...] [--turns T] [--out DIR]

One thread, float32, candidates in turns. gemm3 is the limit: the three products of the same shapes into memory that is
there. Extra memory is the peak of what a step allocates beyond the gradients it returns. Figures go to
DIR/benchmark-fused-linear.json. Smoke: --shapes 512,256,8000.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import fused_linear_loss

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPES = ((512, 256, 8_000), (1024, 512, 32_000), (4096, 256, 32_000), (4096, 512, 128_000))
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_eager": {"backend": "eager"},
    "ours_gce": {"loss": "comp_sum", "tau": 1.7},
    "ours_stablemax": {"loss": "stablemax"},
    "ours_svm": {"loss": "svm"},
    "ours_zloss": {"loss": "zloss"},
    "ours_rows": {"reduction": "none"},
}
#: From this many multiplications a product on, a step takes so long that the variants of ours are left out and three
#: turns are taken.
LONG = 2**37
Step = Callable[[], object]


def steps_of(x: Tensor, w: Tensor, y: Tensor) -> dict[str, Step]:
    def step(loss: Callable[[], Tensor]) -> Step:
        return lambda: torch.autograd.grad(loss().mean(), (x, w))

    found = {name: step(lambda o=options: fused_linear_loss(x, w, y, **o)) for name, options in OURS.items()}
    found["eager"] = step(lambda: F.cross_entropy(x @ w.t(), y))
    if hasattr(nn, "LinearCrossEntropyOptions"):
        found["torch"] = step(lambda: F.linear_cross_entropy(x, w, y, options=nn.LinearCrossEntropyOptions()))
    liger = _liger()
    if liger is not None:
        found["liger"] = step(lambda: liger(w, x, y))
    return found


def _liger() -> Callable[..., Tensor] | None:
    """Liger's loss, where it is installed and has a device to run on."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Callable[..., Tensor] = LigerFusedLinearCrossEntropyLoss()
    return loss


def products(x: Tensor, w: Tensor) -> Step:
    """The three products, in chunks of rows if the logits would exceed a gigabyte."""
    rows = min(x.shape[0], 2**28 // w.shape[0])
    z, gx, gw = torch.zeros(rows, w.shape[0]), torch.zeros_like(x), torch.zeros_like(w)

    def step() -> None:
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            block = z[: part.shape[0]]
            torch.mm(part, w.t(), out=block)
            torch.mm(block, w, out=gx[start : start + rows])
            torch.addmm(gw, block.t(), part, beta=0 if start == 0 else 1, out=gw)

    return step


def measure(rows: int, features: int, classes: int, turns: int, skip: frozenset[str]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator).requires_grad_()
    w = (torch.randn(classes, features, generator=generator) / features**0.5).requires_grad_()
    y = torch.randint(classes, (rows,), generator=generator)
    if rows * features * classes >= LONG:
        skip, turns = skip | set(OURS) - {"ours"}, min(turns, 3)
    steps = {name: step for name, step in steps_of(x, w, y).items() if name not in skip}
    memory = {name: peak_bytes(step) - 4 * features * (rows + classes) for name, step in steps.items()}
    steps["gemm3"] = products(x.detach(), w.detach())
    times = interleaved(steps, turns=turns, most=turns)
    median = {name: timing.median for name, timing in times.items()}
    ratios = {f"ours / {name}": median["ours"] / median[name] for name in ("gemm3", "eager", "torch", "liger")
              if name in median}  # fmt: skip
    memory_ratios = {f"memory / {name}": memory["ours"] / memory[name] for name in ("eager", "torch", "liger")
                     if name in memory}  # fmt: skip
    return {
        "rows": rows,
        "features": features,
        "classes": classes,
        "dtype": "float32",
        "seconds": median,
        "over_gemm3": {name: value / median["gemm3"] for name, value in median.items()},
        "extra_bytes": memory,
        "ratios": {**ratios, **memory_ratios},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[",".join(map(str, shape)) for shape in SHAPES])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--skip", nargs="*", default=[], help="candidates to leave out, such as eager")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for shape in options.shapes:
        rows, features, classes = (int(size) for size in shape.split(","))
        figures = measure(rows, features, classes, options.turns, frozenset(options.skip))
        found.append(figures)
        lines = [[name, seconds, figures["over_gemm3"][name], figures["extra_bytes"].get(name, 0) / 2**20]
                 for name, seconds in figures["seconds"].items()]  # fmt: skip
        table(f"N={rows} d={features} V={classes}, forward + backward",
              ["", "s (median)", "/ gemm3", "extra MiB"], lines)  # fmt: skip
        CONSOLE.print({name: round(ratio, 3) for name, ratio in figures["ratios"].items()})
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-fused-linear.json", {"fused_linear": found})


if __name__ == "__main__":
    main()
