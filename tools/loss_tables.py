"""Tables of docs/losses.md, from the records of the loss benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
Row = Mapping[str, Any]


def heads_table() -> str:
    """One SGD step of output layers of very many classes."""
    record = section("benchmark-heads.json", "heads")
    columns: dict[str, Callable[[Row], str]] = {
        "classes": lambda r: f"{r['classes']:,}",
        **{name: _number("ms", name) for name in record["figures"][0]["ms"]},
        **{name: _number("speedup", name) for name in record["figures"][0]["speedup"]},
        "best / products alone": lambda r: f"{r['best / limit']:.2f}",
    }
    return _table(record, columns)


def fused_table() -> str:
    """Linear layer and loss together, beside eager, torch's own and the three products alone."""
    record = section("benchmark-fused-linear.json", "fused_linear")
    lines = ["| N, d, V | | s | time / three products | extra MiB |", "|---|---|---|---|---|"]
    for r in record["figures"]:
        shape = f"{r['rows']}, {r['features']}, {r['classes']:,}"
        for name, seconds in r["seconds"].items():
            if name != "gemm3":
                extra = r["extra_bytes"][name] / 2**20
                lines.append(f"| {shape} | {name} | {seconds:.3f} | {r['over_gemm3'][name]:.2f} | {extra:.0f} |")
    return "\n".join(lines) + where(record)


def margins_table() -> str:
    """Support vector losses beside cross-entropy."""
    record = section("benchmark-margins.json", "losses")
    columns: dict[str, Callable[[Row], str]] = {
        "rows × classes": lambda r: f"{r['rows']} × {r['classes']}",
        **{name: _number("ms", name) for name in record["figures"][0]["ms"]},
        "l2_svm / cross_entropy": lambda r: f"{r['l2_svm / cross_entropy']:.2f}",
        "crammer_singer / cross_entropy": lambda r: f"{r['crammer_singer / cross_entropy']:.2f}",
    }
    return _table(record, columns)


def dense_table() -> str:
    """Losses of dense logits, forward and backward, as multiples of the time of cross-entropy."""
    record = section("benchmark-losses.json", "dense")
    columns: dict[str, Callable[[Row], str]] = {
        "rows × classes": lambda r: f"{r['rows']} × {r['classes']:,}",
        "`F.cross_entropy`, ms": lambda r: f"{r['ms']['cross_entropy']:.3g}",
        **{name: _number("over cross_entropy", name) for name in record["figures"][0]["over cross_entropy"]},
    }
    return _table(record, columns)


def section(file: str, name: str) -> dict[str, Any]:
    """One part of a benchmark's record: figures and what they were measured on."""
    record: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))[name]
    return record


def _number(group: str, name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[group][name]:.3g}"


def _table(record: Mapping[str, Any], columns: Mapping[str, Callable[[Row], str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in record["figures"]]
    return "\n".join(lines) + where(record)


def where(record: Mapping[str, Any]) -> str:
    """What the figures of a record were measured on."""
    e = record["environment"]
    load = record["load_per_core"]
    return f"\n\n{e.get('cpu', '')}, torch {e['torch']}, one thread, float32; load per core {load}; medians."
