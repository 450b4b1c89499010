"""Every benchmark record as one table: ours, peer, ratio and physical limit of each comparison, losses first.

    python tools/benchmark_tables.py [--results docs/results]      print it (`softgate bench --summary` does this)

docs/benchmarks.md holds the same table; tools/publish.py keeps it equal to the records. A peer is what one would use
without softgate: the same operation elsewhere, or, where none computes it, the softmax operation that is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
Record = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One operation beside one peer, in one unit.

    Attributes:
        operation: what was measured, with its size.
        ours: our time.
        peer: the peer's name.
        theirs: the peer's time.
        limit: the time that the hardware needs in any case, None where the benchmark has none.
        unit: of all three.
        benchmark: name of the benchmark; filled in by :func:`comparisons`.
    """

    operation: str
    ours: float
    peer: str
    theirs: float
    limit: float | None = None
    unit: str = "ms"
    benchmark: str = ""

    @property
    def ratio(self) -> float:
        """Our time over the peer's: above 1 the peer is faster."""
        return self.ours / self.theirs


def _size(row: Record, *names: str) -> str:
    return " × ".join(f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in names)


def _figures(record: Record, section: str) -> list[Record]:
    found = record.get(section, {}).get("figures", [])
    return found if isinstance(found, list) else [found]


def _activations(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "crrelu"):
        name = f"CRReLU, forward + backward, {_size(r, 'entries')}, {r['dtype']}"
        for key in ("gelu", "silu", "mish", "formula"):
            peer = "the formula in torch" if key == "formula" else f"F.{key}"
            yield Comparison(name, r["ms"]["crrelu"], peer, r["ms"][key], r["ms"]["copies"])
    for r in _figures(record, "lif"):
        name = f"LIF neurons, forward + backward, {_size(r, 'steps', 'entries')}, {r['dtype']}"
        yield Comparison(name, r["ms"]["lif"], "a loop over steps", r["ms"]["loop"], r["ms"]["copies"])


def _attention(record: Record) -> Iterator[Comparison]:
    # Sections of a GPU say their dtype and sizes: forward_bfloat16_4x16x64.
    for section in record:
        kind, *about = section.split("_")
        if kind not in ("forward", "training", "linear") or about[-1:] == ["threads"]:
            continue
        setting = "".join(f", {part}" for part in about)
        for r in _figures(record, section):
            size = f"T {r['T']:,}{', causal' if r.get('causal') else ''}{setting}"
            if kind != "linear":
                yield Comparison(f"{r['op']} {kind}, {size}", r["ours_ms"], "SDPA", r["sdpa_ms"], r["limit_ms"])
            elif not r["op"].startswith("sdpa"):
                yield Comparison(f"{r['op']}, {size}", r["ms"], "SDPA", r["ms"] / r["over sdpa"])


def _fused_linear(record: Record) -> Iterator[Comparison]:
    peers = {
        "eager": "matmul + cross_entropy",
        "compiled": "the same, compiled",
        "torch": "F.linear_cross_entropy",
        "liger": "Liger",
    }
    for section in ("fused_linear", "float32", "bfloat16"):
        for r in _figures(record, section):
            s = {name: 1e3 * seconds for name, seconds in r["seconds"].items()}
            for key, peer in peers.items():
                if key in s:
                    size = f"{_size(r, 'rows', 'features', 'classes')}, {r['dtype']}"
                    yield Comparison(f"fused linear cross-entropy, {size}", s["ours"], peer, s[key], s["gemm3"])


def _gaussian_moe(record: Record) -> Iterator[Comparison]:
    limits = ("10 passes over n·k doubles", "the matrix products", "2 n·k exponentials")
    for r in _figures(record, "iteration"):
        name = f"EM iteration, n {r['n']:,}, k {r['k']}{', top ' + str(r['top_k']) if r['top_k'] else ''}"
        limit = max(r["ms"][key] for key in limits)
        yield Comparison(name, r["ms"]["one iteration"], "plain numpy", r["ms"]["plain numpy"], limit)
    for r in _figures(record, "fit"):
        peer = "sklearn GaussianMixture on (x, y)"
        yield Comparison(f"whole fit, n {r['n']:,}, k {r['k']}", r["ms"]["fit"], peer, r["ms"][peer])


