"""Finding and running the benchmark files of a checkout."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from softgate.errors import ArgumentValueError, StateError, did_you_mean

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"
_SUMMARY = Path("tools") / "benchmark_tables.py"


def sites() -> list[str]:
    """Names of the benchmarks.

    Raises:
        StateError: this is an installed package, which has none.
    """
    found = sorted(path.stem for path in FOLDER.glob("*.py") if not path.name.startswith("_"))
    if not found:
        raise StateError(
            "the benchmarks are not part of the installed package: clone the project, then in the checkout "
            "`pip install -e .` and `softgate bench` (or `make bench`)"
        )
    return found


def run(site: str, arguments: Sequence[str]) -> None:
    """Run the benchmark ``site`` in this process as its file would run by itself.

    Args:
        site: one of :func:`sites`.
        arguments: what the command line of the file gets.

    Raises:
        ArgumentValueError: there is no such benchmark.
        StateError: see :func:`sites`.
    """
    known = sites()
    if site not in known:
        hint = did_you_mean(site, known) or "; `softgate bench` lists them"
        raise ArgumentValueError(f"SITE must be one of {', '.join(known)}, got {site!r}{hint}")
    _run_file(FOLDER / f"{site}.py", arguments)


def run_summary(arguments: Sequence[str]) -> None:
    """Print one table of all records (of ``--results DIR``): ours, peer, ratio, limit."""
    sites()  # raises where there is no checkout
    _run_file(FOLDER.parent / _SUMMARY, arguments)


def _run_file(path: Path, arguments: Sequence[str]) -> None:
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[:0] = [str(path), *arguments], [str(path.parent)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
