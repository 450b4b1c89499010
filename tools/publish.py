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
                f"[{slug}](docs/gallery/{slug}/index.html)",
                claim["statement"],
                figure,
                measured,
                claim["verdict"],
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
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


TABLES = {"claims": claims_table, "machine": machine_line, "speed": speed_table}
PAGES = ("README.md",)


def refreshed(text: str) -> str:
    """``text`` with every marked block rewritten from the records."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

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
