"""Tables of docs/policy.md, from the record of the policy benchmark."""

from __future__ import annotations

from typing import Any

from loss_tables import section, where

FILE = "benchmark-policy.json"


def objectives_table() -> str:
    """The loss alone, forward and backward, beside the formula of a trainer."""
    record = section(FILE, "objective")
    figures = record["figures"]
    ms = figures["ms"]
    lines = [
        f"| {' × '.join(map(str, figures['shape']))} tokens | ms | TRL's formula, ms | ratio |",
        "|---|---|---|---|",
    ]
    for name in (name for name in ms if f"trl_{name}" in ms):
        peer = ms[f"trl_{name}"]
        lines.append(f"| `{name}_loss` | {ms[name]:.3g} | {peer:.3g} | {ms[name] / peer:.2f} |")
    lines.append(f"| reading three arrays, writing one | {ms['limit']:.3g} | | |")
    return "\n".join(lines) + where(record)


def policy_heads_table() -> str:
    """Log-probabilities from hidden states and the loss together, at a large vocabulary."""
    records = [section(FILE, f"head_{name}") for name in ("sapo", "grpo")]
    lines = ["| N, d, V | loss | | s | extra MiB |", "|---|---|---|---|---|"]
    for name, record in zip(("sapo", "grpo"), records, strict=True):
        figures: dict[str, Any] = record["figures"]
        shape = ", ".join(f"{size:,}" for size in figures["shape"])
        for candidate, ms in figures["ms"].items():
            extra = figures["extra_bytes"][candidate] / 2**20
            lines.append(f"| {shape} | {name} | {candidate} | {ms / 1e3:.2f} | {extra:.0f} |")
    return "\n".join(lines) + where(records[0])
