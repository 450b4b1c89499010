"""CRReLU and LIF neurons, forward and backward, against what they replace and against their formulas in torch.

    python benchmarks/activations.py [--seconds S] [--device cpu|cuda] [--out DIR]

One thread, candidates in turns, which on a GPU end with its work. The gradients of CRReLU include that of eps. LIF
neurons stand beside a loop over the steps whose graph autograd makes, which is what spiking libraries run without a
kernel of their own. The limit is the traffic that nobody can save, one read and one write forward, two reads and one
write backward, at the speed of torch's copy. Memory is the peak of what one forward and backward pass allocates.
Figures go to DIR/benchmark-activations.json, those of a GPU to DIR/benchmark-activations-cuda.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.activations import crrelu, lif
from softgate.lab.timing import interleaved, load_per_core

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: Entries; the hidden activations of one image of ViT-Tiny (197 tokens, 768 features) are 2^17 or so.
SIZES = {"cpu": (2**12, 2**17, 2**20, 2**24), "cuda": (2**17, 2**22, 2**27)}
#: Steps and entries of a step of spiking neurons.
SPIKING = {"cpu": ((4, 2**15), (4, 2**18), (16, 2**16)), "cuda": ((4, 2**20), (4, 2**24))}
DTYPES = (torch.float32, torch.bfloat16)
#: Passes over the entries that forward and backward need, one read or write each; a copy makes two.
PASSES = 5


def formula(x: Tensor, eps: Tensor) -> Tensor:
    """What published ports compute."""
    return F.relu(x) + eps * x * torch.exp(-(x**2) / 2)


def steps_of(entries: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of every candidate on the same numbers, and one copy."""
    generator = torch.Generator(device).manual_seed(0)
    x, grad = (torch.randn(entries, generator=generator, device=device).to(dtype) for _ in range(2))
    x.requires_grad_()
    eps = torch.tensor(0.01, device=device, requires_grad=True)
    narrow = eps.detach().to(dtype).requires_grad_()  # or the formula would widen all it computes
    target = torch.empty_like(grad)

    def plain(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(x), x, grad)

    def learned(function: Callable[[Tensor, Tensor], Tensor], parameter: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(x, parameter), (x, parameter), grad)

    return {
        "crrelu": learned(crrelu, eps),
        "gelu": plain(F.gelu),
        "silu": plain(F.silu),
        "mish": plain(F.mish),
        "formula": learned(formula, narrow),
        "copy": lambda: target.copy_(grad),
    }


def measure(entries: int, dtype: torch.dtype, seconds: float, device: str) -> dict[str, Any]:
    steps = steps_of(entries, dtype, device)
    times = interleaved(steps, turns=9, seconds=seconds, most=400, device=device)
    ms = {name: 1e3 * timing.median for name, timing in times.items()}
    ms["copies"] = PASSES / 2 * ms.pop("copy")
    memory = {name: peak_bytes(run, device) for name, run in steps.items() if name != "copy"}
    return {
        "entries": entries,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": ms,
        "over gelu": ms["crrelu"] / ms["gelu"],
        "over the formula": ms["crrelu"] / ms["formula"],
        "over copies": ms["crrelu"] / ms["copies"],
        "GB/s": PASSES * entries * dtype.itemsize / ms["crrelu"] / 1e6,
        "peak_bytes": memory,
        "memory over gelu": memory["crrelu"] / memory["gelu"],
        "memory over the formula": memory["crrelu"] / memory["formula"],
    }


class Fire(torch.autograd.Function):
    """A step, with the slope of a sigmoid as its gradient."""

    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        ctx.save_for_backward(excess)
        return (excess >= 0).to(excess.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        sigmoid = (4.0 * ctx.saved_tensors[0]).sigmoid()
        return grad * (4.0 * sigmoid * (1.0 - sigmoid))


def spiking_loop(x: Tensor) -> Tensor:
    """One step after the other, with the graph of all operations."""
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        u = v + (current - v) / 2.0
        spikes.append(Fire.apply(u - 1.0))
        v = (1.0 - spikes[-1].detach()) * u
    return torch.stack(spikes)


def measure_spiking(steps: int, entries: int, dtype: torch.dtype, seconds: float, device: str) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)
    x, grad = (2 * torch.randn(steps, entries, generator=generator, device=device).to(dtype) for _ in range(2))
    x.requires_grad_()
    target = torch.empty_like(grad)
    runs = {name: partial(_gradient, function, x, grad) for name, function in (("lif", lif), ("loop", spiking_loop))}
    times = interleaved({**runs, "copy": lambda: target.copy_(grad)}, turns=9, seconds=seconds, most=400, device=device)
    ms = {name: 1e3 * timing.median for name, timing in times.items()}
    ms["copies"] = PASSES / 2 * ms.pop("copy")
    memory = {name: peak_bytes(run, device) for name, run in runs.items()}
    return {
        "steps": steps,
        "entries": entries,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": ms,
        "over the loop": ms["lif"] / ms["loop"],
        "over copies": ms["lif"] / ms["copies"],
        "peak_bytes": memory,
        "memory over the loop": memory["lif"] / memory["loop"],
    }


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(x), x, grad)


def show(title: str, found: list[dict[str, Any]], sizes: tuple[str, ...]) -> None:
    ratios = [name for name in found[0] if "over" in name or "/" in name]
    lines = [[*(f[name] for name in sizes), *f["ms"].values(), *(f[name] for name in ratios)] for f in found]
    table(title, [*sizes, *found[0]["ms"], *ratios], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = options.device
    found = [measure(size, dtype, options.seconds, device) for dtype in DTYPES for size in SIZES[device]]
    spiking = [measure_spiking(*s, dtype, options.seconds, device) for dtype in DTYPES for s in SPIKING[device]]
    show("CRReLU, forward + backward, ms (median)", found, ("dtype", "entries"))
    show("LIF neurons, forward + backward, ms (median)", spiking, ("dtype", "steps", "entries"))
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    suffix = "" if device == "cpu" else "-cuda"
    write_record(options.out / f"benchmark-activations{suffix}.json", {"crrelu": found, "lif": spiking})


if __name__ == "__main__":
    main()
