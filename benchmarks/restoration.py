"""MAXIM's blocks and network against the way they are written plainly: partition, transpose, product, transpose back.

    python benchmarks/restoration.py [--turns N] [--out DIR]

One thread, processor time of candidates one after the other. ``plain`` cuts the whole map into windows at the start of
every gated MLP and puts it together at the end, and turns positions and channels around each product, as ports of the
authors' code do; it has the same weights and the same results. ``limit`` is the time of the products and convolutions
alone, at the rate that one large product reaches here. Memory is the peak of a training step above what was there.
Figures go to DIR/benchmark-restoration.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import gelu
from torch.utils.flop_counter import FlopCounterMode

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import load_per_core, step_seconds
from softgate.models import MAXIM, AxisGatedMLP, MultiAxisGatedMLP, SpatialGate

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: batch, channels, side, windows and grid
BLOCKS = ((1, 32, 128, 16), (1, 32, 256, 16), (1, 128, 64, 8), (8, 8, 32, 8))
#: variant, side
NETWORKS = (("S-1", 128), ("S-1", 256))
_PRODUCT = 1024


def cut(x: Tensor, size: tuple[int, int], axis: str) -> Tensor:
    """(B, H, W, C) -> (B, windows, pixels of a window, C)."""
    height, width = cells(x, size, axis)
    x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def put_together(x: Tensor, like: Tensor, size: tuple[int, int], axis: str) -> Tensor:
    height, width = cells(like, size, axis)
    x = x.unflatten(2, (height, width)).unflatten(1, (like.shape[1] // height, -1))
    return x.transpose(2, 3).reshape(like.shape)


def cells(x: Tensor, size: tuple[int, int], axis: str) -> tuple[int, int]:
    return size if axis == "block" else (x.shape[1] // size[0], x.shape[2] // size[1])


def turned(x: Tensor, layer: torch.nn.Linear, axis: str) -> Tensor:
    """A linear layer along the pixels of a window, or along the windows."""
    place = -2 if axis == "block" else -3
    return layer(x.transpose(-1, place)).transpose(-1, place)


def plain_axis(self: AxisGatedMLP, x: Tensor) -> Tensor:
    whole = x.permute(0, 2, 3, 1)
    parts = cut(whole, self.size, self.axis)
    u, v = gelu(self.w_in(self.norm(parts)), approximate="tanh").chunk(2, -1)
    parts = parts + self.w_out(u * (turned(self.gate_norm(v), self.mix, self.axis) + 1.0))
    return put_together(parts, whole, self.size, self.axis).permute(0, 3, 1, 2)


def plain_gate(self: SpatialGate, x: Tensor) -> Tensor:
    u, v = gelu(self.w_in(self.norm(x.permute(0, 2, 3, 1))), approximate="tanh").chunk(2, -1)
    across = put_together(turned(cut(u, self.grid_size, "grid"), self.grid, "grid"), u, self.grid_size, "grid")
    inside = put_together(turned(cut(v, self.block_size, "block"), self.block, "block"), v, self.block_size, "block")
    return self.w_out(torch.cat((across, inside), -1)).permute(0, 3, 1, 2)


def plainly(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with the blocks written plainly."""

    def patched() -> object:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(AxisGatedMLP, "forward", plain_axis))
            stack.enter_context(mock.patch.object(SpatialGate, "forward", plain_gate))
            return run()

    return patched


def seconds_per_operation(turns: int) -> float:
    a, b = torch.rand(_PRODUCT, _PRODUCT), torch.rand(_PRODUCT, _PRODUCT)
    return step_seconds(lambda: a @ b, turns=turns).best / (2 * _PRODUCT**3)


def compare(model: torch.nn.Module, x: Tensor, turns: int, rate: float) -> dict[str, Any]:
    """Times in ms and peak memory, forward and of a training step."""
    source, parameters = x.clone().requires_grad_(), list(model.parameters())

    @torch.no_grad()
    def forward() -> Tensor:
        return model(x)

    def training() -> object:
        return torch.autograd.grad(model(source).square().mean(), [source, *parameters], allow_unused=True)

    torch.testing.assert_close(plainly(forward)(), forward(), rtol=1e-3, atol=1e-3)
    with FlopCounterMode(display=False) as counter:
        forward()
    found: dict[str, Any] = {}
    for name, run in (("forward", forward), ("training", training)):
        runs = {"softgate": run, "plain": plainly(run)}
        found[name] = {key: 1e3 * step_seconds(step, turns=turns).best for key, step in runs.items()}
        found[f"{name}_bytes"] = {key: peak_bytes(step) for key, step in runs.items()}
    found["forward"]["limit"] = 1e3 * rate * counter.get_total_flops()
    return found


def measure_block(batch: int, channels: int, side: int, size: int, turns: int, rate: float) -> dict[str, Any]:
    torch.manual_seed(0)
    block = MultiAxisGatedMLP(channels, (size, size), (size, size))
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    return {"shape": f"{batch}x{channels}x{side}x{side}, {size}", **compare(block, x, turns, rate)}


def measure_network(variant: str, side: int, turns: int, rate: float) -> dict[str, Any]:
    torch.manual_seed(0)
    found = {}
    for checkpoint in (False, True):
        model = MAXIM(variant, num_supervision_scales=1, checkpoint=checkpoint)
        found[checkpoint] = compare(model, torch.rand(1, 3, side, side), turns, rate)
    for part in ("training", "training_bytes"):
        found[False][part]["softgate, checkpoint"] = found[True][part]["softgate"]
    return {"shape": f"{variant}, {side}x{side}", **found[False]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rate = seconds_per_operation(options.turns)
    blocks = [measure_block(*shape, options.turns, rate) for shape in BLOCKS]
    networks = [measure_network(*shape, options.turns, rate) for shape in NETWORKS]
    for title, found in (("multi-axis gated MLP", blocks), ("MAXIM", networks)):
        for part in ("forward", "training", "forward_bytes", "training_bytes"):
            unit, scale = ("MiB", 2.0**-20) if "bytes" in part else ("ms", 1.0)
            lines = [
                [f["shape"], *(scale * value for value in f[part].values()), f[part]["plain"] / f[part]["softgate"]]
                for f in found
            ]
            table(f"{title}, {part}, {unit}", ["shape", *found[0][part], "plain / softgate"], lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-restoration.json", {"blocks": blocks, "networks": networks})


if __name__ == "__main__":
    main()
