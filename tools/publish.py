"""Copy finished reproductions into docs/ and refresh the tables that quote them.

    python tools/publish.py [--out runs]     copy runs/*/laptop into docs/results and docs/gallery, refresh the tables
    python tools/publish.py --check          exit 1 if a table differs from the records it quotes

Figures in README.md and docs/ stand between markers and come from records only; a test runs ``--check``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from benchmark_tables import benchmarks_table
from loss_tables import dense_table, fused_table, heads_table, margins_table
from policy_tables import objectives_table, policy_heads_table
from routing_tables import experts_table, mixture_table

from softgate.lab.files import write_atomic, write_json
from softgate.lab.verdicts import Stat

ROOT = Path(__file__).resolve().parent.parent
RESULTS, GALLERY = ROOT / "docs" / "results", ROOT / "docs" / "gallery"


def copy_runs(out: Path, scale: str) -> None:
    """Records without their curves (the pictures hold those), pages and pictures."""
    for path in sorted(out.glob(f"*/{scale}/results.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        slug = record["paper"]["slug"]
        for cell in record["cells"]:
            cell["figures"] = {k: v for k, v in cell["figures"].items() if not isinstance(v, list)}
        write_json(RESULTS / f"{slug}-{scale}.json", record)
        folder = GALLERY / slug
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in (path.with_name("index.html"), *path.parent.glob("*.svg")):
            shutil.copy(file, folder / file.name)


def claims_table() -> str:
    """Every claim of every published record: the paper's figure beside the measured one."""
    lines = ["| paper | claim | paper's figure | measured | verdict |", "|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*-laptop.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        slug = record["paper"]["slug"]
        for claim in record["claims"]:
            if claim["verdict"] == "not measured":  # belongs to another scale
                continue
            measured = "<br>".join(str(Stat.from_json(item)) for item in claim["measured"]) or "–"
            figure = f"{claim['paper_figure']} ({claim['source']})"
            cells = (
                f"[{slug}](gallery/{slug}/index.html)",
                claim["statement"],
                figure,
                measured,
                claim["verdict"],
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def claims_list(slug: str, ids: list[str]) -> str:
    """Some claims of one record as a list: what was claimed, what was measured, what came out."""
    path = RESULTS / f"{slug}-laptop.json"
    claims = {claim["id"]: claim for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]}
    lines = []
    for name in ids:
        claim = claims[name]
        measured = ", ".join(str(Stat.from_json(item)) for item in claim["measured"])
        lines.append(
            f"* **{claim['verdict']}**: {claim['statement']}" + (f" Measured: {measured}." if measured else "")
        )
    return "\n".join(lines) + f"\n\n[Page of the reproduction](gallery/{slug}/index.html)."


VERDICTS = ("reproduced", "reproduced in direction", "not reproduced", "needs hardware")


def verdicts_table() -> str:
    """Per paper, how many of its claims came out."""
    lines = ["| paper | " + " | ".join(VERDICTS) + " |", "|---|" + "---|" * len(VERDICTS)]
    for path in sorted(RESULTS.glob("*-laptop.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        slug = record["paper"]["slug"]
        found = [claim["verdict"] for claim in record["claims"]]
        counts = " | ".join(str(found.count(verdict) or "–") for verdict in VERDICTS)
        lines.append(f"| [{slug}](docs/gallery/{slug}/index.html) | {counts} |")
    return "\n".join(lines)


def machine_line() -> str:
    """Where the published figures were measured."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*-laptop.json"))]
    seen = {
        f"{e.get('cpu', '')}, {e.get('usable_cores')} cores, torch {e.get('torch')}"
        for e in (r["environment"] for r in records)
    }
    return "Measured at scale `laptop` on: " + "; ".join(sorted(seen)) + "."


def speed_table() -> str:
    """What the benchmark of the normalizers measured, in a few lines."""
    record = json.loads((RESULTS / "benchmark-normalizers.json").read_text(encoding="utf-8"))
    rows = {name: section["figures"] for name, section in record.items()}
    isa = record["algorithms"]["native"]["isa"]
    single = {r["n"]: r for r in rows["algorithms"] if r["isa"] == isa}
    lines = ["| float32, one thread, preallocated output | measured |", "|---|---|"]
    for log2 in (17, 24, 26):
        r = single[2**log2]
        lines.append(f"| `softmax`, one row of 2^{log2}, against torch | {r['speedup_over_torch']:.2f}× |")
    last = single[2**26]
    lines += [
        f"| two passes against three recomputing ones at 2^26 | {last['two_pass_over_recompute']:.2f}× |",
        f"| two passes at 2^26, time over a streaming read plus copy | {last['two_pass_over_floor']:.2f} |",
    ]
    for r in rows["threads"]:
        lines.append(f"| two threads against one, {r['rows']} × {r['n']} | {r['speedup']:.2f}× |")
    for op in dict.fromkeys(r["op"] for r in rows["gradients"]):
        gains = [r["speedup"] for r in rows["gradients"] if r["op"] == op]
        lines.append(f"| `{op}` against torch, five shapes | {min(gains):.2f}× to {max(gains):.2f}× |")
    worst = min(rows["grid"], key=lambda r: r["median_speedup"])
    lines.append(
        f"| slowest of {len(rows['grid'])} shapes from 16 to 2^26 against torch (medians) | "
        f"{worst['median_speedup']:.2f}× ({worst['rows']} × {worst['n']}) |"
    )
    e = record["algorithms"]["environment"]
    return "\n".join(lines) + f"\n\n{e.get('cpu', '')}, {isa}, torch {e['torch']}; candidates timed in turns."


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def attention_table(section: str) -> str:
    """Attention functions beside SDPA, the eager form and the matrix products alone."""
    record = json.loads((RESULTS / "benchmark-attention.json").read_text(encoding="utf-8"))[section]
    lines = [
        "| | T | causal | ms | time / SDPA | eager / ours | time / matrix products alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["figures"]:
        causal = "yes" if r["causal"] else "no"
        lines.append(
            f"| {r['op']} | {r['T']} | {causal} | {r['ours_ms']:.1f} | {_ratio(r['ours/sdpa'])} | "
            f"{_ratio(r['eager/ours'])} | {_ratio(r['ours/limit'])} |"
        )
    e, native = record["environment"], record["native"]
    where = f"{e.get('cpu', '')}, {native.get('isa') or 'no native kernels'}, torch {e['torch']}, one thread"
    return "\n".join(lines) + f"\n\n{where}; load per core {record['load_per_core']}; medians, candidates in turns."


def linear_table() -> str:
    """Methods that are linear in the length."""
    record = json.loads((RESULTS / "benchmark-attention.json").read_text(encoding="utf-8"))["linear"]
    lines = ["| | T | ms | time / SDPA | time / time at a quarter of T |", "|---|---|---|---|---|"]
    for r in record["figures"]:
        growth = _ratio(r["over a quarter of the length"])
        lines.append(f"| {r['op']} | {r['T']} | {r['ms']:.1f} | {_ratio(r['over sdpa'])} | {growth} |")
    return "\n".join(lines)


def memory_table() -> str:
    """Peak memory of a forward and backward pass."""
    record = json.loads((RESULTS / "benchmark-attention.json").read_text(encoding="utf-8"))["memory"]
    lines = ["| | T | peak MiB | eager MiB | all scores MiB |", "|---|---|---|---|---|"]
    for r in record["figures"]:
        held = "–" if r["eager_MiB"] is None else f"{r['eager_MiB']:.0f}"
        lines.append(f"| {r['op']} | {r['T']} | {r['peak_MiB']:.0f} | {held} | {r['all scores_MiB']:.0f} |")
    return "\n".join(lines)


TABLES = {
    "claims": claims_table,
    "verdicts": verdicts_table,
    "machine": machine_line,
    "speed": speed_table,
    "attention_forward": lambda: attention_table("forward"),
    "attention_training": lambda: attention_table("training"),
    "attention_linear": linear_table,
    "attention_memory": memory_table,
    "loss_dense": dense_table,
    "loss_fused": fused_table,
    "loss_heads": heads_table,
    "loss_margins": margins_table,
    "policy_heads": policy_heads_table,
    "policy_objectives": objectives_table,
    "routing_experts": experts_table,
    "routing_mixture": mixture_table,
    "benchmarks": benchmarks_table,
}
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("claims", "choosing", "attention", "losses", "routing", "policy", "benchmarks")),
)


def refreshed(text: str) -> str:
    """``text`` with every marked block rewritten from the records."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    def claims(match: re.Match[str]) -> str:
        slug, *ids = match[2].split()
        return f"{match[1]}\n{claims_list(slug, ids)}\n{match[3]}"

    text = re.sub(r"(<!-- claims: ([\w -]+) -->)\n.*?(<!-- end -->)", claims, text, flags=re.DOTALL)
    return re.sub(r"(<!-- figures: (\w+) -->)\n.*?(<!-- end -->)", block, text, flags=re.DOTALL)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.check:
        copy_runs(arguments.out, arguments.scale)
    stale = []
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        if refreshed(text) != text:
            stale.append(name)
            if not arguments.check:
                write_atomic(ROOT / name, refreshed(text))
    if arguments.check and stale:
        print(f"figures differ from their records in {', '.join(stale)}; run: python tools/publish.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
