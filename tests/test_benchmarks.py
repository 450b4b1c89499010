"""Every benchmark runs, and what it writes is what the summary reads; losses come first and are counted."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from softgate import cli
from softgate.lab import bench
from softgate.lab.timing import Timing
from softgate.models import MAXIM

ROOT = Path(__file__).resolve().parents[1]


def _tiny_maxim(variant: str, **options: Any) -> MAXIM:
    return MAXIM(variant, features=4, groups=1, bottleneck_blocks=1, **options)


#: Arguments and constants with which a benchmark takes a fraction of a second.
SMALL: dict[str, tuple[list[str], dict[str, Any]]] = {
    "activations": ([], {"SIZES": {"cpu": (64,)}, "SPIKING": {"cpu": ((2, 8),)}}),
    "attention": (["forward", "--lengths", "64", "--turns", "1"], {}),
    "detection": (["--boxes", "40", "--batch", "2,2,10"], {}),
    "dynamic_filters": (
        ["--keeps", "0.5", "--turns", "1"],
        {"NETWORKS": {"CNN": ({"network": "stack", "widths": (8, 16)}, 8)}, "LAYERS": ((16, 4),)},
    ),
    "early_exit": (["--batches", "4", "--turns", "1"], {"NETWORKS": {"CNN": ("cnn", 4, 16), "MLP": ("mlp", 8, 6)}}),
    "fused_linear": (["--shapes", "16,8,50", "--turns", "1"], {}),
    "gaussian_moe": (["--samples", "300"], {}),
    "heads": (["--classes", "64", "--features", "64", "--rows", "8"], {}),
    "lipschitz": (["--networks", "2,4"], {}),
    "information": ([], {"SHAPES": ((40, 3),), "KDE_SHAPES": ((70, 3),)}),
    "losses": ([], {"SHAPES": {"cpu": ((8, 5),)}, "DENSE_SHAPES": {"cpu": ((8, 5),)}}),
    "margins": ([], {"SHAPES": ((8, 5),), "CELLS": ((4, 3, 8),)}),
    "mixers": (["--lengths", "64"], {}),
    "normalizers": (["grid"], {"LARGEST": 2**6}),
    "optim": (
        [],
        {
            "MODELS": {"a matrix": [(4, 4)]},
            "EXPERTS": ((3, 4),),
            "MAXIMA": ((3, 8, 0.5),),
            "REGRESSIONS": ((40, 3, 2),),
            "CURVATURES": ((3, 6),),
            "RESPONSES": ((4, 5),),
            "RECURRENT": ((3, 2, 4),),
        },
    ),
    "pixel_mixture": ([], {"SHAPES": ((1, 3, 16, 16, 4),)}),
    "policy": (["--shape", "4,8", "--groups", "3,4", "--head", "8,4,50"], {"trl_log_probs": lambda: None}),
    "restoration": (
        ["--turns", "1"],
        {"BLOCKS": ((1, 4, 8, 2),), "NETWORKS": (("S-1", 64),), "_PRODUCT": 8, "MAXIM": _tiny_maxim},
    ),
    "routing": ([], {"CASES": ((16, 8, 16, 4, 2),)}),
    "soft_thinking": (["--model", "50,16,1", "--steps", "4", "--score", "4,16,5"], {"VOCABULARIES": (50,)}),
    "softmax_regression": (["--problems", "6,8,3", "--loop", "2"], {}),
}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that reads the records."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("benchmark_tables")


def _module(site: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmark_{site}", ROOT / "benchmarks" / f"{site}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _timing() -> Timing:
    return Timing(1e-3, 1e-3, 1e-3, 1e-3, 1)


def _run_once(candidates: Mapping[str, Callable[[], object]], **options: Any) -> dict[str, Timing]:
    for run in candidates.values():
        run()
    return {name: _timing() for name in candidates}


def _once(step: Callable[[], object], **options: Any) -> Timing:
    step()
    return _timing()


def test_every_benchmark_is_tried_here() -> None:
    assert sorted(SMALL) == bench.sites()


@pytest.mark.parametrize("site", SMALL)
def test_the_summary_reads_what_a_benchmark_writes(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Any
) -> None:
    needed = {"gaussian_moe": "sklearn", "information": "sklearn", "optim": "sklearn", "routing": "transformers",
              "soft_thinking": "transformers", "softmax_regression": "scipy"}  # fmt: skip
    if site in needed:
        pytest.importorskip(needed[site])
    module = _module(site, monkeypatch)
    arguments, constants = SMALL[site]
    quick = {"interleaved": _run_once, "step_seconds": _once, "peak_bytes": lambda step, device="cpu": 1}
    for name, value in {**{k: v for k, v in quick.items() if hasattr(module, k)}, **constants}.items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("sys.argv", [f"{site}.py", *arguments, "--out", str(tmp_path)])
    module.main()
    (record,) = tables.records(tmp_path)
    found = tables.comparisons(tables.records(tmp_path))
    assert found and all(row.benchmark == record and row.ours > 0 and row.theirs > 0 for row in found)


def test_losses_come_first_and_are_counted(tmp_path: Path, tables: Any) -> None:
    about = {"environment": {"date": "2026-01-02T03:04:05Z", "cpu": "A CPU", "torch": "2.13"}, "load_per_core": 0.1}
    sizes = {"rows": 8, "n": 16}
    figures = [{**sizes, "ours_ns": ours, "torch_ns": 1.0} for ours in (0.5, 2.0, 3.0)]
    (tmp_path / "benchmark-normalizers.json").write_text(json.dumps({"grid": {**about, "figures": figures}}))
    (tmp_path / "benchmark-new.json").write_text(json.dumps({"part": {**about, "figures": []}}))
    text = tables.benchmarks_table(tmp_path)
    assert "3 comparisons: in 2 the peer is faster, in 1 we are" in text
    assert "| new | 0 | 0 | no comparisons are read from it yet |" in text
    lines = [line for line in text.splitlines() if line.startswith("| normalizers | softmax")]
    assert [line.split(" | ")[5] for line in lines] == ["3.00", "2.00", "0.50"]
    assert text.index("Where the peer is faster (2)") < text.index(lines[0]) < text.index("as fast or faster (1)")


def test_the_command_prints_the_records_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmark-mixers.json").write_text(
        json.dumps({"mixers": {"figures": [{"length": 64, "ms": {"ssd chunked": 3, "loop": 2, "two products": 1}}]}})
    )
    monkeypatch.setattr("sys.argv", ["softgate", "bench", "--summary", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    assert "SSD, length 64" in out and "1 comparisons: in 1 the peer is faster, in 0 we are." in out


def test_the_page_shows_every_record(tables: Any) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = tables.records()
    assert all(f"| {name} | " in page for name in found)
    assert f"**{len(tables.comparisons(found))} comparisons" in page