def _detection(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "single"):
        ms = r["ms"]
        for name in ("gaussian", "linear"):
            for peer in ("numpy loop", "torch loop", "torchvision hard"):
                if peer in ms:
                    yield Comparison(f"{name} Soft-NMS, {r['boxes']:,} boxes", ms[name], peer, ms[peer])
        for peer in ("numpy hard", "torchvision hard"):
            if peer in ms:
                yield Comparison(f"hard NMS, {r['boxes']:,} boxes", ms["hard"], peer, ms[peer])
    for r in _figures(record, "batch"):
        name = f"Gaussian Soft-NMS, {_size(r, 'images', 'classes', 'boxes')}"
        yield Comparison(name, r["ms"]["one thread"], "numpy loop", r["ms"]["numpy loop"])
    for r in _figures(record, "groups"):
        for peer in ("torchvision hard", "lockstep"):
            if peer in r["ms"]:
                name = f"Gaussian Soft-NMS, {_size(r, 'classes', 'boxes')}"
                yield Comparison(name, r["ms"]["padded"], peer, r["ms"][peer])


def _heads(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "heads"):
        for peer in ("log_softmax", "adaptive", "hierarchical"):
            name = f"factored head, one step, {_size(r, 'rows', 'features', 'classes')}"
            yield Comparison(name, r["ms"]["factored"], peer, r["ms"][peer], r["limit_ms"])


def _lipschitz(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "certificates"):
        for name in ("barrier", "scaling"):
            if "clarabel" in r["seconds"]:
                what = f"Lipschitz bound, S = P = 0, {name}, {r['layers']} layers of {r['width']}"
                yield Comparison(what, r["seconds"][name], "Clarabel", r["seconds"]["clarabel"], unit="s")
    for r in _figures(record, "step"):
        what = f"linear system of a step, {r['layers']} layers of {r['width']}"
        yield Comparison(what, r["ms"]["structured"], "dense matrices", r["ms"]["textbook"], r["ms"]["product"])


def _losses(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "stablemax"):
        for name in ("stablemax", "collapse_free"):
            size = f"{_size(r, 'rows', 'classes')}, {r['dtype']}"
            yield Comparison(f"{name}, {size}", r["ms"][name], "F.cross_entropy", r["ms"]["cross_entropy"])
        name = f"stablemax, {_size(r, 'rows', 'classes')}, {r['dtype']}"
        yield Comparison(name, r["ms"]["stablemax"], "the formula in float64", r["ms"]["stablemax_float64"])
    for r in _figures(record, "dense"):
        for name, ms in r["ms"].items():
            if name != "cross_entropy":
                size = _size(r, "rows", "classes")
                yield Comparison(f"{name}, {size}", ms, "F.cross_entropy", r["ms"]["cross_entropy"])


def _margins(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "losses"):
        for name in ("l2_svm", "crammer_singer"):
            for key, peer in (("cross_entropy", "F.cross_entropy"), ("multi_margin", "F.multi_margin_loss")):
                yield Comparison(f"{name}, {_size(r, 'rows', 'classes')}", r["ms"][name], peer, r["ms"][key])
    for r in _figures(record, "cells"):
        name = f"GRU that resets before, {_size(r, 'batch', 'steps', 'width')}"
        yield Comparison(name, r["ms"]["reset_before"], "nn.GRU", r["ms"]["nn.GRU"])


def _mixers(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "mixers"):
        ms = r["ms"]
        yield Comparison(f"SSD, length {r['length']:,}", ms["ssd chunked"], "loop over tokens", ms["loop"],
                         ms["two products"])  # fmt: skip


def _normalizers(record: Record) -> Iterator[Comparison]:
    per, where = "ns per element", "into given memory"
    for r in _figures(record, "grid"):
        name = f"softmax {where}, {_size(r, 'rows', 'n')}"
        yield Comparison(name, r["ours_ns"], "torch.softmax", r["torch_ns"], unit=per)
    for r in _figures(record, "algorithms"):
        limit = r["two_pass"] / r["two_pass_over_floor"]
        name = f"softmax {where}, one row of {r['n']:,}, {r['isa']}"
        yield Comparison(name, r["auto"], "torch.softmax", r["torch"], limit, per)
    for r in _figures(record, "gradients"):
        name = f"{r['op']} {where}, {_size(r, 'rows', 'n')}"
        yield Comparison(name, r["ours_ns"], "torch", r["torch_ns"], unit=per)
    for r in _figures(record, "peers"):
        for key, peer in (("onednn", "oneDNN"), ("scipy", "scipy.special.softmax")):
            if r.get(key) is not None:
                yield Comparison(f"softmax {where}, rows of {r['n']:,}", r["ours"], peer, r[key], unit=per)


