"""Fused linear losses, forward and backward, against eager, torch's own and Liger's, and three matrix products.

    python benchmarks/fused_linear.py [--shapes N,d,V ...] [--turns T] [--out DIR]
    python benchmarks/fused_linear.py --device cuda [--dtype float32|bfloat16] [--tf32] [--shapes N,d,V ...]

On the CPU one thread and float32; candidates in turns. gemm3 is the limit: the three products of the same shapes into
memory that is there. Extra memory is the peak of what a step allocates beyond the gradients it returns. On a GPU turns
end with its work and memory is the allocator's peak; in bfloat16 the eager loss widens its logits to float32, as models
do. A candidate that runs out of memory or cannot run here is named with the reason. Figures go to
DIR/benchmark-fused-linear.json, those of a GPU to DIR/benchmark-fused-linear-cuda.json, after every shape. Smoke:
--shapes 512,256,8000.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import fused_linear_loss

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPES = {
    "cpu": ((512, 256, 8_000), (1024, 512, 32_000), (4096, 256, 32_000), (4096, 512, 128_000)),
    # Heads of GPT-2, Llama 3 and Gemma 2.
    "cuda": ((8192, 768, 50_257), (8192, 4096, 128_256), (8192, 2304, 256_000)),
}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_eager": {"backend": "eager"},
    "ours_gce": {"loss": "comp_sum", "tau": 1.7},
    "ours_stablemax": {"loss": "stablemax"},
    "ours_svm": {"loss": "svm"},
    "ours_zloss": {"loss": "zloss"},
    "ours_rows": {"reduction": "none"},
}
#: Rows per chunk that are tried on a GPU beside those taken by themselves.
CHUNKS = (256, 1024, 4096)
PEERS = ("gemm3", "eager", "compiled", "torch", "liger", "liger_float32")
#: From this many multiplications a product on, a step takes a CPU so long that the variants of ours are left out and
#: three turns are taken.
LONG = 2**37
Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Where and in what the candidates run."""

    device: str
    dtype: torch.dtype
    tf32: bool

    @property
    def name(self) -> str:
        """Name of the record's section."""
        if self.device == "cpu" and self.dtype is torch.float32:
            return "fused_linear"
        return str(self.dtype).removeprefix("torch.") + ("_tf32" if self.tf32 else "")


