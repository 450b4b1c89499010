"""Compile the Triton kernels to machine code of an H100 without having one: ``python compile_kernels.py``.

The interpreter accepts much that the compiler does not (types of accumulators, shapes known at compile time); this is
what stands in for a GPU on machines without. Prints one line per kernel.
"""

from __future__ import annotations

import warnings
from typing import Any

warnings.simplefilter("ignore")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from softgate._triton import (
    backward,
    forward,
    fused_linear,
    linear,
    maps,
    pointwise,
    row_slopes,
    row_sums,
    rows,
    suppression,
    tiles,
)

FLOAT32 = (
    "bias",
    "slope",
    "count",
    "offset",
    "stats",
    "sums",
    "dbias",
    "den",
    "floor",
    "grad",
    "shift",
    "state",
    "u",
    "z",
    "spread",
    "factor",
    "top",
    "constant",
    "scale",
    "eps",
    "boxes",
    "scores",
    "final",
    "kept",
    "weight",
    "row",
    "col",
    "size",
)
INT64 = ("target", "order", "offsets", "keep", "picks")
FLOATS = (
    *("scale", "gamma", "zeta", "power", "softcap", "temperature", "even"),
    *("first", "second", "third", "sigma", "limit", "threshold"),
)
BLOCKS = {"BLOCK_M": 32, "BLOCK_N": 16, "WIDTH_D": 32, "WIDTH_V": 16, "PRODUCT": tiles.NARROW}
EDGES = {"LEFT_EDGE": True, "RIGHT_EDGE": True}
ATTENTION = {"POWER": 15, "MASK": 1, "BIAS": True, "ALIBI": True, "FACTORS": False, **EDGES, **BLOCKS}
SWEEP = {"SPREAD": 2, "CAPPED": True, "COMPRESSED": True, "BLOCK": 4096}
LINEAR = {"WIDTH_F": 32, "WIDTH_V": 16, "CHUNK": 16, "PRODUCT": tiles.SPLIT}


def signature(kernel: Any, constants: dict[str, Any], dtype: str) -> dict[str, str]:
    kinds = {}
    for name in kernel.arg_names:
        if name in constants:
            kinds[name] = "constexpr"
        elif name.endswith("_ptr"):
            stem = name.removesuffix("_ptr")
            kinds[name] = "*" + (
                "u8" if stem == "mask" else "i64" if stem in INT64 else "fp32" if stem in FLOAT32 else dtype
            )
        elif name in FLOATS:
            kinds[name] = "fp32"
        else:
            kinds[name] = "i64" if name[0] == "s" else "i32"
    return kinds


def build(kernel: Any, constants: dict[str, Any], dtype: str) -> str:
    """Compile, and return the assembly."""
    source = ASTSource(fn=kernel, signature=signature(kernel, constants, dtype), constexprs=constants)
    options = {"num_warps": 4, "num_stages": 2}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(kernel.__name__, constants.get("MAP", ""), dtype, len(built.asm["cubin"]))
    return built.asm["ptx"]


def main() -> None:
    for kind in (maps.SOFTMAX, maps.SIGMOID, maps.CLIPPED, maps.LSSAR):
        constants = {**ATTENTION, "MAP": kind, "FACTORS": kind == maps.LSSAR}
        build(forward.forward, {**constants, "GATE": 1 if kind == maps.SOFTMAX else 0}, "bf16")
    for kind in (maps.SIGMOID, maps.LSSAR):
        constants = {**ATTENTION, "MAP": kind, "COUNT": maps.ROWS[kind]}
        constants["FACTORS"] = kind == maps.LSSAR
        build(backward.queries, {**constants, "DBIAS": kind == maps.SIGMOID}, "bf16")
        build(backward.keys_and_values, constants, "bf16")
    exact = {**ATTENTION, "MAP": maps.CLIPPED, "COUNT": maps.ROWS[maps.CLIPPED], "PRODUCT": tiles.EXACT}
    assembly = build(backward.row_sums, exact, "fp32")
    assert "mma" not in assembly, "float32 must not be multiplied on the matrix units"
    for dtype in ("fp16", "bf16"):
        shape = {"WIDTH_D": 64, "WIDTH_V": 64, "BLOCK_M": 128, "BLOCK_N": 64}
        assembly = build(forward.forward, {**ATTENTION, **shape, "MAP": maps.SIGMOID, "GATE": 0}, dtype)
        assert "wgmma" in assembly, "16 bits must be"
    build(rows.directions_kernel, {"WIDTH": 64, "BLOCK": 64}, "bf16")
    build(rows.tangents_kernel, {"WIDTH": 64, "BLOCK": 64}, "bf16")
    build(rows.row_products_kernel, {"WIDTH": 64, "BLOCK": 64}, "bf16")
    build(linear.forward_kernel, {**LINEAR, "PRODUCT": tiles.TF32}, "fp32")
    for kernel in (linear.queries_kernel, linear.keys_values_kernel):
        build(kernel, LINEAR, "fp32")
    for hinge in (False, True):
        build(fused_linear.scan_kernel, {**SWEEP, "BIAS": True, "HINGE": hinge}, "fp32")
    build(fused_linear.slopes_kernel, SWEEP, "fp32")
    for kind in row_sums.KEPT:
        constants = {"KIND": kind, "MODE": 1, "ROWS": 2, "BLOCK": 1024}
        build(row_sums.rows_kernel, {**constants, "WEIGHTED": True}, "bf16")
        build(row_slopes.slopes_kernel, {**constants, "REDUCTION": 3}, "bf16")
    build(pointwise.crrelu_kernel, {"BLOCK": 2048}, "bf16")
    build(pointwise.crrelu_backward_kernel, {"X": True, "EPS": True, "BLOCK": 2048}, "bf16")
    picks = {"INCLUSIVE": True, "KEEP_EQUAL": False, "BLOCK": 1024}
    for flat, decay in ((True, 2), (False, 1)):
        build(suppression.soft_nms_kernel, {**picks, "FLAT": flat, "DECAY": decay, "FIRST": 2}, "fp32")


if __name__ == "__main__":
    main()