def _optim(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "orthograd"):
        for key in ("adamw_foreach", "adamw_fused"):
            alone = r["ms"][key]
            name = f"{key.replace('adamw_', 'AdamW, ')}, with OrthoGrad, {r['model']}"
            yield Comparison(name, alone + r["ms"]["projection"], "AdamW without it", alone)
    for r in _figures(record, "mirror_descent"):
        for lr, said in (("constant", "constant step"), ("sea", "adaptive step")):
            for key, peer in (("sgd_momentum", "SGD with momentum"), ("sgd_momentum_fused", "the same, fused")):
                name = f"OptimisticMirrorDescent, {said}, {r['model']}"
                yield Comparison(name, r["ms"][lr], peer, r["ms"][key])
    for r in _figures(record, "hedge"):
        for eta, said in (("constant", "constant step"), ("auto", "adaptive step")):
            name = f"OptimisticHedge, a round, {said}, {_size(r, 'streams', 'experts')}"
            yield Comparison(name, r["ms"][eta], "log_softmax", r["ms"]["log_softmax"])
    for r in _figures(record, "gns_maximum"):
        for name, said in (("exact", "Hessian"), ("wgn", "weighted Gauss-Newton")):
            for peer in ("trust-exact", "trust-ncg", "Newton-CG", "L-BFGS-B"):
                reached = "" if r["gap"][peer] <= 1e-8 else f", which stopped {r['gap'][peer]:.0e} above"
                what = f"smooth maximum to 1e-8, {said}, {_size(r, 'n', 'm')}, μ {r['mu']}"
                yield Comparison(what, r["ms"][name], f"SciPy {peer}{reached}", r["ms"][peer])
    for r in _figures(record, "gns_regression"):
        for peer in ("newton-cholesky", "lbfgs"):
            what = f"GNSLogisticRegression, {_size(r, 'samples', 'features', 'classes')}"
            yield Comparison(what, r["ms"]["ours"], f"scikit-learn, {peer}", r["ms"][peer])
    for r in _figures(record, "gns_trial"):
        for name in ("woodbury", "rank one"):
            what = f"solve of a low-rank curvature, {name}, {_size(r, 'rows', 'columns')}"
            yield Comparison(what, r["ms"][name], "Cholesky of the matrix", r["ms"]["cholesky"])
    for r in _figures(record, "response"):
        name = f"best-response layer, {r['rows']} rows, {r['features']} features"
        yield Comparison(name, r["ms"]["response"], "nn.Linear with twice the outputs", r["ms"]["linear_twice_as_wide"])
        yield Comparison(name, r["ms"]["response"], "nn.Linear", r["ms"]["linear"])
    for r in _figures(record, "recurrent"):
        name = f"best-response LSTM, {r['steps']} steps, {r['rows']} rows, {r['units']} units"
        yield Comparison(name, r["ms"]["response"], "one product at a time", r["ms"]["loop"])
        yield Comparison(name, r["ms"]["response"], "nn.LSTM", r["ms"]["lstm"])


def _pixel_mixture(record: Record) -> Iterator[Comparison]:
    rows = [(f"mixture forward, {r['shape']}", r["ms"]) for r in _figures(record, "mixtures")]
    rows += [(f"mixture training, {r['shape']}", r["training"]["ms"]) for r in _figures(record, "mixtures")]
    rows += [(f"relative counting loss, {r['shape']}", r["ms"]) for r in _figures(record, "losses")]
    for name, ms in rows:
        for peer in ("plain", "plain, stacked"):
            if peer in ms:
                yield Comparison(name, ms["softgate"], f"torch, {peer}", ms[peer], ms.get("limit"))


def _restoration(record: Record) -> Iterator[Comparison]:
    for section, name in (("blocks", "gated MLP"), ("networks", "MAXIM")):
        for r in _figures(record, section):
            for part in ("forward", "training"):
                ms = r[part]
                yield Comparison(
                    f"{name} {part}, {r['shape']}", ms["softgate"], "plain torch", ms["plain"], ms.get("limit")
                )


