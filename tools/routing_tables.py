"""Tables of docs/routing.md, from the records of the routing benchmarks."""

from __future__ import annotations

from typing import Any

from loss_tables import section


def experts_table() -> str:
    """The experts' layer beside dense products, transformers' grouped_mm and its eager experts."""
    record = section("benchmark-routing.json", "experts")
    lines = [
        "| dtype | tokens, D, F, E, K | rows per expert | dense products, ms | forward, ms | rate of dense | "
        "forward + backward, ms | over forward | forward / grouped_mm | both / grouped_mm | times faster than eager |",
        "|---" * 11 + "|",
    ]
    for r in record["figures"]:
        sizes = ", ".join(str(r[name]) for name in ("tokens", "width", "hidden", "experts", "k"))
        ms = r["ms"]
        cells = (
            r["dtype"],
            sizes,
            f"{r['tokens'] * r['k'] / r['experts']:.0f}",
            f"{ms['dense']:.3g}",
            f"{ms['softgate fwd']:.3g}",
            f"{r['rate of dense']:.2f}",
            f"{ms['softgate fwd+bwd']:.3g}",
            f"{r['fwd+bwd / fwd']:.2f}",
            f"{r['fwd / grouped_mm']:.2f}",
            f"{r['fwd+bwd / grouped_mm']:.2f}",
            f"{r['speedup over eager']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + _where(record, "fastest turn")


def mixture_table() -> str:
    """One EM iteration and a whole fit of GaussianMoE."""
    iteration, fit = (section("benchmark-gaussian_moe.json", name) for name in ("iteration", "fit"))
    lines = [
        "| samples, experts, top_k | one iteration, ms | plain numpy, ms | times faster | "
        "ten passes over n·k doubles, ms |",
        "|---|---|---|---|---|",
    ]
    for r in iteration["figures"]:
        ms = r["ms"]
        lines.append(
            f"| {r['n']:,}, {r['k']}, {r['top_k'] or 'all'} | {ms['one iteration']:.3g} | {ms['plain numpy']:.3g} | "
            f"{r['plain / ours']:.1f} | {ms['10 passes over n·k doubles']:.3g} |"
        )
    ms = fit["figures"]["ms"]
    lines += [
        "",
        f"A whole fit of {fit['figures']['n']:,} samples with {fit['figures']['k']} experts takes {ms['fit']:.0f} ms "
        f"({fit['figures']['iterations']} iterations and the search for a start); scikit-learn's `GaussianMixture` on "
        f"(x, y), another model, {ms['sklearn GaussianMixture on (x, y)']:.0f} ms.",
    ]
    return "\n".join(lines) + _where(iteration, "medians")


def _where(record: dict[str, Any], what: str) -> str:
    e, isa = record["environment"], record["native"].get("isa") or "no compiled kernels"
    load = record["load_per_core"]
    return f"\n\n{e.get('cpu', '')}, {isa}, torch {e['torch']}, one thread; load per core {load}; {what}."