def operands(rows: int, features: int, classes: int, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """x, W, both with gradients, and labels."""
    generator = torch.Generator(setting.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=setting.device)

    x = draw(rows, features).to(setting.dtype)
    w = (draw(classes, features) / features**0.5).to(setting.dtype)
    y = torch.randint(classes, (rows,), generator=generator, device=setting.device)
    return x.requires_grad_(), w.requires_grad_(), y


def eager(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy((x @ w.t()).float(), y)


def steps_of(x: Tensor, w: Tensor, y: Tensor) -> dict[str, Step]:
    def step(loss: Callable[[], Tensor]) -> Step:
        return lambda: torch.autograd.grad(loss().mean(), (x, w))

    options = OURS | ({f"ours_{rows}": {"chunk": rows} for rows in CHUNKS} if x.is_cuda else {})
    found = {name: step(lambda o=chosen: fused_linear_loss(x, w, y, **o)) for name, chosen in options.items()}
    found["eager"] = step(lambda: eager(x, w, y))
    if x.is_cuda:
        compiled = torch.compile(eager, dynamic=False)
        found["compiled"] = step(lambda: compiled(x, w, y))
    if hasattr(nn, "LinearCrossEntropyOptions"):
        found["torch"] = step(lambda: F.linear_cross_entropy(x, w, y, options=nn.LinearCrossEntropyOptions()))
    if x.is_cuda and importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["liger"] = step(lambda: liger(w, x, y))
        if x.dtype is not torch.float32:  # sums of the weight's gradient as wide as ours
            wide = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
            found["liger_float32"] = step(lambda: wide(w, x, y))
    return found


def products(x: Tensor, w: Tensor) -> Step:
    """The three products, in chunks of rows if the logits would exceed a gigabyte."""
    rows = min(x.shape[0], 2**28 // w.shape[0])
    z, gx, gw = x.new_zeros(rows, w.shape[0]), torch.zeros_like(x), torch.zeros_like(w)

    def step() -> None:
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            block = z[: part.shape[0]]
            torch.mm(part, w.t(), out=block)
            torch.mm(block, w, out=gx[start : start + rows])
            torch.addmm(gw, block.t(), part, beta=0 if start == 0 else 1, out=gw)

    return step


def memory_of(steps: dict[str, Step], returned: int, device: str) -> tuple[dict[str, int], dict[str, str]]:
    """Extra bytes of every candidate that runs, and why the others do not."""
    found, failed = {}, {}
    for name, step in steps.items():
        try:
            found[name] = peak_bytes(step, device) - returned
        except Exception as error:  # whatever a peer may raise on a machine it was not made for
            if device == "cpu":
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
        if device == "cuda":
            torch.cuda.empty_cache()
    return found, failed


def measure(shape: tuple[int, int, int], turns: int, skip: frozenset[str], setting: Setting) -> dict[str, Any]:
    rows, features, classes = shape
    x, w, y = operands(rows, features, classes, setting)
    if setting.device == "cpu" and rows * features * classes >= LONG:
        skip, turns = skip | set(OURS) - {"ours"}, min(turns, 3)
    steps = {name: step for name, step in steps_of(x, w, y).items() if name not in skip}
    memory, failed = memory_of(steps, x.element_size() * features * (rows + classes), setting.device)
    steps = {name: steps[name] for name in memory} | {"gemm3": products(x.detach(), w.detach())}
    times = interleaved(steps, turns=turns, most=turns, device=setting.device)
    median = {name: timing.median for name, timing in times.items()}
    return {
        "rows": rows,
        "features": features,
        "classes": classes,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "tf32": setting.tf32,
        "seconds": median,
        "over_gemm3": {name: value / median["gemm3"] for name, value in median.items()},
        "extra_bytes": memory,
        "failed": failed,
        "ratios": ratios(median, memory),
    }


def ratios(median: dict[str, float], memory: dict[str, int]) -> dict[str, float]:
    found = {}
    for prefix, values in (("ours", median), ("memory", memory)):
        if "ours" in values:
            found |= {f"{prefix} / {name}": values["ours"] / values[name] for name in PEERS if values.get(name, 0) > 0}
    return found


def show(figures: dict[str, Any]) -> None:
    lines = [[name, seconds, figures["over_gemm3"][name], figures["extra_bytes"].get(name, 0) / 2**20]
             for name, seconds in figures["seconds"].items()]  # fmt: skip
    title = "N={rows} d={features} V={classes} {dtype}, forward + backward".format(**figures)
    table(title, ["", "s (median)", "/ gemm3", "extra MiB"], lines)
    CONSOLE.print({name: round(ratio, 3) for name, ratio in figures["ratios"].items()})
    for name, reason in figures["failed"].items():
        CONSOLE.print(f"{name} cannot run: {reason}", style="red", markup=False)


def shapes_of(texts: Iterable[str]) -> list[tuple[int, int, int]]:
    found = []
    for text in texts:
        rows, features, classes = (int(size) for size in text.split(","))
        found.append((rows, features, classes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", metavar="N,d,V")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--skip", nargs="*", default=[], help="candidates to leave out, such as eager")
    parser.add_argument("--device", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tf32", action="store_true", help="products of float32 operands on tensor cores in TF32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(options.device, getattr(torch, options.dtype), options.tf32)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    suffix = "" if options.device == "cpu" else "-cuda"
    found = []
    for shape in shapes_of(options.shapes) if options.shapes else SHAPES[options.device]:
        found.append(measure(shape, options.turns, frozenset(options.skip), setting))
        show(found[-1])
        write_record(options.out / f"benchmark-fused-linear{suffix}.json", {setting.name: found})
    CONSOLE.print(f"load per core {load_per_core():.2f}")


if __name__ == "__main__":
    main()