def _policy(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "objective"):
        size = " × ".join(map(str, r["shape"]))
        for name, ms in r["ms"].items():
            if f"trl_{name}" in r["ms"]:
                peer = r["ms"][f"trl_{name}"]
                yield Comparison(f"{name} objective, {size}", ms, "TRL's formula", peer, r["ms"]["limit"])
    for section in (name for name in record if name.startswith("head_")):
        for r in _figures(record, section):
            size = f"{' × '.join(f'{n:,}' for n in r['shape'])}, {r['dtype']}"
            for key, peer in (("eager", "log_softmax of all logits"), ("trl", "TRL, chunked"), ("liger", "Liger")):
                if key in r["ms"]:
                    name = f"head and {section.removeprefix('head_')}, {size}"
                    yield Comparison(name, r["ms"]["fused"], peer, r["ms"][key])


def _routing(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "experts"):
        size = f"{r['tokens']:,} tokens, {r['experts']} experts, top {r['k']}, {r['dtype']}"
        for step, limit in (("fwd", r["ms"]["dense"]), ("fwd+bwd", None)):
            ours, theirs = r["ms"][f"softgate {step}"], r["ms"][f"grouped_mm {step}"]
            yield Comparison(f"experts {step}, {size}", ours, "transformers, grouped_mm", theirs, limit)


def _soft_thinking(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "decode"):
        size = " × ".join(f"{n:,}" for n in r["model"])
        for key, peer in (("plain", "plain decoding"), ("transformers", "generate of transformers")):
            yield Comparison(f"a step of soft thinking, {size}", r["ms"]["soft"], peer, r["ms"][key])
    for section in (name for name in record if name.startswith("score_")):
        for r in _figures(record, section):
            classes, *more = section.removeprefix("score_").split("_", 1)
            size = f"{' × '.join(f'{n:,}' for n in r['shape'])} of {int(classes):,}"
            name = f"scoring soft steps{' ' + more[0].replace('_', ' ') if more else ''}, {size}"
            yield Comparison(name, r["ms"]["soft"], "log_softmax of all logits", r["ms"]["full"])


def _softmax_regression(record: Record) -> Iterator[Comparison]:
    for section in ("attainable", "noisy", "far"):
        for r in _figures(record, section):
            size = " × ".join(f"{n:,}" for n in r["problems"])
            s = r["seconds"]
            name = f"softmax regression, {section} targets, {size}"
            yield Comparison(name, 1e3 * s["batch"], "scipy least_squares", 1e3 * s["scipy"])


def _early_exit(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "inference"):
        name = f"inference with exits, {r['network']}, batch {r['batch']}, mean cost {r['mean_cost']:.2f}"
        yield Comparison(name, r["ms"]["compact"], "all stages, no exits", r["ms"]["dense"], r["ms"]["ideal"])


def _dynamic_filters(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "networks"):
        name = f"one sample, dynamic filters, {r['network']}, {100 * r['reduction']:.0f} % of multiply-adds saved"
        yield Comparison(name, r["ms"]["skipping"], "dense, folded", r["ms"]["dense"], r["ms"]["ideal"])
    for r in _figures(record, "layers"):
        plans = [r["ms"][plan] for plan in ("native", "both", "rows") if plan in r["ms"]]
        name = f"one sample, 3×3 convolution of {r['width']} at {r['side']}×{r['side']}, {r['keep']:g} of both sides"
        yield Comparison(name, min(plans), "dense", r["ms"]["dense"], r["ms"]["ideal"])
    for r in _figures(record, "training"):
        yield Comparison("training step, dynamic filters", r["ms"]["dynamic"], "dense", r["ms"]["dense"])


def _information(record: Record) -> Iterator[Comparison]:
    for r in _figures(record, "bins"):
        name = f"information by adaptive bins, {r['rows']} × {r['units']}"
        yield Comparison(name, r["ms"]["ours"], "numpy, unique rows as bytes", r["ms"]["numpy"])
        yield Comparison(name, r["ms"]["ours"], "a loop over rows, counted in a dictionary", r["ms"]["loop"])
    for r in _figures(record, "densities"):
        name = f"both bounds of information by noise, {r['rows']} × {r['units']}"
        yield Comparison(name, r["ms"]["ours"], "torch, whole matrices", r["ms"]["dense"])
        yield Comparison(name, r["ms"]["ours"], "scikit-learn's KernelDensity, one bound", r["ms"]["sklearn"])


