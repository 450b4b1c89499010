"""Measure the error of every row and elementwise op in units in the last place, and refresh docs/numerics.md.

python -m softgate.testing.numerics             measure, write docs/results/numerics.json, refresh the page
python -m softgate.testing.numerics --render    only refresh the page from the records
python -m softgate.testing.numerics --check     exit 1 if the page differs from the records
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softgate
from softgate.dispatch import explain
from softgate.lab.environment import environment
from softgate.lab.files import write_atomic, write_json
from softgate.registry import Method, methods
from softgate.testing.budgets import ulp_error
from softgate.testing.subject import Call, Subject

__all__ = ["main", "measure", "render"]

SIZES = (16, 1024, 32_768, 262_144)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Entries measured per size: short rows come in many.
ENTRIES = 2**18
BEGIN, END = "<!-- numerics:begin -->", "<!-- numerics:end -->"

LongDouble = np.ndarray[Any, np.dtype[np.longdouble]]


def _exponentials(x: LongDouble) -> LongDouble:
    return np.exp(x - x.max(-1, keepdims=True))


def _log_sum_exp(x: LongDouble) -> LongDouble:
    return x.max(-1) + np.log(_exponentials(x).sum(-1))


def _stable(x: LongDouble) -> LongDouble:
    return np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))


#: What float64 results are measured against: the formula in extended precision (64 bits of significand on x86-64).
EXTENDED: dict[str, Callable[[LongDouble], LongDouble]] = {
    "normalizers.softmax": lambda x: _exponentials(x) / _exponentials(x).sum(-1, keepdims=True),
    "normalizers.log_softmax": lambda x: x - _log_sum_exp(x)[..., None],
    "normalizers.logsumexp": _log_sum_exp,
    "normalizers.stablemax": lambda x: _stable(x) / _stable(x).sum(-1, keepdims=True),
    "normalizers.log_stablemax": lambda x: np.log(_stable(x)) - np.log(_stable(x).sum(-1, keepdims=True)),
}


def has_extended_precision() -> bool:
    """Whether ``numpy.longdouble`` is wider than float64 here."""
    return bool(np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant)


def measure() -> dict[str, Any]:
    """Measure every recorded row and elementwise op; see :data:`SIZES` and :data:`DTYPES`."""
    rows = [
        row for record in _measured() for size in SIZES for dtype in DTYPES for row in _measure(record, size, dtype)
    ]
    return {"environment": environment(), "entries": ENTRIES, "rows": rows}


def _measured() -> Iterator[Method]:
    for record in methods():
        if record.family in ("row_map", "row_reduction", "scalar_map") and record.samples is None:
            yield record


def _measure(record: Method, size: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    if dtype == torch.float64 and not (record.qualified_name in EXTENDED and has_extended_precision()):
        return
    subject = Subject(record, next(iter(record.variants)))
    generator = torch.Generator().manual_seed(size)
    x = (3 * torch.randn(max(ENTRIES // size, 1), size, generator=generator, dtype=torch.float64)).to(dtype)
    call = Call((x,) if record.family == "scalar_map" else (x, -1))
    truth, rest = _truth(subject, call)
    ours, plain = subject.run(call), _torch_own(subject, call)
    if not isinstance(ours, Tensor) or not isinstance(plain, Tensor):
        return
    row: dict[str, Any] = {
        "op": record.qualified_name,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "runs": explain(record, *call.args, **subject.fixed).chosen,
        "ulp": _ulp(ours, truth, rest),
        "ulp_torch": _ulp(plain, truth, rest),
    }
    if "sums_to_one" in record.laws:
        row["sum_error"] = float((ours.double().sum(-1) - 1).abs().max())
        row["sum_error_torch"] = float((plain.double().sum(-1) - 1).abs().max())
    yield row


def _truth(subject: Subject, call: Call) -> tuple[Tensor, Tensor | None]:
    """The exact result as float64, and for float64 results the part of it that float64 cannot hold."""
    x = call.args[0]
    if x.dtype != torch.float64:
        return subject.truth(call)[0], None
    exact = EXTENDED[subject.record.qualified_name](x.numpy().astype(np.longdouble))
    head = exact.astype(np.float64)
    return torch.from_numpy(head), torch.from_numpy((exact - head).astype(np.float64))


def _ulp(actual: Tensor, truth: Tensor, rest: Tensor | None) -> float | None:
    """Largest error in units in the last place, over results in the normal range; None if there is none."""
    normal = truth.abs() >= torch.finfo(actual.dtype).tiny
    error = ulp_error(actual, truth, rest)
    return float(error[normal].max()) if bool(normal.any()) else None


def _torch_own(subject: Subject, call: Call) -> Any:
    """The function of this name in torch, in the same dtype; where there is none, the plain-torch reference."""
    own = getattr(torch, subject.record.name, None)
    if own is not None and subject.record.site == "normalizers":
        return own(*call.args)
    return subject.run_reference(call)


def render(records: Sequence[dict[str, Any]]) -> str:
    """The tables of the page: one per record."""
    parts = []
    for record in records:
        machine = record["environment"]
        parts.append(
            f"Measured on {machine.get('cpu') or machine['machine']}, {machine['threads']} threads, torch "
            f"{machine['torch']}, softgate {machine['softgate']} at commit "
            f"{str(machine.get('commit', 'unknown'))[:10]}{' with local changes' if machine.get('dirty') else ''}, "
            f"{machine['date']}."
        )
        parts.append(_table(record["rows"]))
    return "\n\n".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| op | dtype | runs | " + " | ".join(f"n = {size:,}" for size in SIZES) + " | sum - 1 (largest) |",
        "|---|---|---|" + "---:|" * (len(SIZES) + 1),
    ]
    keys = dict.fromkeys((row["op"], row["dtype"]) for row in rows)
    for op, dtype in keys:
        mine = {row["size"]: row for row in rows if (row["op"], row["dtype"]) == (op, dtype)}
        runs = ", ".join(dict.fromkeys(row["runs"] for row in mine.values()))
        cells = [_cell(mine.get(size, {})) for size in SIZES]
        sums = [row for row in mine.values() if "sum_error" in row]
        worst = max((row["sum_error"] for row in sums), default=None)
        worst_torch = max((row["sum_error_torch"] for row in sums), default=None)
        cells.append("" if worst is None or worst_torch is None else f"{worst:.1e} / {worst_torch:.1e}")
        lines.append(f"| `{op}` | {dtype} | {runs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row.get("ulp") is None or row.get("ulp_torch") is None:
        return "–"
    return f"{row['ulp']:.2f} / {row['ulp_torch']:.2f}"


def _refreshed(page: str, records: Sequence[dict[str, Any]]) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render(records)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and publish; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m softgate.testing.numerics", description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path(softgate.__file__).resolve().parents[2] / "docs")
    parser.add_argument("--render", action="store_true", help="only refresh the page from the records")
    parser.add_argument("--check", action="store_true", help="exit 1 if the page differs from the records")
    chosen = parser.parse_args(arguments)
    page, results = chosen.docs / "numerics.md", chosen.docs / "results"
    if not (chosen.render or chosen.check):
        write_json(results / "numerics.json", measure())
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("numerics*.json"))]
    text = page.read_text(encoding="utf-8")
    fresh = _refreshed(text, records)
    if chosen.check:
        return int(fresh != text)
    write_atomic(page, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