#: benchmark-NAME.json and benchmark-NAME-cuda.json -> how its sections become comparisons.
_READERS: dict[str, Callable[[Record], Iterator[Comparison]]] = {
    "activations": _activations,
    "attention": _attention,
    "detection": _detection,
    "dynamic-filters": _dynamic_filters,
    "early-exit": _early_exit,
    "fused-linear": _fused_linear,
    "gaussian_moe": _gaussian_moe,
    "heads": _heads,
    "lipschitz": _lipschitz,
    "information": _information,
    "losses": _losses,
    "margins": _margins,
    "mixers": _mixers,
    "normalizers": _normalizers,
    "optim": _optim,
    "pixel-mixture": _pixel_mixture,
    "policy": _policy,
    "restoration": _restoration,
    "routing": _routing,
    "soft-thinking": _soft_thinking,
    "softmax-regression": _softmax_regression,
}


def records(folder: Path = RESULTS) -> dict[str, Record]:
    """Content of every ``benchmark-NAME.json`` by name."""
    paths = sorted(folder.glob("benchmark-*.json"))
    return {path.stem.removeprefix("benchmark-"): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def comparisons(found: dict[str, Record]) -> list[Comparison]:
    """Every comparison, the largest ratio of our time to a peer's first."""
    rows = [
        Comparison(**{**vars(row), "benchmark": name})
        for name, record in found.items()
        if name.removesuffix("-cuda") in _READERS
        for row in _READERS[name.removesuffix("-cuda")](record)
    ]
    return sorted(rows, key=lambda row: (-row.ratio, row.benchmark, row.operation, row.peer))


def _cells(row: Comparison) -> list[str]:
    limit, over = ("–", "–") if row.limit is None else (_time(row.limit, row.unit), _ratio(row.ours / row.limit))
    ours, theirs = _time(row.ours, row.unit), _time(row.theirs, row.unit)
    return [row.benchmark, row.operation, ours, row.peer, theirs, _ratio(row.ratio), limit, over]


def _time(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


HEADER = ["benchmark", "operation", "ours", "peer", "peer's time", "ours / peer", "limit", "ours / limit"]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _totals(found: dict[str, Record], rows: Sequence[Comparison]) -> list[list[str]]:
    lines = []
    for name, record in found.items():
        mine = [row for row in rows if row.benchmark == name]
        sections = [part for part in record.values() if isinstance(part, dict) and "environment" in part]
        last = max(sections, key=lambda part: part["environment"]["date"])
        chips = [gpu["name"] for gpu in last["environment"].get("gpus") or ()] if name.endswith("-cuda") else []
        where = f"{chips[0] if chips else last['environment'].get('cpu', '')}, torch {last['environment']['torch']}"
        lost = [row for row in mine if row.ratio > 1.0]
        worst = f"{mine[0].ratio:.2f} ({mine[0].peer})" if mine else "no comparisons are read from it yet"
        load = f"{max(part['load_per_core'] for part in sections):.1f}"
        lines.append([name, str(len(mine)), str(len(lost)), worst, last["environment"]["date"][:10], load, where])
    return lines


def benchmarks_table(folder: Path = RESULTS) -> str:
    """Markdown: losses and wins counted per benchmark, then every loss, then everything else."""
    found = records(folder)
    rows = comparisons(found)
    lost, won = [row for row in rows if row.ratio > 1.0], [row for row in rows if row.ratio <= 1.0]
    header = [
        "benchmark",
        "comparisons",
        "slower than the peer",
        "largest ours / peer",
        "date",
        "load per core",
        "where",
    ]
    lines = [
        f"**{len(rows)} comparisons: in {len(lost)} the peer is faster, in {len(won)} we are.**",
        "",
        *_markdown(header, _totals(found, rows)),
        "",
        f"## Where the peer is faster ({len(lost)})",
        "",
        *_markdown(HEADER, [_cells(row) for row in lost]),
        "",
        f"## Where we are as fast or faster ({len(won)})",
        "",
        *_markdown(HEADER, [_cells(row) for row in won]),
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    rows = comparisons(records(folder))
    if not rows:
        raise SystemExit(f"no benchmark-*.json in {folder}: run `softgate bench SITE --out {folder}` first")
    table = Table()
    for name in HEADER:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, _cells(row)), style="red" if row.ratio > 1.0 else "")
    console = Console(width=max(Console().width, 150))
    console.print(table)
    lost = sum(row.ratio > 1.0 for row in rows)
    console.print(f"{len(rows)} comparisons: in {lost} the peer is faster, in {len(rows) - lost} we are.")


if __name__ == "__main__":
    main()
